"""Recognises what a file is: by its name, its first bytes, its JSON keys or its Parquet types."""

import codecs
from collections.abc import Callable
from typing import Any

_HINTS = {
    ".json": "; to have one object per line: pandas.read_json(FILE).to_json('x.jsonl', "
    "orient='records', lines=True)",
    **dict.fromkeys((".xlsx", ".xls", ".ods"), "; a spreadsheet saves its sheet as CSV"),
    **dict.fromkeys((".tab", ".txt"), "; tabs between fields are read, too: rename it to .tsv"),
    ".gz": "; unpack it: gunzip FILE",
    ".zip": "; unpack it: unzip FILE",
    ".feather": "; pandas.read_feather(FILE).to_parquet('x.parquet')",
    ".pkl": "; pandas.read_pickle(FILE).to_parquet('x.parquet')",
}
_ENCODINGS = {  # By the first bytes of a text; longer marks first.
    codecs.BOM_UTF32_LE: "utf-32", codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16",
}  # fmt: skip
_OTHERS = {
    b"PK\x03\x04": "a ZIP archive, as spreadsheets (.xlsx) are, too",
    b"\x1f\x8b": "packed by gzip",
    b"BZh": "packed by bzip2",
    b"PAR1": "Parquet",
    b"%PDF": "a PDF",
    b"SQLite format 3": "a database of SQLite",
    b"\xd0\xcf\x11\xe0": "a spreadsheet (.xls)",
}
# Nested JSON of annotation tools: keys of their objects, and the export that can be read.
_TOOLS: dict[str, tuple[Callable[[dict[str, Any]], bool], str]] = {
    "Label Studio": (
        lambda row: "annotations" in row or "completions" in row,
        "its export CSV",
    ),
    "Argilla": (
        lambda row: "responses" in row or ("fields" in row and "suggestions" in row),
        "dataset.records.to_list(flatten=True), saved with a column label of texts",
    ),
    "doccano": (
        lambda row: isinstance(row.get("label", row.get("labels")), list),
        "its export CSV",
    ),
}  # fmt: skip


def hint(suffix: str) -> str:
    """How to convert a file with this suffix to one that can be read; "" if unknown."""
    return _HINTS.get(suffix.lower(), "")


def encoding(start: bytes) -> str:
    """The encoding of a text with these first bytes; a UTF-8 byte order mark stays in the text."""
    known = next((x for mark, x in _ENCODINGS.items() if start.startswith(mark)), "")
    if known or len(start) < 4:
        return known or "utf-8"
    # UTF-16 without a byte order mark: each letter of the header is two bytes, one of them 0.
    empty = [not any(start[first::2]) for first in (0, 1)]
    if all(empty) or not any(empty):
        return "utf-8"
    return "utf-16-be" if empty[0] else "utf-16-le"


def other_kind(start: bytes) -> str:
    """The kind of a file that is no text, by its first bytes; "" if unknown."""
    return next((kind for mark, kind in _OTHERS.items() if start.startswith(mark)), "")


def tool_of(row: dict[str, Any]) -> str:
    """The annotation tool that wrote an object, and the expected export; "" if none did."""
    for tool, (is_of, export) in _TOOLS.items():
        if is_of(row):
            return f"as {tool} writes it; expected {export}"
    return ""


def is_read(stored: Any, *, whole: bool) -> bool:
    """Whether values of a Parquet type are read; with `whole`, as labels and ids."""
    from pyarrow import types

    kind = stored.value_type if types.is_dictionary(stored) else stored
    tests = ["string", "large_string", "string_view", "integer", "boolean", "null", "floating"]
    if not whole:
        if is_list(kind):
            return bool(types.is_integer(kind.value_type) or types.is_floating(kind.value_type))
        tests += ["decimal", "date", "timestamp", "time", "duration"]
    return any(getattr(types, f"is_{test}")(kind) for test in tests)


def is_number(stored: Any) -> bool:
    from pyarrow import types

    return bool(types.is_integer(stored) or types.is_floating(stored) or types.is_decimal(stored))


def is_list(stored: Any) -> bool:
    from pyarrow import types

    return bool(
        types.is_list(stored) or types.is_large_list(stored) or types.is_fixed_size_list(stored)
    )


def csv_problem(error: str, most: int) -> str:
    """A message of Python's csv module in plain words."""
    if "unexpected end" in error:
        return 'a quote " in this row is never closed; expected one at the end of the field'
    if "field limit" in error:
        return (
            f"a field of this row has more than {most:,} characters; expected "
            'fewer, or a quote " that closes it'
        )
    if "expected after" in error:
        return (
            'in this row text follows a quote " that closes a field; expected a comma, and a quote '
            'within a field written twice, ""'
        )
    return f"this row is no CSV ({error})"
