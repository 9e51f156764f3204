"""Classification losses, the projection onto the simplex, shares of votes, the mean over devices.

Losses compute in the dtype of the logits, which the models return in float32 whatever dtype they
compute in.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

_SOURCES_AT_ONCE = 16  # Sources per turn of a compiled loop.


def pmean(tree: Any, axis_name: str | None) -> Any:
    """Mean over the devices of `axis_name`; the identity without one."""
    return tree if axis_name is None else jax.lax.pmean(tree, axis_name)


def soft_cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Cross-entropy against soft labels, per example.

    Args:
      logits: `[..., C]`.
      targets: `[..., C]`, non-negative; rows that sum to one are distributions, other rows are
        weighted labels (a weight times a one-hot, as re-weighting methods use).

    Returns:
      `[...]`, in nats.
    """
    return -jnp.sum(targets * jax.nn.log_softmax(logits), axis=-1)


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Cross-entropy against integer labels `[...]`, per example `[...]`, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def accuracy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Share of rows whose largest logit is the label: a scalar in [0, 1]."""
    predicted = jnp.argmax(logits, axis=-1).astype(labels.dtype)
    return jnp.mean(predicted == labels, dtype=jnp.float32)


def vote_shares(labels: jax.Array, num_classes: int) -> jax.Array:
    """How a row's given labels are spread over the classes, `[B, C]`; 0 where there are none.

    Args:
      labels: `[B]`, or `[B, S]` of several sources; negative where nothing was said.
      num_classes: C.
    """
    votes = labels.reshape(len(labels), -1)
    if votes.shape[1] == 1:  # One vote is all of them; a division would change how XLA rounds.
        return jax.nn.one_hot(votes[:, 0], num_classes)

    def add(total: jax.Array, vote: jax.Array) -> tuple[jax.Array, None]:
        return total + jax.nn.one_hot(vote, num_classes), None

    # An array [B, S, C] would take much memory for many sources. A few sources need no loop.
    zeros = jnp.zeros((len(labels), num_classes))
    counts, _ = jax.lax.scan(add, zeros, votes.T, unroll=_SOURCES_AT_ONCE)
    return counts / jnp.maximum(jnp.sum(counts, axis=1, keepdims=True), 1)


def sparsemax(logits: jax.Array) -> jax.Array:
    """Euclidean projection of each row `[..., C]` onto the simplex.

    Source: Martins and Astudillo (2016), "From Softmax to Sparsemax". The projection is optax's.
    """
    flat = logits.reshape(-1, logits.shape[-1])
    return jax.vmap(optax.projections.projection_simplex)(flat).reshape(logits.shape)
