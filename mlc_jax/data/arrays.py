"""Own data in `.npz` files: inputs, labels as given, and labels that somebody checked."""

import pathlib
from typing import NamedTuple

import numpy as np

from mlc_jax.data.benchmarks import Benchmark
from mlc_jax.data.prepare import Normalize, standardize
from mlc_jax.data.source import UNKNOWN, ArraySource, Subset
from mlc_jax.errors import InputError

_FIELD = "config.dataset."


class OwnData(NamedTuple):
    """What a run on own data is built from; the truth of noisy rows is not known."""

    class_names: tuple[str, ...]
    noisy: Subset
    clean: Subset
    test: Subset | None
    prepare: Normalize


def load(
    data: str | None, noisy: str | None, clean: str | None, test: str | None, *, standardized: bool
) -> OwnData | Benchmark:
    """Reads one file, or two, and maybe one to judge by.

    Args:
      data: `inputs`, `labels` as given, `checked_labels` (-1 or empty where nobody looked). Without
        `checked_labels` all labels count as true, and the file is a benchmark.
      noisy, clean: in place of `data`: `inputs` and `labels`; the clean file's are the true ones,
        and its `given_labels`, if there, the old ones.
      test: `inputs` and true `labels`.
      standardized: see `config.dataset.standardize`.

    Raises:
      InputError: a file that cannot be read, or arrays that do not fit together.
    """
    files = {
        name: _File(name, path)
        for name, path in (("data", data), ("noisy", noisy), ("clean", clean), ("test", test))
        if path
    }
    class_names = _class_names(files)
    for file in files.values():
        file.check_shape_of(next(iter(files.values())))
    judged = files["test"].subset(class_names, truth="labels") if test else None
    if data:
        file = files["data"]
        if "checked_labels" not in file.arrays:
            return _benchmark(file, judged, class_names)
        everything = file.subset(class_names, given="labels", truth="checked_labels")
        checked = everything.truth != UNKNOWN
        doubtful, trusted = (everything.take(np.flatnonzero(x)) for x in (~checked, checked))
    else:
        doubtful = files["noisy"].subset(class_names, given="labels")
        trusted = files["clean"].subset(class_names, given="given_labels", truth="labels")
    _check_classes(doubtful, trusted, class_names, "data" if data else "clean")
    prepare = standardized_of(doubtful) if standardized else Normalize()
    return OwnData(class_names, doubtful, trusted, judged, prepare)


def standardized_of(noisy: Subset) -> Normalize:
    """`prepare` by mean and deviation of the noisy set, which must be arrays in memory."""
    assert isinstance(noisy.source, ArraySource)
    return standardize(noisy.source.inputs[noisy.rows])


def _benchmark(file: "_File", judged: Subset | None, class_names: tuple[str, ...]) -> Benchmark:
    subset = file.subset(class_names, truth="labels")
    return Benchmark(
        name=pathlib.Path(file.path).stem,
        class_names=class_names,
        train=subset.source,
        train_labels=subset.truth,
        published_rows=subset.rows,
        num_published=len(subset),
        test=judged.source if judged else None,
        test_labels=judged.truth if judged else np.zeros(0, np.int32),
        prepare=Normalize(),
        names_labels=True,
    )


class _File:
    """One `.npz` file, checked."""

    def __init__(self, name: str, path: str):
        self.field, self.path = _FIELD + name, path
        self.arrays = _read(self.field, path)
        for key in ("inputs", "labels"):
            if key not in self.arrays:
                self.fail(f"has no array {key!r}, only {sorted(self.arrays)}")
        inputs = self.arrays["inputs"]
        if inputs.dtype.kind not in "biuf":
            self.fail(f"['inputs'] holds {inputs.dtype}, expected numbers")
        if inputs.ndim < 2 or not len(inputs):
            self.fail(f"['inputs'] has shape {inputs.shape}, expected [N, ...] with N at least 1")
        if np.issubdtype(inputs.dtype, np.floating) and not np.isfinite(inputs).all():
            rows = np.flatnonzero(~np.isfinite(inputs.reshape(len(inputs), -1)).all(axis=1))
            self.fail(f"['inputs'] row {rows[0]} is not finite; expected finite numbers")
        if inputs.dtype in (np.float64, bool):
            self.arrays["inputs"] = inputs.astype(np.float32)
        for key in ("labels", "checked_labels", "given_labels", "ids"):
            if key in self.arrays and self.arrays[key].shape != (len(inputs),):
                self.fail(
                    f"[{key!r}] has shape {self.arrays[key].shape}, expected ({len(inputs)},), one "
                    "for each input"
                )
        ids = self.arrays.get("ids")
        if ids is not None and len(np.unique(ids)) < len(ids):
            values, counts = np.unique(ids, return_counts=True)
            twice = values[counts > 1][0].item()
            self.fail(f"['ids'] has {twice!r} more than once; expected one each")

    def fail(self, problem: str) -> None:
        raise InputError(f"{self.field}: {self.path!r} {problem}")

    def names(self, key: str) -> np.ndarray:
        """Labels `[N]` as text; empty where there is none."""
        labels = self.arrays[key]
        if np.issubdtype(labels.dtype, np.str_):
            return labels
        if not np.issubdtype(labels.dtype, np.integer):
            self.fail(f"[{key!r}] holds {labels.dtype}, expected whole numbers or names")
        return np.where(labels == UNKNOWN, "", labels.astype(str))

    def check_shape_of(self, other: "_File") -> None:
        ours, theirs = self.arrays["inputs"], other.arrays["inputs"]
        if ours.shape[1:] != theirs.shape[1:] or ours.dtype != theirs.dtype:
            self.fail(
                f"has inputs {list(ours.shape[1:])} of {ours.dtype}, expected those of "
                f"{other.path!r}, {list(theirs.shape[1:])} of {theirs.dtype}"
            )

    def subset(
        self, class_names: tuple[str, ...], given: str | None = None, truth: str | None = None
    ) -> Subset:
        """All rows, with labels from the arrays of these names; what is not there is unknown."""
        numbers = {name: i for i, name in enumerate(class_names)} | {"": UNKNOWN}
        size = len(self.arrays["inputs"])

        def labels(key: str | None) -> np.ndarray:
            if key is None or key not in self.arrays:
                return np.full(size, UNKNOWN, np.int32)
            names = self.names(key)
            missing = np.flatnonzero(names == "")
            if len(missing) and key == "labels":
                self.fail(f"['labels'] row {missing[0]} is empty or -1; expected a label")
            return np.array([numbers[name] for name in names], np.int32)

        source = ArraySource(self.arrays["inputs"], self.arrays.get("ids"))
        return Subset(source, np.arange(size), labels(given), labels(truth))


def _read(field: str, path: str) -> dict[str, np.ndarray]:
    if not pathlib.Path(path).is_file():
        raise InputError(f"{field}: no file {path!r}; expected an .npz file")
    try:
        # Opened here: np.load leaves a damaged file open.
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:  # NumPy, zipfile and zlib raise a dozen types for a damaged file.
        hint = ". Texts are saved by numpy.asarray(texts).astype(str)"
        raise InputError(
            f"{field}: {path!r} is not a readable .npz ({error})"
            + (hint if "allow_pickle" in str(error) else "")
        ) from error


def _class_names(files: dict[str, _File]) -> tuple[str, ...]:
    """All labels of all files in their order: numbers as numbers, names as text."""
    keys = ("labels", "checked_labels", "given_labels")
    columns = [f.arrays[key] for f in files.values() for key in keys if key in f.arrays]
    if len({np.issubdtype(column.dtype, np.str_) for column in columns}) > 1:
        kinds = ", ".join(
            f"{f.path}[{key!r}] {f.arrays[key].dtype}"
            for f in files.values()
            for key in keys
            if key in f.arrays
        )
        raise InputError(f"{_FIELD}data: labels are numbers here and names there ({kinds})")
    if np.issubdtype(columns[0].dtype, np.str_):
        names = np.unique(np.concatenate(columns))
        return tuple(str(name) for name in names if name)
    for file in files.values():
        for key in keys:
            if key in file.arrays:
                file.names(key)  # Refuses what is no whole number.
    numbers = np.unique(np.concatenate(columns))
    return tuple(str(number) for number in numbers if number != UNKNOWN)


def _check_classes(noisy: Subset, clean: Subset, class_names: tuple[str, ...], name: str) -> None:
    if not len(clean):
        raise InputError(f"{_FIELD}{name}: no row is checked; expected some of every class")
    if not len(noisy):
        raise InputError(f"{_FIELD}{name}: all rows are checked; expected some to correct")
    # Such as a misspelt name: a class that no label was ever given for.
    strange = np.setdiff1d(clean.truth, noisy.given)
    if len(strange):
        row = int(np.flatnonzero(clean.truth == strange[0])[0])
        raise InputError(
            f"{_FIELD}{name}: checked row {str(clean.ids[row])!r} has label "
            f"{class_names[strange[0]]!r}, which no row was given; expected one of those that were"
        )
