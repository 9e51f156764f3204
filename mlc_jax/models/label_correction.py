"""The label correction network (LCN), the paper's meta model `g_a(h, y')`."""

from collections.abc import Callable
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlc_jax.core import Params, losses
from mlc_jax.errors import expect

_XAVIER_NORMAL = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")


FORMS = ("network", "posterior", "both")

# The matrix's logits are this factor times the parameters. So a matrix of a hundred numbers moves
# faster than a network with the same learning rate.
_TRANSITION_SCALE = 30.0
_TRANSITION_START = 2.0  # Logits of the diagonal: nearly the identity.
_UNSEEN_PAIRS = 0.3  # Pseudo-count of every kind of pair.


class LabelCorrectionNetwork(nn.Module):
    """Features and noisy labels in, a distribution over the classes out.

    The form `network` is the paper's "LCN architecture": the label's embedding, joined to the
    features; two tanh layers; a softmax. `posterior` is Bayes' rule, `softmax(log p + log
    T[:, y'])`. `p` are the classifier's own probabilities. `T[i, j]`, P(given label j | true label
    i), is learned; GLC measures it once. `both` adds the network's logits to that. `T` starts near
    the identity, or at the counts of clean rows whose given label is known.

    A row has the labels of S sources, or of one. The embeddings of a row's labels are summed, and
    so are the terms `log T_s[:, v_s]`. A source that says nothing adds nothing. The parameters of
    sources lie one after the other: `[S C, E]` for the embedding, `[S C, C]` for `T`.

    Attributes:
      num_classes: C.
      form: one of `FORMS`.
      hidden_size: width of both hidden layers (paper 64 for images, 768 for text; its code 128).
      embedding_size: size of the label embedding (paper 128).
      skip_link: mixes the given label back in: `(1 - s) * softmax + s * onehot(y')` with a learned
        `s` in (0, 1) for each example. For several labels, shares of votes replace `onehot(y')`;
        without a label `s` is 0.
      sparsemax: replaces softmax, so that classes can get exactly zero.
      tie_embeddings: the output layer is the label embedding, summed over sources, without a bias;
        needs `hidden_size == embedding_size`.
      takes_votes: see `MLC.takes_votes`.
    """

    takes_votes: ClassVar[bool] = True

    num_classes: int
    hidden_size: int = 128
    embedding_size: int = 128
    skip_link: bool = False
    sparsemax: bool = False
    tie_embeddings: bool = False
    form: str = "network"

    @nn.compact
    def __call__(
        self, features: jax.Array, labels: jax.Array, logits: jax.Array | None = None
    ) -> jax.Array:
        """Soft labels `[B, C]`; rows sum to 1.

        Args:
          features: `[B, F]`.
          labels: int, `[B]` or `[B, S]`, as given; negative where a source said nothing.
          logits: the classifier's, `[B, C]`; the form `network` does not use them.
        """
        expect(self.form in FORMS, "lcn.form", self.form, "one of " + ", ".join(FORMS))
        if self.form == "network":
            return self._network(features, labels)[1]
        assert logits is not None
        num_sources, num_classes = _votes_of(labels).shape[1], self.num_classes
        start = (
            _TRANSITION_START / _TRANSITION_SCALE * jnp.tile(jnp.eye(num_classes), (num_sources, 1))
        )
        transition = _TRANSITION_SCALE * self.param("transition", lambda rng: start)
        # From P(given label | true label) to rows by source and given label.
        by_source = nn.log_softmax(transition).reshape(num_sources, num_classes, num_classes)
        by_label = by_source.swapaxes(1, 2).reshape(transition.shape)
        log_posterior = nn.log_softmax(logits) + self._summed(by_label.__getitem__, labels)
        if self.form == "both":
            log_posterior += self._network(features, labels)[0]
        return nn.softmax(log_posterior)

    def start_from_pairs(self, params: Params, labels: jax.Array, given: jax.Array) -> Params:
        """Sets the matrix `T` to the counts of pairs; a class without pairs keeps its row.

        Args:
          params: the network's; unchanged for the form `network`, which has no matrix.
          labels: `[M]`, true labels.
          given: `[M]` or `[M, S]`, given labels, negative if unknown.
        """
        if "transition" not in params:
            return params
        old = params["transition"]
        members, others = (jax.nn.one_hot(x, self.num_classes) for x in (labels, _votes_of(given)))
        pairs = jnp.einsum("mi,msj->sij", members, others).reshape(old.shape)
        counted = jnp.log(pairs + _UNSEEN_PAIRS) / _TRANSITION_SCALE
        known = jnp.sum(pairs, axis=1, keepdims=True) > 0
        return {**params, "transition": jnp.where(known, counted, old)}

    def _summed(self, lookup: Callable[[jax.Array], jax.Array], labels: jax.Array) -> jax.Array:
        """Sum `[B, E]` over a row's labels, each looked up in row `s C + v` of a table."""
        votes = _votes_of(labels)
        each = lookup(self.num_classes * jnp.arange(votes.shape[1]) + jnp.maximum(votes, 0))
        return jnp.sum(jnp.where((votes >= 0)[..., None], each, 0), axis=1)

    def _network(self, features: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits and soft labels, `[B, C]`."""
        num_sources = _votes_of(labels).shape[1]
        embed = nn.Embed(
            num_sources * self.num_classes,
            self.embedding_size,
            embedding_init=nn.initializers.xavier_uniform(),
            name="label_embedding",
        )
        dense = lambda size, name: nn.Dense(size, kernel_init=_XAVIER_NORMAL, name=name)  # noqa: E731
        x = jnp.concatenate([features, self._summed(embed, labels)], axis=-1)
        x = nn.tanh(dense(self.hidden_size, "hidden1")(x))
        x = nn.tanh(dense(self.hidden_size, "hidden2")(x))
        if self.tie_embeddings:
            by_source = embed.attend(x).reshape(len(x), num_sources, self.num_classes)
            logits = jnp.sum(by_source, axis=1)
        else:
            logits = dense(self.num_classes, "output")(x)
        soft_labels = losses.sparsemax(logits) if self.sparsemax else nn.softmax(logits)
        if self.skip_link:
            given = losses.vote_shares(labels, self.num_classes).astype(soft_labels.dtype)
            has_label = jnp.any(given > 0, axis=1, keepdims=True)
            keep = jnp.where(has_label, nn.sigmoid(dense(1, "skip")(x)), 0)
            soft_labels = (1 - keep) * soft_labels + keep * given
        return logits, soft_labels


def _votes_of(labels: jax.Array) -> jax.Array:
    """Labels `[B]` or `[B, S]` as int32 `[B, S]`."""
    return labels.reshape(len(labels), -1).astype(jnp.int32)
