"""Rows of a source in a given order, as NumPy arrays: what training and evaluation read through.

It also says how TensorFlow starts: what needs it at once takes `tf` from here.
"""

import atexit
import contextlib
import math
import os
import weakref
from collections.abc import Generator, Iterator, Sequence
from typing import Any

import jax
import numpy as np

# Before the import: no start-up chatter, and no kernels that round differently on another machine.
# (JAX has set level 1, at which a file that cannot be read gets pages of warnings.)
if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
import tensorflow as tf

from mlc_jax.data.source import Layout, Source, Subset, Tree, input_errors, layout_of

# JAX owns the accelerators; TensorFlow, if it can see any, would take their memory.
tf.config.set_visible_devices([], "GPU")

_PREFETCHED = 2

not_converted = tf.autograph.experimental.do_not_convert  # It takes longer to read than to run.


def read_examples(
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

    @not_converted
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


def with_options(dataset: tf.data.Dataset) -> tf.data.Dataset:
    """In order, and a few elements ahead of their use."""
    options = tf.data.Options()
    options.deterministic = True
    return dataset.with_options(options).prefetch(_PREFETCHED)


# Iterators that are in use.
_OPEN: weakref.WeakSet[Generator] = weakref.WeakSet()


def opened(dataset: tf.data.Dataset, *sources: Source) -> Generator[Any]:
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
        inputs = read_examples(self._source, self._layout, places, rows.reshape(-1), size, 1)
        self._dataset = with_options(inputs)

    def __len__(self) -> int:
        """Number of batches."""
        return len(self._labels)

    def __iter__(self) -> Iterator[tuple[Tree, np.ndarray]]:
        with contextlib.closing(opened(self._dataset, self._source)) as elements:
            for (_, *leaves), labels in zip(elements, self._labels, strict=True):
                inputs = jax.tree.unflatten(self._layout.structure, map(self._deal, leaves))
                yield inputs, labels if self._num_runs > 1 else labels[:, 0]

    def _deal(self, leaf: np.ndarray) -> np.ndarray:
        num_devices, _, size = self._shape
        leaf = leaf.reshape(*self._shape, *leaf.shape[1:])
        if self._num_runs == 1:
            return leaf[:, 0]
        return np.broadcast_to(leaf, (num_devices, self._num_runs, size, *leaf.shape[3:]))
