"""Own data in tables: columns of labels, and columns that become features."""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from mlc_jax.data.dataset import Benchmark
from mlc_jax.data.prepare import identity
from mlc_jax.data.source import ArraySource
from mlc_jax.errors import InputError
from mlc_jax.files.arrays import scale
from mlc_jax.files.columns import Columns, Row, Survey, is_constant, left_out, survey
from mlc_jax.files.label_columns import NAMES, ONE_EACH, WRITTEN, LabelColumns, Said
from mlc_jax.files.own import FIELD, LabelledFile, OwnData, combine
from mlc_jax.files.tables import Table
from mlc_jax.files.values import forms
from mlc_jax.files.values.checks import read_checks
from mlc_jax.files.values.leaks import leak, same_rows
from mlc_jax.files.values.names import whole

_LOGGED, _SHOWN = 100, 10  # The most columns that a log line names, and a warning.
_UNNAMED = re.compile(r"|Unnamed: \d+|__index_level_\d+__")  # pandas' row numbers.
# Columns of annotation tools. A file with three of them comes from such a tool; a single one is a
# feature, unless it numbers the rows.
_BOOKKEEPING = ("annotation_id", "annotator", "created_at", "updated_at", "lead_time", "task_id")
_MANY_OF_THEM = 3
_FORMS = {"comma": "1,5 is 1.5", "time": "parts of a day"}
_VOUCHED = "--config.dataset.features=+NAME takes a column, -NAME leaves one out"


class Options(NamedTuple):
    """The columns of a table that are used, and how.

    Attributes:
      features: names of columns. Without any, `columns.left_out` decides. `+name` adds a column,
        whatever it holds; `-name` leaves one out.
      standardized: see `arrays.scale`.
    """

    features: tuple[str, ...]
    standardized: bool | None


def load(
    data: str | None,
    noisy: str | None,
    clean: str | None,
    test: str | None,
    options: Options,
    checked: Sequence[str] = (),
    drawn: str | None = None,
    said: Said = Said(),  # noqa: B008
    *,
    benchmark: bool = False,
) -> OwnData | Benchmark:
    """Reads one table or two, and maybe a test table; `.csv`, `.tsv`, `.jsonl` or `.parquet`.

    The rows to learn from in `data` or `noisy` decide which columns become features. The other
    files must have the same columns.

    Args:
      data, noisy, clean, test: see `text_files.load`; columns of features replace `text`.
      options: see `Options`.
      checked: see `read_checks`.
      drawn: see `how_drawn`.
      said: where given labels of `data` are.
      benchmark: whether all labels of `data` are true.

    Raises:
      InputError: a file that cannot be read, labels that do not fit together, or a column that
        cannot be a feature.
    """
    paths = {"data": data, "noisy": noisy, "clean": clean, "test": test}
    tables = {name: said.table(FIELD + name, path) for name, path in paths.items() if path}
    return of_tables(tables, options, checked, drawn, said, benchmark=benchmark)


def of_tables(
    tables: dict[str, Table],
    options: Options,
    checked: Sequence[str | Table] = (),
    drawn: str | None = None,
    said: Said = Said(),  # noqa: B008
    *,
    needs_checks: bool = True,
    benchmark: bool = False,
) -> OwnData | Benchmark:
    """`load` for open tables, keyed by `data`, `noisy`, `clean`, `test`.

    Args:
      needs_checks, benchmark: see `combine`.
    """
    (first, table), *others = tables.items()
    said = said if first == "data" else said.elsewhere
    file, columns = _read_first(table, options.features, said)
    files = {first: file} | {name: _read(other, columns) for name, other in others}
    checks = read_checks(checked, file, drawn) if checked else None
    own = combine(files, identity, checks, drawn, needs_checks=needs_checks, benchmark=benchmark)
    if isinstance(own, Benchmark):
        return dataclasses.replace(own, columns=columns)
    return own._replace(prepare=scale(own.scaled_by, options.standardized), columns=columns)


class TableSource(ArraySource):
    """Features of a table's rows."""

    def __init__(self, features: np.ndarray, columns: Columns, ids: np.ndarray | None = None):
        super().__init__(features, ids)
        self._columns = columns

    def show(self, rows: np.ndarray) -> list[str]:
        return [self._columns.describe(self.inputs[row]) for row in rows]


class _Chosen(NamedTuple):
    """Parses `dataset.features`.

    Attributes:
      named: columns that are taken; empty if `columns.left_out` decides.
      added: columns that are taken, whatever they hold: `+city`.
      removed: columns that are not taken: `-index`.
    """

    named: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]

    @classmethod
    def of(cls, table: Table, features: Sequence[str]) -> "_Chosen":
        signs: dict[str, list[str]] = {"": [], "+": [], "-": []}
        there, labels = table.columns(), [*NAMES, *WRITTEN]
        for feature in features:
            sign = "" if feature in there or feature[:1] not in signs else feature[:1]
            name = feature.removeprefix(sign)
            if sign != "-" and name in table.unread():
                kind = table.unread()[name]
                table.fail(f"column {name!r} holds {kind}, expected numbers, texts or dates")
            if name not in there:
                table.fail(f"has no column {name!r}, only {', '.join(map(repr, there))}")
            if name in labels and sign != "-":
                expected = "expected columns of inputs in dataset.features"
                table.fail(f"column {name!r} gives the label away; {expected}")
            if any(name in names for names in signs.values()):
                raise InputError(f"{FIELD}features: {name!r} is named twice; expected it once")
            signs[sign].append(name)
        return cls(*(tuple(names) for names in signs.values()))

    def looked_at(self, there: Sequence[str]) -> list[str]:
        """The columns that may become features, in their order."""
        if self.named:
            return [name for name in (*self.named, *self.added) if name not in self.removed]
        return [name for name in there if name not in self.removed]


def _read_first(table: Table, features: Sequence[str], said: Said) -> tuple[LabelledFile, Columns]:
    """Reads the file that decides which columns become features."""
    chosen, labels = _Chosen.of(table, features), LabelColumns(table, said)
    left = {name: f"holds {kind}" for name, kind in table.unread().items()}
    there = [x for x in table.columns() if x not in (*NAMES, *labels.required, *left)]
    left |= dict.fromkeys(chosen.removed, "as asked")
    if chosen.named:
        unnamed = [x for x in there if x not in chosen.looked_at(there)]
        left |= dict.fromkeys((x for x in unnamed if x not in left), "not named")
    else:
        left.update(_by_name([name for name in there if name not in chosen.added]))
    names = [name for name in chosen.looked_at(there) if name not in left]
    surveys = survey(
        names, _rows(table, labels, names), may_have_commas=table.may_have_commas,
        numbers=table.numbers(),
    )  # fmt: skip
    file = labels.finish(lambda ids: TableSource(columns.encode_seen(taken, table), columns, ids))
    learned, taken = ~file.judging, []
    for one in surveys:
        is_ours = one.name in chosen.named or one.name in chosen.added
        why = (
            None if is_ours else left_out(one, learned, unnamed=bool(_UNNAMED.fullmatch(one.name)))
        )
        if is_constant(one, learned):
            why = "empty" if one.is_empty else "one value in all rows"
        if why is None:
            taken.append(one)
        else:
            left[one.name] = why
    if not taken:
        found = f" ({', '.join(f'{name!r}: {why}' for name, why in left.items())})" if left else ""
        table.fail(f"has no column that can be a feature{found}; expected columns of numbers, or "
                   f"of few different texts; {_VOUCHED}")  # fmt: skip
    _check_leaks(table, file, [x for x in taken if x.name not in chosen.added])
    columns = Columns(tuple(x.column(table.fail, learned) for x in taken), tuple(left.items()))
    _log(columns)
    return file, columns


def warn_of_new(columns: Columns, there: Sequence[str], sources: Sequence[str] = ()) -> None:
    """Warns of columns that the table to learn from did not have.

    Args:
      columns: the columns that were learned from.
      there: names of the columns of new rows.
      sources: names of the columns of given labels.
    """
    known = {*columns.names, *NAMES, *WRITTEN, *sources, *(name for name, _ in columns.left_out)}
    new = [repr(name) for name in there if name not in known and not name.startswith(ONE_EACH)]
    if new:
        more = f" and {len(new) - _SHOWN} more" if len(new) > _SHOWN else ""
        logging.warning(
            "Columns that the rows to learn from did not have are not used: %s%s.",
            ", ".join(new[:_SHOWN]), more,
        )  # fmt: skip


def _by_name(names: Sequence[str]) -> dict[str, str]:
    """Columns that are never features, and why."""
    left = {name: "written by a run" for name in names if name in WRITTEN}
    others = [name for name in names if name.startswith(ONE_EACH) and name not in left]
    left |= dict.fromkeys(others, "a label of somebody")
    tools = [name for name in names if name in _BOOKKEEPING]
    if len(tools) >= _MANY_OF_THEM:
        left |= dict.fromkeys(tools, "written by an annotation tool")
    return left


def _read(table: Table, columns: Columns) -> LabelledFile:
    labels = LabelColumns(table)
    read = columns.of_numbers(table.numbers())
    features = read.encode(table.fail, _rows(table, labels, columns.names))
    return labels.finish(lambda ids: TableSource(features, columns, ids))


def _rows(table: Table, labels: LabelColumns, names: Sequence[str]) -> Iterator[Row]:
    """Yields the line of each row, and its values of columns `names`; adds labels to `labels`."""
    size = len(labels.required) + len(labels.optional)
    for line, values in table.rows(labels.required, labels.optional, names):
        labels.add(line, values[:size])
        yield line, values[size:]


def _log(columns: Columns) -> None:
    described = []
    for column in columns.columns:
        if column.categories is not None:
            described.append(f"{column.name} ({len(column.categories)} categories)")
        elif column.has_missing:
            median = f"{column.median + column.offset:g}"
            described.append(f"{column.name} (missing: {median}, and a feature that says so)")
        elif column.size:
            described.append(f"{column.name} ({column.size} numbers)")
        elif column.form in forms.DATES:
            described.append(f"{column.name} (dates as days: {column.form})")
        elif column.form != "point":
            described.append(f"{column.name} ({_FORMS[column.form]})")
        else:
            described.append(column.name)
    more = f" and {len(described) - _LOGGED} more" if len(described) > _LOGGED else ""
    logging.info(
        "%d features of columns %s%s.", len(columns.features), ", ".join(described[:_LOGGED]), more
    )
    if columns.left_out:
        listed = ", ".join(f"{name or repr(name)} ({why})" for name, why in columns.left_out)
        logging.info("Left out: %s. %s.", listed, _VOUCHED)


def _check_leaks(table: Table, file: LabelledFile, surveys: Sequence[Survey]) -> None:
    names, given, checked = file.numbered()
    columns = [values for one in surveys if (values := one.values()) is not None]
    rows = same_rows(columns) if len(columns) == len(surveys) else None
    for one in surveys:
        texts = None
        if one.texts is not None:
            texts = np.array([whole(text) for text in one.texts], object)[one.codes]
        problem = leak(one.values(), texts, given, checked, names, rows)
        if problem:
            table.fail(
                f"column {one.name!r} {problem}; expected no label among the features. Take it "
                f"out, or say that it is a feature: --config.dataset.features=+{one.name}"
            )
