"""Datasets whose true labels are all known: noise is injected into them, and corrections judged."""

import dataclasses
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlc_jax import paths
from mlc_jax.data.columns import Columns
from mlc_jax.data.prepare import Normalize
from mlc_jax.data.source import ArraySource, Source, augment_images
from mlc_jax.errors import InputError

# Of the CIFAR training images in [0, 1], as in the published code: (125.3, 123.0, 113.9) / 255 ...
_CIFAR_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
_CIFAR_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)
CIFAR_PREPARE = Normalize(255.0, _CIFAR_MEAN, _CIFAR_STD)
_CIFAR_TRAIN_SIZE = 50_000
_CIFAR_DRAWS = 3  # Row offset, column offset, flip.
_DIGITS_TEST_SIZE = 360
_TFDS_READ_BATCH = 1_000


@dataclasses.dataclass(frozen=True, eq=False)
class Benchmark:
    """A labelled dataset before anything was done to it.

    Attributes:
      name: as in `config.dataset.name`.
      class_names: C names.
      train: examples to split into clean, noisy and validation.
      train_labels: `[N]` int32, true.
      published_rows: `[N]` int, the row of each example in the published training set, which files
        of labels are indexed by.
      num_published: length of the published training set; more than N for a partial copy.
      test: examples that are evaluated on, or None.
      test_labels: int32, true.
      prepare: from inputs as stored to what a model takes.
      names_labels: whether labels are written by name, rather than by number.
      columns: how a table's columns became inputs.
      left_out: (id, what is wrong) of rows whose inputs cannot be read, and which are not there.
    """

    name: str
    class_names: tuple[str, ...]
    train: Source
    train_labels: np.ndarray
    published_rows: np.ndarray
    num_published: int
    test: Source | None
    test_labels: np.ndarray
    prepare: Callable[[Any], Any]
    names_labels: bool = False
    columns: Columns | None = None
    left_out: tuple[tuple[str, str], ...] = ()

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


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


def read_tfds(
    name: str,
    data_dir: str | None,
    read: Callable[[Any, str], Any],
    *,
    download: bool,
    folder: str,
    content: str,
) -> tuple[Any, Any, Any]:
    """What TensorFlow Datasets says of a dataset, and its splits `train` and `test`.

    Args:
      name, data_dir, download: see `cifar`.
      read: (builder, split) -> the split.
      folder: what a `data_dir` should hold, for messages.
      content: what a dataset should hold, for messages.

    Raises:
      InputError: data that are not there, or damaged.
    """
    import tensorflow_datasets as tfds

    how = (
        "Let TensorFlow Datasets fetch it with --config.dataset.download=True, or point "
        f"--config.dataset.data_dir at a directory that holds {folder}"
    )
    if data_dir is not None:
        place = paths.absolute(data_dir, "config.dataset.data_dir")
        if not download and not place.is_dir():
            raise InputError(f"config.dataset.data_dir: no directory {data_dir!r}. {how}")
        data_dir = str(place)
    where = data_dir or "~/tensorflow_datasets (the default)"

    def damaged(error: Exception) -> InputError:
        # TensorFlow wraps the reason in the names of its graph's nodes.
        lines = str(error).splitlines() or [type(error).__name__]
        reason = re.sub(r"^\{\{.*?\}\} |Error in .* iterator: \S+ | \[Op:.*$", "", lines[0])
        return InputError(
            f"config.dataset.data_dir: {name!r} in {where} is damaged or something else "
            f"({reason}); expected {content}. Move it away. {how}"
        )

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # TensorFlow and protobuf raise a dozen types for what is damaged.
        raise damaged(error) from error
    if download:
        builder.download_and_prepare()
    try:
        train, test = (read(builder, split) for split in ("train", "test"))
    except (AssertionError, FileNotFoundError, tfds.core.DatasetNotFoundError) as error:
        raise InputError(
            f"config.dataset.data_dir: no prepared {name!r} in {where}. {how}"
        ) from error
    except Exception as error:
        raise damaged(error) from error
    return builder.info, train, test


def read_columns(builder: Any, split: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns of one split, with `label`, int32, as they lie on the disk."""
    import tensorflow_datasets as tfds

    one_by_one = tfds.ReadConfig(interleave_cycle_length=1)  # File by file: always in one order.
    dataset = builder.as_dataset(split=split, shuffle_files=False, read_config=one_by_one)
    batches = list(tfds.as_numpy(dataset.batch(_TFDS_READ_BATCH)))
    if not batches:
        raise FileNotFoundError(f"split {split!r} is empty")
    columns = {key: np.concatenate([b[key] for b in batches]) for key in (*names, "label")}
    labels = columns["label"].astype(np.int32)
    if labels.min() < 0 or labels.max() >= builder.info.features["label"].num_classes:
        raise ValueError(f"{split} has labels from {labels.min()} to {labels.max()}")
    return columns | {"label": labels}


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
