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
        return batches_of(
            [self],
            start_window,
            num_devices=num_devices,
            process_index=process_index,
            process_count=process_count,
        )

    def part(self, name: str) -> tuple[Examples, int, int]:
        """Examples, batch size and key of the `noisy` or the `clean` part."""
        if name == "noisy":
            return self.noisy, self.noisy_batch_size, _NOISY_KEY
        return self.clean, self.clean_batch_size, _CLEAN_KEY


def batches_of(
    pipelines: Sequence[Pipeline],
    start_window: int,
    *,
    num_devices: int = 1,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Batch]:
    """The batches of runs that are trained as one program, each those of its own pipeline.

    Args:
      pipelines: differ in examples and seeds, but not in sizes. With more than one, arrays have an
        axis of runs after that of the devices.
      start_window, num_devices, process_index, process_count: see `Pipeline.batches`.
    """
    first = pipelines[0]
    start_step = start_window * first.num_inner_steps
    row_bytes = first.noisy.inputs[0].nbytes * len(pipelines)
    window_bytes = (first.noisy_batch_size + first.clean_batch_size) * row_bytes
    # Windows that are read at once: tf.data's cost an element is many small batches' cost.
    block_windows = _BLOCK_BYTES // (window_bytes * first.num_inner_steps)
    block_windows = max(1, min(_MAX_BLOCK_WINDOWS, block_windows))

    def stream(name: str, start: int, stop: int) -> tf.data.Dataset:
        # This process' share of the rows [start, stop) of a global batch.
        rows = np.array_split(np.arange(start, stop), process_count)[process_index]
        return _stream(pipelines, name, rows, start_step, block_windows * first.num_inner_steps)

    size, half = first.clean_batch_size, first.clean_batch_size // 2
    streams = {"noisy": stream("noisy", 0, first.noisy_batch_size)}
    if first.split_clean:
        # Two views of one shuffled order: the halves of a batch never share an example.
        streams["clean_inner"] = stream("clean", 0, half)
        streams["clean_outer"] = stream("clean", half, size)
    else:
        streams["clean_outer"] = stream("clean", 0, size)
    options = tf.data.Options()
    options.deterministic = True
    blocks = tf.data.Dataset.zip(streams).with_options(options).prefetch(tf.data.AUTOTUNE)
    for block in blocks.as_numpy_iterator():
        dealt = {
            name: [_deal(x, first.num_inner_steps, num_devices, len(pipelines)) for x in part]
            for name, part in block.items()
        }
        for window in range(block_windows):
            parts = {name: Examples(*(x[window] for x in dealt[name])) for name in dealt}
            yield Batch(**(dict.fromkeys(Batch._fields) | parts))


def _deal(array: np.ndarray, num_inner_steps: int, num_devices: int, num_runs: int) -> np.ndarray:
    """`[runs, windows * k, B, ...]` to `[windows, num_devices, runs, k, B / num_devices, ...]`.

    Without the axis of runs if there is one only.
    """
    size, *rest = array.shape[2:]
    shape = (num_runs, -1, num_inner_steps, num_devices, size // num_devices, *rest)
    dealt = np.ascontiguousarray(np.moveaxis(array.reshape(shape), (1, 3), (0, 1)))
    return dealt if num_runs > 1 else dealt[:, :, 0]


def _stream(
    pipelines: Sequence[Pipeline], name: str, rows: np.ndarray, start_step: int, block_steps: int
) -> tf.data.Dataset:
    """`rows` of the shuffled batches from `start_step` on, `block_steps` at a time.

    Elements are inputs, labels and row numbers, `[runs, block_steps, len(rows), ...]`.
    """
    examples, batch_size, key = pipelines[0].part(name)
    size = len(examples.labels)
    first_epoch, skipped = divmod(start_step, size // batch_size)
    of_runs = [pipeline.part(name)[0] for pipeline in pipelines]
    # Runs of one split share its inputs: of CIFAR they are 150 MB.
    inputs_by_id = {id(x.inputs): x.inputs for x in of_runs}
    constants = {key: tf.constant(inputs) for key, inputs in inputs_by_id.items()}
    sets = [(constants[id(x.inputs)], tf.constant(x.labels)) for x in of_runs]
    order_seeds = [_fold(pipeline.seed, key, _ORDER_KEY) for pipeline in pipelines]
    augment_seeds = [_fold(pipeline.seed, key, _AUGMENT_KEY) for pipeline in pipelines]

    # Without autograph, which takes longer to read these functions than they take to run.
    @tf.autograph.experimental.do_not_convert
    def order(epoch: tf.Tensor) -> tf.data.Dataset:
        draws = tf.stack([_uniform([size], [seed, epoch]) for seed in order_seeds], axis=1)
        permutations = tf.argsort(draws, axis=0, stable=True)
        return tf.data.Dataset.from_tensor_slices(permutations).batch(
            batch_size, drop_remainder=True
        )

    def augment(images: tf.Tensor, steps: tf.Tensor, seed: int) -> tf.Tensor:
        # Drawn for whole batches, so that the share of a process does not change the numbers.
        draws = tf.map_fn(
            lambda step: _uniform([batch_size, 3], [seed, step]),
            steps,
            fn_output_signature=tf.float32,
        )
        draws = tf.reshape(tf.gather(draws, rows, axis=1), [-1, 3])
        shape = [block_steps * len(rows), *images.shape[2:]]
        return tf.reshape(augment_images(tf.reshape(images, shape), draws), images.shape)

    @tf.autograph.experimental.do_not_convert
    def read(steps: tf.Tensor, batches: tf.Tensor) -> tuple[tf.Tensor, ...]:
        mine = tf.gather(batches, rows, axis=1)
        mine = tf.ensure_shape(mine, [block_steps, len(rows), len(pipelines)])
        elements = []
        for run, (inputs, labels) in enumerate(sets):
            images = tf.gather(inputs, mine[..., run])
            if pipelines[run].augment:
                images = augment(images, steps, augment_seeds[run])
            elements.append((images, tf.gather(labels, mine[..., run]), mine[..., run]))
        return tuple(tf.stack(parts) for parts in zip(*elements, strict=True))

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
