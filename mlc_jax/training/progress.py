"""A run's terminal output: one line at its start, and a progress bar."""

from collections.abc import Sequence

import jax
import numpy as np
from absl import logging
from tqdm import tqdm

from mlc_jax import core
from mlc_jax.core import TrainState
from mlc_jax.errors import is_watched
from mlc_jax.methods import BilevelMethod
from mlc_jax.training.recorder import Recorder
from mlc_jax.training.run import Run


def bar(run: Run, step: int, enabled: bool) -> tqdm:
    """A progress bar over inner steps, set to `step`."""
    return tqdm(
        total=run.bound.num_steps, initial=step, unit="step", disable=not enabled,
        desc=run.method.name, dynamic_ncols=True,
        # Redraws seldom in a log file.
        mininterval=0.2 if is_watched() else 30.0,
        leave=None,  # Below another bar it vanishes at its end.
    )  # fmt: skip


def show(bar: tqdm, recorders: Sequence[Recorder], examples_per_second: float) -> None:
    """Loss and accuracies for the progress bar: means over runs that have not failed."""
    shown = {"loss": np.mean([recorder.newest["inner_loss"] for recorder in recorders])}
    if "clean_accuracy" in recorders[0].newest:
        shown["clean_acc"] = np.mean([r.newest["clean_accuracy"] for r in recorders])
    evals = [recorder.progress["evals"] for recorder in recorders]
    if evals[0] and evals[0][-1]["test_accuracy"] is not None:
        shown["test_acc"] = np.mean([of_run[-1]["test_accuracy"] for of_run in evals])
    speed = f"{examples_per_second:.0f}"
    bar.set_postfix({name: f"{x:.3f}" for name, x in shown.items()} | {"examples/s": speed})


def log_start(run: Run, state: TrainState, num_runs: int) -> None:
    """Logs the method, the model and the data.

    Args:
      run: the first run of a stack.
      state: its state.
      num_runs: number of runs in the stack.
    """
    dataset, wrong = run.dataset, run.dataset.noise_rate
    logging.info(
        "%s on %s: %d noisy%s, %d clean labels spent%s; %s with %s parameters; %s%d steps on %d %s "
        "device(s).",
        run.method.name,
        dataset.name,
        len(dataset.noisy),
        "" if wrong is None else f" ({100 * wrong:.1f} % wrong)",
        dataset.clean_labels_spent(trained_on=run.bound.uses_clean),
        "" if dataset.test is None else f", {len(dataset.test)} test",
        type(run.method.model).__name__,
        f"{core.num_params(state.main.params):,}",
        f"{num_runs} runs as one program, " if num_runs > 1 else "",
        run.bound.num_steps,
        jax.device_count(),
        jax.default_backend(),
    )
    method = run.method
    if not isinstance(method, BilevelMethod) or method.num_inner_steps == 1:
        return
    if method.goes_on:
        logging.info("The recursion accumulates over all updates: num_inner_steps has no effect.")
        return
    if method.num_replayed:
        logging.info(
            "One update of the meta model per %d inner step(s), by a replay of the last %d.",
            method.stride,
            method.num_inner_steps,
        )
    convolutions = core.has_convolutions(state.main.params)
    turns = core.resolve_unroll(method.unroll, method.num_inner_steps, convolutions=convolutions)
    goes_back = method.estimator.name in ("exact", "truncated")
    if goes_back and turns > 1 and method.estimator.backward != "store":
        logging.info(
            "The inner steps are unrolled into one program, which keeps all of them for the "
            "backward pass, as backward=store does. --config.meta_gradient.unroll=1 keeps memory "
            "flat (slow for convolutions on CPU)."
        )
