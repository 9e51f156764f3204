"""Batches of examples of like length: the same rules as for all others, and little padding."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
import tensorflow as tf

from mlc_jax.data import loader
from mlc_jax.data.loader import Pipeline, batches_of
from mlc_jax.data.order import bucket_lengths, uniform
from mlc_jax.data.source import ArraySource, Subset

MAX_LENGTH = 40
# Of 120 texts: 80 short ones, 28 of middle length, and 12 long ones.
LENGTHS = np.random.default_rng(0).permutation(
    np.concatenate([np.arange(80) % 6 + 11, np.arange(28) % 5 + 17, np.arange(12) % 4 + 34])
)
BUCKETS = [16, 24, 40]


class Texts(ArraySource):
    """The tokens of row r are all r + 1; padding is 0."""

    def __init__(self, lengths=LENGTHS):
        self.lengths = lengths.astype(np.int32)
        tokens = (np.arange(MAX_LENGTH) < lengths[:, None]) * (np.arange(len(lengths))[:, None] + 1)
        # Two arrays, one of which has more axes than the other.
        super().__init__({"tokens": tokens, "states": np.stack([tokens, -tokens], axis=-1)})


SOURCE = Texts()


def _pipeline(source=SOURCE, num_clean=40, seed=0, **changes):
    rows = np.random.default_rng(seed).permutation(len(source))
    labels = np.arange(len(source), dtype=np.int32)
    whole = Subset(source, rows, labels[rows], labels[rows])
    defaults = Pipeline(
        whole.take(slice(num_clean, None)), whole.take(slice(num_clean)), 8, 8, True, 1,
        augment=False, seed=seed, length_buckets=3,
    )  # fmt: skip
    return dataclasses.replace(defaults, **changes)


def _take(pipelines, num, start=0, **kwargs):
    return list(itertools.islice(batches_of(pipelines, start, **kwargs), num))


def _parts(batch):
    """Noisy and clean examples, as they are padded."""
    yield batch.noisy
    yield batch.clean_inner
    yield batch.clean_outer


def _assert_equal(got, want):
    jax.tree.map(np.testing.assert_array_equal, got, want)


def test_draws_are_those_of_tensorflow():
    """Bit by bit: a run that goes on from an older checkpoint sees the batches it would have."""
    rng = np.random.default_rng(0)
    seeds = [[0, 0], [1, 0], [0, 1], [2**31 - 1, 7], [-3, 2**40]]
    seeds += rng.integers(-(2**62), 2**62, (6, 2)).tolist()
    for shape in ([], [0], [1], [3], [4], [5], [7, 3], [2, 3, 5], [70_001]):
        want = [tf.random.stateless_uniform(shape, seed, alg="philox").numpy() for seed in seeds]
        got = uniform(shape, seeds)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(uniform([9], seeds[3]), uniform([9], [seeds[:4]])[0, 3])
    # So do the places of equal draws, of which 70,000 have some.
    many = uniform([70_000], [3, 1])
    assert len(np.unique(many)) < len(many)
    order = tf.argsort(many, stable=True).numpy()
    np.testing.assert_array_equal(np.argsort(many, kind="stable"), order)


def test_bucket_lengths_leave_the_least_padding():
    rng = np.random.default_rng(0)
    for num in (1, 2, 3):
        lengths = rng.integers(1, 40, 50) ** 2 // 38
        got = bucket_lengths(lengths, num, MAX_LENGTH)
        ends = np.arange(8, MAX_LENGTH + 1, 8)
        ends = ends[: np.searchsorted(ends, lengths.max()) + 1]
        costs = {
            (*chosen, ends[-1]): sum(min(x for x in (*chosen, ends[-1]) if x >= y) for y in lengths)
            for size in range(num)
            for chosen in itertools.combinations(ends[:-1], size)
        }
        assert costs[tuple(got)] == min(costs.values())
    assert bucket_lengths(np.array([3, 3]), 4, 512).tolist() == [8]
    assert bucket_lengths(np.array([3, 21]), 3, 21).tolist() == [8, 21]


@pytest.mark.slow
@pytest.mark.parametrize("num_inner_steps", [1, 3])
def test_inputs_are_cut_where_the_bucket_of_the_windows_longest_ends(num_inner_steps):
    windows = _take([_pipeline(num_inner_steps=num_inner_steps)], 30 // num_inner_steps)
    seen = set()
    for batch in windows:
        clean = np.concatenate([batch.clean_inner.labels, batch.clean_outer.labels])
        # An epoch of the clean set has 5 steps, and too few windows of 3 to tell them apart.
        of_clean = BUCKETS if num_inner_steps == 1 else BUCKETS[-1:]
        sides = ((batch.noisy.labels, BUCKETS), (clean, of_clean), (clean, of_clean))
        for part, (labels, buckets) in zip(_parts(batch), sides, strict=True):
            end = min(x for x in buckets if x >= LENGTHS[labels].max())
            tokens = SOURCE.inputs["tokens"][part.labels]
            _assert_equal(part.inputs["tokens"], tokens[..., :end])
            _assert_equal(part.inputs["states"][..., 0], tokens[..., :end])
            seen.add(end)
    assert seen == set(BUCKETS)


@pytest.mark.slow
@pytest.mark.parametrize("num_inner_steps", [1, 3, 7])
def test_every_example_once_per_epoch_and_few_buckets_in_a_window(num_inner_steps):
    """10 batches an epoch, which windows of 3 straddle; of the clean set's 5, those of 7, too."""
    k = num_inner_steps
    windows = _take([_pipeline(num_inner_steps=k)], 21)
    noisy = np.concatenate([x.noisy.labels[0] for x in windows])
    clean = [np.concatenate([x.clean_inner.labels[0], x.clean_outer.labels[0]], 1) for x in windows]
    for steps, per_epoch in ((noisy, 10), (np.concatenate(clean), 5)):
        epochs = steps[: len(steps) // per_epoch * per_epoch].reshape(-1, per_epoch * 8)
        assert all(len(set(epoch)) == per_epoch * 8 for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs)
    # By chance nearly all windows would have a long text in them.
    mean = np.mean([x.noisy.inputs["tokens"].shape[-1] for x in windows])
    assert mean < {1: 26, 3: 30, 7: 41}[k]


def test_who_meets_whom_is_drawn_anew():
    """Any two of a bucket meet sometimes, and halves do not tell lengths apart."""
    batches = _take([_pipeline(num_clean=48)], 600)
    met = np.zeros((len(LENGTHS), len(LENGTHS)))
    longer = []
    for batch in batches:
        labels = batch.noisy.labels.ravel()
        met[np.ix_(labels, labels)] += 1
        inner, outer = (LENGTHS[x.labels].mean() for x in (batch.clean_inner, batch.clean_outer))
        longer.append(inner - outer)
    rows = np.unique(np.concatenate([x.noisy.labels.ravel() for x in batches]))
    short = rows[LENGTHS[rows] <= 16]
    assert met[np.ix_(short, short)].min() > 0
    assert abs(np.mean(longer)) < 4 * np.std(longer) / np.sqrt(len(longer))


def test_batch_is_a_function_of_seed_and_step(monkeypatch):
    pipeline = _pipeline(num_inner_steps=3)
    monkeypatch.setattr(loader, "_MAX_BLOCKS", 2)
    from_start = _take([pipeline], 9)
    _assert_equal(_take([pipeline], 5, 4), from_start[4:])
    other = _take([dataclasses.replace(pipeline, seed=1)], 9)
    assert any(
        np.any(x.noisy.labels != y.noisy.labels) for x, y in zip(other, from_start, strict=True)
    )


@pytest.mark.slow
def test_devices_and_processes_pad_to_one_length():
    pipeline = _pipeline(num_inner_steps=2)
    whole = _take([pipeline], 8, num_devices=4)
    shares = [_take([pipeline], 8, num_devices=2, process_index=i, process_count=2) for i in (0, 1)]
    for t, batch in enumerate(whole):
        _assert_equal(jax.tree.map(lambda *xs: np.concatenate(xs), *[x[t] for x in shares]), batch)


@pytest.mark.slow
def test_stacked_runs_have_their_own_batches_padded_alike():
    pipelines = [_pipeline(seed=seed, num_inner_steps=2) for seed in (0, 5)]
    together = _take(pipelines, 12, 1)
    alone = [_take([pipeline], 12, 1) for pipeline in pipelines]
    lengths = []
    for t, batch in enumerate(together):
        of_runs = [_parts(of_run[t]) for of_run in alone]
        for part, *parts in zip(_parts(batch), *of_runs, strict=True):
            tokens = part.inputs["tokens"]
            ends = [x.inputs["tokens"].shape[-1] for x in parts]
            assert tokens.shape[-1] == max(ends)
            lengths.append(ends)
            for run, (of_run, end) in enumerate(zip(parts, ends, strict=True)):
                _assert_equal(tokens[:, run, ..., :end], of_run.inputs["tokens"])
                assert not tokens[:, run, ..., end:].any()
                _assert_equal(part.labels[:, run], of_run.labels)
    # Which length comes when is the same for all seeds, but for a few windows.
    assert np.mean(np.ptp(lengths, axis=1) == 0) > 0.7


@pytest.mark.parametrize("changes", [{"length_buckets": 1}, {"num_replayed": 1}])
def test_one_length(changes):
    """Asked for, or because windows overlap: the batches are those of any other source."""
    plain = ArraySource(SOURCE.inputs)
    got, want = (
        _take([_pipeline(source, num_inner_steps=2, **changes)], 6) for source in (SOURCE, plain)
    )
    _assert_equal(got, want)
    assert got[0].noisy.inputs["tokens"].shape[-1] == MAX_LENGTH


def test_a_set_of_few_batches_has_one_length():
    """All lengths meet in every window; what no example has is cut off all the same."""
    short = Texts(np.minimum(LENGTHS, 21))
    for batch in _take([_pipeline(short, num_clean=16, num_inner_steps=2)], 6):
        assert batch.clean_inner.inputs["tokens"].shape[-1] == 24
