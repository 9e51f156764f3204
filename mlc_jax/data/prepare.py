"""From inputs as stored to what a model takes; on the device, part of the step."""

import dataclasses
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Normalize:
    """`(inputs / scale - mean) / std`, float32, of NumPy or JAX arrays `[B, ...]`.

    Attributes:
      scale: what inputs are divided by first.
      mean, std: by channel, or feature by feature; anything that broadcasts against an example.
    """

    scale: float = 1.0
    mean: Any = (0.0,)
    std: Any = (1.0,)

    def __call__(self, inputs: Any) -> Any:
        scale = np.float32(1 / self.scale)
        mean, std = np.asarray(self.mean, np.float32), np.asarray(self.std, np.float32)
        return (inputs.astype(np.float32) * scale - mean) / std

    def to_json(self) -> dict[str, Any]:
        """What `Normalize(**...)` makes the same of."""
        return {
            "scale": self.scale,
            "mean": np.asarray(self.mean).tolist(),
            "std": np.asarray(self.std).tolist(),
        }


def standardize(inputs: np.ndarray) -> Normalize:
    """Each feature of `[N, ...]` to mean 0 and deviation 1; a constant one stays as it is."""
    mean, std = (f(inputs, axis=0, dtype=np.float64) for f in (np.mean, np.std))
    constant = std == 0
    return Normalize(1.0, np.where(constant, 0.0, mean), np.where(constant, 1.0, std))
