"""Checks that the files that a run starts from exist, before anything is read or imported."""

import pathlib
from collections.abc import Callable

from ml_collections import ConfigDict

from mlc_jax import paths
from mlc_jax.errors import InputError

_WEIGHTS = "a file of weights, .safetensors or .pth"
_ENCODER = "a directory of an encoder, or a name on the Hugging Face hub"


def check(config: ConfigDict) -> None:
    """Checks the encoder, tokenizer and weights that a valid config names.

    Raises:
      InputError: one is not there, or is no regular file.
    """
    model = config.model
    if model.name == "bert":
        _check_encoder("model.bert.checkpoint", model.bert.checkpoint, pathlib.Path.is_dir)
        if config.dataset.tokenizer:
            _check_encoder("dataset.tokenizer", config.dataset.tokenizer, pathlib.Path.exists)
    elif model.initial_params:
        _check_file("model.initial_params", model.initial_params)
    if model.name == "resnet50" and model.resnet50.checkpoint:
        _check_file("model.resnet50.checkpoint", model.resnet50.checkpoint)


def _check_encoder(field: str, name: str, is_there: Callable[[pathlib.Path], bool]) -> None:
    """Checks an encoder's or tokenizer's name; on the hub it is `NAME` or `OWNER/NAME`."""
    is_path = name.startswith(("/", ".", "~")) or name.count("/") > 1
    if is_path and not is_there(paths.expanded(name)):
        raise InputError(f"config.{field}: no directory {name!r}; expected {_ENCODER}")


def _check_file(field: str, name: str) -> None:
    try:
        paths.regular_file(paths.expanded(name))
    except OSError as error:
        raise InputError(
            f"config.{field}: {name!r} cannot be read ({error.strerror}); expected {_WEIGHTS}"
        ) from error
