"""Cross-fitting: each row is predicted by classifiers that did not learn from it.

Checked rows are dealt into K folds, and all rows into H parts. Run (k, h) does not see the checks
of fold k. It learns from the checks that it sees, and from all rows outside of part h. Rows of fold
k stay in as doubtful rows, as if nobody had checked them, with their given labels. If they were
left out altogether, they would not represent the doubtful rows.

Checked rows that were looked up for a reason are in no fold, so all runs see their checks. The same
holds for rows that were drawn per class, once as many or more were drawn at random: a mixture of
both is no random sample.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlc_jax.data import trees
from mlc_jax.data.source import UNKNOWN, Subset, read_rows

if TYPE_CHECKING:
    from mlc_jax.core import Rows

RANDOM, PER_CLASS, LOOKED_UP = "random", "per_class", "looked_up"
DRAWN = (RANDOM, PER_CLASS, LOOKED_UP)  # How a checked row may have been chosen.

_FOLD_STREAM = 35  # A stream of the seed.
_FILLED_UP = -2  # Marks padding in `Rows.checks`.
_LISTS = ("lists", "rival_lists", "judged", "fold", "counts")  # Fields of `Rows`.


def deal(strata: np.ndarray, ways: int, rng: np.random.Generator) -> np.ndarray:
    """Deals rows `[n]` into `ways` groups, evenly within each stratum and overall; int32 `[n]`."""
    order = np.lexsort((rng.random(len(strata)), strata))
    groups = np.empty(len(strata), np.int32)
    groups[order] = (np.arange(len(strata)) + rng.integers(ways)) % ways
    return groups


def assign(
    votes: np.ndarray, checks: np.ndarray, drawn: np.ndarray, folds: int, parts: int, seed: int
) -> dict[str, np.ndarray]:
    """The fields of `Rows` except its inputs.

    Args:
      votes: `[N, S]`.
      checks: `[N]`.
      drawn: `[N]` text, one of `DRAWN` for checked rows.
      folds: K; some are empty if fewer rows are judged.
      parts: H.
      seed: determines each row's fold and part.
    """
    rng = np.random.default_rng([seed, _FOLD_STREAM])
    is_checked = checks != UNKNOWN
    num_drawn = {how: np.sum(is_checked & (drawn == how)) for how in (RANDOM, PER_CLASS)}
    is_random = bool(num_drawn[RANDOM] >= num_drawn[PER_CLASS])
    is_judged = is_checked & ((drawn == RANDOM) if is_random else (drawn != LOOKED_UP))
    fold = np.full(len(checks), -1, np.int32)
    fold[is_judged] = deal(checks[is_judged], folds, rng)
    part = np.zeros(len(checks), np.int32)
    part[~is_judged] = deal(votes.max(axis=1)[~is_judged], parts, rng)
    part[is_judged] = deal(fold[is_judged], parts, rng)
    is_visible = is_checked & (fold != np.arange(folds)[:, None])
    outside = [(part != h) | (parts == 1) for h in range(parts)]
    said = (votes != UNKNOWN).any(axis=1)
    lists, lengths = _equal([is_visible[k] | rows for k in range(folds) for rows in outside])
    rival_lists, rival_lengths = _equal([*(said & rows for rows in outside), *is_visible])
    judged = np.flatnonzero(is_judged)
    size = max(1, len(judged))
    return {
        "votes": votes.astype(np.int16),
        "checks": checks.astype(np.int32),
        "is_judged": is_judged,
        "part": part,
        "is_visible": is_visible,
        "lists": lists.reshape(folds, parts, -1),
        "lengths": lengths.reshape(folds, parts),
        "rival_lists": rival_lists,
        "rival_lengths": rival_lengths,
        "judged": np.resize(judged if len(judged) else np.zeros(1, int), size).astype(np.int32),
        "fold": np.maximum(fold[judged] if len(judged) else np.zeros(1, np.int32), 0),
        "counts": np.full(size, float(len(judged) > 0), np.float32),
        "is_random": np.array(is_random),
    }


def _equal(masks: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of masks `[N]` in lists of equal length; an empty mask gives row 0 and length 0."""
    lists = [np.flatnonzero(mask) for mask in masks]
    length = max(1, *(len(rows) for rows in lists))
    filled = [np.resize(rows if len(rows) else np.zeros(1, int), length) for rows in lists]
    return np.stack(filled).astype(np.int32), np.array([len(rows) for rows in lists], np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class AllRows:
    """All rows, read once, for a cross-fitted run; other runs have a `Pipeline`.

    Attributes:
      noisy: examples with labels `given`.
      clean: checked examples, with labels `truth`, and `given` labels if known.
      drawn: `[len(clean)]` text, each one of `DRAWN`.
      folds, parts: K and H.
      seed: determines each row's fold and part.
      batch_size: rows per step and run.
      steps_per_epoch: steps per round.
      prepare: maps stored inputs to a model's.
    """

    noisy: Subset
    clean: Subset
    drawn: np.ndarray
    folds: int
    parts: int
    seed: int
    batch_size: int
    steps_per_epoch: int
    prepare: Callable[[Any], Any] = lambda inputs: inputs

    @property
    def examples_per_step(self) -> int:
        """Examples per step over all runs."""
        return self.folds * self.parts * self.batch_size

    @functools.cached_property
    def rows(self) -> "Rows":
        """The rows as NumPy arrays.

        Raises:
          InputError: inputs cannot be read.
        """
        from mlc_jax.core import Rows  # Imports JAX, which dealing rows does not need.

        subsets = (self.noisy, self.clean)
        inputs = [read_rows(subset.source, subset.rows) for subset in subsets]
        votes = np.concatenate([subset.all_votes for subset in subsets])
        unchecked = np.full(len(self.noisy), UNKNOWN, np.int32)
        checks = np.concatenate([unchecked, self.clean.truth])
        drawn = np.concatenate([np.full(len(self.noisy), "", self.drawn.dtype), self.drawn])
        joined = trees.map_leaves(lambda *parts: np.concatenate(parts), *inputs)
        prepared = trees.map_leaves(np.asarray, self.prepare(joined))
        assigned = assign(votes, checks, drawn, self.folds, self.parts, self.seed)
        return _filled_up(Rows(inputs=prepared, **assigned))


def _filled_up(rows: "Rows") -> "Rows":
    """Pads rows and lists to one of a few sizes, see `Rows`."""
    size = len(rows.checks)
    more = _rounded(size) - size

    def fill(array: np.ndarray, value: Any, axis: int = 0) -> np.ndarray:
        pad = [(0, more if i == axis else 0) for i in range(array.ndim)]
        return np.pad(array, pad, constant_values=value)

    filled = rows._replace(
        inputs=trees.map_leaves(lambda leaf: fill(leaf, 0), rows.inputs),
        votes=fill(rows.votes, UNKNOWN),
        checks=fill(rows.checks, _FILLED_UP),
        is_judged=fill(rows.is_judged, False),
        part=fill(rows.part, 0),
        is_visible=fill(rows.is_visible, False, axis=1),
    )
    return _with_lists(filled, {name: _rounded(_length(rows, name)) for name in _LISTS})


def _rounded(size: int) -> int:
    """The size, rounded up to a multiple of 16, but by less than an eighth if it is large."""
    step = max(16, 2 ** (size.bit_length() - 1) // 8)
    return -(-size // step) * step


def _length(rows: "Rows", name: str) -> int:
    return int(getattr(rows, name).shape[-1])


def _with_lists(rows: "Rows", lengths: Mapping[str, int]) -> "Rows":
    """Pads lists to these lengths; padding is never drawn, or counts 0."""
    fields = {}
    for name, length in lengths.items():
        array = getattr(rows, name)
        pad = [(0, 0)] * (array.ndim - 1) + [(0, length - array.shape[-1])]
        fields[name] = np.pad(array, pad)
    return rows._replace(**fields)


def of_one_length(of_runs: Sequence["Rows"]) -> list["Rows"]:
    """Pads the lists of several runs to the longest one."""
    longest = {name: max(_length(rows, name) for rows in of_runs) for name in _LISTS}
    return [_with_lists(rows, longest) for rows in of_runs]
