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
    num_noisy: int = 0,
    imbalance: float = 1.0,
    rng: np.random.Generator,
) -> Rows:
    """Draws the clean and the validation set; the noisy set is the rest, or a part of it.

    The published code shuffles three times without a seed. Here no example is in two sets, so the
    clean labels spent are exactly `C * (clean_per_class + validation_per_class)`.

    Args:
      labels: `[N]` true labels.
      num_classes: C.
      clean_per_class: clean labels per class.
      validation_per_class: further clean labels per class, to select a model by; may be 0.
      num_noisy: size of the noisy set; 0 is all that is left.
      imbalance: of the noisy set: class i has `imbalance ** (-i / (C - 1))` times as many examples
        as class 0. Source: Cui et al. (2019), "Class-Balanced Loss Based on Effective Number of
        Samples".
      rng: decides who goes where.

    Raises:
      InputError: if some class is too small to leave a noisy example, or `num_noisy` too large.
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
    clean, validation, noisy = [], [], []
    shares = imbalance ** (-np.arange(num_classes) / max(1, num_classes - 1))
    for label in range(num_classes):
        rows = rng.permutation(np.flatnonzero(labels == label))
        clean.append(rows[:clean_per_class])
        validation.append(rows[clean_per_class:wanted])
        rest = rows[wanted:]
        noisy.append(rest[: max(1, round(shares[label] * len(rest)))])
    split = Rows(*(np.sort(np.concatenate(part)) for part in (clean, validation, noisy)))
    if num_noisy > len(split.noisy):
        raise InputError(
            f"config.dataset.num_noisy: got {num_noisy}, expected at most {len(split.noisy)}, what "
            "the clean and the validation set leave"
        )
    if num_noisy:
        # Drawn last: clean and validation set are the same whatever is left out.
        split = split._replace(noisy=np.sort(rng.choice(split.noisy, num_noisy, replace=False)))
    return split
