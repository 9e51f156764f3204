"""Joint optimization: labels are variables, learned in turn with the classifier.

Source: Tanaka, Ikami, Yamasaki, Aizawa (2018), "Joint Optimization Framework for Learning with
Noisy Labels", algorithm 1 with soft labels: `L = L_c + alpha L_p + beta L_e`. The clean labels of
the table do not change. As in all methods here, plain cross-entropy trains on them.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from mlc_jax.core import InnerLoss, TrainState
from mlc_jax.methods.blocks import (
    classifier_labels,
    create_init,
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
    Phase,
    Seen,
    TwoPhaseMethod,
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Joint(TwoPhaseMethod):
    """Learns labels with a first classifier and two regularisers, then trains a second on them.

    The defaults are the authors' for UNIF; for FLIP they use 0.8 and 0.4.

    Attributes:
      prior_weight: alpha.
      entropy_weight: beta.
      update_from: share of the first phase's epochs before labels change.
      num_averaged: number of epochs whose predictions are averaged.
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
            """Sets the labels to the classifier's mean prediction after the last epochs."""
            epoch = state.step // binding.steps_per_epoch - 1
            history = state.extra["history"].at[epoch % self.num_averaged].set(seen.probs)
            # Unused entries are zero, so a row's sum is the number of its predictions.
            total = jnp.sum(history, axis=0)
            mean = total / jnp.sum(total, axis=-1, keepdims=True)
            updated = jnp.where(epoch + 1 > first_update, mean, state.extra["labels"])
            return state.replace(extra={"labels": updated, "history": history})

        first = binding.phase_of(self.first_phase_epochs)
        rule = InnerLoss(
            prior_weight=self.prior_weight, entropy_weight=self.entropy_weight, power=0
        )
        first_step = supervised_step(
            first, noisy_and_clean, soft_labels, beliefs=remembered_labels, rule=rule
        )
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
                    first_step,
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
