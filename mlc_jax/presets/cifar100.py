"""CIFAR-100 as in the paper: ResNet-32, 1,000 clean labels, UNIF 0.4, 120 epochs, k = 1.

    mlc-jax train --config=cifar100 --workdir=DIR --config.dataset.download=True

Not run to its end yet. 18 epochs of CIFAR-10 and the time of a step on a GPU:
docs/results/gpu.md; one epoch is about 490 steps.
"""

from ml_collections import ConfigDict

from mlc_jax.config import get_config as defaults


def get_config() -> ConfigDict:
    config = defaults()
    config.dataset.name = "cifar100"
    config.forward.percentile = 100.0  # A class is one in a hundred examples.
    config.dataset.clean_per_class = 10
    return config
