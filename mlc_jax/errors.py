"""Errors that a user can cause or mend; `main` prints their message without a traceback."""

from typing import Any


class InputError(ValueError):
    """A setting, a file or a directory is not what it should be; nothing was started.

    The message names the field, what was given and what would be right.
    """


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, read, or used with this config; none was removed."""


class NonFiniteLossError(RuntimeError):
    """The loss or a parameter became infinite or NaN."""


class Preempted(Exception):
    """SIGTERM came; the state is saved."""


def expect(ok: Any, name: str, value: Any, expected: str) -> None:
    """Raises InputError for the flag or field `name` unless `ok`."""
    if not ok:
        raise InputError(f"{name}: got {value!r}, expected {expected}")
