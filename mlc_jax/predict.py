"""Predicts the labels of new examples with what a run has learned.

    python -m mlc_jax.predict --workdir=runs/own --input=new.csv --output=predictions.csv

The workdir is that of a run that has ended; nothing of its training data is needed. The input is
like the run's own files, without labels: an .npz or .npy of inputs, a .csv, .jsonl or .parquet with
the columns of the features, or with `text`, and maybe an `id`; or a directory of pictures, or a
table with their `path`. Of all but an .npz, a part is
in memory at a time. The output has a row for each example: id, label, confidence, and the
probability of each class. All three may be in a bucket (gs://BUCKET/NAME).
"""

import contextlib
import csv
import pathlib
import tempfile
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from absl import flags

from mlc_jax import command_line, paths
from mlc_jax.errors import InputError

if TYPE_CHECKING:
    from etils import epath

    from mlc_jax.api import Result
    from mlc_jax.commands.new_examples import Opened

_WORKDIR = flags.DEFINE_string("workdir", "", "Directory of a run that has ended.")
_INPUT = flags.DEFINE_string("input", "", "File of examples without labels.")
_OUTPUT = flags.DEFINE_string("output", "", "CSV file to write.")
_BATCH_SIZE = flags.DEFINE_integer("batch_size", 1000, "Examples at once, over all devices.", 1)
_PROGRESS = flags.DEFINE_bool("progress", True, "Draw a progress bar.")


def main() -> None:
    examples = paths.local(_INPUT.value, "--input")
    if not examples.exists():
        raise InputError(f"--input: no file {_INPUT.value!r}; expected one of examples")
    output = paths.absolute(_OUTPUT.value, "--output")
    if not paths.is_remote(output):
        _check_place(pathlib.Path(output), examples)
    from mlc_jax import api
    from mlc_jax.commands.new_examples import open_examples

    result = api.load(_WORKDIR.value)
    opened = open_examples(result, str(examples))
    with _written_whole(output) as place, place.open("w", encoding="utf-8", newline="") as file:
        _write(result, opened, csv.writer(file, lineterminator="\n"))
    print(f"{opened.size} predictions in {output}")


def _check_place(output: pathlib.Path, examples: pathlib.Path) -> None:
    """Raises InputError unless writing `output` loses nothing but predictions of before."""
    if not output.parent.is_dir():
        raise InputError(
            f"--output: no directory {str(output.parent)!r}; expected one to write {output.name} to"
        )
    if output.exists() and not output.is_file():
        raise InputError(
            f"--output: {str(output)!r} is a directory or a device; expected a file to write"
        )
    if output.exists() and output.samefile(examples):
        raise InputError(f"--output: {str(output)!r} is --input; expected another file")


@contextlib.contextmanager
def _written_whole(output: "epath.Path") -> Iterator[pathlib.Path]:
    """A file of this machine that becomes `output` at the end."""
    if paths.is_remote(output):
        with tempfile.TemporaryDirectory() as directory:
            place = pathlib.Path(directory) / output.name
            yield place
            paths.write(output, place.read_bytes())
        return
    # A directory of its own: whatever else is called OUT.partial is somebody's.
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as directory:
        place = pathlib.Path(directory) / output.name
        yield place
        place.replace(output)


def _write(result: "Result", opened: "Opened", table: Any) -> None:
    from tqdm import tqdm

    from mlc_jax.files.label_columns import for_spreadsheet

    names = [for_spreadsheet(str(name)) for name in result.classes]
    table.writerow(["id", "label", "confidence", *(f"p_{name}" for name in result.classes)])
    with tqdm(total=opened.size, unit=" examples", disable=not _PROGRESS.value) as bar:
        for ids, source in opened.chunks:
            probs = result.predict_source(source, batch_size=_BATCH_SIZE.value)
            best = probs.argmax(axis=1)
            table.writerows(
                [for_spreadsheet(name), names[i], f"{row[i]:.6f}", *(f"{p:.6f}" for p in row)]
                for name, i, row in zip(ids, best.tolist(), probs.tolist(), strict=True)
            )
            bar.update(len(ids))


if __name__ == "__main__":
    command_line.run(main, required=["workdir", "input", "output"])
