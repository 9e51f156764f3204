"""Columns of a table as features: numbers, one-hot categories, and marks of missing values.

One rule says what becomes a feature, for files and for data frames: `left_out`.
"""

import dataclasses
from array import array
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import numpy as np
from absl import logging

from mlc_jax.errors import shown
from mlc_jax.files.tables import Table
from mlc_jax.files.values import forms
from mlc_jax.files.values.column import Column, Fail
from mlc_jax.files.values.survey import Survey

FEW_CATEGORIES = 50  # The most categories of a column that `dataset.features` does not name.
ROWS_PER_CATEGORY = 5  # The fewest rows per category of such a column, on average.

_CHUNK = 4_096  # Rows that are turned into numbers at once.

Row = tuple[int, Sequence[str | None]]


@dataclasses.dataclass(frozen=True)
class Columns:
    """Maps a table's values, as texts, to features.

    Attributes:
      columns: in the order of their features.
      left_out: (name, why) of the table's other columns.
    """

    columns: tuple[Column, ...]
    left_out: tuple[tuple[str, str], ...] = dataclasses.field(default=(), compare=False)

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    @property
    def features(self) -> list[str]:
        """Names of all features."""
        return [name for column in self.columns for name in column.features]

    def encode(self, fail: Fail, values: Iterable[Row]) -> np.ndarray:
        """Features `[N, F]` float32.

        A missing number becomes the median of the rows that the columns were made from. A missing
        text is a category if texts were missing there. A new category has 0 in all features, and a
        warning counts it.

        Args:
          fail: see `Fail`.
          values: the line of each row, and its values in the order of `names`.

        Raises:
          InputError: a value that should be a finite number and is not.
        """
        chunks, unseen = [], _Unseen()
        for lines, rows in _chunks(values):
            parts = []
            for column, cells in zip(self.columns, zip(*rows, strict=True), strict=True):
                texts = [text or "" for text in cells]
                found = column.encode(fail, lines, texts)
                unseen.count(column, texts, found)
                parts += found
            chunks.append(np.stack(parts, axis=1).astype(np.float32))
        unseen.warn()
        return np.concatenate(chunks) if chunks else np.zeros((0, len(self.features)), np.float32)

    def encode_seen(self, surveys: Sequence[Survey], table: Table) -> np.ndarray:
        """`encode` of all rows of a surveyed table, `[N, F]` float32; one survey for each column.

        Surveys keep no lists, and no whole numbers beyond float64: these are read again.
        """
        kept: list[list[np.ndarray] | None] = []
        unseen = _Unseen()
        for column, one in zip(self.columns, surveys, strict=True):
            found = one.encode(column)
            if column.categories is not None and found is not None:
                unseen.count(column, one.cells(), found)
            elif found is not None and not column.has_missing:
                unseen.miss(column, int(np.isnan(one.numbers).sum()))
            kept.append(None if found is None else [x.astype(np.float32) for x in found])
        unseen.warn()
        late = Columns(tuple(x for x, y in zip(self.columns, kept, strict=True) if y is None))
        again = late.encode(table.fail, table.rows([], [], late.names)).T if late.columns else ()
        rest = iter(again)
        parts: list[np.ndarray] = []
        for column, features in zip(self.columns, kept, strict=True):
            parts += [next(rest) for _ in column.features] if features is None else features
        return np.stack(parts, axis=1)

    def of_numbers(self, names: Collection[str]) -> "Columns":
        """The same for rows whose columns `names` hold numbers, however texts were written."""

        def read(one: Column) -> Column:
            if one.name not in names or one.form not in ("point", "comma"):
                return one
            return one._replace(form="point", marks=None if one.marks is None else ".,")

        return dataclasses.replace(self, columns=tuple(map(read, self.columns)))

    def describe(self, features: np.ndarray) -> str:
        """The row that features `[F]` were made from, as text."""
        parts, start = [], 0
        for column in self.columns:
            values = features[start : start + len(column.features)]
            start += len(column.features)
            parts.append(column.describe(values))
        return ", ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """JSON-like; the inverse of `from_json`."""
        return {
            "columns": [column._asdict() for column in self.columns],
            "left_out": [list(one) for one in self.left_out],
        }

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Columns":
        """The columns that `to_json` described; older workdirs lack `left_out`."""
        columns = [Column(**x) for x in stored["columns"]]
        return cls(
            tuple(
                x._replace(categories=None if x.categories is None else tuple(x.categories))
                for x in columns
            ),
            tuple((name, why) for name, why in stored.get("left_out", ())),
        )


def survey(
    names: Sequence[str], rows: Iterable[Row], *, may_have_commas: bool = False,
    numbers: Collection[str] = (),
) -> list[Survey]:  # fmt: skip
    """Surveys the columns `names` of all rows; see `Columns.encode` and `Survey`.

    Args:
      names: of the columns.
      rows: as `values` of `Columns.encode`.
      may_have_commas: see `Survey`.
      numbers: columns whose values are numbers in the file, not texts.
    """
    places = array("q")
    surveys = [
        Survey(name, places, may_have_commas=may_have_commas, are_numbers=name in numbers)
        for name in names
    ]
    for lines, chunk in _chunks(rows):
        places.extend(lines)
        for one, texts in zip(surveys, zip(*chunk, strict=True), strict=True):
            one.add(lines, [text or "" for text in texts])
    if places:
        for one in surveys:
            one.decide()
        commas = any(one.form == "comma" for one in surveys)
        for one in surveys:
            one.decide(commas=commas)
    return surveys


def left_out(one: Survey, rows: np.ndarray, *, unnamed: bool = False) -> str | None:
    """Why a column that the user did not name is no feature; None if it becomes one.

    Numbers, booleans, dates, lists of numbers and texts of few categories become features. Empty
    columns and row numbers do not.

    Args:
      one: the survey of all rows.
      rows: `[N]` bool, those that are learned from.
      unnamed: whether its name is one that pandas gives to an index. Then different whole numbers
        are row numbers in any order.
    """
    if one.is_empty:
        return "empty"
    if unnamed and one.is_numeric and one.form == "point" and _are_different(one.numbers):
        return "row numbers"
    if one.is_numeric:
        if not one.form:
            return "dates whose day and month cannot be told apart"
        return "row numbers" if one.form == "point" and _counts_up(one.numbers) else None
    num_rows = int(rows.sum())
    there = np.unique(one.codes[rows]) if one.texts is not None else None
    if there is None or len(there[there > 0]) > FEW_CATEGORIES:
        return "texts"
    return None if num_rows >= ROWS_PER_CATEGORY * len(there[there > 0]) else "texts"


def is_constant(one: Survey, rows: np.ndarray) -> bool:
    """Whether all rows that are learned from, `[N]` bool, have one value."""
    values = one.values()
    if values is None:
        return False
    if one.is_numeric and np.nanmax(np.abs(values)) >= 2**53:  # Where float64 is not exact.
        return one.texts is not None and len(np.unique(one.codes[rows])) == 1
    values = values[rows]
    return bool(np.isnan(values).all()) or bool((values == values[0]).all())


def _are_different(numbers: np.ndarray) -> bool:
    """Whether all numbers are whole, and each is there once."""
    return len(np.unique(numbers)) == len(numbers) and bool((numbers == np.round(numbers)).all())


def _counts_up(numbers: np.ndarray) -> bool:
    """Whether whole numbers count up by one, row by row."""
    steps = np.diff(numbers)
    return len(steps) > 1 and bool((steps == 1).all()) and numbers[0] == int(numbers[0])


class _Unseen:
    """Counts values that no row to learn from has, for a warning."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}
        self._missing: dict[str, int] = {}

    def count(self, column: Column, texts: list[str], found: list[np.ndarray]) -> None:
        if column.categories is None:
            if not column.has_missing:
                self.miss(column, sum(not forms.category(x) for x in texts))
            return
        none = ~np.any(found, axis=0) if found else np.ones(len(texts), bool)
        if none.any():
            count, first = self._found.get(column.name, (0, texts[int(none.argmax())]))
            self._found[column.name] = (count + int(none.sum()), first)

    def miss(self, column: Column, number: int) -> None:
        if number:
            self._missing[column.name] = self._missing.get(column.name, 0) + number

    def warn(self) -> None:
        for name, missing in self._missing.items():
            logging.warning(
                "Column %s has %d missing values, and none in rows to learn from: they count as "
                "its median.", name, missing,
            )  # fmt: skip
        for name, (count, first) in self._found.items():
            logging.warning(
                "Column %s has %d values that no row to learn from has, such as %s: they count as "
                "none of its categories.", name, count, shown(forms.category(first)),
            )  # fmt: skip


def _chunks(
    rows: Iterable[Row],
) -> Iterator[tuple[list[int], list[Sequence[str | None]]]]:
    remaining = iter(rows)
    while chunk := list(islice(remaining, _CHUNK)):
        lines, values = zip(*chunk, strict=True)
        yield list(lines), list(values)
