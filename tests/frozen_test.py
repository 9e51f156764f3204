"""An encoder that is frozen in part: what the frozen layers say is computed once."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import safetensors.numpy

import mlc_jax as mlc
from configs import text
from mlc_jax.commands import train
from mlc_jax.data.source import read_rows
from mlc_jax.encoders.frozen import FrozenLayers, StatesSource
from mlc_jax.files.tokens import TokenSource
from mlc_jax.report import report
from mlc_jax.training.run import build_run

NUM_FROZEN = 1
TEXTS = {"noisy": 64, "clean": 16, "test": 16}
# The training step of one length, without a second derivative: what compiles fast.
ONE_STEP = {"method": "cross_entropy", "length_buckets": 1}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Texts of 4 to 20 tokens whose first word tells the label."""
    directory, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    for name, size in TEXTS.items():
        with open(directory / f"{name}.csv", "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for i in range(size):
                label, words = ("good", "bad")[i % 2], rng.choice(list("abc"), rng.integers(1, 17))
                writer.writerow([f"{label} {' '.join(words)}", label])
    return directory


@pytest.fixture
def create(files, tiny_bert, tmp_path):
    """Settings -> a config of a small run whose first layer is frozen."""

    def config(**changes):
        config = text.get_config("finetuned")
        config.update_from_flattened_dict(
            {f"dataset.{name}": str(files / f"{name}.csv") for name in TEXTS}
            | {
                "dataset.max_length": 24, "dataset.cache_dir": str(tmp_path / "cache"),
                "model.bert.checkpoint": str(tiny_bert), "noisy_batch_size": 16,
                "clean_batch_size": 16, "num_epochs": 2, "lcn.hidden_size": 8,
                "lcn.embedding_size": 8, "meta_optimizer.name": "amsgrad",
                "model.bert.num_frozen_layers": NUM_FROZEN,
            }
            | changes
        )  # fmt: skip
        return config

    return config


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def test_states_stand_for_tokens(create, dtype, standard_promotion):
    """Logits, features and gradients are those of the whole encoder; padding is as well."""
    run = build_run(create(**{"model.dtype": dtype}))
    source = run.dataset.noisy.source
    assert isinstance(source, StatesSource)
    rows = np.array([5, 0, 17])
    states, tokens = read_rows(source, rows), read_rows(source.tokens, rows)
    assert states["frozen_states"].dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(states["attention_mask"], tokens["attention_mask"])
    model = run.method.model
    params = model.init(jax.random.key(0), tokens, train=False)["params"]
    frozen = dict(FrozenLayers(
        run.method.initial_params, NUM_FROZEN, dtype=dtype, cache_dir=None
    )._params["encoder"])  # fmt: skip
    params = params | {"encoder": params["encoder"] | frozen}

    def loss(params, inputs):
        logits, features = model.apply({"params": params}, inputs, train=False)
        return jnp.sum(logits**2) + jnp.sum(features**2), (logits, features)

    step = jax.jit(jax.grad(loss, has_aux=True))
    tolerance = {"float32": 1e-5, "bfloat16": 2e-2}[dtype]
    ours, want = (jax.tree.leaves(step(params, inputs)) for inputs in (states, tokens))
    scale = max(float(jnp.abs(x).max()) for x in want)  # Some gradients are zero but for rounding.
    for x, y in zip(ours, want, strict=True):
        np.testing.assert_allclose(x, y, atol=tolerance * scale)


@pytest.mark.slow
def test_a_run_is_the_same_with_both(create, tmp_path, monkeypatch, standard_promotion):
    """With dropout in the layers that are trained; the second run finds the states.

    Dear for the encoder's training step, once with states and once with tokens; MLC's is in
    `test_in_python`.
    """
    results = {}
    for name, most in (("states", 1.0), ("tokens", 0.0), ("again", 1.0)):
        if name == "again":
            monkeypatch.setattr(FrozenLayers, "_outputs", None)
        config = create(**{"dataset.max_cached_gb": most} | ONE_STEP)
        kind = TokenSource if name == "tokens" else StatesSource
        assert isinstance(build_run(config).dataset.test.source, kind)
        train.train_and_evaluate(config, str(tmp_path / name), show_progress=False)
        with np.load(tmp_path / name / report.SOFT_LABELS_FILE) as arrays:
            results[name] = arrays["soft_label"]
    np.testing.assert_allclose(results["states"], results["tokens"], atol=1e-3)
    np.testing.assert_array_equal(results["again"], results["states"])
    loaded = mlc.load(tmp_path / "states")
    assert loaded.predict_proba(["good a b", "bad c"]).shape == (2, 2)  # From texts.
    with open(config.dataset.test, newline="") as file:
        test = [row["text"] for row in csv.DictReader(file)]
    np.testing.assert_allclose(
        loaded.predict_proba(test), mlc.load(tmp_path / "tokens").predict_proba(test), atol=1e-3
    )


def test_states_that_are_too_many_are_not_kept(create, tmp_path):
    """The limit is of all sets together, padding left out; they are kept all or none."""
    run = build_run(create(**{"dataset.max_cached_gb": 0.0}))
    parts = [getattr(run.dataset, name) for name in TEXTS]
    hidden = run.method.model.config.hidden_size
    size = sum(int(part.source.lengths.sum()) for part in parts) * hidden * 4
    assert not (tmp_path / "cache" / "features").exists()
    for most, kind in ((size, StatesSource), (size - 1, TokenSource)):
        run = build_run(create(**{"dataset.max_cached_gb": most / 1e9}))
        assert {type(getattr(run.dataset, name).source) for name in TEXTS} == {kind}
    written = sum(x.stat().st_size for x in (tmp_path / "cache" / "features").iterdir())
    assert size <= written < size + 1000


def test_runs_of_one_program_share_states(create):
    one, other = build_run(create()), build_run(create(seed=1))
    assert one.dataset.noisy.source is other.dataset.noisy.source


def _examples(files, name):
    with open(files / f"{name}.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return mlc.Examples([row["text"] for row in rows], [row["label"] for row in rows])


def _fit(method, files, tiny_bert, cache_dir, most=1.0):
    reader = mlc.TextReader(
        str(tiny_bert), frozen=False, max_length=24, cache_dir=str(cache_dir), max_cached_gb=most
    )
    return mlc.fit(
        method, _examples(files, "noisy"), _examples(files, "clean"), reader=reader, num_steps=8,
        batch_size=16, length_buckets=1, progress=False,
    )  # fmt: skip


def _assert_only_others_moved(state, tiny_bert):
    """By decay neither, and nothing is kept of frozen parameters."""
    before = safetensors.numpy.load_file(tiny_bert / "model.safetensors")
    encoder = state.params["encoder"]
    name = "layer.{}.output.dense.weight".format
    (first, second) = (next(x for k, x in before.items() if k.endswith(name(i))).T for i in (0, 1))
    np.testing.assert_array_equal(encoder["frozen_layers"]["output"]["kernel"][0], first)
    assert np.abs(encoder["layers"]["output"]["kernel"][0] - second).max() > 1e-4
    paths = [jax.tree_util.keystr(x) for x, _ in jax.tree.leaves_with_path(state.opt_state)]
    assert paths and not any("frozen_" in path for path in paths)


@pytest.mark.slow
def test_in_python(files, tiny_bert, tmp_path, standard_promotion):
    """`fit` keeps states, too, and MLC's gradients through them are those through tokens.

    Dear for MLC's step through the encoder, once with states and once with tokens.
    """
    model = mlc.models.Bert(mlc.models.load_bert_config(tiny_bert), 2, num_frozen_layers=1)
    lcn = mlc.models.LabelCorrectionNetwork(2, 8, 8)
    # Adam would make much of rounding: gradients of zero but for that.
    method = mlc.methods.mlc(
        model=model, lcn=lcn, tx=mlc.sgd(1e-2, momentum=0.9, weight_decay=0.1),
        meta_tx=mlc.sgd(1e-2), initial_params=str(tiny_bert),
    )  # fmt: skip
    results = {}
    for most in (1.0, 0.0):
        cache_dir = tmp_path / f"cache{most}"
        results[most] = _fit(method, files, tiny_bert, cache_dir, most)
        assert (cache_dir / "features").exists() == (most > 0)
    np.testing.assert_allclose(results[1.0].soft_labels, results[0.0].soft_labels, atol=1e-5)
    _assert_only_others_moved(results[1.0].state.main, tiny_bert)


@pytest.mark.slow
def test_decay_moves_no_frozen_parameter_whoever_made_the_optimizer(
    files, tiny_bert, tmp_path, standard_promotion
):
    method = mlc.methods.cross_entropy(
        model=mlc.models.Bert(mlc.models.load_bert_config(tiny_bert), 2, num_frozen_layers=1),
        tx=optax.chain(optax.add_decayed_weights(0.1), optax.sgd(1e-2, momentum=0.9)),
        initial_params=str(tiny_bert),
    )
    state = _fit(method, files, tiny_bert, tmp_path / "cache").state.main
    _assert_only_others_moved(state, tiny_bert)
