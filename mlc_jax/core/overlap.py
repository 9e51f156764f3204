"""Overlapping windows: one update of the meta model per s inner steps, by a gradient through k.

With s < k, truncated backpropagation through time in the terms of Williams and Peng (1990), "An
Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network Trajectories":
BPTT(k; s). A window begins k - s steps before the classifier of today, from one that is remembered,
and is replayed with the meta parameters of today. The replay only looks: training goes on from the
real state.

What is remembered is a ring of the classifiers of the last k/s - 1 updates: the oldest leaves it as
the newest comes in, in the same place.
"""

import jax
import jax.numpy as jnp

from mlc_jax.core.types import MainState


def start_ring(main: MainState, size: int) -> MainState:
    """The ring before the first step, `[size, ...]`: windows that begin before it begin there."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *jnp.shape(x))), main)


def turn_ring(ring: MainState, update: jax.Array, newest: MainState) -> tuple[MainState, MainState]:
    """Takes the oldest classifier out and puts the newest in.

    Args:
      ring: `[size, ...]`.
      update: how many updates of the meta model were made before.
      newest: the classifier before this update's inner steps.

    Returns:
      The classifier of `size` updates ago, and the new ring.
    """
    size = jax.tree.leaves(ring)[0].shape[0]
    place = update % size
    oldest = jax.tree.map(lambda xs: xs[place], ring)
    return oldest, jax.tree.map(lambda xs, x: xs.at[place].set(x), ring, newest)
