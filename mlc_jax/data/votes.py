"""Several given labels per row: each source's label, and the majority."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from mlc_jax.data.source import UNKNOWN

NO_LABEL = -2  # The row is known to have had no label; with UNKNOWN it may have had one.

LEFT_OUT = "Left out, because they label no row: %s."  # A message, of sources.

_BLOCK = 65_536  # Rows that are processed at a time.
_SHARED = 20  # A source is only called a copy if it shares at least so many labelled rows.
_EXCESS = 0.75  # ... and agrees on so much of what chance does not explain.
_NAMED = 10  # The number of pairs that are logged one by one.
_CHANCE = 1e-3  # Probability that any pair is called copies by mistake.


def accuracies(votes: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """How often each source is right, `[S]`, smoothed by one right and one wrong row.

    Args:
      votes: `[N, S]`.
      truth: `[N]`; rows with UNKNOWN do not count.
    """
    said = (votes != UNKNOWN) & (truth != UNKNOWN)[:, None]
    right = said & (votes == truth[:, None])
    smoothed: np.ndarray = (right.sum(axis=0) + 1) / (said.sum(axis=0) + 2)
    return smoothed


def vote_of_most(votes: np.ndarray, accuracy: np.ndarray, num_classes: int) -> np.ndarray:
    """The majority label of each row, `[N]` int32; UNKNOWN if no source labels it.

    Among labels with equally many votes, the most accurate source's wins, then the lower class.

    Args:
      votes: `[N, S]`.
      accuracy: `[S]` in (0, 1), see `accuracies`.
      num_classes: C.
    """
    most = np.empty(len(votes), np.int32)
    for start in range(0, len(votes), _BLOCK):
        block = votes[start : start + _BLOCK]
        counts = np.zeros((len(block), num_classes))
        best = np.zeros((len(block), num_classes))
        for said, right in zip(block.T, accuracy, strict=True):
            rows = np.flatnonzero(said != UNKNOWN)
            counts[rows, said[rows]] += 1
            best[rows, said[rows]] = np.maximum(best[rows, said[rows]], right)
        chosen = np.argmax(counts + best / 2, axis=1)  # Accuracy only breaks ties.
        most[start : start + _BLOCK] = np.where(counts.any(axis=1), chosen, UNKNOWN)
    return most


def that_speak(votes: np.ndarray, names: Sequence[str]) -> np.ndarray:
    """Whether each source labels a row, `[S]` bool; those that do not are logged.

    All are True if none does.

    Args:
      votes: `[N, S]`.
      names: the sources' names.
    """
    speaks: np.ndarray = (votes != UNKNOWN).any(axis=0)
    if not speaks.any():
        return np.ones_like(speaks)
    if silent := [name for name, said in zip(names, speaks, strict=True) if not said]:
        logging.warning(LEFT_OUT, ", ".join(silent))
    return speaks


class Prepared(NamedTuple):
    """Labels of several sources, as methods take them.

    Attributes:
      most: `[N]` int32, the majority labels.
      votes: `[N, S]` int16; copies count once.
      copies: from the name of a copy to that of the first source that it copies.
    """

    most: np.ndarray
    votes: np.ndarray
    copies: dict[str, str]


def prepared(
    votes: np.ndarray, truth: np.ndarray, names: Sequence[str], num_classes: int
) -> Prepared:
    """Finds copies, and the majority labels.

    Args:
      votes: `[N, S]`.
      truth: `[N]`; UNKNOWN where nobody checked.
      names: the sources' names.
      num_classes: C.
    """
    counted, copies = counted_once(votes, truth, num_classes)
    for later, earlier in copies[:_NAMED]:
        logging.warning(
            "Source %s agrees with %s more often than chance allows: where they agree, they "
            "count once.", names[later], names[earlier],
        )  # fmt: skip
    if len(copies) > _NAMED:
        logging.warning("... and %d pairs more.", len(copies) - _NAMED)
    most = vote_of_most(counted, accuracies(counted, truth), num_classes)
    first = {names[later]: names[earlier] for later, earlier in reversed(copies)}
    return Prepared(most, counted.astype(np.int16), first)


def agreement(votes: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The share `[N]` of a row's votes that equal its label, and its number of votes `[N]`.

    The share is NaN for rows without votes.

    Args:
      votes: `[N, S]`.
      labels: `[N]`.
    """
    number = (votes != UNKNOWN).sum(axis=1)
    agreeing = (votes == labels[:, None]).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return np.where(number > 0, agreeing / np.maximum(number, 1), np.nan), number


def quality_of(soft_labels: np.ndarray, given: np.ndarray) -> np.ndarray:
    """The probability `[N]` that given labels `[N]` are right; NaN for rows without a label."""
    quality = soft_labels[np.arange(len(soft_labels)), given]
    return np.where(given == UNKNOWN, np.float32(np.nan), quality).astype(quality.dtype)


def is_changed(labels: np.ndarray, given: np.ndarray) -> np.ndarray:
    """Whether labels `[N]` differ from the given ones; rows without a given label do not."""
    changed: np.ndarray = (labels != given) & (given != UNKNOWN)
    return changed


def counted_once(
    votes: np.ndarray, truth: np.ndarray, num_classes: int
) -> tuple[np.ndarray, list[tuple[int, int]]]:
    """Votes `[N, S]` without a copy's votes that equal those of the source it copies.

    Two sources are copies if they agree too often on rows that both label: more often than with
    independent errors, and more often than by how frequently each gives each label. How often each
    is right is taken from checked rows, at the upper end of its 95 % interval. So two sources that
    are always right there, or that nobody checked, are no copies. People who find the same rows
    hard also agree more often than with independent errors. But a copy agrees on three quarters of
    the rows where chance would not; three people who labelled CIFAR-10 agree on a tenth.

    Args:
      votes: `[N, S]`.
      truth: `[N]`; UNKNOWN where nobody checked.
      num_classes: C.

    Returns:
      The votes, and pairs (source, the earlier one that it copies).
    """
    from scipy import stats  # The import takes a second.

    num_sources = votes.shape[1]
    checked = truth != UNKNOWN
    said = (votes[checked] != UNKNOWN).sum(axis=0)
    right = (votes[checked] == truth[checked, None]).sum(axis=0)
    limit = np.where(
        right == said, 1.0, stats.beta.ppf(0.975, right + 1, np.maximum(said - right, 1))
    )
    shared, agree = np.zeros((2, num_sources, num_sources))
    of_label = np.zeros((num_classes, num_sources, num_sources))
    for start in range(0, len(votes), _BLOCK):
        block = votes[start : start + _BLOCK]
        spoke = (block != UNKNOWN).astype(np.float32)
        shared += spoke.T @ spoke
        for label in range(num_classes):
            voted = (block == label).astype(np.float32)
            agree += voted.T @ voted
            of_label[label] += voted.T @ spoke  # [i, j]: i's votes for it on rows that j labels.
    both, neither = np.outer(limit, limit), np.outer(1 - limit, 1 - limit)
    # Rules with one class always agree: two sources agree this often by their usual labels.
    shares = of_label / np.maximum(shared, 1)
    by_habit = np.sum(shares * shares.transpose(0, 2, 1), axis=0)
    chance = np.clip(np.maximum(both + neither / max(1, num_classes - 1), by_habit), 0, 1)
    excess = agree - chance * shared > _EXCESS * (1 - chance) * shared
    unlikely = stats.binom.sf(agree - 1, shared, chance) < _CHANCE / max(1, num_sources**2)
    is_copy = excess & unlikely & (shared >= _SHARED)
    copies = []
    counted = votes.copy()
    for later in range(num_sources):
        for earlier in np.flatnonzero(is_copy[later, :later]):
            copies.append((later, int(earlier)))
            counted[votes[:, later] == votes[:, earlier], later] = UNKNOWN
    return counted, copies
