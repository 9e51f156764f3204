"""Labels that somebody checked later: a `to_check.csv`, or any table of ids and labels."""

import hashlib
import os
from collections.abc import Iterator, Sequence

import numpy as np

from mlc_jax.data.folds import LOOKED_UP, RANDOM
from mlc_jax.data.source import UNKNOWN
from mlc_jax.files.own import FIELD, Checks, LabelledFile, Labels
from mlc_jax.files.tables import Table
from mlc_jax.files.values.names import (
    MAX_LENGTH,
    Known,
    bare,
    bare_id,
    from_spreadsheet,
    is_number,
    truth_values,
)
from mlc_jax.files.values.together import NOBODY_LOOKED, is_no_class, nearest

_TICKS = ("true", "false", "y", "n")  # They are no classes, unless the file has them.


def read_checks(
    checks: Sequence[str | Table], file: LabelledFile, setting: str | None = None
) -> Checks:
    """Labels of rows of a file that were checked later, `[N]`, and how these rows were chosen.

    Args:
      checks: tables, or their paths; see `Checking.said`. Their column `why` says, as in a
        `to_check.csv`, which rows were drawn at random. These are the next ones of one order, see
        `random_order`. A looked-up row also counts as random once that order has passed it.
      file: `config.dataset.data`.
      setting: how rows without `why` were chosen; None counts them as looked up.

    Raises:
      InputError: an id that the file lacks, a test or validation row, two labels of one row, a
        label that is none (`todo`), or a new one of a single row; see `Checking`.
    """
    checking = Checking(file)
    drawn = np.full(len(checking.ids), "", "U9")
    unsaid = []
    for one in checks:
        table, found = one if isinstance(one, Table) else Table(f"{FIELD}checked", one), False
        for line, written, label, why in checking.said(table):
            found = True
            row, is_new = checking.add(table, line, written, label)
            if is_new:
                drawn[row] = RANDOM if why == RANDOM else LOOKED_UP
                unsaid += [] if why.strip() else [row]
        if not found:
            table.fail("has no checked_label; expected some that are filled in")
    checking.check_new()
    order = random_order(checking.ids)
    last = max(order[drawn == RANDOM], default=-1)
    drawn[(drawn == LOOKED_UP) & (order < last)] = RANDOM
    if setting is not None:  # These are another sample than that of `order`.
        drawn[unsaid] = setting
    return Checks(Labels(tuple(checking.names), checking.numbers), drawn)


class Checking:
    """The rows and labels of a user's file that tables of checks speak of.

    It also finds ids and labels that a spreadsheet or a person has rewritten, such as `29` for
    `00029` and `DOG` for `dog`, if only one fits. Unless the user has named the classes, a label
    that the file does not have is a new class if two rows have it. One row alone is probably a
    typing error.

    Args:
      file: `config.dataset.data`.

    Attributes:
      ids: N texts; numbers of the rows, from 0, if the file has no ids.
      names: of all classes that the user has named, of all labels in the file, then new ones.
      numbers: `[N]` int32, checked labels so far, as places in `names`; UNKNOWN for none. At first
        they are those in the file.
    """

    def __init__(self, file: LabelledFile):
        self._file = file
        named = range(len(file.labels.numbers)) if file.ids is None else file.ids
        self.ids = [str(name) for name in named]
        self.names = [*file.class_names]
        self.numbers = np.full(len(self.ids), UNKNOWN, np.int32)
        places = file.class_numbers
        self._rows = Known({name: row for row, name in enumerate(self.ids)}, bare_id)
        self._names, self._places = Known(places, bare), dict[int, str]()
        self._new: dict[str, int] = {}
        self._first: dict[int, tuple[Table, int]] = {}  # Where each new label was read first.
        if file.checked is not None:
            for row in np.flatnonzero(file.checked.numbers != UNKNOWN).tolist():
                self.numbers[row] = places[file.checked.names[file.checked.numbers[row]]]
                self._places[row] = f"{file.path!r} {file.name_row(row)}"

    def said(self, table: Table) -> Iterator[tuple[int, str, str, str]]:
        """Yields line, id, label and `why` of the rows that somebody checked, as written."""
        for line, (written, label, why) in table.rows(["id", "checked_label"], ["why"]):
            if self.says_something(label or ""):
                yield line, written or "", label or "", why or ""

    def says_something(self, label: str) -> bool:
        """Whether somebody looked; -1 and blanks say that nobody did."""
        is_none = label in NOBODY_LOOKED and label not in self._names.numbers
        return bool(label.strip()) and not is_none

    def row(self, written: str) -> int | None:
        """The row of an id; None if there is none, or if it could be several."""
        row = self._rows.find(written)
        if row is None and self._file.aliases:
            plain = os.path.normpath(from_spreadsheet(written))
            row = self._rows.find(plain)
            row = self._file.aliases.get(plain) if row is None else row
        return row

    def label(self, written: str) -> int | None:
        """The number of a label; None if there is none, or if it could be several."""
        number, name = self._names.find(written), from_spreadsheet(written).strip()
        if number is None:  # TRUE beside 1 and 0 is 1.
            same = truth_values([*self._names.numbers, name])
            meant = [x for x, word in same.items() if word == name] + [same.get(name, "")]
            number = self._names.find(meant[0]) if meant[0] else self._new.get(bare(name))
        return number

    def label_or_new(self, written: str) -> int | None:
        """The number of a label, which may be that of a new class; None if it is no class."""
        number, name = self.label(written), from_spreadsheet(written).strip()
        if number is not None:
            return number
        # A 1, or a TRUE, says that the given label is right, where labels are words.
        is_mark = is_number(name) and not any(map(is_number, self.names))
        is_mark |= name.casefold() in _TICKS
        is_none = is_mark or is_no_class(name) or len(name) > MAX_LENGTH
        if self._file.classes or is_none or self._names.is_like_several(name):
            return None
        number = self._new.setdefault(bare(name), len(self.names))
        self.names += [name] if number == len(self.names) else []
        return number

    def add(self, table: Table, line: int, written: str, label: str) -> tuple[int, bool]:
        """The row of a check, and whether it is the first one of that row.

        Raises:
          InputError: as `read_checks`.
        """
        file, row = self._file, self.row(written)
        if row is None:
            table.fail(f"id {written!r} is not in {file.path!r}; expected one of its ids", line)
        if file.judging[row]:
            table.fail(f"id {written!r} is a row that judges; expected one to train with", line)
        number = self.label_or_new(label)
        if number is None:
            more = ", ..." if len(self.names) > 10 else ""
            table.fail(
                f"checked_label is {label[:40]!r}, which no row was given; expected one of "
                f"{', '.join(self.names[:10])}{more}, or nothing where nobody looked",
                line,
            )
        if number in self._new.values():
            self._first.setdefault(number, (table, line))
        is_new = row not in self._places
        if not is_new and self.numbers[row] != number:
            table.fail(
                f"id {written!r} is checked as {label!r}, and as "
                f"{self.names[self.numbers[row]]!r} in {self._places[row]}; expected one label",
                line,
            )
        self.numbers[row] = number
        self._places.setdefault(row, f"{table.path!r} {table.place(line)}")
        return row, is_new

    @property
    def new_names(self) -> list[str]:
        """Labels that the file does not have."""
        return self.names[len(self.names) - len(self._new) :]

    def check_new(self) -> None:
        """Refuses a new label of a single row."""
        times = {number: int((self.numbers == number).sum()) for number in self._first}
        single = [self.names[number] for number, count in times.items() if count == 1]
        for number, (table, line) in self._first.items():
            if self.names[number] in single:
                table.fail(f"checked_label is {self.alone(self.names[number], single)}", line)

    def alone(self, name: str, single: Sequence[str]) -> str:
        """For messages: a new label of a single row; `single` are all of these."""
        near = nearest(name, [x for x in self.names if x not in single])
        return (
            f"{name!r}, which no row was given, and no other row has it; expected one of the "
            f"file's labels, such as {near!r}, two rows at least of a new class, or its name in "
            "config.dataset.class_names"
        )


def random_order(ids: Sequence[str] | np.ndarray) -> np.ndarray:
    """The place of each row in the random order in which rows are drawn to be checked; int64 `[N]`.

    It depends only on the ids. So the rows that it has passed are a random sample of all rows,
    whatever else was checked. Rows drawn from the unchecked ones would be no such sample.
    """
    keys = [hashlib.blake2b(str(name).encode(), digest_size=8).digest() for name in ids]
    ranks = np.empty(len(keys), np.int64)
    ranks[sorted(range(len(keys)), key=keys.__getitem__)] = np.arange(len(keys))
    return ranks
