"""Shared by all commands: flags, exit codes, plain logs."""

import logging as std_logging
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any, NoReturn

from absl import app, flags, logging

from mlc_jax.config.file import ConfigFile, WrongFile
from mlc_jax.errors import ExitCode, closed_pipes_forgiven, exit_code, readable

_HINTS = {
    ExitCode.PREEMPTED: " The same command resumes from there.",
    ExitCode.LOST: " The same command resumes from the newest checkpoint.",
}


def run(main: Callable[..., None], *, required: list[str], takes_arguments: bool = False) -> None:
    """Parses flags, runs `main`, and turns the user's errors into one message and an `ExitCode`.

    Args:
      main: the command; reads its flags itself.
      required: flags that must be given, and not empty.
      takes_arguments: whether `main` gets the list of arguments that are not flags.
    """
    for name in required:
        flags.register_validator(name, bool, message=f"--{name} is required.")
    with closed_pipes_forgiven():
        app.run(lambda argv: _guarded(main, argv, takes_arguments), flags_parser=parse)


def parse(
    argv: list[str], values: flags.FlagValues = flags.FLAGS, *, known_only: bool = False
) -> list[str]:
    """Parses flags as absl does, but an error ends the command without a traceback.

    Args:
      argv: the program's name first.
      values: the flags; by default those of this program.
      known_only: whether to ignore unknown flags.

    Returns:
      Arguments that are not flags.
    """
    if "config" in values:
        values["config"].parser = ConfigFile()
    try:
        return values(argv, known_only=known_only)
    except flags.Error as error:
        sys.exit(_fail(f"{error}\n--help lists the flags.", ExitCode.BAD_INPUT))
    except WrongFile as error:
        sys.exit(_fail(str(error), ExitCode.BAD_INPUT))
    except (AttributeError, KeyError, TypeError) as error:
        # ml_collections wraps its advice ('Did you mean "noise" instead of "nosie"?') in quotes.
        text = str(error.args[0] if error.args else error).replace("\\n", "\n")
        hint = text.splitlines()[-1].strip("\"'")
        sys.exit(_fail(f"--config: no such field, or of another type. {hint}", ExitCode.BAD_INPUT))


def _guarded(main: Callable[..., None], argv: list[str], takes_arguments: bool) -> int:
    if len(argv) > 1 and not takes_arguments:
        return _fail(f"unexpected arguments: {' '.join(argv[1:])}", ExitCode.BAD_INPUT)
    return guarded(lambda: main(*([argv[1:]] if takes_arguments else [])))


def guarded(main: Callable[[], int | None], told: Callable[[str], str] = str) -> int:
    """Runs `main`; turns the user's errors into one message and an `ExitCode`. Logs are plain.

    Args:
      main: the command. It may return an exit code.
      told: rewrites log lines and errors in the words that the user typed.

    Returns:
      The exit code.
    """
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()  # Otherwise absl warns that it logs too early.
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    handler = logging.get_absl_handler()
    handler.setFormatter(_Plain(told))
    once = _Once()
    for shown in (_is_for_users, once):
        handler.addFilter(shown)
    sys.unraisablehook = _print_unless_known
    try:
        return main() or ExitCode.DONE
    except Exception as error:
        if exit_code(error) == ExitCode.UNFORESEEN:
            raise
        return _report(error, told)
    finally:
        handler.removeFilter(once)


class _Once(std_logging.Filter):
    """Lets each message pass once, because some data are checked twice."""

    def __init__(self) -> None:
        super().__init__()
        self._told: set[str] = set()

    def filter(self, record: std_logging.LogRecord) -> bool:
        text = record.getMessage()
        is_new = text not in self._told
        self._told.add(text)
        return is_new


class _Plain(std_logging.Formatter):
    """Log lines without time, thread and source position."""

    def __init__(self, told: Callable[[str], str]):
        super().__init__()
        self._told = told

    def format(self, record: std_logging.LogRecord) -> str:
        if isinstance(record.args, tuple):  # Our own messages may have several lines.
            record.args = tuple(readable(x) if isinstance(x, str) else x for x in record.args)
        text = readable(self._told(super().format(record)), keep="\n")
        return f"warning: {text}" if record.levelno >= std_logging.WARNING else text


def leave(error: Exception) -> NoReturn:
    """Ends the process as `run` would, but at once, without the usual cleanup.

    For a process that fails alone among several: JAX's cleanup would wait for the others.
    """
    code = exit_code(error)
    if code == ExitCode.UNFORESEEN:
        traceback.print_exception(error)
    else:
        _report(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _report(error: Exception, told: Callable[[str], str] = str) -> int:
    code = exit_code(error)
    return _fail(f"{told(str(error))}{_HINTS.get(code, '')}", code)


def _is_for_users(record: std_logging.LogRecord) -> bool:
    """Lets our own messages and other libraries' warnings pass.

    Libraries that log through absl report every file they write, and orbax logs a dozen tracebacks
    for each error that it also raises.
    """
    own = f"{os.sep}mlc_jax{os.sep}" in record.pathname
    return own or (record.levelno >= std_logging.WARNING and not record.exc_info)


def _print_unless_known(unraisable: Any) -> None:
    """Hides the tracebacks that TensorStore's threads print after a failed save."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _fail(message: str, code: int) -> int:
    print(f"error: {readable(message, keep=chr(10))}", file=sys.stderr)
    return code
