"""What an MLC step costs beside a plain one: time, memory, FLOPs, and waiting for data.

    python -m experiments.benchmark --config=configs/digits.py --workdir=DIR \
        --num_inner_steps=1,5 --estimators=exact,approximate --repeats=10

The plain step is the cross-entropy step on the images of MLC's inner loss (the noisy batch and the
clean half that trains) with the same optimizer; an MLC window of k steps is held against a window
of k plain ones. Steps are timed in turn (plain, exact, approximate, plain, ...), so that whatever
else the machine does weighs on all of them alike: on a shared machine the ratios are the message.
Inputs are random numbers of the dataset's shape. Only the wait for data needs TensorFlow.
"""

import copy
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from mlc_jax import bilevel, command_line, methods, models
from mlc_jax.bilevel import Batch, Examples
from mlc_jax.errors import InputError
from mlc_jax.meta_gradients import ESTIMATORS
from mlc_jax.methods.base import supervised

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, such as configs/digits.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory for the tables; made if need be.")
_NUM_INNER_STEPS = flags.DEFINE_list("num_inner_steps", ["1", "5"], "Window lengths k.")
_ESTIMATORS = flags.DEFINE_list("estimators", list(ESTIMATORS), "Meta-gradients to measure.")
_REPEATS = flags.DEFINE_integer("repeats", 10, "Timings of every step.", lower_bound=1)
_DATA = flags.DEFINE_bool("data", True, "Measure the wait for data, if data and TensorFlow exist.")

PLAIN = "plain"
# Shape of an input and number of classes, of the datasets of mlc_jax.data.sources.
_CIFAR = (32, 32, 3)
DATASETS = {"digits": ((8, 8, 1), 10), "cifar10": (_CIFAR, 10), "cifar100": (_CIFAR, 100)}
_MIN_SECONDS = 0.2  # Of one timing: a step of a millisecond is run many times for it.
_DATA_WINDOWS = 50
_COLUMNS = {
    "k": "{num_inner_steps}",
    "step": "{step}",
    "ms an inner step (middle half)": "{ms:.2f} ({ms_25_percent:.2f} to {ms_75_percent:.2f})",
    "time / plain": "{time_ratio:.2f}",
    "GFLOP an inner step": "{gflop:.3g}",
    "FLOPs / plain": "{flop_ratio:.2f}",
    "temp memory, MiB": "{temp_mib:.1f}",
    "compile, s": "{compile_seconds:.1f}",
}


class Program(NamedTuple):
    """A step to measure: (state, batch) -> (new state, anything); the state is donated.

    One call makes `num_inner_steps` inner steps; `init` makes a fresh state. `has_loop` says that
    the inner steps are a loop in the compiled program, of which XLA counts one turn's FLOPs alone.
    """

    name: str
    num_inner_steps: int
    step: Callable[[Any, Any], tuple[Any, Any]]
    init: Callable[[], Any]
    batch: Any
    has_loop: bool = False


class Measurement(NamedTuple):
    """What one call of a program costs.

    `seconds` is `[repeats]`, one a round; `flops` NaN where they cannot be counted; `temp_bytes`
    the memory beside arguments and results; `compile_seconds` tracing, lowering and XLA together.
    """

    program: Program
    seconds: np.ndarray
    flops: float
    temp_bytes: int
    compile_seconds: float


def main() -> None:
    config = _CONFIG.value
    num_inner_steps = _check_flags(config)
    workdir = epath.Path(_WORKDIR.value).expanduser().resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    programs = mlc_programs(config, num_inner_steps, _ESTIMATORS.value)
    rows = to_rows(measure(programs, repeats=_REPEATS.value))
    setting = describe(config) | {"repeats": _REPEATS.value}
    workdir.joinpath("benchmark.csv").write_text(to_csv([setting | row for row in rows]))
    text = ", ".join(f"{name} {value}" for name, value in setting.items())
    text += f"\n\n{to_markdown(rows)}{_wait_line(config) if _DATA.value else ''}"
    workdir.joinpath("benchmark.md").write_text(text)
    print(text)


def mlc_programs(
    config: ConfigDict, num_inner_steps: Sequence[int], estimators: Sequence[str]
) -> list[Program]:
    """For every k the plain window, then MLC's with every estimator; on one device."""
    return [_program(config, name, k) for k in num_inner_steps for name in (PLAIN, *estimators)]


def measure(
    programs: Sequence[Program], *, repeats: int, min_seconds: float = _MIN_SECONDS
) -> list[Measurement]:
    """Compiles all programs, then times them in turn, `repeats` rounds of one timing each.

    A timing takes `min_seconds` or more: it calls the program as often as that needs.
    """
    bar = tqdm(programs, desc="compiling", unit="step", dynamic_ncols=True)
    timers = [_Timer(program, min_seconds) for program in bar]
    bar = tqdm(range(repeats), desc="timing", unit="round", dynamic_ncols=True)
    seconds = np.asarray([[timer.time() for timer in timers] for _ in bar])
    return [timer.measurement(of_one) for timer, of_one in zip(timers, seconds.T, strict=True)]


def to_rows(measurements: Sequence[Measurement]) -> list[dict[str, Any]]:
    """Figures of every program for one inner step, and against the plain step of the same k.

    The ratio of times is the median over the rounds of the ratio within a round.
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
        row["temp_mib"] = m.temp_bytes / 2**20
        row["compile_seconds"] = m.compile_seconds
        rows.append(row)
    return rows


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """One line a program."""
    text = [[f"{x:.5g}" if isinstance(x, float) else str(x) for x in row.values()] for row in rows]
    return "\n".join(",".join(cells) for cells in [list(rows[0]), *text]) + "\n"


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One line a program; the spread of the times is their middle half."""
    lines = [list(_COLUMNS), ["---:", "---"] + ["---:"] * (len(_COLUMNS) - 2)]
    for row in rows:
        lines.append([cell.format(**row).replace("nan", "-") for cell in _COLUMNS.values()])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def describe(config: ConfigDict) -> dict[str, Any]:
    """Model, batch sizes, hardware and version."""
    name = config.model.name
    return {
        "dataset": config.dataset.name,
        "model": f"resnet-{config.model.resnet.depth}" if name == "resnet" else name,
        "dtype": config.model.dtype,
        "noisy batch": config.noisy_batch_size,
        "clean batch": config.clean_batch_size,
        "mix clean": config.meta_gradient.mix_clean,
        "device": jax.devices()[0].device_kind,
        "CPU cores": os.cpu_count(),
        "jax": jax.__version__,
    }


def data_wait_share(config: ConfigDict, num_windows: int = _DATA_WINDOWS) -> float:
    """Share of the training loop's time that it waits for its next batch, in [0, 1].

    Runs the config's pipeline, placement and step as the loop does: one step in flight. The first
    window, with compilation and the filling of the buffers, is left out.
    """
    from mlc_jax import train  # Imports TensorFlow.
    from mlc_jax.data.pipeline import to_devices

    run = train.build(config)
    everywhere = NamedSharding(Mesh(np.asarray(jax.devices()), ("batch",)), PartitionSpec())
    init = jax.jit(lambda: run.method.init(jax.random.key(config.seed)), out_shardings=everywhere)
    arrays = run.pipeline.batches(0, num_devices=jax.local_device_count())
    batches, step = to_devices(arrays, jax.local_devices()), train.create_train_step(run.method)
    state, metrics = jax.block_until_ready(step(init(), next(batches)))
    waited, start = 0.0, time.perf_counter()
    for _ in tqdm(range(num_windows), desc="waiting for data", dynamic_ncols=True):
        before = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - before
        in_flight = metrics
        state, metrics = step(state, batch)
        jax.block_until_ready(in_flight)
    jax.block_until_ready(metrics)
    return waited / (time.perf_counter() - start)


def _program(config: ConfigDict, name: str, num_inner_steps: int) -> Program:
    config = copy.deepcopy(config)
    config.meta_gradient.num_inner_steps = num_inner_steps
    input_shape, num_classes = DATASETS[config.dataset.name]
    scan_unroll = bilevel.resolve_unroll(config.meta_gradient.unroll, num_inner_steps)
    inputs = methods.MethodInputs(
        config=config,
        model=models.create_classifier(config.model, num_classes, axis_name=None),
        normalize=lambda x: (x.astype(np.float32) - np.float32(127.5)) / np.float32(74),
        example_inputs=jnp.zeros((1, *input_shape), jnp.uint8),
        num_classes=num_classes,
        steps_per_epoch=500,  # For the schedules: any numbers that no timed step comes near.
        num_steps=50_000,
        axis_name=None,
    )
    if name == PLAIN:
        method = supervised(inputs, lambda batch: batch._replace(clean_outer=None))
    else:
        config.meta_gradient.estimator = name
        method = methods.METHODS["mlc"](inputs)
    init = lambda: jax.jit(method.init)(jax.random.key(0))  # noqa: E731
    batch = _random_batches(config, input_shape, num_classes)
    has_loop = scan_unroll < num_inner_steps
    return Program(name, num_inner_steps, method.train_step, init, batch, has_loop)


def _random_batches(config: ConfigDict, input_shape: tuple[int, ...], num_classes: int) -> Batch:
    """Random inputs `[k, B, ...]` and labels `[k, B]`, on the default device."""
    rng, k = np.random.default_rng(0), config.meta_gradient.num_inner_steps

    def examples(size: int) -> Examples:
        inputs = rng.integers(0, 256, (k, size, *input_shape), dtype=np.uint8)
        labels = rng.integers(0, num_classes, (k, size), dtype=np.int32)
        return Examples(jnp.asarray(inputs), jnp.asarray(labels))

    noisy, size = examples(config.noisy_batch_size), config.clean_batch_size
    if config.meta_gradient.mix_clean:
        return Batch(noisy, examples(size // 2), examples(size // 2))
    return Batch(noisy, None, examples(size))


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
        costs: Any = self._step.cost_analysis()
        memory: Any = self._step.memory_analysis()
        flops = np.nan if self._program.has_loop else costs["flops"]
        temp_bytes = memory.temp_size_in_bytes
        return Measurement(self._program, seconds, flops, temp_bytes, self._compile_seconds)


def _wait_line(config: ConfigDict) -> str:
    try:
        share = data_wait_share(config)
    except (ImportError, InputError) as error:
        return f"\nWaiting for data: not measured. {error}\n"
    return f"\nWaiting for data: {share:.1%} of the time of {_DATA_WINDOWS} windows.\n"


def _check_flags(config: ConfigDict) -> list[int]:
    """Raises InputError, or returns the values of k."""
    windows, estimators, dataset = _NUM_INNER_STEPS.value, _ESTIMATORS.value, config.dataset.name
    ok = windows and all(value.isdecimal() and int(value) for value in windows)
    _expect(ok, "--num_inner_steps", ",".join(windows), "whole numbers from 1, as in 1,5")
    ok = estimators and set(estimators) <= set(ESTIMATORS)
    _expect(ok, "--estimators", ",".join(estimators), f"some of {', '.join(ESTIMATORS)}")
    _expect(dataset in DATASETS, "config.dataset.name", dataset, f"one of {', '.join(DATASETS)}")
    return [int(value) for value in windows]


def _expect(ok: Any, name: str, value: str, expected: str) -> None:
    if not ok:
        raise InputError(f"{name}: got {value!r}, expected {expected}")


if __name__ == "__main__":
    command_line.run(main, required=["config", "workdir"])
