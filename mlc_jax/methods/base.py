"""What the training loop knows of a method, and what methods are built from."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from mlc_jax import bilevel, optimizers
from mlc_jax.bilevel import ApplyFn, Batch, Metrics, Params, Problem
from mlc_jax.train_state import TrainState, create_main_state

Normalize = Callable[[Any], Any]


class Method(NamedTuple):
    """The common face of all methods; pure functions.

    Attributes:
      init: typed key -> the state before the first step.
      train_step: (state, batches `[k, B, ...]`) -> the state k inner steps later, and scalar
        metrics, averaged over devices.
      correct_labels: (state, features `[B, F]`, logits `[B, C]`, given labels `[B]`) -> soft labels
        `[B, C]`: what the method holds the labels to be.
    """

    init: Callable[[chex.PRNGKey], TrainState]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    correct_labels: Callable[[TrainState, jax.Array, jax.Array, jax.Array], jax.Array]


class MethodInputs(NamedTuple):
    """What every method is built from.

    Attributes:
      config: the whole config.
      model: the classifier.
      normalize: from stored inputs to what the model takes.
      example_inputs: `[1, ...]`, as stored.
      num_classes: C.
      steps_per_epoch, num_steps: inner steps, for the schedules.
      scan_unroll: see `bilevel.unroll`.
      axis_name: pmap axis or None.
    """

    config: ConfigDict
    model: nn.Module
    normalize: Normalize
    example_inputs: jax.Array
    num_classes: int
    steps_per_epoch: int
    num_steps: int
    scan_unroll: int
    axis_name: str | None

    def optimizer(self, name: str) -> optax.GradientTransformation:
        """Builds `config.main_optimizer` or `config.meta_optimizer`.

        The meta optimizer makes one update a window, so its schedule counts windows.
        """
        config = self.config[name]
        per_update = 1 if name == "main_optimizer" else self.config.meta_gradient.num_inner_steps
        schedule = optimizers.create_schedule(
            config.schedule,
            config.learning_rate,
            num_steps=self.num_steps // per_update,
            steps_per_epoch=max(1, self.steps_per_epoch // per_update),
            milestones=tuple(config.milestones),
            decay_factor=config.decay_factor,
        )
        return optimizers.create_optimizer(
            config.name,
            schedule,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
        )

    def main_state(self, rng: chex.PRNGKey, tx: optax.GradientTransformation) -> Any:
        """The classifier before the first step."""
        return create_main_state(rng, self.model, tx, self.normalize(self.example_inputs))


def train_mode(model: nn.Module, normalize: Normalize) -> ApplyFn:
    """The classifier as `bilevel` wants it: training mode, arguments in, statistics out."""

    def apply(
        params: Params, batch_stats: Params, inputs: jax.Array, rng: chex.PRNGKey
    ) -> tuple[jax.Array, jax.Array, Params]:
        (logits, features), updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            normalize(inputs),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        return logits, features, updated.get("batch_stats", {})

    return apply


def supervised(inputs: MethodInputs, view: Callable[[Batch], Batch]) -> Method:
    """Plain training on labels as given.

    Args:
      inputs: see `MethodInputs`.
      view: from a batch to the part of it that is trained on: `noisy` and `clean_inner`.
    """
    tx = inputs.optimizer("main_optimizer")
    apply = train_mode(inputs.model, inputs.normalize)
    problem = Problem(apply, bilevel.given_labels, tx, inputs.axis_name)

    def init(rng: chex.PRNGKey) -> TrainState:
        init_rng, state_rng = jax.random.split(rng)
        main = inputs.main_state(init_rng, tx)
        return TrainState(jnp.zeros((), jnp.int32), state_rng, main, None)

    def train_step(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        batches = view(batches)
        num_inner_steps = jax.tree.leaves(batches)[0].shape[0]
        rngs = bilevel.step_rngs(state.rng, state.step, num_inner_steps, inputs.axis_name)
        main, metrics = bilevel.unroll(
            problem, state.main, None, batches, rngs, scan_unroll=inputs.scan_unroll
        )
        state = state.replace(step=state.step + num_inner_steps, main=main)
        return state, bilevel.pmean(metrics, inputs.axis_name)

    def correct_labels(
        state: TrainState, features: jax.Array, logits: jax.Array, labels: jax.Array
    ) -> jax.Array:
        """The classifier's own prediction: all that such a method knows about a label."""
        del state, features, labels
        return jax.nn.softmax(logits)

    return Method(init, train_step, correct_labels)
