r"""AG News (four classes) as in the paper: 100 clean labels per class, BERT base; or frozen.

    mlc-jax train --config=ag_news --config.dataset.data_dir=DIR \
        --config.model.bert.checkpoint=bert-base-uncased --workdir=DIR
    mlc-jax train --config=ag_news:frozen --config.dataset.data_dir=DIR \
        --config.model.bert.checkpoint=sentence-transformers/all-MiniLM-L6-v2 --workdir=DIR

DIR has the published train.csv and test.csv; --config.dataset.tfds_name=ag_news_subset reads
TensorFlow Datasets' copy. `:frozen` trains a small head on the encoder's features, which takes
minutes on a CPU: docs/results/ag_news.md. Fine-tuning was run at reduced size only.
"""

from ml_collections import ConfigDict

from mlc_jax.presets import text


def get_config(kind: str = "finetuned") -> ConfigDict:
    """The config; `kind` is finetuned or frozen, anything else an InputError."""
    return text.benchmark("ag_news", kind)
