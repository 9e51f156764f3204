"""Clothing1M's layout, and training on pictures in files from end to end."""

import base64
import csv
import io
import json
import os
import pathlib
import re
import socket
import subprocess
import sys

import clothing1m_replica
import jax
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from configs import clothing1m as clothing1m_config
from mlc_jax import data
from mlc_jax.benchmarks import datasets
from mlc_jax.benchmarks.clothing1m import CLASS_NAMES
from mlc_jax.commands import train
from mlc_jax.config import validate
from mlc_jax.data import UNKNOWN
from mlc_jax.data.loader import Pipeline
from mlc_jax.data.reading import EvaluationReader
from mlc_jax.data.source import read_rows
from mlc_jax.errors import InputError
from mlc_jax.files.images.pillow import THUMBNAIL_SIZE
from mlc_jax.files.packed import pack
from mlc_jax.files.pictures import Geometry, Pictures
from mlc_jax.report import report
from mlc_jax.training.recorder import Recorder
from mlc_jax.workdir import checkpoint

ROOT = pathlib.Path(__file__).parents[1]
PATIENCE = 300
# Of a run that takes seconds; up to eight devices, and clean batches of two halves. With the skip
# link so few steps would change no label.
SMALL = {
    "dataset.image_size": 16, "model.name": "mlp", "model.dtype": "float32",
    "main_optimizer.learning_rate": 0.01, "noisy_batch_size": 8, "clean_batch_size": 16,
    "eval_batch_size": 16, "lcn.hidden_size": 8, "lcn.embedding_size": 8,
    "lcn.skip_link": False, "num_steps": 20, "eval_every_epochs": 2, "log_every_steps": 10,
    "checkpoint_every_steps": 10, "meta_gradient.num_inner_steps": 1,
}  # fmt: skip


@pytest.fixture(scope="module")
def replica(tmp_path_factory):
    """A directory, which nobody may change, and its keys."""
    root = tmp_path_factory.mktemp("clothing1m")
    return root, clothing1m_replica.build(root)


@pytest.fixture(scope="module")
def directories(replica, tmp_path_factory):
    """The same pictures as files, and packed."""
    packed = tmp_path_factory.mktemp("packed")
    pack(str(replica[0]), str(packed), size=72, quality=95, per_shard=50)
    return {"files": replica[0], "packed": packed}


@pytest.fixture
def load(tmp_path):
    def run(root, **fields):
        config = clothing1m_config.get_config()
        fields = {"data_dir": str(root), "image_size": 16, **fields}
        fields |= {"cache_dir": str(tmp_path / "cache")}
        config.update_from_flattened_dict({f"dataset.{x}": y for x, y in fields.items()})
        validate(config)
        return datasets.load(config)

    return run


# --- The layout.


def test_the_parts_are_those_of_the_lists(load, replica):
    root, keys = replica
    dataset = load(root)
    parts = {"noisy_train": dataset.noisy, "clean_train": dataset.clean}
    parts |= {"clean_val": dataset.validation, "clean_test": dataset.test}
    for name, subset in parts.items():
        assert subset.ids.tolist() == keys[name]
    assert dataset.class_names == CLASS_NAMES and len(CLASS_NAMES) == 14
    labels = {name: {} for name in ("noisy", "clean")}
    for name, of_key in labels.items():
        for line in (root / f"{name}_label_kv.txt").read_text().splitlines():
            key, label = line.split(" ")
            of_key[key] = int(label)
    assert dataset.noisy.given.tolist() == [labels["noisy"][x] for x in keys["noisy_train"]]
    assert (dataset.noisy.truth == UNKNOWN).all() and not dataset.paired
    for name in ("clean_train", "clean_val", "clean_test"):
        assert parts[name].truth.tolist() == [labels["clean"][x] for x in keys[name]]
    images = read_rows(dataset.test.source, dataset.test.rows[:11])  # Grey and CMYK among them.
    assert images.shape == (11, 16, 16, 3) and (images.std(axis=(1, 2, 3)) > 0).all()


def test_corrections_are_judged_by_held_out_pictures_with_both_labels(load, replica):
    root, keys = replica
    dataset = load(root)
    both = {line.split(" ")[0] for line in (root / "noisy_label_kv.txt").read_text().splitlines()}
    held_out = [x for name in ("clean_val", "clean_test") for x in keys[name] if x in both]
    assert dataset.judged.ids.tolist() == held_out and 10 < len(held_out) < 40
    assert dataset.noise_rate == np.mean(dataset.judged.given != dataset.judged.truth)
    paired = load(root, paired=True)
    known = paired.clean.given != UNKNOWN
    assert known.tolist() == [x in both for x in keys["clean_train"]] and not known.all()


def test_bad_and_missing_pictures_are_counted_and_named(load, tmp_path):
    root = tmp_path / "root"
    keys = clothing1m_replica.build(root, truncated=True)
    (root / keys["clean_test"][3]).unlink()
    with pytest.raises(InputError) as error:
        load(root)
    missing = f"'{keys['clean_test'][3]}' cannot be read (No such file or directory)"
    half = (
        f"'{keys['noisy_train'][-1]}' is no JPEG, PNG, WebP or BMP that can be decoded to its end"
    )
    assert missing in str(error.value) and half in str(error.value)
    assert "without these 2" in str(error.value)
    dataset = load(root, bad_images="leave_out")
    assert dataset.noisy.ids.tolist() == keys["noisy_train"][:-1]
    assert [x for x, _ in dataset.left_out] == [keys["noisy_train"][-1], keys["clean_test"][3]]


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("clean_val_key_list.txt", None, "cannot be read (No such file or directory); expected"),
        ("clean_val_key_list.txt", lambda x: "", "is empty, expected the path of a picture"),
        (
            "clean_test_key_list.txt",
            lambda x: x + "images/0/0/noisy_train,0.jpg\n",
            "has 'images/0/0/noisy_train,0.jpg' as noisy_train_key_list.txt has it; expected it in "
            "one list, once",
        ),
        (
            "noisy_train_key_list.txt",
            lambda x: x + x.splitlines()[0],
            "has 'images/0/0/noisy_train,0.jpg' twice; expected it in one list, once",
        ),
        (
            "clean_label_kv.txt",
            lambda x: "\n".join(x.splitlines()[1:]),
            "has no label of 'images/0/0/clean_train,0.jpg', which is in clean_train_key_list.txt",
        ),
        (
            "noisy_label_kv.txt",
            lambda x: "a.jpg 14\n" + x,
            "line 1: got 'a.jpg 14', expected a path and a label from 0 to 13",
        ),
        (
            "noisy_label_kv.txt",
            lambda x: "images/0/0/noisy_train,0.jpg 13\n" + x,
            "line 2: 'images/0/0/noisy_train,0.jpg' has another label further up",
        ),
    ],
)
def test_bad_lists(load, tmp_path, file, change, message):
    root = tmp_path / "root"
    sizes = dict.fromkeys(clothing1m_replica.SIZES, 2)
    clothing1m_replica.build(root, sizes)
    text = (root / file).read_text()
    (root / file).unlink()
    if change is not None:
        (root / file).write_text(change(text))
    with pytest.raises(InputError) as error:
        load(root)
    assert str(error.value).startswith(f"config.dataset.data_dir: '{root / file}' {message}")


# --- Two processes, and what each reads.


class _Recorded:
    """A store that remembers which rows were read."""

    def __init__(self, store):
        self._store, self.rows = store, []

    def __len__(self):
        return len(self._store)

    def read(self, row):
        row = tf.numpy_function(self._record, [row], tf.int64)
        row.set_shape([])
        return self._store.read(row)

    def _record(self, row):
        self.rows.append(int(row))
        return row


@pytest.mark.slow
def test_processes_train_on_disjoint_slices_of_each_batch(load, directories):
    dataset = load(directories["packed"])
    pipeline = Pipeline(dataset.noisy, dataset.clean, 8, 8, True, 1, augment=True, seed=0)

    def take(**share):
        batches = pipeline.batches(0, **share)
        taken = [next(batches) for _ in range(2)]
        batches.close()
        return taken

    shares = (take(process_index=i, process_count=2) for i in range(2))
    for whole, first, second in zip(take(), *shares, strict=True):
        for part, one, two in zip(whole, first, second, strict=True):
            assert one.inputs.shape[2] == two.inputs.shape[2] == part.inputs.shape[2] // 2
            assert not np.intersect1d(one.rows, two.rows).size
            for name in ("rows", "labels", "inputs"):
                joined = np.concatenate([getattr(one, name), getattr(two, name)], axis=2)
                np.testing.assert_array_equal(joined, getattr(part, name))


@pytest.mark.parametrize("kind", ["files", "packed"])
def test_processes_open_disjoint_pictures(load, directories, kind):
    noisy = load(directories[kind]).noisy
    read = []
    for i in range(2):
        store = _Recorded(noisy.source.store)
        recorded = data.Subset.whole(Pictures(store, Geometry(16)))
        part = recorded.take(noisy.rows)
        for _ in EvaluationReader([part], [noisy.given], 16, process_index=i, process_count=2):
            pass
        read.append(store.rows)
    assert sorted(read[0] + read[1]) == noisy.rows.tolist()
    assert len(read[0]) == len(read[1]) == len(noisy) / 2


# --- Training, ten seconds a run. `make test` trains on pictures in pictures_test.py, and goes on
# with a stopped run in own_runs_test.py.


class _Killed(Exception):
    pass


def _settings(replica_dir, cache, **overrides):
    fields = SMALL | {"dataset.data_dir": str(replica_dir), "dataset.cache_dir": str(cache)}
    return fields | overrides


@pytest.fixture(scope="module")
def run(replica, tmp_path_factory, compilation_cache):
    """(workdir, overrides) -> trains in this process, on its eight devices."""
    cache = tmp_path_factory.mktemp("cache")

    def run(workdir, **overrides):
        config = clothing1m_config.get_config()
        config.update_from_flattened_dict(_settings(replica[0], cache, **overrides))
        with jax.numpy_dtype_promotion("standard"):  # optax's Adam mixes int32 counts with floats.
            return train.train_and_evaluate(config, str(workdir), show_progress=False)

    return run


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """A finished run."""
    workdir = tmp_path_factory.mktemp("whole")
    return workdir, run(workdir)


def _soft_labels(workdir):
    with np.load(workdir / report.SOFT_LABELS_FILE) as file:
        return file["soft_label"]


@pytest.mark.slow
def test_stopped_and_resumed_ends_bit_equal(run, whole, tmp_path, monkeypatch):
    """Ten steps after its checkpoint, which are trained again. Of a kill: tests/train_test.py.

    Three runs: it alone holds that a resumed one sees the same crops and ends with the same labels.
    """
    save = Recorder.save

    def stop(self, step, state):
        if step > 10:
            raise _Killed
        save(self, step, state)
        self.wait()

    with monkeypatch.context() as patch, pytest.raises(_Killed):
        patch.setattr(Recorder, "save", stop)
        run(tmp_path)
    assert checkpoint.finished_steps(tmp_path / checkpoint.DIRECTORY) == [10]
    assert not (tmp_path / report.RESULTS_FILE).exists()
    run(tmp_path)
    for name in (report.LABELS_FILE, report.SOFT_LABELS_FILE):
        assert (tmp_path / name).read_bytes() == (whole[0] / name).read_bytes()


@pytest.mark.slow
def test_the_report_shows_labels_and_pictures(whole):
    workdir, results = whole
    assert "given labels right" in results["table"]
    assert "truth not known" not in results["table"]
    page = (workdir / "report.html").read_text()
    encoded = re.findall(r'src="data:image/\w+;base64,([^"]+)"', page)
    images = [Image.open(io.BytesIO(base64.b64decode(x))) for x in encoded]
    thumbnails = [x for x in images if max(x.size) == THUMBNAIL_SIZE]
    assert thumbnails and len(images) > len(thumbnails)  # The others are plots.
    for thumbnail in thumbnails:
        assert np.asarray(thumbnail).std() > 5


@pytest.mark.slow
def test_a_folder_is_predicted_as_the_run_judged_itself(whole, replica, run_command, tmp_path):
    (root, keys), output = replica, tmp_path / "out.csv"
    code, _, err = run_command(
        "predict", str(whole[0]), str(root / "images"), f"--output={output}", "--noprogress"
    )
    assert code == 0, err
    predicted = {f"images/{row['id']}": row["label"] for row in csv.DictReader(output.open())}
    assert len(predicted) == sum(clothing1m_replica.SIZES.values())
    truth = dict(x.split(" ") for x in (root / "clean_label_kv.txt").read_text().splitlines())
    right = [predicted[key] == CLASS_NAMES[int(truth[key])] for key in keys["clean_test"]]
    results = json.loads((whole[0] / report.RESULTS_FILE).read_text())
    assert np.mean(right) == pytest.approx(results["last_test_accuracy"])


@pytest.mark.slow
def test_two_processes_of_a_device_are_eight_devices_of_one(
    run, directories, tmp_path, compilation_cache
):
    """On packed pictures. Batch norm's statistics: tests/devices_test.py.

    Two processes import everything and compile: no test without them sees that each reads its share
    and that both end with the same labels.
    """
    place = {"dataset.data_dir": str(directories["packed"])}
    run(tmp_path / "one", **place)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    settings = _settings(directories["packed"], tmp_path / "cache")
    xla_flags = [x for x in os.environ["XLA_FLAGS"].split() if "device_count" not in x]
    variables = {"XLA_FLAGS": " ".join(xla_flags), "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "mlc_jax.main", f"--config={ROOT / 'configs/clothing1m.py'}",
             "--noprogress", f"--workdir={tmp_path / 'two'}", f"--coordinator=127.0.0.1:{port}",
             "--num_processes=2", f"--process_id={i}",
             *(f"--config.{x}={y}" for x, y in settings.items())],
            cwd=ROOT, env=os.environ | variables, stderr=subprocess.PIPE, text=True,
        )
        for i in range(2)
    ]  # fmt: skip
    try:
        for process in processes:
            _, err = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0, err
    finally:
        for process in processes:
            process.kill()
            process.wait()
    # Not bit for bit: gradients are added up in another order.
    one, two = (_soft_labels(tmp_path / name) for name in ("one", "two"))
    assert one.std() > 0.001
    np.testing.assert_allclose(one, two, atol=2e-4)
