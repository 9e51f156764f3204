"""Splits: disjoint, complete, class-balanced, seeded."""

import numpy as np
import pytest

from mlc_jax.benchmarks import datasets
from mlc_jax.benchmarks.splits import split_rows
from mlc_jax.data import UNKNOWN
from mlc_jax.errors import InputError

NUM_CLASSES = 4
COUNTS = (10, 7, 12, 9)


def _labels():
    labels = np.repeat(np.arange(NUM_CLASSES), COUNTS)
    return np.random.default_rng(0).permutation(labels).astype(np.int32)


def _split(seed=0, clean=3, validation=2, labels=None, **sizes):
    return split_rows(
        _labels() if labels is None else labels,
        NUM_CLASSES,
        clean_per_class=clean,
        validation_per_class=validation,
        **sizes,
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


def test_a_smaller_noisy_set_leaves_the_others_as_they_are():
    labels = np.repeat(np.arange(4), 100)
    all_of_it, some = (_split(clean=4, validation=3, labels=labels, num_noisy=n) for n in (0, 50))
    np.testing.assert_array_equal(all_of_it.clean, some.clean)
    np.testing.assert_array_equal(all_of_it.validation, some.validation)
    assert len(some.noisy) == 50 and set(some.noisy) < set(all_of_it.noisy)
    assert np.all(np.diff(some.noisy) > 0)
    with pytest.raises(InputError, match=r"num_noisy: got 373, expected at most 372"):
        _split(clean=4, validation=3, labels=labels, num_noisy=373)


def test_an_imbalanced_noisy_set():
    labels = np.repeat(np.arange(4), 1010)
    rows = _split(clean=5, validation=5, labels=labels, imbalance=8)
    np.testing.assert_array_equal(np.bincount(labels[rows.noisy]), [1000, 500, 250, 125])
    balanced = _split(clean=5, validation=5, labels=labels)
    np.testing.assert_array_equal(rows.clean, balanced.clean)
    assert set(rows.noisy) < set(balanced.noisy)


# --- Splits and noise together: the dataset of a run.

NOISE = ["uniform", "flip", "flip_any", "instance", "human", "none"]

# UNIF keeps one label in ten of those that it draws; the file knows nothing of the digits.
RATES = {
    "uniform": 0.36, "flip": 0.4, "flip_any": 0.4, "instance": 0.4, "human": 0.9, "none": 0
}  # fmt: skip


@pytest.fixture
def load(tiny_config, tmp_path):
    """(kind of noise, overrides) -> the dataset; human labels are (row mod 10) of all 1,797."""
    np.savez(tmp_path / "labels.npz", worst=np.arange(1797) % 10)

    def create(kind, **fields):
        human = {"noise.file": str(tmp_path / "labels.npz"), "noise.key": "worst"}
        return datasets.load(tiny_config(**{"noise.type": kind} | human | fields))

    return create


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("uniform", "uniform 0.4"),
        ("flip", "flip 0.4"),
        ("flip_any", "flip_any 0.4"),
        ("instance", "instance 0.4"),
        ("human", "human worst"),
        ("none", "none"),
    ],
)
def test_labels_of_a_dataset(load, kind, text):
    dataset = load(kind)
    assert dataset.noise == text
    assert (len(dataset.clean), len(dataset.validation), len(dataset.test)) == (50, 20, 360)
    assert len(dataset.noisy) == 1797 - 50 - 20 - 360
    for subset in (dataset.clean, dataset.validation, dataset.test):
        assert subset.has_truth
        np.testing.assert_array_equal(subset.given, UNKNOWN)
    noisy = dataset.noisy
    assert noisy.has_truth and (noisy.given != UNKNOWN).all()
    assert dataset.noise_rate == np.mean(noisy.given != noisy.truth)
    assert dataset.noise_rate == pytest.approx(RATES[kind], abs=0.06 if RATES[kind] else 0)
    assert dataset.clean_labels_spent(trained_on=True) == 70
    assert dataset.clean_labels_spent(trained_on=False) == 20
    inputs = noisy.source.inputs[noisy.rows]
    assert inputs.shape == (len(noisy), 8, 8, 1)
    ids = [*noisy.ids, *dataset.clean.ids, *dataset.validation.ids, *dataset.test.ids]
    assert sorted(ids) == [f"digits_{i:04d}" for i in range(1797)]
    if kind == "human":  # By the number in the published data, not by the row.
        numbers = [int(name.removeprefix("digits_")) for name in noisy.ids]
        np.testing.assert_array_equal(noisy.given, np.array(numbers) % 10)


@pytest.mark.parametrize("kind", NOISE)
def test_pairs_of_labels_change_nothing_else(load, kind):
    """`paired` keeps what the clean rows' labels would have been, beside the true ones."""
    fields = {"dataset.clean_per_class": 60}
    alone, paired = (load(kind, **fields, **{"dataset.paired": x}) for x in (False, True))
    for name in ("noisy", "clean", "validation", "test"):
        one, other = getattr(alone, name), getattr(paired, name)
        assert one.source is other.source
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.truth, other.truth)
        if name != "clean":
            np.testing.assert_array_equal(one.given, other.given)
    np.testing.assert_array_equal(alone.clean.given, UNKNOWN)
    assert paired.paired and not alone.paired
    given, truth = paired.clean.given, paired.clean.truth
    assert given.min() >= 0 and given.max() <= 9
    # Of 600 labels; five deviations are 0.1.
    assert np.mean(given != truth) == pytest.approx(RATES[kind], abs=0.1 if RATES[kind] else 0)
    if kind == "flip":  # The same partners as the noisy ones'.
        noisy = paired.noisy
        for label in range(10):
            wrong = {*given[truth == label], *noisy.given[noisy.truth == label]} - {label}
            assert len(wrong) == 1
    if kind == "human":
        numbers = [int(name.removeprefix("digits_")) for name in paired.clean.ids]
        np.testing.assert_array_equal(given, np.array(numbers) % 10)
    np.testing.assert_array_equal(paired.trained_on("clean")[1], truth)  # Not the given ones.
    np.testing.assert_array_equal(paired.trained_on("noisy")[1], paired.noisy.given)


def test_seeds_of_splits_and_of_noise_are_apart(load):
    base = load("flip")
    other_noise = load("flip", **{"noise.seed": 1})
    other_split = load("flip", **{"dataset.split_seed": 1})
    np.testing.assert_array_equal(base.noisy.rows, other_noise.noisy.rows)
    assert (base.noisy.given != other_noise.noisy.given).any()
    assert (base.clean.rows != other_split.clean.rows).any()
    again = load("flip")
    assert again.fingerprint() == base.fingerprint()
    assert len({x.fingerprint() for x in (base, other_noise, other_split)}) == 3
