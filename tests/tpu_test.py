"""Every training step compiles for a TPU; no TPU is needed for it, but libtpu is."""

import csv
import importlib.util
import os
import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from experiments.tpu.collectives import collective_bytes
from mlc_jax.core import BACKWARDS, ESTIMATORS

pytestmark = pytest.mark.slow

ROOT = pathlib.Path(__file__).parents[1]
TIMEOUT = 900  # Seconds; the ResNet takes a minute or two.
NUM_CHIPS = 8  # Of v5e:2x4.
ALL_STEPS = {f"exact:{backward}" for backward in BACKWARDS} | set(ESTIMATORS) - {"exact"}
COMPILE = "experiments.tpu.compile"

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install -e '.[test-all]'",
)


def _run(command):
    # The suite's XLA_FLAGS are for the CPU; TPU_LIBRARY_PATH is set wherever libtpu was imported.
    left_out = ("XLA_FLAGS", "TPU_LIBRARY_PATH")
    env = {name: value for name, value in os.environ.items() if name not in left_out}
    return subprocess.run(
        [sys.executable, *command], env=env, cwd=ROOT, capture_output=True, text=True,
        timeout=TIMEOUT,
    )  # fmt: skip


def _command(workdir, noisy, clean, *args):
    sizes = [f"--config.noisy_batch_size={noisy}", f"--config.clean_batch_size={clean}"]
    return ["--config=configs/digits.py", f"--workdir={workdir}", *sizes, *args]


def _rows(workdir, noisy, clean, *args):
    """step -> its row of the table."""
    result = _run(["-m", COMPILE, *_command(workdir, noisy, clean, *args)])
    assert result.returncode == 0, result.stderr[-3000:]
    assert (workdir / "tpu.md").read_text() in result.stdout
    with (workdir / "tpu.csv").open() as lines:
        rows = {row["step"]: row for row in csv.DictReader(lines)}
    assert all(row["device"] == f"{NUM_CHIPS} TPU v5 lite" for row in rows.values())
    return rows


def _record(record_property, rows):
    for step, row in rows.items():
        for name in ("temp_mib", "peak_mib", "gflop", "compile_seconds"):
            record_property(f"{step} {name}", float(row[name]))


@needs_libtpu
def test_every_step_compiles(tmp_path, record_property):
    rows = _rows(tmp_path, 128, 64, "--num_inner_steps=2", "--estimators=all")
    assert rows.keys() == ALL_STEPS
    _record(record_property, rows)
    for step, row in rows.items():
        assert row["fits"] == "yes", step
        assert float(row["gflop"]) > 0, step
        assert float(row["collectives"]) > 0 and float(row["collective_mib"]) > 0, step
        assert float(row["peak_mib"]) > float(row["argument_mib"]) > 0, step
        assert float(row["temp_mib"]) >= 0, step  # A model this small may need none.
    # Two steps are counted as one, but the backward pass as well.
    assert float(rows["exact:remat"]["gflop"]) > float(rows["exact:store"]["gflop"])


@needs_libtpu
def test_a_resnet_compiles(tmp_path, record_property):
    rows = _rows(
        tmp_path, 128, 64, "--config.model.name=resnet", "--config.model.resnet.depth=8",
        "--num_inner_steps=1", "--estimators=exact",
    )  # fmt: skip
    _record(record_property, rows)
    assert float(rows["exact"]["gflop"]) > 0 and float(rows["exact"]["peak_mib"]) > 0


@needs_libtpu
def test_bfloat16_compiles(tmp_path):
    args = ("--num_inner_steps=2", "--estimators=exact", "--config.model.dtype=bfloat16")
    rows = _rows(tmp_path, 128, 64, *args)
    assert rows.keys() == {"exact"}
    assert rows["exact"]["dtype"] == "bfloat16"


@needs_libtpu
def test_a_step_that_does_not_fit_is_a_row_of_the_table(tmp_path):
    rows = _rows(tmp_path, 2**28, 64, "--num_inner_steps=1", "--estimators=one_step")
    assert rows["one_step"]["fits"] == "no"
    assert rows["one_step"]["temp_mib"] == "nan"
    assert "k = 1, one_step: RESOURCE_EXHAUSTED: " in (tmp_path / "tpu.md").read_text()


@needs_libtpu
def test_batches_that_the_chips_cannot_share_get_a_line_each(tmp_path):
    workdir = tmp_path / "out"
    result = _run(["-m", COMPILE, *_command(workdir, 100, 50)])
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "error: config.noisy_batch_size: got 100, expected a positive multiple of 8 (8 devices)",
        "config.clean_batch_size: got 50, expected a positive multiple of 16 (two halves, "
        "8 devices)",
    ]
    assert not workdir.exists()


# A compiler that takes no time and is stopped after some steps.
FAKE = """
import sys, types
from experiments.tpu import compile as program
from mlc_jax import command_line

left = int(sys.argv.pop(1))

def compile_step(config, step, k, chips):
    global left
    left -= 1
    if left < 0:
        raise OSError("stopped")
    print("compiled", k, step)
    figures = dict.fromkeys((*program.FIGURES, "compile_seconds"), 1.0)
    return [{"num_inner_steps": k, "step": step, "fits": "yes", **figures, "note": ""}]

program.compile_step = compile_step
program._chips = lambda topology: [types.SimpleNamespace(device_kind="TPU")] * 8
program._libtpu_version = lambda: "1.0"
command_line.run(program.main, required=["config", "workdir"])
"""


def _compiled(result):
    return [line for line in result.stdout.splitlines() if line.startswith("compiled")]


def test_the_step_is_the_configs_unless_others_are_asked_for(tmp_path):
    result = _run(["-c", FAKE, "99", *_command(tmp_path, 128, 64)])
    assert result.returncode == 0, result.stderr
    assert _compiled(result) == ["compiled 1 exact"]


def test_it_goes_on_where_it_was_stopped(tmp_path):
    steps = ("--num_inner_steps=1,5", "--estimators=exact:store,approximate")
    result = _run(["-c", FAKE, "3", *_command(tmp_path, 128, 64, *steps)])
    assert (result.returncode, len(_compiled(result))) == (3, 3), result.stderr
    with (tmp_path / "tpu.csv").open() as lines:
        assert len(list(csv.DictReader(lines))) == 3
    result = _run(["-c", FAKE, "99", *_command(tmp_path, 128, 64, *steps)])
    assert _compiled(result) == ["compiled 5 approximate"]
    with (tmp_path / "tpu.csv").open() as lines:
        rows = [(row["num_inner_steps"], row["step"]) for row in csv.DictReader(lines)]
    assert rows == [(k, step) for k in "15" for step in ("exact:store", "approximate")]
    result = _run(["-c", FAKE, "99", *_command(tmp_path, 256, 64, *steps)])
    assert result.returncode == 2
    assert "was measured with other settings" in result.stderr
    assert "config.noisy_batch_size: 128 before, 256 now" in result.stderr


def test_without_libtpu_there_is_one_line_and_tensorflow_is_not_imported(tmp_path):
    code = (
        "import runpy, sys\n"
        "sys.modules['libtpu'] = None\n"
        "try:\n"
        f"    runpy.run_module({COMPILE!r}, run_name='__main__', alter_sys=True)\n"
        "finally:\n"
        "    assert 'tensorflow' not in sys.modules\n"
    )
    workdir = tmp_path / "out"
    result = _run(["-c", code, *_command(workdir, 128, 64)])
    assert result.returncode == 2
    want = "error: libtpu, the TPU's compiler, is not installed: pip install -e '.[tpu]'\n"
    assert result.stderr == want
    assert not workdir.exists()


def test_collectives_are_counted_with_what_they_sum():
    """Of a program of eight devices, and as the TPU's compiler writes them."""

    def step(x):
        return jax.lax.psum(x, "i"), jax.lax.all_gather(x[0], "i")

    program = jax.pmap(step, "i").lower(jnp.zeros((8, 16, 3))).compile().as_text()
    assert sorted(collective_bytes(program)) == [8 * 3 * 4, 16 * 3 * 4]
    program = (
        "  %all-reduce.1 = (f32[16,10]{1,0:T(8,128)}, pred[4]{0}, f32[]{:T(128)}) all-reduce(%a)\n"
        "  %all-gather.2 = bf16[8,5]{1,0} all-gather(%b), dimensions={0}\n"
        "  ROOT %all-reduce-start.3 = s32[] all-reduce-start(%c)\n"
        "  %all-reduce-done.3 = s32[] all-reduce-done(%all-reduce-start.3)\n"
    )
    assert collective_bytes(program) == [16 * 10 * 4 + 4 + 4, 8 * 5 * 2, 4]
