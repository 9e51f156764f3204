"""Corrects the labels of a data frame. The estimator uses the same functions."""

import dataclasses
import functools
import importlib
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from mlc_jax import api, config
from mlc_jax.benchmarks.datasets import of_own
from mlc_jax.config import starts
from mlc_jax.config.checks import is_whole
from mlc_jax.data import ArraySource, Source
from mlc_jax.encoders import readers
from mlc_jax.encoders.pictures import PictureReader, name_of
from mlc_jax.encoders.readers import Reader
from mlc_jax.errors import expect, readable
from mlc_jax.files import table_files, text_files
from mlc_jax.files.label_columns import Said, check_near_misses
from mlc_jax.files.memory import inputs as memory
from mlc_jax.files.memory.frames import Frame, as_frame
from mlc_jax.files.own import OwnData
from mlc_jax.files.values.inputs import Offsets
from mlc_jax.labels.words import in_words
from mlc_jax.result import Result

_LINEAR, _MLP = "linear", "mlp"


@in_words()
def correct_labels(
    frame: Any,
    label: str | Sequence[str] = "label",
    checked: str = "checked_label",
    *,
    checks: Any = None,
    class_names: Sequence[Any] | None = None,
    text: str | None = None,
    image: str | None = None,
    encoder: Any = None,
    features: Sequence[str] = (),
    method: str = "auto",
    model: Any = "auto",
    num_epochs: int | None = None,
    seed: int = 0,
    workdir: str | pathlib.Path | None = None,
    progress: bool = True,
) -> Result:
    """Corrects the labels of a data frame, and estimates how good they are.

    For example::

        result = mlc_jax.correct_labels(pandas.read_csv("all.csv"))
        print(result.verdict)
        result.to_frame()  # The same rows and columns, and corrected_label, confidence, ...

    `mlc-jax correct` does the same to a file of the same content. All columns except those of
    labels become features: numbers, booleans and dates as they are, texts with few different values
    as categories.

    Args:
      frame: a pandas data frame, or a dict of columns.
      label: the column of given labels; or several columns, one for each annotator, rule or model.
      checked: the column of labels that somebody checked, empty where nobody looked. Without this
        column there is no estimate of how good the labels are.
      checks: later checks, with the columns `id` and `checked_label`, such as a `to_check.csv` that
        was filled in: a frame, a path, or a list of these. If `frame` has no column `id`, ids are
        the positions of its rows, from 0, whatever its index is.
      class_names: all classes, in order. Any other label is then an error, and a class may be
        without a row. None takes all labels of the columns.
      text: the column of texts. The classifier then learns from these alone.
      image: the column of paths of pictures. The classifier then learns from these alone.
      encoder: for texts or pictures, the directory of a pretrained encoder, or its name on the
        Hugging Face hub. For pictures it may be your own function, see `mlc_jax.PictureReader`.
      features: columns to learn from; by default all that can be used.
      method: `auto` is `cross_fit`, which also estimates how good its labels are; or the name of
        another method.
      model: `linear`, `mlp` or a tuple of the widths of hidden layers. `auto` is both `linear` and
        `mlp`, combined by what is right in the checked rows; for texts and pictures `linear`.
      num_epochs: passes over the rows; for `cross_fit`, rounds of training. None chooses a number.
      seed: seed of all random numbers.
      workdir: a directory for checkpoints and the report; the same call resumes from there.
      progress: whether to show a progress bar.

    Raises:
      InputError: the frame or a setting is wrong; nothing was started.
      Others: see `mlc_jax.fit`.
    """
    frame = as_frame(frame)
    labels = (label,) if isinstance(label, str) else label
    named = isinstance(labels, list | tuple) and all(isinstance(x, str) for x in labels)
    expect(named and len(labels) > 0, "label", label, "the name of a column, or of several")
    labels = tuple(labels)
    expect(len({*labels}) == len(labels), "label", label, "each column once")
    expect(isinstance(checked, str), "checked", checked, "the name of a column")
    expect(checked not in labels, "label", checked, "another column than that of the checks")
    table = Frame("frame", _renamed(frame, labels, checked))
    classes = named_classes(class_names)
    said = Said(() if len(labels) == 1 else labels, classes=tuple(classes))
    expect(text is None or image is None, "image", image, "None beside text")
    for name in (text, image):
        if name is not None and name not in table.columns():
            table.fail(f"has no column {name!r}, only {table.columns()}")
    kind = memory.TEXT if text is not None else memory.PICTURES if image else memory.TABLE
    settings = settings_of(kind, method, model, seed, encoder, num_epochs)
    tables = [
        str(one) if isinstance(one, str | pathlib.Path) else Frame("checks", one)
        for one in _listed(checks)
    ]
    own: OwnData
    reader = reader_of(settings, encoder)
    read = read_of(settings, reader)
    if read is None:
        own = memory.of_frame(
            table, table_files.Options(tuple(features), None), said=said, checked=tables
        )
    elif text is not None:
        own = memory.of_texts(table, read, text=text, said=said, checked=tables)
    else:
        assert image is not None
        own = memory.of_pictures(table, read, path=image, said=said, checked=tables)
    return train(
        settings, own, kind, reader=reader,
        classes=classes_of(
            own, [frame[name] for name in (*labels, checked) if name in frame], classes
        ),
        frame=frame, workdir=workdir, progress=progress, labels=(*labels, checked),
    )  # fmt: skip


def settings_of(
    kind: str,
    method: str,
    model: Any,
    seed: int,
    encoder: Any,
    num_epochs: int | None = None,
) -> ConfigDict:
    """The config of a run on own data in memory: a preset with the chosen settings.

    Args:
      kind: of the data, see `memory.kind_of`.
      method, model, seed, encoder: see `correct_labels`.
      num_epochs: passes over the rows; for `cross_fit`, rounds. None chooses a number.

    Raises:
      InputError: there is no such method or model, or the encoder is missing or not used.
    """
    settings = importlib.import_module(f"mlc_jax.presets.{kind}").get_config()
    settings.dataset.data = "in memory"
    expect(isinstance(method, str), "method", method, "a name, or auto")
    whole = {"seed": seed, "num_epochs": 1 if num_epochs is None else num_epochs}
    for name, value in whole.items():
        expect(is_whole(value) or isinstance(value, np.integer), name, value, "a whole number")
    is_named = encoder is None or isinstance(encoder, str)
    if kind == memory.PICTURES:
        is_named = is_named or callable(encoder)
    expect(is_named, "encoder", encoder, "a directory or a name")
    is_used = encoder is None or kind in memory.READ
    expect(is_used, "encoder", encoder, "None: only texts and pictures are read by one")
    settings.method = settings.method if method == "auto" else method
    settings.seed = int(seed)
    sizes = widths(model)
    if sizes is not None:
        settings.cross_fit.hidden_sizes = sizes
        settings.model.mlp.hidden_sizes = sizes
    if num_epochs is not None and settings.method == "cross_fit":
        settings.cross_fit.num_rounds = int(num_epochs)
    elif num_epochs is not None:
        settings.num_epochs = int(num_epochs)
    if kind == memory.TEXT:
        expect(encoder is not None, "encoder", encoder, "that of the texts: a directory or a name")
        settings.model.bert.checkpoint = encoder
    if kind == memory.PICTURES:
        expected = "that of the pictures: a directory, a name or a function"
        expect(encoder is not None, "encoder", encoder, expected)
        settings.dataset.encoder = name_of(encoder)
    config.validate(settings)
    starts.check(settings)
    return settings


def widths(model: Any) -> tuple[int, ...] | None:
    """Widths of hidden layers; None leaves the choice to the preset.

    Raises:
      InputError: there is no such model.
    """
    if isinstance(model, str):
        known: dict[str, tuple[int, ...] | None] = {"auto": None, _LINEAR: (), _MLP: (64,)}
        expect(model in known, "model", model, f"{', '.join(known)} or a tuple of widths")
        return known[model]
    expect(
        isinstance(model, tuple | list), "model", model, "auto, linear, mlp or a tuple of widths"
    )
    return tuple(int(x) if isinstance(x, np.integer) else x for x in model)


def reader_of(settings: ConfigDict, encoder: Any) -> Reader | None:
    """The reader of a run on texts or pictures; None for any other run."""
    reader = readers.of_config(settings)
    if isinstance(reader, PictureReader):  # A config has only a function's name.
        return dataclasses.replace(reader, encoder=encoder)
    return reader


def read_of(settings: ConfigDict, reader: Reader | None) -> Callable[..., Source] | None:
    """The function (texts or paths, ids) -> source of inputs; None for a run without a reader."""
    if reader is None or isinstance(reader, PictureReader):
        return None if reader is None else reader.cached
    c = settings.dataset
    tokenizer, encode = c.tokenizer or settings.model.bert.checkpoint, readers.encode_of(settings)
    return text_files.Settings(tokenizer, c.max_length, c.cache_dir, encode).source_maker()


def train(
    settings: ConfigDict, own: OwnData, kind: str, *, classes: np.ndarray, progress: bool,
    frame: Any = None, workdir: str | pathlib.Path | None = None, reader: Reader | None = None,
    labels: Sequence[str] = (),
) -> Result:  # fmt: skip
    """Trains on own data in memory; `labels` names columns that are not features of new rows."""
    from mlc_jax.training.run import build_run

    run = build_run(settings, of_own(own, kind))
    if reader is not None:
        inputs = api.Inputs(reader.kind, reader)
    elif own.columns is not None:
        if own.columns.left_out:
            listed = ", ".join(f"{name!r} ({why})" for name, why in own.columns.left_out)
            logging.warning("Columns that are not learned from: %s.", readable(listed))
        read = functools.partial(api.read_frame, own.columns, sources=labels)
        inputs = api.Inputs("table", read, own.columns)
    else:
        offsets = getattr(own.noisy.source, "offsets", ())
        inputs = api.Inputs("arrays", functools.partial(_read_arrays, offsets=offsets))
    run = dataclasses.replace(run, prefix="")
    return api.train(
        run, inputs, formerly=config.formerly(), workdir=workdir, progress=progress,
        reader=reader, classes=classes, frame=frame, of_all_rows=True,
    )  # fmt: skip


def named_classes(class_names: Any) -> dict[str, Any]:
    """The classes that the user has named, by their text; empty for None.

    Raises:
      InputError: they are no list of names, each once.
    """
    if class_names is None:
        return {}
    is_list = not isinstance(class_names, str | dict) and np.ndim(class_names) == 1
    expect(is_list and len(class_names) > 1, "class_names", class_names, "a list of two or more")
    texts = Frame("class_names", {}).as_texts("class_names", class_names)
    classes = dict(zip(texts, class_names, strict=True))
    alone = len(classes) == len(class_names) and "" not in classes
    expect(alone, "class_names", class_names, "each class once")
    return classes


def classes_of(
    own: OwnData, columns: Sequence[Any], named: Mapping[str, Any] | None = None
) -> np.ndarray:
    """The label of each class as the user wrote it, `[C]`.

    Args:
      own: the data.
      columns: with all labels in the data.
      named: see `named_classes`.
    """
    table = {str(number): column for number, column in enumerate(columns)}
    texts = Frame("labels", {})
    values: dict[str, Any] = dict(named or {})
    for name, column in table.items():
        for text, value in zip(texts.as_texts(name, column), column, strict=True):
            values.setdefault(text, value)
    there = [values[x] for x in own.class_names if x in values]
    if all(isinstance(x, int | np.integer) and not isinstance(x, bool) for x in there):
        # A class that only a file of checks has is a text there.
        new = [x for x in own.class_names if x not in values]
        values |= {x: int(x) for x in new if x.removeprefix("-").isdecimal()}
    return np.asarray([values.get(name, name) for name in own.class_names])


def _read_arrays(x: Any, *, offsets: Offsets) -> Source:
    return ArraySource(memory.inputs_of(x, offsets))


def _renamed(frame: Any, labels: Sequence[str], checked: str) -> dict[str, Any]:
    """Columns under the names of files, `label` and `checked_label`."""
    original = Frame("frame", frame)
    for name in labels:
        if name not in original.columns():
            original.fail(f"has no column {name!r}, only {original.columns()}")
    if checked not in original.columns():
        check_near_misses(original)
        if checked != "checked_label":
            original.fail(f"has no column {checked!r}, only {original.columns()}")
    new = {checked: "checked_label"} | ({labels[0]: "label"} if len(labels) == 1 else {})
    hidden = set(new.values()) - set(new)  # Columns that have our names are ignored.
    there = [name for name in frame if str(name) not in hidden]
    columns = {new.get(str(name), str(name)): frame[name] for name in there}
    # Nobody has checked a row if there is no such column.
    return {"checked_label": np.full(len(original), "")} | columns


def _listed(checks: Any) -> list[Any]:
    if checks is None:
        return []
    return list(checks) if isinstance(checks, list | tuple) else [checks]
