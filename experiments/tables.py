"""Tables: rows in, text for files and people out."""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from etils import epath

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def to_csv(rows: Iterable[Mapping[str, Any]]) -> str:
    """A header and one line per row; a field that a row lacks stays empty, a dict is JSON."""
    rows = list(rows)
    text = io.StringIO()
    fields = dict.fromkeys(field for row in rows for field in row)
    table = csv.DictWriter(text, fields, lineterminator="\n")
    table.writeheader()
    for row in rows:
        table.writerow({k: json.dumps(x) if isinstance(x, dict) else x for k, x in row.items()})
    return text.getvalue()


def to_markdown(
    header: Sequence[str], body: Iterable[Sequence[str]], *, text_columns: Sequence[int] = (0,)
) -> str:
    """One line per row of cells; numbers stand to the right, `text_columns` to the left."""
    rule = ["---" if i in text_columns else "---:" for i in range(len(header))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, rule, *body))


def write(workdir: epath.Path, name: str, rows: Iterable[Mapping[str, Any]], text: str) -> None:
    """`name`.csv of the rows, and `name`.md of the text."""
    workdir.joinpath(f"{name}.csv").write_text(to_csv(rows))
    workdir.joinpath(f"{name}.md").write_text(text)


def write_figure(workdir: epath.Path, name: str, figure: "Figure", *, dpi: int = 100) -> None:
    """`name`.png."""
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=dpi)
    workdir.joinpath(f"{name}.png").write_bytes(png.getvalue())


def values(rows: Iterable[Mapping[str, Any]], field: str) -> list[Any]:
    """The different values of a field, in order of appearance."""
    return list(dict.fromkeys(row[field] for row in rows))


def where(rows: Iterable[Mapping[str, Any]], **fields: Any) -> list[Mapping[str, Any]]:
    """The rows that have these values."""
    return [row for row in rows if all(row[name] == value for name, value in fields.items())]
