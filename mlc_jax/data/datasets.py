"""From a config to a `Dataset`: source, splits, noise."""

import dataclasses
import functools

import numpy as np
from ml_collections import ConfigDict

from mlc_jax import noise
from mlc_jax.data.sources import Source, Split, load_source
from mlc_jax.data.splits import split_rows

# Streams of the seeds, so that equal seeds for different purposes do not draw the same numbers.
_SPLIT_STREAM, _MATRIX_STREAM, _SAMPLE_STREAM = 1, 2, 3


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What a run trains and is evaluated on.

    Attributes:
      source: names, number of classes, normalisation.
      clean: examples with trusted labels.
      noisy: examples whose labels may be wrong; `noisy.labels` are the true ones, kept for
        measuring only and never shown to a training step.
      given_labels: `[len(noisy)]` int32, the labels that training sees.
      validation: examples with trusted labels to select a model by; may be empty.
      test: evaluated on, each example once.
    """

    source: Source
    clean: Split
    noisy: Split
    given_labels: np.ndarray
    validation: Split
    test: Split

    def clean_labels_spent(self, *, trained_on: bool) -> int:
        """Trusted labels that a run uses for anything but the test.

        Args:
          trained_on: whether its method trains on the clean set.
        """
        return len(self.validation) + (len(self.clean) if trained_on else 0)

    def seen(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """Inputs and labels as training sees them, of the set `noisy` or `clean`."""
        if name == "noisy":
            return self.noisy.inputs, self.given_labels
        return self.clean.inputs, self.clean.labels

    @property
    def noise_rate(self) -> float:
        """Share of given labels that are wrong."""
        return float(np.mean(self.given_labels != self.noisy.labels))

    def normalize(self, inputs: np.ndarray) -> np.ndarray:
        """Raw inputs `[B, ...]` to float32 of mean 0 and deviation 1; NumPy or JAX arrays."""
        scale = np.float32(1 / self.source.scale)
        mean = np.asarray(self.source.mean, np.float32)
        std = np.asarray(self.source.std, np.float32)
        return (inputs.astype(np.float32) * scale - mean) / std


def load(config: ConfigDict) -> Dataset:
    """Builds the dataset of `config.dataset` and `config.noise`; a pure function of the two.

    Raises:
      ValueError: naming the field, what was given and what would be right.
    """
    c = config.dataset
    source, clean, noisy, validation = _split_source(
        c.name, c.data_dir, c.download, c.clean_per_class, c.validation_per_class, c.split_seed
    )
    return Dataset(
        source=source,
        clean=clean,
        noisy=noisy,
        given_labels=_given_labels(config.noise, source, noisy),
        validation=validation,
        test=source.test,
    )


# Runs of one process that have a split in common share its arrays: of CIFAR they are 150 MB.
@functools.lru_cache(maxsize=5)
def _split_source(
    name: str,
    data_dir: str | None,
    download: bool,
    clean_per_class: int,
    validation_per_class: int,
    seed: int,
) -> tuple[Source, Split, Split, Split]:
    """The source, and its clean, noisy and validation examples."""
    source = load_source(name, data_dir, download=download)
    rows = split_rows(
        source.train.labels,
        source.num_classes,
        clean_per_class=clean_per_class,
        validation_per_class=validation_per_class,
        rng=np.random.default_rng([seed, _SPLIT_STREAM]),
    )
    clean, noisy, validation = (
        source.train.take(part) for part in (rows.clean, rows.noisy, rows.validation)
    )
    return source, clean, noisy, validation


def _given_labels(config: ConfigDict, source: Source, noisy: Split) -> np.ndarray:
    if config.type == "human":
        labels = noise.labels_from_file(
            config.file,
            config.key,
            num_labels=source.num_published,
            num_classes=source.num_classes,
        )
        return labels[noisy.indices]
    matrix = noise.transition_matrix(
        config.type,
        config.level,
        source.num_classes,
        np.random.default_rng([config.seed, _MATRIX_STREAM]),
    )
    rng = np.random.default_rng([config.seed, _SAMPLE_STREAM])
    return noise.corrupt(noisy.labels, matrix, rng)
