"""Names of classes: which are the same, and which only look alike."""

import json
import re
import unicodedata
from collections.abc import Iterable

import numpy as np

_WHOLE = re.compile(r"([+-]?\d+)\.0*")
_UNSEEN = ("Cc", "Cf")  # Such as a zero-width space, a soft hyphen, a byte order mark.
_BETWEEN = re.compile(r"(?<=\w)[\s_\u2010-\u2015-]+(?=\w)")  # big cat, big_cat, big-cat.
_NUMBER = re.compile(r"[+-]?(0+\d+|\d+[.,]0*|\d+([.,]\d+)?[eE][+-]?\d+)", re.ASCII)
_DIGITS = 15
# Letters of other alphabets that look like Latin ones, and curly quotes.
_ALIKE = str.maketrans(
    "\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0455\u0458\u03bf\u2018\u2019\u201c\u201d",
    "aeopcyxisjo''\"\"",
)
MAX_LENGTH = 200  # The most characters of a label or an id.


def whole(name: str) -> str:
    """Turns `1.0` into `1`: many programs make floats of a column with missing numbers."""
    found = _WHOLE.fullmatch(name)
    return found[1] if found else name


def bare(name: str) -> str:
    """The common form of look-alikes: `cat `, `Cat`, `"['cat']"`, `{"choices": ["cat"]}`.

    It has no case, blanks, dashes, quotes, brackets and invisible characters, and one form of
    Unicode. Whole numbers become their value, because a spreadsheet saves `007` as 7.
    """
    text = unicodedata.normalize("NFKC", name).translate(_ALIKE).strip()
    if text[:1] in "[{(\"'" and len(text) > 1:
        text = _innermost(text)
    text = "".join(x for x in " ".join(text.split()) if unicodedata.category(x) not in _UNSEEN)
    number = _NUMBER.fullmatch(text)
    if number and len(text) < _DIGITS:
        value = float(text.replace(",", "."))
        text = str(int(value)) if value.is_integer() else text
    return _BETWEEN.sub(" ", text).casefold().translate(_ALIKE)


def bare_id(name: str) -> str:
    """The common form of an id and its copy from a spreadsheet: `00029`, `29` and `29.0`."""
    text = whole(name.strip())
    return text.lstrip("0") or "0" if text.isdigit() else text


def is_one_hot(labels: np.ndarray) -> bool:
    """Whether each row of `[N, S]` is one 1 and zeros: S classes rather than S sources.

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
    return value if isinstance(value, str) else text
