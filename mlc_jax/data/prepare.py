"""Maps stored inputs to a model's inputs: in the step, or for cross-fitting once, on the host."""

import dataclasses
from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np

_BLOCK_BYTES = 64 * 2**20
_NEVER = float(np.finfo(np.float32).max)  # The deviation of a constant feature.


@dataclasses.dataclass(frozen=True, eq=False)
class Normalize:
    """`(inputs / scale - mean) / std`, float32, of NumPy or JAX arrays `[B, ...]`.

    Attributes:
      scale: inputs are divided by it first.
      mean, std: per channel or per feature; anything that broadcasts against an example.
      keeps_shapes: whether the output has the shape of the input.
    """

    keeps_shapes: ClassVar[bool] = True

    scale: float = 1.0
    mean: Any = (0.0,)
    std: Any = (1.0,)

    def __call__(self, inputs: Any) -> Any:
        scale = np.float32(1 / self.scale)
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return (inputs.astype(np.float32) * scale - mean) / std

    def to_json(self) -> dict[str, Any]:
        """The arguments of `Normalize(**...)`."""
        return {
            "scale": self.scale,
            "mean": np.asarray(self.mean).tolist(),
            "std": np.asarray(self.std).tolist(),
        }


def identity(inputs: Any) -> Any:
    """Returns inputs that need no preparation."""
    return inputs


def standardize(inputs: np.ndarray, rows: np.ndarray | None = None) -> Normalize:
    """Scales each feature of `[N, ...]` to mean 0 and deviation 1; constant features become 0.

    Args:
      inputs: in memory or memory-mapped.
      rows: mean and deviation are taken over these rows; None takes all.
    """
    size = len(inputs) if rows is None else len(rows)
    mean = sum(block.sum(axis=0, dtype=np.float64) for block in blocks(inputs, rows)) / size
    squares = sum(((block - mean) ** 2).sum(axis=0) for block in blocks(inputs, rows))
    std = np.sqrt(squares / size)
    # Rounding may give equal float32 numbers a small deviation.
    constant = std <= np.spacing(np.abs(mean).astype(np.float32)) / 2
    return Normalize(1.0, mean, np.where(constant, _NEVER, std))


def extremes(inputs: np.ndarray, rows: np.ndarray | None = None) -> tuple[Any, Any]:
    """The smallest and the largest number; see `standardize`."""
    pairs = [(block.min(), block.max()) for block in blocks(inputs, rows)]
    return min(low for low, _ in pairs), max(high for _, high in pairs)


def blocks(inputs: np.ndarray, rows: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Rows `[n, ...]` of inputs, a few at a time, because a memory map may not fit into memory."""
    size = len(inputs) if rows is None else len(rows)
    step = max(1, _BLOCK_BYTES // max(1, inputs[:1].nbytes))
    for start in range(0, size, step):
        part = slice(start, start + step)
        yield inputs[part if rows is None else rows[part]]
