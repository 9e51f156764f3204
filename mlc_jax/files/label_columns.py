"""The columns of a user's table that are not inputs: labels, ids, and which rows only judge."""

import difflib
import functools
import hashlib
import os
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from mlc_jax.data.folds import DRAWN, LOOKED_UP, RANDOM
from mlc_jax.data.source import UNKNOWN, Source
from mlc_jax.errors import InputError
from mlc_jax.files.own import FIELD, SPLIT_NAMES, SPLITS, Checks, LabelledFile, Labels
from mlc_jax.files.tables import Table
from mlc_jax.files.values.names import MAX_LENGTH, bare, bare_id
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

# A spreadsheet runs a value that begins with one of these; files for people have a ' before it.
_RUNS = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # The last are full-width ones.


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
    rows = {name: row for row, name in enumerate(names)}
    columns: dict[str, dict[int, str]] = {}
    for line, (identifier, source, label) in table.rows(["id", "source", "label"]):
        row = rows.get(from_spreadsheet(identifier or ""), rows.get(identifier or ""))
        if row is None:
            table.fail(f"id {identifier!r} is not in {data.path!r}; expected one of its ids", line)
        if not source or source.isspace():
            table.fail("source is empty, expected who gave the label", line)
        said = columns.setdefault(source, {})
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
      checks: tables, or their paths, with columns `id` and `checked_label`, which is empty where
        nobody looked; ids are those of the file, or numbers of its rows, from 0, where it has none.
        What a spreadsheet or a hand makes of ids and labels is found, where it can be one alone:
        `29` for `00029`, `DOG` for `dog`. `why` says, as in a `to_check.csv`, which rows were drawn
        at random; without it all were looked up. Random rows of a `to_check.csv` are the next ones
        of one order (`random_order`), so a row that was looked up counts as drawn at random, too,
        once that order has passed it.
      file: `config.dataset.data`.

    Raises:
      InputError: an id that the file does not have, a label that none of its rows was given, or
        two labels of one row.
    """
    ids = [str(i) for i in range(len(file.labels.numbers))] if file.ids is None else file.ids
    rows = {str(name): row for row, name in enumerate(ids)}
    known = list(file.labels.names)
    known += [x for x in (file.checked.names if file.checked else ()) if x not in known]
    names = {name: number for number, name in enumerate(known)}
    numbers = np.full(len(rows), UNKNOWN, np.int32)
    drawn = np.full(len(rows), "", "U9")
    places: dict[int, str] = {}
    known_rows, known_names = _Known(rows, bare_id), _Known(names, bare)
    if file.checked is not None:
        for row in np.flatnonzero(file.checked.numbers != UNKNOWN).tolist():
            numbers[row] = names[file.checked.names[file.checked.numbers[row]]]
            places[row] = f"{file.path!r} {file.name_row(row)}"
    for one in checks:
        table, found = one if isinstance(one, Table) else Table(f"{FIELD}checked", one), False
        for line, (written, label, why) in table.rows(["id", "checked_label"], ["why"]):
            if not label or label.isspace() or (label in NOBODY_LOOKED and label not in names):
                continue
            found = True
            row, number = _checked_row(
                table, line, written or "", label, file, known_rows, known_names
            )
            if row in places and numbers[row] != number:
                table.fail(
                    f"id {written!r} is checked as {label!r}, and as "
                    f"{known[numbers[row]]!r} in {places[row]}; expected one label",
                    line,
                )
            numbers[row] = number
            if row not in places:
                drawn[row] = RANDOM if why == RANDOM else LOOKED_UP
            places.setdefault(row, f"{table.path!r} {table.place(line)}")
        if not found:
            table.fail("has no checked_label; expected some that are filled in")
    order = random_order(ids)
    last = max(order[drawn == RANDOM], default=-1)
    drawn[(drawn == LOOKED_UP) & (order < last)] = RANDOM
    return Checks(Labels(tuple(known), numbers), drawn)


def random_order(ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """The place of each row in the random order in which rows are drawn to be checked; int64 `[N]`.

    It depends on the ids alone, so that the rows that it has passed are a random sample of all,
    whatever was checked beside them: rows drawn from what is left over would not be.
    """
    keys = [hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in ids]
    ranks = np.empty(len(keys), np.int64)
    ranks[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    return ranks


def _checked_row(
    table: Table,
    line: int,
    written: str,
    label: str,
    file: LabelledFile,
    rows: "_Known",
    names: "_Known",
) -> tuple[int, int]:
    """Row of the data and number of the label, for one row of a file of checked labels."""
    row = rows.find(written)
    if row is None and file.aliases:
        plain = os.path.normpath(from_spreadsheet(written))
        row = rows.find(plain)
        row = file.aliases.get(plain) if row is None else row
    if row is None:
        table.fail(f"id {written!r} is not in {file.path!r}; expected one of its ids", line)
    if file.judging[row]:
        table.fail(f"id {written!r} is a row that judges; expected one to train with", line)
    number = names.find(label)
    if number is None:
        listed = list(names.numbers)
        table.fail(
            f"checked_label is {label!r}, which no row was given; expected one of "
            f"{', '.join(listed[:10])}{', ...' if len(listed) > 10 else ''}, or nothing where "
            "nobody looked",
            line,
        )
    return row, number


class _Known:
    """Names in a user's file, found by what a person or a spreadsheet makes of them.

    Args:
      numbers: by name.
      form: what a name has in common with other forms of it.
    """

    def __init__(self, numbers: Mapping[str, int], form: Callable[[str], str]):
        self.numbers, self._form = numbers, form

    def find(self, written: str) -> int | None:
        """The number of a name; None if there is none, or if it could be several."""
        text = from_spreadsheet(written)
        number = self.numbers.get(text, self.numbers.get(written))
        return self._alike.get(self._form(text)) if number is None else number

    @functools.cached_property
    def _alike(self) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for name, number in self.numbers.items():
            form = self._form(name)
            found[form] = None if form in found else number
        return found


def for_spreadsheet(text: str) -> str:
    """A text that a spreadsheet would execute gets a ' in front; numbers do not change."""
    if not _RUNS.match(text):
        return text
    try:
        float(text)
    except ValueError:
        return f"'{text}"
    return text


def from_spreadsheet(text: str) -> str:
    """The inverse of `for_spreadsheet`."""
    return text[1:] if text.startswith("'") and _RUNS.match(text) else text
