"""The cost of an MLC step, compared with a plain step: time, memory, FLOPs, waiting for data.

    python -m experiments.speed.benchmark --config=configs/digits.py --workdir=DIR \
        --num_inner_steps=1,5 --estimators=exact,exact:store,approximate --repeats=10

`programs` defines the steps, `costs` measures them: an MLC window of k steps is compared with a
window of k plain steps. `exact:store` is exact with `meta_gradient.backward=store`; without a colon
the config's setting is used. Steps are timed in turn (plain, exact, approximate, plain, ...), so
that other work on the machine affects all alike: on a shared machine only the ratios mean
something. Each k is written to `benchmark.jsonl` as soon as it is measured, and the same command
resumes. Only the wait for pictures needs TensorFlow.
"""

import time

import jax
from absl import flags
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from experiments import tables
from experiments.records import Records, flat_settings
from experiments.speed import costs, programs
from mlc_jax import command_line
from mlc_jax.config import validate
from mlc_jax.core import ESTIMATORS
from mlc_jax.errors import InputError, expect
from mlc_jax.workdir.workdir import locked_workdir

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, such as configs/digits.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory for the tables; made if need be.")
_NUM_INNER_STEPS = flags.DEFINE_list("num_inner_steps", ["1", "5"], "Window lengths k.")
_ESTIMATORS = flags.DEFINE_list(
    "estimators", list(ESTIMATORS), "What to measure, with :backward or without."
)
_REPEATS = flags.DEFINE_integer(
    "repeats", 10, "Timings of every step; 0 analyses alone.", lower_bound=0
)
_DATA = flags.DEFINE_bool("data", True, "Measure the wait for data, if they are there.")

_DATA_WINDOWS = 50


def main() -> None:
    config = _CONFIG.value
    num_inner_steps = _check_flags(config)
    with locked_workdir(_WORKDIR.value) as workdir:
        setting = programs.describe(config) | {"repeats": _REPEATS.value}
        settings = flat_settings(config) | setting | {"--estimators": _ESTIMATORS.value}
        rows = costs.measure_lengths(
            config, num_inner_steps, _ESTIMATORS.value, repeats=_REPEATS.value,
            records=Records(workdir / "benchmark.jsonl", settings),
        )  # fmt: skip
        text = ", ".join(f"{name} {value}" for name, value in setting.items())
        text += f"\n\n{costs.to_markdown(rows)}{_wait_line(config) if _DATA.value else ''}"
        tables.write(workdir, "benchmark", [setting | row for row in rows], text)
        print(text)


def data_wait_share(config: ConfigDict, num_windows: int = _DATA_WINDOWS) -> float:
    """Share of the training loop's time that it waits for its next batch, in [0, 1].

    Runs the config's pipeline, placement and step as the loop does: one step in flight. The first
    window, with compilation and the filling of the buffers, is left out.
    """
    from mlc_jax.data.loader import Pipeline, to_devices
    from mlc_jax.training.run import build_run, initial_state
    from mlc_jax.training.stack import over_devices

    validate(config, num_devices=jax.device_count())
    run = build_run(config)
    assert isinstance(run.pipeline, Pipeline)
    arrays = run.pipeline.batches(0, num_devices=jax.local_device_count())
    batches = to_devices(arrays, jax.local_devices())
    step = over_devices(run.bound.train_step, donate=True)
    state, metrics = jax.block_until_ready(step(initial_state(run), next(batches)))
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


def _wait_line(config: ConfigDict) -> str:
    try:
        share = data_wait_share(config)
    except (ImportError, InputError) as error:
        return f"\nWaiting for data: not measured. {error}\n"
    return f"\nWaiting for data: {share:.1%} of the time of {_DATA_WINDOWS} windows.\n"


def _check_flags(config: ConfigDict) -> list[int]:
    """Raises InputError, or returns the values of k."""
    validate(config, num_devices=1)  # Programs are timed on one.
    estimators = _ESTIMATORS.value
    lengths = programs.whole_numbers("--num_inner_steps", _NUM_INNER_STEPS.value)
    expect(estimators, "--estimators", "", f"some of {', '.join(programs.STEPS)}")
    programs.check_steps(config, lengths, estimators)
    return lengths


if __name__ == "__main__":
    command_line.run(main, required=["config", "workdir"])
