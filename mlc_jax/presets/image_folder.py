r"""Your own pictures: labels to correct, and some that somebody checked.

    mlc-jax correct all.csv --encoder=facebook/dinov2-small
    mlc-jax train --config=image_folder --config.dataset.data=all.csv \
        --config.dataset.encoder=facebook/dinov2-small --workdir=DIR
    mlc-jax train --config=image_folder --config.dataset.noisy=noisy/ \
        --config.dataset.clean=clean/ --config.dataset.test=test/ \
        --config.dataset.encoder=DIR_OR_NAME --workdir=DIR

A table (.csv, .tsv, .jsonl or .parquet) has columns `path`, relative to the table or absolute, and
`label`. `checked_label` is empty where nobody looked. `id` and `split` (`test` or `validation` for
rows that only judge) are optional. A directory has a sub-directory for each class. Pictures are
JPEG, PNG, WebP or BMP of any size.

The encoder stays as it is, and classifiers are trained on its features.
--config=image_folder:finetuned trains a whole ResNet-50 at 224 pixels. It needs an accelerator and
pretrained weights (model.resnet50.checkpoint): torchvision's resnet50 .pth, or timm's
model.safetensors of resnet50.tv_in1k. --config=image_folder:small trains a ResNet-26 of a quarter
of the width at 64 pixels, from random weights.
"""

from ml_collections import ConfigDict

from mlc_jax.config import get_config as defaults
from mlc_jax.errors import expect
from mlc_jax.presets import arrays


def get_config(kind: str = "frozen") -> ConfigDict:
    """The config; `kind` is frozen, finetuned or small, anything else an InputError."""
    kinds = ("frozen", "finetuned", "small")
    expect(kind in kinds, "--config", f"...:{kind}", " or ".join(f"...:{x}" for x in kinds))
    config = arrays.get_config() if kind == "frozen" else _trained_whole(kind)
    config.dataset.name = "image_folder"
    config.dataset.clean_per_class = 10
    config.cross_fit.hidden_sizes = ()  # A linear model is enough for an encoder's features.
    return config


def _trained_whole(kind: str) -> ConfigDict:
    """A network that is trained on pixels."""
    config = defaults()
    config.noise.type = "none"
    config.model.name = "resnet50"
    config.main_optimizer.schedule = "cosine"
    config.meta_optimizer.learning_rate = 1e-3  # As for other own files.
    config = arrays.own(config)
    config.method = "robust_mlc"  # cross_fit trains many classifiers of features, no network.
    if kind == "small":
        config.dataset.image_size = 64
        config.model.resnet50.depth = 26
        config.model.resnet50.width = 16
        config.eval_batch_size = 500
        return config
    # For pretrained weights; from random ones 0.1 learns faster.
    config.main_optimizer.learning_rate = 0.01
    config.model.dtype = "bfloat16"
    config.noisy_batch_size = 32
    config.clean_batch_size = 32
    config.eval_batch_size = 128
    return config
