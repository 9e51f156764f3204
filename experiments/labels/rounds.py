"""Rounds of `to_check.csv`, filled in truthfully, compared with random rows.

    python -m experiments.labels.rounds --workdir=DIR

Labels of a table are FLIP 0.35; some rows are checked at random. Then each round checks the rows of
`to_check.csv`: the next thirty of a random order (more, if that shows something), rows of classes
without a check, and the least certain rows, a hundred in all. For comparison, rounds also check the
next hundred rows of the random order, or the random ones of `to_check.csv` alone. The table has the
percentage of right labels among all rows, where checked rows count as right, and its change since
the round before.
"""

import functools
from collections.abc import Sequence

import numpy as np
from absl import flags
from etils import epath

from experiments.labels.cross_fitted import Draw, fit, judged
from experiments.labels.tables_of_people import TABLES, named
from experiments.records import Records, Row, clear_programs
from experiments.tables import to_csv, to_markdown, values, where
from mlc_jax import command_line, methods, models, paths
from mlc_jax.data import folds
from mlc_jax.report.to_check import NUM_ROWS, choose, num_random

_WORKDIR = flags.DEFINE_string("workdir", "", "Directory for the table.")
_SETS = flags.DEFINE_string("sets", "breast_cancer,diamonds", "Some of the tables; or FILE.npz.")
_FIRST_CHECKS = flags.DEFINE_integer("first_checks", 60, "Rows checked at first.", lower_bound=2)
_ROUNDS = flags.DEFINE_integer("rounds", 3, "The first one included.", lower_bound=1)
_DRAWS = flags.DEFINE_integer("draws", 5, "Of rows and wrong labels.", lower_bound=1)
_FIRST = flags.DEFINE_integer("first_draw", 0, "Number of the first draw.", lower_bound=0)
_FLIP = 0.35
WAYS = ("to_check.csv", "at random", "its random rows alone")


def measure(name: str, way: str, draws: Sequence[int], num_rounds: int, checks: int) -> list[Row]:
    """All rounds of all draws of a table; draws of a round are one program."""
    table = TABLES[name]()
    labels, size = table.labels, len(table.labels)
    num_classes = int(labels.max()) + 1
    linear, hidden = (models.MLP(num_classes, sizes) for sizes in ((), (64,)))
    method = methods.cross_fit(model=linear, beside=hidden)
    orders, cells, drawn = [], [], []
    for number in draws:
        rng = np.random.default_rng([number, size])
        wrong = rng.random(size) < _FLIP
        given = np.where(wrong, (labels + 1) % num_classes, labels)
        place = np.argsort(rng.permutation(size))  # Each row's place in the random order.
        orders.append(place)
        cells.append(Draw(np.arange(size), given[:, None], labels, place < checks))
        drawn.append(np.where(place < checks, folds.RANDOM, "").astype("U9"))
    rows: list[Row] = []
    for round_ in range(1, num_rounds + 1):
        fitted = fit(method, table.features, cells, drawn)
        clear_programs()
        for i, result in enumerate(fitted):
            doubtful = np.flatnonzero(~cells[i].checked)
            probs = result.out_of_fold["corrected"][: len(doubtful)]
            right = probs.argmax(axis=1) == labels[doubtful]
            rows.append({
                "set": name, "way": way, "draw": draws[i], "round": round_,
                "checked": size - len(doubtful),
                "right": 100 * float(1 - np.sum(~right) / size),
                "given": 100 * float(np.mean(cells[i].votes[:, 0] == labels)),
            })  # fmt: skip
            more = judged(result.pipeline, result.out_of_fold).more
            by_order, seen = np.argsort(orders[i][doubtful]), labels[cells[i].checked]
            chosen = choose(by_order, probs, cells[i].votes[doubtful, 0], seen, more)
            random = doubtful[by_order[: num_random(more)]]
            looked_at = doubtful[chosen.rows] if way == WAYS[0] else random
            if way == WAYS[1]:
                random = looked_at = doubtful[by_order[:NUM_ROWS]]
            checked = cells[i].checked.copy()
            checked[looked_at] = True
            cells[i] = cells[i]._replace(checked=checked)
            passed = orders[i] <= orders[i][random].max(initial=-1)
            drawn[i] = np.where(checked, np.where(passed, folds.RANDOM, folds.LOOKED_UP), "")
    return rows


def table_of(rows: Sequence[Row]) -> str:
    """Markdown: means over draws, and the paired gap to the round before."""
    body = []
    for name in values(rows, "set"):
        for way in WAYS:
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


def main() -> None:
    """Measures what is missing, and writes the table."""
    sets = named(_SETS.value)
    draws = list(range(_FIRST.value, _FIRST.value + _DRAWS.value))
    workdir = epath.Path(paths.absolute(_WORKDIR.value, "--workdir"))
    workdir.mkdir(parents=True, exist_ok=True)
    settings = {"draws": draws, "rounds": _ROUNDS.value, "first_checks": _FIRST_CHECKS.value}
    records = Records(workdir / "cells.jsonl", settings)
    rows: list[Row] = []
    for name in sets:
        for way in WAYS:
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
