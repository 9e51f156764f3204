"""The two-level problem: inner steps of the classifier, and the loss they are judged by.

Pure functions, arrays in and arrays out. With `axis_name=None` they run on one device; under
`jax.pmap(..., axis_name='batch')` each device holds a slice of every batch and the inner gradients
are averaged inside every inner step, so that n devices with B/n examples each compute what one
device with B examples does.

Vocabulary (paper's symbol in brackets): `params` [w] of the classifier, `meta_params` [a] of the
label correction network, `inner_loss` [L_D'(a, w)] on corrected noisy labels, `outer_loss` [L_D(w)]
on clean labels, `num_inner_steps` [k].
"""

import functools
import math
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

BACKWARDS = ("store", "remat", "forward_over_reverse", "two_level")

# (params, batch_stats, inputs, rng) -> (logits [B, C], features [B, F], new batch_stats).
ApplyFn = Callable[[Params, Params, jax.Array, chex.PRNGKey], tuple[jax.Array, jax.Array, Params]]
# (meta_params, features [B, F], logits [B, C], labels [B]) -> targets [B, C], non-negative.
TargetFn = Callable[[Params, jax.Array, jax.Array, jax.Array], jax.Array]


class Examples(NamedTuple):
    """Inputs `[B, ...]` as the model takes them, and int32 labels `[B]`.

    `rows` `[B]`, int32, say where noisy examples stand in their set, for methods that remember
    something of each.
    """

    inputs: Array
    labels: Array
    rows: Array | None = None


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


def meta_product(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batch: Batch,
    rng: chex.PRNGKey,
    v: Params,
) -> Params:
    """`v^T H_wa`, shaped like the meta params (equation 7, with `v` for `Lambda g_w'`).

    No backward pass of the classifier is differentiated, nor made: the inner loss is linear in the
    targets, so this is the VJP through `targets` of the loss's JVP along `v`.

    Returns:
      This device's part: the mean over the devices is the product.
    """
    forward = forward_pass(problem, main.batch_stats, batch, rng)
    outputs, tangents, _ = jax.jvp(forward, (main.params,), (v,), has_aux=True)
    return _along_targets(problem, meta_params, batch, outputs, tangents).of_meta_params


def inner_grads_vjp(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batch: Batch,
    rng: chex.PRNGKey,
    v: Params,
    *,
    fixed_targets: bool = False,
) -> tuple[Params, Params]:
    """Both products of `v` with the derivatives of the inner gradient `g`, in mixed mode.

    One forward pass with tangents along `v` and one backward pass through it give both: what
    forward over reverse gives (MixFlow-MG, arXiv 2505.00793), in the other order, which keeps less.
    Nothing of the inner gradient's own passes has to be kept for it.

    Args:
      problem, main, meta_params, batch, rng: as for `inner_grads`.
      v: shaped like the params.
      fixed_targets: leave the targets' dependence on the params out of the first product. It is
        then `H_ww v`, symmetric.

    Returns:
      `v^T dg/dw`, shaped like the params: the gradient's whole dependence on the params, the
      targets' included; and `v^T H_wa`, as `meta_product`. Both are this device's part: their mean
      over the devices is the product.
    """
    forward = forward_pass(problem, main.batch_stats, batch, rng)

    # What lies between two convolutions is cheaper to compute again than to keep.
    @functools.partial(jax.checkpoint, policy=_is_costly)
    def with_tangents(params: Params) -> tuple[Any, Any]:
        outputs, tangents, _ = jax.jvp(forward, (params,), (v,), has_aux=True)
        return outputs, tangents

    (outputs, tangents), pull_back = jax.vjp(with_tangents, main.params)
    along = _along_targets(problem, meta_params, batch, outputs, tangents)
    slope = functools.partial(_slope, targets=along.targets, batch=batch)
    of_logits, of_logit_tangents = jax.grad(slope, argnums=(0, 1))(outputs[0], tangents[0])
    of_outputs = (of_logits, jax.tree.map(jnp.zeros_like, outputs[1]))
    if not fixed_targets:
        of_outputs = jax.tree.map(jnp.add, of_outputs, along.of_outputs)
    of_tangents = (of_logit_tangents, jax.tree.map(jnp.zeros_like, tangents[1]))
    (of_params,) = pull_back((of_outputs, of_tangents))
    return of_params, along.of_meta_params


def _slope(logits: Any, tangents: Any, targets: jax.Array | None, batch: Batch) -> jax.Array:
    """Of the inner loss, where the logits move along `tangents`."""
    loss_fn = lambda logits: inner_loss(logits, targets, batch)[0]  # noqa: E731
    return jax.jvp(loss_fn, (logits,), (tangents,))[1]


class _AlongTargets(NamedTuple):
    """The targets, and derivatives of the slope by way of them."""

    targets: jax.Array | None
    of_meta_params: Params
    of_outputs: Any  # Of `forward_pass`.


def _along_targets(
    problem: Problem, meta_params: Params, batch: Batch, outputs: Any, tangents: Any
) -> _AlongTargets:
    of_meta_params, of_outputs = jax.tree.map(jnp.zeros_like, (meta_params, outputs))
    if batch.noisy is None:
        return _AlongTargets(None, of_meta_params, of_outputs)
    (noisy_logits, _), features = outputs
    labels = batch.noisy.labels
    targets, targets_vjp = jax.vjp(
        lambda a, h, z: problem.targets(a, h, z, labels), meta_params, features, noisy_logits
    )
    of_targets = jax.grad(_slope, argnums=2)(outputs[0], tangents[0], targets, batch)
    of_meta_params, of_features, of_noisy = targets_vjp(of_targets)
    ((_, of_clean), _) = of_outputs
    return _AlongTargets(targets, of_meta_params, ((of_noisy, of_clean), of_features))


def _is_costly(primitive: Any, *avals: Any, **params: Any) -> bool:
    """Matrix products, convolutions, and averages over devices."""
    is_product: bool = jax.checkpoint_policies.dots_saveable(primitive, *avals, **params)
    return is_product or primitive.name.startswith("psum")


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
    first: int = 0,
    num_steps: int | None = None,
    scan_unroll: int = 1,
    backward: str = "store",
) -> tuple[MainState, Metrics]:
    """Inner steps `first` to `first + num_steps - 1` of a window, with `meta_params` held fixed.

    Args:
      problem: the two levels.
      main: the classifier before these steps.
      meta_params: of the label correction network.
      batches: arrays `[k, B, ...]`.
      rngs: typed keys `[k]`.
      first: the first step, 0 to k - 1.
      num_steps: None is all that are left.
      scan_unroll: how many steps one turn of the compiled loop holds. 1 on GPU and TPU; k on CPU,
        where XLA runs gradients of convolutions inside a loop body on a slow path.
      backward: one of `BACKWARDS`, what reverse mode keeps of every step: `store`, all that it
        needs; `remat`, the classifier's state, from which it computes the step again;
        `forward_over_reverse`, the params, for `inner_grads_vjp`; `two_level`, the state of every
        sqrt(k)-th step, from which it computes the steps in between again. All give the same
        derivatives.

    Returns:
      The classifier after these steps, and their metrics `[num_steps]`.
    """
    window = (batches, rngs)

    def body(main: MainState, t: jax.Array) -> tuple[MainState, Metrics]:
        # The loop runs over t, not over the batches: a part of a window is not copied for it.
        if backward in ("store", "remat"):
            return inner_step(problem, main, meta_params, *at_step(window, t))
        local = problem._replace(axis_name=None)
        grads, (batch_stats, metrics) = _recomputed_grads(local, main, meta_params, window, t)
        grads, batch_stats = pmean((grads, batch_stats), problem.axis_name)
        return apply_inner_grads(problem, main, grads, batch_stats), metrics

    def steps(main: MainState, ts: jax.Array) -> tuple[MainState, Metrics]:
        return scan(jax.checkpoint(body) if backward == "remat" else body, main, ts, scan_unroll)

    ts = jnp.arange(first, len(rngs) if num_steps is None else first + num_steps)
    if backward != "two_level":
        return steps(main, ts)
    length = math.isqrt(len(ts))
    whole = len(ts) - len(ts) % length
    segment = jax.checkpoint(steps)
    main, metrics = scan(segment, main, ts[:whole].reshape(-1, length), scan_unroll)
    metrics = jax.tree.map(jnp.ravel, metrics)
    if whole < len(ts):
        main, rest = segment(main, ts[whole:])
        metrics = jax.tree.map(lambda *xs: jnp.concatenate(xs), metrics, rest)
    return main, metrics


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _recomputed_grads(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    window: tuple[Batch, chex.PRNGKey],
    t: jax.Array,
) -> tuple[Params, tuple[Params, Metrics]]:
    """`inner_grads` of step t; reverse mode keeps the params and goes by `inner_grads_vjp`."""
    return inner_grads(problem, main, meta_params, *at_step(window, t))


def _recomputed_grads_fwd(problem: Problem, main: MainState, *rest: Any) -> tuple[Any, Any]:
    return _recomputed_grads(problem, main, *rest), (main.replace(opt_state=None), *rest)


def _recomputed_grads_bwd(problem: Problem, inputs: Any, cotangents: Any) -> tuple[Any, ...]:
    v, _ = cotangents
    # Outside of a loop, XLA would see that both passes begin alike, and keep the first one's.
    (main, meta_params, window, t), v = jax.lax.optimization_barrier((inputs, v))
    of_params, of_meta_params = inner_grads_vjp(problem, main, meta_params, *at_step(window, t), v)
    of_main = MainState(params=of_params, batch_stats=None, opt_state=None)
    return of_main, of_meta_params, None, None


_recomputed_grads.defvjp(_recomputed_grads_fwd, _recomputed_grads_bwd)


def at_step(window: tuple[Batch, chex.PRNGKey], t: int | jax.Array) -> tuple[Batch, chex.PRNGKey]:
    """Batch and key of step t, -k to k - 1, of a window's `[k, ...]`."""
    index = functools.partial(jax.lax.dynamic_index_in_dim, index=t, keepdims=False)
    return jax.tree.map(index, window)


def resolve_unroll(setting: int, num_inner_steps: int, *, convolutions: bool = True) -> int:
    """The `scan_unroll` of `unroll` for a setting, in inner steps.

    Args:
      setting: inner steps that one turn of the compiled loop holds; 0 chooses by platform.
      num_inner_steps: k.
      convolutions: whether the classifier has any.
    """
    if setting:
        return setting
    return num_inner_steps if convolutions and jax.default_backend() == "cpu" else 1


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
