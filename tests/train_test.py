"""Whole runs: what they leave behind, and that no kind of ending loses or changes anything."""

import csv
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time
import types

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from mlc_jax import config as settings
from mlc_jax.commands import train
from mlc_jax.errors import InputError, NonFiniteLossError
from mlc_jax.report import report
from mlc_jax.training import run as run_module
from mlc_jax.training.metrics import METRICS_FILE, read_metrics
from mlc_jax.training.run import build_run, create_init
from mlc_jax.workdir import checkpoint
from mlc_jax.workdir.workdir import locked_workdir

NUM_STEPS = 84
TIMING = (
    "train/seconds_per_step",
    "train/examples_per_second",
    "train/examples_per_second_per_chip",
    "train/data_wait_share",
)
RESULT_KEYS = {
    "method",
    "dataset",
    "noise",
    "seed",
    "num_steps",
    "step",
    "test_accuracy",
    "last_test_accuracy",
    "best_test_accuracy",
    "selected_test_accuracy",
    "last_validation_accuracy",
    "given_label_accuracy",
    "corrected_label_accuracy",
    "labels_changed",
    "mean_confidence",
    "most_changed",
    "clean_labels_spent",
    "num_noisy",
    "num_test",
    "train_seconds",
}
# Of `TRAINED`; in memory every method is trained by methods_test.py.
NAMES = [
    "mlc",
    *(pytest.param(x, marks=pytest.mark.slow) for x in ("mlc_k3", "cross_entropy", "clean_only")),
]
PATIENCE = 120  # Seconds until a run that shows no progress has failed the test.


def _restored(config, workdir):
    """State and progress of the newest checkpoint, as a run that goes on would read them."""
    sharding = NamedSharding(Mesh(np.asarray(jax.devices()), ("batch",)), PartitionSpec())
    run = build_run(config)
    state = jax.eval_shape(create_init(run), np.uint32(0))
    checkpointer = checkpoint.Checkpointer(workdir, sharding, keep=config.checkpoints_to_keep)
    try:
        # Nothing may be missing that would have to be initialised.
        return checkpointer.restore(
            state, run.description, formerly=settings.formerly(), init=pytest.fail
        )
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
    assert arrays.keys() == want.keys() and len(want) > 10
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


@pytest.mark.parametrize("name", NAMES)
def test_run_leaves_everything_behind(trained, name):
    config, workdir, results = trained(name)
    assert {path.name for path in workdir.iterdir()} == {
        ".lock",
        "checkpoints",
        "config.json",
        "corrected_labels.csv",
        "corrected_labels.npz",
        "dataset.json",
        "metrics.jsonl",
        "report.html",
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


def test_run_leaves_what_is_needed_to_use_it(trained):
    sizes = json.loads((trained("mlc").workdir / "dataset.json").read_text())
    assert sizes == {
        "name": "digits",
        "class_names": [str(digit) for digit in range(10)],
        "names_labels": False,
        "num_noisy": 1367,
        "paired": False,
        "steps_per_epoch": 21,
        "num_epochs": 4,
        "example": {"shape": [1, 8, 8, 1], "dtype": "uint8"},
        "prepare": {"scale": 16.0, "mean": [0.0], "std": [1.0]},
    }


@pytest.mark.parametrize("name", NAMES)
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


@pytest.mark.parametrize("name", NAMES)
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
    told = repeated["table"].replace(str(again), str(workdir))
    assert repeated | {"table": told} == results | {"workdir": str(again)}
    for name in ("results.json", "corrected_labels.csv", "corrected_labels.npz", "metrics.jsonl"):
        assert (again / name).read_bytes() == (workdir / name).read_bytes(), name
    assert checkpoint.finished_steps(again / checkpoint.DIRECTORY) == [NUM_STEPS]


@pytest.mark.parametrize(
    ("name", "times"), [("mlc", 1), pytest.param("mlc_k4_s2", 2, marks=pytest.mark.slow)]
)
def test_killed_and_resumed_ends_bit_identical(
    trained, settings_of, tiny_config, tiny_flags, tmp_path, start, standard_promotion, name, times
):
    """With overlapping windows, in the middle of some that have begun.

    Dear, for SIGKILL needs a process: the one test of an ending that nothing can prepare for.
    """
    reference = trained(name)
    draw = random.Random(0)
    every = settings_of(name) | {"checkpoint_every_steps": 6}
    for first, last in ((6, 36), (40, 70))[:times]:
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


@pytest.mark.slow
def test_sigterm_saves_and_a_second_process_is_kept_out(
    trained, tiny_config, tiny_flags, tmp_path, start, standard_promotion
):
    reference = trained("mlc")
    config = tiny_config(checkpoint_every_steps=60)  # Later than the signal.
    # Compiled anew: going on must not depend on a cache of compiled programs.
    process = start(
        tiny_flags(checkpoint_every_steps=60), tmp_path, JAX_ENABLE_COMPILATION_CACHE="false"
    )
    _wait_for(lambda: (tmp_path / METRICS_FILE).exists(), process)
    with pytest.raises(InputError, match=f"--workdir: another run is using '{tmp_path}'"):
        train.train_and_evaluate(config, str(tmp_path), show_progress=False)

    _wait_for(lambda: any(x["step"] >= 9 for x in read_metrics(tmp_path)), process)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=PATIENCE)
    assert process.returncode == 143, err
    assert out == ""
    (saved,) = (int(line.split()[4]) for line in err.splitlines() if "SIGTERM" in line)
    assert (
        f"error: SIGTERM: saved step {saved} of {NUM_STEPS}. "
        "The same command resumes from there.\n" in err
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
    tiny_config, tiny_flags, tmp_path, run_program, standard_promotion
):
    """The learning rate explodes after the first epoch (21 steps)."""
    exploding = {
        "method": "clean_only",
        "main_optimizer.schedule": "step",
        "main_optimizer.milestones": (1,),
        "main_optimizer.decay_factor": 1e6,
        "checkpoint_every_steps": 5,
    }
    code, out, err = run_program("mlc_jax.main", *tiny_flags(**exploding), f"--workdir={tmp_path}")
    assert (code, out) == (3, "")
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


@pytest.mark.slow
def test_the_first_step_can_be_logged(tiny_config, tmp_path):
    """Compilation is kept out of the clock then, but the step's metrics must not get lost."""
    config = tiny_config(method="clean_only", log_every_steps=1, num_epochs=1)
    train.train_and_evaluate(config, str(tmp_path), show_progress=False)
    rows = [row for row in read_metrics(tmp_path) if "train/inner_loss" in row]
    assert [row["step"] for row in rows] == list(range(1, 22))
    assert METRICS_FILE in os.listdir(tmp_path)


def test_a_parameter_that_is_not_finite_is_not_saved(tiny_config, tmp_path, monkeypatch):
    """The last update may spoil what its own loss could not tell yet."""
    monkeypatch.setattr(checkpoint, "all_finite", lambda state: int(state.step) < 20)
    config = tiny_config(method="clean_only", num_epochs=1, checkpoint_every_steps=10)
    good = tmp_path / checkpoint.DIRECTORY / "10"
    message = rf"^step 20: a parameter is not finite\.\nLast good checkpoint: {good}\. Lower main_"
    with pytest.raises(NonFiniteLossError, match=message):
        train.train_and_evaluate(config, str(tmp_path), show_progress=False)
    assert checkpoint.finished_steps(tmp_path / checkpoint.DIRECTORY) == [10]


@pytest.mark.slow
def test_diagnosis_is_logged_and_changes_nothing(tiny_config, tmp_path):
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


@pytest.mark.slow
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


# --- What a run is made of.


@pytest.mark.slow
def test_steps_stand_for_epochs(trained, tiny_config, tmp_path, standard_promotion):
    config = tiny_config(num_steps=NUM_STEPS, num_epochs=1)
    train.train_and_evaluate(config, str(tmp_path), show_progress=False)
    _assert_same_end(config, tmp_path, trained("mlc"))


@pytest.mark.slow
def test_steps_may_end_between_epochs(tiny_config, tmp_path):
    config = tiny_config(method="clean_only", num_steps=50)
    results = train.train_and_evaluate(config, str(tmp_path), show_progress=False)
    assert results["num_steps"] == 50
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows if "eval/test_accuracy" in row] == [21, 42, 50]
    assert max(row["step"] for row in rows if "train/inner_loss" in row) == 50
    assert json.loads((tmp_path / "dataset.json").read_text())["num_epochs"] == 50 / 21


@pytest.mark.parametrize(
    ("num_steps", "k", "s", "filled"),
    [(50, 3, 0, 51), (51, 3, 0, 51), (3, 3, 0, 3), (50, 6, 3, 51), (50, 6, 2, 50), (7, 6, 1, 7)],
)
def test_steps_are_filled_up_to_whole_updates(tiny_config, num_steps, k, s, filled):
    fields = {"meta_gradient.num_inner_steps": k, "meta_gradient.update_every": s}
    assert build_run(tiny_config(num_steps=num_steps, **fields)).bound.num_steps == filled


def test_a_ring_that_does_not_fit_is_refused_with_a_number(tiny_config, tmp_path, monkeypatch):
    fields = {"meta_gradient.num_inner_steps": 4, "meta_gradient.update_every": 1}
    config = tiny_config(**fields)
    monkeypatch.setattr(run_module, "_device_bytes", lambda: 60_000)
    message = (
        r"^config\.meta_gradient\.update_every: got 1, expected a larger one: with 3 past "
        r"classifiers \(0\.00 GiB\) the training state and its gradients take 0\.00 GiB, and a "
        r"device has 0\.00 GiB$"
    )
    with pytest.raises(InputError, match=message):
        train.train_and_evaluate(config, str(tmp_path), show_progress=False)
    assert not (tmp_path / checkpoint.DIRECTORY).exists()
    state = jax.eval_shape(create_init(build_run(config)), np.uint32(0))
    assert run_module._num_bytes(state.past) == 3 * run_module._num_bytes(state.main)


@pytest.mark.slow
def test_labels_that_come_in_pairs_change_nothing(
    trained, tiny_config, tmp_path, standard_promotion
):
    """What the clean rows' labels would have been is kept, and nobody looks at it."""
    config = tiny_config(**{"dataset.paired": True})
    train.train_and_evaluate(config, str(tmp_path), show_progress=False)
    _assert_same_end(config, tmp_path, trained("mlc"))


@pytest.mark.slow
def test_a_batch_larger_than_its_set_is_what_there_is(tiny_config, tmp_path):
    """Fifty clean examples in equal shares for eight devices and two halves."""
    config, fitted = (
        tiny_config(method="clean_only", num_epochs=1, clean_batch_size=size) for size in (1024, 48)
    )
    workdirs = [tmp_path / name for name in ("larger", "fitted")]
    results, want = (
        train.train_and_evaluate(x, str(workdir), show_progress=False)
        for x, workdir in zip((config, fitted), workdirs, strict=True)
    )
    assert results["num_steps"] == 21
    assert results["clean_labels_spent"] == 70
    reference = types.SimpleNamespace(config=fitted, workdir=workdirs[1], results=want)
    _assert_same_end(config, workdirs[0], reference)


@pytest.mark.parametrize(
    ("fields", "noisy", "clean"),
    [
        ({}, 64, 32),
        ({"clean_batch_size": 64}, 64, 48),
        ({"clean_batch_size": 64, "meta_gradient.mix_clean": False}, 64, 48),
        ({"clean_batch_size": 64, "dataset.clean_per_class": 3}, 64, 16),
        (
            {"clean_batch_size": 64, "dataset.clean_per_class": 3,
             "meta_gradient.mix_clean": False},
            64, 24,
        ),
        ({"noisy_batch_size": 1368}, 1360, 32),
    ],
)  # fmt: skip
def test_batches_are_fitted_to_their_sets(tiny_config, fields, noisy, clean):
    pipeline = build_run(tiny_config(**fields)).pipeline
    assert (pipeline.noisy_batch_size, pipeline.clean_batch_size) == (noisy, clean)
    batch = next(pipeline.batches(0, num_devices=8))
    assert batch.noisy.labels.shape == (8, 1, noisy // 8, 1)
    sizes = [len(x.labels[0, 0]) for x in batch[1:] if x is not None]
    assert sum(sizes) == clean // 8 and len(set(sizes)) == 1


@pytest.mark.slow
def test_as_many_labels_are_exported_as_asked_for(tiny_config, tmp_path):
    """The first ones; what is said of them is what is said of them among all."""
    fields = {"method": "clean_only", "num_epochs": 1}
    arrays, results = {}, {}
    for most in (0, 100):
        config = tiny_config(**fields, max_exported_labels=most)
        workdir = tmp_path / str(most)
        results[most] = train.train_and_evaluate(config, str(workdir), show_progress=False)
        with np.load(workdir / report.SOFT_LABELS_FILE) as file:
            arrays[most] = dict(file)
        lines = (workdir / report.LABELS_FILE).read_text().splitlines()
        assert len(lines) == 1 + (most or 1367)
    for name, array in arrays[100].items():
        np.testing.assert_array_equal(array, arrays[0][name][:100], err_msg=name)
    changed = arrays[100]["corrected_label"] != arrays[100]["given_label"]
    assert results[100]["labels_changed"] == changed.sum()
    assert results[100]["num_noisy"] == results[0]["num_noisy"] == 1367


OLD_WORKDIR = pathlib.Path(__file__).parent / "data" / "workdir_993cefd"


def test_a_workdir_of_an_older_version_goes_on(tmp_path, standard_promotion):
    """Made at commit 993cefd: a run that was stopped half way, and what it came to there."""
    workdir = shutil.copytree(OLD_WORKDIR, tmp_path / "run", ignore=shutil.ignore_patterns("end"))
    assert checkpoint.finished_steps(workdir / checkpoint.DIRECTORY) == [NUM_STEPS // 2]
    before = _untimed_metrics(workdir)
    config = settings.complete(ConfigDict(json.loads((workdir / "config.json").read_text())))
    results = train.train_and_evaluate(config, str(workdir), show_progress=False)
    assert checkpoint.finished_steps(workdir / checkpoint.DIRECTORY) == [NUM_STEPS // 2, NUM_STEPS]

    want = json.loads((OLD_WORKDIR / "end" / report.RESULTS_FILE).read_text())
    for name in want.keys() - {"train_seconds"}:
        assert results[name] == want[name], name
    ours, theirs = (
        list(csv.DictReader((place / report.LABELS_FILE).open(newline="")))
        for place in (workdir, OLD_WORKDIR / "end")
    )
    for name in ("id", "given_label", "corrected_label", "is_label_issue"):
        assert [row[name] for row in ours] == [row[name] for row in theirs], name
    after = _untimed_metrics(workdir)
    assert [row["step"] for row in after] == [row["step"] for row in before]
    for ours, theirs in zip(after, before, strict=True):
        assert theirs.items() <= ours.items() or ours["step"] > NUM_STEPS // 2
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-3), name
