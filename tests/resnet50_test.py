"""The bottleneck ResNet against numbers recorded from torchvision, and its checkpoints."""

import functools
import json
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from mlc_jax import build
from mlc_jax import config as settings
from mlc_jax.core import Batch, Labelled, MainState, Problem, second_order
from mlc_jax.core.optimizers import sgd
from mlc_jax.errors import InputError
from mlc_jax.methods.blocks import init_model, train_mode
from mlc_jax.models import ResNet50, initial_params
from mlc_jax.models.pretrained import save_params
from mlc_jax.models.torch_weights import resnet_from_torch

DATA = pathlib.Path(__file__).parent / "data"
TINY = ResNet50(3, depth=26, width=2)


@functools.cache
def _recorded(depth):
    return dict(np.load(DATA / f"resnet50_depth{depth}.npz"))


def _weight(name, shape):
    """As drawn for the recording; see tests/data/README.md."""
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        draw = np.exp(0.3 * draw)
    elif len(shape) == 4:
        draw *= np.sqrt(2 / np.prod(shape[1:]))
    elif len(shape) == 2:
        draw *= np.sqrt(1 / shape[1])
    elif name.endswith("weight"):
        draw = (0.3 if "bn3" in name else 1) * (1 + 0.2 * draw)
    else:
        draw *= 0.2
    return draw.astype(np.float32)


@functools.cache
def _weights(depth):
    """The recording's `state_dict`."""
    shapes = json.loads(str(_recorded(depth)["shapes"]))
    return {name: _weight(name, shape) for name, shape in shapes.items()}


def _images(depth):
    return _recorded(depth)["images"].transpose(0, 2, 3, 1)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("train",))
def _apply(model, params, batch_stats, images, train=False):
    variables = {"params": params, "batch_stats": batch_stats}
    return model.apply(variables, images, train=train, mutable=["batch_stats"])


def _sampled(gradient):
    """What is kept of an array: some of its numbers, and its norm."""
    flat = np.asarray(gradient, np.float64).reshape(-1)
    places = np.linspace(0, flat.size - 1, min(flat.size, 16)).astype(int)
    return np.append(flat[places], np.sqrt(np.sum(flat**2)))


# --- Against torchvision.


@pytest.mark.parametrize("depth", [26, pytest.param(50, marks=pytest.mark.slow)])
def test_features_logits_and_gradient_are_those_of_torchvision(depth):
    want, model = _recorded(depth), ResNet50(7, depth=depth)
    params, batch_stats = resnet_from_torch(_weights(depth))

    def loss(params):
        variables = {"params": params, "batch_stats": batch_stats}
        logits, features = model.apply(variables, _images(depth), train=False)
        log_probs = jax.nn.log_softmax(logits)
        return -jnp.mean(log_probs[jnp.arange(len(logits)), want["labels"]]), (logits, features)

    grads, (logits, features) = jax.jit(jax.grad(loss, has_aux=True))(params)
    np.testing.assert_allclose(features, want["features"], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(logits, want["logits"], rtol=1e-4, atol=1e-4)
    flat = traverse_util.flatten_dict(grads, sep="/")
    for name in (x for x in want if x.startswith("grads/")):
        weight = {name.removeprefix("grads/"): _weights(depth)[name.removeprefix("grads/")]}
        (path,) = traverse_util.flatten_dict(resnet_from_torch(weight)[0], sep="/")
        norm = want[name][-1]
        np.testing.assert_allclose(_sampled(flat[path]), want[name], rtol=0, atol=1e-4 * norm)


def test_training_mode_is_that_of_torchvision():
    depth, want = 26, _recorded(26)
    params, batch_stats = resnet_from_torch(_weights(depth))
    model = ResNet50(7, depth=depth)
    (logits, _), updated = _apply(model, params, batch_stats, _images(depth), train=True)
    np.testing.assert_allclose(logits, want["train_logits"], rtol=1e-4, atol=1e-3)
    names = [x for x in want if x.startswith("after/")]
    assert len(names) == 10
    # Positions that the variance is over: torch keeps the unbiased one, n / (n - 1) times Flax's.
    num_positions = {"bn1": 24 * 32, "layer4.0.bn1": 3 * 4, "layer4.0.bn2": 2 * 2}
    for name in names:
        layer, _, statistic = name.removeprefix("after/").rpartition(".")
        path = layer.replace("layer4.0", "layer4_0").replace("downsample.1", "downsample_1")
        kind = {"running_mean": "mean", "running_var": "var"}[statistic]
        tree, before = updated["batch_stats"], batch_stats
        for part in path.split("."):
            tree, before = tree[part], before[part]
        got, expected = tree[kind], want[name]
        if kind == "var":
            n = len(want["labels"]) * num_positions.get(layer, 2 * 2)
            got = 0.9 * before[kind] + (got - 0.9 * before[kind]) * n / (n - 1)
        np.testing.assert_allclose(got[::8], expected, rtol=1e-3, atol=1e-4)


# --- Checkpoints.


def _state_dict(model, seed=0):
    """As torchvision would save such a network with 1,000 classes."""
    shapes = jax.eval_shape(
        functools.partial(model.clone(num_classes=1000).init, train=False),
        jax.random.key(0), jnp.zeros((1, 32, 32, 3)),
    )  # fmt: skip
    rng, state = np.random.default_rng(seed), {}
    leaf_names = {"kernel": "weight", "scale": "weight", "bias": "bias"}
    leaf_names |= {"mean": "running_mean", "var": "running_var"}
    for tree in shapes.values():
        for path, leaf in traverse_util.flatten_dict(tree).items():
            *layers, last = path
            name = ".".join(layers).replace("_", ".")
            shape = leaf.shape[::-1] if last == "kernel" else leaf.shape  # Square in between.
            if len(shape) == 4:
                shape = (shape[0], shape[1], *shape[2:])
            state[f"{name}.{leaf_names[last]}"] = rng.uniform(0.5, 1, shape).astype(np.float32)
        state["bn1.num_batches_tracked"] = np.array(3)
    return state


def _binding(model, source=None):
    return type("Binding", (), {"model": model, "loaded": initial_params(model, source)})


def _init(model, source=None, seed=1):
    return init_model(_binding(model, source), jax.random.key(seed), jnp.zeros((1, 32, 32, 3)))


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "model."])
def test_a_checkpoint_gives_all_but_the_last_layer(tmp_path, prefix):
    path, state = str(tmp_path / "weights.safetensors"), _state_dict(TINY)
    save_params(path, {prefix + name: x for name, x in state.items()})
    params, batch_stats = _init(TINY, path)
    want_params, want_stats = resnet_from_torch(state)
    del want_params["fc"]
    fresh, _ = _init(TINY)
    jax.tree.map(np.testing.assert_array_equal, params, want_params | {"fc": fresh["fc"]})
    jax.tree.map(np.testing.assert_array_equal, batch_stats, want_stats)


@pytest.mark.slow
def test_what_was_saved_here_is_loaded_whole(tmp_path):
    path = str(tmp_path / "own.safetensors")
    params, _ = _init(TINY, seed=5)
    save_params(path, params)
    jax.tree.map(np.testing.assert_array_equal, _init(TINY, path)[0], params)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (TINY.clone(depth=50), "has depth 26, expected that of the model, 50"),
        (TINY.clone(width=4), "has width 2, expected that of the model, 4"),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(tmp_path, model, message):
    path = str(tmp_path / "weights.safetensors")
    save_params(path, _state_dict(TINY))
    with pytest.raises(InputError, match=message):
        initial_params(model, path)


def test_a_pth_file_runs_no_code(tmp_path):
    torch = pytest.importorskip("torch", reason="the extra `pictures`")
    state = _state_dict(TINY)
    torch.save({name: torch.tensor(x) for name, x in state.items()}, tmp_path / "a.pth")
    params, _ = _init(TINY, str(tmp_path / "a.pth"))
    np.testing.assert_array_equal(params["bn1"]["scale"], state["bn1.weight"])
    torch.save({"conv1.weight": print}, tmp_path / "bad.pth")
    with pytest.raises(InputError, match="no readable state_dict"):
        initial_params(TINY, str(tmp_path / "bad.pth"))


def test_a_pth_file_without_pytorch_says_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "torch", None)
    (tmp_path / "a.pth").write_bytes(b"")
    with pytest.raises(InputError, match=r"a\.pth' is read by PyTorch, .*mlc_jax\[pictures\]"):
        initial_params(TINY, str(tmp_path / "a.pth"))
    with pytest.raises(InputError, match="no file"):
        initial_params(TINY, str(tmp_path / "b.pth"))


# --- In training.


def _batch(seed=0):
    rng = np.random.default_rng(seed)

    def examples(size):
        images = rng.normal(size=(2, size, 32, 32, 3)).astype(np.float32)
        labels = rng.integers(0, 3, (2, size)).astype(np.int32)
        return Labelled(jnp.asarray(images), jnp.asarray(labels), jnp.asarray(labels))

    return Batch(examples(4), examples(2), examples(2))


def _products(model):
    """Both second-order products of one inner gradient along the gradient itself."""
    params, batch_stats = _init(model)
    problem = Problem(
        train_mode(_binding(model)), lambda belief, *_: jnp.tile(jax.nn.softmax(belief), (4, 1)),
        sgd(0.1),
    )  # fmt: skip
    batch = jax.tree.map(lambda x: x[0], _batch())
    main = MainState(params, batch_stats, None)

    @jax.jit
    def run(main, belief):
        v = jax.tree.map(jnp.ones_like, main.params)
        return second_order.inner_grads_vjp(problem, main, belief, batch, jax.random.key(0), v)

    return run(main, jnp.arange(3.0))


@pytest.mark.slow
def test_computing_blocks_again_changes_nothing():
    plain, again = (_products(TINY.clone(remat=remat)) for remat in (False, True))
    for x, y in zip(jax.tree.leaves(plain), jax.tree.leaves(again), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-4 * max(1, np.abs(x).max()))


@pytest.mark.slow
def test_frozen_statistics_stay_and_normalise_in_training():
    model = TINY.clone(freeze_batch_norm=True)
    params, batch_stats = _init(model)
    images = jnp.asarray(np.random.default_rng(0).normal(size=(4, 32, 32, 3)), jnp.float32)
    (logits, _), updated = _apply(model, params, batch_stats, images, train=True)
    jax.tree.map(np.testing.assert_array_equal, updated["batch_stats"], batch_stats)
    (alone, _), _ = _apply(model, params, batch_stats, images[:1], train=True)
    np.testing.assert_allclose(logits[:1], alone, atol=1e-5)
    (other, _), updated = _apply(TINY, params, batch_stats, images, train=True)
    assert not np.allclose(other, logits, atol=1e-3)
    assert not np.array_equal(updated["batch_stats"]["bn1"]["mean"], batch_stats["bn1"]["mean"])


@pytest.mark.slow
def test_bfloat16_keeps_params_and_outputs_in_float32():
    with jax.numpy_dtype_promotion("standard"):
        params, batch_stats = _init(TINY.clone(dtype=jnp.bfloat16))
        images = jnp.asarray(np.random.default_rng(0).normal(size=(8, 32, 32, 3)), jnp.float32)
        (logits, features), updated = _apply(
            TINY.clone(dtype=jnp.bfloat16), params, batch_stats, images, train=False
        )
        (exact, _), _ = _apply(TINY, params, batch_stats, images, train=False)
    assert {x.dtype for x in jax.tree.leaves((params, updated, logits, features))} == {
        jnp.dtype("float32")
    }
    np.testing.assert_allclose(logits, exact, atol=0.05)
    assert not np.array_equal(logits, exact)


def test_settings_reach_the_model(tmp_path):
    config = settings.get_config()
    config.model.name, config.model.dtype = "resnet50", "bfloat16"
    path = str(tmp_path / "weights.safetensors")
    config.model.resnet50.update(
        {"depth": 26, "width": 2, "checkpoint": path, "freeze_batch_norm": True, "remat": True}
    )
    method = build.create_method(config, 3)
    assert method.model == TINY.clone(
        freeze_batch_norm=True, remat=True, dtype=jnp.dtype("bfloat16")
    )
    assert method.initial_params == path


def test_the_published_network_has_its_size():
    init = functools.partial(ResNet50(1000).init, train=False)
    shapes = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))
    assert sum(x.size for x in jax.tree.leaves(shapes["params"])) == 25_557_032  # torchvision's.
