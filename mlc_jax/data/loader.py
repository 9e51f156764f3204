"""The only reader: from row numbers to trees of arrays, for training and for evaluation.

A training batch at step t is a pure function of (seed, t): the order of an epoch is a permutation
keyed by (seed, epoch) and the augmentation is keyed by (seed, step). So a run that goes on from a
checkpoint needs no iterator state, and the batches do not depend on how many devices or processes
share them.
"""

import atexit
import collections
import contextlib
import dataclasses
import math
import os
import weakref
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Before the import: no start-up chatter, and no kernels that round differently on another machine.
# (JAX has set level 1, at which a file that cannot be read gets pages of warnings.)
if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
import tensorflow as tf
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlc_jax.core import Batch, Labelled
from mlc_jax.data.order import Order, bucket_lengths, fold, uniform
from mlc_jax.data.source import UNKNOWN, Layout, Source, Subset, Tree, input_errors, layout_of
from mlc_jax.data.source import augment_images as augment_images  # To be found here, too.
from mlc_jax.data.source import read_rows as read_rows
from mlc_jax.errors import InputError

# JAX owns the accelerators; TensorFlow, if it can see any, would take their memory.
tf.config.set_visible_devices([], "GPU")

_DEVICE_BUFFER = 2  # Batches placed on the devices ahead of use.
_BYTES_AT_ONCE = 16 * 2**20
_MAX_BLOCKS = 64  # Of s steps, in one element of tf.data.
_PREFETCHED = 2
_NOISY_KEY, _CLEAN_KEY = 1, 2
_AUGMENT_KEY = 2  # Beside those of `order`.

_not_converted = tf.autograph.experimental.do_not_convert  # It takes longer to read than to run.


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
    dataset = _with_options(tf.data.Dataset.zip(streams))
    paired = any((pipeline.clean.given != UNKNOWN).any() for pipeline in pipelines)
    with contextlib.closing(_elements(dataset, *sources.values())) as elements:
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

    @_not_converted
    def places_of(epoch: tf.Tensor) -> tf.data.Dataset:
        mine = tf.gather(order.batches(epoch), share, axis=2)
        places = tf.cast(mine, tf.int64) + offsets
        return tf.data.Dataset.from_tensor_slices(tf.reshape(places, [order.num_batches, -1]))

    @_not_converted
    def buckets_of(epoch: tf.Tensor) -> tf.data.Dataset:
        zeros = tf.zeros([order.num_batches], tf.int32)
        longest = zeros if order.buckets is None else order.longest(epoch)
        return tf.data.Dataset.from_tensor_slices(longest)

    @_not_converted
    def draw(step: tf.Tensor) -> tf.Tensor:
        # For whole batches, so that the share of a process does not change the numbers.
        shape = [batch_size, source.num_draws]
        draws = tf.stack([uniform(shape, [seed, step]) for seed in augment_seeds])
        return tf.reshape(tf.gather(draws, share, axis=1), [-1, source.num_draws])

    @_not_converted
    def finish(buckets: tf.Tensor, read: tuple[tf.Tensor, ...]) -> tuple[tf.Tensor, ...]:
        places, *leaves = read
        rows_in_subset = tf.cast(places % size, tf.int32)
        flat = (*leaves, tf.gather(labels, places), rows_in_subset, tf.gather(given, places))
        lead = [steps_at_once, num_runs, len(share)]
        return buckets, *(tf.reshape(x, [*lead, *x.shape[1:]]) for x in flat)

    epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
    places, buckets = (epochs.flat_map(x).skip(skipped) for x in (places_of, buckets_of))
    draws = None
    if pipelines[0].augment and source.num_draws:
        draws = tf.data.Dataset.counter(start_step).map(draw)
    num_read = steps_at_once * num_runs * len(share)
    inputs = _read(source, layout, places, rows, num_read, steps_at_once, draws)
    zipped = tf.data.Dataset.zip(buckets.batch(steps_at_once), inputs)
    return zipped.map(finish, num_parallel_calls=tf.data.AUTOTUNE)


class EvaluationReader:
    """Examples of a set in their order, each once; may be iterated again and again.

    Iterating yields inputs, a tree of NumPy arrays `[num_devices, b, ...]`, and int32 labels
    `[num_devices, b]`, of this process' share of each batch; with several runs `[num_devices, runs,
    b, ...]`. The last batch is filled up from the start of the set, so that all have one shape.
    Reading raises InputError, as `Pipeline.batches`.

    Args:
      subsets: of each run; one source, one length.
      labels: `[n]` of each run.
      batch_size: over all devices of all processes, a multiple of their number.
      num_devices: of this process.
      process_index, process_count: which share of each batch to read.
    """

    def __init__(
        self,
        subsets: Sequence[Subset],
        labels: Sequence[np.ndarray],
        batch_size: int,
        *,
        num_devices: int = 1,
        process_index: int = 0,
        process_count: int = 1,
    ):
        self._source, size, self._num_runs = subsets[0].source, len(subsets[0]), len(subsets)
        if any(x.source is not self._source or len(x) != size for x in subsets):
            raise ValueError("runs of one program must share one source object and one length")
        num_batches = -(-size // batch_size)
        order = np.arange(num_batches * batch_size) % max(1, size)
        share = batch_size // (process_count * num_devices)
        mine = order.reshape(-1, process_count, num_devices, share)[:, process_index]
        # Runs often have one test set: it is read once for all of them.
        shared = all(np.array_equal(x.rows, subsets[0].rows) for x in subsets)
        rows = np.stack([x.rows[mine] for x in (subsets[:1] if shared else subsets)], axis=2)
        self._labels = np.stack([x[mine] for x in labels], axis=2).astype(np.int32)
        self._shape = rows.shape[1:]
        self._layout, size = layout_of(self._source), math.prod(self._shape)
        places = tf.data.Dataset.from_tensor_slices(np.arange(rows.size).reshape(-1, size))
        inputs = _read(self._source, self._layout, places, rows.reshape(-1), size, 1)
        self._dataset = _with_options(inputs)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._labels)

    def __iter__(self) -> Iterator[tuple[Tree, np.ndarray]]:
        with contextlib.closing(_elements(self._dataset, self._source)) as elements:
            for (_, *leaves), labels in zip(elements, self._labels, strict=True):
                inputs = jax.tree.unflatten(self._layout.structure, map(self._deal, leaves))
                yield inputs, labels if self._num_runs > 1 else labels[:, 0]

    def _deal(self, leaf: np.ndarray) -> np.ndarray:
        num_devices, _, size = self._shape
        leaf = leaf.reshape(*self._shape, *leaf.shape[1:])
        if self._num_runs == 1:
            return leaf[:, 0]
        return np.broadcast_to(leaf, (num_devices, self._num_runs, size, *leaf.shape[3:]))


def _read(
    source: Source,
    layout: Layout,
    places: tf.data.Dataset,
    rows: np.ndarray,
    size: int,
    num: int,
    draws: tf.data.Dataset | None = None,
) -> tf.data.Dataset:
    """The examples of `num` elements of `places` at once, which are `size` examples.

    Elements of `places` are vectors of int64, indices of `rows`, which are row numbers in the
    source; those of `draws` what each of their examples is changed by. Elements of the result are
    tuples: places `[size]`, and leaves of inputs `[size, ...]`.
    """
    table = tf.constant(rows, tf.int64)
    lead = [] if source.by_row else [size]

    @_not_converted
    def read(places: tf.Tensor, *draws: tf.Tensor) -> tuple[tf.Tensor, ...]:
        places = tf.reshape(places, lead)
        drawn = [tf.reshape(x, [*lead, source.num_draws]) for x in draws]
        leaves = jax.tree.leaves(source.read(tf.gather(table, places), *drawn))
        shaped = zip(leaves, layout.shapes, strict=True)
        return places, *(tf.ensure_shape(leaf, [*lead, *shape]) for leaf, shape in shaped)

    elements = places if draws is None else tf.data.Dataset.zip(places, draws)
    if source.by_row:
        examples = elements.unbatch().map(read, num_parallel_calls=tf.data.AUTOTUNE)
        return examples.batch(size, drop_remainder=True)
    blocks = elements.batch(num, drop_remainder=True)
    return blocks.map(read, num_parallel_calls=tf.data.AUTOTUNE)


def _with_options(dataset: tf.data.Dataset) -> tf.data.Dataset:
    options = tf.data.Options()
    options.deterministic = True
    return dataset.with_options(options).prefetch(_PREFETCHED)


# Iterators that are in use.
_OPEN: weakref.WeakSet[Generator] = weakref.WeakSet()


def _elements(dataset: tf.data.Dataset, *sources: Source) -> Generator[Any]:
    """Elements as NumPy arrays; closing waits for TensorFlow's threads and releases them."""

    def generate() -> Generator[Any]:
        with input_errors(*sources):
            yield from dataset.as_numpy_iterator()

    elements = generate()
    _OPEN.add(elements)
    return elements


@atexit.register
def _close_all() -> None:
    """A thread of TensorFlow that calls Python while Python goes down would never return."""
    for elements in list(_OPEN):
        with contextlib.suppress(ValueError):  # Another thread is inside of it.
            elements.close()


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
