"""Which examples are in which batch: a pure function of (seed, epoch).

The order of an epoch is a permutation keyed by (seed, epoch). Examples of different lengths, such
as texts, are padded to one length in a batch. So that little of it is padding, their lengths are
put into a few buckets, and batches are made of examples of one bucket: drawn from all of it, in
windows of batches of one bucket, and the windows shuffled. Which bucket comes when is the same for
all seeds, so that runs trained together are padded alike.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlc_jax.data.reading import tf

_ORDER_KEY, _WITHIN_KEY, _WINDOWS_KEY = 1, 3, 4  # 2 is the augmentation's.
_STEP = 8  # Lengths of buckets are multiples of it.


@dataclasses.dataclass(frozen=True)
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

    def batches(self, epoch: tf.Tensor) -> tf.Tensor:
        """Positions in each run's set, int32 `[num_batches, runs, B]`."""
        kept = tf.argsort(self._draws(_ORDER_KEY, [self.size], epoch), stable=True)
        kept = kept[:, : self.num_batches * self.batch_size]
        if self.buckets is not None:
            # Stable: within a bucket they stay as they were drawn.
            by_bucket = tf.argsort(self._buckets_of(kept), stable=True)
            kept = tf.gather(kept, by_bucket, batch_dims=1)
        batches = tf.reshape(kept, [len(self.seeds), self.num_batches, self.batch_size])
        if self.buckets is not None:
            # Where one bucket ends and the next begins, halves and devices get some of each.
            draws = self._draws(_WITHIN_KEY, [self.num_batches, self.batch_size], epoch)
            batches = tf.gather(batches, tf.argsort(draws, stable=True), batch_dims=2)
            batches = tf.gather(batches, self._shuffled_windows(epoch), axis=1)
        return tf.transpose(batches, [1, 0, 2])

    def longest(self, epoch: tf.Tensor) -> tf.Tensor:
        """The bucket of each batch's longest example, of any run, `[num_batches]`."""
        batches = tf.transpose(self.batches(epoch), [1, 0, 2])
        return tf.reduce_max(self._buckets_of(batches), axis=[0, 2])

    def _buckets_of(self, positions: tf.Tensor) -> tf.Tensor:
        """Of positions `[runs, ...]`."""
        return tf.gather(tf.constant(self.buckets, tf.int32), positions, batch_dims=1)

    def _draws(self, key: int, shape: list[int], epoch: tf.Tensor) -> tf.Tensor:
        """Uniform numbers `[runs, *shape]`, each run's by its seed."""
        seeds = [fold(seed, self.key, key) for seed in self.seeds]
        return tf.stack([uniform(shape, [seed, epoch]) for seed in seeds])

    def _shuffled_windows(self, epoch: tf.Tensor) -> tf.Tensor:
        """A permutation of an epoch's batches that keeps those of a window together.

        Windows go on from epoch to epoch: of the first and of the last there may be a part alone.
        """
        num, window = self.num_batches, self.window
        begun = tf.cast(tf.minimum(tf.math.floormod(-epoch * num, window), num), tf.int32)
        num_whole = (num - begun) // window
        rest = num - num_whole * window
        draws = uniform([num_whole], [fold(self.key, _WINDOWS_KEY), epoch])
        whole = tf.argsort(draws, stable=True)[:, None] * window + tf.range(window)
        parts = [tf.range(begun), rest + tf.reshape(whole, [-1]), tf.range(begun, rest)]
        return tf.concat(parts, axis=0)


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
        """Of all examples above ends[i] up to ends[j], padded to ends[j]."""
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


def uniform(shape: Any, seed: list[Any]) -> tf.Tensor:
    """float32 in [0, 1), a function of two whole numbers."""
    seed = tf.stack([tf.cast(part, tf.int64) for part in seed])
    # The algorithm is named so that the numbers do not depend on the device that draws them.
    return tf.random.stateless_uniform(shape, seed, alg="philox")
