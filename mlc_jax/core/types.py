"""What the step works on: batches, and the training state, a pytree without functions."""

from typing import Any, NamedTuple

import chex
import flax.struct
import jax
import optax

Array = Any  # jax.Array; np.ndarray on its way to a device.
Inputs = Any  # A pytree of arrays with one leading axis: what a model takes.
Params = Any  # A pytree of arrays.
Metrics = dict[str, jax.Array]


class Labelled(NamedTuple):
    """Inputs `[B, ...]`, an array or a pytree of them, and int32 labels `[B]`.

    `rows` `[B]`, int32, say where noisy examples stand in their set, for methods that remember
    something of each. `given` `[B]` are the labels of clean examples as they were before somebody
    checked them, negative where that is not known; None where it is known of no example.
    """

    inputs: Inputs
    labels: Array
    rows: Array | None = None
    given: Array | None = None


class Batch(NamedTuple):
    """The data of one inner step; of k steps, when every array has a leading axis of size k.

    Attributes:
      noisy: examples whose labels may be wrong.
      clean_inner: the half of the clean batch that joins the inner loss.
      clean_outer: the half that the outer loss is measured on.
    Any of them is None where the method does without it.
    """

    noisy: Labelled | None
    clean_inner: Labelled | None
    clean_outer: Labelled | None


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
      past: what the next meta-gradient needs of the steps before where windows overlap, see
        `core.overlap`: past classifiers, or the gradient so far; None where they do not.
    """

    step: jax.Array
    rng: chex.PRNGKey
    main: MainState
    meta: MetaState | None
    extra: Any = None
    past: Any = None


def identity(inputs: Inputs) -> Inputs:
    """The `prepare` of inputs that are stored as a model takes them."""
    return inputs


def num_params(params: Params) -> int:
    """Number of scalars in a pytree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
