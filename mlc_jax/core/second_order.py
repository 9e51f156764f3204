"""Products of a vector with second derivatives of the inner loss: what estimators are made of."""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from mlc_jax.core.problem import Problem, forward_pass, inner_loss
from mlc_jax.core.types import Batch, MainState, Params


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
