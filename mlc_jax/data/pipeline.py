"""tf.data pipelines whose batch at step t is a pure function of (seed, t).

The order of an epoch is a permutation keyed by (seed, epoch) and the augmentation is keyed by
(seed, step), so a run that goes on from a checkpoint needs no iterator state, and the batches do
not depend on how many devices or processes share them.
"""

import collections
import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

# Before the import: no start-up chatter, and no kernels that round differently on another machine.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")
import tensorflow as tf
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mlc_jax.bilevel import Batch, Examples
from mlc_jax.errors import InputError

# JAX owns the accelerators; TensorFlow, if it can see any, would take their memory.
tf.config.set_visible_devices([], "GPU")

_PAD = 4  # Pixels of reflected border that a random crop moves within, as in the published code.
_DEVICE_BUFFER = 2  # Batches placed on the devices ahead of use.
_BLOCK_BYTES = 16 * 2**20
_MAX_BLOCK_WINDOWS = 64
_NOISY_KEY, _CLEAN_KEY = 1, 2
_ORDER_KEY, _AUGMENT_KEY = 1, 2


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """Endless training batches for windows of k inner steps.

    Attributes:
      noisy: inputs `[N, ...]` and given labels `[N]`.
      clean: inputs `[M, ...]` and trusted labels `[M]`.
      noisy_batch_size: noisy examples an inner step, over all devices.
      clean_batch_size: clean examples an inner step, over all devices.
      split_clean: whether half of each clean batch goes to the inner loss. The halves are redrawn
        every epoch. Without it the whole batch is the outer half.
      num_inner_steps: k.
      augment: reflect-pad, random crop, random horizontal flip of images `[H, W, C]`.
      seed: of the order and of the augmentation.
    """

    noisy: Examples
    clean: Examples
    noisy_batch_size: int
    clean_batch_size: int
    split_clean: bool
    num_inner_steps: int
    augment: bool
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Inner steps in one pass over the noisy set; what does not fill a batch waits for the
        next epoch's order."""
        return len(self.noisy.labels) // self.noisy_batch_size

    def check(self) -> None:
        """Raises InputError if a batch is larger than the set it is drawn from."""
        for field, size, examples in (
            ("noisy_batch_size", self.noisy_batch_size, self.noisy),
            ("clean_batch_size", self.clean_batch_size, self.clean),
        ):
            if size > len(examples.labels):
                raise InputError(
                    f"config.{field}: got {size}, expected at most {len(examples.labels)}, "
                    "the number of such examples"
                )

    def batches(
        self,
        start_window: int,
        *,
        num_devices: int = 1,
        process_index: int = 0,
        process_count: int = 1,
    ) -> Iterator[Batch]:
        """Yields this process' NumPy batches from window `start_window` on.

        Arrays are `[num_devices, k, B / (num_devices * process_count), ...]`: process p holds rows
        `[p * B / process_count, (p + 1) * B / process_count)` of the global batch, and reads only
        those.
        """
        start_step = start_window * self.num_inner_steps

        def rows(start: int, stop: int) -> np.ndarray:
            """This process' share of rows [start, stop) of a global batch."""
            return np.array_split(np.arange(start, stop), process_count)[process_index]

        def stream(part: str, start: int, stop: int) -> tf.data.Dataset:
            return self._stream(part, rows(start, stop), start_step)

        size, half = self.clean_batch_size, self.clean_batch_size // 2
        streams = {"noisy": stream("noisy", 0, self.noisy_batch_size)}
        if self.split_clean:
            # Two views of one shuffled order: the halves of a batch never share an example.
            streams["clean_inner"] = stream("clean", 0, half)
            streams["clean_outer"] = stream("clean", half, size)
        else:
            streams["clean_outer"] = stream("clean", 0, size)
        options = tf.data.Options()
        options.deterministic = True
        blocks = tf.data.Dataset.zip(streams).with_options(options).prefetch(tf.data.AUTOTUNE)
        for block in blocks.as_numpy_iterator():
            dealt = {part: [self._deal(x, num_devices) for x in block[part]] for part in block}
            for window in range(self._block_windows):
                parts = {part: Examples(x[window], y[window]) for part, (x, y) in dealt.items()}
                yield Batch(**(dict.fromkeys(Batch._fields) | parts))

    def _deal(self, array: np.ndarray, num_devices: int) -> np.ndarray:
        """`[windows * k, B, ...]` to `[windows, num_devices, k, B / num_devices, ...]`."""
        _, size, *rest = array.shape
        shape = (-1, self.num_inner_steps, num_devices, size // num_devices, *rest)
        return np.ascontiguousarray(array.reshape(shape).swapaxes(1, 2))

    @property
    def _block_windows(self) -> int:
        """Windows that are read at once: tf.data's cost an element is many small batches' cost."""
        row_bytes = self.noisy.inputs[0].nbytes
        window = (self.noisy_batch_size + self.clean_batch_size) * self.num_inner_steps * row_bytes
        return max(1, min(_MAX_BLOCK_WINDOWS, _BLOCK_BYTES // window))

    def _stream(self, part: str, rows: np.ndarray, start_step: int) -> tf.data.Dataset:
        """`rows` of the shuffled noisy or clean batches from `start_step` on, a block at a time."""
        if part == "noisy":
            examples, batch_size, key = self.noisy, self.noisy_batch_size, _NOISY_KEY
        else:
            examples, batch_size, key = self.clean, self.clean_batch_size, _CLEAN_KEY
        inputs, labels = tf.constant(examples.inputs), tf.constant(examples.labels)
        first_epoch, skipped = divmod(start_step, len(examples.labels) // batch_size)
        order_seed = _fold(self.seed, key, _ORDER_KEY)
        augment_seed = _fold(self.seed, key, _AUGMENT_KEY)
        block_steps = self._block_windows * self.num_inner_steps

        def order(epoch: tf.Tensor) -> tf.data.Dataset:
            draws = _uniform([len(examples.labels)], [order_seed, epoch])
            permutation = tf.argsort(draws, stable=True)
            return tf.data.Dataset.from_tensor_slices(permutation).batch(
                batch_size, drop_remainder=True
            )

        def augment(images: tf.Tensor, steps: tf.Tensor) -> tf.Tensor:
            # Drawn for whole batches, so that the share of a process does not change the numbers.
            draws = tf.map_fn(
                lambda step: _uniform([batch_size, 3], [augment_seed, step]),
                steps,
                fn_output_signature=tf.float32,
            )
            draws = tf.reshape(tf.gather(draws, rows, axis=1), [-1, 3])
            shape = [block_steps * len(rows), *images.shape[2:]]
            return tf.reshape(augment_images(tf.reshape(images, shape), draws), images.shape)

        def read(steps: tf.Tensor, batches: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            mine = tf.ensure_shape(tf.gather(batches, rows, axis=1), [block_steps, len(rows)])
            images = tf.gather(inputs, mine)
            if self.augment:
                images = augment(images, steps)
            return images, tf.gather(labels, mine)

        epochs = tf.data.Dataset.range(first_epoch, np.iinfo(np.int64).max)
        orders = epochs.flat_map(order).skip(skipped)
        steps = tf.data.Dataset.counter(start_step)
        blocks = tf.data.Dataset.zip(steps, orders).batch(block_steps, drop_remainder=True)
        return blocks.map(read, num_parallel_calls=tf.data.AUTOTUNE)


def augment_images(images: tf.Tensor, draws: tf.Tensor) -> tf.Tensor:
    """Reflect-pads by 4, crops back at random and flips at random.

    Args:
      images: `[B, H, W, C]`, any dtype.
      draws: `[B, 3]` uniform in [0, 1): row offset, column offset, flip.
    """
    height, width = images.shape[1], images.shape[2]
    padded = tf.pad(images, [[0, 0], [_PAD, _PAD], [_PAD, _PAD], [0, 0]], "REFLECT")
    offsets = tf.cast(draws[:, :2] * (2 * _PAD + 1), tf.int32)
    rows = offsets[:, :1] + tf.range(height)
    columns = offsets[:, 1:] + tf.range(width)
    columns = tf.where(draws[:, 2:] < 0.5, columns, columns[:, ::-1])
    cropped = tf.gather(padded, rows, axis=1, batch_dims=1)
    return tf.gather(cropped, columns, axis=2, batch_dims=1)


def to_devices(batches: Iterator[Batch], devices: Sequence[jax.Device]) -> Iterator[Batch]:
    """Places arrays `[num_devices, ...]` on `devices`, a few batches ahead of their use.

    On CPU there is no other memory to place them in: they pass as they are.
    """
    if devices[0].platform == "cpu":
        yield from batches
        return
    mesh = Mesh(np.asarray(devices), ("batch",))
    sharding = NamedSharding(mesh, PartitionSpec("batch"))
    queue: collections.deque[Batch] = collections.deque()
    for batch in batches:
        queue.append(jax.device_put(batch, sharding))
        if len(queue) > _DEVICE_BUFFER:
            yield queue.popleft()
    yield from queue


def _fold(*keys: int) -> int:
    """One 31-bit seed from several numbers."""
    return int(np.random.SeedSequence(keys).generate_state(1)[0] >> 1)


def _uniform(shape: list[int], seed: list[Any]) -> tf.Tensor:
    seed = tf.stack([tf.cast(part, tf.int64) for part in seed])
    # The algorithm is named so that the numbers do not depend on the device that draws them.
    return tf.random.stateless_uniform(shape, seed, alg="philox")
