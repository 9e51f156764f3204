"""Sets the settings that a config leaves open, from the data."""

import math

from absl import logging
from ml_collections import ConfigDict

from mlc_jax.config import SIZED, value_of
from mlc_jax.data.dataset import Dataset
from mlc_jax.data.source import read_rows

# The settings of digits, 60 epochs of 1,387 noisy examples; steps grow with the square root of the
# number of examples.
_EPOCHS, _EPOCHS_AT = 60, 1_387
_FEWEST_EPOCHS, _MOST_EPOCHS = 10, 200
_STEPS_PER_EPOCH = 10
_SMALLEST_BATCH, _LARGEST_BATCH = 16, 100
_WIDTH, _LARGE_WIDTH = 64, 128
_LARGE = 20_000  # This many noisy examples make a large set.
_MANY_CLASSES = 20
_MOST_FEATURES = 1_000  # More are those of an encoder as a rule, which a linear model separates.


def fill(config: ConfigDict, dataset: Dataset) -> ConfigDict:
    """The config with a number for every setting whose 0 means "by the sizes of the data".

    Nothing depends on the devices, so a run may resume with more devices. Where `cross_fit` would
    train linear classifiers and ones with a hidden layer, many features make all of them linear.
    """
    num_noisy, num_clean = len(dataset.noisy), len(dataset.clean)
    epochs = round(_EPOCHS * math.sqrt(_EPOCHS_AT / num_noisy))
    is_large = num_noisy >= _LARGE or dataset.num_classes > _MANY_CLASSES
    width = _LARGE_WIDTH if is_large else _WIDTH
    chosen = {
        "num_epochs": _within(epochs, _FEWEST_EPOCHS, _MOST_EPOCHS),
        "noisy_batch_size": _within(num_noisy // _STEPS_PER_EPOCH, _SMALLEST_BATCH, _LARGEST_BATCH),
        # One half of every clean batch judges the other.
        "clean_batch_size": max(2, min(num_clean, _LARGEST_BATCH) // 2 * 2),
        "lcn.hidden_size": width,
        "lcn.embedding_size": width,
    }
    assert chosen.keys() == set(SIZED)
    filled = config.copy_and_resolve_references()
    if config.method == "cross_fit" and config.cross_fit.hidden_sizes is None:
        num_features = _num_features(dataset)
        if num_features is None or num_features > _MOST_FEATURES:
            filled.cross_fit.hidden_sizes = ()
    flat = {name: x for name, x in chosen.items() if not value_of(config, name)}
    if flat:
        filled.update_from_flattened_dict(flat)
    if flat and config.method != "cross_fit":  # It does not use them.
        logging.info(
            "From %d noisy and %d clean examples of %d classes: %s.", num_noisy, num_clean,
            dataset.num_classes, ", ".join(f"{name}={x}" for name, x in flat.items()),
        )  # fmt: skip
    return filled


def _num_features(dataset: Dataset) -> int | None:
    """None for tokens, which are no features."""
    some = dataset.noisy if len(dataset.noisy) else dataset.clean
    prepared = dataset.prepare(read_rows(some.source, some.rows[:1]))
    return int(prepared.size) if hasattr(prepared, "size") else None


def _within(number: int, low: int, high: int) -> int:
    return max(low, min(number, high))
