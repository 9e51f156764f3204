r"""Amazon reviews, five classes (stars), as in the paper: 100 clean labels per class.

    mlc-jax train --config=amazon5 --config.dataset.data_dir=DIR \
        --config.model.bert.checkpoint=bert-base-uncased --workdir=DIR

DIR has the published train.csv and test.csv. `--config=amazon5:frozen` trains a
small head on the features of the fixed encoder. Not run in full yet, for want of the data: the
reader was tested on files of their layout.
"""

from ml_collections import ConfigDict

from mlc_jax.presets import text


def get_config(kind: str = "finetuned") -> ConfigDict:
    """Args: kind: finetuned or frozen."""
    return text.benchmark("amazon5", kind)
