"""Detects whether a file holds features, texts, pictures or arrays; without importing JAX."""

import difflib
import itertools
from collections.abc import Sequence
from typing import NamedTuple

from mlc_jax import paths
from mlc_jax.config import COLUMN_NAMES
from mlc_jax.errors import InputError
from mlc_jax.files.tables import ENDINGS, Table
from mlc_jax.files.values import forms
from mlc_jax.files.values.marks import hint

FIELD = "config.dataset.data"
ARRAYS = (".npz", ".npy")
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_LOOKED_AT = 1_000  # Rows that are read.
_WORDS = 3  # Words per text on average; a category has fewer.
_LABELS = "label_"


class Kind(NamedTuple):
    """The kind of a file.

    Attributes:
      name: its preset: table, text, image_folder or arrays.
      columns: from our name of a column to the file's, where they differ.
    """

    name: str
    columns: dict[str, str]


def kind_of(path: str, named: dict[str, str]) -> Kind:
    """Decides by the name, the columns and the first rows.

    Args:
      path: a file or a directory.
      named: columns that the user named, keyed by our names.

    Raises:
      InputError: there is no such file, or no such column.
    """
    place = paths.local(path, FIELD)
    if not place.exists():
        raise InputError(
            f"{FIELD}: no file or directory {path!r}; expected a table ({', '.join(ENDINGS)}), "
            f"arrays ({', '.join(ARRAYS)}), or a directory of pictures"
        )
    is_table = place.suffix.lower() in ENDINGS and not place.is_dir()
    if named and not is_table:
        raise InputError(
            f"--{option(next(iter(named)))}: got {next(iter(named.values()))!r} with {path!r}, "
            "which has no columns; expected a table"
        )
    if place.is_dir():
        return Kind("image_folder", {})
    if place.suffix.lower() in ARRAYS:
        return Kind("arrays", {})
    if not is_table:
        raise InputError(
            f"{FIELD}: got {path!r}, expected a file that ends in "
            f"{', '.join((*ENDINGS, *ARRAYS))}, or a directory of pictures{hint(place.suffix)}"
        )
    table = Table(FIELD, path)
    header = table.columns()
    if not header:
        table.fail("is empty, expected a first line that names its columns")
    for ours, theirs in named.items():
        if theirs not in header:
            near = difflib.get_close_matches(theirs, header, n=1) or header[:1]
            raise InputError(
                f"--{option(ours)}: {path!r} has no column {theirs!r}; expected one of its "
                f"{len(header)}, such as {near[0]!r}"
            )
    return _of_table(table, header, named)


def check_labels(path: str, columns: dict[str, str], several: Sequence[str], votes: bool) -> None:
    """Checks that a column is known to hold the labels.

    Raises:
      InputError: none is; the message lists the columns.
    """
    header = Table(FIELD, path).columns()
    for name in several:
        if name not in header:
            near = difflib.get_close_matches(name, header, n=1) or header[:1]
            raise InputError(
                f"--label: {path!r} has no column {name!r}; expected one of its {len(header)}, "
                f"such as {near[0]!r}"
            )
    known = "label" in columns or several or votes or "label" in header
    if not known and not any(name.startswith(_LABELS) for name in header):
        shown = ", ".join(repr(name) for name in header[:20])
        raise InputError(
            f"{FIELD}: {path!r} has no column 'label'; expected that of the labels to be named, "
            f"--label=NAME, one of {shown}{', ...' if len(header) > 20 else ''}"
        )


def option(name: str) -> str:
    """The command-line option for a column."""
    return {"checked_label": "checked", "path": "image"}.get(name, name)


def _of_table(table: Table, header: list[str], named: dict[str, str]) -> Kind:
    if "path" in named:
        return Kind("image_folder", named)
    if "text" in named:
        return Kind("text", named)
    taken = {*named.values(), *COLUMN_NAMES} - {"text", "path"}
    others = [x for x in header if x not in taken and not x.startswith(_LABELS)]
    written = (fields for fields, _ in table.as_written() if fields)  # Not blank.
    there = itertools.islice(written, 1, 1 + _LOOKED_AT)
    rows = [dict(zip(header, fields, strict=False)) for fields in there]
    told = {x: [row[x] for row in rows if row.get(x) and not row[x].isspace()] for x in others}
    for name in sorted(others, key=lambda x: x not in ("path", "image")):
        if told.get(name) and all(x.lower().endswith(PICTURES) for x in told[name]):
            return Kind("image_folder", named | ({} if name == "path" else {"path": name}))
    if "text" in others:
        return Kind("text", named)
    texts = [name for name in others if _is_prose(told.get(name, []))]
    if len(texts) == 1 and not any(_is_number(told.get(x, [])) for x in others):
        return Kind("text", named | {"text": texts[0]})
    return Kind("table", named)


def _is_prose(values: Sequence[str]) -> bool:
    """Texts of several words, nearly all of them different."""
    words = sum(len(x.split()) for x in values)
    return len(values) > 0 and words >= _WORDS * len(values) and len(set(values)) > len(values) / 2


def _is_number(values: Sequence[str]) -> bool:
    """Whether most are numbers, in any way that columns of features may have them: `1,5`, `5 %`."""
    bad = [forms.read(values, form)[1].sum() for form in ("point", "comma")]
    return len(values) > 0 and min(bad) < len(values) / 2
