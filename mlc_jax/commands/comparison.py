"""What a method is worth: beside it, all labels as they were given, and the clean ones alone."""

import contextlib
import statistics
import time
from typing import Any

import jax
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from mlc_jax import config as settings
from mlc_jax.commands import train
from mlc_jax.data.loader import batches_of
from mlc_jax.errors import NonFiniteLossError
from mlc_jax.report import report
from mlc_jax.training.loop import create_train_step
from mlc_jax.training.run import Run, build_run, initial_state
from mlc_jax.workdir import checkpoint
from mlc_jax.workdir.workdir import locked_workdir

FOLDER = "compare"  # In a workdir: those of the others, by method.
RIVALS = ("cross_entropy", "clean_only")

_TIMED_STEPS = 9


def train_and_compare(
    config: ConfigDict, workdir: str, *, show_progress: bool = True
) -> dict[str, Any]:
    """Trains a run, and where `config.compare` says so, two others to hold it against.

    Each is resumed on its own: the same call goes on where it was stopped. The report of the run
    itself is written before the others begin.

    Args and errors are those of `train.train_and_evaluate`; so are the results, which have
    `compared`, too: `{method: test accuracy}`. One that diverges has none.
    """
    settings.validate(config, num_devices=jax.device_count())
    rivals = [name for name in RIVALS if name != config.method]
    if not config.compare:
        return train.train_and_evaluate(config, workdir, show_progress=show_progress)
    run = build_run(config)
    if run.dataset.test is None:
        logging.info(
            "Nothing is compared: there are no test rows, and no class has enough checked rows to "
            "hold some out (dataset.holdout_per_class)."
        )
        return train.train_and_evaluate(config, workdir, show_progress=show_progress)
    filled = settings.complete(ConfigDict(run.description))  # With what the data's sizes chose.
    configs = {name: _of_rival(filled, name) for name in rivals}
    runs = {name: build_run(of_rival) for name, of_rival in configs.items()}
    with locked_workdir(workdir) as path:
        places = {name: path / FOLDER / name for name in rivals}
        _announce({config.method: (run, path)} | {x: (runs[x], places[x]) for x in rivals})
        finished = train.train_one(run, config, path, show_progress=show_progress)
        if isinstance(finished, NonFiniteLossError):
            raise finished
        compared: dict[str, float | None] = {}
        for name in rivals:
            with locked_workdir(str(places[name])) as place:
                other = train.train_one(
                    runs[name], configs[name], place, show_progress=show_progress
                )
            if isinstance(other, NonFiniteLossError):
                compared[name] = None
            else:
                compared[name] = other.results["test_accuracy"]
        results = report.add_comparison(run, finished.results, finished.of_noisy, compared, path)
    return results | {"workdir": str(path)}


def _of_rival(config: ConfigDict, method: str) -> ConfigDict:
    rival = config.copy_and_resolve_references()
    with rival.ignore_type():
        rival.update(method=method, compare=False, profile="")
        for name in rival.inner_loss:  # What makes it the plain method.
            rival.inner_loss[name] = None
    return rival


def _announce(runs: dict[str, tuple[Run, epath.Path]]) -> None:
    seconds = {name: _seconds_left(run, path) for name, (run, path) in runs.items()}
    logging.info(
        "About %s of training: %s, one after the other. --config.compare=False trains %s alone.",
        _duration(sum(seconds.values())),
        ", ".join(f"{name} {_duration(x)}" for name, x in seconds.items()),
        next(iter(runs)),
    )


def _seconds_left(run: Run, workdir: epath.Path) -> float:
    """Measured on a few steps from the start, whose results are thrown away."""
    done = max(checkpoint.finished_steps(workdir / checkpoint.DIRECTORY), default=0)
    left = run.bound.num_steps - done
    if left <= 0:
        return 0.0
    step, state = create_train_step(run.bound.phases[0]), initial_state(run)
    batches = batches_of(
        [run.pipeline],
        0,
        num_devices=jax.local_device_count(),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        devices=jax.local_devices(),
    )
    with contextlib.closing(batches):  # type: ignore[type-var]
        seconds = []
        for _ in range(1 + _TIMED_STEPS):
            start = time.monotonic()
            state, _ = step(state, next(batches))
            jax.block_until_ready(state)
            seconds.append(time.monotonic() - start)
    # The first one is compiled; the median does not mind that others use the machine.
    return statistics.median(seconds[1:]) / run.method.stride * left


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes / 60:.1f} h"
