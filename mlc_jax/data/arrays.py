"""Own data in `.npz` files: inputs, labels as given, and labels that somebody checked."""

import pathlib

import numpy as np

from mlc_jax.data.benchmarks import Benchmark
from mlc_jax.data.own import FIELD, LabelledFile, Labels, OwnData, combine
from mlc_jax.data.prepare import Normalize, standardize
from mlc_jax.data.source import UNKNOWN, ArraySource, Subset
from mlc_jax.errors import InputError


def load(
    data: str | None, noisy: str | None, clean: str | None, test: str | None, standardized: bool
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
    named = _check_kinds(files)
    for file in files.values():
        file.check_shape_of(next(iter(files.values())))
    labelled = {name: file.labelled() for name, file in files.items()}
    own = combine(labelled, Normalize(), order=str if named else int)
    if standardized and isinstance(own, OwnData):
        return own._replace(prepare=standardized_of(own.noisy))
    return own


def standardized_of(noisy: Subset) -> Normalize:
    """`prepare` by mean and deviation of the noisy set, which must be arrays in memory."""
    assert isinstance(noisy.source, ArraySource)
    return standardize(noisy.source.inputs[noisy.rows])


class _File:
    """One `.npz` file, checked."""

    def __init__(self, name: str, path: str):
        self.field, self.path = FIELD + name, path
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

    def check_shape_of(self, other: "_File") -> None:
        ours, theirs = self.arrays["inputs"], other.arrays["inputs"]
        if ours.shape[1:] != theirs.shape[1:] or ours.dtype != theirs.dtype:
            self.fail(
                f"has inputs {list(ours.shape[1:])} of {ours.dtype}, expected those of "
                f"{other.path!r}, {list(theirs.shape[1:])} of {theirs.dtype}"
            )

    def labelled(self) -> LabelledFile:
        inputs, ids = self.arrays["inputs"], self.arrays.get("ids")
        labels = self._labels("labels")
        assert labels is not None
        missing = np.flatnonzero(labels.numbers == UNKNOWN)
        if len(missing):
            self.fail(f"['labels'] row {missing[0]} is empty or -1; expected a label")
        return LabelledFile(
            field=self.field,
            path=self.path,
            labels=labels,
            checked=self._labels("checked_labels"),
            given=self._labels("given_labels"),
            name_row=lambda row: f"checked row {str(row if ids is None else ids[row])!r}",
            create_source=lambda: ArraySource(inputs, ids),
        )

    def _labels(self, key: str) -> Labels | None:
        if key not in self.arrays:
            return None
        labels = self.arrays[key]
        if np.issubdtype(labels.dtype, np.str_):
            return Labels.of(labels)
        if not np.issubdtype(labels.dtype, np.integer):
            self.fail(f"[{key!r}] holds {labels.dtype}, expected whole numbers or names")
        return Labels.of(np.where(labels == UNKNOWN, "", labels.astype(str)))


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


def _check_kinds(files: dict[str, _File]) -> bool:
    """Whether labels are names rather than numbers; of all files alike."""
    columns = [
        (file.path, key, file.arrays[key].dtype)
        for file in files.values()
        for key in ("labels", "checked_labels", "given_labels")
        if key in file.arrays
    ]
    named = {np.issubdtype(dtype, np.str_) for _, _, dtype in columns}
    if len(named) > 1:
        kinds = ", ".join(f"{path}[{key!r}] {dtype}" for path, key, dtype in columns)
        raise InputError(f"{FIELD}data: labels are numbers here and names there ({kinds})")
    return named.pop()
