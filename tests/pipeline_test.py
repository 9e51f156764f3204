"""Batches as a function of (seed, step): order, halves, augmentation, dealing."""

import dataclasses
import itertools
import types

import jax
import numpy as np
import pytest

from mlc_jax.core import Labelled
from mlc_jax.data import pipeline as pipeline_module
from mlc_jax.data.loader import Pipeline, augment_images, to_devices
from mlc_jax.errors import InputError

NUM_NOISY, NUM_CLEAN = 24, 16


def _pipeline(**changes):
    """Labelled that are their own row numbers; labels are those plus 100."""

    def numbered(n):
        return Labelled(np.arange(n, dtype=np.int32), np.arange(n, dtype=np.int32) + 100)

    defaults = Pipeline(
        noisy=numbered(NUM_NOISY), clean=numbered(NUM_CLEAN), noisy_batch_size=8,
        clean_batch_size=8, split_clean=True, num_inner_steps=1, augment=False, seed=0,
    )  # fmt: skip
    return dataclasses.replace(defaults, **changes)


def _image_pipeline(height=6, width=5, **changes):
    """Random images to augment; labels are row numbers."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM_NOISY, height, width, 1)).astype(np.uint8)
    labels = np.arange(NUM_NOISY, dtype=np.int32)
    examples = {
        "noisy": Labelled(images, labels),
        "clean": Labelled(images[:NUM_CLEAN], labels[:NUM_CLEAN]),
    }
    return _pipeline(**({"augment": True} | examples | changes))


def _take(pipeline, num_windows, start_window=0, **kwargs):
    return list(itertools.islice(pipeline.batches(start_window, **kwargs), num_windows))


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


# --- Order.


def test_every_example_exactly_once_an_epoch():
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


@pytest.mark.parametrize("augment", [False, True])
def test_batch_is_a_function_of_seed_and_step(augment, monkeypatch):
    """The start from a later window goes on as if it had been there from the beginning."""
    # Windows of two steps straddle the epochs of three steps.
    pipeline = _image_pipeline(augment=augment, num_inner_steps=2)
    # Blocks of three windows begin elsewhere after a start elsewhere.
    monkeypatch.setattr(pipeline_module, "_MAX_BLOCK_WINDOWS", 3)
    from_start = _take(pipeline, 8)
    for start in (1, 5):
        for a, b in zip(from_start[start:], _take(pipeline, 8 - start, start), strict=True):
            _assert_equal(a, b)


def test_blocks_that_are_read_at_once_do_not_change_the_batches(monkeypatch):
    pipeline = _image_pipeline(num_inner_steps=2)
    in_large_blocks = _take(pipeline, 5)
    monkeypatch.setattr(pipeline_module, "_BLOCK_BYTES", 1)  # One window at a time.
    for a, b in zip(in_large_blocks, _take(pipeline, 5), strict=True):
        _assert_equal(a, b)


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
    examples = Labelled(np.arange(size, dtype=np.int32), np.arange(size, dtype=np.int32))
    pipeline = _pipeline(noisy=examples, noisy_batch_size=size)
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
    got = augment_images(images, draws.astype(np.float32)).numpy()
    assert got.dtype == np.uint8
    want = [_crop(image, *shift) for image, shift in zip(images, shifts, strict=True)]
    np.testing.assert_array_equal(got, want)


def test_augmentation_at_the_ends_of_the_draws():
    image = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3)).astype(np.uint8)
    for draw, offset, flip in ((0.0, 0, 0), (np.nextafter(np.float32(1), np.float32(0)), 8, 1)):
        got = augment_images(image, np.full((1, 3), draw, np.float32)).numpy()
        np.testing.assert_array_equal(got[0], _crop(image[0], offset, offset, flip))


def test_pipeline_shifts_and_mirrors_its_images_uniformly():
    # Less wide, and some crop would be another's mirror image, by the reflected border.
    pipeline = _image_pipeline(height=7, width=10)
    shifts = list(itertools.product(range(9), range(9), (0, 1)))
    table = {
        (label, _crop(image, *shift).tobytes()): shift
        for label, image in enumerate(pipeline.noisy.inputs)
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


def test_augmentation_changes_with_step_and_seed_and_part():
    # One image, always in the batch, so that only the augmentation can differ.
    one = Labelled(_image_pipeline().noisy.inputs[:1].repeat(8, axis=0), np.zeros(8, np.int32))
    pipeline = _image_pipeline(noisy=one, clean=one)
    steps, other_seed = _steps(pipeline, 3), _steps(dataclasses.replace(pipeline, seed=1), 1)
    assert np.any(steps.noisy[0] != steps.noisy[1]) and np.any(steps.noisy[1] != steps.noisy[2])
    assert np.any(steps.noisy[0] != steps.clean[0])
    assert np.any(steps.noisy[0] != other_seed.noisy[0])


# --- Dealing to devices and processes.


@pytest.mark.parametrize("num_devices", [2, 4])
def test_devices_get_consecutive_rows_of_the_global_batch(num_devices):
    pipeline = _image_pipeline(num_inner_steps=3)
    for whole, dealt in zip(
        _take(pipeline, 2), _take(pipeline, 2, num_devices=num_devices), strict=True
    ):
        for part, parts in zip(whole, dealt, strict=True):
            for global_array, array in zip(part, parts, strict=True):
                k, size = global_array.shape[1:3]
                assert array.shape[:3] == (num_devices, k, size // num_devices)
                np.testing.assert_array_equal(np.concatenate(array, axis=1), global_array[0])


@pytest.mark.parametrize(("process_count", "num_devices"), [(2, 2), (4, 1)])
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


def test_to_devices_keeps_order_and_places_a_slice_on_each_device(monkeypatch):
    batches = _take(_pipeline(), 7, num_devices=2)
    for batch, on_cpu in zip(batches, to_devices(iter(batches), jax.devices()[:2]), strict=True):
        _assert_equal(batch, on_cpu)

    # The way to accelerators: two that answer to another platform's name, and are CPUs in the mesh.
    devices = jax.devices()[:2]
    mesh = jax.sharding.Mesh(np.asarray(devices), ("batch",))
    monkeypatch.setattr(pipeline_module, "Mesh", lambda devices, names: mesh)
    placed = list(to_devices(iter(batches), [types.SimpleNamespace(platform="gpu")] * 2))
    assert len(placed) == 7
    for batch, on_devices in zip(batches, placed, strict=True):
        _assert_equal(batch, jax.device_get(on_devices))
        for shard in on_devices.noisy.inputs.addressable_shards:
            row = devices.index(shard.device)
            np.testing.assert_array_equal(shard.data[0], batch.noisy.inputs[row])


# --- Input checks.


@pytest.mark.parametrize(
    ("field", "size"), [("noisy_batch_size", NUM_NOISY), ("clean_batch_size", NUM_CLEAN)]
)
def test_batch_larger_than_its_set(field, size):
    _pipeline(**{field: size}).check()
    with pytest.raises(InputError, match=rf"config\.{field}: got {size + 1}, .*at most {size}"):
        _pipeline(**{field: size + 1}).check()
