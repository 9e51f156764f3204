"""Rounds of a file: rows are checked, a run learns from them and proposes more.

The first round is a run in OUT, the next ones are in OUT/round_2, OUT/round_3, ... What a person
typed into a `to_check.csv` is added to `OUT/answers.csv` before anything else is written.
"""

import collections
import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from absl import logging
from etils import epath

from mlc_jax import paths
from mlc_jax.commands.answers import (
    Answer,
    Typed,
    append,
    canonical,
    csv_of,
    is_one,
    read,
    typed_in,
)
from mlc_jax.data.folds import RANDOM
from mlc_jax.data.source import UNKNOWN
from mlc_jax.data.votes import vote_of_most
from mlc_jax.errors import InputError
from mlc_jax.files.own import FIELD, LabelledFile, in_order
from mlc_jax.files.tables import Table
from mlc_jax.files.values.checks import Checking
from mlc_jax.report import to_check
from mlc_jax.report.steps import shown_path
from mlc_jax.workdir.described import WRITTEN, is_config, is_opened

ANSWERS_FILE = "answers.csv"
USED_FILE = "answers_used.csv"  # Those that a round was trained with.
FIRST_FILE = "to_check_first.csv"  # The one that was drawn before the first round, filled in.

_KEY_FILE = "checks.txt"  # Hashes of a round's checks and of its labels.
_ROWS_FILE = "to_check_rows.json"  # What stands in rows that have no ids.
_SEEN_FILE = "to_check_seen.json"  # What each file of rows to check held when it was last read.
# What a round may have left that was stopped before its config.json was written.
_BEFORE = re.compile(
    r"\..*|.*\.log|(answers_used\.csv|checks\.txt|left_out\.csv)(\.partial)?|checkpoints|encoder"
)
_ROUND = re.compile(r"round_\d+")
_OURS = (ANSWERS_FILE, to_check.FILE, FIRST_FILE)


# Maps row numbers to the cells of each row, as text by column, without labels.
Cells = Callable[[Sequence[int]], Sequence[Mapping[str, str]]]


class Rounds:
    """The rounds of a file so far, in its directory OUT.

    Args:
      out: that directory; it need not be there yet.
      checks: further files of checks; their rows count where those of a new class are counted.

    Raises:
      InputError: it is there, with files that are not ours.
    """

    def __init__(self, out: epath.Path, checks: Sequence[str] = ()):
        self.out, self._checks = out, checks
        if _ROUND.fullmatch(out.name) and (out.parent / "config.json").exists():
            raise InputError(
                f"--out: {str(out)!r} is a round of {str(out.parent)!r}; expected that, to go on "
                "with its rounds, or another directory"
            )
        paths.check_regular(out, "--out", is_opened)
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
        """Warns if earlier rounds used a file of another name; it may be an older version."""
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
        return read(self.out / ANSWERS_FILE)

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
        for answer in self.standing(file):
            digests[0].update(f"{answer.id}\n{answer.label}\n".encode())
        if file.ids is not None:
            digests[1].update("\n".join(map(str, file.ids)).encode())
        return digests[0].hexdigest(), digests[1].hexdigest()

    def standing(self, file: LabelledFile) -> list[Answer]:
        """The newest answer for each row of the file.

        Raises:
          InputError: no answer is for a row of the file, or a label is not one of the file's, nor a
            new class.
        """
        return self._newest(file, self.answers(), [])

    def _newest(
        self, file: LabelledFile, answers: Sequence[Answer], typed: Sequence[Answer]
    ) -> list[Answer]:
        """The same of other answers; `typed` are those that are not in `answers.csv` yet."""
        newest, gone = dict[str, Answer](), set[str]()
        checking, place = Checking(file), str(self.out / ANSWERS_FILE)
        for answer in answers:
            row = checking.row(answer.id)
            if row is None:
                gone.add(answer.id)
                continue
            if not answer.label.strip():  # It was taken out.
                newest.pop(checking.ids[row], None)
                continue
            number = checking.label_or_new(answer.label)
            if number is None:
                raise InputError(
                    f"{FIELD}checked: {place!r} says that id {answer.id!r} is {answer.label!r}, "
                    f"which no row of {file.path!r} was given; expected one of its labels, such as "
                    f"{checking.names[0]!r}"
                )
            name = checking.ids[row]
            newest[name] = answer._replace(id=name, label=checking.names[number])
        rows_of = collections.defaultdict(set)
        for answer in newest.values():
            rows_of[answer.label].add(checking.row(answer.id))
        for path in self._checks:
            for _, written, label, _ in checking.said(Table(f"{FIELD}checked", path)):
                number = checking.label_or_new(label)
                if number is not None:  # Else the run refuses it.
                    rows_of[checking.names[number]].add(checking.row(written))
        single = [name for name in checking.new_names if len(rows_of[name]) == 1]
        for answer in newest.values():
            if answer.label in single:
                is_typed = answer.id in {x.id for x in typed}
                where = str(self.out / answer.file) if is_typed else place
                raise InputError(
                    f"{FIELD}checked: {where!r} says that id {answer.id!r} is "
                    f"{checking.alone(answer.label, single)}"
                )
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

        Only what a person changed in such a file since it was last read counts. A label that was
        taken out again is added as an empty one. So changes that a person makes in `answers.csv`
        stay.

        Args:
          file: the user's, whose ids and labels they must be.
          cells: see `remember`.

        Returns:
          How many labels are new.

        Raises:
          InputError: an answer that cannot be one, or a row that is no longer in its place;
            nothing was written.
        """
        known, checking = self.answers(), Checking(file)
        before = {(x.file, canonical(checking, x.id)): x.label for x in known}
        last = {canonical(checking, x.id): (x.file, bool(x.label.strip())) for x in known}
        seen = self._seen(checking) if known else {}
        typed, new, gone = self._typed(checking), list[Answer](), list[Answer]()
        for (place, name, identifier), rows in typed.items():
            then = seen.get(place, {}).pop(identifier, "")
            if not rows:
                if then and last.get(identifier) == (name, True):
                    gone.append(Answer(identifier, "", "", name))
                continue
            seen.setdefault(place, {})[identifier] = rows[-1].label
            was = (then, before.get((name, identifier), ""))
            if any(all(is_one(checking, x.label, one) for x in rows) for one in was if one):
                continue
            of_row = Checking(file)
            for x in rows:
                row, _ = of_row.add(x.table, x.line, x.id, x.label)
            said = of_row.names[of_row.numbers[row]]
            new.append(Answer(of_row.ids[row], said, rows[0].why, name))
        self._check_places(file, [*known, *new], cells)
        if any(checking.label(x.label) is None for x in [*known, *new] if x.label.strip()):
            self._newest(file, [*known, *new, *gone], new)  # A new class needs two rows.
        if new or gone:
            append([*new, *gone], self.out / ANSWERS_FILE)
        if known or new:
            seen.setdefault(to_check.FILE, {})
            paths.write(self.out / _SEEN_FILE, json.dumps(seen).encode())
        if gone:
            names = ", ".join(x.id for x in gone[:3])
            logging.info("Answers that were taken out: %d, of id %s.", len(gone), names)
        return len(new)

    def _typed(self, checking: Checking) -> dict[tuple[str, str, str], list[Typed]]:
        """Labels in the files of rows to check, by file, its name in `answers.csv`, and the id.

        A row without a label has an empty list.
        """
        # The first file is renamed before the first round; its answers keep the old name.
        places = [(FIRST_FILE, to_check.FILE)]
        for number in range(1, max(1, self.newest) + 1):
            name = str((self.directory(number) / to_check.FILE).relative_to(self.out))
            places.append((name, name))
        typed: dict[tuple[str, str, str], list[Typed]] = {}
        for place, name in places:
            for one in typed_in(self.out / place):
                of_row = typed.setdefault((place, name, canonical(checking, one.id)), [])
                of_row += [one] if checking.says_something(one.label) else []
        return typed

    def _seen(self, checking: Checking) -> dict[str, dict[str, str]]:
        """What stood in each of these files when it was looked at last, by id."""
        seen = _json_of(self.out / _SEEN_FILE)
        if self.newest and not seen:  # Older versions kept only what they trained with.
            used = read(self.directory(self.newest) / USED_FILE)
            trained = {canonical(checking, x.id): x.label for x in used}
            seen = {name: dict(trained) for name in (FIRST_FILE, *{x.file for x in self.answers()})}
        one, other = FIRST_FILE, to_check.FILE
        if not (self.out / FIRST_FILE).exists():  # The round was taken back.
            one, other = other, one
        if one not in seen and other in seen:
            seen[one] = seen.pop(other)
        return seen

    def remember(self, number: int, file: LabelledFile, cells: Cells) -> None:
        """Keeps what stands in the rows to check, where rows are known by their places alone.

        Args:
          number: of the round; its data are those of `file`.
          file: the user's.
          cells: see `Cells`.
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
        directory, answers = self.directory(number), self.standing(file)
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
            paths.write(directory / USED_FILE, csv_of(answers))
        paths.write(directory / _KEY_FILE, key)
        filled_in = self.out / to_check.FILE
        if number == 1 and filled_in.exists():  # The run writes another one in its place.
            filled_in.replace(self.out / FIRST_FILE)

    def take_back(self, number: int) -> None:
        """Removes what `begin` wrote, unless a run of any process has started after it."""
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
    """Makes a directory; raises InputError if that fails."""
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
      show: maps row numbers to columns that show them to a reader, in addition to the id.
    """
    learned = np.flatnonzero(~file.judging)
    ids = np.arange(len(file.judging)).astype(str) if file.ids is None else file.ids
    number = min(to_check.NUM_FIRST, max(1, len(learned) // 2))
    rows = learned[to_check.drawn_at_random(ids[learned], number)]
    shown = {"id": ids[rows].tolist(), "given_label": _given(file, rows)}
    shown |= show(rows.tolist())
    return to_check.table(shown, [RANDOM] * number), shown, rows.tolist()


def _given(file: LabelledFile, rows: np.ndarray) -> list[str]:
    """The given labels of rows; with several sources the majority vote. "" for none."""
    labels = file.labels if file.votes is None else file.votes
    names = in_order(labels.names)
    numbers = np.array([*(names.index(name) for name in labels.names), UNKNOWN])
    given = numbers[labels.numbers[rows]]
    if file.votes is not None:  # Nothing is checked, so all sources are equally good.
        given = vote_of_most(given, np.full(given.shape[1], 0.5), len(names))
    return np.array([*names, ""])[given].tolist()


def _kept(directory: epath.Path) -> dict[str, dict[str, str]]:
    """Hashes of cells of rows, by row and column; see `Rounds.remember`."""
    return _json_of(directory / _ROWS_FILE)


def _json_of(place: epath.Path) -> dict[str, dict[str, str]]:
    """A file of ours; empty if it is not there, or damaged."""
    try:
        kept = json.loads(place.read_bytes())
    except (OSError, ValueError):
        return {}
    is_ours = isinstance(kept, dict) and all(isinstance(x, dict) for x in kept.values())
    return kept if is_ours else {}


def _hashed(cells: Mapping[str, str]) -> dict[str, str]:
    return {
        name: hashlib.blake2b(text.encode(), digest_size=4).hexdigest()
        for name, text in cells.items()
    }
