"""The example of CONTRIBUTING.md is a method."""

import dataclasses
import pathlib
import re
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlc_jax import config, methods
from mlc_jax.commands import train
from mlc_jax.config.checks import one_of
from mlc_jax.core import Batch, Labelled
from mlc_jax.core.optimizers import sgd
from mlc_jax.models import MLP

TEXT = (pathlib.Path(__file__).parents[1] / "CONTRIBUTING.md").read_text()


@pytest.fixture
def example(monkeypatch):
    """The method of the text, as if its file and its line in METHODS were there."""
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)
    assert len(code.splitlines()) <= 40
    module = types.ModuleType("mlc_jax.methods.bootstrapping")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # Dataclasses look there.
    exec(compile(code, "CONTRIBUTING.md", "exec"), module.__dict__)
    monkeypatch.setitem(methods.METHODS, "bootstrapping", module.Bootstrapping)
    monkeypatch.setattr(config, "METHODS", (*config.METHODS, "bootstrapping"))
    check = one_of(*config.METHODS)
    setting = config.SETTINGS["method"]._replace(check=check)
    monkeypatch.setitem(config.SETTINGS, "method", setting)
    return module.Bootstrapping


@pytest.mark.slow
def test_example_trains(example, tiny_config, tmp_path):
    results = train.train_and_evaluate(
        tiny_config(method="bootstrapping"), str(tmp_path), show_progress=False
    )
    assert results["method"] == "bootstrapping"
    assert results["last_test_accuracy"] > 0.3


def test_example_learns_its_targets(example):
    """One step from a classifier of zeros: 0.95 of the label's gradient."""
    method = example(model=MLP(10, (8,)), tx=sgd(0.1))
    bound = method.bind(num_noisy=2, num_classes=10, steps_per_epoch=1, num_epochs=1)
    state = bound.init(jax.random.key(0), jnp.zeros((1, 4)))
    state = state.replace(
        main=state.main.replace(params=jax.tree.map(jnp.zeros_like, state.main.params))
    )
    examples = Labelled(np.ones((1, 2, 4), np.float32), np.zeros((1, 2), np.int32))
    after, _ = bound.train_step(state, Batch(examples, None, examples))
    (bias,) = (
        np.asarray(leaf)
        for path, leaf in jax.tree.leaves_with_path(after.main.params)
        if leaf.shape == (10,)
    )
    # Gradient p - target: -0.855 = 0.1 - (0.95 + 0.005) noisy, 0.1 - 1 clean, halved each.
    assert bias[0] == pytest.approx(0.1 * (0.855 + 0.9) / 2, rel=1e-5)
    half = dataclasses.replace(method, label_weight=0.5)
    bound = half.bind(num_noisy=2, num_classes=10, steps_per_epoch=1, num_epochs=1)
    after, _ = bound.train_step(state, Batch(examples, None, examples))
    # 0.1 - (0.5 + 0.05).
    bias = after.main.params["output"]["bias"]
    assert bias[0] == pytest.approx(0.1 * (0.45 + 0.9) / 2, rel=1e-5)


def test_what_the_text_names_is_there():
    """Files, and what methods are built from."""
    root = pathlib.Path(__file__).parents[1]
    files = re.findall(r"`((?:mlc_jax|tests|docs|configs)/[\w/]+\.\w+)`", TEXT)
    pieces = re.findall(r"`(\w+)\(", TEXT)
    assert len(files) > 5 and len(pieces) > 5
    for name in files:
        assert (root / name).exists(), name
    for name in pieces:
        assert name in dir(methods.blocks) or name in dir(methods.types), name
