"""Datasets of TensorFlow Datasets, and clear errors if one is missing."""

import importlib
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from mlc_jax import paths
from mlc_jax.errors import InputError

_READ_BATCH = 1_000


def read_tfds(
    name: str,
    data_dir: str | None,
    read: Callable[[Any, str], Any],
    *,
    download: bool,
    folder: str,
    content: str,
) -> tuple[Any, Any, Any]:
    """TensorFlow Datasets' description of a dataset, and its splits `train` and `test`.

    Args:
      name, data_dir, download: see `benchmarks.images.cifar`.
      read: (builder, split) -> the split.
      folder: expected content of a `data_dir`, for messages.
      content: expected content of a dataset, for messages.

    Raises:
      InputError: data are missing or damaged.
    """
    tfds = _imported()

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
    except Exception as error:  # For damaged data TensorFlow and protobuf raise a dozen types.
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


def _imported() -> Any:
    importlib.import_module("mlc_jax.data.streaming")  # First, because it configures TensorFlow.
    return importlib.import_module("tensorflow_datasets")


def read_columns(builder: Any, split: str, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Columns `[N, ...]` of one split, with `label`, int32, in their order on the disk.

    Raises:
      FileNotFoundError: the split is empty.
      ValueError: a label is not one of the dataset's classes.
    """
    tfds = _imported()

    one_by_one = tfds.ReadConfig(interleave_cycle_length=1)  # Keeps the order fixed.
    dataset = builder.as_dataset(split=split, shuffle_files=False, read_config=one_by_one)
    batches = list(tfds.as_numpy(dataset.batch(_READ_BATCH)))
    if not batches:
        raise FileNotFoundError(f"split {split!r} is empty")
    columns = {key: np.concatenate([b[key] for b in batches]) for key in (*names, "label")}
    labels = columns["label"].astype(np.int32)
    if labels.min() < 0 or labels.max() >= builder.info.features["label"].num_classes:
        raise ValueError(f"{split} has labels from {labels.min()} to {labels.max()}")
    return columns | {"label": labels}
