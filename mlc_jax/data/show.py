"""Shows examples to people: as texts, or pictures."""

import numpy as np

from mlc_jax.data.source import Source, read_rows

_SHOWN_NUMBERS = 8


def show(source: Source, rows: np.ndarray) -> list[str | np.ndarray]:
    """Examples as texts, or pictures, uint8 `[H, W, 3]`, for people.

    A source may have its own method `show`, which then gives the result.
    """
    if hasattr(source, "show"):
        shown: list[str | np.ndarray] = source.show(rows)
        return shown
    inputs = read_rows(source, rows)
    if not isinstance(inputs, np.ndarray):
        return [""] * len(rows)
    if inputs.ndim == 4 and inputs.shape[-1] in (1, 3):
        low, high = float(inputs.min()), float(inputs.max())
        low = min(low, 0.0)
        pixels = np.round((inputs - low) * (255 / max(high - low, 1e-12))).astype(np.uint8)
        return list(np.repeat(pixels, 3, axis=-1) if inputs.shape[-1] == 1 else pixels)
    return [_numbers(x.reshape(-1)) for x in inputs]


def _numbers(values: np.ndarray) -> str:
    """The first of some numbers."""
    more = f" … ({len(values)} numbers)" if len(values) > _SHOWN_NUMBERS else ""
    return " ".join(f"{x:.4g}" for x in values[:_SHOWN_NUMBERS]) + more
