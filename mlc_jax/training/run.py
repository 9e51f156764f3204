"""One run: method, data, and the description that its checkpoints store."""

import dataclasses
import functools
import json
import os
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from ml_collections import ConfigDict

from mlc_jax import build
from mlc_jax.benchmarks import datasets
from mlc_jax.config.checks import MOST_STEPS
from mlc_jax.config.choices import LARGEST_OF_RESNET
from mlc_jax.core import TrainState
from mlc_jax.data.dataset import Dataset
from mlc_jax.data.folds import RANDOM, AllRows
from mlc_jax.data.loader import Pipeline
from mlc_jax.data.prepare import Normalize
from mlc_jax.data.source import UNKNOWN, ArraySource, IndexedSource, Subset, read_rows
from mlc_jax.encoders import encoding, readers
from mlc_jax.encoders.frozen import StatesSource
from mlc_jax.errors import CheckpointError, InputError
from mlc_jax.methods import BoundMethod, Method
from mlc_jax.methods.cross_fit import CrossFit
from mlc_jax.models.bert_checkpoint import load_config
from mlc_jax.training import sizing, stack
from mlc_jax.workdir.checkpoint import Checkpointer

# The number of noisy examples whose labels are measured at each evaluation; at the end all are.
LABEL_PROBE_SIZE = 2_000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings that do not depend on method and data; fields are those of the config."""

    seed: int = 0
    best: str = "last"
    num_epochs: int = 60
    num_steps: int = 0
    noisy_batch_size: int = 100
    clean_batch_size: int = 100
    length_buckets: int = 2
    eval_batch_size: int = 1000
    eval_every_epochs: int = 1
    log_every_steps: int = 50
    checkpoint_every_steps: int = 1000
    checkpoint_every_minutes: float = 10.0
    checkpoints_to_keep: int = 2
    max_exported_labels: int = 0
    diagnose_every: int = 0
    profile: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Run:
    """One training run.

    Attributes:
      description: JSON-like, everything that defines the run. A checkpoint with another description
        is refused.
      prefix: put before fields of the description in messages: `config.`.
      dataset: see `Dataset`.
      pipeline: reads its training batches, or all rows for a cross-fitted method.
      method: with its settings.
      bound: the method for the dataset's sizes, over the devices.
      settings: see `Settings`.
      num_epochs: passes over the noisy set.
    """

    description: dict[str, Any]
    prefix: str
    dataset: Dataset
    pipeline: Pipeline | AllRows
    method: Method
    bound: BoundMethod
    settings: Settings
    num_epochs: float

    @property
    def exported(self) -> Subset:
        """The noisy examples whose corrected labels are written."""
        limit = self.settings.max_exported_labels
        return self.dataset.noisy.take(slice(0, limit)) if limit else self.dataset.noisy

    @property
    def probe(self) -> np.ndarray:
        """Positions in the noisy set whose labels are measured during training."""
        size = len(self.dataset.noisy)
        return np.arange(0, size, -(-size // LABEL_PROBE_SIZE))

    @functools.cached_property
    def example(self) -> Any:
        """One input `[1, ...]`, as stored; for token states, the tokens."""
        source = self.dataset.noisy.source
        source = source.tokens if isinstance(source, StatesSource) else source
        return read_rows(source, self.dataset.noisy.rows[:1])

    @functools.cached_property
    def fingerprint(self) -> str:
        """Fingerprint of the data and, if it matters, of how checked rows were drawn."""
        of_data = self.dataset.fingerprint()
        if not isinstance(self.pipeline, AllRows):
            return of_data
        return f"{of_data} {zlib.crc32(','.join(self.pipeline.drawn).encode()):08x}"

    def sizes(self) -> dict[str, Any]:
        """The sizes of the data that `mlc_jax.load` needs; JSON-like."""
        prepare, columns = self.dataset.prepare, self.dataset.columns
        leaf = lambda x: {"shape": list(x.shape), "dtype": str(x.dtype)}  # noqa: E731
        return (
            {
                "name": self.dataset.name,
                "class_names": list(self.dataset.class_names),
                "names_labels": self.dataset.names_labels,
                "num_noisy": len(self.dataset.noisy),
                "paired": self.dataset.paired,
                "steps_per_epoch": self.pipeline.steps_per_epoch,
                "num_epochs": self.num_epochs,
                "example": jax.tree.map(leaf, self.example),
                "prepare": prepare.to_json() if isinstance(prepare, Normalize) else None,
            }
            | (columns.to_json() if columns else {})
            | ({"offsets": list(self.offsets)} if self.offsets else {})
            | self._sources()
        )

    @property
    def offsets(self) -> tuple[float | int, ...]:
        """Numbers that were subtracted from features of arrays."""
        return getattr(self.dataset.noisy.source, "offsets", ())

    def _sources(self) -> dict[str, Any]:
        names = self.dataset.source_names
        return {"sources": list(names)} if names else {}


def build_run(config: ConfigDict, dataset: Dataset | None = None) -> Run:
    """Builds the run of a config; raises InputError if the data do not allow it.

    Args:
      config: see `mlc_jax.config`.
      dataset: a data set in memory; None reads the one that the config names.
    """
    if dataset is None:
        dataset = datasets.load(config, readers.encode_of(config))
    if config.model.name in ("resnet", "resnet50"):
        _check_pictures(config.model.name, dataset)
    if config.model.name == "bert":
        encoding.check_dataset(dataset, load_config(config.model.bert.checkpoint))
    config = sizing.fill(config, dataset)
    fields = {field.name: config.get(field.name) for field in dataclasses.fields(Settings)}
    fields["diagnose_every"] = config.meta_gradient.diagnose_every
    method = build.create_method(config, dataset.num_classes, paired=dataset.paired)
    if config.model.name == "bert":
        dataset = encoding.text_reader(config).with_states(dataset, method)
    return create_run(
        description=json.loads(config.to_json()),
        prefix="config.",
        dataset=dataset,
        method=method,
        settings=Settings(**fields),
        augment=config.dataset.augment,
    )


def _check_pictures(name: str, dataset: Dataset) -> None:
    """Raises InputError if arrays cannot be pictures, or are too large for the network."""
    source = dataset.noisy.source
    if not isinstance(source, ArraySource | IndexedSource):
        return
    if np.ndim(source.inputs) != 4:
        raise InputError(
            f"config.model.name: got {name!r} with inputs of shape {np.shape(source.inputs)}, "
            "expected mlp, or pictures [N, height, width, channels]"
        )
    size = max(np.shape(source.inputs)[1:3])
    if name == "resnet" and size > LARGEST_OF_RESNET:
        raise InputError(
            f"config.model.name: got 'resnet' with pictures of {size} pixels, expected resnet50, "
            f"or {LARGEST_OF_RESNET} pixels at most"
        )


def create_run(
    *,
    description: dict[str, Any],
    prefix: str,
    dataset: Dataset,
    method: Method,
    settings: Settings,
    augment: bool,
) -> Run:
    """Fits batches to the data, and the method to both.

    Raises:
      InputError: sizes that do not fit together.
    """
    pipeline = _create_pipeline(prefix, dataset, method, settings, augment=augment)
    if settings.best == "validation" and dataset.validation is None:
        raise InputError(
            f"{prefix}best: got 'validation', expected 'last', or a validation set: "
            "validation_per_class of benchmarks, rows with split=validation of own data"
        )
    steps_per_epoch = pipeline.steps_per_epoch
    num_epochs = settings.num_steps / steps_per_epoch or settings.num_epochs
    num_steps = round(num_epochs * steps_per_epoch)
    if num_steps > MOST_STEPS:
        raise InputError(
            f"{prefix}num_epochs: got {num_epochs:g}, {num_steps:,} steps; expected {MOST_STEPS:,} "
            "of them at most"
        )
    if method.num_inner_steps > num_steps:
        name = "config.meta_gradient.num_inner_steps" if prefix else "num_inner_steps"
        raise InputError(
            f"{name}: got {method.num_inner_steps}, expected at most {num_steps}, the inner steps "
            f"of the whole training ({steps_per_epoch} per epoch)"
        )
    bound = method.bind(
        num_noisy=len(dataset.noisy),
        num_classes=dataset.num_classes,
        steps_per_epoch=steps_per_epoch,
        num_epochs=num_epochs,
        prepare=dataset.prepare,
        axis_name=stack.AXIS_NAME,
        num_sources=dataset.noisy.all_votes.shape[1],
    )
    return Run(description, prefix, dataset, pipeline, method, bound, settings, num_epochs)


def _create_pipeline(
    prefix: str, dataset: Dataset, method: Method, settings: Settings, *, augment: bool
) -> Pipeline | AllRows:
    """The pipeline of batches or rows for the method, in sizes that the data allow."""
    if isinstance(method, CrossFit):
        drawn = dataset.drawn
        if drawn is None:
            drawn = np.full(len(dataset.clean), RANDOM)
        return AllRows(
            noisy=dataset.noisy,
            clean=dataset.clean,
            drawn=drawn,
            folds=method.num_folds,
            parts=method.num_parts,
            seed=settings.seed,
            batch_size=method.batch_size,
            steps_per_epoch=method.steps_per_round,
            prepare=dataset.prepare,
        )
    unlabelled = int((dataset.noisy.given == UNKNOWN).sum())
    if unlabelled and not method.takes_votes:
        raise InputError(
            f"labels: rows without one: {unlabelled}; {method.name} expects one in each row, "
            "cross_fit predicts them"
        )
    if dataset.source_names and not method.takes_votes:
        logging.info(
            "%s knows one label per row: it gets the majority vote of %d sources.",
            method.name, len(dataset.source_names),
        )  # fmt: skip
    num_devices = jax.device_count()
    pipeline = Pipeline(
        noisy=dataset.noisy,
        clean=dataset.clean,
        noisy_batch_size=_fitted(
            prefix, "noisy", settings.noisy_batch_size, len(dataset.noisy), num_devices
        ),
        clean_batch_size=_fitted(
            prefix,
            "clean",
            settings.clean_batch_size,
            len(dataset.clean),
            num_devices * (2 if method.mix_clean else 1),
        ),
        split_clean=method.mix_clean,
        num_inner_steps=method.stride + method.num_replayed,
        augment=augment,
        seed=settings.seed,
        num_replayed=method.num_replayed,
        length_buckets=settings.length_buckets,
        takes_votes=method.takes_votes,
    )
    pipeline.check()
    return pipeline


def _fitted(prefix: str, part: str, wanted: int, size: int, multiple: int) -> int:
    """The wanted batch size, at most the set's, in equal shares for devices and halves."""
    fitted = min(wanted, size) // multiple * multiple
    if not fitted:
        raise InputError(
            f"{prefix}{part}_batch_size: got {wanted} with {size} {part} examples, expected at "
            f"least {multiple} of them: every device and every half of a clean batch needs one"
        )
    if fitted != wanted:
        logging.info("Batches have %d of the %d %s examples.", fitted, size, part)
    return fitted


def create_init(run: Run) -> Callable[[np.uint32], TrainState]:
    """seed -> the state before the first step, replicated over all devices of all processes."""
    # Under jit, so that the state is replicated from the start: donating any other state would
    # delete it. The seed is an argument, so that runs with different seeds share one program.
    jitted = _jitted(run.bound.init)
    return lambda seed: jitted(seed, run.example)


@functools.lru_cache(maxsize=8)
def _jitted(init: Callable[[Any, Any], TrainState]) -> Any:
    """(seed, example) -> state; runs with the same `init` share the compiled program."""
    return jax.jit(
        lambda seed, example: init(jax.random.key(seed), example),
        out_shardings=stack.replicated(),
    )


# The settings that determine the size of each part of the state.
_SIZES_OF = {
    "main": "config.model", "meta": "config.lcn", "extra": "config", "past":
    "config.meta_gradient.update_every",
}  # fmt: skip


def check_memory(run: Run, num_runs: int = 1) -> None:
    """Raises InputError if a device cannot hold the state, before it is created.

    Args:
      run: the run.
      num_runs: number of runs in one program.
    """
    state = jax.eval_shape(create_init(run), np.uint32(0))
    parts = {name: num_runs * _num_bytes(getattr(state, name)) for name in _SIZES_OF}
    for name in ("main", "meta"):
        params = getattr(getattr(state, name), "params", None)
        parts[name] += num_runs * _num_bytes(params)  # A gradient is as large.
    whole, there = sum(parts.values()), _device_bytes()
    if whole <= there:
        return
    told = (
        f"the training state and its gradients take {_gib(whole)}, and a device has {_gib(there)}"
    )
    if whole - parts["past"] > there:
        largest = max(parts, key=parts.__getitem__)
        of_folds = isinstance(run.method, CrossFit)
        name = "config.cross_fit.hidden_sizes" if of_folds else _SIZES_OF[largest]
        name = name if run.prefix else "method"
        raise InputError(f"{name}: {told}; expected a smaller one ({largest}: "
                         f"{_gib(parts[largest])})")  # fmt: skip
    name = _SIZES_OF["past"] if run.prefix else "update_every"
    size = run.method.num_replayed // run.method.stride
    raise InputError(
        f"{name}: got {run.method.stride}, expected a larger one: with {size} past classifiers "
        f"({_gib(parts['past'])}) {told}"
    )


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


def _num_bytes(tree: Any) -> int:
    """Bytes of all arrays except random keys, which are small."""
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree) if not is_key(x))


def _device_bytes() -> int:
    """Memory of one device; for a CPU, that of the machine."""
    stats = jax.local_devices()[0].memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def initial_state(run: Run) -> TrainState:
    """The state before the first step."""
    return create_init(run)(np.uint32(run.settings.seed))


def restore_or_init(
    run: Run,
    init: Callable[[np.uint32], TrainState],
    checkpointer: Checkpointer | None,
    formerly: Mapping[str, Any],
) -> tuple[TrainState, dict[str, Any]]:
    """The state to resume from, and the progress that the loop saved with it.

    Args:
      run: its description and data must be those of the checkpoint.
      init: see `create_init`.
      checkpointer: None without a workdir.
      formerly: the values of fields that an older description lacks.

    Raises:
      CheckpointError: the checkpoint is of another run, or cannot be read.
    """
    seed = np.uint32(run.settings.seed)
    fresh = {"config": run.description, "data": run.fingerprint}
    restored = None
    if checkpointer is not None:
        restored = checkpointer.restore(
            jax.eval_shape(init, seed),
            run.description,
            formerly=formerly,
            prefix=run.prefix,
            init=lambda: init(seed),
        )
    if restored is None:
        return init(seed), fresh | {"evals": [], "train_seconds": 0.0}
    state, progress = restored
    if progress.get("data", run.fingerprint) != run.fingerprint:
        raise CheckpointError(
            "the checkpoint was made with other data: inputs, labels, or which rows are clean "
            f"(fingerprint {progress['data']} then, {run.fingerprint} now).\n"
            "Use another workdir, or the data of the checkpoint."
        )
    logging.info("Resuming from the checkpoint of step %d.", int(state.step))
    return state, progress | fresh
