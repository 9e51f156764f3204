"""Your own tables in .csv, .jsonl or .parquet files: labels to correct, and some that were checked.

    python -m mlc_jax.main --config=configs/table.py --config.dataset.data=all.csv --workdir=DIR
    python -m mlc_jax.main --config=configs/table.py --config.dataset.noisy=noisy.csv \
        --config.dataset.clean=clean.csv --workdir=DIR

Columns are `label`, and maybe `id` and `split` (`test` or `validation` for rows that only judge).
In one file, `checked_label` is empty where nobody looked. In two, the clean file's labels are the
true ones, and its `given_label`, if there, the old ones. Every other column of numbers, dates,
lists of numbers or few different texts is a feature; --config.dataset.features=age,city takes
columns by name, and +city,-index adds and leaves out. A number that is missing (an empty field)
becomes the column's median, and a feature more says where it was. docs/your_own_labels.md says
more.
"""

from ml_collections import ConfigDict

from configs import arrays


def get_config() -> ConfigDict:
    config = arrays.get_config()
    config.dataset.name = "table"
    return config
