"""Own data in `.npz` and `.npy` files: inputs, given labels and checked labels."""

import itertools
import pathlib
from collections.abc import Sequence
from typing import NoReturn

import numpy as np
from absl import logging

from mlc_jax import paths
from mlc_jax.data.dataset import Benchmark
from mlc_jax.data.folds import DRAWN
from mlc_jax.data.prepare import Normalize, extremes, standardize
from mlc_jax.data.source import UNKNOWN, ArraySource, IndexedSource, Subset
from mlc_jax.data.votes import that_speak
from mlc_jax.errors import InputError
from mlc_jax.files.label_columns import LabelColumns, Said
from mlc_jax.files.own import FIELD, SPLIT_NAMES, SPLITS, LabelledFile, Labels, OwnData, combine
from mlc_jax.files.tables import ENDINGS, Table
from mlc_jax.files.values.checks import read_checks
from mlc_jax.files.values.inputs import Offsets, as_stored, offsets_of
from mlc_jax.files.values.names import is_near, is_one_hot
from mlc_jax.files.values.votes import first_said, without_abstaining

_BLOCK = 10_000  # Rows of labels that are numbered at once.
_COLUMNS = ("labels", "checked_labels", "given_labels", "ids", "splits", "drawn")


def load(
    data: str | None,
    noisy: str | None,
    clean: str | None,
    test: str | None,
    standardized: bool | None,
    checked: Sequence[str] = (),
    drawn: str | None = None,
    said: Said = Said(),  # noqa: B008
    *,
    benchmark: bool = False,
) -> OwnData | Benchmark:
    """Reads one file, or two, and maybe one to judge by.

    An `.npz` file has all arrays. An `.npy` has the inputs and stays on disk. The other columns
    are then in a table of the same name beside it (`x.npy`, `x.csv`), see `LabelColumns`.

    Args:
      data: `inputs` `[N, ...]`, `labels` as given, `[N]` or `[N, S]`, and `checked_labels` `[N]`,
        -1 or empty where nobody looked. Maybe `splits`: `test` or `validation` for rows that judge.
      noisy, clean: in place of `data`: `inputs` and `labels`. The clean file's labels are true; its
        `given_labels`, if there, are the old ones.
      test: `inputs` and true `labels`.
      standardized: see `config.dataset.standardize`.
      checked: see `read_checks`.
      drawn: see `how_drawn`.
      said: where given labels of `data` are.
      benchmark: whether all labels of `data` are true.

    Raises:
      InputError: a file that cannot be read, or arrays that do not fit together.
    """
    files: dict[str, _File] = {}
    paths_ = {"data": data, "noisy": noisy, "clean": clean, "test": test}
    for name, path in paths_.items():
        if path:
            first = next(iter(files.values()), None)
            files[name] = _File(name, path, first.offsets if first else None)
    _check_kinds(files)
    for file in files.values():
        file.check_shape_of(next(iter(files.values())))
    labelled = {
        name: file.labelled(said if name == "data" else said.elsewhere)
        for name, file in files.items()
    }
    checks = read_checks(checked, labelled["data"], drawn) if checked else None
    own = combine(labelled, Normalize(), checks, drawn, benchmark=benchmark)
    return (
        own
        if isinstance(own, Benchmark)
        else own._replace(prepare=scale(own.scaled_by, standardized))
    )


def read_labels(path: str, said: Said) -> LabelledFile:
    """Only the labels of one file; see `load`."""
    return _File("data", path).labelled(said)


def scale(subset: Subset, standardized: bool | None) -> Normalize:
    """`prepare` for a set of arrays, in memory or memory-mapped.

    Args:
      subset: the arrays that mean and deviation are computed on, see `OwnData.scaled_by`.
      standardized: whether each feature gets mean 0 and deviation 1. None chooses: pixels (unsigned
        whole numbers) are divided by the largest, what lies in [0, 1] stays, and the rest is
        standardised.
    """
    assert isinstance(subset.source, ArraySource | IndexedSource)
    inputs, rows = subset.source.inputs, subset.rows
    if standardized is None:
        low, high = extremes(inputs, rows)
        if inputs.dtype.kind == "u":
            logging.info("Inputs are divided by %d, the largest.", high)
            return Normalize(scale=float(max(high, 1)))
        standardized = low < 0 or high > 1
        how = "standardised" if standardized else "left as they are, in [0, 1]"
        logging.info("Inputs, from %.4g to %.4g, are %s.", low, high, how)
    return standardize(inputs, rows) if standardized else Normalize()


def open_npy(field: str, path: str) -> np.ndarray:
    """A memory map of an `.npy` file.

    Raises:
      InputError: there is none, it is damaged, or it holds Python objects.
    """
    place = paths.local(path, field)
    if not place.is_file():
        raise InputError(f"{field}: no file {path!r}; expected an .npy file")
    _check_start(field, path, place, b"\x93NUMPY")
    try:
        array: np.ndarray = np.load(place, mmap_mode="r", allow_pickle=False)
        return array
    except Exception as error:
        raise InputError(f"{field}: {path!r} is not a readable .npy ({error})") from error


def read_npz(field: str, path: str, wanted: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` file.

    Args:
      field: the setting that names it.
      path: of the file.
      wanted: names of arrays; others are not read. Empty reads all.

    Raises:
      InputError: there is none, it is damaged, or it holds Python objects.
    """
    place = paths.local(path, field)
    if not place.is_file():
        raise InputError(f"{field}: no file {path!r}; expected an .npz file")
    _check_start(field, path, place, b"PK")
    try:
        # Opened here: np.load leaves a damaged file open.
        with place.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            found = {name: file[name] for name in file.files if not wanted or name in wanted}
    except Exception as error:  # NumPy, zipfile and zlib raise a dozen types for a damaged file.
        hint = ". Texts are saved by numpy.asarray(texts).astype(str)"
        raise InputError(
            f"{field}: {path!r} is not a readable .npz ({error})"
            + (hint if "allow_pickle" in str(error) else "")
        ) from error
    for name, array in found.items():
        if not isinstance(array, np.ndarray):  # Any file of a ZIP archive.
            raise InputError(f"{field}: {path!r} [{name!r}] is no array, as numpy.savez writes it")
    return found


def names_in_npz(field: str, path: str) -> list[str]:
    """Names of all arrays in an `.npz` file; errors as for `read_npz`."""
    read_npz(field, path, ("",))
    with np.load(paths.local(path, field), allow_pickle=False) as file:
        return sorted(file.files)


def _check_start(field: str, path: str, place: pathlib.Path, start: bytes) -> None:
    """Refuses a file of another kind; NumPy's own message is about pickles."""
    try:
        with place.open("rb") as stream:
            found = stream.read(len(start))
    except OSError:
        return  # The reader reports it.
    if found and found != start:
        raise InputError(
            f"{field}: {path!r} is not a readable {place.suffix} (it begins with {found!r}); "
            "expected what numpy.save or numpy.savez writes"
        )


def checked_inputs(
    field: str, path: str, key: str, inputs: np.ndarray, offsets: Offsets = ()
) -> np.ndarray:
    """Inputs `[N, ...]` in the stored type, see `as_stored`.

    Args:
      field, path, key: for messages; which array of the file it is.
      inputs: as they are in the file.
      offsets: of features, see `offsets_of`.

    Raises:
      InputError: they are not finite numbers.
    """

    def fail(problem: str) -> NoReturn:
        raise InputError(f"{field}: {path!r} {key}{problem}")

    if inputs.ndim < 2 or not len(inputs):
        fail(f"has shape {inputs.shape}, expected [N, ...] with N at least 1")
    return as_stored(fail, inputs, offsets)


class _File:
    """One `.npz` file, or an `.npy` with a table next to it; checked."""

    def __init__(self, name: str, path: str, offsets: Offsets | None = None):
        """`offsets` are those of the first file; None for that file, which computes them."""
        self.field, self.path, self.offsets = FIELD + name, path, offsets or ()
        self.table: Table | None = None
        self.arrays: dict[str, np.ndarray] = {}
        if path.endswith(".npy"):
            self.inputs = checked_inputs(self.field, path, "", open_npy(self.field, path))
            if offsets is None:
                offsets_of(self.fail, self.inputs)
            elif offsets:  # A memory map is not changed.
                self.fail("is a memory map, and numbers of the first file are too large for "
                          "float32; expected an .npz, too")  # fmt: skip
            self.table = Table(self.field, self._beside())
            return
        self.arrays = read_npz(self.field, path, ("inputs", *_COLUMNS, "sources"))
        for name_, wanted in itertools.product(names_in_npz(self.field, path), _COLUMNS):
            if wanted not in self.arrays and is_near(name_.casefold(), wanted, 1):
                self.fail(
                    f"has array {name_!r} and none named {wanted!r}; expected that name, or one "
                    "less like it"
                )
        for key in ("inputs", "labels"):
            if key not in self.arrays:
                self.fail(f"has no array {key!r}, only {names_in_npz(self.field, path)}")
        size = self.arrays["inputs"].shape[0] if self.arrays["inputs"].ndim else 0
        for key in _COLUMNS:
            shape = self.arrays[key].shape if key in self.arrays else (size,)
            several = key == "labels" and len(shape) == 2 and name == "data"
            if shape[:1] != (size,) or (len(shape) > 1 and not several):
                self.fail(
                    f"[{key!r}] has shape {self.arrays[key].shape}, expected "
                    f"({size},), one for each input"
                )
        key, inputs = "['inputs'] ", self.arrays["inputs"]
        self.inputs = checked_inputs(self.field, path, key, inputs)
        if offsets is None:
            self.offsets = offsets_of(lambda problem: self.fail(f"{key}{problem}"), inputs)
        if self.offsets:
            self.inputs = checked_inputs(self.field, path, key, inputs, self.offsets)
        ids = self.arrays.get("ids")
        if ids is not None and len(np.unique(ids)) < len(ids):
            values, counts = np.unique(ids, return_counts=True)
            twice = values[counts > 1][0].item()
            self.fail(f"['ids'] has {twice!r} more than once; expected one each")

    def fail(self, problem: str) -> NoReturn:
        raise InputError(f"{self.field}: {self.path!r} {problem}")

    def check_shape_of(self, other: "_File") -> None:
        ours, theirs = self.inputs, other.inputs
        if ours.shape[1:] != theirs.shape[1:] or ours.dtype != theirs.dtype:
            self.fail(
                f"has inputs {list(ours.shape[1:])} of {ours.dtype}, expected those of "
                f"{other.path!r}, {list(theirs.shape[1:])} of {theirs.dtype}"
            )

    def labelled(self, said: Said) -> LabelledFile:
        if self.table is not None:
            return self._labelled_by(self.table, said)
        if self.field == f"{FIELD}data" and said._replace(classes=()) != Said():
            self.fail(
                "has its labels in an array; expected no columns of labels and no file of votes"
            )
        inputs, ids = self.inputs, self.arrays.get("ids")
        names: tuple[str, ...] = ()
        labels, votes = self._labels("labels"), None
        assert labels is not None
        if labels.numbers.ndim == 2:
            if not labels.numbers.shape[1]:
                self.fail("['labels'] has no column; expected one for each source of labels")
            names = self._source_names(labels.numbers.shape[1])
            labels = without_abstaining(self.path, labels)
            speaks = that_speak(labels.numbers, names)
            if not speaks.all():
                names = tuple(np.array(names)[speaks].tolist())
                labels = labels._replace(numbers=labels.numbers[:, speaks])
            votes, labels = labels, first_said(labels)
        return LabelledFile(
            votes=votes,
            source_names=names,
            field=self.field,
            path=self.path,
            labels=labels,
            checked=self._labels("checked_labels"),
            given=self._labels("given_labels"),
            split=self._texts("splits", SPLITS, SPLIT_NAMES),
            drawn=self._texts("drawn", ("", *DRAWN), f"{', '.join(DRAWN)} or nothing"),
            ids=None if ids is None else ids.astype(str),
            name_row=lambda row: f"row {str(row if ids is None else ids[row])!r}",
            create_source=lambda: ArraySource(inputs, ids, offsets=self.offsets),
            classes=said.classes,
        )

    def _source_names(self, number: int) -> tuple[str, ...]:
        names = self.arrays.get("sources", np.arange(number)).astype(str)
        if names.shape != (number,) or len(set(names.tolist())) < number:
            self.fail(f"['sources'] is {names.tolist()}, expected {number} names, each once")
        return tuple(names.tolist())

    def _labelled_by(self, table: Table, said: Said) -> LabelledFile:
        columns, num_rows = LabelColumns(table, said), 0
        for line, values in table.rows(columns.required, columns.optional):
            columns.add(line, values)
            num_rows += 1
        file = columns.finish(lambda ids: IndexedSource(self.inputs, ids))
        if num_rows != len(self.inputs):
            table.fail(
                f"has {num_rows} rows, expected {len(self.inputs)}, one for each of {self.path!r}"
            )
        return file

    def _beside(self) -> str:
        """The path of the table with an `.npy` file's labels."""
        places = [self.path.removesuffix(".npy") + ending for ending in ENDINGS]
        for place in places:
            if paths.local(place, self.field).is_file():
                return place
        self.fail(f"has no labels next to it; expected {', '.join(places[:-1])} or {places[-1]}")

    def _texts(self, key: str, known: Sequence[str], described: str) -> Labels | None:
        values = self.arrays.get(key)
        if values is None:
            return None
        if not np.issubdtype(values.dtype, np.str_):
            self.fail(f"[{key!r}] holds {values.dtype}, expected texts: {described}")
        for row in np.flatnonzero(~np.isin(values, known))[:1]:
            self.fail(f"[{key!r}] row {row} is {str(values[row])!r}, expected {described}")
        return Labels.of(values)

    def _labels(self, key: str) -> Labels | None:
        if key not in self.arrays:
            return None
        labels = self.arrays[key]
        if is_one_hot(labels):
            self.fail(f"[{key!r}] is one-hot, expected the classes: {key}.argmax(axis=1)")
        if labels.dtype == bool:
            labels = labels.astype(str)
        if not np.issubdtype(labels.dtype, np.str_):
            if labels.dtype.kind == "f":  # With missing labels, pandas makes floats.
                there = np.where(np.isnan(labels), UNKNOWN, labels)
                if (there == np.round(there)).all() and (np.abs(there) < 2**53).all():
                    labels = there.astype(np.int64)
            if not np.issubdtype(labels.dtype, np.integer):
                hint = f": {key}.astype(str)" if labels.dtype.kind == "S" else ""
                self.fail(f"[{key!r}] holds {labels.dtype}, expected whole numbers or names{hint}")
            return _of_numbers(labels)
        of_all = Labels.of(labels.ravel())
        return of_all._replace(numbers=of_all.numbers.reshape(labels.shape))


def _of_numbers(labels: np.ndarray) -> Labels:
    """Whole numbers of any shape as names; UNKNOWN is no label.

    Texts of all of them at once would take ten times the memory.
    """
    blocks = [labels[start : start + _BLOCK] for start in range(0, len(labels), _BLOCK)]
    values = np.unique(np.concatenate([np.unique(block) for block in blocks] or [labels[:0]]))
    values = values[values != UNKNOWN]
    texts = [str(value) for value in values.tolist()]
    names = sorted(texts)
    by_name = {name: number for number, name in enumerate(names)}
    places = np.array([by_name[text] for text in texts], np.int32)
    numbers = np.full(labels.shape, UNKNOWN, np.int32)
    for start, block in zip(range(0, len(labels), _BLOCK), blocks, strict=True):
        said = block != UNKNOWN
        numbers[start : start + _BLOCK][said] = places[np.searchsorted(values, block[said])]
    return Labels(tuple(names), numbers)


def _check_kinds(files: dict[str, _File]) -> None:
    """Labels are numbers in all files, or names in all; a table's are names."""
    columns = [
        (f"{file.path}[{key!r}]", file.arrays[key].dtype)
        for file in files.values()
        for key in ("labels", "checked_labels", "given_labels")
        if key in file.arrays
    ]
    columns += [(x.table.path, np.dtype(np.str_)) for x in files.values() if x.table is not None]
    named = {dtype.kind in "USb" for _, dtype in columns}
    if len(named) > 1:
        kinds = ", ".join(f"{name} {dtype}" for name, dtype in columns)
        raise InputError(f"{FIELD}data: labels are numbers here and names there ({kinds})")
