"""Deals a grid of runs to workers that only share a workdir.

    python -m experiments.noise_sweep ... --workdir=DIR --shard=2/6    # the third of six workers
    python -m experiments.noise_sweep ... --workdir=DIR --collect      # the tables, at the end

A worker's share depends only on the grid and its number. A worker that died resumes if it is
started with the same number. DIR/sweep.json has the settings that all workers must share.
"""

import json
import os
import re
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

from absl import flags
from etils import epath
from ml_collections import ConfigDict

from experiments import runs
from experiments.paper import noise_grid
from experiments.records import Row
from mlc_jax import paths
from mlc_jax.config import flatten, formerly
from mlc_jax.errors import InputError, expect
from mlc_jax.workdir import checkpoint

SWEEP_FILE = "sweep.json"
# For job arrays whose manager tells tasks their number, but not how many there are.
COUNT_VARIABLE = "JOB_COMPLETIONS"

_EXPECTED = "i/n with i from 0 to n - 1, or auto in a task of a job array"


class Shard(NamedTuple):
    """The share of worker `number` of `total`, from 0."""

    number: int
    total: int


class Flags(NamedTuple):
    """`--shard` and `--collect` of a program, see `define_flags`."""

    shard: flags.FlagHolder[str]
    collect: flags.FlagHolder[bool]

    def rows(
        self, config: ConfigDict, grid: runs.Grid, workdir: epath.Path, *, batch_runs: int
    ) -> list[Row]:
        """Trains the grid, or a worker's share of it, or reads what others have trained.

        Args:
          config: the config that the grid is made from.
          grid: the whole grid.
          workdir: created if it is missing; shared by all workers.
          batch_runs: see `runs.run_grid`.

        Returns:
          The rows for tables: of all runs, or with `--collect` of finished ones; none for a
          worker's share.

        Raises:
          InputError: bad flags, another sweep's workdir, or nothing to collect.
          others: as `runs.run_grid`.
        """
        ok = not (self.shard.value and self.collect.value)
        expect(ok, "--shard", self.shard.value, "none with --collect")
        shard = parse(self.shard.value, os.environ)
        check_sweep(config, workdir)
        runs.check({path: of_run for path, (_, of_run) in grid.items()}, workdir)
        if self.collect.value:
            return collect(grid, workdir)
        mark_sweep(config, workdir)
        if not shard:
            return runs.train_rows(grid, workdir, batch_runs=batch_runs)
        share = dict(list(grid.items())[shard.number :: shard.total])
        print(f"Shard {shard.number} of {shard.total}: {len(share)} of {len(grid)} runs.")
        if share:
            runs.train_rows(share, workdir, batch_runs=batch_runs)
        print("This share is finished. When all are, --collect makes the tables.")
        return []


def define_flags() -> Flags:
    """Defines `--shard` and `--collect` for a program that trains a grid of runs."""
    shard = flags.DEFINE_string(
        "shard",
        "",
        "Train the share i/n of the grid, i from 0, for n workers with one workdir; auto: i and n "
        "are those of a Kubernetes Indexed Job, a Slurm job array or the nodes of a SkyPilot task.",
    )
    collect = flags.DEFINE_bool(
        "collect", False, "Train nothing; make the tables from what is finished, and list the rest."
    )
    return Flags(shard, collect)


def parse(text: str, environment: Mapping[str, str]) -> Shard | None:
    """`--shard`; None if it was not given.

    Args:
      text: the flag's value.
      environment: of this process.

    Raises:
      InputError: there is no such share, or this is one of several hosts that train one run.
    """
    if not text:
        return None
    hosts = environment.get("TPU_WORKER_HOSTNAMES", "").split(",")
    if len(hosts) > 1:
        raise InputError(
            f"--shard: got {text!r} on one of {len(hosts)} hosts of a TPU slice, expected none: "
            "they train one run together; shards are for jobs of one host"
        )
    if text == "auto":
        return _from_environment(environment)
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    shard = Shard(int(match[1]), int(match[2])) if match else Shard(0, 0)
    expect(shard.number < shard.total, "--shard", text, _EXPECTED)
    return shard


def _from_environment(environment: Mapping[str, str]) -> Shard:
    """The task of a job array that this process is."""

    def number(name: str, default: int | None = None) -> int:
        text = environment.get(name, "" if default is None else str(default))
        expect(text.isdecimal(), f"--shard=auto: {name}", text, "a number, in a job array")
        return int(text)

    if "JOB_COMPLETION_INDEX" in environment:
        shard = Shard(number("JOB_COMPLETION_INDEX"), number(COUNT_VARIABLE))
    elif "SLURM_ARRAY_TASK_ID" in environment:
        # --array=1-11:2 has six tasks: 1, 3, ... 11.
        position = number("SLURM_ARRAY_TASK_ID") - number("SLURM_ARRAY_TASK_MIN", 0)
        step = number("SLURM_ARRAY_TASK_STEP", 1)
        shard = Shard(position // step, number("SLURM_ARRAY_TASK_COUNT"))
    elif "SKYPILOT_NODE_RANK" in environment:
        shard = Shard(number("SKYPILOT_NODE_RANK"), number("SKYPILOT_NUM_NODES"))
    else:
        raise InputError(f"--shard: got 'auto' outside of a job array, expected {_EXPECTED}")
    expect(shard.number < shard.total, "--shard=auto", f"{shard.number}/{shard.total}", _EXPECTED)
    return shard


def check_sweep(config: ConfigDict, workdir: epath.Path) -> None:
    """Raises InputError if `workdir` holds a sweep that was made from another config."""
    path = workdir / SWEEP_FILE
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{str(path)!r} cannot be read ({error}); remove it") from error
    differing = checkpoint.differing_fields(
        before, _common(config), "before", formerly=formerly(), prefix="config."
    )
    if differing:
        raise InputError(
            f"--workdir: {str(workdir)!r} holds a sweep of another config:\n"
            + "\n".join(differing)
            + "\nUse another --workdir, or that config."
        )


def mark_sweep(config: ConfigDict, workdir: epath.Path) -> None:
    """Writes the settings that all workers of a sweep must share, unless they are written.

    Raises:
      InputError: a worker of another config did so at the same time.
    """
    path = workdir / SWEEP_FILE
    if path.exists():
        return
    workdir.mkdir(parents=True, exist_ok=True)
    content = json.dumps(_common(config), indent=2).encode()
    # Others may write at the same time: on a disk each renames its own file.
    paths.write(path, content, beside=f"{SWEEP_FILE}.{uuid.uuid4().hex}")
    check_sweep(config, workdir)


def collect(grid: runs.Grid, workdir: epath.Path) -> list[Row]:
    """The rows of finished runs; prints which runs are missing.

    Raises:
      InputError: no run is finished.
    """
    results = runs.finished([*grid], workdir)
    missing = [path for path in grid if path not in results]
    expect(results, "--collect", str(workdir), "a directory with finished runs of this sweep")
    if missing:
        print(f"{len(missing)} of {len(grid)} runs are not finished, or diverged:")
        print("\n".join(f"  {path}" for path in missing))
    return [grid[path][0] | result for path, result in results.items()]


def _common(config: ConfigDict) -> dict[str, Any]:
    """The settings that all runs of a sweep share, by field."""
    flat = flatten(json.loads(config.to_json()))
    return {name: value for name, value in flat.items() if name not in noise_grid.AXES}
