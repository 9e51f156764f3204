"""Estimates the least time to train a whole network, before the first step.

On a CPU the first step compiles for minutes, and hours of training may follow. Training on frozen
features takes seconds, and needs no estimate.
"""

import time
from typing import Any

import jax
import numpy as np
from absl import logging

from mlc_jax.data.loader import Pipeline
from mlc_jax.errors import InputError
from mlc_jax.training.run import Run, initial_state

# A backward pass costs about two forward ones.
_PASSES = 3
_MEASURED = 2  # Seconds or calls to measure, after the first call, which compiles.
_BATCH = 8  # Pictures per batch. On a CPU larger batches are no faster.


def check_time(run: Run, max_hours: float) -> None:
    """Logs how long a run on pictures takes at least.

    It times the classifier's forward pass on one batch. A step of any method costs at least three
    forward passes of its noisy and clean batch.

    Args:
      run: trains a network on pixels.
      max_hours: the longest time allowed.

    Raises:
      InputError: it would take longer.
    """
    assert isinstance(run.pipeline, Pipeline)
    if jax.process_count() > 1:  # All processes would have to decide alike.
        return
    num_steps, examples = run.bound.num_steps, run.pipeline.examples_per_step
    per_example = _seconds(run) * _PASSES
    hours = num_steps * examples * per_example / 3600
    what = (
        f"{num_steps:,} steps of {examples} pictures take {_shown(hours)} at least on "
        f"{jax.device_count()} {jax.devices()[0].platform} device(s)"
    )
    logging.info("%s, going by %.3g s a picture.", what, per_example)
    if hours > max_hours:
        raise InputError(
            f"config.max_hours: got {max_hours:g}, expected {hours:.2g} or more: {what}. Features "
            "of a frozen network take seconds: dataset.encoder"
        )


def _seconds(run: Run) -> float:
    """Seconds per picture of a forward pass, on all devices."""
    on_cpu = jax.devices()[0].platform == "cpu"
    assert isinstance(run.pipeline, Pipeline)
    size = run.pipeline.noisy_batch_size // jax.device_count() or 1
    size = min(size, _BATCH) if on_cpu else size
    inputs = jax.tree.map(lambda x: np.repeat(x, size, axis=0), run.example)
    classify: Any = run.bound.classify
    state = initial_state(run)
    forward = jax.jit(lambda state, inputs: classify(state, inputs)[0])
    jax.block_until_ready(forward(state, inputs))
    started, calls = time.monotonic(), 0
    while calls < _MEASURED or (time.monotonic() - started < _MEASURED and calls < 20):
        jax.block_until_ready(forward(state, inputs))
        calls += 1
    seconds = (time.monotonic() - started) / calls
    # Several devices of one CPU share its cores.
    return seconds / size / (1 if on_cpu else jax.device_count())


def _shown(hours: float) -> str:
    if hours < 1 / 60:
        return "less than a minute"
    return f"{hours:.2g} hours" if hours >= 1.5 else f"{60 * hours:.2g} minutes"
