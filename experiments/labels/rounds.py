"""Rounds of `to_check.csv`, filled in truthfully, compared with random rows.

    python -m experiments.labels.rounds --workdir=DIR

Labels of a table are FLIP 0.35; some rows are checked at random. Then each round checks the rows of
`to_check.csv`: the next thirty of a random order (more, if that shows something), rows of classes
without a check, and the least certain rows, a hundred in all. For comparison, rounds also check the
next hundred rows of the random order, or the random ones of `to_check.csv` alone. The table has the
percentage of right labels among all rows, where checked rows count as right, and its change since
the round before.

`--sets=KIND:TABLE` is a table with several labels per row, see `vote_sets`; `given` is its majority
vote. There one more way is tried, `settles most`: the uncertain rows are those that also tell most
of the sources, see `_settling`.
"""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from absl import flags
from etils import epath

from experiments.labels.cross_fitted import Draw, fit, judged
from experiments.labels.tables_of_people import TABLES, named
from experiments.labels.vote_sets import KINDS, MANY_SETS, load
from experiments.records import Records, Row, clear_programs
from experiments.tables import to_csv, to_markdown, values, where
from mlc_jax import command_line, methods, models, paths
from mlc_jax.data import UNKNOWN, folds
from mlc_jax.data.votes import vote_of_most
from mlc_jax.errors import expect
from mlc_jax.report.to_check import NUM_ROWS, choose, num_random

_WORKDIR = flags.DEFINE_string("workdir", "", "Directory for the table.")
_SETS = flags.DEFINE_string(
    "sets", "breast_cancer,diamonds", "Some of the tables; FILE.npz; KIND:TABLE."
)
_FIRST_CHECKS = flags.DEFINE_integer("first_checks", 60, "Rows checked at first.", lower_bound=2)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "The first one included.", lower_bound=1)
_DRAWS = flags.DEFINE_integer("draws", 5, "Of rows and wrong labels.", lower_bound=1)
_FIRST = flags.DEFINE_integer("first_draw", 0, "Number of the first draw.", lower_bound=0)
_FLIP = 0.35
WAYS = ("to_check.csv", "at random", "its random rows alone", "settles most")
_CHECKS_OF_LABEL = 10  # Checks of a source's label after which one more tells half as much.


class _Start(NamedTuple):
    """Draws of a table: features `[N, F]`, cells, and each row's place in the random order."""

    features: np.ndarray
    cells: list[Draw]
    orders: list[np.ndarray]


def _with_one_label(name: str, draws: Sequence[int], checks: int) -> _Start:
    table = TABLES[name]()
    labels, size = table.labels, len(table.labels)
    num_classes = int(labels.max()) + 1
    start = _Start(table.features, [], [])
    for number in draws:
        rng = np.random.default_rng([number, size])
        wrong = rng.random(size) < _FLIP
        given = np.where(wrong, (labels + 1) % num_classes, labels)
        place = np.argsort(rng.permutation(size))
        start.orders.append(place)
        start.cells.append(Draw(np.arange(size), given[:, None], labels, place < checks))
    return start


def _with_votes(name: str, draws: Sequence[int], checks: int) -> _Start:
    sets = [load(name, number) for number in draws]
    num_sources = max(data.votes.shape[1] for data in sets)
    start = _Start(sets[0].features, [], [])
    for number, data in zip(draws, sets, strict=True):
        place = np.argsort(
            np.random.default_rng([number, len(data.rows)]).permutation(len(data.rows))
        )
        silent = num_sources - data.votes.shape[1]  # Draws of a round are one program.
        votes = np.pad(data.votes, [(0, 0), (0, silent)], constant_values=UNKNOWN)
        start.orders.append(place)
        start.cells.append(Draw(data.rows, votes, data.labels[data.rows], place < checks))
    return start


def _settling(probs: np.ndarray, votes: np.ndarray, checked: np.ndarray, number: int) -> np.ndarray:
    """Rows whose check settles most, `[number]`, taken one after the other.

    A row is worth its uncertainty `u`, times one plus what its check tells of the sources: for each
    label of the row, the summed `u` of all rows with that label of that source, per check of it.

    Args:
      probs: `[n, C]`, of doubtful rows.
      votes: `[n, S]`, theirs.
      checked: `[m, S]`, votes of checked rows.
      number: of rows.
    """
    unsure, said, labels = 1 - probs.max(axis=1), votes != UNKNOWN, np.maximum(votes, 0)
    sources = np.arange(votes.shape[1])
    weight, seen = np.zeros((2, votes.shape[1], probs.shape[1]))
    for source in sources:
        np.add.at(weight[source], votes[said[:, source], source], unsure[said[:, source]])
        there = checked[:, source] != UNKNOWN
        np.add.at(seen[source], checked[there, source], 1)
    chosen: list[int] = []
    for _ in range(number):
        tells = np.where(said, (weight / (seen + _CHECKS_OF_LABEL))[sources, labels], 0).sum(axis=1)
        worth = unsure * (1 + tells)
        worth[chosen] = -1
        row = int(worth.argmax())
        chosen.append(row)
        seen[sources[said[row]], labels[row][said[row]]] += 1
    return np.array(chosen, np.int64)


def measure(name: str, way: str, draws: Sequence[int], num_rounds: int, checks: int) -> list[Row]:
    """All rounds of all draws of a table; draws of a round are one program."""
    features, cells, orders = (_with_votes if ":" in name else _with_one_label)(name, draws, checks)
    size, num_classes = len(cells[0].rows), int(max(cell.truth.max() for cell in cells)) + 1
    linear, hidden = (models.MLP(num_classes, sizes) for sizes in ((), (64,)))
    method = methods.cross_fit(model=linear, beside=hidden)
    drawn = [np.where(cell.checked, folds.RANDOM, "").astype("U9") for cell in cells]
    rows: list[Row] = []
    for round_ in range(1, num_rounds + 1):
        fitted = fit(method, features, cells, drawn)
        clear_programs()
        for i, (cell, result) in enumerate(zip(cells, fitted, strict=True)):
            doubtful = np.flatnonzero(~cell.checked)
            probs = result.out_of_fold["corrected"][: len(doubtful)]
            right = probs.argmax(axis=1) == cell.truth[doubtful]
            flat = np.full(cell.votes.shape[1], 0.5)
            given = vote_of_most(cell.votes, flat, num_classes)
            rows.append({
                "set": name, "way": way, "draw": draws[i], "round": round_,
                "checked": size - len(doubtful),
                "right": 100 * float(1 - np.sum(~right) / size),
                "given": 100 * float(np.mean(given == cell.truth)),
            })  # fmt: skip
            more = judged(result.pipeline, result.out_of_fold).more
            by_order, seen = np.argsort(orders[i][doubtful]), cell.truth[cell.checked]
            chosen = choose(by_order, probs, given[doubtful], seen, more)
            random = doubtful[by_order[: num_random(more)]]
            looked_at = random
            if way == WAYS[0]:
                looked_at = doubtful[chosen.rows]
            elif way == WAYS[1]:
                random = looked_at = doubtful[by_order[:NUM_ROWS]]
            elif way == WAYS[3]:
                known = cell.votes[cell.checked]
                number = min(len(doubtful), NUM_ROWS + len(random))
                settling = doubtful[_settling(probs, cell.votes[doubtful], known, number)]
                others = settling[~np.isin(settling, random)][: NUM_ROWS - len(random)]
                looked_at = np.concatenate([random, others])
            checked = cell.checked.copy()
            checked[looked_at] = True
            cells[i] = cell._replace(checked=checked)
            passed = orders[i] <= orders[i][random].max(initial=-1)
            drawn[i] = np.where(checked, np.where(passed, folds.RANDOM, folds.LOOKED_UP), "")
    return rows


def table_of(rows: Sequence[Row]) -> str:
    """Markdown: means over draws, and the paired gap to the round before."""
    body = []
    for name in values(rows, "set"):
        for way in values(where(rows, set=name), "way"):
            before: list[float] = []
            for round_ in values(rows, "round"):
                cell = where(rows, set=name, way=way, round=round_)
                right = [row["right"] for row in cell]
                gap = ""
                if before:
                    gaps = np.subtract(right, before)
                    error = np.std(gaps, ddof=1) / np.sqrt(len(gaps)) if len(gaps) > 1 else 0.0
                    gap = f"{np.mean(gaps):+.1f} ± {error:.1f}"
                body.append([
                    name, way, f"{round_}", f"{np.mean([row['checked'] for row in cell]):.0f}",
                    f"{np.mean([row['given'] for row in cell]):.1f}", f"{np.mean(right):.1f}", gap,
                ])  # fmt: skip
                before = right
    header = ["table", "rows checked by", "round", "checked", "given", "right", "than before"]
    return to_markdown(header, body, text_columns=(0, 1))


def _named(sets: str) -> list[str]:
    """The names in `--sets`; `KIND:many` is fifteen tables."""
    names: list[str] = []
    for name in sets.split(","):
        kind, _, table = name.partition(":")
        if kind not in KINDS:
            names += named(name)
            continue
        ok = table in TABLES or table == "many"
        expect(ok, "--sets", name, f"{kind}:TABLE, or {kind}:many")
        names += [f"{kind}:{x}" for x in (MANY_SETS if table == "many" else [table])]
    return names


def main() -> None:
    """Measures what is missing, and writes the table."""
    sets = _named(_SETS.value)
    draws = list(range(_FIRST.value, _FIRST.value + _DRAWS.value))
    workdir = epath.Path(paths.absolute(_WORKDIR.value, "--workdir"))
    workdir.mkdir(parents=True, exist_ok=True)
    settings = {"draws": draws, "rounds": _ROUNDS.value, "first_checks": _FIRST_CHECKS.value}
    records = Records(workdir / "cells.jsonl", settings)
    rows: list[Row] = []
    for name in sets:
        for way in WAYS if ":" in name else WAYS[:3]:
            rows += records.get(
                {"set": name, "way": way},
                functools.partial(measure, name, way, draws, _ROUNDS.value, _FIRST_CHECKS.value),
            )
    paths.write(workdir / "rounds.csv", to_csv(rows).encode())
    text = table_of(rows)
    paths.write(workdir / "rounds.md", text.encode())
    print(text)


if __name__ == "__main__":
    command_line.run(main, required=["workdir"])
