"""The library: arrays in, corrected labels and a classifier out."""

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
from mlc_jax.files.table_files import TableSource, warn_of_new
from mlc_jax.files.values.inputs import Offsets
from mlc_jax.methods import BoundMethod, Method
from mlc_jax.models import Bert
from mlc_jax.result import Result, Trained, bind, stored_prepare
from mlc_jax.training import stack
from mlc_jax.workdir.described import is_opened
from mlc_jax.workdir.workdir import CONFIG_FILE, DATASET_FILE, locked_workdir

if TYPE_CHECKING:
    from mlc_jax.encoders.readers import Reader
    from mlc_jax.report.corrected import Corrected
    from mlc_jax.training.evaluate import Prediction
    from mlc_jax.training.run import Run, Settings

_FIT = "fit"  # In a description: the run was made by `fit`, not from a config.


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
      noisy: N examples whose labels may be wrong.
      clean: a few examples of every class with checked labels; none of them is in `noisy`.
      test: examples that only judge the classifier.
      validation: examples whose true labels select a checkpoint; the report counts their labels.
      num_epochs: passes over the noisy set.
      num_steps: inner steps (updates of the classifier); 0 trains for `num_epochs`.
      batch_size: noisy examples per step, over all devices; fewer if there are fewer.
      clean_batch_size: clean examples per step; one half joins the inner loss, the other is the
        outer loss. None is `batch_size`, or as many as there are.
      seed: seed of all random numbers.
      prepare: maps inputs `[B, ...]` to what the model takes, inside the step. None converts whole
        numbers of a single array to float32, and leaves everything else as it is.
      reader: reads inputs that are texts (`mlc_jax.TextReader`) or paths of pictures
        (`mlc_jax.PictureReader`); None takes inputs as they are.
      workdir: a directory for checkpoints, metrics and the report; the same call resumes from the
        newest checkpoint there. None keeps everything in memory.
      progress: whether to show a progress bar.
      **settings: more fields of `mlc_jax.training.run.Settings`, such as `log_every_steps`.

    Raises:
      InputError: data or settings are wrong; nothing was started.
      CheckpointError: `workdir` holds a run with other settings or data; the message says which.
      NonFiniteLossError: training diverged.
      Preempted: SIGTERM with a workdir; the same call resumes.
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
            "clean_batch_size": batch_size if clean_batch_size is None else clean_batch_size,
            "seed": seed,
        }
    )
    read = create_source if reader is None else reader.cached
    dataset = create_dataset(method, noisy, clean, validation, test, prepare, read)
    run = _create_run(method, dataset, chosen, prepare, reader)
    read_again = _array_reader(run.offsets)
    inputs = Inputs("arrays", read_again) if reader is None else Inputs(reader.kind, reader)
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
    """How to read inputs like those of a run; for the fields see `Result`."""

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
      run: what to train.
      inputs: how to read its inputs.
      formerly: values of fields that the description in an older workdir lacks.
      workdir: see `fit`.
      reader: of texts or pictures; a workdir gets a copy of its encoder.
      progress: whether to show a progress bar.
      classes: `[C]`, the label of each class as the user wrote it; None uses their names.
      frame: the frame that `Result.to_frame` adds columns to.
      of_all_rows: whether the result covers all rows of own data in memory, checked ones included.

    Raises:
      see `fit`.
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
    found, of_noisy = report.judged(run, recorder.progress, of_noisy)
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
        predictions={x: classes[y] for x, y in report.predicted(of_noisy.out_of_fold).items()},
        checked_rows={
            name: x if name in ("id", "drawn") else _with_none(classes, x)
            for name, x in report.checked_columns(run, of_noisy).items()
        },
        sources=report.of_each_source(run, of_noisy),
        trained=trained,
    )


def _of_rows(dataset: Dataset, of_noisy: "Prediction") -> "Corrected":
    """The results for all rows of own data in memory; all of them are rows of one source."""
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
    labels: bool = True,
    reader: "Reader | None" = None,
) -> Result:
    """Loads the result of a finished run of `fit` or of the command.

    Args:
      workdir: the directory of the run.
      method: needed if the method has a Flax module or an optax transformation of your own.
      prepare: needed if `fit` got one.
      reader: needed if a function of your own encoded pictures.
      labels: whether to read the corrected labels, too; predictions do not need them.

    Raises:
      InputError: there is no finished run, or `method`, `prepare` or `reader` is needed.
      CheckpointError: the checkpoint cannot be read, or belongs to another method.
    """
    from mlc_jax.report import report

    path = paths.absolute(workdir, "workdir")
    paths.check_regular(path, "workdir", is_opened)
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
    classes = _classes(sizes["class_names"], names_labels=sizes["names_labels"])
    if labels:
        stored_labels = read_npz("workdir", str(path / report.SOFT_LABELS_FILE))
    else:
        stored_labels = report.no_labels(len(classes))
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
    """How to read inputs. `complete` is the config of a run of the command, else None."""
    if reader is not None:
        return Inputs(reader.kind, reader)
    if sizes.get("columns") is not None:
        columns = Columns.from_json(sizes)
        read = functools.partial(read_frame, columns, sources=sizes.get("sources", ()))
        return Inputs("table", read, columns)
    if complete is None:
        if described.get("reader"):
            reader = readers.of_fit(described["reader"], path)
            return Inputs(reader.kind, reader)
        return Inputs("arrays", _array_reader(tuple(sizes.get("offsets", ()))))
    reader = readers.of_config(complete)
    if reader is not None:
        readers.check_function(complete.dataset.encoder or "")
        return Inputs(reader.kind, reader)
    if complete.dataset.name in config.IMAGE_FILES:
        options = image_options(complete)
        read = functools.partial(image_folder.unlabelled, options=options, field="x")
        return Inputs("image_folder", read)
    return Inputs("arrays", _array_reader(tuple(sizes.get("offsets", ()))))


def _array_reader(offsets: Offsets) -> Callable[[Any], Source]:
    return functools.partial(create_source, offsets=offsets) if offsets else create_source


def _method_of(
    described: dict[str, Any], complete: ConfigDict | None, sizes: dict[str, Any]
) -> Method:
    if complete is None:
        settings = {k: v for k, v in described["method"].items() if k != "name"}
        rebuilt: Method = description.rebuild(settings)
        return rebuilt
    paired = sizes.get("paired", False)  # Older workdirs lack it, and do not need it.
    return build.create_method(complete, len(sizes["class_names"]), paired=paired)


def _restored(
    bound: BoundMethod, described: dict[str, Any], sizes: dict[str, Any], path: epath.Path,
    step: int | None,
) -> TrainState:  # fmt: skip
    """The state at a step; None is the last step."""
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


def read_frame(columns: Columns, x: Any, *, sources: Sequence[str] = ()) -> Source:
    """New rows of a table: a data frame, or a dict of columns."""
    frame = Frame("x", x)
    warn_of_new(columns, frame.columns(), sources)
    rows, read = frame.rows([], [], columns.names), columns.of_numbers(frame.numbers())
    return TableSource(read.encode(frame.fail, rows), columns)


def _settings(fields: dict[str, Any]) -> "Settings":
    """`Settings`, with the checks of the config."""
    from mlc_jax.training.run import Settings

    known = [field.name for field in dataclasses.fields(Settings)]
    for name, value in fields.items():
        expect(name in known, "fit", name, f"settings among {', '.join(known)}")
        setting = config.SETTINGS.get(name) or config.SETTINGS[f"meta_gradient.{name}"]
        is_known = setting.check.ok(value) and not (name in config.SIZED and value == 0)
        expect(is_known, name, value, setting.check.expected)
    return Settings(**fields)


def _classes(names: Sequence[str], *, names_labels: bool) -> np.ndarray:
    """The label of each class, as the user wrote it: its name or its number."""
    return np.asarray(names) if names_labels else np.arange(len(names))


def _with_none(classes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Labels as the user wrote them. No label is "", -1 or, where that is a class, None."""
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
            f"workdir: {str(file)!r} cannot be read ({error}); rerun the run's command to write it "
            "again"
        ) from error
    if not isinstance(content, dict) or not content:
        raise InputError(
            f"workdir: {str(file)!r} is damaged: it holds {shown(content, 20)}; the run's own "
            "command writes it anew"
        )
    return content
