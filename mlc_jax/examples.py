"""A user's examples: turns arrays and labels into sources and numbers."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

import jax
import numpy as np

from mlc_jax.data import ArraySource, IndexedSource, Source, Subset
from mlc_jax.data.dataset import Dataset
from mlc_jax.data.prepare import Normalize, identity
from mlc_jax.data.source import Layout, layout_of, num_examples, read_rows
from mlc_jax.errors import InputError, expect
from mlc_jax.files.memory.labels import drawn_of, labels_of, names_of, source_names_of
from mlc_jax.files.own import missing_classes
from mlc_jax.files.values import together
from mlc_jax.files.values.drawn import how_drawn
from mlc_jax.files.values.inputs import Offsets, as_stored, offsets_of
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
        each source, or a dict from sources to labels. -1, "", None or NaN mean no label.
      given: for clean examples, the labels before somebody checked them, in the form of the noisy
        examples' `labels`. None if they are not known.
      ids: `[N]` names of the examples; None numbers them.
      drawn: for clean examples, how they were chosen: `random` (a random sample of all rows),
        `per_class` (a fixed number per class) or `looked_up` (for a reason). One of these, or one
        for each example `[N]`. None guesses.

    Raises:
      InputError: there is no example, or not one label or name for each.
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
      ids: `[N]` names of its rows; None numbers them.
      offsets: are subtracted from features, see `offsets_of`.

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
        arrays = jax.tree.map(np.asanyarray, x)  # Masks must stay: `as_stored` refuses them.
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
    """Turns labels into numbers, and inputs into sources by `read(inputs, ids)`.

    Raises:
      InputError: labels, inputs and the method's model do not fit together.
    """
    parts = {"noisy": noisy, "clean": clean, "validation": validation, "test": test}
    present = {name: part for name, part in parts.items() if part is not None}
    names = names_of(present)
    sources = _sources(present, read)
    example = read_rows(sources["clean"], np.zeros(1, np.int64))
    prepare = prepare or prepare_for(example)
    class_names = _class_names(names, _num_classes(method, prepare, example))
    source_names = source_names_of(noisy)
    labels = labels_of(present, class_names, source_names)
    subsets = {
        name: Subset(
            sources[name], np.arange(len(part)), labels.given[name], labels.truth[name],
            labels.votes[name] if source_names else None,
        )
        for name, part in present.items()
    }  # fmt: skip
    noisy_part, clean_part = subsets["noisy"], subsets["clean"]
    if names is not None:
        of_noisy, of_clean = (labels.votes[name].ravel() for name in ("noisy", "clean"))
        given = np.concatenate([of_noisy, of_clean])
        together.check_names(_CleanLabels(), given, clean_part.truth, class_names)
    missing_classes(labels.votes["noisy"], clean_part.truth, class_names)
    return Dataset(
        name="examples",
        class_names=class_names,
        noisy=noisy_part,
        clean=clean_part,
        validation=subsets.get("validation"),
        test=subsets.get("test"),
        prepare=prepare,
        noise="given",
        names_labels=names is not None,
        drawn=how_drawn(
            clean_part.truth, drawn_of(clean), None, clean_part.given, noisy_part.given
        ),
        source_names=labels.source_names,
        copies=labels.copies,
    )


class _CleanLabels:
    """What messages call the checked labels of `Examples`."""

    classes = ()

    def name_row(self, row: int) -> str:
        return f"row {row}"

    def fail(self, problem: str) -> NoReturn:
        raise InputError(f"clean.labels: {problem}")


def _sources(present: Mapping[str, Examples], read: Callable[..., Source]) -> dict[str, Source]:
    sources = {name: read(part.x, part.ids) for name, part in present.items()}
    noisy = present["noisy"]
    if read is create_source and isinstance(noisy.x, np.ndarray):
        offsets = offsets_of(functools.partial(_fail_on_inputs, " of noisy"), noisy.x)
        if offsets:
            return {x: create_source(y.x, y.ids, offsets) for x, y in present.items()}
    return sources


def _class_names(names: tuple[str, ...] | None, num_classes: int) -> tuple[str, ...]:
    if names is None:
        return tuple(str(number) for number in range(num_classes))
    some = f"{len(names)} names such as {', '.join(names[:5])}"
    expect(len(names) <= num_classes, "labels", some, f"{num_classes} at most, one for each of the "
           "model's classes")  # fmt: skip
    return names + tuple(f"class {i}" for i in range(len(names), num_classes))


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
    # Other types of whole numbers will do, but fractions in place of pixels will not.
    if not same or not all(
        np.can_cast(one, other, "same_kind")
        for one, other in zip(layout.dtypes, expected.dtypes, strict=True)
    ):
        raise InputError(
            f"inputs: got examples of {layout}, expected those of the training, {expected}"
        )


def prepare_for(example: Any) -> Callable[[Any], Any]:
    """The default `prepare`: whole numbers of a single array become float32."""
    is_leaf = is_description(example)
    dtype = example["dtype"] if is_leaf else getattr(example, "dtype", None)
    if dtype is not None and not np.issubdtype(np.dtype(dtype), np.floating):
        return Normalize()
    return identity


def is_description(value: Any) -> bool:
    """Whether a value describes an array; see `Run.sizes`."""
    return isinstance(value, dict) and value.keys() == {"shape", "dtype"}


def _num_classes(method: Method, prepare: Callable[[Any], Any], example: Any) -> int:
    """The number of the model's logits."""

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
