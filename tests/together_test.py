"""Every method through the loop; several runs as one program; both stopped and resumed."""

import json

import jax
import numpy as np
import pytest

from configs import arrays
from experiments import runs
from mlc_jax.commands import train
from mlc_jax.errors import InputError, NonFiniteLossError, Preempted
from mlc_jax.report import report
from mlc_jax.training import loop
from mlc_jax.training.run import build_run
from mlc_jax.workdir import preemption

NUM_STEPS = 84  # Of configs/digits.py made small: 21 an epoch.
TWO_PHASES = ("forward", "joint", "distillation", "glc")


@pytest.fixture(autouse=True)
def _standard(standard_promotion):
    """For optax's Adam."""


@pytest.fixture
def stop_at(monkeypatch):
    """(step, num_inner_steps) -> runs stop after it, once, as after SIGTERM."""

    def set_step(step):
        due = [step]

        def reached(self, window):
            if due and window >= due[0]:
                return bool(due.pop())
            return False

        monkeypatch.setattr(preemption.PreemptionFlag, "reached", reached)

    return set_step


def _config(tiny_config, method, seed=0, **fields):
    small = {"mlnt.num_synthetic": 2, "joint.num_averaged": 2}
    return runs.override(tiny_config(**small), {"method": method} | fields, seed=seed)


def _arrays(workdir):
    with np.load(workdir / report.SOFT_LABELS_FILE) as file:
        return dict(file)


# One of each kind: without clean labels, in two phases, with labels that are learned, with a meta
# model of its own, with one that sees the inputs. In memory methods_test.py trains every method.
@pytest.mark.slow
@pytest.mark.parametrize(
    "method", ["noisy_only", "distillation", "joint", "meta_weight_net", "emlc"]
)
def test_methods_train_and_report(tiny_config, tmp_path, method):
    config = _config(tiny_config, method)
    results = train.train_and_evaluate(config, str(tmp_path), show_progress=False)
    num_steps = NUM_STEPS * (2 if method in TWO_PHASES else 1)
    assert (results["method"], results["num_steps"]) == (method, num_steps)
    assert results["clean_labels_spent"] == (20 if method == "noisy_only" else 70)
    assert results["last_test_accuracy"] > 0.25
    arrays = _arrays(tmp_path)
    np.testing.assert_allclose(arrays["soft_label"].sum(axis=1), 1, rtol=1e-4)
    assert ((arrays["label_quality"] >= 0) & (arrays["label_quality"] <= 1)).all()
    rows = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if "eval/test_accuracy" in row]
    assert steps == list(range(21, num_steps + 1, 21))


@pytest.fixture(scope="module")
def whole(tiny_config, tmp_path_factory):
    """What joint comes to where nobody stops it."""
    workdir = tmp_path_factory.mktemp("whole")
    with jax.numpy_dtype_promotion("standard"):
        train.train_and_evaluate(_config(tiny_config, "joint"), str(workdir), show_progress=False)
    return _arrays(workdir)


@pytest.mark.slow
@pytest.mark.parametrize("step", [21, 30, NUM_STEPS, NUM_STEPS + 10])  # Epoch, between, phase.
def test_phases_and_hooks_resume_bit_equal(tiny_config, tmp_path, whole, stop_at, step):
    config = _config(tiny_config, "joint")
    stop_at(step)
    with pytest.raises(Preempted, match=f"saved step {step} of {2 * NUM_STEPS}"):
        train.train_and_evaluate(config, str(tmp_path / "parts"), show_progress=False)
    train.train_and_evaluate(config, str(tmp_path / "parts"), show_progress=False)
    parts = _arrays(tmp_path / "parts")
    for name, array in whole.items():
        np.testing.assert_array_equal(parts[name], array)


@pytest.mark.slow
def test_joint_reports_the_labels_that_it_learned(tiny_config, tmp_path):
    """Means of the classifier's last predictions of the first phase, not the second one's."""
    config = _config(tiny_config, "joint", **{"joint.update_from": 1.0})
    results = train.train_and_evaluate(config, str(tmp_path), show_progress=False)
    arrays = _arrays(tmp_path)  # Never updated, they are the given ones.
    np.testing.assert_array_equal(arrays["corrected_label"], arrays["given_label"])
    np.testing.assert_array_equal(arrays["label_quality"], 1)
    assert results["corrected_label_accuracy"] == results["given_label_accuracy"]


def test_first_phase_has_its_own_length(tiny_config, tmp_path):
    config = _config(tiny_config, "glc", first_phase_epochs=1, num_epochs=2)
    results = train.train_and_evaluate(config, str(tmp_path), show_progress=False)
    assert results["num_steps"] == 63


# --- Several runs as one program.


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("mlc", {}),
        pytest.param("joint", {}, marks=pytest.mark.slow),
        pytest.param("mlc", {"meta_gradient.num_inner_steps": 3}, marks=pytest.mark.slow),
        pytest.param(
            "mlc", {"meta_gradient.num_inner_steps": 3, "meta_gradient.update_every": 1},
            marks=pytest.mark.slow,
        ),
    ],
)  # fmt: skip
def test_together_each_run_is_what_it_is_alone(tiny_config, tmp_path, method, fields):
    configs = {
        str(tmp_path / "together" / "a"): _config(tiny_config, method, 0, **fields),
        str(tmp_path / "together" / "b"): _config(tiny_config, method, 1, **fields),
        str(tmp_path / "together" / "c"): _config(
            tiny_config, method, 1, **fields | {"noise.type": "uniform", "noise.level": 0.1}
        ),
    }
    together = train.train_together(configs, show_progress=False)
    for workdir, config in configs.items():
        alone_dir = str(tmp_path / "alone" / workdir[-1])
        alone = train.train_and_evaluate(config, alone_dir, show_progress=False)
        alone_arrays, arrays = (_arrays(tmp_path / x / workdir[-1]) for x in ("alone", "together"))
        for name in ("id", "given_label", "true_label"):
            np.testing.assert_array_equal(arrays[name], alone_arrays[name])
        np.testing.assert_allclose(arrays["soft_label"], alone_arrays["soft_label"], atol=2e-3)
        assert together[workdir].keys() == alone.keys()
        for name, value in alone.items():
            if name.endswith("accuracy"):
                assert together[workdir][name] == pytest.approx(value, abs=0.004), name
        assert together[workdir]["noise"] == alone["noise"]
    # Runs that differ are not mixed up.
    assert len({str(x["given_label_accuracy"]) for x in together.values()}) == 3


@pytest.mark.slow
def test_stack_that_was_stopped_can_be_finished_one_by_one(tiny_config, tmp_path, stop_at):
    configs = {
        str(tmp_path / "parts" / name): _config(tiny_config, "glc", seed)
        for seed, name in enumerate("ab")
    }
    stop_at(NUM_STEPS + 10)
    with pytest.raises(Preempted):
        train.train_together(configs, show_progress=False)
    assert not list(tmp_path.glob("parts/*/results.json"))
    for workdir, config in configs.items():
        train.train_and_evaluate(config, workdir, show_progress=False)
        whole = tmp_path / "whole" / workdir[-1]
        train.train_and_evaluate(config, str(whole), show_progress=False)
        resumed = _arrays(tmp_path / "parts" / workdir[-1])["soft_label"]
        np.testing.assert_allclose(resumed, _arrays(whole)["soft_label"], atol=2e-3)


@pytest.mark.slow
def test_run_that_diverges_does_not_stop_the_others(tiny_config, tmp_path, monkeypatch):
    create_train_step = loop.create_train_step

    def create_failing_step(phase, num_runs):
        step = create_train_step(phase, num_runs)

        def failing_step(state, batch):
            state, metrics = step(state, batch)
            at = int(jax.device_get(state.step).max())
            if num_runs == 2 and at >= 9:
                metrics = metrics | {"inner_loss": metrics["inner_loss"].at[1].set(np.nan)}
            return state, metrics

        return failing_step

    monkeypatch.setattr(loop, "create_train_step", create_failing_step)
    configs = {
        str(tmp_path / name): _config(tiny_config, "cross_entropy", seed)
        for seed, name in enumerate("ab")
    }
    good, bad = train.train_together(configs, show_progress=False).values()
    assert good["last_test_accuracy"] > 0.25
    assert isinstance(bad, NonFiniteLossError)
    assert str(bad).startswith("step 9: inner_loss is nan.\nThere is no checkpoint.")
    assert (tmp_path / "a" / "results.json").exists()
    assert not (tmp_path / "b" / "results.json").exists()
    rows = (tmp_path / "b" / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(row)["step"] < 9 for row in rows)


@pytest.mark.slow
def test_all_runs_of_a_program_may_diverge(tiny_config, tmp_path):
    exploding = {"main_optimizer.learning_rate": 1e6, "main_optimizer.weight_decay": 1e9}
    configs = {
        str(tmp_path / name): _config(tiny_config, "cross_entropy", seed, **exploding)
        for seed, name in enumerate("ab")
    }
    for workdir, error in train.train_together(configs, show_progress=False).items():
        assert isinstance(error, NonFiniteLossError)
        assert str(error).startswith("step ") and "There is no checkpoint." in str(error)
        assert not (tmp_path / workdir / "results.json").exists()


def test_runs_of_one_split_share_its_inputs(tiny_config):
    one, other = (
        build_run(_config(tiny_config, "mlc", **{"noise.level": level})).dataset
        for level in (0.2, 0.4)
    )
    for name in ("noisy", "clean", "test"):
        assert getattr(one, name).source is getattr(other, name).source
    assert (one.noisy.given != other.noisy.given).any()


@pytest.mark.parametrize(("standardize", "programs"), [(False, 1), (True, 2)])
def test_standardized_runs_of_other_splits_are_other_programs(standardize, programs):
    """Mean and deviation of a split's noisy set are constants of the program."""
    config = arrays.get_config()
    config.dataset.update(data="all.npz", standardize=standardize)
    splits = [runs.override(config, {"dataset.split_seed": seed}) for seed in (0, 1)]
    assert len({train.stack_key(config) for config in splits}) == programs
    noises = [runs.override(config, {"noise.seed": seed, "seed": seed}) for seed in (0, 1)]
    assert len({train.stack_key(config) for config in noises}) == 1
    assert train.stack_key(runs.override(config, {"num_epochs": 3})) != train.stack_key(config)


def test_only_runs_of_one_shape_go_together(tiny_config, tmp_path):
    configs = {
        str(tmp_path / "a"): _config(tiny_config, "mlc"),
        str(tmp_path / "b"): _config(tiny_config, "mlc", num_epochs=5),
    }
    with pytest.raises(InputError, match="runs of one program may differ in seed"):
        train.train_together(configs, show_progress=False)
    assert not list(tmp_path.iterdir())
