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

from mlc_jax import losses
from mlc_jax.train_state import MainState, Params

Array = Any  # jax.Array; np.ndarray on its way to a device.
Metrics = dict[str, jax.Array]

# (params, batch_stats, inputs, rng) -> (logits [B, C], features [B, F], new batch_stats).
ApplyFn = Callable[[Params, Params, jax.Array, chex.PRNGKey], tuple[jax.Array, jax.Array, Params]]
# (meta_params, features [B, F], logits [B, C], labels [B]) -> targets [B, C], non-negative.
TargetFn = Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array]


class Examples(NamedTuple):
    """Inputs `[B, ...]` as the model takes them, and int32 labels `[B]`."""

    inputs: Array
    labels: Array


class Batch(NamedTuple):
    """The data of one inner step; of k steps, when every array has a leading axis of size k.

    Attributes:
      noisy: examples whose labels may be wrong.
      clean_inner: the half of the clean batch that joins the inner loss.
      clean_outer: the half that the outer loss is measured on.
    Any of them is None where the method does without it.
    """

    noisy: Examples | None
    clean_inner: Examples | None
    clean_outer: Examples | None


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
      corrected label is the given one; `clean_accuracy` on the clean half. All are of this device's
      slice.
    """
    noisy_logits, clean_logits = logits
    per_example = []
    metrics: Metrics = {}
    if batch.noisy is not None and noisy_logits is not None and targets is not None:
        chex.assert_equal_shape([targets, noisy_logits])
        per_example.append(losses.soft_cross_entropy(noisy_logits, targets))
        metrics["labels_kept"] = losses.accuracy(targets, batch.noisy.labels)
    if batch.clean_inner is not None and clean_logits is not None:
        labels = batch.clean_inner.labels
        per_example.append(losses.cross_entropy(clean_logits, labels))
        metrics["clean_accuracy"] = losses.accuracy(clean_logits, labels)
    loss = jnp.mean(jnp.concatenate(per_example))  # Weights the parts by their sizes.
    return loss, metrics | {"inner_loss": loss}


def inner_grads(
    problem: Problem, main: MainState, meta_params: Params, batch: Batch, rng: chex.PRNGKey
) -> tuple[Params, tuple[Params, Metrics]]:
    """Gradient of the inner loss in the classifier's params, averaged over devices.

    Noisy and clean examples go through the network in separate forward passes, as in the published
    setting: batch normalisation sees them as two batches.

    The targets depend on the params through the features. This gradient does not see that: the
    paper puts a stop_gradient there. But the derivative of a whole window in the meta parameters
    must, because the features of a later step depend on the labels of the earlier ones. So the
    targets are held fixed by taking the gradient in the logits, not by a stop_gradient, which
    would cut the later derivative, too.

    Returns:
      Gradients shaped like `main.params`, and `(new batch_stats, metrics)`.
    """
    noisy_rng, clean_rng = jax.random.split(rng)

    def forward(params: Params) -> tuple[Any, Params]:
        noisy_logits = features = clean_logits = None
        batch_stats = main.batch_stats
        if batch.noisy is not None:
            noisy_logits, features, batch_stats = problem.apply(
                params, batch_stats, batch.noisy.inputs, noisy_rng
            )
        if batch.clean_inner is not None:
            clean_logits, _, batch_stats = problem.apply(
                params, batch_stats, batch.clean_inner.inputs, clean_rng
            )
        return ((noisy_logits, clean_logits), features), batch_stats

    (logits, features), backward, batch_stats = jax.vjp(forward, main.params, has_aux=True)
    targets = None
    if batch.noisy is not None:
        targets = problem.targets(meta_params, features, logits[0], batch.noisy.labels)
    logit_grads, metrics = jax.grad(inner_loss, has_aux=True)(logits, targets, batch)
    (grads,) = backward((logit_grads, jax.tree.map(jnp.zeros_like, features)))
    return pmean(grads, problem.axis_name), (pmean(batch_stats, problem.axis_name), metrics)


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


def unroll(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batches: Batch,
    rngs: chex.PRNGKey,
    *,
    scan_unroll: int = 1,
) -> tuple[MainState, Metrics]:
    """k inner steps with `meta_params` held fixed.

    Args:
      problem: the two levels.
      main: the classifier before the window.
      meta_params: of the label correction network.
      batches: arrays `[k, B, ...]`.
      rngs: typed keys `[k]`.
      scan_unroll: how many steps one turn of the compiled loop holds. 1 on GPU and TPU; k on CPU,
        where XLA runs gradients of convolutions inside a loop body on a slow path.

    Returns:
      The classifier after the window and the metrics' means over it.
    """

    def body(main: MainState, xs: tuple[Batch, chex.PRNGKey]) -> tuple[MainState, Metrics]:
        batch, rng = xs
        return inner_step(problem, main, meta_params, batch, rng)

    main, metrics = scan(body, main, (batches, rngs), scan_unroll)
    return main, jax.tree.map(lambda x: jnp.mean(x, axis=0), metrics)


def resolve_unroll(setting: int, num_inner_steps: int) -> int:
    """The `scan_unroll` of `unroll` for a setting, in inner steps.

    Args:
      setting: inner steps that one turn of the compiled loop holds; 0 chooses by platform.
      num_inner_steps: k.
    """
    if setting:
        return setting
    return num_inner_steps if jax.default_backend() == "cpu" else 1


def scan(body: Callable[..., Any], init: Any, xs: Any, scan_unroll: int) -> tuple[Any, Any]:
    """`jax.lax.scan` without a loop around a single step.

    At length 1, `unroll=1` (and `unroll=True`, which means the same there) compiles to a loop of
    one turn; `unroll=2` to none. On CPU that loop alone makes the gradients of convolutions 40
    times slower.
    """
    length = jax.tree.leaves(xs)[0].shape[0]
    return jax.lax.scan(body, init, xs, unroll=max(2, scan_unroll) if length == 1 else scan_unroll)


def outer_loss(
    problem: Problem, params: Params, batch_stats: Params, clean: Examples, rng: chex.PRNGKey
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
