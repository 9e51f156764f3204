"""Columns in memory become the texts that a file of them would hold."""

import datetime

import numpy as np
import pandas
import pytest

from mlc_jax.errors import InputError
from mlc_jax.files.memory.frames import Frame


@pytest.mark.parametrize(
    ("column", "texts"),
    [
        ([1, 2], ["1", "2"]),
        (np.array([2**53 + 1, -1]), ["9007199254740993", "-1"]),
        (np.array([1.0, np.nan, 0.5]), ["1", "", "0.5"]),  # pandas makes floats of 1 beside NaN.
        (np.array([True, False]), ["True", "False"]),
        (["a ", "", None, np.nan, pandas.NA], ["a ", "", "", "", ""]),
        ([1, "1.0", 2.0, True], ["1", "1.0", "2", "True"]),
        (pandas.Series([1, None], dtype="Int64"), ["1", ""]),
        (pandas.Series([True, None], dtype="boolean"), ["True", ""]),
        (pandas.Series(["x", None], dtype="string"), ["x", ""]),
        (pandas.Series(["x", None, "y"], dtype="category"), ["x", "", "y"]),
        (pandas.Series([2.0, None], dtype="category"), ["2", ""]),
        (pandas.to_datetime(["2024-01-31", None]), ["2024-01-31", ""]),
        (pandas.to_datetime(["2024-01-31 10:00"]), ["2024-01-31T10:00"]),
        ([datetime.date(2024, 1, 31), None], ["2024-01-31", ""]),
        (np.ma.array([1, 2], mask=[False, True]), ["1", ""]),
    ],
)
def test_values_become_texts(column, texts):
    assert Frame("x", {"a": column}).texts("a") == texts


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (3, "x: got int, expected a data frame or a dict of columns"),
        ({"a": [1], "b": [1, 2]}, "x: has columns of different lengths: {'a': 1, 'b': 2}"),
        (pandas.DataFrame([[1, 2]], columns=["a", "a"]), "has column 'a' 2 times"),
        ({"a": [1, {}]}, "x: row 1: column 'a' has dict {}, expected a number"),
        ({"a": [b"x"]}, "row 0: column 'a' has bytes"),
        ({"a": np.array([1j])}, "column 'a' holds complex128"),
        ({"a": np.zeros((2, 2))}, r"column 'a' has shape \(2, 2\)"),
    ],
)
def test_what_is_no_table_is_one_line(columns, message):
    with pytest.raises(InputError, match=message) as error:
        frame = Frame("x", columns)
        [*frame.rows(frame.columns())]
    assert "\n" not in str(error.value)


def test_rows_have_the_asked_columns():
    frame = Frame("x", {"a": [1, 2], "b": ["p", None]})
    assert [*frame.rows(["b"], ["c"], ["a"])] == [(0, ["p", None, "1"]), (1, ["", None, "2"])]
    with pytest.raises(InputError, match="x: has no column 'd', only 'a', 'b'"):
        next(frame.rows(["d"]))
