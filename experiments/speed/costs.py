"""The cost of a window of MLC, compared with a plain one: time, FLOPs, memory. No TensorFlow.

On CPU, XLA's analysis of a program needs care:

* It counts the body of a loop once. `window_flops` counts all turns.
* Its scheduler spends memory to run operations at the same time, and the timed programs have their
  steps unrolled. `rolled_memory` schedules for little memory and keeps the loop, as on an
  accelerator.

Both need compilations of their own, without the optimizations that change neither figure.
"""

import functools
import math
import string
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from experiments.records import Records, clear_programs
from experiments.speed.programs import (
    PLAIN,
    Memory,
    Program,
    create_program,
    settings,
    with_settings,
)
from experiments.tables import to_markdown as markdown_table
from mlc_jax import core

MIN_SECONDS = 0.2  # Shortest timing; a step of a millisecond is run many times.
# For programs that are compiled only for analysis. The level changes only the machine code.
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


class Measurement(NamedTuple):
    """The cost of one call of a program.

    `seconds` is `[repeats]`, one per round. `memory` is of the timed program, `rolled` of the same
    window as a loop. `compile_seconds` includes tracing, lowering and XLA.
    """

    program: Program
    seconds: np.ndarray
    flops: float
    memory: Memory
    rolled: Memory
    compile_seconds: float


def measure_lengths(
    config: ConfigDict,
    num_inner_steps: Sequence[int],
    steps: Sequence[str],
    *,
    repeats: int,
    records: Records,
) -> list[dict[str, Any]]:
    """Rows of every k. Ratios are between programs of the same k, which are measured together.

    All programs of a k are compiled, timed in turn, analysed and written to `records` before those
    of the next.

    Args:
      config, num_inner_steps, steps: as for `mlc_programs`.
      repeats: timings of every program; 0 only analyses them.
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
    """Figures without timing: FLOPs, and memory with the steps in a loop."""
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

    Small windows are compiled without loops. Longer ones are extrapolated from them, because FLOPs
    are linear in the number of steps from two or three steps on. They are also linear in the number
    of steps before those that `truncated` goes back through, of segments of `two_level` (see
    `core.unroll`), and of terms of `neumann`. `conjugate_gradient` always has a loop. One turn
    counts as one term of `neumann`: both multiply once by the Hessian, and differ on vectors only.

    Loops cost this or slightly more: with `two_level` they compute the last step of each segment
    again, too, which is not counted.

    Args:
      config, name, num_inner_steps: as for `create_program`.
      count: `_unrolled_flops` with this config, if it remembers what it counted before.
    """
    if count is None:
        count = functools.cache(functools.partial(_unrolled_flops, config))
    if "@" in name:
        name, _, every = name.partition("@")
        return _overlapping_flops(config, name, num_inner_steps, int(every), count)
    chosen = with_settings(config, **settings(name)).meta_gradient
    estimator, backward, solver_steps = chosen.estimator, chosen.backward, chosen.solver_steps
    k = num_inner_steps
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
        # All but the last step of a segment are computed again. After the first of 5, 6 and 7 steps
        # the segments are 2 2, 2 2 1 and 2 2 2. A segment of one step costs something else.
        last, other = (count(name, n + 1) - count(name, n) for n in (5, 6))
        segments = _num_segments(k)
        return count(name, 5) + (segments - 2) * last + (k - 3 - segments) * other
    # Two steps make no loop: `remat` saves other values, and XLA shares others.
    start = 2 if backward in ("", "store") else 3
    if k <= start + 1:
        return count(name, k)
    return count(name, start) + (k - start) * (count(name, start + 1) - count(name, start))


def _overlapping_flops(
    config: ConfigDict, name: str, k: int, s: int, count: Callable[..., float]
) -> float:
    """FLOPs of s inner steps and one update: of the steps, and of the replayed window."""
    if s == k:
        return window_flops(config, name, k, count=count)
    if name == "approximate":  # Needs no replay.
        return s * (count(name, 3) - count(name, 2))
    # All but its last step are plain.
    real_step = count("one_step", 3) - count("one_step", 2)
    return window_flops(config, name, k, count=count) + s * real_step


def rolled_memory(config: ConfigDict, name: str, num_inner_steps: int) -> Memory:
    """The memory of a window with its steps in a loop, scheduled for little memory."""
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


def _turns(config: ConfigDict, program: Program) -> int:
    """Inner steps that one turn of its loop holds."""
    convolutions = core.has_convolutions(jax.eval_shape(program.init).main.params)
    k = program.num_inner_steps
    return core.resolve_unroll(config.meta_gradient.unroll, k, convolutions=convolutions)


def _unrolled_flops(config: ConfigDict, name: str, k: int, **meta_gradient: int) -> float:
    """FLOPs of a window without a loop over steps or terms; other settings of the meta-gradient."""
    config = with_settings(config, **meta_gradient)
    turns = max(k, config.meta_gradient.solver_steps)
    return analyse(create_program(config, name, k, scan_unroll=turns))[0]


def _num_segments(k: int) -> int:
    """The number of segments of `core.unroll`'s `two_level`, after the window's first step."""
    return math.ceil((k - 1) / math.isqrt(k - 1))


def _analysis(compiled: Any) -> tuple[float, Memory]:
    memory = compiled.memory_analysis()
    allocated = memory.argument_size_in_bytes + memory.output_size_in_bytes
    allocated += memory.temp_size_in_bytes - memory.alias_size_in_bytes
    # On CPU temp memory is one block for the whole program, which its peak leaves out.
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
