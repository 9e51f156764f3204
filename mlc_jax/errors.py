"""Errors that a user can cause or fix; commands print their message without a traceback.

`ExitCode` lists the exit codes of commands, and says which of them call for a restart.
"""

import contextlib
import enum
import io
import os
import signal
import sys
import unicodedata
from collections.abc import Iterator
from typing import Any, TextIO, cast


class ExitCode(enum.IntEnum):
    """Exit codes of commands.

    After 1 to 127 the same command would fail again. From 128 on it may resume from the newest
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

    def __init__(self, message: str):
        super().__init__(readable(message, keep="\n"))


class CheckpointError(RuntimeError):
    """A checkpoint cannot be written, read, or used with this config; none was removed."""


class NonFiniteLossError(RuntimeError):
    """The loss or a parameter became infinite or NaN."""


class Preempted(Exception):
    """SIGTERM came; the state is saved."""


class Lost(Exception):
    """Another process of the run, or the bucket of its workdir, can no longer be reached."""


_JOINERS = "\u200c\u200d"  # Some scripts and emoji join letters with them.

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
    OSError: ExitCode.FAILED,  # For example a full disk, outside of checkpoints.
}


def exit_code(error: BaseException) -> ExitCode:
    """The exit code of a command that ended with `error`."""
    codes = (code for kind, code in _EXIT_CODES.items() if isinstance(error, kind))
    return next(codes, ExitCode.UNFORESEEN)


def readable(text: str, keep: str = "") -> str:
    r"""A user's text as it is shown in a terminal, a log, a report or a plot.

    Characters that cannot be printed become escapes such as `\x1b` and `\u202e`. A terminal would
    obey control characters, and marks of direction would turn the text that follows.

    Args:
      text: any text.
      keep: characters that stay, such as line ends.
    """
    if text.isprintable():  # Fast, and true of nearly all texts.
        return text
    return "".join(
        x if x.isprintable() or x in keep or x in _JOINERS or unicodedata.category(x) == "Zs"
        else x.encode("unicode_escape", "backslashreplace").decode()
        for x in text
    )  # fmt: skip


def shown(value: Any, length: int = 200) -> str:
    """A user's value in a message: all of it, or its beginning and its length."""
    text = repr(value if not isinstance(value, str) else value[: 2 * length])
    size = len(value) if isinstance(value, str) else len(text)
    if max(size, len(text)) <= length:
        return text
    text = " ".join(text.split())  # The repr of an array has several lines.
    return f"{text[:length]}... ({size:,} characters)"


def expect(ok: Any, name: str, value: Any, expected: str) -> None:
    """Raises InputError for the flag or field `name` unless `ok`."""
    if not ok:
        raise InputError(f"{name}: got {shown(value)}, expected {expected}")


def is_watched() -> bool:
    """Whether somebody sees a progress bar: in a terminal or a notebook, not in a log file."""
    return sys.stderr.isatty() or "ipykernel" in sys.modules


@contextlib.contextmanager
def closed_pipes_forgiven() -> Iterator[None]:
    """Lets a command go on when nobody reads its output any more, as after `| head`."""
    before = sys.stdout, sys.stderr
    for stream in before:  # A letter that the terminal cannot show becomes an escape.
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")
    sys.stdout, sys.stderr = (cast(TextIO, _Stream(stream)) for stream in before)
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before


class _Stream:
    """A stream whose text goes nowhere once its reader is gone."""

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except BrokenPipeError:
            self._leave()
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except BrokenPipeError:
            self._leave()

    def _leave(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
