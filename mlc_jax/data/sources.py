"""Where examples come from: TensorFlow Datasets, or arrays inside a dependency."""

import dataclasses
import functools
import pathlib
import re

import numpy as np

from mlc_jax.errors import InputError

SOURCES = ("digits", "cifar10", "cifar100")

# Of the CIFAR training images in [0, 1], as in the published code: (125.3, 123.0, 113.9) / 255 ...
_CIFAR_MEAN = (125.3 / 255, 123.0 / 255, 113.9 / 255)
_CIFAR_STD = (63.0 / 255, 62.1 / 255, 66.7 / 255)
_CIFAR_TRAIN_SIZE = 50_000
_DIGITS_TEST_SIZE = 360
_TFDS_READ_BATCH = 1_000


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples in the order of their ids.

    Attributes:
      ids: `[N]` strings that name the examples for a reader.
      indices: `[N]` int, the index of each example in the published training set, which files of
        labels are indexed by.
      inputs: `[N, ...]`, as stored (uint8 for images).
      labels: `[N]` int32, the true labels.
    """

    ids: np.ndarray
    indices: np.ndarray
    inputs: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "Split":
        """The examples at `rows`."""
        return Split(self.ids[rows], self.indices[rows], self.inputs[rows], self.labels[rows])


@dataclasses.dataclass(frozen=True)
class Source:
    """A labelled dataset before anything was done to it.

    Attributes:
      name: as in `config.dataset.name`.
      class_names: C names.
      train: examples to split into clean, noisy and validation.
      test: examples that are evaluated on, each exactly once.
      num_published: length of the published training set; more than `len(train)` for a partial
        copy. Label files must have this length.
      mean, std: of the inputs divided by `scale`, by channel.
      scale: what raw inputs are divided by.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    num_published: int
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    scale: float = 1.0

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


@functools.lru_cache(maxsize=1)  # Runs of one process share their arrays.
def load_source(name: str, data_dir: str | None, *, download: bool) -> Source:
    """Reads a dataset into memory.

    Args:
      name: one of SOURCES.
      data_dir: TensorFlow Datasets directory; None for its default, ~/tensorflow_datasets.
      download: whether TensorFlow Datasets may fetch what is missing.

    Raises:
      InputError: unknown name, or data that are not there.
    """
    if name == "digits":
        return _digits()
    if name in SOURCES:
        return _cifar(name, data_dir, download=download)
    raise InputError(f"config.dataset.name: got {name!r}, expected one of {SOURCES}")


def _digits() -> Source:
    """scikit-learn's 1,797 handwritten digits, 8x8, grey: real data inside the package."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = bunch.images[..., None].astype(np.uint8)  # Stored as whole numbers, 0 to 16.
    labels = bunch.target.astype(np.int32)
    rows = np.arange(len(labels))
    # The test set is part of the dataset's definition here: one fixed, stratified choice.
    train_rows, test_rows = train_test_split(
        rows, test_size=_DIGITS_TEST_SIZE, random_state=0, stratify=labels
    )

    def split(rows: np.ndarray) -> Split:
        rows = np.sort(rows)
        ids = np.array([f"digits_{row:04d}" for row in rows])
        return Split(ids, rows, images[rows], labels[rows])

    return Source(
        name="digits",
        class_names=tuple(str(digit) for digit in range(10)),
        train=split(train_rows),
        test=split(test_rows),
        num_published=len(labels),
        scale=16.0,
    )


def _cifar(name: str, data_dir: str | None, *, download: bool) -> Source:
    import tensorflow_datasets as tfds

    if data_dir is not None:
        data_dir = str(pathlib.Path(data_dir).expanduser())
        if not download and not pathlib.Path(data_dir).is_dir():
            raise InputError(f"config.dataset.data_dir: no directory {data_dir!r}. {_how_to(name)}")
    where = data_dir or "~/tensorflow_datasets (the default)"
    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except Exception as error:  # TensorFlow and protobuf raise a dozen types for what is damaged.
        raise InputError(_damaged(name, where, error)) from error
    if download:
        builder.download_and_prepare()
    try:
        train, test = (_read_tfds(builder, split) for split in ("train", "test"))
    except (AssertionError, FileNotFoundError, tfds.core.DatasetNotFoundError) as error:
        raise InputError(
            f"config.dataset.data_dir: no prepared {name!r} in {where}. {_how_to(name)}"
        ) from error
    except Exception as error:
        raise InputError(_damaged(name, where, error)) from error
    return Source(
        name=name,
        class_names=tuple(builder.info.features["label"].names),
        train=train,
        test=test,
        num_published=_CIFAR_TRAIN_SIZE,
        mean=_CIFAR_MEAN,
        std=_CIFAR_STD,
        scale=255.0,
    )


def _how_to(name: str) -> str:
    return (
        "Let TensorFlow Datasets fetch it with --config.dataset.download=True, or point "
        f"--config.dataset.data_dir at a directory that holds {name}/3.0.2/"
    )


def _damaged(name: str, where: str, error: Exception) -> str:
    # TensorFlow wraps the reason in the names of its graph's nodes.
    lines = str(error).splitlines() or [type(error).__name__]
    reason = re.sub(r"^\{\{.*?\}\} |Error in .* iterator: \S+ | \[Op:.*$", "", lines[0])
    return (
        f"config.dataset.data_dir: {name!r} in {where} is damaged or something else ({reason}); "
        f"expected the id, image [32, 32, 3] and label of the published {name}. Move it away. "
        + _how_to(name)
    )


def _read_tfds(builder: object, split: str) -> Split:
    """Reads one split and sorts it by the number in the TFDS id (`train_00042` is 42)."""
    import tensorflow_datasets as tfds

    dataset = builder.as_dataset(split=split, shuffle_files=False)  # type: ignore[attr-defined]
    batches = list(tfds.as_numpy(dataset.batch(_TFDS_READ_BATCH)))
    if not batches:
        raise FileNotFoundError(f"split {split!r} is empty")
    columns = {key: np.concatenate([b[key] for b in batches]) for key in ("id", "image", "label")}
    ids = columns["id"].astype(str)
    indices = np.array([int(name.rsplit("_", 1)[-1]) for name in ids])
    labels = columns["label"].astype(np.int32)
    num_classes = builder.info.features["label"].num_classes  # type: ignore[attr-defined]
    if labels.min() < 0 or labels.max() >= num_classes:
        raise ValueError(f"{split} has labels from {labels.min()} to {labels.max()}")
    order = np.argsort(indices, kind="stable")
    return Split(
        ids[order],
        indices[order],
        columns["image"][order],
        labels[order],
    )
