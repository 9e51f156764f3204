"""The project as a library: arrays in, corrected labels and a classifier out."""

import contextlib
import dataclasses
import functools
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import numpy as np
from etils import epath
from ml_collections import ConfigDict

from mlc_jax import build, config, description, paths
from mlc_jax.benchmarks.datasets import image_options
from mlc_jax.config.checks import whole
from mlc_jax.core import TrainState
from mlc_jax.data import UNKNOWN, Source
from mlc_jax.data.dataset import Dataset
from mlc_jax.encoders import encoding, readers
from mlc_jax.errors import InputError, expect, shown
from mlc_jax.examples import Examples, create_dataset, create_source, is_description
from mlc_jax.files import image_folder
from mlc_jax.files.arrays import read_npz
from mlc_jax.files.columns import Columns
from mlc_jax.files.memory.frames import Frame
from mlc_jax.files.table_files import TableSource
from mlc_jax.methods import BoundMethod, Method
from mlc_jax.models import Bert
from mlc_jax.result import Result, Trained, bind, stored_prepare
from mlc_jax.training import stack
from mlc_jax.workdir.workdir import CONFIG_FILE, DATASET_FILE, locked_workdir

if TYPE_CHECKING:
    from mlc_jax.encoders.readers import Reader
    from mlc_jax.report.corrected import Corrected
    from mlc_jax.training.evaluate import Prediction
    from mlc_jax.training.run import Run, Settings

_FIT = "fit"  # In a description: made by `fit`, not from a config.


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
    reader: "Reader | None" = None,
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
      reader: of inputs that are texts, `mlc_jax.TextReader`, or paths of pictures,
        `mlc_jax.PictureReader`; None takes them as they are.
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
    from mlc_jax.training.run import Settings

    expect(isinstance(method, Method), "method", method, "such as mlc_jax.methods.mlc(...)")
    for name in settings.keys() & {"noisy_batch_size"}:
        expect(False, name, settings[name], "no such argument: it is batch_size")
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
    read = create_source if reader is None else reader.cached
    dataset = create_dataset(method, noisy, clean, validation, test, prepare, read)
    run = _create_run(method, dataset, chosen, prepare, reader)
    inputs = Inputs("arrays", read) if reader is None else Inputs(reader.kind, reader)
    formerly = {"method": description.defaults(method), "reader": None}
    return train(
        run,
        inputs,
        workdir=workdir,
        formerly=config.flatten(formerly | dataclasses.asdict(Settings())),
        reader=reader,
        progress=progress,
    )


def _create_run(
    method: Method,
    dataset: Dataset,
    settings: "Settings",
    prepare: Callable[[Any], Any] | None,
    reader: "Reader | None",
) -> "Run":
    from mlc_jax.training.run import create_run

    if isinstance(method.model, Bert):
        encoding.check_dataset(dataset, method.model.config)
    if reader is not None:
        dataset = reader.with_states(dataset, method)
    described = {
        "made_by": _FIT,
        "method": {"name": method.name} | description.describe(method),
        "prepare": description.describe(prepare),
        "reader": None if reader is None else reader.to_json(),
        **dataclasses.asdict(settings),
    }
    return create_run(
        description=described,
        prefix="",
        dataset=dataset,
        method=method,
        settings=settings,
        augment=False,
    )


class Inputs(NamedTuple):
    """How a run's inputs are read again; see `Result`."""

    kind: str
    read: Callable[[Any], Source]
    columns: Columns | None = None


def train(
    run: "Run",
    inputs: Inputs,
    *,
    formerly: dict[str, Any],
    workdir: str | pathlib.Path | None = None,
    reader: "Reader | None" = None,
    progress: bool = True,
    classes: np.ndarray | None = None,
    frame: Any = None,
    of_all_rows: bool = False,
) -> Result:
    """Trains one run to its end.

    Args:
      run: what is trained.
      inputs: how its inputs are read.
      formerly: what a description that lacks a field was made with.
      workdir: see `fit`.
      reader: of texts or pictures, whose encoder a workdir keeps.
      progress: whether to draw a bar.
      classes: `[C]`, the label of each class as the user wrote it; None goes by their names.
      frame: what `Result.to_frame` adds columns to.
      of_all_rows: whether the result says something of each row of own data in memory, checked ones
        among them.

    Raises:
      as `fit`.
    """
    from mlc_jax.report import report
    from mlc_jax.training import loop

    with contextlib.ExitStack() as contexts:
        path = None if workdir is None else contexts.enter_context(locked_workdir(str(workdir)))
        if path is not None and jax.process_index() == 0:
            readers.save(reader, run.dataset, path)
        recorders, state, predictions = loop.train_runs(
            [run], [path], formerly=formerly, show_progress=progress
        )
        (recorder,), (of_noisy,) = recorders, predictions
        if recorder.failure is not None:
            raise recorder.failure
        assert state is not None and of_noisy is not None
        if path is not None:
            report.write(run, recorder.progress, of_noisy, path)
    trained = Trained(run, recorder.progress, of_noisy)
    found, of_noisy = report.judged(run, of_noisy)
    columns = report.label_columns(run.exported, of_noisy)
    if classes is None:
        classes = _classes(run.dataset.class_names, names_labels=run.dataset.names_labels)
    return Result(
        labels=classes[columns["corrected_label"]],
        label_quality=of_noisy.label_quality,
        soft_labels=of_noisy.soft_labels,
        given_labels=_with_none(classes, columns["given_label"]),
        ids=columns["id"],
        classes=classes,
        figures=report.summarize(run, recorder.progress, of_noisy.soft_labels, found),
        state=state,
        method=dataclasses.replace(run.method, initial_params=None),
        sizes=run.sizes(),
        prepare=run.dataset.prepare,
        read=inputs.read,
        kind=inputs.kind,
        columns=inputs.columns,
        frame=frame,
        rows=_of_rows(run.dataset, of_noisy) if of_all_rows else None,
        trained=trained,
    )


def _of_rows(dataset: Dataset, of_noisy: "Prediction") -> "Corrected":
    """What is said of all rows of own data in memory, which are rows of one source."""
    from mlc_jax.report.corrected import of_all_rows

    parts = (dataset.clean, dataset.validation, dataset.test)
    checked = [part for part in parts if part is not None]
    return of_all_rows(
        len(dataset.noisy.source), dataset.noisy, of_noisy.soft_labels, of_noisy.label_quality,
        checked,
    )  # fmt: skip


def load(
    workdir: str | pathlib.Path,
    *,
    method: Method | None = None,
    prepare: Callable[[Any], Any] | None = None,
    reader: "Reader | None" = None,
) -> Result:
    """The result of a finished run, of `fit` or of the command.

    Args:
      workdir: of the run.
      method: needed if it was made of a Flax module or an optax transformation of your own.
      prepare: needed if `fit` was given one.
      reader: needed if pictures were encoded by a function of your own.

    Raises:
      InputError: there is no finished run, or it cannot be made again without `method`.
      CheckpointError: its checkpoint cannot be read, or is of another method.
    """
    from mlc_jax.report import report

    path = paths.absolute(workdir, "workdir")
    described, sizes, figures = (
        _read_json(path, name) for name in (CONFIG_FILE, DATASET_FILE, report.RESULTS_FILE)
    )
    complete = None
    if described.get("made_by") != _FIT:
        complete = readers.from_workdir(config.complete(ConfigDict(described)), path)
    elif described["prepare"] is not None and prepare is None:
        raise InputError(
            f"prepare: {path} was made with {described['prepare']}; expected the same function "
            "again: mlc_jax.load(workdir, prepare=...)"
        )
    inputs = _inputs_of(described, complete, sizes, path, reader)
    method = method or _method_of(described, complete, sizes)
    method = dataclasses.replace(method, initial_params=None)  # The checkpoint has them all.
    prepare = prepare or stored_prepare(sizes)
    bound = bind(method, sizes, prepare)
    step = figures["step"] if described.get("best") == "validation" else None
    state = _restored(bound, described, sizes, path, step)
    stored_labels = read_npz("workdir", str(path / report.SOFT_LABELS_FILE))
    classes = _classes(sizes["class_names"], names_labels=sizes["names_labels"])
    return Result(
        labels=classes[stored_labels["corrected_label"]],
        label_quality=stored_labels["label_quality"],
        soft_labels=stored_labels["soft_label"],
        given_labels=_with_none(classes, stored_labels["given_label"]),
        ids=stored_labels["id"],
        classes=classes,
        figures=figures,
        state=state,
        method=method,
        sizes=sizes,
        prepare=prepare,
        read=inputs.read,
        kind=inputs.kind,
        columns=inputs.columns,
    )


def _inputs_of(
    described: dict[str, Any],
    complete: ConfigDict | None,
    sizes: dict[str, Any],
    path: epath.Path,
    reader: "Reader | None",
) -> Inputs:
    """Args: `complete`, the config, of a run of the command; the rest as `load` reads it."""
    if reader is not None:
        return Inputs(reader.kind, reader)
    if sizes.get("columns") is not None:
        columns = Columns.from_json(sizes["columns"])
        return Inputs("table", functools.partial(read_frame, columns), columns)
    if complete is None:
        if described.get("reader"):
            reader = readers.of_fit(described["reader"], path)
            return Inputs(reader.kind, reader)
        return Inputs("arrays", create_source)
    reader = readers.of_config(complete)
    if reader is not None:
        readers.check_function(complete.dataset.encoder or "")
        return Inputs(reader.kind, reader)
    if complete.dataset.name in config.IMAGE_FILES:
        options = image_options(complete)
        read = functools.partial(image_folder.unlabelled, options=options, field="x")
        return Inputs("image_folder", read)
    return Inputs("arrays", create_source)


def _method_of(
    described: dict[str, Any], complete: ConfigDict | None, sizes: dict[str, Any]
) -> Method:
    if complete is None:
        settings = {k: v for k, v in described["method"].items() if k != "name"}
        rebuilt: Method = description.rebuild(settings)
        return rebuilt
    paired = sizes.get("paired", False)  # Of an older workdir it says nothing, and needs not.
    return build.create_method(complete, len(sizes["class_names"]), paired=paired)


def _restored(
    bound: BoundMethod, described: dict[str, Any], sizes: dict[str, Any], path: epath.Path,
    step: int | None,
) -> TrainState:  # fmt: skip
    """The state of a step; None is the last."""
    from mlc_jax.training import run as runs
    from mlc_jax.workdir import checkpoint

    zeros = lambda leaf: np.zeros(leaf["shape"], leaf["dtype"])  # noqa: E731
    example = jax.tree.map(zeros, sizes["example"], is_leaf=is_description)

    def init() -> TrainState:
        return bound.init(jax.random.key(0), example)

    with contextlib.closing(
        checkpoint.Checkpointer(path, stack.replicated(), keep=runs.Settings.checkpoints_to_keep)
    ) as checkpointer:
        restored = checkpointer.restore(
            jax.eval_shape(init), described, formerly={}, init=init, prefix="", step=step
        )
    if restored is None:
        raise InputError(f"workdir: no checkpoint in {str(path)!r}")
    return restored[0]


def read_frame(columns: Columns, x: Any) -> Source:
    """New rows of a table: a data frame, or a dict of columns."""
    frame = Frame("x", x)
    return TableSource(columns.encode(frame.fail, frame.rows([], [], columns.names)), columns)


def _settings(fields: dict[str, Any]) -> "Settings":
    """`Settings`, checked as the config's are."""
    from mlc_jax.training.run import Settings

    known = [field.name for field in dataclasses.fields(Settings)]
    for name, value in fields.items():
        expect(name in known, "fit", name, f"settings among {', '.join(known)}")
        setting = config.SETTINGS.get(name) or config.SETTINGS[f"meta_gradient.{name}"]
        check = whole(1) if name in config.SIZED else setting.check
        expect(check.ok(value), name, value, check.expected)
    return Settings(**fields)


def _classes(names: Sequence[str], *, names_labels: bool) -> np.ndarray:
    """The label of each class, as the user wrote it: its name or its number."""
    return np.asarray(names) if names_labels else np.arange(len(names))


def _with_none(classes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Labels as the user wrote them; "", -1 or, where that is a class, None is no label."""
    if classes.dtype.kind == "U":
        return np.append(classes, "")[numbers]
    if classes.dtype.kind in "iu" and UNKNOWN not in classes:
        return np.append(classes, UNKNOWN)[numbers]
    return np.append(classes.astype(object), [None])[numbers]


def _read_json(path: epath.Path, name: str) -> dict[str, Any]:
    file = path / name
    if not file.exists():
        raise InputError(
            f"workdir: no finished run in {str(path)!r}, which lacks {name}; expected the workdir "
            "of a run that has ended (run an older one's command again to bring it up to date)"
        )
    try:
        content = json.loads(file.read_text())
    except (ValueError, OSError) as error:
        raise InputError(
            f"workdir: {str(file)!r} cannot be read ({error}); the run's own command writes it anew"
        ) from error
    if not isinstance(content, dict) or not content:
        raise InputError(
            f"workdir: {str(file)!r} is damaged: it holds {shown(content, 20)}; the run's own "
            "command writes it anew"
        )
    return content
