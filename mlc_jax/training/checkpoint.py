"""Checkpoints: orbax, asynchronous, atomic; and the checks that keep old ones safe."""

import contextlib
import copy
import os
import re
from collections.abc import Iterator
from typing import Any

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from jax.sharding import NamedSharding

from mlc_jax.errors import CheckpointError
from mlc_jax.train_state import TrainState

DIRECTORY = "checkpoints"

# Settings that a run may change when it goes on: they do not touch what is learned.
FREE_FIELDS = frozenset({
    "dataset.data_dir",
    "dataset.download",
    "meta_gradient.backward",
    "meta_gradient.diagnose_every",
    "meta_gradient.unroll",
    "eval_batch_size",
    "eval_every_epochs",
    "log_every_steps",
    "checkpoint_every_steps",
    "checkpoint_every_minutes",
    "checkpoints_to_keep",
})  # fmt: skip


class Checkpointer:
    """Saves and restores `(TrainState, progress)` under `workdir/checkpoints/<step>`.

    `progress` is a JSON-like dict kept beside the arrays: the config, and what the loop has to
    remember. Every process takes part; a checkpoint counts once all of it is on disk under its
    final name, and an older one is removed only after that.

    Args:
      workdir: of the run.
      sharding: how the state lies on the devices, replicated.
      keep: how many checkpoints to keep.
    """

    def __init__(self, workdir: epath.Path, sharding: NamedSharding, *, keep: int):
        self._directory = workdir / DIRECTORY
        self._sharding = sharding
        options = ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.LatestN(keep),
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,  # What a killed run left half-written.
        )
        with self._explained("cannot be opened"):
            self._manager = ocp.CheckpointManager(self._directory.resolve(), options=options)

    def latest_step(self) -> int | None:
        """The newest finished checkpoint."""
        return self._manager.latest_step()

    def restore(self, abstract_state: TrainState, config: dict[str, Any]) -> Any:
        """Restores the newest checkpoint.

        Args:
          abstract_state: `jax.eval_shape` of the state.
          config: of this run, nested; must equal the checkpoint's but for `FREE_FIELDS`.

        Returns:
          `(state, progress)`, or None without a checkpoint.
        """
        step = self.latest_step()
        if step is None:
            return None
        with self._explained(f"of step {step} cannot be read", reading=step):
            progress = self._manager.restore(
                step, args=ocp.args.Composite(progress=ocp.args.JsonRestore())
            )["progress"]
        _check_config(progress["config"], config, self._directory / str(step))
        target = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._sharding),
            abstract_state,
        )
        with self._explained(f"of step {step} cannot be read", reading=step):
            state = self._manager.restore(
                step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target))
            )["state"]
            # Orbax falls back to bare arrays for keys whose description is lost.
            chex.assert_trees_all_equal_shapes_and_dtypes(state, abstract_state)
        return state, progress

    def save(self, step: int, state: TrainState, progress: dict[str, Any]) -> None:
        """Starts to save; what went wrong with the save before is raised here."""
        if step == self.latest_step():
            return
        with self._explained(f"of step {step} or the one before it cannot be written"):
            self._manager.check_for_errors()
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(jax.tree.map(self._global, state)),
                    # A copy: it is written in the background, while the loop goes on.
                    progress=ocp.args.JsonSave(copy.deepcopy(progress)),
                ),
            )

    def wait(self) -> None:
        """Blocks until all saves are on disk."""
        with self._explained("cannot be written"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        with self._explained("cannot be written"):
            self._manager.close()

    def _global(self, x: jax.Array) -> jax.Array:
        """pmap returns arrays replicated over this process' devices; orbax wants global ones."""
        if jax.process_count() == 1 or not x.is_fully_addressable:
            return x
        if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
            data = self._global(jax.random.key_data(x))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(x))
        shards = [shard.data for shard in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, self._sharding, shards)

    @contextlib.contextmanager
    def _explained(self, problem: str, reading: int | None = None) -> Iterator[None]:
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            raise
        except Exception as error:  # Orbax and TensorStore raise many types; none is swallowed.
            raise CheckpointError(
                f"checkpoint {problem}: {_cause(error)}\n{self._advice(reading)}"
            ) from error

    def _advice(self, reading: int | None) -> str:
        steps = finished_steps(self._directory)
        if reading is not None:
            older = [step for step in steps if step < reading]
            start = f"step {older[-1]}" if older else "the beginning"
            return f"Remove {self._directory / str(reading)} to go on from {start}."
        if not steps:
            return f"There is no checkpoint in {self._directory} yet."
        return (
            f"The checkpoint of step {steps[-1]} in {self._directory} is intact: once the cause is "
            "gone, the same command goes on from there."
        )


def finished_steps(directory: epath.Path) -> list[int]:
    """Steps of the checkpoints in `directory` that were written to the end."""
    if not directory.is_dir():
        return []
    return sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())


def flatten_config(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dict to `{'a.b': value}`."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            flat |= flatten_config(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def differing_fields(saved: dict[str, Any], given: dict[str, Any], where: str) -> list[str]:
    """One line for each field that differs and may not: `config.seed: 0 before, 1 now`.

    Args:
      saved: nested config of what exists.
      given: nested config of this run; must equal `saved` but for `FREE_FIELDS`.
      where: what is said of the values of `saved`: `before`.
    """
    saved, given = flatten_config(saved), flatten_config(given)
    return [
        f"  config.{name}: {saved.get(name)!r} {where}, {given.get(name)!r} now"
        for name in sorted(saved.keys() | given.keys())
        if name not in FREE_FIELDS and saved.get(name) != given.get(name)
    ]


def _check_config(saved: dict[str, Any], given: dict[str, Any], path: epath.Path) -> None:
    if differing := differing_fields(saved, given, "in the checkpoint"):
        raise CheckpointError(
            f"{path} was made with another config:\n"
            + "\n".join(differing)
            + "\nUse another --workdir, or the config of the checkpoint."
        )


def _cause(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    # TensorStore wraps the operating system's reason in many lines of paths.
    if code := re.search(r"os_error_code=\W*(\d+)", text):
        return os.strerror(int(code[1]))
    return text.splitlines()[0][:500]


def all_finite(state: TrainState) -> bool:
    """Whether every parameter is a finite number."""
    params = (state.main.params, None if state.meta is None else state.meta.params)
    return all(bool(np.isfinite(np.asarray(x)).all()) for x in jax.tree.leaves(params))
