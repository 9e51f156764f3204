"""What all commands of the project share: flags, exit codes, quiet logs."""

import logging as std_logging
import os
import sys
from collections.abc import Callable
from typing import Any

from absl import app, flags, logging

from mlc_jax.errors import CheckpointError, InputError, NonFiniteLossError, Preempted

EXIT_FAILED = 1
EXIT_BAD_INPUT = 2
EXIT_PREEMPTED = 128 + 15  # As a shell reports a process that SIGTERM ended.


def run(main: Callable[[], None], *, required: list[str]) -> None:
    """Parses flags, runs `main`, and turns the user's errors into one message and an exit code.

    Args:
      main: the command; reads its flags itself.
      required: flags that must be given, and not empty.
    """
    for name in required:
        flags.register_validator(name, bool, message=f"--{name} is required.")
    app.run(lambda argv: _guarded(main, argv), flags_parser=_parse)


def _guarded(main: Callable[[], None], argv: list[str]) -> int:
    logging.set_verbosity(logging.INFO)
    logging.get_absl_handler().addFilter(_is_for_users)
    sys.unraisablehook = _print_unless_known
    if len(argv) > 1:
        return _fail(f"unexpected arguments: {' '.join(argv[1:])}", EXIT_BAD_INPUT)
    try:
        main()
    except InputError as error:
        return _fail(str(error), EXIT_BAD_INPUT)
    except (CheckpointError, NonFiniteLossError) as error:
        return _fail(str(error), EXIT_FAILED)
    except Preempted as stop:
        return _fail(f"{stop} The same command goes on from there.", EXIT_PREEMPTED)
    except OSError as error:  # Such as a full disk, outside of checkpoints.
        return _fail(str(error), EXIT_FAILED)
    return 0


def _parse(argv: list[str]) -> list[str]:
    """absl's parsing, but what is wrong gets one line and not a traceback."""
    try:
        rest = flags.FLAGS(argv)
        # ml_collections tells of a file that is not there when its config is first used.
        if "config" in flags.FLAGS:
            getattr(flags.FLAGS["config"].value, "lock", None)
        return rest
    except flags.Error as error:
        # A config file's own error comes with its traceback, in the message.
        text = str(error).rpartition(f"{InputError.__module__}.{InputError.__name__}: ")[2].strip()
        sys.exit(_fail(f"{text}\n--help lists the flags.", EXIT_BAD_INPUT))
    except OSError as error:
        sys.exit(_fail(f"--config: {str(error).splitlines()[-1].strip()}", EXIT_BAD_INPUT))
    except (AttributeError, KeyError, TypeError) as error:
        # ml_collections wraps its advice ('Did you mean "noise" instead of "nosie"?') in quotes.
        text = str(error.args[0] if error.args else error).replace("\\n", "\n")
        hint = text.splitlines()[-1].strip("\"'")
        sys.exit(_fail(f"--config: no such field, or of another type. {hint}", EXIT_BAD_INPUT))


def _is_for_users(record: std_logging.LogRecord) -> bool:
    """Libraries that log through absl tell of every file they write; only their warnings pass.

    Tracebacks do not: orbax logs a dozen for each error that it raises, too.
    """
    own = f"{os.sep}mlc_jax{os.sep}" in record.pathname
    return own or (record.levelno >= std_logging.WARNING and not record.exc_info)


def _print_unless_known(unraisable: Any) -> None:
    """TensorStore's threads also print a traceback each where a save fails and its loop is gone."""
    if str(unraisable.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(unraisable)


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
