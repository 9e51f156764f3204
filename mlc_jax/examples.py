"""A user's examples: turns arrays and labels into sources and numbers."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np

from mlc_jax.data import UNKNOWN, ArraySource, IndexedSource, Source, Subset
from mlc_jax.data.dataset import Dataset
from mlc_jax.data.folds import DRAWN
from mlc_jax.data.prepare import Normalize, identity
from mlc_jax.data.source import Layout, layout_of, num_examples, read_rows
from mlc_jax.data.votes import prepared
from mlc_jax.errors import InputError, expect
from mlc_jax.files.own import missing_classes
from mlc_jax.files.values.drawn import how_drawn
from mlc_jax.files.values.inputs import Offsets, as_stored, offsets_of
from mlc_jax.files.values.names import is_one_hot
from mlc_jax.methods import Method


@dataclasses.dataclass(frozen=True, eq=False)
class Examples:
    """Inputs and their labels.

    Attributes:
      x: an array `[N, ...]`, a dict of arrays, or anything with `len` and `x[rows]`, where `rows`
        is a sorted NumPy array of row numbers: a memory map, an HDF5 dataset, your own class. Or a
        list of texts, if `fit` gets a `reader`.
      labels: `[N]`, numbers from 0 or names: given labels of noisy examples, true labels of clean
        ones. With several sources (annotators, rules, models) `[N, S]`, a table with a column for
        each source, or a dict from names to labels. -1, "", None or NaN mean no label.
      given: for clean examples, the labels before somebody checked them, in the form of `labels` of
        the noisy ones. None if they are not known.
      ids: `[N]` names of the examples; None numbers them.
      drawn: for clean examples, how they were chosen: `random` (a random sample of all rows),
        `per_class` (a fixed number per class) or `looked_up` (for a reason). One of these, or one
        for each example `[N]`. None guesses.
    """

    x: Any
    labels: Any
    given: Any = None
    ids: Any = None
    drawn: Any = None

    def __post_init__(self) -> None:
        size = len(self)
        for name in ("labels", "given", "ids"):
            values = getattr(self, name)
            if isinstance(values, dict):
                expect(len(values) > 0, name, values, "at least one source")
                lengths = {_length(name, column) for column in values.values()}
            else:
                lengths = set() if values is None else {_length(name, values)}
            for length in sorted(lengths - {size}):
                raise InputError(f"{name}: got {length} of them, expected {size}, one per row")
        expect(size > 0, "x", self.x, "at least one example")

    def __len__(self) -> int:
        if isinstance(self.x, dict):
            try:
                return num_examples(self.x)
            except ValueError as error:
                raise InputError(f"x: {error}") from error
        return _length("x", self.x)


def _length(field: str, values: Any) -> int:
    try:
        return len(values)
    except TypeError:
        raise InputError(
            f"{field}: got {type(values).__name__}, expected an array or a list: its length must "
            "be known"
        ) from None


def create_source(x: Any, ids: Any = None, offsets: Offsets = ()) -> Source:
    """A source of arrays in memory, or of anything else that has `x[rows]`.

    Args:
      x: as in `Examples`.
      ids: of its rows.
      offsets: of features, see `offsets_of`.

    Raises:
      InputError: the inputs are not finite numbers.
    """
    if hasattr(x, "to_numpy"):  # A table: x[rows] would be columns.
        x = x.to_numpy()
    if isinstance(x, list | tuple):
        try:
            x = np.asarray(x)
        except ValueError as error:
            raise InputError(f"x: {error}; expected rows of equal length") from error
    leaves = jax.tree.leaves(x)
    in_memory = (np.ndarray, jax.Array)
    if all(isinstance(leaf, in_memory) and not isinstance(leaf, np.memmap) for leaf in leaves):
        arrays = jax.tree.map(np.asanyarray, x)  # Masks stay, to be refused.
        texts = any(array.dtype.kind in "OSU" for array in jax.tree.leaves(arrays))
        reader = "numbers; texts need fit(..., reader=mlc_jax.TextReader(...))"
        expect(not texts, "x", "texts", reader)
        stored = functools.partial(_as_stored, offsets=offsets)
        arrays = jax.tree_util.tree_map_with_path(stored, arrays)
        return ArraySource(arrays, ids, offsets=offsets)
    expect(hasattr(x, "__getitem__") and hasattr(x, "__len__"), "x", type(x), "x[rows] and len(x)")
    return IndexedSource(x, ids)


def _as_stored(path: Any, array: np.ndarray, *, offsets: Offsets) -> np.ndarray:
    fail = functools.partial(_fail_on_inputs, jax.tree_util.keystr(path))
    return as_stored(fail, array, offsets)


def _fail_on_inputs(name: str, problem: str) -> NoReturn:
    raise InputError(f"x{name}: {problem}")


def create_dataset(
    method: Method,
    noisy: Examples,
    clean: Examples,
    validation: Examples | None,
    test: Examples | None,
    prepare: Callable[[Any], Any] | None,
    read: Callable[..., Source] = create_source,
) -> Dataset:
    """Turns labels into numbers and inputs into sources, by `read(inputs, ids)`.

    Raises:
      InputError: labels, inputs and the method's model do not fit together.
    """
    parts = {"noisy": noisy, "clean": clean, "validation": validation, "test": test}
    present = {name: part for name, part in parts.items() if part is not None}
    names = _names(present)
    sources = {name: read(part.x, part.ids) for name, part in present.items()}
    if read is create_source and isinstance(noisy.x, np.ndarray):
        offsets = offsets_of(functools.partial(_fail_on_inputs, " of noisy"), noisy.x)
        if offsets:
            sources = {x: create_source(y.x, y.ids, offsets) for x, y in present.items()}
    example = read_rows(sources["clean"], np.zeros(1, np.int64))
    prepare = prepare or prepare_for(example)
    num_classes = _num_classes(method, prepare, example)
    if names is None:
        class_names = tuple(str(number) for number in range(num_classes))
    else:
        expect(len(names) <= num_classes, "labels", len(names), f"{num_classes} names at most, one "
               "for each of the model's classes")  # fmt: skip
        class_names = names + tuple(f"class {i}" for i in range(len(names), num_classes))
    numbers = {name: i for i, name in enumerate(class_names)}
    source_names = _source_names(noisy)
    truths, votes = {}, {}
    for name, part in present.items():
        unknown = np.full(len(part), UNKNOWN, np.int32)
        truths[name], said = unknown, part.labels
        if name != "noisy":
            if _source_names(part, of="labels"):
                raise InputError(f"{name}.labels: got several for a row, expected the true one")
            said = part.given
            truths[name] = _numbers(
                f"{name}.labels", as_labels(part.labels), numbers, num_classes, known=True
            )
        columns = _columns(f"{name}.{'labels' if name == 'noisy' else 'given'}", said, source_names)
        votes[name] = (
            np.full((len(part), max(1, len(source_names))), UNKNOWN, np.int32)
            if columns is None
            else _numbers(f"{name}.labels", columns, numbers, num_classes, known=False)
        )
    given: dict[str, np.ndarray] = {name: said[:, 0] for name, said in votes.items()}
    if source_names:
        # Validation and test rows must not tell how good a source is.
        seen = [
            truths[name] if name == "clean" else np.full_like(truths[name], UNKNOWN)
            for name in votes
        ]
        most, counted = prepared(
            np.concatenate(list(votes.values())), np.concatenate(seen), source_names, num_classes
        )
        ends = np.cumsum([len(said) for said in votes.values()])[:-1]
        given = dict(zip(votes, np.split(most, ends), strict=True))
        votes = dict(zip(votes, np.split(counted, ends), strict=True))

    def subset(name: str) -> Subset | None:
        if name not in present:
            return None
        rows = np.arange(len(present[name]))
        said = votes[name] if source_names else None
        return Subset(sources[name], rows, given[name], truths[name], said)

    noisy_part, clean_part = subset("noisy"), subset("clean")
    assert noisy_part is not None and clean_part is not None
    missing_classes(noisy_part.given, clean_part.truth, class_names)
    drawn = _drawn(clean)
    return Dataset(
        name="examples",
        class_names=class_names,
        noisy=noisy_part,
        clean=clean_part,
        validation=subset("validation"),
        test=subset("test"),
        prepare=prepare,
        noise="given",
        names_labels=names is not None,
        drawn=how_drawn(clean_part.truth, drawn, None, clean_part.given, noisy_part.given),
        source_names=source_names,
    )


def _source_names(part: Examples, of: str = "labels") -> tuple[str, ...]:
    """Names of the sources of labels; empty if there is one label per row."""
    values = getattr(part, of)
    if isinstance(values, dict):
        names = [str(name) for name in values]
    elif hasattr(values, "columns"):
        names = [str(name) for name in values.columns]
    elif np.ndim(values) == 2:
        names = [str(number) for number in range(np.shape(values)[1])]
    else:
        return ()
    twice = [name for name in names if names.count(name) > 1]
    expect(not twice, of, twice[:1], "each source once")
    return tuple(names)


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
        array = as_labels(values)
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
        as_labels(values[there[name]]) if name in there else np.full(size, UNKNOWN)
        for name in names
    ]
    if any(column.dtype.kind == "U" for column in columns):
        columns = [x if x.dtype.kind == "U" else _texts(x) for x in columns]
    return np.stack(columns, axis=1)


def as_labels(values: Any) -> np.ndarray:
    """Labels as text ("" for no label) or as whole numbers (-1 for no label)."""
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


def _drawn(clean: Examples) -> np.ndarray:
    """How checked rows were chosen, text `[M]`; "" if that is not known."""
    drawn = clean.drawn
    if drawn is None or isinstance(drawn, str):
        drawn = np.full(len(clean), drawn or "")
    drawn = np.asarray(drawn).astype(str)
    for row in np.flatnonzero(~np.isin(drawn, ("", *DRAWN)))[:1].tolist():
        expect(False, "clean.drawn", drawn[row], f"{', '.join(DRAWN)} or nothing")
    return drawn


def check_layout(source: Source, example: Any) -> None:
    """Raises InputError unless inputs have the shapes and types of a run.

    Args:
      source: the inputs.
      example: see `Run.sizes`.
    """
    layout = layout_of(source)
    zeros = lambda leaf: np.zeros(leaf["shape"], leaf["dtype"])  # noqa: E731
    expected = Layout.of(jax.tree.map(zeros, example, is_leaf=is_description))
    same = (layout.structure, layout.shapes) == (expected.structure, expected.shapes)
    # Other kinds of whole numbers will do; a fraction is no pixel.
    if not same or not all(
        np.can_cast(one, other, "same_kind")
        for one, other in zip(layout.dtypes, expected.dtypes, strict=True)
    ):
        raise InputError(
            f"inputs: got examples of {layout}, expected those of the training, {expected}"
        )


def prepare_for(example: Any) -> Callable[[Any], Any]:
    """Converts whole numbers of a single array to float32, in which models compute."""
    is_leaf = is_description(example)
    dtype = example["dtype"] if is_leaf else getattr(example, "dtype", None)
    if dtype is not None and not np.issubdtype(np.dtype(dtype), np.floating):
        return Normalize()
    return identity


def is_description(value: Any) -> bool:
    """Whether it describes an array; see `Run.sizes`."""
    return isinstance(value, dict) and value.keys() == {"shape", "dtype"}


def _num_classes(method: Method, prepare: Callable[[Any], Any], example: Any) -> int:
    """How many logits the model has."""

    def logits(example: Any) -> jax.Array:
        key = jax.random.key(0)
        outputs, _ = method.model.init_with_output(key, prepare(example), train=False)
        return outputs[0]

    try:
        return int(jax.eval_shape(logits, example).shape[-1])
    except InputError:
        raise
    except Exception as error:  # A user's model may raise any error.
        raise InputError(
            "model: it does not take the inputs as prepared: "
            f"{str(error).splitlines()[0]}; expected model(inputs, train=...) -> (logits, features)"
        ) from error


def _names(parts: dict[str, Examples]) -> tuple[str, ...] | None:
    """All labels in their order if they are names; None if they are numbers."""
    values = [x for p in parts.values() for x in (p.labels, p.given) if x is not None]
    columns = [
        as_labels(column)
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
    """Labels `[N]` or `[N, S]` as int32; UNKNOWN where there is none, unless they must be known."""
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
