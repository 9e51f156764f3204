"""Columns of a table as features: numbers as they are, categories one-hot, and what is missing.

One rule says what becomes a feature, for files and for data frames: `chosen`.
"""

import dataclasses
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple, NoReturn

import numpy as np
from absl import logging

from mlc_jax.errors import shown
from mlc_jax.files.values import forms

MAX_CATEGORIES = 100  # Of a column that is named.
FEW_CATEGORIES = 50  # Of one that is not: as many at most, each in
ROWS_PER_CATEGORY = 5  # so many rows on average.
FAR = 1e6  # Interquartile ranges from the median.
_SLIPS = 0.05  # Of the rows, at most: more that are so far off are a group of their own.

_CHUNK = 4_096  # Rows that are turned into numbers at once.
# A column with fewer numbers per text than that is one of texts.
_NUMBERS_PER_TEXT = 9
_READ = 0.1  # Of the first values, what a form must read to be tried further.

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
      form: how its numbers are written, of `forms.FORMS`; dates become days, times of day parts of
        one.
      offset: taken off its numbers, in float64, where float32 could not tell them apart.
      size: of a list of numbers in each row; 0 where there is none.
    """

    name: str
    categories: tuple[str, ...] | None = None
    median: float = 0.0
    has_missing: bool = False
    form: str = "point"
    offset: float = 0
    size: int = 0

    @property
    def features(self) -> list[str]:
        """Names of its features."""
        if self.categories is not None:
            return [f"{self.name}={category}" for category in self.categories]
        if self.size:
            return [f"{self.name}[{i}]" for i in range(self.size)]
        return [self.name, *([f"{self.name} is missing"] if self.has_missing else [])]

    def encode(self, fail: Fail, lines: Sequence[int], texts: list[str]) -> list[np.ndarray]:
        """Its features, `[n]` each; see `Columns.encode`."""
        if self.categories is not None:
            values = np.array([forms.category(text) for text in texts], object)
            return [values == category for category in self.categories]
        if self.size:
            return self._lists(fail, lines, texts)
        numbers, bad = forms.read(texts, self.form)
        for row in np.flatnonzero(bad)[:1]:
            _fail_at(fail, self, texts[row], lines[row])
        missing = np.isnan(numbers)
        if isinstance(self.offset, int) and self.offset:
            numbers = np.array([
                np.nan if gone else forms.read_whole(text, self.offset)
                for text, gone in zip(texts, missing, strict=True)
            ])  # fmt: skip
        else:
            numbers = numbers - self.offset
        filled = np.where(missing, self.median, numbers)
        return [filled, missing] if self.has_missing else [filled]

    def _lists(self, fail: Fail, lines: Sequence[int], texts: list[str]) -> list[np.ndarray]:
        rows = []
        for text, line in zip(texts, lines, strict=True):
            values = forms.read_list(text)
            if values is None or len(values) != self.size:
                fail(f"{self.name} is {shown(text)}, expected a list of {self.size} numbers", line)
            if not np.isfinite(np.array(values).astype(np.float32)).all():
                fail(f"{self.name} is {shown(text)}, expected finite numbers", line)
            rows.append(values)
        return list(np.array(rows).T)

    def describe(self, values: np.ndarray) -> str:
        """What a row's features of it say, for a reader."""
        if self.categories is not None:
            there = [x for x, y in zip(self.categories, values, strict=True) if y]
            return f"{self.name}={there[0] if there else '?'}"
        if self.size:
            return f"{self.name}=[{', '.join(f'{x:.3g}' for x in values[:3])}, ...]"
        is_missing = self.has_missing and values[1]
        number = float(values[0]) + self.offset
        return f"{self.name}={'' if is_missing else f'{number:.{16 if self.offset else 6}g}'}"


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
        is one of its own if there was one; a category that was not there is none of them, and
        counted in a warning.

        Args:
          fail: see `Fail`.
          values: where each row stands, and its values in the order of `names`.

        Raises:
          InputError: a value that is no finite number where one should be.
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

    def describe(self, features: np.ndarray) -> str:
        """The row that features `[F]` were made of, for a reader."""
        parts, start = [], 0
        for column in self.columns:
            values = features[start : start + len(column.features)]
            start += len(column.features)
            parts.append(column.describe(values))
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
      form: how its numbers are written, of `forms.FORMS`; "" where that cannot be known.
    """

    def __init__(self, name: str, lines: "array[int] | None" = None):
        self.name, self.form = name, "point"
        self._lines = array("q") if lines is None else lines  # Of all columns.
        self._read: dict[str, list[np.ndarray]] = {form: [] for form in forms.FORMS}
        self._num_texts = dict.fromkeys(forms.FORMS, 0)
        self._first_bad: dict[str, tuple[str, int]] = {}
        self._codes, self._categories = array("i"), {"": 0}
        self._is_decided = False
        self._sizes: set[int] = set()

    def add(self, lines: Sequence[int], texts: list[str]) -> None:
        num_there = 0
        for form, chunks in self._read.items():
            numbers, bad = forms.read(texts, form)
            chunks.append(numbers)
            self._num_texts[form] += int(bad.sum())
            for row in np.flatnonzero(bad)[:1].tolist():
                self._first_bad.setdefault(form, (texts[row], lines[row]))
            num_there = int(bad.sum()) + int(np.isfinite(numbers).sum())
            if form == "point" and num_there and not bad.any() and not self._is_decided:
                self._is_decided = True
                break
        self._forget(num_there)
        if "list" in self._read:
            self._sizes |= {len(x) for text in texts if (x := forms.read_list(text)) is not None}
        if len(self._categories) <= MAX_CATEGORIES + 1:
            for text in texts:
                value = forms.category(text)
                self._codes.append(self._categories.setdefault(value, len(self._categories)))

    def _forget(self, num_there: int) -> None:
        """Forms that do not read what is there are not tried again."""
        if not num_there or len(self._read) == 1:
            return
        if self._is_decided:
            kept = ["point"]
        else:
            self._is_decided = True
            read = {form: np.isfinite(x[-1]).sum() for form, x in self._read.items()}
            kept = [form for form in self._read if read[form] >= max(1, _READ * num_there)]
        self._read = {form: self._read[form] for form in kept or ["point"]}

    def decide(self, *, commas: bool = False) -> None:
        """Chooses the form that reads most; once all rows are in.

        Args:
          commas: whether other columns have decimal commas: `1,234` may be either.
        """
        fewest = min(self._num_texts[form] for form in self._read)
        best = [form for form in self._read if self._num_texts[form] == fewest]
        self.form = best[0]
        if {"point", "comma"} <= {*best} and commas:
            self.form = "comma"
        if {"day first", "month first"} <= {*best} and not np.array_equal(
            *(np.concatenate(self._read[x]) for x in ("day first", "month first")), equal_nan=True
        ):
            self.form = ""

    @property
    def is_numeric(self) -> bool:
        there = int(np.isfinite(self.numbers).sum())
        return there > 0 and there >= _NUMBERS_PER_TEXT * self._num_texts[self.form or "day first"]

    @property
    def is_empty(self) -> bool:
        there = np.isfinite(self.numbers).any()
        return not there and not self._num_texts[self.form or "day first"]

    @property
    def numbers(self) -> np.ndarray:
        """`[N]`, NaN where there is none."""
        return np.concatenate(self._read[self.form or "day first"])

    @property
    def codes(self) -> np.ndarray:
        """`[N]`, equal where texts are. Of no use with more than `MAX_CATEGORIES` of them."""
        return np.array(self._codes, np.int64)

    @property
    def texts(self) -> list[str] | None:
        """What `codes` are of; None if there are more than `MAX_CATEGORIES`."""
        return None if len(self._categories) > MAX_CATEGORIES + 1 else list(self._categories)

    def values(self) -> np.ndarray | None:
        """`[N]`, equal where values are, NaN or 0 where one is missing; None of unlike texts."""
        if self.is_numeric:
            return None if self.form == "list" else self.numbers
        return None if self.texts is None else np.where(self.codes == 0, np.nan, self.codes)

    def column(self, fail: Fail, rows: np.ndarray) -> Column:
        """How it becomes features, by what stands in some rows.

        Raises:
          InputError: a text among numbers, or more than `MAX_CATEGORIES` texts.
        """
        if self.is_numeric:
            return self._of_numbers(fail, rows)
        if self.texts is None:
            fail(
                f"column {self.name!r} has more than {MAX_CATEGORIES} different texts; expected "
                "numbers, or fewer categories",
                None,
            )
        there = np.unique(self.codes[rows])
        return Column(self.name, tuple(sorted(self.texts[code] for code in there)))

    def _of_numbers(self, fail: Fail, rows: np.ndarray) -> Column:
        if not self.form:
            fail(
                f"column {self.name!r} has dates whose day and month cannot be told apart; "
                "expected them as 2024-12-31",
                None,
            )
        if self.form in self._first_bad:
            _fail_at(fail, Column(self.name, form=self.form), *self._first_bad[self.form])
        if self.form == "list":
            return self._of_lists(fail)
        numbers = self.numbers[rows]
        missing = np.isnan(numbers)
        there = numbers[~missing]
        if not len(there):
            return Column(self.name, None, 0.0, True, self.form)
        self._check_far(fail, rows, there)
        median = float(np.median(there))
        offset = _offset(there, median)
        return Column(self.name, None, median - offset, bool(missing.any()), self.form, offset)

    def _of_lists(self, fail: Fail) -> Column:
        missing = np.flatnonzero(np.isnan(self.numbers))
        if len(missing):
            line = self._lines[int(missing[0])]
            fail(f"{self.name} is empty, expected a list of numbers in each row", line)
        if len(self._sizes) > 1:
            fail(f"column {self.name!r} has lists of {min(self._sizes)} to {max(self._sizes)} "
                 "numbers; expected equally many in each row", None)  # fmt: skip
        return Column(self.name, form="list", size=self._sizes.copy().pop())

    def _check_far(self, fail: Fail, rows: np.ndarray, there: np.ndarray) -> None:
        """A value that far off is a slip, and would leave nothing of all others."""
        row = far_off(there)
        if row is None:
            return
        numbers = self.numbers
        place = int(np.flatnonzero(rows & ~np.isnan(numbers))[row])
        fail(
            f"{self.name} is {numbers[place]:g}, while others are about {np.median(there):g}; "
            "expected a number like them, or nothing where it is missing",
            self._lines[place],
        )


def far_off(numbers: np.ndarray) -> int | None:
    """The place in `[n]` finite numbers of the first that is `FAR` off; None if there is none."""
    median = np.median(numbers)
    distances = np.abs(numbers - median)
    spread = np.subtract(*np.percentile(numbers, (75, 25)))
    if spread == 0:  # More than half are equal: what is usual of the others?
        others = numbers[numbers != median]
        spread = np.median(np.abs(others - median)) if len(others) > 3 else np.inf
    far = np.flatnonzero(distances > FAR * spread)
    return int(far[0]) if 0 < len(far) <= max(1, _SLIPS * len(numbers)) else None


def _offset(numbers: np.ndarray, median: float) -> float:
    """What is taken off, so that float32 tells numbers apart; a whole one beyond 2**53."""
    if len(np.unique(numbers.astype(np.float32))) == len(np.unique(numbers)) and (
        np.abs(numbers).max() < 2**53
    ):
        return 0
    return int(median) if np.abs(numbers).max() >= 2**53 else median


def survey(names: Sequence[str], rows: Iterable[Row]) -> list[Survey]:
    """Looks at columns `names` of all rows; see `Columns.encode`."""
    places = array("q")
    surveys = [Survey(name, places) for name in names]
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


def left_out(one: Survey, rows: np.ndarray) -> str | None:
    """Why a column that nobody named becomes no feature; None if it becomes one.

    Numbers, booleans, dates and lists of numbers do, and texts of few categories. Columns that say
    nothing do not: those with one value, and numbers of rows.

    Args:
      one: of all rows.
      rows: `[N]` bool, those that are learned from.
    """
    if one.is_empty:
        return "empty"
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
    if values is None or (one.is_numeric and len(np.unique(one.codes[: len(rows)][rows])) > 1
                          and np.nanmax(np.abs(values)) >= 2**53):  # fmt: skip
        return False
    values = values[rows]
    return bool(np.isnan(values).all()) or bool((values == values[0]).all())


def _counts_up(numbers: np.ndarray) -> bool:
    """Whether whole numbers count up by one, row by row."""
    steps = np.diff(numbers)
    return len(steps) > 1 and bool((steps == 1).all()) and numbers[0] == int(numbers[0])


class _Unseen:
    """Values at prediction that training did not have."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[int, str]] = {}

    def count(self, column: Column, texts: list[str], found: list[np.ndarray]) -> None:
        if column.categories is None:
            return
        none = ~np.any(found, axis=0) if found else np.ones(len(texts), bool)
        if none.any():
            count, first = self._found.get(column.name, (0, texts[int(none.argmax())]))
            self._found[column.name] = (count + int(none.sum()), first)

    def warn(self) -> None:
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


def _fail_at(fail: Fail, column: Column, text: str, line: int) -> NoReturn:
    kinds = {"time": "a time of day", "list": "a list of numbers"}
    kind = "a date" if column.form in ("date", "day first", "month first") else "a number"
    if column.form == "comma":
        kind = "a number with a decimal comma"
    kind = kinds.get(column.form, kind)
    fail(f"{column.name} is {shown(text)}, expected {kind}, or nothing where it is missing", line)
