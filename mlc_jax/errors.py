"""Errors that a user can cause or fix; commands print their message without a traceback.

`ExitCode` lists the exit codes of commands, and says which of them call for a restart.
"""

import enum
import signal
from typing import Any


class ExitCode(enum.IntEnum):
    """Exit codes of commands.

    Below 128 the same command would fail again. From 128 on it may resume from the newest
    checkpoint (`should_retry`). The manifests of `experiments.tpu.job` are made from this table.
    """

    DONE = 0
    UNFORESEEN = 1  # A bug: there is a traceback.
    BAD_INPUT = 2
    FAILED = 3
    KILLED = 128 + signal.SIGKILL  # The grace period was over before the state was saved.
    PREEMPTED = 128 + signal.SIGTERM
    LOST = 200  # Beyond all signals: no shell reports it by itself.

    @property
    def should_retry(self) -> bool:
        """Whether the same command may succeed next time."""
        return self >= 128


class InputError(ValueError):
    """A setting, a file or a directory is wrong; nothing was started.

    The message names the field, the value, and what would be right.
    """


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, read, or used with this config; none was removed."""


class NonFiniteLossError(RuntimeError):
    """The loss or a parameter became infinite or NaN."""


class Preempted(Exception):
    """SIGTERM came; the state is saved."""


class Lost(Exception):
    """Another process of the run, or the bucket of its workdir, can no longer be reached."""


# Any other error is a bug.
_EXIT_CODES: dict[type[BaseException], ExitCode] = {
    InputError: ExitCode.BAD_INPUT,
    CheckpointError: ExitCode.FAILED,
    NonFiniteLossError: ExitCode.FAILED,
    Preempted: ExitCode.PREEMPTED,
    Lost: ExitCode.LOST,
    # Network errors are OSErrors, too; the first match counts.
    ConnectionError: ExitCode.LOST,
    TimeoutError: ExitCode.LOST,
    OSError: ExitCode.FAILED,  # Such as a full disk, outside of checkpoints.
}


def exit_code(error: BaseException) -> ExitCode:
    """The exit code of a command that ended with `error`."""
    codes = (code for kind, code in _EXIT_CODES.items() if isinstance(error, kind))
    return next(codes, ExitCode.UNFORESEEN)


def shown(value: Any, length: int = 200) -> str:
    """A user's value in a message: all of it, or its beginning and its length."""
    text = repr(value if not isinstance(value, str) else value[: 2 * length])
    size = len(value) if isinstance(value, str) else len(text)
    if max(size, len(text)) <= length:
        return text
    text = " ".join(text.split())  # Arrays have lines.
    return f"{text[:length]}... ({size:,} characters)"


def expect(ok: Any, name: str, value: Any, expected: str) -> None:
    """Raises InputError for the flag or field `name` unless `ok`."""
    if not ok:
        raise InputError(f"{name}: got {shown(value)}, expected {expected}")
