"""Distillation: a teacher of the clean set softens the noisy labels.

Source: Li, Yang, Song, Cao, Luo, Li (2017), "Learning from Noisy Labels with Distillation",
section 3.1. Their second source of guidance, a knowledge graph of the classes, does not exist here.
What the method holds a label to be is what the second classifier says of it; the mixture that it
learns from is the given label more often than not.
"""

import jax
import jax.numpy as jnp

from mlc_jax.methods.base import (
    Hook,
    Method,
    MethodInputs,
    Phase,
    classifier_labels,
    clean_part,
    create_init,
    noisy_and_clean,
    remembered_labels,
    restart,
    soft_labels,
    supervised_step,
)
from mlc_jax.train_state import TrainState


def distillation(inputs: MethodInputs) -> Method:
    """The first classifier learns the clean set; the second what the labels and the first say."""
    weight = inputs.config.distillation.label_weight

    def teach(state: TrainState, probs: jax.Array, labels: jax.Array) -> TrainState:
        extra = {"labels": pseudo_labels(probs, labels, weight)}
        return restart(inputs, state).replace(extra=extra)

    first = inputs.first_phase()
    student_step = supervised_step(inputs, noisy_and_clean, soft_labels, beliefs=remembered_labels)
    return Method(
        init=create_init(first, {"labels": jnp.zeros((inputs.num_noisy, inputs.num_classes))}),
        phases=(
            Phase(first.num_steps, supervised_step(first, clean_part)),
            Phase(inputs.num_steps, student_step, before=Hook("noisy", teach)),
        ),
        correct_labels=classifier_labels,
    )


def pseudo_labels(probs: jax.Array, labels: jax.Array, label_weight: float) -> jax.Array:
    """What the second classifier learns: `lambda y + (1 - lambda) s`, `[N, C]`.

    Args:
      probs: s, the teacher's, `[N, C]`.
      labels: y, as given, `[N]`.
      label_weight: lambda.
    """
    given = jax.nn.one_hot(labels, probs.shape[-1], dtype=probs.dtype)
    return label_weight * given + (1 - label_weight) * probs
