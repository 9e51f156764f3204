r"""Yelp reviews, five classes (stars), as in the paper: 100 clean labels per class.

    mlc-jax train --config=yelp5 --config.dataset.data_dir=DIR \
        --config.model.bert.checkpoint=bert-base-uncased --workdir=DIR

DIR has the published train.csv and test.csv. `--config=yelp5:frozen` trains a small head on the
features of the encoder, which stays as it is. Not run in full yet, because the data were missing:
only the reader was tested, on small files of the same layout.
"""

from ml_collections import ConfigDict

from mlc_jax.presets import text


def get_config(kind: str = "finetuned") -> ConfigDict:
    """The config; `kind` is finetuned or frozen, anything else an InputError."""
    return text.benchmark("yelp5", kind)
