"""The inner steps of a window as one loop, and the values that reverse mode stores for them."""

import functools
import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from mlc_jax.core.losses import pmean
from mlc_jax.core.problem import Problem, apply_inner_grads, inner_step, local_grads
from mlc_jax.core.second_order import inner_grads_vjp, meta_product
from mlc_jax.core.types import Batch, MainState, Metrics, Params

BACKWARDS = ("store", "remat", "forward_over_reverse", "two_level")

# (the classifier, step t or steps ts) -> (the classifier after them, metrics).
Step = Callable[[MainState, jax.Array], tuple[MainState, Metrics]]


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
    skipped: int | jax.Array = 0,
    curvature: bool = True,
) -> tuple[MainState, Metrics]:
    """Inner steps `first` to `first + num_steps - 1` of a window, with `meta_params` held fixed.

    Args:
      problem: the two levels.
      main: the classifier before these steps.
      meta_params: of the label correction network.
      batches: arrays `[k, B, ...]`.
      rngs: typed keys `[k]`.
      first: the first step, 0 to k - 1.
      num_steps: None runs all remaining steps.
      scan_unroll: how many steps one turn of the compiled loop holds. 1 on GPU and TPU; k on CPU,
        where XLA runs gradients of convolutions inside a loop body on a slow path.
      backward: one of `BACKWARDS`, what reverse mode stores of every step. `store`: all that it
        needs. `remat`: the classifier's state, to compute the step again from it.
        `forward_over_reverse`: the params, for `inner_grads_vjp`. `two_level`: the state of every
        sqrt(k)-th step, to compute the steps in between again. All give the same derivatives.
      skipped: how many of the window's first steps do not change the classifier; may be traced.
      curvature: whether reverse mode sees that an inner gradient depends on the params it is taken
        at. Without it, derivatives pass between steps only through the optimizer: no Hessian.
        Read by `forward_over_reverse` and `two_level`.

    Returns:
      The classifier after these steps, and their metrics `[num_steps]`.
    """
    window = (batches, rngs)

    def step(main: MainState, t: jax.Array) -> tuple[MainState, Metrics]:
        if backward in ("store", "remat"):
            return inner_step(problem, main, meta_params, *at_step(window, t))
        grads, (batch_stats, metrics) = _recomputed_grads(
            problem, curvature, main, meta_params, window, t
        )
        grads, batch_stats = pmean((grads, batch_stats), problem.axis_name)
        return apply_inner_grads(problem, main, grads, batch_stats), metrics

    # The loop runs over t, not over the batches, so that no part of a window is copied.
    body = step if isinstance(skipped, int) and skipped == 0 else _from(skipped, step)

    def steps(main: MainState, ts: jax.Array) -> tuple[MainState, Metrics]:
        return scan(jax.checkpoint(body) if backward == "remat" else body, main, ts, scan_unroll)

    ts = jnp.arange(first, len(rngs) if num_steps is None else first + num_steps)
    if backward == "two_level":
        return _in_segments(steps, main, ts, scan_unroll)
    return steps(main, ts)


def _from(start: int | jax.Array, step: Step) -> Step:
    """`step`, except that the classifier does not change before step `start`."""

    def body(main: MainState, t: jax.Array) -> tuple[MainState, Metrics]:
        new_main, metrics = step(main, t)
        keep = lambda new, old: jnp.where(t >= start, new, old)  # noqa: E731
        return jax.tree.map(keep, new_main, main), metrics

    return body


def _in_segments(
    steps: Step, main: MainState, ts: jax.Array, scan_unroll: int
) -> tuple[MainState, Metrics]:
    """`steps(main, ts)` in segments of sqrt(k) steps; reverse mode stores each segment's start."""
    length = math.isqrt(len(ts))
    whole = len(ts) - len(ts) % length
    segment = jax.checkpoint(steps)
    main, metrics = scan(segment, main, ts[:whole].reshape(-1, length), scan_unroll)
    metrics = jax.tree.map(jnp.ravel, metrics)
    if whole < len(ts):
        main, rest = segment(main, ts[whole:])
        metrics = jax.tree.map(lambda *xs: jnp.concatenate(xs), metrics, rest)
    return main, metrics


def at_step(window: tuple[Batch, chex.PRNGKey], t: int | jax.Array) -> tuple[Batch, chex.PRNGKey]:
    """Batch and key of step t of a window `[k, ...]`; t is from -k to k - 1."""
    index = functools.partial(jax.lax.dynamic_index_in_dim, index=t, keepdims=False)
    return jax.tree.map(index, window)


def resolve_unroll(setting: int, num_inner_steps: int, *, convolutions: bool = True) -> int:
    """The argument `scan_unroll` of `unroll` for a setting, in inner steps.

    Args:
      setting: inner steps per turn of the compiled loop; 0 chooses by platform.
      num_inner_steps: k.
      convolutions: whether the classifier has convolutions.
    """
    if setting:
        return setting
    return num_inner_steps if convolutions and jax.default_backend() == "cpu" else 1


def has_convolutions(params: Params) -> bool:
    """Whether a model with these params has convolutions: kernels `[height, width, in, out]`."""
    return any(leaf.ndim == 4 for leaf in jax.tree.leaves(params))


def scan(body: Callable[..., Any], init: Any, xs: Any, scan_unroll: int) -> tuple[Any, Any]:
    """`jax.lax.scan` without a loop around a single step.

    At length 1, `unroll=1` and `unroll=True` compile to a loop of one turn, `unroll=2` to no loop.
    On CPU such a loop makes gradients of convolutions 40 times slower.
    """
    length = jax.tree.leaves(xs)[0].shape[0]
    return jax.lax.scan(body, init, xs, unroll=max(2, scan_unroll) if length == 1 else scan_unroll)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _recomputed_grads(
    problem: Problem,
    curvature: bool,
    main: MainState,
    meta_params: Params,
    window: tuple[Batch, chex.PRNGKey],
    t: jax.Array,
) -> tuple[Params, tuple[Params, Metrics]]:
    """`local_grads` of step t; reverse mode stores the params and repeats the passes."""
    del curvature
    return local_grads(problem, main, meta_params, *at_step(window, t))


def _recomputed_grads_fwd(
    problem: Problem, curvature: bool, main: MainState, *rest: Any
) -> tuple[Any, Any]:
    outputs = _recomputed_grads(problem, curvature, main, *rest)
    return outputs, (main.replace(opt_state=None), *rest)


def _recomputed_grads_bwd(
    problem: Problem, curvature: bool, inputs: Any, cotangents: Any
) -> tuple[Any, ...]:
    v, _ = cotangents
    # Outside of a loop, XLA would see that both passes begin alike, and keep the first one's
    # activations.
    (main, meta_params, window, t), v = jax.lax.optimization_barrier((inputs, v))
    step = at_step(window, t)
    if not curvature:
        return None, meta_product(problem, main, meta_params, *step, v), None, None
    of_params, of_meta_params = inner_grads_vjp(problem, main, meta_params, *step, v)
    of_main = MainState(params=of_params, batch_stats=None, opt_state=None)
    return of_main, of_meta_params, None, None


_recomputed_grads.defvjp(_recomputed_grads_fwd, _recomputed_grads_bwd)
