"""The reader: batches as a function of (seed, step), and every example of a set exactly once."""

import dataclasses
import gc
import itertools
import subprocess
import sys
import time
import types
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow as tf

from mlc_jax.data import loader
from mlc_jax.data.loader import Pipeline, batches_of, to_devices
from mlc_jax.data.reading import EvaluationReader
from mlc_jax.data.source import (
    UNKNOWN,
    ArraySource,
    IndexedSource,
    Subset,
    augment_images,
    read_rows,
)
from mlc_jax.errors import InputError

NUM_NOISY, NUM_CLEAN = 24, 16
# Drawn by the code before sources (993cefd): numbers of a seed must not change.
RECORDED_NOISY = [
    [20, 17, 18, 10, 14, 1, 11, 5], [23, 6, 12, 4, 19, 13, 0, 7], [8, 2, 22, 16, 3, 9, 21, 15],
    [12, 17, 4, 20, 16, 15, 13, 7], [2, 6, 11, 18, 1, 0, 22, 23], [21, 3, 10, 19, 8, 9, 14, 5],
]  # fmt: skip
RECORDED_CLEAN = [
    [12, 11, 8, 9, 10, 2, 0, 13], [4, 14, 15, 1, 7, 6, 5, 3],
    [1, 8, 7, 6, 0, 15, 3, 2], [10, 12, 13, 9, 14, 11, 4, 5],
]  # fmt: skip


class RowSource:
    """What TensorFlow reads row by row, as files are; otherwise the source it is made of."""

    def __init__(self, source):
        self.source, self.num_draws = source, source.num_draws

    def __len__(self):
        return len(self.source)

    def ids(self, rows):
        return self.source.ids(rows)

    def fingerprint(self):
        return self.source.fingerprint()

    def read(self, row, draws=None):
        layout = self.source.layout

        def gather(row, *draws):
            tree = self.source.gather(row[None], *(x[None] for x in draws))
            return [leaf[0] for leaf in jax.tree.leaves(tree)]

        given = [row] if draws is None else [row, draws]
        leaves = tf.numpy_function(gather, given, layout.dtypes)
        shaped = [tf.ensure_shape(x, y) for x, y in zip(leaves, layout.shapes, strict=True)]
        return layout.structure.unflatten(shaped)


def _subset(source, rows, labels):
    """Labels that are both given and true."""
    labels = np.asarray(labels, np.int32)
    return Subset(source, np.asarray(rows, np.int64), labels, labels)


def _numbered(n):
    """Examples that are their own row numbers; labels are those plus 100."""
    return _subset(ArraySource(np.arange(n, dtype=np.int32)), np.arange(n), np.arange(n) + 100)


def _pipeline(**changes):
    defaults = Pipeline(
        noisy=_numbered(NUM_NOISY), clean=_numbered(NUM_CLEAN), noisy_batch_size=8,
        clean_batch_size=8, split_clean=True, num_inner_steps=1, augment=False, seed=0,
    )  # fmt: skip
    return dataclasses.replace(defaults, **changes)


def _slow(*values):
    """What differs little from a case that `make test` has."""
    return pytest.param(*values, marks=pytest.mark.slow)


def _image_pipeline(height=6, width=5, wrap=lambda source: source, **changes):
    """Random images to augment, the clean ones among the noisy; labels are row numbers."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_NOISY, height, width, 1)).astype(np.uint8)
    source = wrap(ArraySource(images, num_draws=3, augment=augment_images))
    noisy, clean = (_subset(source, np.arange(n), np.arange(n)) for n in (NUM_NOISY, NUM_CLEAN))
    return _pipeline(**({"augment": True, "noisy": noisy, "clean": clean} | changes))


def _stack(wrap=lambda source: source, **changes):
    """Three runs of one source, with rows, labels and seeds of their own."""
    source = _image_pipeline(wrap=wrap).noisy.source
    rng, pipelines = np.random.default_rng(1), []
    for seed in (3, 0, 7):
        rows, labels = rng.permutation(NUM_NOISY), rng.integers(0, 9, NUM_NOISY)
        noisy, clean = (_subset(source, rows[part], labels[part]) for part in np.split(rows, [16]))
        sizes = {"noisy_batch_size": 4, "clean_batch_size": 4}
        fields = {"noisy": noisy, "clean": clean, "seed": seed, "augment": True} | sizes
        pipelines.append(_pipeline(**(fields | changes)))
    return pipelines


def _take(pipeline, num_windows, start_window=0, **kwargs):
    return list(itertools.islice(pipeline.batches(start_window, **kwargs), num_windows))


def _take_of(pipelines, num_windows, start_window=0, **kwargs):
    return list(itertools.islice(batches_of(pipelines, start_window, **kwargs), num_windows))


def test_batches_with_the_labels_of_all_sources():
    """Of noisy rows, and of clean ones that have any; else the majority."""
    rng = np.random.default_rng(4)

    def with_votes(subset):
        votes = rng.integers(-1, 5, (len(subset), 3)).astype(np.int16)
        return dataclasses.replace(subset, votes=votes)

    noisy, clean = map(with_votes, (_numbered(NUM_NOISY), _numbered(NUM_CLEAN)))
    several = _pipeline(noisy=noisy, clean=clean, takes_votes=True, num_inner_steps=2)
    (batch,), (alone,) = (
        _take(pipeline, 1, num_devices=2)
        for pipeline in (several, dataclasses.replace(several, takes_votes=False))
    )
    assert batch.noisy.labels.dtype == np.int32 and batch.noisy.labels.shape == (2, 2, 4, 3)
    np.testing.assert_array_equal(batch.noisy.labels, noisy.votes[batch.noisy.rows])
    np.testing.assert_array_equal(batch.clean_outer.given, clean.votes[batch.clean_outer.rows])
    np.testing.assert_array_equal(batch.noisy.rows, alone.noisy.rows)
    np.testing.assert_array_equal(alone.noisy.labels, alone.noisy.inputs + 100)


def _steps(pipeline, num_steps):
    """Inputs of single steps on one device, `[num_steps, B, ...]`; `clean` is both halves."""
    windows = _take(pipeline, -(-num_steps // pipeline.num_inner_steps))
    steps = {}
    for part in ("noisy", "clean_inner", "clean_outer"):
        inputs = [getattr(batch, part).inputs[0] for batch in windows]
        steps[part] = np.concatenate(inputs)[:num_steps]
    steps["clean"] = np.concatenate([steps["clean_inner"], steps["clean_outer"]], axis=1)
    return types.SimpleNamespace(**steps)


def _assert_equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def _assert_all_equal(a, b):
    for x, y in zip(a, b, strict=True):
        _assert_equal(x, y)


# --- Order.


def test_recorded_orders():
    steps = _steps(_pipeline(), 6)
    np.testing.assert_array_equal(steps.noisy, RECORDED_NOISY)
    np.testing.assert_array_equal(steps.clean[:4], RECORDED_CLEAN)
    other = _steps(_pipeline(seed=7), 4)
    np.testing.assert_array_equal(other.noisy[3], [4, 0, 19, 3, 14, 13, 11, 17])
    np.testing.assert_array_equal(other.clean[3], [11, 12, 0, 14, 1, 7, 3, 10])


def test_recorded_augmentation():
    """First pixels of images, by the code before sources; one run, and a process' share of two."""
    images = (np.arange(NUM_NOISY * 6 * 5) % 251).astype(np.uint8).reshape(NUM_NOISY, 6, 5, 1)
    source = ArraySource(images, num_draws=3, augment=augment_images)
    noisy, clean = (_subset(source, np.arange(n), np.arange(n)) for n in (NUM_NOISY, NUM_CLEAN))
    one, other = (_pipeline(noisy=noisy, clean=clean, augment=True, seed=seed) for seed in (0, 7))
    first, *_, fifth = _take(one, 5)
    pixels = first.noisy.inputs[0, 0, :, 0, 0, 0], first.clean_outer.inputs[0, 0, :, 0, 0, 0]
    _assert_equal(pixels, ([118, 16, 54, 71, 190, 36, 86, 167], [57, 84, 3, 149]))
    pixels = fifth.noisy.inputs[0, 0, :, 0, 0, 0], fifth.clean_outer.inputs[0, 0, :, 0, 0, 0]
    _assert_equal(pixels, ([61, 185, 94, 49, 46, 7, 174, 206], [21, 139, 170, 243]))
    (batch,) = _take_of([one, other], 1, 4, num_devices=2, process_index=1, process_count=2)
    pixels = batch.noisy.inputs[:, :, 0, :, 0, 0, 0]
    np.testing.assert_array_equal(pixels, [[[46, 7], [229, 69]], [[174, 206], [34, 169]]])


def test_every_example_exactly_once_per_epoch():
    steps = _steps(_pipeline(), 12)
    for size, epochs in (
        (NUM_NOISY, steps.noisy.reshape(4, NUM_NOISY)),
        (NUM_CLEAN, steps.clean.reshape(6, NUM_CLEAN)),
    ):
        for epoch in epochs:
            np.testing.assert_array_equal(np.sort(epoch), np.arange(size))
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)


def test_what_does_not_fill_a_batch_waits_for_the_next_epoch():
    pipeline = _pipeline(noisy_batch_size=7)
    assert pipeline.steps_per_epoch == 3
    epochs = _steps(pipeline, 12).noisy.reshape(4, 21)
    for epoch in epochs:
        assert len(set(epoch)) == 21
    left_out = [set(range(NUM_NOISY)) - set(epoch) for epoch in epochs]
    assert any(left_out[0] != other for other in left_out[1:])


def test_labels_stay_with_their_inputs():
    for batch in _take(_pipeline(num_inner_steps=2), 3):
        for examples in batch:
            np.testing.assert_array_equal(examples.labels, examples.inputs + 100)
            assert examples.labels.dtype == examples.rows.dtype == np.int32


def test_training_sees_given_labels_of_noisy_and_true_ones_of_clean_examples():
    """Rows are positions in the subset, whatever rows of the source those are."""
    source = ArraySource(np.arange(100, dtype=np.int32) * 10)
    rows = np.random.default_rng(0).permutation(100)[:40]
    sides = [
        Subset(source, part, (part + 1000).astype(np.int32), (part + 2000).astype(np.int32))
        for part in np.split(rows, [NUM_NOISY])
    ]
    (batch,) = _take(_pipeline(noisy=sides[0], clean=sides[1]), 1)
    for examples, subset, labels in (
        (batch.noisy, sides[0], sides[0].given),
        (batch.clean_inner, sides[1], sides[1].truth),
        (batch.clean_outer, sides[1], sides[1].truth),
    ):
        assert examples.rows.min() >= 0 and examples.rows.max() < len(subset)
        np.testing.assert_array_equal(examples.inputs, subset.rows[examples.rows] * 10)
        np.testing.assert_array_equal(examples.labels, labels[examples.rows])
        given = None if subset is sides[0] else subset.given[examples.rows]
        np.testing.assert_equal(examples.given, given)


@pytest.mark.slow
def test_clean_batches_have_given_labels_where_any_is_known():
    pipelines = _stack()[:2]
    assert all(batch.clean_inner.given is not None for batch in _take_of(pipelines, 2))
    for pipeline in pipelines:
        pipeline.clean.given[:] = UNKNOWN
    (batch,) = _take_of(pipelines, 1)
    assert batch.clean_inner.given is None and batch.clean_outer.given is None
    pipelines[1].clean.given[3] = 5
    given = np.concatenate([x.clean_inner.given for x in _take_of(pipelines, 4)], axis=2)
    assert given.shape[1] == 2
    assert (given[:, 0] == UNKNOWN).all() and set(given[:, 1].ravel()) <= {UNKNOWN, 5}


@pytest.mark.parametrize(
    ("augment", "wrap"),
    [(False, None), (True, RowSource), _slow(True, None), _slow(False, RowSource)],
)
def test_batch_is_a_function_of_seed_and_step(augment, wrap, monkeypatch):
    """The start from a later window goes on as if it had been there from the beginning."""
    # Windows of two steps straddle the epochs of three steps.
    wrap = wrap or (lambda source: source)
    pipeline = _image_pipeline(augment=augment, num_inner_steps=2, wrap=wrap)
    # Blocks of three windows begin elsewhere after a start elsewhere.
    monkeypatch.setattr(loader, "_MAX_BLOCKS", 3)
    from_start = _take(pipeline, 8)
    _assert_all_equal(from_start[5:], _take(pipeline, 3, 5))


@pytest.mark.slow
def test_blocks_that_are_read_at_once_do_not_change_the_batches(monkeypatch):
    pipeline = _image_pipeline(num_inner_steps=2)
    in_large_blocks = _take(pipeline, 5)
    monkeypatch.setattr(loader, "_BYTES_AT_ONCE", 1)  # One block at a time.
    _assert_all_equal(in_large_blocks, _take(pipeline, 5))


def test_windows_are_consecutive_steps():
    one_by_one = _steps(_pipeline(), 10)
    by_fives = _steps(_pipeline(num_inner_steps=5), 10)
    np.testing.assert_array_equal(one_by_one.noisy, by_fives.noisy)
    np.testing.assert_array_equal(one_by_one.clean, by_fives.clean)


def test_seed_changes_every_order():
    a, again, other = (_steps(_pipeline(seed=seed), 3) for seed in (0, 0, 1))
    for part in ("noisy", "clean"):
        np.testing.assert_array_equal(getattr(a, part), getattr(again, part))
        assert np.any(getattr(a, part) != getattr(other, part))


def test_noisy_and_clean_orders_are_not_the_same_draw():
    steps = _steps(_pipeline(clean=_pipeline().noisy), 3)
    assert np.any(steps.noisy != steps.clean)


def test_order_is_uniform():
    """Every example is equally often at every position."""
    size, epochs = 6, 600
    pipeline = _pipeline(noisy=_numbered(size), noisy_batch_size=size)
    orders = _steps(pipeline, epochs).noisy
    counts = np.zeros((size, size))
    np.add.at(counts, (orders, np.arange(size)), 1)
    expected = epochs / size
    # 25 degrees of freedom (rows and columns sum to 600): mean 25, deviation 7.
    chi_square = np.sum((counts - expected) ** 2) / expected
    assert 5 < chi_square < 60
    # Nor does one epoch's order tell the next: positions in consecutive epochs.
    positions = np.argsort(orders, axis=1)
    moves = np.zeros((size, size))
    np.add.at(moves, (positions[:-1], positions[1:]), 1)
    expected = size * (epochs - 1) / size**2
    assert 5 < np.sum((moves - expected) ** 2) / expected < 60


# --- Halves of the clean batch.


def test_halves_are_disjoint_and_redrawn_every_epoch():
    pipeline = _pipeline(clean_batch_size=NUM_CLEAN)  # One clean batch is one epoch.
    steps = _steps(pipeline, 6)
    inner, outer = steps.clean_inner, steps.clean_outer
    assert inner.shape == outer.shape == (6, NUM_CLEAN // 2)
    for a, b in zip(inner, outer, strict=True):
        assert set(a) | set(b) == set(range(NUM_CLEAN))
    # 12,870 ways to halve 16 examples.
    assert len({frozenset(half) for half in inner}) == 6


def test_halves_are_disjoint_in_every_batch():
    for batch in _take(_pipeline(num_inner_steps=3), 4):
        for inner, outer in zip(
            batch.clean_inner.inputs[0], batch.clean_outer.inputs[0], strict=True
        ):
            assert not set(inner) & set(outer)


def test_without_split_the_whole_clean_batch_is_the_outer_half():
    (batch,) = _take(_pipeline(split_clean=False), 1)
    assert batch.clean_inner is None
    assert batch.clean_outer.inputs.shape == (1, 1, 8)
    # And it is the batch that would have been split.
    np.testing.assert_array_equal(batch.clean_outer.inputs[0], _steps(_pipeline(), 1).clean)


# --- Augmentation.


def _crop(image, row, column, flip):
    """Brute force: reflect without repeating the edge, crop, mirror."""
    height, width = image.shape[:2]

    def reflect(i, size):
        return -i if i < 0 else 2 * (size - 1) - i if i >= size else i

    out = np.empty_like(image)
    for r, c in itertools.product(range(height), range(width)):
        source = image[reflect(r + row - 4, height), reflect(c + column - 4, width)]
        out[r, width - 1 - c if flip else c] = source
    return out


def test_augmentation_against_brute_force():
    rng = np.random.default_rng(0)
    shifts = list(itertools.product(range(9), range(9), (0, 1)))  # All there are.
    images = rng.integers(0, 256, (len(shifts), 6, 5, 2)).astype(np.uint8)
    # The middle of each cell of [0, 1): nine offsets each, two mirrors.
    draws = np.array([[(r + 0.5) / 9, (c + 0.5) / 9, (f + 0.5) / 2] for r, c, f in shifts])
    got = augment_images(images, draws.astype(np.float32))
    assert got.dtype == np.uint8
    want = [_crop(image, *shift) for image, shift in zip(images, shifts, strict=True)]
    np.testing.assert_array_equal(got, want)


def test_augmentation_at_the_ends_of_the_draws():
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3)).astype(np.uint8)
    for draw, offset, flip in ((0.0, 0, 0), (np.nextafter(np.float32(1), np.float32(0)), 8, 1)):
        got = augment_images(image, np.full((1, 3), draw, np.float32))
        np.testing.assert_array_equal(got[0], _crop(image[0], offset, offset, flip))


def test_pipeline_shifts_and_mirrors_its_images_uniformly():
    # Less wide, and some crop would be another's mirror image, by the reflected border.
    pipeline = _image_pipeline(height=7, width=10)
    shifts = list(itertools.product(range(9), range(9), (0, 1)))
    table = {
        (label, _crop(image, *shift).tobytes()): shift
        for label, image in enumerate(pipeline.noisy.source.inputs)
        for shift in shifts
    }
    assert len(table) == NUM_NOISY * len(shifts)
    seen = []
    for batch in _take(pipeline, 60):
        for examples in batch:
            for image, label in zip(examples.inputs[0, 0], examples.labels[0, 0], strict=True):
                seen.append(table[int(label), image.tobytes()])  # KeyError: not a crop.
    rows, columns, flips = np.array(seen).T
    total = len(seen)  # 960.
    assert abs(flips.mean() - 0.5) < 5 * 0.5 / np.sqrt(total)
    for offsets in (rows, columns):
        counts = np.bincount(offsets, minlength=9)
        assert np.sum((counts - total / 9) ** 2) / (total / 9) < 40  # 8 degrees of freedom.
    assert abs(np.corrcoef(rows, columns)[0, 1]) < 5 / np.sqrt(total)


@pytest.mark.slow
def test_augmentation_changes_with_step_and_seed_and_part():
    # One image, always in the batch, so that only the augmentation can differ.
    one = _subset(_image_pipeline().noisy.source, np.zeros(8), np.zeros(8))
    pipeline = _image_pipeline(noisy=one, clean=one)
    steps, other_seed = _steps(pipeline, 3), _steps(dataclasses.replace(pipeline, seed=1), 1)
    assert np.any(steps.noisy[0] != steps.noisy[1]) and np.any(steps.noisy[1] != steps.noisy[2])
    assert np.any(steps.noisy[0] != steps.clean[0])
    assert np.any(steps.noisy[0] != other_seed.noisy[0])


@pytest.mark.slow
def test_augmentation_of_a_tree_by_as_many_draws_as_the_source_asks_for():
    tree = {"ids": np.zeros((NUM_NOISY, 2), np.int32), "u": np.zeros((NUM_NOISY, 5), np.float32)}
    source = ArraySource(tree, num_draws=5, augment=lambda tree, draws: tree | {"u": draws})
    subset = _subset(source, np.arange(NUM_NOISY), np.arange(NUM_NOISY))
    for augment in (True, False):
        (batch,) = _take(_pipeline(noisy=subset, clean=subset, augment=augment), 1)
        draws = batch.noisy.inputs["u"]
        assert draws.shape == (1, 1, 8, 5) and batch.noisy.inputs["ids"].shape == (1, 1, 8, 2)
        assert len(np.unique(draws)) == (draws.size if augment else 1)
        assert draws.min() >= 0 and draws.max() < 1


# --- Trees, and sources that are read row by row.


def _tree(size):
    rng = np.random.default_rng(0)
    return {
        "tokens": rng.integers(0, 1000, (size, 7)).astype(np.int32),
        "nested": (rng.random((size, 2, 3)), [np.arange(size) % 2 == 0]),
    }


def test_inputs_may_be_any_tree():
    tree = _tree(NUM_NOISY)
    rows = np.random.default_rng(1).permutation(NUM_NOISY)
    subset = _subset(ArraySource(tree), rows, rows)
    pipeline = _pipeline(noisy=subset, clean=subset, num_inner_steps=2)
    pipeline.check()
    for batch in _take(pipeline, 3, num_devices=2):
        for examples in batch:
            _assert_equal(examples.inputs, jax.tree.map(lambda x: x[examples.labels], tree))  # noqa: B023
            assert examples.inputs["tokens"].shape == (2, 2, examples.labels.shape[2], 7)


@pytest.mark.parametrize("process_count", [_slow(1), 2])
def test_row_by_row_is_the_same_as_from_memory(process_count):
    """Steps that straddle epochs, devices, processes, stacked runs, augmentation."""
    process = {"process_index": process_count - 1, "process_count": process_count}
    in_memory, by_row = (
        _take_of(pipelines, 7, 1, num_devices=2 // process_count, **process)
        for pipelines in (_stack(num_inner_steps=3)[:2], _stack(RowSource, num_inner_steps=3)[:2])
    )
    _assert_all_equal(in_memory, by_row)


def test_noisy_and_clean_examples_may_come_from_sources_of_both_kinds():
    tree = _tree(NUM_NOISY)
    noisy = _subset(RowSource(ArraySource(tree)), np.arange(NUM_NOISY), np.arange(NUM_NOISY))
    other = jax.tree.map(lambda x: x[:NUM_CLEAN], tree)
    clean = _subset(ArraySource(other), np.arange(NUM_CLEAN), np.arange(NUM_CLEAN))
    pipeline = _pipeline(noisy=noisy, clean=clean)
    pipeline.check()
    for batch in _take(pipeline, 3):
        for examples in batch:
            _assert_equal(examples.inputs, jax.tree.map(lambda x: x[examples.labels], tree))  # noqa: B023


# --- Dealing to devices, processes and runs.


@pytest.mark.slow
@pytest.mark.parametrize("num_devices", [4])
def test_devices_get_consecutive_rows_of_the_global_batch(num_devices):
    pipeline = _image_pipeline(num_inner_steps=3)
    for whole, dealt in zip(
        _take(pipeline, 2), _take(pipeline, 2, num_devices=num_devices), strict=True
    ):
        for part, parts in zip(whole, dealt, strict=True):
            for global_array, array in zip(*map(jax.tree.leaves, (part, parts)), strict=True):
                k, size = global_array.shape[1:3]
                assert array.shape[:3] == (num_devices, k, size // num_devices)
                np.testing.assert_array_equal(np.concatenate(array, axis=1), global_array[0])


@pytest.mark.parametrize(("process_count", "num_devices"), [(2, 2), _slow(4, 1)])
def test_processes_shares_make_up_the_global_batch(process_count, num_devices):
    """Augmentation included: it is keyed by the position in the global batch."""
    pipeline = _image_pipeline(num_inner_steps=2)
    whole = _take(pipeline, 3, start_window=1, num_devices=process_count * num_devices)
    shares = [
        _take(
            pipeline, 3, start_window=1, num_devices=num_devices,
            process_index=i, process_count=process_count,
        )
        for i in range(process_count)
    ]  # fmt: skip
    for t, batch in enumerate(whole):
        together = jax.tree.map(lambda *xs: np.concatenate(xs), *[share[t] for share in shares])
        _assert_equal(together, batch)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("num_replayed", "start_window", "num_runs"),
    [(3, 1, 1), (2, 0, 2), _slow(3, 4, 2), _slow(2, 4, 1)],
)
def test_overlapping_windows_are_made_of_the_same_steps(num_replayed, start_window, num_runs):
    """Whichever window is the first; steps before the run's are the first block's."""
    pipelines = _stack(num_inner_steps=4, num_replayed=num_replayed)[:num_runs]
    s, axis = 4 - num_replayed, 1 if num_runs == 1 else 2
    blocks = _take_of(
        [dataclasses.replace(x, num_inner_steps=s, num_replayed=0) for x in pipelines], 9
    )
    windows = _take_of(pipelines, 3, start_window)
    for i, window in enumerate(windows, start=start_window):
        kept = [blocks[max(0, i - j)] for j in reversed(range(4 // s))]
        _assert_equal(window, jax.tree.map(lambda *xs: np.concatenate(xs, axis), *kept))


@pytest.mark.slow
def test_overlapping_windows_are_joined_on_the_device(monkeypatch):
    """Every block is sent once; on CPU, where nothing is sent, the joined ones are the same."""
    pipeline = _image_pipeline(num_inner_steps=4, num_replayed=3)
    sent = []

    def send(batches, devices):
        for batch in batches:
            sent.append(batch)
            yield jax.tree.map(jnp.asarray, batch)

    monkeypatch.setattr(loader, "to_devices", send)
    placed = _take_of([pipeline], 3, 2, devices=jax.devices()[:1])
    assert {x.labels.shape[1] for batch in sent for x in batch} == {1}
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(placed))
    _assert_all_equal(placed, _take(pipeline, 3, 2))


@pytest.mark.slow
def test_stacked_runs_get_the_batches_that_each_gets_alone():
    pipelines = _stack(num_inner_steps=2)[:2]
    together = _take_of(pipelines, 5, 1, num_devices=2)
    for run, pipeline in enumerate(pipelines):
        alone = _take(pipeline, 5, 1, num_devices=2)
        _assert_all_equal([jax.tree.map(lambda x: x[:, run], b) for b in together], alone)  # noqa: B023


def test_stacked_runs_are_gathered_at_once():
    calls = []

    class Counting(ArraySource):
        def gather(self, rows, draws=None):
            calls.append(rows.shape)
            return super().gather(rows, draws)

    source = Counting(np.arange(NUM_NOISY, dtype=np.int32))
    subset = _subset(source, np.arange(NUM_NOISY), np.arange(NUM_NOISY))
    pipelines = [_pipeline(noisy=subset, clean=subset, seed=seed) for seed in range(3)]
    _take_of(pipelines, 1)
    # 64 windows of 3 runs; both halves of the clean batch at once.
    assert set(calls) == {(64 * 3 * 8,)}


def test_stacked_runs_must_share_their_source():
    with pytest.raises(ValueError, match="noisy: runs of one program must share one source"):
        next(batches_of([_pipeline(), _pipeline()], 0))
    subset = _numbered(NUM_NOISY)
    pipelines = [_pipeline(noisy=x, clean=subset) for x in (subset, subset.take(slice(0, 20)))]
    with pytest.raises(ValueError, match="one length"):
        next(batches_of(pipelines, 0))


def test_to_devices_keeps_order_and_places_a_slice_on_each_device(monkeypatch):
    batches = _take(_pipeline(), 7, num_devices=2)
    for batch, on_cpu in zip(batches, to_devices(iter(batches), jax.devices()[:2]), strict=True):
        _assert_equal(batch, on_cpu)

    # The way to accelerators: two that answer to another platform's name, and are CPUs in the mesh.
    devices = jax.devices()[:2]
    mesh = jax.sharding.Mesh(np.asarray(devices), ("batch",))
    monkeypatch.setattr(loader, "Mesh", lambda devices, names: mesh)
    placed = list(to_devices(iter(batches), [types.SimpleNamespace(platform="gpu")] * 2))
    assert len(placed) == 7
    for batch, on_devices in zip(batches, placed, strict=True):
        _assert_equal(batch, jax.device_get(on_devices))
        for shard in on_devices.noisy.inputs.addressable_shards:
            row = devices.index(shard.device)
            np.testing.assert_array_equal(shard.data[0], batch.noisy.inputs[row])


# --- Evaluation.


def _evaluated(size, wrap=lambda source: source, num_runs=1):
    """Subsets of a tree, and labels that say which rows they are."""
    source = wrap(ArraySource(_tree(50)))
    rng = np.random.default_rng(2)
    rows = [rng.permutation(50)[:size] for _ in range(num_runs)]
    return [_subset(source, x, np.full(size, -1)) for x in rows], rows


@pytest.mark.parametrize("wrap", [lambda source: source, RowSource])
@pytest.mark.parametrize("size", [1, 16, 17])
def test_evaluation_reads_every_row_once_and_pads_by_wrapping_around(size, wrap):
    subsets, (rows,) = _evaluated(size, wrap)
    reader = EvaluationReader(subsets, [rows], 8, num_devices=2)
    batches = list(reader)
    assert len(batches) == len(reader) == -(-size // 8)
    for inputs, labels in batches:
        assert labels.shape == (2, 4) and labels.dtype == np.int32
        _assert_equal(inputs, jax.tree.map(lambda x: x[labels], _tree(50)))  # noqa: B023
    seen = np.concatenate([labels.reshape(-1) for _, labels in batches])
    np.testing.assert_array_equal(seen, rows[np.arange(len(seen)) % size])


@pytest.mark.parametrize("wrap", [lambda source: source, RowSource])
@pytest.mark.parametrize("same_rows", [False, True])
def test_evaluation_of_stacked_runs(wrap, same_rows):
    """Each run's examples, at the second axis; also where all runs have the same rows."""
    subsets, rows = _evaluated(10, wrap, num_runs=3)
    if same_rows:
        subsets, rows = [subsets[0]] * 3, [rows[0]] * 3
    labels = [run * 100 + x for run, x in enumerate(rows)]
    together = list(EvaluationReader(subsets, labels, 8, num_devices=4))
    for run in (0, 2):
        alone = list(EvaluationReader([subsets[run]], [labels[run]], 8, num_devices=4))
        _assert_all_equal([jax.tree.map(lambda x: x[:, run], b) for b in together], alone)  # noqa: B023


def test_rows_that_all_runs_share_are_read_once():
    read = []

    class Watched:
        def __len__(self):
            return 50

        def __getitem__(self, rows):
            read.append(len(rows))
            return rows

    source = IndexedSource(Watched())
    subset = _subset(source, np.arange(16), np.arange(16))
    read.clear()
    ((inputs, _),) = EvaluationReader([subset] * 5, [subset.given] * 5, 16)
    assert read == [16] and inputs.shape == (1, 5, 16)


@pytest.mark.parametrize("wrap", [lambda source: source, RowSource])
def test_evaluation_shares_of_processes_make_up_the_batch(wrap):
    subsets, rows = _evaluated(21, wrap, num_runs=2)
    whole = list(EvaluationReader(subsets, rows, 8, num_devices=4))
    shares = [
        list(
            EvaluationReader(subsets, rows, 8, num_devices=2, process_index=i, process_count=2)
        )
        for i in range(2)
    ]  # fmt: skip
    for a, b, batch in zip(*shares, whole, strict=True):
        _assert_equal(jax.tree.map(lambda *xs: np.concatenate(xs), a, b), batch)


def test_evaluation_of_nothing():
    subsets, rows = _evaluated(0)
    reader = EvaluationReader(subsets, rows, 8)
    assert len(reader) == 0 and list(reader) == []


def test_evaluation_refuses_runs_that_differ_in_source_or_length():
    a, b = _numbered(5), _numbered(5)
    with pytest.raises(ValueError, match="must share one source object"):
        EvaluationReader([a, b], [a.given, b.given], 5)
    with pytest.raises(ValueError, match="one length"):
        EvaluationReader([a, a.take(slice(0, 4))], [a.given, a.given], 5)


def test_evaluating_again_builds_nothing_again():
    traces = []

    class Traced(RowSource):
        def read(self, row):
            traces.append(row)
            return super().read(row)

    subset = _subset(Traced(ArraySource(np.arange(360))), np.arange(360), np.arange(360))
    reader = EvaluationReader([subset], [subset.given], 200)
    first, num_traces = list(reader), len(traces)
    half_read = next(iter(reader))
    _assert_equal(half_read, first[0])
    _assert_all_equal(list(reader), first)
    assert len(traces) == num_traces


@pytest.mark.parametrize("wrap", [lambda source: source, RowSource])
def test_read_rows(wrap):
    rows = np.array([3, 0, 3])
    tree = read_rows(wrap(ArraySource(_tree(5))), rows)
    _assert_equal(tree, jax.tree.map(lambda x: x[rows], _tree(5)))
    assert all(isinstance(x, np.ndarray) for x in jax.tree.leaves(tree))


# --- Input checks, and what goes wrong while reading.


@pytest.mark.parametrize(
    ("field", "size"), [("noisy_batch_size", NUM_NOISY), ("clean_batch_size", NUM_CLEAN)]
)
def test_batch_larger_than_its_set(field, size):
    _pipeline(**{field: size}).check()
    with pytest.raises(InputError, match=rf"config\.{field}: got {size + 1}, .*at most {size}"):
        _pipeline(**{field: size + 1}).check()


def test_noisy_and_clean_inputs_that_differ():
    clean = _subset(ArraySource({"a": np.zeros((16, 3))}), np.arange(16), np.arange(16))
    want = r"clean inputs: got \{a: float64 \[3\]\}, expected .* noisy set, int32 \[\]$"
    with pytest.raises(InputError, match=want):
        _pipeline(clean=clean).check()


class Files(RowSource):
    """Files that are not there."""

    def read(self, row):
        data = tf.io.read_file(tf.strings.join(["/nowhere/", tf.strings.as_string(row)]))
        return tf.ensure_shape(tf.io.decode_raw(data, tf.uint8), self.shape)


def test_a_file_that_cannot_be_read_is_one_line():
    source = Files(ArraySource(np.arange(8)))
    source.shape = [5]
    subset = _subset(source, np.arange(8), np.arange(8))
    want = r"^inputs: reading from Files failed: /nowhere/\d; No such file or directory$"
    with pytest.raises(InputError, match=want):
        _take(_pipeline(noisy=subset, clean=subset), 1)
    with pytest.raises(InputError, match=want):
        list(EvaluationReader([subset], [subset.given], 8))
    with pytest.raises(InputError, match=want):
        read_rows(source, np.arange(1))


def test_shapes_must_be_known_beforehand():
    source = Files(ArraySource(np.arange(8)))
    source.shape = [None]
    subset = _subset(source, np.arange(8), np.arange(8))
    with pytest.raises(InputError, match=r"Files.read: got an input of shape \(None,\), expected"):
        _pipeline(noisy=subset).check()


def test_an_error_of_a_users_object_is_raised_with_its_cause():
    class Breaking:
        def __len__(self):
            return NUM_NOISY

        def __getitem__(self, rows):
            if len(rows) > 1:
                raise OSError("disk\nis gone")
            return np.zeros((1, 2))

    subset = _subset(IndexedSource(Breaking()), np.arange(NUM_NOISY), np.arange(NUM_NOISY))
    want = r"^inputs: Breaking\[rows\] raised OSError: disk is gone$"
    for read in (
        lambda: _take(_pipeline(noisy=subset, clean=subset), 1),
        lambda: list(EvaluationReader([subset], [subset.given], 8)),
        lambda: read_rows(subset.source, np.arange(2)),
    ):
        with pytest.raises(InputError, match=want) as error:
            read()
        assert isinstance(error.value.__cause__, OSError)


# --- Threads.


@pytest.mark.slow
def test_closing_the_batches_stops_reading_and_releases_the_object():
    class Slow:
        calls = 0

        def __len__(self):
            return NUM_NOISY

        def __getitem__(self, rows):
            time.sleep(0.01)
            self.calls += 1
            return np.zeros((len(rows), 2))

    slow = Slow()
    subset = _subset(IndexedSource(slow), np.arange(NUM_NOISY), np.arange(NUM_NOISY))
    batches = _pipeline(noisy=subset, clean=subset).batches(0)
    next(batches)
    batches.close()
    calls = slow.calls
    time.sleep(0.1)
    assert slow.calls == calls
    alive = weakref.ref(slow)
    del slow, subset, batches
    gc.collect()
    assert alive() is None


EXITS_MID_WAY = """
import time
import numpy as np
from mlc_jax.data.loader import Pipeline
from mlc_jax.data.reading import EvaluationReader
from mlc_jax.data.source import IndexedSource, Subset

class Slow:
    def __len__(self):
        return 1000
    def __getitem__(self, rows):
        time.sleep(0.05)
        return np.zeros((len(rows), 2))

labels = np.zeros(1000, np.int32)
subset = Subset(IndexedSource(Slow()), np.arange(1000), labels, labels)
batches = Pipeline(subset, subset, 10, 10, True, 1, False, 0).batches(0)
evaluated = iter(EvaluationReader([subset], [labels], 10))
for _ in range(3):
    next(batches), next(evaluated)
raise SystemExit(3)
"""


@pytest.mark.slow
def test_process_may_exit_while_objects_are_read():
    """Threads of TensorFlow that call Python while Python goes down would hang, or abort."""
    result = subprocess.run(
        [sys.executable, "-c", EXITS_MID_WAY], capture_output=True, text=True, timeout=300
    )
    assert (result.returncode, result.stderr) == (3, "")
