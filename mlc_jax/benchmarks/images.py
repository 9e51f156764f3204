"""Digits and CIFAR: pictures whose true labels are all known, and small enough for memory."""

import functools
from typing import Any

import numpy as np

from mlc_jax.data.dataset import Benchmark
from mlc_jax.data.prepare import Normalize
from mlc_jax.data.source import ArraySource, augment_images
from mlc_jax.data.tfds import read_columns, read_tfds

# Of the CIFAR training images in [0, 1], by the published code: (125.3, 123.0, 113.9) / 255 ...
_CIFAR_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
_CIFAR_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)
CIFAR_PREPARE = Normalize(255.0, _CIFAR_MEAN, _CIFAR_STD)
_CIFAR_TRAIN_SIZE = 50_000
_CIFAR_DRAWS = 3  # Row offset, column offset, flip.
_DIGITS_TEST_SIZE = 360


@functools.lru_cache(maxsize=1)
def digits() -> Benchmark:
    """scikit-learn's 1,797 handwritten digits, 8x8, grey: real data inside the package."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = bunch.images[..., None].astype(np.uint8)  # Stored as whole numbers, 0 to 16.
    labels = bunch.target.astype(np.int32)
    ids = np.array([f"digits_{row:04d}" for row in range(len(labels))])
    # The test set is part of the dataset's definition here: one fixed, stratified choice.
    train, test = train_test_split(
        np.arange(len(labels)), test_size=_DIGITS_TEST_SIZE, random_state=0, stratify=labels
    )
    train, test = np.sort(train), np.sort(test)
    return Benchmark(
        name="digits",
        class_names=tuple(str(digit) for digit in range(10)),
        train=ArraySource(images[train], ids[train]),
        train_labels=labels[train],
        published_rows=train,
        num_published=len(labels),
        test=ArraySource(images[test], ids[test]),
        test_labels=labels[test],
        prepare=Normalize(scale=16.0),
    )


@functools.lru_cache(maxsize=1)  # Runs of one process share their arrays: of CIFAR 150 MB.
def cifar(name: str, data_dir: str | None, *, download: bool) -> Benchmark:
    """CIFAR-10 or CIFAR-100 from TensorFlow Datasets, read into memory.

    Args:
      name: `cifar10` or `cifar100`.
      data_dir: TensorFlow Datasets directory; None for its default, ~/tensorflow_datasets.
      download: whether TensorFlow Datasets may fetch what is missing.

    Raises:
      InputError: data that are not there, or damaged.
    """
    info, train, test = read_tfds(
        name,
        data_dir,
        _read_images,
        download=download,
        folder=f"{name}/3.0.2/",
        content=f"the id, image [32, 32, 3] and label of the published {name}",
    )
    return Benchmark(
        name=name,
        class_names=tuple(info.features["label"].names),
        train=ArraySource(
            train["image"], train["id"], num_draws=_CIFAR_DRAWS, augment=augment_images
        ),
        train_labels=train["label"],
        published_rows=train["row"],
        num_published=_CIFAR_TRAIN_SIZE,
        test=ArraySource(test["image"], test["id"]),
        test_labels=test["label"],
        prepare=CIFAR_PREPARE,
    )


def _read_images(builder: Any, split: str) -> dict[str, np.ndarray]:
    """Reads one split and sorts it by the number in the TFDS id (`train_00042` is 42)."""
    columns = read_columns(builder, split, ["id", "image"])
    ids = columns["id"].astype(str)
    rows = np.array([int(name.rsplit("_", 1)[-1]) for name in ids])
    order = np.argsort(rows, kind="stable")
    return {
        "id": ids[order],
        "row": rows[order],
        "image": columns["image"][order],
        "label": columns["label"][order],
    }
