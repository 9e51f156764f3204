"""Which examples are in which batch: a pure function of (seed, epoch).

The order of an epoch is a permutation keyed by (seed, epoch). Examples of different lengths, such
as texts, are padded to one length in a batch. So that little of it is padding, their lengths are
put into a few buckets, and batches are made of examples of one bucket: drawn from all of it, in
windows of batches of one bucket, and the windows shuffled. Which bucket comes when is the same for
all seeds, so that runs trained together are padded alike.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_ORDER_KEY, _WITHIN_KEY, _WINDOWS_KEY = 1, 3, 4  # 2 is the augmentation's.
_STEP = 8  # Lengths of buckets are multiples of it.


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
    """The batches of a set, epoch by epoch, for runs of one program.

    Attributes:
      seeds: of each run.
      key: of the set: another one draws other numbers.
      size: n, examples of each run's set.
      batch_size: B.
      window: batches that are padded to one length.
      buckets: `[runs, n]`, the bucket that each example's length is in, from 0; None if all are of
        one length.
    """

    seeds: Sequence[int]
    key: int
    size: int
    batch_size: int
    window: int
    buckets: np.ndarray | None = None

    @property
    def num_batches(self) -> int:
        """Per epoch; what does not fill a batch waits for the next epoch's order."""
        return self.size // self.batch_size

    def batches(self, epoch: int) -> np.ndarray:
        """Positions in each run's set, `[num_batches, runs, B]`."""
        kept = np.argsort(self._draws(_ORDER_KEY, [self.size], epoch), axis=-1, kind="stable")
        kept = kept[:, : self.num_batches * self.batch_size]
        if self.buckets is not None:
            # Stable: within a bucket they stay as they were drawn.
            by_bucket = np.argsort(self._buckets_of(kept), axis=-1, kind="stable")
            kept = np.take_along_axis(kept, by_bucket, axis=-1)
        batches = kept.reshape(len(self.seeds), self.num_batches, self.batch_size)
        if self.buckets is not None:
            # Where one bucket ends and the next begins, halves and devices get some of each.
            draws = self._draws(_WITHIN_KEY, [self.num_batches, self.batch_size], epoch)
            within = np.argsort(draws, axis=-1, kind="stable")
            batches = np.take_along_axis(batches, within, axis=-1)
            batches = batches[:, self._shuffled_windows(epoch)]
        return batches.transpose(1, 0, 2)

    def longest(self, batches: np.ndarray) -> np.ndarray:
        """The bucket of each batch's longest example, of any run, `[num_batches]`."""
        if self.buckets is None:
            return np.zeros(len(batches), int)
        longest: np.ndarray = self._buckets_of(batches.transpose(1, 0, 2)).max(axis=(0, 2))
        return longest

    def _buckets_of(self, positions: np.ndarray) -> np.ndarray:
        """Length buckets of examples at positions `[runs, ...]`."""
        assert self.buckets is not None
        pairs = zip(self.buckets, positions, strict=True)
        return np.stack([buckets[of_run] for buckets, of_run in pairs])

    def _draws(self, key: int, shape: Sequence[int], epoch: int) -> np.ndarray:
        """Uniform numbers `[runs, *shape]`, each run's by its seed."""
        seeds = [(fold(seed, self.key, key), epoch) for seed in self.seeds]
        return uniform(shape, seeds)

    def _shuffled_windows(self, epoch: int) -> np.ndarray:
        """A permutation of an epoch's batches that keeps those of a window together.

        Windows continue across epochs: the first and the last may be partial.
        """
        num, window = self.num_batches, self.window
        begun = min(-epoch * num % window, num)
        num_whole = (num - begun) // window
        rest = num - num_whole * window
        draws = uniform([num_whole], (fold(self.key, _WINDOWS_KEY), epoch))
        whole = np.argsort(draws, kind="stable")[:, None] * window + np.arange(window)
        return np.concatenate([np.arange(begun), rest + whole.ravel(), np.arange(begun, rest)])


def bucket_lengths(lengths: np.ndarray, num_buckets: int, most: int) -> np.ndarray:
    """The lengths to pad to, rising, at most `num_buckets`: those with which least is padding.

    Args:
      lengths: `[N]`, of all examples.
      num_buckets: at least 1.
      most: no length is above it.
    """
    longest = max(1, int(lengths.max()))
    ends = [min(end, most) for end in range(0, longest + _STEP, _STEP)]
    below = np.searchsorted(np.sort(lengths), ends, side="right").tolist()

    def cost(i: int, j: int) -> int:
        """The cost of all examples above ends[i] up to ends[j], padded to ends[j]."""
        return int(ends[j] * (below[j] - below[i]))

    # Of the examples up to each end: what they cost, and the lengths that do it.
    best: list[tuple[int, tuple[int, ...]]] = [(cost(0, j), (end,)) for j, end in enumerate(ends)]
    for _ in range(num_buckets - 1):
        best = [
            min(
                [best[j], *((best[i][0] + cost(i, j), (*best[i][1], end)) for i in range(1, j))],
                key=lambda costs: costs[0],  # The first of equals has the fewest lengths.
            )
            for j, end in enumerate(ends)
        ]
    return np.array(best[-1][1])


def fold(*keys: int) -> int:
    """One 31-bit seed from several numbers."""
    return int(np.random.SeedSequence(keys).generate_state(1)[0] >> 1)


_MASK, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_KEY_STEPS = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_SCRAMBLE = np.uint64(0x3EC8F720), np.uint64(0x02461E29)


def uniform(shape: Sequence[int], seeds: Any) -> np.ndarray:
    """float32 in [0, 1), `[..., *shape]`, a pure function of two whole numbers.

    The numbers are those of `tf.random.stateless_uniform(shape, seed, alg="philox")`: Philox 4x32
    with 10 rounds (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011), which is a
    hash of a counter, with a key and half of the counter that are a hash of the seed.

    Args:
      shape: of the numbers of one seed.
      seeds: int64 `[..., 2]`.
    """
    low, high = np.moveaxis(np.asarray(seeds, np.int64).astype(np.uint64), -1, 0)[..., None]
    seed = [low & _MASK, low >> _HALF, high & _MASK, high >> _HALF]
    *key, third, fourth = _philox(seed, _SCRAMBLE)
    size = math.prod(shape)
    number = np.arange(-(-size // 4), dtype=np.uint64)  # Four words each.
    words = _philox([number & _MASK, number >> _HALF, third, fourth], key)
    bits = np.stack(words, axis=-1).astype(np.uint32)
    # The mantissa of a number in [1, 2).
    numbers = (bits & np.uint32(0x7FFFFF) | np.uint32(0x3F800000)).view(np.float32) - np.float32(1)
    lead = numbers.shape[:-2]
    return numbers.reshape(*lead, -1)[..., :size].reshape(*lead, *shape)


def _philox(counter: Sequence[Any], key: Sequence[Any]) -> list[np.ndarray]:
    """Four words of four; words are uint64 below 2^32, so that products of two fit."""
    (a, b, c, d), (left, right) = counter, key
    for _ in range(10):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b = (second >> _HALF) ^ b ^ left, second & _MASK
        c, d = (first >> _HALF) ^ d ^ right, first & _MASK
        left, right = (left + _KEY_STEPS[0]) & _MASK, (right + _KEY_STEPS[1]) & _MASK
    return list(np.broadcast_arrays(a, b, c, d))
