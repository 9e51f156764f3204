"""EMLC: targets that see the inputs, against NumPy; what its teacher learns and keeps beside.

Classifier and teacher of the NumPy write-up are one matrix `[F, C]` each; features are the inputs.
"""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax.flatten_util import ravel_pytree

from mlc_jax import methods
from mlc_jax.core import Batch, Labelled
from mlc_jax.core.estimators import ESTIMATORS
from mlc_jax.core.optimizers import sgd
from mlc_jax.errors import InputError
from mlc_jax.models import MLP, ResNet, ResNet50

emlc = importlib.import_module("mlc_jax.methods.emlc")  # The package has a class of that name.
F, C, B, HALF, RATE = 4, 3, 6, 4, 0.5


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(C, use_bias=False, param_dtype=x.dtype, dtype=x.dtype)(x), x


def _bound(**settings):
    fields = {
        "model": Linear(), "tx": sgd(RATE), "meta_tx": sgd(1.0), "embedding_size": 2,
        "hidden_size": 3, "bce_weight": 0.7,
    }  # fmt: skip
    sizes = {"num_noisy": B, "num_classes": C, "steps_per_epoch": 1, "num_epochs": 4}
    return methods.emlc(**fields | settings).bind(**sizes)


def _window(k, shape=(F,)):
    """Batches `[k, B, ...]`."""
    rng = np.random.default_rng(3)

    def examples(size):
        inputs = rng.normal(size=(k, size, *shape))
        return Labelled(inputs, rng.integers(0, C, (k, size)).astype(np.int32))

    return Batch(examples(B), examples(HALF), examples(HALF))


def _state(bound, seed=0):
    """In double precision."""
    state = bound.init(jax.random.key(seed), jnp.zeros((1, F)))
    return jax.tree.map(lambda x: x.astype(float) if x.dtype == jnp.float32 else x, state)


# --- In NumPy.


def _softmax(logits):
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def _gate(gate, inputs, labels):
    """Its logits, `[B]`."""
    joined = np.concatenate([inputs, gate["label_embedding"]["embedding"][labels]], axis=1)
    hidden = np.maximum(joined @ gate["hidden"]["kernel"] + gate["hidden"]["bias"], 0)
    return (hidden @ gate["output"]["kernel"] + gate["output"]["bias"])[:, 0]


def _corrected(meta, inputs, labels):
    share = 1 / (1 + np.exp(-_gate(meta["gate"], inputs, labels)))[:, None]
    teacher = meta["teacher"]["Dense_0"]["kernel"]
    return share * np.eye(C)[labels] + (1 - share) * _softmax(inputs @ teacher)


def _cross_entropy(weights, inputs, targets):
    return -(targets * np.log(_softmax(inputs @ weights))).sum(axis=1)


def _outer_loss(meta, weights, batches):
    """After as many steps of the classifier as there are batches."""
    for t in range(len(batches.noisy.labels)):
        (x, y), (xc, yc), (xo, yo) = ((part.inputs[t], part.labels[t]) for part in batches)
        inputs, targets = np.concatenate([x, xc]), _corrected(meta, x, y)
        targets = np.concatenate([targets, np.eye(C)[yc]])
        residuals = _softmax(inputs @ weights) - targets
        weights = weights - RATE * inputs.T @ residuals / len(inputs)
    return _cross_entropy(weights, xo, np.eye(C)[yo]).mean()


def _teacher_losses(meta, clean):
    """Cross-entropy, and the gate's at every right label and the strongest wrong one."""
    inputs, labels = clean
    teacher = meta["teacher"]["Dense_0"]["kernel"]
    logits = inputs @ teacher
    wrong = np.where(np.eye(C)[labels] == 1, -np.inf, logits).argmax(axis=1)
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    right_share = sigmoid(_gate(meta["gate"], inputs, labels))
    wrong_share = sigmoid(_gate(meta["gate"], inputs, wrong))
    bce = -np.log(np.concatenate([right_share, 1 - wrong_share])).mean()
    return _cross_entropy(teacher, inputs, np.eye(C)[labels]).mean(), bce


def _slope(function, meta, epsilon=1e-5):
    """Central differences of a scalar function in meta params, flat."""
    flat, unravel = ravel_pytree(meta)
    at = lambda x: function(jax.tree.map(np.asarray, unravel(jnp.asarray(x))))  # noqa: E731
    steps = epsilon * np.eye(len(flat))
    return np.array([at(flat + step) - at(flat - step) for step in steps]) / (2 * epsilon)


def _weights(state):
    return np.asarray(state.main.params["Dense_0"]["kernel"])


def _flat(tree):
    return np.asarray(ravel_pytree(tree)[0])


def _last_clean(batches):
    """The last step's whole clean batch."""
    parts = [(part.inputs[-1], part.labels[-1]) for part in batches[1:]]
    return tuple(np.concatenate(x) for x in zip(*parts, strict=True))


# --- The meta-gradient, and what stands beside it.


@pytest.mark.slow
@pytest.mark.parametrize("k", [1, 2])
def test_meta_gradient_is_that_of_the_clean_loss_after_the_window(x64, k):
    bound = _bound(num_inner_steps=k)
    state, batches = _state(bound), _window(k)
    window = bound.window(ESTIMATORS["exact"], state, batches)
    expected = _slope(lambda meta: _outer_loss(meta, _weights(state), batches), state.meta.params)
    for part in (expected[:5], expected[-F * C :]):  # Of the gate, of the teacher.
        assert np.abs(part).max() > 1e-4
    np.testing.assert_allclose(_flat(window.meta_grads), expected, atol=1e-9)


@pytest.mark.slow
def test_estimators_agree_at_one_step_with_dropout_in_the_teacher(x64):
    """All products are made with one draw, and another key is another draw."""
    model = MLP(C, hidden_sizes=(5,), dropout_rate=0.5)
    bound, batches = _bound(model=model), _window(1)
    state = _state(bound)
    look = lambda name, state: _flat(  # noqa: E731
        bound.window(ESTIMATORS[name], state, batches).meta_grads
    )
    exact = look("exact", state)
    for name in ("one_step", "first_order", "approximate"):
        np.testing.assert_allclose(look(name, state), exact, rtol=1e-9, atol=1e-12)
    other = state.replace(rng=jax.random.key(7))
    assert np.abs(look("exact", other) - exact).max() > 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("mix_clean", [True, False])
def test_teacher_learns_from_clean_labels_beside(x64, mix_clean):
    """One update by plain SGD: the meta-gradient, and the slope of both losses by NumPy."""
    bound, batches = _bound(num_inner_steps=2, mix_clean=mix_clean), _window(2)
    if not mix_clean:
        batches = batches._replace(clean_inner=None)
    state = _state(bound)
    clean = _last_clean(batches if mix_clean else batches[1:])
    after, metrics = bound.train_step(state, batches)
    fit, bce = _teacher_losses(jax.tree.map(np.asarray, state.meta.params), clean)
    assert metrics["teacher_loss"] == pytest.approx(fit, rel=1e-9)
    assert metrics["gate_loss"] == pytest.approx(bce, rel=1e-9)

    def loss(meta):
        fit, bce = _teacher_losses(meta, clean)
        return fit + 0.7 * bce

    meta_grads = bound.window(ESTIMATORS["exact"], state, batches).meta_grads
    expected = _flat(meta_grads) + _slope(loss, state.meta.params)
    moved = _flat(state.meta.params) - _flat(after.meta.params)
    np.testing.assert_allclose(moved, expected, atol=1e-8)
    assert np.abs(_slope(loss, state.meta.params)).max() > 0.1


def test_strongest_wrong_class_by_hand():
    logits = jnp.array([[3.0, 1.0, 2.0], [3.0, 1.0, 2.0], [-5.0, -4.0, -9.0]])
    np.testing.assert_array_equal(emlc.strongest_wrong(logits, jnp.array([0, 2, 1])), [2, 0, 0])


def test_gate_decides_between_the_label_and_the_teacher():
    logits = np.log(np.array([[0.7, 0.2, 0.1]] * 3, np.float32))
    shares = np.array([0.0, 0.5, 1.0], np.float32)
    gate = np.array([-50.0, 0.0, 50.0], np.float32)
    soft = np.asarray(emlc.gated(gate, logits, np.array([2, 2, 2])))
    expected = shares[:, None] * np.eye(3)[[2]] + (1 - shares[:, None]) * [[0.7, 0.2, 0.1]]
    np.testing.assert_allclose(soft, expected, rtol=1e-6, atol=1e-7)
    # log 2 for a gate that cannot tell; nothing for one that can.
    assert float(emlc.gate_loss(gate[[1]], gate[[1]])) == pytest.approx(np.log(2), rel=1e-6)
    assert float(emlc.gate_loss(gate[[2]], gate[[0]])) == pytest.approx(0, abs=1e-6)


def test_corrected_labels_are_the_teachers_and_the_gates(x64):
    bound = _bound()
    state = _state(bound)
    inputs, labels = np.random.default_rng(5).normal(size=(7, F)), np.arange(7) % C
    logits, evidence = bound.classify(state, inputs)
    soft = bound.correct_labels(state, evidence, logits, labels)
    meta = jax.tree.map(np.asarray, state.meta.params)
    np.testing.assert_allclose(soft, _corrected(meta, inputs, labels), rtol=1e-9)
    np.testing.assert_allclose(logits, inputs @ _weights(state), rtol=1e-9, atol=1e-12)


# --- The teacher is a network of its own.


@pytest.mark.slow
def test_teacher_keeps_statistics_of_its_own():
    """Batch norm: moved by the clean batch, read in evaluation alone."""
    shape = (8, 8, 3)
    bound = _bound(model=ResNet(C, depth=8), unroll=1)
    batches = jax.tree.map(
        lambda x: x.astype(np.float32) if x.dtype == np.float64 else x, _window(1, shape)
    )
    state = bound.init(jax.random.key(0), jnp.zeros((1, *shape)))
    assert jax.tree.structure(state.extra) == jax.tree.structure(state.main.batch_stats)
    assert np.abs(_flat(state.meta.params["teacher"]) - _flat(state.main.params)).max() > 0.1
    step = jax.jit(bound.train_step)
    after, _ = step(state, batches)
    assert np.abs(_flat(after.extra) - _flat(state.extra)).max() > 1e-3

    variables = {"params": state.meta.params["teacher"], "batch_stats": state.extra}
    x, _ = _last_clean(batches)
    _, updated = ResNet(C, depth=8).apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(
        _flat(after.extra), _flat(updated["batch_stats"]), rtol=1e-4, atol=1e-5
    )

    other = state.replace(extra=jax.tree.map(lambda x: x + 1, state.extra))
    again, _ = step(other, batches)
    np.testing.assert_array_equal(_flat(again.meta.params), _flat(after.meta.params))
    labels = np.zeros(len(x), np.int32)

    def said(state):
        logits, evidence = bound.classify(state, x)
        return np.asarray(bound.correct_labels(state, evidence, logits, labels))

    assert np.abs(said(other) - said(state)).max() > 1e-3


@pytest.mark.parametrize(
    ("field", "value", "least"),
    [("embedding_size", 0, 1), ("hidden_size", 0, 1), ("bce_weight", -0.5, 0)],
)
def test_bad_settings_are_named(field, value, least):
    with pytest.raises(InputError, match=f"^{field}: got {value}, expected at least {least}$"):
        _bound(**{field: value})


def test_frozen_statistics_are_refused():
    """A teacher's targets in training would have none."""
    model = ResNet50(num_classes=2, freeze_batch_norm=True)
    with pytest.raises(InputError, match=r"^model.freeze_batch_norm: got True, expected False"):
        methods.emlc(model=model).bind(num_noisy=8, num_classes=2, steps_per_epoch=1, num_epochs=1)
