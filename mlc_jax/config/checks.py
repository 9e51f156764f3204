"""Settings, and the checks of their values."""

from collections.abc import Callable
from typing import Any, NamedTuple

from mlc_jax.config.choices import COLUMN_NAMES

_INFINITY = float("inf")
# Each check has an upper bound: larger values are typing errors, or more than any machine has.
MOST_STEPS = 2**31 - 1  # A step is an int32.
MOST_ROWS = 2**31 - 1
MOST_EPOCHS = 10**6
MOST_UNITS = 2**16  # Width of a layer. A square matrix of this width takes 16 GiB.
LARGEST = 10**9  # Largest weight or factor: products still fit into float32.
_SMALLEST = 1e-30  # Smallest number that must not be zero: smaller ones would be zero in float32.
_MOST_LAYERS = 100


class Check(NamedTuple):
    """`ok` says whether a value is right, and `expected` what would be right.

    A field can be set to None, and then to a value of any type. So checks take all types.
    """

    ok: Callable[[Any], bool]
    expected: str


class Setting(NamedTuple):
    """One field of the config.

    Attributes:
      default: None stands for a value that is not given.
      check: of its value alone; `relations` checks several settings together.
      meaning: the help text.
      formerly: the value that a workdir from before this setting was made with; `default` if None.
      kind: the type of a value whose default is None.
    """

    default: Any
    check: Check
    meaning: str
    formerly: Any = None
    kind: type = str


def one_of(*choices: str) -> Check:
    return Check(lambda value: value in choices, "one of " + ", ".join(choices))


def flag() -> Check:
    return Check(lambda value: isinstance(value, bool), "True or False")


def text() -> Check:
    return Check(lambda value: value is None or isinstance(value, str), "a text, or None")


def optional(check: Check) -> Check:
    return Check(lambda value: value is None or check.ok(value), f"{check.expected}, or None")


def whole(low: int, high: int) -> Check:
    """A whole number; a bool, which Python counts as an int, is refused."""
    expected = f"a whole number from {low} to {high}"
    return Check(lambda value: is_whole(value) and low <= value <= high, expected)


def number(low: float, high: float) -> Check:
    expected = f"a number from {low} to {high}"
    return Check(lambda value: _is_number(value) and low <= value <= high, expected)


def positive(high: float) -> Check:
    expected = f"a positive number, at most {high}"
    return Check(lambda value: _is_number(value) and _SMALLEST <= value <= high, expected)


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (is_whole(value) or isinstance(value, float)) and -_INFINITY < value < _INFINITY


def _are_whole(values: Any, high: int) -> bool:
    """Whether `values` is a sequence, maybe an empty one, of whole numbers from 1 to `high`."""
    return (
        isinstance(values, tuple | list)
        and len(values) <= _MOST_LAYERS
        and all(is_whole(x) and 0 < x <= high for x in values)
    )


def _is_range(value: str) -> bool:
    start, _, stop = value.partition(":")
    are_whole = start.isdecimal() and stop.isdecimal() and len(stop) <= len(str(MOST_STEPS))
    return are_whole and int(start) < int(stop) <= MOST_STEPS


def _are_columns(value: str) -> bool:
    pairs = [part.partition("=") for part in value.split(",")]
    ours, theirs = [pair[0] for pair in pairs], [pair[2] for pair in pairs]
    alone = len(set(ours)) == len(ours) and len(set(theirs)) == len(theirs)
    return alone and all(theirs) and all(name in COLUMN_NAMES for name in ours)


def _is_factor(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= LARGEST


def _is_group(group: Any) -> bool:
    return (
        isinstance(group, tuple | list)
        and len(group) == 3
        and isinstance(group[0], str)
        and _is_factor(group[1])
        and (group[2] is None or _is_factor(group[2]))
    )


DEPTH = Check(
    lambda value: is_whole(value) and 8 <= value <= 1202 and (value - 2) % 6 == 0,
    "6n + 2 with n from 1 to 200: 8, 14, ...",
)

WIDTHS = Check(
    lambda value: _are_whole(value, MOST_UNITS), f"widths from 1 to {MOST_UNITS}, such as (128, 64)"
)

MILESTONES = Check(
    lambda value: _are_whole(value, MOST_EPOCHS) and list(value) == sorted(set(value)),
    f"whole epochs from 1 to {MOST_EPOCHS}, each later than the one before, such as (80, 100)",
)

GROUPS = Check(
    lambda value: isinstance(value, tuple | list) and all(map(_is_group, value)),
    "(pattern, learning-rate factor, weight decay or None) for each group, such as "
    '(("bias$", 1.0, 0.0), ("hidden1/", 0.0, None))',
)

SEED = whole(0, 2**32 - 1)


def size(high: int) -> Check:
    """From 1 to `high`; 0 is allowed for own files alone, see `relations`."""
    return Check(whole(0, high).ok, whole(1, high).expected)


STEPS = Check(
    lambda value: isinstance(value, str) and (value == "" or _is_range(value)),
    "START:STOP, inner steps, such as 100:110, or an empty text",
)

COLUMNS = Check(
    lambda value: value is None or (isinstance(value, str) and _are_columns(value)),
    f"NAME=COLUMN[,NAME=COLUMN...] with names among {', '.join(COLUMN_NAMES)}, each once",
)

POWER = Check(
    lambda value: _is_number(value) and (value == 0 or 1 <= value <= 1000),
    "0, or a number from 1 to 1000",
)


def preset(kind: type, check: Check, meaning: str) -> Setting:
    """A setting whose default depends on the method."""
    return Setting(None, optional(check), meaning, kind=kind)
