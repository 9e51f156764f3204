"""Refuses, with an InputError, labels of a user's files that contradict each other."""

import difflib
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NoReturn, Protocol

import numpy as np
from absl import logging

from mlc_jax.data.source import UNKNOWN
from mlc_jax.errors import InputError
from mlc_jax.files.values.names import look_alikes

if TYPE_CHECKING:
    from mlc_jax.files.own import Checks, LabelledFile, Labels

# In `checked_label` these mean that nobody looked, unless one is a given label.
NOBODY_LOOKED = ("-1", "-1.0")
# These probably mean the same, but could be names of classes.
_NO_LABELS = frozenset({
    "todo", "tbd", "na", "n/a", "nan", "none", "null", "<na>", "unknown", "unsure", "skip",
    "skipped", "?", "??", "???",
})  # fmt: skip
_NO_CLASSES = _NO_LABELS | {
    "unchecked", "notchecked", "x", "ok", "okay", "yes", "no", "right", "wrong", "correct",
    "incorrect", "done",
}  # fmt: skip
_AROUND = " _'\"[](){}\t\u00a0"  # Not counted in these words.
_MARKS = frozenset("?!.,;:-+*/\\#~=\u2013\u2014\u2026\u2713\u2714\u2717\u2718")  # No word at all.


_MOST_SINGLE = 0.5  # Labels are no classes if a larger share of them occurs once.
_FEW_ROWS = 10  # With fewer labelled rows, that is no error.


class NothingChecked(InputError):
    """No row of a user's file has a label that somebody checked."""


def is_no_class(name: str) -> bool:
    """Whether a text probably says something else about a row than its class: `todo`, `?`, `ok`."""
    words = "".join(x for x in name.casefold() if x not in _AROUND)
    return words in _NO_CLASSES or all(x in _MARKS for x in words)


def nearest(name: str, others: Sequence[str]) -> str:
    """The name among others that is most like this one; the first one if none is."""
    near = difflib.get_close_matches(name, others, n=1) or [*others[:1]]
    return near[0] if near else ""


def only_labels(file: "LabelledFile", checked: "Labels") -> "Labels":
    """Checked labels without -1, which means that nobody looked; refuses `todo`, `?`, `ok`, ..."""
    given = {*file.labels.names, *(file.votes.names if file.votes else ()), *file.classes}
    for number, name in enumerate(checked.names):
        if is_no_class(name) and name not in given:
            row = int((checked.numbers == number).argmax())
            file.fail(
                f"{file.name_row(row)}: checked_label is {name!r}, which no row was given; leave "
                "it empty where nobody looked, else write the right label"
            )
    return checked if given & {*NOBODY_LOOKED} else checked.without(NOBODY_LOOKED)


def check_ids(files: Mapping[str, "LabelledFile"]) -> None:
    """Refuses an example in two files: it would be noisy and clean, or in training and test."""
    for one, other in itertools.combinations(files.values(), 2):
        if one.ids is None or other.ids is None:
            continue
        shared = np.intersect1d(one.ids, other.ids)
        if len(shared):
            other.fail(
                f"has id {str(shared[0])!r}, which {one.path!r} has, too; expected each example in "
                "one file"
            )


def check_benchmark(
    file: "LabelledFile", checks: "Checks | None", *, benchmark: bool, needs_checks: bool
) -> None:
    """Requires checked labels, unless the user says that all labels are true."""
    has_checks = checks is not None or (file.checked is not None and bool(file.checked.names))
    if benchmark and has_checks:
        raise InputError(
            f"config.dataset.benchmark: got True, expected False: {file.path!r} has checked labels"
        )
    if benchmark or has_checks or not needs_checks:
        return
    column = "checked_labels" if file.path.endswith((".npz", ".npy")) else "checked_label"
    missing = f"{'no' if file.checked is None else 'nothing in'} {column}"
    raise NothingChecked(
        f"{file.field}: {file.path!r} has {missing}, so nobody knows how right its labels are; "
        "expected the right label of some rows there, and nothing in all others (60 rows drawn at "
        f"random are a good start), or config.dataset.benchmark=True if all of its labels are right"
    )


def check_named(files: Mapping[str, "LabelledFile"], found: Sequence[str]) -> None:
    """Refuses labels `found` in the files that are none of the classes that the user has named."""
    classes = next((file.classes for file in files.values() if file.classes), ())
    for name in [x for x in found if classes and x not in classes][:1]:
        raise InputError(
            f"{_places(files, name)[0]} has label {name!r}, which is not one of "
            f"config.dataset.class_names; expected one of these, such as {nearest(name, classes)!r}"
        )


def check_classes(files: Mapping[str, "LabelledFile"], names: Sequence[str]) -> None:
    """Refuses, before training, two names of one class, or fewer than two classes."""
    if len(names) == 1:
        file = next(iter(files.values()))
        file.fail(f"has one class, {names[0]!r}, in all of its labels; expected two at least")
    alike = look_alikes(names)
    if alike:
        is_named = any(file.classes for file in files.values())
        named = f"config.dataset.{'class_names' if is_named else 'checked'}"
        places = [[*_places(files, name), named][0] for name in alike]
        raise InputError(
            f"{places[0]} has label {alike[0]!r}, and {places[1]} has {alike[1]!r}, which looks "
            "like it; expected one name for each class"
        )


def _places(files: Mapping[str, "LabelledFile"], name: str) -> list[str]:
    """The places of a label in the files."""
    found = []
    for file in files.values():
        for column in (file.labels, file.checked, file.given, file.votes):
            if column is not None and name in column.names:
                # With several sources, `labels` has one label of each row, and may lack it.
                rows = np.argwhere(column.numbers == column.names.index(name))[:1, 0]
                found += [f"{file.field}: {file.path!r} {file.name_row(int(x))}" for x in rows]
    return found


def check_judged(
    file: "LabelledFile", given: np.ndarray, truth: np.ndarray, names: Sequence[str]
) -> None:
    """Refuses test or validation rows of classes that no other row has; warns of single rows."""
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
    as_given = np.bincount(given[(given != UNKNOWN) & ~file.judging])
    alone = max(len(single), int((as_given == 1).sum()))
    if alone > _MOST_SINGLE * as_given.sum() and as_given.sum() >= _FEW_ROWS:
        file.fail(
            f"has {len(names):,} different labels in {counts.sum():,} rows, such as {names[0]!r} "
            f"and {names[1]!r}; expected names of classes, each of several rows"
        )
    if single:
        logging.warning(
            "Only one row has class %s: it cannot be learned from and hidden to judge by, too.",
            ", ".join(single[:5]) + (f" and {len(single) - 5} more" if len(single) > 5 else ""),
        )


def check_judging(files: Mapping[str, "LabelledFile"]) -> None:
    """Refuses test and validation rows that nobody checked, or that are not in `data`."""
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


def check_all_labelled(file: "LabelledFile") -> None:
    """Refuses a row without a label."""
    for row in np.flatnonzero(file.labels.numbers == UNKNOWN)[:1].tolist():
        file.fail(f"{file.name_row(row)}: label is empty, expected a label in each row")


def check_votes(file: "LabelledFile", truth: np.ndarray, names: Sequence[str]) -> None:
    """Refuses a label that was given only once, by one source: probably a typing error."""
    if file.votes is None or file.classes:
        return
    votes, known = file.votes, {names[number] for number in np.unique(truth[truth != UNKNOWN])}
    unchecked = [name for name in votes.names if name not in known]
    if doubtful := [name for name in unchecked if name.casefold() in _NO_LABELS]:
        logging.warning(
            "%s is a class of %s. If it means that a source gave no label, leave it empty.",
            ", ".join(doubtful), file.path,
        )  # fmt: skip
    counts = np.zeros(len(votes.names), np.int64)
    for column in votes.numbers.T:
        counts += np.bincount(column[column != UNKNOWN], minlength=len(counts))
    for number in np.flatnonzero(counts == 1).tolist():
        if (name := votes.names[number]) in known:
            continue
        row, column = np.argwhere(votes.numbers == number)[0].tolist()
        source = file.source_names[column]
        near = nearest(name, [x for x in names if x != name])
        where = f" in {file.votes_path!r}" if source in file.in_votes else ""
        file.fail(
            f"{file.name_row(row)} has label {name!r} by {source!r}{where}, "
            f"which nobody else gave; expected one of the others, such as {near!r}"
        )


def check_sizes(
    file: "LabelledFile", num_clean: int, num_noisy: int, needs_checks: bool = True
) -> None:
    """Refuses data without a checked row, if one is needed, and data without a doubtful row."""
    if not num_clean and needs_checks:
        raise InputError(f"{file.field}: no row is checked; expected some")
    if not num_noisy:
        raise InputError(
            f"{file.field}: all rows are checked, so there is no label to correct; expected rows "
            "that nobody checked, too, or an ordinary classifier on the checked labels"
        )


class Named(Protocol):
    """What messages call labels and their rows; `classes` as in `LabelledFile`."""

    @property
    def classes(self) -> tuple[str, ...]: ...
    def name_row(self, row: int, /) -> str: ...
    def fail(self, problem: str) -> NoReturn: ...


def check_names(
    file: Named, given: np.ndarray, truth: np.ndarray, class_names: Sequence[str]
) -> None:
    """Refuses true labels in another spelling than given ones, and a typing error in one row.

    Nothing is refused if the user has named the classes.
    """
    if file.classes:
        return
    said, checked = np.setdiff1d(given, [UNKNOWN]), np.setdiff1d(truth, [UNKNOWN])
    is_one_row = (truth != UNKNOWN).sum() == 1  # It has a message of its own.
    if len(said) and len(checked) and not is_one_row and not np.intersect1d(said, checked).size:
        file.fail(
            f"has checked labels such as {class_names[checked[0]]!r}, and none of them was given; "
            f"given ones are such as {class_names[said[0]]!r}; expected the same names in both"
        )
    for number in np.setdiff1d(truth[truth != UNKNOWN], given):
        rows = np.flatnonzero(truth == number)
        name = class_names[number]
        near = nearest(name, [x for x in class_names if x != name])
        if len(rows) > 1:  # A class that annotators never used.
            logging.warning(
                "No row was given label %s, and %d checked rows have it: it is a class of its own. "
                "If it is no label, or another spelling of one such as %s, correct it.",
                name, len(rows), near,
            )  # fmt: skip
            continue
        file.fail(
            f"{file.name_row(int(rows[0]))} alone has label {name!r}, which no row was given; "
            f"expected one of those that were, such as {near!r}, or two rows at least of a new "
            "class"
        )
