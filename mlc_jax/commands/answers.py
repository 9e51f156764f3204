"""Answers: labels that people typed, in `answers.csv` and in files of rows to check."""

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

from etils import epath

from mlc_jax import paths
from mlc_jax.errors import InputError
from mlc_jax.files.own import FIELD
from mlc_jax.files.tables import Table
from mlc_jax.files.values.checks import Checking
from mlc_jax.files.values.names import for_spreadsheet, from_spreadsheet
from mlc_jax.report import to_check

_COLUMNS = ("id", "checked_label", "why", "file")


class Answer(NamedTuple):
    """A label that somebody typed.

    Attributes:
      id: of the row.
      label: the right one, as typed.
      why: the reason why the row was to be checked: `random` or another one.
      file: where it was typed, a path relative to OUT.
    """

    id: str
    label: str
    why: str
    file: str


class Typed(NamedTuple):
    """A label in a file of rows to check, as it stands there."""

    table: Table
    line: int
    id: str
    label: str
    why: str


def read(place: epath.Path) -> list[Answer]:
    """The answers in a file, in its order; none if there is no such file."""
    if not place.exists():
        return []
    rows = Table(f"{FIELD}checked", str(place)).rows(_COLUMNS)
    return [Answer(*(from_spreadsheet(x or "") for x in values)) for _, values in rows]


def csv_of(answers: Sequence[Answer]) -> bytes:
    columns = zip(*answers, strict=True)
    return to_check.csv_of(dict(zip(_COLUMNS, map(list, columns), strict=True)))


def append(answers: Sequence[Answer], place: epath.Path) -> None:
    """Adds rows to a file; what a person has added to it stays."""
    if not place.exists():
        paths.write(place, csv_of(answers))
        return
    table, before = Table(f"{FIELD}checked", str(place)), place.read_bytes()
    text = io.StringIO()
    writer = csv.writer(text, delimiter=table.separator, lineterminator="\n")
    for answer in answers:
        fields = dict(zip(_COLUMNS, map(for_spreadsheet, answer), strict=True))
        writer.writerow([fields.get(name, "") for name in table.header()])
    if table.encoding != "utf-8":  # As a spreadsheet may save it.
        before = before.decode(table.encoding).encode("utf-8-sig")
    between = b"" if before.endswith(b"\n") else b"\n"
    paths.write(place, before + between + text.getvalue().encode())


def typed_in(place: epath.Path) -> list[Typed]:
    """All rows of a file of rows to check; none if there is no such file."""
    if not place.exists():
        return []
    try:
        table = Table(f"{FIELD}checked", str(place))
        rows = table.rows(["id", "checked_label"], ["why"])
        return [Typed(table, line, *(x or "" for x in values)) for line, values in rows]
    except InputError:
        if to_check.is_filled_in(place):
            raise
        return []  # Nobody has said anything in it.


def canonical(checking: Checking, written: str) -> str:
    """An id as the user's file has it; as written if no row has it."""
    row = checking.row(written)
    return from_spreadsheet(written) if row is None else checking.ids[row]


def is_one(checking: Checking, label: str, other: str) -> bool:
    """Whether two texts mean the same label."""
    number = checking.label(label)
    return label == other or (number is not None and number == checking.label(other))
