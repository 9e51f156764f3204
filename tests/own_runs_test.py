"""Whole runs on a user's own files: stopped and resumed, the same from every kind of file."""

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
from mlc_jax.training.recorder import Recorder
from mlc_jax.workdir import checkpoint

ROOT = pathlib.Path(__file__).parents[1]
PATIENCE = 300  # Seconds until a run that shows no progress has failed the test.
FIELDS = {
    "method": "mlc", "model.mlp.hidden_sizes": (32, 16), "lcn.hidden_size": 16,
    "lcn.embedding_size": 16, "noisy_batch_size": 64, "clean_batch_size": 32, "num_steps": 40,
    "eval_every_epochs": 1, "log_every_steps": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Digits with every third label wrong, every seventh checked: `.npz`, `.npy` and `.csv`.

    Without the pixels that are always dark, which a table leaves out.
    """
    path, benchmark = tmp_path_factory.mktemp("own"), digits()
    inputs = benchmark.train.inputs.reshape(-1, 64) / np.float32(16)
    inputs = inputs[:, inputs.std(axis=0) > 0]
    truth, rows = benchmark.train_labels, np.arange(len(inputs))
    given = np.where(rows % 3 == 0, (truth + 1) % 10, truth)
    looked = np.where(rows % 7 == 0, truth, -1)
    np.savez(path / "all.npz", inputs=inputs, labels=given, checked_labels=looked)
    columns = pandas.DataFrame({"label": given, "checked_label": looked}).replace(-1, "")
    np.save(path / "mapped.npy", inputs)
    columns.to_csv(path / "mapped.csv", index=False)
    features = pandas.DataFrame(inputs, columns=[f"p{i}" for i in range(inputs.shape[1])])
    pandas.concat([columns, features], axis=1).to_csv(path / "all.csv", index=False)
    return path


def _flags(directory, file):
    config = "table" if file.endswith("csv") else "arrays"
    fields = FIELDS | {"dataset.data": directory / file, "checkpoint_every_steps": 5}
    return [
        f"--config={ROOT / 'configs' / config}.py",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


def _trained(directory, file, workdir, **changes):
    from configs import arrays, table

    config = (table if file.endswith("csv") else arrays).get_config()
    config.update_from_flattened_dict(FIELDS | {"dataset.data": str(directory / file)} | changes)
    return train.train_and_evaluate(config, str(workdir), show_progress=False)


@pytest.fixture(scope="module")
def reference(directory, tmp_path_factory, compilation_cache):
    import jax

    workdir = tmp_path_factory.mktemp("reference")
    with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes int32 counts with floats.
        return workdir, _trained(directory, "all.npz", workdir)


def test_every_kind_of_file_is_the_same_run(directory, reference, tmp_path, standard_promotion):
    """Bit for bit.

    Three trainings: that a table and a memory map are what the archive is, to the end of a run.
    """
    workdir, results = reference
    for file in ("mapped.npy", "all.csv"):
        other = _trained(directory, file, tmp_path / file)
        ours = (tmp_path / file / "corrected_labels.npz").read_bytes()
        assert ours == (workdir / "corrected_labels.npz").read_bytes(), file
        to_check = (tmp_path / file / "to_check.csv").read_text().splitlines()
        assert len(to_check) == 101
        header = "id,given_label,corrected_label,confidence,label_quality,"
        assert to_check[0] == header + ("example,why,checked_label" if file == "all.csv" else
                                        "why,checked_label")  # fmt: skip
        if file == "all.csv":
            assert "p0=" in to_check[1] and ", p1=" in to_check[1]
        for name in ("labels_changed", "mean_confidence"):
            assert other[name] == results[name], file


def _assert_is(workdir, results, reference):
    there, want = reference
    name = "corrected_labels.npz"
    assert (workdir / name).read_bytes() == (there / name).read_bytes()
    different = {"train_seconds", "table", "workdir", "dataset"}
    assert {k: x for k, x in results.items() if k not in different} == {
        k: x for k, x in want.items() if k not in different
    }
    assert json.loads((workdir / "results.json").read_text())["num_steps"] == want["num_steps"]


@pytest.mark.slow
def test_stopped_and_resumed_ends_bit_identical(
    directory, reference, tmp_path, monkeypatch, standard_promotion
):
    """A memory map, whose steps since the checkpoint are trained again."""

    class Stopped(Exception):
        pass

    def stop(self, step, state):
        if step > 20:
            raise Stopped
        save(self, step, state)
        self.wait()

    save = Recorder.save
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(Recorder, "save", stop)
        _trained(directory, "mapped.npy", tmp_path, checkpoint_every_steps=20)
    assert checkpoint.finished_steps(tmp_path / checkpoint.DIRECTORY) == [20]
    results = _trained(directory, "mapped.npy", tmp_path)
    _assert_is(tmp_path, results, reference)


@pytest.mark.slow
def test_killed_and_resumed_ends_bit_identical(directory, reference, tmp_path, standard_promotion):
    """A process that is killed wherever it is, on a table. It imports everything once more."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mlc_jax.main", *_flags(directory, "all.csv"), "--noprogress",
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
    _assert_is(tmp_path, _trained(directory, "all.csv", tmp_path), reference)
