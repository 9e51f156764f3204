"""Constructor arguments as JSON, and back: what a workdir remembers of a method made in Python."""

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import optax

from mlc_jax import models
from mlc_jax.core import EstimatorSpec, InnerLoss
from mlc_jax.core.optimizers import OptimizerSpec
from mlc_jax.errors import InputError
from mlc_jax.methods import METHODS

_CLASS = "class"
_FLAX_FIELDS = ("parent", "name")  # Every Flax module has these fields, which are not settings.
_OWN = {
    cls.__name__: cls
    for cls in (
        EstimatorSpec,
        InnerLoss,
        OptimizerSpec,
        models.Bert,
        models.BertConfig,
        models.LabelCorrectionNetwork,
        models.MLP,
        models.ResNet,
        models.ResNet50,
        models.WeightNet,
        *METHODS.values(),
    )
}


def describe(value: Any) -> Any:
    """JSON-like text of a setting; equal for equal settings.

    Objects of other libraries, such as optax transformations, are described by their names alone;
    dataclasses, such as Flax modules, also by their fields.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, optax.GradientTransformation):
        return {_CLASS: f"optax transformation {value.update.__qualname__}"}
    if isinstance(value, tuple | list):
        return [describe(item) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        cls = type(value)
        own = _OWN.get(cls.__name__) is cls
        name = cls.__name__ if own else f"{cls.__module__}.{cls.__qualname__}"
        fields = {field: describe(getattr(value, field)) for field in _fields(value)}
        return {_CLASS: name} | fields
    if isinstance(value, np.dtype | type):
        with contextlib.suppress(TypeError):  # A class that is no dtype.
            return np.dtype(value).name
    return {_CLASS: getattr(value, "__qualname__", type(value).__qualname__)}


def rebuild(described: Any) -> Any:
    """Makes the object that `describe` described.

    Raises:
      InputError: a part is not the project's own, or has a setting that this version lacks.
    """
    if isinstance(described, list):
        return tuple(rebuild(item) for item in described)
    if not isinstance(described, Mapping):
        return described
    name = described.get(_CLASS)
    if name not in _OWN:
        raise InputError(
            f"{name} is not one of mlc_jax's own parts: it cannot be made again from the workdir. "
            "Pass the method it was trained with: mlc_jax.load(workdir, method=...)"
        )
    cls = _OWN[name]
    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(described.keys() - known - {_CLASS})
    if unknown:
        raise InputError(f"{name} has no setting {unknown[0]!r} in this version of mlc_jax")
    return cls(**{field: rebuild(x) for field, x in described.items() if field != _CLASS})


def defaults(value: Any) -> dict[str, Any]:
    """The described defaults of an object's settings, nested like `describe(value)`.

    A workdir that is older than a setting was made with the setting's default.
    """
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return {}
    found: dict[str, Any] = {}
    for field in dataclasses.fields(value):
        if field.name not in _fields(value):
            continue
        nested = defaults(getattr(value, field.name))
        if nested:
            found[field.name] = nested
        elif field.default is not dataclasses.MISSING:
            found[field.name] = describe(field.default)
    return found


def _fields(value: Any) -> list[str]:
    names = [field.name for field in dataclasses.fields(value) if field.init]
    return [name for name in names if not (hasattr(value, "scope") and name in _FLAX_FIELDS)]
