"""Grids of runs: checked before the first one starts, finished ones kept, failures named."""

import csv
import json
import pathlib

import jax
import pytest
from etils import epath

from experiments import runs, tables
from mlc_jax.errors import InputError, NonFiniteLossError
from mlc_jax.methods import METHODS


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
    """Directories of the runs that were trained, those of a program together, by a stand-in.

    A noise level of 0.99 diverges.
    """
    started = []

    def train_together(configs, *, show_progress):
        assert not show_progress
        started.append(list(configs))
        outcome = {}
        for run_dir, config in configs.items():
            path = epath.Path(run_dir)
            path.mkdir(parents=True)
            path.joinpath("config.json").write_text(config.to_json(indent=2))
            if config.noise.level == 0.99:
                outcome[run_dir] = NonFiniteLossError("step 3: inner_loss is nan.")
                continue
            results = {"method": config.method, "seed": config.seed, "last_test_accuracy": 0.5}
            path.joinpath("results.json").write_text(json.dumps(results))
            outcome[run_dir] = results | {"table": "a\nb", "workdir": run_dir}
        return outcome

    monkeypatch.setattr("mlc_jax.commands.train.train_together", train_together)
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
    assert trained == [
        [str(workdir / method / f"seed{seed}")]
        for method in ("mlc", "clean_only")
        for seed in (0, 1)
    ]
    assert results["clean_only/seed1"] == {
        "method": "clean_only", "seed": 1, "last_test_accuracy": 0.5
    }  # fmt: skip
    assert jax.config.jax_compilation_cache_dir == str(workdir / "compilation_cache")
    assert runs.run_grid(_grid(tiny_config(), num_seeds=3), workdir).keys() > results.keys()
    assert trained[len(grid) :] == [[str(workdir / f"{m}/seed2")] for m in ("mlc", "clean_only")]


def test_bad_configs_are_told_before_anything_starts(tiny_config, workdir, trained):
    with pytest.raises(InputError) as error:
        runs.run_grid(_grid(tiny_config(num_epochs=0), ("mlc", "glcc"), 4), workdir)
    assert str(error.value).splitlines() == [
        "mlc/seed0, mlc/seed1, mlc/seed2 and 1 more: config.num_epochs: got 0, expected 1 or "
        "more: 0 is for own files",
        "glcc/seed0, glcc/seed1, glcc/seed2 and 1 more: config.method: got 'glcc', expected one of "
        f"{', '.join(METHODS)}",
        "config.num_epochs: got 0, expected 1 or more: 0 is for own files",
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


@pytest.mark.slow
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
    runs.check(_grid(tiny_config()), workdir)  # Nothing to go on from: begins anew.
    run_dir.joinpath("checkpoints", "9", "state").mkdir(parents=True)
    with pytest.raises(InputError, match="num_epochs: 9 before, 4 now"):
        runs.run_grid(_grid(tiny_config()), workdir)
    assert trained == []


def test_a_run_from_before_a_setting_goes_on(tiny_config, workdir, trained):
    """What its config lacks is what it was made with."""
    grid = {"mlc/seed0": tiny_config()}
    runs.run_grid(grid, workdir)
    trained.clear()
    path = pathlib.Path(workdir / "mlc" / "seed0" / "config.json")
    saved = json.loads(path.read_text())
    del saved["model"]["initial_params"], saved["num_steps"]
    path.write_text(json.dumps(saved))
    runs.run_grid(grid, workdir)
    assert trained == []
    with pytest.raises(InputError, match=r"config\.num_steps: 0 before, 9 now"):
        runs.run_grid({"mlc/seed0": tiny_config(num_steps=9)}, workdir)


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, "{"])
def test_finished_run_whose_config_cannot_be_read(tiny_config, workdir, trained, content):
    runs.run_grid(_grid(tiny_config()), workdir)
    path = workdir / "mlc" / "seed1" / "config.json"
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(InputError) as error:
        runs.run_grid(_grid(tiny_config()), workdir)
    assert str(error.value).startswith(f"mlc/seed1: {str(path)!r} cannot be read (")


@pytest.mark.slow
@pytest.mark.parametrize("batch_runs", [1, 2])
def test_run_that_diverges_is_logged_and_skipped(tiny_config, workdir, trained, caplog, batch_runs):
    grid = _grid(tiny_config())
    grid["mlc/seed1"] = runs.override(grid["mlc/seed1"], {"noise.level": 0.99})
    results = runs.run_grid(grid, workdir, batch_runs=batch_runs)
    assert list(results) == [name for name in grid if name != "mlc/seed1"]
    assert sum(map(len, trained)) == len(grid)
    assert "mlc/seed1 diverged and is skipped: step 3: inner_loss is nan." in caplog.text
    with pytest.raises(NonFiniteLossError, match="step 3: inner_loss is nan"):
        runs.run_grid({"all": runs.override(tiny_config(), {"noise.level": 0.99})}, workdir)


def test_runs_of_one_program_are_of_one_shape_and_at_one_step(tiny_config, workdir, trained):
    grid = _grid(tiny_config(), num_seeds=5)
    grid["mlc/seed3"] = runs.override(
        grid["mlc/seed3"], {"noise.type": "uniform", "noise.level": 0.1}
    )
    grid["mlc/seed4"] = runs.override(grid["mlc/seed4"], {"num_epochs": 3})
    for name, step in (("mlc/seed1", 12), ("clean_only/seed1", 0)):
        run_dir = workdir / name
        run_dir.mkdir(parents=True)
        if step:
            (run_dir / "checkpoints" / str(step) / "state").mkdir(parents=True)
            (run_dir / "config.json").write_text(grid[name].to_json())
    # A stand-in of a run that is there already: only the grouping is looked at.
    groups = runs._batches(grid, workdir, 3)
    assert groups == [
        ["mlc/seed0", "mlc/seed2", "mlc/seed3"],
        [f"clean_only/seed{seed}" for seed in range(3)],
        [f"clean_only/seed{seed}" for seed in (3, 4)],
        ["mlc/seed1"],
        ["mlc/seed4"],
    ]


def test_error_of_any_other_kind_has_a_note(tiny_config, workdir, monkeypatch):
    def train_together(*_, **__):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("mlc_jax.commands.train.train_together", train_together)
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


def test_a_dict_is_a_cell_of_csv():
    (row,) = csv.DictReader(tables.to_csv([{"most_changed": {"3 -> 8": 41}}]).splitlines())
    assert json.loads(row["most_changed"]) == {"3 -> 8": 41}


def test_markdown_has_text_to_the_left():
    text = tables.to_markdown(["k", "step"], [["1", "plain"]], text_columns=[1])
    assert text == "| k | step |\n| ---: | --- |\n| 1 | plain |\n"


def test_programs_are_not_kept_in_a_bucket():
    """Who can write to one could run code here: only where JAX_COMPILATION_CACHE_DIR says so."""
    before = jax.config.jax_compilation_cache_dir
    runs.cache_programs(epath.Path("gs://bucket/sweep"))
    assert jax.config.jax_compilation_cache_dir == before
