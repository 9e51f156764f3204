"""The columns of a user's table that are not inputs: labels, ids, and which rows only judge."""

import difflib
import hashlib
import os
import re
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from mlc_jax.data.folds import DRAWN, LOOKED_UP, RANDOM
from mlc_jax.data.source import UNKNOWN, Source
from mlc_jax.errors import InputError
from mlc_jax.files.own import FIELD, SPLIT_NAMES, SPLITS, Checks, LabelledFile, Labels
from mlc_jax.files.tables import Table
from mlc_jax.files.values.names import MAX_LENGTH, Known, bare, bare_id, from_spreadsheet
from mlc_jax.files.values.together import NOBODY_LOOKED

# Columns other than labels. The rest are inputs, or ignored.
OPTIONAL = ("checked_label", "given_label", "id", "split", "drawn")
NAMES = ("label", *OPTIONAL)
ONE_EACH = "label_"  # Prefix of columns with one source each, if there is no `label`.
# Columns that we add to a user's file. If they come back, they are neither features nor labels.
WRITTEN = (
    "corrected_label", "confidence", "label_quality", "is_label_issue", "predicted_label",
    "given_label", "why", "drawn",
    # Where the file has columns of these names of its own.
    "mlc_corrected_label", "mlc_confidence", "mlc_label_quality", "mlc_is_label_issue",
)  # fmt: skip
_ID_LENGTH = 1_000  # Characters.
_ALIKE = 0.85  # Names; two letters of twelve that are swapped, left out or more.


class Said(NamedTuple):
    """Where the given labels are, if not in a column `label`.

    Attributes:
      columns: of the file, one for each source; none of them is `label`, or, where there is none,
        all that begin with `label_`.
      votes: a table with columns `id`, `source` and `label`, a row for each label.
      names: see `Table`; of all files but those of votes and checks.
    """

    columns: tuple[str, ...] = ()
    votes: str | None = None
    names: tuple[tuple[str, str], ...] = ()

    @property
    def elsewhere(self) -> "Said":
        """The same for other files than `data`."""
        return Said(names=self.names)

    def table(self, field: str, path: str) -> Table:
        """A file whose columns have these names."""
        return Table(field, path, names=dict(self.names))


class LabelColumns:
    """Labels, ids and split of one file, taken in row by row.

    Args:
      table: for its name, and for messages.
      said: where labels stand; not of a file whose labels are the true ones.

    Attributes:
      required: columns of labels, one for each source.
      optional: further columns that the file may have.

    Raises:
      InputError: a column that is there under nearly the right name, or holds no labels.
    """

    def __init__(self, table: Table, said: Said = Said()):  # noqa: B008
        self._table, self._said = table, said
        if table.field == f"{FIELD}data":
            check_near_misses(table)
        self.required, self.optional = _sources(table, said), list(OPTIONAL)
        self._labels = [_Column() for _ in self.required]
        self._checked, self._given, self._split, self._drawn = (_Column() for _ in range(4))
        self._ids: list[str | None] = []
        self._lines = array("q")

    def add(self, line: int, values: Sequence[str | None]) -> None:
        """One row.

        Args:
          line: see `Table.rows`.
          values: of the columns `required` and `optional`.

        Raises:
          InputError: the split is none.
        """
        values = ["" if x is not None and x.isspace() else x for x in values]
        labels, rest = values[: len(self.required)], values[len(self.required) :]
        checked, given, identifier, split, drawn = rest
        self._check_lengths(line, [*labels, checked, given], identifier)
        if split is not None and split not in SPLITS:
            self._table.fail(f"split is {split!r}, expected {SPLIT_NAMES}", line)
        if drawn and drawn not in DRAWN:
            self._table.fail(f"drawn is {drawn!r}, expected {', '.join(DRAWN)} or nothing", line)
        for column, label in zip(self._labels, labels, strict=True):
            column.append(label or "")
        for column, value in (
            (self._checked, checked), (self._given, given),
            (self._split, split), (self._drawn, drawn),
        ):  # fmt: skip
            column.append(value)
        self._ids.append(identifier)
        self._lines.append(line)

    def _check_lengths(
        self, line: int, labels: Sequence[str | None], identifier: str | None
    ) -> None:
        limits = [("label", x or "", MAX_LENGTH) for x in labels]
        for name, text, limit in (*limits, ("id", identifier or "", _ID_LENGTH)):
            if len(text) > limit:
                size = f"{len(text):,} characters, {text[:20]!r}..."
                self._table.fail(f"{name} has {size}; expected {limit:,} at most", line)

    def finish(self, create_source: Callable[[np.ndarray | None], Source]) -> LabelledFile:
        """The file, once all rows are in.

        Args:
          create_source: ids -> its inputs; see `LabelledFile`.

        Raises:
          InputError: no row, or an id that is not there, or there twice.
        """
        if not self._lines:
            self._table.fail("has no row, expected one for each example")
        ids, table, lines = self._checked_ids(), self._table, self._lines
        names, columns = list(self.required), [x.labels() for x in self._labels]
        if self._said.votes:
            more, votes = _read_votes(self._said.votes, table, ids, len(lines))
            names, columns = names + more, columns + votes
        columns = _without_silence(table, columns, self._checked.labels())
        names, said = _that_say_something(names, columns)
        several = len(names) > 1 or names[:1] not in ([], ["label"])
        return LabelledFile(
            field=table.field,
            path=table.path,
            labels=_first_said(said, len(lines)),
            votes=_together(said) if several else None,
            source_names=tuple(names) if several else (),
            checked=self._checked.labels(),
            given=self._given.labels(),
            split=self._split.labels(),
            drawn=self._drawn.labels(),
            ids=ids,
            name_row=lambda row: table.place(lines[row]),
            create_source=lambda: create_source(ids),
        )

    def _checked_ids(self) -> np.ndarray | None:
        """Ids `[N]`, none missing or repeated; None without such a column."""
        if all(x is None for x in self._ids):
            return None
        array = np.array([x or "" for x in self._ids])  # `_ID_LENGTH` bounds its width.
        _, first, places = np.unique(array, return_index=True, return_inverse=True)
        earlier = first[places]  # The first row with each id.
        for row in np.flatnonzero((array == "") | (earlier != np.arange(len(array))))[:1]:
            if not array[row]:
                self._table.fail(
                    "id is empty, expected one in each row, or no such column", self._lines[row]
                )
            other = self._table.place(self._lines[earlier[row]])
            self._table.fail(
                f"id {self._ids[row]!r} is that of {other}, too; expected one each",
                self._lines[row],
            )
        return array


def read_labels(table: Table, said: Said) -> LabelledFile:
    """The labels of one file, without its inputs.

    Raises:
      InputError: as `LabelColumns`.
    """
    columns = LabelColumns(table, said)
    for line, values in table.rows(columns.required, columns.optional):
        columns.add(line, values)
    return columns.finish(_no_source)


def _no_source(ids: np.ndarray | None) -> Source:
    raise AssertionError("labels alone have no inputs")


def check_near_misses(table: Table) -> None:
    """A misspelt column of checks would be none, and a feature.

    Raises:
      InputError: there is no `checked_label`, but a column with a similar name.
    """
    there = table.columns()
    if "checked_label" in there:
        return
    short = {name: re.sub(r"[\s_-]", "", name).casefold() for name in there}
    for name, text in short.items():
        close = difflib.SequenceMatcher(None, text, "checkedlabel").ratio() >= _ALIKE
        if close or text in ("checked", "checkedlabels"):
            table.fail(
                f"has column {name!r} and none named 'checked_label'; expected that name, if it "
                "holds the labels that were checked, or a name less like it"
            )


def _sources(table: Table, said: Said) -> list[str]:
    """Names of the columns of labels."""
    for name in said.columns:
        if name in OPTIONAL:
            raise InputError(
                f"{FIELD}label_columns: {name!r} holds no labels as given; expected columns of them"
            )
    if said.columns:
        return list(said.columns)
    there = table.columns()
    if "label" in there:
        return ["label"]
    found = [x for x in there if x.startswith(ONE_EACH) and x not in WRITTEN]
    if found and not said.votes:
        logging.info("Given labels, one column per source: %s.", ", ".join(found))
        return found
    return [] if said.votes else ["label"]  # Reading the file reports that it is missing.


def _without_silence(
    table: Table, columns: list[Labels | None], checked: Labels | None
) -> list[Labels | None]:
    """Columns of several sources in which -1 is nothing said, as many tools write it.

    It is a class where it is one of two, or where somebody checked it and left other rows empty.
    """
    there = {name for column in columns if column is not None for name in column.names}
    is_checked = checked is not None and bool({*checked.names} & {*NOBODY_LOOKED})
    if is_checked and checked is not None and (checked.numbers == UNKNOWN).any():
        return columns
    if len(columns) < 2 or not there & {*NOBODY_LOOKED} or len(there - {*NOBODY_LOOKED}) < 2:
        return columns
    logging.warning(
        "-1 counts as no label of the sources of %s; if it is a class, give it another name.",
        table.path,
    )
    return [None if column is None else column.without(NOBODY_LOOKED) for column in columns]


def _that_say_something(
    names: list[str], columns: list[Labels | None]
) -> tuple[list[str], list[Labels]]:
    """Leaves out sources of no label at all; if all are, the first one stays."""
    kept = [
        (name, column)
        for name, column in zip(names, columns, strict=True)
        if column is not None and column.names
    ]
    silent = [name for name in names if name not in [x for x, _ in kept]]
    if silent and kept:
        logging.warning("Left out, because they label no row: %s.", ", ".join(silent))
    return [name for name, _ in kept], [column for _, column in kept]


def _together(columns: Sequence[Labels]) -> Labels:
    """Columns `[N]` of several sources as one, `[N, S]`."""
    names = tuple(dict.fromkeys(name for column in columns for name in column.names))
    place = {name: number for number, name in enumerate(names)}
    numbers = [
        np.array([*(place[name] for name in column.names), UNKNOWN], np.int32)[column.numbers]
        for column in columns
    ]
    return Labels(names, np.stack(numbers, axis=1))


def first_said(votes: Labels) -> Labels:
    """The first label of each row of `[N, S]`, `[N]`."""
    first = (votes.numbers != UNKNOWN).argmax(axis=1)
    return votes._replace(numbers=np.take_along_axis(votes.numbers, first[:, None], axis=1)[:, 0])


def _first_said(columns: Sequence[Labels], num_rows: int) -> Labels:
    """The label of the first source that gave one, of each row."""
    if not columns:
        return Labels((), np.full(num_rows, UNKNOWN, np.int32))
    return first_said(_together(columns))


def _read_votes(
    path: str, data: Table, ids: np.ndarray | None, num_rows: int
) -> tuple[list[str], list[Labels | None]]:
    """Sources in the order of the file, and their labels of the rows of `data`."""
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
        if row in said and said[row] != label:
            table.fail(
                f"source {source!r} labels id {identifier!r} as {said[row]!r} and as {label!r}; "
                "expected one label",
                line,
            )
        said[row] = "" if label is None or label.isspace() else label
    found = []
    for said in columns.values():
        texts = np.full(num_rows, "", object)
        texts[list(said)] = list(said.values())
        column = _Column()
        for text in texts:
            column.append(text)
        found.append(column.labels())
    return list(columns), found


class _Column:
    """Texts as read, each stored once."""

    def __init__(self) -> None:
        self._there = False
        self._numbers = {"": UNKNOWN}
        self._rows = array("i")

    def append(self, name: str | None) -> None:
        """None for a row without such a column."""
        self._there |= name is not None
        self._rows.append(self._numbers.setdefault(name or "", len(self._numbers) - 1))

    def labels(self) -> Labels | None:
        """None if no row had the column."""
        names = tuple(name for name in self._numbers if name)
        return Labels(names, np.array(self._rows, np.int32)) if self._there else None


def read_checks(checks: Sequence[str | Table], file: LabelledFile) -> Checks:
    """Labels of rows of a file that were checked later, `[N]`, and how these rows were chosen.

    Args:
      checks: tables, or their paths; see `Checking.said`. `why` says, as in a `to_check.csv`, which
        rows were drawn at random; without it all were looked up. Random rows of a `to_check.csv`
        are the next ones of one order (`random_order`), so a row that was looked up counts as drawn
        at random, too, once that order has passed it.
      file: `config.dataset.data`.

    Raises:
      InputError: an id that the file does not have, a label that none of its rows was given, or
        two labels of one row.
    """
    checking = Checking(file)
    drawn = np.full(len(checking.ids), "", "U9")
    for one in checks:
        table, found = one if isinstance(one, Table) else Table(f"{FIELD}checked", one), False
        for line, written, label, why in checking.said(table):
            found = True
            row, is_new = checking.add(table, line, written, label)
            if is_new:
                drawn[row] = RANDOM if why == RANDOM else LOOKED_UP
        if not found:
            table.fail("has no checked_label; expected some that are filled in")
    order = random_order(checking.ids)
    last = max(order[drawn == RANDOM], default=-1)
    drawn[(drawn == LOOKED_UP) & (order < last)] = RANDOM
    return Checks(Labels(tuple(checking.names), checking.numbers), drawn)


class Checking:
    """The rows and labels of a user's file that tables of checks speak of.

    What a spreadsheet or a hand makes of ids and labels is found, where it can be one alone: `29`
    for `00029`, `DOG` for `dog`.

    Args:
      file: `config.dataset.data`.

    Attributes:
      ids: N texts; numbers of the rows, from 0, where the file has none.
      names: of labels.
      numbers: `[N]` int32, checked labels so far, those in the file itself at first; places in
        `names`, UNKNOWN for none.
    """

    def __init__(self, file: LabelledFile):
        self._file = file
        named = range(len(file.labels.numbers)) if file.ids is None else file.ids
        self.ids = [str(name) for name in named]
        checked = file.checked.names if file.checked else ()
        self.names = list(dict.fromkeys((*file.labels.names, *checked)))
        self.numbers = np.full(len(self.ids), UNKNOWN, np.int32)
        places = {name: number for number, name in enumerate(self.names)}
        self._rows = Known({name: row for row, name in enumerate(self.ids)}, bare_id)
        self._names, self._places = Known(places, bare), dict[int, str]()
        if file.checked is not None:
            for row in np.flatnonzero(file.checked.numbers != UNKNOWN).tolist():
                self.numbers[row] = places[file.checked.names[file.checked.numbers[row]]]
                self._places[row] = f"{file.path!r} {file.name_row(row)}"

    def said(self, table: Table) -> Iterator[tuple[int, str, str, str]]:
        """Yields line, id, label and `why` of the rows that somebody checked, as written."""
        for line, (written, label, why) in table.rows(["id", "checked_label"], ["why"]):
            is_none = label in NOBODY_LOOKED and label not in self._names.numbers
            if label and not label.isspace() and not is_none:
                yield line, written or "", label, why or ""

    def row(self, written: str) -> int | None:
        """The row of an id; None if there is none, or if it could be several."""
        row = self._rows.find(written)
        if row is None and self._file.aliases:
            plain = os.path.normpath(from_spreadsheet(written))
            row = self._rows.find(plain)
            row = self._file.aliases.get(plain) if row is None else row
        return row

    def label(self, written: str) -> int | None:
        """The number of a label; None if there is none, or if it could be several."""
        return self._names.find(written)

    def add(self, table: Table, line: int, written: str, label: str) -> tuple[int, bool]:
        """The row of a check, and whether it is the first one of that row.

        Raises:
          InputError: as `read_checks`.
        """
        file, row = self._file, self.row(written)
        if row is None:
            table.fail(f"id {written!r} is not in {file.path!r}; expected one of its ids", line)
        if file.judging[row]:
            table.fail(f"id {written!r} is a row that judges; expected one to train with", line)
        number = self.label(label)
        if number is None:
            more = ", ..." if len(self.names) > 10 else ""
            table.fail(
                f"checked_label is {label!r}, which no row was given; expected one of "
                f"{', '.join(self.names[:10])}{more}, or nothing where nobody looked",
                line,
            )
        is_new = row not in self._places
        if not is_new and self.numbers[row] != number:
            table.fail(
                f"id {written!r} is checked as {label!r}, and as "
                f"{self.names[self.numbers[row]]!r} in {self._places[row]}; expected one label",
                line,
            )
        self.numbers[row] = number
        self._places.setdefault(row, f"{table.path!r} {table.place(line)}")
        return row, is_new


def random_order(ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """The place of each row in the random order in which rows are drawn to be checked; int64 `[N]`.

    It depends on the ids alone, so that the rows that it has passed are a random sample of all,
    whatever was checked beside them: rows drawn from what is left over would not be.
    """
    keys = [hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in ids]
    ranks = np.empty(len(keys), np.int64)
    ranks[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    return ranks
