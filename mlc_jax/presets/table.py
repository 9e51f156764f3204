r"""Your own tables (.csv, .tsv, .jsonl, .parquet): labels to correct, some of them checked.

    mlc-jax correct all.csv
    mlc-jax train --config=table --config.dataset.data=all.csv --workdir=DIR
    mlc-jax train --config=table --config.dataset.noisy=noisy.csv \
        --config.dataset.clean=clean.csv --workdir=DIR

Columns are `label`, optionally `id` and `split` (`test` or `validation` for rows that only judge);
--config.dataset.columns=label=NAME gives another name. In one file, `checked_label` is empty where
nobody looked. With two files, the clean file's labels are the true ones, and its `given_label`, if
there, the old ones. Every other column of numbers, dates, lists of numbers or few different texts
is a feature. --config.dataset.features=age,city chooses columns by name; +city,-index adds one and
drops one. A missing number (an empty field) becomes the column's median, and one more feature marks
it. docs/your_own_labels.md says more.
"""

from ml_collections import ConfigDict

from mlc_jax.presets import arrays


def get_config() -> ConfigDict:
    config = arrays.get_config()
    config.dataset.name = "table"
    return config
