"""`to_check.csv`: rows for a person to look at, with a column to fill in."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath

from mlc_jax.data.folds import RANDOM
from mlc_jax.data.source import UNKNOWN
from mlc_jax.files.values.checks import random_order
from mlc_jax.files.values.names import for_spreadsheet
from mlc_jax.report import pieces

FILE, PAGE = "to_check.csv", "to_check.html"
NUM_FIRST = 60  # Rows if none is checked yet.
NUM_ROWS, NUM_RANDOM = 100, 30  # Rows after a run; more random ones if they show something.
NUM_OF_CLASS, MOST_OF_CLASSES = 5, 30  # Rows of a class without a check, and of all such classes.
UNCERTAIN = "uncertain"  # Why a row is there, if it was not drawn at random.
NO_CHECK = "no check of this class"


def drawn_at_random(ids: np.ndarray, number: int) -> np.ndarray:
    """Positions of rows to check at random: the first ones in `random_order`.

    Each round takes the next ones of the same order, so all rounds are one random sample.
    """
    return np.argsort(random_order(ids), kind="stable")[:number]


class Chosen(NamedTuple):
    """Positions of rows to check, and why each is there; first those drawn at random.

    Attributes:
      rows: `[n]`.
      why: n texts, `random` or another reason.
    """

    rows: np.ndarray
    why: list[str]


def num_random(more: int | None) -> int:
    """How many rows are drawn at random, see `choose`."""
    return more if more and NUM_RANDOM < more <= NUM_ROWS else NUM_RANDOM


def choose(
    by_order: np.ndarray,
    soft_labels: np.ndarray,
    given: np.ndarray,
    checked: np.ndarray,
    more: int | None = None,
) -> Chosen:
    """Rows to check after a run: some at random, some of classes without a check, uncertain ones.

    Args:
      by_order: `[N]`, positions of all rows in a random order, of which the next ones are drawn.
      soft_labels: `[N, C]`, corrected labels.
      given: `[N]`, labels as given.
      checked: `[M]`, labels that were checked so far.
      more: how many random rows would show that the corrected labels are better; None if no number
        would, or if it is shown.
    """
    size, number = NUM_ROWS, num_random(more)
    random = by_order[:number]
    left = np.setdiff1d(np.arange(len(given)), random)
    soft, labels = soft_labels[left], soft_labels[left].argmax(axis=-1)
    missing = np.setdiff1d(np.concatenate([labels, given[left]]), [*checked, UNKNOWN])
    each = min(NUM_OF_CLASS, max(1, MOST_OF_CLASSES // max(1, len(missing))))
    of_class: list[int] = []
    for label in missing[:MOST_OF_CLASSES].tolist():
        there = np.flatnonzero((labels == label) | (given[left] == label))
        of_class += left[there[np.argsort(-soft[there, label], kind="stable")[:each]]].tolist()
    asked = np.array([*dict.fromkeys(of_class)][: size - number], np.int64)
    uncertain = left[np.argsort(soft.max(axis=-1), kind="stable")]
    uncertain = uncertain[~np.isin(uncertain, asked)][: size - number - len(asked)]
    why = [RANDOM] * len(random) + [NO_CHECK] * len(asked) + [UNCERTAIN] * len(uncertain)
    return Chosen(np.concatenate([random, asked, uncertain]), why)


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
