"""The text benchmarks of Zhang, Zhao and LeCun (2015), as published."""

import functools
from array import array
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from mlc_jax import paths
from mlc_jax.data.dataset import Benchmark
from mlc_jax.data.prepare import identity
from mlc_jax.data.tfds import read_columns, read_tfds
from mlc_jax.errors import InputError
from mlc_jax.files.own import FIELD
from mlc_jax.files.tables import Table
from mlc_jax.files.text_files import Settings
from mlc_jax.files.tokens import Texts

_STARS = ("1 star", "2 stars", "3 stars", "4 stars", "5 stars")
# The README of the published files mentions only \n; reviews have \" as well. In AG News it escapes
# nothing: each stands where a line was broken (`dwindling\band of ultra-cynics`).
_ESCAPES = (("\\n", "\n"), ('\\"', '"'))
_BROKEN_LINES = (("\\", "\n"),)


class Layout(NamedTuple):
    """A published benchmark: files without a header, whose first column is the class, from 1.

    Attributes:
      class_names: in their order.
      columns: after the first; joined by a blank, they are the text.
      num_published: training examples.
      escapes: (as written, what it means).
    """

    class_names: tuple[str, ...]
    columns: tuple[str, ...]
    num_published: int
    escapes: tuple[tuple[str, str], ...]


LAYOUTS = {
    "ag_news": Layout(
        ("World", "Sports", "Business", "Sci/Tech"),
        ("title", "description"),
        120_000,
        _BROKEN_LINES,
    ),
    "yelp5": Layout(_STARS, ("text",), 650_000, _ESCAPES),
    "amazon5": Layout(_STARS, ("title", "text"), 3_000_000, _ESCAPES),
    "yahoo": Layout(
        (
            "Society & Culture", "Science & Mathematics", "Health", "Education & Reference",
            "Computers & Internet", "Sports", "Business & Finance", "Entertainment & Music",
            "Family & Relationships", "Politics & Government",
        ),
        ("question title", "question", "answer"),
        1_400_000,
        _ESCAPES,
    ),
}  # fmt: skip


@functools.lru_cache(maxsize=1)  # Runs of one process share their labels and caches.
def published(
    name: str,
    data_dir: str | None,
    settings: Settings,
    *,
    tfds_name: str | None = None,
    download: bool = False,
) -> Benchmark:
    """A published benchmark.

    Args:
      name: a key of `LAYOUTS`.
      data_dir: a directory with `train.csv` and `test.csv`; with `tfds_name`, one of TensorFlow
        Datasets, None for its default.
      settings: see `Settings`.
      tfds_name: a builder of TensorFlow Datasets to read in place of the files, with the features
        `text`, or `title` and `description`, and `label`.
      download: whether TensorFlow Datasets may fetch what is missing.

    Raises:
      InputError: data that are missing or wrong.
    """
    layout, make_source = LAYOUTS[name], settings.source_maker()
    train, test = read_published(name, data_dir, tfds_name=tfds_name, download=download)
    labels = train[1]
    return Benchmark(
        name=name,
        class_names=layout.class_names,
        train=make_source(train[0], id_format="train_{:06d}"),
        train_labels=labels,
        published_rows=np.arange(len(labels)),
        num_published=len(labels) if tfds_name else layout.num_published,
        test=make_source(test[0], id_format="test_{:06d}"),
        test_labels=test[1],
        prepare=identity,
    )


def read_published(
    name: str, data_dir: str | None, *, tfds_name: str | None = None, download: bool = False
) -> tuple[tuple[Texts, np.ndarray], tuple[Texts, np.ndarray]]:
    """Texts and labels `[N]` int32, to train and to test on.

    Args and errors are those of `published`.
    """
    layout = LAYOUTS[name]
    if tfds_name is None:
        assert data_dir is not None
        files = [f"{data_dir}/{x}.csv" for x in ("train", "test")]
        for file in files:
            if not paths.local(file, f"{FIELD}data_dir").is_file():
                raise InputError(
                    f"{FIELD}data_dir: no file {file!r}; expected the train.csv and test.csv "
                    f"of the published {name}"
                )
        train, test = (_read_published(layout, file) for file in files)
        return train, test
    _, train, test = read_tfds(
        tfds_name,
        data_dir,
        functools.partial(_read_builder, layout),
        download=download,
        folder=f"{tfds_name}/",
        content=f"text, or title and description, and {len(layout.class_names)} labels",
    )
    return train, test


def _read_published(layout: Layout, path: str) -> tuple[Texts, np.ndarray]:
    table = Table(f"{FIELD}data_dir", path, header=["class", *layout.columns])
    numbers = {str(i + 1): i for i in range(len(layout.class_names))}
    labels = array("i")

    def texts_with_labels() -> Iterator[str]:
        for line, (number, *parts) in table.rows(["class", *layout.columns]):
            if number not in numbers:
                table.fail(f"class is {number!r}, expected 1 to {len(numbers)}", line)
            labels.append(numbers[str(number)])
            yield _joined(parts, layout)

    def read() -> Iterator[str]:
        return (_joined(parts, layout) for _, parts in table.rows(layout.columns))

    texts = Texts.scan(read, texts_with_labels())
    if not texts.size:
        table.fail("has no row, expected one for each example")
    return texts, np.array(labels, np.int32)


def _read_builder(layout: Layout, builder: Any, split: str) -> tuple[Texts, np.ndarray]:
    features = builder.info.features
    if features["label"].num_classes != len(layout.class_names):
        raise ValueError(f"{features['label'].num_classes} classes")
    names = ["text"] if "text" in features else ["title", "description"]
    columns = read_columns(builder, split, names)

    def read() -> Iterator[str]:
        for parts in zip(*(columns[name] for name in names), strict=True):
            yield _joined([part.decode() for part in parts], layout)

    return Texts.scan(read), columns["label"]


def _joined(parts: list[str | None], layout: Layout) -> str:
    text = " ".join(part for part in parts if part)
    for written, meant in layout.escapes:
        text = text.replace(written, meant)
    return text
