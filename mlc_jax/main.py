"""Trains a classifier on noisy labels, and corrects the labels.

    python -m mlc_jax.main --config=configs/digits.py --workdir=runs/digits

Any setting of the config can be overridden: --config.noise.level=0.6. The same command goes on from
the newest checkpoint in the workdir.
"""

import sys

import jax
from absl import app, flags, logging
from ml_collections import config_flags

from mlc_jax import train
from mlc_jax.errors import CheckpointError, InputError, NonFiniteLossError, Preempted

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, such as configs/digits.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Directory for checkpoints, metrics and results; made if need be."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Several processes: a TPU pod or a Slurm job, found out by JAX."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where JAX cannot find it out; with the next two."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator.")
_PROGRESS = flags.DEFINE_bool("progress", True, "Draw a progress bar.")
flags.mark_flags_as_required(["config", "workdir"])

_EXIT_BAD_INPUT = 2
_EXIT_FAILED = 1
_EXIT_PREEMPTED = 128 + 15  # As a shell reports a process that SIGTERM ended.


def main(argv: list[str]) -> int:
    if len(argv) > 1:
        return _fail(f"unexpected arguments: {' '.join(argv[1:])}", _EXIT_BAD_INPUT)
    logging.set_verbosity(logging.INFO)
    try:
        if _DISTRIBUTED.value or _COORDINATOR.value:
            jax.distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
        results = train.train_and_evaluate(
            _CONFIG.value, _WORKDIR.value, show_progress=_PROGRESS.value
        )
    except Preempted as stop:
        return _fail(f"{stop} The same command goes on from there.", _EXIT_PREEMPTED)
    except InputError as error:
        return _fail(str(error), _EXIT_BAD_INPUT)
    except (CheckpointError, NonFiniteLossError) as error:
        return _fail(str(error), _EXIT_FAILED)
    if jax.process_index() == 0:
        print(results["table"])
    return 0


def _fail(message: str, code: int) -> int:
    print(f"error: {message}", file=sys.stderr)
    return code


def _parse_flags(argv: list[str]) -> list[str]:
    """absl's parsing, but a misspelt config field gets one line and not a traceback."""
    try:
        return app.parse_flags_with_usage(argv)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        message = str(error.args[0] if error.args else error).strip("\"'").replace("\\'", "'")
        sys.exit(_fail("unknown or ill-typed config field: " + message.replace("\\n", " "), 2))


if __name__ == "__main__":
    app.run(main, flags_parser=_parse_flags)
