"""The data of a run: a labelled benchmark, or rows with given and true labels."""

import dataclasses
import hashlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from mlc_jax.data.source import UNKNOWN, Source, Subset


class Columns(Protocol):
    """How a table's columns became inputs; see `files.columns`."""

    def to_json(self) -> dict[str, Any]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Benchmark:
    """A labelled dataset as it is published.

    Attributes:
      name: its name in `config.dataset.name`.
      class_names: C names.
      train: examples to split into clean, noisy and validation.
      train_labels: `[N]` int32, true.
      published_rows: `[N]` int, the row of each example in the published training set. Files of
        labels have these rows.
      num_published: length of the published training set; more than N for a partial copy.
      test: test examples, or None.
      test_labels: int32, true.
      prepare: maps stored inputs to a model's.
      names_labels: whether labels are written by name rather than by number.
      columns: how a table's columns became inputs.
      left_out: (id, problem) of rows that are left out because their inputs cannot be read.
    """

    name: str
    class_names: tuple[str, ...]
    train: Source
    train_labels: np.ndarray
    published_rows: np.ndarray
    num_published: int
    test: Source | None
    test_labels: np.ndarray
    prepare: Callable[[Any], Any]
    names_labels: bool = False
    columns: Columns | None = None
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """The data for a run's training and evaluation: rows of sources, and their labels.

    Attributes:
      name: for people.
      class_names: C names.
      noisy: examples whose labels may be wrong. Training sees `noisy.given`; true labels, if known,
        are for measuring only.
      clean: examples with trusted labels, `clean.truth`; `clean.given` has former labels, if known.
      validation: examples with trusted labels to select a model by, or None.
      test: test examples, or None; each is evaluated once.
      prepare: maps stored inputs to a model's.
      noise: describes the wrong labels, for people: `flip 0.4`.
      names_labels: whether labels are written by name rather than by number.
      columns: how a table's columns became inputs.
      left_out: (id, problem) of rows that are left out because their inputs cannot be read.
      drawn: `[len(clean)]` text, how each clean example was drawn, one of `folds.DRAWN`; None if
        it does not matter.
      source_names: names of the sources of given labels, if there are several.
      copies: from the name of a source to that of the one it copies.
      judged: held-out examples with known given and true labels, or None. They judge corrections if
        the truth of noisy examples is not known.
    """

    name: str
    class_names: tuple[str, ...]
    noisy: Subset
    clean: Subset
    validation: Subset | None
    test: Subset | None
    prepare: Callable[[Any], Any]
    noise: str
    names_labels: bool = False
    columns: Columns | None = None
    left_out: tuple[tuple[str, str], ...] = ()
    judged: Subset | None = None
    drawn: np.ndarray | None = None
    source_names: tuple[str, ...] = ()
    copies: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def noise_rate(self) -> float | None:
        """Share of given labels that are wrong; None if the truth is not known."""
        known = self.noisy if self.noisy.has_truth else self.judged
        return None if known is None else float(np.mean(known.given != known.truth))

    @property
    def paired(self) -> bool:
        """Whether given labels are known for some clean examples."""
        return bool((self.clean.all_votes != UNKNOWN).any())

    def clean_labels_spent(self, *, trained_on: bool) -> int:
        """The number of trusted labels that a run uses, except for tests.

        Args:
          trained_on: whether its method trains on the clean set.
        """
        validation = 0 if self.validation is None else len(self.validation)
        return validation + (len(self.clean) if trained_on else 0)

    def trained_on(self, name: str) -> tuple[Subset, np.ndarray]:
        """The set `noisy` or `clean`, and its labels as training sees them."""
        return (self.noisy, self.noisy.given) if name == "noisy" else (self.clean, self.clean.truth)

    def fingerprint(self) -> str:
        """A text that differs if a run on the data would differ; checkpoints store it."""
        texts = [self.noisy.fingerprint(), self.clean.fingerprint(), *self.class_names]
        texts += self.source_names
        return hashlib.blake2b("\n".join(texts).encode(), digest_size=8).hexdigest()
