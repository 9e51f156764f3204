"""Implicit differentiation: meta-gradients as if the window had ended at a minimum."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import optax

from mlc_jax.core.inner_loop import at_step, scan, unroll
from mlc_jax.core.losses import pmean
from mlc_jax.core.problem import Problem
from mlc_jax.core.second_order import inner_grads_vjp, meta_product
from mlc_jax.core.types import Batch, MainState, Params
from mlc_jax.core.window import (
    DEFAULTS,
    Options,
    Step,
    Window,
    look_ahead,
    outer_grads_at,
    summarize,
)


def neumann(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batches: Batch,
    rngs: chex.PRNGKey,
    options: Options = DEFAULTS,
) -> Window:
    """Implicit differentiation; the inverse Hessian as a series of `options.solver_steps` terms.

    `-g_w^T H_ww^-1 H_wa` at the window's end on its last batch, where `H_ww^-1` is
    `sum_i (I - Lambda H_ww)^i Lambda`. The first i terms give the gradient through i updates that
    stay at the end point. Source: Lorraine et al. (2020), "Optimizing Millions of Hyperparameters
    by Implicit Differentiation", algorithm 3.
    """

    def solve(product: Callable[[Params], Params], step: "Step") -> Params:
        def body(solution: Params, _: jax.Array) -> tuple[Params, None]:
            # One step of gradient descent on a quadratic. Its minimum is the solution.
            residual = jax.tree.map(jnp.subtract, product(solution), step.outer_grads)
            return jax.tree.map(jnp.add, solution, step.minus_lambda(residual)), None

        start = jax.tree.map(jnp.negative, step.minus_v)  # The first term.
        later = jnp.arange(1, options.solver_steps)
        return scan(body, start, later, options.scan_unroll)[0]

    return _implicit(problem, main, meta_params, batches, rngs, options, solve)


def conjugate_gradient(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batches: Batch,
    rngs: chex.PRNGKey,
    options: Options = DEFAULTS,
) -> Window:
    """Implicit differentiation; the inverse Hessian by conjugate gradients.

    `-g_w^T (H_ww + damping I)^-1 H_wa` at the window's end on its last batch, by
    `options.solver_steps` iterations. A classifier's Hessian has negative eigenvalues, and
    `damping` should exceed their magnitude. Source: Rajeswaran et al. (2019),
    "Meta-Learning with Implicit Gradients", algorithm 2.
    """

    def solve(product: Callable[[Params], Params], step: "Step") -> Params:
        damped = lambda v: optax.tree.add_scale(product(v), options.damping, v)  # noqa: E731
        b = step.outer_grads
        return jax.scipy.sparse.linalg.cg(damped, b, tol=0.0, maxiter=options.solver_steps)[0]

    return _implicit(problem, main, meta_params, batches, rngs, options, solve)


def _implicit(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batches: Batch,
    rngs: chex.PRNGKey,
    options: Options,
    solve: Callable[[Callable[[Params], Params], Step], Params],
) -> Window:
    """`-g_w^T H_ww^-1 H_wa` at the end of the window, on its last batch.

    Args:
      solve: (v -> `H_ww v`, the last `Step` with the outer gradient `g_w`) -> `H_ww^-1 g_w`.
    """
    main, metrics = unroll(
        problem, main, meta_params, batches, rngs, scan_unroll=options.scan_unroll
    )
    last = at_step((batches, rngs), -1)
    outer_grads, outer = outer_grads_at(problem, main.params, main, *last)
    step = look_ahead(problem, main, meta_params, *last)  # For its learning rates.
    step = step._replace(outer_grads=outer_grads, minus_v=step.minus_lambda(outer_grads))

    def hessian(v: Params) -> Params:
        of_params, _ = inner_grads_vjp(problem, main, meta_params, *last, v, fixed_targets=True)
        return pmean(of_params, problem.axis_name)

    minus_solution = jax.tree.map(jnp.negative, solve(hessian, step))
    meta_grads = meta_product(problem, main, meta_params, *last, minus_solution)
    return summarize(problem, meta_grads, main, [metrics], outer)
