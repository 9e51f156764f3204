"""How long training of a whole network takes, at least, before its first step is made.

That step is compiled for minutes on a CPU, and hours may follow: nobody should have to wait to
learn it. Frozen features are trained on in seconds, and need no estimate.
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
_MEASURED = 2  # Seconds, after the first call, which compiles; or as many calls.
_BATCH = 8  # Pictures, on a CPU, where more at once are no faster.


def check_time(run: Run, max_hours: float) -> None:
    """Logs how long a run on pictures takes at least.

    The classifier alone is timed, forward, on one batch; a step of any method costs three of these
    on its noisy and its clean batch, and most methods more.

    Args:
      run: whose pixels a network is trained on.
      max_hours: that it may take.

    Raises:
      InputError: it would take longer.
    """
    assert isinstance(run.pipeline, Pipeline)
    if jax.process_count() > 1:  # Somebody planned it, and all must decide the same.
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
    """Of one picture, forward, on all devices."""
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
    # Fake devices of a CPU share its cores.
    return seconds / size / (1 if on_cpu else jax.device_count())


def _shown(hours: float) -> str:
    if hours < 1 / 60:
        return "less than a minute"
    return f"{hours:.2g} hours" if hours >= 1.5 else f"{60 * hours:.2g} minutes"
