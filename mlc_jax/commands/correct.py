"""`mlc-jax correct FILE`: detects the kind of file, and corrects its labels round by round."""

import functools
import importlib
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from mlc_jax import config as settings_
from mlc_jax import paths
from mlc_jax.commands import kinds, overrides, unasked
from mlc_jax.config import starts
from mlc_jax.errors import ExitCode, InputError
from mlc_jax.files.tables import ENDINGS, Table
from mlc_jax.report.steps import shown_path

if TYPE_CHECKING:
    from mlc_jax.commands import rounds
    from mlc_jax.files.label_columns import Said
    from mlc_jax.files.own import LabelledFile

# Names of settings on this command line.
WORDS = {
    "dataset.data": "FILE",
    "dataset.checked": "--checks",
    "dataset.clean": "--clean",
    "dataset.label_columns": "--label",
    "dataset.votes": "--votes",
    "model.bert.checkpoint": "--encoder",
    "dataset.encoder": "--encoder",
}
_FIRST = """\
No label of {file} is checked, so nothing shows which of them are wrong. Nothing was trained.

{see}{number} rows, drawn at random, are in {to_check}. Fill in checked_label with the right
label, also where the given one is right. Skip rows that you cannot tell. Save the file in place, as
CSV, and run the same command again:

  {again}
"""


class Options(NamedTuple):
    """The options of the command.

    Attributes:
      file: the file with the labels.
      label: columns of labels; empty means `label`, or all `label_*`.
      columns: from our name of a column to the file's.
      checks: files with more checked labels.
      votes: a file of labels by source.
      clean: a directory of pictures whose labels are right.
      encoder: for texts or pictures.
      out: output directory; "" is next to the file.
      settings: more settings, such as `dataset.drawn=random`.
      again: the whole command, as typed.
      progress: whether to show a progress bar.
    """

    file: str
    label: tuple[str, ...] = ()
    columns: dict[str, str] = {}  # noqa: RUF012
    checks: str | None = None
    votes: str | None = None
    clean: str | None = None
    encoder: str | None = None
    out: str = ""
    settings: tuple[str, ...] = ()
    again: str = ""
    progress: bool = True


def told(options: Options) -> Callable[[str], str]:
    """A function that puts messages into the words of the command line."""
    whole = paths.whole(options.file)

    def tell(text: str) -> str:
        text = text.replace(whole, options.file).replace("--workdir", "--out")
        return overrides.told(text.replace("another workdir", "another --out"), WORDS)

    return tell


def correct(options: Options) -> int:
    """Trains the round that is due, and prints what to do next.

    Returns:
      An exit code: BAD_INPUT if no row is checked, so that nothing was trained.

    Raises:
      InputError: a bad file or setting; nothing was started.
      Others: see `train.train_and_evaluate`.
    """
    out = out_of(options)
    config, kind = create_config(options)
    from mlc_jax.benchmarks import datasets
    from mlc_jax.commands import rounds  # It may import JAX.

    file = _labels_of(kind, config, options)
    cells = functools.partial(_cells, file, kind, config)
    checks = overrides.listed(config.dataset.checked)
    done = rounds.Rounds(out, checks)
    done.check_file(file.path)
    new = done.take_up(file, cells)
    if new:
        logging.info("New answers: %d; all answers are in %s.", new,
                     shown_path(out / rounds.ANSWERS_FILE))  # fmt: skip
    number = done.newest
    if number == 0 and not (rounds.is_checked(file) or checks or done.standing(file)):
        code = _start(done, file, kind, config, options)
        done.remember(1, file, cells)
        return code
    if number and not done.has_ended(number):
        logging.info("Resuming round %d.", number)
    elif number and done.is_known(number, file, checks):
        logging.info("Round %d has ended, and there is no new check.", number)
    else:
        number += 1
        if number == 1 and not done.standing(file) and kind in datasets.READ_AT_ONCE:
            datasets.load(config)  # What is wrong is said before JAX is imported.
        done.begin(number, file, checks)
        if number > 1:
            logging.info("Round %d, in %s.", number, shown_path(done.directory(number)))
    used = done.directory(number) / rounds.USED_FILE
    checks = [*checks, str(used)] if used.exists() else checks
    config.dataset.checked = ",".join(checks) or None
    try:
        code = _train(config, done.directory(number), options)
    except InputError:
        done.take_back(number)
        raise
    done.remember(number, file, cells)
    return code


def create_config(options: Options) -> tuple[ConfigDict, str]:
    """The config for a file, and the kind of file.

    Raises:
      InputError: no such file or column, or a wrong setting.
    """
    if not options.file:
        raise InputError("FILE: is empty, expected a file or a directory of pictures")
    named = {ours: theirs for ours, theirs in options.columns.items() if theirs}
    if len(options.label) == 1:
        named["label"] = options.label[0]
    kind, columns = _kind(options, named)
    module = importlib.import_module(f"mlc_jax.presets.{kind}")
    config = module.get_config()
    c = config.dataset
    c.data = paths.whole(options.file)
    c.columns = ",".join(f"{ours}={theirs}" for ours, theirs in columns.items()) or None
    c.label_columns = ",".join(options.label) if len(options.label) > 1 else None
    c.votes, c.checked = options.votes, options.checks
    if options.encoder is not None:
        if kind == "text":
            config.model.bert.checkpoint = options.encoder
        elif kind == "image_folder":
            c.encoder = options.encoder
        else:
            raise InputError(
                f"--encoder: got {options.encoder!r}, expected none with {options.file!r}: it is "
                "for texts and pictures"
            )
    if options.clean is not None:
        if kind != "image_folder":
            raise InputError(
                f"--clean: got {options.clean!r}, expected none with {options.file!r}: it is for "
                "pictures; a table has a column checked_label"
            )
        c.clean = paths.whole(options.clean)
    config = overrides.applied(config, options.settings)
    if kind == "image_folder" and not c.encoder and config.method == "cross_fit":
        raise unasked.without_encoder(config)
    settings_.validate(config)
    if c.checked is not None and not all(c.checked.split(",")):
        raise InputError(f"--checks: got {c.checked!r}, expected FILE[,FILE...]")
    starts.check(config)
    return config, kind


def out_of(options: Options) -> epath.Path:
    """The directory of the rounds."""
    if options.out:
        out = paths.absolute(options.out, "--out")
    else:
        whole = paths.whole(options.file).rstrip("/")
        out = epath.Path(os.path.splitext(whole)[0] + ".mlc")
    if str(out) == paths.whole(options.file).rstrip("/"):
        raise InputError(
            f"FILE: {options.file!r} is the directory of the output; expected the file, or the "
            "directory of pictures, whose labels are to be corrected"
        )
    paths.check_no_pattern(out, "--out")
    if "," in str(out):
        raise InputError(f"--out: got {str(out)!r}, expected a path without a comma")
    return out


def _kind(options: Options, named: dict[str, str]) -> tuple[str, dict[str, str]]:
    """The kind of file, and its names of our columns."""
    for ours, theirs in named.items():
        if "," in theirs or "=" in theirs:
            raise InputError(
                f"--{kinds.option(ours)}: got {theirs!r}, expected a name without , and ="
            )
    checked = named.get("checked_label", "checked_label")
    if checked in (named.get("label", "label"), *options.label):
        raise InputError(
            f"--label: {checked!r} is the column of checked labels; expected that of the labels as "
            "given"
        )
    kind = kinds.kind_of(paths.whole(options.file), named)
    if pathlib.Path(options.file).suffix.lower() in ENDINGS:
        kinds.check_labels(paths.whole(options.file), named, options.label, bool(options.votes))
    chosen = [x.partition("=")[2] for x in options.settings if x.startswith("dataset.name=")]
    if chosen and chosen[-1] in settings_.OWN_FILES:
        return chosen[-1], kind.columns if chosen[-1] == kind.name else named
    return kind.name, {ours: theirs for ours, theirs in kind.columns.items() if ours != theirs}


def _said(config: ConfigDict, options: Options) -> "Said":
    from mlc_jax.files.label_columns import Said

    names = settings_.column_names(config.dataset.columns)
    labels = options.label if len(options.label) > 1 else ()
    classes = tuple(x.strip() for x in overrides.listed(config.dataset.class_names))
    return Said(labels, options.votes, tuple(names.items()), classes)


def _labels_of(kind: str, config: ConfigDict, options: Options) -> "LabelledFile":
    from mlc_jax.files import arrays, image_folder
    from mlc_jax.files.label_columns import read_labels

    said, path = _said(config, options), config.dataset.data
    if kind == "arrays":
        return arrays.read_labels(path, said)
    if kind == "image_folder":
        return image_folder.read_labels(path, said, config.dataset.clean)
    return read_labels(said.table(kinds.FIELD, path), said)


def _start(
    done: "rounds.Rounds", file: "LabelledFile", kind: str, config: ConfigDict, options: Options
) -> int:
    """Writes the first rows to check."""
    from mlc_jax.commands import rounds
    from mlc_jax.data.show import show
    from mlc_jax.files.values import together
    from mlc_jax.report import to_check

    if not file.class_names:
        file.fail("has no label in any row; expected some to correct")
    together.check_classes({"data": file}, file.class_names)
    if kind == "table":
        _check_features(config, options)
    place = done.out / to_check.FILE
    see = ""
    if kind == "image_folder":
        see = f"To see the pictures, open {shown_path(done.out / to_check.PAGE)}.\n"
    if not place.exists() or not _num_rows(place):
        rounds.make(done.out)
        table, shown, rows = rounds.first_to_check(
            file, lambda rows: _show(file, kind, config, rows)
        )
        if kind == "image_folder":
            pictures = show(file.create_source(), np.array(rows))
            paths.write(done.out / to_check.PAGE, to_check.page(shown, pictures))
        paths.write(place, table)
    print(
        _FIRST.format(
            file=options.file,
            number=_num_rows(place),
            to_check=shown_path(place),
            again=options.again,
            see=see,
        ),
        end="",
    )
    return ExitCode.BAD_INPUT


def _num_rows(place: epath.Path) -> int:
    return sum(1 for _ in Table("--out", str(place)).rows(["id"]))


def _check_features(config: ConfigDict, options: Options) -> None:
    """Raises InputError where a table could not be learned from, before people check its rows."""
    from mlc_jax.files import table_files

    c, said = config.dataset, _said(config, options)
    features = tuple(overrides.listed(c.features))
    table_files.of_tables(
        {"data": said.table(kinds.FIELD, c.data)}, table_files.Options(features, c.standardize),
        said=said, needs_checks=False,
    )  # fmt: skip


def _show(
    file: "LabelledFile", kind: str, config: ConfigDict, rows: Sequence[int]
) -> dict[str, list[str]]:
    """Columns that show a row to a reader, in addition to its id."""
    from mlc_jax.files.pictures import places_of

    if kind == "image_folder":
        source: Any = file.create_source()
        found = places_of(source.store, np.array(rows))
        return {} if found is None else {"path": found}
    if not config.dataset.data.lower().endswith(ENDINGS):
        return {}
    cells = _written(config, rows)
    if kind == "text":
        text = settings_.column_names(config.dataset.columns).get("text", "text")
        return {"example": [row[text] for row in cells]}
    if len(cells[0]) == 1:
        return {"example": [text for row in cells for text in row.values()]}
    return {"example": [", ".join(f"{x}={text}" for x, text in row.items()) for row in cells]}


def _cells(
    file: "LabelledFile", kind: str, config: ConfigDict, rows: Sequence[int]
) -> list[dict[str, str]]:
    """What stands in rows that have no ids, without their labels; see `Rounds.remember`."""
    if kind != "arrays":
        return _written(config, rows) if rows else []
    from mlc_jax.data.source import read_rows

    inputs = read_rows(file.create_source(), np.array(rows, np.int64))
    return [{"inputs": np.asarray(x).tobytes().hex()} for x in inputs]


def _written(config: ConfigDict, rows: Sequence[int]) -> list[dict[str, str]]:
    """Cells of rows of a table, by column, except those of labels and ids."""
    from mlc_jax.files.label_columns import NAMES, ONE_EACH, WRITTEN

    c, names = config.dataset, settings_.column_names(config.dataset.columns)
    written = (fields for fields, _ in Table(kinds.FIELD, c.data).as_written() if fields)
    header = next(written)
    hidden = {*NAMES, *WRITTEN, *names.values(), *(c.label_columns or "").split(",")}
    hidden -= {names.get("text", "text")}
    hidden |= {x for x in header if x.startswith(ONE_EACH) and "label" not in header}
    wanted = {*rows}
    found = {row: fields for row, fields in enumerate(written) if row in wanted}
    return [
        {x: text for x, text in zip(header, found[row], strict=True) if x not in hidden}
        for row in rows
    ]


def _train(config: ConfigDict, directory: epath.Path, options: Options) -> int:
    from mlc_jax.commands import train

    results = train.train_and_evaluate(
        config, str(directory), show_progress=options.progress, again=options.again
    )
    print(results["table"])
    return ExitCode.DONE
