"""Guesses from their labels how checked rows were chosen."""

import numpy as np
from absl import logging

from mlc_jax.data.folds import DRAWN, LOOKED_UP, PER_CLASS, RANDOM
from mlc_jax.data.source import UNKNOWN

_MIN_NOT_RANDOM = 8  # Fewer checked rows cannot show that they are no random sample.
_CHANCE = 1e-5  # A p-value below this shows that they are none.
_MOST = 2 / 3  # A class with a larger share of given labels may be the only one in a sample.
_FEW = 5  # Classes with fewer expected rows count as one class.


def how_drawn(
    truth: np.ndarray,
    said: np.ndarray,
    setting: str | None,
    given: np.ndarray,
    unchecked: np.ndarray,
    proposed: np.ndarray | None = None,
) -> np.ndarray:
    """How each checked row was chosen, text `[M]`, one of `folds.DRAWN`.

    If neither the row nor the setting says how, equal numbers per class count as drawn per class,
    and all others as a random sample. Two kinds of rows count as looked up, because no random
    sample looks like them. In the first, no given label is right: somebody wrote down only wrong
    ones. In the second, the classes are not those of all rows: for example, all checks have one
    class. As a random sample, such rows would turn right labels into wrong ones.

    Args:
      truth: `[M]` labels of checked rows.
      said: text `[M]`, what the rows themselves say; "" if they say nothing.
      setting: how all others were chosen; None guesses.
      given: `[M]`, labels before they were checked; UNKNOWN where that is not known.
      unchecked: `[N]`, given labels of the other rows.
      proposed: `[M]` bool, rows that a `to_check.csv` proposed, so `said` comes from us; None if
        there are none.
    """
    drawn = said.astype("U9")
    guessed = drawn == ""
    if guessed.any():
        counts = np.unique(truth[guessed], return_counts=True)[1]
        alike = len(counts) > 1 and counts.min() == counts.max()
        drawn[guessed] = setting or (PER_CLASS if alike else RANDOM)
    open_ = guessed if proposed is None else guessed | proposed
    known = open_ & (drawn != LOOKED_UP) & (given != UNKNOWN)
    why = None
    if setting is None and known.sum() >= _MIN_NOT_RANDOM:
        if not (given == truth)[known].any():
            why = (
                f"None of {known.sum()} checked rows has a given label that is right: they count "
                "as looked up, and judge nothing. Check rows whose label is right, too"
            )
        elif PER_CLASS not in drawn[open_] and _are_others(truth[known], given[known], unchecked):
            why = (
                f"The {known.sum()} checked rows have other classes than all rows, as no random "
                "sample has: they count as looked up, and judge nothing. Check rows drawn at random"
            )
    if why is not None:
        drawn[open_] = LOOKED_UP
        logging.warning("%s; if these were drawn at random, dataset.drawn=random says so.", why)
    elif guessed.any() and setting is None:
        what = "so many per class" if PER_CLASS in drawn[guessed] else "a random sample"
        logging.info(
            "The %d checked rows count as %s; dataset.drawn or a column `drawn` (%s) says "
            "otherwise.", guessed.sum(), what, ", ".join(DRAWN),
        )  # fmt: skip
    return drawn


def _are_others(truth: np.ndarray, given: np.ndarray, unchecked: np.ndarray) -> bool:
    """Whether the classes of checked rows `[M]` show that these are no random sample.

    Either all have one class, whose share of unchecked given labels is less than `_MOST`. Or their
    given labels differ from those of all rows by Pearson's chi-squared test.
    """
    from scipy.special import gammaincc

    unchecked = unchecked[unchecked != UNKNOWN]
    if not len(unchecked):
        return False
    if (truth == truth[0]).all() and np.mean(unchecked == truth[0]) < _MOST:
        return True
    of_all = np.concatenate([given, unchecked])
    size = int(of_all.max()) + 1
    counts = np.bincount(given, minlength=size)
    expected = np.bincount(of_all, minlength=size) * (len(given) / len(of_all))
    rare = expected < _FEW
    counts = np.append(counts[~rare], counts[rare].sum())
    expected = np.append(expected[~rare], expected[rare].sum())
    counts, expected = counts[expected >= _FEW], expected[expected >= _FEW]
    if len(expected) < 2:
        return False
    distance = float(np.sum(np.square(counts - expected) / expected))
    return bool(gammaincc((len(expected) - 1) / 2, distance / 2) < _CHANCE)
