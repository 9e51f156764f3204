"""Schedules and optimizers against PyTorch's rules, in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mlc_jax import optimizers

PARAMS = np.array([1.0, -2.0, 0.5], np.float32)
# Gradients that shrink, so that AMSGrad's maximum holds on to the first second moment.
GRADS = np.array(
    [[1.0, -3.0, 0.2], [0.5, 1.0, 0.1], [0.01, -0.2, 0.05], [0.001, 0.02, -0.3], [0.0, 0.001, 0.2]],
    np.float32,
)
LEARNING_RATES = [0.1, 0.1, 0.01, 0.01, 0.001]


def _run(tx, grads=GRADS):
    """The parameters after each update."""
    params = {"w": jnp.asarray(PARAMS)}
    state = tx.init(params)
    trajectory = []
    for g in grads:
        updates, state = tx.update({"w": jnp.asarray(g)}, state, params)
        params = optax.apply_updates(params, updates)
        trajectory.append(np.asarray(params["w"]))
    return np.stack(trajectory)


def _schedule(count):
    return jnp.asarray(LEARNING_RATES, jnp.float32)[count]


def _torch_sgd(momentum, nesterov, weight_decay):
    """torch.optim.SGD: decay joins the gradient, then momentum, then the rate of the step."""
    w, buffer, trajectory = PARAMS.astype(np.float64), 0.0, []
    for g, rate in zip(GRADS.astype(np.float64), LEARNING_RATES, strict=True):
        g = g + weight_decay * w
        buffer = momentum * buffer + g
        w = w - rate * (g + momentum * buffer if nesterov else buffer)
        trajectory.append(w)
    return np.stack(trajectory)


def _torch_adam(amsgrad, weight_decay=0.0, rate=0.1, b1=0.9, b2=0.999, eps=1e-8):
    """torch.optim.Adam: with `amsgrad` the maximum is over uncorrected second moments."""
    w, m, v, v_max, trajectory = PARAMS.astype(np.float64), 0.0, 0.0, 0.0, []
    for t, g in enumerate(GRADS.astype(np.float64), start=1):
        g = g + weight_decay * w
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        v_max = np.maximum(v_max, v)
        second = v_max if amsgrad else v
        step = (m / (1 - b1**t)) / (np.sqrt(second) / np.sqrt(1 - b2**t) + eps)
        w = w - rate * step
        trajectory.append(w)
    return np.stack(trajectory)


@pytest.mark.parametrize(
    ("momentum", "nesterov", "weight_decay"),
    [(0.0, False, 0.0), (0.9, False, 0.0), (0.9, False, 0.1), (0.9, True, 0.1), (0.0, False, 0.1)],
)
def test_sgd_is_pytorchs_with_decay_before_momentum(momentum, nesterov, weight_decay):
    tx = optimizers.create_optimizer(
        "sgd", _schedule, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay
    )
    np.testing.assert_allclose(
        _run(tx), _torch_sgd(momentum, nesterov, weight_decay), rtol=1e-5, atol=1e-6
    )


def test_sgd_by_hand():
    tx = optimizers.create_optimizer("sgd", 0.5, momentum=0.5, weight_decay=0.1)
    got = _run(tx, GRADS[:2])[:, 0]
    # g = 1 + 0.1 * 1 = 1.1, w = 1 - 0.55 = 0.45;
    # g = 0.5 + 0.045, buffer = 0.55 + 0.545 = 1.095, w = 0.45 - 0.5475.
    np.testing.assert_allclose(got, [0.45, -0.0975], rtol=1e-5)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("name", ["adam", "amsgrad"])
def test_adam_and_amsgrad_are_pytorchs(name, weight_decay, standard_promotion):
    tx = optimizers.create_optimizer(name, 0.1, weight_decay=weight_decay)
    want = _torch_adam(name == "amsgrad", weight_decay)
    np.testing.assert_allclose(_run(tx), want, rtol=1e-5, atol=1e-6)


def test_amsgrad_is_neither_adam_nor_optaxs_amsgrad(standard_promotion):
    """From the second update on: optax takes its maximum over bias-corrected moments."""
    ours = _run(optimizers.create_optimizer("amsgrad", 0.1))
    for other in (optax.amsgrad(0.1), optax.adam(0.1)):
        theirs = _run(other)
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    optaxs = _run(optax.amsgrad(0.1))
    assert np.all(np.abs(ours[1] - optaxs[1])[:2] > 0.005)
    adams = _run(optax.adam(0.1))
    assert np.all(np.abs(ours[-1] - adams[-1])[:2] > 1e-5)  # Rounding is a hundredth of that.


def test_momentum_and_nesterov_are_not_read_by_adam(standard_promotion):
    plain = _run(optimizers.create_optimizer("adam", 0.1))
    given = _run(optimizers.create_optimizer("adam", 0.1, momentum=0.9, nesterov=True))
    np.testing.assert_array_equal(plain, given)


def test_clipping_comes_before_weight_decay_and_momentum():
    tx = optimizers.create_optimizer("sgd", 1.0, weight_decay=0.1, clip_norm=1.0)
    params = jnp.array([1.0, 1.0])
    for grads, clipped in (([3.0, 4.0], [0.6, 0.8]), ([0.3, 0.4], [0.3, 0.4])):
        updates, _ = tx.update(jnp.array(grads), tx.init(params), params)
        np.testing.assert_allclose(-updates, np.array(clipped) + 0.1, rtol=1e-6)


@pytest.mark.parametrize("name", ["adam", "amsgrad"])
def test_updates_can_be_differentiated_where_the_second_moment_is_zero(name, standard_promotion):
    tx = optimizers.create_optimizer(name, 0.1)
    params = jnp.array([1.0, 2.0])

    def moved(scale):
        grads = scale * jnp.array([0.0, 0.5])
        updates, state = tx.update(grads, tx.init(params), params)
        updates = updates + tx.update(grads, state, params)[0]
        return jnp.sum(updates)

    # Of the first two updates, Adam's are the same whatever the gradient's scale.
    np.testing.assert_allclose(jax.grad(moved)(1.0), 0.0, atol=1e-6)


def test_unknown_optimizer():
    with pytest.raises(ValueError, match=r"optimizer: got 'lion', expected one of .*amsgrad"):
        optimizers.create_optimizer("lion", 0.1)


def test_constant_schedule():
    schedule = optimizers.create_schedule("constant", 0.3, num_steps=10, steps_per_epoch=2)
    assert [float(schedule(t)) for t in (0, 5, 10**6)] == [0.3] * 3


def test_step_schedule_falls_at_the_first_update_of_a_milestone_epoch():
    schedule = optimizers.create_schedule(
        "step", 0.1, num_steps=120, steps_per_epoch=10, milestones=(8, 10), decay_factor=0.1
    )
    want = {0: 0.1, 79: 0.1, 80: 0.01, 81: 0.01, 99: 0.01, 100: 0.001, 119: 0.001}
    got = {t: schedule(jnp.asarray(t)) for t in want}
    np.testing.assert_allclose(list(got.values()), list(want.values()), rtol=1e-5)


def test_step_schedule_without_milestones_is_constant():
    schedule = optimizers.create_schedule("step", 0.1, num_steps=10, steps_per_epoch=1)
    np.testing.assert_allclose([schedule(0), schedule(9)], 0.1, rtol=1e-6)


def test_cosine_schedule_ends_at_zero():
    schedule = optimizers.create_schedule("cosine", 0.2, num_steps=100, steps_per_epoch=10)
    got = [schedule(t) for t in (0, 25, 50, 100, 200)]
    want = [0.2, 0.1 * (1 + np.sqrt(0.5)), 0.1, 0.0, 0.0]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-8)


def test_unknown_schedule():
    with pytest.raises(ValueError, match=r"schedule: got 'linear', expected one of .*cosine"):
        optimizers.create_schedule("linear", 0.1, num_steps=1, steps_per_epoch=1)


def test_amsgrad_state_keeps_the_structure_and_the_dtype_of_the_params():
    params = {"a": {"b": jnp.ones((2, 3), jnp.float32)}, "c": jnp.ones((4,), jnp.float32)}
    state = optimizers.scale_by_amsgrad().init(params)
    for moments in (state.mu, state.nu, state.nu_max):
        assert jax.tree.map(lambda x: (x.shape, x.dtype), moments) == jax.tree.map(
            lambda x: (x.shape, x.dtype), params
        )
    assert state.count.dtype == jnp.int32
