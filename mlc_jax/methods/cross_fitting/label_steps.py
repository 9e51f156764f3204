"""The label model of cross-fitting, between rounds: estimates the label of every row.

Each fold has its own label model, which does not see the checks of that fold. Letters in shapes: K
folds, N rows, M judged rows, S sources, V = C values of a vote, C classes, E weight decays. For R,
pi and q see `models.label_model`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlc_jax.core import Inputs, Params, Rows
from mlc_jax.methods.cross_fitting.members import Members
from mlc_jax.models.label_model import (
    NUM_TERMS,
    class_shares,
    fit_weights,
    label_term,
    pool,
    shifted_shares,
    source_counts,
)

# Weight of the rival that learned the checked rows, where class shares are estimated.
_CHECKED_TRUST = 0.5
_BLOCK = 16_384  # Rows whose predictions by all classifiers are in memory at once.
_SOURCES_WIDTH = 0.5  # Width of the prior of l above 1, if there are several sources.
_UNCHECKED = -1
_ENOUGH, _FEWEST = 20, 2  # See `_trust`: checks that need no guess, and the least pseudo-count.
_SWEEPS = 2  # How often R, pi and q are estimated between two rounds.


class Known(NamedTuple):
    """What stays the same from round to round.

    Attributes:
      rows: see `Rows`.
      x: `[N, ...]`, as the model takes them.
      one_hot: `[N, C]`, of checks.
      given: `[N, C]`, log-probabilities of the rival that learned labels as given, out of part.
      checked: `[K, N, C]`, the same of the rivals that learned the checked rows outside of fold k.
      trust: pseudo-counts for the accuracy of given labels, see `source_counts`.
    """

    rows: Rows
    x: Inputs
    one_hot: jax.Array
    given: jax.Array
    checked: jax.Array
    trust: tuple[jax.Array, jax.Array]


class Labels(NamedTuple):
    """Estimated labels, and the label model behind them.

    Attributes:
      q: `[K, N, C]`, probabilities; one-hot where fold k's runs see a check.
      matrices: R, `[K, S, V, C]`.
      pi: `[K, C]`, shares of classes among the rows that R counts.
    """

    q: jax.Array
    matrices: jax.Array
    pi: jax.Array


def _by_blocks(fun: Callable[..., jax.Array], *arrays: Any) -> jax.Array:
    """`fun` of trees of arrays `[N, ...]` -> `[K, N, C]`, a block of rows at a time."""
    size = jax.tree.leaves(arrays)[0].shape[0]
    if size <= _BLOCK:
        return fun(*arrays)
    num_blocks = -(-size // _BLOCK)
    more = num_blocks * _BLOCK - size

    def cut(leaf: jax.Array) -> jax.Array:
        filled = jnp.pad(leaf, [(0, more)] + [(0, 0)] * (leaf.ndim - 1))
        return filled.reshape(num_blocks, _BLOCK, *leaf.shape[1:])

    blocks = jax.lax.map(lambda block: fun(*block), jax.tree.map(cut, arrays))
    together = jnp.moveaxis(blocks, 0, 1)
    return together.reshape(together.shape[0], -1, together.shape[-1])[:, :size]


def _trust(rows: Rows, given: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Pseudo-counts for the accuracy of given labels: how many are right, of how many.

    With enough checks they are one of two. Otherwise a guess fills the checks up to `_ENOUGH`: how
    often the rival that learned the given labels agrees with them, out of part. Wrong labels and
    the rival's own errors both lower it. Without the guess, two checks that happen to find wrong
    labels would make the labels of most rows wrong.
    """
    said = rows.votes >= 0
    same = (rows.votes == jnp.argmax(given, axis=-1)[:, None]) & said
    agreement = jnp.clip((jnp.sum(same) + 1) / (jnp.sum(said) + 2), 0.5, 0.95)
    if rows.votes.shape[1] > 1:  # Several sources show by their agreement what they are worth.
        is_guess, of = ~jnp.any(rows.checks >= 0), jnp.asarray(_FEWEST)
    else:
        missing = _ENOUGH - jnp.sum((rows.checks >= 0) & rows.is_judged)
        is_guess, of = missing > _FEWEST, jnp.maximum(missing, _FEWEST)
    return jnp.where(is_guess, agreement, 0.5) * of, of


def _doubtful(rows: Rows, is_visible: jax.Array) -> jax.Array:
    """`[N]`, 1 for rows without a check among the visible ones, `is_visible` `[N]`."""
    unchecked = rows.checks == _UNCHECKED  # Padding has another number.
    return (~is_visible & (rows.is_judged | unchecked)).astype(jnp.float32)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LabelSteps:
    """The steps between rounds; all are pure.

    Attributes:
      kinds: the runs' classifiers, by their name in the params: `runs`, and a second kind if there
        is one. The rivals are like `runs`.
      num_classes: C.
      prior_strength, expected_weight, trust_width, rival_width: see `CrossFit`.
    """

    kinds: dict[str, Members]
    num_classes: int
    prior_strength: float
    expected_weight: float
    trust_width: float
    rival_width: float

    @property
    def members(self) -> Members:
        return self.kinds["runs"]

    def log_probs(self, params: dict[str, Params], x: Inputs) -> jax.Array:
        """Log-probabilities `[K * H, E, N, C]` of the runs' classifiers; E of both kinds."""
        of_kinds = [members.log_probs(params[name], x) for name, members in self.kinds.items()]
        return jnp.concatenate(of_kinds, axis=1)

    def known(self, params: dict[str, Params], rows: Rows) -> Known:
        """The rivals' predictions for all rows, and what else is known; see `Known`."""
        x, num_parts = rows.inputs, self.members.num_parts
        unsure = -jnp.log(jnp.asarray(self.num_classes, jnp.float32))

        def of_block(x: Inputs, part: jax.Array) -> jax.Array:
            """`[1 + K, B, C]`: given, and checked."""
            rivals = self.members.log_probs(params["rivals"], x)[:, 0]
            rivals = jnp.where(rows.rival_lengths[:, None, None] > 0, rivals, unsure)
            given = jnp.take_along_axis(rivals[:num_parts], part[None, :, None], axis=0)
            return jnp.concatenate([given, rivals[num_parts:]])

        rivals = _by_blocks(of_block, x, rows.part)
        one_hot = jax.nn.one_hot(rows.checks, self.num_classes)
        return Known(rows, x, one_hot, rivals[0], rivals[1:], _trust(rows, rivals[0]))

    def mixed(self, params: dict[str, Params], decay_weights: jax.Array, known: Known) -> jax.Array:
        """`log p` `[K, N, C]`: the runs' predictions out of part, decays and kinds combined."""

        def of_block(x: Inputs, part: jax.Array) -> jax.Array:
            log_probs = self.members.over_decays(self.log_probs(params, x), decay_weights)
            return self.members.out_of_part(log_probs, part)

        return _by_blocks(of_block, known.x, known.rows.part)

    def says(self, matrices: jax.Array, pi: jax.Array, rows: Rows) -> jax.Array:
        """The label's term of all folds, `[K, N, C]`."""
        return jax.vmap(label_term, in_axes=(None, 0, 0))(rows.votes, matrices, pi)

    def terms(self, mixed: jax.Array, says: jax.Array, known: Known) -> tuple[jax.Array, ...]:
        """The four terms of `pool`, in its order, each `[K or 1, N, C]`."""
        return mixed, says, known.given[None], known.checked

    def _check_weights(self, clean: jax.Array, pi: jax.Array, known: Known) -> jax.Array:
        """Weights `[N]` of the rows in `clean`, with mean 1; pi `[C]` are the classes' shares.

        If checks were drawn per class, each class counts by its share. Otherwise all count alike.
        """
        shares = jnp.sum(known.one_hot * clean[:, None], axis=0)
        weight = clean * (known.one_hot @ (pi / jnp.maximum(shares, 1e-9)))
        weight = weight * jnp.sum(clean) / jnp.maximum(jnp.sum(weight), 1e-9)
        return jnp.where(known.rows.is_random, clean, weight)

    def start(self, known: Known, shares: jax.Array) -> Labels:
        """Before the first round: from the given labels and the checks alone."""
        q = jnp.where(known.rows.is_visible[..., None], known.one_hot, shares[:, None, :])
        return self._sweep(None, q, shares, jnp.ones(NUM_TERMS), known)

    def labels(
        self, params: dict[str, Params], meta: dict[str, jax.Array], known: Known, is_first: Any
    ) -> Labels:
        """Labels by the newest label model; before the first round without the classifiers."""
        rows, matrices, pi = known.rows, meta["matrices"], meta["class_shares"]
        says = self.says(matrices, pi, rows)
        mixed = self.mixed(params, meta["decay_weights"], known)
        log_q = jnp.where(
            is_first,
            jax.nn.log_softmax(jnp.log(pi)[:, None] + says),
            pool(meta["weights"], *self.terms(mixed, says, known)),
        )
        q = jnp.where(rows.is_visible[..., None], known.one_hot, jnp.exp(log_q))
        return Labels(q, matrices, pi)

    def _sweep(
        self,
        mixed: jax.Array | None,
        q: jax.Array,
        shares: jax.Array,
        weights: jax.Array,
        known: Known,
    ) -> Labels:
        """Estimates pi, R and q of all folds in turn; without `mixed`, from the labels alone.

        Args:
          mixed, q: `[K, N, C]`.
          shares: of classes, `[K, C]`, see `_check_weights`.
          weights: of the pool, `[4]`.
          known: what stays the same.
        """
        rows = known.rows

        def of_fold(
            log_p: jax.Array | None, is_visible: jax.Array, q: jax.Array, shares: jax.Array,
            checked: jax.Array,
        ) -> Labels:  # fmt: skip
            doubtful = _doubtful(rows, is_visible)
            doubtful = doubtful * (0.0 if log_p is None else self.expected_weight)
            seen = (is_visible & rows.is_judged).astype(jnp.float32)
            # Without any check, given labels would be measured against themselves.
            counted = jnp.where(jnp.any(rows.checks >= 0), doubtful, 0.0)
            clean = self._check_weights(seen, shares, known)

            def sweep(labels: Labels, _: None) -> tuple[Labels, None]:
                # The shares among the rows that R counts, whatever the true shares are. With any
                # other pi each source would favour a class; with many sources it would always win.
                pi = class_shares(labels.q, clean + doubtful)
                matrices = source_counts(
                    rows.votes, labels.q, clean + counted, clean, pi, self.prior_strength,
                    known.trust,
                )  # fmt: skip
                says = label_term(rows.votes, matrices, pi)
                if log_p is None:
                    log_q = jax.nn.log_softmax(jnp.log(pi) + says)
                else:
                    log_q = pool(weights, log_p, says, known.given, checked)
                q = jnp.where(is_visible[:, None], known.one_hot, jnp.exp(log_q))
                return Labels(q, matrices, pi), None

            num_classes = self.num_classes
            nothing = jnp.zeros((rows.votes.shape[1], num_classes, num_classes), q.dtype)
            return jax.lax.scan(sweep, Labels(q, nothing, shares), None, length=_SWEEPS)[0]

        axes = (None if mixed is None else 0, 0, 0, 0, 0)
        folds = jax.vmap(of_fold, in_axes=axes)
        result: Labels = folds(mixed, rows.is_visible, q, shares, known.checked)
        return result

    def said_anew(
        self, params: dict[str, Params], labels: Labels, shares: jax.Array, known: Known
    ) -> dict[str, jax.Array]:
        """Updates the label model between rounds: first the weights, then R, pi and q."""
        says = self.says(labels.matrices, labels.pi, known.rows)
        fitted = self._fitted(params, says, shares, known)
        mixed = self.mixed(params, fitted["decay_weights"], known)
        said = self._sweep(mixed, labels.q, shares, fitted["weights"], known)
        return fitted | {"matrices": said.matrices, "class_shares": said.pi}

    def _fitted(
        self, params: dict[str, Params], says: jax.Array, shares: jax.Array, known: Known
    ) -> dict[str, jax.Array]:
        """Weights by the likelihood of hidden checks: of the pool, and of decays and kinds.

        Returns:
          `weights` `[4]`; `judging_weights` `[K, 4]`, fitted without the checks of fold k;
          `decay_weights` `[E]`, of both kinds.
        """
        members, rows = self.members, known.rows
        hidden = jnp.zeros(rows.checks.shape, jnp.float32).at[rows.judged].add(rows.counts)
        weight = self._check_weights(hidden, jnp.mean(shares, axis=0), known)
        counts = weight[rows.judged] * rows.counts
        others = jnp.stack(
            [says[rows.fold, rows.judged], known.given[rows.judged],
             known.checked[rows.fold, rows.judged]], axis=1,
        )  # fmt: skip

        # Sources that share errors count too much, and hardly ever too little. If they are right in
        # all of a few checks, a wide prior above 1 would let them overrule everything.
        several = rows.votes.shape[1] > 1
        widths = (
            self.trust_width,
            min(self.trust_width, _SOURCES_WIDTH if several else math.inf),
        )

        def fitted(log_p: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
            """Weights and likelihood, from log p `[K, M, C]` and counts `[M]` of judged rows."""
            own = log_p[rows.fold, jnp.arange(len(rows.judged))]
            terms = jnp.concatenate([own[:, None], others], axis=1)
            checks = jnp.maximum(rows.checks[rows.judged], 0)
            return fit_weights(terms, checks, counts, widths, self.rival_width)

        x = jax.tree.map(lambda leaf: leaf[rows.judged], known.x)
        log_probs, part = self.log_probs(params, x), rows.part[rows.judged]
        of_decays = jax.vmap(members.out_of_part, in_axes=(1, None))(log_probs, part)
        # First turn: a fit of each decay alone, by all checks. Second turn: fits of the combined
        # decays, by all checks and by those of all folds but one. Fits of a turn are vectorised,
        # and one loop over both turns compiles in half the time.
        num_decays, num_folds = of_decays.shape[0], members.num_folds
        lanes = jnp.arange(max(num_decays, 1 + num_folds))
        kept = counts * (rows.fold != lanes[:, None] - 1)

        def turn(fits: Any, _: None) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            """The weights of each fit, `[L, 4]`, and those of the decays, `[E]`."""
            weights, likelihoods = jax.vmap(fitted)(*fits)
            decay_weights = jax.nn.softmax(likelihoods[:num_decays])
            judged = members.out_of_part(members.over_decays(log_probs, decay_weights), part)
            return (jnp.broadcast_to(judged, fits[0].shape), kept), (weights, decay_weights)

        fits = of_decays[lanes % num_decays], jnp.broadcast_to(counts, kept.shape)
        _, (weights, decay_weights) = jax.lax.scan(turn, fits, None, length=2)
        return {
            "weights": weights[1, 0],
            "judging_weights": weights[1, 1 : 1 + num_folds],
            "decay_weights": decay_weights[0],
        }

    def shares(self, known: Known) -> jax.Array:
        """Estimated shares of classes, `[K, C]`; checks drawn per class do not show them.

        They come from given labels and checks alone, so that no estimated label confirms itself.
        They are the mean of two estimates, which err in different directions. One is how often
        each class is predicted. The other corrects this by the errors on hidden checks; with few
        checks it may be far off.
        """
        rows, num_classes = known.rows, self.num_classes
        flat, eye = jnp.full(num_classes, 1 / num_classes), jnp.eye(num_classes)
        checks = jnp.maximum(rows.checks[rows.judged], 0)

        def predicted(is_visible: jax.Array, checked: jax.Array) -> jax.Array:
            clean = (is_visible & rows.is_judged).astype(jnp.float32)
            per_class = jnp.maximum(jnp.sum(known.one_hot * clean[:, None], axis=0), 1)
            balanced = clean * (known.one_hot @ (jnp.mean(per_class) / per_class))
            matrices = source_counts(
                rows.votes, known.one_hot, balanced, balanced, flat, self.prior_strength / 2,
                known.trust,
            )  # fmt: skip
            says = label_term(rows.votes, matrices, flat)
            return jnp.argmax(says + _CHECKED_TRUST * checked, axis=-1)

        predictions = jax.vmap(predicted)(rows.is_visible, known.checked)
        own = predictions[rows.fold, rows.judged]

        def of_fold(fold: jax.Array, predicted: jax.Array, is_visible: jax.Array) -> jax.Array:
            seen = rows.counts * (rows.fold != fold)
            rho = (jnp.sum(seen * (own == checks)) + 1) / (jnp.sum(seen) + 2)
            prior = rho * eye + (1 - rho) * (1 - eye) / max(1, num_classes - 1)
            taken = (eye[checks] * seen[:, None]).T @ eye[own] + self.prior_strength / 2 * prior
            likelihood = taken / jnp.sum(taken, axis=1, keepdims=True)
            times = _doubtful(rows, is_visible) @ eye[predicted]
            explained = shifted_shares(jnp.log(likelihood).T, times, 0.2)
            return (explained + (times + 1) / jnp.sum(times + 1)) / 2

        return jax.vmap(of_fold)(jnp.arange(self.members.num_folds), predictions, rows.is_visible)
