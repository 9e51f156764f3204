"""The estimators' products of a vector with second derivatives of the inner loss."""

import functools
from typing import Any

import chex
import jax
import jax.numpy as jnp

from mlc_jax.core.inner_loss import Held, Mixing, Output, Outputs, inner_loss
from mlc_jax.core.problem import (
    Pass,
    Problem,
    add_trees,
    hold,
    mixed_pass,
    mixing_of,
    passes,
)
from mlc_jax.core.types import Batch, MainState, Params


def meta_product(
    problem: Problem,
    main: MainState,
    belief: Any,
    batch: Batch,
    rng: chex.PRNGKey,
    v: Params,
) -> Any:
    """`v^T H_wa`, shaped like the belief (equation 7, with `v` for `Lambda g_w'`).

    It needs no backward pass of the classifier: it is the VJP, through the values held fixed, of
    the loss's JVP along `v`.

    Returns:
      This device's part; the product is the mean over devices.
    """
    outputs, tangents = {}, {}

    run = functools.partial(_with_tangents, problem, main, v)
    for name, made in passes(problem, batch, rng).items():
        outputs[name], tangents[name] = run(name, made, main.params)
    held, held_vjp = jax.vjp(lambda belief: hold(problem, belief, outputs, batch, rng), belief)
    mixing = mixing_of(problem, batch, rng)
    if mixing is not None:
        made = mixed_pass(problem, batch, rng, mixing, held)
        outputs["mixed"], tangents["mixed"] = run("mixed", made, main.params)
    d_held = jax.grad(_slope, argnums=2)(outputs, tangents, held, problem, batch, mixing)
    (d_belief,) = held_vjp(d_held)
    return d_belief


def inner_grads_vjp(
    problem: Problem,
    main: MainState,
    belief: Any,
    batch: Batch,
    rng: chex.PRNGKey,
    v: Params,
    *,
    fixed_targets: bool = False,
) -> tuple[Params, Any]:
    """Both products of `v` with the derivatives of the inner gradient `g`, in mixed mode.

    One forward pass with tangents along `v` and one backward pass through it give both. Forward
    over reverse (MixFlow-MG, arXiv 2505.00793) gives the same, but stores more. Nothing of the
    inner gradient's own passes has to be stored.

    Args:
      problem, main, belief, batch, rng: as for `local_grads`.
      v: shaped like the params.
      fixed_targets: ignore in the first product that the fixed values depend on the params. It is
        then `H_ww v`, symmetric.

    Returns:
      `v^T dg/dw`, shaped like the params, which includes the targets' dependence on the params; and
      `v^T H_wa`, as `meta_product`. Both are this device's part; the products are the means over
      devices.
    """
    with_tangents = functools.partial(_with_tangents, problem, main, v)
    # Operations between convolutions are cheaper to repeat than to store.
    frugal = functools.partial(jax.checkpoint, policy=_is_costly)
    outputs, tangents, pull_back = {}, {}, {}
    for name, made in passes(problem, batch, rng).items():
        run = frugal(functools.partial(with_tangents, name, made))
        (outputs[name], tangents[name]), pull_back[name] = jax.vjp(run, main.params)
    looked = dict(outputs)
    held, held_vjp = jax.vjp(
        lambda belief, outputs: hold(problem, belief, outputs, batch, rng), belief, looked
    )
    mixing = mixing_of(problem, batch, rng)
    if mixing is not None:

        @frugal
        def mixed(params: Params, held: Held) -> tuple[Any, Any]:
            made = mixed_pass(problem, batch, rng, mixing, held)
            return with_tangents("mixed", made, params)

        (outputs["mixed"], tangents["mixed"]), pull_back_mixed = jax.vjp(mixed, main.params, held)
    d_outputs, d_tangents, d_held = jax.grad(_slope, argnums=(0, 1, 2))(
        outputs, tangents, held, problem, batch, mixing
    )
    d_params = []
    if mixing is not None:
        of_params, of_held = pull_back_mixed((d_outputs.pop("mixed"), d_tangents.pop("mixed")))
        d_params.append(of_params)
        d_held = jax.tree.map(jnp.add, d_held, of_held)
    d_belief, d_looked = held_vjp(d_held)
    if not fixed_targets:
        d_outputs = jax.tree.map(jnp.add, d_outputs, d_looked)
    d_params += [pull_back[name]((d_outputs[name], d_tangents[name]))[0] for name in looked]
    return add_trees(d_params), d_belief


def _with_tangents(
    problem: Problem, main: MainState, v: Params, name: str, made: Pass, params: Params
) -> tuple[Output, Output | None]:
    """The output of a pass, and its tangent along `v` if the inner loss reads it."""

    def outputs(params: Params) -> Output:
        return made(params, main.batch_stats)[0]  # No new statistics: nothing is trained here.

    if name in problem.rule.trained:
        return jax.jvp(outputs, (params,), (v,))
    return outputs(params), None


def _slope(
    outputs: Outputs, tangents: Outputs, held: Held, problem: Problem, batch: Batch,
    mixing: Mixing | None,
) -> jax.Array:  # fmt: skip
    """The slope of the inner loss as its outputs move along `tangents`."""

    def loss(moved: Outputs) -> jax.Array:
        every = outputs | moved
        return inner_loss(problem.rule, every, held, batch, mixing, problem.axis_name)[0]

    moving = {name: tangent for name, tangent in tangents.items() if tangent is not None}
    at = {name: outputs[name] for name in moving}
    return jax.jvp(loss, (at,), (moving,))[1]


def _is_costly(primitive: Any, *avals: Any, **params: Any) -> bool:
    """Whether to store a result: matrix products, convolutions, averages over devices, names.

    Products with a batch dimension are attention's, and are not stored: the weights between all
    pairs of tokens would take most of the memory, and are a small part of the work. By
    `checkpoint_name` a model names results that are expensive and that no gradient passes through.
    """
    policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
    is_product: bool = policy(primitive, *avals, **params)
    return (
        is_product
        or primitive.name in ("conv_general_dilated", "name")
        or primitive.name.startswith("psum")
    )
