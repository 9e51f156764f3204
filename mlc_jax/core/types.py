"""Batches, and the training state, a pytree without functions."""

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


class Rows(NamedTuple):
    """All rows of a run, noisy ones first, and which classifier trains on which.

    Lists of rows have one length each: a short one is filled up by its own rows, which changes
    nothing, since batches are drawn from its first `lengths`. Rows, too, are filled up, to sizes
    that many data sets share, so that compiled programs are reused. Padding is never trained on.

    Attributes:
      inputs: `[N, ...]`, as the model takes them.
      votes: `[N, S]` int16, the given labels; -1 where nothing was said.
      checks: `[N]` int32, -1 where nobody looked, -2 in padding.
      is_judged: `[N]` bool, checked rows that were not looked up: those that weights, `R`, `pi` and
        the verdict are measured on.
      part: `[N]` int32, from 0 to H - 1.
      is_visible: `[K, N]` bool, the checks that runs (k, .) see.
      lists, lengths: `[K, H, L]` and `[K, H]` int32, what run (k, h) learns from.
      rival_lists, rival_lengths: `[H + K, L]` and `[H + K]`: for each part, rows with a given label
        outside of it; for each fold, the checks that are seen outside of it.
      judged: `[M]` int32, the judged rows, filled up by row 0.
      fold: `[M]` int32, of each of them.
      counts: `[M]` float32, 0 where it is filled up.
      is_random: whether the checks say how frequent classes are.
    """

    inputs: Inputs
    votes: Array
    checks: Array
    is_judged: Array
    part: Array
    is_visible: Array
    lists: Array
    lengths: Array
    rival_lists: Array
    rival_lengths: Array
    judged: Array
    fold: Array
    counts: Array
    is_random: Array


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
    """Everything a run needs to resume.

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


def num_params(params: Params) -> int:
    """Number of scalars in a pytree of arrays."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
