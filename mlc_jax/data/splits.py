"""Class-balanced, disjoint, seeded splits of the training examples."""

from typing import NamedTuple

import numpy as np

from mlc_jax.errors import InputError


class Rows(NamedTuple):
    """Row numbers into the training split; disjoint, sorted."""

    clean: np.ndarray
    validation: np.ndarray
    noisy: np.ndarray


def split_rows(
    labels: np.ndarray,
    num_classes: int,
    *,
    clean_per_class: int,
    validation_per_class: int,
    rng: np.random.Generator,
) -> Rows:
    """Draws the clean and the validation set; all that is left is the noisy set.

    Unlike the published code's three unseeded shuffles, no example is in two of them, so the clean
    labels spent are exactly `C * (clean_per_class + validation_per_class)`.

    Args:
      labels: `[N]` true labels.
      num_classes: C.
      clean_per_class: clean labels per class.
      validation_per_class: further clean labels per class, to select a model by; may be 0.
      rng: decides who goes where.

    Raises:
      InputError: if some class is too small to leave a noisy example.
    """
    counts = np.bincount(labels, minlength=num_classes)
    wanted = clean_per_class + validation_per_class
    if wanted >= counts.min():
        smallest = int(counts.argmin())
        raise InputError(
            "config.dataset.clean_per_class + validation_per_class: got "
            f"{clean_per_class} + {validation_per_class}, but class {smallest} has only "
            f"{counts.min()} training examples; expected at most {counts.min() - 1} together"
        )
    clean, validation = [], []
    for label in range(num_classes):
        rows = rng.permutation(np.flatnonzero(labels == label))
        clean.append(rows[:clean_per_class])
        validation.append(rows[clean_per_class:wanted])
    clean_rows, validation_rows = (
        np.sort(np.concatenate(clean)),
        np.sort(np.concatenate(validation)),
    )
    taken = np.concatenate([clean_rows, validation_rows])
    return Rows(clean_rows, validation_rows, np.setdiff1d(np.arange(len(labels)), taken))
