"""Label noise: transition matrices, sampling from them, and labels read from a file.

NumPy only: noise is injected once, before training, from its own seed.
"""

import pathlib

import numpy as np

from mlc_jax.errors import InputError

NOISE_TYPES = ("uniform", "flip", "flip_any", "human")


def transition_matrix(
    noise_type: str, level: float, num_classes: int, rng: np.random.Generator
) -> np.ndarray:
    """The matrix `T[i, j] = P(noisy label j | true label i)`, `[C, C]`.

    Args:
      noise_type: `uniform`, UNIF in the paper: with probability `level` the label is drawn from all
        classes, the right one included, `T = (1 - level) I + level / C`. `flip`, FLIP as the
        literature's code does it: every class has one fixed other class, drawn once from `rng`.
        `flip_any`, FLIP as the paper words it: to any of the other classes.
      level: in [0, 1].
      num_classes: C, at least 2.
      rng: draws the partners of `flip`.
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
    cumulative = np.cumsum(matrix, axis=1)
    # Rounding may leave a row's sum just below 1; a draw above it still means the last class.
    cumulative[:, -1] = 1.0
    draws = rng.random(len(labels))
    noisy = (draws[:, None] >= cumulative[labels]).sum(axis=1)
    return noisy.astype(labels.dtype)


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
    if not path or not pathlib.Path(path).is_file():
        raise InputError(
            f"config.noise.file: got {path!r}, expected the path of an .npz file of labels "
            "(for CIFAR-10N / CIFAR-100N see README, 'Human labels')"
        )
    try:
        # Opened here: np.load leaves a damaged file open.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # NumPy, zipfile and zlib raise a dozen types for a damaged file.
        raise InputError(f"config.noise.file: {path!r} is not a readable .npz ({error})") from error
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
