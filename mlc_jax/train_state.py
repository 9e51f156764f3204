"""The training state: one pytree that holds all that changes, and no functions."""

from typing import Any

import chex
import flax.struct
import jax
import optax
from flax import linen as nn

Params = Any  # A pytree of arrays.


class MainState(flax.struct.PyTreeNode):
    """The classifier (main model): the paper's `w` and what its optimizer remembers."""

    params: Params
    batch_stats: Params
    opt_state: optax.OptState


class MetaState(flax.struct.PyTreeNode):
    """The label correction network (meta model): the paper's `a` (alpha)."""

    params: Params
    opt_state: optax.OptState


class TrainState(flax.struct.PyTreeNode):
    """Everything a run needs to go on from where it stands.

    Attributes:
      step: int32 scalar, the number of classifier updates (inner steps) made so far.
      rng: typed key; the randomness of step t is `fold_in(rng, t)`, so it is never replaced.
      main: the classifier.
      meta: the meta model, None for methods without one.
      extra: what else a method learns and keeps: a matrix of transitions, labels, a teacher.
    """

    step: jax.Array
    rng: chex.PRNGKey
    main: MainState
    meta: MetaState | None
    extra: Any = None


def create_main_state(
    rng: chex.PRNGKey,
    model: nn.Module,
    tx: optax.GradientTransformation,
    example_inputs: jax.Array,
) -> MainState:
    """Initialises the classifier on `example_inputs` `[1, ...]`, already preprocessed."""
    variables = model.init(rng, example_inputs, train=False)
    params = variables["params"]
    return MainState(
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=tx.init(params),
    )


def num_params(params: Params) -> int:
    """Number of scalars in a pytree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
