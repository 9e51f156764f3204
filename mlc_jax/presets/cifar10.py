"""CIFAR-10 as in the paper: ResNet-32, 1,000 clean labels, UNIF 0.4, 120 epochs, k = 1.

    mlc-jax train --config=cifar10 --workdir=DIR --config.dataset.download=True

Human labels (CIFAR-10N): --config.noise.type=human --config.noise.file=cifar10n.npz
--config.noise.key=worst.

Not run to its end yet. 18 epochs of CIFAR-10 and the time of a step on a GPU:
docs/results/gpu.md; one epoch is about 490 steps.
"""

from ml_collections import ConfigDict

from mlc_jax.config import get_config as defaults


def get_config() -> ConfigDict:
    return defaults()
