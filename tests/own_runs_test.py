"""Whole runs on a user's own files: killed and resumed, the same from every kind of file."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pandas
import pytest

from mlc_jax.benchmarks.images import digits
from mlc_jax.commands import train
from mlc_jax.workdir import checkpoint

ROOT = pathlib.Path(__file__).parents[1]
PATIENCE = 120  # Seconds until a run that shows no progress has failed the test.
FIELDS = {
    "method": "mlc", "model.mlp.hidden_sizes": (32, 16), "lcn.hidden_size": 16,
    "lcn.embedding_size": 16, "noisy_batch_size": 64, "clean_batch_size": 32, "num_epochs": 4,
    "eval_every_epochs": 1, "log_every_steps": 3, "checkpoint_every_steps": 2, "compare": False,
}  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Digits with every third label wrong, every seventh checked: `.npz`, `.npy` and `.csv`."""
    path, benchmark = tmp_path_factory.mktemp("own"), digits()
    inputs = benchmark.train.inputs.reshape(-1, 64) / np.float32(16)
    truth, rows = benchmark.train_labels, np.arange(len(inputs))
    given = np.where(rows % 3 == 0, (truth + 1) % 10, truth)
    looked = np.where(rows % 7 == 0, truth, -1)
    np.savez(path / "all.npz", inputs=inputs, labels=given, checked_labels=looked)
    columns = pandas.DataFrame({"label": given, "checked_label": looked}).replace(-1, "")
    np.save(path / "mapped.npy", inputs)
    columns.to_csv(path / "mapped.csv", index=False)
    features = pandas.DataFrame(inputs, columns=[f"p{i}" for i in range(64)])
    pandas.concat([columns, features], axis=1).to_csv(path / "all.csv", index=False)
    return path


def _flags(directory, file):
    config = "table" if file.endswith("csv") else "arrays"
    fields = FIELDS | {"dataset.data": directory / file}
    return [
        f"--config={ROOT / 'configs' / config}.py",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


def _trained(directory, file, workdir):
    from configs import arrays, table

    config = (table if file.endswith("csv") else arrays).get_config()
    config.update_from_flattened_dict(FIELDS | {"dataset.data": str(directory / file)})
    return train.train_and_evaluate(config, str(workdir), show_progress=False)


@pytest.fixture(scope="module")
def reference(directory, tmp_path_factory, compilation_cache):
    import jax

    workdir = tmp_path_factory.mktemp("reference")
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes int32 counts with floats.
        return workdir, _trained(directory, "all.npz", workdir)


def test_every_kind_of_file_is_the_same_run(directory, reference, tmp_path, standard_promotion):
    """Bit for bit, and the rows held out, which nobody trains on, are the same."""
    workdir, results = reference
    assert results["num_test"] == 45 and results["last_test_accuracy"] is not None
    for file in ("mapped.npy", "all.csv"):
        other = _trained(directory, file, tmp_path / file)
        ours = (tmp_path / file / "corrected_labels.npz").read_bytes()
        assert ours == (workdir / "corrected_labels.npz").read_bytes(), file
        to_check = (tmp_path / file / "to_check.csv").read_text().splitlines()
        assert len(to_check) == 101
        header = "id,given_label,corrected_label,confidence,label_quality,"
        assert to_check[0] == header + ("example,checked_label" if file == "all.csv" else
                                        "checked_label")  # fmt: skip
        if file == "all.csv":
            assert "p0=0, p1=" in to_check[1]
        for name in ("last_test_accuracy", "labels_changed", "mean_confidence"):
            assert other[name] == results[name], file


@pytest.mark.slow
@pytest.mark.parametrize("file", ["all.npz", "mapped.npy", "all.csv"])
def test_killed_and_resumed_ends_bit_identical(
    directory, reference, tmp_path, file, standard_promotion
):
    process = subprocess.Popen(
        [sys.executable, "-m", "mlc_jax.main", *_flags(directory, file), "--noprogress",
         f"--workdir={tmp_path}"],
        cwd=ROOT, env=os.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + PATIENCE
        while not checkpoint.finished_steps(tmp_path / checkpoint.DIRECTORY):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not (tmp_path / "results.json").exists()
    results = _trained(directory, file, tmp_path)
    workdir, want = reference
    name = "corrected_labels.npz"
    assert (tmp_path / name).read_bytes() == (workdir / name).read_bytes()
    different = {"train_seconds", "table", "workdir", "dataset"}
    assert {k: x for k, x in results.items() if k not in different} == {
        k: x for k, x in want.items() if k not in different
    }
    assert json.loads((tmp_path / "results.json").read_text())["num_steps"] == want["num_steps"]
