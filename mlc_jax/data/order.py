"""Which examples are in which batch: a pure function of (seed, epoch).

The order of an epoch is a permutation keyed by (seed, epoch). Examples of different lengths, such
as texts, are padded to one length in a batch. To keep padding small, their lengths are put into a
few buckets. Each batch has examples of one bucket, and each window has batches of one bucket; the
windows are shuffled. The sequence of buckets is the same for all seeds, so that runs trained
together are padded alike.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

_ORDER_KEY, _WITHIN_KEY, _WINDOWS_KEY = 1, 3, 4  # The augmentation has 2.
_STEP = 8  # Buckets' lengths are multiples of it.


@dataclasses.dataclass(frozen=True, eq=False)
class Order:
    """The batches of a set, epoch by epoch, for runs of one program.

    Attributes:
      seeds: one for each run.
      key: the set's; sets with other keys draw other numbers.
      size: n, examples of each run's set.
      batch_size: B.
      window: number of successive batches that are padded to one length.
      buckets: `[runs, n]`, the bucket of each example's length, from 0; None if all have one
        length.
    """

    seeds: Sequence[int]
    key: int
    size: int
    batch_size: int
    window: int
    buckets: np.ndarray | None = None

    @property
    def num_batches(self) -> int:
        """Batches per epoch; examples that do not fill a batch are left for later epochs."""
        return self.size // self.batch_size

    def batches(self, epoch: int) -> np.ndarray:
        """Positions in each run's set, `[num_batches, runs, B]`."""
        kept = np.argsort(self._draws(_ORDER_KEY, [self.size], epoch), axis=-1, kind="stable")
        kept = kept[:, : self.num_batches * self.batch_size]
        if self.buckets is not None:
            # The sort is stable: within a bucket examples stay in random order.
            by_bucket = np.argsort(self._buckets_of(kept), axis=-1, kind="stable")
            kept = np.take_along_axis(kept, by_bucket, axis=-1)
        batches = kept.reshape(len(self.seeds), self.num_batches, self.batch_size)
        if self.buckets is not None:
            # A batch may have two buckets. Shuffled, halves and devices get some of each.
            draws = self._draws(_WITHIN_KEY, [self.num_batches, self.batch_size], epoch)
            within = np.argsort(draws, axis=-1, kind="stable")
            batches = np.take_along_axis(batches, within, axis=-1)
            batches = batches[:, self._shuffled_windows(epoch)]
        return batches.transpose(1, 0, 2)

    def longest(self, batches: np.ndarray) -> np.ndarray:
        """The bucket `[num_batches]` of each batch's longest example over all runs."""
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
        """Uniform numbers `[runs, *shape]`, drawn with each run's seed."""
        seeds = [(fold(seed, self.key, key), epoch) for seed in self.seeds]
        return uniform(shape, seeds)

    def _shuffled_windows(self, epoch: int) -> np.ndarray:
        """A permutation of an epoch's batches that keeps each window's batches together.

        Windows continue across epochs, so the first and the last may be partial.
        """
        num, window = self.num_batches, self.window
        begun = min(-epoch * num % window, num)
        num_whole = (num - begun) // window
        rest = num - num_whole * window
        draws = uniform([num_whole], (fold(self.key, _WINDOWS_KEY), epoch))
        whole = np.argsort(draws, kind="stable")[:, None] * window + np.arange(window)
        return np.concatenate([np.arange(begun), rest + whole.ravel(), np.arange(begun, rest)])


def bucket_lengths(lengths: np.ndarray, num_buckets: int, most: int) -> np.ndarray:
    """The at most `num_buckets` rising lengths to pad to that give the least padding.

    Args:
      lengths: `[N]`, of all examples.
      num_buckets: at least 1.
      most: upper limit of all lengths.
    """
    longest = max(1, int(lengths.max()))
    ends = [min(end, most) for end in range(0, longest + _STEP, _STEP)]
    below = np.searchsorted(np.sort(lengths), ends, side="right").tolist()

    def cost(i: int, j: int) -> int:
        """The padded size of the examples above ends[i] up to ends[j], padded to ends[j]."""
        return int(ends[j] * (below[j] - below[i]))

    # For the examples up to each end: the smallest padded size, and the lengths that give it.
    best: list[tuple[int, tuple[int, ...]]] = [(cost(0, j), (end,)) for j, end in enumerate(ends)]
    for _ in range(num_buckets - 1):
        best = [
            min(
                [best[j], *((best[i][0] + cost(i, j), (*best[i][1], end)) for i in range(1, j))],
                key=lambda costs: costs[0],  # The first minimum has the fewest lengths.
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
    with 10 rounds (Salmon et al., Parallel random numbers: as easy as 1, 2, 3, 2011). It hashes a
    counter with a key; the key and half of the counter are a hash of the seed.

    Args:
      shape: shape of the numbers for one seed.
      seeds: int64 `[..., 2]`.
    """
    low, high = np.moveaxis(np.asarray(seeds, np.int64).astype(np.uint64), -1, 0)[..., None]
    seed = [low & _MASK, low >> _HALF, high & _MASK, high >> _HALF]
    *key, third, fourth = _philox(seed, _SCRAMBLE)
    size = math.prod(shape)
    number = np.arange(-(-size // 4), dtype=np.uint64)  # Each gives four words.
    words = _philox([number & _MASK, number >> _HALF, third, fourth], key)
    bits = np.stack(words, axis=-1).astype(np.uint32)
    # The bits become the mantissa of a number in [1, 2).
    numbers = (bits & np.uint32(0x7FFFFF) | np.uint32(0x3F800000)).view(np.float32) - np.float32(1)
    lead = numbers.shape[:-2]
    return numbers.reshape(*lead, -1)[..., :size].reshape(*lead, *shape)


def _philox(counter: Sequence[Any], key: Sequence[Any]) -> list[np.ndarray]:
    """Hashes four words to four words; words are uint64 below 2^32, so that products fit."""
    (a, b, c, d), (left, right) = counter, key
    for _ in range(10):
        first, second = a * _MULTIPLIERS[0], c * _MULTIPLIERS[1]
        a, b = (second >> _HALF) ^ b ^ left, second & _MASK
        c, d = (first >> _HALF) ^ d ^ right, first & _MASK
        left, right = (left + _KEY_STEPS[0]) & _MASK, (right + _KEY_STEPS[1]) & _MASK
    return list(np.broadcast_arrays(a, b, c, d))
