"""Trains grids of runs for experiments, and formats cells of tables."""

import copy
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments.records import Row, clear_programs
from mlc_jax import paths
from mlc_jax.commands import train
from mlc_jax.config import formerly, validate
from mlc_jax.errors import CheckpointError, InputError, NonFiniteLossError, Preempted
from mlc_jax.report import report
from mlc_jax.workdir import checkpoint
from mlc_jax.workdir.workdir import CONFIG_FILE

# Runs by directory: the cells of the run's row, and its config.
Grid = Mapping[str, tuple[dict[str, Any], ConfigDict]]


def override(
    config: ConfigDict, fields: Mapping[str, Any], *, seed: int | None = None
) -> ConfigDict:
    """A copy of `config` with other values.

    Args:
      config: is not changed.
      fields: keyed as on the command line: `{"noise.level": 0.2}`.
      seed: for everything random: the split, the noise, the start, the order of the batches.
    """
    config = copy.deepcopy(config)
    if seed is not None:
        config.seed = config.noise.seed = config.dataset.split_seed = seed
    config.update_from_flattened_dict(fields)
    return config


def cache_programs(workdir: epath.Path) -> None:
    """Caches compiled programs for runs with other seeds or data, for the whole process.

    There is no cache in a bucket, because anyone who can write to the bucket could run code here.
    JAX_COMPILATION_CACHE_DIR turns it on nevertheless.
    """
    if paths.is_remote(workdir):
        return
    jax.config.update("jax_compilation_cache_dir", str(workdir / "compilation_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def run_grid(
    runs: Mapping[str, ConfigDict], workdir: epath.Path, *, batch_runs: int = 1
) -> dict[str, dict[str, Any]]:
    """Trains the missing runs of a grid.

    Finished runs are not repeated, interrupted ones resume. From the first run on the process
    caches its compiled programs in `workdir/compilation_cache`. A run that diverges is logged and
    skipped; the others go on.

    Args:
      runs: configs, keyed by the directories of the runs below `workdir`: `mlc/seed0`.
      workdir: created if it is missing.
      batch_runs: how many runs to train as one program at most, see `train.train_together`.

    Returns:
      `results.json` of every run that did not diverge, in the order of `runs`.

    Raises:
      InputError: a config cannot be run, or a directory has a run of another config. All runs are
        checked before the first one starts.
      CheckpointError, Preempted: of the run that the message names. Those before it are finished,
        and the same call resumes from there.
      NonFiniteLossError: all runs diverged.
    """
    check(runs, workdir)
    cache_programs(workdir)
    missing = {n: c for n, c in runs.items() if not _results_file(workdir / n).exists()}
    failures: dict[str, NonFiniteLossError] = {}
    with tqdm(total=len(runs), initial=len(runs) - len(missing), unit="run") as bar:
        for names in _batches(missing, workdir, batch_runs):
            bar.set_description(_listed(names))
            results = _train({name: missing[name] for name in names}, workdir)
            diverged = {n: r for n, r in results.items() if isinstance(r, NonFiniteLossError)}
            for name, error in diverged.items():
                logging.warning("%s diverged and is skipped: %s", name, error)
            failures |= diverged
            clear_programs()
            bar.update(len(names))
    if runs.keys() == failures.keys():
        raise next(iter(failures.values()))
    return finished(runs, workdir)


def finished(names: Iterable[str], workdir: epath.Path) -> dict[str, dict[str, Any]]:
    """`results.json` of the runs that have one, by their directories below `workdir`."""
    files = {name: _results_file(workdir / name) for name in names}
    return {name: _read_json(file) for name, file in files.items() if file.exists()}


def train_rows(grid: Grid, workdir: epath.Path, *, batch_runs: int) -> list[Row]:
    """`run_grid` of a `Grid`: rows with the cells of each run and its results."""
    configs = {path: config for path, (_, config) in grid.items()}
    results = run_grid(configs, workdir, batch_runs=batch_runs)
    return [grid[path][0] | result for path, result in results.items()]


def check(runs: Mapping[str, ConfigDict], workdir: epath.Path) -> None:
    """Raises the InputError of `run_grid`: one for all runs, with each problem once."""
    problems: dict[str, list[str]] = {}
    for name, config in runs.items():
        try:
            validate(config, num_devices=jax.device_count())
            _check_config(config, workdir, name)
        except InputError as error:
            problems.setdefault(str(error), []).append(name)
    if problems:
        raise InputError("\n".join(f"{_listed(names)}: {text}" for text, names in problems.items()))


def _check_config(config: ConfigDict, workdir: epath.Path, name: str) -> None:
    """Raises InputError if `workdir / name` holds a run of another config."""
    run_dir = workdir / name
    started = checkpoint.finished_steps(run_dir / checkpoint.DIRECTORY)
    if not started and not _results_file(run_dir).exists():
        return
    differing = checkpoint.differing_fields(
        _read_json(run_dir / CONFIG_FILE),
        json.loads(config.to_json()),
        "before",
        formerly=formerly(),
    )
    if differing:
        raise InputError(
            "trained with another config:\n"
            + "\n".join(differing)
            + f"\nUse another --workdir, or remove these runs from {str(workdir)!r}."
        )


def _batches(
    runs: Mapping[str, ConfigDict], workdir: epath.Path, batch_runs: int
) -> list[list[str]]:
    """Names of runs that are trained as one program: of one shape, and at the same step."""
    groups: dict[tuple[str, int], list[str]] = {}
    for name, config in runs.items():
        steps = checkpoint.finished_steps(workdir / name / checkpoint.DIRECTORY)
        groups.setdefault((train.stack_key(config), steps[-1] if steps else 0), []).append(name)
    return [
        group[start : start + batch_runs]
        for group in groups.values()
        for start in range(0, len(group), batch_runs)
    ]


def _train(
    runs: Mapping[str, ConfigDict], workdir: epath.Path
) -> dict[str, dict[str, Any] | NonFiniteLossError]:
    names = _listed(list(runs))
    by_workdir = {str(workdir / name): config for name, config in runs.items()}
    try:
        # A terminal shows it below the bar of the grid; a log has only that bar.
        results = train.train_together(by_workdir, show_progress=sys.stderr.isatty())
    except (InputError, CheckpointError, Preempted) as error:
        raise type(error)(f"{names}: {error}") from error
    except Exception as error:
        error.add_note(f"In the run {names}.")
        raise
    return dict(zip(runs, results.values(), strict=True))


def _results_file(run_dir: epath.Path) -> epath.Path:
    return run_dir / report.RESULTS_FILE


def _read_json(path: epath.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"{str(path)!r} cannot be read ({error}); remove its directory to train the run again"
        ) from error


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def mean_and_spread(values: Iterable[float | None]) -> str:
    """Mean and sample standard deviation in percent, "94.0 ± 2.0"; "-" if all are None."""
    numbers = [100 * value for value in values if value is not None]
    if not numbers:
        return "-"
    spread = f" ± {np.std(numbers, ddof=1):.1f}" if len(numbers) > 1 else ""
    return f"{np.mean(numbers):.1f}{spread}"
