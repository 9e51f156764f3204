"""Over devices by `pmap`, and over runs of one shape by `vmap`: the outermost layer of every step.

Everything inside is a pure function of (state, arrays) that is testable without this.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS_NAME = "batch"


def over_devices(
    fun: Callable[[Any, Any], Any],
    *,
    num_runs: int = 1,
    donate: bool = False,
    devices: Sequence[jax.Device] | None = None,
) -> Any:
    """Compiles `fun` for all devices: (state, arrays `[devices, ...]`) -> its outputs.

    pmap is the jit. The state goes in and comes out replicated, not stacked; that is right because
    every output is averaged over the devices, gathered from them, or the same on all.

    Args:
      fun: (state, this device's arrays) -> outputs.
      num_runs: with more than one, state and outputs have a leading axis of runs, and arrays are
        `[devices, runs, ...]`. A lone run has none: it is the same program as ever.
      donate: whether the state's memory is given to the outputs.
      devices: None are all.
    """
    return jax.pmap(
        fun if num_runs == 1 else jax.vmap(fun),
        axis_name=AXIS_NAME,
        in_axes=(None, 0),
        out_axes=None,
        donate_argnums=(0,) if donate else (),
        devices=devices,
    )


def replicated() -> NamedSharding:
    """How a state lies on the devices of all processes."""
    return NamedSharding(Mesh(np.asarray(jax.devices()), (AXIS_NAME,)), PartitionSpec())


def stack_states(states: Sequence[Any]) -> Any:
    """Trees of runs to one with a leading axis of runs, replicated; a lone run stays as it is."""
    if len(states) == 1:
        return states[0]
    stack = lambda *xs: jnp.stack(xs)  # noqa: E731
    return jax.jit(lambda *xs: jax.tree.map(stack, *xs), out_shardings=replicated())(*states)


def unstack(tree: Any, num_runs: int) -> list[Any]:
    """The inverse, for states and for what is computed from them."""
    if num_runs == 1:
        return [tree]
    leaves, structure = jax.tree.flatten(tree)
    return [jax.tree.unflatten(structure, [leaf[i] for leaf in leaves]) for i in range(num_runs)]


def stack_arrays(trees: Sequence[Any], axis: int) -> Any:
    """NumPy arrays of runs to those of a program for all; a lone run's stay as they are."""
    if len(trees) == 1:
        return trees[0]
    return jax.tree.map(lambda *xs: np.stack(xs, axis), *trees)
