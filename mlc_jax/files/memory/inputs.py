"""A user's inputs in memory: a data frame, arrays, texts."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np

from mlc_jax.data.prepare import Normalize, identity
from mlc_jax.data.source import ArraySource, Source
from mlc_jax.errors import InputError
from mlc_jax.files import table_files, text_files
from mlc_jax.files.arrays import scale
from mlc_jax.files.images.listing import ENDINGS
from mlc_jax.files.label_columns import NAMES, LabelColumns, Said
from mlc_jax.files.memory.frames import Frame
from mlc_jax.files.own import OwnData, combine
from mlc_jax.files.tables import Table
from mlc_jax.files.values.checks import read_checks
from mlc_jax.files.values.inputs import Offsets, as_stored, offsets_of

# As in `config.dataset.name`.
ARRAYS, TABLE, TEXT, PICTURES = "arrays", "table", "text", "image_folder"
READ = (TEXT, PICTURES)  # An encoder reads these.
COLUMNS = {TEXT: "text", PICTURES: "path"}


def kind_of(x: Any) -> str:
    """The kind of inputs: `arrays`, `table`, `text` or, of paths, `image_folder`.

    Raises:
      InputError: they are none of these.
    """
    if hasattr(x, "columns") or isinstance(x, Mapping):
        return TABLE
    if hasattr(x, "toarray"):
        raise InputError(
            "X: got a sparse matrix, expected a dense one: X.toarray(), or fewer features by "
            "sklearn.decomposition.TruncatedSVD"
        )
    if isinstance(x, str) or not (hasattr(x, "__len__") or hasattr(x, "__array__")):
        raise InputError(f"X: got {type(x).__name__}, expected a data frame, an array or texts")
    array = np.asarray(x) if hasattr(x, "__array__") else None
    if array is None:
        return _kind_of_list(x)
    if array.ndim == 1 and array.dtype.kind in "UTO":
        return _kind_of_list(array.tolist())
    return ARRAYS


def _kind_of_list(x: Sequence[Any]) -> str:
    if not len(x) or not all(isinstance(one, str | os.PathLike) for one in x):
        return ARRAYS
    are_pictures = all(isinstance(one, os.PathLike) or one.lower().endswith(ENDINGS) for one in x)
    return PICTURES if are_pictures else TEXT


def as_array(x: Any) -> np.ndarray:
    """Arrays, or lists of lists, `[N, ...]`; objects become floats.

    Raises:
      InputError: they are not numbers, or not one row for each example.
    """
    if not (hasattr(x, "__len__") or hasattr(x, "__array__")):
        raise InputError(f"X: got {type(x).__name__}, expected an array or a list of lists")
    try:
        array = np.asanyarray(x)  # A mask must stay, because `as_stored` refuses it.
    except (ValueError, TypeError) as error:
        raise InputError(f"X: rows of different lengths ({error}); expected one shape") from error
    if isinstance(array, np.matrix):  # Its rows would be matrices.
        array = np.asarray(array)
    if array.dtype.name in ("bfloat16", "float16"):  # Sums of the latter overflow.
        array = array.astype(np.float32)
    if array.dtype.kind == "c":
        raise InputError("X: Complex data not supported; expected real numbers")
    if array.dtype.kind == "O":
        try:
            array = array.astype(np.float64)
        except (ValueError, TypeError) as error:
            # The same type, because scikit-learn tells a wrong type from a wrong value.
            kind = InputError if isinstance(error, ValueError) else TypeError
            raise kind(
                f"X: {error}; expected numbers. A data frame may have columns of texts"
            ) from error
    if array.ndim < 2:
        raise InputError(
            f"X: Expected 2D array, got {array.ndim}D array instead: shape {array.shape}. Reshape "
            "your data: array.reshape(-1, 1) if it has a single feature, array.reshape(1, -1) if "
            "it has a single sample"
        )
    if not len(array):
        raise InputError(f"X: Found array with 0 sample(s) (shape={array.shape}), expected rows")
    if not array[0].size:
        raise InputError(
            f"X: Found array with 0 feature(s) (shape={array.shape}) while a minimum of 1 is "
            "required."
        )
    return array


def inputs_of(x: Any, offsets: Offsets = ()) -> np.ndarray:
    """Inputs in the type for storage: float32, or unsigned whole numbers.

    Args:
      x: see `as_array`.
      offsets: of features, see `offsets_of`.

    Raises:
      InputError: they are not finite numbers.
    """
    stored = as_stored(_fail, as_array(x), offsets)
    # Signed whole numbers may become fractions in new rows; pixels (unsigned) may not.
    return stored.astype(np.float32) if stored.dtype.kind == "i" else stored


def _fail(problem: str) -> NoReturn:
    hint = ". A data frame may have missing values (NaN)" if "not finite" in problem else ""
    raise InputError(f"X: {problem}{hint}")


class LabelsInMemory(NamedTuple):
    """Columns of labels, as in a file.

    Attributes:
      columns: by name, each `[N]`.
      said: which of them are labels as given.
    """

    columns: dict[str, Any]
    said: Said


def from_memory(
    x: Any,
    labels: LabelsInMemory,
    *,
    read: Callable[..., Source] | None = None,
    drawn: str | None = None,
) -> OwnData:
    """A run's data from inputs and labels in memory; no row need be checked.

    Args:
      x: see `kind_of`.
      labels: of the same rows.
      read: (texts or paths of pictures, ids) -> their source; needed for such inputs.
      drawn: how checked rows were chosen, if `labels` do not say so.

    Raises:
      InputError: inputs and labels do not fit together.
    """
    kind = kind_of(x)
    if kind == TABLE:
        frame = Frame("X", x)
        for name in frame.columns():
            if name in labels.columns or (name in NAMES and name != "id"):
                frame.fail(
                    f"has a column {name!r}, which is not a feature; expected it outside of X"
                )
        everything = {name: x[name] for name in x} | labels.columns
        options = table_files.Options((), None)
        return of_frame(Frame("X", everything), options, said=labels.said, drawn=drawn)
    if kind in READ:
        assert read is not None
        column = COLUMNS[kind]
        texts = Frame("X", {column: [os.fspath(one) for one in x]} | labels.columns)
        of = of_texts if kind == TEXT else of_pictures
        return of(texts, read, said=labels.said, drawn=drawn)
    inputs_of(x)  # Checks first that all are finite.
    offsets = offsets_of(_fail, as_array(x))
    inputs = inputs_of(x, offsets)
    table = Frame("y", labels.columns)
    columns = LabelColumns(table, labels.said)
    for line, values in table.rows(columns.required, columns.optional):
        columns.add(line, values)
    file = columns.finish(lambda ids: ArraySource(inputs, ids, offsets=offsets))
    own = _doubtful(combine({"data": file}, Normalize(), drawn=drawn, needs_checks=False))
    return own._replace(prepare=scale(own.scaled_by, None))


def of_frame(
    table: Table,
    options: table_files.Options,
    *,
    said: Said = Said(),  # noqa: B008
    checked: Sequence[str | Table] = (),
    drawn: str | None = None,
) -> OwnData:
    """A run's data from a frame with features and labels; no row need be checked."""
    tables = {"data": table}
    own = table_files.of_tables(tables, options, checked, drawn, said, needs_checks=False)
    return _doubtful(own)


def of_texts(
    table: Table,
    read_texts: Callable[..., Source],
    *,
    text: str = "text",
    said: Said = Said(),  # noqa: B008
    checked: Sequence[str | Table] = (),
    drawn: str | None = None,
) -> OwnData:
    """A run's data from a frame with a column of texts, and labels; see `of_frame`."""
    file = text_files.read_own(table, read_texts, said, text)
    checks = read_checks(checked, file, drawn) if checked else None
    return _doubtful(combine({"data": file}, identity, checks, drawn, needs_checks=False))


def of_pictures(
    table: Table,
    read: Callable[..., Source],
    *,
    path: str = "path",
    said: Said = Said(),  # noqa: B008
    checked: Sequence[str | Table] = (),
    drawn: str | None = None,
) -> OwnData:
    """A run's data from a frame with a column of paths of pictures, and labels; see `of_frame`."""
    columns, places = LabelColumns(table, said), []
    for line, (place, *values) in table.rows([path, *columns.required], columns.optional):
        if not place or place.isspace():
            table.fail("path is empty, expected that of a picture", line)
        columns.add(line, values)
        places.append(place)
    file = columns.finish(lambda ids: read(places, ids))
    checks = read_checks(checked, file, drawn) if checked else None
    own = _doubtful(combine({"data": file}, identity, checks, drawn, needs_checks=False))
    return own._replace(prepare=scale(own.scaled_by, True))


def _doubtful(own: Any) -> OwnData:
    assert isinstance(own, OwnData)
    return own
