"""What all commands of the project share: flags, exit codes, quiet logs."""

import logging as std_logging
import os
import sys
from collections.abc import Callable

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
    return 0


def _parse(argv: list[str]) -> list[str]:
    """absl's parsing, but a misspelt config field gets one line and not a traceback."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError) as error:
        # ml_collections wraps its advice ('Did you mean "noise" instead of "nosie"?') in quotes.
        text = str(error.args[0] if error.args else error).replace("\\n", "\n")
        hint = text.splitlines()[-1].strip("\"'")
        sys.exit(_fail(f"--config: no such field, or of another type. {hint}", EXIT_BAD_INPUT))


def _is_for_users(record: std_logging.LogRecord) -> bool:
    """Libraries that log through absl tell of every file they write; only their warnings pass."""
    own = f"{os.sep}mlc_jax{os.sep}" in record.pathname
    return own or record.levelno >= std_logging.WARNING


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code
