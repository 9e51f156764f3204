"""Label noise: transition matrices, noise that depends on the example, labels read from a file.

NumPy only: noise is injected once, before training, from its own seed.
"""

from collections.abc import Callable, Iterator

import numpy as np

from mlc_jax import paths
from mlc_jax.errors import InputError
from mlc_jax.files.arrays import read_npz

NOISE_TYPES = ("uniform", "flip", "flip_any", "instance", "human")

_RATE_DEVIATION = 0.1  # The deviation of examples' rates of instance noise, as in its paper.
_ROWS_AT_ONCE = 1_000


def transition_matrix(
    noise_type: str, level: float, num_classes: int, rng: np.random.Generator
) -> np.ndarray:
    """The matrix `T[i, j] = P(noisy label j | true label i)`, `[C, C]`.

    Args:
      noise_type: `uniform` is UNIF in the paper: with probability `level` the label is drawn from
        all classes, `T = (1 - level) I + level / C`. `flip` is FLIP as published code has it: each
        class has one fixed other class, drawn once from `rng`. `flip_any` is FLIP in the paper's
        words: to any of the other classes.
      level: in [0, 1].
      num_classes: C, at least 2.
      rng: draws the partners of `flip`.

    Raises:
      ValueError: the noise has no such matrix.
    """
    identity = np.eye(num_classes)
    if noise_type == "uniform":
        wrong = np.full((num_classes, num_classes), 1 / num_classes)
    elif noise_type == "flip":
        # An offset of 1 .. C-1 from each class: uniform over the other classes.
        offsets = rng.integers(1, num_classes, size=num_classes)
        wrong = identity[(np.arange(num_classes) + offsets) % num_classes]
    elif noise_type == "flip_any":
        wrong = (1 - identity) / (num_classes - 1)
    else:
        raise ValueError(f"noise type {noise_type!r} has no transition matrix")
    return (1 - level) * identity + level * wrong


def corrupt(labels: np.ndarray, matrix: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Draws a noisy label for each true label `[N]` from its row of `matrix` `[C, C]`."""
    return _draw(matrix[labels], rng.random(len(labels))).astype(labels.dtype)


class InstanceNoise:
    """Noise that depends on the example: each has its own rate, and a wrong class by its features.

    An example's label is wrong with probability q. Each example's q is drawn from a normal
    distribution of mean `level` and deviation 0.1, truncated to [0, 1]; so at level 0 some 8 % are
    wrong. A wrong label is drawn by the softmax of `x W_y` over the classes other than the true
    class y. `x` `[D]` is the flattened input, each feature scaled to mean 0 and deviation 1. Each
    class y has a random matrix of standard normals, `W_y` `[D, C]`.

    Source: Xia, Liu, Han, et al. (2020), "Part-dependent Label Noise", algorithm 2.

    Args:
      read: rows `[n]` -> their inputs, `[n, ...]`, of numbers.
      num_rows: number of all rows; features are standardised over them.
      level: in [0, 1].
      num_classes: C, at least 2.
      rng: draws the matrices.
    """

    def __init__(
        self,
        read: Callable[[np.ndarray], np.ndarray],
        num_rows: int,
        level: float,
        num_classes: int,
        rng: np.random.Generator,
    ):
        self._read, self._level = read, level
        count, total, square = 0, np.zeros(()), np.zeros(())
        for x in self._chunks(np.arange(num_rows)):
            count, total, square = count + len(x), total + x.sum(0), square + (x**2).sum(0)
        self._mean = total / count
        deviation = np.sqrt(np.maximum(square / count - self._mean**2, 0))
        # Constant features carry no information. The tolerance is for rounding of the sums.
        varies = deviation > 1e-6 * (1 + np.abs(self._mean))
        self._scale = np.where(varies, 1 / np.where(varies, deviation, 1), 0)
        shape = (num_classes, len(self._mean), num_classes)
        self._matrices = rng.standard_normal(shape, dtype=np.float32)

    def corrupt(self, rows: np.ndarray, labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Draws a noisy label for each true label `[n]` of these rows."""
        from scipy import stats  # Its import takes a second.

        low, high = (0 - self._level) / _RATE_DEVIATION, (1 - self._level) / _RATE_DEVIATION
        rates = stats.truncnorm.rvs(
            low, high, loc=self._level, scale=_RATE_DEVIATION, size=len(rows), random_state=rng
        )
        draws = rng.random(len(rows))
        noisy, start = np.empty_like(labels), 0
        for x in self._chunks(rows):
            part = slice(start, start + len(x))
            true, start = labels[part], start + len(x)
            x = ((x - self._mean) * self._scale).astype(np.float32)
            logits = np.empty((len(x), self._matrices.shape[0]))
            for label in np.unique(true):
                logits[true == label] = x[true == label] @ self._matrices[label]
            itself = (np.arange(len(x)), true)
            logits[itself] = -np.inf
            shares = np.exp(logits - logits.max(axis=1, keepdims=True))
            shares *= (rates[part] / shares.sum(axis=1))[:, None]
            shares[itself] = 1 - rates[part]
            noisy[part] = _draw(shares, draws[part])
        return noisy

    def _chunks(self, rows: np.ndarray) -> Iterator[np.ndarray]:
        """Flattened inputs, `[n, D]` float64."""
        for start in range(0, len(rows), _ROWS_AT_ONCE):
            x = self._read(rows[start : start + _ROWS_AT_ONCE])
            yield x.reshape(len(x), -1).astype(np.float64)


def _draw(shares: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """A class for each row of distributions `[n, C]`, by uniform draws `[n]`."""
    cumulative = np.cumsum(shares, axis=1)
    # Rounding may leave a row's sum just below 1; a draw above it still means the last class.
    cumulative[:, -1] = 1.0
    drawn: np.ndarray = (draws[:, None] >= cumulative).sum(axis=1)
    return drawn


def labels_from_file(path: str, key: str, *, num_labels: int, num_classes: int) -> np.ndarray:
    """Reads noisy labels from an `.npz` file, `[num_labels]`, indexed by example id.

    Args:
      path: of the file, such as `cifar10n.npz`.
      key: which of its arrays, such as `worst`.
      num_labels: the length of the dataset's training split, as published.
      num_classes: labels must lie in [0, num_classes).

    Raises:
      InputError: naming the config field, what was given and what would be right.
    """
    if not path or not paths.local(path, "config.noise.file").is_file():
        raise InputError(
            f"config.noise.file: got {path!r}, expected the path of an .npz file of labels "
            "(for CIFAR-10N and CIFAR-100N see docs/methods.md)"
        )
    arrays = read_npz("config.noise.file", path)
    if key not in arrays:
        raise InputError(f"config.noise.key: got {key!r}, expected one of {sorted(arrays)}")
    labels = arrays[key]
    if labels.shape != (num_labels,):
        raise InputError(
            f"config.noise.file: {path!r}[{key!r}] has shape {labels.shape}, expected "
            f"({num_labels},), one label for each training example"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"config.noise.file: {path!r}[{key!r}] holds {labels.dtype}, expected integers"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise InputError(
            f"config.noise.file: {path!r}[{key!r}] has labels from {labels.min()} to "
            f"{labels.max()}, expected 0 to {num_classes - 1}"
        )
    return labels.astype(np.int32)
