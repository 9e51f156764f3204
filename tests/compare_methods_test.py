"""A small grid of methods and seeds: the table is right, and finished runs are not run again."""

import csv
import json
import statistics

import jax
import pytest

PROGRAM = "experiments.compare_methods"
METHODS = ("cross_entropy", "clean_only")
SEEDS = (0, 1)
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


def _table(markdown):
    """{method: {column: cell}} and the line above the table."""
    title, _, header, rule, *rows = markdown.splitlines()
    split = lambda line: [cell.strip() for cell in line.strip("|").split("|")]  # noqa: E731
    assert set(rule) <= set("|-: ")
    columns = split(header)
    return title, {row[0]: dict(zip(columns, row, strict=True)) for row in map(split, rows)}


def _mean_and_deviation(values):
    percent = [100 * value for value in values]
    return f"{statistics.mean(percent):.1f} ± {statistics.stdev(percent):.1f}"


def test_grid(run_program, tiny_flags, tmp_path, monkeypatch, own_compilation_cache):
    flags = [flag for flag in tiny_flags(num_epochs=1) if flag != "--noprogress"]
    args = (*flags, f"--methods={','.join(METHODS)}", "--seeds=2", f"--workdir={tmp_path}")
    code, out, err = run_program(PROGRAM, *args)
    assert code == 0, err

    runs = {
        (method, seed): json.loads((tmp_path / method / f"seed{seed}" / "results.json").read_text())
        for method in METHODS
        for seed in SEEDS
    }
    assert all((run["method"], run["seed"]) == key for key, run in runs.items())

    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["method"], int(row["seed"])) for row in rows] == [
        (method, seed) for seed in SEEDS for method in METHODS
    ]
    for row in rows:
        run = runs[row["method"], int(row["seed"])]
        assert row == {name: str(value) for name, value in run.items()}

    markdown = (tmp_path / "results.md").read_text()
    assert out.startswith(markdown)
    assert out.splitlines()[-1].startswith(f"Everything is in {tmp_path}: ")
    title, table = _table(markdown)
    assert title.startswith("digits, flip 0.4 noise, 70 clean labels, 2 seeds, 21 steps on 8 cpu")
    assert list(table) == list(METHODS)
    for method, cells in table.items():
        assert cells == {"method": method} | {
            column: _mean_and_deviation([runs[method, seed][name] for seed in SEEDS])
            for column, name in COLUMNS.items()
        }

    # All methods of a seed see the same split and the same noise; the other seed sees others.
    given = {key: _given_labels(tmp_path / key[0] / f"seed{key[1]}") for key in runs}
    for seed in SEEDS:
        assert given[METHODS[0], seed] == given[METHODS[1], seed]
    assert given[METHODS[0], 0].keys() != given[METHODS[0], 1].keys()
    shared = given[METHODS[0], 0].keys() & given[METHODS[0], 1].keys()
    assert any(given[METHODS[0], 0][name] != given[METHODS[0], 1][name] for name in shared)

    def train_and_evaluate(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr("mlc_jax.train.train_and_evaluate", train_and_evaluate)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run_program(PROGRAM, *args)[:2] == (0, out)
    code, _, err = run_program(PROGRAM, *args, "--config.noise.level=0.3")
    assert code == 2
    assert "config.noise.level: 0.4 before, 0.3 now" in err
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before


@pytest.mark.parametrize(
    ("methods", "problem"),
    [
        ("mlc,glcc", "glcc/seed0, glcc/seed1: config.method: got 'glcc', expected one of "),
        ("", "--methods: got none, expected one or more of mlc, "),
    ],
)
def test_methods_that_do_not_exist(run_program, tiny_flags, tmp_path, methods, problem):
    flags = [flag for flag in tiny_flags() if flag != "--noprogress"]
    workdir = tmp_path / "grid"
    code, out, err = run_program(
        PROGRAM, *flags, f"--methods={methods}", "--seeds=2", f"--workdir={workdir}"
    )
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {problem}") and len(err.splitlines()) == 1
    assert not workdir.exists()


def _given_labels(run_dir):
    with (run_dir / "corrected_labels.csv").open(newline="") as file:
        return {row["id"]: row["given_label"] for row in csv.DictReader(file)}


def _result(method, seed, last, selected=None):
    return {
        "method": method, "dataset": "digits", "noise": "flip 0.4", "seed": seed, "num_steps": 9,
        "clean_labels_spent": 50, "last_test_accuracy": last, "best_test_accuracy": last,
        "selected_test_accuracy": selected, "given_label_accuracy": 0.5,
        "corrected_label_accuracy": 0.75,
    }  # fmt: skip


def test_table_by_hand(load_program):
    program = load_program(PROGRAM)
    results = [_result("mlc", 0, 0.5), _result("mlc", 1, 0.6), _result("mlc", 2, 0.7)]
    _, table = _table(program.to_markdown(results))
    assert table == {
        "mlc": {
            "method": "mlc",
            "test acc., last": "60.0 ± 10.0",  # The sample's deviation, over n - 1.
            "best": "60.0 ± 10.0",
            "selected": "-",
            "given labels right": "50.0 ± 0.0",
            "corrected labels right": "75.0 ± 0.0",
        }
    }


def test_one_seed_has_no_deviation(load_program):
    results = [_result("mlc", 0, 0.5, 0.4), _result("clean_only", 0, 0.25, 0.125)]
    _, table = _table(load_program(PROGRAM).to_markdown(results))
    assert table["mlc"]["selected"] == "40.0"
    assert table["clean_only"]["selected"] == "12.5"
