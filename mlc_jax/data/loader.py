"""Training batches: maps row numbers to trees of arrays, for windows of k inner steps.

The training batch of step t is a pure function of (seed, t): the order of an epoch is a permutation
keyed by (seed, epoch), and augmentation is keyed by (seed, step). So a run that resumes from a
checkpoint needs no iterator state, and batches do not depend on the number of devices or processes.
"""

import collections
import contextlib
import dataclasses
import functools
import itertools
import math
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlc_jax.core import Batch, Labelled
from mlc_jax.data.order import Order, bucket_lengths, fold, uniform
from mlc_jax.data.reading import Request, closed_at_exit, create_reader
from mlc_jax.data.source import UNKNOWN, Layout, Source, Subset, is_gathered, layout_of
from mlc_jax.errors import InputError

_DEVICE_BUFFER = 2  # Batches that are placed on the devices ahead of use.
_BYTES_AT_ONCE = 16 * 2**20  # Blocks are read together up to this size.
_MAX_BLOCKS = 64  # The most blocks of s steps that are read at once.
_NOISY_KEY, _CLEAN_KEY = 1, 2
_AUGMENT_KEY = 2  # The other keys are in `order`.


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Endless training batches for windows of k inner steps, one window every s.

    Attributes:
      noisy: examples with labels `given`.
      clean: examples with trusted labels, `truth`; their source may differ.
      noisy_batch_size: noisy examples per inner step, over all devices.
      clean_batch_size: clean examples per inner step, over all devices.
      split_clean: whether half of each clean batch goes to the inner loss. The halves are redrawn
        every epoch. Otherwise the whole batch goes to the outer loss.
      num_inner_steps: k, inner steps of a window.
      augment: whether sources change their examples at random, if they can.
      seed: determines the order and the augmentation.
      num_replayed: k - s, the steps that a window shares with the one before.
      length_buckets: the most lengths that batches are padded to, if the source knows its examples'
        lengths; 1 pads all alike. Overlapping windows are always padded alike, because a replay
        must draw the same dropout.
      takes_votes: whether batches have the labels of all sources, see `Method.takes_votes`.
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
    takes_votes: bool = False

    @property
    def examples_per_step(self) -> int:
        """Noisy and clean examples per step, over all devices."""
        return self.noisy_batch_size + self.clean_batch_size

    @property
    def stride(self) -> int:
        """s, the inner steps from one window to the next."""
        return self.num_inner_steps - self.num_replayed

    @property
    def steps_per_epoch(self) -> int:
        """Inner steps per epoch; examples that do not fill a batch are left for later epochs."""
        return len(self.noisy) // self.noisy_batch_size

    def check(self) -> None:
        """Raises InputError if a batch is larger than its set, or inputs do not match."""
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

        Window i ends after (i + 1) * s steps. In windows that begin before the run's first step,
        batches of the run's first s steps take the missing places.

        Arrays are `[num_devices, k, B / (num_devices * process_count), ...]`: process p
        holds the examples `[p * B / process_count, (p + 1) * B / process_count)` of the global
        batch, and reads only those. `Labelled.rows` are positions in the subset. Inputs of a source
        with `lengths` are cut off at or a little after the end of the window's longest example.

        Raises:
          InputError: while reading, if files or objects cannot be read.
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
            given = self.noisy.given_to(takes_votes=self.takes_votes)
            return self.noisy, given, self.noisy_batch_size, _NOISY_KEY
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
    """The batches of runs that are trained as one program, each with its own pipeline.

    Args:
      pipelines: may differ in rows, labels and seeds, but not in sources and sizes. With more than
        one, arrays have an axis of runs after that of the devices.
      start_window, num_devices, process_index, process_count: see `Pipeline.batches`.
      devices: batches are placed on these, see `to_devices`; None leaves them NumPy arrays.
    """
    num_blocks = pipelines[0].num_inner_steps // pipelines[0].stride
    num_old = min(start_window, num_blocks - 1)
    blocks: Iterator[Batch] = closed_at_exit(
        _blocks_of(pipelines, start_window - num_old, num_devices, process_index, process_count)
    )
    if devices:
        blocks = to_devices(blocks, devices)
    if num_blocks == 1:
        return blocks
    return _overlapping(blocks, num_blocks, num_old, axis=1 if len(pipelines) == 1 else 2)


def _overlapping(
    blocks: Iterator[Batch], num_blocks: int, num_old: int, *, axis: int
) -> Iterator[Batch]:
    """Windows of the last `num_blocks` blocks each, joined along the axis of steps, `axis`.

    The first `num_old` blocks belong to windows before the first.
    """
    kept: collections.deque[Batch] = collections.deque(maxlen=num_blocks)
    # Old blocks stay on the devices and are not sent again.
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
) -> Generator[Batch]:
    """Batches in blocks of s steps, each block once; arguments as for `batches_of`."""
    first = pipelines[0]
    sides = {name: _Side.of(pipelines, name) for name in ("noisy", "clean")}
    bytes_per_block = first.stride * sum(side.bytes_per_step for side in sides.values())
    # Several blocks are read at once, because many small reads cost more than one. If rows are read
    # one by one, that does not matter, and the first batch comes sooner with fewer blocks.
    at_once = max(1, min(_MAX_BLOCKS, _BYTES_AT_ONCE // max(1, bytes_per_block)))
    if not all(is_gathered(side.source) for side in sides.values()):
        at_once = 1

    def share_of(start: int, stop: int) -> np.ndarray:
        """This process' share of [start, stop) in a global batch."""
        return np.array_split(np.arange(start, stop), process_count)[process_index]

    size, half = first.clean_batch_size, first.clean_batch_size // 2
    parts = {"noisy": {"noisy": share_of(0, first.noisy_batch_size)}}
    if first.split_clean:
        # Two views of one shuffled order: the halves of a batch never share an example.
        parts["clean"] = {"clean_inner": share_of(0, half), "clean_outer": share_of(half, size)}
    else:
        parts["clean"] = {"clean_outer": share_of(0, size)}
    start_step, steps = start_block * first.stride, at_once * first.stride
    with contextlib.ExitStack() as contexts:
        streams = [
            contexts.enter_context(
                contextlib.closing(side.blocks(start_step, steps, parts[name], num_devices))
            )
            for name, side in sides.items()
        ]
        for noisy, clean in zip(*streams, strict=True):
            yield Batch(**(dict.fromkeys(Batch._fields) | noisy | clean))


@dataclasses.dataclass(frozen=True, eq=False)
class _Side:
    """The noisy or the clean examples of runs that are trained as one program.

    Attributes:
      source: of their inputs.
      layout: the layout of an example.
      rows: `[runs, n]`, rows of the source.
      labels, given: `[runs, n]`, or `[runs, n, S]` of noisy ones and of given if batches have the
        labels of all sources; given is None if it is not part of a batch.
      order: the examples of each batch.
      padded: lengths of the order's buckets; None if nothing is cut off.
      augment_seeds: each run's; empty without augmentation.
    """

    source: Source
    layout: Layout
    rows: np.ndarray
    labels: np.ndarray
    given: np.ndarray | None
    order: Order
    padded: np.ndarray | None
    augment_seeds: tuple[int, ...]

    @classmethod
    def of(cls, pipelines: Sequence[Pipeline], name: str) -> "_Side":
        first = pipelines[0]
        subsets, labels, (batch_size, *_), (key, *_) = zip(
            *(pipeline._part(name) for pipeline in pipelines), strict=True
        )
        source, size = subsets[0].source, len(subsets[0])
        if any(subset.source is not source or len(subset) != size for subset in subsets):
            raise ValueError(
                f"{name}: runs of one program must share one source object and one length"
            )
        layout = layout_of(source)
        order = Order([x.seed for x in pipelines], key, size, batch_size, first.stride)
        padded = None
        if first.length_buckets > 1 and not first.num_replayed:
            order, padded = _bucketed(order, subsets, layout, first.length_buckets)
        given = np.stack([x.given_to(takes_votes=first.takes_votes) for x in subsets])
        paired = name == "clean" and bool((given != UNKNOWN).any())
        seeds = [fold(x.seed, key, _AUGMENT_KEY) for x in pipelines]
        return cls(
            source=source,
            layout=layout,
            rows=np.stack([subset.rows for subset in subsets]).astype(np.int64),
            labels=np.stack(labels),
            given=given if paired else None,
            order=order,
            padded=padded,
            augment_seeds=tuple(seeds) if first.augment and source.num_draws else (),
        )

    @property
    def bytes_per_step(self) -> int:
        return len(self.rows) * self.order.batch_size * self.layout.num_bytes

    def blocks(
        self, start_step: int, steps_at_once: int, parts: dict[str, np.ndarray], num_devices: int
    ) -> Generator[dict[str, Labelled]]:
        """Parts of batches by name, in blocks of s steps.

        Args:
          start_step: the first step of the first block.
          steps_at_once: steps that are read at once, a multiple of s.
          parts: places in a batch.
          num_devices: the places are dealt to as many devices.
        """
        share, stride = np.concatenate(list(parts.values())), self.order.window
        ends = np.cumsum([len(places) for places in parts.values()])[:-1]
        lead = (steps_at_once, len(self.rows), len(share))
        reader = create_reader(
            self.source,
            self.layout,
            functools.partial(self._requests, start_step, steps_at_once, share),
            size=math.prod(lead),
            augmented=bool(self.augment_seeds),
        )
        runs = np.arange(len(self.rows))[:, None]
        with contextlib.closing(iter(reader)) as elements:
            for request, leaves in elements:
                positions, buckets = request.about
                arrays = [leaf.reshape(*lead, *leaf.shape[1:]) for leaf in leaves]
                taken = self.labels[runs, positions].astype(np.int32)
                arrays += [taken, positions.astype(np.int32)]
                if self.given is not None:
                    arrays.append(self.given[runs, positions].astype(np.int32))
                split = zip(*(np.split(array, ends, axis=2) for array in arrays), strict=True)
                dealt = [[_deal(x, stride, num_devices) for x in part] for part in split]
                longest = buckets.reshape(-1, stride).max(axis=1)
                for block, bucket in enumerate(longest):
                    pairs = zip(parts, dealt, strict=True)
                    yield {k: self._labelled([x[block] for x in part], bucket) for k, part in pairs}

    def _requests(self, start_step: int, num_steps: int, share: np.ndarray) -> Iterator[Request]:
        """Requests for a `share` of the batches, `num_steps` steps at a time.

        `Request.about` has the positions in the subsets, `[steps, runs, len(share)]`, and the
        buckets `[steps]`, see `Order.longest`.
        """
        runs, steps = np.arange(len(self.rows))[:, None], self._steps(start_step)
        for first in itertools.count(start_step, num_steps):
            batches, buckets = zip(*itertools.islice(steps, num_steps), strict=True)
            positions = np.stack(batches)[:, :, share]
            draws = None
            if self.augment_seeds:
                # Drawn for whole batches, so that the numbers do not depend on the processes.
                keys = itertools.product(range(first, first + num_steps), self.augment_seeds)
                shape = [self.order.batch_size, self.source.num_draws]
                draws = uniform(shape, [(seed, step) for step, seed in keys])
                draws = draws[:, share].reshape(-1, self.source.num_draws)
            rows = self.rows[runs, positions].reshape(-1)
            yield Request(rows, draws, (positions, np.array(buckets)))

    def _steps(self, start_step: int) -> Iterator[tuple[np.ndarray, int]]:
        """Positions `[runs, B]` and bucket of each step."""
        first, skipped = divmod(start_step, self.order.num_batches)
        for epoch in itertools.count(first):
            batches = self.order.batches(epoch)
            longest = self.order.longest(batches)
            yield from zip(batches[skipped:], longest[skipped:], strict=True)
            skipped = 0

    def _labelled(self, arrays: Sequence[np.ndarray], bucket: int) -> Labelled:
        """Examples from arrays: leaves of inputs, labels, positions and given labels, if any."""
        number = len(self.layout.shapes)
        leaves, (labels, rows, *given) = arrays[:number], arrays[number:]
        if self.padded is not None:
            leaves = _cut(leaves, self.layout, self.padded[bucket])
        inputs = self.layout.structure.unflatten(leaves)
        return Labelled(inputs, labels, rows, given[0] if given else None)


def _bucketed(
    order: Order, subsets: Sequence[Subset], layout: Layout, most: int
) -> tuple[Order, np.ndarray | None]:
    """The order with buckets of lengths, and the buckets' padded lengths, if there are any."""
    lengths = getattr(subsets[0].source, "lengths", None)
    if lengths is None:
        return order, None
    # At most as many buckets as an epoch has windows; else every window would have all lengths.
    num = min(most, max(1, order.num_batches // order.window))
    padded = bucket_lengths(lengths, num, most=layout.shapes[0][0])
    buckets = np.stack([np.searchsorted(padded, lengths[subset.rows]) for subset in subsets])
    return dataclasses.replace(order, buckets=buckets if len(padded) > 1 else None), padded


def _cut(leaves: Sequence[np.ndarray], layout: Layout, length: int) -> list[np.ndarray]:
    """Cuts leaves `[..., T, ...]` off after `length` in the first axis of the examples."""
    axes = [x.ndim - len(shape) for x, shape in zip(leaves, layout.shapes, strict=True)]
    cut = [
        x[(slice(None),) * axis + (slice(length),)] for x, axis in zip(leaves, axes, strict=True)
    ]
    return [np.ascontiguousarray(x) for x in cut]


def _deal(array: np.ndarray, stride: int, num_devices: int) -> np.ndarray:
    """`[blocks * s, runs, B, ...]` to `[blocks, num_devices, runs, s, B / num_devices, ...]`.

    With a single run there is no axis of runs.
    """
    num_runs, size, *rest = array.shape[1:]
    shape = (-1, stride, num_runs, num_devices, size // num_devices, *rest)
    dealt = np.ascontiguousarray(np.moveaxis(array.reshape(shape), (3, 2), (1, 2)))
    return dealt if num_runs > 1 else dealt[:, :, 0]


def to_devices(batches: Iterator[Batch], devices: Sequence[jax.Device]) -> Iterator[Batch]:
    """Places arrays `[num_devices, ...]` on `devices`, a few batches ahead of their use.

    On CPU they are not copied.
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
