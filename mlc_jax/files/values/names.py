"""Names of classes: which are the same, and which only look alike."""

import functools
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping

import numpy as np

_WHOLE = re.compile(r"([+-]?\d+)\.0*")
_BETWEEN = re.compile(r"(?<=\w)[\s_\u2010-\u2015-]+(?=\w)")  # big cat, big_cat, big-cat.
_NUMBER = re.compile(r"[+-]?(0+\d+|\d+[.,]0*|\d+([.,]\d+)?[eE][+-]?\d+)", re.ASCII)
_DECIMAL = re.compile(r"[+-]?\d+([.,]\d*)?")
_DIGITS = 15  # Longer numbers are compared as texts: float64 is not exact.
# Letters of other alphabets that look like Latin ones, and curly quotes.
_ALIKE = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0455\u0458\u03bf\u2018\u2019\u201c\u201d",
    "aeopcyxisjo''\"\"",
)
MAX_LENGTH = 200  # The most characters of a label.
# A spreadsheet executes a value that begins with one of these; `for_spreadsheet` prevents it.
_RUNS = re.compile(r"'*[=+\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")  # The last are full-width ones.


def whole(name: str) -> str:
    """Turns `1.0` into `1`: many programs make floats of a column with missing numbers."""
    found = _WHOLE.fullmatch(name)
    return found[1] if found else name


def is_number(name: str) -> bool:
    """Whether it is written like a number: `1`, `-2.5`."""
    return bool(_DECIMAL.fullmatch(name.strip()))


def truth_values(names: Iterable[str]) -> dict[str, str]:
    """Maps names such as `1.0` and `0` to `True` and `False`, if there are no other names.

    pandas makes 1.0 and 0.0 of a boolean column with missing values.
    """
    names = {*names}
    words = {x.casefold(): x for x in names if x.casefold() in ("true", "false")}
    of_number = {"1": words.get("true"), "0": words.get("false")}
    found = {x: of_number[whole(x)] for x in names if whole(x) in of_number}
    if len(words) + len(found) != len(names):
        return {}
    return {x: word for x, word in found.items() if word is not None}


def is_near(one: str, other: str, most: int) -> bool:
    """Whether the edit distance between two texts is at most `most`."""
    if abs(len(one) - len(other)) > most:
        return False
    row = list(range(len(other) + 1))
    for i, letter in enumerate(one, 1):
        above, row = row, [i]
        for j, wanted in enumerate(other, 1):
            row.append(min(above[j] + 1, row[-1] + 1, above[j - 1] + (letter != wanted)))
    return row[-1] <= most


def bare(name: str) -> str:
    """The common form of look-alikes: `cat `, `Cat`, `"['cat']"`, `{"choices": ["cat"]}`.

    Case, outer quotes and brackets, invisible characters and the form of Unicode do not count. All
    blanks, dashes and underscores are one blank. A whole number becomes its value, because a
    spreadsheet saves `007` as 7.
    """
    text = unicodedata.normalize("NFKC", name).translate(_ALIKE).strip()
    if text[:1] in "[{(\"'" and len(text) > 1:
        text = _innermost(text)
    text = "".join(x for x in " ".join(text.split()) if not _is_unseen(x))
    number = _NUMBER.fullmatch(text)
    if number and len(text) < _DIGITS:
        value = float(text.replace(",", "."))
        text = str(int(value)) if value.is_integer() else text
    return _BETWEEN.sub(" ", text).casefold().translate(_ALIKE)


def bare_id(name: str) -> str:
    """The common form of an id and its copy from a spreadsheet: `00029`, `29` and `29.0`."""
    text = whole(name.strip())
    return text.lstrip("0") or "0" if text.isdigit() else text


def _is_unseen(letter: str) -> bool:
    """Whether it is invisible: a zero-width space, a soft hyphen, a variation selector of emoji."""
    return unicodedata.category(letter) in ("Cc", "Cf") or "\ufe00" <= letter <= "\ufe0f"


def is_one_hot(labels: np.ndarray) -> bool:
    """Whether each row of `[N, S]` has one 1 and else zeros: S classes rather than S sources.

    Two sources with labels 0 and 1 would have to disagree in every row.
    """
    if labels.ndim != 2 or labels.shape[1] < 2 or labels.dtype.kind not in "biuf":
        return False
    return bool(((labels == 1).sum(axis=1) == 1).all() and ((labels == 0) | (labels == 1)).all())


def look_alikes(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two different names that look alike; None if there are none."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(bare(name), name)
        if other != name:
            return other, name
    return None


def _innermost(text: str) -> str:
    """The only text in a list or an object that an annotation tool wrote."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text.strip("[](){}\"' ")
    while isinstance(value, list | dict) and len(value) == 1:
        value = value[0] if isinstance(value, list) else next(iter(value.values()))
    if isinstance(value, int):
        return str(value)
    return value if isinstance(value, str) else text


class Known:
    """Names in a user's file; finds them as a person or a spreadsheet has rewritten them.

    Args:
      numbers: the number of each name.
      form: maps a name and its other spellings to one text, as `bare` does.
    """

    def __init__(self, numbers: Mapping[str, int], form: Callable[[str], str]):
        self.numbers, self._form = numbers, form

    def find(self, written: str) -> int | None:
        """The number of a name; None if there is none, or if it could be several."""
        text = from_spreadsheet(written)
        number = self.numbers.get(text, self.numbers.get(written))
        return self._alike.get(self._form(text)) if number is None else number

    def is_like_several(self, written: str) -> bool:
        """Whether it could be the spelling of several names."""
        form = self._form(from_spreadsheet(written))
        return form in self._alike and self._alike[form] is None

    @functools.cached_property
    def _alike(self) -> dict[str, int | None]:
        found: dict[str, int | None] = {}
        for name, number in self.numbers.items():
            form = self._form(name)
            found[form] = number if found.get(form, number) == number else None
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
