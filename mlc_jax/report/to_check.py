"""`to_check.csv`: rows for a person to look at, with a column to fill in."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath

from mlc_jax.files.values.checks import random_order
from mlc_jax.files.values.names import for_spreadsheet
from mlc_jax.report import pieces

FILE, PAGE = "to_check.csv", "to_check.html"
NUM_FIRST = 60  # Rows if none is checked yet.
NUM_RANDOM, NUM_UNCERTAIN = 30, 70  # Rows after a run.
UNCERTAIN = "uncertain"  # Why a row is there, if it was not drawn at random.


def drawn_at_random(ids: np.ndarray, number: int) -> np.ndarray:
    """Positions of rows to check at random: the first ones in `random_order`.

    Each round takes the next ones of the same order, so all rounds are one random sample.
    """
    return np.argsort(random_order(ids), kind="stable")[:number]


def table(shown: Mapping[str, Sequence[Any]], why: Sequence[str]) -> bytes:
    """The file, CSV.

    Args:
      shown: the columns that a reader sees of each row, with `id`.
      why: why each row is there: `random`, or another reason.
    """
    return csv_of({**shown, "why": why, "checked_label": [""] * len(why)})


def page(shown: Mapping[str, Sequence[Any]], examples: Sequence[str | np.ndarray]) -> bytes:
    """The rows to check as HTML, for people who want to see them.

    Args:
      shown: as for `table`.
      examples: pictures, see `show`.
    """
    columns = {"id": shown["id"], "given_label": shown["given_label"]}
    pictures = [f'<div class="example">{pieces.example(x)}</div>' for x in examples]
    rows = zip(pictures, *([*map(pieces.text, x)] for x in columns.values()), strict=True)
    head = f"<h1>Rows to check</h1><p>Fill in checked_label in <code>{FILE}</code>.</p>"
    return pieces.document(
        "Rows to check", [head, pieces.table(["picture", *columns], [*map(list, rows)])]
    )


def is_filled_in(file: epath.Path) -> bool:
    """Whether somebody has begun to fill in a `to_check.csv`: then it must not be overwritten.

    A file that cannot be read, or that a program has saved in another form, counts as filled in.
    """
    if not file.exists():
        return False
    try:
        content = file.read_bytes()
    except OSError:  # Reading it raises the error.
        return True
    text = io.StringIO(content.decode("utf-8-sig", "replace"), newline="")
    try:
        rows = csv.DictReader(text)
        if "checked_label" not in (rows.fieldnames or ()):
            return True
        return any((row["checked_label"] or "").strip() for row in rows)
    except csv.Error:  # Reading it raises the error.
        return True


def csv_of(columns: Mapping[str, Sequence[Any]]) -> bytes:
    """Columns of equal length as CSV; texts are escaped, so that no spreadsheet runs a formula."""
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        rows.writerow([for_spreadsheet(x) if isinstance(x, str) else x for x in row])
    return text.getvalue().encode()
