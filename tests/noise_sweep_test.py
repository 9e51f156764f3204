"""A small grid of methods, noise and seeds: the tables are right, finished runs are kept."""

import csv
import json
import statistics

import jax
import pytest

from experiments.paper import noise_grid, noise_tables
from mlc_jax.errors import InputError

PROGRAM = "experiments.noise_sweep"
METHODS = ("cross_entropy", "clean_only")
CELLS = [("uniform", 0.0), ("uniform", 0.5), ("flip", 0.0), ("flip", 0.5)]
COLUMNS = {
    "test acc., last": "last_test_accuracy",
    "best": "best_test_accuracy",
    "selected": "selected_test_accuracy",
    "given labels right": "given_label_accuracy",
    "corrected labels right": "corrected_label_accuracy",
}


@pytest.fixture
def own_compilation_cache(compilation_cache):
    """The program sets one up in its workdir; the suite's comes back after it."""
    yield
    jax.config.update("jax_compilation_cache_dir", compilation_cache)


def _tables(markdown):
    """The line above each table, and {method: {column: cell}}."""
    split = lambda line: [cell.strip() for cell in line.strip("|").split("|")]  # noqa: E731
    tables = []
    for text in markdown.strip().split("\n\n"):
        if not text.startswith("|"):
            tables.append((text, {}))
            continue
        header, rule, *rows = text.splitlines()
        assert set(rule) <= set("|-: ")
        for row in map(split, rows):
            tables[-1][1][row[0]] = dict(zip(split(header), row, strict=True))
    return tables


def _mean_and_deviation(values):
    percent = [100 * value for value in values]
    return f"{statistics.mean(percent):.1f} ± {statistics.stdev(percent):.1f}"


def _flags(tiny_flags, **overrides):
    return [flag for flag in tiny_flags(**overrides) if flag != "--noprogress"]


@pytest.mark.slow
def test_grid(run_program, tiny_flags, tmp_path, monkeypatch, own_compilation_cache):
    """Sixteen runs of an epoch, five to a program: no other test sees tables of real runs."""
    args = (
        *_flags(tiny_flags, num_epochs=1), f"--methods={','.join(METHODS)}", "--noise=uniform,flip",
        "--levels=0:0.5:0.5", "--seeds=2", "--batch_runs=5", f"--workdir={tmp_path}",
    )  # fmt: skip
    code, out, err = run_program(PROGRAM, *args)
    assert code == 0, err
    runs = {
        (noise, level, method, seed): json.loads(
            (tmp_path / noise / str(level) / method / f"seed{seed}" / "results.json").read_text()
        )
        for noise, level in CELLS
        for method in METHODS
        for seed in (0, 1)
    }
    for (noise, level, method, seed), run in runs.items():
        assert (run["method"], run["seed"]) == (method, seed)
        assert run["noise"] == f"{noise} {level:g}"

    with (tmp_path / "runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(runs)
    for row in rows:
        run = runs[row.pop("noise_type"), float(row.pop("level")), row["method"], int(row["seed"])]
        changed = run.pop("most_changed")
        assert json.loads(row.pop("most_changed")) == changed
        assert row == {name: str(value) for name, value in run.items()}

    with (tmp_path / "sweep.csv").open(newline="") as file:
        summary = list(csv.DictReader(file))
    assert len(summary) == len(CELLS) * len(METHODS)
    for row in summary:
        cell = [
            runs[row["noise_type"], float(row["level"]), row["method"], seed] for seed in (0, 1)
        ]
        for key in COLUMNS.values():
            numbers = [run[key] for run in cell]
            assert float(row[f"{key}_mean"]) == pytest.approx(statistics.mean(numbers))
            assert float(row[f"{key}_std"]) == pytest.approx(statistics.stdev(numbers))
        assert (row["seeds"], row["clean_labels_spent"]) == ("2", "70")

    markdown = (tmp_path / "sweep.md").read_text()
    assert out.startswith(markdown)
    assert out.splitlines()[-1].startswith(f"Everything is in {tmp_path}: ")
    (title, overall), (of_uniform, uniform), (of_flip, _) = _tables(markdown)
    assert title.startswith("digits, uniform noise 0.0 to 0.5, flip noise 0.0 to 0.5, 2 seeds")
    assert of_uniform == "Last test accuracy, uniform noise at level"
    assert of_flip == "Last test accuracy, flip noise at level"
    for method in METHODS:
        means = {
            key: [
                statistics.mean(runs[noise, level, method, seed][key] for noise, level in CELLS)
                for seed in (0, 1)
            ]
            for key in COLUMNS.values()
        }
        assert overall[method] == {"method": method, "clean labels": "70"} | {
            column: _mean_and_deviation(means[key]) for column, key in COLUMNS.items()
        }
        assert uniform[method] == {"method": method} | {
            str(level): _mean_and_deviation(
                [runs["uniform", level, method, seed]["last_test_accuracy"] for seed in (0, 1)]
            )
            for level in (0.0, 0.5)
        }
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")

    # All methods of a seed see the same split and the same noise; the other seed sees others.
    given = {key: _given_labels(tmp_path, *key) for key in runs}
    one, other = (given["flip", 0.5, method, 0] for method in METHODS)
    assert one == other
    later = given["flip", 0.5, METHODS[0], 1]
    assert one.keys() != later.keys()
    assert any(one[name] != later[name] for name in one.keys() & later.keys())

    def train_together(*_, **__):
        raise AssertionError("trained again")

    # Other numbers of runs together change nothing.
    monkeypatch.setattr("mlc_jax.commands.train.train_together", train_together)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run_program(PROGRAM, *args, "--batch_runs=1")[:2] == (0, out)
    code, _, err = run_program(PROGRAM, *args, "--config.num_epochs=3")
    assert code == 2
    assert "config.num_epochs: 1 before, 3 now" in err
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("flag", "problem"),
    [
        ("--methods=mlc,glcc", "--methods: got 'mlc,glcc', expected all or some of cross_entropy,"),
        ("--methods=", "--methods: got '', expected all or some of "),
        ("--noise=uniform,gauss", "--noise: got 'uniform,gauss', expected some of uniform, flip,"),
        ("--levels=0:1", "--levels: got '0:1', expected numbers from 0 to 1"),
        ("--levels=0.5,1.5", "--levels: got '0.5,1.5', expected numbers from 0 to 1"),
    ],
)
def test_bad_flags(run_program, tiny_flags, tmp_path, flag, problem):
    workdir = tmp_path / "grid"
    flags = (*_flags(tiny_flags), "--seeds=2", f"--workdir={workdir}")
    code, out, err = run_program(PROGRAM, *flags, flag)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {problem}") and len(err.splitlines()) == 1
    assert not workdir.exists()


def test_levels():
    parse = noise_grid.parse_levels
    assert parse("0:1:0.1") == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
    assert parse("0.8") == [0.8]
    assert parse("0.8,0.2,0.8") == [0.8, 0.2]
    for bad in ("0:1:0", "a", "0:1:0.1:2", "nan", "0:inf:0.5", "-0.1"):
        with pytest.raises(InputError):
            parse(bad)


def _given_labels(workdir, noise, level, method, seed):
    path = workdir / noise / str(level) / method / f"seed{seed}" / "corrected_labels.csv"
    with path.open(newline="") as file:
        return {row["id"]: row["given_label"] for row in csv.DictReader(file)}


def _result(method, seed, last, selected=None):
    return {
        "noise_type": "flip", "level": 0.4,
        "method": method, "dataset": "digits", "noise": "flip 0.4", "seed": seed, "num_steps": 9,
        "clean_labels_spent": 50, "last_test_accuracy": last, "best_test_accuracy": last,
        "selected_test_accuracy": selected, "given_label_accuracy": 0.5,
        "corrected_label_accuracy": 0.75,
    }  # fmt: skip


def test_one_noise_is_one_table():
    results = [_result("mlc", 0, 0.5), _result("mlc", 1, 0.6), _result("mlc", 2, 0.7)]
    ((title, table),) = _tables(noise_tables.to_markdown(results))
    assert title.startswith("digits, flip noise 0.4, 3 seeds, 9 steps")
    assert table == {
        "mlc": {
            "method": "mlc",
            "test acc., last": "60.0 ± 10.0",  # The sample's deviation, over n - 1.
            "best": "60.0 ± 10.0",
            "selected": "-",
            "given labels right": "50.0 ± 0.0",
            "corrected labels right": "75.0 ± 0.0",
            "clean labels": "50",
        }
    }


def test_methods_are_not_compared_over_other_noise():
    """Where runs diverged, the mean over the noise is left out, and the others are counted."""
    rows = [
        _result(method, seed, 0.5) | {"level": level}
        for method in ("mlc", "glc") for seed in (0, 1, 2) for level in (0.2, 0.8)
        if (method, level) != ("glc", 0.8) or seed == 0
    ]  # fmt: skip
    (title, overall), (_, levels) = _tables(noise_tables.to_markdown(rows))
    assert title.endswith("; - where runs diverged")
    assert overall["glc"]["test acc., last"] == "-"
    assert overall["mlc"]["test acc., last"] == "50.0 ± 0.0"
    assert levels["glc"] == {"method": "glc", "0.2": "50.0 ± 0.0", "0.8": "50.0 (1 runs)"}
    (axes,) = noise_tables.plot(rows).axes
    assert axes.get_xticks().tolist() == [0.2, 0.8]  # What was measured.


def test_what_own_data_do_not_tell_stays_empty():
    """Without a test set and without true labels."""
    unknown = [name for name in COLUMNS.values() if name != "selected_test_accuracy"]
    rows = [
        _result(method, seed, None) | dict.fromkeys(unknown)
        | {"dataset": "arrays", "noise_type": "none", "level": "given"}
        for method in METHODS for seed in (0, 1)
    ]  # fmt: skip
    ((title, table),) = _tables(noise_tables.to_markdown(rows))
    assert title.startswith("arrays, labels as given, 2 seeds, 9 steps")
    assert set(table["clean_only"].values()) == {"clean_only", "-", "50"}
    assert {row["last_test_accuracy_mean"] for row in noise_tables.summarize(rows)} == {None}
    assert noise_tables.plot(rows) is None
    # One of two methods was tested.
    rows = [
        row | {"last_test_accuracy": 0.5} if row["method"] == METHODS[0] else row for row in rows
    ]
    (axes,) = noise_tables.plot(rows).axes
    assert axes.get_legend_handles_labels()[1] == [METHODS[0]]


def test_labels_as_given_have_no_level(tiny_config):
    config = tiny_config(**{"noise.type": "none"})
    assert noise_grid.cells(config, [], [0.2, 0.4]) == [
        ({"noise_type": "none", "level": "given"}, {"noise.type": "none"})
    ]


def test_one_seed_has_no_deviation():
    results = [_result("mlc", 0, 0.5, 0.4), _result("clean_only", 0, 0.25, 0.125)]
    ((_, table),) = _tables(noise_tables.to_markdown(results))
    assert table["mlc"]["selected"] == "40.0"
    assert table["clean_only"]["selected"] == "12.5"
