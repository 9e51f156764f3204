"""Sources: what is read, and what is said of objects that cannot be read."""

import itertools
import threading
import time

import h5py
import jax
import numpy as np
import pytest

from mlc_jax.data.loader import Pipeline
from mlc_jax.data.source import (
    UNKNOWN,
    ArraySource,
    IndexedSource,
    Subset,
    hash_arrays,
    layout_of,
    num_examples,
    read_rows,
)
from mlc_jax.errors import InputError

SIZE = 30
VALUES = np.random.default_rng(0).normal(size=(SIZE, 3)).astype(np.float32)
ROWS = np.array([7, 2, 2, 29, 0])


class Records:
    """A user's class; x[rows] of any number of rows is what `get` makes of them."""

    def __init__(self, get, size=SIZE):
        self.get, self.size = get, size

    def __len__(self):
        return self.size

    def __getitem__(self, rows):
        return self.get(rows)


def _subset(source, rows=None):
    rows = np.arange(SIZE) if rows is None else rows
    labels = np.arange(len(rows), dtype=np.int32)
    return Subset(source, rows, labels, labels)


def _batches(source, num):
    subset = _subset(source)
    pipeline = Pipeline(subset, subset, 10, 10, True, 1, augment=True, seed=0)
    return list(itertools.islice(pipeline.batches(0), num))


# --- Subsets.


def test_subset_takes_rows_with_their_labels():
    source = ArraySource(VALUES, [f"name_{i}" for i in range(SIZE)])
    given, truth = np.arange(5, dtype=np.int32), np.array([0, 1, UNKNOWN, 3, 4], np.int32)
    subset = Subset(source, ROWS, given, truth)
    assert len(subset) == 5 and not subset.has_truth
    part = subset.take(np.array([0, 3]))
    assert part.ids.tolist() == ["name_7", "name_29"]
    assert part.given.tolist() == part.truth.tolist() == [0, 3] and part.has_truth
    assert not subset.take(slice(0, 0)).has_truth


def test_subset_fingerprint_tells_inputs_rows_and_labels_apart():
    a = _subset(ArraySource(VALUES))
    assert a.fingerprint() == _subset(ArraySource(VALUES.copy())).fingerprint()
    labels = np.roll(a.given, 1)
    others = [
        _subset(ArraySource(VALUES + 1)),
        a.take(np.arange(SIZE)[::-1]),
        Subset(a.source, a.rows, labels, a.truth),
        Subset(a.source, a.rows, a.given, labels),
    ]
    assert len({x.fingerprint() for x in [a, *others]}) == 5


# --- Arrays.


def test_array_source():
    tree = {"a": VALUES, "b": np.arange(SIZE, dtype=np.uint8)}
    source = ArraySource(tree)
    assert len(source) == SIZE and source.ids(ROWS).tolist() == ["7", "2", "2", "29", "0"]
    got = read_rows(source, ROWS)
    jax.tree.map(np.testing.assert_array_equal, got, jax.tree.map(lambda x: x[ROWS], tree))
    assert str(layout_of(source)) == "{a: float32 [3], b: uint8 []}"
    assert layout_of(source).num_bytes == 13


def test_arrays_of_different_lengths():
    assert num_examples({"a": VALUES, "b": [VALUES]}) == SIZE
    with pytest.raises(ValueError, match=r"arrays of \[5, 30\] examples"):
        num_examples((VALUES, VALUES[:5]))


def test_hash_tells_values_shapes_types_and_names_apart():
    trees = [VALUES, VALUES * 2, VALUES.reshape(-1, 1), VALUES.view(np.int32), {"a": VALUES}]
    trees += [{"b": VALUES}, VALUES.astype(jax.numpy.bfloat16), VALUES[:0]]
    assert len({hash_arrays(tree) for tree in trees}) == len(trees)
    assert hash_arrays(VALUES) == hash_arrays(np.asfortranarray(VALUES))


# --- Objects with x[rows].


def _memory_map(path):
    np.save(path / "x.npy", VALUES)
    return np.load(path / "x.npy", mmap_mode="r")


def _hdf5(path):
    file = h5py.File(path / "x.h5", "w")
    return file.create_dataset("x", data=VALUES)


def _records(path):
    return Records(lambda rows: VALUES[rows])


@pytest.mark.parametrize("create", [_memory_map, _hdf5, _records])
def test_indexed_source_reads_what_arrays_in_memory_read(create, tmp_path):
    source = IndexedSource(create(tmp_path), [f"x{i}" for i in range(SIZE)])
    assert len(source) == SIZE and source.ids(ROWS[:2]).tolist() == ["x7", "x2"]
    np.testing.assert_array_equal(read_rows(source, ROWS), VALUES[ROWS])
    for a, b in zip(_batches(source, 5), _batches(ArraySource(VALUES), 5), strict=True):
        jax.tree.map(np.testing.assert_array_equal, a, b)
    again = IndexedSource(create(tmp_path)) if create is not _hdf5 else source
    assert source.fingerprint() == again.fingerprint() != IndexedSource(VALUES + 1).fingerprint()


def test_indexed_source_of_trees():
    source = IndexedSource(Records(lambda rows: {"a": VALUES[rows], "b": (rows[:, None],)}))
    got = read_rows(source, ROWS)
    np.testing.assert_array_equal(got["a"], VALUES[ROWS])
    np.testing.assert_array_equal(got["b"][0], [[7], [2], [2], [29], [0]])


def test_objects_are_asked_for_sorted_unique_rows_by_one_thread_at_a_time():
    asked, inside, most = [], [], []

    def get(rows):
        inside.append(threading.get_ident())
        most.append(len(inside))
        time.sleep(0.002)
        asked.append(rows)
        inside.pop()
        return VALUES[rows]

    sources = [IndexedSource(Records(get)) for _ in range(2)]  # As if of one file.
    labels = np.arange(SIZE, dtype=np.int32)
    noisy, clean = (Subset(source, np.arange(SIZE), labels, labels) for source in sources)
    pipeline = Pipeline(noisy, clean, 10, 10, True, 1, augment=False, seed=0)
    list(itertools.islice(pipeline.batches(0), 300))
    assert max(most) == 1
    assert all(np.array_equal(rows, np.unique(rows)) for rows in asked)


def test_numbers_of_another_type_are_cast_where_nothing_is_lost():
    source = IndexedSource(
        Records(lambda rows: VALUES[rows].astype("f8" if len(rows) > 1 else "f4"))
    )
    assert read_rows(source, ROWS).dtype == np.float32
    source = IndexedSource(
        Records(lambda rows: VALUES[rows] if len(rows) > 1 else np.int32([[1, 2, 3]]))
    )
    with pytest.raises(
        InputError, match=r"returned examples of float32 \[3\], expected int32 \[3\]"
    ):
        read_rows(source, ROWS)


@pytest.mark.parametrize(
    ("get", "problem"),
    [
        (lambda rows: 1 / 0, "raised ZeroDivisionError: division by zero"),
        (lambda rows: next(iter(())), "raised StopIteration"),
        (lambda rows: VALUES[rows][1:], r"returned float32 \[\d+, 3\], expected .* \d+ examples"),
        (lambda rows: np.float32(1), r"returned float32 \[\], expected .* for \d+ examples"),
        (lambda rows: None, "returned None, expected an array of numbers"),
        (lambda rows: VALUES[rows, 1:], r"returned examples of float32 \[2\], expected float32 "),
        (lambda rows: [VALUES[rows]], r"returned examples of \[float32 \[3\]\], expected float32 "),
        (lambda rows: VALUES[rows].astype(str), r"returned <U\d+ \[\d+, 3\], expected an array "),
    ],
)
def test_what_goes_wrong_with_a_users_object_is_one_line(get, problem):
    source = IndexedSource(Records(lambda rows: get(rows) if len(rows) > 1 else VALUES[rows]))
    want = rf"^inputs: Records\[rows\] {problem}[^\n]*$"
    with pytest.raises(InputError, match=want):
        read_rows(source, ROWS)
    with pytest.raises(InputError, match=want):
        _batches(source, 1)


@pytest.mark.parametrize(
    ("inputs", "problem"),
    [
        ([1.0, 2.0], r"list\[rows\] raised TypeError: only integer scalar arrays"),
        ([], r"list\[rows\] raised TypeError"),
        (np.zeros((0, 3)), r"ndarray\[rows\] raised IndexError: index 0 is out of bounds"),
        (np.array(["a", "b"]), r"ndarray\[rows\] returned <U1 \[1\], expected an array of numbers"),
        (Records(lambda rows: {}), r"Records\[rows\] returned \{\}, expected an array of numbers"),
    ],
)
def test_objects_that_cannot_be_indexed_are_refused_at_once(inputs, problem):
    with pytest.raises(InputError, match=f"^inputs: {problem}"):
        IndexedSource(inputs)
