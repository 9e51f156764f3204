"""Own data in tables, CSV or Parquet: a column of labels, and columns that become features."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging

from mlc_jax.data.dataset import Benchmark
from mlc_jax.data.prepare import identity
from mlc_jax.data.source import UNKNOWN, ArraySource, Source
from mlc_jax.files.arrays import scale
from mlc_jax.files.columns import Columns, Survey, survey
from mlc_jax.files.label_columns import NAMES, WRITTEN, LabelColumns, Said, read_checks
from mlc_jax.files.own import FIELD, LabelledFile, Labels, OwnData, combine
from mlc_jax.files.tables import Table

# A column is held to determine the label if chance would do so more seldom than that.
_CHANCE = 1e-6
_LOGGED = 100  # Columns, by name.
_UNNAMED = ("", "Unnamed: 0")  # pandas' row numbers.


class Options(NamedTuple):
    """What of a table is used, and how.

    Attributes:
      features: names of columns; none of them is all columns of numbers.
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
) -> OwnData | Benchmark:
    """Reads one file, or two, and maybe one to judge by; `.csv`, `.jsonl` or `.parquet`.

    What becomes a feature is read from `data` or `noisy`, but for its test rows; the others must
    have the same columns.

    Args:
      data, noisy, clean, test: see `text_files.load`, with the columns of features in place of
        `text`.
      options: see `Options`.
      checked: see `read_checks`.
      drawn: see `how_drawn`.
      said: where labels of `data` stand.

    Raises:
      InputError: a file that cannot be read, labels that do not fit together, or a column that
        cannot be a feature.
    """
    paths = {"data": data, "noisy": noisy, "clean": clean, "test": test}
    tables = {name: said.table(FIELD + name, path) for name, path in paths.items() if path}
    return of_tables(tables, options, checked, drawn, said)


def of_tables(
    tables: dict[str, Table],
    options: Options,
    checked: Sequence[str | Table] = (),
    drawn: str | None = None,
    said: Said = Said(),  # noqa: B008
    *,
    needs_checks: bool = True,
) -> OwnData | Benchmark:
    """The same of tables that are open, by what they are: `data`, `noisy`, `clean`, `test`.

    Args:
      needs_checks: see `combine`.
    """
    (first, table), *others = tables.items()
    said = said if first == "data" else said.elsewhere
    file, columns = _read_first(table, options.features, said)
    files = {first: file} | {name: _read(other, columns) for name, other in others}
    checks = read_checks(checked, file) if checked else None
    own = combine(files, identity, checks, drawn, needs_checks=needs_checks)
    if isinstance(own, Benchmark):
        return dataclasses.replace(own, columns=columns)
    return own._replace(prepare=scale(own.noisy, options.standardized), columns=columns)


class TableSource(ArraySource):
    """Features of a table's rows."""

    def __init__(self, features: np.ndarray, columns: Columns, ids: np.ndarray | None = None):
        super().__init__(features, ids)
        self._columns = columns

    def show(self, rows: np.ndarray) -> list[str]:
        return [self._columns.describe(self.inputs[row]) for row in rows]


def _read_first(table: Table, chosen: Sequence[str], said: Said) -> tuple[LabelledFile, Columns]:
    """The file that features are chosen by."""
    names, out, labels = list(chosen), {}, LabelColumns(table, said)
    if not chosen:
        taken_up = {*NAMES, *labels.required}
        there = [name for name in table.columns() if name not in taken_up]
        out = {repr(name): "row numbers" for name in there if name in _UNNAMED}
        out |= {name: "written by a run" for name in there if name in WRITTEN}
        names = [name for name in there if name not in (*_UNNAMED, *WRITTEN)]
    size = len(labels.required) + len(labels.optional)

    def rows() -> Iterator[tuple[int, Sequence[str | None]]]:
        for line, values in table.rows(labels.required, labels.optional, names):
            labels.add(line, values[:size])
            yield line, values[size:]

    surveys = survey(names, rows())
    file = labels.finish(lambda ids: _encoded(table, columns, ids))
    taken = [x for x in surveys if chosen or x.is_numeric]
    if not taken:
        table.fail("has no column of numbers; expected some, or names of columns in "
                   "dataset.features")  # fmt: skip
    if not chosen:
        _check_leaks(table, file, taken)
    columns = Columns(tuple(x.column(table.fail, ~file.judging) for x in taken))
    left = {x.name: "empty" if x.is_empty else "texts" for x in surveys if x not in taken}
    _log(columns, left | out)
    return file, columns


def _read(table: Table, columns: Columns) -> LabelledFile:
    labels = LabelColumns(table)
    for line, values in table.rows(labels.required, labels.optional, columns.names):
        labels.add(line, values[: len(NAMES)])
    return labels.finish(lambda ids: _encoded(table, columns, ids))


def _encoded(table: Table, columns: Columns, ids: np.ndarray | None) -> Source:
    return TableSource(columns.encode(table.fail, table.rows([], [], columns.names)), columns, ids)


def _log(columns: Columns, left: Mapping[str, str]) -> None:
    described = []
    for column in columns.columns:
        if column.categories is not None:
            described.append(f"{column.name} ({len(column.categories)} categories)")
        elif column.has_missing:
            described.append(
                f"{column.name} (missing: {column.median:g}, and a feature that says so)"
            )
        else:
            described.append(column.name)
    more = f" and {len(described) - _LOGGED} more" if len(described) > _LOGGED else ""
    logging.info(
        "%d features of columns %s%s.", len(columns.features), ", ".join(described[:_LOGGED]), more
    )
    if left:
        logging.info(
            "Left out: %s. --config.dataset.features=NAME,NAME,... takes columns by name; texts "
            "become categories.",
            ", ".join(f"{name} ({why})" for name, why in left.items()),
        )


def _check_leaks(table: Table, file: LabelledFile, surveys: Sequence[Survey]) -> None:
    """A column that says which label is right (or given) leaves nothing to learn."""
    for name, labels in (("checked_label", file.checked), ("label", file.labels)):
        for one in surveys if labels is not None else ():
            assert labels is not None
            if _determines(one.numbers, labels):
                table.fail(
                    f"column {one.name!r} determines {name}; expected no label among the "
                    "features. Take it out, or name all that are meant in dataset.features"
                )


def _determines(values: np.ndarray, labels: Labels) -> bool:
    """Whether equal values always have equal labels, more often than by chance."""
    known = (labels.numbers != UNKNOWN) & ~np.isnan(values)
    _, codes = np.unique(values[known], return_inverse=True)
    if not len(codes):
        return False
    numbers = labels.numbers[known].astype(np.int64)
    pairs = len(np.unique(codes * len(labels.names) + numbers))
    num_values = int(codes.max()) + 1
    if pairs > num_values or num_values < 2:
        return False
    agreeing = np.sum((np.bincount(numbers) / len(numbers)) ** 2)  # Two labels, by chance.
    return bool(agreeing ** (len(codes) - num_values) < _CHANCE)
