"""The two-level problem: inner steps of the classifier, and the loss they are judged by.

Pure functions, arrays in and arrays out. With `axis_name=None` they run on one device; under
`jax.pmap(..., axis_name='batch')` each device holds a slice of every batch and the inner gradients
are averaged inside every inner step, so that n devices with B/n examples each compute what one
device with B examples does.

Vocabulary (paper's symbol in brackets): `params` [w] of the classifier, `meta_params` [a] of the
label correction network, `inner_loss` [L_D'(a, w)] on corrected noisy labels, `outer_loss` [L_D(w)]
on clean labels, `num_inner_steps` [k].
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from mlc_jax.core import losses
from mlc_jax.core.types import Batch, Inputs, Labelled, MainState, Metrics, Params

# (params, batch_stats, inputs, rng) -> (logits [B, C], features [B, F], new batch_stats).
ApplyFn = Callable[[Params, Params, Inputs, chex.PRNGKey], tuple[jax.Array, jax.Array, Params]]
# (meta_params, features [B, F], logits [B, C], labels [B]) -> targets [B, C], non-negative.
TargetFn = Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array]


class Problem(NamedTuple):
    """The functions that define the two levels; static under jit.

    Attributes:
      apply: the classifier in training mode.
      targets: what the classifier is to learn on a noisy example. The inner gradient holds it
        fixed (see `inner_grads`).
      tx: the classifier's optimizer. All of it is differentiated through.
      axis_name: the pmap axis to average over, or None.
    """

    apply: ApplyFn
    targets: TargetFn
    tx: optax.GradientTransformation
    axis_name: str | None = None


def given_labels(
    meta_params: Params, features: jax.Array, logits: jax.Array, labels: jax.Array
) -> jax.Array:
    """The `TargetFn` that believes the given labels: one-hot, `[B, C]`."""
    del meta_params, features
    return jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)


def pmean(tree: Any, axis_name: str | None) -> Any:
    """Mean over the devices of `axis_name`; the identity without one."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def inner_loss(
    logits: tuple[jax.Array | None, jax.Array | None], targets: jax.Array | None, batch: Batch
) -> tuple[jax.Array, Metrics]:
    """Loss of the classifier on corrected noisy labels and on the clean half that trains.

    `L = (B * L_noisy + B_c * L_clean) / (B + B_c)` ("Training with Soft Labels from LCN" in the
    paper).

    Args:
      logits: of the noisy `[B, C]` and of the clean `[B_c, C]` examples, or None.
      targets: `[B, C]` for the noisy examples.
      batch: for its labels.

    Returns:
      The scalar loss and metrics: `inner_loss`; `labels_kept`, the share of noisy examples whose
      target is the given label, first of all; `clean_accuracy` on the clean half. All are of this
      device's slice.
    """
    noisy_logits, clean_logits = logits
    per_example = []
    metrics: Metrics = {}
    if batch.noisy is not None and noisy_logits is not None and targets is not None:
        chex.assert_equal_shape([targets, noisy_logits])
        per_example.append(losses.soft_cross_entropy(noisy_logits, targets))
        given = jnp.take_along_axis(targets, batch.noisy.labels[:, None], axis=1)[:, 0]
        # Targets are no logits: an example that counts for nothing has none.
        kept = (given > 0) & (given == jnp.max(targets, axis=1))
        metrics["labels_kept"] = jnp.mean(kept, dtype=jnp.float32)
    if batch.clean_inner is not None and clean_logits is not None:
        labels = batch.clean_inner.labels
        per_example.append(losses.cross_entropy(clean_logits, labels))
        metrics["clean_accuracy"] = losses.accuracy(clean_logits, labels)
    loss = jnp.mean(jnp.concatenate(per_example))  # Weights the parts by their sizes.
    return loss, metrics | {"inner_loss": loss}


def forward_pass(
    problem: Problem, batch_stats: Params, batch: Batch, rng: chex.PRNGKey
) -> Callable[[Params], tuple[Any, Params]]:
    """One pass over a batch in training mode: what the inner loss is computed from.

    Returns:
      A function: params -> ((noisy logits, clean logits), noisy features), new batch_stats. None
      stands for a part that the batch does not have.
    """
    noisy_rng, clean_rng = jax.random.split(rng)

    def forward(params: Params) -> tuple[Any, Params]:
        noisy_logits = features = clean_logits = None
        stats = batch_stats
        if batch.noisy is not None:
            noisy_logits, features, stats = problem.apply(
                params, stats, batch.noisy.inputs, noisy_rng
            )
        if batch.clean_inner is not None:
            clean_logits, _, stats = problem.apply(
                params, stats, batch.clean_inner.inputs, clean_rng
            )
        return ((noisy_logits, clean_logits), features), stats

    return forward


def inner_grads(
    problem: Problem, main: MainState, meta_params: Params, batch: Batch, rng: chex.PRNGKey
) -> tuple[Params, tuple[Params, Metrics]]:
    """Gradient of the inner loss in the classifier's params, averaged over devices.

    Noisy and clean examples go through the network in separate forward passes, as in the published
    setting: batch normalisation sees them as two batches.

    The targets depend on the params through features and logits. This gradient does not see that:
    the paper puts a stop_gradient there. But the derivative of a whole window in the meta
    parameters must, because the features of a later step depend on the labels of the earlier ones.
    So the targets are held fixed by taking the gradient in the logits, not by a stop_gradient,
    which would cut the later derivative, too.

    Returns:
      Gradients shaped like `main.params`, and `(new batch_stats, metrics)`, which carry no
      derivative: a pass in training mode writes running statistics and reads none.
    """
    forward = forward_pass(problem, main.batch_stats, batch, rng)
    (logits, features), backward, batch_stats = jax.vjp(forward, main.params, has_aux=True)
    targets = None
    if batch.noisy is not None:
        targets = problem.targets(meta_params, features, logits[0], batch.noisy.labels)
    logit_grads, metrics = jax.grad(inner_loss, has_aux=True)(logits, targets, batch)
    (grads,) = backward((logit_grads, jax.tree.map(jnp.zeros_like, features)))
    aux = jax.lax.stop_gradient((pmean(batch_stats, problem.axis_name), metrics))
    return pmean(grads, problem.axis_name), aux


def apply_inner_grads(
    problem: Problem, main: MainState, grads: Params, batch_stats: Params
) -> MainState:
    """One optimizer update of the classifier (equation 2 for plain SGD)."""
    updates, opt_state = problem.tx.update(grads, main.opt_state, main.params)
    params = optax.apply_updates(main.params, updates)
    return MainState(params=params, batch_stats=batch_stats, opt_state=opt_state)


def inner_step(
    problem: Problem, main: MainState, meta_params: Params, batch: Batch, rng: chex.PRNGKey
) -> tuple[MainState, Metrics]:
    """One real update of the classifier on one batch."""
    grads, (batch_stats, metrics) = inner_grads(problem, main, meta_params, batch, rng)
    return apply_inner_grads(problem, main, grads, batch_stats), metrics


def outer_loss(
    problem: Problem, params: Params, batch_stats: Params, clean: Labelled, rng: chex.PRNGKey
) -> tuple[jax.Array, Metrics]:
    """Mean cross-entropy on clean labels, `L_D(w)`: what the meta model is judged by.

    Batch normalisation runs in training mode and its running statistics are left alone: this pass
    looks ahead, it does not train.
    """
    logits, _, _ = problem.apply(params, batch_stats, clean.inputs, rng)
    loss = jnp.mean(losses.cross_entropy(logits, clean.labels))
    return loss, {"outer_loss": loss, "clean_accuracy": losses.accuracy(logits, clean.labels)}


def step_rngs(
    rng: chex.PRNGKey, step: jax.Array, num_inner_steps: int, axis_name: str | None
) -> chex.PRNGKey:
    """Keys `[k]` of the window that starts at `step`: pure in (rng, step, device)."""
    steps = step + jnp.arange(num_inner_steps)
    rngs = jax.vmap(lambda t: jax.random.fold_in(rng, t))(steps)
    if axis_name is None:
        return rngs
    device = jax.lax.axis_index(axis_name)
    return jax.vmap(lambda key: jax.random.fold_in(key, device))(rngs)
