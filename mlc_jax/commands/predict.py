"""`mlc-jax predict RUN NEW`: labels new examples with a trained run.

The run must have ended; its training data are not needed. NEW is like the run's own files, without
labels: an .npz or .npy of inputs; a table (.csv, .tsv, .jsonl or .parquet) with the columns of the
features, the `text` or the `path` of a picture, and maybe an `id`; or a directory of pictures. All
files except .npz are read in parts, so they need not fit into memory. The output has a row for each
example: id, label, confidence, and the probability of each class. RUN, NEW and the output may be in
a bucket (gs://BUCKET/NAME).
"""

import contextlib
import csv
import json
import os
import pathlib
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from etils import epath

from mlc_jax import paths
from mlc_jax.config import column_names
from mlc_jax.errors import InputError
from mlc_jax.files.tables import ENDINGS, Table
from mlc_jax.report.steps import shown_path
from mlc_jax.workdir.described import is_opened

if TYPE_CHECKING:
    from mlc_jax.api import Result
    from mlc_jax.commands.new_examples import Opened

_FIRST = ("id", "label", "confidence")
_HEADER_SIZE = 10**6  # Characters of the first line that are looked at.
_INPUTS_FILE = "inputs.json"  # In RUN/predictions: the input of each file there.
_CONFIG_FILE, _DATASET_FILE = "config.json", "dataset.json"
_ENDED = (_CONFIG_FILE, _DATASET_FILE, "results.json")


def predict(
    run: str, new: str, output: str = "", *, batch_size: int = 1000, progress: bool = True
) -> None:
    """Writes a table of predictions.

    Args:
      run: directory of a run that has ended.
      new: file or directory of examples.
      output: CSV file to write; "" is `RUN/predictions/NEW.csv`, where predictions of
        another file of that name stay.
      batch_size: examples at once, over all devices.
      progress: whether to draw a progress bar.

    Raises:
      InputError: a bad file or run; nothing was written.
    """
    if batch_size < 1:
        raise InputError(f"--batch_size: got {batch_size}, expected at least 1")
    examples = paths.local(new, "NEW")
    if not examples.exists():
        raise InputError(f"NEW: no file {new!r}; expected one of examples")
    place = paths.absolute(output, "--output") if output else None
    if place is not None and not paths.is_remote(place):
        place = epath.Path(os.path.realpath(place))  # A link stays a link.
        _check_place(pathlib.Path(place), examples)
    names = _names(paths.absolute(run, "RUN"), run)
    if place is None:
        place = _beside(run, examples)
        if not paths.is_remote(place) and place.parent.is_dir():
            place = epath.Path(os.path.realpath(place))
            _check_place(pathlib.Path(place), examples)
        _check_same(place, new)
    _check_columns(paths.absolute(run, "RUN"), str(examples), names)
    from mlc_jax import api
    from mlc_jax.commands.new_examples import open_examples

    result = api.load(run, labels=False)
    opened = open_examples(result, str(examples), names)
    with _written_whole(place) as whole, whole.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        number = _write(result, opened, table, batch_size=batch_size, progress=progress)
    if not output:
        known = _inputs(place) | {place.name: paths.whole(new)}
        paths.write(place.parent / _INPUTS_FILE, json.dumps(known, indent=2).encode())
    print(f"{number} predictions in {shown_path(place)}")


def _names(path: epath.Path, run: str) -> dict[str, str]:
    """From our names of columns to those of the run's files.

    Raises:
      InputError: it is no run that has ended.
    """
    paths.check_regular(path, "RUN", is_opened)
    for name in _ENDED:
        if not (path / name).exists():
            raise InputError(
                f"RUN: no finished run in {run!r}, which lacks {name}; expected the directory of "
                "a run that has ended (run an older one's command again to bring it up to date)"
            )
    try:
        described = json.loads((path / _CONFIG_FILE).read_text())
        return column_names(described.get("dataset", {}).get("columns"))
    except (ValueError, AttributeError) as error:
        raise InputError(f"RUN: {str(path / _CONFIG_FILE)!r} cannot be read ({error})") from error


def _check_columns(run: epath.Path, path: str, names: dict[str, str]) -> None:
    """Raises InputError where a table lacks columns, before JAX is imported."""
    if paths.is_remote(run):
        return
    try:
        stored = json.loads((run / _DATASET_FILE).read_bytes())["columns"]
        columns = [column["name"] for column in stored]
    except (OSError, ValueError, KeyError, TypeError):
        return  # No table, or damaged: then loading the run raises the error.
    if path.lower().endswith(ENDINGS):
        next(Table("NEW", path, names=names).rows([], [], columns), None)


def _beside(run: str, examples: pathlib.Path) -> epath.Path:
    """The default file of predictions."""
    directory = paths.absolute(run, "RUN") / "predictions"
    with contextlib.suppress(OSError):  # Writing the file raises the error.
        directory.mkdir(parents=True, exist_ok=True)
    return directory / f"{examples.stem}.csv"


def _check_same(place: epath.Path, new: str) -> None:
    """Raises InputError if the default file has predictions of another file of the same name."""
    before = _inputs(place).get(place.name, paths.whole(new))
    if before != paths.whole(new) and place.exists():
        raise InputError(
            f"--output: {shown_path(place)} has the predictions of {before!r}; expected another "
            f"file for those of {new!r}, --output=FILE"
        )


def _inputs(place: epath.Path) -> dict[str, str]:
    """The inputs of all files of predictions in the directory of `place`, by their names."""
    try:
        found = json.loads((place.parent / _INPUTS_FILE).read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}  # There is none, or it is damaged.
    return found if isinstance(found, dict) else {}


def _check_place(output: pathlib.Path, examples: pathlib.Path) -> None:
    """Raises InputError if writing `output` would overwrite anything but older predictions."""
    if not output.parent.is_dir():
        raise InputError(
            f"--output: no directory {str(output.parent)!r}; expected one to write {output.name} to"
        )
    if output.exists() and not output.is_file():
        raise InputError(
            f"--output: {str(output)!r} is a directory or a device; expected a file to write"
        )
    if output.exists() and output.samefile(examples):
        raise InputError(f"--output: {str(output)!r} is NEW; expected another file")
    if output.exists() and output.stat().st_size:
        with output.open("rb") as file:
            header = file.readline(_HEADER_SIZE).decode(errors="replace").strip().split(",")
        if header[:3] != [*_FIRST] or not all(x.strip('"').startswith("p_") for x in header[3:]):
            raise InputError(
                f"--output: {str(output)!r} is there, and holds no predictions, or more than "
                "those; expected a new file, or older predictions to be replaced"
            )


@contextlib.contextmanager
def _written_whole(output: epath.Path) -> Iterator[pathlib.Path]:
    """A local file that becomes `output` at the end."""
    if paths.is_remote(output):
        with tempfile.TemporaryDirectory() as directory:
            place = pathlib.Path(directory) / output.name
            yield place
            paths.write(output, place.read_bytes())
        return
    # A temporary directory, because a file called OUT.partial may be somebody's.
    try:
        created = tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent)
    except OSError as error:
        raise InputError(
            f"--output: cannot write to {str(output.parent)!r} ({error.strerror}); expected a file "
            "in a directory that this user may write to"
        ) from error
    with created as directory:
        place = pathlib.Path(directory) / output.name
        yield place
        place.replace(output)


def _write(
    result: "Result", opened: "Opened", table: Any, *, batch_size: int, progress: bool
) -> int:
    """Returns how many examples were predicted."""
    from tqdm import tqdm

    from mlc_jax.files.values.names import for_spreadsheet

    names = [for_spreadsheet(str(name)) for name in result.classes]
    table.writerow([*_FIRST, *(f"p_{name}" for name in result.classes)])
    number = 0
    with tqdm(total=opened.size, unit=" examples", disable=not progress) as bar:
        for ids, source in opened.chunks:
            probs = result.predict_source(source, batch_size=batch_size)
            best = probs.argmax(axis=1)
            table.writerows(
                [for_spreadsheet(name), names[i], f"{row[i]:.6f}", *(f"{p:.6f}" for p in row)]
                for name, i, row in zip(ids, best.tolist(), probs.tolist(), strict=True)
            )
            bar.update(len(ids))
            number += len(ids)
    return number
