"""Rounds of a file: rows are checked, a run learns from them and proposes more.

The first round is a run in OUT, the next ones are in OUT/round_2, OUT/round_3, ... What a person
typed into a `to_check.csv` is added to `OUT/answers.csv` before anything else is written.
"""

import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from etils import epath

from mlc_jax import paths
from mlc_jax.data.folds import RANDOM
from mlc_jax.data.source import UNKNOWN
from mlc_jax.errors import InputError
from mlc_jax.files.label_columns import from_spreadsheet, read_checks
from mlc_jax.files.own import FIELD, LabelledFile
from mlc_jax.files.tables import Table
from mlc_jax.report import to_check

ANSWERS_FILE = "answers.csv"
USED_FILE = "answers_used.csv"  # Those that a round was trained with.
FIRST_FILE = "to_check_first.csv"  # The one that was drawn before the first round, filled in.

_KEY_FILE = "checks.txt"  # Differs where the checks of a round do.
_COLUMNS = ("id", "checked_label", "why", "file")
_OURS = (ANSWERS_FILE, to_check.FILE, FIRST_FILE, "config.json", ".lock", "checkpoints", _KEY_FILE)


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
            if names and not {*names} & {*_OURS}:
                raise InputError(
                    f"--out: {str(out)!r} is there with other files in it, such as {names[0]!r}; "
                    "expected a directory that `mlc-jax correct` made, or a new one"
                )

    def directory(self, number: int) -> epath.Path:
        """The directory of a round; rounds count from 1."""
        return self.out if number == 1 else self.out / f"round_{number}"

    @property
    def newest(self) -> int:
        """The newest round that was begun; 0 before the first one."""
        number = 0
        while (self.directory(number + 1) / "config.json").exists():
            number += 1
        return number

    def has_ended(self, number: int) -> bool:
        return (self.directory(number) / "results.json").exists()

    def answers(self) -> list[Answer]:
        """All answers, in order of time."""
        return _read(self.out / ANSWERS_FILE)

    def is_known(self, number: int, file: LabelledFile, checks: Sequence[str]) -> bool:
        """Whether a round learned from all present checks.

        Args:
          number: of the round.
          file: the user's.
          checks: further files of checks.
        """
        place = self.directory(number) / _KEY_FILE
        return place.exists() and place.read_text() == self._key(file, checks)

    def _key(self, file: LabelledFile, checks: Sequence[str]) -> str:
        """A hash of the checked rows and their labels."""
        digest = hashlib.blake2b(digest_size=8)
        for labels in (file.checked, file.split, file.drawn):
            if labels is not None:
                digest.update("\n".join(labels.names).encode() + labels.numbers.tobytes())
        for path in checks:
            Table(f"{FIELD}checked", path)  # It says what is wrong if there is no such file.
            digest.update(paths.local(path, f"{FIELD}checked").read_bytes())
        for answer in self._newest():
            digest.update(f"{answer.id}\n{answer.label}\n".encode())
        return digest.hexdigest()

    def _newest(self) -> list[Answer]:
        """The newest answer for each row."""
        return [*{answer.id: answer for answer in self.answers()}.values()]

    def take_up(self, file: LabelledFile) -> int:
        """Adds what was typed into the files of rows to check to `answers.csv`.

        Args:
          file: the user's, whose ids and labels they must be.

        Returns:
          How many answers are new.

        Raises:
          InputError: an answer that cannot be one; nothing was written.
        """
        known = self.answers()
        before = {(answer.file, answer.id): answer.label for answer in known}
        new: list[Answer] = []
        for number in range(1, max(1, self.newest) + 1):
            place = self.directory(number) / to_check.FILE
            if not to_check.is_filled_in(place):
                continue
            read_checks([str(place)], file)
            name = str(place.relative_to(self.out))
            new += [x for x in _typed(place, name) if before.get((x.file, x.id)) != x.label]
        if new:
            paths.write(self.out / ANSWERS_FILE, _csv([*known, *new]))
        return len(new)

    def begin(self, number: int, file: LabelledFile, checks: Sequence[str]) -> None:
        """Creates the directory of a round and saves the answers that it uses; see `is_known`."""
        directory, answers = self.directory(number), self._newest()
        key = self._key(file, checks).encode()
        make(directory)
        if answers:
            paths.write(directory / USED_FILE, _csv(answers))
        paths.write(directory / _KEY_FILE, key)
        filled_in = self.out / to_check.FILE
        if number == 1 and filled_in.exists():  # The run writes another one in its place.
            filled_in.replace(self.out / FIRST_FILE)


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


def _typed(place: epath.Path, name: str) -> list[Answer]:
    rows = Table(f"{FIELD}checked", str(place)).rows(["id", "checked_label"], ["why"])
    return [
        Answer(from_spreadsheet(identifier or ""), from_spreadsheet(label), why or "", name)
        for _, (identifier, label, why) in rows
        if label and not label.isspace()
    ]


def _read(place: epath.Path) -> list[Answer]:
    if not place.exists():
        return []
    rows = Table(f"{FIELD}checked", str(place)).rows(_COLUMNS)
    return [Answer(*(from_spreadsheet(x or "") for x in values)) for _, values in rows]


def _csv(answers: Sequence[Answer]) -> bytes:
    columns = zip(*answers, strict=True)
    return to_check.csv_of(dict(zip(_COLUMNS, map(list, columns), strict=True)))
