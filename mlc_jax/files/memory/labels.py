"""Labels of a user's examples: names or numbers in, numbers of classes out."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from mlc_jax.data import UNKNOWN
from mlc_jax.data.folds import DRAWN
from mlc_jax.data.votes import prepared, that_speak
from mlc_jax.errors import InputError, expect
from mlc_jax.files.values.names import is_one_hot
from mlc_jax.files.values.votes import is_abstaining


class Part(Protocol):
    """Labels of a user's `Examples`."""

    @property
    def labels(self) -> Any: ...
    @property
    def given(self) -> Any: ...
    @property
    def drawn(self) -> Any: ...
    def __len__(self) -> int: ...


class PartLabels(NamedTuple):
    """Numbers of classes of each part: given and true ones `[N]`, and all votes `[N, S]`.

    `source_names` are of the sources that label a row; for `copies` see `votes.Prepared`.
    """

    given: dict[str, np.ndarray]
    truth: dict[str, np.ndarray]
    votes: dict[str, np.ndarray]
    source_names: tuple[str, ...] = ()
    copies: Mapping[str, str] = {}


def labels_of(
    present: Mapping[str, Part], class_names: Sequence[str], source_names: tuple[str, ...]
) -> PartLabels:
    """The labels of all parts.

    Args:
      present: parts by name, `noisy` and `clean` among them.
      class_names: of the classes, in the order of their numbers.
      source_names: of several sources; empty for one.

    Raises:
      InputError: a label that is no class, one-hot labels, or several true labels of a row.
    """
    numbers, num_classes = {name: i for i, name in enumerate(class_names)}, len(class_names)
    truth, votes = {}, {}
    for name, part in present.items():
        truth[name], said = np.full(len(part), UNKNOWN, np.int32), part.labels
        if name != "noisy":
            if source_names_of(part, of="labels"):
                raise InputError(f"{name}.labels: got several for a row, expected the true one")
            said = part.given
            truth[name] = _numbers(
                f"{name}.labels", as_labels(part.labels), numbers, num_classes, known=True
            )
        columns = _columns(f"{name}.{'labels' if name == 'noisy' else 'given'}", said, source_names)
        votes[name] = (
            np.full((len(part), max(1, len(source_names))), UNKNOWN, np.int32)
            if columns is None
            else _numbers(f"{name}.labels", columns, numbers, num_classes, known=False)
        )
    if not source_names:
        return PartLabels({name: said[:, 0] for name, said in votes.items()}, truth, votes)
    # Validation and test rows must not tell how good a source is.
    seen = [
        known if name == "clean" else np.full_like(known, UNKNOWN) for name, known in truth.items()
    ]
    together = np.concatenate(list(votes.values()))
    speaks = that_speak(together, source_names)
    source_names = tuple(np.array(source_names)[speaks].tolist())
    most, counted, copies = prepared(
        together[:, speaks], np.concatenate(seen), source_names, num_classes
    )
    ends = np.cumsum([len(said) for said in votes.values()])[:-1]
    given, votes = (
        dict(zip(votes, np.split(array, ends), strict=True)) for array in (most, counted)
    )
    return PartLabels(given, truth, votes, source_names, copies)


def source_names_of(part: Part, of: str = "labels") -> tuple[str, ...]:
    """Names of the sources of labels; empty if there is one label per row."""
    values = getattr(part, of)
    if isinstance(values, dict):
        names = [str(name) for name in values]
    elif hasattr(values, "columns"):
        names = [str(name) for name in values.columns]
    elif _ndim(values) == 2:
        names = [str(number) for number in range(np.shape(values)[1])]
    else:
        return ()
    twice = [name for name in names if names.count(name) > 1]
    expect(not twice, of, twice[:1], "each source once")
    return tuple(names)


def _ndim(values: Any) -> int:
    try:
        return np.ndim(values)
    except ValueError:  # Rows of different lengths.
        return int(as_labels(values).ndim)


def _said(values: Any) -> np.ndarray:
    """Labels of sources, as `as_labels`, where `abstain` is no label either."""
    array = as_labels(values)
    if array.dtype.kind not in "UTO":
        return array
    texts, places = np.unique(array, return_inverse=True)
    kept = np.array(["" if is_abstaining(str(text)) else str(text) for text in texts])
    return kept[places].reshape(array.shape)


def _columns(field: str, values: Any, names: tuple[str, ...]) -> np.ndarray | None:
    """Labels `[N, S]` of the sources `names`, or of the only source; None without labels."""
    if values is None:
        return None
    if is_one_hot(np.asarray(values) if np.ndim(values) == 2 else np.zeros(0)):
        raise InputError(f"{field}: one-hot, expected the classes: labels.argmax(axis=1)")
    if not names:
        if np.ndim(values) == 2 or isinstance(values, dict):
            raise InputError(f"{field}: got several labels for a row, noisy rows have one")
        return as_labels(values)[:, None]
    if not isinstance(values, dict) and not hasattr(values, "columns"):
        array = _said(values)
        if array.shape[1:] != (len(names),):
            raise InputError(
                f"{field}: got {list(array.shape)}, expected a column for each of {len(names)} "
                "sources of noisy.labels"
            )
        return array
    there = {str(name): name for name in values}
    if unknown := sorted(there.keys() - set(names)):
        raise InputError(f"{field}: source {unknown[0]!r} is not one of noisy.labels")
    size = len(values[next(iter(there.values()))])
    columns = [
        _said(values[there[name]]) if name in there else np.full(size, UNKNOWN) for name in names
    ]
    if any(column.dtype.kind == "U" for column in columns):
        columns = [x if x.dtype.kind == "U" else _texts(x) for x in columns]
    return np.stack(columns, axis=1)


def as_labels(values: Any) -> np.ndarray:
    """Labels as texts ("" for no label) or as whole numbers (-1 for no label); or InputError."""
    if isinstance(values, np.ma.MaskedArray):
        mask, values = np.ma.getmaskarray(values), values.data.astype(object)
        values[mask] = None
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise InputError(f"labels: {error}; expected one in each row") from error
    is_label = array.dtype.kind not in "ScV"
    expect(is_label, "labels", array.dtype, "whole numbers or texts; of bytes x.astype(str)")
    if array.dtype.kind not in "OfT":
        return array
    flat = array.astype(object).ravel()
    missing = np.array([_is_missing(x) for x in flat], bool)
    rest = flat[~missing].tolist()
    if all(
        isinstance(x, (int, float, np.number)) and math.isfinite(x) and x == int(x) for x in rest
    ):
        large = [x for x in rest if not -(2**63) <= x < 2**63]
        expect(not large, "labels", large[:1], "whole numbers of 64 bits, or names")
        numbers = np.full(flat.shape, UNKNOWN, np.int64)
        numbers[~missing] = [int(x) for x in rest]
        return numbers.reshape(array.shape)
    kinds = {"texts" if isinstance(x, str) else "numbers" for x in rest}
    bytes_there = any(isinstance(x, bytes) for x in rest)
    expect(not bytes_there, "labels", "bytes", "texts: x.decode()")
    expect(len(kinds) < 2, "labels", "texts and numbers", "one of them")
    expect(kinds != {"numbers"}, "labels", rest[:1], "whole numbers or texts")
    if array.dtype.kind == "f":
        return array
    texts = np.array(["" if gone else str(x) for x, gone in zip(flat, missing, strict=True)])
    return texts.reshape(array.shape)


def _is_missing(value: Any) -> bool:
    try:
        return value is None or bool(value != value) or value == ""
    except TypeError:  # pandas.NA has no truth value.
        return True


def _texts(numbers: np.ndarray) -> np.ndarray:
    return np.where(numbers == UNKNOWN, "", numbers.astype(str))


def drawn_of(clean: Part) -> np.ndarray:
    """How checked rows were chosen, text `[M]`; "" if that is not known."""
    drawn = clean.drawn
    if drawn is None or isinstance(drawn, str):
        drawn = np.full(len(clean), drawn or "")
    drawn = np.asarray(drawn).astype(str)
    expected = f"one text, or one for each of {len(clean)} checked rows"
    expect(drawn.shape == (len(clean),), "clean.drawn", drawn.shape, expected)
    for row in np.flatnonzero(~np.isin(drawn, ("", *DRAWN)))[:1].tolist():
        expect(False, "clean.drawn", drawn[row], f"{', '.join(DRAWN)} or nothing")
    return drawn


def names_of(parts: Mapping[str, Part]) -> tuple[str, ...] | None:
    """All labels in their order if they are names; None if they are numbers."""
    values = [x for p in parts.values() for x in (p.labels, p.given) if x is not None]
    columns = [
        _said(column) if _is_named(x) or _ndim(x) == 2 else as_labels(column)
        for x in values
        for column in ([x[name] for name in x] if _is_named(x) else [x])
    ]
    columns = [x for x in columns if x.size and not (x.dtype.kind in "iu" and (x < 0).all())]
    kinds = {"names" if column.dtype.kind in "UTO" else "numbers" for column in columns}
    expect(len(kinds) == 1, "labels", sorted(kinds), "all numbers, or all names")
    if kinds == {"numbers"}:
        return None
    names = sorted({str(name) for column in columns for name in column.ravel().tolist()} - {""})
    return tuple(names)


def _is_named(values: Any) -> bool:
    """Whether sources of labels have names."""
    return isinstance(values, dict) or hasattr(values, "columns")


def _numbers(
    field: str, labels: Any, numbers: dict[str, int], num_classes: int, *, known: bool
) -> np.ndarray:
    """Numbers of classes, int32 `[N]` or `[N, S]`; UNKNOWN for no label, refused if `known`."""
    array = labels
    if array.dtype.kind in "UTO":
        texts, places = np.unique(array, return_inverse=True)
        found = np.array([numbers.get(str(x), UNKNOWN) for x in texts], np.int32)
        found = found[places].reshape(array.shape)
    else:
        whole = np.issubdtype(array.dtype, np.integer)
        expect(whole, field, array.dtype, "whole numbers from 0, or names")
        found = np.clip(array, -2, num_classes).astype(np.int32)  # Larger values are refused below.
    bad = (found < (0 if known else UNKNOWN)) | (found >= num_classes)
    if bad.any():
        row = int(np.argwhere(bad)[0][0])
        raise InputError(
            f"{field}: row {row} is {array[bad][0].item()!r}, expected 0 to {num_classes - 1}, the "
            "model's classes"
        )
    return found
