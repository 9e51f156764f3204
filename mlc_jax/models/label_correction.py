"""The label correction network (LCN), the paper's meta model `g_a(h, y')`."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from mlc_jax.core import Params, losses
from mlc_jax.errors import expect

_XAVIER_NORMAL = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")


FORMS = ("network", "posterior", "both")

# The matrix' logits are this factor times the parameters, so that a matrix of a hundred numbers
# moves faster than a network with the same learning rate.
_TRANSITION_SCALE = 30.0
_TRANSITION_START = 2.0  # Logits of the diagonal: nearly the identity.
_UNSEEN_PAIRS = 0.3  # Pseudo-count of every kind of pair.


class LabelCorrectionNetwork(nn.Module):
    """Features and a noisy label in, a distribution over the classes out.

    The form `network` is the paper's "LCN architecture": the label's embedding, joined to the
    features; two tanh layers; a softmax. `posterior` is Bayes' rule, `softmax(log p + log
    T[:, y'])`, with the classifier's own probabilities `p` and a learned `T[i, j]`, P(given label
    j | true label i), which GLC measures once. `both` adds the network's logits to that. `T` starts
    at the identity, or at the counts of clean rows whose given label is known.

    Attributes:
      num_classes: C.
      form: one of `FORMS`.
      hidden_size: width of both hidden layers (paper 64 for images, 768 for text; its code 128).
      embedding_size: size of the label embedding (paper 128).
      skip_link: mixes the given label back in: `(1 - s) * softmax + s * onehot(y')` with a learned
        `s` in (0, 1) for each example.
      sparsemax: replaces softmax, so that classes can get exactly zero.
      tie_embeddings: the output layer is the label embedding, without a bias; needs
        `hidden_size == embedding_size`.
    """

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
          labels: int, `[B]`, as given.
          logits: the classifier's, `[B, C]`; the form `network` does not use them.
        """
        expect(self.form in FORMS, "lcn.form", self.form, "one of " + ", ".join(FORMS))
        if self.form == "network":
            return self._network(features, labels)[1]
        assert logits is not None
        start = _TRANSITION_START / _TRANSITION_SCALE * jnp.eye(self.num_classes)
        transition = _TRANSITION_SCALE * self.param("transition", lambda rng: start)
        log_posterior = nn.log_softmax(logits) + nn.log_softmax(transition)[:, labels].T
        if self.form == "both":
            log_posterior += self._network(features, labels)[0]
        return nn.softmax(log_posterior)

    def start_from_pairs(self, params: Params, labels: jax.Array, given: jax.Array) -> Params:
        """Sets the matrix `T` to the counts of pairs; a class without pairs keeps its row.

        Args:
          params: the network's; unchanged for the form `network`, which has no matrix.
          labels: `[M]`, true labels.
          given: `[M]`, given labels, negative if unknown.
        """
        if "transition" not in params:
            return params
        old = params["transition"]
        members, others = (jax.nn.one_hot(x, self.num_classes) for x in (labels, given))
        pairs = members.T @ others
        counted = jnp.log(pairs + _UNSEEN_PAIRS) / _TRANSITION_SCALE
        known = jnp.sum(pairs, axis=1, keepdims=True) > 0
        return {**params, "transition": jnp.where(known, counted, old)}

    def _network(self, features: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Logits and soft labels, `[B, C]`."""
        embed = nn.Embed(
            self.num_classes,
            self.embedding_size,
            embedding_init=nn.initializers.xavier_uniform(),
            name="label_embedding",
        )
        dense = lambda size, name: nn.Dense(size, kernel_init=_XAVIER_NORMAL, name=name)  # noqa: E731
        x = jnp.concatenate([features, embed(labels)], axis=-1)
        x = nn.tanh(dense(self.hidden_size, "hidden1")(x))
        x = nn.tanh(dense(self.hidden_size, "hidden2")(x))
        if self.tie_embeddings:
            logits = embed.attend(x)
        else:
            logits = dense(self.num_classes, "output")(x)
        soft_labels = losses.sparsemax(logits) if self.sparsemax else nn.softmax(logits)
        if self.skip_link:
            keep = nn.sigmoid(dense(1, "skip")(x))
            given = jax.nn.one_hot(labels, self.num_classes, dtype=soft_labels.dtype)
            soft_labels = (1 - keep) * soft_labels + keep * given
        return logits, soft_labels
