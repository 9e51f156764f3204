"""Cross-fitting on real public tables, compared with simple alternatives.

    python -m experiments.labels.own_data_suite --workdir=DIR
    python -m experiments.labels.own_data_suite --workdir=DIR --quick

Labels of a table are made wrong: FLIP 0.35 (the next class), UNIF 0.5 (any class), `hard` (the 30 %
of rows where a linear model is least sure get its second choice), `region` (FLIP 0.6 in one half of
the table, along its first principal component, and none in the other). Some rows are checked:
`random:30` at random, `per_class:5` five of each class. 30 % of the rows are for tests. Draws of a
table, thirty at most, are trained as one program; the same command resumes. With --shard=i/n, n
commands share the tables; the last one to end writes the results of all. In DIR: `cells.csv`, a row
for each draw; `own_data.md`, the tables.

Columns are the percentage of doubtful rows that are right: labels as given; scikit-learn's
`LogisticRegression(C=1)` on the checked rows and on all given labels; gradient boosting on the same
two; corrected labels of `cross_fit`, and its classifier's own predictions. The verdict's estimate
is compared with the truth. `--also` adds slower columns: cleanlab (pip install cleanlab), other
methods of ours at their defaults, and `linear`, `cross_fit` with linear classifiers alone.
"""

import collections
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from etils import epath
from tqdm import tqdm

from experiments.labels.cross_fitted import Draw, fit, judged
from experiments.labels.instead import ALSO, BASELINES, BOOSTED, baselines, by_others, percent
from experiments.labels.tables_of_people import (
    KINDS,
    MANY,
    TABLES,
    Cell,
    LabelledTable,
    draw,
    named,
)
from experiments.records import Records, Row, clear_programs
from experiments.tables import to_csv, to_markdown, values, where
from mlc_jax import command_line, methods, models, paths
from mlc_jax.data import folds
from mlc_jax.errors import expect
from mlc_jax.report import verdict

_WORKDIR = flags.DEFINE_string("workdir", "", "Directory for the tables.")
_SETS = flags.DEFINE_string("sets", "all", f"Some of {', '.join(TABLES)}; FILE.npz; all; or many.")
_NOISE = flags.DEFINE_string("noise", "flip,unif,hard", f"Some of {', '.join(KINDS)}.")
_CHECKED = flags.DEFINE_string(
    "checked", "random:20,random:30,random:100,per_class:5,per_class:20", "Which rows are checked."
)
_DRAWS = flags.DEFINE_integer("draws", 5, "Of rows and wrong labels.", lower_bound=1)
_FIRST = flags.DEFINE_integer("first_draw", 0, "Number of the first draw.", lower_bound=0)
_QUICK = flags.DEFINE_bool(
    "quick", False, "Eight sets, FLIP and hard rows, random:30 and per_class:5, two draws."
)
_ALSO = flags.DEFINE_string("also", "", f"Slower columns, some of {', '.join(ALSO)}.")
_SHARD = flags.DEFINE_string("shard", "0/1", "i/n: every n-th table, from the i-th.")

_MOST_DRAWS = 30  # In one program.
_QUICK_SETS = ("wine", "breast_cancer", "iris", "digits", "pima", "crabs", "chile", "biopsy")


def cross_fit(table: LabelledTable, cells: Sequence[Cell], drawn: str) -> list[Row]:
    """The method on several draws of a table, as one program."""
    num_classes = int(table.labels.max()) + 1
    linear, hidden = (models.MLP(num_classes, sizes) for sizes in ((), (64,)))
    method = methods.cross_fit(model=linear, beside=hidden)
    draws = [Draw(cell.rows, cell.given[:, None], cell.truth, cell.checked) for cell in cells]
    return [
        _row_of(cell, fitted.pipeline, fitted.out_of_fold) | {
            "unseen_cross_fit": percent(
                fitted.probs.argmax(axis=-1)[cell.unseen], table.labels[cell.unseen]
            )
        }
        for cell, fitted in zip(cells, fit(method, table.features, draws, drawn), strict=True)
    ]  # fmt: skip


def _row_of(cell: Cell, pipeline: folds.AllRows, probs: dict[str, np.ndarray]) -> Row:
    """The truth of the doubtful rows, and the verdict's estimate."""
    num_noisy = len(pipeline.noisy)
    truth = cell.truth[~cell.checked]
    said = {name: x[:num_noisy].argmax(axis=1) for name, x in probs.items()}
    right = {name: percent(labels, truth) for name, labels in said.items()}
    found = judged(pipeline, probs)
    share = found.shares[verdict.CORRECTED]
    given = percent(cell.given[~cell.checked], truth)
    is_true = {
        None: None,
        verdict.CORRECTED: right["corrected"] >= given,
        verdict.CLASSIFIER: right["classifier"] >= max(given, right["corrected"] - 1),
        verdict.CHECKED: right["checked"] >= right["corrected"],
        verdict.AS_GIVEN: True,
    }[found.take]
    assert share.estimate is not None
    return {
        "corrected": right["corrected"],
        "own": right["classifier"],
        "num_checked": found.n,
        "estimate": 100 * share.estimate,
        "low": 100 * share.low,
        "high": 100 * share.high,
        "wilson": 200 * _half_of_wilson(share.estimate, found.n),
        "take": found.take,
        "take_is_true": is_true,
        "confidence": 100 * (found.confidence or 0),
        "calibration_error": 100 * (found.calibration_error or 0),
    }


def _half_of_wilson(estimate: float, size: int) -> float:
    share = verdict.share_right(np.arange(size) < round(estimate * size), 10**12)
    return (share.high - share.low) / 2


def measure(
    name: str, checked: str, noises: Sequence[str], draws: Sequence[int], also: Sequence[str] = ()
) -> list[Row]:
    """All draws of a table with one choice of checked rows."""
    table = TABLES[name]()
    places = [(noise, number) for noise in noises for number in draws]
    cells = [draw(name, table, noise, checked, number) for noise, number in places]
    # One program has equally many checked rows (a class may have too few).
    groups = collections.defaultdict(list)
    for i, cell in enumerate(cells):
        groups[int(cell.checked.sum())].append(i)
    programs = [
        group[start : start + _MOST_DRAWS]
        for group in groups.values()
        for start in range(0, len(group), _MOST_DRAWS)
    ]
    rows: dict[int, Row] = {}
    for members in programs:
        drawn = folds.RANDOM if checked.startswith("random") else folds.PER_CLASS
        found = cross_fit(table, [cells[i] for i in members], drawn)
        clear_programs()
        for i, row in zip(members, found, strict=True):
            noise, number = places[i]
            place = {"set": name, "noise": noise, "checked": checked, "draw": number}
            rows[i] = place | baselines(table, cells[i]) | row
            for other in also:
                rows[i] |= by_others(other, table, cells[i])
    return [rows[i] for i in range(len(cells))]


def tables(rows: Sequence[Row]) -> str:
    """Markdown: a summary for each choice of checked rows, and every cell."""
    text = []
    for checked in values(rows, "checked"):
        cells = [
            where(rows, set=name, noise=noise, checked=checked)
            for name in values(rows, "set")
            for noise in values(rows, "noise")
        ]
        cells = [cell for cell in cells if cell]
        text.append(f"## {checked.replace(':', ', ')} checked\n\n{_summary(cells)}\n\n")
        text.append(_cells(cells) + "\n")
    return "".join(text)


def _mean(cell: Sequence[Mapping[str, Any]], name: str) -> float:
    return float(np.mean([row[name] for row in cell]))


def _gap(cell: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Corrected labels minus the best baseline's, and a paired standard error."""
    best = max(BASELINES, key=lambda name: _mean(cell, name))
    gaps = [row["corrected"] - row[best] for row in cell]
    error = float(np.std(gaps, ddof=1) / np.sqrt(len(gaps))) if len(gaps) > 1 else 0.0
    return float(np.mean(gaps)), error


def _summary(cells: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    gaps = [_gap(cell) for cell in cells]
    close = sum(gap >= -max(2.0, error) for gap, error in gaps)
    worst = min(_mean(cell, "corrected") - _mean(cell, "given") for cell in cells)
    rows = [row for cell in cells for row in cell]
    # Kinds of wrong labels share the checked rows of a draw, so they count once.
    by_draw = collections.defaultdict(list)
    for row in rows:
        by_draw[row["set"], row["draw"]].append(row["estimate"] - row["corrected"])
    doubt = [float(np.mean(of_draw)) for of_draw in by_draw.values()]
    held = np.mean([row["low"] - 1e-6 <= row["corrected"] <= row["high"] + 1e-6 for row in rows])
    width = np.mean([(row["high"] - row["low"]) / row["wilson"] for row in rows])
    said = [row["take_is_true"] for row in rows if row["take_is_true"] is not None]
    sentence = (
        f" The verdict's sentence was true in {np.sum(said)} of {len(said)} draws." if said else ""
    )
    return (
        f"{len(cells)} cells, {len(rows)} draws. Corrected labels within two points or one paired "
        f"standard error of the best baseline in {close} of {len(cells)} cells; "
        f"{np.mean([gap for gap, _ in gaps]):+.1f} points on average; against labels as given "
        f"{worst:+.1f} at worst. Estimate minus truth {np.mean(doubt):+.1f} "
        f"± {np.std(doubt) / np.sqrt(len(doubt)):.1f}; the 95 % interval held the truth in "
        f"{100 * held:.0f} % of draws, and was {width:.2f} times as wide as Wilson's.{sentence}"
    )


def _cells(cells: Sequence[Sequence[Mapping[str, Any]]]) -> str:
    also = [name for name in ALSO if name in cells[0][0]]
    names = [*BASELINES, *BOOSTED, *also, "corrected", "own", "estimate"]
    header = ["table", "wrong labels", "n", *(name.replace("_", " ") for name in names), "gap"]
    body = []
    for cell in cells:
        gap, error = _gap(cell)
        numbers = [f"{_mean(cell, name):.1f}" for name in names]
        body.append([
            cell[0]["set"], cell[0]["noise"], f"{_mean(cell, 'num_checked'):.0f}", *numbers,
            f"{gap:+.1f} ± {error:.1f}",
        ])  # fmt: skip
    return to_markdown(header, body, text_columns=(0, 1))


def main() -> None:
    """Measures what is missing, and writes the tables."""
    groups = {"all": tuple(TABLES), "many": tuple(MANY)}
    sets = groups.get(_SETS.value) or named(_SETS.value)
    noises, checked = _NOISE.value.split(","), _CHECKED.value.split(",")
    draws = range(_FIRST.value, _FIRST.value + _DRAWS.value)
    if _QUICK.value:
        sets, noises, checked = _QUICK_SETS, ["flip", "hard"], ["random:30", "per_class:5"]
        draws = range(_FIRST.value, _FIRST.value + 2)
    for noise in noises:
        expect(noise in KINDS, "--noise", noise, f"some of {', '.join(KINDS)}")
    for choice in checked:
        how, _, count = choice.partition(":")
        ok = how in ("random", "per_class") and count.isdecimal() and int(count) > 0
        expect(ok, "--checked", choice, "random:N or per_class:N")
    also = [name for name in _ALSO.value.split(",") if name]
    for name in also:
        expect(name in ALSO, "--also", name, f"some of {', '.join(ALSO)}")
    index, _, of = _SHARD.value.partition("/")
    ok = index.isdecimal() and of.isdecimal() and int(index) < int(of)
    expect(ok, "--shard", _SHARD.value, "i/n with i from 0 to n - 1")
    workdir = epath.Path(paths.absolute(_WORKDIR.value, "--workdir"))
    workdir.mkdir(parents=True, exist_ok=True)
    settings = {"noise": noises, "draws": list(draws)} | ({"also": also} if also else {})

    def records_of(name: str) -> Records:
        return Records(workdir / f"{name}.jsonl", settings)

    for name in tqdm(sets[int(index) :: int(of)], disable=None, unit="table"):
        records = records_of(name)
        for choice in checked:
            place = {"set": name, "checked": choice}
            records.get(place, functools.partial(measure, name, choice, noises, list(draws), also))
    rows = [row for name in sets for row in records_of(name).rows if row["checked"] in checked]
    paths.write(workdir / "cells.csv", to_csv(rows).encode())
    text = tables(rows)
    paths.write(workdir / "own_data.md", text.encode())
    print(text)


if __name__ == "__main__":
    command_line.run(main, required=["workdir"])
