"""Fair tuning: one budget, draws that can be repeated, settings chosen by validation alone."""

import csv
import json
import pathlib

import jax
import pytest

from mlc_jax.config import METHODS, SETTINGS, validate
from mlc_jax.errors import NonFiniteLossError
from mlc_jax.report import report

PROGRAM = "experiments.paper.tune"
TUNED = ("cross_entropy", "self_training")
TINY = {"num_epochs": 1}
ARGS = (
    f"--methods={','.join(TUNED)}", "--noise=uniform,flip", "--levels=0.4", "--final_levels=0,0.6",
    "--trials=2", "--tuning_seeds=2", "--seeds=2", "--batch_runs=8",
)  # fmt: skip


@pytest.fixture(autouse=True)
def own_compilation_cache(compilation_cache):
    """The program sets one up in its workdir; the suite's comes back after it."""
    yield
    jax.config.update("jax_compilation_cache_dir", compilation_cache)


@pytest.fixture
def tune(load_program):
    return load_program(PROGRAM)


@pytest.fixture
def stand_in(monkeypatch):
    """(function) -> directories of the runs that are "trained" from then on.

    The function tells the last validation accuracy of a config's run; None diverges. The test set
    would choose the other way.
    """
    started, accuracy_of = [], {}

    def train_together(configs, *, show_progress):
        outcome = {}
        for run_dir, config in configs.items():
            started.append(run_dir)
            accuracy = accuracy_of["function"](config)
            if accuracy is None:
                outcome[run_dir] = NonFiniteLossError("step 3: inner_loss is nan.")
                continue
            outcome[run_dir] = _write_run(run_dir, config, accuracy)
        return outcome

    def trains(function):
        accuracy_of["function"] = function
        return started

    monkeypatch.setattr("mlc_jax.commands.train.train_together", train_together)
    return trains


def _write_run(run_dir, config, accuracy):
    path = pathlib.Path(run_dir)
    path.mkdir(parents=True)
    path.joinpath("config.json").write_text(config.to_json())
    tested = dict.fromkeys(
        ("last_test_accuracy", "best_test_accuracy", "selected_test_accuracy"), 1 - accuracy
    )
    results = {
        "method": config.method, "dataset": "digits", "noise": "x", "seed": config.seed,
        "num_steps": 9, **tested, "last_validation_accuracy": accuracy,
        "given_label_accuracy": 0.5, "corrected_label_accuracy": 0.5, "clean_labels_spent": 70,
    }  # fmt: skip
    path.joinpath(report.RESULTS_FILE).write_text(json.dumps(results))
    return results


def _flags(tiny_flags, **overrides):
    return [flag for flag in tiny_flags(**TINY, **overrides) if flag != "--noprogress"]


def _read(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- What is drawn.


def test_every_method_has_a_space_that_its_settings_allow(tune, tiny_config):
    """Both ends, or every choice, of every field, for the method that it is drawn for."""
    assert set(METHODS) - {"cross_fit"} == set(tune.SPACES)
    for method in tune.SPACES:
        fields = [field for field, _, _ in tune.SPACES[method]]
        assert fields[0] == "main_optimizer.learning_rate"
        assert len(fields) == len(set(fields)) and 2 <= len(fields) <= 4
        for field, kind, values in tune.SPACES[method]:
            assert all(SETTINGS[field].check.ok(value) for value in values), field
            assert kind == "choice" or (kind in ("log", "linear") and values[0] < values[1])
            for value in values:
                validate(tune.runs.override(tiny_config(), {"method": method, field: value}))


def test_draws_lie_in_the_space_and_use_all_of_it(tune):
    for method, space in tune.SPACES.items():
        drawn = [tune.draw(method, number, 0) for number in range(200)]
        for field, kind, values in space:
            of_field = [settings[field] for settings in drawn]
            if kind == "choice":
                assert set(of_field) == set(values)
                assert all(isinstance(value, type(values[0])) for value in of_field)
                continue
            low, high = values
            assert all(low <= value <= high for value in of_field)
            middle = (low * high) ** 0.5 if kind == "log" else (low + high) / 2
            assert 60 < sum(value < middle for value in of_field) < 140


def test_draws_depend_on_search_seed_method_and_number_alone(tune):
    assert tune.draw("mlc", 3, 7) == tune.draw("mlc", 3, 7)
    rate = "main_optimizer.learning_rate"
    draws = {
        tune.draw(method, number, seed)[rate]
        for method in ("mlc", "glc") for number in (1, 2) for seed in (0, 1)
    }  # fmt: skip
    assert len(draws) == 8


def test_more_trials_go_on_with_the_same_search(tune, tiny_config):
    config = tiny_config()
    few, many = (tune.create_trials(config, "mlc", count, 5) for count in (3, 8))
    assert many[:3] == few
    assert len({trial.name for trial in many}) == 8
    assert many[0].fields == {"method": "mlc"}  # The config as it is.
    assert many[0].settings == {
        "main_optimizer.learning_rate": 0.1, "meta_optimizer.learning_rate": 1e-2,
        "lcn.hidden_size": 16,
    }  # fmt: skip


# --- What is chosen.


def _trial(number, accuracy, failures=0):
    return {
        "method": "mlc", "trial": number, "settings": {}, "validation_accuracy": accuracy,
        "failures": failures,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("trials", "best"),
    [
        ([_trial(0, 0.5), _trial(1, 0.7), _trial(2, 0.6)], 1),
        ([_trial(0, 0.5), _trial(1, 0.5)], 0),  # Of equals the config as it is.
        ([_trial(0, 0.5), _trial(1, 0.9, failures=1)], 0),
        ([_trial(0, 0.9, failures=2), _trial(1, 0.4, failures=1)], 1),
        ([_trial(0, None, failures=4), _trial(1, 0.1, failures=3)], 1),
        ([_trial(0, None, failures=4), _trial(1, None, failures=4)], 0),
    ],
)
def test_fewest_failures_then_accuracy(tune, trials, best):
    (chosen,) = tune.choose(trials)
    assert chosen == trials[best] | {
        "untuned_validation_accuracy": trials[0]["validation_accuracy"],
        "untuned_failures": trials[0]["failures"],
    }


@pytest.mark.slow
def test_same_budget_and_choice_by_validation(run_program, tune, tiny_flags, tmp_path, stand_in):
    """Trial 2 is best by validation and worst by test; trial 1 would be, but diverges once."""
    rate = "main_optimizer.learning_rate"
    number_of = {
        (method, tune.draw(method, number, 0)[rate]): number
        for method in TUNED for number in (1, 2, 3)
    }  # fmt: skip
    accuracies = {0: 0.4, 1: 0.9, 2: 0.8, 3: 0.6}

    def accuracy(config):
        number = number_of.get((config.method, config.main_optimizer.learning_rate), 0)
        diverges = number == 1 and config.noise.type == "flip" and config.seed == 201
        return None if diverges else accuracies[number]

    started = stand_in(accuracy)
    args = (*_flags(tiny_flags), *ARGS, "--trials=4", "--first_seed=50", f"--workdir={tmp_path}")
    code, out, err = run_program(PROGRAM, *args)
    assert code == 0, err

    tuning = [path.split("/tuning/")[1] for path in started if "/tuning/" in path]
    assert len(tuning) == len(set(tuning)) == len(started) - 2 * 4 * 2
    for method in TUNED:  # 4 trials, 2 noise types, 2 seeds.
        assert sum(f"/{method}/" in path for path in tuning) == 16
    assert {path.split("/")[-1] for path in tuning} == {"seed200", "seed201"}
    final = [path.split("/final/")[1] for path in started if "/final/" in path]
    assert sorted(final) == sorted(
        f"{noise}/{level}/{method}/trial2/seed{seed}"
        for noise in ("uniform", "flip") for level in (0.0, 0.6)
        for method in TUNED for seed in (50, 51)
    )  # fmt: skip

    rows = _read(tmp_path / "trials.csv")
    assert [(row["method"], row["trial"], row["failures"]) for row in rows] == [
        (method, str(number), str(int(number == 1))) for method in TUNED for number in range(4)
    ]
    for row in rows:
        number = int(row["trial"])
        assert float(row["validation_accuracy"]) == pytest.approx(accuracies[number])
        assert number_of.get((row["method"], json.loads(row["settings"])[rate]), 0) == number
    chosen = _read(tmp_path / "chosen.csv")
    assert [(row["method"], row["trial"]) for row in chosen] == [(name, "2") for name in TUNED]
    markdown = (tmp_path / "chosen.md").read_text()
    assert out.startswith(markdown)
    title = markdown.splitlines()[0]
    assert "uniform noise 0.4, flip noise 0.4, seeds 200 to 201: 4 trials" in title
    assert "20 validation labels" in title
    assert "| 80.0 | 0 | 40.0 | 0 |" in markdown


# --- The whole, with real runs.


@pytest.mark.slow
def test_tuning_is_resumed(run_program, tiny_flags, tmp_path, monkeypatch):
    """Sixteen runs of an epoch: what is chosen is what was trained, and trained once."""
    args = (*_flags(tiny_flags), *ARGS, "--noise=flip", f"--workdir={tmp_path}")
    code, out, err = run_program(PROGRAM, *args)
    assert code == 0, err
    trials, chosen = _read(tmp_path / "trials.csv"), _read(tmp_path / "chosen.csv")
    assert len(trials) == 4
    for row in trials:
        accuracies = []
        for path in (tmp_path / "tuning").glob(f"*/0.4/{row['method']}/trial{row['trial']}/*/"):
            accuracies.append(json.loads((path / "results.json").read_text()))
            config = json.loads((path / "config.json").read_text())
            for field, value in json.loads(row["settings"]).items():
                section, name = field.split(".")
                assert config[section][name] == value
        assert len(accuracies) == 2 - int(row["failures"])
        mean = sum(result["last_validation_accuracy"] for result in accuracies) / len(accuracies)
        assert float(row["validation_accuracy"]) == pytest.approx(mean)
    final = _read(tmp_path / "runs.csv")
    assert {(row["method"], row["trial"]) for row in final} == {
        (row["method"], row["trial"]) for row in chosen
    }
    assert {row["seed"] for row in final} == {"300", "301"}
    assert {row["level"] for row in final} == {"0.0", "0.6"}
    assert (tmp_path / "sweep.md").read_text() in out
    assert (tmp_path / "sweep.png").read_bytes().startswith(b"\x89PNG")

    def train_together(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr("mlc_jax.commands.train.train_together", train_together)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert run_program(PROGRAM, *args, "--batch_runs=1")[:2] == (0, out)
    after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert after == before
    code, _, err = run_program(PROGRAM, *args, "--search_seed=1")
    assert code == 2
    assert "trained with another config" in err


@pytest.mark.parametrize(
    ("flag", "problem"),
    [
        (
            "--config.dataset.validation_per_class=0",
            "config.dataset.validation_per_class: got 0, expected at least 1, to choose settings",
        ),
        (
            "--first_seed=201",
            "--first_seed and --seeds: got '201 to 202', expected seeds apart from those of "
            "tuning, 200 to 201",
        ),
        (
            "--first_seed=199",
            "--first_seed and --seeds: got '199 to 200', expected seeds apart from those of ",
        ),
        ("--methods=mlc,glcc", "--methods: got 'mlc,glcc', expected all or some of "),
        ("--noise=gauss", "--noise: got 'gauss', expected some of uniform, flip,"),
        ("--levels=2", "--levels: got '2', expected numbers from 0 to 1"),
        ("--final_levels=2", "--final_levels: got '2', expected numbers from 0 to 1"),
        ("--trials=0", "flag --trials=0: "),
        ("--tuning_seeds=0", "flag --tuning_seeds=0: "),
        ("--seeds=0", "flag --seeds=0: "),
        ("--search_seed=-1", "flag --search_seed=-1: "),
        ("--config.main_optimizer.momentum=2.0", ""),
    ],
)
def test_bad_input(run_program, tiny_flags, tmp_path, flag, problem):
    workdir = tmp_path / "tuning"
    code, out, err = run_program(PROGRAM, *_flags(tiny_flags), *ARGS, f"--workdir={workdir}", flag)
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if line != "--help lists the flags."]
    assert err.startswith(f"error: {problem}") and len(lines) == 1
    assert not workdir.exists()
