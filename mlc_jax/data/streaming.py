"""Sources that TensorFlow reads row by row, many rows in parallel.

It also configures TensorFlow, so other modules import `tf` from here. Importing this module takes
seconds; do it inside of functions.
"""

import contextlib
import os
import re
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import numpy as np

# Before the import: no start-up chatter, and no kernels that round differently on another machine.
# (JAX has set level 1, at which a file that cannot be read gets pages of warnings.)
if os.environ.get("TF_CPP_MIN_LOG_LEVEL", "1") == "1":
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
import tensorflow as tf

from mlc_jax.data import trees
from mlc_jax.data.source import Layout, ReadSource
from mlc_jax.data.trees import Tree
from mlc_jax.errors import InputError

# JAX owns the accelerators; TensorFlow, if it can see any, would take their memory.
tf.config.set_visible_devices([], "GPU")

_PREFETCHED = 2
_GRAPH_NAMES = re.compile(r"\{\{.*?\}\} |Error in .*? iterator: \S+ |\s*\[\[.*| \[Op:.*")

# Rows, and the random numbers that change each of them, or None.
Asked = tuple[np.ndarray, np.ndarray | None]


class Streamed:
    """Leaves of examples `[size, ...]` for each requested batch of rows, in order.

    It may be iterated repeatedly.

    Args:
      source: the source.
      layout: see `layout_of`.
      asked: called for each iteration, in another thread; yields (rows `[size]`, draws or None).
      size: rows per batch.
      augmented: whether there are draws.
    """

    def __init__(
        self,
        source: ReadSource,
        layout: Layout,
        asked: Callable[[], Iterable[Asked]],
        size: int,
        *,
        augmented: bool,
    ):
        self._source, self._asked = source, asked
        weak = weakref.ref(self)  # TensorFlow keeps `generate` as long as the process lives.

        def generate() -> Iterator[tuple[np.ndarray, ...]]:
            streamed = weak()
            asked = () if streamed is None else streamed._asked()
            for parts in asked:
                yield tuple(part for part in parts if part is not None)

        @tf.autograph.experimental.do_not_convert  # The conversion takes longer than the tracing.
        def read(row: tf.Tensor, *draws: tf.Tensor) -> tuple[tf.Tensor, ...]:
            leaves = trees.leaves(source.read(row, *draws))
            return tuple(map(tf.ensure_shape, leaves, layout.shapes))

        signature = [tf.TensorSpec([size], tf.int64)]
        if augmented:
            signature.append(tf.TensorSpec([size, source.num_draws], tf.float32))
        rows = tf.data.Dataset.from_generator(generate, output_signature=tuple(signature))
        examples = rows.unbatch().map(read, num_parallel_calls=tf.data.AUTOTUNE)
        batches = examples.batch(size, drop_remainder=True)
        options = tf.data.Options()
        options.deterministic = True
        self._dataset = batches.with_options(options).prefetch(_PREFETCHED)

    def __iter__(self) -> Generator[tuple[np.ndarray, ...]]:
        """Closing waits for TensorFlow's threads and releases them."""
        with _input_errors(self._source):
            yield from self._dataset.as_numpy_iterator()


def layout_of(source: ReadSource) -> Layout:
    """Traces `source.read`, a few ms; reads nothing.

    Raises:
      InputError: the shapes of examples are not static.
    """
    structures = []

    def read(row: Any) -> list[Any]:
        leaves, structure = trees.flatten(source.read(row))
        structures.append(structure)
        return leaves

    row = tf.TensorSpec([], tf.int64)
    leaves = tf.function(read, autograph=False).get_concrete_function(row).structured_outputs
    for leaf in leaves:
        if not leaf.shape.is_fully_defined():
            raise InputError(
                f"{type(source).__name__}.read: got an input of shape {leaf.shape}, expected one "
                "that is known beforehand, the same for all examples (see tf.ensure_shape)"
            )
    dtypes = tuple(np.dtype(leaf.dtype.as_numpy_dtype) for leaf in leaves)
    return Layout(structures[-1], tuple(tuple(leaf.shape) for leaf in leaves), dtypes)


def read_rows(source: ReadSource, rows: np.ndarray) -> Tree:
    """See `source.read_rows`."""
    with _input_errors(source):
        inputs = [source.read(tf.constant(row, tf.int64)) for row in rows]
        return trees.map_leaves(lambda *leaves: np.stack(leaves), *inputs)


@contextlib.contextmanager
def _input_errors(source: ReadSource) -> Iterator[None]:
    """Turns TensorFlow's long message about a failed read into an InputError of one line."""
    try:
        yield
    except tf.errors.OpError as error:
        # TensorFlow wraps the reason in the names of its graph's nodes.
        reason = _GRAPH_NAMES.sub("", error.message).partition("Traceback (most recent")[0]
        reason = " ".join(reason.split())
        name = type(source).__name__
        raise InputError(f"inputs: reading from {name} failed: {reason}") from error
