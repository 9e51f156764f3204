"""Names of classes: which of them are one and the same, and which only look so."""

import json
import re
import unicodedata
from collections.abc import Iterable

_WHOLE = re.compile(r"([+-]?\d+)\.0*")
MAX_LENGTH = 200  # Characters of a label or an id.


def whole(name: str) -> str:
    """`1.0` is `1`: a column of numbers that lacks one becomes one of floats in many programs."""
    found = _WHOLE.fullmatch(name)
    return found[1] if found else name


def bare(name: str) -> str:
    """What look-alike names have in common: of `cat `, `Cat`, `"['cat']"`, `{"choices": ["cat"]}`.

    It is without case, blanks, quotes and brackets, and in one form of Unicode.
    """
    text = unicodedata.normalize("NFKC", name).strip()
    if text[:1] in "[{(\"'" and len(text) > 1:
        text = _innermost(text)
    return " ".join(text.split()).casefold()


def look_alikes(names: Iterable[str]) -> tuple[str, str] | None:
    """The first two of different names that look like one; None if there are none."""
    seen: dict[str, str] = {}
    for name in names:
        other = seen.setdefault(bare(name), name)
        if other != name:
            return other, name
    return None


def _innermost(text: str) -> str:
    """The only text in a list or an object, as tools write them."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return text.strip("[](){}\"' ")
    while isinstance(value, list | dict) and len(value) == 1:
        value = value[0] if isinstance(value, list) else next(iter(value.values()))
    return value if isinstance(value, str) else text
