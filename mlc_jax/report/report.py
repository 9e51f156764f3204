"""What a finished run leaves behind: results, corrected labels, a picture, a table."""

import csv
import io
import json
import math
from typing import Any

import jax
import numpy as np
from etils import epath

from mlc_jax import paths
from mlc_jax.data.dataset import Dataset
from mlc_jax.data.show import show
from mlc_jax.data.source import UNKNOWN, Subset
from mlc_jax.files.label_columns import for_spreadsheet
from mlc_jax.report import page, plots
from mlc_jax.training.evaluate import Prediction, selected
from mlc_jax.training.metrics import read_metrics
from mlc_jax.training.run import Run

RESULTS_FILE = "results.json"
LABELS_FILE = "corrected_labels.csv"
SOFT_LABELS_FILE = "corrected_labels.npz"
PICTURE_FILE = "training.png"
PAGE_FILE = "report.html"
TO_CHECK_FILE = "to_check.csv"
NUM_TO_CHECK = 100
# What others are trained on that a run is compared with.
COMPARED = {"cross_entropy": "labels as given", "clean_only": "clean labels alone"}
LEFT_OUT_FILE = "left_out.csv"


def write(
    run: Run,
    progress: dict[str, Any],
    of_noisy: Prediction,
    workdir: epath.Path,
    *,
    picture: bool = True,
) -> dict[str, Any]:
    """Writes the report of a finished run into `workdir`.

    Files: `results.json`; `corrected_labels.csv` (id, given_label, corrected_label, confidence: the
    soft label's largest entry, label_quality: of the given label, is_label_issue: whether it was
    corrected), in the order of the data; `corrected_labels.npz` with the same, the full soft labels
    `[N, C]`, and the true labels for judging it, -1 where they are not known; `training.png`;
    `report.html`; where truth is not known, `to_check.csv`.

    Args:
      run: what was trained.
      progress: of the loop.
      of_noisy: what is said of the noisy examples that the run exports.
      workdir: written to.
      picture: whether to draw `training.png` and write `report.html`.

    Returns:
      The results, with the table for the terminal under `table`. All processes get them, the first
      one writes.
    """
    results = summarize(run, progress, of_noisy.soft_labels)
    if jax.process_index() == 0:
        _write_labels(run, of_noisy, workdir)
        if not run.exported.has_truth:
            paths.write(workdir / TO_CHECK_FILE, _to_check(run, of_noisy))
        if picture:
            drawn = plots.training(
                read_metrics(workdir),
                progress["evals"],
                run.exported,
                of_noisy.soft_labels.argmax(axis=-1),
                run.dataset.class_names,
                _title(results),
            )
            paths.write(workdir / PICTURE_FILE, drawn)
            page_ = page.render(run, results, format_table(results), of_noisy, drawn)
            paths.write(workdir / PAGE_FILE, page_)
        _write_results(results, workdir)
    return results | {"table": format_table(results)}


def add_comparison(
    run: Run,
    results: dict[str, Any],
    of_noisy: Prediction,
    compared: dict[str, float | None],
    workdir: epath.Path,
) -> dict[str, Any]:
    """Says in a report that is written what other methods reach on the same data.

    Args:
      run, of_noisy, workdir: see `write`.
      results: that `write` returned.
      compared: test accuracy by method; None where training diverged.

    Returns:
      The results with `compared`, and the table with it.
    """
    figures = {name: results[name] for name in results if name not in ("table", "workdir")}
    figures["compared"] = compared
    table = format_table(figures)
    if jax.process_index() == 0:
        drawn = (workdir / PICTURE_FILE).read_bytes()
        paths.write(workdir / PAGE_FILE, page.render(run, figures, table, of_noisy, drawn))
        _write_results(figures, workdir)
    return results | figures | {"table": table}


def _write_results(figures: dict[str, Any], workdir: epath.Path) -> None:
    paths.write(workdir / RESULTS_FILE, (json.dumps(figures, indent=2) + "\n").encode())


def write_left_out(dataset: Dataset, workdir: epath.Path) -> None:
    """Lists examples that cannot be read, id and what is wrong, if there are any."""
    if not dataset.left_out or jax.process_index() != 0:
        return
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("id", "problem"))
    table.writerows(dataset.left_out)
    paths.write(workdir / LEFT_OUT_FILE, text.getvalue().encode())


def summarize(run: Run, progress: dict[str, Any], soft_labels: np.ndarray) -> dict[str, Any]:
    """The figures of a run, JSON-like; None where what they need is not known.

    `last`, `best` and `selected` test accuracies are kept apart: `best` has looked at the test set,
    `selected` is the one at the best validation accuracy. `test_accuracy` is that of the state that
    corrects and predicts, of `step`: by `Settings.best`, `last` or `selected`.
    """
    dataset, exported = run.dataset, run.exported
    # Of the classifier that is the method's: a first phase's makes way for it.
    last_phase = progress["evals"][-1]["phase"]
    evals = [row for row in progress["evals"] if row["phase"] == last_phase]
    corrected = soft_labels.argmax(axis=-1)
    tested = [row["test_accuracy"] for row in evals if row["test_accuracy"] is not None]
    validated = [row for row in evals if row["validation_accuracy"] is not None]
    of_selected = selected(evals)
    used = of_selected if of_selected and run.settings.best == "validation" else evals[-1]
    noise_rate = dataset.noise_rate
    return {
        "method": run.method.name,
        "dataset": dataset.name,
        "noise": dataset.noise,
        "seed": run.settings.seed,
        "num_steps": run.bound.num_steps,
        "step": used["step"],
        "test_accuracy": used["test_accuracy"],
        "last_test_accuracy": tested[-1] if tested else None,
        "best_test_accuracy": max(tested) if tested else None,
        "selected_test_accuracy": of_selected["test_accuracy"] if of_selected else None,
        "last_validation_accuracy": validated[-1]["validation_accuracy"] if validated else None,
        "given_label_accuracy": None if noise_rate is None else 1 - noise_rate,
        "corrected_label_accuracy": (
            float(np.mean(corrected == exported.truth))
            if exported.has_truth
            else used.get("corrected_label_accuracy")  # Of what is judged by, if anything.
        ),
        "labels_changed": int(np.sum(corrected != exported.given)),
        "mean_confidence": float(np.mean(soft_labels.max(axis=-1), dtype=np.float64)),
        "most_changed": _most_changed(exported.given, corrected, dataset.class_names),
        "clean_labels_spent": dataset.clean_labels_spent(trained_on=run.bound.uses_clean),
        "num_noisy": len(dataset.noisy),
        "num_test": 0 if dataset.test is None else len(dataset.test),
        "train_seconds": progress["train_seconds"],
    }


def format_table(results: dict[str, Any]) -> str:
    """The final table, as text."""

    def percent(value: float | None, missing: str) -> str:
        return f"-  ({missing})" if value is None else f"{100 * value:.2f} %"

    step, last = results["step"], results["num_steps"]
    changes = [f"{name} {count}" for name, count in results["most_changed"].items()]
    rows = [
        ("test accuracy, last", percent(results["last_test_accuracy"], "no test set")),
        (
            "test accuracy, best (looks at the test set)",
            percent(results["best_test_accuracy"], "no test set"),
        ),
        (
            "test accuracy, selected by validation",
            percent(results["selected_test_accuracy"], "no validation set"),
        ),
        *_compared(results),
        *([] if step == last else [("labels and predictions", f"of step {step} of {last}")]),
        ("given labels right", percent(results["given_label_accuracy"], "truth not known")),
        ("corrected labels right", percent(results["corrected_label_accuracy"], "truth not known")),
        ("labels changed", f"{results['labels_changed']}"),
        ("  most often", ", ".join(changes) or "-"),
        ("mean confidence of corrected labels", f"{results['mean_confidence']:.3f}"),
        ("clean labels spent", str(results["clean_labels_spent"])),
        ("noisy / test examples", f"{results['num_noisy']} / {results['num_test']}"),
        ("training time", f"{results['train_seconds']:.1f} s"),
    ]
    width = max(len(name) for name, _ in rows)
    return "\n".join([_title(results), *(f"{name:<{width}}  {value}" for name, value in rows)])


def _compared(results: dict[str, Any]) -> list[tuple[str, str]]:
    """What others reach, and how far off all of these accuracies may be."""
    if "compared" not in results:
        return []
    own, size = results["test_accuracy"], results["num_test"]
    error = 100 * math.sqrt(own * (1 - own) / size)
    rows = [
        (f"  {name}, {COMPARED[name]}", "-  (diverged)" if x is None else f"{100 * x:.2f} %")
        for name, x in results["compared"].items()
    ]
    return [*rows, (f"  standard error, of {size} rows", f"{error:.2f} %")]


def _title(results: dict[str, Any]) -> str:
    noise = "labels as given" if results["noise"] == "given" else f"{results['noise']} noise"
    return f"{results['method']} on {results['dataset']}, {noise}, seed {results['seed']}"


def _most_changed(
    given: np.ndarray, corrected: np.ndarray, class_names: tuple[str, ...], most: int = 3
) -> dict[str, int]:
    """The most frequent corrections: `{"3 -> 8": 41}`."""
    num_classes = len(class_names)
    changed = corrected != given
    counts = np.bincount(
        given[changed].astype(np.int64) * num_classes + corrected[changed],
        minlength=num_classes**2,
    )
    pairs = np.argsort(-counts, kind="stable")[:most]
    return {
        f"{class_names[pair // num_classes]} -> {class_names[pair % num_classes]}": int(
            counts[pair]
        )
        for pair in pairs
        if counts[pair]
    }


def label_columns(exported: Subset, of_noisy: Prediction) -> dict[str, np.ndarray]:
    """What is said of each label, `[N]` each."""
    corrected = of_noisy.soft_labels.argmax(axis=-1).astype(np.int32)
    return {
        "id": exported.ids,
        "given_label": exported.given,
        "corrected_label": corrected,
        "confidence": of_noisy.soft_labels.max(axis=-1),
        "label_quality": of_noisy.label_quality,
        "is_label_issue": corrected != exported.given,
    }


def _write_labels(run: Run, of_noisy: Prediction, workdir: epath.Path) -> None:
    exported = run.exported
    columns = label_columns(exported, of_noisy)
    # The last two under the names of cleanlab, whose tools take them.
    paths.write(workdir / LABELS_FILE, _csv(_shown(run, columns)))
    arrays = io.BytesIO()
    truth = exported.truth if exported.has_truth else np.full(len(exported), UNKNOWN, np.int32)
    np.savez_compressed(
        arrays,
        id=columns["id"],
        given_label=exported.given,
        corrected_label=columns["corrected_label"],
        soft_label=of_noisy.soft_labels.astype(np.float32),
        label_quality=of_noisy.label_quality.astype(np.float32),
        true_label=truth,
    )
    paths.write(workdir / SOFT_LABELS_FILE, arrays.getvalue())


def _shown(run: Run, columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """Columns for a reader: text by text, labels by name."""
    shown: dict[str, Any] = dict(columns)
    shown["id"] = [for_spreadsheet(name) for name in columns["id"].tolist()]
    for name in ("given_label", "corrected_label"):
        if run.dataset.names_labels:
            names = np.asarray([for_spreadsheet(x) for x in run.dataset.class_names])
            shown[name] = names[columns[name]]
    for name in ("confidence", "label_quality"):
        shown[name] = [f"{value:.6f}" for value in columns[name]]
    return shown


def _csv(columns: dict[str, Any]) -> bytes:
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    table.writerows(zip(*columns.values(), strict=True))
    return text.getvalue().encode()


def _to_check(run: Run, of_noisy: Prediction) -> bytes:
    """The rows most worth a look, the first ones first, with a column to fill in."""
    rows = worth_a_look(of_noisy)[:NUM_TO_CHECK]
    columns = label_columns(run.exported, of_noisy)
    shown = _shown(run, {name: column[rows] for name, column in columns.items()})
    del shown["is_label_issue"]
    checked = {"checked_label": [""] * len(rows)}
    source, of_source = run.exported.source, run.exported.rows[rows]
    if hasattr(source, "show"):  # What one reads of a row, unless it is a picture.
        examples = [x for x in show(source, of_source) if isinstance(x, str)]
        if len(examples) == len(rows):
            shown["example"] = [for_spreadsheet(x) for x in examples]
    return _csv(shown | checked)


def worth_a_look(of_noisy: Prediction) -> np.ndarray:
    """Positions of all examples, those first whose label is least certain."""
    return np.argsort(of_noisy.soft_labels.max(axis=-1), kind="stable")
