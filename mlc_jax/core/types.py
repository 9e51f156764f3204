"""Batches, and the training state, a pytree without functions."""

from typing import Any, NamedTuple

import chex
import flax.struct
import jax
import optax

Array = Any  # A jax.Array, or an np.ndarray before it is placed on a device.
Inputs = Any  # A model's inputs: a pytree of arrays with one leading axis.
Params = Any  # A pytree of arrays.
Metrics = dict[str, jax.Array]


class Labelled(NamedTuple):
    """Inputs `[B, ...]`, an array or a pytree of them, and integer labels `[B]`.

    If the method takes votes, `labels` of noisy examples and `given` are `[B, S]`, the labels of S
    sources, negative where a source said nothing.

    `rows` `[B]`, int32, are the positions of noisy examples in their set, for methods that store
    something per example. `given` `[B]` are the labels of clean examples before somebody checked
    them, negative where they are unknown; None if all are unknown.
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
    A part that the method does not use is None.
    """

    noisy: Labelled | None
    clean_inner: Labelled | None
    clean_outer: Labelled | None


class Rows(NamedTuple):
    """All rows of a cross-fitted run, noisy ones first, and which classifier trains on which.

    There are K folds of judged rows and H parts of all rows, see `data.folds`. All lists of one
    kind have the same length; batches are drawn from the first `lengths` entries of each. Rows are
    padded to sizes that many data sets share, so that compiled programs are reused. Padding is
    never trained on.

    Attributes:
      inputs: `[N, ...]`, as the model takes them.
      votes: `[N, S]` int16, the given labels; -1 where nothing was said.
      checks: `[N]` int32, the labels of checked rows; -1 where nobody looked, -2 in padding.
      is_judged: `[N]` bool, checked rows that were not looked up for a reason, such as a label that
        looked wrong. The label model and the verdict are measured on these.
      part: `[N]` int32, from 0 to H - 1.
      is_visible: `[K, N]` bool, the checks that runs (k, .) see.
      lists, lengths: `[K, H, L]` and `[K, H]` int32, the rows that run (k, h) learns from.
      rival_lists, rival_lengths: `[H + K, L]` and `[H + K]`: for each part, rows with a given label
        outside of it; for each fold, the checks that are seen outside of it.
      judged: `[M]` int32, the judged rows, padded with row 0.
      fold: `[M]` int32, the fold of each judged row.
      counts: `[M]` float32, 0 in padding.
      is_random: whether the checks show how frequent classes are.
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
    """The classifier (main model): the paper's `w` and the state of its optimizer."""

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
      extra: whatever else a method learns: a matrix of transitions, labels, a teacher.
      past: what the next meta-gradient needs if windows overlap: past classifiers, see
        `core.overlap`, or the gradient so far. None if they do not overlap.
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
