"""A small table of cats and dogs, which tests of hostile inputs spoil in many ways."""

import numpy as np
import pandas
import pytest

SIZE = 120
ROWS = np.arange(SIZE)
_RNG = np.random.default_rng(0)
TRUTH = np.array(["cat", "dog"])[_RNG.integers(2, size=SIZE)]
OTHER = np.where(TRUTH == "cat", "dog", "cat")
GIVEN = np.where(ROWS % 5 == 1, OTHER, TRUTH)
CHECKED = np.where(ROWS % 2 == 0, TRUTH, "")
A, B = _RNG.normal(size=(2, SIZE)).round(4)
WORDS = np.array(["Rome", "Bonn", "Oslo"])[_RNG.integers(3, size=SIZE)]
DAYS = [f"2024-{1 + i % 12:02d}-{1 + i % 28:02d}" for i in ROWS]
X = np.stack([A, B], axis=1)


def table(drop=(), **columns):
    """A table that is as it should be, with other columns."""
    frame = pandas.DataFrame({"label": GIVEN, "checked_label": CHECKED, "a": A, "b": B})
    for name, values in columns.items():
        frame[name] = list(values) if hasattr(values, "__len__") and len(values) == SIZE else values
    return frame.drop(columns=list(drop))


def csv(frame, **options):
    return frame.to_csv(index=False, **options).encode()


def one_line(error):
    """The message, which is one line of a length that one can read."""
    text = str(error)
    assert "\n" not in text and len(text) < 1_500
    return text


def cases(lines):
    """For `parametrize`, of lines whose first value is their name."""
    return [pytest.param(*line[1:], id=line[0]) for line in lines]
