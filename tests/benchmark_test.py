"""The benchmark's deterministic half: FLOPs, memory, tables; timings are only well-formed."""

import importlib
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

STEPS = ["plain", "exact", "approximate"]


@pytest.fixture(scope="module")
def benchmark():
    """The module, without its flags: other programs of the suite define some of the same names."""
    importlib.import_module("mlc_jax.command_line")  # absl's own flags, which have to stay.
    before = set(flags.FLAGS)
    module = importlib.import_module("experiments.benchmark")
    for name in set(flags.FLAGS) - before:
        delattr(flags.FLAGS, name)
    del sys.modules["experiments.benchmark"]  # Whoever imports it next defines them again.
    return module


@pytest.fixture(scope="module")
def rows(benchmark, tiny_config):
    # AMSGrad is our own and keeps to strict promotion.
    config = tiny_config(**{"meta_optimizer.name": "amsgrad"})
    programs = benchmark.mlc_programs(config, [1, 2], ["exact", "approximate"])
    return benchmark.to_rows(benchmark.measure(programs, repeats=2, min_seconds=0.0))


def test_there_is_a_row_for_every_step_and_window_length(benchmark, rows):
    want = [(k, step) for k in (1, 2) for step in STEPS]
    assert [(row["num_inner_steps"], row["step"]) for row in rows] == want
    table = benchmark.to_markdown(rows).splitlines()
    assert [line.split(" | ")[:2] for line in table[2:]] == [[f"| {k}", step] for k, step in want]
    assert len({line.count("|") for line in table}) == 1
    csv = benchmark.to_csv(rows).splitlines()
    assert [line.split(",")[:2] for line in csv[1:]] == [[str(k), step] for k, step in want]
    assert len({line.count(",") for line in csv}) == 1


def test_figures_are_plausible(rows):
    assert all(row["temp_mib"] > 0 and row["compile_seconds"] > 0 for row in rows)
    assert all(0 < row["ms_25_percent"] <= row["ms"] <= row["ms_75_percent"] for row in rows)
    at = {(row["num_inner_steps"], row["step"]): row for row in rows}
    assert at[1, "plain"]["flop_ratio"] == at[1, "plain"]["time_ratio"] == 1
    assert 1.3 < at[1, "exact"]["flop_ratio"] < 3
    # At k = 1 the two are the same gradient and, for XLA, nearly the same work.
    np.testing.assert_allclose(at[1, "approximate"]["gflop"], at[1, "exact"]["gflop"], rtol=0.05)
    # Beyond, the exact one goes back through all updates.
    assert at[2, "exact"]["flop_ratio"] > at[1, "exact"]["flop_ratio"]


def test_figures_are_per_inner_step_and_ratios_within_a_round(benchmark):
    def measured(name, seconds, flops, temp_bytes):
        program = benchmark.Program(name, 2, lambda state, batch: (state, None), dict, None)
        return benchmark.Measurement(program, np.array(seconds), flops, temp_bytes, 0.5)

    plain = measured("plain", [1.0, 2.0, 4.0], 2e9, 2**20)
    row = benchmark.to_rows([plain, measured("other", [2.0, 6.0, 16.0], 3e9, 2**21)])[1]
    assert row["ms"] == 3000
    assert row["time_ratio"] == 3
    assert row["gflop"] == 1.5
    assert row["flop_ratio"] == 1.5
    assert row["temp_mib"] == 2


def test_flops_of_a_loop_are_not_shown(benchmark):
    def step(state, batch):
        return state + batch, None

    program = benchmark.Program("plain", 2, step, lambda: jnp.zeros(3), jnp.ones(3), has_loop=True)
    rows = benchmark.to_rows(benchmark.measure([program], repeats=1, min_seconds=0.0))
    assert np.isnan(rows[0]["gflop"])
    assert benchmark.to_markdown(rows).splitlines()[2].split(" | ")[4:6] == ["-", "-"]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--num_inner_steps=1,0", "--num_inner_steps: got '1,0', expected whole numbers from 1"),
        ("--num_inner_steps=one", "--num_inner_steps: got 'one', expected whole numbers from 1"),
        ("--estimators=exact,x", "--estimators: got 'exact,x', expected some of exact,"),
        ("--config.dataset.name=mnist", "config.dataset.name: got 'mnist', expected one of digits"),
    ],
)
def test_bad_flags_get_one_line_and_leave_nothing_behind(flag, message, run_program, tmp_path):
    workdir = tmp_path / "out"
    code, _, err = run_program(
        "experiments.benchmark", "--config=configs/digits.py", f"--workdir={workdir}", flag
    )
    assert code == 2
    assert err.startswith(f"error: {message}")
    assert err.count("\n") == 1
    assert not workdir.exists()


def test_tensorflow_is_not_imported():
    code = "import experiments.benchmark, sys; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
