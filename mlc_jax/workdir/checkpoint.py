"""Checkpoints: orbax, asynchronous, atomic; and the checks that keep old ones safe."""

import contextlib
import copy
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath, epy
from jax.sharding import NamedSharding

from mlc_jax import paths
from mlc_jax.config import REMOVED, flatten, meant
from mlc_jax.core import TrainState
from mlc_jax.core.groups import path_name
from mlc_jax.errors import CheckpointError, Lost
from mlc_jax.workdir.workdir import check_held

with epy.lazy_imports():  # Importing takes a quarter of a second; runs in memory save nothing.
    import orbax.checkpoint as ocp

DIRECTORY = "checkpoints"
CHECKSUMS = "checksums"  # The key of the checksums in the saved progress.

# Settings that may change when a run resumes: they do not affect what is learned.
FREE_FIELDS = frozenset({
    "dataset.benchmark",  # The fingerprint of the data covers its effect.
    "dataset.checked",  # As of all files: they may be moved, and the workdir with them.
    "dataset.clean",
    "dataset.data",
    "dataset.data_dir",
    "dataset.download",
    "dataset.encoder",  # The fingerprint covers its features.
    "dataset.encoder_feature",
    "dataset.max_cached_gb",
    "dataset.noisy",
    "dataset.votes",
    "meta_gradient.backward",
    "meta_gradient.diagnose_every",
    "meta_gradient.unroll",
    "eval_batch_size",
    "eval_every_epochs",
    "log_every_steps",
    "max_hours",
    "checkpoint_every_steps",
    "checkpoint_every_minutes",
    "checkpoints_to_keep",
    "profile",
})  # fmt: skip


class Checkpointer:
    """Saves and restores `(TrainState, progress)` under `workdir/checkpoints/<step>`.

    `progress` is a JSON-like dict that is saved with the arrays: the config, and the state of the
    loop. It gets a checksum of each array, because orbax does not notice flipped bytes. Every
    process takes part. A checkpoint counts once all of it is on disk under its final name. Older
    ones are removed only after that.

    Args:
      workdir: the run's.
      sharding: the state's, replicated.
      keep: how many checkpoints to keep, in addition to those they refer to, see `save`.
    """

    def __init__(self, workdir: epath.Path, sharding: NamedSharding, *, keep: int):
        self._directory = workdir / DIRECTORY
        self._sharding = sharding
        self._foreign = _foreign_steps(self._directory)
        self._kept = _Kept(keep, self._foreign)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept,
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,  # Half-written ones of a killed run.
        )
        with self._explained("cannot be opened"):
            self._manager = ocp.CheckpointManager(
                self._directory, options=options, handler_registry=_handlers()
            )

    def latest_step(self) -> int | None:
        """The newest finished checkpoint."""
        return max({*self._manager.all_steps()} - self._foreign, default=None)

    def restore(
        self,
        abstract_state: TrainState,
        config: dict[str, Any],
        *,
        formerly: Mapping[str, Any],
        init: Callable[[], TrainState],
        prefix: str = "config.",
        step: int | None = None,
    ) -> tuple[TrainState, dict[str, Any]] | None:
        """Restores a checkpoint.

        Parts of the state that the checkpoint lacks get their initial value from `init`; the log
        names them.

        Args:
          abstract_state: `jax.eval_shape` of the state.
          config: this run's, nested; must equal the checkpoint's except `FREE_FIELDS`.
          formerly: see `differing_fields`.
          init: makes the state before the first step, on the devices; called only if the checkpoint
            lacks a part of the state.
          prefix: see `differing_fields`.
          step: the checkpoint's; None takes the newest.

        Returns:
          `(state, progress)`, or None without a checkpoint.

        Raises:
          CheckpointError: the checkpoint is damaged, has another config, or has a state with other
            shapes or dtypes or with further parts.
        """
        step = self.latest_step() if step is None else step
        if step is None or step not in self._manager.all_steps():
            return None
        path = self._directory / str(step)
        with self._explained(f"of step {step} cannot be read", reading=step):
            progress = self._manager.restore(
                step, args=ocp.args.Composite(progress=ocp.args.JsonRestore())
            )["progress"]
        _check_config(progress["config"], config, path, formerly, prefix)
        checksums = progress.pop(CHECKSUMS, {})  # Older checkpoints have none.
        with self._explained(f"of step {step} cannot be read", reading=step):
            stored = self._stored_tree(step)
            _check_complete(stored, checksums)
        wanted = _by_path(abstract_state)
        _check_state(_by_path(stored), wanted, path)
        with self._explained(f"of step {step} cannot be read", reading=step):
            leaves = self._read(step, stored, wanted)
            _check_leaves(leaves, wanted, checksums)
        if missing := wanted.keys() - leaves.keys():
            names = ", ".join(_subtrees(missing, leaves.keys()))
            logging.info("%s has no %s: as at the start of a run.", path, names)
            start = _by_path(init())
            leaves |= {name: start[name] for name in missing}
        structure = jax.tree.structure(abstract_state)
        return jax.tree.unflatten(structure, [leaves[name] for name in wanted]), progress

    def save(
        self, step: int, state: TrainState, progress: dict[str, Any],
        refers_to: Callable[[int], int | None] = lambda step: None,
    ) -> None:  # fmt: skip
        """Starts to save; errors of the previous save are raised here.

        Steps up to the newest saved one are skipped: a run that resumes from an older checkpoint
        repeats them.

        Args:
          step, state, progress: the checkpoint.
          refers_to: maps a checkpoint's step to the step of an older checkpoint that it needs.
        """
        latest = self.latest_step()
        if latest is not None and step <= latest:
            return
        check_held(self._directory.parent)
        self._kept.refers_to = refers_to
        with self._explained(f"of step {step} or the one before it cannot be written"):
            self._manager.check_for_errors()
            # A copy, because it is written in the background while the loop continues.
            progress = copy.deepcopy(progress)
            progress[CHECKSUMS] = {name: _checksum(x) for name, x in _by_path(state).items()}
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(jax.tree.map(self._global, state)),
                    progress=ocp.args.JsonSave(progress),
                ),
                force=bool(self._foreign),  # A foreign directory may have a later step's name.
            )

    def wait(self) -> None:
        """Blocks until all saves are on disk."""
        with self._explained("cannot be written"):
            self._manager.wait_until_finished()
            self._manager.check_for_errors()

    def close(self) -> None:
        with self._explained("cannot be written"):
            self._manager.close()

    def _stored_tree(self, step: int) -> Any:
        """The stored state's tree of dicts and lists, with descriptions as leaves."""
        metadata = self._manager.item_metadata(step)["state"]
        if metadata is None or not jax.tree.leaves(metadata.tree):
            raise ValueError("the description of its arrays is lost")
        return metadata.tree

    def _read(self, step: int, stored: Any, wanted: Mapping[str, Any]) -> dict[str, jax.Array]:
        """The stored leaves by path, replicated over the devices."""

        def target(path: Any, _: Any) -> jax.ShapeDtypeStruct:
            x = wanted[path_name(path)]
            return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=self._sharding)

        # Orbax requires exactly the stored structure, with its empty containers.
        args = ocp.args.StandardRestore(jax.tree_util.tree_map_with_path(target, stored))
        return _by_path(self._manager.restore(step, args=ocp.args.Composite(state=args))["state"])

    def _global(self, x: jax.Array) -> jax.Array:
        """Makes global arrays, which orbax needs, of those that pmap returns for one process."""
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
        except Exception as error:  # Orbax and TensorStore raise many types.
            # Saving to a bucket may succeed later; a damaged checkpoint stays damaged.
            gone = reading is None and paths.is_remote(self._directory)
            raise (Lost if gone else CheckpointError)(
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


class _Kept:
    """Orbax's rule for checkpoints to keep: the newest ones, and those that they refer to."""

    def __init__(self, num_newest: int, foreign: set[int]):
        self._num_newest, self._foreign = num_newest, foreign
        self.refers_to: Callable[[int], int | None] = lambda step: None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        newest = [step for step in steps if step not in self._foreign][-self._num_newest :]
        kept = {*newest, *map(self.refers_to, newest), *self._foreign}
        return [step in kept for step in steps]


def finished_steps(directory: epath.Path) -> list[int]:
    """Steps of the finished checkpoints in `directory`."""
    if not directory.is_dir():
        return []
    steps = (path for path in directory.iterdir() if path.name.isdigit())
    finished = {int(path.name) for path in steps if ocp.path.step.is_path_finalized(path)}
    return sorted(finished - _foreign_steps(directory))


def _foreign_steps(directory: epath.Path) -> set[int]:
    """Directories that have a step's name but no checkpoint."""
    if not directory.is_dir():
        return set()
    parts = ("state", "progress", "_CHECKPOINT_METADATA")
    steps = (path for path in directory.iterdir() if path.name.isdigit())
    return {int(path.name) for path in steps if not any((path / x).exists() for x in parts)}


def differing_fields(
    saved: dict[str, Any],
    given: dict[str, Any],
    where: str,
    *,
    formerly: Mapping[str, Any],
    prefix: str = "config.",
) -> list[str]:
    """One line for each field that must not differ: `config.seed: 0 before, 1 now`.

    Args:
      saved: nested config of the existing run.
      given: nested config of this run; must equal `saved` except `FREE_FIELDS`.
      where: the word for values of `saved` in messages: `before`.
      formerly: `{'a.b': value}`, the former value of each field that was added. A field that
        `saved` lacks has this value.
      prefix: put before a field's name in the lines.
    """
    saved, given = flatten(saved), flatten(given)
    # In JSON form, like the values of configs: lists in place of tuples.
    added = json.loads(json.dumps({name: formerly[name] for name in given if name in formerly}))
    saved, given = meant(added | saved), meant(given)
    return [
        f"  {prefix}{name}: {_shown(saved, name)} {where}, {_shown(given, name)} now"
        for name in sorted(saved.keys() | given.keys())
        if name not in FREE_FIELDS
        and (name not in saved or name not in given or saved[name] != given[name])
    ]


def _shown(flat: dict[str, Any], name: str) -> str:
    if name in flat:
        return repr(flat[name])
    return "removed" if name in REMOVED else "missing"


def _check_config(
    saved: dict[str, Any],
    given: dict[str, Any],
    path: epath.Path,
    formerly: Mapping[str, Any],
    prefix: str,
) -> None:
    differing = differing_fields(
        saved, given, "in the checkpoint", formerly=formerly, prefix=prefix
    )
    if differing:
        is_of_then = meant(flatten(saved)).keys() & REMOVED.keys()
        way_out = "version of mlc_jax that made it" if is_of_then else "config of the checkpoint"
        raise CheckpointError(
            f"{path} was made with another config:\n"
            + "\n".join(differing)
            + f"\nUse another --workdir, or the {way_out}."
        )


def _check_state(stored: Mapping[str, Any], wanted: Mapping[str, Any], path: epath.Path) -> None:
    """Raises CheckpointError unless each stored leaf has a place in the state, and fits it."""
    problems = [
        f"  {name}: in the checkpoint, not in the state"
        for name in _subtrees(stored.keys() - wanted.keys(), wanted.keys())
    ]
    for name in sorted(stored.keys() & wanted.keys()):
        before, now = _description(stored[name]), _description(_data(wanted[name]))
        if before != now:
            problems.append(f"  {name}: {before} in the checkpoint, {now} in the state")
    if problems:
        raise CheckpointError(
            f"{path} was made by another version of mlc_jax:\n"
            + "\n".join(problems)
            + "\nUse another --workdir, or the version that made it."
        )


def _check_complete(stored: Any, checksums: Mapping[str, str]) -> None:
    if lost := sorted(checksums.keys() - _by_path(stored).keys()):
        raise ValueError(f"{_listed(lost)} was saved and is not there")


def _check_leaves(
    leaves: Mapping[str, jax.Array], wanted: Mapping[str, Any], checksums: Mapping[str, str]
) -> None:
    """Raises ValueError if a leaf that was read differs from the saved one."""
    for name, x in leaves.items():
        # Orbax returns bare arrays for typed keys whose description is lost.
        if (x.shape, x.dtype) != (wanted[name].shape, wanted[name].dtype):
            raise ValueError(f"{name} is {_description(x)}, not {_description(wanted[name])}")
    differing = [
        name for name, x in leaves.items() if name in checksums and _checksum(x) != checksums[name]
    ]
    if differing:
        raise ValueError(f"{_listed(differing)} is not what was saved: its bytes have changed")


def _listed(names: list[str]) -> str:
    """The first few of many names, because an error is one line."""
    return ", ".join(names[:3]) + (f" (and {len(names) - 3} more)" if len(names) > 3 else "")


def _handlers() -> Any:
    """Handlers, without which orbax describes nothing before the first `save` or `restore`."""
    registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
    state, progress = ocp.StandardCheckpointHandler(), ocp.JsonCheckpointHandler()
    for item, args, handler in [
        ("state", ocp.args.StandardSave, state),
        ("state", ocp.args.StandardRestore, state),
        ("progress", ocp.args.JsonSave, progress),
        ("progress", ocp.args.JsonRestore, progress),
    ]:
        registry.add(item, args, handler)
    return registry


def _by_path(tree: Any) -> dict[str, Any]:
    """Leaves by the names of their paths, in order."""
    return {path_name(path): x for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]}


def _subtrees(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """The largest subtrees that hold leaves `names` and none of `others`, sorted."""
    kept = {prefix for name in others for prefix in _prefixes(name)}
    # A leaf that became a subtree, or the reverse, is named itself.
    tops = {next((p for p in _prefixes(name) if p not in kept), name) for name in names}
    return sorted(tops)


def _prefixes(name: str) -> list[str]:
    """The prefixes a, a/b and a/b/c of `a/b/c`."""
    parts = name.split("/")
    return ["/".join(parts[: i + 1]) for i in range(len(parts))]


def _data(x: Any) -> Any:
    """The data of a typed key, array or description; anything else unchanged."""
    if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        return x
    if isinstance(x, jax.ShapeDtypeStruct):
        return jax.eval_shape(jax.random.key_data, x)
    return jax.random.key_data(x)


def _description(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}"


def _checksum(x: jax.Array) -> str:
    """CRC-32 of dtype, shape and bytes, of this process' first copy of a replicated array."""
    data = _data(x)
    values = np.asarray(data.addressable_data(0) if isinstance(data, jax.Array) else data)
    crc = zlib.crc32(_description(values).encode())
    # As bytes, because zlib does not take the buffers of all dtypes (bfloat16).
    return f"{zlib.crc32(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data, crc):08x}"


def _cause(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    # TensorStore wraps the operating system's message in many lines of paths.
    if code := re.search(r"os_error_code=\W*(\d+)", text):
        return os.strerror(int(code[1]))
    return text.splitlines()[0][:500]


def all_finite(state: TrainState) -> bool:
    """Whether every parameter is a finite number."""
    params = (state.main.params, None if state.meta is None else state.meta.params)
    return all(bool(np.isfinite(np.asarray(x)).all()) for x in jax.tree.leaves(params))
