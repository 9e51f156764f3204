"""Linear classifiers or a hidden layer: what is chosen, and by what."""

import numpy as np
import pytest
from absl import logging

import mlc_jax as mlc
from mlc_jax.data import UNKNOWN
from mlc_jax.training import widths


def _points(n=600, seed=0):
    """Points of a square, which are no classes yet."""
    return np.random.default_rng(seed).uniform(-1, 1, (n, 2))


def _labels(truth, wrong, checked, seed=0):
    """Given labels, some of them wrong, and checks of the first rows of a random order."""
    rng = np.random.default_rng([seed, 1])
    given = np.where(rng.random(len(truth)) < wrong, 1 - truth, truth)
    order = rng.permutation(len(truth))
    checks = np.where(np.argsort(order) < checked, truth, UNKNOWN)
    return given.astype(np.int32), checks.astype(np.int32)


def _ring(x):
    return (np.hypot(*x.T) < 0.75).astype(np.int32)


def _line(x):
    return (x[:, 0] + 0.3 * x[:, 1] > 0).astype(np.int32)


@pytest.mark.parametrize("seed", range(4))
def test_a_ring_needs_a_hidden_layer_and_a_line_does_not(seed):
    x = _points(seed=seed)
    for truth, expected in ((_ring(x), widths.HIDDEN), (_line(x), widths.LINEAR)):
        given, checks = _labels(truth, 0.3, 40, seed)
        assert widths.choose(x, given, checks, seed) == expected
        assert widths.choose(1e6 * x + 1e9, given, checks, seed) == expected  # Other units.


def test_a_network_that_learns_wrong_labels_near_the_border_is_not_chosen():
    """It agrees with more of the given labels, and is right in fewer checks."""
    x = _points(n=1500)
    truth = _line(x)
    is_near = np.abs(x[:, 0] + 0.3 * x[:, 1]) < 0.3
    checks = _labels(truth, 0, 60)[1]
    given = np.where(is_near, 1 - truth, truth).astype(np.int32)
    assert widths.choose(x, given, checks, 0) == widths.LINEAR
    # The same labels are right if the checks say so.
    believed = np.where(checks == UNKNOWN, UNKNOWN, given)
    assert widths.choose(x, given, believed, 0) == widths.HIDDEN


def test_little_to_go_by_is_linear():
    x = _points()
    given, checks = _labels(_ring(x), 0.3, 40)
    assert widths.choose(x, given, checks, 0) == widths.HIDDEN
    few = checks.copy()
    few[np.flatnonzero(few != UNKNOWN)[9:]] = UNKNOWN
    wide = np.concatenate([x, np.zeros((len(x), 999))], axis=1)
    cases = {
        "nine checks": (x, given, few),
        "no check": (x, given, np.full_like(checks, UNKNOWN)),
        "1,001 features": (wide, given, checks),
        "one class": (x, np.zeros_like(given), checks),
        "no given label": (x, np.full_like(given, UNKNOWN), checks),
    }
    for name, case in cases.items():
        assert widths.choose(*case, 0) == widths.LINEAR, name
    assert widths.choose(wide[:, :-1], given, checks, 0) == widths.HIDDEN


def test_rows_without_a_label_are_not_learned_from():
    x = _points(n=900)
    given, checks = _labels(_ring(x), 0.3, 60)
    given[::3] = UNKNOWN
    assert widths.choose(x, given, checks, 0) == widths.HIDDEN


@pytest.fixture
def logged(monkeypatch):
    """The log lines."""
    lines = []
    monkeypatch.setattr(logging, "info", lambda text, *args, **_: lines.append(text % args))
    return lines


def test_the_estimator_chooses_by_the_rows(logged, standard_promotion):
    x = _points(n=500, seed=1)
    truth = _ring(x)
    given, checks = _labels(truth, 0.3, 40)
    doubtful = checks == UNKNOWN

    def right(**settings):
        fitted = mlc.LabelCorrector(num_epochs=2, **settings).fit(x, given, checks, drawn="random")
        return np.mean(fitted.labels_[doubtful] == truth[doubtful])

    assert right() > 0.88
    assert any("have a hidden layer of 64 units" in line for line in logged)
    logged.clear()
    assert right(model="linear") < 0.8
    assert not any("hidden layer" in line for line in logged)


def test_checks_that_were_looked_up_do_not_choose(monkeypatch, standard_promotion):
    """They are no random sample: where labels look wrong a network may fare better or worse."""
    seen = []

    def note(x, given, checks, seed):
        seen.append(int(np.sum(checks != UNKNOWN)))
        return widths.LINEAR

    monkeypatch.setattr(widths, "choose", note)
    x = _points(n=200)
    given, checks = _labels(_line(x), 0.3, 40)
    drawn = np.full(200, "", "U9")
    drawn[np.flatnonzero(checks != UNKNOWN)] = ["random"] * 25 + ["looked_up"] * 15
    mlc.LabelCorrector(num_epochs=1).fit(x, given, checks, drawn=drawn)
    assert seen == [25]


def test_a_large_table_is_judged_by_some_of_its_rows(monkeypatch, standard_promotion):
    seen = []
    monkeypatch.setattr(widths, "choose", lambda x, *_: seen.append(len(x)) or widths.LINEAR)
    x = _points(n=3000)
    given, checks = _labels(_line(x), 0.3, 1200)
    mlc.LabelCorrector(num_epochs=1).fit(x, given, checks, drawn="random")
    assert seen == [2000]
