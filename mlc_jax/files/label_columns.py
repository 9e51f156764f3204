"""Columns of a user's table that are not inputs: labels, ids, test and validation rows."""

import re
from array import array
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from mlc_jax.data.folds import DRAWN
from mlc_jax.data.source import Source
from mlc_jax.errors import InputError, shown
from mlc_jax.files.own import FIELD, SPLIT_NAMES, SPLITS, LabelledFile
from mlc_jax.files.tables import Table
from mlc_jax.files.values.names import MAX_LENGTH, is_near
from mlc_jax.files.values.votes import (
    ColumnOfTexts,
    are_sources,
    first_said_of,
    read_votes,
    that_say_something,
    together,
    without_silence,
)

# Columns other than labels. The rest are inputs, or ignored.
OPTIONAL = ("checked_label", "given_label", "id", "split", "drawn")
NAMES = ("label", *OPTIONAL)
ONE_EACH = "label_"  # Prefix of columns with one source each, if there is no `label`.
# Columns that we add to a user's file. If they come back, they are neither features nor labels.
WRITTEN = (
    "corrected_label", "confidence", "label_quality", "is_label_issue", "predicted_label",
    "given_label", "why", "drawn",
    # Their names if the file has columns with the names above.
    "mlc_corrected_label", "mlc_confidence", "mlc_label_quality", "mlc_is_label_issue",
)  # fmt: skip
_ID_LENGTH = 1_000  # The most characters of an id.


class Said(NamedTuple):
    """Where the given labels are, if not in a column `label`.

    Attributes:
      columns: names of the columns of given labels, one for each source. Empty means `label`, or,
        if there is no such column, all columns that begin with `label_`.
      votes: path of a table with columns `id`, `source` and `label`, one row for each label.
      names: see `Table`; for all files except those of votes and checks.
      classes: names of all classes, in order, if the user has named them.
    """

    columns: tuple[str, ...] = ()
    votes: str | None = None
    names: tuple[tuple[str, str], ...] = ()
    classes: tuple[str, ...] = ()

    @property
    def elsewhere(self) -> "Said":
        """The same for files other than `data`."""
        return Said(names=self.names, classes=self.classes)

    def table(self, field: str, path: str) -> Table:
        """Opens a file whose columns have these names."""
        return Table(field, path, names=dict(self.names))


class LabelColumns:
    """Labels, ids and splits of one file, collected row by row.

    Args:
      table: the file.
      said: where its given labels are.

    Attributes:
      required: columns of labels, one for each source.
      optional: further columns that the file may have.

    Raises:
      InputError: a column has nearly the right name, or holds no given labels.
    """

    def __init__(self, table: Table, said: Said = Said()):  # noqa: B008
        self._table, self._said = table, said
        if table.field == f"{FIELD}data":
            check_near_misses(table)
        self.required, self.optional = _sources(table, said), list(OPTIONAL)
        self._labels = [ColumnOfTexts() for _ in self.required]
        self._checked, self._given, self._split, self._drawn = (ColumnOfTexts() for _ in range(4))
        self._ids: list[str | None] = []
        self._lines = array("q")

    def add(self, line: int, values: Sequence[str | None]) -> None:
        """Adds one row.

        Args:
          line: see `Table.rows`.
          values: of the columns `required` and `optional`.

        Raises:
          InputError: `split` or `drawn` has an unknown value, or a label or an id is too long.
        """
        values = ["" if x is not None and x.isspace() else x for x in values]
        labels, rest = values[: len(self.required)], values[len(self.required) :]
        checked, given, identifier, split, drawn = rest
        self._check_lengths(line, [*labels, checked, given], identifier)
        if split is not None and split not in SPLITS:
            self._table.fail(f"split is {shown(split)}, expected {SPLIT_NAMES}", line)
        if drawn and drawn not in DRAWN:
            expected = f"{', '.join(DRAWN)} or nothing"
            self._table.fail(f"drawn is {shown(drawn)}, expected {expected}", line)
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
          create_source: makes the inputs from the ids; see `LabelledFile`.

        Raises:
          InputError: there is no row, an id is missing or repeated, or votes are wrong.
        """
        if not self._lines:
            self._table.fail("has no row, expected one for each example")
        ids, table, lines = self._checked_ids(), self._table, self._lines
        names, columns = list(self.required), [x.labels() for x in self._labels]
        if self._said.votes:
            more, votes = read_votes(self._said.votes, table, ids, len(lines))
            theirs = dict(self._said.names)
            for name in more:
                if name in (*names, *(theirs.get(x) for x in names)):
                    raise InputError(
                        f"{FIELD}votes: source {name!r} is also a column of labels of "
                        f"{table.path!r}; expected each source once"
                    )
            names, columns = names + more, columns + votes
        columns = without_silence(table, names, columns, self._checked.labels())
        names, said = that_say_something(names, columns)
        several = are_sources(names)
        return LabelledFile(
            field=table.field,
            path=table.path,
            labels=first_said_of(said, len(lines)),
            votes=together(said) if several else None,
            source_names=tuple(names) if several else (),
            votes_path=self._said.votes or "",
            in_votes=tuple(name for name in names if name not in self.required),
            checked=self._checked.labels(),
            given=self._given.labels(),
            split=self._split.labels(),
            drawn=self._drawn.labels(),
            ids=ids,
            name_row=lambda row: table.place(lines[row]),
            create_source=lambda: create_source(ids),
            classes=self._said.classes,
        )

    def _checked_ids(self) -> np.ndarray | None:
        """Ids `[N]`, none missing or repeated; None without a column `id`."""
        if all(x is None for x in self._ids):
            return None
        array = np.array([x or "" for x in self._ids])  # `_ID_LENGTH` limits its memory.
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
      InputError: as `LabelColumns`, its `add` and its `finish`.
    """
    columns = LabelColumns(table, said)
    for line, values in table.rows(columns.required, columns.optional):
        columns.add(line, values)
    return columns.finish(_no_source)


def _no_source(ids: np.ndarray | None) -> Source:
    raise AssertionError("labels alone have no inputs")


def check_near_misses(table: Table) -> None:
    """Refuses a misspelt `checked_label` or `split`, which would become a feature.

    Raises:
      InputError: a column has a similar name, and none has the right one.
    """
    there = table.columns()
    short = {name: re.sub(r"[\s_-]", "", name).casefold() for name in there}
    # Other words are as similar to a short name as its misspelt forms.
    for wanted, holds, other, edits in (
        ("checked_label", "the labels that were checked", "checked", 2),
        ("split", "which rows only judge", "splits", 0),
    ):
        whole = wanted.replace("_", "")
        for name, text in short.items() if wanted not in there else ():
            if text == other or is_near(text, whole, edits):
                table.fail(
                    f"has column {name!r} and none named {wanted!r}; expected that name, if it "
                    f"holds {holds}, or a name less like it"
                )


def _sources(table: Table, said: Said) -> list[str]:
    """Names of the columns of given labels."""
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
