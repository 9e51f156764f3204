"""Labels of many sources: rules and annotators, compared with other tools.

    pip install crowd-kit cleanlab snorkel
    python -m experiments.labels.weak_supervision --data=DIR --checkpoint=MINILM --workdir=OUT

`--data` holds `weak/youtube` and `weak/trec` as WRENCH has them (`train.jsonl.gz`, `test.jsonl.gz`:
`text`, `label`, `weak_labels`) and `crowd/labelme.npz`; texts become features by the frozen encoder
of `--checkpoint`. Other sets need no files: `KIND:TABLE` is a table of `tables_of_people` with
votes of `annotators`, a `crowd` or `rules`, see `vote_sets`; three rows in ten are for tests.
`KIND:many` is fifteen of them. A few rows are checked. In OUT: `weak_supervision.csv`, a row for
each draw, and `weak_supervision.md`.

Tables are percent right: of the test rows, and of the doubtful rows. Rivals make soft labels, and
train the same classifier on them, scikit-learn's `LogisticRegression(C=1)`. They are the share of
votes (majority), Dawid-Skene, GLAD and MACE of crowd-kit, Snorkel's label model, and CROWDLAB of
cleanlab; those whose package is installed. With `+`, the labels of checked rows replace theirs.
Where a row has no vote, the classifier labels it. Two columns know what nobody knows: `all true` is
a classifier of all true labels, and `true matrices` counts the confusion matrix of each source on
all true labels. So it shows how far sources alone can lead, if one knows what they are worth.
`cross_fit` is this project's, once with the majority vote as the only given label and once with all
votes. `mlc`, the paper's method, gets both, too. It learns by the meta-gradient alone, or also by
the likelihood of checked rows (`pairs`); its classifier is linear as well. `robust_mlc` is the same
with its defaults. `--beside` says what to compare `cross_fit` with.
"""

import collections
import dataclasses
import functools
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from etils import epath
from tqdm import tqdm

import mlc_jax as mlc
from experiments.labels.cross_fitted import Draw, fit
from experiments.labels.tables_of_people import TABLES
from experiments.labels.vote_sets import FILES, KINDS, MANY_SETS, VoteSet, draw, load
from experiments.records import Records, Row, clear_programs
from experiments.tables import to_csv, to_markdown
from mlc_jax import command_line, methods, models, paths
from mlc_jax.data import UNKNOWN, folds
from mlc_jax.data.votes import prepared
from mlc_jax.errors import expect
from mlc_jax.models import label_model

_WORKDIR = flags.DEFINE_string("workdir", "", "Directory for the tables.")
_DATA = flags.DEFINE_string("data", "", "Directory with weak/ and crowd/.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "Encoder of texts: a directory, or a hub name.")
_RIVALS = ("rivals", "mlc", "robust_mlc")
_ALL = ("trec", "youtube", "labelme", "annotators:wine", "rules:breast_cancer")
_SETS = flags.DEFINE_string("sets", "all", f"all is {', '.join(_ALL)}; or KIND:TABLE, KIND:many.")
_BESIDE = flags.DEFINE_list("beside", ["rivals"], f"What to compare with: {', '.join(_RIVALS)}.")
_CHECKED = flags.DEFINE_string("checked", "per_class:5,per_class:20", "Which rows are checked.")
_DRAWS = flags.DEFINE_integer("draws", 10, "Of checked rows.", lower_bound=1)
_FIRST = flags.DEFINE_integer("first_draw", 0, "Number of the first draw.", lower_bound=0)

_POOL, _LABELS = "cross_fit, all votes", "labels, "
_CROWDLAB_FOLDS, _SNORKEL_SOURCES = 5, 3  # The least.
_MLC_STEPS, _PAIR_WEIGHT = 2_000, 1.0
_SOFT_FLOOR = 1e-3  # Less probable labels are not trained on.
_KNOW_ALL = ("all true", "true matrices")
_SIMPLE = ("majority +", "checked rows alone")


def _by_crowdkit(name: str, votes: np.ndarray, num_classes: int) -> np.ndarray:
    """Soft labels `[n, C]` of an aggregator; NaN without any label."""
    import pandas
    from crowdkit.aggregation import GLAD, MACE, DawidSkene

    task, worker = np.nonzero(votes != UNKNOWN)
    table = pandas.DataFrame({"task": task, "worker": worker, "label": votes[task, worker]})
    models_of: dict[str, Callable[[], Any]] = {
        "dawid_skene": functools.partial(DawidSkene, n_iter=100),
        "glad": functools.partial(GLAD, n_iter=30, silent=True),
        "mace": functools.partial(MACE, n_restarts=3, n_iter=30, random_state=0, verbose=0),
    }
    model = models_of[name]()
    probs = model.fit_predict_proba(table).fillna(0.0)
    soft = np.full((len(votes), num_classes), np.nan)
    soft[probs.index] = 0
    for label in probs.columns:
        soft[probs.index, label] = probs[label]
    return soft


def _by_snorkel(votes: np.ndarray, num_classes: int) -> np.ndarray:
    """Soft labels `[n, C]` of Snorkel's label model; NaN without any label.

    500 steps, as in its tutorials; all else at its defaults, so its classes have equal shares.
    """
    from snorkel.labeling.model import LabelModel

    there = (votes != UNKNOWN).any(axis=1)
    model = LabelModel(cardinality=num_classes, verbose=False)
    model.fit(votes[there], n_epochs=500, seed=0, progress_bar=False)
    soft = np.full((len(votes), num_classes), np.nan)
    soft[there] = model.predict_proba(votes[there])
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
    if np.unique(most, return_counts=True)[1].min() < _CROWDLAB_FOLDS:
        return _shares(votes, num_classes)  # Too few rows for its classifier's folds.
    model = LogisticRegression(C=1, max_iter=300)
    folded = cross_val_predict(model, x[there], most, cv=_CROWDLAB_FOLDS, method="predict_proba")
    probs = np.full((len(there), num_classes), 1e-6)
    probs[:, np.unique(most)] = folded
    probs /= probs.sum(axis=1, keepdims=True)
    found = get_label_quality_multiannotator(said, probs, verbose=False)["label_quality"]
    soft = np.full((len(votes), num_classes), np.nan)
    soft[there] = np.eye(num_classes)[found["consensus_label"].to_numpy().astype(int)]
    return soft


class Learned(NamedTuple):
    """Soft labels `[n, C]`, and what a classifier of these says `[u + n]`: test rows come first."""

    soft: np.ndarray
    said: np.ndarray


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
    if importlib.util.find_spec("snorkel") and votes.shape[1] >= _SNORKEL_SOURCES:
        found["snorkel"] = _by_snorkel(votes, num_classes)
    if importlib.util.find_spec("cleanlab"):
        found["crowdlab"] = _crowdlab(data.features[data.rows], votes, num_classes)
    return found


def _by_true_matrices(votes: np.ndarray, one_hot: np.ndarray) -> np.ndarray:
    """Soft labels `[n, C]` by Bayes' rule; matrices and class shares are counted on `one_hot`."""
    given, truth = jnp.asarray(votes), jnp.asarray(one_hot, jnp.float32)
    shares, everywhere = jnp.mean(truth, axis=0), jnp.ones(len(votes))
    matrices = label_model.source_counts(
        given, truth, everywhere, everywhere, shares, prior_strength=1.0
    )
    says = label_model.label_term(given, matrices, shares)
    soft = np.array(jax.nn.softmax(jnp.log(shares) + says), float)
    soft[(votes == UNKNOWN).all(axis=1)] = np.nan
    return soft


def _percent(said: np.ndarray, truth: np.ndarray) -> float:
    return float(100 * np.mean(said == truth))


def _learned_by_all(data: VoteSet, softs: dict[str, np.ndarray]) -> dict[str, Learned]:
    x, test = data.features[data.rows], data.features[data.test]
    return {
        name: Learned(soft, _learned(x, soft, np.concatenate([test, x])))
        for name, soft in softs.items()
    }


def without_checks(data: VoteSet) -> dict[str, Learned]:
    """Rivals that know no check, and the two that know all true labels."""
    one_hot = np.eye(data.num_classes)[data.labels[data.rows]]
    known = {"all true": one_hot, "true matrices": _by_true_matrices(data.votes, one_hot)}
    return _learned_by_all(data, known | soft_labels(data))


def of_rivals(data: VoteSet, cell: Draw, unchecked: dict[str, Learned]) -> Row:
    """Percent of test rows, and of doubtful labels, right by each rival.

    Args:
      data: the set.
      cell: its checked rows.
      unchecked: `without_checks(data)`.
    """
    one_hot, checked = np.eye(data.num_classes)[cell.truth], cell.checked[:, None]
    softs = {"checked rows alone": np.where(checked, one_hot, np.nan)} | {
        f"{name} +": np.where(checked, one_hot, each.soft)
        for name, each in unchecked.items()
        if name not in _KNOW_ALL
    }
    row: Row = {}
    for name, (soft, said) in (unchecked | _learned_by_all(data, softs)).items():
        of_test, of_rows = np.split(said, [len(data.test)])
        row[name] = _percent(of_test, data.labels[data.test])
        if name != "all true":
            known = ~np.isnan(soft[:, 0])
            labels = np.where(known, np.nan_to_num(soft).argmax(axis=1), of_rows)
            row[_LABELS + name] = _percent(labels[~cell.checked], cell.truth[~cell.checked])
    return row


def of_cross_fit(
    data: Sequence[VoteSet], cells: Sequence[Draw], name: str, drawn: str
) -> list[Row]:
    """The same by `cross_fit`, of cells with equally many checked rows and sources."""
    num_classes = data[0].num_classes
    method = methods.cross_fit(model=models.MLP(num_classes, ()))
    fitted = fit(method, data[0].features, cells, drawn)
    clear_programs()
    rows: list[Row] = []
    for each, cell, result in zip(data, cells, fitted, strict=True):
        doubtful = ~cell.checked
        labels = result.out_of_fold["corrected"][: doubtful.sum()].argmax(axis=1)
        said = result.probs[each.test].argmax(axis=1)
        rows.append({
            name: _percent(said, each.labels[each.test]),
            _LABELS + name: _percent(labels, cell.truth[doubtful]),
        })  # fmt: skip
    return rows


def of_mlc(data: VoteSet, cell: Draw, name: str, number: int, *, robust: bool = False) -> Row:
    """The same by `mlc`, by the meta-gradient alone and with pairs of given and true label.

    `robust_mlc` has its own weight of pairs and form of the label correction network.
    """
    x, num_classes, doubtful = data.features[data.rows], data.num_classes, ~cell.checked
    votes = cell.votes[:, 0] if cell.votes.shape[1] == 1 else cell.votes
    noisy = mlc.Examples(x[doubtful], votes[doubtful])
    clean = mlc.Examples(x[cell.checked], cell.truth[cell.checked], given=votes[cell.checked])
    kind = methods.robust_mlc if robust else methods.mlc
    lcn = models.LabelCorrectionNetwork(num_classes, form=kind.default_form(paired=True))
    method = kind(model=models.MLP(num_classes, ()), lcn=lcn)
    forms = {"": method}
    if not robust:
        forms[", pairs"] = dataclasses.replace(method, pair_weight=_PAIR_WEIGHT)
    row: Row = {}
    for suffix, form in forms.items():
        result = mlc.fit(form, noisy, clean, num_steps=_MLC_STEPS, seed=number, progress=False,
                         eval_every_epochs=_MLC_STEPS)  # fmt: skip
        said = result.predict(data.features[data.test])
        row |= {
            f"{name}{suffix}": _percent(said, data.labels[data.test]),
            f"{_LABELS}{name}{suffix}": _percent(result.labels, cell.truth[doubtful]),
        }
        clear_programs()
    return row


def measure(name: str, checked: str, draws: Sequence[int]) -> list[Row]:
    """All draws of a set."""
    drawn = folds.RANDOM if checked.startswith("random") else folds.PER_CLASS
    rows: list[Row] = []
    cells: list[tuple[VoteSet, Draw, Draw]] = []
    groups = collections.defaultdict(list)  # Of one shape.
    last: tuple[VoteSet, dict[str, Learned]] | None = None
    for number in draws:
        data = load(name, number, _DATA.value, _CHECKPOINT.value)
        if last is None or data is not last[0]:  # Sets of files are the same in all draws.
            last = data, without_checks(data) if "rivals" in _BESIDE.value else {}
        cell = draw(data, checked, number)
        seen = np.where(cell.checked, cell.truth, UNKNOWN)
        sources = [str(i) for i in range(data.votes.shape[1])]
        most, votes, _ = prepared(cell.votes, seen, sources, data.num_classes)
        groups[int(cell.checked.sum()), votes.shape[1]].append(len(rows))
        place = {"set": name, "checked": checked, "draw": number}
        rows.append(place | (of_rivals(data, cell, last[1]) if last[1] else {}))
        cells.append((data, cell._replace(votes=most[:, None]), cell._replace(votes=votes)))
    for members in groups.values():
        data_of, alone, together = zip(*(cells[i] for i in members), strict=True)
        for column, given in (("cross_fit, majority", alone), (_POOL, together)):
            for i, row in zip(members, of_cross_fit(data_of, given, column, drawn), strict=True):
                rows[i] |= row
    for row, (data, alone, together) in zip(rows, cells, strict=True):
        for name in [x for x in _BESIDE.value if x != "rivals"]:
            learn = functools.partial(of_mlc, number=row["draw"], robust=name == "robust_mlc")
            row |= learn(data, alone, f"{name}, majority")
            row |= learn(data, together, f"{name}, all votes")
    return rows


def tables(rows: Sequence[Row]) -> str:
    """Markdown: of test rows, and of doubtful labels."""
    names = list(dict.fromkeys(x for row in rows for x in row))
    columns = [x for x in names if x not in ("set", "checked", "draw")]
    of_labels = [x for x in columns if x.startswith(_LABELS)]
    of_test = [x for x in columns if x not in of_labels]
    return (
        f"Percent of test rows right:\n\n{_table(rows, of_test, _POOL)}\n"
        f"Percent of doubtful labels right:\n\n{_table(rows, of_labels, _LABELS + _POOL)}"
    )


def _table(rows: Sequence[Row], columns: Sequence[str], ours: str) -> str:
    """A column for each kind of set and choice of checked rows, means over tables and draws.

    The best rival has the highest mean of all columns but those that know all true labels. The last
    line is the mean paired gap of `cross_fit` with all votes to it, with its standard error. The
    line before counts the sets where this gap is not below minus one standard error. The last lines
    are the same gaps to the simplest ways.
    """
    by_kind: dict[tuple[str, str], dict[str, list[Row]]] = {}
    for row in rows:
        of_set = by_kind.setdefault((row["set"].split(":")[0], row["checked"]), {})
        of_set.setdefault(row["set"], []).append(row)
    header, body = [""], [[x.removeprefix(_LABELS)] for x in columns]
    close, last = ["sets not below their best"], ["gap to the best"]
    minus = [[f"minus {name}"] for name in _SIMPLE]
    prefix = _LABELS if ours.startswith(_LABELS) else ""
    for (kind, checked), of_set in by_kind.items():
        together = [row for cell in of_set.values() for row in cell]
        header.append(f"{kind}, {checked.replace(':', ' ')}")
        for line, x in zip(body, columns, strict=True):
            there = [row[x] for row in together if x in row]
            line.append(f"{np.mean(there):.1f}" if there else "")
        gaps = [_gap(cell, columns, ours) for cell in of_set.values()]
        close.append(f"{sum(gap >= -error for gap, error, _ in gaps)} of {len(gaps)}")
        gap, error, best = _gap(together, columns, ours)
        last.append(f"{gap:+.1f} ± {error:.1f} ({best.removeprefix(_LABELS)})")
        for line, name in zip(minus, _SIMPLE, strict=True):
            there = [x for x in columns if x == prefix + name]
            gap, error, _ = _gap(together, there, ours) if there else (np.nan, np.nan, "")
            line.append(f"{gap:+.1f} ± {error:.1f}" if there else "")
    return to_markdown(header, [*body, close, last, *(line for line in minus if any(line[1:]))])


def _gap(cell: Sequence[Row], columns: Sequence[str], ours: str) -> tuple[float, float, str]:
    """The mean gap to the column with the best mean, its standard error, and that column."""
    left_out = {ours, *_KNOW_ALL, *(_LABELS + name for name in _KNOW_ALL)}
    others = [x for x in columns if x not in left_out and all(x in row for row in cell)]
    best = max(others, key=lambda x: float(np.mean([row[x] for row in cell])))
    gaps = [row[ours] - row[best] for row in cell]
    error = float(np.std(gaps, ddof=1) / np.sqrt(len(gaps))) if len(gaps) > 1 else 0.0
    return float(np.mean(gaps)), error, best


def main() -> None:
    """Measures what is missing, and writes the tables."""
    sets: list[str] = []
    for name in _ALL if _SETS.value == "all" else _SETS.value.split(","):
        kind, _, table = name.partition(":")
        ok = name in FILES or (kind in KINDS and (table in TABLES or table == "many"))
        expect(ok, "--sets", name, f"{', '.join(FILES)}, or KIND:TABLE of {', '.join(KINDS)}")
        sets += [f"{kind}:{x}" for x in MANY_SETS] if table == "many" else [name]
    for name in _BESIDE.value:
        expect(name in _RIVALS, "--beside", name, " or ".join(_RIVALS))
    choices = _CHECKED.value.split(",")
    for choice in choices:
        how, _, count = choice.partition(":")
        ok = how in ("random", "per_class") and count.isdecimal() and int(count) > 0
        expect(ok, "--checked", choice, "random:N or per_class:N")
    draws = range(_FIRST.value, _FIRST.value + _DRAWS.value)
    workdir = epath.Path(paths.absolute(_WORKDIR.value, "--workdir"))
    workdir.mkdir(parents=True, exist_ok=True)
    settings = {"draws": list(draws), "beside": _BESIDE.value}
    records = Records(workdir / "cells.jsonl", settings)
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
