"""Files of named columns, read row by row: CSV, JSON lines, Parquet. Every value is a text.

Nothing is guessed: `NA` and `None` are texts like others, and `001` stays `001`. A list of numbers
becomes its JSON, `[0.5, 1.0]`.
"""

import collections
import contextlib
import csv
import functools
import itertools
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn

from mlc_jax import paths
from mlc_jax.errors import InputError, readable, shown
from mlc_jax.files.values import marks
from mlc_jax.files.values.names import whole as as_whole

# A longer field is probably a quote that was never closed. Python's own limit is 131,072.
MAX_FIELD_CHARACTERS = 2**24
ENDINGS = (".csv", ".tsv", ".jsonl", ".parquet")  # The ending of a name decides how a file is read.
_PARQUET_ROWS = 4_096  # Rows in memory at once.
_SEPARATORS = (",", ";", "\t", "|")  # Separators of CSV files.
_SAYS_SEPARATOR = re.compile(r'"?sep=(.)"?\s*')  # A first line that spreadsheets write and read.
_HEADER_CHARACTERS = 2**20
_DAY = 86_400 * 10**9  # Nanoseconds.
_MAX_NAME = 1_000  # The most characters of a column's name.
_SHOWN = 50  # The most names in a message.

Row = tuple[int, list[str | None]]


class Table:
    """A file with a row for each example. Its ending decides how it is read.

    Args:
      field: the setting that names the file, for messages: `config.dataset.noisy`.
      path: of a `.csv` or `.tsv` (RFC 4180, or with `;`, `|` or tabs between fields), `.jsonl` (one
        object per line) or `.parquet` file. Text is UTF-8; with a byte order mark, UTF-16 and
        UTF-32, too.
      header: columns of a CSV file whose first line does not name them.
      names: our names of columns that have other names in the file: `{"label": "Etikett"}`. A
        column of the file that has our name is then ignored.

    Raises:
      InputError: the file does not exist, or has another ending.
    """

    def __init__(
        self,
        field: str,
        path: str,
        header: Sequence[str] | None = None,
        names: Mapping[str, str] | None = None,
    ):
        self.field, self.path = field, path
        self._header = header
        self._theirs = dict(names or {})
        self._ours = {theirs: ours for ours, theirs in self._theirs.items()}
        readers = (self._csv, self._csv, self._json, self._parquet)
        endings: dict[str, Callable[..., Iterator[Row]]] = dict(zip(ENDINGS, readers, strict=True))
        kinds = f"{', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}"
        file = paths.local(path, field)
        if not file.is_file():
            raise InputError(f"{field}: no file {path!r}; expected one that ends in {kinds}")
        if file.suffix.lower() not in endings:
            hint = marks.hint(file.suffix)
            raise InputError(f"{field}: got {path!r}, expected a file that ends in {kinds}{hint}")
        self._file, self._kind = file, file.suffix.lower().replace(".tsv", ".csv")
        self._read = endings[self._kind]

    def columns(self) -> list[str]:
        """Names of columns: for JSON lines those of all objects, for Parquet those that are read.

        Raises:
          InputError: as `rows`.
        """
        return [
            self._ours.get(name, name)
            for name in self.header()
            if name in self._ours or name not in self._theirs
        ]

    def header(self) -> list[str]:
        """Names of columns as in the file; errors as for `rows`."""
        with self._explained():
            if self._kind == ".parquet":
                found = [x.name for x in self._schema() if marks.is_read(x.type, whole=False)]
            elif self._kind == ".jsonl":
                found = list(self._json_names)
            else:
                found = [*self._first_fields]
        longest = max(map(len, found), default=0)
        if longest > _MAX_NAME:
            self.fail(f"has a column whose name has {longest:,} characters; expected {_MAX_NAME:,} "
                      "at most")  # fmt: skip
        return found

    def unread(self) -> dict[str, str]:
        """Columns that `columns` leaves out, and their content: nested values of Parquet."""
        if self._kind != ".parquet":
            return {}
        with self._explained():
            return {
                x.name: str(x.type)
                for x in self._schema()
                if not marks.is_read(x.type, whole=False)
            }

    def rows(
        self,
        required: Sequence[str],
        optional: Sequence[str] = (),
        values: Sequence[str] = (),
    ) -> Iterator[Row]:
        """Yields the place of each row (see `place`), and its values in the order of the columns.

        Every call reads the file again, and holds only a few rows in memory.

        Args:
          required: columns that the file must have; a value that is missing is "".
          optional: columns that it may have; values are None if it does not.
          values: further columns that it must have; their numbers need not be whole.

        Raises:
          InputError: a column is missing, or a value cannot be read; names file and line.
        """
        columns = ([self._theirs.get(x, x) for x in part] for part in (required, optional, values))
        with self._explained():
            yield from self._read(*columns)

    def as_written(self) -> Iterator[tuple[list[str], str | None]]:
        """Yields all rows with all columns, the header first, under the names of the file.

        With each row of a CSV file comes its text, including the line end; blank lines have no
        field. JSON lines have the columns of all objects; Parquet has the flat ones.

        Raises:
          InputError: the file cannot be read.
        """
        with self._explained():
            if self._kind == ".csv":
                yield from ((fields, text) for _, fields, text in self._csv_text())
                return
            if self._kind == ".jsonl":
                header = [*dict.fromkeys(name for _, row in self._json_rows() for name in row)]
                rows = ([_text(row.get(x)) for x in header] for _, row in self._json_rows())
            else:
                header = self.header()
                rows = ([x or "" for x in row] for _, row in self._parquet([], [], header))
            yield from ((fields, None) for fields in itertools.chain([header], rows))

    def fail(self, problem: str, number: int | None = None) -> NoReturn:
        """Raises an InputError on the file, or on one of its rows."""
        where = "" if number is None else f" {self.place(number)}:"
        raise InputError(f"{self.field}: {self.path!r}{where} {readable(problem)}")

    def place(self, number: int) -> str:
        """Where a row is: its first line, as an editor counts; in Parquet its number, from 1."""
        return f"{'row' if self._kind == '.parquet' else 'line'} {number}"

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except UnicodeDecodeError:
            self._fail_at_bytes()
        except OSError as error:
            self.fail(f"cannot be read ({error.strerror or _line(error)})")

    def _csv(self, required: list[str], optional: list[str], values: list[str]) -> Iterator[Row]:
        header, columns = self._header, None
        if header is not None:
            columns = self._find(header, required, optional, values)
        for line, fields in self._csv_rows():
            if header is None or columns is None:
                header = fields
                columns = self._find(header, required, optional, values)
                continue
            if len(fields) != len(header):
                plural = "" if len(fields) == 1 else "s"
                expected = f"{len(header)}: {', '.join(header)}"
                self.fail(f"has {len(fields)} field{plural}, expected {expected}", line)
            yield line, [None if i is None else fields[i] for i in columns]
        if columns is None:
            named = _names([*required, *values])
            self.fail(f"is empty, expected a first line that names {named}")

    def _csv_rows(self) -> Iterator[tuple[int, list[str]]]:
        """All lines, including the header."""
        return ((line, fields) for line, fields, _ in self._csv_text() if fields)  # Not blank.

    def _csv_text(self) -> Iterator[tuple[int, list[str], str]]:
        """All lines with the text of each row, including its line end."""
        csv.field_size_limit(max(MAX_FIELD_CHARACTERS, csv.field_size_limit()))  # Process-wide.
        read: list[str] = []
        with self._file.open(encoding=self.encoding, newline="") as stream:

            def lines() -> Iterator[str]:
                for number, line in enumerate(stream):
                    read.append(line)
                    line = line if number else line.removeprefix("\ufeff")
                    is_none = not number and _SAYS_SEPARATOR.fullmatch(line)
                    yield "\n" if is_none else line

            reader, line = csv.reader(lines(), strict=True, delimiter=self.separator), 1
            try:
                for fields in reader:
                    first, line = line, reader.line_num + 1
                    # A spreadsheet may write rows of empty cells; they are blank lines.
                    yield first, fields if any(fields) else [], "".join(read)
                    read.clear()
            except csv.Error as error:
                self.fail(marks.csv_problem(str(error), MAX_FIELD_CHARACTERS), line)

    @functools.cached_property
    def _first_fields(self) -> list[str]:
        return next(self._csv_rows(), (0, []))[1]

    @functools.cached_property
    def encoding(self) -> str:
        """The file's encoding; a byte order mark of UTF-8 stays in the text."""
        return marks.encoding(self._start())

    def _start(self) -> bytes:
        with self._file.open("rb") as stream:
            return stream.read(32)

    @functools.cached_property
    def separator(self) -> str:
        """The separator of a CSV file: its first line names it, or has the most fields with it."""
        with self._file.open(encoding=self.encoding, newline="", errors="replace") as stream:
            start = stream.read(_HEADER_CHARACTERS).removeprefix("\ufeff")
        said = _SAYS_SEPARATOR.match(start)
        if said and said[1] in _SEPARATORS:
            return said[1]
        sizes = {}
        for separator in _SEPARATORS:
            try:
                fields = next(csv.reader(start.splitlines(), delimiter=separator), [])
            except csv.Error:  # Reported where the file is read.
                fields = []
            sizes[separator] = len(fields)
        return max(sizes, key=sizes.__getitem__)

    @property
    def may_have_commas(self) -> bool:
        """Whether `;` separates its columns, as it does in files with decimal commas."""
        return self._kind == ".csv" and self.separator == ";"

    def numbers(self) -> set[str]:
        """Names of columns of numbers; in a CSV file all values are texts."""
        if self._kind == ".csv":
            return set()
        with self._explained():
            if self._kind == ".jsonl":
                found = {name for name, are_numbers in self._json_names.items() if are_numbers}
            else:
                found = {x.name for x in self._schema() if marks.is_number(x.type)}
        return {self._ours.get(name, name) for name in found}

    @functools.cached_property
    def _json_names(self) -> dict[str, bool]:
        """Keys of all objects, in order of appearance, and whether all values are numbers."""
        found: dict[str, bool] = {}
        for _, row in self._json_rows():
            for name, value in row.items():
                is_number = value is None or type(value) in (int, float)
                found[name] = is_number and found.get(name, True)
        return found

    def _json(self, required: list[str], optional: list[str], values: list[str]) -> Iterator[Row]:
        names = [*required, *optional, *values]
        for line, row in self._json_rows():
            needed = [name for name in (*required, *values) if name not in row]
            if needed and not all(name in self._json_names for name in needed):
                self._find([*row], required, optional, values, line)
            row |= dict.fromkeys(needed)
            for number, name in enumerate(names):
                is_label = number < len(names) - len(values)
                if name in row and (is_label or isinstance(row[name], dict)):
                    self._check_nested(row, name, line)
            texts = [
                self._json_text(row[x], x, line, whole=i < len(names) - len(values))
                if x in row
                else None
                for i, x in enumerate(names)
            ]
            if any(not _is_unicode(text) for text in texts):
                self.fail("has half of a surrogate pair, expected text", line)
            yield line, texts

    def _json_rows(self) -> Iterator[tuple[int, dict[str, Any]]]:
        with self._file.open(encoding=self.encoding, newline="\n") as stream:
            for line, text in enumerate(stream, 1):
                text = text.removeprefix("\ufeff") if line == 1 else text
                if not text.strip():
                    continue
                if line == 1 and text.strip()[0] == "[":
                    self.fail(f"is a list, expected one object per line{marks.hint('.json')}")
                try:
                    row = json.loads(text, object_pairs_hook=_each_once)
                except (ValueError, RecursionError) as error:
                    self.fail(f"is not JSON ({error}); expected one object per line", line)
                if not isinstance(row, dict):
                    self.fail(f"is {type(row).__name__}, expected an object with columns", line)
                yield line, row

    def _check_nested(self, row: dict[str, Any], name: str, line: int) -> None:
        """Explains how to export a table from an annotation tool."""
        if isinstance(row[name], list | dict):
            tool = marks.tool_of(row)
            if tool:
                self.fail(f"{name!r} is nested, {tool}", line)

    def _json_text(self, value: Any, name: str, line: int, *, whole: bool) -> str:
        if isinstance(value, str):
            return value
        if value is None:
            return ""
        if isinstance(value, float) and whole and value.is_integer():
            return str(int(value))  # pandas makes floats if a number is missing.
        if isinstance(value, int) or (isinstance(value, float) and not whole):
            return json.dumps(value)  # Booleans, too: `true`.
        if isinstance(value, list) and not whole:
            return json.dumps(value)
        expected = "a text or a whole number" if whole else "a text, a number or a list of numbers"
        if not whole:
            expected += f"; --config.dataset.features=-{name} leaves it out"
        return self.fail(f"{name!r} is {shown(value)}, expected {expected}", line)

    def _parquet(
        self, required: list[str], optional: list[str], values: list[str]
    ) -> Iterator[Row]:
        import pyarrow
        import pyarrow.parquet

        number, schema = 0, self._schema()
        try:
            with pyarrow.parquet.ParquetFile(self._file) as file:
                places = self._find(schema.names, required, optional, values)
                there = [schema.names[i] for i in places if i is not None]
                for name in there:
                    self._check_type(name, schema.field(name).type, whole=name not in values)
                for batch in file.iter_batches(_PARQUET_ROWS, columns=there):
                    texts = {
                        x: self._texts(batch.column(x), x, number, whole=x not in values)
                        for x in there
                    }
                    columns = [texts.get(name) for name in (*required, *optional, *values)]
                    for row in range(batch.num_rows):
                        number += 1
                        yield number, [None if x is None else x[row] or "" for x in columns]
        except (pyarrow.ArrowException, UnicodeDecodeError) as error:
            self.fail(f"is not a readable Parquet file ({_line(error)})")

    def _schema(self) -> Any:
        import pyarrow
        import pyarrow.parquet

        try:
            return pyarrow.parquet.read_schema(self._file)
        except pyarrow.ArrowException as error:
            return self.fail(f"is not a readable Parquet file ({_line(error)})")

    def _texts(self, column: Any, name: str, number: int, *, whole: bool) -> list[str | None]:
        """A batch's values as texts; its first row has the number `number` + 1."""
        import pyarrow
        from pyarrow import types

        if marks.is_list(column.type):
            return [None if x is None else json.dumps(x) for x in column.to_pylist()]
        if types.is_duration(column.type):
            spans = column.cast(pyarrow.duration("ns"), safe=False).cast(pyarrow.int64())
            return [None if x is None else repr(x / _DAY) for x in spans.to_pylist()]
        texts: list[str | None] = column.cast(pyarrow.string()).to_pylist()
        if not (whole and types.is_floating(column.type)):
            return texts
        # pandas turns whole numbers with missing values into floats.
        texts = [None if x is None or x == "nan" else as_whole(x) for x in texts]
        for row, text in enumerate(texts, number + 1):
            if text is not None and not re.fullmatch(r"-?\d+", text):
                self.fail(f"{name} is {text}, expected a text or a whole number", row)
        return texts

    def _check_type(self, name: str, stored: Any, *, whole: bool) -> None:
        if not marks.is_read(stored, whole=whole):
            numbers = "whole numbers" if whole else "numbers, or lists of them"
            self.fail(f"column {name!r} holds {stored}, expected texts or {numbers}")

    def _find(
        self,
        header: Sequence[str],
        required: list[str],
        optional: list[str],
        values: list[str],
        number: int | None = None,
    ) -> list[int | None]:
        """The positions of columns; None for an optional one that is missing."""
        names = [*required, *optional, *values]
        counts = collections.Counter(header)
        places: dict[str, int] = {}
        for place, name in enumerate(header):
            places.setdefault(name, place)
        for name in (*required, *values):
            if name not in places:
                self.fail(f"has no column {name!r}, only {_names(header)}", number)
        for name in names:
            if counts[name] > 1:
                self.fail(f"has column {name!r} {counts[name]} times, expected it once")
        return [places.get(x) for x in names]

    def _fail_at_bytes(self) -> NoReturn:
        """Reports the first bytes that are not UTF-8."""
        kind = marks.other_kind(self._start())
        if kind:
            self.fail(f"is {kind}; expected text{marks.hint(self._file.suffix)}")
        if self.encoding != "utf-8":
            self.fail(f"is no {self.encoding.upper()}, as its first bytes say; expected UTF-8")
        offset = 0
        with self._file.open("rb") as stream:
            for line, data in enumerate(stream, 1):
                try:
                    data.decode()
                except UnicodeDecodeError as error:
                    self.fail(
                        f"is not UTF-8: byte {data[error.start]:#04x} at offset "
                        f"{offset + error.start} of the file; expected it saved as UTF-8 (a "
                        "spreadsheet's `CSV UTF-8`; iconv -f WINDOWS-1252 -t UTF-8 FILE)",
                        line,
                    )
                offset += len(data)
        self.fail("was written while it was read; expected it to stay as it is")


def _text(value: Any) -> str:
    """A value of JSON as text."""
    if isinstance(value, str):
        return value
    return "" if value is None else json.dumps(value, ensure_ascii=False)


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; raises ValueError if it has a name twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        counts = collections.Counter(name for name, _ in pairs)
        name = next(name for name, count in counts.items() if count > 1)
        raise ValueError(f"it names {shown(name)} {counts[name]} times")
    return found


def _names(columns: Sequence[str]) -> str:
    more = f" and {len(columns) - _SHOWN} more" if len(columns) > _SHOWN else ""
    return ", ".join(shown(name, 80) for name in columns[:_SHOWN]) + more


def _line(error: Exception) -> str:
    return " ".join(str(error).split())


def _is_unicode(value: str | None) -> bool:
    try:
        (value or "").encode()
    except UnicodeEncodeError:
        return False
    return True
