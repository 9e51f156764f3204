"""Every config trains end to end, on small data in the format of the real ones."""

import csv
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from configs import arrays, cifar10, cifar100, default, digits, table
from mlc_jax.benchmarks import datasets
from mlc_jax.benchmarks.images import cifar
from mlc_jax.commands import train
from mlc_jax.config import flatten
from mlc_jax.errors import InputError

PACKS = pathlib.Path(__file__).parents[2] / "shared" / "data"
CONFIGS = [digits, cifar10, cifar100, arrays, table]
NUM_PUBLISHED = 50_000
TINY_RESNET = {
    "model.resnet.depth": 8,
    "clean_batch_size": 16,
    "eval_batch_size": 16,
    "num_epochs": 1,
    "log_every_steps": 1,
}


def _tfds_directory(path, name, num_classes, per_class, *, size=32, without=None):
    """A prepared dataset as TensorFlow Datasets lays it out; images say which class they are of.

    Ids are out of order and have gaps, as in a partial copy. `size` of the images and `without` a
    column: data that are something else.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    columns = {
        "id": tfds.features.Text(),
        "image": tfds.features.Image(shape=(size, size, 3)),
        "label": tfds.features.ClassLabel(num_classes=num_classes),
    }
    coarse = {"coarse_label": 0} if name == "cifar100" else {}
    if coarse:
        columns["coarse_label"] = tfds.features.ClassLabel(num_classes=20)
    columns.pop(without, None)
    features = tfds.features.FeaturesDict(columns)
    directory = path / name / "3.0.2"
    directory.mkdir(parents=True)
    rng = np.random.default_rng(0)
    infos = []
    for split, length in (("train", num_classes * per_class), ("test", 12)):
        file = directory / f"{name}-{split}.tfrecord-00000-of-00001"
        with tf.io.TFRecordWriter(str(file)) as writer:
            for number in rng.permutation(length) * 7:
                label = int(number) % num_classes
                image = rng.integers(label, label + 100, (size, size, 3)).astype(np.uint8)
                example = {"id": f"{split}_{number:05d}", "image": image, "label": label}
                example |= coarse
                example.pop(without, None)
                writer.write(features.serialize_example(example))
        template = tfds.core.ShardedFileTemplate(
            data_dir=directory, dataset_name=name, split=split, filetype_suffix="tfrecord"
        )
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=[length], num_bytes=0, filename_template=template
            )
        )
    tfds.folder_dataset.write_metadata(data_dir=directory, features=features, split_infos=infos)
    return str(path)


def _train(config, workdir, overrides):
    config.update_from_flattened_dict(overrides)
    # The step schedule is optax's, which mixes int32 counts with floats.
    with jax.numpy_dtype_promotion("standard"):
        return train.train_and_evaluate(config, str(workdir), show_progress=False)


def _corrected_labels(workdir):
    with (workdir / "corrected_labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_digits_trains(trained):
    config, _, results = trained("mlc")
    assert config.dataset.name == results["dataset"] == "digits"
    assert results["num_noisy"] == 1_797 - 360 - results["clean_labels_spent"]


@pytest.mark.slow
def test_cifar10_trains_with_human_labels(tmp_path):
    """The labels of a file go by the number in the id, not by the place in the dataset."""
    published = np.random.default_rng(1).integers(0, 10, NUM_PUBLISHED).astype(np.uint8)
    np.savez(tmp_path / "labels.npz", worst=published, clean=published * 0)
    results = _train(
        cifar10.get_config(),
        tmp_path / "run",
        TINY_RESNET
        | {
            "model.name": "mlp",  # A ResNet learns below, from CIFAR-100.
            "model.mlp.hidden_sizes": (8,),
            "dataset.data_dir": _tfds_directory(tmp_path, "cifar10", 10, per_class=7),
            "dataset.clean_per_class": 2,
            "noise.type": "human",
            "noise.file": str(tmp_path / "labels.npz"),
            "noise.key": "worst",
            "noisy_batch_size": 24,
        },
    )
    assert results["dataset"] == "cifar10"
    assert results["noise"] == "human worst"
    assert (results["num_noisy"], results["num_test"]) == (50, 12)
    assert (results["num_steps"], results["clean_labels_spent"]) == (2, 20)
    rows = _corrected_labels(tmp_path / "run")
    numbers = [int(row["id"].removeprefix("train_")) for row in rows]
    assert len(rows) == 50
    assert numbers == sorted(numbers) and max(numbers) > 50
    for row, number in zip(rows, numbers, strict=True):
        assert int(row["given_label"]) == published[number]
        assert 0 <= int(row["corrected_label"]) < 10
    right = np.mean([published[number] == number % 10 for number in numbers])
    assert results["given_label_accuracy"] == pytest.approx(right)


@pytest.mark.slow
def test_cifar100_trains(tmp_path):
    """Compiles a ResNet for eight devices: the one config of images that is run as it stands."""
    results = _train(
        cifar100.get_config(),
        tmp_path / "run",
        TINY_RESNET
        | {
            "dataset.data_dir": _tfds_directory(tmp_path, "cifar100", 100, per_class=2),
            "dataset.clean_per_class": 1,
            "meta_gradient.estimator": "approximate",
            "noisy_batch_size": 56,
        },
    )
    assert results["dataset"] == "cifar100"
    assert results["noise"] == "uniform 0.4"
    assert (results["num_noisy"], results["num_test"]) == (100, 12)
    assert (results["num_steps"], results["clean_labels_spent"]) == (1, 100)
    with np.load(tmp_path / "run" / "corrected_labels.npz") as arrays:
        assert arrays["soft_label"].shape == (100, 100)


def test_images_and_labels_keep_together(tmp_path):
    data_dir = _tfds_directory(tmp_path, "cifar10", 10, per_class=7)
    benchmark = cifar("cifar10", data_dir, download=False)
    for source, labels in (
        (benchmark.train, benchmark.train_labels),
        (benchmark.test, benchmark.test_labels),
    ):
        ids = source.ids(np.arange(len(source)))
        numbers = [int(name.split("_")[1]) for name in ids]
        assert numbers == sorted(numbers)
        np.testing.assert_array_equal(labels, np.array(numbers) % 10)
        darkest = source.inputs.reshape(len(source), -1).min(axis=1)
        np.testing.assert_array_equal(darkest, labels)
        if source is benchmark.train:
            np.testing.assert_array_equal(benchmark.published_rows, numbers)
    assert benchmark.num_published == NUM_PUBLISHED
    assert benchmark.class_names == tuple(str(i) for i in range(10))


@pytest.mark.parametrize(
    ("num_classes", "changes", "reason"),
    [
        (10, {"without": "id"}, "Feature: id (data type: string) is required but"),
        (10, {"without": "image"}, "Feature: image (data type: string) is required but"),
        (10, {"without": "label"}, "Feature: label (data type: int64) is required but"),
        (
            10,
            {"size": 28},
            "Incompatible shapes at component 1: expected [?,32,32,3] but got [20,28",
        ),
        (12, {}, "train has labels from 0 to 11"),
    ],
)
def test_other_data_of_that_name(tmp_path, num_classes, changes, reason):
    path = _tfds_directory(tmp_path, "cifar10", num_classes, per_class=2, **changes)
    _assert_refused(path, reason)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        ("cifar10-test.tfrecord-00000-of-00001", "truncated record at "),
        ("dataset_info.json", "Failed to construct dataset "),
    ],
)
def test_damaged_data(tmp_path, file, reason):
    path = _tfds_directory(tmp_path, "cifar10", 10, per_class=2)
    file = tmp_path / "cifar10" / "3.0.2" / file
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    _assert_refused(path, reason)


def _assert_refused(path, reason):
    with pytest.raises(InputError) as error:
        cifar("cifar10", path, download=False)
    (line,) = str(error.value).splitlines()
    assert line.startswith(
        f"config.dataset.data_dir: 'cifar10' in {path} is damaged or something else ({reason}"
    )
    assert "expected the id, image [32, 32, 3] and label of the published cifar10" in line
    assert "node" not in line and "[Op:" not in line


@pytest.mark.parametrize("source", CONFIGS)
def test_every_field_is_in_default(source):
    """And of the same type, so that what works on the command line of one works for all."""
    ours, known = (
        flatten(json.loads(config.to_json()))
        for config in (source.get_config(), default.get_config())
    )
    assert ours.keys() == known.keys()
    ours.pop("cross_fit.hidden_sizes")  # None for own tables, with the same type.
    assert source.get_config().cross_fit.get_type("hidden_sizes") is tuple
    for name, value in ours.items():
        assert known[name] is None or type(value) is type(known[name]), name


@pytest.mark.parametrize("source", CONFIGS)
def test_config_is_locked_and_new_each_time(source):
    config = source.get_config()
    assert isinstance(config, ConfigDict) and config.is_locked
    with pytest.raises(AttributeError, match='Did you mean "noise" instead of "nosie"'):
        config.nosie = 1
    config.seed = 5
    assert source.get_config().seed == 0


@pytest.mark.parametrize("source", CONFIGS)
def test_docstring_gives_the_command(source):
    """Of a preset, and so of the config that hands it on."""
    name = source.__name__.removeprefix("configs.")
    command = (
        rf"(mlc-jax train --config={name}|python -m mlc_jax\.main --config=configs/{name}\.py)"
    )
    settings = r"((?: | \\\n +)--config\.\S+)* --workdir=DIR\b"
    assert re.search(command + settings, source.__doc__)


@pytest.mark.slow
@pytest.mark.skipif(
    not (PACKS / "tfds" / "cifar10").is_dir(), reason=f"no real CIFAR-10 in {PACKS}/tfds"
)
def test_real_cifar10_joins_its_human_labels():
    config = cifar10.get_config()
    config.update_from_flattened_dict({
        "dataset.data_dir": str(PACKS / "tfds"),
        "noise.type": "human",
        "noise.file": str(PACKS / "cifar10n" / "cifar10n.npz"),
        "noise.key": "worst",
    })  # fmt: skip
    dataset = datasets.load(config)
    benchmark = cifar("cifar10", config.dataset.data_dir, download=False)
    assert (len(benchmark.train), len(benchmark.test)) == (50_000, 10_000)
    assert benchmark.train.inputs.shape == (50_000, 32, 32, 3)
    assert benchmark.train.inputs.dtype == np.uint8
    assert dataset.class_names[0] == "airplane" and dataset.class_names[9] == "truck"
    np.testing.assert_array_equal(benchmark.published_rows, np.arange(50_000))
    with np.load(config.noise.file) as labels:
        np.testing.assert_array_equal(labels["clean"], benchmark.train_labels)
        noise = np.mean(labels["worst"] != benchmark.train_labels)
        np.testing.assert_array_equal(labels["worst"][dataset.noisy.rows], dataset.noisy.given)
    assert noise == pytest.approx(0.4021, abs=5e-5)
    assert (len(dataset.clean), len(dataset.noisy)) == (1_000, 49_000)
    assert dataset.noise_rate == pytest.approx(0.402, abs=2e-3)
