"""Compiles the training step for a TPU, without a TPU, and reports its memory and FLOPs.

    python -m experiments.tpu.compile --config=configs/cifar10.py --topology=v5e:2x4 \
        --config.noisy_batch_size=128 --config.clean_batch_size=128 --workdir=DIR

Compiles the pmapped step for all chips of a topology with the TPU's own compiler. That is in libtpu
(`pip install -e '.[tpu]'`, Linux on x86-64), which also works on machines without a TPU. It shows
steps that do not compile for the TPU, or do not fit into a chip's memory. Nothing runs, and only
the compiler is timed; TensorFlow is not needed, nor CIFAR.

It compiles the config's step, or with `--estimators=all --num_inner_steps=1,5` the 22 steps of
all estimators at both k. A ResNet-32 takes two to four minutes each. The tables are written after
every step, and the same command resumes.

Figures are per chip. Temporary memory is what XLA reserves in HBM; it may be zero for a small
model, whose arrays fit into the chip's fast memory. XLA simulates the peak. XLA counts FLOPs: the
body of a loop, such as the k inner steps or a solver's, counts once. So do collectives, the sums
over all chips, given by number and size. JAX_EXEC_TIME_OPTIMIZATION_EFFORT=-1 in the environment
compiles a ResNet several times faster, into another program that takes more memory. Of a BERT's
checkpoint the config.json is enough.
"""

import os

# Set before JAX starts. JAX runs on the CPU, whatever else there is. libtpu would ask the machine
# for its TPU; this answers for it, and any topology compiles with this answer. By default libtpu
# also locks out all other processes that load it. A compilation cache would spoil the times.
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
import dataclasses
import functools
import importlib.metadata
import importlib.util
import re
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from jax.experimental import topologies
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from experiments import tables
from experiments.records import Records, Row, flat_settings
from experiments.speed import programs
from experiments.tables import to_markdown as markdown_table
from experiments.tpu.collectives import collective_bytes
from mlc_jax import build, command_line
from mlc_jax.config import validate
from mlc_jax.core import BACKWARDS, ESTIMATORS
from mlc_jax.errors import InputError, expect
from mlc_jax.methods import METHODS, BilevelMethod
from mlc_jax.training.stack import AXIS_NAME, over_devices
from mlc_jax.workdir.workdir import locked_workdir

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, such as configs/digits.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory for the tables; made if need be.")
_TOPOLOGY = flags.DEFINE_string("topology", "v5e:2x4", "TPU and its chips, as in v5e:2x4.")
_NUM_INNER_STEPS = flags.DEFINE_list(
    "num_inner_steps", [], "Window lengths k; none is the config's."
)
_ESTIMATORS = flags.DEFINE_list(
    "estimators",
    [],
    "Meta-gradients to compile: all, or some; exact:remat is exact with that backward; none is the "
    "config's.",
)

_EFFORT = "JAX_EXEC_TIME_OPTIMIZATION_EFFORT"

# Each estimator once, and exact with each backward pass.
ALL_STEPS = (
    *(f"exact:{backward}" for backward in BACKWARDS),
    *(name for name in ESTIMATORS if name != "exact"),
)
STEPS = ("exact", *ALL_STEPS)  # exact alone has the config's backward.
FIGURES = (
    "argument_mib", "output_mib", "temp_mib", "peak_mib", "program_mib", "gflop", "collectives",
    "collective_mib",
)  # fmt: skip
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
    "collectives": "{collectives:.0f}",
    "of these, MiB": "{collective_mib:.2f}",
    "compile, s": "{compile_seconds:.1f}",
}


def main() -> None:
    config = _CONFIG.value
    num_inner_steps, steps, chips = _check_flags(config)
    with locked_workdir(_WORKDIR.value) as workdir:
        setting = describe(config, chips)
        effort = {_EFFORT: os.environ.get(_EFFORT, "")}
        records = Records(workdir / "tpu.jsonl", flat_settings(config) | setting | effort)
        rows: list[Row] = []
        grid = [(k, step) for k in num_inner_steps for step in steps]
        for k, step in tqdm(grid, desc="compiling", unit="step", dynamic_ncols=True):
            compiled = functools.partial(compile_step, config, step, k, chips)
            rows += records.get({"num_inner_steps": k, "step": step}, compiled)
            text = _write_tables(workdir, setting, rows)
    print(text)


def _write_tables(workdir: epath.Path, setting: dict[str, Any], rows: list[Row]) -> str:
    """Returns the text of `tpu.md`, with the compiler's message for steps that do not fit."""
    notes = [f"k = {r['num_inner_steps']}, {r['step']}: {r['note']}\n" for r in rows if r["note"]]
    text = ", ".join(f"{name} {value}" for name, value in setting.items())
    text += "\n\n".join(["", to_markdown(rows), *notes])
    figures = [{name: x for name, x in row.items() if name != "note"} for row in rows]
    tables.write(workdir, "tpu", [setting | row for row in figures], text)
    return text


def compile_step(
    config: ConfigDict, step: str, num_inner_steps: int, chips: Sequence[Any]
) -> list[Row]:
    """Compiles one training step.

    Args:
      config: of the run; the next two override it.
      step: one of STEPS.
      num_inner_steps: k.
      chips: all devices of the topology.

    Returns:
      The row of the table. If the step does not fit, its figures are NaN, and `note` is the
      compiler's message.
    """
    config = copy.deepcopy(config)
    config.meta_gradient.update(programs.settings(step))
    config.meta_gradient.num_inner_steps = num_inner_steps
    # 0 chooses by the platform that jax runs on, which is not the one that is compiled for.
    config.meta_gradient.unroll = config.meta_gradient.unroll or 1
    pool = programs.load_pool(config)
    # A checkpoint's weights change nothing: its config.json will do.
    method = build.create_method(config, pool.num_classes)
    method = dataclasses.replace(method, initial_params=None)
    bound = programs.bind(method, pool, AXIS_NAME)
    pmapped = over_devices(bound.train_step, donate=True, devices=list(chips))
    state = jax.eval_shape(lambda: bound.init(jax.random.key(0), pool.example))
    figures = dict.fromkeys(FIGURES, np.nan)
    start, note = time.perf_counter(), ""
    shapes = programs.batch_shapes(
        config, pool, takes_votes=method.takes_votes, num_devices=len(chips)
    )
    lowered = pmapped.lower(state, shapes)
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        note = str(error).splitlines()[0]
    else:
        memory, flops = compiled.memory_analysis(), compiled.cost_analysis()["flops"]
        figures |= {
            "argument_mib": memory.argument_size_in_bytes / 2**20,
            "output_mib": memory.output_size_in_bytes / 2**20,
            "temp_mib": memory.temp_size_in_bytes / 2**20,
            "peak_mib": memory.peak_memory_in_bytes / 2**20,
            "program_mib": memory.generated_code_size_in_bytes / 2**20,
            "gflop": flops / 1e9,
        }
        sizes = collective_bytes(compiled.as_text())
        figures |= {"collectives": len(sizes), "collective_mib": sum(sizes) / 2**20}
    row = {"num_inner_steps": num_inner_steps, "step": step, "fits": "no" if note else "yes"}
    return [row | figures | {"compile_seconds": time.perf_counter() - start, "note": note}]


def describe(config: ConfigDict, chips: Sequence[Any]) -> dict[str, Any]:
    """The step, chips and version."""
    return programs.describe_step(config) | {
        "topology": _TOPOLOGY.value,
        "device": f"{len(chips)} {chips[0].device_kind}",
        "jax": jax.__version__,
        "libtpu": _libtpu_version(),
    }


def _libtpu_version() -> str:
    try:
        return importlib.metadata.version("libtpu")
    except importlib.metadata.PackageNotFoundError:
        return os.environ["TPU_LIBRARY_PATH"]


def to_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """One line per step."""
    body = [[cell.format(**row).replace("nan", "-") for cell in _COLUMNS.values()] for row in rows]
    return markdown_table(list(_COLUMNS), body, text_columns=(1, 2))


def _check_flags(config: ConfigDict) -> tuple[list[int], list[str], list[Any]]:
    """Raises InputError, or returns the values of k, the steps, and the topology's devices."""
    validate(config)
    windows = _NUM_INNER_STEPS.value or [str(config.meta_gradient.num_inner_steps)]
    steps = _ESTIMATORS.value or [config.meta_gradient.estimator]
    lengths = programs.whole_numbers("--num_inner_steps", windows)
    ok = set(steps) <= {"all", *STEPS}
    expect(ok, "--estimators", ",".join(steps), f"all or some of {', '.join(STEPS)}")
    bilevel = issubclass(METHODS[config.method], BilevelMethod)
    expect(bilevel, "config.method", config.method, "one that has a meta-gradient, such as mlc")
    chips = _chips(_TOPOLOGY.value)
    validate(config, num_devices=len(chips))
    steps = [name for step in steps for name in (ALL_STEPS if step == "all" else [step])]
    return lengths, list(dict.fromkeys(steps)), chips


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


if __name__ == "__main__":
    command_line.run(main, required=["config", "workdir"])
