"""Classifiers and meta models.

Every classifier maps `inputs [B, ...]` to `(logits [B, C], features [B, F])` and has an argument
`train`. Any Flax module of this kind can be used.
"""

import numpy as np
from flax import linen as nn

from mlc_jax.models.bert import Bert, BertConfig
from mlc_jax.models.bert_checkpoint import bert_params, load_bert
from mlc_jax.models.bert_checkpoint import load_config as load_bert_config
from mlc_jax.models.label_correction import LabelCorrectionNetwork
from mlc_jax.models.mlp import MLP
from mlc_jax.models.pretrained import load_params
from mlc_jax.models.resnet import ResNet
from mlc_jax.models.resnet50 import ResNet50
from mlc_jax.models.resnet50_checkpoint import load_resnet50
from mlc_jax.models.weight_net import WeightNet

__all__ = [
    "MLP",
    "Bert",
    "BertConfig",
    "LabelCorrectionNetwork",
    "ResNet",
    "ResNet50",
    "WeightNet",
    "frozen_paths",
    "initial_params",
    "load_bert_config",
    "over_axis",
]


def initial_params(model: nn.Module, source: str | None) -> dict[str, np.ndarray]:
    """Initial parameters and batch statistics by path; see `pretrained.with_initial`.

    Args:
      model: a `Bert` also starts from a Hugging Face checkpoint, a `ResNet50` from torchvision's or
        timm's.
      source: a `.safetensors` file; for a `Bert` also a directory, or a name on the hub, for a
        `ResNet50` also a `.pth` file.

    Raises:
      InputError: it cannot be read, or belongs to another kind of model.
    """
    if source is None:
        return {}
    if isinstance(model, Bert) and not source.endswith(".safetensors"):
        return bert_params(model, load_bert(source)[1])
    if isinstance(model, ResNet50):
        return load_resnet50(model, source)
    return load_params(source)


def frozen_paths(model: nn.Module) -> str | None:
    """A regular expression for the paths of parameters that no optimizer may change.

    It is an attribute of the model; None stands for no such parameter. Weight decay would change
    these parameters even without a gradient.
    """
    pattern: str | None = getattr(model, "frozen_paths", None)
    return pattern


def over_axis(model: nn.Module, axis_name: str | None) -> nn.Module:
    """The model with batch statistics averaged over a pmap axis, if its `sync_batch_norm` is true.

    The axis becomes its `axis_name`.
    """
    if axis_name is None or not getattr(model, "sync_batch_norm", False):
        return model
    return model.clone(axis_name=axis_name)
