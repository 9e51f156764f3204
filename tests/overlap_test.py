"""Overlapping windows: an update of the LCN per s steps, through the last k; in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.flatten_util import ravel_pytree

from mlc_jax import adam, core, estimators, methods, models, sgd
from mlc_jax.core import ESTIMATORS, OVERLAPPING, Batch, Labelled
from mlc_jax.errors import InputError

C, F, K = 3, 5, 4
NUM_STEPS = 10  # Of a run, in which the rate drops after the fifth, inside of a window.


def _slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


def _method(**settings):
    defaults = {
        "model": models.MLP(C, hidden_sizes=(6, 4), dropout_rate=0.3, dtype=jnp.float64),
        "lcn": models.LabelCorrectionNetwork(C, hidden_size=4, embedding_size=3),
        "tx": sgd(0.5, momentum=0.9, weight_decay=0.02, schedule="step", milestones=(1,)),
        "meta_tx": adam(0.05),
        "num_inner_steps": K,
    }
    return methods.mlc(**(defaults | settings))


def _bind(method):
    return method.bind(num_noisy=50, num_classes=C, steps_per_epoch=5, num_epochs=2)


@pytest.fixture(scope="module")
def data():
    """Batches of single steps `[NUM_STEPS, B, ...]`."""
    rng = np.random.default_rng(0)

    def examples(size):
        labels = rng.integers(0, C, (NUM_STEPS, size)).astype(np.int32)
        return Labelled(rng.normal(size=(NUM_STEPS, size, F)), labels)

    return Batch(examples(6), examples(3), examples(4))


def _start(bound):
    """In float64 where that is on: models make float32 of it."""
    state = bound.init(jax.random.key(0), jnp.zeros((1, F)))
    widen = lambda x: x.astype(float) if jnp.issubdtype(x.dtype, jnp.floating) else x  # noqa: E731
    return jax.tree.map(widen, state)


def _between(data, start, stop):
    """Batches of steps `start` to `stop - 1`; before the first step, the first one's."""
    steps = np.maximum(0, np.arange(start, stop))
    return jax.tree.map(lambda x: x[steps], data)


@pytest.fixture(scope="module")
def runs(data):
    """(settings) -> the states of a run, one for each update and the last, and all metrics."""
    return functools.cache(lambda **settings: _states(_method(**settings), data))


def _states(method, data, num_updates=None):
    """As `runs`; of as many updates as are asked for."""
    bound = _bind(method)
    step, s = jax.jit(bound.train_step), method.stride
    states, metrics = [_start(bound)], []
    for t in range(0, NUM_STEPS, s)[:num_updates]:
        state, of_step = step(states[-1], _between(data, t - method.num_replayed, t + s))
        states.append(state)
        metrics.append(of_step)
    return states, metrics


class Plain:
    """The same run in plain Python: every window replayed from a list of all classifiers."""

    def __init__(self, method, data):
        bound = _bind(method)
        self.state, self.method, self.data = _start(bound), method, data
        self.problem = problem = _problem(method)
        self.inner_step = jax.jit(lambda *args: core.inner_step(problem, *args)[0])
        self.past = [self.state.main]  # Before each step.

    def step(self, main, meta_params, t):
        batch, rng = self.of_step(t)
        return self.inner_step(main, meta_params, batch, rng), (batch, rng)

    def of_step(self, t):
        """Its batch, and its key."""
        return jax.tree.map(lambda x: x[t], self.data), jax.random.fold_in(self.state.rng, t)

    def loss(self, meta_params, start, stop, step=None):
        """The outer loss after a replay of steps `start` to `stop - 1`."""
        main = self.past[start]
        for t in range(start, stop):
            main, (batch, rng) = (step or self.step)(main, meta_params, t)
        clean = batch.clean_outer
        return core.outer_loss(self.problem, main.params, main.batch_stats, clean, rng)[0]

    def window(self, stop):
        return max(0, stop - self.method.num_inner_steps), stop

    def advance(self, meta_params, t):
        """The real steps of one update, from step t on."""
        main = self.past[t]
        for u in range(t, t + self.method.stride):
            main, _ = self.step(main, meta_params, u)
            self.past.append(main)


def _problem(method):
    def apply(params, batch_stats, inputs, rng):
        logits, features = method.model.apply(
            {"params": params}, inputs, train=True, rngs={"dropout": rng}
        )
        return logits, features, batch_stats

    def targets(meta_params, features, logits, labels):
        return method.lcn.apply({"params": meta_params}, features, labels)

    tx = method.tx.bind(num_updates=NUM_STEPS, updates_per_epoch=5)
    return core.Problem(apply, targets, tx)


def _assert_close(a, b, rtol=1e-10):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-13), a, b)


@pytest.fixture(scope="module")
def plain_runs(data):
    """(s) -> the plain loop at its end; of every update its loss, gradient, step and LCN."""

    @functools.cache
    def run(s):
        method = _method(update_every=s)
        plain = Plain(method, data)
        tx = method.meta_tx.bind(num_updates=NUM_STEPS // s, updates_per_epoch=5 // s)
        meta, seen = plain.state.meta, []
        for t in range(0, NUM_STEPS, s):
            plain.advance(meta.params, t)
            loss, grads = jax.value_and_grad(plain.loss)(meta.params, *plain.window(t + s))
            updates, opt_state = tx.update(grads, meta.opt_state, meta.params)
            meta = core.MetaState(optax.apply_updates(meta.params, updates), opt_state)
            seen.append((loss, optax.tree.norm(grads), optax.tree.norm(updates), meta.params))
        return plain, seen

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("s", "estimator"),
    [
        (1, estimators.exact()),
        (2, estimators.exact()),
        _slow(2, estimators.exact(backward="store")),
        _slow(1, estimators.exact(backward="two_level")),
        _slow(1, estimators.exact(backward="remat")),
    ],
)
def test_a_run_is_that_of_a_plain_loop(x64, runs, plain_runs, s, estimator):
    """Dropout, momentum, weight decay and a rate that drops inside a window are all replayed.

    Dear for the loop in plain Python, with a gradient through every window: none of it is ours.
    """
    plain, seen = plain_runs(s)
    states, metrics = runs(update_every=s, estimator=estimator)
    for i, (loss, grad_norm, update_norm, meta_params) in enumerate(seen):
        t = (i + 1) * s
        _assert_close(metrics[i]["outer_loss"], loss)
        _assert_close(metrics[i]["meta_grad_norm"], grad_norm)
        _assert_close(metrics[i]["meta_update_norm"], update_norm)
        assert int(states[i + 1].step) == t
        _assert_close(states[i + 1].main.params, plain.past[t].params)
        _assert_close(states[i + 1].meta.params, meta_params, rtol=1e-8)
    # What is replayed ends elsewhere than what is real: the LCN has changed on the way.
    main = plain.past[NUM_STEPS - K]
    for t in range(NUM_STEPS - K, NUM_STEPS):
        main, _ = plain.step(main, states[-2].meta.params, t)
    assert _distance(main.params, states[-1].main.params) > 1e-3


def _distance(a, b):
    a, b = (ravel_pytree(x)[0] for x in (a, b))
    return float(jnp.linalg.norm(a - b) / jnp.linalg.norm(b))


@pytest.mark.slow
@pytest.mark.parametrize(("s", "update"), [_slow(1, 1), (2, -1)])
def test_the_gradient_is_the_slope_of_the_replay(x64, data, runs, s, update):
    """By finite differences; at the first updates the window is shorter than k."""
    method = _method(update_every=s)
    states, _ = runs(update_every=s, estimator=estimators.exact())
    update = range(NUM_STEPS // s)[update]
    state, t = states[update], update * s
    plain = Plain(method, data)
    for i in range(update):
        plain.advance(states[i].meta.params, i * s)
    window = jax.jit(lambda x, y: _bind(method).window(ESTIMATORS["exact"], x, y).meta_grads)
    grads = ravel_pytree(window(state, _between(data, t + s - K, t + s)))[0]
    flat, unravel = ravel_pytree(state.meta.params)
    direction = np.random.default_rng(1).normal(size=flat.shape)
    loss = jax.jit(lambda x: plain.loss(unravel(x), *plain.window(t + s)))
    epsilon = 1e-5
    slope = (loss(flat + epsilon * direction) - loss(flat - epsilon * direction)) / (2 * epsilon)
    np.testing.assert_allclose(grads @ direction, slope, rtol=1e-7)


@pytest.mark.slow
def test_truncated_goes_back_fewer_steps_of_the_same_replay(x64, data):
    """Dear for the derivative of a replay in plain Python, which alone knows of no estimator."""
    method = _method(update_every=1, estimator=estimators.truncated(2))
    states, _ = _states(method, data, 7)
    state, stop = states[-1], 8
    plain = Plain(method, data)
    for t in range(7):
        plain.advance(states[t].meta.params, t)

    def loss(meta_params):
        """The first two of the four steps do not see the LCN move."""
        fixed = jax.lax.stop_gradient(meta_params)

        def step(main, meta_params, t):
            return plain.step(main, fixed if t < stop - 2 else meta_params, t)

        return plain.loss(meta_params, stop - K, stop, step)

    ours = _meta_grads(method, _named(method), state, _between(data, stop - K, stop))
    _assert_close(ours, jax.jit(jax.grad(loss))(state.meta.params))


def _named(method):
    return ESTIMATORS[method.estimator.name]


def _meta_grads(method, estimator, state, batches):
    bound = _bind(method)
    return jax.jit(lambda x, y: bound.window(estimator, x, y).meta_grads)(state, batches)


@pytest.mark.slow
@pytest.mark.parametrize("s", [1, 4])
def test_first_order_is_exact_without_what_a_step_leaves_later_gradients(x64, data, s):
    method = _method(update_every=s, estimator=estimators.first_order())
    states, _ = _states(method, data, 4 // s)
    state, stop = states[-1], 4 + s
    plain = Plain(method, data)
    for i in range(4 // s):
        plain.advance(states[i].meta.params, i * s)

    def step(main, meta_params, t):
        """The gradient is taken at a classifier that is held fixed, and moves a real one."""
        batch, rng = plain.of_step(t)
        fixed = jax.lax.stop_gradient(main)
        grads, (stats, _) = core.inner_grads(plain.problem, fixed, meta_params, batch, rng)
        return core.apply_inner_grads(plain.problem, main, grads, stats), (batch, rng)

    batches = _between(data, stop - K, stop)
    ours = _meta_grads(method, _named(method), state, batches)
    want = jax.jit(jax.grad(lambda x: plain.loss(x, stop - K, stop, step)))(state.meta.params)
    _assert_close(ours, want)
    exact = _meta_grads(method, ESTIMATORS["exact"], state, batches)
    assert _distance(ours, exact) > 0.01


@pytest.mark.slow
@pytest.mark.parametrize("s", [1, 2])
def test_the_recursion_goes_on_from_update_to_update(x64, data, s):
    """With an LCN that does not move, it is what one window over all steps so far adds up."""
    method = _method(update_every=s, estimator=estimators.approximate(), meta_tx=sgd(1e-300))
    assert (method.stride, method.num_replayed) == (s, 0)
    states, _ = _states(method, data)
    whole = _method(num_inner_steps=NUM_STEPS, estimator=estimators.approximate())
    bound = _bind(whole)
    window = jax.jit(lambda x, y: bound.window(_named(whole), x, y))(states[0], data)
    _assert_close(states[-1].past, window.meta_grads)
    _assert_close(states[-1].main.params, window.main.params)
    assert _bind(method).window is None  # There is none to hold another estimator against.


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [estimators.exact(), estimators.approximate()])
def test_an_update_every_k_steps_is_the_default(x64, data, estimator):
    """To the bit: the same program."""
    ends = [
        _states(_method(num_inner_steps=2, update_every=s, estimator=estimator), data)[0][-1]
        for s in (0, 2)
    ]
    assert ends[0].past is None
    jax.tree.map(np.testing.assert_array_equal, *map(_numbers, ends))


def _numbers(state):
    return jax.tree.map(np.asarray, state.replace(rng=jax.random.key_data(state.rng)))


def test_the_ring_holds_the_classifiers_before_the_last_updates(x64, runs):
    states, _ = runs(update_every=1, estimator=estimators.exact())
    ring = [jax.tree.map(lambda x: x[i], states[-1].past.params) for i in range(K - 1)]  # noqa: B023
    # Of updates 7, 8 and 9; update i stands at place i modulo three.
    for i in (7, 8, 9):
        _assert_close(ring[i % 3], states[i].main.params, rtol=0)
    start = states[0]
    _assert_close(start.past.params, jax.tree.map(lambda x: np.stack([x] * 3), start.main.params))


@pytest.mark.parametrize("s", [3, 5, 8, -1, 0.5])
def test_an_update_must_come_at_a_divisor_of_k(s):
    with pytest.raises(InputError, match=rf"^update_every: got {s}, expected 0, or a divisor of"):
        _method(update_every=s)


@pytest.mark.parametrize("name", sorted(set(ESTIMATORS) - set(OVERLAPPING)))
def test_what_sees_the_window_s_end_alone_is_refused(name):
    estimator = core.EstimatorSpec(name)
    message = f"^update_every: got 2, expected 0 with {name}, which uses only the window's end; "
    with pytest.raises(InputError, match=message):
        _method(update_every=2, estimator=estimator)
    assert _method(update_every=K, estimator=estimator).num_replayed == 0
