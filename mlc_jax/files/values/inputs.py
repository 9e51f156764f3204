"""Whether arrays of a user's inputs are numbers that a model can compute with."""

from collections.abc import Callable
from typing import NoReturn

import numpy as np

from mlc_jax.data.prepare import blocks
from mlc_jax.files.values.survey import FAR, far_off

_LEVELS = 64  # A deviation has so many different float32 numbers at least.
_SAMPLE = 4_096  # Rows that quartiles are first taken of.
_FLOAT32_MAX = float(np.finfo(np.float32).max)

Fail = Callable[[str], NoReturn]  # (what is wrong: `row 3, column 2 is nan; expected ...`)


def as_stored(fail: Fail, inputs: np.ndarray) -> np.ndarray:
    """Inputs `[N, ...]` as they are stored: float32 in place of wider floats and of bool.

    A memory map stays one.

    Args:
      fail: raises an InputError that names the array.
      inputs: as the user has them.

    Raises:
      InputError: they are no finite numbers, or none that float32 holds and tells apart.
    """
    if isinstance(inputs, np.ma.MaskedArray):
        if inputs.mask.any():
            fail("has masked values; expected numbers in their place: x.filled(...)")
        inputs = inputs.data
    if inputs.dtype.kind not in "biuf":
        fail(f"holds {inputs.dtype}, expected real numbers")
    if 0 in inputs.shape[1:]:
        fail(f"has shape {inputs.shape}, expected one number at least for each example")
    row = 0
    for block in blocks(inputs) if inputs.dtype.kind == "f" else ():
        _check_finite(fail, block, row)
        row += len(block)
    if inputs.dtype == bool and not isinstance(inputs, np.memmap):
        return inputs.astype(np.float32)
    if inputs.dtype.itemsize <= 4 and inputs.dtype != np.uint32:
        return inputs
    is_large = inputs.dtype.kind == "f" or _largest(inputs) >= 2**31
    return inputs.astype(np.float32) if is_large and not isinstance(inputs, np.memmap) else inputs


def check_learned(fail: Fail, inputs: np.ndarray) -> None:
    """Of features `[N, F]` to learn from, as the user has them.

    Raises:
      InputError: float32 cannot tell the values of one apart, or a value is `survey.FAR` quartiles
        away from others: a slip, which would leave nothing of these once they are scaled.
    """
    if inputs.ndim != 2 or inputs.dtype.kind not in "iuf" or isinstance(inputs, np.memmap):
        return
    if inputs.dtype.itemsize > 4:
        _check_apart(fail, inputs)
    if inputs.dtype.kind == "f" and len(inputs) and np.isfinite(inputs).all():
        _check_far(fail, inputs)


def _check_far(fail: Fail, inputs: np.ndarray) -> None:
    sample = inputs[np.linspace(0, len(inputs) - 1, min(len(inputs), _SAMPLE)).astype(np.int64)]
    low, middle, high = np.percentile(sample.astype(np.float64), (25, 50, 75), axis=0)
    ends = np.maximum(inputs.max(axis=0) - middle, middle - inputs.min(axis=0))
    for column in np.flatnonzero(ends > FAR * (high - low)).tolist():
        row = far_off(inputs[:, column].astype(np.float64))
        if row is not None:
            fail(
                f"row {row}, column {column} is {inputs[row, column]:g}, while others are about "
                f"{middle[column]:g}; expected a number like them"
            )


def _check_finite(fail: Fail, block: np.ndarray, start: int) -> None:
    flat = block.reshape(len(block), -1)
    good = np.abs(flat) <= _FLOAT32_MAX  # Not NaN, either.
    if good.all():
        return
    row, column = np.argwhere(~good)[0].tolist()
    where = f"row {start + row}" + (f", column {column}" if flat.shape[1] > 1 else "")
    value = flat[row, column]
    what = "is not finite" if not np.isfinite(value) else "is more than float32 holds"
    fail(f"{where} is {value:g}, which {what}; expected finite numbers")


def _largest(inputs: np.ndarray) -> int:
    return max(max(abs(int(block.min())), abs(int(block.max()))) for block in blocks(inputs))


def _check_apart(fail: Fail, inputs: np.ndarray) -> None:
    if len(inputs) < 2:
        return
    low, high = inputs.min(axis=0).astype(np.float64), inputs.max(axis=0).astype(np.float64)
    size = np.maximum(np.abs(low), np.abs(high))
    deviation = inputs.std(axis=0, dtype=np.float64)
    close = (deviation < _LEVELS * np.finfo(np.float32).eps * size) & (high > low)
    for column in np.flatnonzero(close).tolist():
        fail(
            f"column {column} lies between {low[column]:.17g} and {high[column]:.17g}, closer "
            f"together than float32 tells apart; expected {low[column]:.17g} taken off"
        )
