"""Joint optimization: labels are variables, learned in turn with the classifier.

Source: Tanaka, Ikami, Yamasaki, Aizawa (2018), "Joint Optimization Framework for Learning with
Noisy Labels", algorithm 1 with soft labels: `L = L_c + alpha L_p + beta L_e`. The clean labels of
the table stay as they are and are trained on with plain cross-entropy, as by all methods here.
"""

import chex
import jax
import jax.numpy as jnp

from mlc_jax import bilevel
from mlc_jax.bilevel import Batch, Metrics, Params
from mlc_jax.methods.base import (
    Hook,
    Method,
    MethodInputs,
    Phase,
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
from mlc_jax.train_state import TrainState


def joint(inputs: MethodInputs) -> Method:
    """First labels and a classifier, with two regularisers; then a new classifier of the labels."""
    config = inputs.config.joint
    first = inputs.first_phase()
    problem = create_problem(first)
    first_update = int(config.update_from * first.num_epochs)

    def begin(state: TrainState, probs: jax.Array, labels: jax.Array) -> TrainState:
        given = jax.nn.one_hot(labels, inputs.num_classes, dtype=probs.dtype)
        return state.replace(extra=state.extra | {"labels": given})

    def inner_step(
        state: TrainState, batch: Batch, rng: chex.PRNGKey
    ) -> tuple[TrainState, Metrics]:
        batch = noisy_and_clean(batch)
        targets = remembered_labels(state, batch)
        forward = bilevel.forward_pass(problem, state.main.batch_stats, batch, rng)

        def loss(params: Params) -> tuple[jax.Array, tuple[Params, Metrics]]:
            (logits, _), batch_stats = forward(params)
            value, metrics = bilevel.inner_loss(logits, targets, batch)
            prior, entropy = regularizers(logits[0], inputs.axis_name)
            value += config.prior_weight * prior + config.entropy_weight * entropy
            return value, (batch_stats, metrics | {"prior": prior, "entropy": entropy})

        return descend(problem, state, loss)

    def update_labels(state: TrainState, probs: jax.Array, labels: jax.Array) -> TrainState:
        """The labels are the mean of what the classifier said after the last epochs."""
        del labels
        epoch = state.step // inputs.steps_per_epoch - 1
        history = state.extra["history"].at[epoch % config.num_averaged].set(probs)
        # What is not written yet is zero, so a row's sum is the number of its predictions.
        total = jnp.sum(history, axis=0)
        mean = total / jnp.sum(total, axis=-1, keepdims=True)
        updated = jnp.where(epoch + 1 > first_update, mean, state.extra["labels"])
        return state.replace(extra={"labels": updated, "history": history})

    shape = (inputs.num_noisy, inputs.num_classes)
    extra = {"labels": jnp.zeros(shape), "history": jnp.zeros((config.num_averaged, *shape))}
    second_step = supervised_step(inputs, noisy_and_clean, soft_labels, beliefs=remembered_labels)
    return Method(
        init=create_init(first, extra),
        phases=(
            Phase(
                first.num_steps,
                in_steps(first, inner_step),
                before=Hook("noisy", begin),
                after_epoch=Hook("noisy", update_labels),
            ),
            Phase(
                inputs.num_steps,
                second_step,
                before=Hook(None, lambda state, probs, labels: restart(inputs, state)),
            ),
        ),
        correct_labels=classifier_labels,
        learned_labels=lambda state: state.extra["labels"],
    )


def regularizers(logits: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
    """`L_p` and `L_e`, in nats.

    `L_p` is the divergence of the batch's mean prediction from uniform classes, against all labels
    becoming one. `L_e` is the mean entropy of a prediction, against labels that stay soft.
    """
    log_probs = jax.nn.log_softmax(logits)
    probs = jnp.exp(log_probs)
    mean = bilevel.pmean(jnp.mean(probs, axis=0), axis_name)
    num_classes = logits.shape[-1]
    prior = -jnp.mean(jnp.log(mean)) - jnp.log(jnp.asarray(num_classes, logits.dtype))
    entropy = -jnp.mean(jnp.sum(probs * log_probs, axis=-1))
    return prior, entropy
