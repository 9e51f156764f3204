"""Labels of several sources: columns of a table, or a table of votes."""

from array import array
from collections.abc import Sequence

import numpy as np
from absl import logging

from mlc_jax.data.source import UNKNOWN
from mlc_jax.data.votes import LEFT_OUT
from mlc_jax.files.own import FIELD, Labels
from mlc_jax.files.tables import Table
from mlc_jax.files.values.names import MAX_LENGTH, Known, bare_id
from mlc_jax.files.values.together import NOBODY_LOOKED

_ABSTAIN = "abstain"


def without_silence(
    table: Table, names: list[str], columns: list[Labels | None], checked: Labels | None
) -> list[Labels | None]:
    """Columns of sources without `abstain` and -1, which mean no label.

    But -1 is a class if it is one of two, or if it is a checked label and unchecked rows are empty.
    In a single column `label` both are classes.
    """
    if not are_sources(names):
        return columns
    columns = [None if x is None else without_abstaining(table.path, x) for x in columns]
    there = {name for column in columns if column is not None for name in column.names}
    is_checked = checked is not None and bool({*checked.names} & {*NOBODY_LOOKED})
    if is_checked and checked is not None and (checked.numbers == UNKNOWN).any():
        return columns
    if not there & {*NOBODY_LOOKED} or len(there - {*NOBODY_LOOKED}) < 2:
        return columns
    logging.warning(
        "-1 means that a source of %s gave no label; if it is a class, give it another name.",
        table.path,
    )
    return [None if column is None else column.without(NOBODY_LOOKED) for column in columns]


def without_abstaining(path: str, labels: Labels) -> Labels:
    """Labels of sources, of any shape, without `abstain`."""
    silent = tuple(name for name in labels.names if is_abstaining(name))
    if not silent:
        return labels
    logging.warning("%s means that a source of %s gave no label.", silent[0], path)
    return labels.without(silent)


def is_abstaining(name: str) -> bool:
    """Whether a source says that it gives no label."""
    return name.casefold() == _ABSTAIN


def are_sources(names: list[str]) -> bool:
    """Whether columns of labels are of named sources, and not the column `label` alone."""
    return len(names) > 1 or names not in ([], ["label"])


def that_say_something(
    names: list[str], columns: list[Labels | None]
) -> tuple[list[str], list[Labels]]:
    """Leaves out sources without any label; that may be all of them."""
    kept = [
        (name, column)
        for name, column in zip(names, columns, strict=True)
        if column is not None and column.names
    ]
    silent = [name for name in names if name not in [x for x, _ in kept]]
    if silent and kept:
        logging.warning(LEFT_OUT, ", ".join(silent))
    return [name for name, _ in kept], [column for _, column in kept]


def together(columns: Sequence[Labels]) -> Labels:
    """Columns `[N]` of several sources as one, `[N, S]`."""
    names = tuple(dict.fromkeys(name for column in columns for name in column.names))
    place = {name: number for number, name in enumerate(names)}
    numbers = [
        np.array([*(place[name] for name in column.names), UNKNOWN], np.int32)[column.numbers]
        for column in columns
    ]
    return Labels(names, np.stack(numbers, axis=1))


def first_said(votes: Labels) -> Labels:
    """The first label in each row of votes `[N, S]`: `[N]`."""
    first = (votes.numbers != UNKNOWN).argmax(axis=1)
    return votes._replace(numbers=np.take_along_axis(votes.numbers, first[:, None], axis=1)[:, 0])


def first_said_of(columns: Sequence[Labels], num_rows: int) -> Labels:
    """For each row, the label of the first source that gave one: `[N]`."""
    if not columns:
        return Labels((), np.full(num_rows, UNKNOWN, np.int32))
    return first_said(together(columns))


def read_votes(
    path: str, data: Table, ids: np.ndarray | None, num_rows: int
) -> tuple[list[str], list[Labels | None]]:
    """Sources in the order of the file, and their labels `[N]` of the rows of `data`.

    Raises:
      InputError: an unknown id, no source, or two labels of one source for a row.
    """
    table = Table(f"{FIELD}votes", path)
    names = [str(i) for i in range(num_rows)] if ids is None else ids.tolist()
    rows = Known({name: row for row, name in enumerate(names)}, bare_id)
    columns: dict[str, dict[int, str]] = {}
    for line, (identifier, source, label) in table.rows(["id", "source", "label"]):
        row = rows.find(identifier or "")
        if row is None:
            table.fail(f"id {identifier!r} is not in {data.path!r}; expected one of its ids", line)
        if not source or source.isspace():
            table.fail("source is empty, expected who gave the label", line)
        said = columns.setdefault(source.strip(), {})
        label = (label or "").strip()
        if len(label) > MAX_LENGTH:
            size = f"{len(label):,} characters, {label[:20]!r}..."
            table.fail(f"label has {size}; expected {MAX_LENGTH:,} at most", line)
        if not label and row in said:
            continue  # Tools also export rows that somebody skipped first.
        if said.get(row) and said[row] != label:
            table.fail(
                f"source {source!r} labels id {identifier!r} as {said[row]!r} and as {label!r}; "
                "expected one label",
                line,
            )
        said[row] = label
    found = []
    for said in columns.values():
        texts = np.full(num_rows, "", object)
        texts[list(said)] = list(said.values())
        column = ColumnOfTexts()
        for text in texts:
            column.append(text)
        found.append(column.labels())
    return list(columns), found


class ColumnOfTexts:
    """A column of texts; each different text is stored once."""

    def __init__(self) -> None:
        self._there = False
        self._numbers = {"": UNKNOWN}
        self._rows = array("i")

    def append(self, name: str | None) -> None:
        """Adds a row's text; None if its file has no such column."""
        self._there |= name is not None
        self._rows.append(self._numbers.setdefault(name or "", len(self._numbers) - 1))

    def labels(self) -> Labels | None:
        """None if no row had the column."""
        names = tuple(name for name in self._numbers if name)
        return Labels(names, np.array(self._rows, np.int32)) if self._there else None
