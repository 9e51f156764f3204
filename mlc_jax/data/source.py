"""What the rest of the project knows of data: inputs by row number, and the labels beside them.

A run never copies examples: its noisy, clean, validation and test parts are row numbers into
sources. A new kind of data (files, texts, a database) is one class with the face of `Source`.
"""

import contextlib
import dataclasses
import functools
import hashlib
import math
import re
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import jax
import numpy as np

from mlc_jax.errors import InputError

UNKNOWN = -1  # A label that nobody knows.
_HASHED_BYTES = 64 * 2**20  # Of an array; of a larger one every n-th row is hashed.
_PAD = 4  # Pixels of reflected border that a random crop moves within, as in the published code.
_GRAPH_NAMES = re.compile(r"\{\{.*?\}\} |Error in .*? iterator: \S+ |\s*\[\[.*| \[Op:.*")

_one_at_a_time = threading.Lock()  # Objects of one process may share a file.

Tree = Any  # A pytree of arrays with one leading axis of examples.


class Source(Protocol):
    """Inputs by row number.

    Attributes:
      by_row: whether `read` takes one row at a time. Files do: tf.data then reads and decodes many
        rows in parallel. Memory does not: it is gathered in blocks of batches, which costs least.
      num_draws: how many uniform numbers change an example at random; 0 for no augmentation.
    A source whose examples are padded may also have `lengths`, `[N]` int32: what lies after an
    example's length, in the first axis of each of its arrays, changes nothing and may be cut off.
    """

    by_row: bool
    num_draws: int

    def __len__(self) -> int: ...

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """Names of examples for a reader, text `[n]`, of rows `[n]`."""
        ...

    def fingerprint(self) -> str:
        """A short text that differs for other data; a checkpoint remembers it."""
        ...

    def read(self, rows: Any, draws: Any = None) -> Tree:
        """Inputs of rows, inside tf.data: TensorFlow tensors in, a tree of tensors out; no state.

        It is traced, without AutoGraph: `tf.cond`, not `if`. An error it raises should name the
        file.

        Args:
          rows: int64 `[n]`; leaves are `[n, ...]` then. A scalar, and leaves `[...]`, if `by_row`.
            All shapes but n are static.
          draws: float32 `[n, num_draws]`, or `[num_draws]` if `by_row`, uniform in [0, 1), which
            each example is changed by; None leaves them as they are. Never given if `num_draws`
            is 0.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """Rows of a source and what is known of their labels; row by row, a checked row has both.

    Attributes:
      source: of the inputs.
      rows: `[n]` int64, row numbers in `source`.
      given: `[n]` int32, the labels as given, or UNKNOWN; of several, the vote of most.
      truth: `[n]` int32, the true labels, or UNKNOWN.
      votes: `[n, S]` int16, what each of S sources said, or UNKNOWN; None if there is one, `given`.
    """

    source: Source
    rows: np.ndarray
    given: np.ndarray
    truth: np.ndarray
    votes: np.ndarray | None = None

    @classmethod
    def whole(
        cls, source: Source, *, given: np.ndarray | None = None, truth: np.ndarray | None = None
    ) -> "Subset":
        """All rows of a source; labels that are None are unknown."""
        size = len(source)
        unknown = np.full(size, UNKNOWN, np.int32)
        labels = (unknown if x is None else x for x in (given, truth))
        return cls(source, np.arange(size), *labels)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def ids(self) -> np.ndarray:
        """Names of the examples, `[n]`."""
        return self.source.ids(self.rows)

    @property
    def has_truth(self) -> bool:
        """Whether the true label of every row is known."""
        return len(self) > 0 and bool((self.truth != UNKNOWN).all())

    @property
    def all_votes(self) -> np.ndarray:
        """`[n, S]`; S is 1 where there is one source."""
        return self.given[:, None] if self.votes is None else self.votes

    def take(self, positions: np.ndarray | slice) -> "Subset":
        """The examples at positions of this subset."""
        votes = None if self.votes is None else self.votes[positions]
        return Subset(
            self.source, self.rows[positions], self.given[positions], self.truth[positions], votes
        )

    def fingerprint(self) -> str:
        """Of inputs, choice of rows and labels."""
        digest = hashlib.blake2b(self.source.fingerprint().encode(), digest_size=8)
        for array in (self.rows, self.given, self.truth, self.votes):
            if array is not None:
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


class ArraySource:
    """Arrays in memory. TensorFlow holds a copy of them once they are read.

    Args:
      inputs: an array `[N, ...]`, or a pytree of them.
      ids: text `[N]`; None numbers the rows.
      num_draws: see `Source`.
      augment: (inputs `[B, ...]`, draws `[B, num_draws]`) -> inputs, of TensorFlow tensors.
    """

    by_row = False

    def __init__(
        self,
        inputs: Tree,
        ids: Sequence[str] | np.ndarray | None = None,
        *,
        num_draws: int = 0,
        augment: Callable[[Tree, Any], Tree] | None = None,
    ):
        self.inputs = jax.tree.map(np.asarray, inputs)
        self.num_draws = num_draws
        self._augment = augment
        self._ids = None if ids is None else np.asarray(ids)

    def __len__(self) -> int:
        return num_examples(self.inputs)

    def ids(self, rows: np.ndarray) -> np.ndarray:
        return rows.astype(str) if self._ids is None else self._ids[rows]

    def fingerprint(self) -> str:
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        return hash_arrays(self.inputs)

    @functools.cached_property
    def _constants(self) -> Tree:
        import tensorflow as tf

        with tf.init_scope():  # Kept: not part of the graph that happens to ask first.
            return jax.tree.map(tf.constant, self.inputs)

    def read(self, rows: Any, draws: Any = None) -> Tree:
        import tensorflow as tf

        inputs = jax.tree.map(lambda x: tf.gather(x, rows), self._constants)
        if draws is None or self._augment is None:
            return inputs
        return self._augment(inputs, draws)


class IndexedSource:
    """Anything with `x[rows]` and `len`: memory maps, HDF5 datasets, a user's own class.

    `x[rows]` is given sorted, unique rows in a NumPy array (HDF5 wants that), and what it returns,
    an array or a pytree of arrays, is put in order afterwards. It is called from other threads than
    the one that made it, but never twice at a time, so it need not be safe against itself.

    Args:
      inputs: that object.
      ids: text `[N]`; None numbers the rows.

    Attributes:
      inputs: that object.
      failure: why reading failed last, if it ever did; `input_errors` raises it.

    Raises:
      InputError: the first row cannot be read, or is no array of numbers.
    """

    by_row = False
    num_draws = 0

    def __init__(self, inputs: Any, ids: Sequence[str] | np.ndarray | None = None):
        self.inputs = inputs
        self._ids = None if ids is None else np.asarray(ids)
        self.failure: InputError | None = None
        self._layout = _layout_of_arrays(self._take(np.zeros(1, np.int64)))

    def __len__(self) -> int:
        return len(self.inputs)

    def ids(self, rows: np.ndarray) -> np.ndarray:
        return rows.astype(str) if self._ids is None else self._ids[rows]

    def fingerprint(self) -> str:
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
        rows = np.unique(np.linspace(0, len(self) - 1, min(len(self), 64)).astype(np.int64))
        return f"{len(self)} {hash_arrays(self.gather(rows))}"

    def _take(self, rows: np.ndarray) -> Tree:
        """Inputs of sorted, unique rows."""
        try:
            with _one_at_a_time:
                inputs = jax.tree.map(np.asarray, self.inputs[rows])
        except Exception as error:
            text = "".join(traceback.format_exception_only(error))
            raise self._failed(f"raised {' '.join(text.split())}", error) from error
        leaves = jax.tree.leaves(inputs)
        if not leaves or any(x.dtype.kind in "OSUMm" or x.shape[:1] != rows.shape for x in leaves):
            got = jax.tree.map(lambda x: f"{x.dtype} {list(x.shape)}", inputs)
            text = f"returned {got}, expected an array of numbers, or a tree of them, for "
            raise self._failed(f"{text}{len(rows)} examples".replace("'", ""))
        return inputs

    def gather(self, rows: np.ndarray) -> Tree:
        """Inputs of rows in any order."""
        unique, places = np.unique(rows, return_inverse=True)
        inputs, expected = self._take(unique), self._layout
        got = _layout_of_arrays(inputs)
        same = (got.structure, got.shapes) == (expected.structure, expected.shapes)
        leaves = list(zip(jax.tree.leaves(inputs), expected.dtypes, strict=same))
        if not same or not all(np.can_cast(x.dtype, dtype, "same_kind") for x, dtype in leaves):
            raise self._failed(f"returned examples of {got}, expected {expected}, as the first is")
        taken = [x.astype(dtype, copy=False)[places] for x, dtype in leaves]
        return jax.tree.unflatten(expected.structure, taken)

    def _failed(self, problem: str, cause: Exception | None = None) -> InputError:
        failure = InputError(f"inputs: {type(self.inputs).__name__}[rows] {problem}")
        failure.__cause__ = cause
        # Kept, since on its way through TensorFlow only the text of an error survives.
        self.failure = failure
        return failure

    def read(self, rows: Any, draws: Any = None) -> Tree:
        import tensorflow as tf

        del draws
        if tf.executing_eagerly():
            return jax.tree.map(tf.constant, self.gather(rows.numpy()))
        weak = weakref.ref(self)  # TensorFlow keeps `gather` as long as the process lives.

        def gather(rows: np.ndarray) -> list[np.ndarray]:
            source = weak()
            assert source is not None
            return jax.tree.leaves(source.gather(rows))

        leaves = tf.numpy_function(gather, [rows], self._layout.dtypes)
        for leaf, shape in zip(leaves, self._layout.shapes, strict=True):
            leaf.set_shape([rows.shape[0], *shape])
        return jax.tree.unflatten(self._layout.structure, leaves)


@dataclasses.dataclass(frozen=True)
class Layout:
    """What one example of a source is: its tree, and shapes and types of the leaves."""

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]

    @property
    def num_bytes(self) -> int:
        return sum(math.prod(x) * y.itemsize for x, y in zip(self.shapes, self.dtypes, strict=True))

    def __str__(self) -> str:
        leaves = [f"{y} {list(x)}" for x, y in zip(self.shapes, self.dtypes, strict=True)]
        return str(jax.tree.unflatten(self.structure, leaves)).replace("'", "")


def layout_of(source: Source) -> Layout:
    """Traces `source.read`, a few ms; reads nothing.

    Raises:
      InputError: shapes of examples are not known beforehand.
    """
    import tensorflow as tf

    structures = []

    def read(rows: Any) -> list[Any]:
        leaves, structure = jax.tree.flatten(source.read(rows))
        structures.append(structure)
        return leaves

    rows = tf.TensorSpec([] if source.by_row else [None], tf.int64)
    leaves = tf.function(read, autograph=False).get_concrete_function(rows).structured_outputs
    shapes = [x.shape if source.by_row else x.shape[1:] for x in leaves]
    for shape in shapes:
        if not shape.is_fully_defined():
            raise InputError(
                f"{type(source).__name__}.read: got an input of shape {shape}, expected one that "
                "is known beforehand, the same for all examples (see tf.ensure_shape)"
            )
    dtypes = tuple(np.dtype(x.dtype.as_numpy_dtype) for x in leaves)
    return Layout(structures[-1], tuple(tuple(shape) for shape in shapes), dtypes)


def read_rows(source: Source, rows: np.ndarray) -> Tree:
    """Inputs of a few rows `[n]`, n at least 1, at once: a tree of NumPy arrays `[n, ...]`.

    Raises:
      InputError: files or objects that cannot be read.
    """
    import tensorflow as tf

    with input_errors(source):
        if not source.by_row:
            return jax.tree.map(np.asarray, source.read(tf.constant(rows, tf.int64)))
        trees = [source.read(tf.constant(row, tf.int64)) for row in rows]
        return jax.tree.map(lambda *leaves: np.stack(leaves), *trees)


@contextlib.contextmanager
def input_errors(*sources: Source) -> Iterator[None]:
    """Turns what TensorFlow says of a read that failed, a page, into an InputError of one line."""
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        for source in sources:
            failure = getattr(source, "failure", None)
            if failure is not None and str(failure) in error.message:
                raise failure from failure.__cause__
        # TensorFlow wraps the reason in the names of its graph's nodes.
        reason = _GRAPH_NAMES.sub("", error.message).partition("Traceback (most recent")[0]
        names = ", ".join(sorted({type(source).__name__ for source in sources}))
        reason = " ".join(reason.split())
        raise InputError(f"inputs: reading from {names} failed: {reason}") from error


def augment_images(images: Any, draws: Any) -> Any:
    """Reflect-pads by 4, crops back at random and flips at random, by 3 draws.

    Args:
      images: `[B, H, W, C]`, any dtype.
      draws: `[B, 3]` uniform in [0, 1): row offset, column offset, flip.
    """
    import tensorflow as tf

    height, width = images.shape[1], images.shape[2]
    padded = tf.pad(images, [[0, 0], [_PAD, _PAD], [_PAD, _PAD], [0, 0]], "REFLECT")
    offsets = tf.cast(draws[:, :2] * (2 * _PAD + 1), tf.int32)
    rows = offsets[:, :1] + tf.range(height)
    columns = offsets[:, 1:] + tf.range(width)
    columns = tf.where(draws[:, 2:] < 0.5, columns, columns[:, ::-1])
    cropped = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(cropped, columns, axis=2, batch_dims=1)


def num_examples(inputs: Tree) -> int:
    """Length of the leading axis that all arrays of a pytree share.

    Raises:
      ValueError: they do not share one, or there is no array.
    """
    lengths = {len(x) for x in jax.tree.leaves(inputs)}
    if len(lengths) != 1:
        raise ValueError(f"arrays of {sorted(lengths)} examples, expected one number")
    return lengths.pop()


def hash_arrays(inputs: Tree) -> str:
    """A short text that differs for other arrays; of large ones some rows are hashed."""
    digest = hashlib.blake2b(digest_size=8)
    for path, leaf in jax.tree.leaves_with_path(inputs):
        every = max(1, leaf.nbytes // _HASHED_BYTES)
        digest.update(f"{jax.tree_util.keystr(path)} {leaf.shape} {leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(leaf[::every]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _layout_of_arrays(inputs: Tree) -> Layout:
    leaves, structure = jax.tree.flatten(inputs)
    return Layout(structure, tuple(x.shape[1:] for x in leaves), tuple(x.dtype for x in leaves))
