"""Steps to measure and to compile, for any config: a window of MLC, of a method, or a plain one.

The name of a *step* is one of these:

* `plain`: the cross-entropy step with the same optimizer, on the images of MLC's inner loss (the
  noisy batch and the clean half that trains);
* a method of one phase: its own step; that of `cross_entropy` takes all images of the batch;
* an estimator: MLC with it. `exact` and `truncated` have the config's backward pass, `exact:store`
  the named one. `truncated:5` goes back five steps. With `@1` at its end the LCN is updated every
  step (`update_every`).

Batches are drawn at random from the dataset. For CIFAR, Clothing1M and published texts, whose files
may be missing, inputs are random numbers. No flags, no TensorFlow.
"""

import copy
import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mlc_jax import build, data
from mlc_jax.benchmarks import datasets
from mlc_jax.benchmarks.texts import LAYOUTS
from mlc_jax.config import validate
from mlc_jax.core import BACKWARDS, ESTIMATORS, Batch, Labelled
from mlc_jax.data.prepare import Normalize, identity
from mlc_jax.data.source import IndexedSource, num_examples
from mlc_jax.errors import expect
from mlc_jax.methods import METHODS, BoundMethod, Method
from mlc_jax.methods.blocks import supervised
from mlc_jax.methods.cross_fit import CrossFit
from mlc_jax.methods.types import Binding, TwoPhaseMethod
from mlc_jax.models.bert_checkpoint import load_config

PLAIN = "plain"
_WITH_BACKWARD = ("exact", "truncated")
STEPS = (
    PLAIN,
    # Methods of one phase: one step shows their whole cost.
    *(name for name, kind in METHODS.items() if not issubclass(kind, TwoPhaseMethod | CrossFit)),
    *ESTIMATORS,
    *(f"{name}:{backward}" for name in _WITH_BACKWARD for backward in BACKWARDS),
)
# Published figures: such files may not be there, and reading them may take TensorFlow.
_IMAGE_CLASSES = {"cifar10": 10, "cifar100": 100, "clothing1m": 14}
_CIFAR_SIZE = 32
_NUM_RANDOM_IMAGES, _NUM_TEXTS = 100, 1_000  # Sizes of random datasets.


class Pool(NamedTuple):
    """The parts of a dataset that programs need.

    Attributes:
      inputs: that batches are drawn from, a pytree of arrays `[N, ...]`, as stored.
      num_classes: C.
      prepare: from inputs as stored to what a model takes.
    """

    inputs: Any
    num_classes: int
    prepare: Callable[[Any], Any]

    @property
    def example(self) -> Any:
        """One input `[1, ...]`."""
        return jax.tree.map(lambda x: x[:1], self.inputs)


class Memory(NamedTuple):
    """The memory of a compiled program, in bytes.

    `temp` excludes arguments and results, `peak` includes them. On a CPU, which does not report a
    peak, `peak` is everything that is ever allocated.
    """

    temp: int
    peak: int


class Program(NamedTuple):
    """A step to measure: (state, batch) -> (new state, anything); the state is donated.

    A window has `num_inner_steps`; one call makes `stride` of them. `init` makes a new state.
    `count_flops` and `rolled_memory` are None if the compiled program itself reports these.
    """

    name: str
    num_inner_steps: int
    stride: int
    step: Callable[[Any, Any], tuple[Any, Any]]
    init: Callable[[], Any]
    batch: Any
    count_flops: Callable[[], float] | None = None
    rolled_memory: Callable[[], Memory] | None = None


def settings(name: str) -> dict[str, Any]:
    """The fields of `config.meta_gradient` that the name of an estimator's step stands for."""
    name, _, every = name.partition("@")
    estimator, _, option = name.partition(":")
    fields: dict[str, Any] = {"estimator": estimator}
    if option:
        field, value = ("truncation", int(option)) if option.isdecimal() else ("backward", option)
        fields[field] = value
    return fields | ({"update_every": int(every)} if every else {})


def create_program(
    config: ConfigDict, name: str, num_inner_steps: int, *, scan_unroll: int | None = None
) -> Program:
    """One window of a step.

    Args:
      config: for the model, the batch sizes and the optimizers.
      name: one of `STEPS`.
      num_inner_steps: k; the config's is not read.
      scan_unroll: instead of the config's.
    """
    fields = {"num_inner_steps": num_inner_steps, "update_every": 0}
    fields |= {} if scan_unroll is None else {"unroll": scan_unroll}
    config, pool = with_settings(config, **fields), load_pool(config)
    method = _method(config, name, pool.num_classes)
    bound = bind(method, pool)
    init = lambda: jax.jit(bound.init)(jax.random.key(0), pool.example)  # noqa: E731
    length = method.stride + method.num_replayed
    config = with_settings(config, num_inner_steps=length)
    batch = _draw(pool, batch_shapes(config, pool, takes_votes=method.takes_votes))
    return Program(name, num_inner_steps, method.stride, bound.train_step, init, batch)


def load_pool(config: ConfigDict) -> Pool:
    """The pool of the config's dataset; imports no TensorFlow."""
    name = config.dataset.name
    if name in _IMAGE_CLASSES:
        size = config.dataset.image_size if name == "clothing1m" else _CIFAR_SIZE
        shape = (_NUM_RANDOM_IMAGES, size, size, 3)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        return Pool(images, _IMAGE_CLASSES[name], Normalize(255.0, (0.5,) * 3, (0.25,) * 3))
    if name in LAYOUTS:
        return Pool(_random_texts(config), len(LAYOUTS[name].class_names), identity)
    dataset = datasets.load(config)
    source = dataset.clean.source
    if isinstance(source, data.ArraySource):
        inputs = source.inputs
    else:  # Tokens of texts.
        assert isinstance(source, IndexedSource)
        inputs = source.gather(np.arange(min(len(source), _NUM_TEXTS)))
    return Pool(inputs, dataset.num_classes, dataset.prepare)


def _random_texts(config: ConfigDict) -> Any:
    """Random texts of full length, as tokens, or as features of a frozen encoder."""
    shape = load_config(config.model.bert.checkpoint)
    rng, size = np.random.default_rng(0), (_NUM_TEXTS, config.dataset.max_length)
    if config.model.bert.num_frozen_layers == -1:
        return rng.normal(size=(_NUM_TEXTS, shape.hidden_size)).astype(np.float32)
    ids = rng.integers(0, shape.vocab_size, size, dtype=np.int32)
    return {"input_ids": ids, "attention_mask": np.ones(size, np.int32)}


def bind(method: Method, pool: Pool, axis_name: str | None = None) -> BoundMethod:
    """The method's functions, as for a run that is never near its end."""
    return method.bind(
        num_noisy=50_000,
        num_classes=pool.num_classes,
        steps_per_epoch=500,  # For the schedules: any numbers that no timed step comes near.
        num_epochs=100,
        prepare=pool.prepare,
        axis_name=axis_name,
    )


def batch_shapes(
    config: ConfigDict, pool: Pool, *, takes_votes: bool = False, num_devices: int | None = None
) -> Batch:
    """Shapes of a window's batches.

    They are `[k, B, ...]`, or as the loop hands them over to devices, `[num_devices, k,
    B / num_devices, ...]`. Of a method that takes votes, given labels are those of one source.
    """
    k = config.meta_gradient.num_inner_steps

    def examples(size: int, *, is_noisy: bool = False) -> Labelled:
        lead = (k, size) if num_devices is None else (num_devices, k, size // num_devices)

        def shape(of_one: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((*lead, *of_one), jax.dtypes.canonicalize_dtype(dtype))

        inputs = jax.tree.map(lambda x: shape(x.shape[1:], x.dtype), pool.inputs)
        of_label = (1,) if is_noisy and takes_votes else ()
        return Labelled(inputs, shape(of_label, np.int32), shape((), np.int32))

    noisy, size = examples(config.noisy_batch_size, is_noisy=True), config.clean_batch_size
    if config.meta_gradient.mix_clean:
        return Batch(noisy, examples(size // 2), examples(size // 2))
    return Batch(noisy, None, examples(size))


def _draw(pool: Pool, shapes: Batch) -> Batch:
    """Random examples with random labels, on the default device."""
    rng, size = np.random.default_rng(0), num_examples(pool.inputs)

    def examples(part: Labelled) -> Labelled:
        assert part.rows is not None
        rows = rng.integers(0, size, part.rows.shape, dtype=np.int32)
        labels = rng.integers(0, pool.num_classes, part.labels.shape, dtype=np.int32)
        inputs = jax.tree.map(lambda x: jnp.asarray(x[rows]), pool.inputs)
        return Labelled(inputs, jnp.asarray(labels), jnp.asarray(rows))

    return Batch(*(None if part is None else examples(part) for part in shapes))


def whole_numbers(flag: str, texts: Sequence[str]) -> list[int]:
    """Whole numbers of a flag; InputError unless there are some, all 1 or more."""
    ok = texts and all(text.isdecimal() and int(text) for text in texts)
    expect(ok, flag, ",".join(texts), "whole numbers from 1, as in 1,5")
    return [int(text) for text in texts]


def check_steps(config: ConfigDict, num_inner_steps: Sequence[int], steps: Sequence[str]) -> None:
    """Raises InputError for a name that is none of `STEPS`, or an `@s` that does not go with k."""
    for name in steps:
        step, at, every = name.partition("@")
        estimator, _, depth = step.partition(":")
        ok = step in STEPS or (estimator == "truncated" and depth.isdecimal() and int(depth) > 0)
        ok = ok and (not at or every.isdecimal())
        more = "truncated:5 goes back 5 steps, exact@1 updates after every one"
        expect(ok, "--estimators", name, f"some of {', '.join(STEPS)}; {more}")
        for k in num_inner_steps if at else ():
            validate(with_settings(config, num_inner_steps=k, **settings(name)))


def describe(config: ConfigDict) -> dict[str, Any]:
    """The step, settings of the meta-gradient, hardware and version."""
    meta_gradient = config.meta_gradient
    return describe_step(config) | {
        "backward": meta_gradient.backward,
        "truncation": meta_gradient.truncation,
        "solver steps": meta_gradient.solver_steps,
        "device": jax.devices()[0].device_kind,
        "CPU cores": os.cpu_count(),
        "jax": jax.__version__,
    }


def describe_step(config: ConfigDict) -> dict[str, Any]:
    """Dataset, model and batch sizes."""
    return {
        "dataset": config.dataset.name,
        "model": _model_name(config.model),
        "dtype": config.model.dtype,
        "noisy batch": config.noisy_batch_size,
        "clean batch": config.clean_batch_size,
        "mix clean": config.meta_gradient.mix_clean,
    }


def _model_name(config: ConfigDict) -> str:
    """The name of `config.model`, with its size if the name lacks it."""
    if config.name == "resnet":
        return f"resnet-{config.resnet.depth}"
    if config.name == "resnet50":
        return f"bottleneck resnet-{config.resnet50.depth}, width {config.resnet50.width}"
    return str(config.name)


def with_settings(config: ConfigDict, **meta_gradient: Any) -> ConfigDict:
    """A copy with other settings of the meta-gradient."""
    config = copy.deepcopy(config)
    config.meta_gradient.update(meta_gradient)
    return config


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Plain(Method):
    """Cross-entropy on the images of MLC's inner loss."""

    name: ClassVar[str] = PLAIN

    def build(self, binding: Binding) -> BoundMethod:
        return supervised(binding, lambda batch: batch._replace(clean_outer=None))


def _method(config: ConfigDict, name: str, num_classes: int) -> Method:
    """The method of a step."""
    config = copy.deepcopy(config)
    if name == PLAIN:
        config.method = "cross_entropy"
        method = build.create_method(config, num_classes)
        shared = {field.name: getattr(method, field.name) for field in dataclasses.fields(Method)}
        return _Plain(**shared)
    if name in METHODS:
        config.method = name
    else:
        config.method = "mlc"
        config.meta_gradient.update(settings(name))
    return build.create_method(config, num_classes)
