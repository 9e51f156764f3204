"""Trains runs: data in, checkpoints, metrics and a report out."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any

import jax
from ml_collections import ConfigDict

from mlc_jax import config as settings
from mlc_jax.benchmarks.datasets import is_scaled
from mlc_jax.encoders import readers
from mlc_jax.errors import InputError, NonFiniteLossError
from mlc_jax.report import report
from mlc_jax.training import estimate
from mlc_jax.training.loop import train_runs
from mlc_jax.training.run import build_run
from mlc_jax.workdir.workdir import locked_workdir

# Settings in which runs of one program may differ: they change numbers but not shapes.
STACKED_FIELDS = ("seed", "dataset.split_seed", "noise")


def train_and_evaluate(
    config: ConfigDict, workdir: str, *, show_progress: bool = True, again: str = ""
) -> dict[str, Any]:
    """Trains one run to its end, resuming from the newest checkpoint in `workdir`.

    Args:
      config: see `mlc_jax.config`.
      workdir: created if missing; `report.write` lists what it holds at the end.
      show_progress: whether process 0 shows a progress bar.
      again: the command that trains the next round, to be printed; see `report.write`.

    Returns:
      The results, as in `results.json`.

    Raises:
      InputError: bad config or data; nothing was started.
      CheckpointError: a checkpoint of another config, or one that cannot be read or written.
      NonFiniteLossError: training diverged.
      Preempted: SIGTERM; the same call resumes.
      Lost: another process, or the bucket of the workdir, cannot be reached any more.
    """
    runs = train_together({workdir: config}, show_progress=show_progress, again=again)
    results = runs[workdir]
    if isinstance(results, NonFiniteLossError):
        raise results
    return results


def train_together(
    runs: Mapping[str, ConfigDict], *, show_progress: bool = True, again: str = ""
) -> dict[str, dict[str, Any] | NonFiniteLossError]:
    """Trains runs that differ only in `STACKED_FIELDS` as one program, by `jax.vmap`.

    Each run has its own workdir, checkpoints and results, as if trained alone, and may be finished
    alone. Only `training.png`, `report.html` and the copy of an encoder are missing: drawing takes
    as long as a run. All must be at the same step. A run that diverges does not stop the others.

    Args:
      runs: configs, keyed by their workdirs.
      show_progress, again: as for `train_and_evaluate`.

    Returns:
      The results of each, or the error that stopped it, keyed by workdir.

    Raises:
      As `train_and_evaluate`, except NonFiniteLossError.
    """
    for config in runs.values():
        settings.validate(config, num_devices=jax.device_count())
    if len({stack_key(config) for config in runs.values()}) > 1:
        raise InputError(
            f"runs of one program may differ in {', '.join(STACKED_FIELDS)} only: "
            + ", ".join(runs)
        )
    built = [build_run(config) for config in runs.values()]
    first, *_ = runs.values()
    if first.dataset.name == "image_folder" and first.model.name == "resnet50":
        estimate.check_time(built[0], first.max_hours)
    results: dict[str, dict[str, Any] | NonFiniteLossError] = {}
    with contextlib.ExitStack() as contexts:
        paths = [contexts.enter_context(locked_workdir(workdir)) for workdir in runs]
        is_alone = len(built) == 1
        for run, path, config in zip(built, paths, runs.values(), strict=True):
            report.write_left_out(run.dataset, path)
            if is_alone and jax.process_index() == 0:
                readers.save(readers.of_config(config), run.dataset, path)
        recorders, _, predictions = train_runs(
            built, paths, formerly=settings.formerly(), show_progress=show_progress
        )
        for name, path, recorder, of_run in zip(runs, paths, recorders, predictions, strict=True):
            if recorder.failure is not None or of_run is None:
                assert recorder.failure is not None
                results[name] = recorder.failure
                continue
            written = report.write(
                recorder.run, recorder.progress, of_run, path, picture=is_alone, again=again
            )
            results[name] = written | {"workdir": str(path)}
    return results


def stack_key(config: ConfigDict) -> str:
    """Equal for configs that `train_together` can train as one program."""
    plain: dict[str, Any] = json.loads(config.to_json())
    fields = set(STACKED_FIELDS)
    if is_scaled(config):
        # Mean and deviation of the split's noisy set are constants of the program.
        fields.remove("dataset.split_seed")
    for field in fields:
        *path, name = field.split(".")
        place = plain
        for part in path:
            place = place[part]
        del place[name]
    return json.dumps(plain, sort_keys=True)
