"""Classifiers and meta models, by name.

Every classifier maps `inputs [B, ...]` to `(logits [B, C], features [B, F])` and takes `train`.
"""

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mlc_jax.models.label_correction import LabelCorrectionNetwork
from mlc_jax.models.mlp import MLP
from mlc_jax.models.resnet import ResNet
from mlc_jax.models.weight_net import WeightNet

CLASSIFIERS = ("mlp", "resnet")
CONVOLUTIONAL = ("resnet",)

__all__ = [
    "CLASSIFIERS",
    "CONVOLUTIONAL",
    "MLP",
    "LabelCorrectionNetwork",
    "ResNet",
    "WeightNet",
    "create_classifier",
]


def create_classifier(config: ConfigDict, num_classes: int, axis_name: str | None) -> nn.Module:
    """Builds `config.model` (see configs/default.py).

    Args:
      config: the `model` part of the config.
      num_classes: the number of logits.
      axis_name: pmap axis over which batch norm is synchronised, if the config asks for it.
    """
    dtype = jnp.dtype(config.dtype)
    if config.name == "mlp":
        return MLP(
            num_classes=num_classes,
            hidden_sizes=tuple(config.mlp.hidden_sizes),
            dropout_rate=config.mlp.dropout_rate,
            dtype=dtype,
        )
    if config.name == "resnet":
        return ResNet(
            num_classes=num_classes,
            depth=config.resnet.depth,
            dtype=dtype,
            axis_name=axis_name if config.resnet.sync_batch_norm else None,
        )
    raise ValueError(f"config.model.name: got {config.name!r}, expected one of {CLASSIFIERS}")
