"""Estimators of the meta-gradient `dL_D(w_k)/da`, behind one signature.

Each estimator runs one window of k real inner steps. It returns the gradient of the clean loss in
the meta parameters, and the classifier after the window. That classifier is the same for all of
them; they differ only in the gradient:

    exact               through all k updates
    truncated           through the last `truncation` updates
    first_order         through all k updates, carried between steps only by the optimizer
    one_step            through the last update, without differentiating a backward pass
    finite_difference   through the last update, by a central difference
    approximate         the paper's recursion over all k updates
    neumann,            implicit differentiation: as if the window had ended at a minimum of the
    conjugate_gradient  inner loss

Notation, as in the paper: `g_w'` is the gradient of the outer loss after an update, `Lambda` the
learning rates of that update (see `window.Step`), and `v = Lambda g_w'`. `H_ww` and `H_wa` are
second derivatives of the inner loss: in the params twice, and in the params and the meta params.
"""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from mlc_jax.core.implicit import conjugate_gradient, neumann
from mlc_jax.core.inner_loop import at_step, scan, unroll
from mlc_jax.core.losses import pmean
from mlc_jax.core.problem import Problem, hold, inner_step, loss_at, passes, run_passes
from mlc_jax.core.second_order import meta_product
from mlc_jax.core.types import Batch, MainState, Metrics, Params
from mlc_jax.core.window import (
    DEFAULTS,
    Estimator,
    Options,
    Window,
    before_last,
    look_ahead,
    outer_grads_at,
    outer_loss_after,
    summarize,
)

# Step length of the central difference, relative to its direction's norm (Liu et al. 2019, DARTS).
DIFFERENCE_STEP = 0.01
# Metrics of the outer loss, taken at the window's end. Inner metrics are means over the window.
OUTER_METRICS = ("outer_loss", "clean_accuracy")


def exact_reference(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batches: Batch,
    rngs: chex.PRNGKey,
) -> tuple[Params, MainState]:
    """The whole algorithm: `dL_D(w_k)/da` by one `jax.grad` over one `lax.scan` of inner steps.

    The estimators below compute it faster, in less memory, or approximately. Tests compare them.

    Returns:
      The meta-gradient, and the classifier after the k steps.
    """

    def clean_loss_after_the_window(meta_params: Params) -> tuple[jax.Array, MainState]:
        def body(main: MainState, step: tuple[Batch, chex.PRNGKey]) -> tuple[MainState, None]:
            return inner_step(problem, main, meta_params, *step)[0], None

        end, _ = jax.lax.scan(body, main, (batches, rngs))
        last_batch, last_rng = at_step((batches, rngs), -1)
        return outer_loss_after(problem, end.params, end, last_batch, last_rng)[0], end

    meta_grads, end = jax.grad(clean_loss_after_the_window, has_aux=True)(meta_params)
    return pmean(meta_grads, problem.axis_name), end


def exact(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batches: Batch,
    rngs: chex.PRNGKey,
    options: Options = DEFAULTS,
) -> Window:
    """Reverse-mode gradient of `L_D(w_k)` through all k updates.

    It differentiates through the whole optimizer: momentum, weight decay, the schedule. The outer
    loss uses the clean outer half of the window's last batch.
    """
    return _through_last(len(rngs), problem, main, meta_params, batches, rngs, options)


def truncated(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batches: Batch,
    rngs: chex.PRNGKey,
    options: Options = DEFAULTS,
) -> Window:
    """Reverse-mode gradient of `L_D(w_k)` through the last `options.truncation` updates."""
    return _through_last(options.truncation, problem, main, meta_params, batches, rngs, options)


def first_order(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batches: Batch,
    rngs: chex.PRNGKey,
    options: Options = DEFAULTS,
) -> Window:
    """`exact` without Hessians: all k updates count, but later gradients are taken as constant.

    `sum_t -g_w'^T Lambda_t H_wa(w_t)`, where `Lambda_t` is how far the gradient of step t has moved
    the params by the window's end. With momentum that is more than one step's share. Equal to
    `exact` at k = 1.
    """
    return _through_last(
        len(rngs), problem, main, meta_params, batches, rngs, options, curvature=False
    )


def _through_last(
    num_steps: int,
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batches: Batch,
    rngs: chex.PRNGKey,
    options: Options,
    *,
    curvature: bool = True,
) -> Window:
    """Reverse mode through the last `num_steps` updates; `curvature` as in `unroll`."""
    steps_of = functools.partial(
        unroll, problem, scan_unroll=options.scan_unroll, skipped=options.skipped
    )
    first, metrics = max(0, len(rngs) - num_steps), []
    if first:
        main, plain = steps_of(main, meta_params, batches, rngs, num_steps=first)
        metrics.append(plain)

    def objective(meta_params: Params) -> tuple[jax.Array, Any]:
        # For a single step, `store` needs no more memory than the step's own gradient.
        backward = options.backward if first + 1 < len(rngs) else "store"
        backward = backward if curvature else "forward_over_reverse"
        steps = functools.partial(
            steps_of, batches=batches, rngs=rngs, backward=backward, curvature=curvature
        )
        # The first of these steps is outside of the loop. Nothing before it depends on the meta
        # params, so XLA drops that half of its backward pass.
        new_main, of_steps = steps(main, meta_params, first=first, num_steps=1)
        metrics = [of_steps]
        if first + 1 < len(rngs):
            new_main, of_steps = steps(new_main, meta_params, first=first + 1)
            metrics.append(of_steps)
        last = at_step((batches, rngs), -1)
        loss, outer_metrics = outer_loss_after(problem, new_main.params, new_main, *last)
        return loss, (new_main, metrics, outer_metrics)

    meta_grads, (main, of_steps, outer) = jax.grad(objective, has_aux=True)(meta_params)
    return summarize(problem, meta_grads, main, metrics + of_steps, outer)


def one_step(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batches: Batch,
    rngs: chex.PRNGKey,
    options: Options = DEFAULTS,
) -> Window:
    """`-v^T H_wa` at the window's last update; equal to `exact` at k = 1.

    A JVP of the classifier along `v` and a VJP through the meta model: no backward pass is
    differentiated (EMLC, arXiv 2305.12961).
    """
    main, batch, rng, metrics = before_last(problem, main, meta_params, batches, rngs, options)
    step = look_ahead(problem, main, meta_params, batch, rng)
    meta_grads = meta_product(problem, main, meta_params, batch, rng, step.minus_v)
    return summarize(problem, meta_grads, step.main, [*metrics, step.metrics], step.outer)


def finite_difference(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batches: Batch,
    rngs: chex.PRNGKey,
    options: Options = DEFAULTS,
) -> Window:
    """`one_step`, with equation 7 as a central difference of `dL_D'/da` along `v`.

    Both sides use the targets at `w`, because equation 7 holds them fixed. Source: Liu
    et al. (2019), "DARTS: Differentiable Architecture Search", equation 8.
    """
    main, batch, rng, metrics = before_last(problem, main, meta_params, batches, rngs, options)
    step = look_ahead(problem, main, meta_params, batch, rng)
    outputs, _ = run_passes(passes(problem, batch, rng), main.params, main.batch_stats)
    epsilon = DIFFERENCE_STEP / optax.tree.norm(step.minus_v)

    def loss(meta_params: Params, params: Params) -> jax.Array:
        held = hold(problem, meta_params, outputs, batch, rng)
        return loss_at(problem, params, main.batch_stats, held, batch, rng)

    ends = [
        jax.grad(loss)(meta_params, optax.tree.add_scale(main.params, sign * epsilon, step.minus_v))
        for sign in (1, -1)
    ]
    meta_grads = jax.tree.map(lambda plus, minus: (plus - minus) / (2 * epsilon), *ends)
    return summarize(problem, meta_grads, step.main, [*metrics, step.metrics], step.outer)


def approximate(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batches: Batch,
    rngs: chex.PRNGKey,
    options: Options = DEFAULTS,
    *,
    previous: Params | None = None,
) -> Window:
    """The paper's recursion over the window (equations 4-7); equal to `exact` at k = 1.

    `d_t = gamma_t * d_{t-1} - g_{w'_t}^T Lambda H_wa(w_t)`. `previous` is `d` before the window;
    None stands for zero. Memory does not grow with k.
    """
    window = (batches, rngs)
    d, main, first = recursion_step(
        problem, main, meta_params, *at_step(window, 0), previous=previous
    )
    if len(rngs) == 1:
        if previous is None:
            # gamma multiplies nothing here. Without it XLA drops the pass that computes it.
            del first["gamma"]
        return Window(d, main, first)

    def body(carry: tuple[Params, MainState], t: jax.Array) -> tuple[Any, Metrics]:
        d, main = carry
        d, main, metrics = recursion_step(
            problem, main, meta_params, *at_step(window, t), previous=d
        )
        return (d, main), metrics

    later = jnp.arange(1, len(rngs))
    (d, main), later = scan(body, (d, main), later, options.scan_unroll)
    metrics = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), first, later)
    outer = {name: metrics.pop(name)[-1] for name in OUTER_METRICS}
    return Window(d, main, jax.tree.map(jnp.mean, metrics) | outer)


def recursion_step(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batch: Batch,
    rng: chex.PRNGKey,
    *,
    previous: Params | None = None,
) -> Window:
    """One inner step, and `d_t` from `d_{t-1}` = `previous` (None stands for zero).

    The metric `gamma` is `g_w'^T (I - Lambda) g_w / ||g_w||^2`, equation 6 with `H_ww` taken as
    the identity.
    """
    step = look_ahead(problem, main, meta_params, batch, rng)
    d = meta_product(problem, main, meta_params, batch, rng, step.minus_v)
    d = pmean(d, problem.axis_name)
    outer_grads, _ = outer_grads_at(problem, main.params, main, batch, rng)  # g_w
    shrunk = jax.tree.map(jnp.add, step.outer_grads, step.minus_v)  # (I - Lambda) g_w'
    gamma = optax.tree.vdot(shrunk, outer_grads) / optax.tree.vdot(outer_grads, outer_grads)
    if previous is not None:
        d = jax.tree.map(lambda before, term: gamma * before + term, previous, d)
    return Window(d, step.main, step.metrics | step.outer | {"gamma": gamma})


ESTIMATORS: dict[str, Estimator] = {
    "exact": exact,
    "approximate": approximate,
    "one_step": one_step,
    "truncated": truncated,
    "first_order": first_order,
    "finite_difference": finite_difference,
    "neumann": neumann,
    "conjugate_gradient": conjugate_gradient,
}


# Estimators for overlapping windows. The others only see the window's end.
OVERLAPPING = ("exact", "truncated", "first_order", "approximate")


def agreement(meta_grads: Params, reference: Params) -> Metrics:
    """Compares a meta-gradient with a reference, both averaged over devices.

    Returns:
      `cosine` of the angle between the two over all parameters; `norm_ratio`, the norm of the
      first divided by the norm of the second.
    """
    norm, reference_norm = optax.tree.norm(meta_grads), optax.tree.norm(reference)
    cosine = optax.tree.vdot(meta_grads, reference) / (norm * reference_norm)
    return {"cosine": cosine, "norm_ratio": norm / reference_norm}
