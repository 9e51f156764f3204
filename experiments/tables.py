"""Tables as files."""

import csv
import io
from collections.abc import Iterable, Mapping
from typing import Any


def to_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """A header and one line a row; a field that a row lacks stays empty."""
    rows = list(rows)
    text = io.StringIO()
    fields = dict.fromkeys(field for row in rows for field in row)
    table = csv.DictWriter(text, fields, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def values(rows: Iterable[Mapping[str, Any]], field: str) -> list[Any]:
    """The different values of a field, in order of appearance."""
    return list(dict.fromkeys(row[field] for row in rows))


def where(rows: Iterable[Mapping[str, Any]], **fields: Any) -> list[Mapping[str, Any]]:
    """The rows that have these values."""
    return [row for row in rows if all(row[name] == value for name, value in fields.items())]
