"""The picture of a run: training curves, given and corrected labels."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from mlc_jax.data.source import UNKNOWN, Subset
from mlc_jax.report.glyphs import drawable

_MOST_CHARACTERS = 24  # The most characters of a name; longer ones leave no room for the picture.
_MAX_NAMED_CLASSES = 20  # More names are not readable.


def training(
    metrics: Sequence[dict[str, Any]],
    evals: Sequence[dict[str, Any]],
    noisy: Subset,
    corrected: np.ndarray,
    class_names: Sequence[str],
    title: str,
) -> bytes:
    """Draws a run.

    If the truth is known, given and corrected labels are compared with it. If not, corrected labels
    are compared with the given ones.

    Args:
      metrics: rows of `metrics.jsonl`.
      evals: rows of the loop's evaluations.
      noisy: the examples whose labels were corrected.
      corrected: `[N]`, their corrected labels.
      class_names: C names.
      title: of the whole picture.

    Returns:
      A PNG.
    """
    from matplotlib import rc_context

    named = drawable([*class_names, title])
    *class_names, title = named.names
    most = _MOST_CHARACTERS
    class_names = [x if len(x) <= most else f"{x[: most - 1]}…" for x in class_names]
    with rc_context({"font.family": named.families, "text.parse_math": False}):
        return _training(metrics, evals, noisy, corrected, class_names, title)


def _training(
    metrics: Sequence[dict[str, Any]],
    evals: Sequence[dict[str, Any]],
    noisy: Subset,
    corrected: np.ndarray,
    class_names: Sequence[str],
    title: str,
) -> bytes:
    from matplotlib.figure import Figure

    has_norms = any("train/meta_grad_norm" in row for row in metrics)
    figure = Figure(figsize=(16 if has_norms else 13, 7.5), layout="constrained")
    if has_norms:
        # A figure for each row, or the colour bars below would push apart the panels above.
        rows: Any = figure.subfigures(2, 1)
        losses_axes, accuracy_axes, norms_axes = rows[0].subplots(1, 3)
        label_axes = rows[1].subplots(1, 2)
        _draw_norms(norms_axes, metrics)
    else:
        (losses_axes, accuracy_axes), label_axes = figure.subplots(2, 2)
    _draw_losses(losses_axes, metrics)
    given = float(np.mean(noisy.given == noisy.truth)) if noisy.has_truth else None
    _draw_accuracies(accuracy_axes, evals, given)
    if noisy.has_truth:
        shown = (("given labels", noisy.given), ("corrected labels", corrected))
        for axes, (name, labels) in zip(label_axes, shown, strict=True):
            _draw_counts(axes, noisy.truth, labels, class_names, "true class", "label")
            axes.set_title(f"{name}: {100 * np.mean(labels == noisy.truth):.1f} % right")
    else:
        had = noisy.given != UNKNOWN  # Rows with a given label.
        given, changed = noisy.given[had], np.sum((corrected != noisy.given)[had])
        _draw_counts(label_axes[0], given, corrected[had], class_names, "given", "corrected")
        label_axes[0].set_title(f"{changed} of {len(noisy)} changed")
        _draw_sizes(label_axes[1], given, corrected, class_names)
    figure.suptitle(title)
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    return png.getvalue()


def _draw_losses(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    for name, label in (
        ("train/inner_loss", "inner loss (corrected labels)"),
        ("train/outer_loss", "outer loss (clean labels)"),
    ):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=label)
    axes.set(xlabel="step", ylabel="loss (nats)", title="Training loss")
    if axes.lines:
        axes.legend()
    axes.grid(alpha=0.3)


def _draw_norms(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Whether the meta model still learns: norms of its gradient and of its updates."""
    for name, label in (
        ("train/meta_grad_norm", "meta-gradient"),
        ("train/meta_update_norm", "update of the meta model"),
    ):
        points = [(row["step"], row[name]) for row in rows if row.get(name, 0) > 0]
        if points:
            axes.plot(*zip(*points, strict=True), label=label)
            axes.legend()
    axes.set(xlabel="step", ylabel="norm", yscale="log", title="Does the meta-gradient fade?")
    axes.grid(alpha=0.3)


def _draw_accuracies(axes: Any, evals: Sequence[dict[str, Any]], given: float | None) -> None:
    for name, label in (
        ("test_accuracy", "test accuracy"),
        ("validation_accuracy", "validation accuracy"),
        ("corrected_label_accuracy", "corrected labels right"),
        ("labels_changed", "labels changed"),
    ):
        points = [(row["step"], row[name]) for row in evals if row.get(name) is not None]
        if points and (name != "labels_changed" or given is None):
            axes.plot(*zip(*points, strict=True), marker=".", label=label)
    if given is not None:
        axes.axhline(given, color="grey", linestyle="--", label="given labels right")
    axes.set(xlabel="step", ylim=(0, 1.02), title="Share of examples")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)


def _draw_counts(
    axes: Any, rows: np.ndarray, columns: np.ndarray, names: Sequence[str], ylabel: str, xlabel: str
) -> None:
    """A heat map: of the examples of each row's class, the shares of the columns' classes."""
    counts = np.zeros((len(names), len(names)))
    np.add.at(counts, (rows, columns), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.figure.colorbar(image, ax=axes, shrink=0.8)
    axes.set(xlabel=xlabel, ylabel=ylabel)
    if len(names) <= _MAX_NAMED_CLASSES:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(names)), names)


def _draw_sizes(axes: Any, given: np.ndarray, corrected: np.ndarray, names: Sequence[str]) -> None:
    places = np.arange(len(names))
    for offset, (label, labels) in enumerate((("given", given), ("corrected", corrected))):
        counts = np.bincount(labels, minlength=len(names))
        axes.bar(places + 0.4 * offset - 0.2, counts, 0.4, label=label)
    axes.set(ylabel="examples", title="Classes before and after")
    if len(names) <= _MAX_NAMED_CLASSES:
        axes.set_xticks(places, names, rotation=90)
    axes.legend()
