"""A user's own files, of whatever kind: labels as given, and labels that somebody checked."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from mlc_jax.data.benchmarks import Benchmark
from mlc_jax.data.source import UNKNOWN, Source, Subset
from mlc_jax.errors import InputError

FIELD = "config.dataset."  # Of the settings that name files.


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


@dataclasses.dataclass(frozen=True, eq=False)
class LabelledFile:
    """One file, read and checked but for its inputs.

    Attributes:
      field: the setting that names it: `config.dataset.noisy`.
      path: as given.
      labels: of every row.
      checked: of the rows that somebody checked; None if the file does not have such labels.
      given: the labels of checked rows as they were before; None if they are not known.
      name_row: what messages call a row.
      create_source: of its inputs. Called once all labels are known to be right: it may take long.
    """

    field: str
    path: str
    labels: Labels
    checked: Labels | None
    given: Labels | None
    name_row: Callable[[int], str]
    create_source: Callable[[], Source]


class OwnData(NamedTuple):
    """What a run on own data is built from; the truth of noisy rows is not known."""

    class_names: tuple[str, ...]
    noisy: Subset
    clean: Subset
    test: Subset | None
    prepare: Callable[[Any], Any]


def combine(
    files: Mapping[str, LabelledFile],
    prepare: Callable[[Any], Any],
    order: Callable[[str], Any] = str,
) -> OwnData | Benchmark:
    """One file, or two, and maybe one to judge by.

    Args:
      files: `data`, with `checked` labels; without, all of its labels count as true, and it is a
        benchmark. Or `noisy` and `clean`. Beside either, `test`.
      prepare: from inputs as stored to what a model takes.
      order: classes are sorted by this key of their names.

    Raises:
      InputError: labels that do not go together.
    """
    columns = [x for f in files.values() for x in (f.labels, f.checked, f.given) if x is not None]
    class_names = tuple(sorted({name for column in columns for name in column.names}, key=order))
    numbers = {name: i for i, name in enumerate(class_names)}

    def labels(file: LabelledFile, column: Labels | None) -> np.ndarray:
        if column is None:
            return np.full(len(file.labels.numbers), UNKNOWN, np.int32)
        # UNKNOWN, -1, takes the last.
        return np.array([*(numbers[x] for x in column.names), UNKNOWN], np.int32)[column.numbers]

    test = files.get("test")
    if "data" in files:
        file = files["data"]
        if file.checked is None:
            return _benchmark(file, labels(file, file.labels), test, labels, class_names, prepare)
        given, truth = labels(file, file.labels), labels(file, file.checked)
        checked = truth != UNKNOWN
        _check_classes(file, given[~checked], truth, class_names)
        everything = Subset(file.create_source(), np.arange(len(given)), given, truth)
        doubtful, trusted = (everything.take(np.flatnonzero(x)) for x in (~checked, checked))
    else:
        noisy, clean = files["noisy"], files["clean"]
        given, truth = labels(noisy, noisy.labels), labels(clean, clean.labels)
        _check_classes(clean, given, truth, class_names)
        doubtful = Subset.whole(noisy.create_source(), given=given)
        trusted = Subset.whole(clean.create_source(), given=labels(clean, clean.given), truth=truth)
    judged = Subset.whole(test.create_source(), truth=labels(test, test.labels)) if test else None
    return OwnData(class_names, doubtful, trusted, judged, prepare)


def _benchmark(
    file: LabelledFile,
    truth: np.ndarray,
    test: LabelledFile | None,
    labels: Callable[[LabelledFile, Labels], np.ndarray],
    class_names: tuple[str, ...],
    prepare: Callable[[Any], Any],
) -> Benchmark:
    return Benchmark(
        name=pathlib.Path(file.path).stem,
        class_names=class_names,
        train=file.create_source(),
        train_labels=truth,
        published_rows=np.arange(len(truth)),
        num_published=len(truth),
        test=test.create_source() if test else None,
        test_labels=labels(test, test.labels) if test else np.zeros(0, np.int32),
        prepare=prepare,
        names_labels=True,
    )


def _check_classes(
    file: LabelledFile, given: np.ndarray, truth: np.ndarray, class_names: tuple[str, ...]
) -> None:
    """Holds checked labels `truth`, of the file's rows, against `given` ones of the noisy set."""
    checked = truth[truth != UNKNOWN]
    if not len(checked):
        raise InputError(f"{file.field}: no row is checked; expected some of every class")
    if not len(given):
        raise InputError(f"{file.field}: all rows are checked; expected some to correct")
    # Such as a misspelt name: a class that no label was ever given for.
    strange = np.setdiff1d(checked, given)
    if len(strange):
        row = int(np.flatnonzero(truth == strange[0])[0])
        raise InputError(
            f"{file.field}: {file.name_row(row)} has label {class_names[strange[0]]!r}, which no "
            "row was given; expected one of those that were"
        )
