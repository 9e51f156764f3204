"""Batches to train on: from row numbers to trees of arrays, for windows of k inner steps.

A training batch at step t is a pure function of (seed, t): the order of an epoch is a permutation
keyed by (seed, epoch) and the augmentation is keyed by (seed, step). So a run that goes on from a
checkpoint needs no iterator state, and the batches do not depend on how many devices or processes
share them.
"""

import collections
import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlc_jax.core import Batch, Labelled
from mlc_jax.data.order import Order, bucket_lengths, fold, uniform
from mlc_jax.data.reading import not_converted, opened, read_examples, tf, with_options
from mlc_jax.data.source import UNKNOWN, Layout, Subset, layout_of
from mlc_jax.errors import InputError

_DEVICE_BUFFER = 2  # Batches placed on the devices ahead of use.
_BYTES_AT_ONCE = 16 * 2**20
_MAX_BLOCKS = 64  # Of s steps, in one element of tf.data.
_NOISY_KEY, _CLEAN_KEY = 1, 2
_AUGMENT_KEY = 2  # Beside those of `order`.


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Endless training batches for windows of k inner steps, one window every s.

    Attributes:
      noisy: examples with labels `given`.
      clean: examples with trusted labels, `truth`. The source may be another one.
      noisy_batch_size: noisy examples per inner step, over all devices.
      clean_batch_size: clean examples per inner step, over all devices.
      split_clean: whether half of each clean batch goes to the inner loss. The halves are redrawn
        every epoch. Without it the whole batch is the outer half.
      num_inner_steps: k, inner steps of a window.
      augment: whether sources change their examples at random, if they know how to.
      seed: of the order and of the augmentation.
      num_replayed: k - s, steps of a window that the one before has, too.
      length_buckets: lengths that batches are padded to, at most, where the source knows its
        examples' lengths; 1 pads all alike. Windows that overlap are padded alike anyway: what is
        replayed must draw the same dropout.
    """

    noisy: Subset
    clean: Subset
    noisy_batch_size: int
    clean_batch_size: int
    split_clean: bool
    num_inner_steps: int
    augment: bool
    seed: int
    num_replayed: int = 0
    length_buckets: int = 1

    @property
    def examples_per_step(self) -> int:
        """Noisy and clean ones, over all devices."""
        return self.noisy_batch_size + self.clean_batch_size

    @property
    def stride(self) -> int:
        """s, inner steps that a window is further on than the one before."""
        return self.num_inner_steps - self.num_replayed

    @property
    def steps_per_epoch(self) -> int:
        """Inner steps per epoch; what does not fill a batch waits for the next epoch's order."""
        return len(self.noisy) // self.noisy_batch_size

    def check(self) -> None:
        """Raises InputError for a batch larger than its set, or inputs that do not go together."""
        for field, size, subset in (
            ("noisy_batch_size", self.noisy_batch_size, self.noisy),
            ("clean_batch_size", self.clean_batch_size, self.clean),
        ):
            if size > len(subset):
                raise InputError(
                    f"config.{field}: got {size}, expected at most {len(subset)}, "
                    "the number of such examples"
                )
        noisy, clean = layout_of(self.noisy.source), layout_of(self.clean.source)
        if noisy != clean:
            raise InputError(f"clean inputs: got {clean}, expected those of the noisy set, {noisy}")

    def batches(
        self,
        start_window: int,
        *,
        num_devices: int = 1,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[Batch]:
        """Yields this process' NumPy batches from window `start_window` on.

        Window i ends with step (i + 1) * s; for steps before the first, its first s steps' batches
        stand in. Arrays are `[num_devices, k, B / (num_devices * process_count), ...]`: process p
        holds the examples `[p * B / process_count, (p + 1) * B / process_count)` of the global
        batch, and reads only those. `Labelled.rows` are positions in the subset. Inputs of a source
        with `lengths` are cut off where the longest example of the window ends, or a little after.

        Raises:
          InputError: while reading; files or objects that cannot be read.
        """
        return batches_of(
            [self],
            start_window,
            num_devices=num_devices,
            process_index=process_index,
            process_count=process_count,
        )

    def _part(self, name: str) -> tuple[Subset, np.ndarray, int, int]:
        """Examples, labels, batch size and key of the `noisy` or the `clean` side."""
        if name == "noisy":
            return self.noisy, self.noisy.given, self.noisy_batch_size, _NOISY_KEY
        return self.clean, self.clean.truth, self.clean_batch_size, _CLEAN_KEY


def batches_of(
    pipelines: Sequence[Pipeline],
    start_window: int,
    *,
    num_devices: int = 1,
    process_index: int = 0,
    process_count: int = 1,
    devices: Sequence[jax.Device] | None = None,
) -> Iterator[Batch]:
    """The batches of runs that are trained as one program, each those of its own pipeline.

    Args:
      pipelines: differ in rows, labels and seeds, but neither in sources nor in sizes. With more
        than one, arrays have an axis of runs after that of the devices.
      start_window, num_devices, process_index, process_count: see `Pipeline.batches`.
      devices: that the batches are placed on, see `to_devices`; None leaves them NumPy arrays.
    """
    num_blocks = pipelines[0].num_inner_steps // pipelines[0].stride
    num_old = min(start_window, num_blocks - 1)
    blocks = _blocks_of(
        pipelines, start_window - num_old, num_devices, process_index, process_count
    )
    if devices:
        blocks = to_devices(blocks, devices)
    if num_blocks == 1:
        return blocks
    return _overlapping(blocks, num_blocks, num_old, axis=1 if len(pipelines) == 1 else 2)


def _overlapping(
    blocks: Iterator[Batch], num_blocks: int, num_old: int, *, axis: int
) -> Iterator[Batch]:
    """Windows of the last `num_blocks` blocks each, joined along `axis`, that of the steps.

    The first `num_old` blocks are of windows before the first.
    """
    kept: collections.deque[Batch] = collections.deque(maxlen=num_blocks)
    # On a device, old blocks are where the new one is: they are not sent again.
    on_device = jax.jit(lambda *xs: jnp.concatenate(xs, axis))

    def join(*xs: Any) -> Any:
        return np.concatenate(xs, axis) if isinstance(xs[0], np.ndarray) else on_device(*xs)

    for number, block in enumerate(blocks):
        if not kept:
            kept.extend([block] * num_blocks)
        kept.append(block)
        if number >= num_old:
            yield jax.tree.map(join, *kept)


def _blocks_of(
    pipelines: Sequence[Pipeline],
    start_block: int,
    num_devices: int,
    process_index: int,
    process_count: int,
) -> Iterator[Batch]:
    """The batches of s steps each, none twice; arguments as for `batches_of`."""
    first = pipelines[0]
    sources = {"noisy": first.noisy.source, "clean": first.clean.source}
    layouts = {name: layout_of(source) for name, source in sources.items()}
    bytes_per_block = len(pipelines) * first.stride * (
        first.noisy_batch_size * layouts["noisy"].num_bytes
        + first.clean_batch_size * layouts["clean"].num_bytes
    )  # fmt: skip
    # Blocks that are read at once: tf.data's cost per element is many small batches' cost. Where
    # rows are read one by one that is little beside theirs, and the first batch comes sooner.
    at_once = max(1, min(_MAX_BLOCKS, _BYTES_AT_ONCE // max(1, bytes_per_block)))
    if any(source.by_row for source in sources.values()):
        at_once = 1
    start_step = start_block * first.stride
    orders = {name: _order(pipelines, name, layouts[name]) for name in sources}

    def stream(name: str, start: int, stop: int) -> tf.data.Dataset:
        # This process' share of [start, stop) in a global batch.
        share = np.array_split(np.arange(start, stop), process_count)[process_index]
        steps = at_once * first.stride
        order = orders[name][0]
        return _stream(pipelines, name, layouts[name], order, share, start_step, steps)

    size, half = first.clean_batch_size, first.clean_batch_size // 2
    streams = {"noisy": stream("noisy", 0, first.noisy_batch_size)}
    if first.split_clean:
        # Two views of one shuffled order: the halves of a batch never share an example.
        streams["clean_inner"] = stream("clean", 0, half)
        streams["clean_outer"] = stream("clean", half, size)
    else:
        streams["clean_outer"] = stream("clean", 0, size)
    dataset = with_options(tf.data.Dataset.zip(streams))
    paired = any((pipeline.clean.given != UNKNOWN).any() for pipeline in pipelines)
    with contextlib.closing(opened(dataset, *sources.values())) as elements:
        for element in elements:
            parts = {name: _dealt(x, first.stride, num_devices) for name, x in element.items()}
            for block in range(at_once):
                made = {}
                for name, (buckets, arrays) in parts.items():
                    side = name.partition("_")[0]
                    *leaves, labels, rows, given = [array[block] for array in arrays]
                    lengths = orders[side][1]
                    if lengths is not None:
                        leaves = _cut(leaves, layouts[side], lengths[buckets[block]])
                    inputs = jax.tree.unflatten(layouts[side].structure, leaves)
                    pairs = given if paired and side == "clean" else None
                    made[name] = Labelled(inputs, labels, rows, pairs)
                yield Batch(**(dict.fromkeys(Batch._fields) | made))


def _order(
    pipelines: Sequence[Pipeline], name: str, layout: Layout
) -> tuple[Order, np.ndarray | None]:
    """Which examples are in which batch, and what the buckets are padded to, if there are any."""
    first = pipelines[0]
    subsets, _, (batch_size, *_), (key, *_) = zip(*(x._part(name) for x in pipelines), strict=True)
    source, size = subsets[0].source, len(subsets[0])
    order = Order([x.seed for x in pipelines], key, size, batch_size, first.stride)
    lengths = getattr(source, "lengths", None)
    if lengths is None or first.length_buckets == 1 or first.num_replayed:
        return order, None
    # As many as an epoch has windows: in a set of fewer, all lengths meet in every window.
    num = min(first.length_buckets, max(1, order.num_batches // order.window))
    padded = bucket_lengths(lengths, num, most=layout.shapes[0][0])
    buckets = np.stack([np.searchsorted(padded, lengths[subset.rows]) for subset in subsets])
    return dataclasses.replace(order, buckets=buckets if len(padded) > 1 else None), padded


def _dealt(
    element: tuple[np.ndarray, ...], stride: int, num_devices: int
) -> tuple[np.ndarray, list[np.ndarray]]:
    """The bucket of each block, `[blocks]`, and the arrays, see `_deal`."""
    buckets, *arrays = element
    return buckets.reshape(-1, stride).max(axis=1), [_deal(x, stride, num_devices) for x in arrays]


def _cut(leaves: list[np.ndarray], layout: Layout, length: int) -> list[np.ndarray]:
    """Leaves `[..., T, ...]` without what lies after `length` in the first axis of the examples."""
    axes = [x.ndim - len(shape) for x, shape in zip(leaves, layout.shapes, strict=True)]
    cut = [
        x[(slice(None),) * axis + (slice(length),)] for x, axis in zip(leaves, axes, strict=True)
    ]
    return [np.ascontiguousarray(x) for x in cut]


def _deal(array: np.ndarray, stride: int, num_devices: int) -> np.ndarray:
    """`[blocks * s, runs, B, ...]` to `[blocks, num_devices, runs, s, B / num_devices, ...]`.

    Without the axis of runs if there is one only.
    """
    num_runs, size, *rest = array.shape[1:]
    shape = (-1, stride, num_runs, num_devices, size // num_devices, *rest)
    dealt = np.ascontiguousarray(np.moveaxis(array.reshape(shape), (3, 2), (1, 2)))
    return dealt if num_runs > 1 else dealt[:, :, 0]


def _stream(
    pipelines: Sequence[Pipeline],
    name: str,
    layout: Layout,
    order: Order,
    share: np.ndarray,
    start_step: int,
    steps_at_once: int,
) -> tf.data.Dataset:
    """`share` of the shuffled batches from `start_step` on, `steps_at_once` at a time.

    Elements are buckets `[steps_at_once]`, see `Order.longest`, and leaves of inputs, labels,
    positions and labels as given, `[steps_at_once, runs, len(share), ...]`.
    """
    subsets, labels_per_run, (batch_size, *_), (key, *_) = zip(
        *(pipeline._part(name) for pipeline in pipelines), strict=True
    )
    source, num_runs, size = subsets[0].source, len(subsets), len(subsets[0])
    if any(subset.source is not source or len(subset) != size for subset in subsets):
        raise ValueError(f"{name}: runs of one program must share one source object and one length")
    first_epoch, skipped = divmod(start_step, order.num_batches)
    augment_seeds = [fold(pipeline.seed, key, _AUGMENT_KEY) for pipeline in pipelines]
    # Runs one after the other: position p of run r is at place r * size + p.
    rows = np.concatenate([subset.rows for subset in subsets])
    labels = tf.constant(np.concatenate(labels_per_run), tf.int32)
    given = tf.constant(np.concatenate([subset.given for subset in subsets]), tf.int32)
    offsets = np.arange(num_runs)[:, None] * size

    @not_converted
    def places_of(epoch: tf.Tensor) -> tf.data.Dataset:
        mine = tf.gather(order.batches(epoch), share, axis=2)
        places = tf.cast(mine, tf.int64) + offsets
        return tf.data.Dataset.from_tensor_slices(tf.reshape(places, [order.num_batches, -1]))

    @not_converted
    def buckets_of(epoch: tf.Tensor) -> tf.data.Dataset:
        return tf.data.Dataset.from_tensor_slices(order.longest(epoch))

    @not_converted
    def draw(step: tf.Tensor) -> tf.Tensor:
        # For whole batches, so that the share of a process does not change the numbers.
        shape = [batch_size, source.num_draws]
        draws = tf.stack([uniform(shape, [seed, step]) for seed in augment_seeds])
        return tf.reshape(tf.gather(draws, share, axis=1), [-1, source.num_draws])

    @not_converted
    def finish(buckets: tf.Tensor, read: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
        places, *leaves = read
        rows_in_subset = tf.cast(places % size, tf.int32)
        flat = (*leaves, tf.gather(labels, places), rows_in_subset, tf.gather(given, places))
        lead = [steps_at_once, num_runs, len(share)]
        return buckets, *(tf.reshape(x, [*lead, *x.shape[1:]]) for x in flat)

    epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
    places = epochs.flat_map(places_of).skip(skipped)
    if order.buckets is None:
        buckets = tf.data.Dataset.from_tensors(tf.zeros([], tf.int32)).repeat()
    else:
        buckets = epochs.flat_map(buckets_of).skip(skipped)
    draws = None
    if pipelines[0].augment and source.num_draws:
        draws = tf.data.Dataset.counter(start_step).map(draw)
    num_read = steps_at_once * num_runs * len(share)
    inputs = read_examples(source, layout, places, rows, num_read, steps_at_once, draws)
    zipped = tf.data.Dataset.zip(buckets.batch(steps_at_once), inputs)
    return zipped.map(finish, num_parallel_calls=tf.data.AUTOTUNE)


def to_devices(batches: Iterator[Batch], devices: Sequence[jax.Device]) -> Iterator[Batch]:
    """Places arrays `[num_devices, ...]` on `devices`, a few batches ahead of their use.

    On CPU there is no other memory to place them in: they pass as they are.
    """
    if devices[0].platform == "cpu":
        yield from batches
        return
    mesh = Mesh(np.asarray(devices), ("batch",))
    sharding = NamedSharding(mesh, PartitionSpec("batch"))
    queue: collections.deque[Batch] = collections.deque()
    for batch in batches:
        queue.append(jax.device_put(batch, sharding))
        if len(queue) > _DEVICE_BUFFER:
            yield queue.popleft()
    yield from queue
