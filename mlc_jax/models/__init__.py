"""Classifiers and meta models.

Every classifier maps `inputs [B, ...]` to `(logits [B, C], features [B, F])` and takes `train`. Any
Flax module that does can be used in its place.
"""

from flax import linen as nn

from mlc_jax.models.bert import Bert, BertConfig
from mlc_jax.models.label_correction import LabelCorrectionNetwork
from mlc_jax.models.mlp import MLP
from mlc_jax.models.resnet import ResNet
from mlc_jax.models.weight_net import WeightNet

__all__ = [
    "MLP",
    "Bert",
    "BertConfig",
    "LabelCorrectionNetwork",
    "ResNet",
    "WeightNet",
    "over_axis",
]


def over_axis(model: nn.Module, axis_name: str | None) -> nn.Module:
    """The model with batch statistics averaged over a pmap axis, if it wants that.

    It does by an attribute `sync_batch_norm` that is true; the axis goes into its `axis_name`.
    """
    if axis_name is None or not getattr(model, "sync_batch_norm", False):
        return model
    return model.clone(axis_name=axis_name)
