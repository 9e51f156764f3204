"""What a finished run leaves behind: results, corrected labels, a picture, a table."""

import csv
import io
import json
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from etils import epath

from mlc_jax.evaluate import Prediction
from mlc_jax.metrics import read_metrics

if TYPE_CHECKING:
    from mlc_jax.train import Run

RESULTS_FILE = "results.json"
LABELS_FILE = "corrected_labels.csv"
SOFT_LABELS_FILE = "corrected_labels.npz"
PICTURE_FILE = "training.png"


def write(
    run: "Run",
    progress: dict[str, Any],
    of_noisy: Prediction,
    workdir: epath.Path,
    *,
    picture: bool = True,
) -> dict[str, Any]:
    """Writes the report of a finished run into `workdir`.

    Files: `results.json`; `corrected_labels.csv` (id, given_label, corrected_label, confidence: the
    soft label's largest entry, label_quality: of the given label, is_label_issue: whether it was
    corrected), in the order of the ids; `corrected_labels.npz` with the same, the full soft labels
    `[N, C]`, and the true labels for judging it; `training.png`.

    Args:
      run: what was trained.
      progress: of the loop.
      of_noisy: what is said of all noisy examples.
      workdir: written to.
      picture: whether to draw `training.png`.

    Returns:
      The results, with the table for the terminal under `table`. All processes get them, the first
      one writes.
    """
    results = summarize(run, progress, of_noisy.soft_labels)
    if jax.process_index() == 0:
        _write_labels(run, of_noisy, workdir)
        if picture:
            picture_of_run = _picture(run, progress, of_noisy.soft_labels, workdir)
            _write_bytes(workdir / PICTURE_FILE, picture_of_run)
        _write_bytes(workdir / RESULTS_FILE, (json.dumps(results, indent=2) + "\n").encode())
    return results | {"table": format_table(results)}


def summarize(run: "Run", progress: dict[str, Any], soft_labels: np.ndarray) -> dict[str, Any]:
    """The figures of a run, JSON-like.

    `last`, `best` and `selected` test accuracies are kept apart: `best` has looked at the test set,
    `selected` is the one at the best validation accuracy and None without a validation set.
    """
    dataset = run.dataset
    # Of the classifier that is the method's: a first phase's makes way for it.
    last_phase = progress["evals"][-1]["phase"]
    evals = [row for row in progress["evals"] if row["phase"] == last_phase]
    corrected = soft_labels.argmax(axis=-1)
    validated = [row for row in evals if row["validation_accuracy"] is not None]
    selected = max(validated, key=lambda row: row["validation_accuracy"], default=None)
    return {
        "method": run.config.method,
        "dataset": dataset.source.name,
        "noise": f"{run.config.noise.type} {_noise_setting(run)}",
        "seed": run.config.seed,
        "num_steps": run.method.num_steps,
        "last_test_accuracy": evals[-1]["test_accuracy"],
        "best_test_accuracy": max(row["test_accuracy"] for row in evals),
        "selected_test_accuracy": selected["test_accuracy"] if selected else None,
        "given_label_accuracy": 1 - dataset.noise_rate,
        "corrected_label_accuracy": float(np.mean(corrected == dataset.noisy.labels)),
        "clean_labels_spent": dataset.clean_labels_spent(trained_on=run.method.uses_clean),
        "num_noisy": len(dataset.noisy),
        "num_test": len(dataset.test),
        "train_seconds": progress["train_seconds"],
    }


def format_table(results: dict[str, Any]) -> str:
    """The final table, as text."""

    def percent(value: float | None) -> str:
        return "-  (no validation set)" if value is None else f"{100 * value:.2f} %"

    rows = [
        ("test accuracy, last", percent(results["last_test_accuracy"])),
        ("test accuracy, best (looks at the test set)", percent(results["best_test_accuracy"])),
        ("test accuracy, selected by validation", percent(results["selected_test_accuracy"])),
        ("given labels right", percent(results["given_label_accuracy"])),
        ("corrected labels right", percent(results["corrected_label_accuracy"])),
        ("clean labels spent", str(results["clean_labels_spent"])),
        ("noisy / test examples", f"{results['num_noisy']} / {results['num_test']}"),
        ("training time", f"{results['train_seconds']:.1f} s"),
    ]
    width = max(len(name) for name, _ in rows)
    title = f"{results['method']} on {results['dataset']}, {results['noise']} noise, "
    lines = [f"{name:<{width}}  {value}" for name, value in rows]
    return "\n".join([title + f"seed {results['seed']}", *lines])


def _noise_setting(run: "Run") -> str:
    noise = run.config.noise
    return noise.key if noise.type == "human" else f"{noise.level:g}"


def _write_labels(run: "Run", of_noisy: Prediction, workdir: epath.Path) -> None:
    dataset, soft_labels = run.dataset, of_noisy.soft_labels
    corrected, confidence = soft_labels.argmax(axis=-1), soft_labels.max(axis=-1)
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    # The last two under the names of cleanlab, whose tools take them.
    table.writerow(
        ["id", "given_label", "corrected_label", "confidence", "label_quality", "is_label_issue"]
    )
    given_labels, quality = dataset.given_labels, of_noisy.label_quality
    rows = zip(dataset.noisy.ids, given_labels, corrected, confidence, quality, strict=True)
    for name, given, label, sure, believed in rows:
        table.writerow([name, given, label, f"{sure:.6f}", f"{believed:.6f}", label != given])
    _write_bytes(workdir / LABELS_FILE, text.getvalue().encode())
    arrays = io.BytesIO()
    np.savez_compressed(
        arrays,
        id=dataset.noisy.ids,
        given_label=dataset.given_labels,
        corrected_label=corrected.astype(np.int32),
        soft_label=soft_labels.astype(np.float32),
        label_quality=of_noisy.label_quality.astype(np.float32),
        true_label=dataset.noisy.labels,
    )
    _write_bytes(workdir / SOFT_LABELS_FILE, arrays.getvalue())


def _write_bytes(path: epath.Path, content: bytes) -> None:
    """Writes beside and renames: a reader never sees half a file, nor loses the one before."""
    partial = path.parent / (path.name + ".partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:  # Without a name if the disk is full.
        raise OSError(error.errno, error.strerror, str(path)) from error


def _picture(
    run: "Run", progress: dict[str, Any], soft_labels: np.ndarray, workdir: epath.Path
) -> bytes:
    """Training curves, and given and corrected labels against the true ones, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 7.5), layout="constrained")
    (losses_axes, accuracy_axes), confusion_axes = figure.subplots(2, 2)
    _draw_losses(losses_axes, read_metrics(workdir))
    _draw_accuracies(accuracy_axes, progress["evals"], 1 - run.dataset.noise_rate)
    true = run.dataset.noisy.labels
    shown = (
        ("given labels", run.dataset.given_labels),
        ("corrected labels", soft_labels.argmax(axis=-1)),
    )
    for axes, (title, labels) in zip(confusion_axes, shown, strict=True):
        _draw_confusion(axes, true, labels, run.dataset.source.class_names)
        axes.set_title(f"{title}: {100 * np.mean(labels == true):.1f} % right")
    figure.suptitle(format_table(summarize(run, progress, soft_labels)).splitlines()[0])
    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=100)
    return png.getvalue()


def _draw_losses(axes: Any, rows: list[dict[str, Any]]) -> None:
    for name, label in (
        ("train/inner_loss", "inner loss (corrected labels)"),
        ("train/outer_loss", "outer loss (clean labels)"),
    ):
        points = [(row["step"], row[name]) for row in rows if name in row]
        if points:
            axes.plot(*zip(*points, strict=True), label=label)
    axes.set(xlabel="step", ylabel="loss (nats)", title="Training loss")
    axes.legend()
    axes.grid(alpha=0.3)


def _draw_accuracies(axes: Any, evals: list[dict[str, Any]], given: float) -> None:
    for name, label in (
        ("test_accuracy", "test accuracy"),
        ("validation_accuracy", "validation accuracy"),
        ("corrected_label_accuracy", "corrected labels right"),
    ):
        points = [(row["step"], row[name]) for row in evals if row[name] is not None]
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", label=label)
    axes.axhline(given, color="grey", linestyle="--", label="given labels right")
    axes.set(xlabel="step", ylim=(0, 1.02), title="Accuracy")
    axes.legend(loc="lower right")
    axes.grid(alpha=0.3)


def _draw_confusion(
    axes: Any, true: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]
) -> None:
    """Rows are true classes; each row sums to one."""
    num_classes = len(class_names)
    counts = np.zeros((num_classes, num_classes))
    np.add.at(counts, (true, labels), 1)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    image = axes.imshow(shares, vmin=0, vmax=1, cmap="Blues")
    axes.figure.colorbar(image, ax=axes, shrink=0.8)
    axes.set(xlabel="label", ylabel="true class")
    if num_classes <= 20:  # More names than that cannot be read.
        axes.set_xticks(range(num_classes), class_names, rotation=90)
        axes.set_yticks(range(num_classes), class_names)
