"""What the training step would take of a TPU, found out without one.

    python -m experiments.tpu.compile --config=configs/cifar10.py --topology=v5e:2x4 \
        --estimators=exact:store,exact:forward_over_reverse --num_inner_steps=1,5 --workdir=DIR \
        --config.noisy_batch_size=128 --config.clean_batch_size=128

Compiles the pmapped step for all chips of a topology with the TPU's own compiler, which libtpu
(`pip install -e '.[tpu]'`, Linux on x86-64) brings to a machine without one: a step that does not
compile there, or does not fit into a chip's memory, shows it here. Nothing runs and nothing is
timed but the compiler; data and TensorFlow are not needed. The tables are written anew after every
step, for a ResNet takes minutes a step.

Figures are a chip's. Temporary memory is what XLA sets aside in HBM: none at all, maybe, for a
small model, whose arrays fit into the chip's fast memory. The peak is as XLA simulates it. FLOPs
are as XLA counts them: the body of a loop, such as the k inner steps or a solver's, counts once.
JAX_EXEC_TIME_OPTIMIZATION_EFFORT=-1 in the environment compiles a ResNet several times faster, into
another program that takes more memory.
"""

import os

# Before JAX starts: on the CPU, whatever else there is. libtpu would ask the machine which TPU it
# is part of; it is told, and any topology compiles with this answer. Left to itself it also locks
# out all other processes that load it. A compilation cache would spoil the times.
os.environ |= {
    "JAX_PLATFORMS": "cpu",
    "JAX_ENABLE_COMPILATION_CACHE": "false",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
}

import copy
import importlib.util
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from jax.experimental import topologies
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from experiments.costs import DATASETS, method_inputs, settings
from experiments.tables import to_csv
from mlc_jax import command_line, methods
from mlc_jax.bilevel import BACKWARDS, Batch, Examples
from mlc_jax.errors import InputError, expect
from mlc_jax.meta_gradients import ESTIMATORS
from mlc_jax.methods import Method
from mlc_jax.parallel import AXIS_NAME, over_devices

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, such as configs/digits.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory for the tables; made if need be.")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x4", "TPU and its chips, as in v5e:2x4.")
_NUM_INNER_STEPS = flags.DEFINE_list("num_inner_steps", ["1", "5"], "Window lengths k.")
_ESTIMATORS = flags.DEFINE_list(
    "estimators", ["all"], "Meta-gradients to compile; exact:remat is exact with that backward."
)

# Each estimator once, and exact with each way back.
ALL_STEPS = (
    *(f"exact:{backward}" for backward in BACKWARDS),
    *(name for name in ESTIMATORS if name != "exact"),
)
STEPS = ("exact", *ALL_STEPS)  # exact alone has the config's backward.
FIGURES = ("argument_mib", "output_mib", "temp_mib", "peak_mib", "program_mib", "gflop")
_COLUMNS = {
    "k": "{num_inner_steps}",
    "step": "{step}",
    "fits": "{fits}",
    "arguments, MiB": "{argument_mib:.2f}",
    "results, MiB": "{output_mib:.2f}",
    "temp memory, MiB": "{temp_mib:.2f}",
    "peak, MiB": "{peak_mib:.2f}",
    "program, MiB": "{program_mib:.1f}",
    "GFLOP (a loop's body once)": "{gflop:.3g}",
    "compile, s": "{compile_seconds:.1f}",
}


def main() -> None:
    config = _CONFIG.value
    num_inner_steps, steps, chips = _check_flags(config)
    workdir = epath.Path(_WORKDIR.value).expanduser().resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    setting, rows, notes, text = describe(config, chips), [], [], ""
    grid = [(k, step) for k in num_inner_steps for step in steps]
    for k, step in tqdm(grid, desc="compiling", unit="step", dynamic_ncols=True):
        row, note = compile_step(config, step, k, chips)
        rows.append(row)
        notes += [f"k = {k}, {step}: {note}\n"] if note else []
        text = ", ".join(f"{name} {value}" for name, value in setting.items())
        text += "\n\n".join(["", to_markdown(rows), *notes])
        workdir.joinpath("tpu.csv").write_text(to_csv([setting | row for row in rows]))
        workdir.joinpath("tpu.md").write_text(text)
    print(text)


def compile_step(
    config: ConfigDict, step: str, num_inner_steps: int, chips: Sequence[Any]
) -> tuple[dict[str, Any], str]:
    """Compiles one training step.

    Args:
      config: of the run, but for what the next two say.
      step: one of STEPS.
      num_inner_steps: k.
      chips: all devices of the topology.

    Returns:
      A row of the table; figures are NaN if the step does not fit. What the compiler says then.
    """
    config = copy.deepcopy(config)
    config.meta_gradient.update(settings(step))
    config.meta_gradient.num_inner_steps = num_inner_steps
    # 0 chooses by the platform that jax runs on, which is not the one that is compiled for.
    config.meta_gradient.unroll = config.meta_gradient.unroll or 1
    method = create_method(config)
    pmapped = over_devices(method.train_step, donate=True, devices=list(chips))
    state = jax.eval_shape(lambda: method.init(jax.random.key(0)))
    figures = dict.fromkeys(FIGURES, np.nan)
    start, note = time.perf_counter(), ""
    lowered = pmapped.lower(state, batch_shapes(config, len(chips)))
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        note = str(error).splitlines()[0]
    else:
        memory, costs = compiled.memory_analysis(), compiled.cost_analysis()
        figures |= {
            "argument_mib": memory.argument_size_in_bytes / 2**20,
            "output_mib": memory.output_size_in_bytes / 2**20,
            "temp_mib": memory.temp_size_in_bytes / 2**20,
            "peak_mib": memory.peak_memory_in_bytes / 2**20,
            "program_mib": memory.generated_code_size_in_bytes / 2**20,
            "gflop": costs["flops"] / 1e9,
        }
    row = {"num_inner_steps": num_inner_steps, "step": step, "fits": "no" if note else "yes"}
    return row | figures | {"compile_seconds": time.perf_counter() - start}, note


def create_method(config: ConfigDict) -> Method:
    """The config's method, built from shapes alone."""
    return methods.METHODS[config.method](method_inputs(config, AXIS_NAME))


def batch_shapes(config: ConfigDict, num_chips: int) -> Batch:
    """Shapes of a window's batches as the loop hands them over: `[chips, k, B / chips, ...]`."""
    input_shape, _ = DATASETS[config.dataset.name]
    num_inner_steps = config.meta_gradient.num_inner_steps

    def examples(size: int) -> Examples:
        lead = (num_chips, num_inner_steps, size // num_chips)
        inputs = jax.ShapeDtypeStruct((*lead, *input_shape), jnp.uint8)
        return Examples(inputs, jax.ShapeDtypeStruct(lead, jnp.int32))

    noisy, size = examples(config.noisy_batch_size), config.clean_batch_size
    if config.meta_gradient.mix_clean:
        return Batch(noisy, examples(size // 2), examples(size // 2))
    return Batch(noisy, None, examples(size))


def describe(config: ConfigDict, chips: Sequence[Any]) -> dict[str, Any]:
    """Model, batch sizes, chips and version."""
    name = config.model.name
    return {
        "dataset": config.dataset.name,
        "model": f"resnet-{config.model.resnet.depth}" if name == "resnet" else name,
        "dtype": config.model.dtype,
        "noisy batch": config.noisy_batch_size,
        "clean batch": config.clean_batch_size,
        "mix clean": config.meta_gradient.mix_clean,
        "topology": _TOPOLOGY.value,
        "device": f"{len(chips)} {chips[0].device_kind}",
        "jax": jax.__version__,
    }


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One line a step."""
    lines = [list(_COLUMNS), ["---:", "---", "---"] + ["---:"] * (len(_COLUMNS) - 3)]
    for row in rows:
        lines.append([cell.format(**row).replace("nan", "-") for cell in _COLUMNS.values()])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _check_flags(config: ConfigDict) -> tuple[list[int], list[str], list[Any]]:
    """Raises InputError, or returns the values of k, the steps, and the topology's devices."""
    windows, steps, dataset = _NUM_INNER_STEPS.value, _ESTIMATORS.value, config.dataset.name
    ok = windows and all(value.isdecimal() and int(value) for value in windows)
    expect(ok, "--num_inner_steps", ",".join(windows), "whole numbers from 1, as in 1,5")
    ok = steps and set(steps) <= {"all", *STEPS}
    expect(ok, "--estimators", ",".join(steps), f"all or some of {', '.join(STEPS)}")
    expect(dataset in DATASETS, "config.dataset.name", dataset, f"one of {', '.join(DATASETS)}")
    bilevel = config.method in methods.METHODS and create_method(config).window
    expect(bilevel, "config.method", config.method, "one that has a meta-gradient, such as mlc")
    chips = _chips(_TOPOLOGY.value)
    _check_batches(config, len(chips))
    steps = [name for step in steps for name in (ALL_STEPS if step == "all" else [step])]
    return [int(value) for value in windows], list(dict.fromkeys(steps)), chips


def _chips(topology: str) -> list[Any]:
    """The devices of a topology, all as if of one host: the program is the same on each."""
    expected = "a TPU and its chips, such as v5e:1x1, v5e:2x4 or v6e:4x4"
    name = re.fullmatch(r"\w+:(\d+(?:x\d+){1,2})", topology)
    expect(name, "--topology", topology, expected)
    bounds = [int(size) for size in name.group(1).split("x")] if name else []
    if "TPU_LIBRARY_PATH" not in os.environ and importlib.util.find_spec("libtpu") is None:
        raise InputError("libtpu, the TPU's compiler, is not installed: pip install -e '.[tpu]'")
    try:
        description = topologies.get_topology_desc(
            platform="tpu", topology_name=topology, chips_per_host_bounds=(*bounds, 1)[:3]
        )
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"--topology: got {topology!r}, expected {expected}: {reason}") from error
    return list(description.devices)


def _check_batches(config: ConfigDict, num_chips: int) -> None:
    """Worded as in `mlc_jax.validation`, which TensorFlow would come with."""
    problems = []
    for field, parts in (
        ("noisy_batch_size", 1),
        ("clean_batch_size", 2 if config.meta_gradient.mix_clean else 1),
    ):
        size, per = config[field], parts * num_chips
        if size <= 0 or size % per:
            halves = f"two halves, {num_chips} devices" if parts == 2 else f"{num_chips} devices"
            problems.append(
                f"config.{field}: got {size}, expected a positive multiple of {per} ({halves}), "
                f"such as {per * max(1, round(size / per))}"
            )
    if problems:
        raise InputError("\n".join(problems))


if __name__ == "__main__":
    command_line.run(main, required=["config", "workdir"])
