"""Meta-gradients against finite differences, closed forms and each other; float64 throughout."""

import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from mlc_jax import core, methods, models
from mlc_jax.core import (
    BACKWARDS,
    Batch,
    Labelled,
    MainState,
    Problem,
    estimators,
    optimizers,
    window,
)  # fmt: skip
from mlc_jax.core.estimators import ESTIMATORS, Options
from mlc_jax.models import LabelCorrectionNetwork

NUM_CLASSES, NUM_INPUTS, NUM_FEATURES = 3, 5, 4
NUM_NOISY, NUM_INNER, NUM_OUTER = 6, 4, 5
START = 2  # Updates that the optimizer has made before the window.
RATE, MILESTONES, DECAY_FACTOR = 0.5, (START + 1, START + 3), 0.3
NUM_STEPS = 12  # Of the cosine schedule.


def _slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


class Optimizer(NamedTuple):
    name: str = "sgd"
    schedule: str = "step"
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 0.02
    clip_norm: float = 0.0

    def create(self):
        rate = optimizers.create_schedule(
            self.schedule, RATE, num_steps=NUM_STEPS, steps_per_epoch=1,
            milestones=MILESTONES, decay_factor=DECAY_FACTOR,
        )  # fmt: skip
        return optimizers.create_optimizer(
            self.name, rate, momentum=self.momentum, nesterov=self.nesterov,
            weight_decay=self.weight_decay, clip_norm=self.clip_norm,
        )  # fmt: skip


SGD = Optimizer()
NESTEROV, COSINE = SGD._replace(nesterov=True), SGD._replace(schedule="cosine")
ADAM, AMSGRAD = SGD._replace(name="adam"), SGD._replace(name="amsgrad")
CLIPPED = SGD._replace(clip_norm=0.1)  # Less than any gradient of the tests.
OPTIMIZERS = {
    "sgd": SGD, "nesterov": NESTEROV, "cosine": COSINE, "adam": ADAM, "amsgrad": AMSGRAD,
    "clipped": CLIPPED,
}  # fmt: skip


# --- A small problem: tanh features, a linear layer, the project's LCN.


def _main_params():
    rng = np.random.default_rng(0)
    shapes = {"w1": (NUM_INPUTS, NUM_FEATURES), "w2": (NUM_FEATURES, NUM_CLASSES), "b": NUM_CLASSES}
    return {name: rng.normal(size=shape) for name, shape in shapes.items()}


def _apply(params, batch_stats, inputs, rng):
    features = jnp.tanh(inputs @ params["w1"])
    return features @ params["w2"] + params["b"], features, batch_stats


def _main_state(tx):
    """With an optimizer that has been at work: nothing it remembers is zero."""
    rng = np.random.default_rng(3)

    def used(x):
        if jnp.issubdtype(x.dtype, jnp.integer):
            return np.full(x.shape, START, x.dtype)
        return np.abs(rng.normal(size=x.shape))

    params = _main_params()
    return MainState(params, {}, jax.tree.map(used, jax.eval_shape(tx.init, params)))


def _lcn(**options):
    return LabelCorrectionNetwork(NUM_CLASSES, hidden_size=4, embedding_size=4, **options)


@functools.lru_cache
def _meta_params(lcn, num_sources=1):
    features, labels = jnp.zeros((1, NUM_FEATURES)), jnp.zeros((1, num_sources), jnp.int32)
    shapes = jax.eval_shape(lcn.init, jax.random.key(0), features, labels)["params"]
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: rng.normal(size=x.shape), shapes)


def _batches(k, mix_clean=True, seed=2):
    rng = np.random.default_rng(seed)

    def examples(size):
        inputs = rng.normal(size=(k, size, NUM_INPUTS))
        return Labelled(inputs, rng.integers(0, NUM_CLASSES, (k, size)).astype(np.int32))

    noisy, inner, outer = examples(NUM_NOISY), examples(NUM_INNER), examples(NUM_OUTER)
    return Batch(noisy, inner if mix_clean else None, outer)


def _with_votes(batches, num_sources):
    """The noisy examples with labels of so many sources, of which some say nothing."""
    shape = (*batches.noisy.labels.shape, num_sources)
    votes = np.random.default_rng(5).integers(-1, NUM_CLASSES, shape).astype(np.int32)
    return batches._replace(noisy=batches.noisy._replace(labels=votes))


def _plain_unroll(*args, options):
    return core.unroll(*args, scan_unroll=options.scan_unroll)[0]


@functools.lru_cache
def _compiled(estimator, lcn, optimizer, options):
    def targets(meta_params, features, logits, labels):
        return lcn.apply({"params": meta_params}, features, labels)

    problem = Problem(_apply, targets, optimizer.create())
    return jax.jit(functools.partial(estimator, problem, options=options))


def _estimate(estimator, batches, optimizer=SGD, lcn=None, main=None, **options):
    lcn = lcn or _lcn()
    rngs = jax.random.split(jax.random.key(0), len(batches.noisy.labels))
    run = _compiled(estimator, lcn, optimizer, Options(**options))
    main = _main_state(optimizer.create()) if main is None else main
    num_sources = batches.noisy.labels[0, 0].size
    return run(main, _meta_params(lcn, num_sources), batches, rngs)


def _distance(a, b):
    a, b = (np.asarray(ravel_pytree(x)[0]) for x in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def _assert_close(a, b, rtol=1e-10):
    """Metrics that count are float32."""

    def check(x, y):
        np.testing.assert_allclose(x, y, rtol=1e-6 if x.dtype == np.float32 else rtol, atol=1e-12)

    jax.tree.map(check, a, b)


# --- The same problem written down in NumPy, with gradients by hand.


def _softmax(logits):
    e = np.exp(logits)
    return e / e.sum(axis=1, keepdims=True)


def _soft_labels(lcn, alpha, features, labels):
    dense = lambda x, name: x @ alpha[name]["kernel"] + alpha[name]["bias"]  # noqa: E731
    embedding = alpha["label_embedding"]["embedding"]
    votes = labels.reshape(len(labels), -1)
    summed = sum(
        np.where((said >= 0)[:, None], embedding[source * NUM_CLASSES + said], 0)
        for source, said in enumerate(votes.T)
    )
    x = np.concatenate([features, summed], axis=1)
    x = np.tanh(dense(np.tanh(dense(x, "hidden1")), "hidden2"))
    p = _softmax(x @ embedding.T if lcn.tie_embeddings else dense(x, "output"))
    if lcn.skip_link:
        s = 1 / (1 + np.exp(-dense(x, "skip")))
        p = (1 - s) * p + s * np.eye(NUM_CLASSES)[labels]
    return p


def _inner_gradient(lcn, alpha, params, batch):
    """Of (B L_noisy + B_c L_clean) / (B + B_c) in the classifier's params."""
    inputs = batch.noisy.inputs
    features = np.tanh(inputs @ params["w1"])
    targets = _soft_labels(lcn, alpha, features, batch.noisy.labels)
    if batch.clean_inner is not None:
        inputs = np.concatenate([inputs, batch.clean_inner.inputs])
        targets = np.concatenate([targets, np.eye(NUM_CLASSES)[batch.clean_inner.labels]])
        features = np.tanh(inputs @ params["w1"])
    d_logits = (_softmax(features @ params["w2"] + params["b"]) - targets) / len(inputs)
    d_features = d_logits @ params["w2"].T * (1 - features**2)
    return {"w1": inputs.T @ d_features, "w2": features.T @ d_logits, "b": d_logits.sum(axis=0)}


def _rate(schedule, step):
    if schedule == "cosine":
        return RATE * 0.5 * (1 + np.cos(np.pi * step / NUM_STEPS))
    return RATE * DECAY_FACTOR ** sum(step >= milestone for milestone in MILESTONES)


def _written_down(lcn, optimizer, batches, main, alpha):
    """The outer loss after the window, as a function of the LCN's params."""
    params = dict(main.params)
    m = dict(optax.tree.get(main.opt_state, "trace" if optimizer.name == "sgd" else "mu"))
    v = dict(optax.tree.get(main.opt_state, "nu", {}))
    start = int(optax.tree.get_all_with_path(main.opt_state, "count")[0][1])
    for t in range(len(batches.noisy.labels)):
        batch = jax.tree.map(lambda x, t=t: x[t], batches)
        rate = _rate(optimizer.schedule, start + t)
        grads = _inner_gradient(lcn, alpha, params, batch)
        norm = np.sqrt(sum(np.sum(g**2) for g in grads.values()))
        clip = min(1, optimizer.clip_norm / norm) if optimizer.clip_norm else 1
        for name, g in grads.items():
            g = clip * g + optimizer.weight_decay * params[name]
            if optimizer.name == "sgd":
                m[name] = optimizer.momentum * m[name] + g
                step = g + optimizer.momentum * m[name] if optimizer.nesterov else m[name]
            else:
                count = start + t + 1
                m[name] = 0.9 * m[name] + 0.1 * g
                v[name] = 0.999 * v[name] + 0.001 * g**2
                mean_square = v[name] / (1 - 0.999**count)
                step = m[name] / (1 - 0.9**count) / (np.sqrt(mean_square + 1e-16) + 1e-8)
            params[name] = params[name] - rate * step
    inputs, labels = (x[-1] for x in batches.clean_outer[:2])
    probabilities = _softmax(np.tanh(inputs @ params["w1"]) @ params["w2"] + params["b"])
    return -np.mean(np.log(probabilities[np.arange(len(labels)), labels]))


def _finite_differences(f, alpha, step=1e-5):
    """Central differences of `f` in every entry of `alpha`, in place of each."""
    slopes = jax.tree.map(np.zeros_like, alpha)
    for leaf, slope in zip(jax.tree.leaves(alpha), jax.tree.leaves(slopes), strict=True):
        for index in np.ndindex(leaf.shape):
            value = leaf[index]
            ends = []
            for leaf[index] in (value + step, value - step):
                ends.append(f(alpha))
            leaf[index] = value
            slope[index] = (ends[0] - ends[1]) / (2 * step)
    return slopes


def _exact_and_differences(
    k, optimizer=SGD, mix_clean=True, main=None, num_sources=0, **lcn_options
):
    lcn, batches = _lcn(**lcn_options), _batches(k, mix_clean)
    batches = _with_votes(batches, num_sources) if num_sources else batches
    main = _main_state(optimizer.create()) if main is None else main
    window = _estimate(estimators.exact, batches, optimizer, lcn, main)
    f = functools.partial(_written_down, lcn, optimizer, batches, main)
    alpha = jax.tree.map(np.copy, _meta_params(lcn, num_sources or 1))
    np.testing.assert_allclose(window.metrics["outer_loss"], f(alpha), rtol=1e-10)
    differences = _finite_differences(f, alpha)
    assert np.linalg.norm(ravel_pytree(differences)[0]) > 1e-3
    return window.meta_grads, differences


# --- Exact.


@pytest.mark.parametrize(
    ("k", "optimizer"),
    [
        (1, SGD),
        _slow(2, SGD),  # The rate falls between the two steps,
        (5, SGD),  # and twice here.
        _slow(3, NESTEROV),
        _slow(3, COSINE),
        (3, ADAM),
        (3, CLIPPED),
    ],
)
def test_exact_is_the_slope_of_the_outer_loss(k, optimizer, x64):
    assert _distance(*_exact_and_differences(k, optimizer)) < 1e-7


def test_exact_is_the_slope_of_the_outer_loss_with_votes(x64):
    assert _distance(*_exact_and_differences(3, num_sources=3)) < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [{"mix_clean": False}, *map(_slow, ({"skip_link": True}, {"tie_embeddings": True}))]
)
def test_exact_is_the_slope_of_the_outer_loss_with_options(options, x64):
    assert _distance(*_exact_and_differences(2, **options)) < 1e-7


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backward", "name"),
    [("forward_over_reverse", name) for name in OPTIMIZERS]
    + [(backward, "sgd") for backward in ("remat", "two_level")],
)
def test_every_way_back_gives_the_same_gradient(backward, name, x64):
    # Seven is two segments of two_level and one step left over. By store, jax.grad goes through
    # the steps as they are written.
    batches, optimizer = _batches(7), OPTIMIZERS[name]
    got, want = (
        _estimate(estimators.exact, batches, optimizer, backward=way) for way in (backward, "store")
    )
    assert _distance(got.meta_grads, want.meta_grads) < 1e-10
    _assert_close(got.main, want.main)
    _assert_close(got.metrics, want.metrics)


@functools.lru_cache
def _reference(optimizer):
    def targets(meta_params, features, logits, labels):
        return _lcn().apply({"params": meta_params}, features, labels)

    problem = Problem(_apply, targets, optimizer.create())
    return jax.jit(functools.partial(estimators.exact_reference, problem))


@pytest.mark.parametrize("name", ["sgd", _slow("adam")])
@pytest.mark.parametrize(
    "backward", [x if x == "forward_over_reverse" else _slow(x) for x in BACKWARDS]
)
@pytest.mark.parametrize("k", [_slow(1), 3])
def test_exact_is_the_reference(k, backward, name, x64):
    """One `jax.grad` over one `lax.scan` of the steps: nothing of `exact`'s own is in it."""
    batches, optimizer = _batches(k), OPTIMIZERS[name]
    got = _estimate(estimators.exact, batches, optimizer, backward=backward)
    rngs = jax.random.split(jax.random.key(0), k)
    main = _main_state(optimizer.create())
    meta_grads, end = _reference(optimizer)(main, _meta_params(_lcn()), batches, rngs)
    assert np.linalg.norm(ravel_pytree(meta_grads)[0]) > 1e-3
    assert _distance(got.meta_grads, meta_grads) < 1e-12
    _assert_close(got.main, end, rtol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("backward", ["forward_over_reverse", "two_level"])
@pytest.mark.parametrize("k", [1, 2, 4])
def test_every_way_back_works_at_every_length(backward, k, x64):
    batches = _batches(k, mix_clean=False)
    got, want = (
        _estimate(estimators.exact, batches, scan_unroll=unroll, backward=way).meta_grads
        for way, unroll in ((backward, 1), ("store", k))
    )
    assert _distance(got, want) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "backward"),
    [_slow(ADAM, "store"), (ADAM, "forward_over_reverse"), _slow(AMSGRAD, "forward_over_reverse")],
)
def test_no_gradient_is_nan_where_the_second_moment_is_zero(optimizer, backward, x64):
    # An input that is always zero: its weights never get a gradient, and Adam's memory of them
    # stays empty. Everything else is at its start, too.
    batches = _batches(3)
    for examples in batches:
        examples.inputs[..., 0] = 0
    params = _main_params()
    main = MainState(params, {}, optimizer.create().init(params))
    optimizer = optimizer._replace(weight_decay=0.0)
    window = _estimate(estimators.exact, batches, optimizer, main=main, backward=backward)
    np.testing.assert_array_equal(window.main.params["w1"][0], params["w1"][0])
    for leaf in jax.tree.leaves(window.meta_grads):
        assert np.all(np.isfinite(leaf))
    if optimizer.name == "adam":
        f = functools.partial(_written_down, _lcn(), optimizer, batches, main)
        differences = _finite_differences(f, jax.tree.map(np.copy, _meta_params(_lcn())))
        assert _distance(window.meta_grads, differences) < 1e-5


# --- Parts of a window.


def _after(batches, num_steps, optimizer=SGD):
    """The classifier `num_steps` into the window, and what is left of the window."""
    rngs = jax.random.split(jax.random.key(0), len(batches.noisy.labels))
    problem = Problem(
        _apply, lambda a, h, z, y: _lcn().apply({"params": a}, h, y), optimizer.create()
    )
    main, _ = jax.jit(functools.partial(core.unroll, problem, num_steps=num_steps))(
        _main_state(optimizer.create()), _meta_params(_lcn()), batches, rngs
    )
    return main, jax.tree.map(lambda x: x[num_steps:], batches)


@pytest.mark.slow
@pytest.mark.parametrize("backward", [_slow("store"), "forward_over_reverse"])
@pytest.mark.parametrize("truncation", [_slow(1), 2, _slow(4), _slow(9)])
def test_truncated_is_exact_from_where_it_begins(truncation, backward, x64):
    batches = _batches(4)
    got = _estimate(estimators.truncated, batches, truncation=truncation, backward=backward)
    main, rest = _after(batches, max(0, 4 - truncation))
    want = _estimate(estimators.exact, rest, main=main)
    assert _distance(got.meta_grads, want.meta_grads) < 1e-10
    _assert_close(got.main, want.main)


@pytest.mark.parametrize("name", ["sgd", *map(_slow, ("nesterov", "adam", "clipped"))])
def test_one_step_is_exact_for_the_last_step(name, x64):
    batches, optimizer = _batches(3), OPTIMIZERS[name]
    got = _estimate(estimators.one_step, batches, optimizer)
    main, last = _after(batches, 2, optimizer)
    want = _estimate(estimators.exact, last, optimizer, main=main)
    assert _distance(got.meta_grads, want.meta_grads) < 1e-10
    _assert_close(got.main, want.main)
    whole = _estimate(estimators.exact, batches, optimizer)
    _assert_close(got.metrics, whole.metrics)
    assert _distance(got.meta_grads, whole.meta_grads) > 0.01


@pytest.mark.slow
def test_finite_difference_is_one_step_up_to_its_step_squared(monkeypatch, x64):
    batches = _batches(3)
    want = _estimate(estimators.one_step, batches).meta_grads
    errors = []
    for step in (0.1, 0.01):
        monkeypatch.setattr(estimators, "DIFFERENCE_STEP", step)
        _compiled.cache_clear()
        got = _estimate(estimators.finite_difference, batches).meta_grads
        errors.append(_distance(got, want))
    assert errors[1] < 1e-4
    np.testing.assert_allclose(errors[0] / errors[1], 100, rtol=0.1)


@pytest.mark.slow
def test_implicit_gradients_are_those_of_the_written_out_matrices(x64):
    k, damping = 2, 3.0
    optimizer, lcn = SGD._replace(weight_decay=0.0), _lcn()
    batches, alpha = _batches(k), _meta_params(lcn)
    main, _ = _after(batches, k, optimizer)
    batch = jax.tree.map(lambda x: x[-1], batches)
    flat, unflatten = ravel_pytree(main.params)
    flat_alpha, unflatten_alpha = ravel_pytree(alpha)

    def inner_loss(w, targets):
        params, examples = unflatten(w), batch
        noisy, _, _ = _apply(params, {}, examples.noisy.inputs, None)
        clean, _, _ = _apply(params, {}, examples.clean_inner.inputs, None)
        right = jax.nn.one_hot(examples.clean_inner.labels, NUM_CLASSES)
        total = jnp.sum(targets * jax.nn.log_softmax(noisy))
        total += jnp.sum(right * jax.nn.log_softmax(clean))
        return -total / (NUM_NOISY + NUM_INNER)

    def outer_loss(w):
        logits, _, _ = _apply(unflatten(w), {}, batch.clean_outer.inputs, None)
        labels = batch.clean_outer.labels
        return -jnp.mean(jax.nn.log_softmax(logits)[np.arange(NUM_OUTER), labels])

    _, features, _ = _apply(main.params, {}, batch.noisy.inputs, None)
    soft = lambda a: lcn.apply({"params": unflatten_alpha(a)}, features, batch.noisy.labels)  # noqa: E731
    h_ww = jax.hessian(inner_loss)(flat, soft(flat_alpha))
    h_wa = jax.jacobian(lambda a: jax.grad(inner_loss)(flat, soft(a)))(flat_alpha)
    g = jax.grad(outer_loss)(flat)

    solved = np.linalg.solve(h_ww + damping * np.eye(len(flat)), g)
    got = _estimate(
        estimators.conjugate_gradient, batches, optimizer,
        solver_steps=len(flat), damping=damping,
    )  # fmt: skip
    assert _distance(got.meta_grads, -solved @ h_wa) < 1e-6

    rate = _rate("step", START + k)
    shrink = np.eye(len(flat)) - rate * h_ww
    series = sum(np.linalg.matrix_power(shrink, i) @ g * rate for i in range(5))
    got = _estimate(estimators.neumann, batches, optimizer, solver_steps=5)
    assert _distance(got.meta_grads, -series @ h_wa) < 1e-10


def test_agreement():
    ours, exact = {"a": jnp.array([3.0, 0.0]), "b": jnp.array(4.0)}, None
    exact = {"a": jnp.array([0.0, 0.0]), "b": jnp.array(2.0)}
    got = estimators.agreement(ours, exact)
    np.testing.assert_allclose(got["cosine"], 0.8, rtol=1e-6)
    np.testing.assert_allclose(got["norm_ratio"], 2.5, rtol=1e-6)


# --- Exact and approximate.


@pytest.mark.parametrize(
    ("optimizer", "mix_clean"),
    [(SGD, True), _slow(SGD, False), _slow(NESTEROV, True), _slow(ADAM, True)],
)
def test_exact_equals_approximate_at_one_step(optimizer, mix_clean, x64):
    exact, approximate = (
        _estimate(estimator, _batches(1, mix_clean), optimizer)
        for estimator in (estimators.exact, estimators.approximate)
    )
    assert _distance(approximate.meta_grads, exact.meta_grads) < 1e-10
    _assert_close(approximate.metrics, exact.metrics)


@pytest.mark.slow
def test_exact_and_approximate_differ_in_the_gradient_alone(x64):
    exact, approximate, main = (
        _estimate(estimator, _batches(3))
        for estimator in (estimators.exact, estimators.approximate, _plain_unroll)
    )
    assert _distance(approximate.meta_grads, exact.meta_grads) > 0.01
    _assert_close(exact.main, main)
    _assert_close(approximate.main, main)
    assert "gamma" in approximate.metrics
    _assert_close({name: approximate.metrics[name] for name in exact.metrics}, exact.metrics)


@pytest.mark.slow
@pytest.mark.parametrize("name", ESTIMATORS)
def test_unrolling_the_loop_does_not_change_the_window(name, x64):
    rolled, unrolled = (_estimate(ESTIMATORS[name], _batches(3), scan_unroll=n) for n in (1, 3))
    _assert_close(unrolled, rolled, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [x if x in ("exact", "approximate") else _slow(x) for x in ESTIMATORS]
)
@pytest.mark.parametrize(
    "options", [_slow({}), {"skip_link": True, "sparsemax": True, "tie_embeddings": True}]
)
def test_every_parameter_gets_a_finite_gradient(name, options, x64):
    grads = _estimate(ESTIMATORS[name], _batches(2), lcn=_lcn(**options)).meta_grads
    for path, leaf in jax.tree.leaves_with_path(grads):
        assert np.all(np.isfinite(leaf)), path
        assert np.any(leaf != 0), path


# --- A scalar problem that can be solved on paper.
#
# With two classes and logits (q, log(1 - e^q)), q < 0, `log_softmax` gives back (q, ...). So with
# q = -(w - x)^2 / 2 the cross-entropy of label 0 is the parabola (w - x)^2 / 2, and targets (t, 0)
# scale it by t. Two noisy examples at X, weighted h a and h (1 - a), twice over for the mean, and a
# clean one at C: inner loss h [a (w - X0)^2 + (1 - a) (w - X1)^2] / 2, outer loss (w - C)^2 / 2, so
#   inner gradient h (w - m) with m = a X0 + (1 - a) X1, H_ww = h, H_wa = -h (X0 - X1).

X, C, W0, A, ETA = (3.0, -2.0), 1.5, 0.4, 0.3, 0.2
M, GAP = A * X[0] + (1 - A) * X[1], X[0] - X[1]


@functools.cache
def _scalar_program(estimator, momentum, options):
    """Of all curvatures: the LCN's params are the weight and, beside it, the curvature."""

    def apply(params, batch_stats, inputs, rng):
        q = -0.5 * (params - inputs) ** 2
        return jnp.stack([q, jnp.log(-jnp.expm1(q))], axis=-1), inputs[:, None], batch_stats

    tx = optimizers.create_optimizer("sgd", ETA, momentum=momentum)

    def targets(meta_params, features, logits, labels):
        weight, curvature = meta_params
        weights = 2 * curvature * jnp.where(labels == 0, weight, 1 - weight)
        return jnp.stack([weights, jnp.zeros_like(weights)], axis=-1)

    return tx, jax.jit(functools.partial(estimator, Problem(apply, targets, tx), options=options))


def _scalar_window(estimator, k, curvature, momentum=0.0, **options):
    noisy = Labelled(np.tile(X, (k, 1)), np.tile(np.int32([0, 1]), (k, 1)))
    clean = Labelled(np.full((k, 1), C), np.zeros((k, 1), np.int32))
    tx, run = _scalar_program(estimator, momentum, Options(**options))
    rngs = jax.random.split(jax.random.key(0), k)
    w, meta_params = jnp.asarray(W0), (jnp.asarray(A), jnp.asarray(curvature))
    window = run(MainState(w, {}, tx.init(w)), meta_params, Batch(noisy, None, clean), rngs)
    return window._replace(meta_grads=window.meta_grads[0])


def _scalar_trajectory(k, curvature):
    """w_0 ... w_k: the distance to m shrinks by 1 - eta h a step."""
    return [M + (1 - ETA * curvature) ** t * (W0 - M) for t in range(k + 1)]


def test_the_outer_loss_has_a_key_of_its_own():
    """Dropout of the outer pass is not that of an inner one."""
    keys = []

    def apply(params, batch_stats, inputs, rng):
        keys.append(jax.random.key_data(rng).tolist())
        return jnp.zeros((1, 2)), inputs, batch_stats

    problem = Problem(apply, None, None)
    part = Labelled(np.zeros((1, 1)), np.zeros(1, np.int32))
    batch, key = Batch(part, part, part), jax.random.key(3)
    core.run_passes(core.passes(problem, batch, key), None, {})
    window.outer_loss_after(problem, None, MainState(None, {}, ()), batch, key)
    assert len(keys) == 3 and len({*map(tuple, keys)}) == 3


EXPLICIT = [name for name in ESTIMATORS if name not in ("neumann", "conjugate_gradient")]


@pytest.mark.parametrize("name", EXPLICIT)
@pytest.mark.parametrize("curvature", [0.5, 1.0])
def test_scalar_problem_at_one_step(name, curvature, x64):
    window = _scalar_window(ESTIMATORS[name], 1, curvature)
    w1 = W0 - ETA * curvature * (W0 - M)
    np.testing.assert_allclose(window.main.params, w1, rtol=1e-12)
    # (w1 - C) dw1/da, and w1 moves with m, at the rate eta h (X0 - X1).
    want = (w1 - C) * ETA * curvature * GAP
    np.testing.assert_allclose(window.meta_grads, want, rtol=1e-10)


@pytest.mark.parametrize(
    ("k", "curvature"),
    [(1, 0.5), *(pytest.param(k, h, marks=pytest.mark.slow)
                 for k, h in ((2, 0.5), (5, 0.5), (1, 1.0), (2, 1.0), (5, 1.0)))],
)  # fmt: skip
def test_scalar_problem_by_all_others(k, curvature, x64):
    *_, last = _scalar_trajectory(k, curvature)
    shrink = 1 - ETA * curvature

    def check(name, factor, **options):
        window = _scalar_window(ESTIMATORS[name], k, curvature, **options)
        np.testing.assert_allclose(window.main.params, last, rtol=1e-12)
        np.testing.assert_allclose(window.meta_grads, (last - C) * GAP * factor, rtol=1e-9)

    # w_k moves with m, as far as the steps that are looked at have brought it there; at a minimum
    # of the inner loss it has arrived.
    for backward in BACKWARDS:
        check("exact", 1 - shrink**k, backward=backward)
    check("truncated", 1 - shrink ** min(k, 3), truncation=3)
    check("one_step", 1 - shrink)
    check("finite_difference", 1 - shrink)
    check("neumann", 1 - shrink**4, solver_steps=4)
    check("neumann", 1.0, solver_steps=400)
    check("conjugate_gradient", 1.0, damping=0.0)
    check("conjugate_gradient", curvature / (curvature + 2), damping=2.0)


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("curvature", [0.5, 1.0])
def test_scalar_problem_exact(k, curvature, x64):
    window = _scalar_window(estimators.exact, k, curvature)
    *_, last = _scalar_trajectory(k, curvature)
    np.testing.assert_allclose(window.main.params, last, rtol=1e-12)
    want = (last - C) * (1 - (1 - ETA * curvature) ** k) * GAP
    np.testing.assert_allclose(window.meta_grads, want, rtol=1e-10)


def test_scalar_problem_exact_with_momentum_at_two_steps(x64):
    mu, h = 0.9, 0.5
    window = _scalar_window(estimators.exact, 2, h, momentum=mu)
    g1 = h * (W0 - M)
    w1 = W0 - ETA * g1
    w2 = w1 - ETA * (mu * g1 + h * (w1 - M))
    np.testing.assert_allclose(window.main.params, w2, rtol=1e-12)
    dg1 = -h * GAP
    dw1 = -ETA * dg1
    dw2 = dw1 - ETA * (mu * dg1 + h * (dw1 - GAP))
    np.testing.assert_allclose(window.meta_grads, (w2 - C) * dw2, rtol=1e-10)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("curvature", [0.5, 1.0])
def test_scalar_problem_approximate_at_two_steps(curvature, momentum, x64):
    window = _scalar_window(estimators.approximate, 2, curvature, momentum)
    g1 = curvature * (W0 - M)
    w1 = W0 - ETA * g1
    w2 = w1 - ETA * (momentum * g1 + curvature * (w1 - M))
    np.testing.assert_allclose(window.main.params, w2, rtol=1e-12)
    # Equation 6: g_w' = w2 - C, g_w = w1 - C, Lambda = eta, H_ww taken as 1.
    gamma = (w2 - C) * (1 - ETA) * (w1 - C) / (w1 - C) ** 2
    d1 = (w1 - C) * ETA * curvature * GAP
    d2 = gamma * d1 + (w2 - C) * ETA * curvature * GAP
    np.testing.assert_allclose(window.meta_grads, d2, rtol=1e-10)
    # The recursion is exact where H_ww is the identity, but for what momentum carries over.
    exact = _scalar_window(estimators.exact, 2, curvature, momentum).meta_grads
    agree = curvature == 1.0 and momentum == 0.0
    assert (abs(d2 / exact - 1) < 1e-10) == agree


def test_scalar_problem_approximate_at_three_steps(x64):
    window = _scalar_window(estimators.approximate, 3, 0.5)
    trajectory = _scalar_trajectory(3, 0.5)
    d, gammas = 0.0, []
    for w, ahead in itertools.pairwise(trajectory):
        gammas.append((ahead - C) * (1 - ETA) / (w - C))
        d = gammas[-1] * d + (ahead - C) * ETA * 0.5 * GAP
    np.testing.assert_allclose(window.meta_grads, d, rtol=1e-10)
    np.testing.assert_allclose(window.metrics["gamma"], np.mean(gammas), rtol=1e-10)


# --- What no gradient may pass through.


@pytest.mark.parametrize("sees", ["features", "logits"])
def test_targets_pass_no_gradient_to_the_classifier(sees, x64):
    lcn, params = _lcn(), _main_params()
    batch = jax.tree.map(lambda x: x[0], _batches(1))

    def targets(meta_params, features, logits, labels):
        if sees == "logits":
            return jax.nn.softmax(2 * logits)
        return lcn.apply({"params": meta_params}, features, labels)

    def gradient(targets):
        problem = Problem(_apply, targets, optax.identity())
        main = MainState(params, {}, problem.tx.init(params))
        step = functools.partial(core.inner_grads, problem)
        return jax.jit(step)(main, _meta_params(lcn), batch, jax.random.key(0))[0]

    logits, features, _ = _apply(params, {}, batch.noisy.inputs, None)
    constant = targets(_meta_params(lcn), features, logits, batch.noisy.labels)
    want = gradient(lambda *args: constant)
    assert _distance(gradient(targets), want) < 1e-12

    def leaky_loss(params):
        logits, features, _ = _apply(params, {}, batch.noisy.inputs, None)
        soft_labels = targets(_meta_params(lcn), features, logits, batch.noisy.labels)
        noisy = -jnp.sum(soft_labels * jax.nn.log_softmax(logits))
        logits, _, _ = _apply(params, {}, batch.clean_inner.inputs, None)
        clean = -jnp.sum(jax.nn.log_softmax(logits)[np.arange(NUM_INNER), batch.clean_inner.labels])
        return (noisy + clean) / (NUM_NOISY + NUM_INNER)

    assert _distance(jax.jit(jax.grad(leaky_loss))(params), want) > 0.01


def test_outer_half_does_not_move_the_classifier(x64):
    batches = _batches(2)
    outer = batches.clean_outer
    other = batches._replace(clean_outer=outer._replace(labels=(outer.labels + 1) % NUM_CLASSES))
    a, b = (_estimate(estimators.exact, data) for data in (batches, other))
    jax.tree.map(np.testing.assert_array_equal, a.main, b.main)
    assert _distance(a.meta_grads, b.meta_grads) > 0.01


# --- train_step of the method.

META_RATES = (1e-3, 10.0)


@pytest.fixture(scope="module")
def method_runs():
    """States before, after one and after two windows, for each of META_RATES."""
    in_double = lambda x: x.astype(jnp.float64) if x.dtype == jnp.float32 else x  # noqa: E731
    runs = []
    with jax.enable_x64(True), jax.numpy_dtype_promotion("standard"):
        for rate in META_RATES:
            method = methods.mlc(
                model=models.MLP(NUM_CLASSES, hidden_sizes=(NUM_FEATURES,)),
                tx=optimizers.sgd(0.1, momentum=0.9, weight_decay=5e-4),
                lcn=_lcn(),
                meta_tx=optimizers.sgd(rate),
                num_inner_steps=2,
            )
            bound = method.bind(
                num_noisy=1, num_classes=NUM_CLASSES, steps_per_epoch=1, num_epochs=4
            )
            example, key = jnp.zeros((1, NUM_INPUTS)), jax.random.key(0)
            step = jax.jit(bound.train_step)
            states = [jax.tree.map(in_double, jax.jit(bound.init)(key, example))]
            for window in range(2):
                states.append(step(states[-1], _batches(2, seed=window))[0])
            runs.append([jax.tree.map(np.asarray, s.replace(rng=None)) for s in states])
    return runs


def test_a_window_uses_the_labels_from_before_its_meta_update(method_runs):
    slow, fast = method_runs
    jax.tree.map(np.testing.assert_array_equal, slow[1].main, fast[1].main)
    assert _distance(slow[1].meta.params, fast[1].meta.params) > 1e-3
    # The next window's labels differ, and with them the classifier.
    assert _distance(slow[2].main.params, fast[2].main.params) > 1e-5
    assert [int(state.step) for state in slow] == [0, 2, 4]


def test_meta_update_is_proportional_to_its_rate(method_runs):
    slow, fast = (
        jax.tree.map(np.subtract, states[1].meta.params, states[0].meta.params)
        for states in method_runs
    )
    scaled = jax.tree.map(lambda x: x * META_RATES[1] / META_RATES[0], slow)
    assert _distance(scaled, fast) < 1e-6


def test_keys_of_a_window_do_not_depend_on_where_windows_begin():
    rng = jax.random.key(7)
    keys = lambda step, k: jax.random.key_data(core.step_rngs(rng, step, k, None))  # noqa: E731
    together = keys(jnp.asarray(0), 6)
    np.testing.assert_array_equal(together[2:5], keys(jnp.asarray(2), 3))
    assert len({tuple(map(int, key)) for key in together}) == 6
