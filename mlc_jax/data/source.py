"""The interface to data: inputs by row number, and their labels.

A run never copies examples: its noisy, clean, validation and test parts are row numbers of sources.
A new kind of data is one class with the interface of `GatheredSource`, or of `ReadSource` if many
rows are read and decoded in parallel.
"""

import dataclasses
import functools
import hashlib
import math
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeGuard, cast

import numpy as np

from mlc_jax.data import trees
from mlc_jax.data.trees import Tree
from mlc_jax.errors import InputError

UNKNOWN = -1  # A label that is not known.
_HASHED_BYTES = 64 * 2**20  # For arrays with more bytes, only every n-th row is hashed.
_PAD = 4  # Pixels of reflected border that a random crop moves within, as in the published code.

_one_at_a_time = threading.Lock()  # Since objects of one process may share a file.


@dataclasses.dataclass(frozen=True)
class Layout:
    """The form of one example: its tree, and shapes and types of the leaves."""

    structure: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[np.dtype, ...]

    @classmethod
    def of(cls, inputs: Tree) -> "Layout":
        """The layout of arrays `[N, ...]`."""
        leaves, structure = trees.flatten(inputs)
        return cls(structure, tuple(x.shape[1:] for x in leaves), tuple(x.dtype for x in leaves))

    @property
    def num_bytes(self) -> int:
        return sum(math.prod(x) * y.itemsize for x, y in zip(self.shapes, self.dtypes, strict=True))

    def __str__(self) -> str:
        leaves = [f"{y} {list(x)}" for x, y in zip(self.shapes, self.dtypes, strict=True)]
        return str(self.structure.unflatten(leaves)).replace("'", "")


class Source(Protocol):
    """The common interface of all sources: inputs by row number.

    Attributes:
      num_draws: how many uniform numbers change an example at random; 0 for no augmentation.
    A source with padded examples may also have `lengths`, `[N]` int32. After an example's length,
    in the first axis of each of its arrays, there is only padding, which may be cut off.
    """

    num_draws: int

    def __len__(self) -> int: ...

    def ids(self, rows: np.ndarray) -> np.ndarray:
        """Names `[n]` of the examples in rows `[n]`, for people."""
        ...

    def fingerprint(self) -> str:
        """A short text that differs for other data; checkpoints store it."""
        ...


class GatheredSource(Source, Protocol):
    """A source that is fastest with many rows at once: arrays, and objects with `x[rows]`.

    Attributes:
      layout: the layout of an example.
    """

    layout: Layout

    def gather(self, rows: np.ndarray, draws: np.ndarray | None = None) -> Tree:
        """Inputs of rows `[n]` in any order, a tree of NumPy arrays `[n, ...]`; no state.

        Other threads than the one that made the source may call it.

        Args:
          rows: int64.
          draws: float32 `[n, num_draws]` uniform in [0, 1), which change the examples; None leaves
            them unchanged. Always None if `num_draws` is 0.
        """
        ...


class ReadSource(Source, Protocol):
    """A source of files. TensorFlow reads and decodes its rows one by one, in parallel."""

    def read(self, row: Any, draws: Any = None) -> Tree:
        """The inputs of a row, inside tf.data: TensorFlow tensors in, a tree of tensors out.

        It is traced without AutoGraph, so it needs `tf.cond` in place of `if`. It has no state.
        Errors should name the file.

        Args:
          row: an int64 scalar. All shapes of the result are static.
          draws: float32 `[num_draws]`; see `GatheredSource.gather`.
        """
        ...


@dataclasses.dataclass(frozen=True, eq=False)
class Subset:
    """Rows of a source and their labels; a checked row may have a given and a true label.

    Attributes:
      source: has the inputs.
      rows: `[n]` int64, row numbers in `source`.
      given: `[n]` int32, given labels, or UNKNOWN; with several sources of labels, the majority.
      truth: `[n]` int32, the true labels, or UNKNOWN.
      votes: `[n, S]` int16, the labels of S sources, or UNKNOWN; None if there is only `given`.
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
        """All rows of a source; None stands for unknown labels."""
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
        """The labels of all sources, `[n, S]`; S is 1 if there is only `given`."""
        return self.given[:, None] if self.votes is None else self.votes

    def given_to(self, *, takes_votes: bool) -> np.ndarray:
        """Given labels as a method takes them: all, `[n, S]`, or the majority, `[n]`."""
        return self.all_votes if takes_votes else self.given

    def take(self, positions: np.ndarray | slice) -> "Subset":
        """The examples at positions of this subset."""
        votes = None if self.votes is None else self.votes[positions]
        return Subset(
            self.source, self.rows[positions], self.given[positions], self.truth[positions], votes
        )

    def fingerprint(self) -> str:
        """Fingerprint of inputs, choice of rows and labels."""
        digest = hashlib.blake2b(self.source.fingerprint().encode(), digest_size=8)
        for array in (self.rows, self.given, self.truth, self.votes):
            if array is not None:
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()


class ArraySource:
    """Arrays in memory.

    Args:
      inputs: an array `[N, ...]`, or a pytree of them.
      ids: text `[N]`; None numbers the rows.
      num_draws: see `Source`.
      augment: (inputs `[n, ...]`, draws `[n, num_draws]`) -> inputs, of NumPy arrays.
      offsets: numbers that were subtracted from a user's features, and will be from new rows.
    """

    def __init__(
        self,
        inputs: Tree,
        ids: Sequence[str] | np.ndarray | None = None,
        *,
        num_draws: int = 0,
        augment: Callable[[Tree, np.ndarray], Tree] | None = None,
        offsets: tuple[float | int, ...] = (),
    ):
        self.offsets = offsets
        self.inputs = trees.map_leaves(np.asarray, inputs)
        self.layout = Layout.of(self.inputs)
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

    def gather(self, rows: np.ndarray, draws: np.ndarray | None = None) -> Tree:
        inputs = trees.map_leaves(lambda x: np.take(x, rows, axis=0), self.inputs)
        if draws is None or self._augment is None:
            return inputs
        return self._augment(inputs, draws)


class IndexedSource:
    """Anything with `x[rows]` and `len`: memory maps, HDF5 datasets, a user's own class.

    `x[rows]` gets sorted, unique rows in a NumPy array, as HDF5 requires. Its result, an array or a
    pytree of arrays, is reordered afterwards. Other threads than the one that made the object call
    it, but only one at a time, so it need not be thread-safe.

    Args:
      inputs: the object.
      ids: text `[N]`; None numbers the rows.

    Attributes:
      inputs: the object.

    Raises:
      InputError: the first row cannot be read, or is not an array of numbers.
    """

    num_draws = 0

    def __init__(self, inputs: Any, ids: Sequence[str] | np.ndarray | None = None):
        self.inputs = inputs
        self._ids = None if ids is None else np.asarray(ids)
        self.layout = Layout.of(self._take(np.zeros(1, np.int64)))

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
                inputs = trees.map_leaves(np.asarray, self.inputs[rows])
        except Exception as error:
            text = "".join(traceback.format_exception_only(error))
            raise self._failed(f"raised {' '.join(text.split())}") from error
        leaves = trees.leaves(inputs)
        if not leaves or any(x.dtype.kind in "OSUMm" or x.shape[:1] != rows.shape for x in leaves):
            got = trees.map_leaves(lambda x: f"{x.dtype} {list(x.shape)}", inputs)
            text = f"returned {got}, expected an array of numbers, or a tree of them, for "
            raise self._failed(f"{text}{len(rows)} examples".replace("'", ""))
        return inputs

    def gather(self, rows: np.ndarray, draws: np.ndarray | None = None) -> Tree:
        """Raises InputError if the object cannot be read."""
        del draws
        unique, places = np.unique(rows, return_inverse=True)
        inputs, expected = self._take(unique), self.layout
        got = Layout.of(inputs)
        same = (got.structure, got.shapes) == (expected.structure, expected.shapes)
        leaves = list(zip(trees.leaves(inputs), expected.dtypes, strict=same))
        if not same or not all(np.can_cast(x.dtype, dtype, "same_kind") for x, dtype in leaves):
            raise self._failed(f"returned examples of {got}, expected {expected}, as the first is")
        taken = [x.astype(dtype, copy=False)[places] for x, dtype in leaves]
        return expected.structure.unflatten(taken)

    def _failed(self, problem: str) -> InputError:
        return InputError(f"inputs: {type(self.inputs).__name__}[rows] {problem}")


def layout_of(source: Source) -> Layout:
    """The layout of one example; reads nothing.

    Raises:
      InputError: the shapes of examples are not static.
    """
    if is_gathered(source):
        return source.layout
    from mlc_jax.data import streaming

    return streaming.layout_of(cast(ReadSource, source))


def read_rows(source: Source, rows: np.ndarray) -> Tree:
    """Reads a few rows `[n]`, n at least 1, at once: a tree of NumPy arrays `[n, ...]`.

    Raises:
      InputError: files or objects cannot be read.
    """
    if is_gathered(source):
        return source.gather(rows)
    from mlc_jax.data import streaming

    return streaming.read_rows(cast(ReadSource, source), rows)


def is_gathered(source: Source) -> TypeGuard[GatheredSource]:
    """Whether rows are gathered by NumPy; if not, it is a `ReadSource`."""
    return hasattr(source, "gather")


def augment_images(images: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Reflect-pads by 4, crops back at random and flips at random, by 3 draws.

    Args:
      images: `[B, H, W, C]`, any dtype.
      draws: `[B, 3]` uniform in [0, 1): row offset, column offset, flip.
    """
    size, height, width, channels = images.shape
    offsets = (draws[:, :2] * np.float32(2 * _PAD + 1)).astype(np.int32)
    rows, columns = (np.pad(np.arange(length), _PAD, "reflect") for length in (height, width))
    rows = rows[offsets[:, :1] + np.arange(height)]
    columns = columns[offsets[:, 1:] + np.arange(width)]
    columns = np.where(draws[:, 2:] < 0.5, columns, columns[:, ::-1])
    # Indices into the pixels of all images, one after the other.
    places = (np.arange(size)[:, None] * height + rows)[:, :, None] * width + columns[:, None, :]
    return images.reshape(-1, channels).take(places.ravel(), axis=0).reshape(images.shape)


def num_examples(inputs: Tree) -> int:
    """Length of the leading axis that all arrays of a pytree share.

    Raises:
      ValueError: they do not share one, or there is no array.
    """
    lengths = {len(x) for x in trees.leaves(inputs)}
    if len(lengths) != 1:
        raise ValueError(f"arrays of {sorted(lengths)} examples, expected one number")
    return lengths.pop()


def hash_arrays(inputs: Tree) -> str:
    """A short text that differs for other arrays; for large arrays some rows are hashed."""
    digest = hashlib.blake2b(digest_size=8)
    for name, leaf in trees.named_leaves(inputs):
        every = max(1, leaf.nbytes // _HASHED_BYTES)
        digest.update(f"{name} {leaf.shape} {leaf.dtype}".encode())
        digest.update(np.ascontiguousarray(leaf[::every]).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
