"""The benchmark as a program: its flags and files. What it measures: tests/costs_test.py."""

import csv
import pathlib
import re
import subprocess
import sys

import pytest

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]


def test_tables(run_program, tiny_flags, tmp_path):
    flags = tiny_flags(**{"meta_optimizer.name": "amsgrad"})
    code, out, err = run_program(
        "experiments.speed.benchmark",
        *(flag for flag in flags if flag != "--noprogress"),
        f"--workdir={tmp_path}",
        "--num_inner_steps=1",
        "--estimators=one_step,exact:store",
        "--repeats=1",
        "--nodata",
    )
    assert code == 0, err
    rows = list(csv.DictReader((tmp_path / "benchmark.csv").open()))
    assert [row["step"] for row in rows] == ["plain", "one_step", "exact:store"]
    assert {row["dataset"] for row in rows} == {"digits"}
    assert out == (tmp_path / "benchmark.md").read_text() + "\n"
    assert out.count("| 1 | ") == 3


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--num_inner_steps=1,0", "--num_inner_steps: got '1,0', expected whole numbers from 1"),
        ("--num_inner_steps=one", "--num_inner_steps: got 'one', expected whole numbers from 1"),
        ("--estimators=exact,x", "--estimators: got 'x', expected some of plain,"),
        ("--estimators=exact:x", "--estimators: got 'exact:x', expected some of plain,"),
        ("--config.dataset.name=mnist", "config.dataset.name: got 'mnist', expected one of digits"),
    ],
)
def test_bad_flags_get_one_line_and_leave_nothing_behind(flag, message, run_program, tmp_path):
    workdir = tmp_path / "out"
    code, _, err = run_program(
        "experiments.speed.benchmark", "--config=configs/digits.py", f"--workdir={workdir}", flag
    )
    assert code == 2
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert not workdir.exists()


def test_tensorflow_is_not_needed_for_data_in_memory(tiny_flags, tmp_path):
    code = (
        "import runpy, sys\n"
        "sys.modules['tensorflow'] = None\n"
        "runpy.run_module('experiments.speed.benchmark', run_name='__main__', alter_sys=True)\n"
    )
    flags = [flag for flag in tiny_flags() if flag != "--noprogress"]
    flags += [f"--workdir={tmp_path}", "--num_inner_steps=1", "--estimators=one_step"]
    command = [sys.executable, "-c", code, *flags, "--repeats=1"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("| 1 | ") == 2
    assert "% of the time of" in result.stdout  # That it waits for data.


def test_wait_for_data(load_program, tiny_config):
    share = load_program("experiments.speed.benchmark").data_wait_share(
        tiny_config(**{"meta_optimizer.name": "amsgrad"}), num_windows=3
    )
    assert 0 <= share <= 1


def test_a_table_is_timed_from_the_command_to_its_end():
    # In a process of its own: the largest memory of a child starts with that of its parent, and
    # this one has JAX.
    command = [sys.executable, "-m", "experiments.speed.own_table", "--rows=1000", "--columns=3"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    head, *costs = result.stdout.splitlines()
    assert head.startswith("1,000 rows, 3 columns, ")
    figures = r": \d+\.\d s, \d+\.\d s of CPU time, (\d+\.\d\d) GiB"
    found = [re.fullmatch(name + figures, line) for name, line in zip(
        ("judged", "corrected", "with two runs"), costs, strict=True
    )]  # fmt: skip
    judged, *trained = (float(match[1]) for match in found)
    assert all(judged < memory / 2 for memory in trained)  # Without JAX.
