"""Each method's core step against NumPy; all methods through the loop.

The classifier of the NumPy write-ups is one matrix `W` `[F, C]`: logits `x W`, gradient of an
example's cross-entropy `outer(x, p - y)`.
"""

import dataclasses
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

import mlc_jax
from configs import default
from mlc_jax import build, core, methods
from mlc_jax.core import Batch, Labelled
from mlc_jax.core.estimators import exact
from mlc_jax.core.optimizers import OptimizerSpec, sgd
from mlc_jax.errors import InputError
from mlc_jax.methods import BilevelMethod, blocks
from mlc_jax.methods.types import Binding, Seen
from mlc_jax.models import MLP, LabelCorrectionNetwork, WeightNet

# The package has functions of the same names.
distillation, forward, glc, joint, l2rw, mlnt = (
    importlib.import_module(f"mlc_jax.methods.{name}")
    for name in ("distillation", "forward", "glc", "joint", "l2rw", "mlnt")
)
F, C, B, HALF, RATE = 5, 3, 6, 4, 0.5


class Linear(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(C, use_bias=False, param_dtype=x.dtype, dtype=x.dtype)(x), x


SIZES = {"num_noisy": B, "num_classes": C, "steps_per_epoch": 1, "num_epochs": 4}


def _example():
    """In double precision under x64."""
    return jnp.zeros((1, F))


def _method(name, **settings):
    kind = methods.METHODS[name]
    fields = {"model": Linear(), "tx": sgd(RATE)}
    if issubclass(kind, BilevelMethod):
        fields["meta_tx"] = sgd(1.0)
    if name in ("mlc", "robust_mlc"):
        fields["lcn"] = LabelCorrectionNetwork(C, hidden_size=4, embedding_size=4)
    return kind(**fields | settings)


def _bound(name, num_epochs=4, **settings):
    return _method(name, **settings).bind(**SIZES | {"num_epochs": num_epochs})


def _binding(**changes):
    """What blocks are given."""
    fields = {
        "model": Linear(), "tx": sgd(RATE), "stride": 1, "unroll": 0, "loaded": {},
        "prepare": lambda inputs: inputs, "axis_name": None,
    }  # fmt: skip
    return Binding(**fields | SIZES | changes)


def _init(bound):
    return bound.init(jax.random.key(0), _example())


def _seen(probs=None, labels=None):
    return Seen(_example(), probs, labels)


def _examples(rng, size):
    inputs, labels = rng.normal(size=(size, F)), rng.integers(0, C, size).astype(np.int32)
    return Labelled(inputs, labels, np.arange(size, dtype=np.int32))


@pytest.fixture
def batch():
    rng = np.random.default_rng(3)
    return Batch(_examples(rng, B), _examples(rng, HALF), _examples(rng, HALF))


def _clean(batch):
    """Both halves."""
    return jax.tree.map(lambda *xs: np.concatenate(xs), batch.clean_inner, batch.clean_outer)


def _window(batch):
    """A window of one step."""
    return jax.tree.map(lambda x: x[None], batch)


def _state(bound):
    """In double precision."""
    return jax.tree.map(lambda x: x.astype(float) if x.dtype == jnp.float32 else x, _init(bound))


def _weights(state):
    return np.asarray(state.main.params["Dense_0"]["kernel"])


def _softmax(logits):
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def _cross_entropy(weights, examples, targets=None):
    """Per example `[B]`, against integer labels or `[B, C]`."""
    targets = np.eye(C)[examples.labels] if targets is None else targets
    return -(targets * np.log(_softmax(examples.inputs @ weights))).sum(axis=1)


def _gradient(weights, examples, targets=None):
    """Of each example's cross-entropy, `[B, F, C]`."""
    targets = np.eye(C)[examples.labels] if targets is None else targets
    residuals = targets.sum(axis=1, keepdims=True) * _softmax(examples.inputs @ weights) - targets
    return examples.inputs[:, :, None] * residuals[:, None, :]


def _numeric(function, x, epsilon=1e-5):
    """Central differences of a scalar function."""
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = epsilon
        gradient[index] = (function(x + step) - function(x - step)) / (2 * epsilon)
    return gradient


def _mean_loss(weights, batch, targets=None):
    """The inner loss: noisy examples and all clean ones, weighted by their numbers."""
    clean = _clean(batch)
    parts = _cross_entropy(weights, batch.noisy, targets), _cross_entropy(weights, clean)
    return np.concatenate(parts).mean()


# --- Baselines.


def test_baselines_train_on_what_they_say(x64, batch):
    clean = _clean(batch)
    expected = {
        "cross_entropy": (batch.noisy, clean), "noisy_only": (batch.noisy,), "clean_only": (clean,)
    }  # fmt: skip
    for name, parts in expected.items():
        bound = _bound(name)
        state = _state(bound)
        after, _ = bound.train_step(state, _window(batch))
        gradient = np.concatenate([_gradient(_weights(state), x) for x in parts]).mean(axis=0)
        np.testing.assert_allclose(
            _weights(after), _weights(state) - RATE * gradient, rtol=1e-9, atol=1e-12
        )
        assert bound.uses_clean == (name != "noisy_only")
        assert int(after.step) == 1
        assert bound.window is None


# --- GLC and Forward.


def test_corruption_matrix_is_the_mean_over_a_class():
    rng = np.random.default_rng(0)
    probs = rng.dirichlet(np.ones(C), 8).astype(np.float32)
    labels = np.array([0, 1, 2, 0, 1, 0, 2, 2])
    expected = [probs[labels == label].mean(axis=0) for label in range(C)]
    np.testing.assert_allclose(glc.corruption_matrix(probs, labels), expected, rtol=1e-6)


def test_corruption_matrix_counts_pairs_where_there_are_any():
    probs, labels = np.full((4, 3), 1 / 3, np.float32), np.array([0, 0, 0, 1])
    given = np.array([0, 2, -1, -1])
    matrix = np.asarray(glc.corruption_matrix(probs, labels, given))
    # Two pairs of class 0, and the estimate as a third; of the others the estimate alone.
    np.testing.assert_allclose(matrix[0], [4 / 9, 1 / 9, 4 / 9], rtol=1e-6)
    np.testing.assert_allclose(matrix[1:], [[1 / 3] * 3, [0, 0, 1]], rtol=1e-6)


def test_corruption_matrix_is_finite_where_a_class_has_no_clean_example():
    probs = np.random.default_rng(0).dirichlet(np.ones(C), 4).astype(np.float32)
    matrix = np.asarray(glc.corruption_matrix(probs, np.array([0, 2, 0, 2])))
    np.testing.assert_allclose(matrix[0], probs[::2].mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(matrix[2], probs[1::2].mean(axis=0), rtol=1e-6)
    assert np.isfinite(matrix).all()
    posterior = glc.posterior(jnp.asarray(matrix), None, jnp.log(probs), np.array([0, 1, 2, 1]))
    np.testing.assert_allclose(np.asarray(posterior).sum(axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("percentile", [50.0, 97.0, 100.0])
def test_transition_matrix_is_said_of_anchors(percentile):
    """The authors blank what is at or above the percentile, then take the largest."""
    probs = np.random.default_rng(1).dirichlet(np.ones(C), 200)
    expected = []
    for label in range(C):
        column = probs[:, label].copy()
        if percentile < 100:
            column[column >= np.percentile(column, percentile, method="higher")] = 0
        expected.append(probs[column.argmax()])
    matrix = forward.transition_matrix(jnp.asarray(probs, jnp.float32), percentile)
    np.testing.assert_allclose(matrix, expected, rtol=1e-6)


def test_anchors_are_below_the_percentile_where_many_are_certain():
    probs = np.zeros((1000, 2), np.float32)
    probs[:, 1] = np.linspace(0, 0.9, 1000)
    probs[:50, 1] = 1.0
    probs[:, 0] = 1 - probs[:, 1]
    matrix = np.asarray(forward.transition_matrix(jnp.asarray(probs), 97.0))
    np.testing.assert_allclose(matrix[1, 1], 0.9, rtol=1e-6)


def test_percentile_must_leave_a_class_its_anchor():
    with pytest.raises(InputError, match=r"^forward\.percentile: got 60\.0, expected more than 66"):
        _bound("forward", percentile=60.0)
    _bound("forward", percentile=70.0)


@pytest.mark.parametrize("name", ["glc", "forward"])
def test_corrected_step_descends_the_corrected_loss(x64, batch, name):
    """`-log sum_i p_i T[i, j]` on noisy examples, cross-entropy on clean ones."""
    matrix = np.random.default_rng(2).dirichlet(np.ones(C), C)
    bound = _bound(name)
    state = _state(bound).replace(extra=jnp.asarray(matrix))
    clean = _clean(batch)

    def loss(weights):
        given = (_softmax(batch.noisy.inputs @ weights) @ matrix)[np.arange(B), batch.noisy.labels]
        return np.concatenate([-np.log(given), _cross_entropy(weights, clean)]).mean()

    after, _ = bound.train_step(state, _window(batch))
    gradient = _numeric(loss, _weights(state))
    np.testing.assert_allclose(_weights(after), _weights(state) - RATE * gradient, atol=1e-8)


def test_posterior_is_bayes_rule():
    matrix = np.array([[0.9, 0.1, 0.0], [0.0, 0.6, 0.4], [0.0, 0.0, 1.0]], np.float32)
    probs = np.array([[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]], np.float32)
    labels = np.array([1, 0])
    posterior = np.asarray(glc.posterior(matrix, None, np.log(probs), labels))
    np.testing.assert_allclose(posterior[0], [0.25, 0.75, 0.0], atol=1e-6)  # .05 and .15
    np.testing.assert_allclose(posterior[1], [1.0, 0.0, 0.0], atol=1e-6)
    # A label that no class can have says nothing.
    impossible = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0]], np.float32)
    np.testing.assert_allclose(
        glc.posterior(impossible, None, np.log(probs), np.array([1, 2])), probs, rtol=1e-5
    )


@pytest.mark.parametrize("name", ["glc", "forward", "distillation", "joint"])
def test_second_phase_has_a_new_classifier(name):
    bound = _bound(name, first_phase_epochs=2)
    first, second = bound.phases
    assert (first.num_steps, second.num_steps, bound.num_steps) == (2, 4, 6)
    state = _init(bound)
    probs = np.random.default_rng(0).dirichlet(np.ones(C), B).astype(np.float32)
    seen = _seen(probs, np.array([0, 1, 2, 0, 1, 2]))
    begun = second.before.update(state.replace(step=jnp.int32(2)), seen)
    assert jax.tree.structure(begun) == jax.tree.structure(state)
    assert np.abs(_weights(begun) - _weights(state)).max() > 0.1
    again = second.before.update(state.replace(step=jnp.int32(2)), seen)
    np.testing.assert_array_equal(_weights(begun), _weights(again))


# --- L2RW.


def test_weights_are_the_clipped_slope_of_the_clean_loss(x64, batch):
    """Finite differences of a look-ahead in each example's epsilon, in NumPy."""
    bound = _bound("l2rw")
    state = _state(bound)
    before, noisy = _weights(state), batch.noisy

    def clean_loss_after(epsilon):
        step = np.tensordot(epsilon, _gradient(before, noisy), axes=1)
        return _cross_entropy(before - RATE * step, batch.clean_outer).mean()

    clipped = np.maximum(-_numeric(clean_loss_after, np.zeros(B)), 0)
    assert 0 < (clipped == 0).sum() < B
    expected = clipped / clipped.sum()

    problem = blocks.create_problem(_binding(), l2rw.weighted_labels)
    weights, _ = l2rw.example_weights(problem, state, batch, jax.random.key(1))
    np.testing.assert_allclose(weights / B, expected, atol=1e-8)

    after, _ = bound.train_step(state, _window(batch))
    noisy_gradient = np.tensordot(expected * B, _gradient(before, noisy), axes=1)
    clean_gradient = _gradient(before, batch.clean_inner).sum(axis=0)
    gradient = (noisy_gradient + clean_gradient) / (B + HALF)
    np.testing.assert_allclose(_weights(after), before - RATE * gradient, atol=1e-8)


def test_weights_may_all_be_zero(batch):
    """Where every example would raise the clean loss: no update, no NaN."""
    problem = blocks.create_problem(_binding(), l2rw.weighted_labels)
    state = _init(_bound("l2rw"))
    row = jnp.asarray(batch.clean_outer.inputs[:1], jnp.float32)
    clean = Labelled(row, jnp.zeros(1, jnp.int32))
    wrong = Labelled(jnp.repeat(row, B, axis=0), jnp.ones(B, jnp.int32))
    weights, _ = l2rw.example_weights(problem, state, Batch(wrong, None, clean), jax.random.key(1))
    # The wrong class's logit goes up and the right one's down: the slope is positive for all.
    np.testing.assert_array_equal(weights, np.zeros(B))


# --- Meta-Weight-Net.


def test_weight_net_gradient_is_that_of_the_clean_loss_after_a_step(x64, batch):
    bound = _bound("meta_weight_net", weight_net=WeightNet(hidden_size=4))
    state = _state(bound)
    before = _weights(state)
    flat, unravel = jax.flatten_util.ravel_pytree(state.meta.params)

    def weights_of(flat):
        net = jax.tree.map(np.asarray, unravel(jnp.asarray(flat)))
        hidden = np.maximum(
            _cross_entropy(before, batch.noisy)[:, None] @ net["Dense_0"]["kernel"]
            + net["Dense_0"]["bias"], 0,
        )  # fmt: skip
        out = hidden @ net["Dense_1"]["kernel"] + net["Dense_1"]["bias"]
        return 1 / (1 + np.exp(-out[:, 0]))

    def clean_loss_after(flat):
        noisy = np.tensordot(weights_of(flat), _gradient(before, batch.noisy), axes=1)
        gradient = (noisy + _gradient(before, batch.clean_inner).sum(axis=0)) / (B + HALF)
        return _cross_entropy(before - RATE * gradient, batch.clean_outer).mean()

    window = bound.window(exact, state, _window(batch))
    ours = jax.flatten_util.ravel_pytree(window.meta_grads)[0]
    expected = _numeric(clean_loss_after, np.asarray(flat))
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(ours, expected, atol=1e-9)
    quality = bound.label_quality(
        state, None, batch.noisy.inputs @ before, jnp.asarray(batch.noisy.labels)
    )
    np.testing.assert_allclose(quality, weights_of(flat), rtol=1e-9)


# --- MLC: pairs of given and true label, beside the meta-gradient; its presets.


def _with_pairs(batch, given):
    inner, outer = np.split(np.asarray(given, np.int32), [HALF])
    return batch._replace(
        clean_inner=batch.clean_inner._replace(given=inner),
        clean_outer=batch.clean_outer._replace(given=outer),
    )


@pytest.mark.slow
@pytest.mark.parametrize("normalize", [pytest.param(False, marks=pytest.mark.slow), True])
def test_pairs_teach_the_lcn_beside_the_meta_gradient(normalize, x64, batch):
    """Their gradient, of the classifier after the step, is added after the normalisation."""
    settings = {"meta_tx": sgd(1.0, normalize=normalize)}
    bound, plain = _bound("mlc", pair_weight=0.3, **settings), _bound("mlc", **settings)
    state = _state(bound)
    given = np.array([0, 1, -1, 2, 2, -1, 0, 1])  # Two rows were never given a label.
    taught, metrics = bound.train_step(state, _window(_with_pairs(batch, given)))
    alone, _ = plain.train_step(state, _window(batch))
    np.testing.assert_allclose(_weights(taught), _weights(alone), rtol=1e-12)
    inputs = np.concatenate([batch.clean_inner.inputs, batch.clean_outer.inputs])
    true = np.concatenate([batch.clean_inner.labels, batch.clean_outer.labels])
    known = given >= 0

    def loss(meta_params):
        lcn = LabelCorrectionNetwork(C, hidden_size=4, embedding_size=4)
        said = lcn.apply({"params": meta_params}, inputs[known], given[known])
        return -jnp.mean(jnp.log(said[np.arange(known.sum()), true[known]]))

    assert metrics["pair_loss"] == pytest.approx(float(loss(state.meta.params)), rel=1e-9)
    moved = jax.tree.map(lambda x, y: y - x, taught.meta.params, alone.meta.params)
    want = jax.tree.map(lambda g: 0.3 * g, jax.grad(loss)(state.meta.params))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-12), moved, want)


@pytest.mark.slow
def test_without_pairs_their_weight_changes_nothing(x64, batch):
    bound, plain = _bound("mlc", pair_weight=0.3), _bound("mlc")
    state = _state(bound)
    for window in (_window(batch), _window(_with_pairs(batch, [-1] * 8))):
        got, _ = bound.train_step(state, window)
        want, _ = plain.train_step(state, _window(batch))
        jax.tree.map(np.testing.assert_array_equal, got.meta.params, want.meta.params)


@pytest.mark.parametrize("form", ["posterior", "both"])
def test_pairs_are_counted_before_the_first_step(form):
    lcn = LabelCorrectionNetwork(C, hidden_size=4, embedding_size=4, form=form)
    bound = _bound("robust_mlc", lcn=lcn)
    state, before = _init(bound), bound.phases[0].before
    assert before.examples == "clean"
    labels, given = jnp.array([0, 0, 1, 2]), jnp.array([0, 1, -1, 2])
    counted = before.update(state, Seen(_example(), labels=labels, given=given))
    want = lcn.start_from_pairs(state.meta.params, labels, given)
    jax.tree.map(np.testing.assert_array_equal, counted.meta.params, want)
    assert np.any(want["transition"] != state.meta.params["transition"])
    assert before.update(state, Seen(_example(), labels=labels)) is state
    assert _bound("robust_mlc").phases[0].before is None


def test_robust_mlc_is_a_preset_of_mlc(batch):
    robust, mlc = _method("robust_mlc"), _method("mlc")
    assert isinstance(robust, type(mlc))
    names = {field.name for field in dataclasses.fields(robust)}
    differing = {x for x in names if getattr(robust, x) != getattr(mlc, x) and x not in _NEW}
    assert differing == {"inner_loss", "pair_weight"}
    assert robust.inner_loss == core.InnerLoss(
        mixup=1.0, prior_weight=1.2, entropy_weight=0.8, power=4.0, hand_over=True
    )


@pytest.mark.parametrize(
    ("method", "paired", "form"),
    [
        ("mlc", False, "network"),
        ("mlc", True, "network"),
        ("robust_mlc", False, "network"),
        ("robust_mlc", True, "posterior"),
    ],
)
def test_the_form_of_an_lcn_goes_by_method_and_pairs(tiny_config, method, paired, form):
    config = tiny_config(method=method)
    assert build.create_method(config, C, paired=paired).lcn.form == form
    chosen = tiny_config(method=method, **{"lcn.form": "both"})
    assert build.create_method(chosen, C, paired=paired).lcn.form == "both"


_NEW = ("meta_tx", "tx")  # Specs of equal values.


def test_a_config_changes_single_fields_of_a_preset(tiny_config):
    method = build.create_method(tiny_config(method="robust_mlc"), C)
    assert method.inner_loss == methods.robust_mlc.inner_loss and method.pair_weight == 0.1
    fields = {"inner_loss.power": 2.0, "inner_loss.hand_over": False, "lcn.pair_weight": 0.0}
    method = build.create_method(tiny_config(method="robust_mlc", **fields), C)
    assert method.inner_loss == dataclasses.replace(
        methods.robust_mlc.inner_loss, power=2.0, hand_over=False
    )
    assert method.pair_weight == 0
    assert build.create_method(tiny_config(method="mlc"), C).inner_loss == core.InnerLoss()


@pytest.mark.parametrize("name", ["robust_mlc", "meta_weight_net"])
def test_an_inner_loss_that_goes_by_the_clean_half_needs_one(name):
    rule = core.InnerLoss(mixup=1.0)
    with pytest.raises(InputError, match=f"mix_clean: got False, expected True with {name}"):
        _bound(name, mix_clean=False, inner_loss=rule)
    _bound(name, mix_clean=False, inner_loss=dataclasses.replace(rule, power=0))


def test_self_training_learns_its_own_prediction(x64, batch):
    """At MixUp 0 and no regularisers nothing but the clean labels moves the classifier."""
    bound = _bound("self_training", inner_loss=core.InnerLoss())
    state = _state(bound)
    after, _ = bound.train_step(state, _window(batch))
    clean = _clean(batch)
    size, weights = B + 2 * HALF, _weights(state)
    errors = _softmax(clean.inputs @ weights) - np.eye(C)[clean.labels]
    want = weights - RATE * clean.inputs.T @ errors / size
    np.testing.assert_allclose(_weights(after), want, rtol=1e-10)


# --- Joint.


def test_regularizers_by_hand():
    logits = np.random.default_rng(0).normal(size=(4, C)).astype(np.float32)
    probs = _softmax(logits.astype(float))
    prior, entropy = core.regularizers(logits, None, None)
    uniform = np.full(C, 1 / C)
    assert prior == pytest.approx((uniform * np.log(uniform / probs.mean(axis=0))).sum(), rel=1e-4)
    assert entropy == pytest.approx(-(probs * np.log(probs)).sum(axis=1).mean(), rel=1e-5)


def test_joint_step_descends_all_three_losses(x64, batch):
    bound = _bound("joint", prior_weight=0.7, entropy_weight=0.3)
    labels = np.random.default_rng(5).dirichlet(np.ones(C), B)
    state = _state(bound)
    state = state.replace(extra=state.extra | {"labels": jnp.asarray(labels)})
    rows = np.array([4, 2, 0, 1, 5, 3], np.int32)
    batch = batch._replace(noisy=batch.noisy._replace(rows=rows))

    def loss(weights):
        probs = _softmax(batch.noisy.inputs @ weights)
        prior = -np.log(probs.mean(axis=0)).mean()
        entropy = -(probs * np.log(probs)).sum(axis=1).mean()
        return _mean_loss(weights, batch, labels[rows]) + 0.7 * prior + 0.3 * entropy

    after, _ = bound.phases[0].train_step(state, _window(batch))
    gradient = _numeric(loss, _weights(state))
    np.testing.assert_allclose(_weights(after), _weights(state) - RATE * gradient, atol=1e-8)


def test_labels_become_the_mean_of_the_last_predictions():
    """Updates from the third of six epochs on, over two epochs."""
    bound = _bound("joint", num_epochs=6, update_from=1 / 3, num_averaged=2)
    phase = bound.phases[0]
    given = np.array([0, 1, 2, 2, 1, 0])
    said = np.random.default_rng(6).dirichlet(np.ones(C), (6, B)).astype(np.float32)
    state = phase.before.update(_init(bound), _seen(said[0], given))
    np.testing.assert_array_equal(state.extra["labels"], np.eye(C)[given])
    for epoch in range(6):
        state = state.replace(step=jnp.int32(epoch + 1))
        state = phase.after_epoch.update(state, _seen(said[epoch], given))
        expected = np.eye(C)[given] if epoch < 2 else said[epoch - 1 : epoch + 1].mean(axis=0)
        np.testing.assert_allclose(state.extra["labels"], expected, rtol=1e-6)


def test_labels_are_distributions_where_windows_are_longer_than_epochs():
    bound = _bound("joint", update_from=0.0, num_averaged=4)
    said = np.random.default_rng(6).dirichlet(np.ones(C), (3, B)).astype(np.float32)
    state = _init(bound)
    for i in range(3):
        state = state.replace(step=jnp.int32(3 * i + 3))
        state = bound.phases[0].after_epoch.update(state, _seen(said[i]))
        np.testing.assert_allclose(state.extra["labels"].sum(axis=1), 1, rtol=1e-5)


def test_first_labels_are_averaged_over_as_many_epochs_as_there_are():
    bound = _bound("joint", update_from=0.0)
    said = np.random.default_rng(6).dirichlet(np.ones(C), (2, B)).astype(np.float32)
    state = _init(bound)
    for epoch in range(2):
        state = state.replace(step=jnp.int32(epoch + 1))
        state = bound.phases[0].after_epoch.update(state, _seen(said[epoch]))
        np.testing.assert_allclose(state.extra["labels"], said[: epoch + 1].mean(axis=0), rtol=1e-6)


# --- MLNT.


def test_neighbours_are_the_nearest_others():
    features = np.array([[0.0], [1.0], [3.0], [3.5], [9.0]], np.float32)
    nearest = np.asarray(mlnt.nearest(features, 2))
    assert [set(row) for row in nearest.tolist()] == [{1, 2}, {0, 2}, {3, 1}, {2, 1}, {3, 2}]
    assert mlnt.nearest(features, 10).shape == (5, 4)
    assert mlnt.nearest(features[:1], 10).shape == (1, 0)


def test_transferred_labels_are_a_neighbours():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, 40).astype(np.int32)
    neighbours = np.asarray(mlnt.nearest(rng.normal(size=(40, 2)).astype(np.float32), 3))
    changed = []
    for seed in range(20):
        wrong = np.asarray(mlnt.transfer_labels(jax.random.key(seed), labels, neighbours, 0.5))
        for i in np.flatnonzero(wrong != labels):
            assert wrong[i] in labels[neighbours[i]]
        changed.append((wrong != labels).sum())
    # Half are chosen; a neighbour's label is another one nine times of ten.
    assert 14 < np.mean(changed) <= 20 and max(changed) <= 20
    alone = mlnt.transfer_labels(jax.random.key(0), labels[:1], np.zeros((1, 0), np.int32), 0.5)
    np.testing.assert_array_equal(alone, labels[:1])


def test_mlnt_step_descends_both_losses(x64, batch, monkeypatch):
    """The way back goes through the look-ahead. The synthetic labels are given here."""
    wrong = np.array([2, 1, 0, 0, 1, 1], np.int32)
    monkeypatch.setattr(mlnt, "transfer_labels", lambda *_: jnp.asarray(wrong))
    bound = _bound(
        "mlnt", num_synthetic=1, lookahead_rate=0.3, consistency_weight=0.8, ramp_share=0.0
    )
    state = _state(bound).replace(step=jnp.int32(5))
    teacher = np.random.default_rng(7).normal(size=(F, C))
    state = state.replace(extra={"Dense_0": {"kernel": jnp.asarray(teacher)}})
    taught = _softmax(batch.noisy.inputs @ teacher)
    noisy = batch.noisy

    def loss(weights):
        step = _gradient(weights, noisy._replace(labels=wrong)).mean(axis=0)
        student = _softmax(noisy.inputs @ (weights - 0.3 * step))
        consistency = (taught * np.log(taught / student)).sum(axis=1).mean()
        return _mean_loss(weights, batch) + 0.8 * consistency

    after, metrics = bound.train_step(state, _window(batch))
    expected = _weights(state) - RATE * _numeric(loss, _weights(state))
    np.testing.assert_allclose(_weights(after), expected, atol=1e-8)
    moved = np.asarray(after.extra["Dense_0"]["kernel"])
    np.testing.assert_allclose(moved, 0.999 * teacher + 0.001 * expected, atol=1e-8)
    assert metrics["consistency"] > 0


# --- Distillation.


def test_pseudo_labels_by_hand(x64, batch):
    probs = np.random.default_rng(8).dirichlet(np.ones(C), B)
    given = np.array([0, 1, 2, 0, 1, 2])
    bound = _bound("distillation", label_weight=0.25)
    expected = 0.25 * np.eye(C)[given] + 0.75 * probs
    np.testing.assert_allclose(distillation.pseudo_labels(probs, given, 0.25), expected)

    state = bound.phases[1].before.update(_state(bound), _seen(probs, given))
    state = jax.tree.map(lambda x: x.astype(float) if x.dtype == jnp.float32 else x, state)
    rows = np.array([5, 0, 3, 1, 2, 4], np.int32)
    batch = batch._replace(noisy=batch.noisy._replace(rows=rows))
    after, _ = bound.train_step(state, _window(batch))
    gradient = _numeric(lambda w: _mean_loss(w, batch, expected[rows]), _weights(state))
    np.testing.assert_allclose(_weights(after), _weights(state) - RATE * gradient, atol=1e-8)


# --- What methods are built from.


def test_steps_of_a_window_are_counted(batch):
    """A step sees its own number, as MLNT's ramp needs."""
    binding, seen = _binding(), []

    def inner_step(state, batch, rng):
        return state.replace(extra=state.extra.at[state.step].set(state.step)), {}

    train_step = blocks.in_steps(binding, inner_step)
    state = blocks.create_init(binding, extra=jnp.full(8, -1))(jax.random.key(0), _example())
    window = jax.tree.map(lambda x: np.repeat(x[None], 3, axis=0), batch)
    for _ in range(2):
        state, _ = train_step(state, window)
        seen.append(int(state.step))
    assert seen == [3, 6]
    np.testing.assert_array_equal(state.extra, [0, 1, 2, 3, 4, 5, -1, -1])


def test_supervised_step_is_the_inner_step(batch):
    """Several steps in a window are as many windows of one."""
    step = blocks.supervised_step(_binding(), blocks.noisy_and_clean)
    other = jax.tree.map(lambda x: x[::-1], batch)
    start = _init(_bound("cross_entropy"))
    together, _ = step(start, jax.tree.map(lambda *xs: np.stack(xs), batch, other))
    apart = start
    for part in (batch, other):
        apart, _ = step(apart, _window(part))
    np.testing.assert_allclose(_weights(together), _weights(apart), rtol=1e-6)
    assert core.step_rngs(start.rng, start.step, 2, None).shape == (2,)


# --- Sizes and schedules.


def test_a_phase_has_whole_windows():
    sizes = {"stride": 3}
    binding = _binding(steps_per_epoch=5, num_epochs=4, **sizes)
    assert binding.num_steps == 21
    assert _binding(steps_per_epoch=5, num_epochs=2.4, **sizes).num_steps == 12
    assert binding.phase_of(0) == binding
    assert binding.phase_of(6).num_steps == 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("schedule", "rates"),
    [
        ("step", [1, 1, 0.1, 0.1, 0.1, 0.1]),
        ("linear", [1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6]),
    ],
)
def test_schedule_of_the_meta_optimizer_counts_its_updates(x64, batch, schedule, rates):
    """Three steps are a window and six an epoch: the LCN is updated twice an epoch."""
    method = _method(
        "mlc", num_inner_steps=3,
        meta_tx=sgd(1.0, schedule=schedule, milestones=(1,), decay_factor=0.1),
    )  # fmt: skip
    bound = method.bind(**SIZES | {"steps_per_epoch": 6, "num_epochs": 3})
    window = jax.tree.map(lambda x: np.repeat(x[None], 3, axis=0), batch)
    step = jax.jit(bound.train_step)
    slope = jax.jit(lambda state, window: bound.window(exact, state, window).meta_grads)
    state, seen = _state(bound), []
    for _ in rates:
        grads = slope(state, window)
        after, _ = step(state, window)
        moved = jax.tree.map(jnp.subtract, state.meta.params, after.meta.params)
        seen.append(optax.tree.vdot(moved, grads) / optax.tree.vdot(grads, grads))
        state = after
    assert bound.num_steps == int(state.step) == 18
    np.testing.assert_allclose(seen, rates, rtol=1e-6)


def test_schedule_of_the_meta_optimizer_counts_its_updates_of_overlapping_windows(
    standard_promotion,
):
    """Six steps are an epoch: six updates at s = 1, three at s = 2."""
    for s, per_epoch in ((1, 6), (2, 3)):
        method = _method("mlc", num_inner_steps=4, update_every=s)
        assert method.stride == s
        binding = _binding(stride=s, steps_per_epoch=6, num_epochs=3)
        schedule = sgd(1.0, schedule="step", milestones=(1,), decay_factor=0.1)
        tx, params = binding.meta_optimizer(schedule), jnp.ones(())
        state, moved = tx.init(params), []
        for _ in range(2 * per_epoch):
            updates, state = tx.update(params, state, params)
            moved.append(-float(updates))
        np.testing.assert_allclose(moved, [1.0] * per_epoch + [0.1] * per_epoch, rtol=1e-6)


def test_schedule_of_the_classifier_counts_inner_steps(x64, batch):
    """Whatever k is."""
    method = _method(
        "noisy_only", num_inner_steps=3,
        tx=sgd(RATE, schedule="step", milestones=(1,), decay_factor=0.1),
    )  # fmt: skip
    bound = method.bind(**SIZES | {"steps_per_epoch": 4})
    state, step = _state(bound), jax.jit(bound.train_step)
    for rate in [RATE] * 4 + [RATE / 10] * 2:
        after, _ = step(state, _window(batch))
        gradient = _gradient(_weights(state), batch.noisy).mean(axis=0)
        np.testing.assert_allclose(_weights(after), _weights(state) - rate * gradient, rtol=1e-9)
        state = after


@pytest.mark.parametrize("name", ["glc", "joint"])
def test_schedules_begin_anew_with_the_second_phase(name):
    """Each phase has a schedule of its own length, from the start of the phase on."""
    method = _method(name, first_phase_epochs=2, tx=sgd(RATE, schedule="linear", momentum=0.9))
    bound = method.bind(**SIZES | {"steps_per_epoch": 3})
    state = _init(bound)
    used = state.main.replace(opt_state=jax.tree.map(lambda x: x + 5, state.main.opt_state))
    seen = _seen(np.full((B, C), 1 / C, np.float32), np.array([0, 1, 2, 0, 1, 2]))
    begun = bound.phases[1].before.update(state.replace(main=used), seen)
    assert jax.tree.leaves(begun.main.opt_state)
    for leaf in jax.tree.leaves(begun.main.opt_state):
        np.testing.assert_array_equal(leaf, np.zeros_like(leaf))


def test_optimizers_may_be_optaxs_own(batch):
    ours = _bound("mlc")
    theirs = _bound("mlc", tx=optax.sgd(RATE), meta_tx=optax.sgd(1.0))
    (a, _), (b, _) = (jax.jit(x.train_step)(_init(x), _window(batch)) for x in (ours, theirs))
    for name in ("main", "meta"):
        jax.tree.map(
            np.testing.assert_array_equal, getattr(a, name).params, getattr(b, name).params
        )
    with pytest.raises(InputError, match=r"^optimizer: got 'sgd', expected one made by sgd, adam"):
        _bound("mlc", tx="sgd")


# --- From a config.

# Their models' settings.
PLAIN = {"mlc": "lcn", "robust_mlc": "lcn", "meta_weight_net": "weight_net"}
OTHERS = {"form": "both", "pair_weight": 0.75}
ON_BATCHES = [name for name in methods.METHODS if name != "cross_fit"]  # Which has a file.


def _changed(value):
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    return value / 2 if isinstance(value, float) else value + 1


@pytest.mark.parametrize("name", ON_BATCHES)
def test_a_config_reaches_its_method(name):
    config = default.get_config()
    config.method = name
    config.first_phase_epochs = 7
    config.meta_gradient.update(
        num_inner_steps=4, mix_clean=False, unroll=2, estimator="conjugate_gradient",
        backward="remat", truncation=3, solver_steps=6, damping=0.25, update_every=4,
    )  # fmt: skip
    of_main = {
        "name": "adamw", "learning_rate": 0.3, "momentum": 0.6, "nesterov": True,
        "weight_decay": 0.1, "clip_norm": 2.0, "schedule": "step", "milestones": (3, 4),
        "decay_factor": 0.7, "warmup_epochs": 1.5, "groups": (("bias", 0.5, None),),
    }  # fmt: skip
    of_meta = of_main | {
        "name": "amsgrad", "learning_rate": 0.2, "schedule": "linear", "clip_norm": 0.0,
        "normalize": True,
    }  # fmt: skip
    config.main_optimizer.update(of_main)
    config.meta_optimizer.update(of_meta)
    config.model.update(name="mlp", dtype="bfloat16", initial_params="start.safetensors")
    config.model.mlp.update(hidden_sizes=(9, 7), dropout_rate=0.25)
    section = config.get(name, config.get(PLAIN.get(name, ""), {}))
    for field, value in dict(section).items():
        section[field] = OTHERS.get(field) or _changed(value)
    mixed = "inner_loss" in {field.name for field in dataclasses.fields(methods.METHODS[name])}
    if mixed:
        config.inner_loss.update(mixup=0.25, prior="targets", power=1.0)

    method = build.create_method(config, C)
    assert type(method) is methods.METHODS[name] and method.name == name
    assert method.tx == OptimizerSpec(**of_main)
    assert (method.num_inner_steps, method.mix_clean, method.unroll) == (4, False, 2)
    assert method.initial_params == "start.safetensors"
    assert method.model == MLP(
        C, hidden_sizes=(9, 7), dropout_rate=0.25, dtype=jnp.dtype("bfloat16")
    )
    owner = method
    if name in PLAIN:
        owner = getattr(method, PLAIN[name])
        assert method.meta_tx == OptimizerSpec(**of_meta)
        assert method.update_every == 4
        assert method.estimator == core.EstimatorSpec("conjugate_gradient", "remat", 3, 6, 0.25)
    for field, value in dict(section).items():
        assert getattr(method if field == "pair_weight" else owner, field) == value, field
    if mixed:
        preset = methods.METHODS[name].inner_loss
        want = dataclasses.replace(preset, mixup=0.25, prior="targets", power=1.0)
        assert method.inner_loss == want
    if name in ("glc", "forward", "joint", "distillation"):
        assert method.first_phase_epochs == 7
    if PLAIN.get(name) == "lcn":
        assert method.lcn.num_classes == C


@pytest.mark.parametrize("name", ON_BATCHES)
def test_methods_have_the_defaults_of_the_config(name):
    config = default.get_config()
    section = config.get(name, config.get(PLAIN.get(name, ""), {}))
    owner = _method(name)
    if PLAIN.get(name) == "lcn":
        owner = LabelCorrectionNetwork(C)
        section = {field: x for field, x in dict(section).items() if x is not None}  # Presets.
    elif name in PLAIN:
        owner = getattr(owner, PLAIN[name])
    for field, value in dict(section).items():
        assert getattr(owner, field) == value, field
    method = methods.METHODS[name]
    for field in ("num_inner_steps", "mix_clean", "unroll"):
        assert getattr(method, field) == config.meta_gradient[field]


# --- Training.


@pytest.fixture(scope="module")
def blobs():
    """(noisy, clean, test) of three classes that lie apart; a third of noisy labels is wrong."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, C, 400)
    inputs = (2 * np.eye(F)[truth] + rng.normal(0, 0.5, (400, F))).astype(np.float32)
    given = np.where(rng.random(400) < 0.5, rng.integers(0, C, 400), truth)
    parts = (slice(240), given), (slice(240, 288), truth), (slice(288, 400), truth)
    return [mlc_jax.Examples(inputs[rows], labels[rows]) for rows, labels in parts]


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_method_trains(name, blobs, standard_promotion):
    """In memory; what runs leave behind, other tests see."""
    settings = {"model": MLP(C, hidden_sizes=(8,)), "tx": sgd(0.2, momentum=0.9)}
    settings |= {"mlnt": {"num_synthetic": 2}, "joint": {"num_averaged": 2},
                 "cross_fit": {"num_folds": 2, "num_rounds": 2}}.get(name, {})  # fmt: skip
    noisy, clean, test = blobs
    result = mlc_jax.fit(
        _method(name, **settings), noisy, clean, test=test, num_epochs=6, batch_size=48,
        clean_batch_size=48, progress=False,
    )  # fmt: skip
    assert result.figures["last_test_accuracy"] > 0.8  # One in three is right by chance.
    np.testing.assert_allclose(result.soft_labels.sum(axis=1), 1, rtol=1e-4)
