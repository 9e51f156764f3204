"""Grids of runs: checked before the first one starts, finished ones kept, failures named."""

import csv
import json

import jax
import pytest
from etils import epath

from experiments import runs, tables
from mlc_jax.errors import InputError, NonFiniteLossError


@pytest.fixture(autouse=True)
def own_compilation_cache():
    """A grid keeps its programs in its workdir; the suite's settings come back after it."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def workdir(tmp_path):
    return epath.Path(tmp_path / "grid")


@pytest.fixture
def trained(monkeypatch):
    """Directories of the runs that were trained, in order, by a stand-in that writes results.

    A learning rate of 99 diverges.
    """
    started = []

    def train_and_evaluate(config, run_dir, *, show_progress):
        assert not show_progress
        started.append(run_dir)
        path = epath.Path(run_dir)
        path.mkdir(parents=True)
        path.joinpath("config.json").write_text(config.to_json(indent=2))
        if config.main_optimizer.learning_rate == 99:
            raise NonFiniteLossError("step 3: inner_loss is nan.")
        results = {"method": config.method, "seed": config.seed, "last_test_accuracy": 0.5}
        path.joinpath("results.json").write_text(json.dumps(results))
        return results | {"table": "a\nb", "workdir": run_dir}

    monkeypatch.setattr("mlc_jax.train.train_and_evaluate", train_and_evaluate)
    return started


def _grid(config, methods=("mlc", "clean_only"), num_seeds=2):
    return {
        f"{method}/seed{seed}": runs.override(config, {"method": method}, seed=seed)
        for seed in range(num_seeds)
        for method in methods
    }


def test_override_leaves_the_config_as_it_is(tiny_config):
    config = tiny_config()
    before = config.to_json()
    other = runs.override(config, {"noise.level": 0.25, "method": "clean_only"}, seed=3)
    assert (other.noise.level, other.method) == (0.25, "clean_only")
    assert other.seed == other.noise.seed == other.dataset.split_seed == 3
    assert config.to_json() == before
    assert runs.override(config, {}).to_json() == before
    with pytest.raises(KeyError, match="nosie"):
        runs.override(config, {"nosie.level": 0.25})


def test_grid_is_trained_once(tiny_config, workdir, trained):
    grid = _grid(tiny_config())
    results = runs.run_grid(grid, workdir)
    assert list(results) == list(grid)
    assert trained == [str(workdir / name) for name in grid]
    assert results["clean_only/seed1"] == {
        "method": "clean_only", "seed": 1, "last_test_accuracy": 0.5
    }  # fmt: skip
    assert jax.config.jax_compilation_cache_dir == str(workdir / "compilation_cache")
    assert runs.run_grid(_grid(tiny_config(), num_seeds=3), workdir).keys() > results.keys()
    assert trained[len(grid) :] == [str(workdir / f"{m}/seed2") for m in ("mlc", "clean_only")]


def test_bad_configs_are_told_before_anything_starts(tiny_config, workdir, trained):
    with pytest.raises(InputError) as error:
        runs.run_grid(_grid(tiny_config(num_epochs=0), ("mlc", "glcc"), 4), workdir)
    assert str(error.value).splitlines() == [
        "mlc/seed0, mlc/seed1, mlc/seed2 and 1 more: config.num_epochs: got 0, expected a whole "
        "number, at least 1",
        "glcc/seed0, glcc/seed1, glcc/seed2 and 1 more: config.method: got 'glcc', expected one of "
        "mlc, cross_entropy, clean_only",
        "config.num_epochs: got 0, expected a whole number, at least 1",
    ]
    assert trained == [] and not workdir.exists()


def test_finished_runs_of_another_config_are_refused(tiny_config, workdir, trained):
    runs.run_grid(_grid(tiny_config()), workdir)
    trained.clear()
    # The last of the grid alone differs; the first is yet to be trained.
    grid = {"new": tiny_config()} | _grid(tiny_config())
    grid["clean_only/seed1"] = runs.override(
        grid["clean_only/seed1"], {"num_epochs": 9, "model.mlp.hidden_sizes": (8,)}
    )
    with pytest.raises(InputError) as error:
        runs.run_grid(grid, workdir)
    assert str(error.value).splitlines() == [
        "clean_only/seed1: trained with another config:",
        "  config.model.mlp.hidden_sizes: [32, 16] before, [8] now",
        "  config.num_epochs: 4 before, 9 now",
        f"Use another --workdir, or remove these runs from {str(workdir)!r}.",
    ]
    assert trained == []


def test_settings_that_do_not_touch_what_is_learned_may_change(tiny_config, workdir, trained):
    runs.run_grid(_grid(tiny_config()), workdir)
    trained.clear()
    runs.run_grid(_grid(tiny_config(log_every_steps=7, eval_batch_size=500)), workdir)
    assert trained == []


def test_unfinished_run_with_checkpoints_of_another_config_is_refused(
    tiny_config, workdir, trained
):
    run_dir = workdir / "mlc" / "seed0"
    run_dir.mkdir(parents=True)
    run_dir.joinpath("config.json").write_text(tiny_config(num_epochs=9).to_json())
    run_dir.joinpath("checkpoints").mkdir()
    run_dir.joinpath("checkpoints", "12.orbax-checkpoint-tmp").mkdir()
    runs._check(_grid(tiny_config()), workdir)  # Nothing to go on from: begins anew.
    run_dir.joinpath("checkpoints", "9").mkdir()
    with pytest.raises(InputError, match="num_epochs: 9 before, 4 now"):
        runs.run_grid(_grid(tiny_config()), workdir)
    assert trained == []


@pytest.mark.parametrize("content", [None, "{"])
def test_finished_run_whose_config_cannot_be_read(tiny_config, workdir, trained, content):
    runs.run_grid(_grid(tiny_config()), workdir)
    path = workdir / "mlc" / "seed1" / "config.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(InputError) as error:
        runs.run_grid(_grid(tiny_config()), workdir)
    assert str(error.value).startswith(f"mlc/seed1: {str(path)!r} cannot be read (")


def test_failed_run_is_named_and_finished_ones_stay(tiny_config, workdir, trained):
    grid = _grid(tiny_config())
    bad = grid | {
        "mlc/seed1": runs.override(grid["mlc/seed1"], {"main_optimizer.learning_rate": 99})
    }
    with pytest.raises(NonFiniteLossError) as error:
        runs.run_grid(bad, workdir)
    assert str(error.value) == "mlc/seed1: step 3: inner_loss is nan."
    assert trained == [str(workdir / name) for name in list(grid)[:3]]
    finished = [name for name in grid if (workdir / name / "results.json").exists()]
    assert finished == ["mlc/seed0", "clean_only/seed0"]


def test_error_of_any_other_kind_has_a_note(tiny_config, workdir, monkeypatch):
    def train_and_evaluate(*_, **__):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("mlc_jax.train.train_and_evaluate", train_and_evaluate)
    with pytest.raises(ZeroDivisionError, match="by zero") as error:
        runs.run_grid(_grid(tiny_config()), workdir)
    assert error.value.__notes__ == ["In the run mlc/seed0."]


def test_mean_and_spread():
    assert runs.mean_and_spread([0.5, 0.6, 0.7]) == "60.0 ± 10.0"  # Over n - 1.
    assert runs.mean_and_spread([0.5, None, 0.7]) == "60.0 ± 14.1"
    assert runs.mean_and_spread([None, 0.125]) == "12.5"
    assert runs.mean_and_spread([None, None]) == runs.mean_and_spread([]) == "-"


def test_csv_has_the_fields_of_all_rows():
    rows = [{"method": "mlc", "acc": 0.5}, {"method": "a,b", "acc": None, "extra": 1}]
    text = tables.to_csv(iter(rows))
    assert text.splitlines()[0] == "method,acc,extra"
    assert list(csv.DictReader(text.splitlines())) == [
        {"method": "mlc", "acc": "0.5", "extra": ""},
        {"method": "a,b", "acc": "", "extra": "1"},
    ]
