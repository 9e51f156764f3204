"""Checks that arrays of a user's inputs are numbers that a model can use."""

from collections.abc import Callable
from typing import Any, NoReturn

import numpy as np

from mlc_jax.data.prepare import blocks
from mlc_jax.files.values.survey import FAR, SMALL, far_off, too_small

_LEVELS = 64  # The fewest different float32 numbers within a standard deviation.
_SAMPLE = 4_096  # Rows for a first estimate of quartiles.
_FLOAT32_MAX = float(np.finfo(np.float32).max)

_EXACT = 2.0**62  # Differences of whole numbers up to this do not overflow.

# The number to subtract from each feature, in float64; empty if no feature is changed.
Offsets = tuple[float | int, ...]
Fail = Callable[[str], NoReturn]  # (problem, such as `row 3, column 2 is nan; expected ...`)


def as_stored(fail: Fail, inputs: np.ndarray, offsets: Offsets = ()) -> np.ndarray:
    """Inputs `[N, ...]` in the stored type: float64, bool and large whole numbers become float32.

    A memory map stays as it is.

    Args:
      fail: raises an InputError that names the array.
      inputs: the user's.
      offsets: see `offsets_of`.

    Raises:
      InputError: they are not finite numbers, or float32 cannot hold them or tell them apart.
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
    if offsets and inputs.shape[1:] == (len(offsets),):
        stored = np.asarray(inputs).astype(np.float32)
        for column, offset in enumerate(offsets):
            if offset:
                stored[:, column] = _less(np.asarray(inputs[:, column]), offset)
        return stored
    if inputs.dtype == bool and not isinstance(inputs, np.memmap):
        return inputs.astype(np.float32)
    if inputs.dtype.itemsize <= 4 and inputs.dtype != np.uint32:
        return inputs
    is_large = inputs.dtype.kind == "f" or _largest(inputs) >= 2**31
    return inputs.astype(np.float32) if is_large and not isinstance(inputs, np.memmap) else inputs


def offsets_of(fail: Fail, inputs: np.ndarray) -> Offsets:
    """The numbers to subtract from each of a user's features `[N, F]`.

    There are none if float32 can tell apart the values of all features.

    Raises:
      InputError: a value is more than `survey.FAR` interquartile ranges from the median. It is
        probably a slip, and scaling would make all others equal. Or float32 cannot tell apart the
        values of a memory map, which is not changed.
    """
    if inputs.ndim != 2 or inputs.dtype.kind not in "iuf":
        return ()
    offsets = _offsets(fail, inputs)
    is_map = isinstance(inputs, np.memmap)
    if is_map and offsets:
        column = next(i for i, offset in enumerate(offsets) if offset)
        fail(
            f"column {column} has numbers about {offsets[column]:.17g} that are closer together "
            "than float32 tells apart; expected them without that offset, or in an .npz"
        )
    if not is_map and inputs.dtype.kind == "f" and len(inputs) and np.isfinite(inputs).all():
        _check_far(fail, inputs)
    return offsets


def _offsets(fail: Fail, inputs: np.ndarray) -> Offsets:
    if len(inputs) < 2 or inputs.dtype.itemsize < 4 or inputs.dtype == np.float32:
        return ()
    low = np.min([block.min(axis=0) for block in blocks(inputs)], axis=0)
    high = np.max([block.max(axis=0) for block in blocks(inputs)], axis=0)
    if not np.isfinite(high.astype(np.float64) - low).all():
        return ()  # `as_stored` reports it.
    size = np.maximum(np.abs(low.astype(np.float64)), np.abs(high.astype(np.float64)))
    span = _less(high[None], low)[0]
    for column in np.flatnonzero((span > 0) & (span < SMALL))[:1]:
        fail(f"column {column} {too_small(span[column])}")
    offsets: list[float | int] = [0] * inputs.shape[1]
    for column in np.flatnonzero((span > 0) & (span < size)).tolist():
        above = _less(np.asarray(inputs[:, column]), low[column])
        if above.std() < _LEVELS * np.finfo(np.float32).eps * size[column]:
            start = low[column].item()
            middle = float(np.median(above))
            offsets[column] = start + (int(middle) if isinstance(start, int) else middle)
    return tuple(offsets) if any(offsets) else ()


def _less(inputs: np.ndarray, offset: Any) -> np.ndarray:
    """`inputs - offset` in float64, exact for whole numbers of 64 bits."""
    apart = inputs.astype(np.float64) - np.float64(offset)
    if inputs.dtype.kind not in "iu":
        return apart
    wrapped = inputs.astype(np.uint64) - np.asarray(offset).astype(np.uint64)
    exact = wrapped.astype(np.int64).astype(np.float64)
    return np.where(np.abs(apart) < _EXACT, exact, apart)


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
    flat = flat.astype(np.float32) if flat.dtype == np.float16 else flat
    good = np.abs(flat) <= _FLOAT32_MAX  # False for NaN, too.
    if good.all():
        return
    row, column = np.argwhere(~good)[0].tolist()
    where = f"row {start + row}" + (f", column {column}" if flat.shape[1] > 1 else "")
    value = flat[row, column]
    what = "is not finite" if not np.isfinite(value) else "is more than float32 holds"
    fail(f"{where} is {value:g}, which {what}; expected finite numbers")


def _largest(inputs: np.ndarray) -> int:
    return max(max(abs(int(block.min())), abs(int(block.max()))) for block in blocks(inputs))
