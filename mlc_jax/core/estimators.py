"""Estimators of the meta-gradient `dL_D(w_k)/da`, behind one signature.

Each estimator runs one window of k real inner steps and returns the gradient of the clean loss in
the meta parameters together with the classifier after the window. The classifier's trajectory is
the same for all of them; they differ only in the gradient:

    exact               through all k updates
    truncated           through the last `truncation` of them
    one_step            through the last one, without differentiating a backward pass
    finite_difference   the same by a central difference
    approximate         the paper's recursion over all k
    neumann,            as if the window had ended at a minimum of the inner loss: implicit
    conjugate_gradient  differentiation

Vocabulary: `v` is `Lambda g_w'`, the outer gradient at the end carried back through the optimizer's
last update to that update's gradient.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import optax

from mlc_jax.core.inner_loop import at_step, scan, unroll
from mlc_jax.core.problem import (
    Problem,
    apply_inner_grads,
    forward_pass,
    inner_grads,
    inner_loss,
    inner_step,
    outer_loss,
    pmean,
)
from mlc_jax.core.second_order import inner_grads_vjp, meta_product
from mlc_jax.core.types import Batch, Labelled, MainState, Metrics, Params

# Length of the central difference's step, over the norm of its direction (Liu et al. 2019, DARTS).
DIFFERENCE_STEP = 0.01
# What `outer_loss` measures: at the window's end, where inner metrics are means over it.
OUTER_METRICS = ("outer_loss", "clean_accuracy")


class Options(NamedTuple):
    """Static settings of the estimators.

    Attributes:
      backward, scan_unroll: see `unroll`. `backward` is for `exact` and `truncated`.
      truncation: updates that `truncated` goes back.
      solver_steps: terms of the `neumann` series, iterations of `conjugate_gradient`.
      damping: what `conjugate_gradient` adds to the Hessian's diagonal.
    """

    backward: str = "forward_over_reverse"
    scan_unroll: int = 1
    truncation: int = 1
    solver_steps: int = 10
    damping: float = 1.0


DEFAULTS = Options()


@dataclasses.dataclass(frozen=True)
class EstimatorSpec:
    """An estimator and its settings; see `mlc_jax.estimators` for constructors.

    Attributes:
      name: in `ESTIMATORS`.
      backward, truncation, solver_steps, damping: see `Options`; each is read by some alone.
    """

    name: str = "exact"
    backward: str = DEFAULTS.backward
    truncation: int = DEFAULTS.truncation
    solver_steps: int = DEFAULTS.solver_steps
    damping: float = DEFAULTS.damping

    def options(self, scan_unroll: int) -> Options:
        """For the estimator itself, once it is known how to unroll its loops."""
        return Options(self.backward, scan_unroll, self.truncation, self.solver_steps, self.damping)


class Window(NamedTuple):
    """What an estimator returns.

    Attributes:
      meta_grads: shaped like the meta parameters, averaged over devices.
      main: the classifier after the k inner steps.
      metrics: scalars; means over the window, `outer_loss` and `clean_accuracy` at its end.
    """

    meta_grads: Params
    main: MainState
    metrics: Metrics


class Estimator(Protocol):
    """The signature that all estimators share; arguments as in `unroll`."""

    def __call__(
        self,
        problem: Problem,
        main: MainState,
        meta_params: Params,
        batches: Batch,
        rngs: chex.PRNGKey,
        options: Options = ...,
    ) -> Window: ...


def exact_reference(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batches: Batch,
    rngs: chex.PRNGKey,
) -> tuple[Params, MainState]:
    """The whole algorithm: `dL_D(w_k)/da` by one `jax.grad` over one `lax.scan` of inner steps.

    Everything below computes this faster, in less memory, or approximately; tests hold it to this.

    Returns:
      The meta-gradient, and the classifier after the k steps.
    """

    def clean_loss_after_the_window(meta_params: Params) -> tuple[jax.Array, MainState]:
        def body(main: MainState, step: tuple[Batch, chex.PRNGKey]) -> tuple[MainState, None]:
            return inner_step(problem, main, meta_params, *step)[0], None

        end, _ = jax.lax.scan(body, main, (batches, rngs))
        last_batch, last_rng = at_step((batches, rngs), -1)
        return _outer_loss(problem, end.params, end, last_batch, last_rng)[0], end

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

    It passes through all that the optimizer does: momentum, weight decay, the schedule. The outer
    loss is taken on the clean outer half of the window's last batch.
    """
    options = options._replace(truncation=len(rngs))
    return truncated(problem, main, meta_params, batches, rngs, options)


def truncated(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batches: Batch,
    rngs: chex.PRNGKey,
    options: Options = DEFAULTS,
) -> Window:
    """Reverse-mode gradient of `L_D(w_k)` through the last `options.truncation` updates."""
    steps_of = functools.partial(unroll, problem, scan_unroll=options.scan_unroll)
    first, metrics = max(0, len(rngs) - options.truncation), []
    if first:
        main, plain = steps_of(main, meta_params, batches, rngs, num_steps=first)
        metrics.append(plain)

    def objective(meta_params: Params) -> tuple[jax.Array, Any]:
        # One step alone has to keep no more than its own gradient does.
        backward = options.backward if first + 1 < len(rngs) else "store"
        steps = functools.partial(steps_of, batches=batches, rngs=rngs, backward=backward)
        # Nothing before the first of these steps depends on the meta params. Outside of the loop,
        # XLA drops the half of its backward pass that would lead there.
        new_main, of_steps = steps(main, meta_params, first=first, num_steps=1)
        metrics = [of_steps]
        if first + 1 < len(rngs):
            new_main, of_steps = steps(new_main, meta_params, first=first + 1)
            metrics.append(of_steps)
        last = at_step((batches, rngs), -1)
        loss, outer_metrics = _outer_loss(problem, new_main.params, new_main, *last)
        return loss, (new_main, metrics, outer_metrics)

    meta_grads, (main, of_steps, outer) = jax.grad(objective, has_aux=True)(meta_params)
    return _window(problem, meta_grads, main, metrics + of_steps, outer)


def one_step(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batches: Batch,
    rngs: chex.PRNGKey,
    options: Options = DEFAULTS,
) -> Window:
    """`-v^T H_wa` at the window's last update alone; `exact` at k = 1.

    The inner loss is linear in the targets, so this is a JVP of the classifier along `v` and a VJP
    through the meta model: no backward pass is differentiated (EMLC, arXiv 2305.12961).
    """
    main, batch, rng, metrics = _before_last(problem, main, meta_params, batches, rngs, options)
    step = _look_ahead(problem, main, meta_params, batch, rng)
    meta_grads = meta_product(problem, main, meta_params, batch, rng, step.minus_v)
    return _window(problem, meta_grads, step.main, [*metrics, step.metrics], step.outer)


def finite_difference(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batches: Batch,
    rngs: chex.PRNGKey,
    options: Options = DEFAULTS,
) -> Window:
    """`one_step`, with equation 7 as a central difference of `dL_D'/da` along `v`.

    The targets' features are those at `w` on both sides: equation 7 holds them fixed. Source: Liu
    et al. (2019), "DARTS: Differentiable Architecture Search", equation 8.
    """
    main, batch, rng, metrics = _before_last(problem, main, meta_params, batches, rngs, options)
    step = _look_ahead(problem, main, meta_params, batch, rng)
    forward = forward_pass(problem, main.batch_stats, batch, rng)
    epsilon = DIFFERENCE_STEP / optax.tree.norm(step.minus_v)

    def loss(meta_params: Params, params: Params) -> jax.Array:
        ((logits, _), features), _ = forward(main.params)
        noisy = _required(batch.noisy, "noisy")
        targets = problem.targets(meta_params, features, logits, noisy.labels)
        (logits_there, _), _ = forward(params)
        return inner_loss(logits_there, targets, batch)[0]

    ends = [
        jax.grad(loss)(meta_params, optax.tree.add_scale(main.params, sign * epsilon, step.minus_v))
        for sign in (1, -1)
    ]
    meta_grads = jax.tree.map(lambda plus, minus: (plus - minus) / (2 * epsilon), *ends)
    return _window(problem, meta_grads, step.main, [*metrics, step.metrics], step.outer)


def approximate(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batches: Batch,
    rngs: chex.PRNGKey,
    options: Options = DEFAULTS,
) -> Window:
    """The paper's recursion over the window (equations 4-7); equal to `exact` at k = 1.

    `d_t = gamma_t * d_{t-1} - g_{w'_t}^T Lambda H_wa(w_t)`, with `d` zero before the window. Its
    memory does not grow with k.
    """
    window = (batches, rngs)
    d, main, first = recursion_step(problem, main, meta_params, *at_step(window, 0))
    if len(rngs) == 1:
        # gamma multiplies nothing here; dropping it lets XLA drop the pass that computes it.
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
    step = _look_ahead(problem, main, meta_params, batch, rng)
    d = meta_product(problem, main, meta_params, batch, rng, step.minus_v)
    d = pmean(d, problem.axis_name)
    outer_grads, _ = _outer_grads(problem, main.params, main, batch, rng)  # g_w
    shrunk = jax.tree.map(jnp.add, step.outer_grads, step.minus_v)  # (I - Lambda) g_w'
    gamma = optax.tree.vdot(shrunk, outer_grads) / optax.tree.vdot(outer_grads, outer_grads)
    if previous is not None:
        d = jax.tree.map(lambda before, term: gamma * before + term, previous, d)
    return Window(d, step.main, step.metrics | step.outer | {"gamma": gamma})


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
    `sum_i (I - Lambda H_ww)^i Lambda`: as many updates as there are terms, all at the end point.
    Source: Lorraine et al. (2020), "Optimizing Millions of Hyperparameters by Implicit
    Differentiation", algorithm 3.
    """

    def solve(product: Callable[[Params], Params], step: "_Step") -> Params:
        def body(solution: Params, _: jax.Array) -> tuple[Params, None]:
            # One step of gradient descent on the quadratic whose minimum the solution is.
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
    `options.solver_steps` iterations. A classifier's Hessian has negative eigenvalues: conjugate
    gradients are meant for `damping` above their size. Source: Rajeswaran et al. (2019),
    "Meta-Learning with Implicit Gradients", algorithm 2.
    """

    def solve(product: Callable[[Params], Params], step: "_Step") -> Params:
        damped = lambda v: optax.tree.add_scale(product(v), options.damping, v)  # noqa: E731
        b = step.outer_grads
        return jax.scipy.sparse.linalg.cg(damped, b, tol=0.0, maxiter=options.solver_steps)[0]

    return _implicit(problem, main, meta_params, batches, rngs, options, solve)


ESTIMATORS: dict[str, Estimator] = {
    "exact": exact,
    "approximate": approximate,
    "one_step": one_step,
    "truncated": truncated,
    "finite_difference": finite_difference,
    "neumann": neumann,
    "conjugate_gradient": conjugate_gradient,
}


def agreement(meta_grads: Params, reference: Params) -> Metrics:
    """How near a meta-gradient is to a reference, both averaged over devices.

    Returns:
      `cosine`, of the angle between the two over all parameters; `norm_ratio`, the length of
      the first over that of the second.
    """
    norm, reference_norm = optax.tree.norm(meta_grads), optax.tree.norm(reference)
    cosine = optax.tree.vdot(meta_grads, reference) / (norm * reference_norm)
    return {"cosine": cosine, "norm_ratio": norm / reference_norm}


class _Step(NamedTuple):
    """One inner step and what the outer loss says after it.

    Attributes:
      main, metrics: as `inner_step` returns them.
      outer_grads: `g_w'`, averaged over devices.
      outer: metrics of the outer loss.
      minus_lambda: u -> `-Lambda u`. An update moves the params by `-Lambda` times a change of the
        gradient, so this is the VJP of the optimizer's update: for momentum, Nesterov, clipping or
        Adam alike. `Lambda`, the paper's diagonal of learning rates, is never built.
      minus_v: `-Lambda g_w'`.
    """

    main: MainState
    metrics: Metrics
    outer_grads: Params
    outer: Metrics
    minus_lambda: Callable[[Params], Params]
    minus_v: Params


def _look_ahead(
    problem: Problem, main: MainState, meta_params: Params, batch: Batch, rng: chex.PRNGKey
) -> _Step:
    grads, (batch_stats, metrics) = inner_grads(problem, main, meta_params, batch, rng)
    new_main = apply_inner_grads(problem, main, grads, batch_stats)

    def update(grads: Params) -> Params:
        return apply_inner_grads(problem, main, grads, batch_stats).params

    _, update_vjp = jax.vjp(update, grads)
    minus_lambda = lambda u: update_vjp(u)[0]  # noqa: E731
    outer_grads, outer = _outer_grads(problem, new_main.params, main, batch, rng)
    return _Step(new_main, metrics, outer_grads, outer, minus_lambda, minus_lambda(outer_grads))


def _implicit(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batches: Batch,
    rngs: chex.PRNGKey,
    options: Options,
    solve: Callable[[Callable[[Params], Params], _Step], Params],
) -> Window:
    """`-g_w^T H_ww^-1 H_wa` at the end of the window, on its last batch.

    Args:
      solve: (v -> `H_ww v`, outer gradient and learning rates there) -> `H_ww^-1 g_w`.
    """
    main, metrics = unroll(
        problem, main, meta_params, batches, rngs, scan_unroll=options.scan_unroll
    )
    last = at_step((batches, rngs), -1)
    outer_grads, outer = _outer_grads(problem, main.params, main, *last)
    step = _look_ahead(problem, main, meta_params, *last)  # From here: for its learning rates.
    step = step._replace(outer_grads=outer_grads, minus_v=step.minus_lambda(outer_grads))

    def hessian(v: Params) -> Params:
        of_params, _ = inner_grads_vjp(problem, main, meta_params, *last, v, fixed_targets=True)
        return pmean(of_params, problem.axis_name)

    minus_solution = jax.tree.map(jnp.negative, solve(hessian, step))
    meta_grads = meta_product(problem, main, meta_params, *last, minus_solution)
    return _window(problem, meta_grads, main, [metrics], outer)


def _before_last(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batches: Batch,
    rngs: chex.PRNGKey,
    options: Options,
) -> tuple[MainState, Batch, chex.PRNGKey, list[Metrics]]:
    """The classifier before the window's last step, that step's data, and earlier metrics."""
    metrics = []
    if len(rngs) > 1:
        main, of_steps = unroll(
            problem, main, meta_params, batches, rngs,
            num_steps=len(rngs) - 1, scan_unroll=options.scan_unroll,
        )  # fmt: skip
        metrics.append(of_steps)
    return main, *at_step((batches, rngs), -1), metrics


def _outer_loss(
    problem: Problem, params: Params, main: MainState, batch: Batch, rng: chex.PRNGKey
) -> tuple[jax.Array, Metrics]:
    """With a key that no inner pass uses."""
    rng = jax.random.fold_in(rng, 1)
    clean = _required(batch.clean_outer, "clean outer")
    return outer_loss(problem, params, main.batch_stats, clean, rng)


def _required(examples: Labelled | None, name: str) -> Labelled:
    if examples is None:
        raise ValueError(f"a meta-gradient needs {name} examples")
    return examples


def _outer_grads(
    problem: Problem, params: Params, main: MainState, batch: Batch, rng: chex.PRNGKey
) -> tuple[Params, Metrics]:
    """Gradient of the outer loss at `params`, averaged over devices, and its metrics."""
    loss_fn = lambda params: _outer_loss(problem, params, main, batch, rng)  # noqa: E731
    grads, metrics = jax.grad(loss_fn, has_aux=True)(params)
    return pmean(grads, problem.axis_name), metrics


def _window(
    problem: Problem, meta_grads: Params, main: MainState, metrics: list[Metrics], outer: Metrics
) -> Window:
    """Averages: gradients over devices, the inner steps' metrics (`[steps]`, or of one) over k."""
    joined = jax.tree.map(lambda *xs: jnp.concatenate([jnp.atleast_1d(x) for x in xs]), *metrics)
    means = jax.tree.map(jnp.mean, joined)
    return Window(pmean(meta_grads, problem.axis_name), main, means | outer)
