"""What a window of MLC costs beside a plain one: time, FLOPs, memory. No flags, no TensorFlow.

A *step* is named `plain`, the cross-entropy step on the images of MLC's inner loss (the noisy batch
and the clean half that trains) with the same optimizer; `cross_entropy`, that baseline's, on all
images of the batch; or after an estimator. `exact` and `truncated` go back as the config says,
`exact:store` and so on as the name says; `truncated:5` goes back five steps. Inputs are random
numbers of the dataset's shape.

On CPU, what XLA says of a program needs care:

* It counts the body of a loop once. `window_flops` counts all turns.
* Its scheduler spends memory to run operations at the same time, and the timed programs have their
  steps unrolled. `rolled_memory` schedules for little memory and keeps the loop, as on an
  accelerator.

Both need compilations of their own, without the optimizations that change neither figure.
"""

import copy
import functools
import math
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from mlc_jax import methods, models
from mlc_jax.bilevel import BACKWARDS, Batch, Examples
from mlc_jax.meta_gradients import ESTIMATORS
from mlc_jax.methods.base import Method, supervised

PLAIN = "plain"
_WITH_BACKWARD = ("exact", "truncated")
STEPS = (
    PLAIN,
    "cross_entropy",
    *ESTIMATORS,
    *(f"{name}:{backward}" for name in _WITH_BACKWARD for backward in BACKWARDS),
)
# Shape of an input and number of classes, of the datasets of mlc_jax.data.sources.
_CIFAR = (32, 32, 3)
DATASETS = {"digits": ((8, 8, 1), 10), "cifar10": (_CIFAR, 10), "cifar100": (_CIFAR, 100)}
MIN_SECONDS = 0.2  # Of one timing: a step of a millisecond is run many times for it.
# Of programs that are compiled for their analysis alone. The level changes the machine code only.
_ANALYSIS_OPTIONS: dict[str, Any] = {
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    "xla_backend_optimization_level": 0,
}
_COLUMNS = {
    "k": "{num_inner_steps}",
    "step": "{step}",
    "ms an inner step (middle half)": "{ms:.2f} ({ms_25_percent:.2f} to {ms_75_percent:.2f})",
    "time / plain": "{time_ratio:.2f}",
    "GFLOP an inner step": "{gflop:.3g}",
    "FLOPs / plain": "{flop_ratio:.2f}",
    "temp memory, MiB": "{temp_mib:.1f}",
    "rolled, MiB": "{rolled_temp_mib:.1f}",
    "peak, MiB": "{peak_mib:.1f}",
    "compile, s": "{compile_seconds:.1f}",
}


class Memory(NamedTuple):
    """What a compiled program takes, in bytes.

    `temp` is beside arguments and results; `peak` includes them, and on backends that do not tell
    it, such as the CPU, is all that is ever allocated.
    """

    temp: int
    peak: int


class Program(NamedTuple):
    """A step to measure: (state, batch) -> (new state, anything); the state is donated.

    One call makes `num_inner_steps` inner steps; `init` makes a fresh state. `count_flops` and
    `rolled_memory` tell what the compiled program itself does not; None where it does.
    """

    name: str
    num_inner_steps: int
    step: Callable[[Any, Any], tuple[Any, Any]]
    init: Callable[[], Any]
    batch: Any
    count_flops: Callable[[], float] | None = None
    rolled_memory: Callable[[], Memory] | None = None


class Measurement(NamedTuple):
    """What one call of a program costs.

    `seconds` is `[repeats]`, one a round; `memory` is of the program that was timed, `rolled` of
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
    estimator, _, option = name.partition(":")
    if not option:
        return {"estimator": estimator}
    field, value = ("truncation", int(option)) if option.isdecimal() else ("backward", option)
    return {"estimator": estimator, field: value}


def mlc_programs(
    config: ConfigDict, num_inner_steps: Sequence[int], steps: Sequence[str]
) -> list[Program]:
    """For every k the plain window, then those of `steps`, some of `STEPS`; on one device."""
    count = functools.cache(functools.partial(_unrolled_flops, config))
    programs = []
    for k in num_inner_steps:
        for name in dict.fromkeys((PLAIN, *steps)):
            program = create_program(config, name, k)
            turns = method_inputs(_with(config, num_inner_steps=k)).options.scan_unroll
            if turns < k or settings(name)["estimator"] in ("neumann", "conjugate_gradient"):
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
    unroll = {} if scan_unroll is None else {"unroll": scan_unroll}
    config = _with(config, num_inner_steps=num_inner_steps, **unroll)
    method = _method(config, name)
    init = lambda: jax.jit(method.init)(jax.random.key(0))  # noqa: E731
    return Program(name, num_inner_steps, method.train_step, init, _random_batches(config))


def measure(
    programs: Sequence[Program], *, repeats: int, min_seconds: float = MIN_SECONDS
) -> list[Measurement]:
    """Compiles all programs, then times them in turn, `repeats` rounds of one timing each.

    A timing takes `min_seconds` or more: it calls the program as often as that needs.
    """
    bar = tqdm(programs, desc="compiling", unit="step", dynamic_ncols=True)
    timers = [_Timer(program, min_seconds) for program in bar]
    bar = tqdm(range(repeats), desc="timing", unit="round", dynamic_ncols=True)
    seconds = np.asarray([[timer.time() for timer in timers] for _ in bar])
    bar = tqdm(zip(timers, seconds.T, strict=True), desc="analysing", total=len(timers))
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
    linear in the number of steps from two on. So they are in the steps before those that
    `truncated` goes back through, in the segments of `two_level` (see `bilevel.unroll`) and in the
    terms of `neumann`. A turn of `conjugate_gradient`'s loop cannot be had without the loop: it
    counts as a term of `neumann`, one product with the Hessian too, which leaves out what the two
    differ by on vectors.

    Loops cost what is counted here or little more: in one of `two_level` the last step of every
    segment is computed again, too, and that is not counted.

    Args:
      config, name, num_inner_steps: as for `create_program`.
      count: `_unrolled_flops` with this config, if it remembers what it counted before.
    """
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
    # A window of two steps ends outside of a loop, where `remat` finds other things to save.
    start = 3 if backward in ("remat", "two_level") else 2
    if k <= start + 1:
        return count(name, k)
    if backward != "two_level":
        return count(name, start) + (k - start) * (count(name, start + 1) - count(name, start))
    # Windows of 3 and of 5 steps have two segments, one of 4 has three.
    step = (count(name, 5) - count(name, 3)) / 2
    segment = count(name, 4) - count(name, 3) - step
    return count(name, 3) + (k - 3) * step + (_num_segments(k) - 2) * segment


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
        k = m.program.num_inner_steps
        quartiles = np.percentile(1e3 * m.seconds / k, [25, 50, 75]).tolist()
        row: dict[str, Any] = {"num_inner_steps": k, "step": m.program.name}
        row |= zip(("ms_25_percent", "ms", "ms_75_percent"), quartiles, strict=True)
        row["time_ratio"] = float(np.median(m.seconds / plain[k].seconds))
        row["gflop"] = m.flops / k / 1e9
        row["flop_ratio"] = m.flops / plain[k].flops
        row["temp_mib"] = m.memory.temp / 2**20
        row["rolled_temp_mib"] = m.rolled.temp / 2**20
        row["peak_mib"] = m.memory.peak / 2**20
        row["compile_seconds"] = m.compile_seconds
        rows.append(row)
    return rows


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One line a program; the spread of the times is their middle half."""
    lines = [list(_COLUMNS), ["---:", "---"] + ["---:"] * (len(_COLUMNS) - 2)]
    lines += [[cell.format(**row) for cell in _COLUMNS.values()] for row in rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def describe(config: ConfigDict) -> dict[str, Any]:
    """Model, batch sizes, settings of the meta-gradient, hardware and version."""
    name, meta_gradient = config.model.name, config.meta_gradient
    return {
        "dataset": config.dataset.name,
        "model": f"resnet-{config.model.resnet.depth}" if name == "resnet" else name,
        "dtype": config.model.dtype,
        "noisy batch": config.noisy_batch_size,
        "clean batch": config.clean_batch_size,
        "mix clean": meta_gradient.mix_clean,
        "backward": meta_gradient.backward,
        "truncation": meta_gradient.truncation,
        "solver steps": meta_gradient.solver_steps,
        "device": jax.devices()[0].device_kind,
        "CPU cores": os.cpu_count(),
        "jax": jax.__version__,
    }


def _with(config: ConfigDict, **meta_gradient: Any) -> ConfigDict:
    """A copy with other settings of the meta-gradient."""
    config = copy.deepcopy(config)
    config.meta_gradient.update(meta_gradient)
    return config


def _method(config: ConfigDict, name: str) -> Method:
    """What makes a step."""
    if name == PLAIN:
        return supervised(method_inputs(config), lambda batch: batch._replace(clean_outer=None))
    if name in methods.METHODS:
        return methods.METHODS[name](method_inputs(config))
    return methods.METHODS["mlc"](method_inputs(_with(config, **settings(name))))


def method_inputs(config: ConfigDict, axis_name: str | None = None) -> methods.MethodInputs:
    """What a method is built from, without data: shapes are the dataset's."""
    input_shape, num_classes = DATASETS[config.dataset.name]
    return methods.MethodInputs(
        config=config,
        model=models.create_classifier(config.model, num_classes, axis_name),
        normalize=lambda x: (x.astype(np.float32) - np.float32(127.5)) / np.float32(74),
        example_inputs=jnp.zeros((1, *input_shape), jnp.uint8),
        num_classes=num_classes,
        num_noisy=50_000,
        steps_per_epoch=500,  # For the schedules: any numbers that no timed step comes near.
        num_epochs=100,
        axis_name=axis_name,
    )


def _random_batches(config: ConfigDict) -> Batch:
    """Random inputs `[k, B, ...]` and labels `[k, B]`, on the default device."""
    input_shape, num_classes = DATASETS[config.dataset.name]
    rng, k = np.random.default_rng(0), config.meta_gradient.num_inner_steps

    def examples(size: int) -> Examples:
        inputs = rng.integers(0, 256, (k, size, *input_shape), dtype=np.uint8)
        labels = rng.integers(0, num_classes, (k, size), dtype=np.int32)
        return Examples(jnp.asarray(inputs), jnp.asarray(labels))

    noisy, size = examples(config.noisy_batch_size), config.clean_batch_size
    if config.meta_gradient.mix_clean:
        return Batch(noisy, examples(size // 2), examples(size // 2))
    return Batch(noisy, None, examples(size))


def _unrolled_flops(config: ConfigDict, name: str, k: int, **meta_gradient: int) -> float:
    """FLOPs of a window without a loop over steps or terms; other settings of the meta-gradient."""
    config = _with(config, **meta_gradient)
    turns = max(k, config.meta_gradient.solver_steps)
    return analyse(create_program(config, name, k, scan_unroll=turns))[0]


def _num_segments(k: int) -> int:
    """Of `bilevel.unroll`'s `two_level`, after the window's first step."""
    return math.ceil((k - 1) / math.isqrt(k - 1))


def _analysis(compiled: Any) -> tuple[float, Memory]:
    memory = compiled.memory_analysis()
    allocated = memory.argument_size_in_bytes + memory.output_size_in_bytes
    allocated += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    peak = memory.peak_memory_in_bytes
    # The CPU's temp memory is one block that is there from begin to end, which its peak leaves out.
    peak = peak if peak > memory.temp_size_in_bytes else allocated
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
        """Seconds a call."""
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
