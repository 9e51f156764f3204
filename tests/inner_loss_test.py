"""What is added to the inner loss, by hand; and that everything is differentiated through."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from mlc_jax import core
from mlc_jax.core import BACKWARDS, Batch, InnerLoss, Labelled, MainState, Problem
from mlc_jax.core.estimators import ESTIMATORS, Options, exact
from mlc_jax.core.inner_loss import Mixing, draw_mixing, mix
from mlc_jax.core.problem import mixing_of
from mlc_jax.core.second_order import inner_grads_vjp, meta_product
from mlc_jax.errors import InputError

C, D, F = 3, 4, 5
B, HALF = 6, 4
FULL = InnerLoss(mixup=1.0, prior_weight=0.7, entropy_weight=0.4, power=2, hand_over=True)
RULES = {
    "plain": InnerLoss(),
    "regularised": InnerLoss(prior_weight=0.7, entropy_weight=0.4, power=2),
    "at once": InnerLoss(prior_weight=0.7, entropy_weight=0.4, power=0),
    "mixed": InnerLoss(mixup=0.5, power=1),
    "handed over": InnerLoss(hand_over=True),
    "all": FULL,
}


def _slow(values):
    return pytest.param(*values, marks=pytest.mark.slow)


def _all_or_slow(cases):
    """With every term at once they are enough for every change; the others tell which it was."""
    cases = [tuple(case) for case in cases]
    return [pytest.param(*x) if x[0] in ("all", "plain") else _slow(x) for x in cases]


def _apply(params, batch_stats, inputs, rng):
    features = jnp.tanh(inputs @ params["w1"])
    return features @ params["w2"], features, batch_stats


def _targets(alpha, features, logits, labels):
    return jax.nn.softmax(features @ alpha["a"] + alpha["b"][labels])


def _problem(rule):
    tx = optax.chain(optax.add_decayed_weights(0.01), optax.sgd(0.3, momentum=0.9))
    return Problem(_apply, _targets, tx, rule=rule)


def _params():
    """Of a classifier that has learned something: f is near one half."""
    rng = np.random.default_rng(0)
    return {"w1": rng.normal(size=(D, F)), "w2": 0.3 * rng.normal(size=(F, C))}


def _alpha():
    rng = np.random.default_rng(1)
    return {"a": rng.normal(size=(F, C)), "b": rng.normal(size=(C, C))}


def _batches(k):
    rng = np.random.default_rng(2)

    def examples(size, labels=None):
        inputs = rng.normal(size=(k, size, D))
        if labels is None:
            labels = rng.integers(0, C, (k, size))
        return Labelled(inputs, labels.astype(np.int32))

    noisy, outer = examples(B), examples(5)
    inner = examples(HALF)
    # Labels that the classifier agrees with, so that f is not clipped.
    params = _params()
    logits = np.tanh(inner.inputs @ params["w1"]) @ params["w2"]
    return Batch(noisy, inner._replace(labels=logits.argmax(-1).astype(np.int32)), outer)


def _main(tx):
    return MainState(_params(), {}, tx.init(_params()))


def _rngs(k):
    return jax.random.split(jax.random.key(7), k)


# --- The same in NumPy.


def _softmax(z):
    e = np.exp(z - z.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def _classify(params, inputs):
    return np.tanh(inputs @ params["w1"]) @ params["w2"]


def _fitted(params, batch):
    p = _softmax(_classify(params, batch.clean_inner.inputs))
    loss = -np.mean(np.log(p[np.arange(HALF), batch.clean_inner.labels]))
    return np.clip(1 - loss / np.log(C), 0, 1)


def _loss_by_hand(rule, params, at, alpha, batch, mixing):
    """The loss at `params`; what is held fixed is that of `at`."""
    noisy, clean = batch.noisy, batch.clean_inner
    f = _fitted(at, batch)
    r = 1.0 if rule.power == 0 else f**rule.power
    features = np.tanh(noisy.inputs @ at["w1"])
    q = _softmax(features @ alpha["a"] + alpha["b"][noisy.labels])
    if rule.hand_over:
        q = (1 - f) * np.eye(C)[noisy.labels] + f * q
    inputs = np.concatenate([noisy.inputs, clean.inputs])
    targets = np.concatenate([q, np.eye(C)[clean.labels]])
    if rule.mixup:
        share = r * np.asarray(mixing.shares)[:, None]
        partners = np.asarray(mixing.partners)
        inputs = (1 - share) * inputs + share * inputs[partners]
        targets = (1 - share) * targets + share * targets[partners]
    loss = -np.mean(np.sum(targets * np.log(_softmax(_classify(params, inputs))), axis=1))
    p = _softmax(_classify(params, noisy.inputs))
    mean = p.mean(axis=0)
    prior = np.sum(np.log(1 / C / mean) / C)
    entropy = -np.mean(np.sum(p * np.log(p), axis=1))
    return loss + r * (rule.prior_weight * prior + rule.entropy_weight * entropy)


def _differences(f, tree, step=1e-6):
    """Central differences in every entry of a tree of arrays."""
    flat, unravel = ravel_pytree(tree)
    flat = np.asarray(flat)
    numpy = lambda x: jax.tree.map(np.asarray, unravel(x))  # noqa: E731
    slopes = [
        (f(numpy(flat + step * e)) - f(numpy(flat - step * e))) / (2 * step)
        for e in np.eye(len(flat))
    ]
    return np.array(slopes)


def _distance(got, want):
    got, want = (np.asarray(ravel_pytree(x)[0]) for x in (got, want))
    return np.linalg.norm(got - want) / np.linalg.norm(want)


@pytest.mark.parametrize("name", _all_or_slow((name,) for name in RULES))
def test_gradient_of_the_inner_loss_by_hand(name, x64):
    problem = _problem(RULES[name])
    batch, rng = jax.tree.map(lambda x: x[0], _batches(1)), _rngs(1)[0]
    main, alpha = _main(problem.tx), _alpha()
    mixing = mixing_of(problem, batch, rng)
    assert 0.05 < _fitted(main.params, batch) < 0.95
    grads, (_, metrics) = core.inner_grads(problem, main, alpha, batch, rng)
    by_hand = functools.partial(
        _loss_by_hand, RULES[name], at=main.params, alpha=alpha, batch=batch, mixing=mixing
    )
    assert metrics["inner_loss"] == pytest.approx(by_hand(main.params), rel=1e-9)
    assert _distance(grads, _differences(by_hand, main.params)) < 1e-7
    assert ("fitted" in metrics) == RULES[name].needs_fit


def _outer_loss_by_hand(rule, batches, mixings, alpha):
    """After SGD with momentum on gradients by finite differences of the loss by hand."""
    params = _params()
    trace = jax.tree.map(np.zeros_like, params)
    _, unravel = ravel_pytree(params)
    for t, mixing in enumerate(mixings):
        batch = jax.tree.map(lambda x, t=t: x[t], batches)
        loss = functools.partial(
            _loss_by_hand, rule, at=params, alpha=alpha, batch=batch, mixing=mixing
        )
        grads = jax.tree.map(np.asarray, unravel(_differences(loss, params, step=1e-5)))
        for name in params:
            trace[name] = 0.9 * trace[name] + grads[name] + 0.01 * params[name]
        params = {name: params[name] - 0.3 * trace[name] for name in params}
    clean = batch.clean_outer
    p = _softmax(_classify(params, clean.inputs))
    return -np.mean(np.log(p[np.arange(len(clean.labels)), clean.labels]))


@pytest.mark.parametrize(
    ("name", "k"),
    [
        ("plain", 1),
        _slow(("all", 2)),
        *(_slow((name, 1)) for name in RULES if name != "plain"),
    ],
)
def test_exact_is_the_slope_of_the_outer_loss(name, k, x64):
    problem, batches, rngs = _problem(RULES[name]), _batches(k), _rngs(k)
    at = lambda t: jax.tree.map(lambda x: x[t], batches)  # noqa: E731
    mixings = [mixing_of(problem, at(t), rngs[t]) for t in range(k)]
    window = jax.jit(functools.partial(exact, problem))(_main(problem.tx), _alpha(), batches, rngs)
    slope = _differences(
        functools.partial(_outer_loss_by_hand, RULES[name], batches, mixings), _alpha(), step=1e-4
    )
    assert np.linalg.norm(slope) > 1e-3
    # Differences of differences: a stop_gradient on what is held would be off by 1e-3.
    assert _distance(window.meta_grads, slope) < 5e-5


@functools.lru_cache
def _window(name, estimator, backward, k):
    problem = _problem(RULES[name])
    run = jax.jit(functools.partial(ESTIMATORS[estimator], problem, options=Options(backward)))
    return run(_main(problem.tx), _alpha(), _batches(k), _rngs(k))


@pytest.mark.slow
@pytest.mark.parametrize("backward", [x for x in BACKWARDS if x != "store"])
def test_every_backward_pass_gives_the_same_gradient(backward, x64):
    """By `store`, `jax.grad` goes through the steps as they are written."""
    got, want = (_window("all", "exact", way, 5) for way in (backward, "store"))
    assert _distance(got.meta_grads, want.meta_grads) < 1e-11
    assert _distance(got.main.params, want.main.params) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(
    "estimator", ["approximate", *map(_slow, (["one_step"], ["first_order"], ["truncated"]))]
)
def test_estimators_are_exact_at_one_step(estimator, x64):
    got, want = (_window("all", name, "store", 1) for name in (estimator, "exact"))
    assert _distance(got.meta_grads, want.meta_grads) < 1e-11


@pytest.mark.slow
def test_the_central_difference_is_near_exact_at_one_step(x64):
    got, want = (_window("all", name, "store", 1) for name in ("finite_difference", "exact"))
    assert _distance(got.meta_grads, want.meta_grads) < 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", _all_or_slow((name,) for name in RULES))
def test_products_in_mixed_mode_are_vjps_of_the_inner_gradient(name, x64):
    problem = _problem(RULES[name])
    batch, rng = jax.tree.map(lambda x: x[0], _batches(1)), _rngs(1)[0]
    main, alpha = _main(problem.tx), _alpha()
    draws = np.random.default_rng(5)
    v = jax.tree.map(lambda x: draws.normal(size=x.shape), main.params)

    def grads(params, alpha):
        return core.inner_grads(problem, main.replace(params=params), alpha, batch, rng)[0]

    @jax.jit
    def products(main, alpha, v):
        want = jax.vjp(grads, main.params, alpha)[1](v)
        args = problem, main, alpha, batch, rng, v
        return want, inner_grads_vjp(*args), meta_product(*args)

    (of_params, of_alpha), (got_params, got_alpha), alone = products(main, alpha, v)
    assert _distance(got_params, of_params) < 1e-12
    assert _distance(got_alpha, of_alpha) < 1e-12
    assert _distance(alone, of_alpha) < 1e-12


def test_with_fixed_targets_the_product_is_symmetric(x64):
    problem = _problem(FULL)
    batch, rng = jax.tree.map(lambda x: x[0], _batches(1)), _rngs(1)[0]
    main = _main(problem.tx)
    flat, unravel = ravel_pytree(main.params)

    @jax.jit
    def product(v):
        of_params, _ = inner_grads_vjp(
            problem, main, _alpha(), batch, rng, unravel(v), fixed_targets=True
        )
        return ravel_pytree(of_params)[0]

    hessian = np.stack([product(e) for e in np.eye(len(flat))])
    np.testing.assert_allclose(hessian, hessian.T, atol=1e-12)


def test_mixing_is_that_of_mixup():
    rule = InnerLoss(mixup=0.3)
    mixing = draw_mixing(rule, 1000, jax.random.key(0))
    assert sorted(np.asarray(mixing.partners)) == list(range(1000))
    assert mixing.shares.min() >= 0 and mixing.shares.max() <= 0.5
    # E min(b, 1 - b) of Beta(0.3, 0.3) is 0.127: most weights are near 0 or 1.
    assert float(mixing.shares.mean()) == pytest.approx(0.127, abs=0.02)
    two = Mixing(jnp.array([1, 0]), jnp.array([0.5, 0.25]))
    mixed = mix({"x": jnp.array([[0.0], [8.0]])}, two, jnp.asarray(0.5))
    np.testing.assert_allclose(mixed["x"], [[2.0], [7.0]])


def test_whole_numbers_are_not_mixed():
    with pytest.raises(InputError, match=r"inner_loss\.mixup: .*expected 0 with inputs of int32"):
        mix(jnp.zeros((2, 3), jnp.int32), Mixing(jnp.arange(2), jnp.zeros(2)), 1.0)


@pytest.mark.parametrize(
    ("setting", "value"), [("mixup", -1), ("prior_weight", -0.1), ("power", 0.5)]
)
def test_bad_settings(setting, value):
    with pytest.raises(InputError, match=f"inner_loss.{setting}: got {value}"):
        InnerLoss(**{setting: value})
