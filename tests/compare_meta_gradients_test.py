"""The comparison of meta-gradient estimators, end to end on a small config."""

import csv

import numpy as np
import pytest

PROGRAM = "experiments.compare_meta_gradients"
SMALL = (
    "--estimators=approximate,truncated:2", "--num_inner_steps=1,3", "--trained=2", "--levels=0.4",
    "--windows=2", "--seeds=1", "--repeats=1", "--config.meta_optimizer.name=amsgrad",
)  # fmt: skip


@pytest.fixture
def compiled_programs_stay_apart():
    """The program sets JAX's compilation cache for the whole process."""
    import jax

    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


def _rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_agreement_and_accuracy(
    run_program, tiny_flags, tmp_path, capsys, compiled_programs_stay_apart
):
    flags = [flag for flag in tiny_flags() if flag != "--noprogress"]
    arguments = (*flags, f"--workdir={tmp_path}", "--parts=agreement,accuracy", *SMALL)
    code, out, err = run_program(PROGRAM, *arguments)
    assert code == 0, err
    rows = _rows(tmp_path / "agreement.csv")
    assert len(rows) == 1 * 2 * 3 * 2 * 2  # Levels, k, phases, windows, estimators.
    for row in rows:
        cosine, ratio = float(row["cosine"]), float(row["norm_ratio"])
        if row["k"] == "1":
            # The same gradient, by other ways.
            np.testing.assert_allclose([cosine, ratio], 1, rtol=1e-3)
        else:
            assert cosine < 0.9999
            assert ratio > 0
    # Windows of one phase start from the same state with other data.
    cosines = {row["cosine"] for row in rows if row["k"] == "3"}
    assert len(cosines) == 12
    results = _rows(tmp_path / "accuracy.csv")
    assert [row["estimator"] for row in results] == ["exact", "approximate", "truncated:2"]
    # Truncated after two of two steps is exact.
    assert results[0]["last_test_accuracy"] == results[2]["last_test_accuracy"]
    assert (tmp_path / "runs" / "truncated_2" / "k2" / "seed0" / "training.png").exists()
    for name in ("agreement", "accuracy"):
        assert (tmp_path / f"{name}.md").read_text() in out
        assert (tmp_path / f"{name}.png").stat().st_size > 10_000
    lines = (tmp_path / "agreement.md").read_text().splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1


def test_cost(run_program, tiny_flags, tmp_path, compiled_programs_stay_apart):
    flags = [flag for flag in tiny_flags() if flag != "--noprogress"]
    arguments = (*flags, f"--workdir={tmp_path}", "--parts=cost", *SMALL, "--num_inner_steps=2")
    code, _, err = run_program(PROGRAM, *arguments)
    assert code == 0, err
    steps = [row["step"] for row in _rows(tmp_path / "cost.csv")]
    assert steps[:3] == ["plain", "exact:store", "exact:remat"]
    assert {"approximate", "truncated:2"} <= set(steps)
    assert (tmp_path / "cost.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--parts=agreement,speed", "--parts: got 'speed', expected some of agreement, cost"),
        ("--num_inner_steps=0", "--num_inner_steps: got '0', expected whole numbers from 1"),
        ("--trained=two", "--trained: got 'two', expected whole numbers from 1"),
        ("--levels=1.5", "--levels: got '1.5', expected numbers from 0 to 1"),
        ("--estimators=exact", "--estimators: got 'exact', expected some of approximate"),
        ("--estimators=truncated:0", "--estimators: got 'truncated:0', expected some of"),
        ("--estimators=one_step:2", "--estimators: got 'one_step:2', expected some of"),
        ("--config.method=clean_only", "config.method: got 'clean_only', expected one with a"),
        ("--config.noisy_batch_size=0", "config.noisy_batch_size: got 0, expected a positive"),
    ],
)
def test_bad_input_gets_one_line_and_leaves_nothing_behind(flag, message, run_program, tmp_path):
    workdir = tmp_path / "out"
    code, _, err = run_program(
        PROGRAM, "--config=configs/digits.py", "--config.clean_batch_size=48",
        "--config.noisy_batch_size=64", f"--workdir={workdir}", flag,
    )  # fmt: skip
    assert code == 2
    assert err.startswith(f"error: {message}")
    assert not workdir.exists()
