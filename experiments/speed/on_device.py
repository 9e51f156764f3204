"""Trains one run with its data on the device and many windows per call; needs no TensorFlow.

    python -m experiments.speed.on_device --config=configs/cifar10.py --images=cifar10.npz \
        --workdir=DIR

This is for small models, with which an accelerator waits most of the time. `mlc_jax.main` calls the
device for every window and reads its batches with tf.data. Here one call is a `lax.scan` over
`--windows` of them, and batches are gathered, cropped and flipped on the device. The step is the
same. This only measures: there are no checkpoints, no label files and no resuming, and batches come
in another order.

`--images` is an .npz of train_images, train_labels, test_images and test_labels, uint8, that stands
in for a dataset of images that only TensorFlow Datasets can read. Every line of
`on_device.jsonl` is one evaluation.
"""

import functools
import json
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from mlc_jax import build, command_line
from mlc_jax.benchmarks import datasets
from mlc_jax.benchmarks.images import CIFAR_PREPARE
from mlc_jax.config import validate
from mlc_jax.core import Batch, Inputs, Labelled, TrainState
from mlc_jax.data.dataset import Benchmark, Dataset
from mlc_jax.data.source import ArraySource, IndexedSource, Source, Subset
from mlc_jax.errors import expect
from mlc_jax.methods import BoundMethod, Method
from mlc_jax.methods.types import Hook, Phase, Seen
from mlc_jax.workdir.workdir import locked_workdir

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, such as configs/cifar10.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory for the figures; made if need be.")
_IMAGES = flags.DEFINE_string("images", "", "An .npz of images in place of the config's dataset.")
_WINDOWS = flags.DEFINE_integer("windows", 100, "Windows per call.", lower_bound=1)

_PAD = 4  # Border of a random crop, as in `data.source.augment_images`.


def main() -> None:
    config = _CONFIG.value
    validate(config, num_devices=1)
    dataset = load(config, _IMAGES.value)
    with locked_workdir(_WORKDIR.value) as workdir, open(workdir / "on_device.jsonl", "a") as file:

        def write(row: dict[str, Any]) -> None:
            print(json.dumps(row), file=file, flush=True)
            tqdm.write(json.dumps(row))

        train(config, dataset, windows=_WINDOWS.value, write=write)


def load(config: ConfigDict, images: str = "") -> Dataset:
    """The config's dataset, or its split and noise on the images of a file."""
    if not images:
        return datasets.load(config)
    with np.load(images) as file:
        train, test = ((file[f"{x}_images"], file[f"{x}_labels"]) for x in ("train", "test"))
    num_classes = int(train[1].max()) + 1
    benchmark = Benchmark(
        name=config.dataset.name,
        class_names=tuple(map(str, range(num_classes))),
        train=ArraySource(train[0]),
        train_labels=train[1].astype(np.int32),
        published_rows=np.arange(len(train[0])),
        num_published=len(train[0]),
        test=ArraySource(test[0]),
        test_labels=test[1].astype(np.int32),
        prepare=CIFAR_PREPARE,
    )
    return datasets.corrupted(benchmark, config)


def train(
    config: ConfigDict,
    dataset: Dataset,
    *,
    windows: int,
    write: Callable[[dict[str, Any]], None],
) -> TrainState:
    """Trains to the end.

    Args:
      config, dataset: see `load`.
      windows: number of windows per call.
      write: is given a row of figures at every evaluation, at or just after the end of its epoch.

    Returns:
      The last state.
    """
    method = build.create_method(config, dataset.num_classes, paired=dataset.paired)
    size = config.noisy_batch_size
    steps_per_epoch = len(dataset.noisy) // size
    bound = method.bind(
        num_noisy=len(dataset.noisy),
        num_classes=dataset.num_classes,
        steps_per_epoch=steps_per_epoch,
        num_epochs=config.num_steps / steps_per_epoch or config.num_epochs,
        prepare=dataset.prepare,
    )
    sets = _on_device(dataset)
    draw = _Draw(config, method, sets, augment=config.dataset.augment)
    example = jax.tree.map(lambda x: x[:1], sets["clean"].inputs)
    state = jax.jit(bound.init)(jax.random.key(config.seed), example)
    judge = _Judge(config, dataset, bound, sets)
    bar = tqdm(total=bound.num_steps, unit="step", dynamic_ncols=True)
    step, seconds, begin = 0, 0.0, 0
    for phase in bound.phases:
        expect(phase.after_epoch is None, "config.method", config.method,
               "one that does nothing between epochs")  # fmt: skip
        if phase.before:
            state = _apply(phase.before, state, dataset, judge, example)
        call = _create_call(phase, draw)
        compiled: dict[int, Any] = {}
        begin, end = step, step + phase.num_steps
        while step < end:
            n = min(windows, (end - step) // method.stride)
            rows = draw.rows(step, n)
            if n not in compiled:
                lowered = call.lower(state, sets["noisy"], sets["clean"], *rows)
                start = time.perf_counter()
                compiled[n] = lowered.compile()
                compile_seconds = time.perf_counter() - start
            start = time.perf_counter()
            state, loss = compiled[n](state, sets["noisy"], sets["clean"], *rows)
            loss = float(loss)
            seconds += time.perf_counter() - start
            done, step = step, step + n * method.stride
            bar.update(n * method.stride)
            every = config.eval_every_epochs * steps_per_epoch
            if step == end or (step - begin) // every > (done - begin) // every:
                row = {"step": step, "epoch": step / steps_per_epoch, "loss": loss}
                row |= {"train_seconds": seconds, "ms_per_step": 1e3 * seconds / step}
                write(row | {"compile_seconds": compile_seconds} | judge(state))
    bar.close()
    return state


def _on_device(dataset: Dataset) -> dict[str, Labelled]:
    """All examples of the sets, in their order; labels as training sees them."""
    noisy, clean, test = dataset.noisy, dataset.clean, dataset.test
    given = clean.given if dataset.paired else None
    sets = {
        "noisy": Labelled(_inputs(noisy), noisy.given, np.arange(len(noisy), dtype=np.int32)),
        "clean": Labelled(_inputs(clean), clean.truth, None, given),
    }
    if test is not None:
        sets["test"] = Labelled(_inputs(test), test.truth)
    return jax.tree.map(jnp.asarray, sets)


def _inputs(subset: Subset) -> Inputs:
    return jax.tree.map(lambda x: x[subset.rows], _arrays(subset.source))


def _arrays(source: Source) -> Inputs:
    if isinstance(source, IndexedSource):
        return source.gather(np.arange(len(source)))
    expect(isinstance(source, ArraySource), "config.dataset.name", type(source).__name__,
           "a dataset that fits into memory")  # fmt: skip
    assert isinstance(source, ArraySource)
    return source.inputs


class _Draw:
    """The rows of each step: NumPy permutations, one per pass over a set."""

    def __init__(
        self, config: ConfigDict, method: Method, sets: dict[str, Labelled], *, augment: bool
    ):
        self._seed, self._method, self.augment = config.seed, method, augment
        self._sizes = {"noisy": config.noisy_batch_size, "clean": config.clean_batch_size}
        self._totals = {name: len(sets[name].labels) for name in self._sizes}
        self._half = config.clean_batch_size // 2 if method.mix_clean else 0
        self._order = functools.lru_cache(maxsize=8)(self._permutation)

    def rows(self, step: int, windows: int) -> tuple[jax.Array, jax.Array]:
        """Rows of the noisy and the clean set, `[windows, k, B]`; steps before 0 repeat step 0."""
        old, stride = self._method.num_replayed, self._method.stride
        starts = step + stride * np.arange(windows)
        steps = np.maximum(0, starts[:, None] + np.arange(-old, stride))
        noisy, clean = (
            np.stack([[self._batch(name, t) for t in window] for window in steps.tolist()])
            for name in self._sizes
        )
        return jnp.asarray(noisy, jnp.int32), jnp.asarray(clean, jnp.int32)

    def batch(self, noisy: Labelled, clean: Labelled, rows: tuple[Any, Any], key: Any) -> Batch:
        """The window's batches, gathered on the device; arrays `[k, B, ...]`."""
        first, second = jax.random.split(key)
        noisy, clean = self._take(noisy, rows[0], first), self._take(clean, rows[1], second)
        if not self._half:
            return Batch(noisy, None, clean)
        split = lambda part: jax.tree.map(lambda x: x[:, part], clean)  # noqa: E731
        return Batch(noisy, split(slice(None, self._half)), split(slice(self._half, None)))

    def _take(self, examples: Labelled, rows: jax.Array, key: Any) -> Labelled:
        taken = jax.tree.map(lambda x: x[rows], examples)
        if not self.augment:
            return taken
        shape = taken.inputs.shape
        images = _crop_and_flip(taken.inputs.reshape(-1, *shape[2:]), key)
        return taken._replace(inputs=images.reshape(shape))

    def _batch(self, name: str, step: int) -> np.ndarray:
        per_pass = self._totals[name] // self._sizes[name]
        start = step % per_pass * self._sizes[name]
        return self._order(name, step // per_pass)[start : start + self._sizes[name]]

    def _permutation(self, name: str, number: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, list(self._sizes).index(name), number])
        return rng.permutation(self._totals[name])


def _crop_and_flip(images: jax.Array, key: Any) -> jax.Array:
    """As `data.source.augment_images`, by draws of the device; `[B, H, W, C]`."""
    height, width = images.shape[1:3]
    padded = jnp.pad(images, [(0, 0), (_PAD, _PAD), (_PAD, _PAD), (0, 0)], mode="reflect")
    offset_key, flip_key = jax.random.split(key)
    offsets = jax.random.randint(offset_key, (len(images), 2), 0, 2 * _PAD + 1)
    flips = jax.random.bernoulli(flip_key, shape=(len(images),))

    def crop(image: jax.Array, offset: jax.Array, flip: jax.Array) -> jax.Array:
        cut = jax.lax.dynamic_slice(image, (*offset, 0), (height, width, image.shape[-1]))
        return jnp.where(flip, cut[:, ::-1], cut)

    return jax.vmap(crop)(padded, offsets, flips)


def _create_call(phase: Phase, draw: _Draw) -> Any:
    """Many windows as one program: (state, sets, rows `[windows, k, B]`) -> (state, last loss)."""

    def call(state: TrainState, noisy: Labelled, clean: Labelled, *rows: jax.Array) -> Any:
        def window(state: TrainState, rows: Any) -> tuple[TrainState, jax.Array]:
            key = jax.random.fold_in(jax.random.fold_in(state.rng, 1), state.step)
            state, metrics = phase.train_step(state, draw.batch(noisy, clean, rows, key))
            return state, metrics["inner_loss"]

        state, losses = jax.lax.scan(window, state, rows)
        return state, losses[-1]

    return jax.jit(call, donate_argnums=0)


class _Judge:
    """Accuracy on the test set, and of the corrected labels where their truth is known."""

    def __init__(
        self,
        config: ConfigDict,
        dataset: Dataset,
        bound: BoundMethod,
        sets: dict[str, Labelled],
    ):
        self._size, self._sets, self._bound = config.eval_batch_size, sets, bound
        self._dataset = dataset
        assert bound.classify is not None
        classify, correct = bound.classify, bound.correct_labels

        def predict(state: TrainState, inputs: Inputs, given: Any) -> tuple[jax.Array, jax.Array]:
            logits, evidence = classify(state, inputs)
            return logits, correct(state, evidence, logits, given)

        self._predict = jax.jit(predict)

    def __call__(self, state: TrainState) -> dict[str, float]:
        noisy = self._dataset.noisy
        soft = self.predict(state, "noisy", noisy.given)[1]
        figures = {"label_accuracy": float(np.mean(soft.argmax(1) == noisy.truth))}
        if self._dataset.test is not None:
            logits = self.predict(state, "test", self._dataset.test.truth)[0]
            right = logits.argmax(1) == self._dataset.test.truth
            figures["test_accuracy"] = float(np.mean(right))
        return figures

    def predict(self, state: TrainState, name: str, given: np.ndarray) -> list[np.ndarray]:
        """Logits and corrected labels of a set, `[N, C]` each."""
        inputs, parts = self._sets[name].inputs, []
        for start in range(0, len(given), self._size):
            rows = np.arange(start, start + self._size) % len(given)  # One shape for all batches.
            batch = jax.tree.map(lambda x: x[rows], inputs)  # noqa: B023
            parts.append(self._predict(state, batch, jnp.asarray(given[rows])))
        columns = zip(*parts, strict=True)
        return [np.concatenate([np.asarray(x) for x in column])[: len(given)] for column in columns]


def _apply(
    hook: Hook, state: TrainState, dataset: Dataset, judge: _Judge, example: Inputs
) -> TrainState:
    seen = Seen(example)
    if hook.examples is not None:
        labels = dataset.trained_on(hook.examples)[1]
        logits = judge.predict(state, hook.examples, labels)[0]
        seen = Seen(example, jax.nn.softmax(logits), jnp.asarray(labels))
        if hook.examples == "clean" and dataset.paired:
            seen = seen._replace(given=jnp.asarray(dataset.clean.given))
    updated: TrainState = jax.jit(hook.update)(state, seen)
    return updated


if __name__ == "__main__":
    command_line.run(main, required=["config", "workdir"])
