"""Classifiers, the label correction network, and PyTorch layouts."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import traverse_util

from mlc_jax.core import losses, num_params
from mlc_jax.errors import InputError
from mlc_jax.models import MLP, LabelCorrectionNetwork, ResNet, over_axis
from mlc_jax.models.resnet import ResNetBlock, option_a_shortcut
from mlc_jax.models.torch_weights import label_correction_from_torch, resnet_from_torch

IMAGES = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
LCN_OPTIONS = [
    {"skip_link": skip, "sparsemax": sparse, "tie_embeddings": tied}
    for skip, sparse, tied in itertools.product((False, True), repeat=3)
]


def _shapes(model, inputs=IMAGES):
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), inputs)


@functools.partial(jax.jit, static_argnums=0)
def _init(model, inputs):
    return model.init(jax.random.key(0), inputs, train=False)


@functools.partial(jax.jit, static_argnums=0, static_argnames=("train", "mutable"))
def _apply(model, variables, inputs, train=False, mutable=False, rngs=None):
    return model.apply(variables, inputs, train=train, mutable=mutable, rngs=rngs)


def _random_like(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: rng.normal(size=x.shape).astype(np.float32), shapes)


# --- ResNet.


@pytest.mark.parametrize(
    ("depth", "count"),
    [
        # First convolution and its norm: 9 * 3 * 16 + 2 * 16 = 464. Linear: 64 * 10 + 10 = 650.
        # With n blocks a stage (two convolutions each, 9 * in * out weights, 2 * out for the norm):
        #   stage 1: 2n * (2304 + 32)
        #   stage 2: 4608 + (2n - 1) * 9216 + 2n * 64
        #   stage 3: 18432 + (2n - 1) * 36864 + 2n * 128
        # n = 3: 464 + 14,016 + 51,072 + 203,520 + 650 (0.27 million in He et al.)
        (20, 269_722),
        # n = 5: 464 + 23,360 + 88,192 + 351,488 + 650 (0.46 million)
        (32, 464_154),
        # n = 9: 464 + 42,048 + 162,432 + 647,424 + 650 (0.85 million)
        (56, 853_018),
    ],
)
def test_resnet_parameter_count(depth, count):
    assert num_params(_shapes(ResNet(10, depth=depth))["params"]) == count


def test_resnet_32_for_100_classes():
    # 90 more columns of 64 weights and a bias.
    assert num_params(_shapes(ResNet(100))["params"]) == 464_154 + 90 * 65


@pytest.mark.parametrize("depth", [2, 7, 18, 34, 46])
def test_resnet_depth_must_be_6n_plus_2(depth):
    with pytest.raises(ValueError, match=f"ResNet depth: got {depth}, expected 6n"):
        _shapes(ResNet(10, depth=depth))


def test_option_a_shortcut_by_hand():
    x = jnp.arange(32.0).reshape(1, 4, 4, 2)  # Channels of pixel (r, c): 8r + 2c and one more.
    got = option_a_shortcut(x, width=6, stride=2)
    pixels = [[[0, 1], [4, 5]], [[16, 17], [20, 21]]]
    want = [[[[0, 0, *pixel, 0, 0] for pixel in row] for row in pixels]]
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(option_a_shortcut(x, width=2, stride=1), x)


def _conv(x, kernel, stride):
    """PyTorch's `conv2d(padding=1)`: image [H, W, in], kernel [3, 3, in, out]."""
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    rows, columns = (range(0, size, stride) for size in x.shape[:2])
    return np.array([
        [np.einsum("hwi,hwio->o", padded[r : r + 3, c : c + 3], kernel) for c in columns]
        for r in rows
    ])  # fmt: skip


@pytest.mark.parametrize(("size", "stride"), [(6, 2), (5, 2), (4, 1)])
def test_resnet_block_against_numpy(size, stride):
    width, channels = 4, 4 // stride
    block = ResNetBlock(width=width, stride=stride, dtype=None, axis_name=None)
    x = np.random.default_rng(1).normal(size=(1, size, size, channels)).astype(np.float32)
    variables = _random_like(_shapes(block, jnp.asarray(x)))
    variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])

    def norm(y, name):
        params, stats = variables["params"][name], variables["batch_stats"][name]
        y = (y - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
        return y * params["scale"] + params["bias"]

    y = _conv(x[0], variables["params"]["conv1"]["kernel"], stride)
    y = _conv(np.maximum(norm(y, "bn1"), 0), variables["params"]["conv2"]["kernel"], 1)
    shortcut = np.zeros_like(y)
    start = (width - channels) // 2
    shortcut[:, :, start : start + channels] = x[0, ::stride, ::stride]
    want = np.maximum(norm(y, "bn2") + shortcut, 0)
    got = block.apply(variables, x, train=False)
    np.testing.assert_allclose(got[0], want, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def small_resnet():
    """Images and variables; not by `init`, whose random draws take seconds to compile."""
    images = np.random.default_rng(0).normal(size=(6, 8, 8, 3)).astype(np.float32)
    variables = _random_like(_shapes(ResNet(5, depth=8), images))
    scale = lambda x: x / np.float32(np.sqrt(np.prod(x.shape[:-1])))  # noqa: E731
    stats = jax.tree.map(np.abs, variables["batch_stats"])
    return images, {"params": jax.tree.map(scale, variables["params"]), "batch_stats": stats}


def test_resnet_logits_are_a_linear_layer_on_the_features(small_resnet):
    images, variables = small_resnet
    logits, features = _apply(ResNet(5, depth=8), variables, images)
    assert features.shape == (6, 64)
    linear = variables["params"]["linear"]
    want = features @ linear["kernel"] + linear["bias"]
    np.testing.assert_allclose(logits, want, rtol=1e-5, atol=1e-5)


def test_resnet_batch_statistics_move_by_a_tenth_in_training_only(small_resnet):
    images, variables = small_resnet
    apply = functools.partial(_apply, ResNet(5, depth=8), variables, images)
    _, same = apply(train=False, mutable=("batch_stats",))
    jax.tree.map(np.testing.assert_array_equal, same["batch_stats"], dict(variables["batch_stats"]))
    _, new = apply(train=True, mutable=("batch_stats",))
    first = np.stack([
        _conv(np.asarray(image), np.asarray(variables["params"]["conv1"]["kernel"]), 1)
        for image in images
    ])  # fmt: skip
    got = new["batch_stats"]["bn1"]
    for name, batch in (("mean", first.mean((0, 1, 2))), ("var", first.var((0, 1, 2)))):
        want = 0.9 * variables["batch_stats"]["bn1"][name] + 0.1 * batch
        np.testing.assert_allclose(got[name], want, rtol=1e-3, atol=1e-6)


def test_bfloat16_resnet_returns_float32_near_the_float32_one(small_resnet, standard_promotion):
    images, variables = small_resnet
    exact, exact_features = _apply(ResNet(5, depth=8), variables, images)
    low, features = _apply(ResNet(5, depth=8, dtype=jnp.bfloat16), variables, images)
    assert low.dtype == features.dtype == jnp.float32
    scale = np.abs(exact).max()
    error = np.abs(low - exact).max() / scale
    assert 1e-5 < error < 0.03  # bfloat16 keeps 8 bits; below 1e-5 it was not used.
    np.testing.assert_allclose(features, exact_features, atol=0.03 * exact_features.max())


def test_bfloat16_leaves_params_and_statistics_in_float32(standard_promotion):
    shapes = _shapes(ResNet(10, depth=8, dtype=jnp.bfloat16))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


def test_batch_statistics_are_averaged_over_the_axis_that_there_is():
    class Plain(nn.Module):
        pass

    for axis_name in ("batch", None):
        assert over_axis(ResNet(5), axis_name).axis_name == axis_name
        assert over_axis(ResNet(5, sync_batch_norm=False), axis_name).axis_name is None
        plain = Plain()  # A model of the user's own need not know of devices.
        assert over_axis(plain, axis_name) is plain


def test_resnet_initialisation_is_kaiming_normal():
    block = ResNetBlock(width=64, stride=1, dtype=None, axis_name=None)
    variables = _init(block, np.zeros((1, 2, 2, 64), np.float32))
    kernel = variables["params"]["conv2"]["kernel"]  # 36,864 draws.
    np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / (9 * 64)), rtol=0.02)
    for name, want in (("scale", 1), ("bias", 0)):
        np.testing.assert_array_equal(variables["params"]["bn1"][name], want)


# --- MLP.


def test_mlp_by_hand():
    model = MLP(num_classes=2, hidden_sizes=(2,))
    params = {
        "hidden1": {"kernel": jnp.array([[1.0, -1.0], [2.0, 0.0]]), "bias": jnp.array([0.5, 0.0])},
        "output": {"kernel": jnp.array([[1.0, 2.0], [3.0, 4.0]]), "bias": jnp.array([0.0, 1.0])},
    }
    inputs = jnp.array([[[1.0], [1.0]], [[-1.0], [0.0]]])  # [2, 2, 1]: flattened.
    logits, features = model.apply({"params": params}, inputs, train=False)
    np.testing.assert_allclose(features, [[3.5, 0.0], [0.0, 1.0]])
    np.testing.assert_allclose(logits, [[3.5, 8.0], [3.0, 5.0]])


def test_mlp_dropout_is_active_in_training_only():
    model = MLP(num_classes=3, hidden_sizes=(2000,), dropout_rate=0.25)
    inputs = jnp.ones((2, 4))
    params = _shapes(model, inputs)["params"]
    params = jax.tree.map(lambda x: jnp.ones(x.shape), params)  # Every hidden unit is 5.
    apply = functools.partial(_apply, model, {"params": params}, inputs)
    _, features = apply(train=False)  # Needs no key.
    np.testing.assert_array_equal(features, 5)
    _, dropped = apply(train=True, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_allclose(dropped[dropped != 0], 5 / 0.75, rtol=1e-6)
    assert abs(np.mean(dropped == 0) - 0.25) < 0.035  # Five deviations of 4,000 draws.
    _, again = apply(train=True, rngs={"dropout": jax.random.key(0)})
    np.testing.assert_array_equal(again, dropped)
    _, other = apply(train=True, rngs={"dropout": jax.random.key(1)})
    assert np.any(other != dropped)


def test_bfloat16_mlp_returns_float32():
    model = MLP(num_classes=3, dtype=jnp.bfloat16)
    inputs = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    variables = _init(model, inputs)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    low = _apply(model, variables, inputs)
    exact = _apply(MLP(num_classes=3), variables, inputs)
    for a, b in zip(low, exact, strict=True):
        assert a.dtype == jnp.float32
        np.testing.assert_allclose(a, b, atol=0.03 * np.abs(b).max())


# --- Label correction network.


@pytest.fixture
def lcn_inputs():
    features = np.random.default_rng(0).normal(scale=2, size=(40, 6)).astype(np.float32)
    return features, np.arange(40, dtype=np.int32) % 5


def _lcn(options, inputs, hidden_size=8, embedding_size=8):
    """A network with random parameters (biases too), on a scale that leaves tanh's middle."""
    lcn = LabelCorrectionNetwork(
        5, hidden_size=hidden_size, embedding_size=embedding_size, **options
    )
    shapes = jax.eval_shape(lcn.init, jax.random.key(0), *inputs)["params"]
    return lcn, _random_like(shapes)


@pytest.mark.parametrize("options", LCN_OPTIONS)
def test_lcn_returns_distributions(options, lcn_inputs, standard_promotion):
    lcn, params = _lcn(options, lcn_inputs)
    soft_labels = np.asarray(jax.jit(lcn.apply)({"params": params}, *lcn_inputs))
    assert soft_labels.shape == (40, 5)
    assert np.all(soft_labels >= 0)
    np.testing.assert_allclose(soft_labels.sum(axis=-1), 1, atol=1e-5)
    zeros = np.mean(soft_labels == 0)
    assert (zeros > 0.2) if options["sparsemax"] else (zeros == 0)


@pytest.mark.parametrize("options", LCN_OPTIONS)
def test_lcn_against_numpy(options, lcn_inputs, standard_promotion):
    lcn, params = _lcn(options, lcn_inputs)
    features, labels = lcn_inputs
    embedding = params["label_embedding"]["embedding"]

    def dense(x, name):
        return x @ params[name]["kernel"] + params[name]["bias"]

    x = np.concatenate([features, embedding[labels]], axis=1)
    x = np.tanh(dense(np.tanh(dense(x, "hidden1")), "hidden2"))
    logits = x @ embedding.T if options["tie_embeddings"] else dense(x, "output")
    if options["sparsemax"]:
        want = np.asarray(losses.sparsemax(jnp.asarray(logits)))
    else:
        want = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if options["skip_link"]:
        s = 1 / (1 + np.exp(-dense(x, "skip")))
        assert s.min() < 0.4 and s.max() > 0.8
        want = (1 - s) * want + s * np.eye(5)[labels]
    got = jax.jit(lcn.apply)({"params": params}, *lcn_inputs)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["posterior", "both"])
def test_posterior_by_hand(form, lcn_inputs, standard_promotion):
    """Bayes' rule, with the classifier's probabilities as the prior."""
    features, labels = lcn_inputs
    logits = np.random.default_rng(3).normal(size=(40, 5)).astype(np.float32)
    lcn, params = _lcn({"form": form}, (features, labels, logits))
    assert ("hidden1" in params) == (form == "both")
    shares = np.exp(30.0 * params["transition"])
    transition = shares / shares.sum(axis=1, keepdims=True)
    want = np.exp(logits) * transition[:, labels].T
    if form == "both":
        network = {name: x for name, x in params.items() if name != "transition"}
        plain, _ = _lcn({}, lcn_inputs)
        want *= plain.apply({"params": network}, features, labels)
    want /= want.sum(axis=1, keepdims=True)
    got = lcn.apply({"params": params}, features, labels, logits)
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("options", LCN_OPTIONS)
def test_lcn_sums_the_embeddings_of_what_sources_say(options, lcn_inputs, standard_promotion):
    """By NumPy, with a row that has no label and so keeps nothing of it."""
    features, labels = lcn_inputs
    votes = np.stack([labels, np.full(40, -1), (labels + 1) % 5], axis=1).astype(np.int16)
    votes[::3, 2], votes[:10] = -1, -1
    lcn, params = _lcn(options, (features, votes))
    embedding = params["label_embedding"]["embedding"].reshape(3, 5, 8)

    def dense(x, name):
        return x @ params[name]["kernel"] + params[name]["bias"]

    said, counts = np.zeros((40, 8)), np.zeros((40, 5))
    for row, source in np.argwhere(votes >= 0):
        said[row] += embedding[source, votes[row, source]]
        counts[row, votes[row, source]] += 1
    x = np.concatenate([features, said], axis=1)
    x = np.tanh(dense(np.tanh(dense(x, "hidden1")), "hidden2"))
    tied = x @ embedding.sum(axis=0).T
    logits = tied if options["tie_embeddings"] else dense(x, "output")
    want = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    if options["sparsemax"]:
        want = np.asarray(losses.sparsemax(jnp.asarray(logits)))
    if options["skip_link"]:
        spoke = counts.sum(axis=1, keepdims=True)
        s = (spoke > 0) / (1 + np.exp(-dense(x, "skip")))
        want = (1 - s) * want + s * counts / np.maximum(spoke, 1)
    got = jax.jit(lcn.apply)({"params": params}, features, votes)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", ["network", "posterior", "both"])
def test_one_source_is_one_label(form, lcn_inputs):
    """The same random numbers, parameters and results, to the bit."""
    features, labels = lcn_inputs
    lcn = LabelCorrectionNetwork(5, hidden_size=8, embedding_size=8, form=form, skip_link=True)
    logits = np.random.default_rng(3).normal(size=(40, 5)).astype(np.float32)
    init, apply = jax.jit(lcn.init), jax.jit(lcn.apply)
    alone, together = (
        init(jax.random.key(0), features, x, logits) for x in (labels, labels[:, None])
    )
    jax.tree.map(np.testing.assert_array_equal, alone, together)
    np.testing.assert_array_equal(
        apply(alone, features, labels, logits), apply(alone, features, labels[:, None], logits)
    )


def test_a_posterior_of_several_sources_by_hand():
    """`p(y) prod_s T_s[y, v_s]` over those that said something; matrices from counted pairs."""
    lcn = LabelCorrectionNetwork(2, form="posterior")
    logits = jnp.log(jnp.array([[0.6, 0.4]] * 3))
    votes = jnp.array([[0, 1], [-1, 1], [-1, -1]])
    params = lcn.init(jax.random.key(0), jnp.zeros((3, 4)), votes, logits)["params"]
    labels, given = jnp.array([0, 0, 1]), jnp.array([[0, 1], [-1, 0], [1, -1]])
    started = lcn.start_from_pairs(params, labels, given)
    # Of the second source no pair of class 1 is known.
    counts = np.array([[[1.3, 0.3], [0.3, 1.3]], [[1.3, 1.3], [np.e**2, 1]]])
    counts[1, 1] = counts[1, 1][::-1]
    by_source = counts / counts.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(
        jax.nn.softmax(30 * started["transition"]).reshape(2, 2, 2), by_source, rtol=1e-5
    )
    want = np.array([0.6, 0.4]) * np.stack(
        [by_source[0, :, 0] * by_source[1, :, 1], by_source[1, :, 1], np.ones(2)]
    )
    got = lcn.apply({"params": started}, jnp.zeros((3, 4)), votes, logits)
    np.testing.assert_allclose(got, want / want.sum(axis=1, keepdims=True), rtol=1e-5)


def test_a_posterior_starts_near_the_given_label():
    lcn = LabelCorrectionNetwork(5, form="posterior")
    example = jnp.zeros((1, 6)), jnp.zeros(1, jnp.int32), jnp.zeros((1, 5))
    variables = lcn.init(jax.random.key(0), *example)
    (soft_label,) = lcn.apply(variables, *example)
    # Of equal predictions: e^2 to 1 for the given label.
    np.testing.assert_allclose(soft_label, np.array([np.e**2, 1, 1, 1, 1]) / (np.e**2 + 4), 1e-5)


@pytest.mark.parametrize("form", ["posterior", "both", "network"])
def test_a_matrix_starts_from_the_pairs_that_are_known(form):
    lcn = LabelCorrectionNetwork(3, form=form)
    example = jnp.zeros((1, 6)), jnp.zeros(1, jnp.int32), jnp.zeros((1, 3))
    params = lcn.init(jax.random.key(0), *example)["params"]
    # Of class 2 no pair is known, of class 1 one of its two rows.
    labels, given = jnp.array([0, 0, 0, 1, 1, 2]), jnp.array([0, 1, 1, 2, -1, -1])
    started = lcn.start_from_pairs(params, labels, given)
    assert started.keys() == params.keys()
    if form == "network":
        return
    got = jax.nn.softmax(30.0 * started["transition"])
    np.testing.assert_allclose(got[0], np.array([1.3, 2.3, 0.3]) / 3.9, rtol=1e-5)
    np.testing.assert_allclose(got[1], np.array([0.3, 0.3, 1.3]) / 1.9, rtol=1e-5)
    np.testing.assert_array_equal(started["transition"][2], params["transition"][2])


def test_unknown_form_of_an_lcn():
    with pytest.raises(InputError, match=r"lcn\.form: got 'matrix', expected one of network"):
        LabelCorrectionNetwork(5, form="matrix").init(jax.random.key(0), jnp.zeros((1, 6)), 0)


def test_tied_embeddings_share_one_array(lcn_inputs):
    _, free = _lcn({}, lcn_inputs)
    lcn, tied = _lcn({"tie_embeddings": True}, lcn_inputs)
    assert set(free) - set(tied) == {"output"}
    # An embedding that no label looks up is still the output layer of its class.
    features, _ = lcn_inputs
    changed = jax.tree.map(np.array, tied)
    changed["label_embedding"]["embedding"][4] += 1
    zeros = np.zeros(len(features), np.int32)
    apply = jax.jit(lcn.apply)
    before, after = (np.asarray(apply({"params": p}, features, zeros)) for p in (tied, changed))
    odds = lambda p: p[:, 4] / p[:, 0]  # noqa: E731
    assert np.all(np.abs(np.log(odds(after) / odds(before))) > 1e-3)
    np.testing.assert_allclose(after[:, 1] / after[:, 0], before[:, 1] / before[:, 0], rtol=1e-4)


def test_lcn_sizes_and_initialisation():
    lcn = LabelCorrectionNetwork(100, hidden_size=128, embedding_size=96, skip_link=True)
    init = jax.jit(lcn.init)
    params = init(jax.random.key(0), jnp.zeros((1, 64)), jnp.zeros(1, jnp.int32))["params"]
    shapes = {name: layer["kernel"].shape for name, layer in params.items() if "kernel" in layer}
    assert shapes == {
        "hidden1": (64 + 96, 128), "hidden2": (128, 128), "output": (128, 100), "skip": (128, 1)
    }  # fmt: skip
    # Xavier: variance 2 / (fan in + fan out), normal for the layers, uniform for the embedding.
    kernel = params["hidden1"]["kernel"]
    np.testing.assert_allclose(np.std(kernel), np.sqrt(2 / (160 + 128)), rtol=0.03)
    embedding = params["label_embedding"]["embedding"]
    bound = np.sqrt(6 / (100 + 96))
    assert 0.98 * bound < np.abs(embedding).max() <= bound
    for name in shapes:
        np.testing.assert_array_equal(params[name]["bias"], 0)


# --- PyTorch layouts.


def _torch_resnet_shapes(depth, num_classes):
    """Names and shapes of the published network's `state_dict`."""
    shapes = {}

    def conv(name, fan_in, fan_out):
        shapes[f"{name}.weight"] = (fan_out, fan_in, 3, 3)

    def norm(name, width):
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.{leaf}"] = (width,)
        shapes[f"{name}.num_batches_tracked"] = ()

    conv("conv1", 3, 16)
    norm("bn1", 16)
    fan_in = 16
    for stage, width in enumerate((16, 32, 64), start=1):
        for block in range((depth - 2) // 6):
            for i in (1, 2):
                conv(f"layer{stage}.{block}.conv{i}", fan_in, width)
                norm(f"layer{stage}.{block}.bn{i}", width)
                fan_in = width
    shapes["linear.weight"], shapes["linear.bias"] = (num_classes, 64), (num_classes,)
    return shapes


def test_torch_resnet_32_maps_onto_every_parameter_and_statistic():
    shapes = _torch_resnet_shapes(32, 10)
    # 31 convolutions with 5 entries of norm each, and the linear layer's two.
    assert len(shapes) == 31 * 6 + 2
    state_dict = _random_like({k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()})
    params, batch_stats = resnet_from_torch(state_dict)
    want = _shapes(ResNet(10))
    for got, collection in ((params, "params"), (batch_stats, "batch_stats")):
        got_shapes = {k: v.shape for k, v in traverse_util.flatten_dict(got).items()}
        want_shapes = {k: v.shape for k, v in traverse_util.flatten_dict(want[collection]).items()}
        assert got_shapes == want_shapes

    kernel = params["layer2_0"]["conv1"]["kernel"]
    theirs = state_dict["layer2.0.conv1.weight"]
    assert kernel[0, 1, 2, 3] == theirs[3, 2, 0, 1]  # (h, w, in, out) and (out, in, h, w).
    assert params["linear"]["kernel"][5, 7] == state_dict["linear.weight"][7, 5]
    norm, stats = params["layer3_4"]["bn2"], batch_stats["layer3_4"]["bn2"]
    for ours, leaf in (
        (norm["scale"], "weight"), (norm["bias"], "bias"),
        (stats["mean"], "running_mean"), (stats["var"], "running_var"),
    ):  # fmt: skip
        np.testing.assert_array_equal(ours, state_dict[f"layer3.4.bn2.{leaf}"])


def test_torch_resnet_without_running_statistics():
    shapes = {k: v for k, v in _torch_resnet_shapes(8, 3).items() if "running" not in k}
    params, batch_stats = resnet_from_torch({k: np.zeros(v) for k, v in shapes.items()})
    assert batch_stats == {}
    want = _shapes(ResNet(3, depth=8))["params"]
    assert jax.tree.structure(params) == jax.tree.structure(dict(want))


@pytest.mark.parametrize("skip_link", [False, True])
def test_torch_lcn_maps_onto_every_parameter(skip_link, lcn_inputs):
    hidden, embedding, classes, num_features = 8, 7, 5, 6
    shapes = {
        "cls_emb.weight": (classes, embedding),
        "net.0.weight": (hidden, num_features + embedding), "net.0.bias": (hidden,),
        "net.2.weight": (hidden, hidden), "net.2.bias": (hidden,),
        "net.4.weight": (classes + skip_link, hidden), "net.4.bias": (classes + skip_link,),
    }  # fmt: skip
    state_dict = _random_like({k: jax.ShapeDtypeStruct(v, jnp.float32) for k, v in shapes.items()})
    got = label_correction_from_torch(state_dict, skip_link=skip_link)
    _, want = _lcn({"skip_link": skip_link}, lcn_inputs, hidden, embedding)
    assert jax.tree.map(np.shape, got) == jax.tree.map(np.shape, want)
    np.testing.assert_array_equal(got["output"]["kernel"][:, 4], state_dict["net.4.weight"][4])
    if skip_link:
        np.testing.assert_array_equal(got["skip"]["kernel"][:, 0], state_dict["net.4.weight"][5])
        assert got["skip"]["bias"] == state_dict["net.4.bias"][5]
