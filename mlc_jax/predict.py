"""Predicts the labels of new examples with what a run has learned.

    python -m mlc_jax.predict --workdir=runs/own --input=new.csv --output=predictions.csv

The workdir is that of a run that has ended; nothing of its training data is needed. The input is
like the run's own files, without labels: an .npz or .npy of inputs, or a .csv, .jsonl or .parquet
with the columns of the features, or with `text`; and maybe an `id`. Of all but an .npz, a part is
in memory at a time. The output has a row for each example: id, label, confidence, and the
probability of each class.
"""

import csv
import pathlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from mlc_jax import command_line
from mlc_jax.errors import InputError

if TYPE_CHECKING:
    from mlc_jax.api import Result
    from mlc_jax.data import Source

_WORKDIR = flags.DEFINE_string("workdir", "", "Directory of a run that has ended.")
_INPUT = flags.DEFINE_string("input", "", "File of examples without labels.")
_OUTPUT = flags.DEFINE_string("output", "", "CSV file to write.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1000, "Examples at once, over all devices.", 1)
_PROGRESS = flags.DEFINE_bool("progress", True, "Draw a progress bar.")

_FIELD = "--input"
_CHUNK = 8_192  # Examples that are in memory at once.


class Opened(NamedTuple):
    """New examples.

    Attributes:
      size: how many.
      chunks: their ids and inputs, some at a time.
    """

    size: int
    chunks: Iterator[tuple[Sequence[str], "Source"]]


def main() -> None:
    if not pathlib.Path(_INPUT.value).expanduser().exists():
        raise InputError(f"{_FIELD}: no file {_INPUT.value!r}; expected one of examples")
    from mlc_jax import api

    result = api.load(_WORKDIR.value)
    opened = _OPENERS[result.kind](result, _INPUT.value)
    output = pathlib.Path(_OUTPUT.value).expanduser()
    partial = output.with_name(output.name + ".partial")
    try:
        with partial.open("w", encoding="utf-8", newline="") as file:
            _write(result, opened, csv.writer(file, lineterminator="\n"))
        partial.replace(output)
    finally:
        partial.unlink(missing_ok=True)
    print(f"{opened.size} predictions in {output}")


def _write(result: "Result", opened: Opened, table: Any) -> None:
    from tqdm import tqdm

    from mlc_jax.data.label_columns import for_spreadsheet

    names = [for_spreadsheet(str(name)) for name in result.classes]
    table.writerow(["id", "label", "confidence", *(f"p_{name}" for name in result.classes)])
    with tqdm(total=opened.size, unit=" examples", disable=not _PROGRESS.value) as bar:
        for ids, source in opened.chunks:
            probs = result.predict_source(source, batch_size=_BATCH_SIZE.value)
            best = probs.argmax(axis=1)
            table.writerows(
                [for_spreadsheet(name), names[i], f"{row[i]:.6f}", *(f"{p:.6f}" for p in row)]
                for name, i, row in zip(ids, best.tolist(), probs.tolist(), strict=True)
            )
            bar.update(len(ids))


def _open_arrays(result: "Result", path: str) -> Opened:
    """An `.npz` with `inputs`, and maybe `ids`, or an `.npy`."""
    from mlc_jax.data import arrays
    from mlc_jax.examples import create_source

    del result
    ids, key = None, ""
    if path.endswith(".npy"):
        inputs = arrays.open_npy(_FIELD, path)
    elif path.endswith(".npz"):
        stored, key = arrays.read_npz(_FIELD, path), "['inputs'] "
        if "inputs" not in stored:
            raise InputError(f"{_FIELD}: {path!r} has no array 'inputs', only {sorted(stored)}")
        inputs, ids = stored["inputs"], stored.get("ids")
        if ids is not None and len(ids) != len(inputs):
            raise InputError(
                f"{_FIELD}: {path!r} has {len(ids)} ids, expected {len(inputs)}, one for each input"
            )
    else:
        raise InputError(f"{_FIELD}: got {path!r}, expected an .npz or .npy file, as trained on")
    inputs = arrays.checked_inputs(_FIELD, path, key, inputs)

    def chunks() -> Iterator[tuple[Sequence[str], "Source"]]:
        for start in range(0, len(inputs), _CHUNK):
            part = inputs[start : start + _CHUNK]
            names = range(start, start + len(part)) if ids is None else ids[start : start + _CHUNK]
            yield [str(name) for name in names], create_source(part)

    return Opened(len(inputs), chunks())


def _open_table(result: "Result", path: str) -> Opened:
    from mlc_jax.data.table_files import TableSource
    from mlc_jax.data.tables import Table

    table, columns = Table(_FIELD, path), result.columns
    assert columns is not None

    def create(rows: list[tuple[int, list[Any]]]) -> "Source":
        return TableSource(columns.encode(table.fail, rows), columns)

    return _open_rows(table, columns.names, create)


def _open_texts(result: "Result", path: str) -> Opened:
    from mlc_jax.data.tables import Table

    def create(rows: list[tuple[int, list[Any]]]) -> "Source":
        return result.read([text or "" for _, (text,) in rows])

    return _open_rows(Table(_FIELD, path), ["text"], create)


def _open_rows(
    table: Any, names: Sequence[str], create: Callable[[list[tuple[int, list[Any]]]], "Source"]
) -> Opened:
    """Rows of a table, read once to see whether they can be, and how many there are."""

    def read() -> Iterator[tuple[int, list[Any]]]:
        rows: Iterator[tuple[int, list[Any]]] = table.rows([], ["id"], names)
        return rows

    size = sum(1 for _ in read())
    if not size:
        table.fail("has no row, expected one for each example")

    def chunks() -> Iterator[tuple[Sequence[str], "Source"]]:
        remaining, start = read(), 0
        while chunk := list(islice(remaining, _CHUNK)):
            ids = [str(start + i) if x[0] is None else x[0] for i, (_, x) in enumerate(chunk)]
            yield ids, create([(line, values[1:]) for line, values in chunk])
            start += len(chunk)

    return Opened(size, chunks())


_OPENERS: dict[str, Callable[["Result", str], Opened]] = {
    "arrays": _open_arrays,
    "table": _open_table,
    "text": _open_texts,
}

if __name__ == "__main__":
    command_line.run(main, required=["workdir", "input", "output"])
