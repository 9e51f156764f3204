"""What one column of a table holds, and which kind of feature it becomes."""

from array import array
from collections.abc import Sequence

import numpy as np

from mlc_jax.errors import shown
from mlc_jax.files.values import forms
from mlc_jax.files.values.column import Column, Fail, fail_at

MAX_CATEGORIES = 100  # The most categories of any column.
FAR = 1e6  # A number so many interquartile ranges from the median is probably a slip.
SMALL = float(np.finfo(np.float32).tiny)  # Numbers that differ by less become equal in float32.

# If half of the rows are equal, the largest share of slips: more rows are a group of their own.
_SLIPS = 0.05
# A column with fewer numbers per text is a column of texts.
_NUMBERS_PER_TEXT = 9
_READ = 0.1  # The least share of the first values that a form must read to be tried further.


class Survey:
    """What one column holds, row by row.

    Args:
      name: of the column.
      lines: the line of each row, shared by all columns.
      may_have_commas: whether decimal commas are likely, as where `;` separates the columns.
      are_numbers: whether its values are numbers in the file or frame, not texts.

    Attributes:
      name: of the column.
      form: how its numbers are written, one of `forms.FORMS`; "" if days and months are ambiguous.
    """

    def __init__(
        self, name: str, lines: "array[int] | None" = None, *, may_have_commas: bool = False,
        are_numbers: bool = False,
    ):  # fmt: skip
        self.name, self.form = name, "point"
        self._may_have_commas, self._has_commas = may_have_commas, False
        self._lines = array("q") if lines is None else lines
        self._read: dict[str, list[np.ndarray]] = {
            form: [] for form in (["point"] if are_numbers else forms.FORMS)
        }
        self._num_texts = dict.fromkeys(forms.FORMS, 0)
        self._first_bad: dict[str, tuple[str, int]] = {}
        self._codes, self._categories = array("i"), {"": 0}
        self._is_decided = False
        self._sizes: set[int] = set()
        self._marks, self._units = "", dict[str, tuple[str, int]]()

    def add(self, lines: Sequence[int], texts: list[str]) -> None:
        """Adds some rows: their lines, and their values in the column."""
        num_there, point_alone = 0, False
        for form, chunks in self._read.items():
            numbers, bad = forms.read(texts, form)
            chunks.append(numbers)
            self._num_texts[form] += int(bad.sum())
            for row in np.flatnonzero(bad)[:1].tolist():
                self._first_bad.setdefault(form, (texts[row], lines[row]))
            num_there = int(bad.sum()) + int(np.isfinite(numbers).sum())
            if form == "point" and num_there and not bad.any() and not self._is_decided:
                # Other forms are not tried, unless a comma or a point has two possible meanings.
                point_alone = not (
                    self._may_have_commas and any("," in x or "." in x for x in texts)
                )
                if point_alone:
                    break
        self._forget(num_there, point_alone=point_alone)
        self._marks = forms.marks([self._marks, *texts])
        for unit, place in forms.units(texts).items():
            self._units.setdefault(unit, (texts[place], lines[place]))
        self._has_commas |= self._may_have_commas and any("," in text for text in texts)
        if "list" in self._read:
            self._sizes |= {len(x) for text in texts if (x := forms.read_list(text)) is not None}
        if len(self._categories) <= MAX_CATEGORIES + 1:
            for text in texts:
                value = forms.category(text)
                self._codes.append(self._categories.setdefault(value, len(self._categories)))

    def _forget(self, num_there: int, *, point_alone: bool) -> None:
        """Drops the forms that read too few of the first values."""
        if not num_there or self._is_decided:
            return
        self._is_decided, kept = True, ["point"]
        if not point_alone:
            read = {form: np.isfinite(x[-1]).sum() for form, x in self._read.items()}
            kept = [form for form in self._read if read[form] >= max(1, _READ * num_there)]
        self._read = {form: self._read[form] for form in kept or ["point"]}

    def decide(self, *, commas: bool = False) -> None:
        """Chooses the form that reads the most values, once all rows are in.

        Args:
          commas: whether other columns have decimal commas, so `1,234` is 1.234 here.
        """
        fewest = min(self._num_texts[form] for form in self._read)
        best = [form for form in self._read if self._num_texts[form] == fewest]
        self.form = best[0]
        if {"point", "comma"} <= {*best} and (commas or self._has_commas):
            self.form = "comma"
        if {"day first", "month first"} <= {*best}:
            day, month = (np.concatenate(self._read[x]) for x in ("day first", "month first"))
            if not np.array_equal(day, month, equal_nan=True):
                self.form = ""

    @property
    def is_numeric(self) -> bool:
        """Whether at least nine in ten values are numbers, dates, times or lists."""
        there = int(np.isfinite(self.numbers).sum())
        return there > 0 and there >= _NUMBERS_PER_TEXT * self._num_texts[self.form or "day first"]

    @property
    def is_empty(self) -> bool:
        """Whether all values are missing."""
        there = np.isfinite(self.numbers).any()
        return not there and not self._num_texts[self.form or "day first"]

    @property
    def numbers(self) -> np.ndarray:
        """`[N]` float64, NaN where a value is missing or is no number."""
        return np.concatenate(self._read[self.form or "day first"])

    @property
    def codes(self) -> np.ndarray:
        """`[N]`, equal where texts are equal; of no use if there are more than `MAX_CATEGORIES`."""
        return np.array(self._codes, np.int64)

    @property
    def texts(self) -> list[str] | None:
        """The text of each code; None if there are more than `MAX_CATEGORIES`."""
        return None if len(self._categories) > MAX_CATEGORIES + 1 else list(self._categories)

    def cells(self) -> list[str]:
        """The N texts of a column with at most `MAX_CATEGORIES` different ones."""
        texts = list(self._categories)
        return [texts[code] for code in self._codes]

    def values(self) -> np.ndarray | None:
        """`[N]`, equal where values are equal, NaN where one is missing; None for many texts."""
        if self.is_numeric and self.form != "list":
            return self.numbers
        return None if self.texts is None else np.where(self.codes == 0, np.nan, self.codes)

    def encode(self, column: Column) -> list[np.ndarray] | None:
        """`Column.encode` of all rows; None for lists and `is_whole`, which are not kept."""
        if column.categories is not None:
            return [self.codes == self._categories[x] for x in column.categories]
        return None if column.size or column.is_whole else column.of_numbers(self.numbers)

    def column(self, fail: Fail, rows: np.ndarray) -> Column:
        """How the column becomes features, by its values in `rows`, `[N]` bool.

        Raises:
          InputError: a text among numbers, a number that is far off, units that differ, ambiguous
            dates, unequal lists, or more than `MAX_CATEGORIES` texts.
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
            fail_at(fail, Column(self.name, form=self.form), *self._first_bad[self.form])
        if self.form == "list":
            return self._of_lists(fail)
        numbers = self.numbers[rows]
        missing = np.isnan(numbers)
        there = numbers[~missing]
        if not len(there):
            return Column(self.name, None, 0.0, True, self.form, marks=self._marks)
        self._check_far(fail, rows, there)
        if 0 < np.ptp(there) < SMALL:
            fail(f"column {self.name!r} {too_small(np.ptp(there))}", None)
        median = float(np.median(there))
        offset = _offset(there, median)
        return Column(
            self.name, None, median - offset, bool(missing.any()), self.form, offset,
            marks=self._marks, unit=self._unit(fail),
        )  # fmt: skip

    def _unit(self, fail: Fail) -> str:
        """The currency of its numbers, or `%`."""
        if self.form not in ("point", "comma"):
            return ""
        unit = next((unit for unit in self._units if unit), "")
        for other, (text, line) in self._units.items():
            if forms.differ(unit, other):
                like = shown(self._units[unit][0])
                fail(
                    f"{self.name} is {shown(text)}, and others are {like}; expected one unit", line
                )
        return unit

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
        """Refuses a number that is far off: scaling would make all others equal."""
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


def too_small(span: float) -> str:
    """The problem of numbers whose `span` is less than `SMALL`, for messages."""
    return f"has numbers that differ by {span:g} at most; expected them in a smaller unit"


def far_off(numbers: np.ndarray) -> int | None:
    """The place of the first of `[n]` finite numbers that is `FAR` off; None if there is none."""
    median = np.median(numbers)
    distances = np.abs(numbers - median)
    spread = np.subtract(*np.percentile(numbers, (75, 25)))
    most = len(numbers)
    if spread == 0:  # At least half are equal: the others set the scale.
        most = max(1, int(_SLIPS * len(numbers)))
        others = numbers[numbers != median]
        spread = np.median(np.abs(others - median)) if len(others) > 3 else np.inf
    far = np.flatnonzero(distances > FAR * spread)
    return int(far[0]) if 0 < len(far) <= most else None


def _offset(numbers: np.ndarray, median: float) -> float:
    """What to subtract so that float32 tells numbers apart: 0 if it does, an int from 2**53 on."""
    if len(np.unique(numbers.astype(np.float32))) == len(np.unique(numbers)) and (
        np.abs(numbers).max() < 2**53
    ):
        return 0
    return int(median) if np.abs(numbers).max() >= 2**53 else median
