"""Weights in safetensors files: round trips, what is replaced, and what errors say."""

import flax
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from mlc_jax import models
from mlc_jax.errors import InputError
from mlc_jax.models import pretrained

INPUTS = jnp.zeros((1, 4))


def _init(num_classes=3, seed=0):
    model = models.MLP(num_classes, hidden_sizes=(5, 2))
    return model.init(jax.random.key(seed), INPUTS, train=False)["params"]


def _names(params):
    return {"/".join(path) for path in flax.traverse_util.flatten_dict(params)}


def test_what_is_saved_is_loaded_under_parameter_paths(tmp_path):
    params = _init()
    pretrained.save_params(tmp_path / "mlp.safetensors", params)
    loaded = pretrained.load_params(str(tmp_path / "mlp.safetensors"))
    assert set(loaded) == _names(params)
    for name, value in loaded.items():
        layer, kind = name.split("/")
        np.testing.assert_array_equal(value, params[layer][kind], strict=True)
    fresh = _init(seed=1)
    got = pretrained.with_initial(fresh, loaded)
    jax.tree.map(np.testing.assert_array_equal, got, params)
    assert not np.array_equal(fresh["output"]["kernel"], params["output"]["kernel"])


@pytest.mark.parametrize(
    "value",
    [
        np.arange(6.0).reshape(2, 3).T,  # Not contiguous.
        np.arange(8.0)[::2],
        np.float32(2.0),
        np.arange(3, dtype=">f4"),
        np.zeros((0, 3), np.float32),
        np.array([[1.5, -2.0]], ml_dtypes.bfloat16),
        jnp.arange(3, dtype=jnp.bfloat16),
    ],
)
def test_every_array_comes_back_as_it_was(tmp_path, value):
    pretrained.save_params(tmp_path / "a.safetensors", {"x": value})
    got = pretrained.load_params(tmp_path / "a.safetensors")["x"]
    assert got.shape == np.shape(value)
    assert got.dtype == np.asarray(value).dtype.newbyteorder("=")
    np.testing.assert_array_equal(got, value)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    pretrained.save_params(path, {"x": np.ones(2)})

    def fail(arrays, filename):
        filename.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.numpy, "save_file", fail)
    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\)"):
        pretrained.save_params(path, {"x": np.zeros(2)})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
    np.testing.assert_array_equal(pretrained.load_params(path)["x"], np.ones(2))


def test_a_save_without_a_directory_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"no/a.safetensors' cannot be written \(.*\); expected"):
        pretrained.save_params(tmp_path / "no" / "a.safetensors", {"x": np.zeros(2)})


def test_a_new_head_stays_freshly_initialised():
    loaded = {
        name: np.full(_init()[name.split("/")[0]][name.split("/")[1]].shape, 7.0)
        for name in _names(_init())
        if not name.startswith("output")
    }
    fresh = _init(num_classes=9)
    got = pretrained.with_initial(fresh, loaded)
    jax.tree.map(np.testing.assert_array_equal, got["output"], fresh["output"])
    for layer in ("hidden1", "hidden2"):
        for leaf in jax.tree.leaves(got[layer]):
            np.testing.assert_array_equal(leaf, 7.0)
            assert leaf.dtype == jnp.float32  # Loaded as float64.


@pytest.mark.parametrize("container", [dict, flax.core.freeze])
def test_the_params_keep_their_structure_and_dtype(container):
    params = container({"a": {"b": jnp.ones(2, jnp.bfloat16)}, "c": jnp.ones(3, jnp.float32)})
    loaded = {"a/b": np.array([2.0, 3.0], np.float32), "c": np.ones(3, ml_dtypes.bfloat16)}
    got = pretrained.with_initial(params, loaded)
    assert jax.tree.structure(got) == jax.tree.structure(params)
    assert jax.tree.map(lambda x: x.dtype, got) == jax.tree.map(lambda x: x.dtype, params)
    np.testing.assert_array_equal(got["a"]["b"].astype(jnp.float32), [2, 3])


def test_initialisation_may_be_traced():
    """Compiled, for several runs at once, and by shape alone."""
    loaded = {"hidden1/kernel": np.arange(20, dtype=np.float32).reshape(4, 5)}

    def init(key):
        params = models.MLP(3, hidden_sizes=(5, 2)).init(key, INPUTS, train=False)["params"]
        return pretrained.with_initial(params, loaded)

    keys = jax.random.split(jax.random.key(0), 2)
    stacked = jax.jit(jax.vmap(init))(keys)
    for i, key in enumerate(keys):
        run = jax.tree.map(lambda x, i=i: x[i], stacked)
        jax.tree.map(np.testing.assert_array_equal, run, init(key))
        np.testing.assert_array_equal(run["hidden1"]["kernel"], loaded["hidden1/kernel"])
    shapes = jax.eval_shape(init, keys[0])
    assert shapes["hidden1"]["kernel"].shape == (4, 5)


def test_an_unknown_name_is_an_error():
    loaded = {"hidden1/bias": np.zeros(5), "hidden1/kernl": np.zeros((4, 5))}
    with pytest.raises(InputError) as error:
        pretrained.with_initial(_init(), loaded)
    message = str(error.value)
    assert "'hidden1/kernl' (4, 5), which is not a parameter" in message
    assert "are hidden1/kernel, hidden2/kernel," in message
    assert "(6 in all)" in message
    assert "\n" not in message


def test_another_shape_is_an_error():
    with pytest.raises(InputError) as error:
        pretrained.with_initial(_init(num_classes=3), {"output/kernel": np.zeros((2, 10))})
    message = str(error.value)
    assert "'output/kernel' of shape (2, 10), expected (2, 3)" in message
    assert "leave it out of the file" in message
    assert "hidden2/kernel" in message


@pytest.mark.parametrize("loaded", [{}, {"encoder.layer.0": np.zeros(3), "b": np.zeros(())}])
def test_nothing_that_matches_is_an_error(loaded):
    got = "encoder.layer.0, b" if loaded else "none"
    with pytest.raises(InputError, match=rf"none of the names .* got {got}; .* of hidden1/bias"):
        pretrained.with_initial(_init(), loaded)


@pytest.mark.parametrize("content", [None, b"", b"no safetensors at all", "cut", "directory"])
def test_a_file_that_cannot_be_read_is_one_line(tmp_path, content):
    path = tmp_path / "weights.safetensors"
    if content == "directory":
        path.mkdir()
    elif content == "cut":
        pretrained.save_params(path, {"x": np.zeros(9)})
        path.write_bytes(path.read_bytes()[:-1])
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError) as error:
        pretrained.load_params(path)
    message = str(error.value)
    assert message.startswith(f"pretrained weights: {str(path)!r} cannot be read (")
    assert message.endswith("; expected a safetensors file")
    assert "\n" not in message
    assert content is not None or "No such file" in message
