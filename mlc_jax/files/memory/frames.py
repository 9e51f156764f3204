"""A data frame, or a dict of columns, with the interface of a table file."""

import collections
import datetime
import decimal
import numbers
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from mlc_jax.errors import InputError, readable
from mlc_jax.files.label_columns import NAMES
from mlc_jax.files.tables import Row, Table


class Frame(Table):
    """Columns in memory; every value becomes the text that it would be in a file.

    A missing value (None, NaN, NaT, pandas.NA) becomes an empty field. `1.0` becomes `1`, because
    pandas makes floats of whole numbers if a value of the column is missing.

    Args:
      field: what messages call it.
      columns: a data frame, or a dict from names to columns of one length.

    Raises:
      InputError: it is no frame or dict, columns differ in length, or two have one name.
    """

    def __init__(self, field: str, columns: Any):
        self.field, self.path = field, "in memory"
        self._header = None
        columns = as_frame(columns)
        if not hasattr(columns, "columns") and not isinstance(columns, Mapping):
            raise InputError(
                f"{field}: got {type(columns).__name__}, expected a data frame or a dict of columns"
            )
        names = [*columns.columns] if hasattr(columns, "columns") else [*columns]
        self._names = [str(name) for name in names]
        for name, count in collections.Counter(self._names).items():
            if count > 1:
                self.fail(f"has column {name!r} {count} times, expected it once")
        self._columns = {str(name): columns[name] for name in names}
        for name, column in self._columns.items():
            if not hasattr(column, "__len__") or isinstance(column, str | bytes):
                kind = type(column).__name__
                self.fail(f"column {name!r} is {kind}, expected one value for each row")
        lengths = {name: len(column) for name, column in self._columns.items()}
        if len(set(lengths.values())) > 1:
            self.fail(f"has columns of different lengths: {lengths}")
        self._cells: dict[str, list[str]] = {}

    def __len__(self) -> int:
        return len(next(iter(self._columns.values()))) if self._columns else 0

    may_have_commas = False

    def numbers(self) -> set[str]:
        """Columns of numbers."""
        return {name for name, column in self._columns.items() if _are_numbers(column)}

    def columns(self) -> list[str]:
        return list(self._names)

    header = columns

    def unread(self) -> dict[str, str]:
        """Columns of objects that are no values of a table, such as dicts or pictures."""
        found = {}
        for name in self._names:
            column = self._columns[name]
            if np.dtype(object) == getattr(column, "dtype", None) and name not in NAMES:
                first = next((x for x in column if not is_missing(x)), "")
                if _is_other(first):
                    found[name] = type(first).__name__
        return found

    def rows(
        self,
        required: Sequence[str],
        optional: Sequence[str] = (),
        values: Sequence[str] = (),
    ) -> Iterator[Row]:
        self._find(self._names, [*required], [*optional], [*values])
        none = [None] * len(self)
        columns = [
            self.texts(name) if name in self._columns else none
            for name in (*required, *optional, *values)
        ]
        for number in range(len(self)):
            yield number, [column[number] for column in columns]

    def texts(self, name: str) -> list[str]:
        """One column as text, `[N]`; "" where a value is missing.

        Raises:
          InputError: a value that is neither a text nor a number, a boolean or a date.
        """
        if name not in self._cells:
            self._cells[name] = self.as_texts(name, self._columns[name])
        return self._cells[name]

    def place(self, number: int) -> str:
        """Rows are counted from 0, as `frame.iloc` does."""
        return f"row {number}"

    def fail(self, problem: str, number: int | None = None) -> NoReturn:
        where = "" if number is None else f" {self.place(number)}:"
        raise InputError(f"{self.field}:{where} {readable(problem)}")

    def as_texts(self, name: str, column: Any) -> list[str]:
        """Any column as N texts; `name` is for messages. Errors are those of `texts`."""
        if hasattr(column, "cat"):  # Each of pandas' categories is converted once.
            texts = self.as_texts(name, column.cat.categories)
            return [texts[code] if code >= 0 else "" for code in column.cat.codes.tolist()]
        if isinstance(column, np.ma.MaskedArray):
            column = without(column.data, np.ma.getmaskarray(column))
        if isinstance(column, list | tuple):  # NumPy would make one type of them.
            array = np.empty(len(column), object)
            array[:] = column
        else:
            array = column.to_numpy() if hasattr(column, "to_numpy") else np.asarray(column)
        if array.ndim != 1:
            self.fail(f"column {name!r} has shape {array.shape}, expected one value for each row")
        if array.dtype.kind in "iub":
            return [str(x) for x in array.tolist()]
        if array.dtype.kind == "f":
            array = array.astype(np.float64)  # The repr of other floats differs.
            return [_of_float(x) for x in array.tolist()]
        if array.dtype.kind == "M":
            iso = np.datetime_as_string(array, unit="auto").tolist()
            return ["" if text == "NaT" else text for text in iso]
        if array.dtype.kind == "m":  # In days, as dates are.
            return [_of_float(x) for x in (array / np.timedelta64(1, "D")).tolist()]
        if array.dtype.kind in "UT":
            return [str(x) for x in array.tolist()]
        if array.dtype.kind != "O":
            self.fail(
                f"column {name!r} holds {array.dtype}, expected numbers, texts, booleans or dates"
            )
        return [self._text(name, row, x) for row, x in enumerate(array.tolist())]

    def _text(self, name: str, row: int, value: Any) -> str:
        if isinstance(value, str):
            return value
        if value is None or value is _pandas_na():
            return ""
        if isinstance(value, bool | np.bool_):
            return str(bool(value))
        if isinstance(value, numbers.Integral):
            return str(int(value))
        if isinstance(value, numbers.Real):
            return _of_float(float(value))
        if isinstance(value, decimal.Decimal):
            return "" if value.is_nan() else str(value)
        if hasattr(value, "to_timestamp"):  # A period of pandas: its start.
            return self._text(name, row, value.to_timestamp())
        if hasattr(value, "closed") and hasattr(value, "mid"):  # An interval, as of pandas.cut.
            return str(value)
        if isinstance(value, datetime.timedelta):
            return _of_float(value / datetime.timedelta(days=1))
        if isinstance(value, datetime.date | datetime.time | np.datetime64):
            return "" if value != value else str(value)  # NaT is not equal to itself.
        if isinstance(value, list | tuple | np.ndarray) and not isinstance(value, np.generic):
            return str(np.asarray(value).tolist())  # A list of numbers, such as an embedding.
        return self.fail(
            f"column {name!r} has {type(value).__name__} {_short(value)}, expected a number, a "
            "text, a boolean or a date",
            row,
        )


def without(values: np.ndarray, missing: np.ndarray) -> np.ndarray:
    """Values as objects, with None where `missing`, bool of the same shape, is True."""
    objects = values.astype(object)
    objects[missing] = None
    return objects


def _of_float(value: float) -> str:
    if value != value:
        return ""
    # From 2**53 on, not every whole number is a float.
    return str(int(value)) if value.is_integer() and abs(value) < 2**53 else repr(value)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def as_frame(columns: Any) -> Any:
    """Turns an Arrow table into a data frame; leaves everything else as it is."""
    return columns.to_pandas() if hasattr(columns, "column_names") else columns


def is_missing(value: Any) -> bool:
    """Whether a value is None, NaN or pandas.NA."""
    return value is None or value is _pandas_na() or (isinstance(value, float) and value != value)


def _are_numbers(column: Any) -> bool:
    if isinstance(column, list | tuple):
        return all(isinstance(x, numbers.Real) or is_missing(x) for x in column)
    return getattr(getattr(column, "dtype", None), "kind", "") in {*"iuf"}


def _is_other(value: Any) -> bool:
    """Whether a value has a type that no table has."""
    known = (str, numbers.Real, decimal.Decimal, datetime.date, datetime.time, datetime.timedelta)
    known_too = (np.generic, np.ndarray, list, tuple, complex)
    of_pandas = hasattr(value, "to_timestamp") or hasattr(value, "closed")
    return isinstance(value, bytes) or not (isinstance(value, (*known, *known_too)) or of_pandas)


def _pandas_na() -> Any:
    import pandas

    return pandas.NA
