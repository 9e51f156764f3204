"""1, 2 and 8 devices compute the same update for the same global batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from configs import digits
from mlc_jax import build
from mlc_jax.core import problem, second_order
from mlc_jax.core.estimators import ESTIMATORS
from mlc_jax.core.inner_loss import Mixing
from mlc_jax.data import ArraySource, Subset
from mlc_jax.data.loader import Pipeline
from mlc_jax.training import stack

NUM_CLASSES, NUM_NOISY, NUM_WINDOWS = 3, 40, 2
NUM_BATCH = 16  # Noisy examples per step; as many clean ones.


def _config(model, estimator, method):
    config = digits.get_config()
    config.method = method
    config.model.name = model
    config.model.mlp.hidden_sizes = (8, 6)
    config.model.resnet.depth = 8
    config.meta_gradient.estimator = estimator
    config.meta_gradient.num_inner_steps = 2
    config.main_optimizer.weight_decay = 5e-4
    config.meta_optimizer.name = "amsgrad"  # optax's Adam cannot do with strict promotion.
    config.lcn.hidden_size = config.lcn.embedding_size = 5
    return config


def _pipeline(shape, config):
    method = build.create_method(config, NUM_CLASSES)
    rng = np.random.default_rng(0)

    def examples(num):
        inputs = rng.normal(size=(num, *shape)).astype(np.float32)
        labels = rng.integers(0, NUM_CLASSES, num).astype(np.int32)
        return Subset(ArraySource(inputs), np.arange(num), given=labels, truth=labels)

    return Pipeline(
        noisy=examples(NUM_NOISY), clean=examples(20), noisy_batch_size=NUM_BATCH,
        clean_batch_size=NUM_BATCH, split_clean=True, augment=False, seed=0,
        num_inner_steps=method.stride + method.num_replayed, num_replayed=method.num_replayed,
    )  # fmt: skip


def _bind(config, axis_name):
    return build.create_method(config, NUM_CLASSES).bind(
        num_noisy=NUM_NOISY,
        num_classes=NUM_CLASSES,
        steps_per_epoch=2,
        num_epochs=2 * config.meta_gradient.num_inner_steps,
        axis_name=axis_name,
    )


def _phase(bound, config):
    """Joint's losses are the first phase's."""
    return bound.phases[0 if config.method == "joint" else -1]


_TRAINED = {}  # Several tests hold something against the same.


def _train(config, shape, num_devices, num_windows=NUM_WINDOWS):
    """A few windows on `num_devices`; the state and the last window's metrics, as NumPy."""
    key = config.to_json(), shape, num_devices, num_windows
    if key not in _TRAINED:
        _TRAINED[key] = _train_anew(config, shape, num_devices, num_windows)
    return _TRAINED[key]


def _train_anew(config, shape, num_devices, num_windows=NUM_WINDOWS):
    devices = jax.devices()[:num_devices]
    bound = _bind(config, "batch")
    step = stack.over_devices(_phase(bound, config).train_step, donate=True, devices=devices)
    replicated = NamedSharding(Mesh(np.asarray(devices), ("batch",)), PartitionSpec())
    state = jax.jit(bound.init, out_shardings=replicated)(jax.random.key(0), jnp.zeros((1, *shape)))
    batches = _pipeline(shape, config).batches(0, num_devices=num_devices)
    for _ in range(num_windows):
        state, metrics = step(state, next(batches))
        jax.block_until_ready(state)  # Many fake devices on few cores time out otherwise.
    return _kept(state, metrics)


def _train_sharded(config, shape, num_devices):
    """The same by `jit` of `shard_map`: what would stand in `stack.over_devices` without pmap."""
    mesh = Mesh(np.asarray(jax.devices()[:num_devices]), ("batch",))
    everywhere, split = PartitionSpec(), PartitionSpec("batch")
    bound = _bind(config, "batch")
    train_step = _phase(bound, config).train_step
    # The step averages its own gradients: with check_vma they would be averaged once more.
    step = jax.shard_map(
        lambda state, batch: train_step(state, jax.tree.map(lambda x: x[0], batch)),
        mesh=mesh, in_specs=(everywhere, split), out_specs=everywhere, check_vma=False,
    )  # fmt: skip
    step = jax.jit(step, donate_argnums=0)
    replicated = NamedSharding(mesh, everywhere)
    state = jax.jit(bound.init, out_shardings=replicated)(jax.random.key(0), jnp.zeros((1, *shape)))
    batches = _pipeline(shape, config).batches(0, num_devices=num_devices)
    for _ in range(NUM_WINDOWS):
        batch = jax.device_put(next(batches), NamedSharding(mesh, split))
        state, metrics = step(state, batch)
        jax.block_until_ready(state)
    return _kept(state, metrics)


def _train_bare(config, shape):
    """The same without an axis: nothing but `jax.jit`."""
    bound = _bind(config, None)
    state = jax.jit(bound.init)(jax.random.key(0), jnp.zeros((1, *shape)))
    step = jax.jit(_phase(bound, config).train_step)
    batches = _pipeline(shape, config).batches(0)
    for _ in range(NUM_WINDOWS):
        state, metrics = step(state, jax.tree.map(lambda x: x[0], next(batches)))
    return _kept(state, metrics)


def _kept(state, metrics):
    kept = {
        "step": state.step,
        "main": state.main.params,
        "batch_stats": state.main.batch_stats,
        "momentum": state.main.opt_state,
        "meta": None if state.meta is None else state.meta.params,
        "extra": state.extra,
        "past": state.past,
        "metrics": metrics,
    }
    return jax.device_get(kept)


def _assert_same(got, want, rtol, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), got, want)


def _slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("method", "estimator", "device_counts"),
    [
        ("mlc", "exact", (8,)),
        *(_slow("mlc", name, (8,)) for name in ESTIMATORS if name != "exact"),
        _slow("meta_weight_net", "exact", (8,)),
        _slow("emlc", "exact", (8,)),
        _slow("self_training", "exact", (8,)),
        *(_slow(name, "exact", (8,)) for name in ("l2rw", "glc", "mlnt")),
    ],
)
def test_mlp_update_does_not_depend_on_the_device_count(method, estimator, device_counts):
    """Dear for MLC's step of one device and of eight: that gradients are averaged at all."""
    config = _config("mlp", estimator, method)
    alone = _train(config, (4,), 1)
    for num_devices in device_counts:
        _assert_same(_train(config, (4,), num_devices), alone, rtol=2e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", ["exact", "first_order", "approximate"])
def test_overlapping_windows_do_not_depend_on_the_device_count(estimator):
    """The first two updates have shorter windows than the others."""
    config = _config("mlp", estimator, "mlc")
    config.meta_gradient.update(num_inner_steps=3, update_every=1, unroll=1)
    alone = _train(config, (4,), 1, num_windows=4)
    assert alone["past"] is not None
    _assert_same(_train(config, (4,), 8, num_windows=4), alone, rtol=5e-5, atol=2e-6)


def _robust(mixup, backward):
    """Regularisers that are felt from the first step on."""
    config = _config("mlp", "exact", "robust_mlc")
    config.inner_loss.update(mixup=mixup, power=1.0, prior_weight=2.0, hand_over=True)
    config.meta_gradient.update(backward=backward, num_inner_steps=3, unroll=1)
    return config


@pytest.mark.slow
@pytest.mark.parametrize("backward", ["forward_over_reverse", "store", "two_level"])
def test_means_inside_the_inner_loss_are_over_all_devices(backward):
    """How far clean labels are fitted, and the mean prediction, inside the differentiated step."""
    config = _robust(0.0, backward)
    alone = _train(config, (4,), 1)
    assert 0 < alone["metrics"]["fitted"] < 1 and alone["metrics"]["prior"] > 1e-3
    _assert_same(_train(config, (4,), 8), alone, rtol=5e-5, atol=2e-6)


def _mixing(num_devices):
    """In place of `mixing_of`: drawn per eighth of a batch, wherever these are."""
    rng = np.random.default_rng(0)
    partners = np.stack([rng.permutation(3) for _ in range(8)])  # 2 noisy, 1 clean of each.
    shares = rng.uniform(0, 0.5, (8, 3)).astype(np.float32)
    if num_devices == 8:

        def mixing_of(problem, batch, rng):
            device = jax.lax.axis_index("batch")
            return Mixing(jnp.asarray(partners)[device], jnp.asarray(shares)[device])

        return mixing_of
    # All noisy examples, then all clean ones.
    places = np.stack([[2 * d, 2 * d + 1, NUM_BATCH + d] for d in range(8)])
    order = np.argsort(places.ravel())
    together = Mixing(
        jnp.asarray(np.take_along_axis(places, partners, axis=1).ravel()[order]),
        jnp.asarray(shares.ravel()[order]),
    )
    return lambda problem, batch, rng: together


@pytest.mark.slow
def test_mixed_examples_do_not_depend_on_the_device_count(monkeypatch):
    """Partners come from a device's own slice: one device is given those of the eight."""
    ends = []
    for num_devices in (1, 8):
        for module in (problem, second_order):
            monkeypatch.setattr(module, "mixing_of", _mixing(num_devices))
        ends.append(_train_anew(_robust(1.0, "store"), (4,), num_devices))
    assert ends[0]["metrics"]["fitted"] > 0
    _assert_same(ends[1], ends[0], rtol=5e-5, atol=2e-6)


@pytest.mark.slow
def test_resnet_update_does_not_depend_on_the_device_count():
    # With synchronised batch norm, gradients flow through statistics that are averaged over the
    # devices, in the inner and in the outer pass.
    config = _config("resnet", "exact", "mlc")
    config.meta_gradient.unroll = 1
    config.model.resnet.sync_batch_norm = True
    alone, two = (_train(config, (8, 8, 3), n) for n in (1, 2))
    _assert_same(two, alone, rtol=2e-3, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mlc", "glc", "joint"])
def test_bare_jit_is_pmap_on_one_device(method):
    """What `Method.bind` makes is usable as it is: `pmap` is the training loop's business."""
    config = _config("mlp", "exact", method)
    bare = _train_bare(config, (4,))
    assert bare["step"] == 2 * NUM_WINDOWS
    _assert_same(bare, _train(config, (4,), 1), rtol=1e-6, atol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["mlc", "emlc"])
def test_pmap_is_jit_of_shard_map(method):
    """pmap is in maintenance mode: a later swap is one function, `stack.over_devices`."""
    config = _config("mlp", "exact", method)
    sharded = _train_sharded(config, (4,), 8)
    assert sharded["step"] == 2 * NUM_WINDOWS
    _assert_same(sharded, _train(config, (4,), 8), rtol=0, atol=0)


def test_runs_of_a_stack_are_split_as_they_were_joined():
    states = [{"a": jnp.full(3, number), "b": jnp.float32(number)} for number in range(3)]
    for one, again in zip(states, stack.split(stack.join_states(states), 3), strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, again)
