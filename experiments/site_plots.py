"""The plots of the site, drawn from the numbers in its pages.

    python -m experiments.site_plots                  # all of them, into docs/images
    python -m experiments.site_plots --only=suite     # or method, verdict, rounds, many, estimators

Nothing is measured here. Tables are read from the page that shows them with their command, so a
plot and its page cannot differ.
"""

import pathlib
import re
from collections.abc import Callable

from absl import flags
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from mlc_jax import command_line
from mlc_jax.errors import expect

DOCS = pathlib.Path(__file__).parents[1] / "docs"
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#777777"
Cells = list[list[str]]
KINDS = {"flip": (BLUE, "o", "FLIP 0.35"), "unif": (GREEN, "s", "UNIF 0.5"),
         "hard": (ORANGE, "^", "hard rows")}  # fmt: skip

_ONLY = flags.DEFINE_string("only", "", "One of the plots; all of them if empty.")
_OUTPUT = flags.DEFINE_string("output", str(DOCS / "images"), "Directory for the pictures.")


def table(page: str, first_cell: str) -> Cells:
    """Cells of a page's table below its header, which begins with `first_cell`.

    Raises:
      InputError: there is no such table.
    """
    lines = (DOCS / page).read_text().splitlines()
    starts = [number for number, line in enumerate(lines) if line.startswith(f"| {first_cell} |")]
    expect(len(starts) == 1, "first_cell", first_cell, f"the header of one table of {page}")
    rows = []
    for line in lines[starts[0] + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip(" *") for cell in line.strip("|").split("|")])
    return rows


def method() -> Figure:
    """Two networks, two batches, and the path of the meta-gradient."""
    figure, axes = _canvas(8, 3.7)
    axes.set(xlim=(0, 16), ylim=(0, 7.4))
    axes.axis("off")
    for x, y, width, text, colour in (
        (0.1, 5.2, 3.0, "noisy batch\n$x,\\ y'$", GREY),
        (4.6, 5.2, 3.2, "label correction\nnetwork $g_\\alpha$", ORANGE),
        (9.3, 5.2, 2.9, "corrected\nlabels", GREY),
        (4.6, 1.9, 3.2, "classifier $f_w$", BLUE),
        (9.3, 1.9, 2.9, "after k updates\n$f_{w'}$", BLUE),
        (13.2, 1.9, 2.7, "loss on the\nclean batch", GREEN),
    ):
        _box(axes, x, y, width, text, colour)
    _arrow(axes, (3.1, 6.0), (4.6, 6.0))
    _arrow(axes, (1.6, 5.2), (4.6, 2.7))
    _arrow(axes, (6.2, 3.5), (6.2, 5.2), "features", (6.35, 4.2))
    _arrow(axes, (7.8, 6.0), (9.3, 6.0))
    _arrow(axes, (9.9, 5.2), (8.4, 2.85), "to learn", (9.65, 4.2))
    _arrow(axes, (7.8, 2.7), (9.3, 2.7))
    _arrow(axes, (12.2, 2.7), (13.2, 2.7))
    way = [14.5, 14.5, 3.9, 3.9], [1.9, 1.0, 1.0, 5.6]
    axes.plot(*way, color=ORANGE, linestyle="--", linewidth=1.6)
    axes.annotate("", (4.6, 5.6), (3.9, 5.6), arrowprops={"arrowstyle": "-|>", "color": ORANGE})
    text = "meta-gradient: back through the k updates to the label correction network"
    axes.text(9.2, 0.25, text, ha="center", color=ORANGE, fontsize=9)
    return figure


def verdict() -> Figure:
    """The estimates of the first page, with their intervals."""
    page = (DOCS / "start.md").read_text()
    found = re.findall(r"^  (\S.*?) +([\d.]+)  \(95 %: (\d+) to (\d+)\)$", page, re.MULTILINE)
    figure, axes = _canvas(7, 2.6)
    for place, (name, middle, low, high) in enumerate(reversed(found)):
        colour = ORANGE if name == "corrected labels" else GREY
        axes.plot([float(low), float(high)], [place, place], color=colour, linewidth=3, alpha=0.5)
        axes.plot(float(middle), place, "o", color=colour, markersize=8)
        point = (float(middle), place)
        axes.annotate(middle, point, (0, 8), textcoords="offset points", ha="center", fontsize=9)
    names = [name for name, *_ in reversed(found)]
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="percent of the unchecked labels right, with 95 % interval", xlim=(55, 101))
    axes.set_ylim(-0.6, len(names) - 0.4)
    axes.grid(axis="x", alpha=0.3)
    return figure


def rounds() -> Figure:
    """Share of right labels over the number of checked rows, for two ways to choose them."""
    ways = table("results/own_data.md", "rows checked")
    header = (DOCS / "results/own_data.md").read_text()
    cells = re.search(r"^\| rows checked \|(.*)\|$", header, re.MULTILINE)
    assert cells is not None
    checked = [int(cell) for cell in cells[1].split("|")]
    figure, axes = _canvas(6, 3.2)
    for (name, *right), colour, marker in zip(ways, (ORANGE, GREY), "os", strict=True):
        values = [float(cell) for cell in right]
        axes.plot(checked, values, color=colour, marker=marker, label=name.replace("`", ""))
        axes.annotate(f"{values[-1]:.1f}", (checked[-1], values[-1]), (7, -3),
                      textcoords="offset points", color=colour)  # fmt: skip
    axes.set(xlabel="rows checked", ylabel="percent of all labels right", ylim=(94, 100.3))
    axes.set_xlim(checked[0] - 12, checked[-1] + 25)
    axes.set_xticks(checked)
    axes.legend(frameon=False, loc="lower right")
    axes.grid(axis="y", alpha=0.3)
    return figure


def suite() -> Figure:
    """Gap of the corrected labels to the best simple way, cell by cell."""
    rows = table("results/own_data.md", "table")
    names = list(dict.fromkeys(row[0] for row in rows))
    figure, axes = _canvas(7, 4.6)
    axes.axvspan(-2, 2, color=GREY, alpha=0.12, linewidth=0)
    axes.axvline(0, color=GREY, linewidth=1)
    for name, kind, *_, gap in rows:
        middle, error = (float(part) for part in gap.replace("+", "").split(" ± "))
        colour, marker, label = KINDS[kind]
        place = len(names) - 1 - names.index(name) + 0.22 * (1 - list(KINDS).index(kind))
        shown = label if name == names[0] else None
        axes.errorbar(middle, place, xerr=error, color=colour, marker=marker, label=shown)
    axes.set_yticks(range(len(names)), [name.replace("_", " ") for name in reversed(names)])
    axes.set_xlabel(
        "points above the best of: given labels, LR of checked rows, LR of given labels"
    )
    axes.legend(frameon=False, loc="upper right")
    axes.grid(axis="x", alpha=0.3)
    return figure


def many() -> Figure:
    """Gaps of the 52 tables, sorted, for each kind of wrong labels."""
    rows = table("results/own_data.md", "set")
    figure, axes = _canvas(7, 3.4)
    axes.axhspan(-2, 2, color=GREY, alpha=0.12, linewidth=0)
    axes.axhline(0, color=GREY, linewidth=1)
    for place, (colour, marker, label) in zip((-3, -2, -1), KINDS.values(), strict=True):
        gaps = sorted(float(row[place].replace("+", "").split(" ± ")[0]) for row in rows)
        lost = sum(gap < -2 for gap in gaps)
        axes.plot(
            range(1, len(gaps) + 1), gaps, color=colour, marker=marker, markersize=4, linewidth=0,
            label=f"{label}: {lost} of {len(gaps)} below -2",
        )  # fmt: skip
    axes.set(xlabel="tables, sorted by their gap", ylabel="points above the best simple way")
    axes.legend(frameon=False, loc="upper left")
    axes.grid(axis="y", alpha=0.3)
    return figure


def estimators() -> Figure:
    """Cosine of approximate meta-gradients with the exact one, over the length of the window."""
    rows = table("meta_gradients.md", "cosine with exact, FLIP 0.6")
    shown = {
        "approximate": (ORANGE, "o"),
        "one_step": (BLUE, "s"),
        "truncated, 5 steps": (GREEN, "^"),
    }
    figure, axes = _canvas(6, 3.4)
    lengths = (1, 2, 5, 10, 20, 50)
    for name, *cells in rows:
        if name not in shown:
            continue
        parts = [cell.split(" ± ") for cell in cells]
        middle = [float(part[0]) for part in parts]
        spread = [float(part[1]) if len(part) == 2 else 0.0 for part in parts]
        colour, marker = shown[name]
        axes.plot(lengths, middle, color=colour, marker=marker, label=name)
        low = [m - s for m, s in zip(middle, spread, strict=True)]
        high = [min(m + s, 1) for m, s in zip(middle, spread, strict=True)]
        axes.fill_between(lengths, low, high, color=colour, alpha=0.12, linewidth=0)
    axes.set_xscale("log")
    axes.set_xticks(lengths, [str(k) for k in lengths])
    axes.minorticks_off()
    axes.set(xlabel="k, updates per window", ylabel="cosine with exact", ylim=(-0.15, 1.05))
    axes.legend(frameon=False, loc="lower left")
    axes.grid(axis="y", alpha=0.3)
    return figure


PLOTS: dict[str, tuple[str, Callable[[], Figure]]] = {
    "method": ("method.png", method),
    "verdict": ("verdict.png", verdict),
    "rounds": ("rounds.png", rounds),
    "suite": ("suite_gap.png", suite),
    "many": ("suite_many.png", many),
    "estimators": ("exact_and_approximate.png", estimators),
}


def _canvas(width: float, height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _box(axes: Axes, x: float, y: float, width: float, text: str, colour: str) -> None:
    shape = FancyBboxPatch(
        (x, y), width, 1.6, boxstyle="round,pad=0,rounding_size=0.25", facecolor="white",
        edgecolor=colour, linewidth=2,
    )  # fmt: skip
    axes.add_patch(shape)
    axes.text(x + width / 2, y + 0.8, text, ha="center", va="center", fontsize=10)


def _arrow(
    axes: Axes,
    start: tuple[float, float],
    end: tuple[float, float],
    text: str = "",
    place: tuple[float, float] = (0, 0),
) -> None:
    patch = FancyArrowPatch(start, end, arrowstyle="-|>", color="#444444", mutation_scale=14,
                            shrinkA=0, shrinkB=0)  # fmt: skip
    axes.add_patch(patch)
    if text:
        axes.text(*place, text, fontsize=9, color="#444444")


def main() -> None:
    """Draws what is asked for."""
    known = ", ".join(PLOTS)
    expect(not _ONLY.value or _ONLY.value in PLOTS, "only", _ONLY.value, f"one of {known}")
    output = pathlib.Path(_OUTPUT.value)
    output.mkdir(parents=True, exist_ok=True)
    for name in [_ONLY.value] if _ONLY.value else PLOTS:
        file, draw = PLOTS[name]
        draw().savefig(output / file, dpi=120, metadata={"Software": None})
        print(output / file)


if __name__ == "__main__":
    command_line.run(main, required=[])
