"""Joint optimization: labels are variables, learned in turn with the classifier.

Source: Tanaka, Ikami, Yamasaki, Aizawa (2018), "Joint Optimization Framework for Learning with
Noisy Labels", algorithm 1 with soft labels: `L = L_c + alpha L_p + beta L_e`. The clean labels of
the table stay as they are and are trained on with plain cross-entropy, as by all methods here.
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
    descend,
    in_steps,
    noisy_and_clean,
    remembered_labels,
    restart,
    soft_labels,
    supervised_step,
)
from mlc_jax.methods.types import (
    Binding,
    BoundMethod,
    Hook,
    InnerStep,
    Phase,
    Seen,
    TwoPhaseMethod,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joint(TwoPhaseMethod):
    """First labels and a classifier, with two regularisers; then a new classifier of the labels.

    The defaults are the authors' for UNIF; theirs for FLIP are 0.8 and 0.4.

    Attributes:
      prior_weight: alpha.
      entropy_weight: beta.
      update_from: share of the first phase's epochs with labels as given.
      num_averaged: epochs whose predictions make a label.
    """

    name: ClassVar[str] = "joint"
    prior_weight: float = 1.2
    entropy_weight: float = 0.8
    update_from: float = 0.35
    num_averaged: int = 10

    def build(self, binding: Binding) -> BoundMethod:
        def begin(state: TrainState, seen: Seen) -> TrainState:
            given = jax.nn.one_hot(seen.labels, binding.num_classes, dtype=seen.probs.dtype)
            return state.replace(extra=state.extra | {"labels": given})

        def update_labels(state: TrainState, seen: Seen) -> TrainState:
            """The labels are the mean of what the classifier said after the last epochs."""
            epoch = state.step // binding.steps_per_epoch - 1
            history = state.extra["history"].at[epoch % self.num_averaged].set(seen.probs)
            # What is not written yet is zero, so a row's sum is the number of its predictions.
            total = jnp.sum(history, axis=0)
            mean = total / jnp.sum(total, axis=-1, keepdims=True)
            updated = jnp.where(epoch + 1 > first_update, mean, state.extra["labels"])
            return state.replace(extra={"labels": updated, "history": history})

        first = binding.phase_of(self.first_phase_epochs)
        first_update = int(self.update_from * first.num_epochs)
        shape = (binding.num_noisy, binding.num_classes)
        extra = {"labels": jnp.zeros(shape), "history": jnp.zeros((self.num_averaged, *shape))}
        second_step = supervised_step(
            binding, noisy_and_clean, soft_labels, beliefs=remembered_labels
        )
        return BoundMethod(
            init=create_init(first, extra),
            phases=(
                Phase(
                    first.num_steps,
                    in_steps(first, self._learn_labels(first)),
                    before=Hook("noisy", begin),
                    after_epoch=Hook("noisy", update_labels),
                ),
                Phase(
                    binding.num_steps,
                    second_step,
                    before=Hook(None, lambda state, seen: restart(binding, state, seen)),
                ),
            ),
            correct_labels=classifier_labels,
            learned_labels=lambda state: state.extra["labels"],
        )

    def _learn_labels(self, binding: Binding) -> InnerStep:
        """The first phase's step."""
        problem = create_problem(binding)

        def inner_step(
            state: TrainState, batch: Batch, rng: chex.PRNGKey
        ) -> tuple[TrainState, Metrics]:
            batch = noisy_and_clean(batch)
            targets = remembered_labels(state, batch)
            forward = core.forward_pass(problem, state.main.batch_stats, batch, rng)

            def loss(params: Params) -> tuple[jax.Array, tuple[Params, Metrics]]:
                (logits, _), batch_stats = forward(params)
                value, metrics = core.inner_loss(logits, targets, batch)
                prior, entropy = regularizers(logits[0], binding.axis_name)
                value += self.prior_weight * prior + self.entropy_weight * entropy
                return value, (batch_stats, metrics | {"prior": prior, "entropy": entropy})

            return descend(problem, state, loss)

        return inner_step


def regularizers(logits: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """`L_p` and `L_e`, in nats.

    `L_p` is the divergence of the batch's mean prediction from uniform classes, against all labels
    becoming one. `L_e` is the mean entropy of a prediction, against labels that stay soft.
    """
    log_probs = jax.nn.log_softmax(logits)
    probs = jnp.exp(log_probs)
    mean = core.pmean(jnp.mean(probs, axis=0), axis_name)
    num_classes = logits.shape[-1]
    prior = -jnp.mean(jnp.log(mean)) - jnp.log(jnp.asarray(num_classes, logits.dtype))
    entropy = -jnp.mean(jnp.sum(probs * log_probs, axis=-1))
    return prior, entropy
