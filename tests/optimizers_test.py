"""Schedules, optimizers and parameter groups against PyTorch's rules in NumPy, and what `exact`
makes of them against finite differences."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.flatten_util import ravel_pytree

from mlc_jax import core
from mlc_jax.core import Batch, Labelled, MainState, Problem, estimators, optimizers
from mlc_jax.core.groups import Group
from mlc_jax.core.optimizers import OptimizerSpec
from mlc_jax.errors import InputError

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


# The squares of 1e-25 are zero in float32, those of 1e25 infinite.
@pytest.mark.parametrize("scale", [1e-25, 1e-15, 1.0, 1e3, 1e25])
def test_a_normalised_gradient_has_a_norm_of_one_before_weight_decay(scale):
    tx = optimizers.create_optimizer("sgd", 1.0, weight_decay=0.1, normalize=True)
    params = jnp.array([1.0, 1.0])
    updates, _ = tx.update(scale * jnp.array([3.0, 4.0]), tx.init(params), params)
    np.testing.assert_allclose(-updates, [0.7, 0.9], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-25, 1e-15, 1.0])
def test_the_derivative_of_a_normalised_gradient_by_hand(scale):
    """Of g / |g| at (3, 4): what is left of a change across g, over its norm."""
    tx = optimizers.create_optimizer("sgd", 1.0, normalize=True)
    params = jnp.ones(2)
    update = lambda grads: tx.update(grads, tx.init(params), params)[0]  # noqa: E731
    got = scale * jax.jacrev(update)(scale * jnp.array([3.0, 4.0]))
    np.testing.assert_allclose(-got, [[0.128, -0.096], [-0.096, 0.072]], rtol=1e-5)


def test_a_gradient_of_zero_has_no_direction_and_stays_zero():
    tx = optimizers.create_optimizer("sgd", 1.0, normalize=True)
    params, zero = jnp.ones(2), jnp.zeros(2)
    move = lambda grads: jnp.sum(tx.update(grads, tx.init(params), params)[0])  # noqa: E731
    np.testing.assert_array_equal([*jax.grad(move)(zero), move(zero)], 0)


def test_normalising_and_clipping_are_refused_together():
    with pytest.raises(InputError, match=r"^normalize: got True, expected False with clip_norm=2"):
        optimizers.adam(0.1, normalize=True, clip_norm=2.0)


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


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_warm_up_rises_and_the_schedule_fills_the_rest(schedule):
    rate = optimizers.create_schedule(
        schedule, 0.2, num_steps=40, steps_per_epoch=10, warmup_epochs=0.8
    )
    got = [rate(jnp.asarray(t)) for t in (0, 2, 7, 8, 16, 24, 32, 40, 50)]
    rest = np.array([0, 0.25, 0.5, 0.75, 1, 1])
    down = 1 - rest if schedule == "linear" else 0.5 * (1 + np.cos(np.pi * rest))
    np.testing.assert_allclose(got, [0.025, 0.075, 0.2, *(0.2 * down)], rtol=1e-5, atol=1e-8)


def test_linear_schedule_ends_at_zero():
    rate = optimizers.create_schedule("linear", 0.2, num_steps=100, steps_per_epoch=10)
    got = [rate(jnp.asarray(t)) for t in (0, 25, 99, 100, 200)]
    np.testing.assert_allclose(got, [0.2, 0.15, 0.002, 0, 0], rtol=1e-5, atol=1e-8)


def test_a_warm_up_does_not_move_milestones():
    rate = optimizers.create_schedule(
        "step", 0.1, num_steps=60, steps_per_epoch=10, milestones=(2, 4), warmup_epochs=1
    )
    got = [rate(jnp.asarray(t)) for t in (0, 5, 10, 19, 20, 39, 40, 59)]
    want = [0.01, 0.06, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-9)


def test_constant_after_a_warm_up():
    rate = optimizers.create_schedule(
        "constant", 0.1, num_steps=20, steps_per_epoch=10, warmup_epochs=0.5
    )
    got = [rate(0), rate(4), rate(5), rate(19)]
    np.testing.assert_allclose(got, [0.02, 0.1, 0.1, 0.1], rtol=1e-6)


def test_a_warm_up_as_long_as_the_run_is_an_error():
    spec = optimizers.sgd(0.1, warmup_epochs=2)
    with pytest.raises(InputError, match=r"warmup_epochs: got 2, expected less than .* 2 epochs"):
        spec.bind(num_updates=20, updates_per_epoch=10)


def test_unknown_schedule():
    with pytest.raises(InputError, match=r"schedule: got 'steps', expected one of .*cosine"):
        optimizers.create_schedule("steps", 0.1, num_steps=1, steps_per_epoch=1)


def test_amsgrad_state_keeps_the_structure_and_the_dtype_of_the_params():
    params = {"a": {"b": jnp.ones((2, 3), jnp.float32)}, "c": jnp.ones((4,), jnp.float32)}
    state = optimizers.scale_by_amsgrad().init(params)
    for moments in (state.mu, state.nu, state.nu_max):
        assert jax.tree.map(lambda x: (x.shape, x.dtype), moments) == jax.tree.map(
            lambda x: (x.shape, x.dtype), params
        )
    assert state.count.dtype == jnp.int32


# --- Specs.


def _numpy_adamw(rates, weight_decay, b1=0.8, b2=0.99, eps=1e-8):
    """Loshchilov and Hutter's algorithm 2, with the learning rate inside of eta."""
    w, m, v, trajectory = PARAMS.astype(np.float64), 0.0, 0.0, []
    for t, (g, rate) in enumerate(zip(GRADS.astype(np.float64), rates, strict=True), start=1):
        m = b1 * m + (1 - b1) * g
        v = b2 * v + (1 - b2) * g**2
        w = w - rate * (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + weight_decay * w)
        trajectory.append(w)
    return np.stack(trajectory)


def test_adamw_with_warm_up_and_linear_decay(standard_promotion):
    spec = optimizers.adamw(
        0.2, b1=0.8, b2=0.99, weight_decay=0.3, schedule="linear", warmup_epochs=1
    )
    tx = spec.bind(num_updates=6, updates_per_epoch=2)
    want = _numpy_adamw([0.1, 0.2, 0.2, 0.15, 0.1], weight_decay=0.3)
    np.testing.assert_allclose(_run(tx), want, rtol=1e-5, atol=1e-6)


def test_adamw_is_optaxs_and_not_adam_with_l2(standard_promotion):
    bind = functools.partial(OptimizerSpec.bind, num_updates=5, updates_per_epoch=1)
    ours = _run(bind(optimizers.adamw(0.1, weight_decay=0.1)))
    np.testing.assert_allclose(ours, _run(optax.adamw(0.1, weight_decay=0.1)), rtol=1e-6)
    l2 = _run(bind(optimizers.adam(0.1, weight_decay=0.1)))
    assert np.abs(ours - l2).max() > 0.01


@pytest.mark.parametrize(
    "spec",
    [
        optimizers.sgd(0.1, momentum=0.9, nesterov=True, weight_decay=0.1, clip_norm=1.0),
        optimizers.sgd(0.1, schedule="step", milestones=(1, 2), decay_factor=0.5),
        optimizers.adam(0.1, weight_decay=0.1, schedule="cosine"),
        optimizers.amsgrad(0.1, clip_norm=0.5),
    ],
)
def test_a_bound_spec_is_what_the_building_blocks_make(spec, standard_promotion):
    schedule = optimizers.create_schedule(
        spec.schedule, spec.learning_rate, num_steps=6, steps_per_epoch=2,
        milestones=spec.milestones, decay_factor=spec.decay_factor,
    )  # fmt: skip
    want = optimizers.create_optimizer(
        spec.name, schedule, momentum=spec.momentum, nesterov=spec.nesterov,
        weight_decay=spec.weight_decay, clip_norm=spec.clip_norm,
    )  # fmt: skip
    got = optimizers.bind(spec, num_updates=6, updates_per_epoch=2)
    np.testing.assert_array_equal(_run(got), _run(want))


def test_states_without_groups_are_those_of_old_checkpoints():
    """Paths of the state's leaves, as the first release wrote them."""

    def paths(spec):
        state = spec.bind(num_updates=9, updates_per_epoch=3).init({"w": jnp.ones(2)})
        return [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(state)]

    assert paths(optimizers.sgd(0.1)) == ["[3].count"]
    everything = {"weight_decay": 0.1, "clip_norm": 1.0}
    assert paths(optimizers.sgd(0.1, momentum=0.9, **everything)) == [
        "[2].trace['w']", "[3].count",
    ]  # fmt: skip
    moments = ["[2].count", "[2].mu['w']", "[2].nu['w']"]
    assert paths(optimizers.adam(0.1, schedule="cosine", **everything)) == [*moments, "[3].count"]
    assert paths(optimizers.amsgrad(0.1)) == [*moments, "[2].nu_max['w']", "[3].count"]


def test_bind_passes_optax_through():
    params = {"x": jnp.array([1.0, 2.0])}
    for tx in (optax.sgd(0.1), optax.sgd(0.1, momentum=0.9)):
        bound, state = optimizers.bind(tx, num_updates=1, updates_per_epoch=1), tx.init(params)
        chex.assert_trees_all_equal(bound.init(params), state)
        chex.assert_trees_all_equal(
            bound.update(params, state, params), tx.update(params, state, params)
        )
    with pytest.raises(InputError, match=r"optimizer: got 0.1, expected .*adamw, or an optax"):
        optimizers.bind(0.1, num_updates=1, updates_per_epoch=1)


def test_specs_are_values():
    spec = optimizers.sgd(0.1, milestones=[1, 2], groups=[("bias", 0)])
    assert spec == optimizers.sgd(0.1, milestones=(1, 2), groups=(Group("bias", 0),))
    assert hash(spec) == hash(optimizers.sgd(0.1, milestones=(1, 2), groups=(("bias", 0.0),)))


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("learning_rate", -0.1, "a positive, finite number"),
        ("learning_rate", float("nan"), "a positive, finite number"),
        ("learning_rate", "0.1", "a positive, finite number"),
        ("momentum", 1.0, "a number from 0 to below 1"),
        ("b2", 1, "a number from 0 to below 1"),
        ("weight_decay", -1, "at least 0"),
        ("clip_norm", None, "at least 0"),
        ("warmup_epochs", -1, "at least 0"),
        ("decay_factor", 0, "a positive, finite number"),
        ("nesterov", 1, "True or False"),
        ("normalize", None, "True or False"),
        ("schedule", "cosin", "one of constant, step, cosine, linear"),
        ("name", "lion", "one of sgd, adam, amsgrad, adamw"),
        ("milestones", (2, 1), "each later than the one before"),
        ("milestones", (1, 1), "each later than the one before"),
        ("milestones", (0.5,), "whole epochs from 1 on"),
        ("milestones", 3, "whole epochs from 1 on"),
        ("groups", "bias", "tuples \\(pattern, factor, weight_decay\\)"),
    ],
)
def test_bad_values_are_errors_where_the_spec_is_made(field, value, expected):
    with pytest.raises(InputError, match=f"^{field}: got .*, expected .*{expected}") as error:
        OptimizerSpec(**{"name": "sgd", "learning_rate": 0.1, field: value})
    assert repr(value) in str(error.value)


@pytest.mark.parametrize(
    ("group", "message"),
    [
        (("(",), r"groups\[1\].pattern: got '\(', expected a regular expression \(missing"),
        ((3,), r"groups\[1\].pattern: got 3, expected a regular expression"),
        (("a", -1), r"groups\[1\].factor: got -1, expected .*at least 0"),
        (("a", 1, "no"), r"groups\[1\].weight_decay: got 'no', expected .*at least 0, or None"),
        ((), r"groups\[1\]: got \(\), expected tuples"),
        ("bias", r"groups\[1\]: got 'bias', expected tuples"),
        (("a", 1, 0, 0), r"groups\[1\]: got .*, expected tuples"),
    ],
)
def test_bad_groups_are_errors_where_the_spec_is_made(group, message):
    with pytest.raises(InputError, match=message):
        optimizers.sgd(0.1, groups=(("b",), group))


def test_milestones_come_after_the_warm_up():
    optimizers.sgd(0.1, milestones=(1, 3), warmup_epochs=2)  # The schedule does not read them.
    with pytest.raises(InputError, match=r"milestones: got \(1, 3\), expected .*warm-up.* takes 2"):
        optimizers.sgd(0.1, schedule="step", milestones=(1, 3), warmup_epochs=2)


# --- Parameter groups.

NETWORK = {
    "hidden1": {"kernel": np.array([[1.0, -2.0]]), "bias": np.array([0.5, 1.0])},
    "hidden2": {"kernel": np.array([[2.0], [1.0]]), "bias": np.array([3.0])},
    "output": {"kernel": np.array([[-1.0]]), "bias": np.array([2.0])},
}
GROUPS = (("hidden1", 0), ("output/", 10.0), ("bias$", 1.0, 0.0), ("kernel", 1.0, 0.2))


def _network(dtype=np.float32):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), NETWORK)


def _updates(tx, grads, params, num_updates=1):
    """The last of `num_updates` updates, each with the same gradient at the same parameters."""
    state = tx.init(params)
    for _ in range(num_updates):
        updates, state = tx.update(grads, state, params)
    return updates


def test_sgd_in_groups_by_hand():
    """Frozen; ten times the rate; no decay; a decay of its own."""
    spec = optimizers.sgd(0.1, momentum=0.5, weight_decay=0.1, groups=GROUPS)
    params = _network()
    grads = jax.tree.map(jnp.ones_like, params)
    tx = spec.bind(num_updates=9, updates_per_epoch=3)
    got = _updates(tx, grads, params, num_updates=2)  # Momentum: 1.5 times the first.
    want = {
        "hidden1": {"kernel": [[0.0, 0.0]], "bias": [0.0, 0.0]},
        "hidden2": {"kernel": [[-0.15 * (1 + 0.2 * 2)], [-0.15 * (1 + 0.2)]], "bias": [-0.15]},
        "output": {"kernel": [[-1.5 * (1 - 0.1)]], "bias": [-1.5 * (1 + 0.1 * 2)]},
    }
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, np.array(y), rtol=1e-6), got, want)


def test_adamw_in_groups_by_hand(standard_promotion):
    """Adam's first update is the gradient's sign; the factor multiplies the decay, too."""
    spec = optimizers.adamw(0.1, weight_decay=0.1, groups=GROUPS)
    params = _network()
    grads = jax.tree.map(lambda x: 3 * jnp.ones_like(x), params)
    got = _updates(spec.bind(num_updates=9, updates_per_epoch=3), grads, params)
    want = {
        "hidden1": {"kernel": [[0.0, 0.0]], "bias": [0.0, 0.0]},
        "hidden2": {"kernel": [[-0.1 * (1 + 0.2 * 2)], [-0.1 * (1 + 0.2)]], "bias": [-0.1]},
        "output": {"kernel": [[-1.0 * (1 - 0.1)]], "bias": [-1.0 * (1 + 0.1 * 2)]},
    }
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, np.array(y), rtol=1e-5), got, want)


@pytest.mark.parametrize("settings", [{"clip_norm": 1.0}, {"normalize": True}])
def test_the_norm_is_that_of_all_that_is_trained(settings):
    """Over both groups, without the frozen layer; before the factors."""
    params = {name: jnp.ones(1) for name in ("frozen", "slow", "usual")}
    grads = {"frozen": jnp.array([100.0]), "slow": jnp.array([3.0]), "usual": jnp.array([-4.0])}
    spec = optimizers.sgd(1.0, groups=(("frozen", 0), ("slow", 0.1)), **settings)
    got = _updates(spec.bind(num_updates=1, updates_per_epoch=1), grads, params)
    want = {"frozen": 0.0, "slow": -0.06, "usual": 0.8}
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x[0], y, rtol=1e-6), got, want)


def test_a_group_without_effect_changes_nothing(standard_promotion):
    plain, grouped = (
        optimizers.adam(0.1, weight_decay=0.1, groups=groups).bind(
            num_updates=5, updates_per_epoch=1
        )
        for groups in ((), (("w",),))
    )
    np.testing.assert_array_equal(_run(plain), _run(grouped))


def test_frozen_parameters_have_no_state():
    groups = (("hidden", 0),)
    tx = optimizers.adam(0.1, groups=groups).bind(num_updates=1, updates_per_epoch=1)
    sizes = [x.size for x in jax.tree.leaves(jax.eval_shape(tx.init, _network()))]
    assert sorted(sizes) == [1] * 6  # Two counts; two moments of output's kernel and bias.


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ((("conv",),), r"groups: got 'conv', expected a pattern that matches .*: hidden1/bias, hi"),
        ((("hidden",), ("hidden1/b",)), r"groups: got 'hidden1/b', expected .*comes before those"),
        ((("",  0),), r"groups: got \[''\], expected some parameters that are not frozen"),
    ],
)  # fmt: skip
def test_groups_that_do_not_suit_the_parameters_are_errors(groups, message):
    tx = optimizers.sgd(0.1, groups=groups).bind(num_updates=1, updates_per_epoch=1)
    with pytest.raises(InputError, match=message):
        jax.eval_shape(tx.init, _network())


def test_a_long_list_of_parameters_is_cut():
    tx = optimizers.create_optimizer("sgd", 0.1, groups=(("conv",),))
    with pytest.raises(InputError, match=r"w0, w1, w2, w3, w4, w5, ... \(9 in all\)$"):
        tx.init({f"w{i}": jnp.ones(1) for i in range(9)})


def test_a_frozen_group_survives_a_checkpoint(tmp_path, standard_promotion):
    spec = optimizers.adamw(0.1, schedule="cosine", warmup_epochs=1, groups=GROUPS)
    tx = spec.bind(num_updates=9, updates_per_epoch=3)
    params = _network()
    grads = jax.tree.map(jnp.ones_like, params)
    _, state = tx.update(grads, tx.init(params), params)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", {"opt_state": state})
        checkpointer.wait_until_finished()
        target = {"opt_state": jax.eval_shape(tx.init, params)}
        restored = checkpointer.restore(tmp_path / "state", target)["opt_state"]
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    ends = [tx.update(grads, s, params)[0] for s in (restored, state)]
    jax.tree.map(np.testing.assert_array_equal, *ends)


# --- The meta-gradient through the optimizers, in float64.

NUM_CLASSES, NUM_INPUTS, NUM_FEATURES = 3, 4, 2
START = 2  # Updates made before the window, so that three more go from warm-up to decay.
SPECS = {
    "adamw warm-up cosine": optimizers.adamw(
        0.3, weight_decay=0.1, schedule="cosine", warmup_epochs=2
    ),
    "adamw linear": optimizers.adamw(0.3, weight_decay=0.1, schedule="linear"),
    "sgd groups": optimizers.sgd(
        0.5, momentum=0.9, weight_decay=0.05,
        groups=(("hidden1", 0), ("bias", 1, 0.0), ("output", 3.0)),
    ),
    "sgd groups clipped": optimizers.sgd(
        0.5, clip_norm=0.1, weight_decay=0.05, groups=(("hidden1/bias", 0), ("output", 3.0))
    ),
    "adamw groups": optimizers.adamw(
        0.3, weight_decay=0.1, schedule="linear", warmup_epochs=1.5,
        groups=(("hidden1/bias", 0), ("bias", 2.0, 0.0), ("hidden1", 0.5, 0.3)),
    ),
}  # fmt: skip


def _apply(params, batch_stats, inputs, rng):
    features = jnp.tanh(inputs @ params["hidden1"]["kernel"] + params["hidden1"]["bias"])
    logits = features @ params["output"]["kernel"] + params["output"]["bias"]
    return logits, features, batch_stats


def _targets(meta_params, features, logits, labels):
    """What is believed of each label, and a little of what the features say."""
    return jax.nn.softmax(meta_params["table"][labels] + features @ meta_params["weights"])


def _problem_and_window(spec, k):
    rng = np.random.default_rng(0)
    tx = spec.bind(num_updates=10, updates_per_epoch=2)
    params = {
        "hidden1": {"kernel": rng.normal(size=(NUM_INPUTS, NUM_FEATURES)), "bias": np.ones(2)},
        "output": {"kernel": rng.normal(size=(NUM_FEATURES, NUM_CLASSES)), "bias": np.ones(3)},
    }

    def used(x):
        """An optimizer that has been at work: nothing it remembers is zero."""
        if jnp.issubdtype(x.dtype, jnp.integer):
            return np.full(x.shape, START, x.dtype)
        return 0.01 * np.abs(rng.normal(size=x.shape))

    def examples(size):
        labels = rng.integers(0, NUM_CLASSES, (k, size)).astype(np.int32)
        return Labelled(rng.normal(size=(k, size, NUM_INPUTS)), labels)

    main = MainState(params, {}, jax.tree.map(used, jax.eval_shape(tx.init, params)))
    meta_params = {
        "table": rng.normal(size=(NUM_CLASSES, NUM_CLASSES)),
        "weights": rng.normal(size=(NUM_FEATURES, NUM_CLASSES)),
    }
    rngs = jax.random.split(jax.random.key(0), k)
    window = (Batch(examples(6), examples(3), examples(4)), rngs)
    return Problem(_apply, _targets, tx), main, meta_params, window


QUICK = ("sgd groups clipped",)  # Warm-up, decay, clipping, groups of three kinds.


def _finite_differences(problem, main, meta_params, window, step=1e-5):
    """Central differences of the clean loss after the window, in every meta parameter."""
    flat, unravel = ravel_pytree(meta_params)

    def loss(flat):
        end, _ = core.unroll(problem, main, unravel(flat), *window)
        clean = jax.tree.map(lambda x: x[-1], window[0].clean_outer)
        return core.outer_loss(problem, end.params, {}, clean, window[1][-1])[0]

    shifts = step * jnp.eye(flat.size)
    ends = jax.jit(jax.vmap(loss))(jnp.concatenate([flat + shifts, flat - shifts]))
    return (ends[: flat.size] - ends[flat.size :]) / (2 * step)


@pytest.mark.parametrize("k", [pytest.param(1, marks=pytest.mark.slow), 3])
@pytest.mark.parametrize(
    "name",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in SPECS],
)
def test_the_meta_gradient_is_the_slope_of_the_clean_loss(name, k, x64):
    problem, main, meta_params, window = _problem_and_window(SPECS[name], k)
    want = _finite_differences(problem, main, meta_params, window)
    assert np.linalg.norm(want) > 1e-4
    reference = jax.jit(functools.partial(estimators.exact_reference, problem))
    exact = jax.jit(functools.partial(estimators.exact, problem))
    for got, end in (
        reference(main, meta_params, *window),
        exact(main, meta_params, *window)[:2],
    ):
        got = ravel_pytree(got)[0]
        assert np.linalg.norm(got - want) / np.linalg.norm(want) < 1e-7
        frozen = main.params["hidden1"]["bias"]
        moved = np.abs(end.params["hidden1"]["bias"] - frozen).max()
        assert (moved == 0) == ("groups" in name)


# --- A further gradient, added after clipping and normalisation.


@pytest.mark.parametrize("kind", ["normalize", "clip", "raw"])
def test_an_auxiliary_gradient_is_neither_clipped_nor_normalised(kind):
    grads, beside = {"x": jnp.array([3.0, 4.0])}, {"x": jnp.array([10.0, 0.0])}
    spec = {
        "normalize": optimizers.sgd(2.0, normalize=True),
        "clip": optimizers.sgd(2.0, clip_norm=1.0),
        "raw": optax.chain(optax.clip_by_global_norm(1.0), optax.scale(-2.0)),
    }[kind]
    tx = optimizers.bind(spec, num_updates=1, updates_per_epoch=1)
    updates, _ = tx.update(grads, tx.init(grads), grads, auxiliary=beside)
    # What optax made knows of one gradient alone.
    together = np.array([13.0, 4.0])
    want = -2 * together / np.linalg.norm(together) if kind == "raw" else [-2 * 10.6, -2 * 0.8]
    np.testing.assert_allclose(updates["x"], want, rtol=1e-6)
    plain, _ = tx.update(grads, tx.init(grads), grads)
    np.testing.assert_allclose(plain["x"], [-1.2, -1.6], rtol=1e-6)


def test_an_auxiliary_gradient_leaves_frozen_parameters_alone():
    params = {"x": jnp.ones(2), "y": jnp.ones(3)}
    tx = optimizers.bind(
        optimizers.sgd(1.0, groups=(("y", 0.0),)), num_updates=1, updates_per_epoch=1
    )
    updates, _ = tx.update(params, tx.init(params), params, auxiliary=params)
    np.testing.assert_array_equal(updates["x"], [-2, -2])
    np.testing.assert_array_equal(updates["y"], 0)
