r"""Your own texts (.csv, .tsv, .jsonl, .parquet): labels to correct, some of them checked.

    mlc-jax correct all.csv --encoder=DIR_OR_NAME
    mlc-jax train --config=text --config.dataset.data=all.csv \
        --config.model.bert.checkpoint=DIR_OR_NAME --workdir=DIR
    mlc-jax train --config=text --config.dataset.noisy=weak.csv --config.dataset.clean=gold.csv \
        --config.dataset.test=test.csv --config.model.bert.checkpoint=DIR_OR_NAME --workdir=DIR

Columns are `text` and `label`, optionally `id` and `split` (`test` or `validation` for rows that
only judge). In one file, `checked_label` is empty where nobody looked. With two files, the clean
file's labels are the true ones, and its `given_label`, if there, the old ones. The encoder stays as
it is, and classifiers are trained on its features. --config=text:finetuned trains all of it, or
with --config.model.bert.num_frozen_layers=N all but its embeddings and first N layers.
"""

from ml_collections import ConfigDict

from mlc_jax.config import get_config as defaults
from mlc_jax.errors import expect
from mlc_jax.presets import arrays


def get_config(kind: str = "frozen") -> ConfigDict:
    """The config; `kind` is finetuned or frozen, anything else an InputError."""
    config = defaults()
    config.dataset.name = "text"
    config.dataset.clean_per_class = 10
    config.noise.type = "none"
    config = _trained(config, kind)
    if kind == "frozen":
        return arrays.own(config)
    return config


def benchmark(name: str, kind: str) -> ConfigDict:
    """The config of one of the paper's text tasks; `kind` is as for `get_config`."""
    config = defaults()
    config.dataset.name = name
    return _trained(config, kind)


def _trained(config: ConfigDict, kind: str) -> ConfigDict:
    """The config with the model and the optimizers of that kind."""
    config.dataset.augment = False
    config.model.name = "bert"
    if kind == "finetuned":
        # The paper does not publish its rates for BERT: these are the usual ones.
        config.model.mlp.hidden_sizes = ()
        config.length_buckets = 2  # docs/results/ag_news.md has the savings.
        config.main_optimizer.name = "adamw"
        config.main_optimizer.learning_rate = 5e-5
        config.main_optimizer.weight_decay = 0.01
        config.main_optimizer.groups = (("bias$|norm", 1.0, 0.0),)
        config.main_optimizer.schedule = "linear"
        config.main_optimizer.warmup_epochs = 0.1
        config.lcn.hidden_size = 768
        config.num_epochs = 3
        return config
    expect(kind == "frozen", "--config", f"...:{kind}", "...:frozen or ...:finetuned")
    config.model.bert.num_frozen_layers = -1
    config.cross_fit.hidden_sizes = ()  # A linear model is enough for an encoder's features.
    config.main_optimizer.weight_decay = 0.0
    config.main_optimizer.schedule = "constant"
    config.lcn.hidden_size = 64
    config.lcn.embedding_size = 64
    config.meta_optimizer.name = "adam"
    config.meta_optimizer.learning_rate = 1e-3
    config.num_epochs = 30
    config.eval_every_epochs = 5
    return config
