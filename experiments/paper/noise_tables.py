"""Tables and the figure of a grid of methods, noise and seeds.

`runs.csv`, a row per run; `sweep.csv`, a row for each method, noise and level, over the seeds;
`sweep.md`, the means over all noise (Table 2 of the MLC paper has such rows) and accuracy by level;
`sweep.png`, accuracy against level (its Figure 5). Own data may lack a test set or true labels:
cells that need them stay empty.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from etils import epath
from matplotlib.figure import Figure

from experiments import runs, tables
from experiments.tables import to_csv, values, where

Rows = Sequence[Mapping[str, Any]]

# Column of the table and its key in a run's results.
_COLUMNS = {
    "test acc., last": "last_test_accuracy",
    "best": "best_test_accuracy",
    "selected": "selected_test_accuracy",
    "given labels right": "given_label_accuracy",
    "corrected labels right": "corrected_label_accuracy",
}
_MARKERS = "osv^<>DPX*h"  # There are more methods than colours.


def write(rows: Rows, workdir: epath.Path, *, trained_here: bool = True) -> None:
    """Writes all of them, and prints `sweep.md`.

    Args:
      rows: `results.json` of each run, with its `noise_type` and `level`.
      workdir: of the files.
      trained_here: whether the devices of this machine are named.
    """
    workdir.joinpath("runs.csv").write_text(to_csv(rows))
    text = to_markdown(rows, trained_here=trained_here)
    tables.write(workdir, "sweep", summarize(rows), text)
    figure = plot(rows)
    if figure:
        tables.write_figure(workdir, "sweep", figure)
    print(text)
    if not figure:
        print("There is no sweep.png: without a test set there is no accuracy to draw.")


def summarize(rows: Rows) -> list[dict[str, Any]]:
    """One row for each method, noise type and level: mean, deviation and number of the seeds."""
    summary = []
    for method in values(rows, "method"):
        for noise_type in values(rows, "noise_type"):
            of_type = where(rows, method=method, noise_type=noise_type)
            for level in values(of_type, "level"):
                cell = where(of_type, level=level)
                row: dict[str, Any] = {"method": method, "noise_type": noise_type, "level": level}
                for key in _COLUMNS.values():
                    numbers = [x[key] for x in cell if x[key] is not None]
                    deviation = np.std(numbers, ddof=1) if len(numbers) > 1 else None
                    row[f"{key}_mean"] = np.mean(numbers) if numbers else None
                    row[f"{key}_std"] = deviation
                row["clean_labels_spent"] = cell[0]["clean_labels_spent"]
                summary.append(row | {"seeds": len(cell)})
    return summary


def to_markdown(rows: Rows, *, trained_here: bool = True) -> str:
    """The mean over all noise for each method, and for several levels the accuracy at each."""
    devices = f" on {jax.device_count()} {jax.devices()[0].device_kind} device(s)"
    first, methods = rows[0], values(rows, "method")
    num_runs = len(methods) * len(values(rows, "seed")) * _num_cells(rows)
    lines = [
        f"{first['dataset']}, {noise_of(rows)}, {len(values(rows, 'seed'))} seeds, "
        f"{' or '.join(str(n) for n in sorted(set(values(rows, 'num_steps'))))} steps"
        f"{devices if trained_here else ''}; "
        "percent, mean ± standard deviation over the seeds"
        + (", each the mean over all noise" if _num_cells(rows) > 1 else "")
        + ("; - where runs diverged" if len(rows) < num_runs else ""),
        "",
        _table(["method", *_COLUMNS, "clean labels"], [_overall(rows, m) for m in methods]),
    ]
    for noise_type in values(rows, "noise_type"):
        of_type = where(rows, noise_type=noise_type)
        levels = values(of_type, "level")
        if len(levels) > 1:
            lines += ["", f"Last test accuracy, {noise_type} noise at level", ""]
            body = [[m, *(_cell(of_type, m, level) for level in levels)] for m in methods]
            lines.append(_table(["method", *map(str, levels)], body))
    return "\n".join(lines) + "\n"


def noise_of(rows: Rows) -> str:
    """All noise of the rows: `uniform noise 0.2 to 0.8, flip noise 0.4`."""
    levels = {
        name: values(where(rows, noise_type=name), "level") for name in values(rows, "noise_type")
    }
    return ", ".join(_named(name, _span(of_type)) for name, of_type in levels.items())


def _overall(rows: Rows, method: str) -> list[str]:
    """The overall row of a method; the spread is over seeds' means over all noise."""
    of_method = where(rows, method=method)
    spent = str(of_method[0]["clean_labels_spent"])
    if len(of_method) < len(values(rows, "seed")) * _num_cells(rows):
        # Means over other noise than the other methods' would be no comparison.
        return [method, *["-"] * len(_COLUMNS), spent]
    seeds = [where(of_method, seed=seed) for seed in values(of_method, "seed")]
    cells = []
    for key in _COLUMNS.values():
        numbers = [[row[key] for row in seed if row[key] is not None] for seed in seeds]
        cells.append(runs.mean_and_spread([np.mean(x) if x else None for x in numbers]))
    return [method, *cells, spent]


def _num_cells(rows: Rows) -> int:
    return len({(row["noise_type"], row["level"]) for row in rows})


def _cell(rows: Rows, method: str, level: Any) -> str:
    cell = where(rows, method=method, level=level)
    text = runs.mean_and_spread([row["last_test_accuracy"] for row in cell])
    missing = len(values(rows, "seed")) - len(cell)
    return f"{text} ({len(cell)} runs)" if missing and cell else text


def _named(noise_type: str, levels: str = "") -> str:
    return "labels as given" if noise_type == "none" else f"{noise_type} noise {levels}".strip()


def _span(levels: Sequence[Any]) -> str:
    return f"{levels[0]}" if len(levels) == 1 else f"{levels[0]} to {levels[-1]}"


def _table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    return tables.to_markdown(header, body).removesuffix("\n")


def plot(rows: Rows) -> Figure | None:
    """Last test accuracy against noise level: means with their standard errors.

    None if no run has one.
    """
    tested = [row for row in summarize(rows) if row["last_test_accuracy_mean"] is not None]
    if not tested:
        return None
    types, methods = values(tested, "noise_type"), values(tested, "method")
    figure = Figure(figsize=(6.5 * len(types), 5.5), layout="constrained")
    all_axes = figure.subplots(1, len(types), sharey=True, squeeze=False)[0]
    for axes, noise_type in zip(all_axes, types, strict=True):
        of_type = where(tested, noise_type=noise_type)
        for i, method in enumerate(methods):
            _draw_method(axes, where(of_type, method=method), i, method)
        axes.set(xlabel="noise level", title=f"{rows[0]['dataset']}, {_named(noise_type)}")
        levels = values(of_type, "level")
        if all(isinstance(level, float) for level in levels):  # Names have their ticks.
            axes.set_xticks(levels, [f"{level:g}" for level in levels])
        axes.grid(alpha=0.3)
    all_axes[0].set_ylabel("test accuracy, last, %")
    handles = all_axes[0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4 if len(types) == 1 else 6)
    return figure


def _draw_method(axes: Any, points: Rows, number: int, method: str) -> None:
    errors = [(x["last_test_accuracy_std"] or 0) / np.sqrt(x["seeds"]) for x in points]
    axes.errorbar(
        [x["level"] for x in points],
        [100 * x["last_test_accuracy_mean"] for x in points],
        100 * np.array(errors),
        marker=_MARKERS[number % len(_MARKERS)],
        color="black" if method == "mlc" else f"C{number % 10}",
        linestyle="--" if number >= 10 and method != "mlc" else "-",
        linewidth=2.5 if method == "mlc" else 1,
        markersize=4,
        capsize=2,
        label=method,
    )
