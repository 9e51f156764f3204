"""Trains a classifier on noisy labels, and corrects the labels.

    mlc-jax train --config=digits --workdir=runs/digits
    python -m mlc_jax.main --config=configs/digits.py --workdir=runs/digits

Any setting of the config can be overridden: --config.noise.level=0.6. `mlc-jax settings` lists
them. The same command resumes from the newest checkpoint in the workdir. Several processes (a
TPU pod, a Slurm job): --distributed.
"""

import os
import shlex
import socket
import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import config_flags

from mlc_jax import command_line, config, paths, supervisor
from mlc_jax.benchmarks import datasets
from mlc_jax.config import starts
from mlc_jax.errors import InputError, Preempted, expect

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, such as configs/digits.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "Directory for checkpoints, metrics and results; created if missing."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Several processes that JAX detects: a TPU pod, a Slurm job."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, if JAX cannot detect it; with the next two."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator.")
_SUPERVISE = flags.DEFINE_bool(
    "supervise",
    True,
    "With several processes: each has a parent that reports in one line if another one is lost.",
)
_PROGRESS = flags.DEFINE_bool("progress", True, "Show a progress bar.")


def main(typed: Sequence[str] | None = None) -> None:
    """Trains.

    Args:
      typed: the command as it was typed, for messages.
    """
    # Before JAX and TensorFlow are imported: that alone takes ten seconds.
    config.validate(_CONFIG.value)
    starts.check(_CONFIG.value)
    paths.absolute(_WORKDIR.value)
    _check_processes()
    if _DISTRIBUTED.value or _COORDINATOR.value:
        if _SUPERVISE.value:
            command = [sys.executable, *sys.orig_argv[1:], "--nosupervise"]
            sys.exit(supervisor.supervise(command))
        _join_processes()
    elif _CONFIG.value.dataset.name in datasets.READ_AT_ONCE:
        datasets.load(_CONFIG.value)  # The result is kept for later calls.
    try:
        _train(typed or ["python", "-m", "mlc_jax.main", *sys.argv[1:]])
    except Exception as error:
        import jax

        if jax.process_count() == 1 or isinstance(error, Preempted):
            raise
        command_line.leave(supervisor.LOST if supervisor.is_of_a_lost_peer(error) else error)


def _train(typed: Sequence[str]) -> None:
    import jax

    from mlc_jax.commands import train

    results = train.train_and_evaluate(
        _CONFIG.value, _WORKDIR.value, show_progress=_PROGRESS.value, again=_again(typed)
    )
    if jax.process_index() == 0:
        print(results["table"])


def _again(typed: Sequence[str]) -> str:
    """The command that trains the next round: on more checks, in another directory."""
    path, data = _WORKDIR.value.rstrip("/"), _CONFIG.value.dataset
    checked = ",".join(filter(None, [data.checked, f"{path}/to_check.csv"]))
    changed = ("--workdir", "--config.dataset.checked")
    # A child of the supervisor has one more flag, `--nosupervise`.
    values = [False, *(x in changed for x in typed)]  # `--workdir DIR`, in two words.
    kept = [
        x
        for x, is_value in zip(typed, values, strict=False)
        if not (is_value or x.startswith(changed) or x == "--nosupervise")
    ]
    further = [f"--config.dataset.checked={checked}", f"--workdir={path}.next"]
    return shlex.join([*kept, *further]) if data.data else ""


def _check_processes() -> None:
    """Raises InputError unless --coordinator and its two partners are all given, or none."""
    coordinator, count, index = _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value
    if coordinator is None and count is None and index is None:
        return
    if coordinator is None or count is None or index is None:
        given = {"--coordinator": coordinator, "--num_processes": count, "--process_id": index}
        missing = [name for name, value in given.items() if value is None]
        raise InputError(
            f"{', '.join(missing)}: missing; expected --coordinator=HOST:PORT, --num_processes=N "
            "and --process_id=I together, or none of them"
        )
    host, _, port = coordinator.rpartition(":")
    is_address = bool(host) and port.isdecimal() and 0 < int(port) < 2**16
    expect(is_address, "--coordinator", coordinator, "HOST:PORT")
    expect(count >= 1, "--num_processes", count, "at least 1")
    expect(0 <= index < count, "--process_id", index, f"0 to {count - 1}")


def _bind_address(coordinator: str | None) -> str | None:
    """The address where process 0 listens; None leaves it to JAX, which takes all interfaces.

    Args:
      coordinator: HOST:PORT. If HOST is an address of this machine, process 0 listens only there:
        127.0.0.1 cannot be reached from outside. Otherwise HOST may be a proxy, and we return None.
    """
    if coordinator is None or "JAX_COORDINATOR_BIND_ADDRESS" in os.environ:
        return None
    host = coordinator.rpartition(":")[0].strip("[]")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.bind((host, 0))
    except OSError:
        return None
    return coordinator


def _join_processes() -> None:
    import jax

    try:
        jax.distributed.initialize(
            _COORDINATOR.value,
            _NUM_PROCESSES.value,
            _PROCESS_ID.value,
            heartbeat_timeout_seconds=supervisor.HEARTBEAT_SECONDS,
            coordinator_bind_address=_bind_address(_COORDINATOR.value),
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"--distributed: JAX found no cluster to join ({reason}); expected a TPU pod or a "
            "Slurm job, or --coordinator=HOST:PORT --num_processes=N --process_id=I in each process"
        ) from error


if __name__ == "__main__":
    command_line.run(main, required=["config", "workdir"])
