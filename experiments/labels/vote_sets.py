"""Sets with many given labels per row: read from files, or made from tables.

`KIND:TABLE` is a table of `tables_of_people` with labels that are made anew in each draw. Kinds:

* `annotators`: five. Each is right in a share of rows between chance and 95 %, makes its own
  mistakes, and labels between 20 and 100 % of the rows.
* `crowd`: twenty annotators, most of them good; each row has labels from one to three of them.
* `rules`: ten. Each gives one class to the rows beyond a threshold of one column, which was set on
  twenty rows.
"""

import functools
import gzip
import json
import pathlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments.labels.cross_fitted import Draw
from experiments.labels.tables_of_people import MANY, TABLES
from mlc_jax.data import UNKNOWN
from mlc_jax.errors import expect

# Every third; without the two that something was chosen on.
MANY_SETS = tuple(x for x in list(MANY)[2::3] if x not in ("Tuna", "mexico"))
_UNSEEN = 0.3  # Of the tables' rows.
_NUM_ANNOTATORS, _NUM_WORKERS, _NUM_RULES, _RULE_ROWS = 5, 20, 10, 20


class VoteSet(NamedTuple):
    """Rows to train with and rows to test on, of one table.

    Attributes:
      features: `[N, F]`.
      labels: `[N]`, true.
      rows: `[n]`, the training rows.
      votes: `[n, S]`, theirs; UNKNOWN stands for no label.
      test: `[u]`, the test rows.
    """

    features: np.ndarray
    labels: np.ndarray
    rows: np.ndarray
    votes: np.ndarray
    test: np.ndarray

    @property
    def num_classes(self) -> int:
        return int(self.labels.max()) + 1


def _wrench(name: str, directory: str, checkpoint: str) -> VoteSet:
    from mlc_jax.encoders.encoding import TextReader

    rows = {}
    for part in ("train", "test"):
        path = pathlib.Path(directory) / "weak" / name / f"{part}.jsonl.gz"
        expect(path.is_file(), "--data", directory, f"a directory with weak/{name}/{part}.jsonl.gz")
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows[part] = [json.loads(line) for line in file]
    expect(bool(checkpoint), "--checkpoint", checkpoint, "an encoder for texts")
    everything = rows["train"] + rows["test"]
    source = TextReader(checkpoint)([row["text"] for row in everything])
    return VoteSet(
        np.asarray(source.inputs),  # type: ignore[attr-defined]
        np.array([row["label"] for row in everything], np.int32),
        np.arange(len(rows["train"])),
        np.array([row["weak_labels"] for row in rows["train"]], np.int32),
        np.arange(len(rows["train"]), len(everything)),
    )


def _labelme(directory: str, _: str) -> VoteSet:
    path = pathlib.Path(directory) / "crowd" / "labelme.npz"
    expect(path.is_file(), "--data", directory, "a directory with crowd/labelme.npz")
    with np.load(path) as arrays:
        x, y = (np.concatenate([arrays[f"{part}_{name}"] for part in ("train", "test")])
                for name in ("x", "y"))  # fmt: skip
        votes = arrays["train_v"].astype(np.int32)
    size = len(votes)
    rows, test = np.arange(size), np.arange(size, len(y))
    return VoteSet(x.astype(np.float32), y.astype(np.int32), rows, votes, test)


def _annotators(rng: np.random.Generator, _: np.ndarray, y: np.ndarray, c: int) -> np.ndarray:
    votes = np.full((len(y), _NUM_ANNOTATORS), UNKNOWN, np.int32)
    for number in range(_NUM_ANNOTATORS):
        right, often = rng.uniform(1 / c, 0.95), rng.uniform(0.2, 1.0)
        # For each class, the distribution of its wrong labels.
        taken = np.stack([np.insert(rng.dirichlet(np.ones(c - 1)), k, 0.0) for k in range(c)])
        wrong = (taken.cumsum(axis=1)[y] < rng.random(len(y))[:, None]).sum(axis=1)
        said = np.where(rng.random(len(y)) < right, y, np.minimum(wrong, c - 1))
        votes[:, number] = np.where(rng.random(len(y)) < often, said, UNKNOWN)
    return votes


def _crowd(rng: np.random.Generator, _: np.ndarray, y: np.ndarray, c: int) -> np.ndarray:
    votes = np.full((len(y), _NUM_WORKERS), UNKNOWN, np.int32)
    right = 1 / c + (1 - 1 / c) * rng.beta(3, 1.5, _NUM_WORKERS)
    often = 0.7 * rng.dirichlet(np.ones(_NUM_WORKERS)) + 0.3 / _NUM_WORKERS
    for row, label in enumerate(y):
        for number in rng.choice(_NUM_WORKERS, rng.integers(1, 4), replace=False, p=often):
            is_right = rng.random() < right[number]
            votes[row, number] = label if is_right else rng.integers(0, c)
    return votes


def _rules(rng: np.random.Generator, x: np.ndarray, y: np.ndarray, c: int) -> np.ndarray:
    columns = np.flatnonzero(x.std(axis=0) > 0)
    chosen = rng.choice(columns, _NUM_RULES, replace=len(columns) < _NUM_RULES)
    votes = np.full((len(y), _NUM_RULES), UNKNOWN, np.int32)
    for number, column in enumerate(chosen):
        seen, label = rng.choice(len(y), _RULE_ROWS, replace=False), number % c
        of_label = x[seen, column][y[seen] == label]
        if len(of_label) == 0:
            continue  # Its authors saw no row of that class.
        sign = 1 if of_label.mean() > x[seen, column].mean() else -1
        votes[sign * x[:, column] > sign * np.median(of_label), number] = label
    return votes


KINDS: dict[str, Callable[..., np.ndarray]] = {
    "annotators": _annotators,
    "crowd": _crowd,
    "rules": _rules,
}
FILES: dict[str, Callable[[str, str], VoteSet]] = {
    "trec": functools.partial(_wrench, "trec"),
    "youtube": functools.partial(_wrench, "youtube"),
    "labelme": _labelme,
}


@functools.lru_cache(maxsize=1)  # Texts are encoded once for all draws.
def _of_files(name: str, directory: str, checkpoint: str) -> VoteSet:
    return FILES[name](directory, checkpoint)


def load(name: str, number: int, directory: str = "", checkpoint: str = "") -> VoteSet:
    """A set by its name; of tables, the draw `number` of rows and votes.

    Args:
      name: one of FILES, or KIND:TABLE.
      number: of the draw.
      directory: of the files.
      checkpoint: an encoder for texts.
    """
    if name in FILES:
        return _of_files(name, directory, checkpoint)
    kind, table_name = name.split(":")
    table = TABLES[table_name]()
    place = list(KINDS).index(kind), list(TABLES).index(table_name)
    rng = np.random.default_rng([number, *place])
    order = rng.permutation(len(table.labels))
    test, rows = np.split(order, [round(_UNSEEN * len(order))])
    num_classes = int(table.labels.max()) + 1
    votes = KINDS[kind](rng, table.features[rows], table.labels[rows], num_classes)
    # A source that says nothing is dropped, as for own files.
    votes = votes[:, (votes != UNKNOWN).any(axis=0)]
    return VoteSet(table.features, table.labels, rows, votes, test)


def draw(data: VoteSet, checked: str, number: int) -> Draw:
    """Draws checked rows: `per_class:N`, or `random:N`."""
    how, _, count = checked.partition(":")
    size = len(data.votes)
    truth = data.labels[data.rows]
    order = np.random.default_rng([number, int(count), 1]).permutation(size)
    is_checked = np.zeros(size, bool)
    if how == "random":
        is_checked[order[: int(count)]] = True
    for label in range(data.num_classes if how == "per_class" else 0):
        of_class = order[truth[order] == label]
        is_checked[of_class[: min(int(count), len(of_class) // 2)]] = True
    return Draw(data.rows, data.votes, truth, is_checked)
