"""L2RW: weights of examples from one step of look-ahead, recomputed in every step.

Source: Ren, Zeng, Yang, Urtasun (2018), "Learning to Reweight Examples for Robust Deep Learning",
algorithm 1. As in all methods here with a clean loss, half of each clean batch is trained on, too
(`mix_clean`).
"""

import dataclasses
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp

from mlc_jax import core
from mlc_jax.core import Batch, Metrics, Params, TrainState
from mlc_jax.methods.blocks import (
    classifier_labels,
    create_init,
    create_problem,
    in_steps,
    noisy_part,
)
from mlc_jax.methods.types import Binding, BoundMethod, Method, Phase


@dataclasses.dataclass(frozen=True, kw_only=True)
class L2RW(Method):
    """Weights each example by how much a step on it lowers the clean loss."""

    name: ClassVar[str] = "l2rw"

    def build(self, binding: Binding) -> BoundMethod:
        problem = create_problem(binding, weighted_labels)

        def inner_step(
            state: TrainState, batch: Batch, rng: chex.PRNGKey
        ) -> tuple[TrainState, Metrics]:
            weights, metrics = example_weights(problem, state, batch, rng)
            part = batch._replace(clean_outer=None)
            main, inner_metrics = core.inner_step(problem, state.main, weights, part, rng)
            return state.replace(main=main), metrics | inner_metrics

        phase = Phase(binding.num_steps, in_steps(binding, inner_step))
        return BoundMethod(create_init(binding), (phase,), classifier_labels)


def weighted_labels(
    weights: jax.Array, features: jax.Array, logits: jax.Array, labels: jax.Array
) -> jax.Array:
    """The `TargetFn`: a weight `[B]` times the given label."""
    return weights[:, None] * core.given_labels(None, features, logits, labels)


def example_weights(
    problem: core.Problem, state: TrainState, batch: Batch, rng: chex.PRNGKey
) -> tuple[jax.Array, Metrics]:
    """Weights `[B]` of the noisy examples: non-negative, with a mean of one or all zero.

    The look-ahead is one step of plain SGD from the current classifier, on the loss weighted by
    epsilon, at epsilon = 0. The derivative of the clean loss in epsilon_i is then -(rate / B) times
    the product of two gradients: the clean loss's and example i's. Negative weights are clipped.
    The rate and B cancel when the weights are normalised.
    """
    main = state.main
    clean = batch.clean_outer
    assert clean is not None and batch.noisy is not None

    def clean_loss(params: Params) -> tuple[jax.Array, Metrics]:
        return core.outer_loss(problem, params, main.batch_stats, clean, rng)

    clean_grads, metrics = jax.grad(clean_loss, has_aux=True)(main.params)
    clean_grads = core.pmean(clean_grads, problem.axis_name)
    epsilon = jnp.zeros(len(batch.noisy.labels))
    products = core.meta_product(problem, main, epsilon, noisy_part(batch), rng, clean_grads)
    clipped = jnp.maximum(products, 0)
    mean = core.pmean(jnp.mean(clipped), problem.axis_name)
    return clipped / jnp.where(mean == 0, 1, mean), metrics
