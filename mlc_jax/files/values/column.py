"""How one column of a table becomes features."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, NoReturn

import numpy as np

from mlc_jax.errors import shown
from mlc_jax.files.values import forms

# (problem, line of the row or None) -> raises an InputError: `Table.fail`.
Fail = Callable[[str, int | None], NoReturn]


class Column(NamedTuple):
    """How one column becomes features.

    Attributes:
      name: the column's name.
      categories: one feature for each, 1 in rows with that value; "" stands for a missing value.
        None for a column of numbers.
      median: replaces missing numbers.
      has_missing: whether a further feature marks missing numbers.
      form: how its numbers are written, one of `forms.FORMS`. Dates become days, times become parts
        of a day.
      offset: subtracted from its numbers, in float64, if float32 could not tell them apart.
      size: length of a list of numbers in each row; 0 if there is none.
      marks: points and commas in its numbers; None if that is not known, as in older workdirs.
      unit: `%` or a currency, if its numbers have one.
    """

    name: str
    categories: tuple[str, ...] | None = None
    median: float = 0.0
    has_missing: bool = False
    form: str = "point"
    offset: float = 0
    size: int = 0
    marks: str | None = None
    unit: str = ""

    @property
    def features(self) -> list[str]:
        """Names of the column's features."""
        if self.categories is not None:
            return [f"{self.name}={category}" for category in self.categories]
        if self.size:
            return [f"{self.name}[{i}]" for i in range(self.size)]
        return [self.name, *([f"{self.name} is missing"] if self.has_missing else [])]

    def encode(self, fail: Fail, lines: Sequence[int], texts: list[str]) -> list[np.ndarray]:
        """The column's features, `[n]` each; see `Columns.encode`."""
        if self.categories is not None:
            values = np.array([forms.category(text) for text in texts], object)
            return [values == category for category in self.categories]
        if self.size:
            return self._lists(fail, lines, texts)
        numbers, bad = forms.read(texts, self.form)
        for row in np.flatnonzero(bad)[:1]:
            fail_at(fail, self, texts[row], lines[row])
        if self.marks is not None and self.form in ("point", "comma"):
            self._check_written(fail, self.marks, lines, texts)
        if self.is_whole:
            numbers = np.array([
                np.nan if gone else forms.read_whole(text, int(self.offset))
                for text, gone in zip(texts, np.isnan(numbers), strict=True)
            ])  # fmt: skip
            return self._filled(numbers)
        return self.of_numbers(numbers)

    @property
    def is_whole(self) -> bool:
        """Whether its numbers are whole ones that float64 cannot hold."""
        return isinstance(self.offset, int) and self.offset != 0

    def of_numbers(self, numbers: np.ndarray) -> list[np.ndarray]:
        """The features of `[n]` numbers, NaN where one is missing."""
        return self._filled(numbers - self.offset)

    def _filled(self, numbers: np.ndarray) -> list[np.ndarray]:
        missing = np.isnan(numbers)
        filled = np.where(missing, self.median, numbers)
        return [filled, missing] if self.has_missing else [filled]

    def _check_written(
        self, fail: Fail, marks: str, lines: Sequence[int], texts: list[str]
    ) -> None:
        """Refuses numbers that another program may have written in another way."""
        for unit, first in forms.units(texts).items():
            if forms.differ(unit, self.unit):
                fail(
                    f"{self.name} is {shown(texts[first])}, and numbers to learn from are written "
                    f"{f'with {self.unit}' if self.unit else 'without'}; expected them alike",
                    lines[first],
                )
        place = forms.misread(texts, self.form, marks)
        if place is not None:
            self._fail_as_either(fail, lines[place], texts[place])

    def _fail_as_either(self, fail: Fail, line: int, text: str) -> NoReturn:
        """Refuses `1,234` where it may be a thousand, or a little more than one."""
        mark, decimal = "," if "," in text else ".", "," if self.form == "comma" else "."
        small = text.replace(mark, decimal) + ("0" if mark == decimal else "")
        name = {",": "comma", ".": "point"}[mark]
        fail(
            f"{self.name} is {shown(text)}, and no number to learn from has a {name}; expected "
            f"{text.replace(mark, '')} or {small}, whichever it is",
            line,
        )

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
        """A row's features `[n]` of the column, as text for people."""
        if self.categories is not None:
            there = [x for x, y in zip(self.categories, values, strict=True) if y]
            return f"{self.name}={there[0] if there else '?'}"
        if self.size:
            return f"{self.name}=[{', '.join(f'{x:.3g}' for x in values[:3])}, ...]"
        is_missing = self.has_missing and values[1]
        number = float(values[0]) + self.offset
        if self.form in forms.DATES and not is_missing:
            return f"{self.name}={forms.day_of(number)}"
        return f"{self.name}={'' if is_missing else f'{number:.{16 if self.offset else 6}g}'}"


def fail_at(fail: Fail, column: Column, text: str, line: int) -> NoReturn:
    """Refuses a text that the form of its column cannot read."""
    kinds = {"time": "a time of day", "list": "a list of numbers"}
    kind = "a date" if column.form in forms.DATES else "a number"
    if column.form == "comma":
        kind = "a number with a decimal comma"
    kind = kinds.get(column.form, kind)
    fail(f"{column.name} is {shown(text)}, expected {kind}, or nothing where it is missing", line)
