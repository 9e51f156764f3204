"""What a window of MLC costs beside a plain one: time, FLOPs, memory. No flags, no TensorFlow.

A *step* is named `plain`, the cross-entropy step on the images of MLC's inner loss (the noisy batch
and the clean half that trains) with the same optimizer; `cross_entropy`, that baseline's, on all
images of the batch; or after an estimator. `exact` and `truncated` have the config's backward pass,
`exact:store` and so on the one that they name; `truncated:5` goes back five steps; with `@1` after
it the LCN is updated every step (`update_every`). Batches are drawn at random from the dataset; for
CIFAR and Clothing1M, whose files may not be there, from random images.

On CPU, what XLA says of a program needs care:

* It counts the body of a loop once. `window_flops` counts all turns.
* Its scheduler spends memory to run operations at the same time, and the timed programs have their
  steps unrolled. `rolled_memory` schedules for little memory and keeps the loop, as on an
  accelerator.

Both need compilations of their own, without the optimizations that change neither figure.
"""

import copy
import dataclasses
import functools
import math
import os
import string
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments.records import Records, clear_programs
from experiments.tables import to_markdown as markdown_table
from mlc_jax import build, core, data
from mlc_jax.config import validate
from mlc_jax.core import BACKWARDS, ESTIMATORS, Batch, Labelled
from mlc_jax.data.prepare import Normalize
from mlc_jax.data.source import IndexedSource, num_examples
from mlc_jax.errors import expect
from mlc_jax.methods import METHODS, BoundMethod, Method
from mlc_jax.methods.blocks import supervised
from mlc_jax.methods.types import Binding, TwoPhaseMethod

PLAIN = "plain"
_WITH_BACKWARD = ("exact", "truncated")
STEPS = (
    PLAIN,
    # Methods of one phase, whose step is the whole of them.
    *(name for name, kind in METHODS.items() if not issubclass(kind, TwoPhaseMethod)),
    *ESTIMATORS,
    *(f"{name}:{backward}" for name in _WITH_BACKWARD for backward in BACKWARDS),
)
# Published figures: CIFAR's files may not be there, and reading them takes TensorFlow.
_IMAGE_CLASSES = {"cifar10": 10, "cifar100": 100, "clothing1m": 14}
_CIFAR_SIZE = 32
_NUM_RANDOM_IMAGES = 100
_NUM_TEXTS = 1_000  # Of which batches are drawn.
MIN_SECONDS = 0.2  # Of one timing: a step of a millisecond is run many times for it.
# Of programs that are compiled for their analysis alone. The level changes the machine code only.
_ANALYSIS_OPTIONS: dict[str, Any] = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_backend_optimization_level": 0,
}
_COLUMNS = {
    "k": "{num_inner_steps}",
    "step": "{step}",
    "ms per inner step (middle half)": "{ms:.2f} ({ms_25_percent:.2f} to {ms_75_percent:.2f})",
    "time / plain": "{time_ratio:.2f}",
    "GFLOP per inner step": "{gflop:.3g}",
    "FLOPs / plain": "{flop_ratio:.2f}",
    "temp memory, MiB": "{temp_mib:.1f}",
    "rolled, MiB": "{rolled_temp_mib:.1f}",
    "rolled with state and batch, MiB": "{rolled_peak_mib:.1f}",
    "peak, MiB": "{peak_mib:.1f}",
    "compile, s": "{compile_seconds:.1f}",
}


class Pool(NamedTuple):
    """What programs need of a dataset.

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
    """What a compiled program takes, in bytes.

    `temp` is beside arguments and results; `peak` includes them, and on backends that do not tell
    it, such as the CPU, is all that is ever allocated.
    """

    temp: int
    peak: int


class Program(NamedTuple):
    """A step to measure: (state, batch) -> (new state, anything); the state is donated.

    A window is of `num_inner_steps`, of which one call makes `stride`; `init` makes a fresh state.
    `count_flops` and `rolled_memory` tell what the compiled program itself does not; None where it
    does.
    """

    name: str
    num_inner_steps: int
    stride: int
    step: Callable[[Any, Any], tuple[Any, Any]]
    init: Callable[[], Any]
    batch: Any
    count_flops: Callable[[], float] | None = None
    rolled_memory: Callable[[], Memory] | None = None


class Measurement(NamedTuple):
    """What one call of a program costs.

    `seconds` is `[repeats]`, one per round; `memory` is of the program that was timed, `rolled` of
    the same window as a loop; `compile_seconds` tracing, lowering and XLA together.
    """

    program: Program
    seconds: np.ndarray
    flops: float
    memory: Memory
    rolled: Memory
    compile_seconds: float


def settings(name: str) -> dict[str, Any]:
    """What the name of an estimator's step stands for: fields of `config.meta_gradient`."""
    name, _, every = name.partition("@")
    estimator, _, option = name.partition(":")
    fields: dict[str, Any] = {"estimator": estimator}
    if option:
        field, value = ("truncation", int(option)) if option.isdecimal() else ("backward", option)
        fields[field] = value
    return fields | ({"update_every": int(every)} if every else {})


def measure_lengths(
    config: ConfigDict,
    num_inner_steps: Sequence[int],
    steps: Sequence[str],
    *,
    repeats: int,
    records: Records,
) -> list[dict[str, Any]]:
    """Rows of every k, those of one k measured together: ratios are within it.

    All programs of a k are compiled, timed in turn, analysed and written to `records` before those
    of the next.

    Args:
      config, num_inner_steps, steps: as for `mlc_programs`.
      repeats: timings of every program; with none, they are analysed alone.
      records: a k that it holds is not measured again.
    """
    count = functools.cache(functools.partial(_unrolled_flops, config))
    rows = []
    for k in num_inner_steps:
        of_length = functools.partial(_measure_length, config, k, steps, repeats, count)
        rows += records.get({"num_inner_steps": k}, of_length)
        clear_programs()
    return rows


def _measure_length(
    config: ConfigDict, k: int, steps: Sequence[str], repeats: int, count: Callable[..., float]
) -> list[dict[str, Any]]:
    if repeats == 0:
        return _analyse_length(config, k, steps, count)
    programs = mlc_programs(config, [k], steps, count=count)
    return to_rows(measure(programs, repeats=repeats, name=f"k = {k}: "))


def _analyse_length(
    config: ConfigDict, k: int, steps: Sequence[str], count: Callable[..., float]
) -> list[dict[str, Any]]:
    """What needs no timing: FLOPs, and memory with the steps in a loop."""
    rows: list[dict[str, Any]] = []
    names = list(dict.fromkeys((PLAIN, *steps)))
    for name in tqdm(names, desc=f"k = {k}: analysing", unit="step", dynamic_ncols=True):
        stride = settings(name).get("update_every") or k
        gflop = window_flops(config, name, k, count=count) / stride / 1e9
        memory = rolled_memory(config, name, k)
        row = {"num_inner_steps": k, "step": name, "gflop": gflop}
        row["flop_ratio"] = gflop / (rows[0]["gflop"] if rows else gflop)
        row |= {"rolled_temp_mib": memory.temp / 2**20, "rolled_peak_mib": memory.peak / 2**20}
        rows.append(row)
    return rows


def mlc_programs(
    config: ConfigDict,
    num_inner_steps: Sequence[int],
    steps: Sequence[str],
    *,
    count: Callable[..., float] | None = None,
) -> list[Program]:
    """For every k the plain window, then those of `steps`, some of `STEPS`; on one device.

    `count` is as for `window_flops`.
    """
    if count is None:
        count = functools.cache(functools.partial(_unrolled_flops, config))
    programs = []
    for k in num_inner_steps:
        for name in dict.fromkeys((PLAIN, *steps)):
            program = create_program(config, name, k)
            turns = _turns(config, program)
            if (
                turns < k
                or "@" in name
                or settings(name)["estimator"] in ("neumann", "conjugate_gradient")
            ):
                flops = functools.partial(window_flops, config, name, k, count=count)
                program = program._replace(count_flops=flops)
            if turns > 1 or jax.default_backend() == "cpu":
                memory = functools.partial(rolled_memory, config, name, k)
                program = program._replace(rolled_memory=memory)
            programs.append(program)
    return programs


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
    config, pool = _with(config, **fields), load_pool(config)
    method = _method(config, name, pool.num_classes)
    bound = bind(method, pool)
    init = lambda: jax.jit(bound.init)(jax.random.key(0), pool.example)  # noqa: E731
    length = method.stride + method.num_replayed
    batch = _draw(pool, batch_shapes(_with(config, num_inner_steps=length), pool))
    return Program(name, num_inner_steps, method.stride, bound.train_step, init, batch)


def load_pool(config: ConfigDict) -> Pool:
    """Of the config's dataset; imports no TensorFlow."""
    name = config.dataset.name
    if name in _IMAGE_CLASSES:
        size = config.dataset.image_size if name == "clothing1m" else _CIFAR_SIZE
        shape = (_NUM_RANDOM_IMAGES, size, size, 3)
        images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
        return Pool(images, _IMAGE_CLASSES[name], Normalize(255.0, (0.5,) * 3, (0.25,) * 3))
    dataset = data.load(config)
    source = dataset.clean.source
    if isinstance(source, data.ArraySource):
        inputs = source.inputs
    else:  # Tokens of texts.
        assert isinstance(source, IndexedSource)
        inputs = source.gather(np.arange(min(len(source), _NUM_TEXTS)))
    return Pool(inputs, dataset.num_classes, dataset.prepare)


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


def batch_shapes(config: ConfigDict, pool: Pool, *, num_devices: int | None = None) -> Batch:
    """Shapes of a window's batches.

    They are `[k, B, ...]`, or as the loop hands them over to devices, `[num_devices, k,
    B / num_devices, ...]`.
    """
    k = config.meta_gradient.num_inner_steps

    def examples(size: int) -> Labelled:
        lead = (k, size) if num_devices is None else (num_devices, k, size // num_devices)

        def shape(of_one: tuple[int, ...], dtype: Any) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct((*lead, *of_one), jax.dtypes.canonicalize_dtype(dtype))

        inputs = jax.tree.map(lambda x: shape(x.shape[1:], x.dtype), pool.inputs)
        return Labelled(inputs, shape((), np.int32), shape((), np.int32))

    noisy, size = examples(config.noisy_batch_size), config.clean_batch_size
    if config.meta_gradient.mix_clean:
        return Batch(noisy, examples(size // 2), examples(size // 2))
    return Batch(noisy, None, examples(size))


def _draw(pool: Pool, shapes: Batch) -> Batch:
    """Random examples with random labels, on the default device."""
    rng, size = np.random.default_rng(0), num_examples(pool.inputs)

    def examples(part: Labelled) -> Labelled:
        rows = rng.integers(0, size, part.labels.shape, dtype=np.int32)
        labels = rng.integers(0, pool.num_classes, part.labels.shape, dtype=np.int32)
        inputs = jax.tree.map(lambda x: jnp.asarray(x[rows]), pool.inputs)
        return Labelled(inputs, jnp.asarray(labels), jnp.asarray(rows))

    return Batch(*(None if part is None else examples(part) for part in shapes))


def measure(
    programs: Sequence[Program],
    *,
    repeats: int,
    min_seconds: float = MIN_SECONDS,
    name: str = "",
) -> list[Measurement]:
    """Compiles all programs, then times them in turn, `repeats` rounds of one timing each.

    A timing takes `min_seconds` or more: it calls the program as often as that needs. `name` stands
    before the progress.
    """
    progress = functools.partial(tqdm, dynamic_ncols=True)
    bar = progress(programs, desc=f"{name}compiling", unit="step")
    timers = [_Timer(program, min_seconds) for program in bar]
    bar = progress(range(repeats), desc=f"{name}timing", unit="round")
    seconds = np.asarray([[timer.time() for timer in timers] for _ in bar])
    pairs = list(zip(timers, seconds.T, strict=True))
    bar = progress(pairs, desc=f"{name}analysing", unit="step")
    return [timer.measurement(of_one) for timer, of_one in bar]


def window_flops(
    config: ConfigDict,
    name: str,
    num_inner_steps: int,
    *,
    count: Callable[..., float] | None = None,
) -> float:
    """FLOPs of one window, all turns of all loops counted.

    Small windows are compiled without loops. What a long one costs follows from them: FLOPs are
    linear in the number of steps from two or three on. So they are in the steps before those that
    `truncated` goes back through, in the segments of `two_level` (see `core.unroll`) and in the
    terms of `neumann`. A turn of `conjugate_gradient`'s loop cannot be had without the loop: it
    counts as a term of `neumann`, one product with the Hessian too, which leaves out what the two
    differ by on vectors.

    Loops cost what is counted here or little more: in one of `two_level` the last step of every
    segment is computed again, too, and that is not counted.

    Args:
      config, name, num_inner_steps: as for `create_program`.
      count: `_unrolled_flops` with this config, if it remembers what it counted before.
    """
    if "@" in name:
        name, _, every = name.partition("@")
        return _overlapping_flops(config, name, num_inner_steps, int(every), count)
    chosen = _with(config, **settings(name)).meta_gradient
    estimator, backward, solver_steps = chosen.estimator, chosen.backward, chosen.solver_steps
    k = num_inner_steps
    if count is None:
        count = functools.cache(functools.partial(_unrolled_flops, config))
    if estimator in ("neumann", "conjugate_gradient"):
        base = count("neumann", 1, solver_steps=2)
        term = count("neumann", 1, solver_steps=3) - base
        before = (k - 1) * (count("neumann", 2, solver_steps=2) - base) if k > 1 else 0.0
        if estimator == "neumann":
            return base + (solver_steps - 2) * term + before
        return count(name, 1) + (solver_steps - 1) * term + before
    if estimator == "truncated":
        depth, exact = chosen.truncation, f"exact:{backward}"
        if k <= depth:
            return window_flops(config, exact, k, count=count)
        small = min(depth, 2)
        name = f"truncated:{backward}"
        base, longer = (count(name, small + i, truncation=small) for i in (1, 2))
        deep, shallow = (window_flops(config, exact, n, count=count) for n in (depth, small))
        return base + (k - depth - 1) * (longer - base) + deep - shallow
    backward = backward if estimator == "exact" else ""
    if backward == "two_level":
        if k <= 7:
            return count(name, k)
        # All but the last step of a segment are computed again. Of 5, 6 and 7 steps the segments
        # after the first step are 2 2, 2 2 1 and 2 2 2; those of one step alone are another matter.
        last, other = (count(name, n + 1) - count(name, n) for n in (5, 6))
        segments = _num_segments(k)
        return count(name, 5) + (segments - 2) * last + (k - 3 - segments) * other
    # Of two steps nothing is in a loop: `remat` finds other things to save, and XLA to share.
    start = 2 if backward in ("", "store") else 3
    if k <= start + 1:
        return count(name, k)
    return count(name, start) + (k - start) * (count(name, start + 1) - count(name, start))


def _overlapping_flops(
    config: ConfigDict, name: str, k: int, s: int, count: Callable[..., float] | None
) -> float:
    """FLOPs of s inner steps and one update: of the real steps, and of the window's replay."""
    if s == k:
        return window_flops(config, name, k, count=count)
    if count is None:
        count = functools.cache(functools.partial(_unrolled_flops, config))
    if name == "approximate":  # Goes on without a replay.
        return s * (count(name, 3) - count(name, 2))
    # All but its last step are plain.
    real_step = count("one_step", 3) - count("one_step", 2)
    return window_flops(config, name, k, count=count) + s * real_step


def rolled_memory(config: ConfigDict, name: str, num_inner_steps: int) -> Memory:
    """What a window takes with its steps in a loop, scheduled for little memory."""
    return analyse(create_program(config, name, num_inner_steps, scan_unroll=1))[1]


def analyse(program: Program) -> tuple[float, Memory]:
    """FLOPs, every loop's body once, and memory of a program that is compiled, but not run."""
    jitted = jax.jit(program.step, donate_argnums=0)
    lowered = jitted.lower(jax.eval_shape(program.init), program.batch)
    options = _ANALYSIS_OPTIONS if jax.default_backend() == "cpu" else None
    return _analysis(lowered.compile(compiler_options=options))


def to_rows(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Figures of every program for one inner step, and against the plain step of the same k.

    Memory is that of the whole window. The ratio of times is the median over the rounds of the
    ratio within a round.
    """
    plain = {m.program.num_inner_steps: m for m in measurements if m.program.name == PLAIN}
    rows = []
    for m in measurements:
        k, s = m.program.num_inner_steps, m.program.stride
        quartiles = np.percentile(1e3 * m.seconds / s, [25, 50, 75]).tolist()
        row: dict[str, Any] = {"num_inner_steps": k, "step": m.program.name}
        row |= zip(("ms_25_percent", "ms", "ms_75_percent"), quartiles, strict=True)
        row["time_ratio"] = float(np.median(m.seconds / s / (plain[k].seconds / k)))
        row["gflop"] = m.flops / s / 1e9
        row["flop_ratio"] = m.flops / s / (plain[k].flops / k)
        row["temp_mib"] = m.memory.temp / 2**20
        row["rolled_temp_mib"] = m.rolled.temp / 2**20
        row["rolled_peak_mib"] = m.rolled.peak / 2**20
        row["peak_mib"] = m.memory.peak / 2**20
        row["compile_seconds"] = m.compile_seconds
        rows.append(row)
    return rows


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One line per program; the spread of the times is their middle half."""
    # Programs that were analysed alone have no times.
    field_of = {
        name: next(iter(string.Formatter().parse(cell)))[1] for name, cell in _COLUMNS.items()
    }
    columns = {name: cell for name, cell in _COLUMNS.items() if field_of[name] in rows[0]}
    body = [[cell.format(**row) for cell in columns.values()] for row in rows]
    return markdown_table(list(columns), body, text_columns=(1,))


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
            validate(_with(config, num_inner_steps=k, **settings(name)))


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
    """Of `config.model`, with its size where the name does not say it."""
    if config.name == "resnet":
        return f"resnet-{config.resnet.depth}"
    if config.name == "resnet50":
        return f"bottleneck resnet-{config.resnet50.depth}, width {config.resnet50.width}"
    return str(config.name)


def _with(config: ConfigDict, **meta_gradient: Any) -> ConfigDict:
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
    """What makes a step."""
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


def _turns(config: ConfigDict, program: Program) -> int:
    """Inner steps that one turn of its loop holds."""
    convolutions = core.has_convolutions(jax.eval_shape(program.init).main.params)
    k = program.num_inner_steps
    return core.resolve_unroll(config.meta_gradient.unroll, k, convolutions=convolutions)


def _unrolled_flops(config: ConfigDict, name: str, k: int, **meta_gradient: int) -> float:
    """FLOPs of a window without a loop over steps or terms; other settings of the meta-gradient."""
    config = _with(config, **meta_gradient)
    turns = max(k, config.meta_gradient.solver_steps)
    return analyse(create_program(config, name, k, scan_unroll=turns))[0]


def _num_segments(k: int) -> int:
    """Of `core.unroll`'s `two_level`, after the window's first step."""
    return math.ceil((k - 1) / math.isqrt(k - 1))


def _analysis(compiled: Any) -> tuple[float, Memory]:
    memory = compiled.memory_analysis()
    allocated = memory.argument_size_in_bytes + memory.output_size_in_bytes
    allocated += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    # The CPU's temp memory is one block that is there from begin to end, which its peak leaves out.
    peak = allocated if jax.default_backend() == "cpu" else memory.peak_memory_in_bytes
    return compiled.cost_analysis()["flops"], Memory(memory.temp_size_in_bytes, peak)


class _Timer:
    """A compiled program and its state."""

    def __init__(self, program: Program, min_seconds: float):
        self._program, self._state = program, program.init()
        start = time.perf_counter()
        jitted = jax.jit(program.step, donate_argnums=0)
        self._step = jitted.lower(self._state, program.batch).compile()
        self._compile_seconds = time.perf_counter() - start
        self._calls = 1
        if self.time() < min_seconds:  # The first call is slower: it counts for nothing.
            self._calls = max(1, round(min_seconds / self.time()))

    def time(self) -> float:
        """Seconds per call."""
        start = time.perf_counter()
        for _ in range(self._calls):
            self._state, _ = self._step(self._state, self._program.batch)
        jax.block_until_ready(self._state)
        return (time.perf_counter() - start) / self._calls

    def measurement(self, seconds: np.ndarray) -> Measurement:
        program, (flops, memory) = self._program, _analysis(self._step)
        flops = program.count_flops() if program.count_flops else flops
        rolled = program.rolled_memory() if program.rolled_memory else memory
        return Measurement(program, seconds, flops, memory, rolled, self._compile_seconds)
