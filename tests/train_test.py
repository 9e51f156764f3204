"""Whole runs: what they leave behind, and that no kind of ending loses or changes anything."""

import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlc_jax import checkpoint, report, train
from mlc_jax.errors import InputError, NonFiniteLossError
from mlc_jax.metrics import METRICS_FILE, read_metrics
from mlc_jax.workdir import locked_workdir

NUM_STEPS = 84
TIMING = ("train/examples_per_second", "train/data_wait_share")
RESULT_KEYS = {
    "method",
    "dataset",
    "noise",
    "seed",
    "num_steps",
    "last_test_accuracy",
    "best_test_accuracy",
    "selected_test_accuracy",
    "given_label_accuracy",
    "corrected_label_accuracy",
    "clean_labels_spent",
    "num_noisy",
    "num_test",
    "train_seconds",
}
PATIENCE = 120  # Seconds until a run that shows no progress has failed the test.


def _restored(config, workdir):
    """State and progress of the newest checkpoint, as a run that goes on would read them."""
    sharding = NamedSharding(Mesh(np.asarray(jax.devices()), ("batch",)), PartitionSpec())
    method = train.build(config).method
    state = jax.eval_shape(lambda: method.init(jax.random.key(0)))
    checkpointer = checkpoint.Checkpointer(workdir, sharding, keep=config.checkpoints_to_keep)
    try:
        return checkpointer.restore(state, json.loads(config.to_json()))
    finally:
        checkpointer.close()


def _arrays(state):
    """Every array of a state by its path; typed keys as their data."""
    leaves, _ = jax.tree.flatten_with_path(state)
    return {
        jax.tree_util.keystr(path): np.asarray(
            jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        )
        for path, x in leaves
    }


def _untimed_metrics(workdir):
    rows = read_metrics(workdir)
    return [{name: x for name, x in row.items() if name not in TIMING} for row in rows]


def _assert_same_end(config, workdir, reference):
    """Bit for bit: the state, the labels, the metrics."""
    state, progress = _restored(config, workdir)
    want_state, want_progress = _restored(reference.config, reference.workdir)
    arrays, want = _arrays(state), _arrays(want_state)
    assert arrays.keys() == want.keys() and len(want) > 20
    for name in want:
        np.testing.assert_array_equal(arrays[name], want[name], strict=True, err_msg=name)
    assert progress["evals"] == want_progress["evals"]

    for name in (report.LABELS_FILE, report.SOFT_LABELS_FILE):
        ours, theirs = (d / name for d in (workdir, reference.workdir))
        assert ours.read_bytes() == theirs.read_bytes(), name
    assert _untimed_metrics(workdir) == _untimed_metrics(reference.workdir)
    results = json.loads((workdir / report.RESULTS_FILE).read_text())
    assert results | {"train_seconds": 0} == {
        name: x for name, x in reference.results.items() if name in RESULT_KEYS
    } | {"train_seconds": 0}


@pytest.fixture
def start():
    """(flags, workdir, environment) -> a run in a process of its own; none outlives the test."""
    processes = []

    def run(args, workdir, **environ):
        process = subprocess.Popen(
            [sys.executable, "-m", "mlc_jax.main", *args, f"--workdir={workdir}"],
            cwd=pathlib.Path(__file__).parents[1],
            env=os.environ | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def _wait_for(condition, process):
    """Returns the moment that `condition` holds; fails if the process ends before."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert process.poll() is None, f"ended early: {process.stderr.read()}"
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _has_reached(workdir, step):
    """A checkpoint exists, and `step` is logged."""
    rows = read_metrics(workdir)
    steps = checkpoint.finished_steps(workdir / checkpoint.DIRECTORY)
    return bool(steps and rows and rows[-1]["step"] >= step)


@pytest.mark.parametrize("name", ["mlc", "mlc_k3", "cross_entropy", "clean_only"])
def test_run_leaves_everything_behind(trained, name):
    config, workdir, results = trained(name)
    assert {path.name for path in workdir.iterdir()} == {
        ".lock",
        "checkpoints",
        "config.json",
        "corrected_labels.csv",
        "corrected_labels.npz",
        "metrics.jsonl",
        "results.json",
        "tensorboard",
        "training.png",
    }
    assert json.loads((workdir / "config.json").read_text()) == json.loads(config.to_json())
    assert json.loads((workdir / "results.json").read_text()).keys() == RESULT_KEYS
    assert results.keys() == RESULT_KEYS | {"table", "workdir"}
    assert results["workdir"] == str(workdir)
    assert results["method"] == config.method
    assert results["num_steps"] == NUM_STEPS
    assert checkpoint.finished_steps(workdir / checkpoint.DIRECTORY) == [NUM_STEPS]


@pytest.mark.parametrize("name", ["mlc", "mlc_k3", "cross_entropy", "clean_only"])
def test_metrics_have_one_row_at_every_due_step(trained, name):
    rows = read_metrics(trained(name).workdir)
    of_train = [row for row in rows if "train/inner_loss" in row]
    of_eval = [row for row in rows if "eval/test_accuracy" in row]
    assert len(of_train) + len(of_eval) == len(rows)
    assert [row["step"] for row in of_train] == list(range(3, NUM_STEPS + 1, 3))
    assert [row["step"] for row in of_eval] == [21, 42, 63, 84]  # 21 steps an epoch.
    for kind in (of_train, of_eval):
        assert all(row.keys() == kind[0].keys() for row in kind)
        assert all(np.isfinite(list(row.values())).all() for row in kind)
    for row in rows:
        assert all(0 <= x <= 1 for name, x in row.items() if name.endswith("accuracy"))


@pytest.mark.parametrize("name", ["mlc", "mlc_k3", "cross_entropy", "clean_only"])
def test_loss_falls_and_the_classifier_learns(trained, name):
    _, workdir, results = trained(name)
    # MLC's inner loss is against labels that it rewrites; the clean loss is what it works on.
    kind = "train/outer_loss" if name.startswith("mlc") else "train/inner_loss"
    losses = [row[kind] for row in read_metrics(workdir) if kind in row]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])
    assert results["best_test_accuracy"] > 0.3  # One in ten is right by chance.


def test_a_second_call_on_a_finished_run_changes_nothing(trained, tmp_path, standard_promotion):
    config, workdir, results = trained("mlc")
    again = shutil.copytree(workdir, tmp_path / "again")
    repeated = train.train_and_evaluate(config, str(again), show_progress=False)
    assert repeated == results | {"workdir": str(again)}
    for name in ("results.json", "corrected_labels.csv", "corrected_labels.npz", "metrics.jsonl"):
        assert (again / name).read_bytes() == (workdir / name).read_bytes(), name
    assert checkpoint.finished_steps(again / checkpoint.DIRECTORY) == [NUM_STEPS]


def test_killed_twice_and_resumed_ends_bit_identical(
    trained, tiny_config, tiny_flags, tmp_path, start, standard_promotion
):
    reference = trained("mlc")
    draw = random.Random(0)
    every = {"checkpoint_every_steps": 2}
    for first, last in ((6, 36), (40, 70)):
        step, delay = draw.randrange(first, last), draw.uniform(0, 0.05)
        process = start(tiny_flags(**every), tmp_path)
        _wait_for(lambda step=step: _has_reached(tmp_path, step), process)
        time.sleep(delay)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert not (tmp_path / report.RESULTS_FILE).exists()
    config = tiny_config(**every)
    results = train.train_and_evaluate(config, str(tmp_path), show_progress=False)
    assert results["num_steps"] == NUM_STEPS
    _assert_same_end(config, tmp_path, reference)


def test_sigterm_saves_and_a_second_process_is_kept_out(
    trained, tiny_config, tiny_flags, tmp_path, start, standard_promotion
):
    reference = trained("mlc")
    config = tiny_config(checkpoint_every_steps=2)
    # Compiled anew: going on must not depend on a cache of compiled programs.
    process = start(
        tiny_flags(checkpoint_every_steps=2), tmp_path, JAX_ENABLE_COMPILATION_CACHE="false"
    )
    _wait_for(lambda: (tmp_path / checkpoint.DIRECTORY).exists(), process)
    with pytest.raises(InputError, match=f"--workdir: another run is using '{tmp_path}'"):
        train.train_and_evaluate(config, str(tmp_path), show_progress=False)

    _wait_for(lambda: _has_reached(tmp_path, 9), process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, err
    assert out == ""
    (saved,) = (int(line.split()[4]) for line in err.splitlines() if "SIGTERM" in line)
    assert (
        f"error: SIGTERM: saved step {saved} of {NUM_STEPS}. "
        "The same command goes on from there.\n" in err
    )
    assert "Traceback" not in err
    assert 9 <= saved < NUM_STEPS
    assert checkpoint.finished_steps(tmp_path / checkpoint.DIRECTORY)[-1] == saved

    train.train_and_evaluate(config, str(tmp_path), show_progress=False)
    _assert_same_end(config, tmp_path, reference)


def test_a_lock_goes_with_its_process(tmp_path):
    refused = pytest.raises(InputError, match="expected a directory of its own")
    with locked_workdir(str(tmp_path)), refused, locked_workdir(str(tmp_path)):
        pass
    with locked_workdir(str(tmp_path)) as workdir:  # Free again.
        assert workdir == tmp_path


def test_a_loss_that_is_not_finite_stops_the_run(
    tiny_config, tiny_flags, tmp_path, run_program, compilation_cache, standard_promotion
):
    """The learning rate explodes after the first epoch (21 steps)."""
    exploding = {
        "method": "clean_only",
        "main_optimizer.schedule": "step",
        "main_optimizer.milestones": (1,),
        "main_optimizer.decay_factor": 1e30,
        "checkpoint_every_steps": 5,
    }
    code, out, err = run_program("mlc_jax.main", *tiny_flags(**exploding), f"--workdir={tmp_path}")
    assert (code, out) == (1, "")
    (message,) = (line for line in err.splitlines() if line.startswith("error: "))
    step = int(message.removeprefix("error: step ").split(":")[0])
    assert 21 < step <= 24
    assert message.endswith(("is nan.", "is inf."))
    good = tmp_path / checkpoint.DIRECTORY / "20"
    assert err.splitlines()[-1] == (
        f"Last good checkpoint: {good}. "
        "Lower main_optimizer.learning_rate or meta_optimizer.learning_rate."
    )
    assert not (tmp_path / report.RESULTS_FILE).exists()

    steps = checkpoint.finished_steps(tmp_path / checkpoint.DIRECTORY)
    assert steps == [15, 20]
    state, _ = _restored(tiny_config(**exploding), tmp_path)
    assert int(state.step) == 20
    assert checkpoint.all_finite(state)
    assert all(np.isfinite(list(row.values())).all() for row in _untimed_metrics(tmp_path))
    with pytest.raises(NonFiniteLossError, match=f"step {step}: "):  # Going on does not help.
        train.train_and_evaluate(tiny_config(**exploding), str(tmp_path), show_progress=False)
    assert checkpoint.finished_steps(tmp_path / checkpoint.DIRECTORY) == [15, 20]


def test_the_first_step_can_be_logged(tiny_config, tmp_path, compilation_cache):
    """Compilation is kept out of the clock then, but the step's metrics must not get lost."""
    config = tiny_config(method="clean_only", log_every_steps=1, num_epochs=1)
    train.train_and_evaluate(config, str(tmp_path), show_progress=False)
    rows = [row for row in read_metrics(tmp_path) if "train/inner_loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 22))
    assert METRICS_FILE in os.listdir(tmp_path)


def test_a_parameter_that_is_not_finite_is_not_saved(
    tiny_config, tmp_path, compilation_cache, monkeypatch
):
    """The last update may spoil what its own loss could not tell yet."""
    monkeypatch.setattr(checkpoint, "all_finite", lambda state: int(state.step) < 20)
    config = tiny_config(method="clean_only", num_epochs=1, checkpoint_every_steps=10)
    good = tmp_path / checkpoint.DIRECTORY / "10"
    message = rf"^step 20: a parameter is not finite\.\nLast good checkpoint: {good}\. Lower main_"
    with pytest.raises(NonFiniteLossError, match=message):
        train.train_and_evaluate(config, str(tmp_path), show_progress=False)
    assert checkpoint.finished_steps(tmp_path / checkpoint.DIRECTORY) == [10]


def test_diagnosis_is_logged_and_changes_nothing(tiny_config, tmp_path, compilation_cache):
    settings = {
        "meta_gradient.estimator": "one_step",
        "meta_gradient.num_inner_steps": 3,
        "meta_gradient.unroll": 1,
        "meta_optimizer.name": "amsgrad",
    }
    rows = {}
    for every in (0, 30):
        config = tiny_config(**settings, **{"meta_gradient.diagnose_every": every})
        train.train_and_evaluate(config, str(tmp_path / str(every)), show_progress=False)
        rows[every] = _untimed_metrics(tmp_path / str(every))
    names = ("meta_gradient/cosine", "meta_gradient/norm_ratio")
    diagnosed = [row for row in rows[30] if names[0] in row]
    assert [row["step"] for row in diagnosed] == [30, 60, NUM_STEPS]
    for row in diagnosed:
        assert -1 <= row[names[0]] < 0.9999
        assert row[names[1]] > 0
    assert [row for row in rows[30] if names[0] not in row] == rows[0]
    assert not any(names[0] in row for row in rows[0])


def test_an_unrolled_loop_says_that_it_keeps_everything(tiny_config, tmp_path, caplog):
    settings = {"num_epochs": 1, "meta_optimizer.name": "amsgrad"}
    for unroll, told in ((3, True), (0, False)):
        config = tiny_config(
            **settings, **{"meta_gradient.unroll": unroll, "meta_gradient.num_inner_steps": 3}
        )
        caplog.clear()
        with caplog.at_level("INFO", logger="absl"):
            train.train_and_evaluate(config, str(tmp_path / str(unroll)), show_progress=False)
        assert ("--config.meta_gradient.unroll=1" in caplog.text) == told
