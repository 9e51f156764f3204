"""The project as a library: arrays in, corrected labels out; resumption; bad input."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from sklearn.datasets import load_digits

import mlc_jax as mlc
from mlc_jax import description
from mlc_jax.commands import train
from mlc_jax.errors import CheckpointError, InputError
from mlc_jax.methods import METHODS
from mlc_jax.report import report
from mlc_jax.workdir import checkpoint

NAMES = np.array(list("abcdefghij"))
ROOT = pathlib.Path(__file__).parents[1]
SHORT = {"num_epochs": 4, "progress": False, "eval_every_epochs": 2}


class Linear(nn.Module):
    """A user's own model."""

    num_classes: int = 10

    @nn.compact
    def __call__(self, inputs, *, train):
        x = inputs["pixels"] if isinstance(inputs, dict) else inputs
        return nn.Dense(self.num_classes)(x), x


def _method(model=None, **changes):
    # AMSGrad is our own and keeps to strict promotion.
    settings = {
        "model": model or mlc.models.MLP(10, (32, 16)),
        "lcn": mlc.models.LabelCorrectionNetwork(10, 16, 16),
        "tx": mlc.sgd(0.1, momentum=0.9),
        "meta_tx": mlc.amsgrad(1e-2),
    }
    return mlc.methods.mlc(**(settings | changes))


@pytest.fixture(scope="module")
def digits():
    """Inputs, true and given labels; row numbers of the noisy, the checked and other examples."""
    x, truth = load_digits(return_X_y=True)
    rows = np.random.default_rng(0).permutation(len(truth))
    x, truth = (x[rows] / 16).astype(np.float32), truth[rows]
    given = np.where(np.arange(len(truth)) % 5 < 2, (truth + 1) % 10, truth)
    checked = np.concatenate([np.flatnonzero(truth[:900] == c)[:4] for c in range(10)])
    noisy = np.setdiff1d(np.arange(800), checked)
    return x, truth, given, noisy, checked, np.arange(1400, 1797)


def _examples(digits, names=False):
    x, truth, given, noisy, checked, _ = digits
    as_labels = (lambda y: NAMES[y]) if names else (lambda y: y)
    return (
        mlc.Examples(x[noisy], as_labels(given[noisy]), ids=[f"row {i}" for i in noisy]),
        mlc.Examples(x[checked], as_labels(truth[checked]), given=as_labels(given[checked])),
    )


@pytest.fixture(scope="module")
def fitted(digits, tmp_path_factory, compilation_cache):
    """A result with a workdir; nobody may write into it."""
    workdir = tmp_path_factory.mktemp("fit")
    return mlc.fit(_method(), *_examples(digits, names=True), workdir=workdir, **SHORT), workdir


def test_a_result_speaks_of_every_noisy_example_in_the_users_words(fitted, digits):
    result, _ = fitted
    noisy, given = digits[3], digits[2]
    assert result.labels.shape == result.label_quality.shape == (len(noisy),)
    np.testing.assert_array_equal(result.given_labels, NAMES[given[noisy]])
    np.testing.assert_array_equal(result.classes, NAMES)
    np.testing.assert_array_equal(result.labels, NAMES[result.soft_labels.argmax(axis=1)])
    np.testing.assert_allclose(result.soft_labels.sum(axis=1), 1, rtol=1e-5)
    rows = np.arange(len(noisy)), given[noisy]
    np.testing.assert_allclose(result.label_quality, result.soft_labels[rows], rtol=1e-6)
    assert result.ids[3] == f"row {noisy[3]}"
    for name in ("given_label_accuracy", "corrected_label_accuracy", "last_test_accuracy"):
        assert result.figures[name] is None, name  # There is no truth, and no test set.
    assert result.figures["labels_changed"] == np.sum(result.labels != result.given_labels)


def test_a_frame_has_cleanlabs_columns(fitted):
    result, _ = fitted
    frame = result.to_frame()
    assert list(frame) == [
        "id", "is_label_issue", "label_quality", "given_label", "predicted_label", "confidence",
    ]  # fmt: skip
    np.testing.assert_array_equal(frame["is_label_issue"], result.labels != result.given_labels)
    np.testing.assert_array_equal(frame["predicted_label"], result.labels)


def test_predictions_of_any_number_of_inputs(fitted, digits):
    result, _ = fitted
    x, rest = digits[0], digits[5]
    probs = result.predict_proba(x[rest])
    assert probs.shape == (len(rest), 10)
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-5)
    few = result.predict_proba(x[rest[:3]], batch_size=2)
    np.testing.assert_allclose(few, probs[:3], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(result.predict(x[rest]), NAMES[probs.argmax(axis=1)])


def test_the_same_call_on_a_finished_workdir_changes_nothing(fitted, digits):
    result, workdir = fitted
    before = (workdir / report.LABELS_FILE).read_bytes()
    again = mlc.fit(_method(), *_examples(digits, names=True), workdir=workdir, **SHORT)
    np.testing.assert_array_equal(again.soft_labels, result.soft_labels)
    assert (workdir / report.LABELS_FILE).read_bytes() == before
    rows = before.decode().splitlines()
    assert rows[1].startswith(f"{result.ids[0]},{result.given_labels[0]},{result.labels[0]},")


def test_load_gives_the_result_of_a_workdir(fitted, digits):
    result, workdir = fitted
    loaded = mlc.load(workdir)
    for field in ("labels", "given_labels", "ids", "classes"):
        np.testing.assert_array_equal(getattr(loaded, field), getattr(result, field))
    np.testing.assert_allclose(loaded.soft_labels, result.soft_labels)
    x = digits[0][:20]
    np.testing.assert_array_equal(loaded.predict_proba(x), result.predict_proba(x))
    with pytest.raises(InputError, match="no finished run"):
        mlc.load(workdir / checkpoint.DIRECTORY)


@pytest.mark.slow
def test_load_of_a_run_of_the_command(trained):
    run = trained("mlc_k3")
    loaded = mlc.load(run.workdir)
    assert loaded.figures["last_test_accuracy"] == run.results["last_test_accuracy"]
    images = load_digits().images[..., None].astype(np.uint8)
    right = np.mean(loaded.predict(images) == load_digits().target)
    assert right > 0.3  # One in ten is right by chance.


@pytest.mark.slow
def test_load_of_a_run_with_pairs(tiny_config, tmp_path, standard_promotion):
    """Whose LCN has another form than without them."""
    config = tiny_config(method="robust_mlc", num_epochs=1, **{"dataset.paired": True})
    train.train_and_evaluate(config, str(tmp_path), show_progress=False)
    loaded = mlc.load(tmp_path)
    assert set(loaded.state.meta.params) == {"transition"}
    rows = jax.nn.softmax(30.0 * loaded.state.meta.params["transition"])
    assert np.ptp(np.diag(rows)) > 0.1  # Without pairs they start equal.


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"method": {"num_inner_steps": 2}}, "method.num_inner_steps: 1 in the checkpoint, 2 now"),
        ({"method": {"tx": mlc.sgd(0.2)}}, "method.tx.learning_rate: 0.1 in the checkpoint, 0.2"),
        ({"method": {"model": mlc.models.MLP(10, (8,))}}, "method.model.hidden_sizes: "),
        ({"method": {"model": Linear()}}, "method.model.class: 'MLP' in the checkpoint, '"),
        ({"fit": {"seed": 1}}, "seed: 0 in the checkpoint, 1 now"),
        ({"fit": {"batch_size": 50}}, "noisy_batch_size: 100 in the checkpoint, 50 now"),
    ],
)
def test_a_resumed_fit_says_which_settings_differ(fitted, digits, changed, line):
    _, workdir = fitted
    method = _method(**changed.get("method", {}))
    with pytest.raises(CheckpointError, match=re.escape(line)):
        mlc.fit(
            method, *_examples(digits, names=True), workdir=workdir,
            **(SHORT | changed.get("fit", {})),
        )  # fmt: skip


def test_a_resumed_fit_says_that_the_data_differ(fitted, digits):
    _, workdir = fitted
    noisy, clean = _examples(digits, names=True)
    other = dataclasses.replace(noisy, labels=np.roll(noisy.labels, 1))
    with pytest.raises(CheckpointError, match="other data"):
        mlc.fit(_method(), other, clean, workdir=workdir, **SHORT)


def test_a_setting_that_an_older_workdir_lacks_is_its_default(fitted, digits, tmp_path):
    """Only what is changed since makes a difference."""
    import shutil

    _, workdir = fitted
    older = shutil.copytree(workdir, tmp_path / "older")
    (step,) = checkpoint.finished_steps(older / checkpoint.DIRECTORY)
    file = older / checkpoint.DIRECTORY / str(step) / "progress" / "metadata"
    progress = json.loads(file.read_text())
    del progress["config"]["method"]["tx"]["nesterov"], progress["config"]["max_exported_labels"]
    file.write_text(json.dumps(progress))
    mlc.fit(_method(), *_examples(digits, names=True), workdir=older, **SHORT)
    changed = _method(tx=mlc.sgd(0.1, momentum=0.9, nesterov=True))
    with pytest.raises(CheckpointError, match=r"method\.tx\.nesterov"):
        mlc.fit(changed, *_examples(digits, names=True), workdir=older, **SHORT)


@pytest.mark.slow
def test_own_models_optimizers_and_trees_of_inputs(digits, tmp_path, compilation_cache):
    """A dict of arrays, a Flax module and optax transformations of the user's own."""
    x, truth, given, noisy, checked, rest = digits
    method = _method(model=Linear(), tx=optax.sgd(0.1), meta_tx=optax.sgd(0.5))
    result = mlc.fit(
        method,
        mlc.Examples({"pixels": x[noisy]}, given[noisy]),
        mlc.Examples({"pixels": x[checked]}, truth[checked]),
        test=mlc.Examples({"pixels": x[rest]}, truth[rest]),
        workdir=tmp_path,
        **SHORT,
    )
    probs = result.predict_proba({"pixels": x[:7]})
    assert probs.shape == (7, 10)
    assert 0 < result.figures["last_test_accuracy"] <= 1
    with pytest.raises(InputError, match=r"is not one of mlc_jax's own parts.*method=\.\.\."):
        mlc.load(tmp_path)
    loaded = mlc.load(tmp_path, method=method)
    np.testing.assert_array_equal(loaded.predict_proba({"pixels": x[:7]}), probs)


class Rows:
    """Anything with `x[rows]` and `len`; remembers how it was asked."""

    def __init__(self, array):
        self.array, self.asked = array, []

    def __len__(self):
        return len(self.array)

    def __getitem__(self, rows):
        self.asked.append(np.asarray(rows))
        return self.array[rows]


@pytest.mark.slow
def test_anything_with_rows_trains_as_the_array_does(fitted, digits):
    """And numbers as names do, and without a workdir as with one."""
    x, truth, given, noisy, checked, _ = digits
    asked = Rows(x[noisy])
    of_rows = mlc.fit(
        _method(), mlc.Examples(asked, given[noisy]), mlc.Examples(x[checked], truth[checked]),
        **SHORT,
    )  # fmt: skip
    np.testing.assert_array_equal(of_rows.soft_labels, fitted[0].soft_labels)
    assert len(asked.asked) > 2
    for rows in asked.asked:
        assert (np.diff(rows) > 0).all()  # Sorted, each once.


def test_whole_numbers_are_inputs_too(digits, compilation_cache):
    x, truth, given, noisy, checked, _ = digits
    pixels = (16 * x).astype(np.uint8)
    method = mlc.methods.cross_entropy(model=mlc.models.MLP(10, (32, 16)), tx=mlc.sgd(0.1))
    result = mlc.fit(
        method, mlc.Examples(pixels[noisy], given[noisy]),
        mlc.Examples(pixels[checked], truth[checked]), num_steps=3, progress=False,
    )  # fmt: skip
    assert result.figures["num_steps"] == 3
    assert len(np.unique(result.predict_proba(pixels[:50]))) > 50  # Logits were not whole numbers.


def test_mistakes_are_told_of_before_anything_starts(digits):
    x, truth, _given, _noisy, _checked, _ = digits
    good, clean = _examples(digits)

    def refused(message, method=None, noisy=good, clean=clean, **settings):
        with pytest.raises(InputError, match=message):
            mlc.fit(method or _method(), noisy, clean, **(SHORT | settings))

    with pytest.raises(InputError, match="labels: got 3 of them, expected 5"):
        mlc.Examples(x[:5], truth[:3])
    refused("row 2 is 10, expected 0 to 9", clean=mlc.Examples(x[:3], np.array([0, 1, 10])))
    unlabelled = mlc.Examples(x[:200], np.full(200, -1))
    glc = mlc.methods.glc(model=mlc.models.MLP(10, (16,)))
    refused("labels: rows without one: 200; glc expects", glc, noisy=unlabelled)
    refused("all numbers, or all names", clean=mlc.Examples(x[:10], NAMES))
    refused("whole numbers or texts", clean=mlc.Examples(x[:10], np.linspace(0, 1, 10)))
    refused("clean inputs: got", noisy=mlc.Examples(x[:, :3], truth),
            clean=mlc.Examples(x[:, 0], truth), method=_method(model=Linear()))  # fmt: skip
    refused("num_epochs: got 0", num_epochs=0)
    refused("seed: got -1", seed=-1)
    refused("fit: got 'log_evry_steps', expected settings among", log_evry_steps=3)
    refused("num_inner_steps: got 1000, expected at most", _method(num_inner_steps=1000))
    with pytest.raises(InputError, match="expected such as mlc_jax"):
        mlc.fit("mlc", good, clean)


def test_a_method_runs_bare_under_jit(digits):
    """The two stages of the README: settings first, then the data's sizes."""
    x, _truth, given, _, _, _ = digits
    bound = _method().bind(num_noisy=64, num_classes=10, steps_per_epoch=4, num_epochs=2)
    state = bound.init(jax.random.key(0), x[:1])
    step = jax.jit(bound.phases[0].train_step)

    def part(rows):
        return mlc_batch(x[rows][None], given[rows][None].astype(np.int32), rows[None])

    from mlc_jax.core import Batch
    from mlc_jax.core import Labelled as mlc_batch

    batch = Batch(part(np.arange(64)), part(np.arange(64, 72)), part(np.arange(72, 80)))
    after, metrics = step(state, batch)
    assert int(after.step) == 1 and np.isfinite(float(metrics["outer_loss"]))
    logits, features = bound.classify(after, jnp.asarray(x[:5]))
    assert logits.shape == (5, 10) and features.shape == (5, 16)


@pytest.mark.parametrize("name", METHODS)
def test_settings_survive_json(name):
    settings = {
        "model": mlc.models.ResNet(10, depth=8),
        "num_inner_steps": 3,
        "tx": mlc.sgd(0.1, schedule="step", milestones=(3, 4), groups=(("bias", 0.5),)),
    }
    if name in ("mlc", "robust_mlc"):
        settings["lcn"] = mlc.models.LabelCorrectionNetwork(10, skip_link=True)
    if name in ("mlc", "meta_weight_net"):
        settings["estimator"] = mlc.estimators.truncated(4)
    method = METHODS[name](**settings)
    text = json.dumps(description.describe(method))
    rebuilt = description.rebuild(json.loads(text))
    assert type(rebuilt) is METHODS[name]
    assert description.describe(rebuilt) == json.loads(text)
    if "estimator" in settings:
        assert rebuilt.estimator == settings["estimator"]
    assert rebuilt.tx == method.tx


@pytest.mark.slow
def test_importing_the_library_imports_no_tensorflow():
    """A process that imports all but TensorFlow: here it has long been imported."""
    program = (
        "import sys, mlc_jax as mlc\n"
        "assert 'jax' not in sys.modules\n"
        "mlc.Examples, mlc.fit, mlc.load, mlc.methods.mlc, mlc.models.MLP(10), mlc.sgd(0.1)\n"
        "mlc.estimators.exact()\n"
        "print([name for name in sys.modules if name.split('.')[0].startswith('tensorflow')])\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert result.stdout == "[]\n"
    assert set(mlc.__all__) <= set(dir(mlc))


@pytest.mark.slow
def test_the_example_runs(tmp_path):
    """examples/digits.py is 25 lines of code or fewer, corrects labels, and draws."""
    file = ROOT / "examples" / "digits.py"
    code = [line for line in file.read_text().splitlines() if line and not line.startswith('"""')]
    assert len(code) <= 25
    run = subprocess.run(
        [sys.executable, str(file)], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    shares = [float(x) for x in re.findall(r"([\d.]+)%", run.stdout)]
    assert len(shares) == 3 and shares[0] < 65 and shares[1] > 90 and shares[2] > 90, run.stdout
    assert (tmp_path / "digits.png").stat().st_size > 5_000
