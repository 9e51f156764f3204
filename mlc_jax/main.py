"""Trains a classifier on noisy labels, and corrects the labels.

    python -m mlc_jax.main --config=configs/digits.py --workdir=runs/digits

Any setting of the config can be overridden: --config.noise.level=0.6. The same command goes on from
the newest checkpoint in the workdir. Several processes (a TPU pod, a Slurm job): --distributed.
"""

import jax
from absl import flags
from ml_collections import config_flags

from mlc_jax import command_line, train

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, such as configs/digits.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "Directory for checkpoints, metrics and results; made if need be."
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Several processes, which JAX finds out about: a TPU pod, a Slurm job."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "HOST:PORT of process 0, where JAX cannot find it out; with the next two."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "With --coordinator.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "With --coordinator.")
_PROGRESS = flags.DEFINE_bool("progress", True, "Draw a progress bar.")


def main() -> None:
    if _DISTRIBUTED.value or _COORDINATOR.value:
        jax.distributed.initialize(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    results = train.train_and_evaluate(_CONFIG.value, _WORKDIR.value, show_progress=_PROGRESS.value)
    if jax.process_index() == 0:
        print(results["table"])


if __name__ == "__main__":
    command_line.run(main, required=["config", "workdir"])
