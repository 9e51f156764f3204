"""The pictures of `experiments.compare_meta_gradients`: rows of its tables in, figures out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

from experiments.tables import values, where

Rows = Sequence[Mapping[str, Any]]

NOISE_NAMES = {"uniform": "UNIF", "flip": "FLIP"}  # The paper's.
_STYLES: Any = ("-", "--", ":", "-.")


def plot_agreement(rows: Rows) -> Figure:
    """Cosine and norm ratio against k, a column per phase: quartiles over the windows."""
    quantities = {"cosine": "cosine with exact", "norm_ratio": "norm / norm of exact"}
    names, phases = values(rows, "estimator"), values(rows, "phase")
    levels = list(zip(values(rows, "level"), _STYLES, strict=False))
    figure = Figure(figsize=(4 * len(phases), 7), layout="constrained")
    axes = figure.subplots(2, len(phases), sharex=True, sharey="row", squeeze=False)
    for row_of_axes, (key, label) in zip(axes, quantities.items(), strict=True):
        for axis, phase in zip(row_of_axes, phases, strict=True):
            for level, style in levels:
                for i, name in enumerate(names):
                    points = where(rows, phase=phase, level=level, estimator=name)
                    _quartiles(axis, points, key, color=f"C{i}", linestyle=style)
            axis.axhline(1, color="black", linewidth=0.5)
        row_of_axes[0].set_ylabel(label)
    for upper, lower, phase in zip(*axes, phases, strict=True):
        upper.set_title(phase)
        lower.set_xlabel("inner steps k")
        _log_y(lower)
    handles = [Line2D([], [], color=f"C{i}", label=name) for i, name in enumerate(names)]
    handles += [
        Line2D([], [], color="gray", linestyle=style, label=f"noise {level}")
        for level, style in levels
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5)
    return figure


def plot_cost(rows: Rows) -> Figure:
    """Time, FLOPs and memory against k, of everything but the plain step."""
    quantities = {
        "time_ratio": "time / k plain steps",
        "flop_ratio": "FLOPs / k plain steps",
        "temp_mib": "temp memory, MiB",
    }
    figure = Figure(figsize=(13, 5), layout="constrained")
    all_axes = figure.subplots(1, len(quantities))
    for axis, (key, title) in zip(all_axes, quantities.items(), strict=True):
        for i, name in enumerate(name for name in values(rows, "step") if name != "plain"):
            points = [(row["num_inner_steps"], row[key]) for row in where(rows, step=name)]
            style = _STYLES[i // 10 % len(_STYLES)]  # There are ten colours.
            axis.plot(*zip(*points, strict=True), style, color=f"C{i}", marker=".", label=name)
        axis.set(xlabel="inner steps k", title=title)
        _log_x(axis, values(rows, "num_inner_steps"))
        _log_y(axis)
        axis.grid(alpha=0.3)
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


def plot_accuracy(rows: Rows) -> Figure:
    """Last test accuracy against k: quartiles over the seeds that have one."""
    rows = [row for row in rows if row["last_test_accuracy"] is not None]
    figure = Figure(figsize=(7, 5), layout="constrained")
    axis = figure.subplots()
    for i, name in enumerate(values(rows, "estimator")):
        points = where(rows, estimator=name)
        _quartiles(axis, points, "last_test_accuracy", color=f"C{i}", label=name)
    axis.set(xlabel="inner steps k", ylabel="test accuracy, last")
    axis.grid(alpha=0.3)
    if rows:
        axis.legend()
    return figure


def plot_lookahead(rows: Rows) -> Figure:
    """Last test accuracy against k, a panel per noise: quartiles over the seeds.

    Lines are exact, the LCN updated after every step or after every k; single points are the less
    exact estimators, at the largest k.
    """
    rows = [row for row in where(rows, setting="plain") if row["last_test_accuracy"] is not None]
    noises = dict.fromkeys((row["noise_type"], row["noise_level"]) for row in rows)
    figure = Figure(figsize=(3.2 * max(1, len(noises)), 4), layout="constrained")
    all_axes = figure.subplots(1, max(1, len(noises)), squeeze=False)[0]
    for axis, (kind, level) in zip(all_axes, noises, strict=False):
        of_noise = where(rows, noise_type=kind, noise_level=level)
        exact = where(of_noise, estimator="exact")
        every_step = [row for row in exact if row["s"] == 1]
        every_window = [row for row in exact if row["s"] == row["k"]]
        key = "last_test_accuracy"
        _quartiles(axis, every_step, key, color="C0", label="LCN updated every step")
        _quartiles(axis, every_window, key, color="C1", label="every k steps")
        others = [name for name in values(of_noise, "estimator") if name != "exact"]
        for i, name in enumerate(others):
            points = where(of_noise, estimator=name)
            style = {"color": f"C{i + 2}", "linestyle": "", "label": f"{name}, every step"}
            _quartiles(axis, points, key, **style)
        _log_x(axis, values(exact, "k"))
        axis.set(xlabel="inner steps k", title=f"{NOISE_NAMES[kind]} {level:g}")
        axis.grid(alpha=0.3)
    all_axes[0].set_ylabel("test accuracy, last")
    handles, labels = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure


def _quartiles(axis: Any, rows: Rows, key: str, **style: Any) -> None:
    """The median against k, with a bar from the lower to the upper quartile."""
    lengths = values(rows, "k")
    samples = [[row[key] for row in where(rows, k=k)] for k in lengths]
    low, middle, high = np.array([np.percentile(x, (25, 50, 75)) for x in samples]).T
    bars = (middle - low, high - middle)
    axis.errorbar(lengths, middle, bars, marker=".", capsize=2, linewidth=1, **style)
    _log_x(axis, lengths)


def _log_x(axis: Any, lengths: Sequence[int]) -> None:
    """A logarithmic axis of k with a tick at each value that was measured, and no other."""
    axis.set_xscale("log")
    axis.set_xticks(lengths, [str(k) for k in lengths])
    axis.xaxis.set_minor_locator(NullLocator())


def _log_y(axis: Any) -> None:
    """A logarithmic axis with plain numbers: 0.5, 0.7, 1, 2, 3, 5, 7, 10."""
    axis.set_yscale("log")
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5, 7)))
    axis.yaxis.set_major_formatter("{x:g}")
    axis.yaxis.set_minor_formatter(NullFormatter())
