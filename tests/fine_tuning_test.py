"""An encoder that is trained, on batches of like length: killed, on many devices, in a stack."""

import csv
import os
import pathlib
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from configs import text
from mlc_jax.commands import train
from mlc_jax.report import report
from mlc_jax.training import stack
from mlc_jax.training.run import build_run
from mlc_jax.workdir import checkpoint

ROOT = pathlib.Path(__file__).parents[1]
NUM_STEPS = 12  # 6 an epoch.
PATIENCE = 240  # Seconds until a run that shows no progress has failed the test.


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Texts of 4 to 22 tokens, most of them short, whose first word tells the label."""
    directory = tmp_path_factory.mktemp("files")
    rng = np.random.default_rng(0)
    paths = {}
    for name, size in (("noisy", 96), ("clean", 16), ("test", 32)):
        paths[name] = str(directory / f"{name}.csv")
        with open(paths[name], "w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            for i in range(size):
                label = "good" if i % 2 else "bad"
                length = rng.integers(1, 5) if rng.random() < 0.8 else rng.integers(15, 20)
                writer.writerow([f"{label} {' '.join(rng.choice(list('abc'), length))}", label])
    return paths


@pytest.fixture
def fields(files, tiny_bert, tmp_path):
    """Settings of a small run."""
    return {f"dataset.{name}": path for name, path in files.items()} | {
        "dataset.max_length": 24, "dataset.cache_dir": str(tmp_path / "cache"),
        "model.bert.checkpoint": str(tiny_bert), "noisy_batch_size": 16, "clean_batch_size": 16,
        "num_epochs": 2, "lcn.hidden_size": 8, "lcn.embedding_size": 8, "log_every_steps": 1,
        "meta_optimizer.name": "amsgrad", "meta_optimizer.learning_rate": 1e-2,
    }  # fmt: skip


def _config(fields, **changes):
    config = text.get_config("finetuned")
    config.update_from_flattened_dict(fields | changes)
    return config


def _length(batch):
    """That noisy examples are padded to; there are too few clean ones for more than one."""
    return batch.noisy.inputs["input_ids"].shape[-1]


def _soft_labels(workdir):
    with np.load(workdir / report.SOFT_LABELS_FILE) as arrays:
        return arrays["soft_label"]


@pytest.mark.slow
def test_killed_and_resumed_bit_equal(fields, tmp_path, standard_promotion):
    """With dropout, whose mask is that of a batch's padded length."""
    fields = fields | {"checkpoint_every_steps": 2}
    config = _config(fields)
    run = build_run(config)
    batches = run.pipeline.batches(0)
    assert len({_length(next(batches)) for _ in range(NUM_STEPS)}) > 1
    assert run.method.model.config.dropout_rate > 0
    train.train_and_evaluate(config, str(tmp_path / "whole"), show_progress=False)

    flags = [f"--config.{name}={value}" for name, value in fields.items()]
    command = [sys.executable, "-m", "mlc_jax.main", "--config=configs/text.py:finetuned", *flags]
    workdir = tmp_path / "killed"
    process = subprocess.Popen(
        [*command, "--noprogress", f"--workdir={workdir}"], cwd=ROOT, env=os.environ.copy(),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + PATIENCE
        while not checkpoint.finished_steps(workdir / checkpoint.DIRECTORY):
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < deadline
            time.sleep(0.002)
    finally:
        process.kill()
        process.communicate()
    assert not (workdir / report.RESULTS_FILE).exists()
    train.train_and_evaluate(config, str(workdir), show_progress=False)
    for name in (report.CORRECTED_FILE, report.SOFT_LABELS_FILE):
        assert (workdir / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.slow
def test_the_device_count_does_not_change_the_update(fields):
    """Without dropout, whose keys differ by device; Adam would blow up gradients that are 0."""
    changes = {"main_optimizer.name": "sgd", "main_optimizer.learning_rate": 0.05}
    changes |= {"model.bert.dropout_rate": 0.0, "meta_gradient.num_inner_steps": 2}
    run = build_run(_config(fields, **changes, **{"meta_gradient.unroll": 1}))
    ends, lengths = {}, {}
    for num_devices in (1, 2, 8):
        devices = jax.devices()[:num_devices]
        step = stack.over_devices(run.bound.phases[0].train_step, donate=True, devices=devices)
        replicated = NamedSharding(Mesh(np.asarray(devices), ("batch",)), PartitionSpec())
        init = jax.jit(run.bound.init, out_shardings=replicated)
        state = init(jax.random.key(0), run.example)
        batches = run.pipeline.batches(0, num_devices=num_devices)
        lengths[num_devices] = []
        for _ in range(4):
            batch = next(batches)
            lengths[num_devices].append(_length(batch))
            state, metrics = step(state, batch)
            jax.block_until_ready(state)  # Many fake devices on few cores time out otherwise.
        ends[num_devices] = jax.device_get((state.main.params, state.meta.params, metrics))
    assert lengths[1] == lengths[2] == lengths[8] and len(set(lengths[1])) > 1
    for num_devices in (2, 8):
        jax.tree.map(
            lambda x, y: np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-6),
            ends[num_devices],
            ends[1],
        )


@pytest.mark.slow
@pytest.mark.parametrize(("dropout_rate", "length_buckets"), [(0.0, 2), (0.1, 1)])
def test_runs_of_one_program_are_what_they_are_alone(
    fields, tmp_path, dropout_rate, length_buckets, standard_promotion
):
    """With several lengths a stack is padded to the longest of its runs, and dropout differs."""
    changes = {"model.bert.dropout_rate": dropout_rate, "length_buckets": length_buckets}
    configs = {
        str(tmp_path / f"together{seed}"): _config(fields, **changes, seed=seed) for seed in (0, 1)
    }
    together = train.train_together(configs, show_progress=False)
    ends = []
    for seed, (workdir, config) in enumerate(configs.items()):
        alone = train.train_and_evaluate(config, str(tmp_path / f"{seed}"), show_progress=False)
        ends.append(_soft_labels(pathlib.Path(workdir)))
        np.testing.assert_allclose(ends[-1], _soft_labels(tmp_path / f"{seed}"), atol=2e-3)
        accuracy = together[workdir]["last_test_accuracy"]
        assert accuracy == pytest.approx(alone["last_test_accuracy"], abs=0.02)
    assert np.abs(ends[0] - ends[1]).max() > 0.02


@pytest.mark.slow
def test_the_benchmark_of_lengths(fields, tmp_path, run_program, standard_promotion):
    settings = fields | {"method": "clean_only", "noisy_batch_size": 8, "clean_batch_size": 16}
    flags = [f"--config.{name}={value}" for name, value in settings.items()]
    code, out, err = run_program(
        "experiments.speed.length_benchmark", f"--config={ROOT / 'configs' / 'text.py'}:finetuned",
        *flags, "--length_buckets=1,2", "--rounds=1", f"--workdir={tmp_path / 'out'}",
    )  # fmt: skip
    assert code == 0, err
    assert out.strip().endswith((tmp_path / "out" / "length_benchmark.md").read_text().strip())
    with (tmp_path / "out" / "length_benchmark.csv").open() as lines:
        one, two = csv.DictReader(lines)
    assert (one["programs"], two["programs"]) == ("1", "2")
    assert float(two["padding"]) < float(one["padding"])
    assert float(one["speedup"]) == 1 and float(two["tokens_per_second"]) > 0
