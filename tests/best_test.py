"""The state at the best validation accuracy: kept, found again, and what a run ends with."""

import functools
import shutil

import jax
import numpy as np
import pytest
from conftest import TINY_DIGITS
from etils import epath

import mlc_jax as mlc
from mlc_jax import methods
from mlc_jax.benchmarks import datasets
from mlc_jax.commands import train
from mlc_jax.errors import CheckpointError, InputError
from mlc_jax.training import evaluate
from mlc_jax.training.recorder import Recorder
from mlc_jax.workdir import checkpoint


def _config(**fields):
    from configs import digits

    # So noisy that the validation accuracy goes up and down: four states are kept on the way, after
    # 20, 40, 80 and 120 of 160 steps.
    config = digits.get_config()
    config.update_from_flattened_dict(
        TINY_DIGITS | {"best": "validation", "dataset.validation_per_class": 5, "num_epochs": 8,
                       "method": "cross_entropy", "noise.level": 0.8, "checkpoint_every_steps": 10}
        | fields
    )  # fmt: skip
    return config


def _train(workdir, **fields):
    return train.train_and_evaluate(_config(**fields), str(workdir), show_progress=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("best")
    with jax.numpy_dtype_promotion("standard"):
        return workdir, _train(workdir)


def test_the_state_of_the_best_validation_accuracy_corrects_and_predicts(
    finished, standard_promotion
):
    workdir, results = finished
    assert results["step"] < results["num_steps"]  # Or nothing is shown by this.
    assert results["test_accuracy"] == results["selected_test_accuracy"]
    assert f"of step {results['step']} of {results['num_steps']}" in results["table"]
    # Older than the newest two, which refer to it.
    newest = range(results["num_steps"], 0, -10)[:2]
    steps = checkpoint.finished_steps(workdir / checkpoint.DIRECTORY)
    assert steps == [results["step"], *sorted(newest)]
    loaded = mlc.load(workdir)
    assert int(loaded.state.step) == results["step"]
    assert np.mean(loaded.labels != loaded.given_labels) * len(loaded.labels) == pytest.approx(
        results["labels_changed"]
    )
    test = datasets.load(_config()).test
    right = loaded.predict(np.asarray(test.source.inputs)[test.rows]) == test.truth
    assert np.mean(right) == pytest.approx(results["selected_test_accuracy"])


@pytest.mark.slow
def test_the_last_state_is_another(finished, tmp_path, standard_promotion):
    """The same training, and other labels at its end."""
    _, results = finished
    last = _train(tmp_path, best="last")
    assert last["last_test_accuracy"] == results["last_test_accuracy"]
    assert last["step"] == last["num_steps"]
    assert last["labels_changed"] != results["labels_changed"]
    steps = checkpoint.finished_steps(tmp_path / checkpoint.DIRECTORY)
    assert results["step"] not in steps


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kept", "from_older"), [pytest.param(2, False, marks=pytest.mark.slow), (4, True)]
)
def test_stopped_after_a_state_was_kept_it_ends_the_same(
    finished, tmp_path, kept, from_older, monkeypatch, standard_promotion
):
    """Without the newest checkpoint, too: the one before still has the state that it refers to."""
    workdir, results = finished
    best, save = set(), Recorder.save

    def stop(self, step, state):
        save(self, step, state)
        self.wait()
        if row := evaluate.selected(self.progress["evals"]):
            best.add(row["step"])
        if len(best) == kept:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Recorder, "save", stop)
        _train(tmp_path)
    steps = checkpoint.finished_steps(tmp_path / checkpoint.DIRECTORY)
    assert steps[-1] == max(best)
    if from_older:
        shutil.rmtree(tmp_path / checkpoint.DIRECTORY / str(steps[-1]))
    again = _train(tmp_path)
    different = {"train_seconds", "table", "workdir"}
    assert {k: x for k, x in again.items() if k not in different} == {
        k: x for k, x in results.items() if k not in different
    }
    name = "corrected_labels.npz"
    assert (tmp_path / name).read_bytes() == (workdir / name).read_bytes()


def test_a_kept_state_that_is_gone_is_missed(finished, tmp_path, standard_promotion):
    workdir, results = finished
    shutil.copytree(workdir, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / checkpoint.DIRECTORY / str(results["step"]))
    with pytest.raises(CheckpointError, match="lacks step"):
        _train(tmp_path / "copy")
    with pytest.raises(InputError, match="no checkpoint"):
        mlc.load(tmp_path / "copy")


@pytest.mark.slow
def test_runs_of_one_program_keep_a_state_each(finished, tmp_path, standard_promotion):
    _, results = finished
    configs = {str(tmp_path / "0"): _config(), str(tmp_path / "1"): _config(seed=1)}
    together = train.train_together(configs, show_progress=False)
    ours = together[str(tmp_path / "0")]
    assert ours["step"] == results["step"]
    assert ours["labels_changed"] == pytest.approx(results["labels_changed"], abs=3)
    for name, of_run in together.items():
        directory = epath.Path(name) / checkpoint.DIRECTORY
        assert of_run["step"] in checkpoint.finished_steps(directory)


@pytest.mark.slow
def test_in_memory_as_in_a_workdir(tmp_path, standard_promotion):
    """Steps donate their state: the one that is kept must be a copy."""
    rng = np.random.default_rng(0)
    truth = rng.integers(3, size=300)
    inputs = (np.eye(3)[truth] + rng.normal(0, 0.7, (300, 3))).astype(np.float32)
    given = np.where(rng.random(300) < 0.6, rng.integers(3, size=300), truth)
    part = lambda a, b, labels: mlc.Examples(inputs[a:b], labels[a:b])  # noqa: E731
    parts = part(0, 200, given), part(200, 224, truth)
    judges = {"validation": part(224, 260, truth), "test": part(260, 300, truth)}
    fit = functools.partial(
        mlc.fit, methods.cross_entropy(model=mlc.models.MLP(3, (16,)), tx=mlc.sgd(0.3)),
        *parts, **judges, best="validation", num_epochs=12, batch_size=40, clean_batch_size=16,
        progress=False,
    )  # fmt: skip
    one, other = fit(), fit(workdir=tmp_path)
    assert one.figures["step"] < one.figures["num_steps"]
    np.testing.assert_array_equal(one.soft_labels, other.soft_labels)
    x = judges["test"].x
    np.testing.assert_array_equal(one.predict_proba(x), mlc.load(tmp_path).predict_proba(x))
    assert np.mean(one.predict(x) == judges["test"].labels) == one.figures["test_accuracy"]


def test_without_a_validation_set_there_is_one_line(tmp_path):
    with pytest.raises(InputError, match=r"config.best: got 'validation', expected 'last', or a"):
        _train(tmp_path / "x", **{"dataset.validation_per_class": 0})
    assert not (tmp_path / "x").exists()


def test_rows_of_own_data_may_say_that_they_validate(tmp_path):
    from configs import arrays

    labels = np.arange(40) % 2
    checked = np.where(np.arange(40) < 20, labels, -1)
    splits = np.array(["", "train", "validation", "test"] * 5 + [""] * 20)
    np.savez(tmp_path / "all.npz", inputs=np.arange(40.0)[:, None], labels=labels,
             checked_labels=checked, splits=splits)  # fmt: skip
    config = arrays.get_config()
    config.dataset.data = str(tmp_path / "all.npz")
    dataset = datasets.load(config)
    rows = dataset.validation.rows
    np.testing.assert_array_equal(rows, np.flatnonzero(splits == "validation"))
    np.testing.assert_array_equal(dataset.validation.truth, labels[rows])
    np.testing.assert_array_equal(dataset.test.rows, np.flatnonzero(splits == "test"))
    assert not np.isin(rows, np.concatenate([dataset.noisy.rows, dataset.clean.rows])).any()

    splits[30] = "validation"  # Which nobody checked.
    np.savez(tmp_path / "all.npz", inputs=np.arange(40.0)[:, None], labels=labels,
             checked_labels=checked, splits=splits)  # fmt: skip
    with pytest.raises(InputError, match="row '30' is a validation row that nobody checked"):
        datasets.load(config)
