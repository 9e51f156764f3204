"""Chooses between linear classifiers and ones with a hidden layer, for `cross_fit`."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from absl import logging

from mlc_jax.data.dataset import Dataset
from mlc_jax.data.folds import LOOKED_UP
from mlc_jax.data.source import UNKNOWN, read_rows

LINEAR: tuple[int, ...] = ()
HIDDEN: tuple[int, ...] = (64,)

_MOST_ROWS, _MOST_CHECKS = 2_000, 1_000  # Enough to tell; more would take longer.
_FEWEST_CHECKS = 10
_MOST_FEATURES = 1_000  # More are those of an encoder as a rule, which a linear model separates.
_ERRORS = 2.5  # Standard errors by which the network must be better.
_STREAM = 36  # A stream of the seed.


def choose(x: np.ndarray, given: np.ndarray, checks: np.ndarray, seed: int) -> tuple[int, ...]:
    """`HIDDEN` if a network predicts labels better than a linear model does, else `LINEAR`.

    Both learn the given labels of one half of the rows and predict the other half. They are
    compared by the rows in which only one of them agrees with the given label, and by those in
    which only one is right by a check. The network is chosen if both comparisons together favour it
    by `_ERRORS` (Stouffer's sum), and it is right in more of the checks. Given labels alone do
    not suffice: where they are wrong near a class's border, a network learns that, too.

    Args:
      x: `[n, F]`, features.
      given: `[n]`, given labels, or UNKNOWN.
      checks: `[n]`, checked labels, or UNKNOWN; without those that were looked up.
      seed: deals the halves.
    """
    is_given, is_checked = given != UNKNOWN, checks != UNKNOWN
    if is_checked.sum() < _FEWEST_CHECKS or x.shape[1] > _MOST_FEATURES:
        return LINEAR
    half = np.random.default_rng([seed, _STREAM]).permutation(len(x)) % 2
    if any(len(np.unique(given[is_given & (half == part)])) < 2 for part in (0, 1)):
        return LINEAR
    width = x.std(axis=0)
    x = (x - x.mean(axis=0)) / np.where(width > 0, width, 1)
    network, linear = (_out_of_half(make, x, given, half) for make in (_network, _linear))

    def lead(labels: np.ndarray, rows: np.ndarray) -> float:
        """By how many standard errors the network is right in more of the rows."""
        more = np.sum((network == labels) & (linear != labels) & rows)
        less = np.sum((linear == labels) & (network != labels) & rows)
        return float((more - less) / np.sqrt(max(1, more + less)))

    of_given, of_checks = lead(given, is_given), lead(checks, is_checked)
    is_better = of_checks > 0 and (of_given + of_checks) / np.sqrt(2) > _ERRORS
    return HIDDEN if is_better else LINEAR


def of_dataset(dataset: Dataset, seed: int) -> tuple[int, ...]:
    """The choice for a data set, from some of its rows."""
    rng = np.random.default_rng([seed, _STREAM])
    clean, noisy = dataset.clean, dataset.noisy
    drawn = dataset.drawn
    at_random = np.arange(len(clean)) if drawn is None else np.flatnonzero(drawn != LOOKED_UP)
    if len(at_random) < _FEWEST_CHECKS:
        return LINEAR
    checked = clean.take(np.sort(rng.permutation(at_random)[:_MOST_CHECKS]))
    rest = np.sort(rng.permutation(len(noisy))[: _MOST_ROWS - len(checked)])
    subsets = [part for part in (checked, noisy.take(rest)) if len(part)]
    prepared = [dataset.prepare(read_rows(part.source, part.rows)) for part in subsets]
    if not all(hasattr(x, "shape") for x in prepared):  # Tokens are no features.
        return LINEAR
    x = np.concatenate([np.asarray(x, np.float64).reshape(len(x), -1) for x in prepared])
    given = np.concatenate([part.given for part in subsets])
    checks = np.concatenate([checked.truth, np.full(len(rest), UNKNOWN, checked.truth.dtype)])
    chosen = choose(x, given, checks, seed)
    if chosen == HIDDEN:
        logging.info(
            "A network predicts the labels better than a linear model, so classifiers have a "
            "hidden layer of %d units; cross_fit.hidden_sizes=() makes them linear.", *chosen
        )  # fmt: skip
    return chosen


def _out_of_half(
    make: Callable[[int], Any], x: np.ndarray, given: np.ndarray, half: np.ndarray
) -> np.ndarray:
    """Predictions `[n]`, each row's by a model of the given labels of the other half.

    Args:
      make: number of rows to learn -> model.
      x, given: see `choose`.
      half: `[n]`, 0 or 1.
    """
    from sklearn.exceptions import ConvergenceWarning

    said = np.empty_like(given)
    for part in (0, 1):
        learned = (given != UNKNOWN) & (half != part)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model = make(int(learned.sum())).fit(x[learned], given[learned])
        said[half == part] = model.predict(x[half == part])
    return said


def _network(rows: int) -> Any:
    from sklearn.neural_network import MLPClassifier

    size = min(200, max(16, rows // 5), rows)
    return MLPClassifier(
        HIDDEN, alpha=0.3, batch_size=size, learning_rate_init=0.01, max_iter=100, random_state=0
    )


def _linear(rows: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=1, max_iter=200)
