"""What an MLC step costs beside a plain one: time, memory, FLOPs, and waiting for data.

    python -m experiments.benchmark --config=configs/digits.py --workdir=DIR \
        --num_inner_steps=1,5 --estimators=exact,approximate --repeats=10

The plain step is the cross-entropy step on the images of the MLC inner loss (the noisy batch and
the clean half that trains), with the same optimizer; a window of k of them is the measure for an
MLC window of k. Steps are timed in turn (plain, exact, approximate, plain, ...), so that what else
the machine does weighs on all of them alike: on a shared machine the ratios are the message. Inputs
are random numbers of the dataset's shape; TensorFlow is needed for `--data` alone.
"""

import copy
import csv
import importlib.util
import io
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from mlc_jax import bilevel, command_line, methods, models
from mlc_jax.bilevel import Batch, Examples
from mlc_jax.errors import InputError
from mlc_jax.meta_gradients import ESTIMATORS
from mlc_jax.methods.base import Method, supervised

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, such as configs/digits.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory for the tables; made if need be.")
_NUM_INNER_STEPS = flags.DEFINE_list("num_inner_steps", ["1", "5"], "Window lengths k.")
_ESTIMATORS = flags.DEFINE_list("estimators", list(ESTIMATORS), "Meta-gradients to measure.")
_REPEATS = flags.DEFINE_integer("repeats", 10, "Timings of each step.")
_DATA = flags.DEFINE_bool(
    "data", None, "Measure the wait for data. Default: if TensorFlow and the data are there."
)
_DATA_WINDOWS = flags.DEFINE_integer("data_windows", 50, "Windows that --data runs.")

PLAIN = "plain"
# Shape of an input and number of classes, of the datasets of mlc_jax.data.sources.
DATASETS = {
    "digits": ((8, 8, 1), 10),
    "cifar10": ((32, 32, 3), 10),
    "cifar100": ((32, 32, 3), 100),
}
# Shorter steps are run several times for one timing, since a single one is mostly clock and chance.
_MIN_SECONDS_PER_TIMING = 0.2
_STEPS_PER_EPOCH = 500  # Any number for the schedules: no timed step reaches a milestone.


class Program(NamedTuple):
    """A step to measure.

    Attributes:
      name: for the table.
      num_inner_steps: k, the inner steps of one call.
      step: (state, batch) -> (new state, anything). Its state is donated.
      init: () -> a fresh state.
      batch: the second argument of every call.
      has_loop: whether the inner steps are a loop in the compiled program: XLA counts the FLOPs of
        a loop's body once, so there is no honest count.
    """

    name: str
    num_inner_steps: int
    step: Callable[[Any, Any], tuple[Any, Any]]
    init: Callable[[], Any]
    batch: Any
    has_loop: bool = False


class Measurement(NamedTuple):
    """What one call of a program costs.

    Attributes:
      name, num_inner_steps: as in `Program`.
      compile_seconds: tracing, lowering and XLA together.
      temp_bytes: memory beside arguments and results.
      flops: of one call, None if they cannot be counted.
      seconds: of one call, `[repeats]`, one a round; rounds are comparable between programs.
    """

    name: str
    num_inner_steps: int
    compile_seconds: float
    temp_bytes: int
    flops: float | None
    seconds: np.ndarray


def main() -> None:
    config, repeats = _CONFIG.value, _REPEATS.value
    num_inner_steps = _parse_num_inner_steps(_NUM_INNER_STEPS.value)
    _check_flags(config, _ESTIMATORS.value)
    workdir = epath.Path(_WORKDIR.value).expanduser().resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    programs = mlc_programs(config, num_inner_steps, _ESTIMATORS.value)
    measurements = measure(programs, repeats=repeats)
    rows = to_rows(measurements)
    text = f"{describe(config)}; {repeats} repeats\n\n{to_markdown(rows)}"
    share = _data_wait_share(config, _DATA.value, _DATA_WINDOWS.value)
    if share is not None:
        text += f"\nWaiting for data: {100 * share:.1f} % of {_DATA_WINDOWS.value} windows' time.\n"
    context = {"device": jax.devices()[0].device_kind, "jax": jax.__version__}
    workdir.joinpath("benchmark.csv").write_text(to_csv([context | row for row in rows]))
    workdir.joinpath("benchmark.md").write_text(text)
    print(text)


def mlc_programs(
    config: ConfigDict, num_inner_steps: Sequence[int], estimators: Sequence[str]
) -> list[Program]:
    """The plain step and MLC's with every estimator, for every k, on one device."""
    return [_program(config, name, k) for k in num_inner_steps for name in (PLAIN, *estimators)]


def measure(
    programs: Sequence[Program],
    *,
    repeats: int,
    min_seconds: float = _MIN_SECONDS_PER_TIMING,
    show_progress: bool = True,
) -> list[Measurement]:
    """Compiles all programs, then times them in turn.

    Args:
      programs: what to measure. All their states are alive at once.
      repeats: rounds; in each, every program is timed once.
      min_seconds: a program is called often enough in a timing to take about that long.
      show_progress: whether to draw a progress bar.
    """
    total = len(programs) * (1 + repeats)
    with tqdm(total=total, disable=not show_progress, dynamic_ncols=True) as bar:
        timers = []
        for program in programs:
            bar.set_description(f"compiling {program.name}, k = {program.num_inner_steps}")
            timers.append(_Timer(program, min_seconds))
            bar.update()
        bar.set_description("timing")
        seconds = []
        for _ in range(repeats):
            seconds.append([])
            for timer in timers:
                seconds[-1].append(timer.time())
                bar.update()
    columns = np.asarray(seconds).T
    return [timer.measurement(column) for timer, column in zip(timers, columns, strict=True)]


def to_rows(measurements: Iterable[Measurement]) -> list[dict[str, Any]]:
    """Figures an inner step, and against the plain step of the same k.

    The ratio of times is the median over the rounds of the ratio within a round.
    """
    measurements = list(measurements)
    plain = {m.num_inner_steps: m for m in measurements if m.name == PLAIN}
    rows = []
    for m in measurements:
        k, base = m.num_inner_steps, plain[m.num_inner_steps]
        low, median, high = np.percentile(1e3 * m.seconds / k, [25, 50, 75])
        counted = m.flops is not None and base.flops is not None
        rows.append(
            {
                "step": m.name,
                "num_inner_steps": k,
                "ms": median,
                "ms_25_percent": low,
                "ms_75_percent": high,
                "time_ratio": float(np.median(m.seconds / base.seconds)),
                "gflop": m.flops / k / 1e9 if counted else None,
                "flop_ratio": m.flops / base.flops if counted else None,
                "temp_mib": m.temp_bytes / 2**20,
                "compile_seconds": m.compile_seconds,
            }
        )
    return rows


def to_csv(rows: Sequence[dict[str, Any]]) -> str:
    """One row a program; times in milliseconds an inner step."""
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(
        {key: f"{x:.4g}" if isinstance(x, float) else x for key, x in row.items()} for row in rows
    )
    return text.getvalue()


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One row a program."""
    lines = [
        "| k | step | ms an inner step (middle half) | time / plain | GFLOP an inner step "
        "| FLOPs / plain | temp memory, MiB | compile, s |",
        "| ---: | --- |" + " ---: |" * 6,
    ]
    for row in rows:
        gflop, flop_ratio = row["gflop"], row["flop_ratio"]
        cells = [
            str(row["num_inner_steps"]),
            row["step"],
            f"{row['ms']:.3g} ({row['ms_25_percent']:.3g} to {row['ms_75_percent']:.3g})",
            f"{row['time_ratio']:.2f}",
            "-" if gflop is None else f"{gflop:.3g}",
            "-" if flop_ratio is None else f"{flop_ratio:.2f}",
            f"{row['temp_mib']:.3g}" if row["temp_mib"] < 100 else f"{row['temp_mib']:.0f}",
            f"{row['compile_seconds']:.1f}",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def describe(config: ConfigDict) -> str:
    """Model, batch sizes, hardware and version, in one line."""
    model = config.model.name
    if model == "resnet":
        model = f"resnet-{config.model.resnet.depth}"
    return (
        f"{config.dataset.name}, {model} in {config.model.dtype}, noisy batch "
        f"{config.noisy_batch_size}, clean batch {config.clean_batch_size}"
        f"{' (half to each loss)' if config.meta_gradient.mix_clean else ' (to the outer loss)'}; "
        f"one {jax.devices()[0].device_kind} device, {os.cpu_count()} CPU cores, "
        f"jax {jax.__version__}"
    )


def data_wait_share(config: ConfigDict, num_windows: int) -> float:
    """Share of the training loop's time that it waits for its next batch, in [0, 1].

    Runs the config's own pipeline, placement and step as the loop does: one step in flight.
    Compilation and the windows that fill the buffers are left out.
    """
    from mlc_jax import train  # Imports TensorFlow.
    from mlc_jax.data.pipeline import to_devices

    run = train.build(config)
    step = train.create_train_step(run.method)
    sharding = jax.sharding.NamedSharding(
        jax.sharding.Mesh(np.asarray(jax.devices()), (train.AXIS_NAME,)),
        jax.sharding.PartitionSpec(),
    )
    init = jax.jit(lambda: run.method.init(jax.random.key(config.seed)), out_shardings=sharding)
    batches = to_devices(
        run.pipeline.batches(0, num_devices=jax.local_device_count()), jax.local_devices()
    )
    state, metrics = step(init(), next(batches))
    jax.block_until_ready(metrics)
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
    if name != PLAIN:
        config.meta_gradient.estimator = name
    input_shape, num_classes = DATASETS[config.dataset.name]
    scan_unroll = bilevel.resolve_unroll(config.meta_gradient.unroll, num_inner_steps)
    inputs = methods.MethodInputs(
        config=config,
        model=models.create_classifier(config.model, num_classes, axis_name=None),
        normalize=_normalize,
        example_inputs=jnp.zeros((1, *input_shape), jnp.uint8),
        num_classes=num_classes,
        steps_per_epoch=_STEPS_PER_EPOCH,
        num_steps=_STEPS_PER_EPOCH * config.num_epochs,
        scan_unroll=scan_unroll,
        axis_name=None,
    )
    method = _plain(inputs) if name == PLAIN else methods.METHODS["mlc"](inputs)
    return Program(
        name=name,
        num_inner_steps=num_inner_steps,
        step=method.train_step,
        init=lambda: jax.jit(method.init)(jax.random.key(0)),
        batch=_random_batches(config, input_shape, num_classes),
        has_loop=scan_unroll < num_inner_steps,
    )


def _plain(inputs: methods.MethodInputs) -> Method:
    """Cross-entropy on given labels and on the clean half that MLC's inner loss sees."""
    return supervised(inputs, lambda batch: Batch(batch.noisy, batch.clean_inner, None))


def _normalize(inputs: Any) -> Any:
    """As much work as normalising real inputs: `[B, ...]` uint8 to float32 around 0."""
    return (inputs.astype(np.float32) - np.float32(127.5)) / np.float32(74)


def _random_batches(config: ConfigDict, input_shape: tuple[int, ...], num_classes: int) -> Batch:
    """A window of random inputs `[k, B, ...]` and labels `[k, B]`, on the default device."""
    rng, k = np.random.default_rng(0), config.meta_gradient.num_inner_steps

    def examples(size: int) -> Examples:
        inputs = rng.integers(0, 256, (k, size, *input_shape), dtype=np.uint8)
        labels = rng.integers(0, num_classes, (k, size), dtype=np.int32)
        return Examples(jnp.asarray(inputs), jnp.asarray(labels))

    noisy, size = examples(config.noisy_batch_size), config.clean_batch_size
    if config.meta_gradient.mix_clean:
        return Batch(noisy, examples(size // 2), examples(size - size // 2))
    return Batch(noisy, None, examples(size))


class _Timer:
    """A compiled program and its state."""

    def __init__(self, program: Program, min_seconds: float):
        self._program = program
        self._state = program.init()
        start = time.perf_counter()
        lowered = jax.jit(program.step, donate_argnums=0).lower(self._state, program.batch)
        self._step = lowered.compile()
        self._compile_seconds = time.perf_counter() - start
        self._calls = 1
        self.time()  # The first call is slower.
        self._calls = max(1, round(min_seconds / self.time()))

    def time(self) -> float:
        """Seconds a call."""
        jax.block_until_ready(self._state)
        start = time.perf_counter()
        for _ in range(self._calls):
            self._state, _ = self._step(self._state, self._program.batch)
        jax.block_until_ready(self._state)
        return (time.perf_counter() - start) / self._calls

    def measurement(self, seconds: np.ndarray) -> Measurement:
        flops = None if self._program.has_loop else self._step.cost_analysis()["flops"]
        return Measurement(
            self._program.name,
            self._program.num_inner_steps,
            self._compile_seconds,
            self._step.memory_analysis().temp_size_in_bytes,
            flops,
            seconds,
        )


def _data_wait_share(config: ConfigDict, wanted: bool | None, num_windows: int) -> float | None:
    """None where there is nothing to measure and nobody insisted."""
    if wanted is False or (wanted is None and not importlib.util.find_spec("tensorflow")):
        return None
    try:
        return data_wait_share(config, num_windows)
    except InputError as error:
        if wanted:
            raise
        print(f"Waiting for data: not measured. {error}")
        return None


def _parse_num_inner_steps(values: Sequence[str]) -> list[int]:
    try:
        numbers = [int(value) for value in values]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) < 1:
        raise InputError(
            f"--num_inner_steps: got {','.join(values)!r}, expected whole numbers of at least 1, "
            "such as 1,5"
        )
    return numbers


def _check_flags(config: ConfigDict, estimators: Sequence[str]) -> None:
    unknown = [name for name in estimators if name not in ESTIMATORS]
    if unknown or not estimators:
        raise InputError(
            f"--estimators: got {','.join(estimators)!r}, expected some of {', '.join(ESTIMATORS)}"
        )
    for name, value in (("repeats", _REPEATS.value), ("data_windows", _DATA_WINDOWS.value)):
        if value < 1:
            raise InputError(f"--{name}: got {value}, expected at least 1")
    if config.dataset.name not in DATASETS:
        raise InputError(
            f"config.dataset.name: got {config.dataset.name!r}, expected one of "
            f"{', '.join(DATASETS)}"
        )


if __name__ == "__main__":
    command_line.run(main, required=["config", "workdir"])
