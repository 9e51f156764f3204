"""Analyses the labels of a finished run: the paper's figures 6 to 8, and a report on label errors.

    python -m experiments.paper.analyze --workdir=DIR

DIR is the workdir of one run, of any method, or of `mlc_jax.fit`. In DIR/analysis:

    heat_maps.png      given and corrected labels against the true ones (Figure 6)
    label_quality.png  how much the method trusts right and wrong given labels: the LCN's
                       probabilities, MW-Net's weights, ... (Figure 7)
    dynamics.png       inner loss, outer loss and test accuracy against step (Figure 8)
    label_errors.md    "this label is wrong": precision and recall of changed labels, AUC and
    label_errors.csv   average precision of the ranking by 1 - label_quality; also cleanlab's

If the true labels are not known, given and corrected labels are compared. The heat map then has the
corrected labels of each given label, and the histograms are of kept and of corrected labels.
Precision and recall stay empty.

cleanlab (pip install cleanlab) ranks the same labels by out-of-sample probabilities, here of a
scikit-learn MLP on the raw inputs in five-fold cross-validation. It sees no clean label. For large
inputs give it better probabilities: --pred_probs=FILE.npy, [N, C] in the order of
corrected_labels.csv.
"""

import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags, logging
from etils import epath
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from sklearn.metrics import average_precision_score, roc_auc_score

from experiments import tables
from experiments.tables import to_markdown as markdown_table
from mlc_jax import command_line, data, paths
from mlc_jax.benchmarks import datasets
from mlc_jax.config import complete
from mlc_jax.data import UNKNOWN
from mlc_jax.errors import InputError, expect
from mlc_jax.report import report
from mlc_jax.training.metrics import read_metrics
from mlc_jax.workdir.workdir import CONFIG_FILE, DATASET_FILE

_WORKDIR = flags.DEFINE_string("workdir", "", "Workdir of one finished run.")
_CLEANLAB = flags.DEFINE_bool("cleanlab", True, "Set cleanlab beside the method, if installed.")
_PRED_PROBS = flags.DEFINE_string(
    "pred_probs", "", "cleanlab: .npy of out-of-sample probabilities [N, C]; none trains an MLP."
)

DIRECTORY = "analysis"
MAX_VALUES = 2_000_000  # Most numbers to cross-validate an MLP on, which takes 30 seconds.
_FOLDS = 5
_MAX_NAMED_CLASSES = 20  # More names than that cannot be read.
_MAX_TICKS = 8  # At the steps that were measured; of more, the usual round ones.


class Labels(NamedTuple):
    """`corrected_labels.npz`: of the N noisy examples that had a label."""

    given: np.ndarray  # [N]
    corrected: np.ndarray  # [N]
    soft: np.ndarray  # [N, C]
    quality: np.ndarray  # [N]
    true: np.ndarray  # [N], UNKNOWN where nobody knows it.

    @property
    def changed(self) -> np.ndarray:
        """Whether each label was corrected, `[N]`."""
        return self.corrected != self.given

    @property
    def wrong(self) -> np.ndarray | None:
        """Whether each given label is wrong, `[N]`; None if the truth is not known."""
        return None if (self.true == UNKNOWN).any() else self.given != self.true


def main() -> None:
    workdir = paths.absolute(_WORKDIR.value)
    config, results, labels = read_run(workdir)
    noise = "labels as given" if results["noise"] == "given" else f"{results['noise']} noise"
    title = f"{results['method']} on {results['dataset']}, {noise}"
    directory = workdir / DIRECTORY
    directory.mkdir(exist_ok=True)
    names = _class_names(workdir, config, labels.soft.shape[1])
    metrics = read_metrics(workdir)
    for name, figure in (
        ("heat_maps", plot_heat_maps(labels, names, title)),
        ("label_quality", plot_label_quality(labels, title)),
        ("dynamics", plot_dynamics(metrics, title)),
    ):
        tables.write_figure(directory, name, figure)
    rows = [
        {"ranked by": f"{results['method']}, 1 - label_quality"}
        | detection(labels, labels.changed, labels.quality)
    ]
    note = ""
    try:
        rows += _of_cleanlab(config, labels)
    except InputError as reason:
        note = f"\ncleanlab is skipped: {reason}\n"
    text = to_markdown(rows, labels, title) + note
    tables.write(directory, "label_errors", rows, text)
    print(text)
    print(f"Everything is in {directory}.")


def read_run(workdir: epath.Path) -> tuple[ConfigDict | None, dict[str, Any], Labels]:
    """Config, results and labels of a finished run; None for the config of a run of `mlc_jax.fit`.

    Raises:
      InputError: there is none.
    """
    results = workdir / report.RESULTS_FILE
    if not results.exists():
        patterns = ["/".join(["*"] * depth + [report.RESULTS_FILE]) for depth in range(1, 5)]
        below = sorted(path.parent for pattern in patterns for path in workdir.glob(pattern))
        hint = f"; runs below it: {below[0]}, ... ({len(below)})" if below else ""
        raise InputError(f"--workdir: no finished run in {str(workdir)!r}{hint}")
    try:
        described = json.loads((workdir / CONFIG_FILE).read_text())
        config = None if "made_by" in described else complete(ConfigDict(described))
        with (workdir / report.SOFT_LABELS_FILE).open("rb") as file, np.load(file) as arrays:
            keys = ("given_label", "corrected_label", "soft_label", "label_quality", "true_label")
            had = arrays["given_label"] != UNKNOWN  # A label.
            labels = Labels(*(arrays[key][had] for key in keys))
        return config, json.loads(results.read_text()), labels
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"--workdir: {str(workdir)!r} cannot be read: {error}") from error


def detection(
    labels: Labels, flagged: np.ndarray, quality: np.ndarray
) -> dict[str, float | int | None]:
    """How well wrong given labels were found.

    Args:
      labels: of the run.
      flagged: `[N]` bool, labels that count as wrong.
      quality: `[N]`, the ranking, lowest first.

    Returns:
      `flagged`, how many; precision and recall of them; AUC and average precision of the ranking.
      None where a figure has no meaning: the truth is not known, or no label is wrong, say.
    """
    figures: dict[str, float | int | None] = {"flagged": int(flagged.sum())}
    figures |= dict.fromkeys(("precision", "recall", "auc", "average_precision"))
    wrong = labels.wrong
    if wrong is None:
        return figures
    hits = int(np.sum(flagged & wrong))
    if flagged.any():
        figures["precision"] = hits / flagged.sum()
    if wrong.any():
        figures["recall"] = hits / wrong.sum()
    if wrong.any() and not wrong.all():
        figures["auc"] = float(roc_auc_score(wrong, -quality))
        figures["average_precision"] = float(average_precision_score(wrong, -quality))
    return figures


def _of_cleanlab(config: ConfigDict | None, labels: Labels) -> list[dict[str, Any]]:
    """cleanlab's row; InputError says why there is none."""
    if not _CLEANLAB.value:
        return []
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError as error:
        raise InputError("It is not installed: pip install cleanlab.") from error
    if _PRED_PROBS.value:
        probs = _read_probs(labels)
    elif config is None:
        raise InputError("It needs --pred_probs=FILE.npy: the run's inputs are not in its workdir.")
    else:
        probs = cross_validated(config, labels.given)
    # In this process: a fork of one that runs JAX and TensorFlow may hang.
    flagged = find_label_issues(labels.given, probs, n_jobs=1)
    quality = get_label_quality_scores(labels.given, probs)
    source = _PRED_PROBS.value or f"{_FOLDS}-fold MLP"
    return [{"ranked by": f"cleanlab, {source}"} | detection(labels, flagged, quality)]


def _read_probs(labels: Labels) -> np.ndarray:
    try:
        probs = np.load(_PRED_PROBS.value, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"--pred_probs: {_PRED_PROBS.value!r} cannot be read: {error}") from error
    expect(
        probs.shape == labels.soft.shape and np.allclose(probs.sum(axis=1), 1, atol=1e-3),
        "--pred_probs",
        f"shape {probs.shape}",
        f"probabilities of shape {labels.soft.shape}",
    )
    result: np.ndarray = probs
    return result


def cross_validated(config: ConfigDict, given: np.ndarray) -> np.ndarray:
    """Out-of-sample probabilities `[N, C]` of the given labels, by an MLP on the raw inputs."""
    from sklearn.model_selection import cross_val_predict
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    dataset = datasets.load(config)
    had = np.flatnonzero(dataset.noisy.given != UNKNOWN)  # A label; see `Labels`.
    noisy = dataset.noisy.take(had[: len(given)])  # A run may export the first labels alone.
    source = noisy.source
    assert isinstance(source, data.ArraySource)
    num_values = source.inputs[0].size
    if len(noisy) * num_values > MAX_VALUES:
        raise InputError(
            f"{len(noisy):,} inputs of {num_values:,} numbers are too many for an MLP in "
            "cross-validation: --pred_probs=FILE.npy takes the probabilities of your own model."
        )
    if np.bincount(given, minlength=dataset.num_classes).min() < _FOLDS:
        raise InputError(f"A class has fewer than {_FOLDS} given labels, one per fold.")
    hidden = tuple(config.model.mlp.hidden_sizes)
    model = make_pipeline(
        StandardScaler(),
        # Stopped early, or it would memorise the wrong labels.
        MLPClassifier(hidden, early_stopping=True, max_iter=100, random_state=0),
    )
    flat = source.inputs[noisy.rows].reshape(len(noisy), -1).astype(np.float32)
    probs: np.ndarray = cross_val_predict(model, flat, given, cv=_FOLDS, method="predict_proba")
    return probs


def to_markdown(rows: Sequence[Mapping[str, Any]], labels: Labels, title: str) -> str:
    """The report on label errors, in percent."""
    wrong, num_labels = labels.wrong, len(labels.given)
    if wrong is None:
        first = f"{title}: {num_labels} given labels; which of them are wrong is not known."
    else:
        share = f"{wrong.mean():.1%}"
        first = f"{title}: {wrong.sum()} of {num_labels} given labels are wrong ({share})."
    body = [[_cell(x) for x in row.values()] for row in rows]
    return f"{first}\n\n{markdown_table(list(rows[0]), body)}"


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.1%}" if isinstance(value, float) else str(value)


def plot_heat_maps(labels: Labels, names: Sequence[str], title: str) -> Figure:
    """Mean label of every true class: as given, and as corrected (soft).

    Where the truth is not known, of every given label: as corrected.
    """
    num_classes = labels.soft.shape[1]
    given = np.eye(num_classes)[labels.given]
    if labels.wrong is None:
        rows, ylabel = labels.given, "given label"
        panels = {f"corrected labels: {labels.changed.mean():.1%} changed": labels.soft}
    else:
        rows, ylabel = labels.true, "true class"
        panels = {
            f"{shown}: {np.mean(soft.argmax(axis=1) == rows):.1%} right": soft
            for shown, soft in (("given labels", given), ("corrected labels", labels.soft))
        }
    members = np.eye(num_classes)[rows]
    sizes = np.maximum(members.sum(axis=0), 1)[:, None]
    figure = Figure(figsize=(1 + 6 * len(panels), 6), layout="constrained")
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (shown, soft) in zip(all_axes, panels.items(), strict=True):
        image = axes.imshow(members.T @ soft / sizes, vmin=0, vmax=1, cmap="Blues")
        axes.set(xlabel="label", ylabel=ylabel, title=shown)
        if num_classes <= _MAX_NAMED_CLASSES:
            axes.set_xticks(range(num_classes), names, rotation=90)
            axes.set_yticks(range(num_classes), names)
    figure.colorbar(image, ax=figure.axes, shrink=0.8)
    figure.suptitle(title)
    return figure


def plot_label_quality(labels: Labels, title: str) -> Figure:
    """Histograms of the quality of right and of wrong given labels.

    Where the truth is not known, of kept and of corrected ones.
    """
    first, second, names = ~labels.changed, labels.changed, ("kept labels", "corrected labels")
    if labels.wrong is not None:
        first, second, names = ~labels.wrong, labels.wrong, ("right labels", "wrong labels")
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    bins = list(np.linspace(0, 1, 41))
    for name, rows in zip(names, (first, second), strict=True):
        if rows.any():
            weights = np.full(rows.sum(), 1 / rows.sum())
            shown = f"{name} ({rows.sum()}), mean {labels.quality[rows].mean():.2f}"
            axes.hist(labels.quality[rows], bins, weights=weights, alpha=0.6, label=shown)
    axes.set(xlabel="label_quality of the given label", ylabel="share", title=title)
    axes.legend()
    return figure


def plot_dynamics(metrics: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """Losses and accuracies from `metrics.jsonl`."""
    panels: dict[str, dict[str, str]] = {
        "loss on noisy data (as corrected)": {"inner loss": "train/inner_loss"},
        "loss on clean data": {"outer loss": "train/outer_loss"},
        "accuracy": {
            "test": "eval/test_accuracy",
            "validation": "eval/validation_accuracy",
            "corrected labels": "eval/corrected_label_accuracy",
        },
        "share of labels changed": {"noisy set": "eval/labels_changed"},
    }
    drawn = {name: _curves(metrics, curves) for name, curves in panels.items()}
    drawn = {name: curves for name, curves in drawn.items() if curves}
    figure = Figure(figsize=(5 * len(drawn), 4.5), layout="constrained")
    for axes, (name, curves) in zip(
        figure.subplots(1, len(drawn), squeeze=False)[0], drawn.items(), strict=True
    ):
        for label, points in curves.items():
            axes.plot(*zip(*points, strict=True), marker=".", markersize=3, label=label)
        steps = sorted({step for points in curves.values() for step, _ in points})
        if len(steps) <= _MAX_TICKS:
            axes.set_xticks(steps)
        axes.set(xlabel="step", title=name)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.suptitle(title)
    return figure


def _curves(
    metrics: Sequence[Mapping[str, Any]], curves: Mapping[str, str]
) -> dict[str, list[tuple[int, float]]]:
    points: Callable[[str], list[tuple[int, float]]] = lambda key: [  # noqa: E731
        (row["step"], row[key]) for row in metrics if row.get(key) is not None
    ]
    return {label: points(key) for label, key in curves.items() if points(key)}


def _class_names(workdir: epath.Path, config: ConfigDict | None, num_classes: int) -> Sequence[str]:
    """The dataset's class names, or numbers if an older run's data are missing."""
    path = workdir / DATASET_FILE
    try:
        if path.exists():
            names: list[str] = json.loads(path.read_text())["class_names"]
            return names
        if config is not None:
            return datasets.load(config).class_names
    except (InputError, ValueError, KeyError) as error:
        logging.warning("Classes are drawn by number: %s", error)
    return [str(i) for i in range(num_classes)]


if __name__ == "__main__":
    command_line.run(main, required=["workdir"])
