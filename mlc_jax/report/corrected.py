"""The labels of all rows of a user's file, and that file with them: `corrected.csv`."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mlc_jax.config import OWN_FILES, column_names
from mlc_jax.data.source import UNKNOWN, Subset
from mlc_jax.data.votes import is_changed
from mlc_jax.files.tables import ENDINGS, Table
from mlc_jax.files.values.names import for_spreadsheet
from mlc_jax.report.to_check import csv_of
from mlc_jax.training.evaluate import Prediction
from mlc_jax.training.run import Run

# Columns that are added to each row of a user's file.
ADDED = ("corrected_label", "confidence", "label_quality", "is_label_issue")


class Corrected(NamedTuple):
    """Labels of N rows, including checked ones.

    Attributes:
      corrected_label: `[N]` int32, numbers of classes; UNKNOWN for a row without a result.
      confidence: `[N]` float32, probability of the corrected label; NaN if there is none.
      label_quality: `[N]` float32, probability that the given label is right; NaN if there is none.
      is_label_issue: `[N]` bool, whether the given label is another than the corrected one.
      soft_label: `[N, C]` float32, probabilities of the classes; NaN if there are none.
    """

    corrected_label: np.ndarray
    confidence: np.ndarray
    label_quality: np.ndarray
    is_label_issue: np.ndarray
    soft_label: np.ndarray

    def texts(self, class_names: Sequence[str]) -> list[tuple[str, str, str, str]]:
        """The columns `ADDED` of each row, as text for a file; unknown values are empty."""
        return [self.text_of(row, class_names) for row in range(len(self.corrected_label))]

    def text_of(self, row: int, class_names: Sequence[str]) -> tuple[str, str, str, str]:
        """The same of one row."""
        label, confidence, quality, issue = (column[row] for column in self[: len(ADDED)])
        return (
            "" if label == UNKNOWN else str(class_names[label]),
            "" if label == UNKNOWN else f"{confidence:.6f}",
            "" if np.isnan(quality) else f"{quality:.6f}",
            "" if np.isnan(quality) else str(issue),
        )


def of_all_rows(
    size: int,
    exported: Subset,
    soft_labels: np.ndarray,
    label_quality: np.ndarray,
    checked: Sequence[Subset] = (),
) -> Corrected:
    """Labels of all rows of one source, in its order.

    A checked row has its checked label, with confidence 1. Its label quality is 1 or 0.

    Args:
      size: N, rows of the source.
      exported: doubtful rows.
      soft_labels: `[n, C]`, of these.
      label_quality: `[n]`, of their given labels; NaN if there is none.
      checked: rows that somebody checked: to learn from, to choose by, to judge by.
    """
    label = np.full(size, UNKNOWN, np.int32)
    soft = np.full((size, soft_labels.shape[1]), np.nan, np.float32)
    quality = np.full(size, np.nan, np.float32)
    issue = np.zeros(size, bool)
    rows, corrected = exported.rows, soft_labels.argmax(axis=-1)
    label[rows], soft[rows] = corrected, soft_labels
    quality[rows], issue[rows] = label_quality, is_changed(corrected, exported.given)
    for part in checked:
        label[part.rows], soft[part.rows] = part.truth, np.eye(soft.shape[1])[part.truth]
        is_known, is_right = part.given != UNKNOWN, part.given == part.truth
        quality[part.rows] = np.where(is_known, is_right, np.float32(np.nan))
        issue[part.rows] = is_known & ~is_right
    return Corrected(label, soft.max(axis=1), quality, issue, soft)


def added_names(header: Sequence[str]) -> list[str]:
    """The names of `ADDED` in a table with these columns: `mlc_NAME` where the table has a NAME.

    A table with all of them has them from an earlier run. They keep their names then.
    """
    ours = [f"mlc_{x}" if f"mlc_{x}" in header else x for x in ADDED]
    if {*ours} <= {*header}:
        return ours
    return [f"mlc_{x}" if x in header else x for x in ADDED]


def add_to_table(
    path: str, cells: Callable[[str], Sequence[str] | None], identifier: str | None
) -> bytes:
    """A user's table with `ADDED` as its last columns, as CSV.

    Rows, their order, and the text of all cells of a `.csv` stay as they are. A file with all of
    these columns has them from an earlier run: their cells are replaced. See `added_names`.

    Args:
      path: of a `.csv`, `.jsonl` or `.parquet` file.
      cells: id of a row -> the cells to add; None for empty ones.
      identifier: column of the ids; None if ids are row numbers, from 0.
    """
    table = Table("--", path)
    written = table.as_written()
    header, raw = next(x for x in written if x[0])
    place = None if identifier is None else header.index(identifier)
    ours = added_names(header)
    again = {*ours} <= {*header}
    # Encoded line by line: a text of a large file, and its bytes, would be in memory twice.
    encoded = io.BytesIO()
    text = io.TextIOWrapper(encoded, "utf-8", newline="")
    number, nothing = 0, ("",) * len(ADDED)
    between = table.separator if path.lower().endswith((".csv", ".tsv")) else ","
    whole = csv.writer(text, delimiter=between, lineterminator="\n")
    rest = csv.writer(text, delimiter=between, lineterminator="")

    def write(fields: list[str], raw: str | None, added: Sequence[str]) -> None:
        added = [for_spreadsheet(x) for x in added]
        if again:
            new = dict(zip(ours, added, strict=True))
            whole.writerow(new.get(x, field) for x, field in zip(header, fields, strict=True))
        elif raw is None:
            whole.writerow([*map(for_spreadsheet, fields), *added])
        else:
            line = raw.rstrip("\r\n")
            text.write(f"{line}{between}")
            rest.writerow(added)
            text.write(raw[len(line) :] or "\n")

    write(header, raw, ours)
    for fields, raw in written:
        if not fields:
            continue  # A blank line is not a row.
        name = str(number) if place is None else fields[place]
        write(fields, raw, cells(name) or nothing)
        number += 1
    text.flush()
    return encoded.getvalue()


def is_of_own_files(run: Run) -> bool:
    """Whether a run is on a user's files with some checked labels."""
    name = run.description.get("dataset", {}).get("name")  # From the command; `fit` has none.
    return name in OWN_FILES and run.dataset.noise == "given"


def of_run(run: Run, of_noisy: Prediction) -> bytes | None:
    """The user's file with corrected labels, as CSV; None for benchmarks.

    For arrays and directories of pictures it has only ids and `ADDED`. Of two files it is the
    doubtful one.
    """
    if not is_of_own_files(run):
        return None
    c = run.description["dataset"]
    dataset, source = run.dataset, run.exported.source
    checked = [] if c["noisy"] else [dataset.clean, dataset.validation]
    checked += [] if c["noisy"] or c["test"] else [dataset.test]
    said = of_all_rows(
        len(source), run.exported, of_noisy.soft_labels, of_noisy.label_quality,
        [part for part in checked if part is not None],
    )  # fmt: skip
    ids = source.ids(np.arange(len(source))).tolist()
    path = c["noisy"] or c["data"]
    if c["name"] == "arrays" or not path.lower().endswith(ENDINGS):
        return _of_ids(ids, said.texts(dataset.class_names))
    names = column_names(c.get("columns"))
    header = Table("--", path).header()
    known_by = ("id", "path") if c["name"] == "image_folder" else ("id",)
    columns = [names.get(name, name) for name in known_by]
    identifier = next((name for name in columns if name in header), None)
    places = {name: row for row, name in enumerate(ids)}

    def cells(name: str) -> Sequence[str] | None:
        # Texts of all rows would be many small objects: most of the memory of a large table.
        row = places.get(name)
        return None if row is None else said.text_of(row, dataset.class_names)

    return add_to_table(path, cells, identifier)


def _of_ids(ids: Sequence[str], said: Sequence[Sequence[str]]) -> bytes:
    columns = dict(zip(ADDED, zip(*said, strict=True), strict=True))
    return csv_of({"id": ids, **columns})
