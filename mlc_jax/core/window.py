"""What all estimators of the meta-gradient share: settings, result, pieces."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp

from mlc_jax.core.inner_loop import at_step, unroll
from mlc_jax.core.losses import pmean
from mlc_jax.core.problem import Problem, apply_inner_grads, inner_grads, outer_loss
from mlc_jax.core.types import Batch, MainState, Metrics, Params


class Options(NamedTuple):
    """Settings of the estimators, all static except `skipped`.

    Attributes:
      backward, scan_unroll: see `unroll`. `backward` is for `exact` and `truncated`.
      truncation: number of updates that `truncated` goes back.
      solver_steps: terms of the `neumann` series, iterations of `conjugate_gradient`.
      damping: `conjugate_gradient` adds it to the Hessian's diagonal.
      skipped: see `unroll`; for estimators of `OVERLAPPING` that replay a window.
    """

    backward: str = "forward_over_reverse"
    scan_unroll: int = 1
    truncation: int = 1
    solver_steps: int = 10
    damping: float = 1.0
    skipped: int | jax.Array = 0


DEFAULTS = Options()


@dataclasses.dataclass(frozen=True)
class EstimatorSpec:
    """An estimator and its settings; see `mlc_jax.estimators` for constructors.

    Attributes:
      name: a key of `ESTIMATORS`.
      backward, truncation, solver_steps, damping: see `Options`; only some estimators use each.
    """

    name: str = "exact"
    backward: str = DEFAULTS.backward
    truncation: int = DEFAULTS.truncation
    solver_steps: int = DEFAULTS.solver_steps
    damping: float = DEFAULTS.damping

    def options(self, scan_unroll: int) -> Options:
        """The estimator's options, once it is known how to unroll its loops."""
        return Options(self.backward, scan_unroll, self.truncation, self.solver_steps, self.damping)


class Window(NamedTuple):
    """The result of an estimator.

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


class Step(NamedTuple):
    """One inner step, and the outer loss and its gradient after it.

    Attributes:
      main, metrics: as `inner_step` returns them.
      outer_grads: `g_w'`, averaged over devices.
      outer: metrics of the outer loss.
      minus_lambda: u -> `-Lambda u`. A change of the gradient moves the params by `-Lambda` times
        that change, so this is the VJP of the optimizer's update, whatever the optimizer. The
        paper's diagonal of learning rates, `Lambda`, is never built.
      minus_v: `-Lambda g_w'`.
    """

    main: MainState
    metrics: Metrics
    outer_grads: Params
    outer: Metrics
    minus_lambda: Callable[[Params], Params]
    minus_v: Params


def look_ahead(
    problem: Problem, main: MainState, meta_params: Params, batch: Batch, rng: chex.PRNGKey
) -> Step:
    """One inner step, and the outer loss's gradient after it."""
    grads, (batch_stats, metrics) = inner_grads(problem, main, meta_params, batch, rng)
    new_main = apply_inner_grads(problem, main, grads, batch_stats)

    def update(grads: Params) -> Params:
        return apply_inner_grads(problem, main, grads, batch_stats).params

    _, update_vjp = jax.vjp(update, grads)
    minus_lambda = lambda u: update_vjp(u)[0]  # noqa: E731
    outer_grads, outer = outer_grads_at(problem, new_main.params, main, batch, rng)
    return Step(new_main, metrics, outer_grads, outer, minus_lambda, minus_lambda(outer_grads))


def before_last(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batches: Batch,
    rngs: chex.PRNGKey,
    options: Options,
) -> tuple[MainState, Batch, chex.PRNGKey, list[Metrics]]:
    """The classifier before the window's last step, that step's data, and the earlier metrics."""
    metrics = []
    if len(rngs) > 1:
        main, of_steps = unroll(
            problem, main, meta_params, batches, rngs,
            num_steps=len(rngs) - 1, scan_unroll=options.scan_unroll,
        )  # fmt: skip
        metrics.append(of_steps)
    return main, *at_step((batches, rngs), -1), metrics


def outer_loss_after(
    problem: Problem, params: Params, main: MainState, batch: Batch, rng: chex.PRNGKey
) -> tuple[jax.Array, Metrics]:
    """The outer loss on a batch's clean examples."""
    if batch.clean_outer is None:
        raise ValueError("a meta-gradient needs clean outer examples")
    return outer_loss(problem, params, main.batch_stats, batch.clean_outer, rng)


def outer_grads_at(
    problem: Problem, params: Params, main: MainState, batch: Batch, rng: chex.PRNGKey
) -> tuple[Params, Metrics]:
    """Gradient of the outer loss at `params`, averaged over devices, and its metrics."""
    loss_fn = lambda params: outer_loss_after(problem, params, main, batch, rng)  # noqa: E731
    grads, metrics = jax.grad(loss_fn, has_aux=True)(params)
    return pmean(grads, problem.axis_name), metrics


def summarize(
    problem: Problem, meta_grads: Params, main: MainState, metrics: list[Metrics], outer: Metrics
) -> Window:
    """Averages gradients over devices, and metrics `[steps]` (or of one step) over the steps."""
    joined = jax.tree.map(lambda *xs: jnp.concatenate([jnp.atleast_1d(x) for x in xs]), *metrics)
    means = jax.tree.map(jnp.mean, joined)
    return Window(pmean(meta_grads, problem.axis_name), main, means | outer)
