"""Rounds of a file: rows are checked, a run learns from them and proposes more.

The first round is a run in OUT, the next ones are in OUT/round_2, OUT/round_3, ... What a person
typed into a `to_check.csv` is added to `OUT/answers.csv` before anything else is written.
"""

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import logging
from etils import epath

from mlc_jax import paths
from mlc_jax.data.folds import RANDOM
from mlc_jax.data.source import UNKNOWN
from mlc_jax.errors import InputError
from mlc_jax.files.own import FIELD, LabelledFile
from mlc_jax.files.tables import Table
from mlc_jax.files.values.checks import Checking
from mlc_jax.files.values.names import for_spreadsheet, from_spreadsheet
from mlc_jax.report import to_check
from mlc_jax.report.steps import shown_path
from mlc_jax.workdir.described import WRITTEN, is_config

ANSWERS_FILE = "answers.csv"
USED_FILE = "answers_used.csv"  # Those that a round was trained with.
FIRST_FILE = "to_check_first.csv"  # The one that was drawn before the first round, filled in.

_KEY_FILE = "checks.txt"  # Differs where the checks of a round do, or its labels.
_ROWS_FILE = "to_check_rows.json"  # What stands in rows that have no ids.
# What a round may have left that was stopped before its config.json was written.
_BEFORE = re.compile(
    r"\..*|.*\.log|answers_used\.csv|checks\.txt|left_out\.csv|checkpoints|encoder"
)
_COLUMNS = ("id", "checked_label", "why", "file")
_OURS = (ANSWERS_FILE, to_check.FILE, FIRST_FILE)


# Rows -> of each the texts of its cells, by column, without labels.
Cells = Callable[[Sequence[int]], Sequence[Mapping[str, str]]]


class Answer(NamedTuple):
    """A label that somebody typed.

    Attributes:
      id: of the row.
      label: what it is.
      why: the row was there to be checked.
      file: it was typed into, relative to OUT.
    """

    id: str
    label: str
    why: str
    file: str


class _Typed(NamedTuple):
    """A label in a file of rows to check, as it stands there."""

    table: Table
    line: int
    id: str
    label: str
    why: str


class Rounds:
    """The rounds of a file so far, in its directory OUT.

    Args:
      out: that directory; it need not be there yet.

    Raises:
      InputError: it is there, with files that are not ours.
    """

    def __init__(self, out: epath.Path):
        self.out = out
        if out.exists():
            names = [place.name for place in out.iterdir()] if out.is_dir() else [out.name]
            foreign = sorted(name for name in names if not WRITTEN.fullmatch(name))
            config = out / "config.json"
            is_ours = {*names} & {*_OURS} or (config.is_file() and is_config(config.read_bytes()))
            if foreign and not is_ours:
                raise InputError(
                    f"--out: {str(out)!r} is there with other files in it, such as {foreign[0]!r}; "
                    "expected a directory that `mlc-jax correct` made, or a new one"
                )

    def directory(self, number: int) -> epath.Path:
        """The directory of a round; rounds count from 1."""
        return self.out if number == 1 else self.out / f"round_{number}"

    @property
    def newest(self) -> int:
        """The newest round that was started; 0 before the first one."""
        number = 0
        while (self.directory(number + 1) / "config.json").exists():
            number += 1
        return number

    def has_ended(self, number: int) -> bool:
        return (self.directory(number) / "results.json").exists()

    def check_file(self, path: str) -> None:
        """Says that the rounds so far were of a file of another name; it may be a newer version."""
        try:
            config = json.loads((self.directory(self.newest) / "config.json").read_bytes())
            before = str(config["dataset"]["data"])
        except (OSError, ValueError, KeyError, TypeError):
            return
        if epath.Path(before).name != epath.Path(path).name:
            logging.warning(
                "%s was made from %s, and continues with %s; if that is another table, choose "
                "another --out.", shown_path(self.out), before, path,
            )  # fmt: skip

    def answers(self) -> list[Answer]:
        """All answers, in order of time."""
        return _read(self.out / ANSWERS_FILE)

    def is_known(self, number: int, file: LabelledFile, checks: Sequence[str]) -> bool:
        """Whether a round learned from all present checks, and its rows had these labels.

        Args:
          number: of the round.
          file: the user's.
          checks: further files of checks.
        """
        place = self.directory(number) / _KEY_FILE
        if not place.exists():
            return False
        of_checks, _, of_rows = place.read_bytes().decode(errors="replace").partition("\n")
        keys = self._keys(file, checks)
        if of_rows and of_rows != keys[1]:
            logging.info("Rows or labels of %s have changed since round %d.", file.path, number)
            return False
        return of_checks == keys[0]

    def _keys(self, file: LabelledFile, checks: Sequence[str]) -> tuple[str, str]:
        """Hashes: of the checked rows and their labels; of all rows and their labels."""
        digests = [hashlib.blake2b(digest_size=8) for _ in range(2)]
        columns = (file.checked, file.split, file.drawn), (file.labels, file.votes)
        for digest, labels in zip(digests, columns, strict=True):
            for one in labels:
                if one is not None:
                    digest.update("\n".join(one.names).encode() + one.numbers.tobytes())
        for path in checks:
            Table(f"{FIELD}checked", path)  # Raises the error if there is no such file.
            digests[0].update(paths.local(path, f"{FIELD}checked").read_bytes())
        for answer in self._newest(file):
            digests[0].update(f"{answer.id}\n{answer.label}\n".encode())
        if file.ids is not None:
            digests[1].update("\n".join(map(str, file.ids)).encode())
        return digests[0].hexdigest(), digests[1].hexdigest()

    def _newest(self, file: LabelledFile) -> list[Answer]:
        """The newest answer for each row of the file.

        Raises:
          InputError: none is for a row of the file, or a label is none of its own.
        """
        checking, newest, gone = Checking(file), dict[str, Answer](), set[str]()
        answers, place = self.answers(), str(self.out / ANSWERS_FILE)
        for answer in answers:
            row = checking.row(answer.id)
            if row is None:
                gone.add(answer.id)
                continue
            if not answer.label.strip():  # It was taken out.
                newest.pop(checking.ids[row], None)
                continue
            number = checking.label(answer.label)
            if number is None:
                raise InputError(
                    f"{FIELD}checked: {place!r} says that id {answer.id!r} is {answer.label!r}, "
                    f"which no row of {file.path!r} was given; expected one of its labels, such as "
                    f"{checking.names[0]!r}"
                )
            name = checking.ids[row]
            newest[name] = answer._replace(id=name, label=checking.names[number])
        if gone and not newest:
            raise InputError(
                f"{FIELD}checked: no id of {place!r}, such as {answers[0].id!r}, is in "
                f"{file.path!r}; expected the file that these answers are for, or another --out"
            )
        if gone:
            logging.warning(
                "Answers that are kept but not used, because %s has no such row: %d, with id %s.",
                file.path, len(gone), ", ".join(sorted(gone)[:3]),
            )  # fmt: skip
        return [*newest.values()]

    def take_up(self, file: LabelledFile, cells: Cells) -> int:
        """Adds what was typed into the files of rows to check to `answers.csv`.

        An answer is new if a person changed it: it is neither in `answers.csv`, for that file, nor
        what the last round was trained with. So an answer that is changed or taken out in
        `answers.csv` stays so.

        Args:
          file: the user's, whose ids and labels they must be.
          cells: see `remember`.

        Returns:
          How many answers are new.

        Raises:
          InputError: an answer that cannot be one, or a row that is no longer in its place;
            nothing was written.
        """
        known, checking = self.answers(), Checking(file)
        before = {(x.file, _canonical(checking, x.id)): x.label for x in known}
        used = _read(self.directory(self.newest) / USED_FILE) if known and self.newest else []
        trained = {_canonical(checking, x.id): x.label for x in used}
        new: list[Answer] = []
        for (name, identifier), typed in self._typed(checking).items():
            if before.get((name, identifier), "x").strip() == "":  # Taken out in `answers.csv`.
                continue
            last = [before.get((name, identifier)), trained.get(identifier)]
            if any(all(_is_one(checking, x.label, one) for x in typed) for one in last if one):
                continue
            of_row = Checking(file)
            for x in typed:
                row, _ = of_row.add(x.table, x.line, x.id, x.label)
            said = of_row.names[of_row.numbers[row]]
            new.append(Answer(of_row.ids[row], said, typed[0].why, name))
        self._check_places(file, [*known, *new], cells)
        if new:
            self._append(new)
        return len(new)

    def _append(self, answers: Sequence[Answer]) -> None:
        """Adds rows to `answers.csv`; what a person has added to it stays."""
        place = self.out / ANSWERS_FILE
        if not place.exists():
            paths.write(place, _csv(answers))
            return
        table, before = Table(f"{FIELD}checked", str(place)), place.read_bytes()
        text = io.StringIO()
        writer = csv.writer(text, delimiter=table.separator, lineterminator="\n")
        for answer in answers:
            fields = dict(zip(_COLUMNS, map(for_spreadsheet, answer), strict=True))
            writer.writerow([fields.get(name, "") for name in table.header()])
        between = b"" if before.endswith(b"\n") else b"\n"
        paths.write(place, before + between + text.getvalue().encode())

    def _typed(self, checking: Checking) -> dict[tuple[str, str], list[_Typed]]:
        """What stands in the files of rows to check, by their name in `answers.csv` and the id."""
        # It is moved there before the first round. What was taken up keeps its name.
        places = [(self.out / FIRST_FILE, to_check.FILE)]
        for number in range(1, max(1, self.newest) + 1):
            place = self.directory(number) / to_check.FILE
            places.append((place, str(place.relative_to(self.out))))
        typed: dict[tuple[str, str], list[_Typed]] = {}
        for place, name in places:
            if not to_check.is_filled_in(place):
                continue
            table, here = (
                Table(f"{FIELD}checked", str(place)),
                dict[tuple[str, str], list[_Typed]](),
            )
            for line, written, label, why in checking.said(table):
                one = _Typed(table, line, written, label, why)
                here.setdefault((name, _canonical(checking, written)), []).append(one)
            typed |= here
        return typed

    def remember(self, number: int, file: LabelledFile, cells: Cells) -> None:
        """Keeps what stands in the rows to check, where rows are known by their places alone.

        Args:
          number: of the round; its data are those of `file`.
          file: the user's.
          cells: rows -> of each the texts of its cells, by column, without labels.
        """
        directory = self.directory(number)
        if file.ids is not None or not (directory / to_check.FILE).exists():
            return
        table, checking = Table("--out", str(directory / to_check.FILE)), Checking(file)
        try:
            found = [checking.row(values[0] or "") for _, values in table.rows(["id"])]
        except InputError:
            return  # Somebody is editing it; errors are raised when its answers are read.
        rows = [row for row in found if row is not None]
        kept = _kept(directory) | dict(zip(map(str, rows), map(_hashed, cells(rows)), strict=True))
        paths.write(directory / _ROWS_FILE, json.dumps(kept).encode())

    def _check_places(self, file: LabelledFile, answers: Sequence[Answer], cells: Cells) -> None:
        """Raises InputError if an answer is for a row that is now another one."""
        if file.ids is not None:
            return
        kept = {x.file: _kept((self.out / x.file).parent) for x in answers}
        said = [x for x in answers if x.id in kept[x.file] and int(x.id) < len(file.judging)]
        for answer, now in zip(said, map(_hashed, cells([int(x.id) for x in said])), strict=True):
            then = kept[answer.file][answer.id]
            same = [now[name] == text for name, text in then.items() if name in now]
            if 2 * sum(same) < max(len(same), 1):
                raise InputError(
                    f"{file.field}: {file.name_row(int(answer.id))} of {file.path!r} is another "
                    f"one than when {answer.file} asked for it, and without ids a row is known by "
                    "its place; expected the rows in their old places, and new ones at the end. If "
                    f"only values changed: --checks={self.out / ANSWERS_FILE} with another --out"
                )

    def begin(self, number: int, file: LabelledFile, checks: Sequence[str]) -> None:
        """Creates the directory of a round and saves the answers that it uses; see `is_known`."""
        directory, answers = self.directory(number), self._newest(file)
        key = "\n".join(self._keys(file, checks)).encode()
        if number > 1 and directory.is_dir():
            foreign = [x.name for x in directory.iterdir() if not _BEFORE.fullmatch(x.name)]
            if foreign:
                raise InputError(
                    f"--out: {str(directory)!r} has files that are not of a round, such as "
                    f"{foreign[0]!r}; expected nothing there"
                )
        make(directory)
        if answers:
            paths.write(directory / USED_FILE, _csv(answers))
        paths.write(directory / _KEY_FILE, key)
        filled_in = self.out / to_check.FILE
        if number == 1 and filled_in.exists():  # The run writes another one in its place.
            filled_in.replace(self.out / FIRST_FILE)

    def take_back(self, number: int) -> None:
        """Removes what `begin` wrote, unless a run has started after it, of whatever process."""
        directory = self.directory(number)
        if any((directory / name).exists() for name in ("config.json", ".lock")):
            return
        for name in (USED_FILE, _KEY_FILE):
            (directory / name).unlink(missing_ok=True)
        first, filled_in = self.out / FIRST_FILE, self.out / to_check.FILE
        if number == 1 and first.exists() and not filled_in.exists():
            first.replace(filled_in)
        if not any(directory.iterdir()):
            directory.rmdir()


def make(directory: epath.Path) -> None:
    """Raises InputError where it cannot be made."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"--out: cannot write to {str(directory)!r} ({error.strerror}); expected a directory "
            "that this user may write to"
        ) from error


def is_checked(file: LabelledFile) -> bool:
    """Whether the user's file has a checked label to learn from."""
    if file.checked is None:
        return False
    return bool(((file.checked.numbers != UNKNOWN) & ~file.judging).any())


def first_to_check(
    file: LabelledFile, show: Callable[[Sequence[int]], dict[str, list[str]]]
) -> tuple[bytes, dict[str, list[str]], list[int]]:
    """A `to_check.csv` of random rows, if none is checked yet; its columns, and the rows.

    Args:
      file: the user's.
      show: rows -> columns that show them to a reader, in addition to the id.
    """
    learned = np.flatnonzero(~file.judging)
    ids = np.arange(len(file.judging)).astype(str) if file.ids is None else file.ids
    number = min(to_check.NUM_FIRST, max(1, len(learned) // 2))
    rows = learned[to_check.drawn_at_random(ids[learned], number)]
    names = np.array([*file.labels.names, ""])
    shown = {
        "id": ids[rows].tolist(),
        "given_label": names[file.labels.numbers[rows]].tolist(),
    }
    shown |= show(rows.tolist())
    return to_check.table(shown, [RANDOM] * number), shown, rows.tolist()


def _canonical(checking: Checking, written: str) -> str:
    """An id as the user's file has it; as it is written where no row has it."""
    row = checking.row(written)
    return from_spreadsheet(written) if row is None else checking.ids[row]


def _is_one(checking: Checking, label: str, other: str) -> bool:
    """Whether two texts are one label."""
    number = checking.label(label)
    return label == other or (number is not None and number == checking.label(other))


def _kept(directory: epath.Path) -> dict[str, dict[str, str]]:
    """Hashes of cells of rows, by row and column; see `Rounds.remember`."""
    try:
        kept = json.loads((directory / _ROWS_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
    is_ours = isinstance(kept, dict) and all(isinstance(x, dict) for x in kept.values())
    return kept if is_ours else {}


def _hashed(cells: Mapping[str, str]) -> dict[str, str]:
    return {
        name: hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        for name, text in cells.items()
    }


def _read(place: epath.Path) -> list[Answer]:
    if not place.exists():
        return []
    rows = Table(f"{FIELD}checked", str(place)).rows(_COLUMNS)
    return [Answer(*(from_spreadsheet(x or "") for x in values)) for _, values in rows]


def _csv(answers: Sequence[Answer]) -> bytes:
    columns = zip(*answers, strict=True)
    return to_check.csv_of(dict(zip(_COLUMNS, map(list, columns), strict=True)))
