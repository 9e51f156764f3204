"""Pretrained weights of torchvision and timm for `ResNet50`. Only `.pth` needs PyTorch."""

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from mlc_jax import paths
from mlc_jax.errors import InputError
from mlc_jax.models.pretrained import load_params
from mlc_jax.models.resnet50 import BLOCKS, ResNet50
from mlc_jax.models.torch_weights import resnet_from_torch

_STEM, _HEAD = "conv1.weight", "fc"
_PICKLES = (".pth", ".pt")


def load_resnet50(model: ResNet50, source: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Parameters and batch statistics by path, as `pretrained.with_initial` takes them.

    Args:
      model: its shape must be the checkpoint's.
      source: `.safetensors` of timm or torchvision, or torchvision's `.pth`; names may share a
        prefix. The last layer is left out, since it has other classes. Or `.safetensors` that
        `pretrained.save_params` wrote, which is loaded as a whole.

    Raises:
      InputError: it cannot be read, or belongs to another network.
    """
    path = os.fspath(source)
    weights = _load_pickle(path) if path.endswith(_PICKLES) else load_params(path)
    stems = [name for name in weights if name.endswith(_STEM) and "layer" not in name]
    if not stems:
        return weights  # These have our own paths; `with_initial` checks them.
    prefix = min(stems, key=len).removesuffix(_STEM)
    given = {name.removeprefix(prefix): value for name, value in weights.items()}
    for kind, got, expected in (
        ("depth", _num_blocks(given), BLOCKS.get(model.depth)),
        ("width", len(given[_STEM]), model.width),
    ):
        if got != expected:
            raise InputError(
                f"pretrained weights: {path!r} has {kind} {_depth_or(got)}, expected that of the "
                f"model, {_depth_or(expected)}"
            )
    arranged: dict[str, np.ndarray] = {}
    for tree in resnet_from_torch(given):
        arranged |= traverse_util.flatten_dict(tree, sep="/")
    return {name: x for name, x in arranged.items() if name.split("/")[0] != _HEAD}


def _num_blocks(weights: Mapping[str, Any]) -> tuple[int, ...]:
    """The number of blocks of each stage."""
    blocks = {tuple(name.split(".")[:2]) for name in weights if name.startswith("layer")}
    stages = [stage for stage, _ in sorted(blocks)]
    return tuple(stages.count(stage) for stage in dict.fromkeys(stages))


def _depth_or(value: Any) -> Any:
    """The depth of a network with these blocks, or the blocks if there is none."""
    return next((depth for depth, blocks in BLOCKS.items() if blocks == value), value)


def _load_pickle(path: str) -> dict[str, np.ndarray]:
    """Reads a `state_dict`: only tensors, and no code is run."""
    if not paths.expanded(path).is_file():
        raise InputError(f"pretrained weights: no file {path!r}; expected .pth or .safetensors")
    try:
        import torch
    except ImportError as error:
        raise InputError(
            f"pretrained weights: {path!r} is read by PyTorch, which is not installed: "
            "pip install 'mlc_jax[pictures]'; or take timm's .safetensors of the same network"
        ) from error
    try:
        state = torch.load(paths.expanded(path), map_location="cpu", weights_only=True)
        return {name: x.float().numpy() for name, x in state.items()}
    except Exception as error:  # pickle, zipfile and PyTorch raise a dozen types.
        reason = " ".join(str(error).split())
        raise InputError(
            f"pretrained weights: {path!r} is not a readable state_dict ({reason[:200]}); expected "
            "torchvision's .pth, or timm's .safetensors"
        ) from error
