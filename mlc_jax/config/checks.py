"""What a setting is, and when a value of it is right."""

from collections.abc import Callable
from typing import Any, NamedTuple

from mlc_jax.config.choices import COLUMN_NAMES

_INFINITY = float("inf")


class Check(NamedTuple):
    """Whether a value is right, and what would be.

    Any field can be set to None, and through None to any type, so checks take anything.
    """

    ok: Callable[[Any], bool]
    expected: str


class Setting(NamedTuple):
    """One field of the config.

    Attributes:
      default: None stands for a value that is not given.
      check: of its value alone; what several settings say together is checked in `validate`.
      meaning: for a reader.
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


def whole(low: int, high: float = _INFINITY) -> Check:
    """A whole number; bool, which is a kind of int, is none."""
    span = f" from {low} to {high}" if high < _INFINITY else f", at least {low}"
    return Check(lambda value: is_whole(value) and low <= value <= high, f"a whole number{span}")


def number(low: float, high: float = _INFINITY) -> Check:
    expected = (
        f"a number from {low} to {high}" if high < _INFINITY else f"a finite number, at least {low}"
    )
    return Check(lambda value: _is_number(value) and low <= value <= high, expected)


def positive() -> Check:
    return Check(lambda value: _is_number(value) and value > 0, "a positive, finite number")


def is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return (is_whole(value) or isinstance(value, float)) and -_INFINITY < value < _INFINITY


def _are_whole(values: Any) -> bool:
    """Whether `values` is a sequence, maybe an empty one, of whole numbers from 1 on."""
    return isinstance(values, tuple | list) and all(is_whole(x) and x > 0 for x in values)


def _is_range(value: str) -> bool:
    start, _, stop = value.partition(":")
    return start.isdecimal() and stop.isdecimal() and int(start) < int(stop)


def _are_columns(value: str) -> bool:
    pairs = [part.partition("=") for part in value.split(",")]
    ours, theirs = [pair[0] for pair in pairs], [pair[2] for pair in pairs]
    alone = len(set(ours)) == len(ours) and len(set(theirs)) == len(theirs)
    return alone and all(theirs) and all(name in COLUMN_NAMES for name in ours)


def _is_group(group: Any) -> bool:
    return (
        isinstance(group, tuple | list)
        and len(group) == 3
        and isinstance(group[0], str)
        and _is_number(group[1])
        and group[1] >= 0
        and (group[2] is None or (_is_number(group[2]) and group[2] >= 0))
    )


DEPTH = Check(
    lambda value: is_whole(value) and value >= 8 and (value - 2) % 6 == 0,
    "6n + 2 with n >= 1: 8, 14, ...",
)

WIDTHS = Check(_are_whole, "positive widths, such as (128, 64)")

MILESTONES = Check(
    lambda value: _are_whole(value) and list(value) == sorted(set(value)),
    "whole epochs from 1 on, each later than the one before, such as (80, 100)",
)

GROUPS = Check(
    lambda value: isinstance(value, tuple | list) and all(map(_is_group, value)),
    "(pattern, learning-rate factor, weight decay or None) for each group, such as "
    '(("bias$", 1.0, 0.0), ("hidden1/", 0.0, None))',
)

SEED = whole(0, 2**32 - 1)

SIZE = Check(whole(0).ok, whole(1).expected)  # 0 is for own files: `_own_data`.

STEPS = Check(
    lambda value: isinstance(value, str) and (value == "" or _is_range(value)),
    "START:STOP, inner steps, such as 100:110, or an empty text",
)

COLUMNS = Check(
    lambda value: value is None or (isinstance(value, str) and _are_columns(value)),
    f"NAME=COLUMN[,NAME=COLUMN...] with names among {', '.join(COLUMN_NAMES)}, each once",
)

POWER = Check(
    lambda value: _is_number(value) and (value == 0 or value >= 1), "0, or a number from 1 on"
)


def preset(kind: type, check: Check, meaning: str) -> Setting:
    """A setting that each method has its own default for."""
    return Setting(None, optional(check), meaning, kind=kind)
