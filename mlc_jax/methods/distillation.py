"""Distillation: a teacher that learned the clean set softens the noisy labels.

Source: Li, Yang, Song, Cao, Luo, Li (2017), "Learning from Noisy Labels with Distillation",
section 3.1. Their second source of guidance, a knowledge graph of the classes, is left out.
Corrected labels are the second classifier's predictions, not the mixture that it learns from: that
is mostly the given label.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from mlc_jax.core import TrainState
from mlc_jax.methods.blocks import (
    classifier_labels,
    clean_part,
    create_init,
    noisy_and_clean,
    remembered_labels,
    restart,
    soft_labels,
    supervised_step,
)
from mlc_jax.methods.types import Binding, BoundMethod, Hook, Phase, Seen, TwoPhaseMethod


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distillation(TwoPhaseMethod):
    """A teacher learns the clean set; a classifier learns given labels mixed with its predictions.

    Attributes:
      label_weight: lambda, the given label's weight in [0, 1]; the teacher has the rest.
    """

    name: ClassVar[str] = "distillation"
    label_weight: float = 0.5

    def build(self, binding: Binding) -> BoundMethod:
        def teach(state: TrainState, seen: Seen) -> TrainState:
            labels = pseudo_labels(seen.probs, seen.labels, self.label_weight)
            return restart(binding, state, seen).replace(extra={"labels": labels})

        first = binding.phase_of(self.first_phase_epochs)
        no_labels = jnp.zeros((binding.num_noisy, binding.num_classes))
        student_step = supervised_step(
            binding, noisy_and_clean, soft_labels, beliefs=remembered_labels
        )
        return BoundMethod(
            init=create_init(first, {"labels": no_labels}),
            phases=(
                Phase(first.num_steps, supervised_step(first, clean_part)),
                Phase(binding.num_steps, student_step, before=Hook("noisy", teach)),
            ),
            correct_labels=classifier_labels,
        )


def pseudo_labels(probs: jax.Array, labels: jax.Array, label_weight: float) -> jax.Array:
    """Targets of the second classifier: `lambda y + (1 - lambda) s`, `[N, C]`.

    Args:
      probs: s, the teacher's, `[N, C]`.
      labels: y, as given, `[N]`.
      label_weight: lambda.
    """
    given = jax.nn.one_hot(labels, probs.shape[-1], dtype=probs.dtype)
    return label_weight * given + (1 - label_weight) * probs
