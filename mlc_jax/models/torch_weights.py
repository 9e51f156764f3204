"""PyTorch parameter layouts of the published networks, mapped onto the ones here."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax import traverse_util

Tree = dict[str, Any]

_LEAF_NAMES = {
    "weight": "kernel",
    "bias": "bias",
    "running_mean": "mean",
    "running_var": "var",
}


def resnet_from_torch(weights: Mapping[str, np.ndarray]) -> tuple[Tree, Tree]:
    """Turns a `state_dict` of a ResNet into `(params, batch_stats)` of `ResNet` or `ResNet50`.

    Args:
      weights: names such as `layer1.0.conv1.weight`, the published code's or torchvision's;
        convolutions `(out, in, h, w)`, dense `(out, in)`. `num_batches_tracked` is ignored.

    Returns:
      Nested dicts in Flax layout; `batch_stats` is empty if the weights hold no running statistics.
    """
    params: dict[tuple[str, ...], np.ndarray] = {}
    batch_stats: dict[tuple[str, ...], np.ndarray] = {}
    for name, value in weights.items():
        *path, leaf = re.sub(r"(layer\d+|downsample)\.(\d+)", r"\1_\2", name).split(".")
        if leaf == "num_batches_tracked":
            continue
        target = batch_stats if leaf.startswith("running") else params
        is_norm_scale = leaf == "weight" and value.ndim == 1
        target[(*path, "scale" if is_norm_scale else _LEAF_NAMES[leaf])] = _transpose(value)
    return traverse_util.unflatten_dict(params), traverse_util.unflatten_dict(batch_stats)


def label_correction_from_torch(weights: Mapping[str, np.ndarray], *, skip_link: bool) -> Tree:
    """Turns a `state_dict` of the published LCN (`cls_emb`, `net.0/2/4`) into ours.

    Args:
      weights: dense layers `(out, in)`; with a skip link the last row of `net.4` is its logit.
      skip_link: whether the network has one.
    """
    params = {"label_embedding": {"embedding": np.asarray(weights["cls_emb.weight"])}}
    for name, layer in (("hidden1", "net.0"), ("hidden2", "net.2"), ("output", "net.4")):
        kernel = _transpose(weights[f"{layer}.weight"])
        params[name] = {"kernel": kernel, "bias": np.asarray(weights[f"{layer}.bias"])}
    if skip_link:
        output = params["output"]
        params["skip"] = {name: value[..., -1:] for name, value in output.items()}
        params["output"] = {name: value[..., :-1] for name, value in output.items()}
    return params


def _transpose(value: np.ndarray) -> np.ndarray:
    if value.ndim == 4:
        return np.transpose(value, (2, 3, 1, 0))
    return value.T if value.ndim == 2 else np.asarray(value)
