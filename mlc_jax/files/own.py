"""A user's own files, of whatever kind: labels as given, and labels that somebody checked."""

import dataclasses
import difflib
import functools
import itertools
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from absl import logging

from mlc_jax.data.dataset import Benchmark
from mlc_jax.data.folds import DRAWN, PER_CLASS, RANDOM
from mlc_jax.data.source import UNKNOWN, Source, Subset
from mlc_jax.data.votes import prepared
from mlc_jax.errors import InputError
from mlc_jax.files.columns import Columns
from mlc_jax.files.values.names import look_alikes, whole

FIELD = "config.dataset."  # Of the settings that name files.
SPLITS = ("", "train", "test", "validation")  # What a row may say of itself.
SPLIT_NAMES = "train, test, validation or nothing"
_NUMBER = re.compile(r"-?\d+(\.\d+)?", re.ASCII)

# In `checked_label` they say that nobody looked, unless they are a label as given.
_NOBODY_LOOKED = ("-1", "-1.0")
# So do these, most likely, which could be names of a class as well.
_NO_CLASSES = frozenset({
    "todo", "tbd", "?", "??", "-", "--", "na", "n/a", "nan", "none", "null", "<na>", "unknown",
    "unchecked", "not checked", "x",
})  # fmt: skip


class Labels(NamedTuple):
    """A label for each row, or none.

    Attributes:
      names: each once.
      numbers: `[N]` int32, places in `names`; UNKNOWN where there is no label.
    """

    names: tuple[str, ...]
    numbers: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray) -> "Labels":
        """Of text `[N]`; empty is no label."""
        names, numbers = np.unique(labels, return_inverse=True)
        empty = int(len(names) > 0 and names[0] == "")  # "" comes before all others.
        numbers = (numbers - empty).astype(np.int32)  # That of "" is UNKNOWN then.
        return cls(tuple(str(name) for name in names[empty:]), numbers)

    def without(self, names: Sequence[str]) -> "Labels":
        """The same where these say that there is no label."""
        kept = [name for name in self.names if name not in names]
        places = [kept.index(x) if x in kept else UNKNOWN for x in self.names]
        return Labels(tuple(kept), np.array([*places, UNKNOWN], np.int32)[self.numbers])


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LabelledFile:
    """One file, read and checked but for its inputs.

    Attributes:
      field: the setting that names it: `config.dataset.noisy`.
      path: as given.
      labels: of every row; of several sources that of the first one that labels the row.
      checked: of the rows that somebody checked; None if the file does not have such labels.
      given: the labels of checked rows as they were before; None if they are not known.
      split: of every row, one of `SPLITS`; None if the file does not say.
      drawn: of every row, one of `folds.DRAWN` or nothing; None if the file does not say.
      votes: `[N, S]`, of several sources; None if there is one, of `labels`.
      source_names: their S names.
      ids: text `[N]`, each once; None where rows are known by their numbers.
      name_row: what messages call a row: `line 3`.
      create_source: of its inputs. Called once all labels are known to be right: it may take long.
    """

    field: str
    path: str
    labels: Labels
    checked: Labels | None
    given: Labels | None
    split: Labels | None
    ids: np.ndarray | None
    name_row: Callable[[int], str]
    create_source: Callable[[], Source]
    drawn: Labels | None = None
    votes: Labels | None = None
    source_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Takes out of `checked` what says that nobody looked."""
        if self.checked is None:
            return
        given = {*self.labels.names, *(self.votes.names if self.votes else ())}
        for number, name in enumerate(self.checked.names):
            if name.casefold().strip() in _NO_CLASSES and name not in given:
                row = int((self.checked.numbers == number).argmax())
                self.fail(
                    f"{self.name_row(row)}: checked_label is {name!r}, which no row was given; "
                    "leave it empty where nobody looked"
                )
        if not given & {*_NOBODY_LOOKED}:
            object.__setattr__(self, "checked", self.checked.without(_NOBODY_LOOKED))

    def rows_of(self, split: str) -> np.ndarray:
        """`[N]` bool, the rows that say they are of `split`."""
        if self.split is None or split not in self.split.names:
            return np.zeros(len(self.labels.numbers), bool)
        of_split: np.ndarray = self.split.numbers == self.split.names.index(split)
        return of_split

    @functools.cached_property
    def judging(self) -> np.ndarray:
        """`[N]` bool, the rows that nothing is learned from."""
        judging: np.ndarray = self.rows_of("test") | self.rows_of("validation")
        return judging

    def together(self) -> tuple[list[str], np.ndarray, np.ndarray | None]:
        """Names of classes, labels as given `[N]`, and checked ones `[N]`, as numbers of these."""
        checked = self.checked if self.checked is not None and self.checked.names else None
        columns = [x for x in (self.labels, checked) if x is not None]
        classes = _Classes.of(columns)
        numbers = [classes.numbers(self, x) for x in columns]
        return list(classes.names), numbers[0], numbers[1] if checked is not None else None

    def fail(self, problem: str) -> NoReturn:
        """Raises an InputError on the file."""
        raise InputError(f"{self.field}: {self.path!r} {problem}")


class NothingChecked(InputError):
    """No row of a user's file has a label that somebody checked."""


class Checks(NamedTuple):
    """Labels of rows that were checked later.

    Attributes:
      labels: `[N]`.
      drawn: text `[N]`, of checked rows one of `DRAWN`.
    """

    labels: Labels
    drawn: np.ndarray


class OwnData(NamedTuple):
    """What a run on own data is built from; the truth of noisy rows is not known.

    Attributes:
      class_names, noisy, clean, test, validation, prepare: as in `Dataset`.
      drawn: text `[len(clean)]`, how each checked row was chosen, of `folds.DRAWN`.
      columns: how a table's columns became inputs.
      left_out: (id, what is wrong) of rows whose inputs cannot be read, and which are not there.
      source_names: of given labels, where there are several.
    """

    class_names: tuple[str, ...]
    noisy: Subset
    clean: Subset
    test: Subset | None
    prepare: Callable[[Any], Any]
    drawn: np.ndarray
    validation: Subset | None = None
    columns: Columns | None = None
    left_out: tuple[tuple[str, str], ...] = ()
    source_names: tuple[str, ...] = ()


def combine(
    files: Mapping[str, LabelledFile],
    prepare: Callable[[Any], Any],
    checks: Checks | None = None,
    drawn: str | None = None,
    *,
    needs_checks: bool = True,
    benchmark: bool = False,
) -> OwnData | Benchmark:
    """One file, or two, and maybe one to judge by.

    Args:
      files: `data`, with `checked` labels. Or `noisy` and `clean`. Beside either, `test`.
      prepare: from inputs as stored to what a model takes.
      checks: of rows of `data`, labels that were checked later, and are in no file of these.
      drawn: how checked rows were chosen that do not say so themselves; None guesses.
      needs_checks: whether a row at least must be checked.
      benchmark: whether all labels of `data` are true; `checked` ones must not be there then.

    Raises:
      InputError: labels that do not go together.
    """
    if "data" in files:
        _check_benchmark(files["data"], checks, benchmark=benchmark, needs_checks=needs_checks)
    _check_ids(files)
    _check_judging(files)
    for name, file in files.items():
        if name not in ("data", "noisy") or (name == "data" and benchmark):
            _check_all_labelled(file)
    columns = [
        x for f in files.values() for x in (f.labels, f.votes, f.checked, f.given) if x is not None
    ]
    classes = _Classes.of(columns)
    _check_classes(files, classes.names)
    if "data" not in files:
        own = _two_files(files["noisy"], files["clean"], classes, prepare, drawn)
    elif benchmark:
        return _benchmark(files["data"], files.get("test"), classes, prepare)
    else:
        own = _one_file(files["data"], checks, classes, prepare, drawn, needs_checks)
    if "test" in files:
        test = files["test"]
        truth = classes.numbers(test, test.labels)
        known = np.concatenate([own.noisy.given, own.clean.truth])
        for number in np.setdiff1d(truth[truth != UNKNOWN], known)[:1]:
            row = int(np.flatnonzero(truth == number)[0])
            test.fail(
                f"{test.name_row(row)} has label {classes.names[number]!r}, which no row to train "
                "with has; expected one of theirs"
            )
        own = own._replace(test=Subset.whole(test.create_source(), truth=truth))
    return own


def missing_classes(given: np.ndarray, truth: np.ndarray, class_names: Sequence[str]) -> None:
    """Says which classes have no checked row: a random sample often misses one.

    Args:
      given: of doubtful rows.
      truth: of checked ones.
      class_names: of both.
    """
    missing = [class_names[i] for i in np.setdiff1d(given[given != UNKNOWN], truth)]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        logging.warning(
            "No checked row is of class %s%s: nothing is known of labels of that class.",
            ", ".join(missing[:5]), more,
        )  # fmt: skip


def how_drawn(truth: np.ndarray, said: np.ndarray, setting: str | None) -> np.ndarray:
    """How each checked row was chosen, text `[M]` of `folds.DRAWN`.

    Where neither the row nor the setting says, equally many of each class were drawn so, and others
    count as a random sample.

    Args:
      truth: `[M]` labels of checked rows.
      said: text `[M]`, by the rows themselves; "" where they do not.
      setting: for all others; None guesses.
    """
    drawn = said.astype("U9")
    if (drawn == "").any():
        counts = np.unique(truth[drawn == ""], return_counts=True)[1]
        alike = len(counts) > 1 and counts.min() == counts.max()
        guess = setting or (PER_CLASS if alike else RANDOM)
        if setting is None:
            what = "so many per class" if guess == PER_CLASS else "a random sample"
            logging.info(
                "The %d checked rows count as %s; dataset.drawn or a column `drawn` (%s) says "
                "otherwise.", (drawn == "").sum(), what, ", ".join(DRAWN),
            )  # fmt: skip
        drawn[drawn == ""] = guess
    return drawn


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes, sorted: numbers by what they are, 2 before 10."""
    names = sorted(names)
    return tuple(sorted(names, key=float) if all(map(_NUMBER.fullmatch, names)) else names)


class _Classes:
    """Names of classes in their order.

    Args:
      names: each once.
      others: further names of the same classes: `1.0` of `1`.
    """

    def __init__(self, names: Sequence[str], others: Mapping[str, str]):
        self.names = tuple(names)
        self._numbers = {name: i for i, name in enumerate(names)}
        self._numbers |= {other: self._numbers[name] for other, name in others.items()}

    @classmethod
    def of(cls, columns: Sequence[Labels]) -> "_Classes":
        """All that stand in columns, in their order."""
        found = {name for x in columns for name in x.names}
        others = {name: whole(name) for name in found if whole(name) != name}
        others = {x: y for x, y in others.items() if y in found}
        return cls(in_order(found - others.keys()), others)

    def numbers(self, file: LabelledFile, column: Labels | None) -> np.ndarray:
        """A column of labels `[N]` int32; UNKNOWN where there is none."""
        if column is None:
            return np.full(len(file.labels.numbers), UNKNOWN, np.int32)
        # UNKNOWN, -1, takes the last.
        numbers = [*(self._numbers[x] for x in column.names), UNKNOWN]
        return np.array(numbers, np.int32)[column.numbers]


def _one_file(
    file: LabelledFile,
    checks: Checks | None,
    classes: _Classes,
    prepare: Callable[[Any], Any],
    drawn: str | None,
    needs_checks: bool,
) -> OwnData:
    truth = classes.numbers(file, file.checked)
    said = _said(file)
    if checks is not None:
        later = classes.numbers(file, checks.labels)
        is_new = (later != UNKNOWN) & (truth == UNKNOWN)
        truth = np.where(is_new, later, truth)
        said = np.where(is_new, checks.drawn, said)
    learned = ~file.judging
    given, votes = _given(file, np.where(learned, truth, UNKNOWN), classes)
    clean, noisy = (truth != UNKNOWN) & learned, (truth == UNKNOWN) & learned
    _check_sizes(file, int(clean.sum()), int(noisy.sum()), needs_checks)
    _check_judged(file, given, truth, classes.names)
    _check_names(file, given, truth, classes.names)
    if clean.any():
        missing_classes(given[noisy], truth[clean], classes.names)
    _check_votes(file, votes, truth, classes.names)
    everything = Subset(file.create_source(), np.arange(len(given)), given, truth, votes)
    parts = noisy, clean, file.rows_of("test"), file.rows_of("validation")
    of_noisy, of_clean, *judges = (everything.take(np.flatnonzero(part)) for part in parts)
    test, validation = (judge if len(judge) else None for judge in judges)
    chosen = how_drawn(truth[clean], said[clean], drawn)
    return OwnData(
        classes.names, of_noisy, of_clean, test, prepare, chosen, validation,
        source_names=file.source_names,
    )  # fmt: skip


def _given(
    file: LabelledFile, truth: np.ndarray, classes: "_Classes"
) -> tuple[np.ndarray, np.ndarray | None]:
    """Labels as given, `[N]`; of several sources the vote of most, and all votes `[N, S]`."""
    given, votes = classes.numbers(file, file.labels), None
    if file.votes is not None:
        given, votes = prepared(
            classes.numbers(file, file.votes), truth, file.source_names, len(classes.names)
        )
    unlabelled = int((given[~file.judging] == UNKNOWN).sum())
    if unlabelled:
        logging.info("Rows without a label as given, labelled by prediction alone: %d.", unlabelled)
    return given, votes


def _said(file: LabelledFile) -> np.ndarray:
    """What rows say themselves of how they were drawn, text `[N]`."""
    if file.drawn is None:
        return np.full(len(file.labels.numbers), "", "U9")
    return np.array([*file.drawn.names, ""], "U9")[file.drawn.numbers]


def _two_files(
    noisy: LabelledFile,
    clean: LabelledFile,
    classes: _Classes,
    prepare: Callable[[Any], Any],
    drawn: str | None,
) -> OwnData:
    truth, old = classes.numbers(clean, clean.labels), classes.numbers(clean, clean.given)
    unknown = np.full(len(noisy.labels.numbers), UNKNOWN, np.int32)
    given, votes = _given(noisy, unknown, classes)
    if votes is not None:
        noisy.fail("has several labels for a row; expected all rows in dataset.data, checked ones "
                   "among them")  # fmt: skip
    _check_sizes(clean, len(truth), len(given))
    _check_names(clean, np.concatenate([given, old]), truth, classes.names)
    missing_classes(given, truth, classes.names)
    doubtful = Subset.whole(noisy.create_source(), given=given)
    trusted = Subset.whole(clean.create_source(), given=old, truth=truth)
    chosen = how_drawn(truth, _said(clean), drawn)
    return OwnData(classes.names, doubtful, trusted, None, prepare, chosen)


def _benchmark(
    file: LabelledFile,
    test: LabelledFile | None,
    classes: _Classes,
    prepare: Callable[[Any], Any],
) -> Benchmark:
    truth = classes.numbers(file, file.labels)
    none = np.zeros(0, np.int32)
    return Benchmark(
        name=pathlib.Path(file.path).stem,
        class_names=classes.names,
        train=file.create_source(),
        train_labels=truth,
        published_rows=np.arange(len(truth)),
        num_published=len(truth),
        test=test.create_source() if test else None,
        test_labels=classes.numbers(test, test.labels) if test else none,
        prepare=prepare,
        names_labels=True,
    )


def _check_ids(files: Mapping[str, LabelledFile]) -> None:
    """No example may be in two files: it would be noisy and clean, or judge what it taught."""
    for one, other in itertools.combinations(files.values(), 2):
        if one.ids is None or other.ids is None:
            continue
        shared = np.intersect1d(one.ids, other.ids)
        if len(shared):
            other.fail(
                f"has id {str(shared[0])!r}, which {one.path!r} has, too; expected each example in "
                "one file"
            )


def _check_benchmark(
    file: LabelledFile, checks: Checks | None, *, benchmark: bool, needs_checks: bool
) -> None:
    """Labels count as doubtful unless somebody says that all are true."""
    has_checks = checks is not None or (file.checked is not None and bool(file.checked.names))
    if benchmark and has_checks:
        raise InputError(
            f"{FIELD}benchmark: got True, expected False: {file.path!r} has checked labels"
        )
    if benchmark or has_checks or not needs_checks:
        return
    column = "checked_labels" if file.path.endswith((".npz", ".npy")) else "checked_label"
    missing = f"{'no' if file.checked is None else 'nothing in'} {column}"
    raise NothingChecked(
        f"{file.field}: {file.path!r} has {missing}, so nobody knows how right its labels are; "
        "expected the right label of some rows there, and nothing in all others (60 rows drawn at "
        f"random are a good start), or {FIELD}benchmark=True if all of its labels are right"
    )


def _check_classes(files: Mapping[str, LabelledFile], names: Sequence[str]) -> None:
    """Before anything is trained: two names of one class, or nothing to tell apart."""
    if len(names) == 1:
        file = next(iter(files.values()))
        file.fail(f"has one class, {names[0]!r}, in all of its labels; expected two at least")
    alike = look_alikes(names)
    if alike:
        places = [place for name in alike for place in _places(files, name)[:1]]
        raise InputError(
            f"{places[0]} has label {alike[0]!r}, and {places[1]} has {alike[1]!r}, which looks "
            "like it; expected one name for each class"
        )


def _places(files: Mapping[str, LabelledFile], name: str) -> list[str]:
    """Where a label stands."""
    found = []
    for file in files.values():
        for column in (file.labels, file.checked, file.given, file.votes):
            if column is None or name not in column.names:
                continue
            row = int(np.argwhere(column.numbers == column.names.index(name))[0][0])
            found.append(f"{file.field}: {file.path!r} {file.name_row(row)}")
    return found


def _check_judged(
    file: LabelledFile, given: np.ndarray, truth: np.ndarray, names: Sequence[str]
) -> None:
    """Rows that judge have classes that others have; a class of one row is said."""
    learned = np.concatenate([given[~file.judging], truth[~file.judging]])
    judged = np.where(file.judging, truth, UNKNOWN)
    for number in np.setdiff1d(judged[judged != UNKNOWN], learned)[:1].tolist():
        row = int(np.flatnonzero(judged == number)[0])
        file.fail(
            f"{file.name_row(row)} has label {names[number]!r}, which no row to train with has; "
            "expected one of theirs"
        )
    says = np.where(truth != UNKNOWN, truth, given)[~file.judging]
    counts = np.bincount(says[says != UNKNOWN], minlength=len(names))
    single = [names[number] for number in np.flatnonzero(counts == 1).tolist()]
    if single:
        logging.warning(
            "One row alone is of class %s: nothing can be learned of it, or hidden to judge by.",
            ", ".join(single[:5]) + (f" and {len(single) - 5} more" if len(single) > 5 else ""),
        )


def _check_judging(files: Mapping[str, LabelledFile]) -> None:
    for (name, file), split in itertools.product(files.items(), ("test", "validation")):
        rows = np.flatnonzero(file.rows_of(split))
        if not len(rows):
            continue
        found = f"{file.name_row(int(rows[0]))} is a {split} row"
        if name != "data":
            file.fail(f"{found}; expected those in dataset.{'test' if split == 'test' else 'data'}")
        if split in files:
            file.fail(f"{found}; expected none beside dataset.test")
        if file.checked is None:
            file.fail(
                f"{found}, but no row has a checked label; expected those, or the test rows of a "
                "benchmark in dataset.test"
            )
        for row in rows[file.checked.numbers[rows] == UNKNOWN][:1].tolist():
            file.fail(
                f"{file.name_row(row)} is a {split} row that nobody checked; expected its true "
                "label"
            )


def _check_all_labelled(file: LabelledFile) -> None:
    for row in np.flatnonzero(file.labels.numbers == UNKNOWN)[:1].tolist():
        file.fail(f"{file.name_row(row)}: label is empty, expected a label in each row")


def _check_votes(
    file: LabelledFile, votes: np.ndarray | None, truth: np.ndarray, names: Sequence[str]
) -> None:
    """A label that one source gave once, and nobody else did, is misspelt, most likely."""
    if votes is None:
        return
    counts = np.bincount(votes[votes != UNKNOWN], minlength=len(names))
    for number in np.setdiff1d(np.flatnonzero(counts == 1), truth).tolist():
        row, source = np.argwhere(votes == number)[0].tolist()
        others = [x for x in names if x != names[number]]
        near = difflib.get_close_matches(names[number], others, n=1) or others[:1]
        file.fail(
            f"{file.name_row(row)} has label {names[number]!r} by {file.source_names[source]!r}, "
            f"which nobody else gave; expected one of the others, such as {near[0]!r}"
        )


def _check_sizes(
    file: LabelledFile, num_clean: int, num_noisy: int, needs_checks: bool = True
) -> None:
    if not num_clean and needs_checks:
        raise InputError(f"{file.field}: no row is checked; expected some")
    if not num_noisy:
        raise InputError(f"{file.field}: all rows are checked; expected some to correct")


def _check_names(
    file: LabelledFile, given: np.ndarray, truth: np.ndarray, class_names: Sequence[str]
) -> None:
    """A true label that no row was given, and one row has, is misspelt, most likely."""
    for number in np.setdiff1d(truth[truth != UNKNOWN], given):
        rows = np.flatnonzero(truth == number)
        if len(rows) > 1:
            continue  # A class that annotators never used.
        name = class_names[number]
        others = [x for x in class_names if x != name]
        near = difflib.get_close_matches(name, others, n=1) or others[:1]
        file.fail(
            f"{file.name_row(int(rows[0]))} alone has label {name!r}, which no row was given; "
            f"expected one of those that were, such as {near[0]!r}, or two rows at least of a new "
            "class"
        )
