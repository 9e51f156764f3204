"""Numbers, dates, times and lists as people write them, and marks of missing values."""

import datetime
import json
import re
import unicodedata
from collections.abc import Callable, Sequence

import numpy as np

# For columns of features. In a column of labels `NA` is a class like any other.
MISSING = frozenset({
    "", "na", "n/a", "#n/a", "#n/a n/a", "#na", "<na>", "nan", "-nan", "null", "none", "nat", "?",
    "-1.#ind", "-1.#qnan", "1.#ind", "1.#qnan",
})  # fmt: skip

_BOOLEANS = {"true": 1.0, "false": 0.0}
_CURRENCY = r"(?:[$€£¥]|USD|EUR|GBP|CHF|JPY)?"
_BARE = re.compile(rf"^([+-]?)\s*{_CURRENCY}\s*([+-]?.*?)\s*(?:%|{_CURRENCY})$")
_MINUS = re.compile(r"\((.+)\)|(\d.*)-")  # As in accounts: (5), 5-.
_POINT = re.compile(
    r"[+-]?([1-9]\d{0,2}(,\d{3})+|\d{1,2}(,\d{2})+,\d{3}|\d{1,3}(['\u2019\s]\d{3})+|\d+|(?=\.\d))"
    r"(\.\d*)?([eE][+-]?\d+)?"
)
_COMMA = re.compile(r"[+-]?([1-9]\d{0,2}([.'\u2019\s]\d{3})+|\d+|(?=,\d))(,\d*)?([eE][+-]?\d+)?")
_EITHER = re.compile(r"[+-]?[1-9]\d{0,2}([.,])\d{3}")  # 1,234 may be 1234 or 1.234.
_UNITS = ("%", "$", "€", "£", "¥", "USD", "EUR", "GBP", "CHF", "JPY")
_UNIT = re.compile("|".join(map(re.escape, _UNITS)))
_CODES = {"USD": "$", "EUR": "€", "GBP": "£", "JPY": "¥"}
_NOT_ZERO = re.compile(r"[1-9]")
_GROUPS = {"point": ",", "comma": "."}  # Separators of thousands by form.
_TIME = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}(?:\.\d+)?))?")
_HALF = r"(?: ?(?P<half>[AaPp])\.?[Mm]\.?)?"
_ZONE = r"(?P<zone>Z| ?UTC| ?GMT| ?[+-]\d\d:?\d\d)?"
_CLOCK = rf"(?:,?[T ]+(?P<clock>{_TIME.pattern}){_HALF})?{_ZONE}"
_ISO = re.compile(rf"(?P<y>\d{{4}})([-/.])(?P<m>\d{{1,2}})\2(?P<d>\d{{1,2}}){_CLOCK}")
_DAY_FIRST = re.compile(rf"(?P<d>\d{{1,2}})([-/.])(?P<m>\d{{1,2}})\2(?P<y>\d{{4}}){_CLOCK}")
_MONTH_FIRST = re.compile(rf"(?P<m>\d{{1,2}})([-/])(?P<d>\d{{1,2}})\2(?P<y>\d{{4}}){_CLOCK}")
_MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]
_NAME = rf"(?P<m>(?:{'|'.join(_MONTHS)})[a-z]*)\.?"
_NAMED = re.compile(
    rf"(?:(?P<d>\d{{1,2}})[ -]{_NAME}[ -]|{_NAME.replace('<m>', '<m2>')} (?P<d2>\d{{1,2}}),? )"
    rf"(?P<y>\d{{4}}){_CLOCK}", re.IGNORECASE,
)  # fmt: skip
_EPOCH = datetime.date(1970, 1, 1).toordinal()


def category(text: str) -> str:
    """A value without blanks around it, in one form of Unicode; "" if it means a missing value."""
    text = unicodedata.normalize("NFC", text).strip()
    return "" if text.casefold() in MISSING else text


def read(texts: Sequence[str], form: str) -> tuple[np.ndarray, np.ndarray]:
    """Numbers `[n]` float64, NaN if missing, and whether a text is no number, `[n]` bool.

    Args:
      texts: as in the file.
      form: one of `FORMS`.
    """
    number = FORMS[form]
    if number is _point and (plain := _plain(texts)) is not None:
        numbers, missing = plain, np.isnan(plain)
    else:
        categories = [category(text) for text in texts]
        missing = np.array([not text for text in categories], bool)
        numbers = np.array([number(text) if text else np.nan for text in categories], np.float64)
    with np.errstate(over="ignore"):  # Numbers that float32 cannot hold do not count.
        bad = ~missing & ~np.isfinite(numbers.astype(np.float32))
    return np.where(bad, np.nan, numbers), bad


def marks(texts: Sequence[str]) -> str:
    """The points and commas that are in texts, each once."""
    joined = "".join(texts)
    return "".join(mark for mark in ".," if mark in joined)


def units(texts: Sequence[str]) -> dict[str, int]:
    """The first place of each unit: a currency, `%`, or "" for numbers without; 0 needs no unit."""
    found, joined = dict[str, int](), "".join(texts)
    if not any(unit in joined for unit in _UNITS):  # Fast, since most have none.
        place = next((i for i, text in enumerate(texts) if _NOT_ZERO.search(text)), None)
        return {} if place is None else {"": place}
    for place, text in enumerate(texts):
        unit = _UNIT.search(text)
        if unit or _NOT_ZERO.search(text):
            found.setdefault(_CODES.get(unit[0], unit[0]) if unit else "", place)
    return found


def differ(unit: str, other: str) -> bool:
    """Whether two units cannot be in one column; a currency may be left out, but `%` may not."""
    return unit != other and ("%" in (unit, other) or bool(unit and other))


def misread(texts: Sequence[str], form: str, marks: str) -> int | None:
    """The place of the first text that another program may have written in another form.

    Args:
      texts: as in the file.
      form: one of `FORMS`.
      marks: points and commas in the texts that the form was found by; these are not ambiguous.
    """
    between = _GROUPS.get(form, "")
    others = [x for x in ".," if between and x not in marks and (marks or x == between)]
    joined = "".join(texts)
    if not any(mark in joined for mark in others):
        return None
    for place, text in enumerate(texts):
        if any(mark in text for mark in others):
            found = _EITHER.fullmatch(_bare(text.strip()))
            if found and found[1] in others:
                return place
    return None


def read_list(text: str) -> list[float] | None:
    """The numbers of a text such as `[0.5, 1, -2]`; None if it is no list of numbers."""
    if not text.startswith("["):
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    is_number = lambda x: isinstance(x, int | float) and not isinstance(x, bool)  # noqa: E731
    if not values or not all(map(is_number, values)):
        return None
    try:
        return [float(x) for x in values]
    except OverflowError:
        return [np.inf] * len(values)  # Refused as no finite numbers.


def read_whole(text: str, offset: int) -> float:
    """A whole number minus `offset`, computed exactly: float64 holds only 15 to 16 digits."""
    text = re.sub(r"[,'\u2019\s]", "", _bare(text.strip()))
    return float(int(text) - offset) if re.fullmatch(r"[+-]?\d+", text) else float(text) - offset


def _plain(texts: Sequence[str]) -> np.ndarray | None:
    """Numbers as Python writes them, or empty texts; None if there is any other text."""
    try:
        numbers = np.array([float(text) if text else np.nan for text in texts], np.float64)
    except ValueError:
        return None
    return None if any("_" in text for text in texts) else numbers  # Python reads 1_0 as 10.


def _point(text: str) -> float:
    """Reads `1,234.5`, `$5`, `12 %`, and booleans."""
    if "_" not in text:
        try:
            return float(text)
        except ValueError:
            pass
    bare = _bare(text)
    if _POINT.fullmatch(bare):
        return float(re.sub(r"[,'\u2019\s]", "", bare))
    return _BOOLEANS.get(text.casefold(), np.nan)


def _comma(text: str) -> float:
    """Reads `1.234,5`, `5 €`."""
    bare = _bare(text)
    if not _COMMA.fullmatch(bare):
        return float("nan")
    return float(re.sub(r"[.'\u2019\s]", "", bare).replace(",", "."))


def _bare(text: str) -> str:
    """Drops a currency or a percent sign, and puts the minus in front."""
    text = text.replace("\u2212", "-")
    minus = _MINUS.fullmatch(text)
    text = f"-{minus[1] or minus[2]}" if minus else text
    found = _BARE.match(text)
    return "".join(found.groups()) if found else text


def _date(pattern: re.Pattern[str]) -> Callable[[str], float]:
    def days(text: str) -> float:
        """Days since 1970, in UTC if there is a time zone."""
        found = pattern.fullmatch(text)
        if found is None:
            return float("nan")
        parts = found.groupdict()
        name, number = parts["m"] or parts["m2"], parts["d"] or parts["d2"]
        month = int(name) if name.isdigit() else 1 + _MONTHS.index(name[:3].lower())
        try:
            day = datetime.date(int(parts["y"]), month, int(number)).toordinal()
        except ValueError:
            return float("nan")
        clock = _time(parts["clock"]) if parts["clock"] else 0.0
        if parts["half"]:  # 12 am is 0.
            clock = clock % 0.5 + (0.5 if parts["half"] in "pP" else 0)
        zone = (parts["zone"] or "Z").strip().replace(":", "")
        zone = "Z" if zone in ("UTC", "GMT") else zone
        east = 0.0 if zone == "Z" else (int(zone[1:3]) + int(zone[3:]) / 60) / 24
        return day - _EPOCH + clock - (east if zone[0] == "+" else -east)

    return days


def day_of(days: float) -> str:
    """The date of days since 1970, as in ISO 8601; the time of day is left out."""
    return str(datetime.date.fromordinal(_EPOCH + int(days // 1)))


def _time(text: str) -> float:
    """A time as a part of the day: 0.5 is noon."""
    found = _TIME.fullmatch(text)
    if found is None:
        return float("nan")
    hours, minutes, seconds = int(found[1]), int(found[2]), float(found[3] or 0)
    if minutes > 59 or seconds >= 61 or hours * 60 + minutes > 24 * 60:
        return float("nan")
    return (hours + minutes / 60 + seconds / 3600) / 24


DATES = ("date", "day first", "month first", "named month")
# How columns write numbers. Of forms that read a column equally well, `Survey` prefers the first.
FORMS: dict[str, Callable[[str], float]] = {
    "point": _point,
    "comma": _comma,
    "date": _date(_ISO),
    "day first": _date(_DAY_FIRST),
    "month first": _date(_MONTH_FIRST),
    "named month": _date(_NAMED),
    "time": _time,
    "list": lambda text: float("nan") if read_list(text) is None else 0.0,
}
