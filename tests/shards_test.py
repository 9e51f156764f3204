"""A grid dealt out to workers: every run once, whoever dies, and the tables of a single process."""

import csv
import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import pytest
from etils import epath

from experiments import runs, shards
from mlc_jax.errors import InputError

ROOT = pathlib.Path(__file__).parents[1]
PROGRAM = "experiments.noise_sweep"
NUM_SHARDS = 3
TIMEOUT = 240  # Seconds, for a process on a busy machine.
SINGLE = {"JOB_COMPLETION_INDEX": "3", "JOB_COMPLETIONS": "20"}


@pytest.fixture
def own_compilation_cache(compilation_cache):
    """The program sets one up in its workdir; the suite's comes back after it."""
    yield
    jax.config.update("jax_compilation_cache_dir", compilation_cache)


def _flags(tiny_flags, workdir, **overrides):
    flags = [flag for flag in tiny_flags(**overrides) if flag != "--noprogress"]
    return [
        *flags, "--methods=cross_entropy,clean_only", "--noise=uniform", "--levels=0,0.2,0.5",
        "--seeds=1", f"--workdir={workdir}",
    ]  # fmt: skip


def _kill_in_the_middle(flags, workdir, path):
    """Starts a worker, and kills it when there is `path`, before it ends."""
    process = subprocess.Popen(
        [sys.executable, "-m", PROGRAM, *flags],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + TIMEOUT
        while not list(workdir.glob(path)):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL


def _table(workdir, name):
    with (workdir / name).open(newline="") as file:
        return [
            {key: value for key, value in row.items() if key != "train_seconds"}
            for row in csv.DictReader(file)
        ]


@pytest.mark.slow
def test_workers_make_the_table_of_one_process(
    run_program, tiny_flags, tmp_path, own_compilation_cache
):
    """Two of three are killed, one in its first run, one after it, and started again.

    Twelve runs and two processes: what six runs say does not depend on who died over them.
    """
    alone, shared = tmp_path / "alone", tmp_path / "shared"
    settings = {"num_epochs": 2, "checkpoint_every_steps": 5}
    code, out, err = run_program(PROGRAM, *_flags(tiny_flags, alone, **settings))
    assert code == 0, err
    flags = _flags(tiny_flags, shared, **settings)
    _kill_in_the_middle([*flags, "--shard=1/3"], shared, "uniform/0.2/cross_entropy/*/checkpoints")
    _kill_in_the_middle([*flags, "--shard=2/3"], shared, "uniform/0.5/cross_entropy/*/results.json")
    code, collected, _ = run_program(PROGRAM, *flags, "--collect")
    assert code == 0
    first, *missing = collected.splitlines()[: len(collected.split("\n\n")[0].splitlines()) - 1]
    assert first in [f"{n} of 6 runs are not finished, or diverged:" for n in (4, 5)]
    assert "  uniform/0.2/cross_entropy/seed0" in missing
    assert "  uniform/0.5/cross_entropy/seed0" not in missing
    for index in range(NUM_SHARDS):
        code, worker, err = run_program(PROGRAM, *flags, f"--shard={index}/{NUM_SHARDS}")
        assert code == 0, err
        assert worker.startswith(f"Shard {index} of 3: 2 of 6 runs.\n")
        assert (shared / "sweep.csv").exists()  # Of what was collected before.
    code, collected, err = run_program(PROGRAM, *flags, "--collect")
    assert code == 0, err
    for name in ("sweep.csv", "runs.csv"):
        assert _table(shared, name) == _table(alone, name), name
    title, *tables = (shared / "sweep.md").read_text().splitlines()
    title_alone, *tables_alone = (alone / "sweep.md").read_text().splitlines()
    assert tables == tables_alone
    assert title == title_alone.replace(" on 8 cpu device(s)", "") != title_alone
    assert collected.startswith(title)

    # Of another config, whether it would train runs that are there or new ones.
    before = {path: path.read_bytes() for path in shared.rglob("*") if path.is_file()}
    for flag in ("--shard=0/3", "--collect", "--methods=mlc"):
        code, out, err = run_program(PROGRAM, *flags, flag, "--config.lcn.hidden_size=8")
        assert (code, out) == (2, "")
        assert err.splitlines() == [
            f"error: --workdir: {str(shared)!r} holds a sweep of another config:",
            "  config.lcn.hidden_size: 16 before, 8 now",
            "Use another --workdir, or that config.",
        ]
    assert {path: path.read_bytes() for path in shared.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("6/6", "--shard: got '6/6', expected i/n with i from 0 to n - 1, or auto"),
        ("0/0", "--shard: got '0/0', expected i/n"),
        ("-1/6", "--shard: got '-1/6', expected i/n"),
        ("1", "--shard: got '1', expected i/n"),
        ("1/6/2", "--shard: got '1/6/2', expected i/n"),
        ("auto", "--shard: got 'auto' outside of a job array, expected i/n"),
    ],
)
def test_bad_shards(run_program, tiny_flags, tmp_path, monkeypatch, text, problem):
    for name in ("JOB_COMPLETION_INDEX", "SLURM_ARRAY_TASK_ID", "SKYPILOT_NODE_RANK"):
        monkeypatch.delenv(name, raising=False)
    workdir = tmp_path / "grid"
    code, out, err = run_program(PROGRAM, *_flags(tiny_flags, workdir), f"--shard={text}")
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {problem}") and len(err.splitlines()) == 1
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        (("--shard=0/6", "--collect"), "--shard: got '0/6', expected none with --collect"),
        (("--collect",), "--collect: got '{workdir}', expected a directory with finished runs of "),
    ],
)
def test_nothing_to_collect(run_program, tiny_flags, tmp_path, flags, problem):
    workdir = tmp_path / "grid"
    code, out, err = run_program(PROGRAM, *_flags(tiny_flags, workdir), *flags)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {problem.format(workdir=workdir)}")
    assert len(err.splitlines()) == 1 and not workdir.exists()


@pytest.mark.parametrize(
    ("environment", "shard"),
    [
        (SINGLE, (3, 20)),
        ({"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "4"}, (0, 4)),
        (
            {
                "SLURM_ARRAY_TASK_ID": "11", "SLURM_ARRAY_TASK_MIN": "1",
                "SLURM_ARRAY_TASK_STEP": "2", "SLURM_ARRAY_TASK_COUNT": "6",
            },
            (5, 6),
        ),
        ({"SKYPILOT_NODE_RANK": "1", "SKYPILOT_NUM_NODES": "2"}, (1, 2)),
        # A job that is both, such as Kubernetes' below SkyPilot, is one task of the former.
        (SINGLE | {"SKYPILOT_NODE_RANK": "0", "SKYPILOT_NUM_NODES": "1"}, (3, 20)),
        (SINGLE | {"TPU_WORKER_HOSTNAMES": "localhost"}, (3, 20)),
    ],
)  # fmt: skip
def test_tasks_of_job_arrays(environment, shard):
    assert shards.parse("auto", environment) == shard
    assert shards.parse("", environment) is None  # Unless it is asked for.


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"JOB_COMPLETION_INDEX": "3"}, "JOB_COMPLETIONS: got '', expected a number"),
        (SINGLE | {"JOB_COMPLETIONS": "3"}, "--shard=auto: got '3/3', expected i/n"),
        ({"SLURM_ARRAY_TASK_ID": "x"}, "SLURM_ARRAY_TASK_ID: got 'x', expected a number"),
        (SINGLE | {"TPU_WORKER_HOSTNAMES": "a,b"}, "one of 2 hosts of a TPU slice, expected none"),
    ],
)
def test_what_is_no_task(environment, problem):
    with pytest.raises(InputError, match=problem):
        shards.parse("auto", environment)
    if "TPU_WORKER_HOSTNAMES" in environment:
        with pytest.raises(InputError, match=problem):
            shards.parse("0/2", environment)


def test_shares_are_the_grid(tiny_config, tmp_path, monkeypatch, load_program):
    """Each run once, whatever the number of workers; one with nothing to do is content."""
    from absl.testing import flagsaver

    workdir = epath.Path(tmp_path)
    grid = {f"mlc/seed{i}": ({}, runs.override(tiny_config(), {}, seed=i)) for i in range(7)}
    trained = []

    def train_rows(share, workdir, *, batch_runs):
        trained.extend(share)
        return [{}]

    monkeypatch.setattr(runs, "train_rows", train_rows)
    of_program = load_program(PROGRAM)._SHARDS
    for count in (1, 3, 7, 9):
        trained.clear()
        for index in range(count):
            with flagsaver.as_parsed(shard=f"{index}/{count}", collect="false"):
                assert of_program.rows(tiny_config(), grid, workdir, batch_runs=1) == []
        assert sorted(trained) == sorted(grid)


def test_a_sweep_may_grow_but_not_change(tiny_config, tmp_path):
    workdir = epath.Path(tmp_path / "grid")
    shards.check_sweep(tiny_config(), workdir)  # There is none yet.
    shards.mark_sweep(tiny_config(), workdir)
    axes = {"method": "clean_only", "noise.type": "uniform", "noise.level": 0.9, "seed": 4}
    shards.mark_sweep(tiny_config(**axes, log_every_steps=7), workdir)
    with pytest.raises(InputError, match=r"config\.num_epochs: 4 before, 5 now"):
        shards.check_sweep(tiny_config(num_epochs=5), workdir)
    (workdir / shards.SWEEP_FILE).write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        shards.check_sweep(tiny_config(), workdir)
    assert [path.name for path in workdir.iterdir()] == [shards.SWEEP_FILE]
