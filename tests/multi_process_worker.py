"""One process of a training run; started by multi_process_test.py.

    python tests/multi_process_worker.py SETTINGS

SETTINGS is JSON: `num_processes`, `process_id`, `port`, `workdir`, `observed` (prefix of the files
that tell what this process saw), `method`, and `sigterm_at` (the window before which it gets
SIGTERM, or null).
"""

import json
import os
import pathlib
import signal
import sys
import time

import jax
import numpy as np

SETTINGS = json.loads(sys.argv[1])

if SETTINGS["num_processes"] > 1:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        f"127.0.0.1:{SETTINGS['port']}", SETTINGS["num_processes"], SETTINGS["process_id"]
    )

from configs import digits
from mlc_jax.commands import train
from mlc_jax.errors import Preempted
from mlc_jax.training import loop

# JAX looks for the signal once a second, and then the processes agree on where to stop.
SECONDS_A_WINDOW_AFTER_SIGTERM = 0.2


def get_config():
    config = digits.get_config()
    config.method = SETTINGS["method"]
    config.model.mlp.hidden_sizes = (32, 16)
    config.lcn.update(hidden_size=16, embedding_size=16)
    config.meta_gradient.num_inner_steps = 2
    config.update(
        noisy_batch_size=64, clean_batch_size=32, num_epochs=3, eval_every_epochs=1,
        log_every_steps=4, checkpoint_every_steps=16, eval_batch_size=200,
    )  # fmt: skip
    return config


def main():
    seen, arrays = {"windows": 0, "preempted": None}, {}
    create_train_step, correct_labels = loop.create_train_step, loop.Loop.correct_labels

    def create_observed_step(phase, num_runs):
        step = create_train_step(phase, num_runs)

        def observed_step(state, batch):
            if not seen["windows"]:
                seen["first_step"] = int(state.step)
                arrays["first_labels"] = np.asarray(batch.noisy.labels)
            if seen["windows"] == SETTINGS["sigterm_at"]:
                os.kill(os.getpid(), signal.SIGTERM)
            if SETTINGS["sigterm_at"] is not None and seen["windows"] >= SETTINGS["sigterm_at"]:
                time.sleep(SECONDS_A_WINDOW_AFTER_SIGTERM)
            seen["windows"] += 1
            return step(state, batch)

        return observed_step

    def correct_and_keep(self, state):
        kept = {"main": state.main, "meta": state.meta}
        for path, leaf in jax.tree.leaves_with_path(kept):
            arrays["state/" + jax.tree_util.keystr(path)] = np.asarray(leaf)
        return correct_labels(self, state)

    loop.create_train_step, loop.Loop.correct_labels = create_observed_step, correct_and_keep
    try:
        train.train_and_evaluate(get_config(), SETTINGS["workdir"], show_progress=False)
    except Preempted as stop:
        seen["preempted"] = str(stop)
    observed = pathlib.Path(SETTINGS["observed"])
    np.savez(observed.with_suffix(".npz"), **arrays)
    observed.with_suffix(".json").write_text(json.dumps(seen))


if __name__ == "__main__":
    main()
