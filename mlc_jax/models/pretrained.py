"""Initial weights: safetensors files, keyed by parameter path.

A file holds one array per parameter, named by its path in the params: `hidden1/kernel`. Parameters
that the file lacks, such as a head for other classes, keep their fresh initialisation.
"""

import difflib
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from mlc_jax import paths
from mlc_jax.core.groups import path_name
from mlc_jax.errors import InputError

# The number of parameter paths that an error message lists.
PATHS_SHOWN = 5


def load_params(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a `.safetensors` file.

    Args:
      path: of a local file.

    Returns:
      The arrays by '/'-joined parameter path, in the file's dtypes.

    Raises:
      InputError: the file does not exist, cannot be read, or is no safetensors file.
    """
    try:
        paths.regular_file(_local(path))
        arrays: dict[str, np.ndarray] = safetensors.numpy.load_file(_local(path))
    except Exception as error:  # Several types, some of the library's own.
        raise _file_error(path, "be read", "a safetensors file", error) from error
    return arrays


def save_params(path: str | os.PathLike[str], params: Any) -> None:
    """Writes params to a `.safetensors` file, all or nothing.

    Args:
      path: of a local file, replaced if it exists. Its directory must exist.
      params: pytree of arrays, such as a nested dict.

    Raises:
      InputError: the file cannot be written.
    """
    # The writer takes an array's memory as it is: a transposed array would come back wrong.
    # (`np.ascontiguousarray` would turn scalars into vectors.)
    arrays = {name: np.asarray(x, order="C") for name, x in _named_leaves(params).items()}
    path = _local(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        try:
            safetensors.numpy.save_file(arrays, partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except Exception as error:
        raise _file_error(path, "be written", "a file in a directory", error) from error


def with_initial(params: Any, loaded: Mapping[str, np.ndarray]) -> Any:
    """Freshly initialised params in which the loaded values replace fresh ones.

    It may be called while JAX traces an initialisation; the loaded values are constants there.

    Args:
      params: pytree of arrays, such as a nested dict.
      loaded: arrays by '/'-joined path, of the parameters' shapes; they are cast to the
        parameters' dtypes. Other parameters do not change.

    Raises:
      InputError: a name or a shape fits no parameter, or nothing was loaded.
    """
    fresh = _named_leaves(params)
    if not any(name in fresh for name in loaded):
        raise InputError(
            f"pretrained weights: none of the names is a parameter's: got {_some(list(loaded))}; "
            f"expected some of {_some(list(fresh))}"
        )
    for name, value in loaded.items():
        if name not in fresh:
            raise InputError(
                f"pretrained weights: got {name!r} {value.shape}, which is not a parameter; the "
                f"most similar names are {_some(list(fresh), like=name)}"
            )
        if value.shape != fresh[name].shape:
            raise InputError(
                f"pretrained weights: got {name!r} of shape {value.shape}, expected "
                f"{fresh[name].shape}, as the model has it; leave it out of the file to train it "
                f"from its initialisation. The parameters are {_some(list(fresh), like=name)}"
            )

    def initial(path: Any, leaf: jax.Array) -> jax.Array:
        value = loaded.get(path_name(path))
        # NumPy casts, because the compiler is slow at folding a cast of a large constant.
        return leaf if value is None else jnp.asarray(np.asarray(value, dtype=leaf.dtype))

    return jax.tree.map_with_path(initial, params)


def _local(path: str | os.PathLike[str]) -> pathlib.Path:
    return paths.expanded(path)


def _file_error(
    path: str | os.PathLike[str], action: str, expected: str, error: Exception
) -> InputError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    reason = " ".join(reason.split())  # On one line.
    return InputError(
        f"pretrained weights: {os.fspath(path)!r} cannot {action} ({reason}); expected {expected}"
    )


def _named_leaves(params: Any) -> dict[str, Any]:
    return {path_name(path): leaf for path, leaf in jax.tree.leaves_with_path(params)}


def _some(names: list[str], like: str | None = None) -> str:
    """The first names, or those most similar to `like`."""
    shown = names[:PATHS_SHOWN]
    if like is not None:
        shown = difflib.get_close_matches(like, names, n=PATHS_SHOWN, cutoff=0.0)
    more = f", ... ({len(names)} in all)" if len(names) > len(shown) else ""
    return (", ".join(shown) or "none") + more
