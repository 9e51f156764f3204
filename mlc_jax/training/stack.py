"""Maps steps over devices by `pmap`, and over runs of one shape by `vmap`.

This is the outermost layer of every step. Everything inside is a pure function of (state, arrays)
that can be tested without it. No other module knows how several runs become one program: their
states have a leading axis of runs, and their arrays have that axis after the axis of devices. A
single run has no such axis: its program is the same as without a stack.
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

    pmap also compiles. The state goes in and comes out replicated, not stacked. That is right
    because every output is averaged over the devices, gathered from them, or equal on all.

    Args:
      fun: (state, this device's arrays) -> outputs.
      num_runs: with more than one, state and outputs have a leading axis of runs, and arrays are
        `[devices, runs, ...]`.
      donate: whether outputs reuse the state's memory.
      devices: None uses all devices.
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
    """The sharding of a state: replicated over the devices of all processes."""
    return NamedSharding(Mesh(np.asarray(jax.devices()), (AXIS_NAME,)), PartitionSpec())


def join_states(states: Sequence[Any]) -> Any:
    """Joins the states of runs into one replicated state."""
    if len(states) == 1:
        return states[0]
    stack = lambda *xs: jnp.stack(xs)  # noqa: E731
    return jax.jit(lambda *xs: jax.tree.map(stack, *xs), out_shardings=replicated())(*states)


def split(tree: Any, num_runs: int) -> list[Any]:
    """The inverse of `join_states`; it also splits outputs."""
    if num_runs == 1:
        return [tree]
    leaves, structure = jax.tree.flatten(tree)
    return [jax.tree.unflatten(structure, [leaf[i] for leaf in leaves]) for i in range(num_runs)]


def for_all_devices(trees: Sequence[Any]) -> Any:
    """Stacks NumPy arrays of each run, with the same values for every device."""
    joined = trees[0]
    if len(trees) > 1:
        joined = jax.tree.map(lambda *xs: np.stack(xs), *trees)
    num_devices = jax.local_device_count()
    return jax.tree.map(lambda x: np.broadcast_to(x, (num_devices, *np.shape(x))), joined)


def on_all_devices(trees: Sequence[Any]) -> Any:
    """`for_all_devices`, placed on the devices, for data that every step reads."""
    mesh = Mesh(np.asarray(jax.local_devices()), (AXIS_NAME,))
    return jax.device_put(for_all_devices(trees), NamedSharding(mesh, PartitionSpec(AXIS_NAME)))


def per_run(fun: Callable[[Any], Any], state: Any, num_runs: int) -> list[Any]:
    """Applies `fun` to each run's state."""
    return split((fun if num_runs == 1 else jax.vmap(fun))(state), num_runs)


def numbers(metrics: Any, num_runs: int) -> list[dict[str, float]]:
    """Converts the scalars of a step to a dict of numbers for each run."""
    host = {name: np.asarray(value) for name, value in jax.device_get(metrics).items()}
    return [{k: float(x) for k, x in of_run.items()} for of_run in split(host, num_runs)]


def step_of(state: Any) -> int:
    """The number of inner steps made so far, the same for all runs of a stack."""
    return int(np.max(jax.device_get(state.step)))
