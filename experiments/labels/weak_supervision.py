"""Labels of many sources: rules and annotators, compared with other tools.

    pip install crowd-kit cleanlab
    python -m experiments.labels.weak_supervision --data=DIR --checkpoint=MINILM --workdir=OUT

`--data` holds `weak/youtube` and `weak/trec` as WRENCH has them (`train.jsonl.gz`, `test.jsonl.gz`:
`text`, `label`, `weak_labels`) and `crowd/labelme.npz`; texts become features by the frozen encoder
of `--checkpoint`. Two sets need no files: `wine_annotators` (scikit-learn's wine by five annotators
of different skill, who label a part each) and `cancer_rules` (breast cancer by twelve rules, each a
threshold on one column that its authors set by twenty rows). A few rows are checked. In OUT:
`weak_supervision.csv`, a row for each draw, and `weak_supervision.md`.

Columns are percent right of test rows. Rivals make soft labels, and then train the same classifier,
scikit-learn's `LogisticRegression(C=1)`, on them: the share of votes (majority), Dawid-Skene, GLAD
and MACE of crowd-kit, and CROWDLAB of cleanlab. With `+`, the labels of checked rows replace
theirs. `cross_fit` is this project's, once with the majority vote as the only given label and once
with all votes.
"""

import functools
import gzip
import importlib.util
import json
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from etils import epath
from tqdm import tqdm

from experiments.labels.cross_fitted import Draw, fit
from experiments.records import Records, Row, clear_programs
from experiments.tables import to_csv, to_markdown, values, where
from mlc_jax import command_line, methods, models, paths
from mlc_jax.data import UNKNOWN, folds
from mlc_jax.data.votes import prepared
from mlc_jax.errors import expect

_WORKDIR = flags.DEFINE_string("workdir", "", "Directory for the tables.")
_DATA = flags.DEFINE_string("data", "", "Directory with weak/ and crowd/.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "Encoder of texts: a directory, or a hub name.")
_SETS = flags.DEFINE_string("sets", "all", "Some of the sets, or all.")
_CHECKED = flags.DEFINE_string("checked", "per_class:5,per_class:20", "Which rows are checked.")
_DRAWS = flags.DEFINE_integer("draws", 10, "Of checked rows.", lower_bound=1)
_FIRST = flags.DEFINE_integer("first_draw", 0, "Number of the first draw.", lower_bound=0)

_SEED = 20  # For the sets that are made here.
_SKILLS = ((0.9, 0.3), (0.75, 0.6), (0.7, 0.9), (0.5, 0.8), (0.34, 0.5))  # Right, share of rows.
_NUM_RULES, _RULE_ROWS = 12, 20
_POOL = "cross_fit, all votes"
_SOFT_FLOOR = 1e-3  # Less probable labels are not trained on.


class VoteSet(NamedTuple):
    """Rows to train with and rows to test on, of one table.

    Attributes:
      features: `[N, F]`.
      labels: `[N]`, true.
      votes: `[n, S]`, for the first n rows, the training rows; UNKNOWN stands for no label.
      test: test rows.
    """

    features: np.ndarray
    labels: np.ndarray
    votes: np.ndarray
    test: slice

    @property
    def num_classes(self) -> int:
        return int(self.labels.max()) + 1


def _wrench(name: str) -> VoteSet:
    from mlc_jax.encoders.encoding import TextReader

    rows = {}
    for part in ("train", "test"):
        path = pathlib.Path(_DATA.value) / "weak" / name / f"{part}.jsonl.gz"
        expect(
            path.is_file(), "--data", _DATA.value, f"a directory with weak/{name}/{part}.jsonl.gz"
        )
        with gzip.open(path, "rt", encoding="utf-8") as file:
            rows[part] = [json.loads(line) for line in file]
    expect(bool(_CHECKPOINT.value), "--checkpoint", _CHECKPOINT.value, "an encoder for texts")
    everything = rows["train"] + rows["test"]
    source = TextReader(_CHECKPOINT.value)([row["text"] for row in everything])
    return VoteSet(
        np.asarray(source.inputs),  # type: ignore[attr-defined]
        np.array([row["label"] for row in everything], np.int32),
        np.array([row["weak_labels"] for row in rows["train"]], np.int32),
        slice(len(rows["train"]), None),
    )


def _labelme() -> VoteSet:
    path = pathlib.Path(_DATA.value) / "crowd" / "labelme.npz"
    expect(path.is_file(), "--data", _DATA.value, "a directory with crowd/labelme.npz")
    with np.load(path) as arrays:
        x, y = (np.concatenate([arrays[f"{part}_{name}"] for part in ("train", "test")])
                for name in ("x", "y"))  # fmt: skip
        votes = arrays["train_v"].astype(np.int32)
    return VoteSet(x.astype(np.float32), y.astype(np.int32), votes, slice(len(votes), None))


def _split(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Standardised data in a random order, and the number of training rows: seven in ten."""
    order = np.random.default_rng(_SEED).permutation(len(y))
    x = (x - x.mean(axis=0)) / x.std(axis=0)
    return x[order].astype(np.float32), y[order].astype(np.int32), round(0.7 * len(y))


def _wine_annotators() -> VoteSet:
    from sklearn.datasets import load_wine

    x, y, size = _split(*load_wine(return_X_y=True))
    rng = np.random.default_rng(_SEED)
    votes = np.full((size, len(_SKILLS)), UNKNOWN, np.int32)
    for number, (right, often) in enumerate(_SKILLS):
        said = np.where(rng.random(size) < right, y[:size], rng.integers(0, 3, size))
        votes[:, number] = np.where(rng.random(size) < often, said, UNKNOWN)
    return VoteSet(x, y, votes, slice(size, None))


def _cancer_rules() -> VoteSet:
    """Each rule votes for one class beyond a threshold of one column, else for none."""
    from sklearn.datasets import load_breast_cancer

    x, y, size = _split(*load_breast_cancer(return_X_y=True))
    rng = np.random.default_rng(_SEED)
    votes = np.full((size, _NUM_RULES), UNKNOWN, np.int32)
    for number, column in enumerate(rng.choice(x.shape[1], _NUM_RULES, replace=False)):
        seen, label = rng.choice(size, _RULE_ROWS, replace=False), number % 2
        of_label = x[seen, column][y[seen] == label]
        sign = 1 if of_label.mean() > x[seen, column].mean() else -1
        fires = sign * x[:size, column] > sign * np.median(of_label)
        votes[fires, number] = label
    return VoteSet(x, y, votes, slice(size, None))


SETS: dict[str, Callable[[], VoteSet]] = {
    "trec": functools.partial(_wrench, "trec"),
    "youtube": functools.partial(_wrench, "youtube"),
    "labelme": _labelme,
    "wine_annotators": _wine_annotators,
    "cancer_rules": _cancer_rules,
}


def draw(data: VoteSet, checked: str, number: int) -> Draw:
    """Draws checked rows among those with votes: `per_class:N`, or `random:N`."""
    how, _, count = checked.partition(":")
    size = len(data.votes)
    truth = data.labels[:size]
    order = np.random.default_rng([number, int(count), 1]).permutation(size)
    is_checked = np.zeros(size, bool)
    if how == "random":
        is_checked[order[: int(count)]] = True
    for label in range(data.num_classes if how == "per_class" else 0):
        of_class = order[truth[order] == label]
        is_checked[of_class[: min(int(count), len(of_class) // 2)]] = True
    return Draw(np.arange(size), data.votes, truth, is_checked)


def _by_crowdkit(name: str, votes: np.ndarray, num_classes: int) -> np.ndarray:
    """Soft labels `[n, C]` of an aggregator; NaN without any label."""
    import pandas
    from crowdkit.aggregation import GLAD, MACE, DawidSkene

    task, worker = np.nonzero(votes != UNKNOWN)
    table = pandas.DataFrame({"task": task, "worker": worker, "label": votes[task, worker]})
    model: Any = {
        "dawid_skene": functools.partial(DawidSkene, n_iter=100),
        "glad": functools.partial(GLAD, n_iter=30, silent=True),
        "mace": functools.partial(MACE, n_restarts=3, n_iter=30, random_state=0, verbose=0),
    }[name]()
    probs = model.fit_predict_proba(table).fillna(0.0)
    soft = np.full((len(votes), num_classes), np.nan)
    soft[probs.index] = 0
    for label in probs.columns:
        soft[probs.index, label] = probs[label]
    return soft


def _shares(votes: np.ndarray, num_classes: int) -> np.ndarray:
    """The share of votes `[n, C]`; NaN where there are none."""
    counts = (votes[:, :, None] == np.arange(num_classes)).sum(axis=1).astype(float)
    with np.errstate(invalid="ignore"):
        shares: np.ndarray = counts / counts.sum(axis=1, keepdims=True)
    return shares


def _crowdlab(x: np.ndarray, votes: np.ndarray, num_classes: int) -> np.ndarray:
    """cleanlab's consensus of annotators and a classifier that did not see the row."""
    from cleanlab.multiannotator import get_label_quality_multiannotator, get_majority_vote_label
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    there = np.flatnonzero((votes != UNKNOWN).any(axis=1))
    said = np.where(votes[there] == UNKNOWN, np.nan, votes[there])
    most = get_majority_vote_label(said)
    model = LogisticRegression(C=1, max_iter=300)
    folded = cross_val_predict(model, x[there], most, method="predict_proba")
    probs = np.full((len(there), num_classes), 1e-6)
    probs[:, np.unique(most)] = folded
    probs /= probs.sum(axis=1, keepdims=True)
    found = get_label_quality_multiannotator(said, probs, verbose=False)["label_quality"]
    soft = np.full((len(votes), num_classes), np.nan)
    soft[there] = np.eye(num_classes)[found["consensus_label"].to_numpy().astype(int)]
    return soft


def _learned(x: np.ndarray, soft: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Predictions of a classifier of soft labels `[n, C]`; rows of NaN are left out."""
    from sklearn.linear_model import LogisticRegression

    known = ~np.isnan(soft[:, 0])
    rows, labels = np.nonzero(known[:, None] & (np.nan_to_num(soft) > _SOFT_FLOOR))
    if len(np.unique(labels)) == 1:
        return np.full(len(test), labels[0])
    model = LogisticRegression(C=1, max_iter=300)
    said: np.ndarray = model.fit(x[rows], labels, sample_weight=soft[rows, labels]).predict(test)
    return said


def soft_labels(data: VoteSet) -> dict[str, np.ndarray]:
    """Soft labels by each installed rival, without the checked rows."""
    votes, num_classes = data.votes, data.num_classes
    found = {"majority": _shares(votes, num_classes)}
    if importlib.util.find_spec("crowdkit"):
        for name in ("dawid_skene", "glad", "mace"):
            found[name] = _by_crowdkit(name, votes, num_classes)
    if importlib.util.find_spec("cleanlab"):
        found["crowdlab"] = _crowdlab(data.features[: len(votes)], votes, num_classes)
    return found


def _percent(data: VoteSet, said: np.ndarray) -> float:
    return float(100 * np.mean(said == data.labels[data.test]))


def without_checks(data: VoteSet, by_rival: dict[str, np.ndarray]) -> Row:
    """Percent of test rows right for models that know no checked row, or all true labels."""
    x, test = data.features[: len(data.votes)], data.features[data.test]
    one_hot = np.eye(data.num_classes)[data.labels[: len(x)]]
    labels = by_rival | {"all true": one_hot}
    return {name: _percent(data, _learned(x, soft, test)) for name, soft in labels.items()}


def with_checks(data: VoteSet, by_rival: dict[str, np.ndarray], cell: Draw) -> Row:
    """Percent of test rows right for models that know the checked rows."""
    x, test = data.features[: len(data.votes)], data.features[data.test]
    one_hot, checked = np.eye(data.num_classes)[cell.truth], cell.checked[:, None]
    found = {"checked rows alone": _learned(x, np.where(checked, one_hot, np.nan), test)}
    for name, soft in by_rival.items():
        found[f"{name} +"] = _learned(x, np.where(checked, one_hot, soft), test)
    return {name: _percent(data, said) for name, said in found.items()}


def measure(name: str, checked: str, draws: Sequence[int]) -> list[Row]:
    """All draws of a set."""
    data, cells = SETS[name](), []
    for number in draws:
        cells.append(draw(data, checked, number))
    drawn = folds.RANDOM if checked.startswith("random") else folds.PER_CLASS
    method = methods.cross_fit(model=models.MLP(data.num_classes, ()))
    alone, together = [], []
    sources = [str(i) for i in range(data.votes.shape[1])]
    for cell in cells:
        seen = np.where(cell.checked, cell.truth, UNKNOWN)
        most, votes = prepared(cell.votes, seen, sources, data.num_classes)
        alone.append(cell._replace(votes=most[:, None]))
        together.append(cell._replace(votes=votes))
    by_rival = soft_labels(data)
    same_for_all = without_checks(data, by_rival)
    rows: list[Row] = [
        {"set": name, "checked": checked, "draw": number}
        | with_checks(data, by_rival, cell)
        | same_for_all
        for number, cell in zip(draws, cells, strict=True)
    ]
    for column, given in (("cross_fit, majority", alone), (_POOL, together)):
        fitted = fit(method, data.features, given, drawn)
        clear_programs()
        for row, cell, result in zip(rows, cells, fitted, strict=True):
            said = result.probs[data.test].argmax(axis=1)
            row[column] = _percent(data, said)
            doubtful = ~cell.checked
            labels = result.out_of_fold["corrected"][: doubtful.sum()].argmax(axis=1)
            row[f"labels, {column}"] = float(100 * np.mean(labels == cell.truth[doubtful]))
    return rows


def tables(rows: Sequence[Row]) -> str:
    """Markdown: a column for each set and choice of checked rows, means over draws.

    The last line is the paired gap of `cross_fit` with all votes to the best of all others that do
    not know all true labels, with its standard error.
    """
    columns = list(dict.fromkeys(x for row in rows for x in row if x not in ("set", "checked")))
    columns = [x for x in columns if x != "draw" and not x.startswith("labels")]
    cells = [
        where(rows, set=name, checked=checked)
        for name in values(rows, "set")
        for checked in values(rows, "checked")
    ]
    cells = [cell for cell in cells if cell]
    means = [
        {x: np.mean([row[x] for row in cell]) for x in columns if x in cell[0]} for cell in cells
    ]
    body = [[x, *(f"{mean[x]:.1f}" if x in mean else "" for mean in means)] for x in columns]
    gaps = ["gap to the best"]
    for cell, mean in zip(cells, means, strict=True):
        others = mean.keys() - {"all true", _POOL}
        best = max(sorted(others), key=mean.__getitem__)
        gap = [row[_POOL] - row[best] for row in cell]
        error = float(np.std(gap, ddof=1) / np.sqrt(len(gap))) if len(gap) > 1 else 0.0
        gaps.append(f"{np.mean(gap):+.1f} ± {error:.1f} ({best})")
    header = ["", *(f"{cell[0]['set']}, {cell[0]['checked']}" for cell in cells)]
    return to_markdown(header, [*body, gaps])


def main() -> None:
    """Measures what is missing, and writes the tables."""
    sets = tuple(SETS) if _SETS.value == "all" else tuple(_SETS.value.split(","))
    for name in sets:
        expect(name in SETS, "--sets", name, f"some of {', '.join(SETS)}")
    choices = _CHECKED.value.split(",")
    for choice in choices:
        how, _, count = choice.partition(":")
        ok = how in ("random", "per_class") and count.isdecimal() and int(count) > 0
        expect(ok, "--checked", choice, "random:N or per_class:N")
    draws = range(_FIRST.value, _FIRST.value + _DRAWS.value)
    workdir = epath.Path(paths.absolute(_WORKDIR.value, "--workdir"))
    workdir.mkdir(parents=True, exist_ok=True)
    records = Records(workdir / "cells.jsonl", {"draws": list(draws)})
    rows: list[Row] = []
    for name in tqdm(sets, disable=None, unit="set"):
        for choice in choices:
            place = {"set": name, "checked": choice}
            rows += records.get(place, functools.partial(measure, name, choice, list(draws)))
    paths.write(workdir / "weak_supervision.csv", to_csv(rows).encode())
    text = tables(rows)
    paths.write(workdir / "weak_supervision.md", text.encode())
    print(text)


if __name__ == "__main__":
    command_line.run(main, required=["workdir"])
