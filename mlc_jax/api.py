"""The project as a library: arrays in, corrected labels and a classifier out."""

import contextlib
import dataclasses
import io
import json
import pathlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from mlc_jax import build, config, description
from mlc_jax.core import TrainState
from mlc_jax.data import UNKNOWN, ArraySource, Dataset, IndexedSource, Source, Subset
from mlc_jax.data.prepare import Normalize
from mlc_jax.data.source import num_examples
from mlc_jax.errors import InputError, expect
from mlc_jax.methods import BoundMethod, Method
from mlc_jax.methods.types import identity

if TYPE_CHECKING:
    import pandas

_FIT = "fit"  # In a description: made by `fit`, not from a config.


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Inputs, and what is known of their labels.

    Attributes:
      x: an array `[N, ...]`, a dict of arrays, or anything with `len` and `x[rows]`, where `rows`
        is a sorted NumPy array of row numbers: a memory map, an HDF5 dataset, your own class.
      labels: `[N]`, numbers from 0 or names. As given for noisy examples, the true ones for clean.
      given: `[N]`, of clean examples: the labels as given before somebody checked them. None where
        they are not known; -1 or "" in a row where they are not.
      ids: `[N]` names of the examples; None numbers them.
    """

    x: Any
    labels: Any
    given: Any = None
    ids: Any = None

    def __post_init__(self) -> None:
        size = len(self)
        for name in ("labels", "given", "ids"):
            values = getattr(self, name)
            if values is not None and len(values) != size:
                raise InputError(f"{name}: got {len(values)} of them, expected {size}, one per row")
        expect(size > 0, "x", self.x, "at least one example")

    def __len__(self) -> int:
        if isinstance(self.x, dict):
            try:
                return num_examples(self.x)
            except ValueError as error:
                raise InputError(f"x: {error}") from error
        return len(self.x)


@dataclasses.dataclass(frozen=True, eq=False)
class Result:
    """What was learned.

    Attributes:
      labels: `[N]`, corrected labels of the noisy examples, in their order; numbers or names, as
        they were given.
      label_quality: `[N]` in [0, 1], how far each given label is believed.
      soft_labels: `[N, C]`, probabilities of the corrected labels.
      given_labels: `[N]`.
      ids: `[N]`, text.
      classes: `[C]`, the label of each column of `soft_labels` and `predict_proba`.
      figures: of the run, as in `results.json`; None where truth or a test set is not there.
      state: the trained state.
      bound: the method's functions.
    """

    labels: np.ndarray
    label_quality: np.ndarray
    soft_labels: np.ndarray
    given_labels: np.ndarray
    ids: np.ndarray
    classes: np.ndarray
    figures: dict[str, Any]
    state: TrainState
    bound: BoundMethod

    def predict_proba(self, x: Any, *, batch_size: int = 1000) -> np.ndarray:
        """The classifier's probabilities `[n, C]` for inputs like those it was trained on."""
        from mlc_jax.training import evaluate

        subset = Subset.whole(_source(x, None))
        labels = np.zeros(len(subset), np.int32)
        reader = evaluate.create_reader([subset], [labels], batch_size=batch_size)
        predict = evaluate.create_predict(self.bound)
        logits = predict(self.state, reader, len(subset))[0].logits
        return np.asarray(jax.nn.softmax(jnp.asarray(logits, jnp.float32)))

    def predict(self, x: Any, *, batch_size: int = 1000) -> np.ndarray:
        """The most probable label `[n]` of each input."""
        return self.classes[self.predict_proba(x, batch_size=batch_size).argmax(axis=1)]

    def to_frame(self) -> "pandas.DataFrame":
        """A row for each noisy example, under cleanlab's names.

        Columns: `id`; `is_label_issue`, whether the label was corrected; `label_quality`;
        `given_label`; `predicted_label`, the corrected one; `confidence` in it. The table goes into
        cleanlab's `CleanLearning.fit(..., label_issues=table)`.
        """
        import pandas

        return pandas.DataFrame({
            "id": self.ids,
            "is_label_issue": self.labels != self.given_labels,
            "label_quality": self.label_quality,
            "given_label": self.given_labels,
            "predicted_label": self.labels,
            "confidence": self.soft_labels.max(axis=1),
        })  # fmt: skip


def fit(
    method: Method,
    noisy: Examples,
    clean: Examples,
    *,
    test: Examples | None = None,
    validation: Examples | None = None,
    num_epochs: int = 60,
    num_steps: int = 0,
    batch_size: int = 100,
    clean_batch_size: int | None = None,
    seed: int = 0,
    prepare: Callable[[Any], Any] | None = None,
    workdir: str | pathlib.Path | None = None,
    progress: bool = True,
    **settings: Any,
) -> Result:
    """Trains a classifier on noisy labels, and corrects the labels.

    Args:
      method: such as `mlc_jax.methods.mlc(...)`.
      noisy: examples with labels that may be wrong.
      clean: a few with labels that somebody checked, of every class; none of them in `noisy`.
      test: to judge the classifier by; nothing is learned from it.
      validation: true labels to select a model by; they are counted as spent.
      num_epochs: passes over the noisy set.
      num_steps: inner steps, in place of `num_epochs`; 0 goes by that.
      batch_size: noisy examples per step, over all devices; fewer if there are fewer.
      clean_batch_size: clean examples per step, half of which judge the other half; None is
        `batch_size`, or what there is.
      seed: of everything that is drawn.
      prepare: from inputs as they are, `[B, ...]`, to what the model takes; part of the step. None
        makes whole numbers of a single array float32, and leaves everything else as it is.
      workdir: a directory for checkpoints, metrics and the report; the same call goes on from the
        newest checkpoint there. None keeps everything in memory.
      progress: whether to draw a progress bar.
      **settings: further fields of `mlc_jax.training.run.Settings`, such as `log_every_steps`.

    Raises:
      InputError: data or settings that are not what they should be; nothing was started.
      CheckpointError: `workdir` holds a run of other settings or data; the message says which.
      NonFiniteLossError: training diverged.
      Preempted: SIGTERM with a workdir; the same call goes on.
    """
    from mlc_jax.training import report, train
    from mlc_jax.training import run as runs
    from mlc_jax.training.workdir import locked_workdir

    expect(isinstance(method, Method), "method", method, "such as mlc_jax.methods.mlc(...)")
    chosen = _settings(
        settings
        | {
            "num_epochs": num_epochs,
            "num_steps": num_steps,
            "noisy_batch_size": batch_size,
            "clean_batch_size": clean_batch_size or batch_size,
            "seed": seed,
        }
    )
    dataset = _dataset(method, noisy, clean, validation, test, prepare)
    described = {
        "made_by": _FIT,
        "method": {"name": method.name} | description.describe(method),
        "prepare": description.describe(prepare),
        **dataclasses.asdict(chosen),
    }
    run = runs.create_run(
        description=described,
        prefix="",
        dataset=dataset,
        method=method,
        settings=chosen,
        augment=False,
    )
    formerly = config.flatten(
        {"method": description.defaults(method)} | dataclasses.asdict(runs.Settings())
    )
    with contextlib.ExitStack() as contexts:
        path = None if workdir is None else contexts.enter_context(locked_workdir(str(workdir)))
        recorders, state, predictions = train.train_runs(
            [run], [path], formerly=formerly, show_progress=progress
        )
        (recorder,), (of_noisy,) = recorders, predictions
        if recorder.failure is not None:
            raise recorder.failure
        assert state is not None and of_noisy is not None
        if path is not None:
            report.write(run, recorder.progress, of_noisy, path)
        figures = report.summarize(run, recorder.progress, of_noisy.soft_labels)
    classes = _classes(dataset)
    columns = report.label_columns(run.exported, of_noisy)
    return Result(
        labels=classes[columns["corrected_label"]],
        label_quality=of_noisy.label_quality,
        soft_labels=of_noisy.soft_labels,
        given_labels=classes[columns["given_label"]],
        ids=columns["id"],
        classes=classes,
        figures=figures,
        state=state,
        bound=run.bound,
    )


def load(
    workdir: str | pathlib.Path,
    *,
    method: Method | None = None,
    prepare: Callable[[Any], Any] | None = None,
) -> Result:
    """The result of a finished run, of `fit` or of the command.

    Args:
      workdir: of the run.
      method: needed if it was made of a Flax module or an optax transformation of your own.
      prepare: needed if `fit` was given one.

    Raises:
      InputError: there is no finished run, or it cannot be made again without `method`.
      CheckpointError: its checkpoint cannot be read, or is of another method.
    """
    from mlc_jax.training import checkpoint, report, stack
    from mlc_jax.training import run as runs
    from mlc_jax.training.workdir import CONFIG_FILE, DATASET_FILE

    path = epath.Path(workdir).expanduser().resolve()
    described, sizes, figures = (
        _read_json(path, name) for name in (CONFIG_FILE, DATASET_FILE, report.RESULTS_FILE)
    )
    num_classes = len(sizes["class_names"])
    if described.get("made_by") == _FIT:
        settings = {k: v for k, v in described["method"].items() if k != "name"}
        method = method or description.rebuild(settings)
        if described["prepare"] is not None and prepare is None:
            raise InputError(
                f"prepare: {path} was made with {described['prepare']}; expected the same function "
                "again: mlc_jax.load(workdir, prepare=...)"
            )
    elif method is None:
        method = build.create_method(config.complete(ConfigDict(described)), num_classes)
    assert method is not None
    stored = sizes["prepare"]
    bound = method.bind(
        num_noisy=sizes["num_noisy"],
        num_classes=num_classes,
        steps_per_epoch=sizes["steps_per_epoch"],
        num_epochs=sizes["num_epochs"],
        prepare=prepare or (Normalize(**stored) if stored else _prepare_for(sizes["example"])),
        axis_name=stack.AXIS_NAME,
    )
    example = jax.tree.map(
        lambda leaf: np.zeros(leaf["shape"], leaf["dtype"]), sizes["example"], is_leaf=_is_leaf
    )

    def init() -> TrainState:
        return bound.init(jax.random.key(0), example)

    with contextlib.closing(
        checkpoint.Checkpointer(path, stack.replicated(), keep=runs.Settings.checkpoints_to_keep)
    ) as checkpointer:
        restored = checkpointer.restore(
            jax.eval_shape(init), described, formerly={}, init=init, prefix=""
        )
    if restored is None:
        raise InputError(f"workdir: no checkpoint in {str(path)!r}")
    with np.load(io.BytesIO((path / report.SOFT_LABELS_FILE).read_bytes())) as arrays:
        columns = {name: arrays[name] for name in arrays.files}
    names = sizes["class_names"]
    classes = np.asarray(names) if sizes["names_labels"] else np.arange(len(names))
    return Result(
        labels=classes[columns["corrected_label"]],
        label_quality=columns["label_quality"],
        soft_labels=columns["soft_label"],
        given_labels=classes[columns["given_label"]],
        ids=columns["id"],
        classes=classes,
        figures=figures,
        state=restored[0],
        bound=bound,
    )


def _settings(fields: dict[str, Any]) -> Any:
    """`Settings`, checked as the config's are."""
    from mlc_jax.training.run import Settings

    known = [field.name for field in dataclasses.fields(Settings)]
    for name, value in fields.items():
        expect(name in known, "fit", name, f"settings among {', '.join(known)}")
        setting = config.SETTINGS.get(name) or config.SETTINGS[f"meta_gradient.{name}"]
        expect(setting.check.ok(value), name, value, setting.check.expected)
    return Settings(**fields)


def _source(x: Any, ids: Any) -> Source:
    """Arrays are gathered from memory; everything else is asked by `x[rows]`."""
    if hasattr(x, "to_numpy"):  # A table: x[rows] would be columns.
        x = x.to_numpy()
    if isinstance(x, list | tuple):
        x = np.asarray(x)
    leaves = jax.tree.leaves(x)
    in_memory = (np.ndarray, jax.Array)
    if all(isinstance(leaf, in_memory) and not isinstance(leaf, np.memmap) for leaf in leaves):
        arrays = jax.tree.map(np.asarray, x)
        single = lambda a: a.astype(np.float32) if a.dtype == np.float64 else a  # noqa: E731
        return ArraySource(jax.tree.map(single, arrays), ids)
    expect(hasattr(x, "__getitem__") and hasattr(x, "__len__"), "x", type(x), "x[rows] and len(x)")
    return IndexedSource(x, ids)


def _dataset(
    method: Method,
    noisy: Examples,
    clean: Examples,
    validation: Examples | None,
    test: Examples | None,
    prepare: Callable[[Any], Any] | None,
) -> Dataset:
    """Labels to numbers, inputs to sources."""
    parts = {"noisy": noisy, "clean": clean, "validation": validation, "test": test}
    present = {name: part for name, part in parts.items() if part is not None}
    names = _names(present)
    sources = {name: _source(part.x, part.ids) for name, part in present.items()}
    example = _first(sources["clean"])
    prepare = prepare or _prepare_for(example)
    num_classes = _num_classes(method, prepare, example)
    if names is None:
        class_names = tuple(str(number) for number in range(num_classes))
    else:
        expect(len(names) <= num_classes, "labels", len(names), f"{num_classes} names at most, one "
               "for each of the model's classes")  # fmt: skip
        class_names = names + tuple(f"class {i}" for i in range(len(names), num_classes))
    numbers = {name: i for i, name in enumerate(class_names)}

    def subset(name: str) -> Subset | None:
        if name not in present:
            return None
        part, rows = present[name], np.arange(len(present[name]))
        labels = _numbers(f"{name}.labels", part.labels, numbers, num_classes, known=True)
        unknown = np.full(len(rows), UNKNOWN, np.int32)
        if name == "noisy":
            return Subset(sources[name], rows, labels, unknown)
        given = unknown
        if part.given is not None:
            given = _numbers(f"{name}.given", part.given, numbers, num_classes, known=False)
        return Subset(sources[name], rows, given, labels)

    noisy_part, clean_part = subset("noisy"), subset("clean")
    assert noisy_part is not None and clean_part is not None
    return Dataset(
        name="examples",
        class_names=class_names,
        noisy=noisy_part,
        clean=clean_part,
        validation=subset("validation"),
        test=subset("test"),
        prepare=prepare,
        noise="given",
        names_labels=names is not None,
    )


def _first(source: Source) -> Any:
    """One input `[1, ...]`."""
    from mlc_jax.data.loader import read_rows

    return read_rows(source, np.zeros(1, np.int64))


def _prepare_for(example: Any) -> Callable[[Any], Any]:
    """Whole numbers of a single array become float32, which models compute in."""
    is_leaf = _is_leaf(example)
    dtype = example["dtype"] if is_leaf else getattr(example, "dtype", None)
    if dtype is not None and not np.issubdtype(np.dtype(dtype), np.floating):
        return Normalize()
    return identity


def _is_leaf(value: Any) -> bool:
    """Whether it describes an array; see `Run.sizes`."""
    return isinstance(value, dict) and value.keys() == {"shape", "dtype"}


def _num_classes(method: Method, prepare: Callable[[Any], Any], example: Any) -> int:
    """How many logits the model has."""

    def logits(example: Any) -> jax.Array:
        key = jax.random.key(0)
        outputs, _ = method.model.init_with_output(key, prepare(example), train=False)
        return outputs[0]

    try:
        return int(jax.eval_shape(logits, example).shape[-1])
    except InputError:
        raise
    except Exception as error:  # Of a user's model, whatever it raises.
        raise InputError(
            "model: it does not take the inputs as prepared: "
            f"{str(error).splitlines()[0]}; expected model(inputs, train=...) -> (logits, features)"
        ) from error


def _names(parts: dict[str, Examples]) -> tuple[str, ...] | None:
    """All labels in their order if they are names; None if they are numbers."""
    columns = [np.asarray(x) for p in parts.values() for x in (p.labels, p.given) if x is not None]
    kinds = {"names" if column.dtype.kind in "UTO" else "numbers" for column in columns}
    expect(len(kinds) == 1, "labels", sorted(kinds), "all numbers, or all names")
    if kinds == {"numbers"}:
        return None
    names = sorted({str(name) for column in columns for name in column.tolist()} - {""})
    return tuple(names)


def _numbers(
    field: str, labels: Any, numbers: dict[str, int], num_classes: int, *, known: bool
) -> np.ndarray:
    """Labels `[N]` as int32; UNKNOWN where there is none, unless they must be `known`."""
    array = np.asarray(labels)
    if array.dtype.kind in "UTO":
        found = np.array([numbers.get(str(x), UNKNOWN) for x in array.tolist()], np.int32)
    else:
        whole = np.issubdtype(array.dtype, np.integer)
        expect(whole, field, array.dtype, "whole numbers from 0, or names")
        found = array.astype(np.int32)
    bad = (found < (0 if known else UNKNOWN)) | (found >= num_classes)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise InputError(
            f"{field}: row {row} is {array[row].item()!r}, expected 0 to {num_classes - 1}, the "
            "model's classes"
        )
    return found


def _classes(dataset: Dataset) -> np.ndarray:
    names = dataset.class_names
    return np.asarray(names) if dataset.names_labels else np.arange(len(names))


def _read_json(path: epath.Path, name: str) -> dict[str, Any]:
    file = path / name
    if not file.exists():
        raise InputError(
            f"workdir: no finished run in {str(path)!r}, which lacks {name}; expected the workdir "
            "of a run that has ended (run an older one's command again to bring it up to date)"
        )
    try:
        content: dict[str, Any] = json.loads(file.read_text())
        return content
    except ValueError as error:
        raise InputError(f"workdir: {str(file)!r} cannot be read ({error})") from error
