"""Data, label files and caches in a bucket: the same run as with files of this machine."""

import csv

import numpy as np
import pytest
from PIL import Image

from configs import arrays, image_folder, table, text
from mlc_jax import data, paths
from mlc_jax.benchmarks import datasets, noise
from mlc_jax.commands import train
from mlc_jax.encoders import encoding
from mlc_jax.errors import InputError
from mlc_jax.files import tokens
from mlc_jax.files.packed import pack

pytestmark = pytest.mark.slow

SIZE = 40
CHECKED = 12


@pytest.fixture
def put(place):
    """(file of this machine) -> where it is in the bucket."""

    def put(file):
        path = paths.absolute(place) / file.name
        for inside in [file] if file.is_file() else file.rglob("*"):
            if inside.is_file():
                paths.write(path / inside.relative_to(file), inside.read_bytes())
        return str(path)

    return put


def _columns():
    labels = np.array(["no", "yes"])[np.arange(SIZE) % 2]
    checked = np.where(np.arange(SIZE) < CHECKED, labels, "")
    return [f"{i:03d}" for i in range(SIZE)], labels, checked


def _table(file, **columns):
    ids, labels, checked = _columns()
    columns = {"id": ids, "label": labels, "checked_label": checked} | columns
    with file.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))
    return file


def _load(module, tmp_path, **fields):
    """The dataset of a config file; images and texts keep what they find in a cache."""
    config = module.get_config()
    fields = {"cache_dir": str(tmp_path / "cache")} | fields
    config.update_from_flattened_dict({f"dataset.{name}": x for name, x in fields.items()})
    return datasets.load(config, encoding.frozen_encoder(config))


def _assert_equal(one, other):
    assert one.fingerprint() == other.fingerprint()
    for name in ("noisy", "clean"):
        a, b = getattr(one, name), getattr(other, name)
        read = [data.source.read_rows(x.source, x.rows) for x in (a, b)]
        np.testing.assert_array_equal(*read)
        assert (len(one.noisy), len(one.clean)) == (SIZE - CHECKED, CHECKED)


def test_a_table(put, tmp_path):
    file = _table(tmp_path / "all.csv", x=[f"{i % 7}.5" for i in range(SIZE)])
    there = put(file)
    _assert_equal(_load(table, tmp_path, data=there), _load(table, tmp_path, data=str(file)))
    _table(file, x=["7.25", *(["1.5"] * (SIZE - 1))])  # Written again, of another length.
    put(file)
    _assert_equal(_load(table, tmp_path, data=there), _load(table, tmp_path, data=str(file)))


def test_arrays_whole_and_memory_mapped(put, tmp_path):
    inputs = np.random.default_rng(0).random((SIZE, 3), np.float32)
    _, labels, checked = _columns()
    whole, mapped = tmp_path / "all.npz", tmp_path / "x.npy"
    np.savez(whole, inputs=inputs, labels=labels, checked_labels=checked)
    np.save(mapped, inputs)
    put(_table(tmp_path / "x.csv"))
    for file in (whole, mapped):
        dataset = _load(arrays, tmp_path, data=put(file))
        _assert_equal(dataset, _load(arrays, tmp_path, data=str(file)))
    assert isinstance(dataset.noisy.source.inputs, np.memmap)


def test_texts_and_the_cache_of_their_tokens_and_features(put, place, tmp_path, tiny_bert):
    file = _table(tmp_path / "all.csv", text=[f"good news {i}" for i in range(SIZE)])
    cache = f"{place}/cache"

    def load(file, cache):
        config = text.get_config("frozen")
        config.model.bert.checkpoint = str(tiny_bert)
        config.dataset.update(data=file, cache_dir=cache, max_length=16)
        datasets._own_data.cache_clear()  # As in another process.
        return datasets.load(config, encoding.frozen_encoder(config))

    want, there = load(str(file), str(tmp_path / "cache")), put(file)
    _assert_equal(load(there, cache), want)
    kinds = {path.name: [*path.iterdir()] for path in paths.absolute(cache).iterdir()}
    assert {name: len(files) for name, files in kinds.items()} == {"features": 1, "tokens": 1}

    def fail(*args, **kwargs):
        raise AssertionError("made anew")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "_make", fail)
        patch.setattr(encoding.FrozenEncoder, "_outputs", fail)
        _assert_equal(load(there, cache), want)
    (kept,) = kinds["features"]
    paths.write(kept, b"cut off")
    _assert_equal(load(there, cache), want)
    assert kept.stat().length > SIZE


def test_packed_pictures(put, tmp_path):
    rng = np.random.default_rng(0)
    folder, output = tmp_path / "pictures", tmp_path / "packed"
    for i in range(8):
        file = folder / ("no", "yes")[i % 2] / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (16, 16, 3), np.uint8)).save(file)
    pack(str(folder), str(output), size=16, quality=90, per_shard=4)

    def load(path):
        sizes = {"image_size": 16, "clean_per_class": 1, "benchmark": True}
        return _load(image_folder, tmp_path, data=path, **sizes)

    one, other = load(put(output)), load(str(output))
    read = [data.source.read_rows(x.noisy.source, x.noisy.rows) for x in (one, other)]
    np.testing.assert_array_equal(*read)
    with pytest.raises(InputError, match=r"dataset\.data: .* holds no packed pictures; expected"):
        load(put(folder))


def test_predictions(put, place, tmp_path, run_command, standard_promotion):
    """Workdir, examples and predictions in a bucket; of a file that is not there, one line."""
    file = _table(tmp_path / "all.csv", x=[f"{i % 7}.5" for i in range(SIZE)])
    config = table.get_config()
    config.update_from_flattened_dict({
        "dataset.data": put(file), "method": "cross_entropy",
        "num_epochs": 2, "noisy_batch_size": 8, "clean_batch_size": 8,
        "model.mlp.hidden_sizes": (4,), "meta_gradient.mix_clean": False,
    })  # fmt: skip
    train.train_and_evaluate(config, f"{place}/run", show_progress=False)

    def predict(new, output):
        return run_command(
            "predict", f"{place}/run", new, f"--output={place}/{output}", "--noprogress"
        )

    code, out, err = predict(put(file), "predictions.csv")
    assert code == 0, err
    rows = list(csv.DictReader(paths.absolute(f"{place}/predictions.csv").read_text().splitlines()))
    assert [row["id"] for row in rows] == _columns()[0]
    assert f"{SIZE} predictions in gs://" in out
    code, _, err = predict(f"{place}/none.csv", "other.csv")
    problem = f"error: NEW: no file '{place}/none.csv'; expected one of examples"
    assert (code, err.splitlines()[-1]) == (2, problem)


def test_human_labels(put, tmp_path):
    file = tmp_path / "human.npz"
    np.savez(file, worst=np.arange(6) % 3)
    labels = noise.labels_from_file(put(file), "worst", num_labels=6, num_classes=3)
    assert labels.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize(
    ("field", "path", "problem"),
    [
        ("dataset.data", "gs://bucket/none.csv", "no file 'gs://bucket/none.csv'; expected one"),
        ("dataset.data", "gs://none/all.csv", "no file 'gs://none/all.csv'; expected one"),
        ("dataset.data", "gs:/bucket/all.csv", "got 'gs:/bucket/all.csv', expected a local path"),
        ("dataset.cache_dir", "gs://none/cache", "cannot write gs://none/cache/tokens/"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_one_line(put, tmp_path, tiny_bert, run_program, field, path, problem):
    file = _table(tmp_path / "all.csv", text=["good news"] * SIZE)
    flags = {"dataset.data": str(file), "model.bert.checkpoint": str(tiny_bert)} | {field: path}
    config = f"--config={paths.absolute('configs/text.py')}"
    flags = [f"--config.{name}={value}" for name, value in flags.items()]
    code, _, err = run_program("mlc_jax.main", config, *flags, f"--workdir={tmp_path / 'run'}")
    lines = [line for line in err.splitlines() if line.startswith("error")]
    assert (code, len(lines)) == (2, 1), err
    assert lines[0].startswith(f"error: config.{field}: {problem}")


def test_human_labels_that_are_not_there(bucket_server):
    with pytest.raises(InputError, match=r"^config\.noise\.file: got 'gs://bucket/none\.npz'"):
        noise.labels_from_file("gs://bucket/none.npz", "x", num_labels=6, num_classes=3)
