"""The cost of steps on an accelerator, compared with PyTorch and the released code; no TensorFlow.

    python -m experiments.speed.device_benchmark --workdir=DIR --parts=equality,lengths
    python -m experiments.speed.device_benchmark --workdir=DIR --parts=released \
        --released_code=CLONE
    python -m experiments.speed.device_benchmark --workdir=DIR --parts=bert --config=...

Parts: `equality` compares every estimator on the accelerator with the CPU. `lengths` times exact
windows of k steps with each backward pass, `windows` several windows per call, `stack` several runs
as one program. `released` times the step of https://github.com/microsoft/MLC, of which CLONE is a
clone, and ours. `bert` times a classifier of texts, and PyTorch's plain step of the same model.
Without `--config` the model is ResNet-32 for CIFAR-10, with 100 noisy and 100 clean, as published.

Steps are timed three times, for `MIN_SECONDS` or more each; a row has the median. Every row is
written to `device_benchmark.jsonl` at once, and the same command resumes. With `--seconds` no
measurement starts after that time.
"""

import contextlib
import copy
import functools
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from configs import cifar10, digits
from experiments.records import Records, Row, clear_programs
from experiments.speed import programs, torch_steps
from experiments.tables import to_csv
from mlc_jax import command_line
from mlc_jax.core import BACKWARDS, ESTIMATORS
from mlc_jax.errors import InputError, expect
from mlc_jax.workdir.workdir import locked_workdir

_CONFIG = config_flags.DEFINE_config_file("config", None, "In place of CIFAR-10's.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory for the figures; made if need be.")
_PARTS = flags.DEFINE_list("parts", ["equality", "lengths", "windows", "stack"], "What to measure.")
_RELEASED = flags.DEFINE_string("released_code", "", "A clone of the authors' code.")
_SECONDS = flags.DEFINE_float("seconds", 0.0, "Begin no measurement after; 0 is never.")
_LENGTHS = flags.DEFINE_list("num_inner_steps", ["1", "2", "5", "10", "20"], "lengths: k.")

MIN_SECONDS = 0.3  # Shortest timing.
_REPEATS = 3
_EQUALITY_WINDOWS, _EQUALITY_STEPS = 10, 5
_WINDOWS_PER_CALL = (1, 20)
_STACKS = (1, 4)
_OVERLAPPING, _UPDATE_EVERY = 10, (1, 2, 5)  # k, and the inner steps between its updates.


def main() -> None:
    unknown = [part for part in _PARTS.value if part not in _MEASURES]
    expect(not unknown, "--parts", ",".join(unknown), f"some of {', '.join(_MEASURES)}")
    if jax.default_backend() == "cpu":
        raise InputError(
            "--parts: got the CPU, expected an accelerator; see experiments.speed.benchmark"
        )
    config = _CONFIG.value or cifar10.get_config()
    with locked_workdir(_WORKDIR.value) as workdir:
        records = Records(
            workdir / "device_benchmark.jsonl",
            {"device": jax.devices()[0].device_kind, "jax": jax.__version__},
        )
        start, rows = time.monotonic(), []
        for part in _PARTS.value:
            for place, measure in _MEASURES[part](config):
                if 0 < _SECONDS.value < time.monotonic() - start:
                    break
                place = {"part": part} | place
                measured = records.get(place, functools.partial(_row_of, place, measure))
                tqdm.write(str(measured[0]))
                rows += measured
        workdir.joinpath("device_benchmark.csv").write_text(to_csv(rows))


Measure = Iterator[tuple[dict[str, Any], Callable[[], Row]]]


def _row_of(place: dict[str, Any], measure: Callable[[], Row]) -> list[Row]:
    try:
        row = measure()
    except jax.errors.JaxRuntimeError as error:  # For example too little memory.
        row = {"failed": str(error).splitlines()[0][:200]}
    clear_programs()
    return [place | row]


def time_calls(call: Callable[[], Any], wait: Callable[[], Any]) -> float:
    """Seconds per call: the median of three timings; `wait` returns once all calls are done."""

    def seconds(calls: int) -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        wait()
        return (time.perf_counter() - start) / calls

    seconds(2)  # The first calls allocate.
    calls = max(1, round(MIN_SECONDS / seconds(3)))
    return float(np.median([seconds(calls) for _ in range(_REPEATS)]))


def time_step(
    step: Callable[[Any, Any], tuple[Any, Any]], state: Any, batch: Any
) -> dict[str, float]:
    """Compiles a step and times it; the state is donated.

    Returns:
      ms, MiB of temporaries beside state and batch, and seconds of tracing and compilation.
    """
    start = time.perf_counter()
    compiled = jax.jit(step, donate_argnums=0).lower(state, batch).compile()
    compile_seconds = time.perf_counter() - start
    kept = [state]

    def call() -> None:
        kept[0] = compiled(kept[0], batch)[0]

    ms = 1e3 * time_calls(call, lambda: jax.block_until_ready(kept[0]))
    memory: Any = compiled.memory_analysis()
    return {
        "ms": ms,
        "temp_mib": memory.temp_size_in_bytes / 2**20,
        "state_and_batch_mib": memory.argument_size_in_bytes / 2**20,
        "compile_seconds": compile_seconds,
    }


def _ours(config: ConfigDict, name: str, k: int = 1) -> Row:
    """One step of programs.STEPS: ms of its window, and for each inner step."""
    program = programs.create_program(config, name, k)
    row = time_step(program.step, program.init(), program.batch)
    return {"ms_per_inner_step": row["ms"] / program.stride} | row


def _equality(config: ConfigDict) -> Measure:
    """Parameters after ten windows, compared with the CPU's; matrix products in full float32."""
    k = _EQUALITY_STEPS
    for name in ESTIMATORS:
        difference = functools.partial(_difference, digits.get_config(), name, k)
        yield {"model": "digits' MLP", "step": name, "k": k}, difference
    small = copy.deepcopy(config)
    small.noisy_batch_size, small.clean_batch_size = 20, 20
    place = {"model": programs.describe_step(config)["model"], "step": "exact", "k": 1}
    yield place, functools.partial(_difference, small, "exact", 1)


def _difference(config: ConfigDict, name: str, k: int) -> Row:
    with jax.default_matmul_precision("highest"):
        ends = [_trained(config, name, k, device) for device in (jax.devices("cpu")[0], None)]
    row = {}
    for part in ("main", "meta"):
        start, here, there = (
            np.concatenate([np.ravel(x) for x in jax.tree.leaves(getattr(state, part).params)])
            for state in (ends[0][0], ends[0][1], ends[1][1])
        )
        # Relative to how far they moved, not to how large they are.
        row[part] = float(np.linalg.norm(here - there) / np.linalg.norm(here - start))
    return row


def _trained(config: ConfigDict, name: str, k: int, device: Any) -> tuple[Any, Any]:
    """The states before and after ten windows, on the host."""
    with jax.default_device(device) if device else contextlib.nullcontext():
        program = programs.create_program(config, name, k)
        state = program.init()
        first, step = jax.device_get(state.replace(rng=None)), jax.jit(program.step)
        for _ in range(_EQUALITY_WINDOWS):
            state, _ = step(state, program.batch)
        return first, jax.device_get(state.replace(rng=None))


def _lengths(config: ConfigDict) -> Measure:
    lengths = [int(k) for k in _LENGTHS.value]
    for k in lengths:
        yield {"step": "plain", "k": k}, functools.partial(_ours, config, "plain", k)
        for backward in BACKWARDS if k > 1 else ("store",):
            name = f"exact:{backward}"
            yield {"step": name, "k": k}, functools.partial(_ours, config, name, k)
    for s in _UPDATE_EVERY:
        name = f"exact:forward_over_reverse@{s}"
        place = {"step": name, "k": _OVERLAPPING}
        yield place, functools.partial(_ours, config, name, _OVERLAPPING)


def _windows(config: ConfigDict) -> Measure:
    """Several windows per call, on the same batches."""
    for name in ("plain", "exact"):
        for n in _WINDOWS_PER_CALL:
            yield (
                {"step": name, "k": 1, "windows per call": n},
                functools.partial(_scanned, config, name, n),
            )


def _scanned(config: ConfigDict, name: str, num_windows: int) -> Row:
    program = programs.create_program(config, name, 1)

    def call(state: Any, batch: Any) -> tuple[Any, Any]:
        state, losses = jax.lax.scan(
            lambda state, _: program.step(state, batch), state, length=num_windows
        )
        return state, losses

    row = time_step(call, program.init(), program.batch)
    return {"ms_per_inner_step": row["ms"] / num_windows} | row


def _stack(config: ConfigDict) -> Measure:
    for name in ("plain", "exact"):
        for runs in _STACKS:
            yield (
                {"step": name, "k": 1, "runs": runs},
                functools.partial(_stacked, config, name, runs),
            )


def _stacked(config: ConfigDict, name: str, num_runs: int) -> Row:
    program = programs.create_program(config, name, 1)
    copies = lambda tree: jax.tree.map(lambda x: jnp.stack([x] * num_runs), tree)  # noqa: E731
    row = time_step(jax.vmap(program.step), copies(program.init()), copies(program.batch))
    return {"ms_per_inner_step and run": row["ms"] / num_runs} | row


def _released(config: ConfigDict) -> Measure:
    """The authors' step and ours, plain and MLC's, on the batches of the paper and larger ones."""
    expect(bool(_RELEASED.value), "--released_code", "", "a clone of the authors' repository")
    steps = torch_steps.ReleasedCode(_RELEASED.value)
    for size, dtype in ((100, "float32"), (100, "bfloat16"), (512, "bfloat16")):
        sized = copy.deepcopy(config)
        sized.noisy_batch_size = sized.clean_batch_size = size
        sized.model.dtype = dtype
        for step in ("plain", "exact"):
            place = {"step": step, "noisy batch": size, "dtype": dtype}
            yield place | {"code": "mlc_jax"}, functools.partial(_ours, sized, step)
            call = functools.partial(steps.measure, step, size, dtype, time_calls)
            yield place | {"code": "released"}, call


def _bert(config: ConfigDict) -> Measure:
    for dtype in ("bfloat16", "float32"):
        for remat in (False, True):
            chosen = copy.deepcopy(config)
            chosen.model.dtype, chosen.model.bert.remat = dtype, remat
            for step in ("plain", "exact"):
                place = {"step": step, "dtype": dtype, "remat": remat}
                yield place | {"code": "mlc_jax"}, functools.partial(_texts, chosen, step)
        place = {"step": "plain", "dtype": dtype, "remat": False, "code": "PyTorch"}
        num_texts = config.noisy_batch_size + config.clean_batch_size // 2
        yield place, functools.partial(
            torch_steps.measure_bert, config.model.bert.checkpoint, num_texts,
            config.dataset.max_length, dtype, time_calls,
        )  # fmt: skip


def _texts(config: ConfigDict, step: str) -> Row:
    row = _ours(config, step)
    num_texts = config.noisy_batch_size + config.clean_batch_size // 2  # The inner loss has these.
    num_tokens = num_texts * config.dataset.max_length
    return row | {"tokens_per_second": 1e3 * num_tokens / row["ms"]}


_MEASURES: dict[str, Callable[[ConfigDict], Measure]] = {
    "equality": _equality,
    "lengths": _lengths,
    "windows": _windows,
    "stack": _stack,
    "released": _released,
    "bert": _bert,
}


if __name__ == "__main__":
    command_line.run(main, required=["workdir"])
