"""Reads rows of a source in a given order, as NumPy arrays, for training and evaluation."""

import atexit
import collections
import contextlib
import math
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np

from mlc_jax.data import trees
from mlc_jax.data.source import GatheredSource, Layout, Source, Subset, is_gathered, layout_of
from mlc_jax.data.trees import Tree

_AHEAD = 2  # Batches that are gathered ahead of use.


# The outermost generators in use.
_OPEN: weakref.WeakSet[Generator] = weakref.WeakSet()


def closed_at_exit(generator: Generator) -> Generator:
    """Returns the generator, and closes it when Python exits.

    A thread of TensorFlow that calls Python during Python's exit would never return.
    """
    _OPEN.add(generator)
    return generator


@atexit.register
def _close_all() -> None:
    for generator in list(_OPEN):
        with contextlib.suppress(ValueError):  # Another thread is running it.
            generator.close()


class Request(NamedTuple):
    """Rows that are read at once.

    Attributes:
      rows: `[n]`, row numbers in the source.
      draws: `[n, num_draws]`, the random numbers that change each example, or None.
      about: anything that the caller wants to keep with the request.
    """

    rows: np.ndarray
    draws: np.ndarray | None = None
    about: Any = None


class Reader(Protocol):
    """Requests in their order, each with the leaves `[n, ...]` that were read.

    It may be iterated again. Iterating raises InputError if files or objects cannot be read.
    Closing the generator waits for the reading threads.
    """

    def __iter__(self) -> Generator[tuple[Request, Sequence[np.ndarray]]]: ...


def create_reader(
    source: Source,
    layout: Layout,
    requests: Callable[[], Iterator[Request]],
    size: int,
    *,
    augmented: bool = False,
) -> Reader:
    """Reads a few requests ahead of their use.

    Args:
      source: the source.
      layout: the layout of its examples.
      requests: returns the same requests each time.
      size: n, rows per request.
      augmented: whether requests have draws.
    """
    if is_gathered(source):
        return _Gathering(source, requests)
    return _Streaming(source, layout, requests, size, augmented=augmented)


class _Gathering:
    """Reads a source that NumPy gathers, in another thread."""

    def __init__(self, source: GatheredSource, requests: Callable[[], Iterator[Request]]):
        self._source, self._requests = source, requests

    def __iter__(self) -> Generator[tuple[Request, Sequence[np.ndarray]]]:
        pending: collections.deque[Any] = collections.deque()
        thread = ThreadPoolExecutor(1)
        try:
            for request in self._requests():
                gathered = thread.submit(self._source.gather, request.rows, request.draws)
                pending.append((request, gathered))
                if len(pending) > _AHEAD:
                    request, gathered = pending.popleft()
                    yield request, trees.leaves(gathered.result())
            for request, gathered in pending:
                yield request, trees.leaves(gathered.result())
        finally:
            thread.shutdown(cancel_futures=True)


class _Streaming:
    """Reads a source by TensorFlow."""

    def __init__(
        self,
        source: Any,
        layout: Layout,
        requests: Callable[[], Iterator[Request]],
        size: int,
        *,
        augmented: bool,
    ):
        from mlc_jax.data.streaming import Streamed  # Imports TensorFlow.

        self._requests = requests
        asked = lambda: (request[:2] for request in requests())  # noqa: E731
        self._streamed = Streamed(source, layout, asked, size, augmented=augmented)

    def __iter__(self) -> Generator[tuple[Request, Sequence[np.ndarray]]]:
        with contextlib.closing(iter(self._streamed)) as elements:
            yield from zip(self._requests(), elements, strict=True)


class EvaluationReader:
    """Examples of a set in their order, each once; may be iterated repeatedly.

    Iterating yields inputs, a tree of NumPy arrays `[num_devices, b, ...]`, and int32 labels
    `[num_devices, b]`, of this process' share of each batch; with several runs `[num_devices, runs,
    b, ...]`. Labels of several sources are `[..., b, S]`. The last batch is padded with the first
    examples, so that all have one shape. Reading raises InputError, as `Pipeline.batches`.

    Args:
      subsets: one for each run; all have one source and one length.
      labels: `[n]` or `[n, S]` for each run.
      batch_size: over all devices of all processes, a multiple of their number.
      num_devices: devices of this process.
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
        source, size, self._num_runs = subsets[0].source, len(subsets[0]), len(subsets)
        if any(x.source is not source or len(x) != size for x in subsets):
            raise ValueError("runs of one program must share one source object and one length")
        num_batches = -(-size // batch_size)
        order = np.arange(num_batches * batch_size) % max(1, size)
        share = batch_size // (process_count * num_devices)
        mine = order.reshape(-1, process_count, num_devices, share)[:, process_index]
        # Runs often share a test set, which is then read once.
        shared = all(np.array_equal(x.rows, subsets[0].rows) for x in subsets)
        rows = np.stack([x.rows[mine] for x in (subsets[:1] if shared else subsets)], axis=2)
        self._labels = np.stack([x[mine] for x in labels], axis=2)
        self._shape = rows.shape[1:]
        self._layout = layout_of(source)
        size = math.prod(self._shape)
        batches = rows.astype(np.int64).reshape(-1, size)
        self._reader = create_reader(source, self._layout, lambda: map(Request, batches), size)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._labels)

    def __iter__(self) -> Generator[tuple[Tree, np.ndarray]]:
        return closed_at_exit(self._batches())

    def _batches(self) -> Generator[tuple[Tree, np.ndarray]]:
        with contextlib.closing(iter(self._reader)) as elements:
            for (_, leaves), said in zip(elements, self._labels, strict=True):
                inputs = self._layout.structure.unflatten(list(map(self._deal, leaves)))
                labels = said.astype(np.int32)
                yield inputs, labels if self._num_runs > 1 else labels[:, 0]

    def _deal(self, leaf: np.ndarray) -> np.ndarray:
        num_devices, _, size = self._shape
        leaf = leaf.reshape(*self._shape, *leaf.shape[1:])
        if self._num_runs == 1:
            return leaf[:, 0]
        return np.broadcast_to(leaf, (num_devices, self._num_runs, size, *leaf.shape[3:]))
