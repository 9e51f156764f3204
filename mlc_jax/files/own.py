"""A user's own files of any kind: given labels and checked labels."""

import dataclasses
import functools
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, NoReturn

import numpy as np
from absl import logging

from mlc_jax.data.dataset import Benchmark
from mlc_jax.data.source import UNKNOWN, Source, Subset
from mlc_jax.data.votes import prepared
from mlc_jax.errors import InputError
from mlc_jax.files.columns import Columns
from mlc_jax.files.values import together
from mlc_jax.files.values.drawn import how_drawn
from mlc_jax.files.values.names import truth_values, whole

FIELD = "config.dataset."  # The settings that name files.
SPLITS = ("", "train", "test", "validation")  # Values of the column `split`.
SPLIT_NAMES = "train, test, validation or nothing"
_NUMBER = re.compile(r"-?\d+(\.\d+)?", re.ASCII)


class Labels(NamedTuple):
    """A label for each row, or none.

    Attributes:
      names: each once.
      numbers: `[N]` int32, places in `names`; UNKNOWN for no label.
    """

    names: tuple[str, ...]
    numbers: np.ndarray

    @classmethod
    def of(cls, labels: np.ndarray) -> "Labels":
        """From text `[N]`; empty is no label."""
        names, numbers = np.unique(labels, return_inverse=True)
        empty = int(len(names) > 0 and names[0] == "")  # "" comes before all others.
        numbers = (numbers - empty).astype(np.int32)  # The number of "" becomes UNKNOWN.
        return cls(tuple(str(name) for name in names[empty:]), numbers)

    def without(self, names: Sequence[str]) -> "Labels":
        """The labels, except that these values mean no label."""
        kept = [name for name in self.names if name not in names]
        places = [kept.index(x) if x in kept else UNKNOWN for x in self.names]
        return Labels(tuple(kept), np.array([*places, UNKNOWN], np.int32)[self.numbers])


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class LabelledFile:
    """One file whose labels were read and checked; its inputs were not read yet.

    Attributes:
      field: the setting that names it: `config.dataset.noisy`.
      path: as given.
      labels: of every row; with several sources the label of the first source that gave one.
      checked: of the rows that somebody checked; None if the file has no such column.
      given: the labels of checked rows before they were checked; None if they are not known.
      split: of every row, one of `SPLITS`; None if the file has no such column.
      drawn: of every row, one of `folds.DRAWN` or nothing; None if the file has no such column.
      votes: `[N, S]`, the labels of S sources; None if there is only one source.
      source_names: the S names; empty for one source.
      votes_path: another file, with the labels of the sources `in_votes`.
      in_votes: names of these sources.
      aliases: rows by other names than ids, such as paths; files of checks may use them.
      classes: names of all classes, in order, if the user has named them.
      ids: text `[N]`, each once; None where rows are known by their numbers.
      name_row: what messages call a row: `line 3`.
      create_source: reads the inputs. It may take long, so labels are checked before it is called.
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
    votes_path: str = ""
    in_votes: tuple[str, ...] = ()
    aliases: Mapping[str, int] = dataclasses.field(default_factory=dict)
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Removes from `checked` the values that mean that nobody looked."""
        if self.checked is not None:
            object.__setattr__(self, "checked", together.only_labels(self, self.checked))

    def rows_of(self, split: str) -> np.ndarray:
        """`[N]` bool, the rows of a split."""
        if self.split is None or split not in self.split.names:
            return np.zeros(len(self.labels.numbers), bool)
        of_split: np.ndarray = self.split.numbers == self.split.names.index(split)
        return of_split

    @functools.cached_property
    def judging(self) -> np.ndarray:
        """`[N]` bool, the test and validation rows."""
        judging: np.ndarray = self.rows_of("test") | self.rows_of("validation")
        return judging

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of all classes, in order."""
        return self._all.names

    @property
    def class_numbers(self) -> dict[str, int]:
        """The place in `class_names` of each label in the file, such as that of 1 for 1.0."""
        return self._all.by_name

    @functools.cached_property
    def _all(self) -> "_Classes":
        columns = (self.labels, self.votes, self.checked, self.given)
        return _Classes.of([x for x in columns if x is not None], self.classes)

    def numbered(self) -> tuple[list[str], np.ndarray, np.ndarray | None]:
        """Names of classes, and labels as their numbers: given ones `[N]`, checked ones `[N]`."""
        checked = self.checked if self.checked is not None and self.checked.names else None
        columns = [x for x in (self.labels, checked) if x is not None]
        classes = _Classes.of(columns, self.classes)
        numbers = [classes.numbers(self, x) for x in columns]
        return list(classes.names), numbers[0], numbers[1] if checked is not None else None

    def fail(self, problem: str) -> NoReturn:
        """Raises an InputError on the file."""
        raise InputError(f"{self.field}: {self.path!r} {problem}")


class Checks(NamedTuple):
    """Labels of rows that were checked later.

    Attributes:
      labels: `[N]`.
      drawn: text `[N]`, one of `folds.DRAWN` for checked rows, "" for all others.
    """

    labels: Labels
    drawn: np.ndarray


class OwnData(NamedTuple):
    """The data of a run on own files; the truth of noisy rows is not known.

    Attributes:
      class_names, noisy, clean, test, validation, prepare: as in `Dataset`.
      drawn: text `[len(clean)]`, how each checked row was chosen, one of `folds.DRAWN`.
      columns: how a table's columns became inputs.
      left_out: (id, what is wrong) of rows that were left out, because inputs cannot be read.
      source_names, copies: of the sources of given labels; empty for one source.
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
    copies: Mapping[str, str] = {}

    @property
    def scaled_by(self) -> Subset:
        """The rows that features are scaled by: noisy ones; if most are checked, all or those.

        A few rows say little of means and deviations, and a single one nothing.
        """
        if len(self.noisy) >= len(self.clean):
            return self.noisy
        if self.noisy.source is not self.clean.source:
            return self.clean
        rows = np.sort(np.concatenate([self.noisy.rows, self.clean.rows]))
        return Subset.whole(self.clean.source).take(rows)


def combine(
    files: Mapping[str, LabelledFile],
    prepare: Callable[[Any], Any],
    checks: Checks | None = None,
    drawn: str | None = None,
    *,
    needs_checks: bool = True,
    benchmark: bool = False,
) -> OwnData | Benchmark:
    """Makes a run's data of one file or two, and maybe a test file; a `Benchmark` if asked to.

    Args:
      files: `data`, with `checked` labels; or `noisy` and `clean`. Either may come with `test`.
      prepare: maps stored inputs to what a model takes.
      checks: labels of rows of `data` that were checked later, and are in none of these files.
      drawn: how checked rows were chosen that do not say so themselves; None guesses.
      needs_checks: whether at least one row must be checked.
      benchmark: whether all labels of `data` are true; it must have no `checked` labels then.

    Raises:
      InputError: the labels contradict each other, or some are missing.
    """
    if "data" in files:
        together.check_benchmark(
            files["data"], checks, benchmark=benchmark, needs_checks=needs_checks
        )
    together.check_ids(files)
    together.check_judging(files)
    for name, file in files.items():
        if name not in ("data", "noisy") or (name == "data" and benchmark):
            together.check_all_labelled(file)
    columns = [
        x for f in files.values() for x in (f.labels, f.votes, f.checked, f.given) if x is not None
    ]
    columns += [] if checks is None else [checks.labels]
    named = next((file.classes for file in files.values() if file.classes), ())
    classes = _Classes.of(columns, named)
    if not classes.names:
        next(iter(files.values())).fail("has no label at all; expected some, given or checked")
    together.check_named(files, classes.names)
    together.check_classes(files, classes.names)
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
    """Warns of classes without a checked row: a random sample often misses one.

    Args:
      given: `[N]` or `[N, S]`, given labels of doubtful rows.
      truth: `[M]`, labels of checked rows.
      class_names: `[C]`.
    """
    is_given = np.zeros(len(class_names), bool)
    for column in given.T if given.ndim == 2 else [given]:
        is_given[column[column != UNKNOWN]] = True
    missing = [class_names[i] for i in np.setdiff1d(np.flatnonzero(is_given), truth)]
    if missing:
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        logging.warning(
            "No checked row has class %s%s: labels of that class cannot be judged.",
            ", ".join(missing[:5]), more,
        )  # fmt: skip


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names of classes, sorted; numbers by value, 2 before 10."""
    names = sorted(names)
    return tuple(sorted(names, key=float) if all(map(_NUMBER.fullmatch, names)) else names)


class _Classes:
    """Numbers of classes by name.

    Args:
      names: of the classes, in order.
      others: maps further names to these, such as `1.0` to `1`.

    Attributes:
      by_name: numbers of all of these.
    """

    def __init__(self, names: Sequence[str], others: Mapping[str, str]):
        self.names = tuple(names)
        self.by_name = {name: i for i, name in enumerate(names)}
        self.by_name |= {other: self.by_name[name] for other, name in others.items()}

    @classmethod
    def of(cls, columns: Sequence[Labels], named: Sequence[str] = ()) -> "_Classes":
        """The classes of all labels in some columns; those that the user has named come first."""
        found = {*named, *(name for x in columns for name in x.names)}
        others = {name: whole(name) for name in found if whole(name) != name}
        others = {x: y for x, y in others.items() if y in found} | truth_values(found)
        return cls((*named, *in_order(found - others.keys() - {*named})), others)

    def numbers(self, file: LabelledFile, column: Labels | None) -> np.ndarray:
        """A column of labels `[N]` int32; UNKNOWN for no label."""
        if column is None:
            return np.full(len(file.labels.numbers), UNKNOWN, np.int32)
        # No label has the number UNKNOWN, -1, which takes the last value.
        numbers = [*(self.by_name[x] for x in column.names), UNKNOWN]
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
    said, is_new = _said(file), np.zeros(len(truth), bool)
    if checks is not None:
        later = classes.numbers(file, checks.labels)
        is_new = (later != UNKNOWN) & (truth == UNKNOWN)
        truth = np.where(is_new, later, truth)
        said = np.where(is_new, checks.drawn, said)
    learned = ~file.judging
    given, votes, copies = _given(file, np.where(learned, truth, UNKNOWN), classes)
    clean, noisy = (truth != UNKNOWN) & learned, (truth == UNKNOWN) & learned
    together.check_sizes(file, int(clean.sum()), int(noisy.sum()), needs_checks)
    together.check_judged(file, given, truth, classes.names)
    together.check_names(file, given, truth, classes.names)
    if clean.any():
        all_given = given if votes is None else votes
        missing_classes(all_given[noisy], truth[clean], classes.names)
    together.check_votes(file, truth, classes.names)
    everything = Subset(file.create_source(), np.arange(len(given)), given, truth, votes)
    parts = noisy, clean, file.rows_of("test"), file.rows_of("validation")
    of_noisy, of_clean, *judges = (everything.take(np.flatnonzero(part)) for part in parts)
    test, validation = (judge if len(judge) else None for judge in judges)
    chosen = how_drawn(truth[clean], said[clean], drawn, given[clean], given[noisy], is_new[clean])
    return OwnData(
        classes.names, of_noisy, of_clean, test, prepare, chosen, validation,
        source_names=file.source_names, copies=copies,
    )  # fmt: skip


def _given(
    file: LabelledFile, truth: np.ndarray, classes: "_Classes"
) -> tuple[np.ndarray, np.ndarray | None, dict[str, str]]:
    """Given labels `[N]`; with several sources see `votes.Prepared`."""
    given, votes = classes.numbers(file, file.labels), None
    copies: dict[str, str] = {}
    if file.votes is not None:
        given, votes, copies = prepared(
            classes.numbers(file, file.votes), truth, file.source_names, len(classes.names)
        )
    unlabelled = int(((given == UNKNOWN) & (truth == UNKNOWN) & ~file.judging).sum())
    if unlabelled:
        logging.info("Rows without a given label, labelled by prediction: %d.", unlabelled)
    return given, votes, copies


def _said(file: LabelledFile) -> np.ndarray:
    """The column `drawn`, text `[N]`."""
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
    given, votes, _ = _given(noisy, unknown, classes)
    if votes is not None:
        noisy.fail("has several labels for a row; expected all rows in dataset.data, checked ones "
                   "among them")  # fmt: skip
    together.check_sizes(clean, len(truth), len(given))
    together.check_names(clean, np.concatenate([given, old]), truth, classes.names)
    missing_classes(given, truth, classes.names)
    doubtful = Subset.whole(noisy.create_source(), given=given)
    trusted = Subset.whole(clean.create_source(), given=old, truth=truth)
    chosen = how_drawn(truth, _said(clean), drawn, old, given)
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
