"""Predictions for each example exactly once, whatever the batches and devices; scores by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlc_jax.core import MainState, TrainState
from mlc_jax.data import UNKNOWN, ArraySource, Subset
from mlc_jax.methods import BoundMethod
from mlc_jax.models import MLP
from mlc_jax.training import evaluate

NUM_CLASSES = 5
NUM_DEVICES = 8


def _normalize(inputs):
    return inputs.astype(np.float32) / np.float32(16)


@pytest.fixture(scope="module")
def model():
    return MLP(num_classes=NUM_CLASSES, hidden_sizes=(6,))


@pytest.fixture(scope="module")
def state(model):
    params = model.init(jax.random.key(0), jnp.zeros((1, 3, 2)), train=False)["params"]
    return TrainState(jnp.int32(0), jax.random.key(0), MainState(params, {}, ()), None)


def _bound(model, shapes):
    """Soft labels that depend on all that there is; notes the shapes that it is traced with."""

    def classify(state, inputs):
        return model.apply({"params": state.main.params}, _normalize(inputs), train=False)

    def correct_labels(state, features, logits, labels):
        shapes.append(labels.shape)
        given = jax.nn.one_hot(labels, NUM_CLASSES)
        return jax.nn.softmax(logits) + given * features.sum(axis=-1, keepdims=True)

    return BoundMethod(init=None, phases=(), correct_labels=correct_labels, classify=classify)


def _examples(size):
    """A set whose examples lie in another order than their source's."""
    rng = np.random.default_rng(size)
    inputs = rng.integers(0, 17, (size + 3, 3, 2)).astype(np.uint8)
    rows = rng.permutation(size + 3)[:size]
    labels = rng.integers(0, NUM_CLASSES, size).astype(np.int32)
    subset = Subset(ArraySource(inputs), rows, labels, np.full(size, UNKNOWN, np.int32))
    return subset, inputs[rows], labels


def _predict(bound, state, subset, labels, batch_size, gathered=slice(None)):
    reader = evaluate.create_reader([subset], [labels], batch_size=batch_size)
    (prediction,) = evaluate.create_predict(bound)(state, reader, [labels[gathered]])
    return prediction


@pytest.mark.parametrize(
    ("batch_size", "per_device"),
    [(16, 2), (10, 2), (1, 1), (8, 1), (1000, 125)],  # Rounded up to a multiple of the devices.
)
@pytest.mark.parametrize("size", [1, 7, 16, 360])
def test_each_example_once_and_in_order(model, state, batch_size, per_device, size):
    assert jax.device_count() == NUM_DEVICES
    shapes = []
    bound = _bound(model, shapes)
    subset, inputs, labels = _examples(size)
    logits, soft_labels, quality, _ = _predict(bound, state, subset, labels, batch_size)

    want, features = model.apply({"params": state.main.params}, _normalize(inputs), train=False)
    assert logits.shape == soft_labels.shape == (size, NUM_CLASSES)
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-6)
    # Unlike for two rows mixed up.
    assert np.abs(np.diff(np.asarray(want), axis=0)).max(axis=-1).min(initial=1) > 1e-4
    np.testing.assert_allclose(
        soft_labels, bound.correct_labels(state, features, want, labels), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(quality, soft_labels[np.arange(size), labels])
    assert shapes[0] == (per_device,)
    assert len(shapes) == 2  # Compiled for one shape; the other call is the line above.


def test_one_device_predicts_the_same(model, state, monkeypatch):
    """pmap over the first of the eight; the batch size is not rounded up then."""
    shapes = []
    pmap = jax.pmap
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)
    monkeypatch.setattr(
        jax, "pmap", lambda f, **options: pmap(f, **options | {"devices": jax.devices()[:1]})
    )
    subset, inputs, labels = _examples(17)
    logits, *_ = _predict(_bound(model, shapes), state, subset, labels, batch_size=10)
    want, _ = model.apply({"params": state.main.params}, _normalize(inputs), train=False)
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-6)
    assert shapes == [(10,)]


def test_every_process_computes_its_share_of_the_rows(model, state, monkeypatch):
    """Two processes with eight devices each, one after the other: rows 0 to 7, and 8 to 15."""
    subset, inputs, labels = _examples(16)
    seen = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "device_count", lambda: 2 * NUM_DEVICES)
    for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        # Without the other process the gathered rows are this one's own.
        own = slice(NUM_DEVICES * process, NUM_DEVICES * (process + 1))
        logits, *_ = _predict(_bound(model, []), state, subset, labels, batch_size=16, gathered=own)
        seen.append(logits)
    want, _ = model.apply({"params": state.main.params}, _normalize(inputs), train=False)
    np.testing.assert_allclose(np.concatenate(seen), want, rtol=1e-5, atol=1e-6)


def test_quality_is_the_methods_own_where_it_has_one(model, state):
    subset, inputs, labels = _examples(11)
    bound = _bound(model, [])._replace(
        label_quality=lambda state, features, logits, labels: (
            features[:, 0] + labels.astype(jnp.float32)
        )
    )
    prediction = _predict(bound, state, subset, labels, batch_size=8)
    _, features = model.apply({"params": state.main.params}, _normalize(inputs), train=False)
    want = np.asarray(features)[:, 0] + labels
    np.testing.assert_allclose(prediction.label_quality, want, rtol=1e-5)


def test_scores_by_hand():
    logits = np.array([[0.0, 0.0], [np.log(3), 0.0], [0.0, np.log(3)]], np.float32)
    labels = np.array([0, 0, 0])
    scores = evaluate.scores(logits, labels)
    # The first maximum counts, so the tie is right; the third is wrong.
    assert scores["accuracy"] == pytest.approx(2 / 3)
    assert scores["loss"] == pytest.approx((np.log(2) - np.log(3 / 4) - np.log(1 / 4)) / 3)


def test_scores_of_large_logits_are_finite():
    scores = evaluate.scores(np.array([[1e4, 0.0], [0.0, 1e4]], np.float32), np.array([0, 0]))
    assert scores == {"accuracy": 0.5, "loss": pytest.approx(5e3)}
