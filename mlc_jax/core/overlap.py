"""Overlapping windows: one update of the meta model per s inner steps, by a gradient through k.

With s < k this is truncated backpropagation through time, BPTT(k; s) of Williams and Peng (1990),
"An Efficient Gradient-Based Algorithm for On-Line Training of Recurrent Network Trajectories". A
window begins at a stored classifier, k - s steps before the current one. It is replayed with the
current meta parameters. The end of the replay is dropped: training goes on from the real state.

The classifiers of the last k/s - 1 updates are stored in a ring. The newest takes the place of the
oldest.
"""

import jax
import jax.numpy as jnp

from mlc_jax.core.types import MainState


def start_ring(main: MainState, size: int) -> MainState:
    """The ring before the first step, `[size, ...]`: copies of the first classifier."""
    return jax.tree.map(lambda x: jnp.broadcast_to(x, (size, *jnp.shape(x))), main)


def turn_ring(ring: MainState, update: jax.Array, newest: MainState) -> tuple[MainState, MainState]:
    """Takes the oldest classifier out and puts the newest in.

    Args:
      ring: `[size, ...]`.
      update: number of earlier updates of the meta model.
      newest: the classifier before this update's inner steps.

    Returns:
      The classifier of `size` updates ago, and the new ring.
    """
    size = jax.tree.leaves(ring)[0].shape[0]
    place = update % size
    oldest = jax.tree.map(lambda xs: xs[place], ring)
    return oldest, jax.tree.map(lambda xs, x: xs.at[place].set(x), ring, newest)
