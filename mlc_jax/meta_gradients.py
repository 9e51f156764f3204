"""Estimators of the meta-gradient `dL_D(w_k)/da`, behind one signature.

Each estimator runs one window of k real inner steps and returns the gradient of the clean loss in
the meta parameters together with the classifier after the window. The classifier's trajectory is
the same for all of them; they differ only in the gradient.
"""

from typing import NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import optax

from mlc_jax import bilevel
from mlc_jax.bilevel import Batch, Metrics, Problem
from mlc_jax.train_state import MainState, Params


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
    """The signature that all estimators share; arguments as in `bilevel.unroll`."""

    def __call__(
        self,
        problem: Problem,
        main: MainState,
        meta_params: Params,
        batches: Batch,
        rngs: chex.PRNGKey,
        *,
        scan_unroll: int = 1,
    ) -> Window: ...


def exact(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batches: Batch,
    rngs: chex.PRNGKey,
    *,
    scan_unroll: int = 1,
) -> Window:
    """Reverse-mode gradient of `L_D(w_k)` through all k updates.

    It passes through all that the optimizer does: momentum, weight decay, the schedule. The outer
    loss is taken on the clean outer half of the window's last batch.
    """

    def objective(meta_params: Params) -> tuple[jax.Array, tuple[MainState, Metrics]]:
        new_main, metrics = bilevel.unroll(
            problem, main, meta_params, batches, rngs, scan_unroll=scan_unroll
        )
        clean, rng = _last(batches.clean_outer), _outer_rng(rngs[-1])
        loss, outer_metrics = bilevel.outer_loss(
            problem, new_main.params, new_main.batch_stats, clean, rng
        )
        return loss, (new_main, metrics | outer_metrics)

    meta_grads, (new_main, metrics) = jax.grad(objective, has_aux=True)(meta_params)
    return Window(bilevel.pmean(meta_grads, problem.axis_name), new_main, metrics)


def approximate(
    problem: Problem,
    main: MainState,
    meta_params: Params,
    batches: Batch,
    rngs: chex.PRNGKey,
    *,
    scan_unroll: int = 1,
) -> Window:
    """The paper's recursion over the window (equations 4-7); equal to `exact` at k = 1.

    `d_t = gamma_t * d_{t-1} - g_{w'_t}^T Lambda H_wa(w_t)`, with `d` zero before the window. Its
    memory does not grow with k.
    """
    num_inner_steps = rngs.shape[0]
    at = lambda t: jax.tree.map(lambda x: x[t], (batches, rngs))  # noqa: E731
    meta_grads, main, metrics = recursion_step(problem, main, meta_params, *at(0))
    if num_inner_steps == 1:
        # gamma multiplies nothing here; dropping it lets XLA drop the pass that computes it.
        del metrics["gamma"]
        return Window(meta_grads, main, metrics)

    def body(
        carry: tuple[Params, MainState], xs: tuple[Batch, chex.PRNGKey]
    ) -> tuple[tuple[Params, MainState], Metrics]:
        meta_grads, main = carry
        batch, rng = xs
        meta_grads, main, metrics = recursion_step(
            problem, main, meta_params, batch, rng, previous=meta_grads
        )
        return (meta_grads, main), metrics

    rest = at(slice(1, None))
    (meta_grads, main), later = bilevel.scan(body, (meta_grads, main), rest, scan_unroll)
    metrics = jax.tree.map(lambda x, xs: jnp.concatenate([x[None], xs]), metrics, later)
    at_end = {name: metrics[name][-1] for name in ("outer_loss", "clean_accuracy")}
    return Window(meta_grads, main, jax.tree.map(jnp.mean, metrics) | at_end)


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

    The second term of equation 6 is the derivative of the outer loss through this one update, with
    `w_t` held constant. `Lambda`, the diagonal of learning rates, is read off the optimizer: an
    update moves the params by `-Lambda` times a change of the gradient, so a JVP of the update map
    gives `-Lambda g_w` for momentum, Nesterov, clipping or Adam alike. The metric `gamma` is
    `g_w'^T (I - Lambda) g_w / ||g_w||^2`, equation 6 with `H_ww` taken as the identity.
    """
    clean, outer_rng = batch.clean_outer, _outer_rng(rng)
    assert clean is not None, "the outer loss needs clean examples"

    def outer_grad(params: Params) -> tuple[Params, Metrics]:
        loss_fn = lambda p: bilevel.outer_loss(  # noqa: E731
            problem, p, main.batch_stats, clean, outer_rng
        )
        grads, metrics = jax.grad(loss_fn, has_aux=True)(params)
        return bilevel.pmean(grads, problem.axis_name), metrics

    def grads_of(meta_params: Params) -> tuple[Params, tuple[Params, Metrics]]:
        return bilevel.inner_grads(problem, main, meta_params, batch, rng)

    def update(grads: Params) -> Params:
        return bilevel.apply_inner_grads(problem, main, grads, batch_stats).params

    grads, vjp_grads, (batch_stats, metrics) = jax.vjp(grads_of, meta_params, has_aux=True)
    new_main = bilevel.apply_inner_grads(problem, main, grads, batch_stats)
    _, vjp_update = jax.vjp(update, grads)

    outer_grads_ahead, outer_metrics = outer_grad(new_main.params)  # g_w'
    (meta_grads,) = vjp_grads(*vjp_update(outer_grads_ahead))
    meta_grads = bilevel.pmean(meta_grads, problem.axis_name)

    outer_grads, _ = outer_grad(main.params)  # g_w
    _, minus_lambda_g = jax.jvp(update, (grads,), (outer_grads,))
    shrunk = jax.tree.map(jnp.add, outer_grads, minus_lambda_g)  # (I - Lambda) g_w
    gamma = optax.tree.vdot(outer_grads_ahead, shrunk) / optax.tree.vdot(outer_grads, outer_grads)
    if previous is not None:
        meta_grads = jax.tree.map(lambda d, g: gamma * d + g, previous, meta_grads)
    return Window(meta_grads, new_main, metrics | outer_metrics | {"gamma": gamma})


ESTIMATORS: dict[str, Estimator] = {"exact": exact, "approximate": approximate}


def _last(tree: Params) -> Params:
    return jax.tree.map(lambda x: x[-1], tree)


def _outer_rng(rng: chex.PRNGKey) -> chex.PRNGKey:
    """A key for the outer pass that no inner pass uses."""
    return jax.random.fold_in(rng, 1)
