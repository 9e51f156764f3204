"""The example of CONTRIBUTING.md is a method."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlc_jax import methods
from mlc_jax.training import train

TEXT = (pathlib.Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()


@pytest.fixture
def bootstrapping():
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(code.splitlines()) <= 30
    names = {}
    exec(compile(code, "CONTRIBUTING.md", "exec"), names)
    return names["bootstrapping"]


def test_example_trains(bootstrapping, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setitem(methods.METHODS, "bootstrapping", bootstrapping)
    config = tiny_config(method="bootstrapping")
    results = train.train_and_evaluate(config, str(tmp_path), show_progress=False)
    assert results["method"] == "bootstrapping"
    assert results["last_test_accuracy"] > 0.3


def test_example_learns_its_targets(bootstrapping, tiny_config):
    """One step from a classifier of zeros: 0.95 of the label's gradient."""
    from mlc_jax.core import Batch, Labelled
    from mlc_jax.models import MLP

    config = tiny_config(method="bootstrapping")
    inputs = methods.MethodInputs(
        config=config, model=MLP(10, (8,)), normalize=lambda x: x, num_classes=10, num_noisy=2,
        example_inputs=jnp.zeros((1, 4)), steps_per_epoch=1, num_epochs=1, axis_name=None,
    )  # fmt: skip
    method = bootstrapping(inputs)
    state = method.init(jax.random.key(0))
    state = state.replace(
        main=state.main.replace(params=jax.tree.map(jnp.zeros_like, state.main.params))
    )
    examples = Labelled(np.ones((1, 2, 4), np.float32), np.zeros((1, 2), np.int32))
    after, _ = method.train_step(state, Batch(examples, None, examples))
    (bias,) = (
        np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(after.main.params)
        if leaf.shape == (10,)
    )
    # Gradient p - target: -0.855 = 0.1 - (0.95 + 0.005) noisy, 0.1 - 1 clean, halved each.
    assert bias[0] == pytest.approx(0.1 * (0.855 + 0.9) / 2, rel=1e-5)
