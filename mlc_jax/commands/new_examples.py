"""Files of new examples, in the form of a run's training data, read in parts."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from mlc_jax.api import Result
from mlc_jax.data import Source
from mlc_jax.encoders.pictures import PictureReader
from mlc_jax.errors import InputError
from mlc_jax.examples import create_source
from mlc_jax.files import arrays, image_folder
from mlc_jax.files.table_files import TableSource, warn_of_new
from mlc_jax.files.tables import Table

CHUNK = 8_192  # Examples that are in memory at once.

_FIELD = "NEW"


class Opened(NamedTuple):
    """New examples.

    Attributes:
      size: how many, including those that are left out.
      chunks: ids and inputs of up to `CHUNK` examples at a time.
    """

    size: int
    chunks: Iterator[tuple[Sequence[str], Source]]


def open_examples(result: Result, path: str, names: Mapping[str, str]) -> Opened:
    """Opens a file or a directory for the classifier of `result`.

    Args:
      result: of a run.
      path: of the examples.
      names: of a table's columns, see `Table`.

    Raises:
      InputError: a file cannot be read, or examples are not like the trained ones. Reading a chunk
        may raise it, too.
    """
    return _OPENERS[result.kind](result, path, names)


def _open_arrays(result: Result, path: str, names: Mapping[str, str]) -> Opened:
    """An `.npz` with `inputs`, and maybe `ids`, or an `.npy`."""
    del names
    ids, key = None, ""
    if path.endswith(".npy"):
        inputs = arrays.open_npy(_FIELD, path)
    elif path.endswith(".npz"):
        stored, key = arrays.read_npz(_FIELD, path, ("inputs", "ids")), "['inputs'] "
        if "inputs" not in stored:
            there = arrays.names_in_npz(_FIELD, path)
            raise InputError(f"{_FIELD}: {path!r} has no array 'inputs', only {there}")
        inputs, ids = stored["inputs"], stored.get("ids")
        if ids is not None and len(ids) != len(inputs):
            raise InputError(
                f"{_FIELD}: {path!r} has {len(ids)} ids, expected {len(inputs)}, one for each input"
            )
    else:
        raise InputError(f"{_FIELD}: got {path!r}, expected an .npz or .npy file, as trained on")
    offsets = tuple(result.sizes.get("offsets", ()))
    checked = arrays.checked_inputs(_FIELD, path, key, inputs)
    whole = inputs if offsets else checked

    def chunks() -> Iterator[tuple[Sequence[str], Source]]:
        for start in range(0, len(whole), CHUNK):
            part = whole[start : start + CHUNK]
            if offsets:
                part = arrays.checked_inputs(_FIELD, path, key, np.asarray(part), offsets)
            known = range(start, start + len(part)) if ids is None else ids[start : start + CHUNK]
            yield [str(name) for name in known], create_source(part)

    return Opened(len(whole), chunks())


def _open_table(result: Result, path: str, names: Mapping[str, str]) -> Opened:
    table, columns = Table(_FIELD, path, names=names), result.columns
    assert columns is not None
    warn_of_new(columns, table.columns(), result.sizes.get("sources", ()))

    read = columns.of_numbers(table.numbers())

    def create(rows: list[tuple[int, list[Any]]]) -> Source:
        return TableSource(read.encode(table.fail, rows), columns)

    return _open_rows(table, columns.names, create)


def _open_texts(result: Result, path: str, names: Mapping[str, str]) -> Opened:
    def create(rows: list[tuple[int, list[Any]]]) -> Source:
        return result.read([text or "" for _, (text,) in rows])

    return _open_rows(Table(_FIELD, path, names=names), ["text"], create)


def _open_pictures(result: Result, path: str, names: Mapping[str, str]) -> Opened:
    """All pictures below a directory, or those of a table's column `path`."""
    read: Any = result.read
    if isinstance(read, PictureReader):
        listed = image_folder.listed(path, _FIELD, names)

        def encoded() -> Iterator[tuple[Sequence[str], Source]]:
            for start in range(0, len(listed.names), CHUNK):
                part = read.read(listed.take(slice(start, start + CHUNK)), _FIELD)
                if not len(part):  # All are bad, and left out.
                    continue
                yield part.ids(np.arange(len(part))).tolist(), part

        return Opened(len(listed.names), encoded())
    source = read(path, field=_FIELD, names=names)

    def chunks() -> Iterator[tuple[Sequence[str], Source]]:
        for start in range(0, len(source), CHUNK):
            part = source.take(slice(start, start + CHUNK))
            yield part.ids(np.arange(len(part))).tolist(), part

    return Opened(len(source), chunks())


def _open_rows(
    table: Any, names: Sequence[str], create: Callable[[list[tuple[int, list[Any]]]], Source]
) -> Opened:
    """Rows of a table, read once to check and count them."""

    def read() -> Iterator[tuple[int, list[Any]]]:
        rows: Iterator[tuple[int, list[Any]]] = table.rows([], ["id"], names)
        return rows

    size = sum(1 for _ in read())
    if not size:
        table.fail("has no row, expected one for each example")

    def chunks() -> Iterator[tuple[Sequence[str], Source]]:
        remaining, start = read(), 0
        while chunk := list(islice(remaining, CHUNK)):
            ids = [str(start + i) if x[0] is None else x[0] for i, (_, x) in enumerate(chunk)]
            yield ids, create([(line, values[1:]) for line, values in chunk])
            start += len(chunk)

    return Opened(size, chunks())


_OPENERS: dict[str, Callable[[Result, str, Mapping[str, str]], Opened]] = {
    "arrays": _open_arrays,
    "table": _open_table,
    "text": _open_texts,
    "image_folder": _open_pictures,
}
