"""The data of a run: a labelled benchmark, or rows with given and true labels."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

from mlc_jax.data.source import UNKNOWN, Source, Subset


class Columns(Protocol):
    """How a table's columns became inputs; see `files.columns`."""

    def to_json(self) -> list[dict[str, Any]]: ...


@dataclasses.dataclass(frozen=True, eq=False)
class Benchmark:
    """A labelled dataset before anything was done to it.

    Attributes:
      name: as in `config.dataset.name`.
      class_names: C names.
      train: examples to split into clean, noisy and validation.
      train_labels: `[N]` int32, true.
      published_rows: `[N]` int, the row of each example in the published training set, which files
        of labels are indexed by.
      num_published: length of the published training set; more than N for a partial copy.
      test: examples that are evaluated on, or None.
      test_labels: int32, true.
      prepare: from inputs as stored to what a model takes.
      names_labels: whether labels are written by name, rather than by number.
      columns: how a table's columns became inputs.
      left_out: (id, what is wrong) of rows whose inputs cannot be read, and which are not there.
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
    """The data that a run trains and is evaluated on: rows of sources, and their labels.

    Attributes:
      name: for a reader.
      class_names: C names.
      noisy: examples whose labels may be wrong. Training sees `noisy.given`; the true labels, where
        they are known, are for measuring only.
      clean: examples with trusted labels, `clean.truth`; `clean.given` where the old one is known.
      validation: examples with trusted labels to select a model by, or None.
      test: evaluated on, each example once, or None.
      prepare: from inputs as stored to what a model takes.
      noise: of the given labels, for a reader: `flip 0.4`.
      names_labels: whether labels are written by name, rather than by number.
      columns: how a table's columns became inputs.
      left_out: (id, what is wrong) of rows whose inputs cannot be read, and which are not there.
      drawn: `[len(clean)]` text, where each clean example comes from, of `folds.DRAWN`; None where
        nobody asks.
      source_names: of the sources of given labels, where there are several.
      judged: held-out examples whose given and true labels are both known, or None: corrections are
        judged by them where the truth of noisy examples is not known.
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

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @property
    def noise_rate(self) -> float | None:
        """Share of given labels that are wrong; None where truth is not known."""
        known = self.noisy if self.noisy.has_truth else self.judged
        return None if known is None else float(np.mean(known.given != known.truth))

    @property
    def paired(self) -> bool:
        """Whether the given labels of clean examples are known, of some at least."""
        return bool((self.clean.all_votes != UNKNOWN).any())

    def clean_labels_spent(self, *, trained_on: bool) -> int:
        """Trusted labels that a run uses for anything but the test.

        Args:
          trained_on: whether its method trains on the clean set.
        """
        validation = 0 if self.validation is None else len(self.validation)
        return validation + (len(self.clean) if trained_on else 0)

    def trained_on(self, name: str) -> tuple[Subset, np.ndarray]:
        """The set `noisy` or `clean`, and its labels as training sees them."""
        return (self.noisy, self.noisy.given) if name == "noisy" else (self.clean, self.clean.truth)

    def fingerprint(self) -> str:
        """Differs where a run on the data would; a checkpoint remembers it."""
        texts = [self.noisy.fingerprint(), self.clean.fingerprint(), *self.class_names]
        texts += self.source_names
        return hashlib.blake2b("\n".join(texts).encode(), digest_size=8).hexdigest()
