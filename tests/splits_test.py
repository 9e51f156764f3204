"""Splits: disjoint, complete, class-balanced, seeded."""

import numpy as np
import pytest

from mlc_jax.data.splits import split_rows
from mlc_jax.errors import InputError

NUM_CLASSES = 4
COUNTS = (10, 7, 12, 9)


def _labels():
    labels = np.repeat(np.arange(NUM_CLASSES), COUNTS)
    return np.random.default_rng(0).permutation(labels).astype(np.int32)


def _split(seed=0, clean=3, validation=2, labels=None):
    return split_rows(
        _labels() if labels is None else labels,
        NUM_CLASSES,
        clean_per_class=clean,
        validation_per_class=validation,
        rng=np.random.default_rng(seed),
    )


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("validation", [0, 2])
def test_splits_are_disjoint_and_cover_everything(seed, validation):
    rows = _split(seed, validation=validation)
    together = np.concatenate(rows)
    assert len(together) == sum(COUNTS)
    np.testing.assert_array_equal(np.sort(together), np.arange(sum(COUNTS)))
    for part in rows:
        assert np.all(np.diff(part) > 0)  # Sorted, and no row twice.


def test_clean_and_validation_are_class_balanced():
    rows, labels = _split(clean=3, validation=2), _labels()
    np.testing.assert_array_equal(np.bincount(labels[rows.clean]), [3] * 4)
    np.testing.assert_array_equal(np.bincount(labels[rows.validation]), [2] * 4)
    np.testing.assert_array_equal(np.bincount(labels[rows.noisy]), np.array(COUNTS) - 5)


def test_seed_decides():
    for a, b in zip(_split(0), _split(0), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.array_equal(_split(0).clean, _split(1).clean)
    assert not np.array_equal(_split(0).validation, _split(1).validation)


def test_every_example_can_become_clean():
    seen = np.zeros(sum(COUNTS), bool)
    for seed in range(40):  # An example of the largest class is missed with probability 1e-5.
        seen[_split(seed).clean] = True
    assert seen.all()


def test_validation_does_not_change_the_clean_set():
    """So that runs with and without model selection train on the same clean labels."""
    np.testing.assert_array_equal(_split(validation=0).clean, _split(validation=2).clean)


def test_one_noisy_example_must_be_left_in_every_class():
    rows = _split(clean=4, validation=2)  # Class 1 has seven.
    assert np.bincount(_labels()[rows.noisy])[1] == 1
    with pytest.raises(
        InputError,
        match=r"config\.dataset\.clean_per_class \+ validation_per_class: got 4 \+ 3, "
        r"but class 1 has only 7 training examples; expected at most 6 together",
    ):
        _split(clean=4, validation=3)


def test_class_without_examples():
    with pytest.raises(InputError, match="class 3 has only 0 training examples"):
        _split(clean=1, validation=0, labels=np.array([0, 0, 1, 1, 2, 2]))
