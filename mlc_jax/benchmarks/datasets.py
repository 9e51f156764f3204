"""From a config to a `Dataset`: source, splits, noise."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mlc_jax import paths
from mlc_jax.benchmarks import clothing1m, images, noise, texts
from mlc_jax.benchmarks.splits import Rows, split_rows
from mlc_jax.data.dataset import Benchmark, Dataset
from mlc_jax.data.folds import PER_CLASS
from mlc_jax.data.source import UNKNOWN, Source, Subset, read_rows
from mlc_jax.errors import InputError
from mlc_jax.files import arrays, image_folder, table_files, text_files
from mlc_jax.files.label_columns import Said
from mlc_jax.files.own import FIELD, OwnData
from mlc_jax.files.pictures import Geometry

# Streams of the seeds, so that equal seeds for different purposes do not draw the same numbers.
_SPLIT_STREAM, _MATRIX_STREAM, _SAMPLE_STREAM = 1, 2, 3
# Kinds of own files: how they are read, and what their column of checked labels is called.
_OWN: dict[str, tuple[Callable[..., OwnData | Benchmark], str]] = {
    "arrays": (arrays.load, "checked_labels"),
    "image_folder": (image_folder.load, "checked_label"),
    "table": (table_files.load, "checked_label"),
    "text": (text_files.load, "checked_label"),
}

READ_AT_ONCE = ("table", "arrays")  # Read without JAX; others may need an encoder.


def load(config: ConfigDict, encode: Any = None) -> Dataset:
    """Builds the dataset of `config.dataset` and `config.noise`; the same files give the same one.

    Args:
      config: see `mlc_jax.config`.
      encode: maps inputs to the features of a frozen encoder: tokens of texts, see
        `text_files.Settings`, or files of pictures, see `image_folder.Options`. None trains on
        tokens, or on pixels.

    Raises:
      InputError: naming the field or file, what was given and what would be right.
    """
    c = config.dataset
    if c.name == "digits":
        return corrupted(images.digits(), config)
    tokenizer = c.tokenizer or config.model.bert.checkpoint
    tokens = text_files.Settings(tokenizer, c.max_length, c.cache_dir, encode)
    if c.name in texts.LAYOUTS:
        benchmark = texts.published(
            c.name, c.data_dir, tokens, tfds_name=c.tfds_name, download=c.download
        )
        return corrupted(benchmark, config)
    if c.name == "clothing1m":
        return _clothing1m(c.data_dir, image_options(config), paired=c.paired)
    if c.name not in _OWN:
        return corrupted(images.cifar(c.name, c.data_dir, download=c.download), config)
    files, checked = (c.data, c.noisy, c.clean, c.test), _listed("checked", c.checked)
    columns = [(x.partition("=")[0], x.partition("=")[2]) for x in _listed("columns", c.columns)]
    said = Said(
        _listed("label_columns", c.label_columns), c.votes, tuple(columns),
        tuple(x.strip() for x in _listed("class_names", c.class_names)),
    )  # fmt: skip
    if (said.columns or said.votes) and not c.data:
        name = "label_columns" if c.label_columns else "votes"
        raise InputError(f"{FIELD}{name}: got {c[name]!r}, expected none with dataset.noisy")
    if c.benchmark and not c.data:
        raise InputError(f"{FIELD}benchmark: got True, expected False with dataset.noisy")
    names = ["data", "noisy", "clean", "test", "votes", *("checked" for _ in checked)]
    stamps = tuple(
        paths.version(file, FIELD + name) if file else None
        for name, file in zip(names, (*files, c.votes, *checked), strict=True)
    )
    options: Any = {
        "arrays": c.standardize,
        "image_folder": image_options(config, encode),
        "table": table_files.Options(_listed("features", c.features), c.standardize),
        "text": tokens,
    }[c.name]
    own = _own_data(c.name, files, checked, c.drawn, said, stamps, options, c.benchmark)
    if isinstance(own, Benchmark):
        return corrupted(own, config)
    if config.noise.type != "none":
        raise InputError(
            f"config.noise.type: got {config.noise.type!r}, expected none: the labels of "
            f"{c.data!r} are taken as they are, since it has {_OWN[c.name][1]}"
        )
    return of_own(own, c.name)


def of_own(own: OwnData, name: str) -> Dataset:
    """A run's `Dataset` from own data; `name` is the kind of data."""
    return Dataset(
        name=name,
        class_names=own.class_names,
        noisy=own.noisy,
        clean=own.clean,
        validation=own.validation,
        test=own.test,
        prepare=own.prepare,
        noise="given",
        names_labels=True,
        columns=own.columns,
        left_out=own.left_out,
        drawn=own.drawn,
        source_names=own.source_names,
        copies=own.copies,
    )


@functools.lru_cache(maxsize=1)  # Runs of one process share their names and labels.
def _clothing1m(data_dir: str, options: image_folder.Options, *, paired: bool) -> Dataset:
    parts = clothing1m.load(data_dir, options)
    clean = parts.clean
    if not paired:
        clean = dataclasses.replace(clean, given=np.full_like(clean.given, UNKNOWN))
    return Dataset(
        name="clothing1m",
        class_names=clothing1m.CLASS_NAMES,
        noisy=parts.noisy,
        clean=clean,
        validation=parts.validation,
        test=parts.test,
        prepare=options.prepare,
        noise="given",
        names_labels=True,
        judged=parts.judged,
        left_out=parts.left_out,
    )


def image_options(
    config: ConfigDict, encode: image_folder.Encode | None = None
) -> image_folder.Options:
    """How pictures are read; see `image_folder.Options`."""
    c = config.dataset
    geometry = Geometry(c.image_size, c.resize_size, c.random_crop)
    return image_folder.Options(geometry, c.bad_images, c.cache_dir, c.standardize is None, encode)


def is_scaled(config: ConfigDict) -> bool:
    """Whether inputs are scaled by the noisy set's statistics; benchmarks are only if asked."""
    c = config.dataset
    by_data = c.name in ("arrays", "table") or bool(c.encoder)
    return bool(c.standardize or (c.standardize is None and by_data))


def _listed(setting: str, names: str | None) -> tuple[str, ...]:
    listed = () if names is None else tuple(names.split(","))
    if not all(listed) or len({*listed}) < len(listed):
        expected = "names with commas between them, each once, or None"
        raise InputError(f"{FIELD}{setting}: got {names!r}, expected {expected}")
    return listed


@functools.lru_cache(maxsize=1)  # Runs of one process share their data.
def _own_data(
    name: str,
    files: tuple[str | None, ...],
    checked: tuple[str, ...],
    drawn: str | None,
    said: Said,
    stamps: tuple[Any, ...],
    options: Any,
    benchmark: bool,
) -> OwnData | Benchmark:
    del stamps  # They are part of the cache's key: a changed file is read again.
    return _OWN[name][0](*files, options, checked, drawn, said, benchmark=benchmark)


def corrupted(benchmark: Benchmark, config: ConfigDict) -> Dataset:
    """Splits a benchmark, and adds label noise, as `config.dataset` and `config.noise` say."""
    c, truth = config.dataset, benchmark.train_labels
    sizes = (c.clean_per_class, c.validation_per_class, c.num_noisy, c.imbalance)
    rows = _split(benchmark, *sizes, c.split_seed)
    given = np.full_like(truth, UNKNOWN)
    given[rows.noisy], given[rows.clean] = _given_labels(config.noise, benchmark, rows)
    if not c.paired:
        given[rows.clean] = UNKNOWN

    def subset(part: np.ndarray) -> Subset:
        return Subset(benchmark.train, part, given[part], truth[part])

    noisy, clean = subset(rows.noisy), subset(rows.clean)
    prepare = benchmark.prepare
    if is_scaled(config):  # Never CIFAR's, see `config.relations`.
        prepare = arrays.scale(noisy, True if c.encoder else c.standardize)
    kind = config.noise.type
    level = {"human": config.noise.key, "none": ""}.get(kind, f"{config.noise.level:g}")
    return Dataset(
        name=benchmark.name,
        class_names=benchmark.class_names,
        noisy=noisy,
        clean=clean,
        validation=subset(rows.validation) if len(rows.validation) else None,
        test=Subset.whole(benchmark.test, truth=benchmark.test_labels) if benchmark.test else None,
        prepare=prepare,
        noise=f"{kind} {level}".strip(),
        names_labels=benchmark.names_labels,
        columns=benchmark.columns,
        drawn=np.full(len(clean), PER_CLASS),  # See `split_rows`.
        left_out=benchmark.left_out,
    )


@functools.lru_cache(maxsize=5)  # Runs of one process often have a split in common.
def _split(
    benchmark: Benchmark,
    clean_per_class: int,
    validation_per_class: int,
    num_noisy: int,
    imbalance: float,
    seed: int,
) -> Rows:
    return split_rows(
        benchmark.train_labels,
        benchmark.num_classes,
        clean_per_class=clean_per_class,
        validation_per_class=validation_per_class,
        num_noisy=num_noisy,
        imbalance=imbalance,
        rng=np.random.default_rng([seed, _SPLIT_STREAM]),
    )


def _given_labels(
    config: ConfigDict, benchmark: Benchmark, rows: Rows
) -> tuple[np.ndarray, np.ndarray]:
    """Labels as given, of the noisy and of the clean rows."""
    truth = benchmark.train_labels
    if config.type == "none":
        return truth[rows.noisy], truth[rows.clean]
    if config.type == "human":
        labels = noise.labels_from_file(
            config.file,
            config.key,
            num_labels=benchmark.num_published,
            num_classes=benchmark.num_classes,
        )
        published = benchmark.published_rows
        return labels[published[rows.noisy]], labels[published[rows.clean]]
    rule = config.level, benchmark.num_classes, np.random.default_rng([config.seed, _MATRIX_STREAM])
    rng = np.random.default_rng([config.seed, _SAMPLE_STREAM])
    # The noisy rows first: their labels are the same whether the clean ones are drawn or not.
    parts = (rows.noisy, rows.clean)
    if config.type == "instance":
        source = benchmark.train
        by_example = noise.InstanceNoise(_reader(source), len(source), *rule)
        noisy, clean = (by_example.corrupt(part, truth[part], rng) for part in parts)
    else:
        matrix = noise.transition_matrix(config.type, *rule)
        noisy, clean = (noise.corrupt(truth[part], matrix, rng) for part in parts)
    return noisy, clean


def _reader(source: Source) -> Callable[[np.ndarray], np.ndarray]:
    """Rows -> inputs, for noise that depends on them."""

    def read(rows: np.ndarray) -> np.ndarray:
        inputs = read_rows(source, rows)
        if not isinstance(inputs, np.ndarray):
            raise InputError(
                "config.noise.type: got 'instance', expected another: inputs of several arrays are "
                "no vector of features"
            )
        return inputs

    return read
