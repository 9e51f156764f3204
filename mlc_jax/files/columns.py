"""Columns of a table as features: numbers as they are, categories one-hot, and what is missing."""

import dataclasses
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, NoReturn

import numpy as np

from mlc_jax.errors import InputError

MAX_CATEGORIES = 100

_CHUNK = 4_096  # Rows that are turned into numbers at once.
_MISSING = ("na", "n/a", "nan", "null", "none")  # Of a column of numbers, no text.
_BOOLEANS = {"true": 1.0, "false": 0.0}
# A column with fewer numbers per text than that is one of texts.
_NUMBERS_PER_TEXT = 9


Row = tuple[int, Sequence[str | None]]
# (what is wrong, where the row stands, or None) -> raises an InputError: `Table.fail`.
Fail = Callable[[str, int | None], NoReturn]


class Column(NamedTuple):
    """How one column becomes features.

    Attributes:
      name: of the column.
      categories: a feature for each, 1 where the value is that, "" for a missing one; None for a
        column of numbers.
      median: in place of a number that is missing.
      has_missing: whether a feature more says where a number was missing.
    """

    name: str
    categories: tuple[str, ...] | None = None
    median: float = 0.0
    has_missing: bool = False

    @property
    def features(self) -> list[str]:
        """Names of its features."""
        if self.categories is not None:
            return [f"{self.name}={category}" for category in self.categories]
        return [self.name, *([f"{self.name} is missing"] if self.has_missing else [])]


@dataclasses.dataclass(frozen=True)
class Columns:
    """From values of a table, texts, to features.

    Attributes:
      columns: in the order of their features.
    """

    columns: tuple[Column, ...]

    @property
    def names(self) -> list[str]:
        return [column.name for column in self.columns]

    @property
    def features(self) -> list[str]:
        """Names of all features."""
        return [name for column in self.columns for name in column.features]

    def encode(self, fail: Fail, values: Iterable[Row]) -> np.ndarray:
        """Features `[N, F]` float32.

        A missing number is the median of those that the columns were made from; a missing category
        is one of its own if there was one; a category that was not there is none of them.

        Args:
          fail: see `Fail`.
          values: where each row stands, and its values in the order of `names`.

        Raises:
          InputError: a value that is no finite number where one should be.
        """
        chunks = []
        for lines, rows in _chunks(values):
            parts = []
            for column, texts in zip(self.columns, zip(*rows, strict=True), strict=True):
                parts += self._encode(column, fail, lines, [text or "" for text in texts])
            chunks.append(np.stack(parts, axis=1).astype(np.float32))
        return np.concatenate(chunks) if chunks else np.zeros((0, len(self.features)), np.float32)

    def _encode(
        self, column: Column, fail: Fail, lines: Sequence[int], texts: list[str]
    ) -> list[np.ndarray]:
        if column.categories is not None:
            values = np.array(texts)
            return [values == category for category in column.categories]
        numbers, bad = _numbers(texts)
        for row in np.flatnonzero(bad)[:1]:
            _fail_at(fail, column.name, texts[row], lines[row])
        missing = np.isnan(numbers)
        filled = np.where(missing, column.median, numbers)
        return [filled, missing] if column.has_missing else [filled]

    def encode_frame(self, frame: Any) -> np.ndarray:
        """The same for `frame[name]` of each column: a data frame, or a dict of columns.

        Raises:
          InputError: a column or a number that is not there.
        """

        def fail(problem: str, row: int | None) -> NoReturn:
            raise InputError(f"x: {'' if row is None else f'row {row}: '}{problem}")

        for name in self.names:
            if name not in frame:
                fail(f"has no column {name!r}, expected {', '.join(self.names)}", None)
        # What is not equal to itself is missing: NaN, NaT.
        columns = [
            ["" if x is None or x is _pandas_na() or x != x else str(x) for x in frame[name]]
            for name in self.names
        ]
        return self.encode(fail, enumerate(zip(*columns, strict=True)))

    def describe(self, features: np.ndarray) -> str:
        """The row that features `[F]` were made of, for a reader."""
        parts, start = [], 0
        for column in self.columns:
            values = features[start : start + len(column.features)]
            start += len(column.features)
            if column.categories is None:
                is_missing = column.has_missing and values[1]
                parts.append(f"{column.name}={'' if is_missing else f'{values[0]:.6g}'}")
            else:
                there = [x for x, y in zip(column.categories, values, strict=True) if y]
                parts.append(f"{column.name}={there[0] if there else '?'}")
        return ", ".join(parts)

    def to_json(self) -> list[dict[str, Any]]:
        """What `from_json` makes the same of."""
        return [column._asdict() for column in self.columns]

    @classmethod
    def from_json(cls, stored: Sequence[Mapping[str, Any]]) -> "Columns":
        columns = [Column(**x) for x in stored]
        return cls(
            tuple(
                x._replace(categories=None if x.categories is None else tuple(x.categories))
                for x in columns
            )
        )


class Survey:
    """What one column holds, row by row.

    Attributes:
      name: of the column.
    """

    def __init__(self, name: str):
        self.name = name
        self._numbers: list[np.ndarray] = []
        self._codes, self._categories = array("i"), {"": 0}
        self._num_texts = 0
        self._first_bad: tuple[str, int] | None = None

    def add(self, lines: Sequence[int], texts: list[str]) -> None:
        numbers, bad = _numbers(texts)
        self._numbers.append(numbers)
        for row in np.flatnonzero(bad).tolist():
            self._num_texts += texts[row].strip().lower() not in _MISSING
            self._first_bad = self._first_bad or (texts[row], lines[row])
        if len(self._categories) <= MAX_CATEGORIES + 1:
            for text in texts:
                self._codes.append(self._categories.setdefault(text, len(self._categories)))

    @property
    def is_numeric(self) -> bool:
        there = int(np.isfinite(self.numbers).sum())
        return there > 0 and there >= _NUMBERS_PER_TEXT * self._num_texts

    @property
    def is_empty(self) -> bool:
        return not self._num_texts and not np.isfinite(self.numbers).any()

    @property
    def numbers(self) -> np.ndarray:
        """`[N]`, NaN where there is none."""
        return np.concatenate(self._numbers)

    @property
    def codes(self) -> np.ndarray:
        """`[N]`, equal where texts are. Of no use with more than `MAX_CATEGORIES` of them."""
        return np.array(self._codes, np.int64)

    def column(self, fail: Fail, rows: np.ndarray) -> Column:
        """How it becomes features, by what stands in some rows.

        Raises:
          InputError: a text among numbers, or more than `MAX_CATEGORIES` texts.
        """
        if self.is_numeric:
            if self._first_bad:
                _fail_at(fail, self.name, *self._first_bad)
            numbers = self.numbers[rows]
            missing = np.isnan(numbers)
            median = 0.0 if missing.all() else float(np.median(numbers[~missing]))
            return Column(self.name, None, median, bool(missing.any()))
        if len(self._categories) > MAX_CATEGORIES + 1:
            fail(
                f"column {self.name!r} has more than {MAX_CATEGORIES} different texts; expected "
                "numbers, or fewer categories",
                None,
            )
        there = np.unique(self.codes[rows])
        names = list(self._categories)
        return Column(self.name, tuple(sorted(names[code] for code in there)))


def survey(names: Sequence[str], rows: Iterable[Row]) -> list[Survey]:
    """Looks at columns `names` of all rows; see `Columns.encode`."""
    surveys = [Survey(name) for name in names]
    for lines, chunk in _chunks(rows):
        for one, texts in zip(surveys, zip(*chunk, strict=True), strict=True):
            one.add(lines, [text or "" for text in texts])
    return surveys


def _pandas_na() -> Any:
    import pandas

    return pandas.NA


def _chunks(
    rows: Iterable[Row],
) -> Iterator[tuple[list[int], list[Sequence[str | None]]]]:
    remaining = iter(rows)
    while chunk := list(islice(remaining, _CHUNK)):
        lines, values = zip(*chunk, strict=True)
        yield list(lines), list(values)


def _numbers(texts: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Numbers `[n]` float64, NaN where there is none; and where something is that is no number."""
    values = np.array(texts, dtype=np.str_)
    missing = values == ""
    try:
        numbers = np.where(missing, "nan", values).astype(np.float64)
    except ValueError:
        numbers = np.array([_number(text) for text in texts])
    bad = ~missing & ~np.isfinite(numbers.astype(np.float32))
    return np.where(bad, np.nan, numbers), bad


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return _BOOLEANS.get(text.strip().lower(), np.nan)


def _fail_at(fail: Fail, name: str, text: str, line: int) -> NoReturn:
    fail(f"{name} is {text!r}, expected a number, or nothing where it is missing", line)
