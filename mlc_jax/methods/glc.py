"""Gold Loss Correction: the matrix of wrong labels is measured on the clean set.

Source: Hendrycks, Mazeika, Wilson, Gimpel (2018), "Using Trusted Data to Train Deep Networks on
Labels Corrupted by Severe Noise", algorithm 1.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp

from mlc_jax.core import TrainState
from mlc_jax.methods.blocks import (
    create_init,
    noisy_and_clean,
    noisy_part,
    restart,
    supervised_step,
)
from mlc_jax.methods.types import Binding, BoundMethod, Hook, Phase, Seen, TwoPhaseMethod


@dataclasses.dataclass(frozen=True, kw_only=True)
class GLC(TwoPhaseMethod):
    """A first classifier learns the noisy labels; its predictions on clean rows give the matrix.

    If given labels of clean examples are known, they are counted. The predictions then count as one
    more example of each class.
    """

    name: ClassVar[str] = "glc"

    def build(self, binding: Binding) -> BoundMethod:
        def estimate(seen: Seen) -> jax.Array:
            return corruption_matrix(seen.probs, seen.labels, seen.given)

        return corrected_by_matrix(binding, self.first_phase_epochs, "clean", estimate)


def corruption_matrix(
    probs: jax.Array, labels: jax.Array, given: jax.Array | None = None
) -> jax.Array:
    """`C[i, j]`, an estimate of P(given label j | true label i): a mean over class i.

    Args:
      probs: `[M, C]`, predictions of a classifier of noisy labels for clean examples.
      labels: `[M]`, their true labels.
      given: `[M]`, their given labels, negative if unknown; or None.
    """
    members = jax.nn.one_hot(labels, probs.shape[-1], dtype=probs.dtype)
    counts = jnp.sum(members, axis=0)[:, None]
    # Given labels are trusted for classes without a clean example.
    as_given = jnp.eye(probs.shape[-1], dtype=probs.dtype)
    estimate = jnp.where(counts > 0, members.T @ probs / jnp.maximum(counts, 1), as_given)
    if given is None:
        return estimate
    pairs = members.T @ jax.nn.one_hot(given, probs.shape[-1], dtype=probs.dtype)
    return (pairs + estimate) / (jnp.sum(pairs, axis=1, keepdims=True) + 1)


def corrected_by_matrix(
    binding: Binding,
    first_phase_epochs: float,
    examples: str,
    estimate: Callable[[Seen], jax.Array],
) -> BoundMethod:
    """Trains on noisy labels, estimates the matrix of wrong labels, and trains again with it.

    Args:
      binding: see `Binding`.
      first_phase_epochs: see `TwoPhaseMethod`.
      examples: the set that the first classifier predicts, `noisy` or `clean`.
      estimate: `Seen` of that set -> the matrix of wrong labels `[C, C]`.
    """

    def begin_anew(state: TrainState, seen: Seen) -> TrainState:
        return restart(binding, state, seen).replace(extra=estimate(seen))

    first = binding.phase_of(first_phase_epochs)
    corrected_step = supervised_step(
        binding, noisy_and_clean, posterior, beliefs=lambda state, batch: state.extra
    )
    return BoundMethod(
        init=create_init(first, extra=jnp.eye(binding.num_classes)),
        phases=(
            Phase(first.num_steps, supervised_step(first, noisy_part)),
            Phase(binding.num_steps, corrected_step, before=Hook(examples, begin_anew)),
        ),
        correct_labels=posterior_labels,
    )


def posterior(
    matrix: jax.Array, features: jax.Array, logits: jax.Array, labels: jax.Array
) -> jax.Array:
    """The true label by Bayes' rule: `P(i | x, given j)`, prior `softmax(logits)`.

    This is the forward-corrected loss, `-log sum_i p_i T[i, j]`, as a target: its gradient in the
    logits is `softmax(logits) - posterior`, which is the gradient of the cross-entropy against the
    posterior held fixed (one step of expectation maximisation).

    Args:
      matrix: `T[i, j] = P(given label j | true label i)`, `[C, C]`.
      features: not used.
      logits: `[B, C]`.
      labels: `[B]`, as given.
    """
    del features
    # If no class can have this label, the likelihood is flat, and the prediction stands.
    likelihood = jnp.log(jnp.maximum(matrix.T[labels], jnp.finfo(logits.dtype).tiny))
    return jax.nn.softmax(jax.nn.log_softmax(logits) + likelihood)


def posterior_labels(
    state: TrainState, features: jax.Array, logits: jax.Array, labels: jax.Array
) -> jax.Array:
    """`BoundMethod.correct_labels`: the posterior under `state.extra`."""
    return posterior(state.extra, features, logits, labels)
