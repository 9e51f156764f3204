"""What a finished run made of its labels: the paper's figures 6 to 8, and a report on label errors.

    python -m experiments.analyze --workdir=DIR

DIR is the workdir of one run, of any method. In DIR/analysis:

    heat_maps.png      given and corrected labels against the true ones (Figure 6)
    label_quality.png  how far the method believes right and wrong given labels: the LCN's
                       probabilities, MW-Net's weights, ... (Figure 7)
    dynamics.png       inner loss, outer loss and test accuracy against step (Figure 8)
    label_errors.md    "this label is wrong": precision and recall of what was corrected, AUC and
    label_errors.csv   average precision of the ranking by 1 - label_quality; beside cleanlab

cleanlab (pip install cleanlab) ranks the same labels by out-of-sample probabilities, here of a
scikit-learn MLP on the raw inputs in five-fold cross-validation. It sees no clean label. For other
than small inputs give it better ones: --pred_probs=FILE.npy, [N, C] in the order of
corrected_labels.csv.
"""

import io
import json
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags
from etils import epath
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from sklearn.metrics import average_precision_score, roc_auc_score

from experiments.tables import to_csv
from mlc_jax import command_line, data, report
from mlc_jax.errors import InputError, expect
from mlc_jax.metrics import read_metrics

_WORKDIR = flags.DEFINE_string("workdir", "", "Workdir of one finished run.")
_CLEANLAB = flags.DEFINE_bool("cleanlab", True, "Set cleanlab beside the method, if installed.")
_PRED_PROBS = flags.DEFINE_string(
    "pred_probs", "", "cleanlab: .npy of out-of-sample probabilities [N, C]; none trains an MLP."
)

DIRECTORY = "analysis"
MAX_VALUES = 2_000_000  # Numbers that an MLP is cross-validated on: 30 seconds.
_FOLDS = 5
_MAX_NAMED_CLASSES = 20  # More names than that cannot be read.


class Labels(NamedTuple):
    """`corrected_labels.npz`: of N noisy examples."""

    given: np.ndarray  # [N]
    corrected: np.ndarray  # [N]
    soft: np.ndarray  # [N, C]
    quality: np.ndarray  # [N]
    true: np.ndarray  # [N]


def main() -> None:
    workdir = epath.Path(_WORKDIR.value).expanduser().resolve()
    config, results, labels = read_run(workdir)
    title = f"{results['method']} on {results['dataset']}, {results['noise']} noise"
    directory = workdir / DIRECTORY
    directory.mkdir(exist_ok=True)
    names = _class_names(config, labels.soft.shape[1])
    metrics = read_metrics(workdir)
    for name, figure in (
        ("heat_maps", plot_heat_maps(labels, names, title)),
        ("label_quality", plot_label_quality(labels, title)),
        ("dynamics", plot_dynamics(metrics, title)),
    ):
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=100)
        directory.joinpath(f"{name}.png").write_bytes(png.getvalue())
    rows = [
        {"ranked by": f"{results['method']}, 1 - label_quality"}
        | detection(labels, labels.corrected != labels.given, labels.quality)
    ]
    note = ""
    try:
        rows += _of_cleanlab(config, labels)
    except InputError as reason:
        note = f"\ncleanlab: left out. {reason}\n"
    directory.joinpath("label_errors.csv").write_text(to_csv(rows))
    text = to_markdown(rows, labels, title) + note
    directory.joinpath("label_errors.md").write_text(text)
    print(text)
    print(f"Everything is in {directory}.")


def read_run(workdir: epath.Path) -> tuple[ConfigDict, dict[str, Any], Labels]:
    """Config, results and labels of a finished run.

    Raises:
      InputError: it is none.
    """
    results = workdir / report.RESULTS_FILE
    if not results.exists():
        patterns = ["/".join(["*"] * depth + [report.RESULTS_FILE]) for depth in range(1, 5)]
        below = sorted(path.parent for pattern in patterns for path in workdir.glob(pattern))
        hint = f"; runs below it: {below[0]}, ... ({len(below)})" if below else ""
        raise InputError(f"--workdir: no finished run in {str(workdir)!r}{hint}")
    try:
        config = ConfigDict(json.loads((workdir / "config.json").read_text()))
        with (workdir / report.SOFT_LABELS_FILE).open("rb") as file, np.load(file) as arrays:
            keys = ("given_label", "corrected_label", "soft_label", "label_quality", "true_label")
            labels = Labels(*(arrays[key] for key in keys))
        return config, json.loads(results.read_text()), labels
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(f"--workdir: {str(workdir)!r} cannot be read: {error}") from error


def detection(
    labels: Labels, flagged: np.ndarray, quality: np.ndarray
) -> dict[str, float | int | None]:
    """How well wrong given labels were found.

    Args:
      labels: of the run.
      flagged: `[N]`, bool: held to be wrong.
      quality: `[N]`, ranked by, the lowest first.

    Returns:
      `flagged`, how many; precision and recall of them; AUC and average precision of the ranking.
      None where a figure has no meaning: without wrong or without right labels, say.
    """
    wrong = labels.given != labels.true
    hits = int(np.sum(flagged & wrong))
    both = wrong.any() and not wrong.all()
    return {
        "flagged": int(flagged.sum()),
        "precision": hits / flagged.sum() if flagged.any() else None,
        "recall": hits / wrong.sum() if wrong.any() else None,
        "auc": float(roc_auc_score(wrong, -quality)) if both else None,
        "average_precision": float(average_precision_score(wrong, -quality)) if both else None,
    }


def _of_cleanlab(config: ConfigDict, labels: Labels) -> list[dict[str, Any]]:
    """cleanlab's row; InputError says why there is none."""
    if not _CLEANLAB.value:
        return []
    try:
        from cleanlab.filter import find_label_issues
        from cleanlab.rank import get_label_quality_scores
    except ImportError as error:
        raise InputError("It is not installed: pip install cleanlab.") from error
    probs = _read_probs(labels) if _PRED_PROBS.value else cross_validated(config, labels.given)
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

    inputs = data.load(config).noisy.inputs
    if inputs.size > MAX_VALUES:
        raise InputError(
            f"{len(inputs):,} inputs of {inputs[0].size:,} numbers are too many for an MLP in "
            "cross-validation: --pred_probs=FILE.npy takes the probabilities of your own model."
        )
    if np.bincount(given).min() < _FOLDS:
        raise InputError(f"A class has fewer than {_FOLDS} given labels, one a fold.")
    hidden = tuple(config.model.mlp.hidden_sizes)
    model = make_pipeline(
        StandardScaler(),
        # Stopped early, or it would learn the wrong labels by heart.
        MLPClassifier(hidden, early_stopping=True, max_iter=100, random_state=0),
    )
    flat = inputs.reshape(len(inputs), -1).astype(np.float32)
    probs: np.ndarray = cross_val_predict(model, flat, given, cv=_FOLDS, method="predict_proba")
    return probs


def to_markdown(rows: Sequence[Mapping[str, Any]], labels: Labels, title: str) -> str:
    """The report on label errors, in percent."""
    wrong = labels.given != labels.true
    lines = [
        f"{title}: {wrong.sum()} of {len(wrong)} given labels are wrong ({wrong.mean():.1%}).",
        "",
        f"| {' | '.join(rows[0])} |",
        "| --- |" + " ---: |" * (len(rows[0]) - 1),
    ]
    for row in rows:
        cells = ["-" if x is None else f"{x:.1%}" if isinstance(x, float) else str(x)
                 for x in row.values()]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def plot_heat_maps(labels: Labels, names: Sequence[str], title: str) -> Figure:
    """Mean label of every true class: as given, and as corrected (soft)."""
    num_classes = labels.soft.shape[1]
    members = np.eye(num_classes)[labels.true]
    sizes = np.maximum(members.sum(axis=0), 1)[:, None]
    figure = Figure(figsize=(13, 6), layout="constrained")
    for axes, shown, soft in zip(
        figure.subplots(1, 2),
        ("given labels", "corrected labels"),
        (np.eye(num_classes)[labels.given], labels.soft),
        strict=True,
    ):
        image = axes.imshow(members.T @ soft / sizes, vmin=0, vmax=1, cmap="Blues")
        right = np.mean(soft.argmax(axis=1) == labels.true)
        axes.set(xlabel="label", ylabel="true class", title=f"{shown}: {right:.1%} right")
        if num_classes <= _MAX_NAMED_CLASSES:
            axes.set_xticks(range(num_classes), names, rotation=90)
            axes.set_yticks(range(num_classes), names)
    figure.colorbar(image, ax=figure.axes, shrink=0.8)
    figure.suptitle(title)
    return figure


def plot_label_quality(labels: Labels, title: str) -> Figure:
    """Histograms of the quality of right and of wrong given labels."""
    right = labels.given == labels.true
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.subplots()
    bins = list(np.linspace(0, 1, 41))
    for name, rows in (("right labels", right), ("wrong labels", ~right)):
        if rows.any():
            weights = np.full(rows.sum(), 1 / rows.sum())
            shown = f"{name} ({rows.sum()}), mean {labels.quality[rows].mean():.2f}"
            axes.hist(labels.quality[rows], bins, weights=weights, alpha=0.6, label=shown)
    axes.set(xlabel="label_quality of the given label", ylabel="share", title=title)
    axes.legend()
    return figure


def plot_dynamics(metrics: Sequence[Mapping[str, Any]], title: str) -> Figure:
    """What `metrics.jsonl` has of losses and accuracies."""
    panels: dict[str, dict[str, str]] = {
        "loss on noisy data (as corrected)": {"inner loss": "train/inner_loss"},
        "loss on clean data": {"outer loss": "train/outer_loss"},
        "accuracy": {
            "test": "eval/test_accuracy",
            "validation": "eval/validation_accuracy",
            "corrected labels": "eval/corrected_label_accuracy",
        },
    }
    drawn = {name: _curves(metrics, curves) for name, curves in panels.items()}
    drawn = {name: curves for name, curves in drawn.items() if curves}
    figure = Figure(figsize=(5 * len(drawn), 4.5), layout="constrained")
    for axes, (name, curves) in zip(
        figure.subplots(1, len(drawn), squeeze=False)[0], drawn.items(), strict=True
    ):
        for label, points in curves.items():
            axes.plot(*zip(*points, strict=True), label=label)
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


def _class_names(config: ConfigDict, num_classes: int) -> Sequence[str]:
    """The dataset's, or numbers where the data are not at hand."""
    try:
        return data.load(config).source.class_names
    except InputError:
        return [str(i) for i in range(num_classes)]


if __name__ == "__main__":
    command_line.run(main, required=["workdir"])
