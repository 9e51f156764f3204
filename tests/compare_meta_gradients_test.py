"""The comparison of meta-gradient estimators, end to end on a small config."""

import csv
import functools
import pathlib
import sys

import jax
import numpy as np
import pytest
from etils import epath

from experiments.meta import lookahead
from experiments.records import Records
from experiments.speed import costs, programs

pytestmark = pytest.mark.slow

PROGRAM = "experiments.compare_meta_gradients"
SMALL = (
    "--estimators=approximate,truncated:2", "--num_inner_steps=1,3", "--trained=2", "--levels=0.4",
    "--windows=2", "--seeds=1", "--repeats=1", "--config.meta_optimizer.name=amsgrad",
)  # fmt: skip


@pytest.fixture
def compiled_programs_stay_apart():
    """The program sets JAX's compilation cache for the whole process."""
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


def test_lookahead(run_program, tiny_flags, tmp_path, compiled_programs_stay_apart, monkeypatch):
    """End to end, and again: what is trained is not trained again."""
    for name in ("NOISES", "HARD"):
        monkeypatch.setattr(lookahead, name, (("uniform", 0.8),))
    flags = [flag for flag in tiny_flags(num_steps=8) if flag != "--noprogress"]
    arguments = (
        *flags, f"--workdir={tmp_path}", "--parts=lookahead", "--ahead=1,2", "--seeds=1",
        "--meta_rates=0.01", "--batch_runs=9", "--config.meta_optimizer.name=amsgrad",
        "--config.dataset.validation_per_class=0",
    )  # fmt: skip
    code, out, err = run_program(PROGRAM, *arguments)
    assert code == 0, err
    table = (tmp_path / "lookahead.md").read_text()
    assert table in out
    rows = _rows(tmp_path / "lookahead.csv")
    plain = [row for row in rows if row["setting"] == "plain"]
    assert {(row["estimator"], row["k"], row["s"]) for row in plain} == {
        ("exact", "1", "1"), ("exact", "2", "1"), ("exact", "2", "2"), ("truncated:1", "2", "1"),
        ("first_order", "2", "1"), ("approximate", "2", "1"),
    }  # fmt: skip
    (longer,) = {row["num_steps"] for row in rows if row["setting"] == "equal FLOPs"}
    assert int(longer) > 2 * 8  # Two steps are replayed for each, and one is real.
    assert {row["num_steps"] for row in rows if row["setting"] == "4x steps"} == {"32"}
    runs = list((tmp_path / "lookahead").rglob("results.json"))
    times = {path: path.stat().st_mtime_ns for path in runs}
    assert len(runs) == 8 + len(rows)  # Eight arms to tune, at one rate.
    assert run_program(PROGRAM, *arguments)[0] == 0
    assert times == {path: path.stat().st_mtime_ns for path in runs}


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--ahead=2,4", "--ahead: got '2,4', expected whole numbers, the first of them 1"),
        ("--ahead=1", "--ahead: got '1', expected whole numbers, the first of them 1"),
        ("--meta_rates=0", "--meta_rates: got '0', expected positive numbers"),
    ],
)
def test_lookahead_refuses(run_program, tiny_flags, tmp_path, flag, message):
    flags = [flag for flag in tiny_flags() if flag != "--noprogress"]
    code, _, err = run_program(PROGRAM, *flags, f"--workdir={tmp_path}", "--parts=lookahead", flag)
    assert code == 2 and message in err


def test_the_rate_that_is_chosen_is_the_best_by_validation():
    rows = [
        {"arm": arm, "rate": rate, "last_validation_accuracy": x}
        for arm, rate, xs in (
            ("a", 1e-3, (0.5, 0.6)), ("a", 1e-2, (0.8, 0.1)),
            ("b", 1e-3, (0.2,)), ("b", 1e-2, (0.3,)),
        )
        for x in xs
    ]  # fmt: skip
    assert lookahead.chosen_rates(rows) == {"a": 1e-3, "b": 1e-2}


def _agreements(program, config, path, lengths, levels=(0.2, 0.6)):
    records = Records(epath.Path(path), {})
    return program.measure_agreement(config, levels, lengths, ["one_step"], 1, records)


def test_agreement_goes_on_where_it_was_stopped(load_program, tiny_config, tmp_path, monkeypatch):
    program, config, measured = load_program(PROGRAM), tiny_config(), []
    monkeypatch.setattr(program, "_comparison", lambda config, k, names: k)

    def measure(config, k, states, step, num_windows):
        if len(measured) == stop:
            raise KeyboardInterrupt
        measured.append((k, config.noise.level))
        return [{"estimator": "one_step", "cosine": step + config.noise.level}]

    monkeypatch.setattr(program, "_agreement_rows", measure)
    path, stop = tmp_path / "agreement.jsonl", 3
    with pytest.raises(KeyboardInterrupt):
        _agreements(program, config, path, (1, 2))
    assert measured == [(1, 0.2), (1, 0.6), (2, 0.2)]
    measured, stop = [], 99
    rows = _agreements(program, config, path, (1, 2))
    assert measured == [(2, 0.6)]
    assert [(row["k"], row["level"]) for row in rows] == [(1, 0.2), (1, 0.6), (2, 0.2), (2, 0.6)]
    assert [row["cosine"] for row in rows] == [1.2, 1.6, 2.2, 2.6]
    measured = []
    _agreements(program, config, path, (5, 1))  # What is asked for may grow.
    assert measured == [(5, 0.2), (5, 0.6)]


def test_cost_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    compiled = []

    def compile_programs(config, lengths, steps, count):
        if stop in lengths:
            raise KeyboardInterrupt
        compiled.extend(lengths)
        return lengths

    monkeypatch.setattr(costs, "mlc_programs", compile_programs)
    monkeypatch.setattr(costs, "measure", lambda programs, **_: programs)
    monkeypatch.setattr(costs, "to_rows", lambda programs: [{"k": k} for k in programs])

    def measure():
        records = Records(epath.Path(tmp_path / "cost.jsonl"), {})
        return costs.measure_lengths(None, [1, 2, 5], [], repeats=1, records=records)

    stop = 5
    with pytest.raises(KeyboardInterrupt):
        measure()
    compiled, stop = [], 0
    assert measure() == [{"k": 1}, {"k": 2}, {"k": 5}]
    assert compiled == [5]


def test_what_was_measured_with_other_settings_stops_it_at_once(run_program, tiny_flags, tmp_path):
    flags = [flag for flag in tiny_flags() if flag != "--noprogress"]
    (tmp_path / ".lock").touch()  # A workdir of ours.
    for name in ("cost", "agreement"):
        Records(epath.Path(tmp_path / f"{name}.jsonl"), {"--repeats": 7}).get({"k": 1}, list)
        code, out, err = run_program(PROGRAM, *flags, f"--workdir={tmp_path}", *SMALL)
        assert (code, out) == (2, "")
        assert f"{name}.jsonl' was measured with other settings:" in err
        assert "--repeats: 7 before" in err
        (tmp_path / f"{name}.jsonl").unlink()


def _mappings():
    return len(pathlib.Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_programs_of_agreement_are_given_back(load_program, tiny_config, tmp_path, monkeypatch):
    """Linux allows a process 65,530 mappings; they must not grow with what was measured."""
    program, counts = load_program(PROGRAM), []
    monkeypatch.setattr(program, "_comparison", _counted(program._comparison, counts))
    config = tiny_config(**{"num_epochs": 1, "meta_optimizer.name": "amsgrad"})
    _agreements(program, config, tmp_path / "agreement.jsonl", (1, 2, 3, 4), levels=[0.4])
    counts.append(_mappings())
    _, _, after_2, _, after_4 = counts
    assert after_4 < after_2 + 50  # A program of this size has hundreds.


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
def test_programs_of_cost_are_given_back(tmp_path, monkeypatch):
    def create(config, lengths, steps, count):
        step = lambda state, batch: (state + batch, state @ batch)  # noqa: E731
        init = functools.partial(jax.numpy.ones, (3, 3))
        return [programs.Program(name, k, k, step, init, init()) for k in lengths for name in steps]

    counts, names = [], [programs.PLAIN, "a", "b"]
    monkeypatch.setattr(costs, "mlc_programs", _counted(create, counts))
    records = Records(epath.Path(tmp_path / "cost.jsonl"), {})
    costs.measure_lengths(None, [1, 2, 3, 4], names, repeats=1, records=records)
    counts.append(_mappings())
    _, _, after_2, _, after_4 = counts
    assert after_4 < after_2 + 20


def _counted(function, counts):
    """Notes this process's mappings at every call."""

    def counting(*args, **kwargs):
        counts.append(_mappings())
        return function(*args, **kwargs)

    return counting


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
        ("--config.noisy_batch_size=0", "config.noisy_batch_size: got 0, expected 1 or more"),
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
