"""Writes what a finished run leaves: results, corrected labels, a picture, a table."""

import io
import json
import os
import shlex
from typing import Any

import jax
import numpy as np
from etils import epath

from mlc_jax import paths
from mlc_jax.data.dataset import Dataset
from mlc_jax.data.folds import AllRows
from mlc_jax.data.show import show
from mlc_jax.data.source import UNKNOWN, Subset
from mlc_jax.data.votes import NO_LABEL, agreement, is_changed, quality_of
from mlc_jax.errors import readable
from mlc_jax.files.pictures import places_of
from mlc_jax.methods.cross_fit import CrossFit
from mlc_jax.report import corrected, page, plots, to_check
from mlc_jax.report.sources import of_sources
from mlc_jax.report.steps import Steps, shown_path
from mlc_jax.report.to_check import csv_of
from mlc_jax.report.verdict import Verdict, flatten, judge
from mlc_jax.training.evaluate import CHECKED as CHECKED_ROWS
from mlc_jax.training.evaluate import Prediction, selected
from mlc_jax.training.metrics import read_metrics
from mlc_jax.training.run import Run

RESULTS_FILE = "results.json"
LABELS_FILE = "corrected_labels.csv"  # For benchmarks, and for `fit`.
CORRECTED_FILE = "corrected.csv"  # For own files.
PREDICTED_FILE = "predicted_labels.csv"
SOFT_LABELS_FILE = "corrected_labels.npz"
PICTURE_FILE = "training.png"
PAGE_FILE = "report.html"
CHECKED_FILE = "checked_rows.csv"
SOURCES_FILE = "sources.csv"
LEFT_OUT_FILE = "left_out.csv"


def write(
    run: Run,
    progress: dict[str, Any],
    of_noisy: Prediction,
    workdir: epath.Path,
    *,
    picture: bool = True,
    again: str = "",
    shown: str = "",
) -> dict[str, Any]:
    """Writes the report of a finished run into `workdir`.

    * `results.json`: see `summarize`.
    * `corrected.csv`, of own files: see `corrected.of_run`. `predicted_labels.csv`: more columns of
      their unchecked rows, see `predicted` and `label_columns`.
    * `corrected_labels.csv`, of all other data: all of these columns, in the order of the data.
    * `corrected_labels.npz`: labels, soft labels `[N, C]`, and true labels, -1 where not known.
    * `checked_rows.csv`, of a cross-fitted run: predictions of the checked rows.
    * `sources.csv`, if labels have several sources: see `sources.of_sources`.
    * `to_check.csv`, if the truth is not known, unless somebody has filled one in.
    * `training.png` and `report.html`.

    Args:
      run: what was trained.
      progress: of the loop.
      of_noisy: predictions for the noisy examples that the run exports.
      workdir: written to.
      picture: whether to draw `training.png` and write `report.html`.
      again: the command that trains the next round, once `to_check.csv` is filled in.
      shown: what the report calls `workdir`, if that will be gone.

    Returns:
      The results, with the text for the terminal under `table`. All processes get them; only the
      first one writes.
    """
    found, of_noisy = judged(run, progress, of_noisy)
    results = summarize(run, progress, of_noisy.soft_labels, found)
    steps = next_steps(run, shown or shown_path(workdir), again)
    # Rows per class do not judge beside as many random ones, so they cannot say how many it takes.
    more = None if found is None or found.per_class else found.more
    is_asked = not run.exported.has_truth and not to_check.is_filled_in(workdir / to_check.FILE)
    if is_asked and found is not None:
        steps = steps._replace(narrows=_narrows(run, found, more))
    if shown:
        steps = steps._replace(save=f"result.save({shown!r})")
    if jax.process_index() == 0:
        _write_labels(run, of_noisy, workdir)
        _write_checked(run, of_noisy, workdir)
        by_source = of_each_source(run, of_noisy)
        if by_source:
            columns = {name: [_number(row[name]) for row in by_source] for name in by_source[0]}
            paths.write(workdir / SOURCES_FILE, csv_of(columns))
        if is_asked:
            paths.write(workdir / to_check.FILE, _to_check(run, of_noisy, more))
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
            page_ = page.render(run, results, format_table(results), of_noisy, drawn, found,
                                by_source, steps)  # fmt: skip
            paths.write(workdir / PAGE_FILE, page_)
        _write_results(results, workdir)
    parts = [format_table(results)]
    if found is not None:
        parts.append("\n".join(found.lines()))
    if picture:
        parts.append(steps.text())
    return results | {"table": "\n\n".join(parts)}


def _write_results(figures: dict[str, Any], workdir: epath.Path) -> None:
    paths.write(workdir / RESULTS_FILE, (json.dumps(figures, indent=2) + "\n").encode())


def write_left_out(dataset: Dataset, workdir: epath.Path) -> None:
    """Writes `left_out.csv` if some examples could not be read: their ids and the problems."""
    if not dataset.left_out or jax.process_index() != 0:
        return
    ids, problems = zip(*dataset.left_out, strict=True)
    paths.write(workdir / LEFT_OUT_FILE, csv_of({"id": ids, "problem": problems}))


def judged(
    run: Run, progress: dict[str, Any], of_noisy: Prediction
) -> tuple[Verdict | None, Prediction]:
    """The verdict of a cross-fitted run, and its labels with calibrated confidence.

    For other methods: None, and unchanged labels.
    """
    if of_noisy.out_of_fold is None:
        return None, of_noisy
    pipeline = run.pipeline
    assert isinstance(pipeline, AllRows) and isinstance(run.method, CrossFit)
    rows, clean = pipeline.rows, run.dataset.clean
    places = rows.judged[rows.counts > 0] - len(run.dataset.noisy)
    folds, given = rows.fold[rows.counts > 0], _known_given(clean, run.dataset.noisy)
    known = given[places] != UNKNOWN
    if known.any():  # The others have no given label.
        places, folds = places[known], folds[known]
    of_checked = of_noisy.out_of_fold[CHECKED_ROWS]
    shares = None if rows.is_random else of_noisy.soft_labels.mean(axis=0)
    found = judge(
        {name: x[places] for name, x in of_checked.items()},
        clean.truth[places],
        given[places],
        folds,
        doubtful=len(run.dataset.noisy),
        class_names=run.dataset.class_names,
        class_shares=shares,
        tested=_tested(run, progress),
        looked_up=len(clean) - int(np.sum(rows.counts > 0)),
        corrected=run.method.take,
    )
    soft = flatten(of_noisy.soft_labels, found.temperature)
    quality = quality_of(soft, run.exported.given)
    return found, of_noisy._replace(soft_labels=soft, label_quality=quality)


def _tested(run: Run, progress: dict[str, Any]) -> np.ndarray | None:
    """As many True of `[T]` as test rows are right, in no order; None without a test set."""
    accuracy = progress["evals"][-1]["test_accuracy"]
    if accuracy is None or run.dataset.test is None:
        return None
    num_test = len(run.dataset.test)
    return np.arange(num_test) < round(accuracy * num_test)


def _narrows(run: Run, found: Verdict, more: int | None) -> str:
    """What the random rows of `to_check.csv` would bring, if that is a point at least."""
    number = min(to_check.num_random(more), len(run.exported))
    now, then = (round(100 * x) for x in found.narrowed(number) or (0.0, 0.0))
    if then >= now:
        return ""
    return (
        f"{number} rows there are drawn at random: they would narrow the interval for the "
        f"corrected labels from ±{now} to ±{then} points."
    )


def next_steps(run: Run, workdir: str, again: str) -> Steps:
    """The next steps for the user; `workdir` as it is shown."""
    is_own = not run.exported.has_truth and run.dataset.noise == "given"
    labels = CORRECTED_FILE if corrected.is_of_own_files(run) else LABELS_FILE
    return Steps(
        report=os.path.join(workdir, PAGE_FILE),
        labels=os.path.join(workdir, labels),
        to_check=os.path.join(workdir, to_check.FILE) if is_own else "",
        again=again,
        predict=f"mlc-jax predict {shlex.quote(workdir)} NEW",
    )


def of_each_source(run: Run, of_noisy: Prediction) -> list[dict[str, Any]]:
    """A row for each source of labels, see `sources.of_sources`; none if there is one source."""
    dataset = run.dataset
    if not dataset.source_names:
        return []
    checked = dataset.clean
    if isinstance(run.pipeline, AllRows):  # Rows that were looked up are no random sample.
        rows = run.pipeline.rows
        checked = checked.take(rows.judged[rows.counts > 0] - len(dataset.noisy))
    return of_sources(
        run.exported, of_noisy.soft_labels, checked, dataset.clean, dataset.source_names,
        dataset.class_names, dataset.copies,
    )  # fmt: skip


def _number(value: Any) -> str:
    """For a table: figures with two decimals, "" for None."""
    if isinstance(value, float):
        return f"{value:.2f}"
    return "" if value is None else str(value)


def _known_given(clean: Subset, noisy: Subset) -> np.ndarray:
    """Given labels of checked rows; NO_LABEL: had none; UNKNOWN: may have had one."""
    may_have_none = clean.votes is not None or bool((noisy.given == UNKNOWN).any())
    no_label = NO_LABEL if may_have_none and (clean.given != UNKNOWN).any() else UNKNOWN
    return np.where(clean.given == UNKNOWN, no_label, clean.given)


def summarize(
    run: Run, progress: dict[str, Any], soft_labels: np.ndarray, found: Verdict | None = None
) -> dict[str, Any]:
    """The figures of a run, for JSON; None where truth or a test set is missing.

    Args:
      run: what was trained.
      progress: of the loop.
      soft_labels: `[N, C]`, of the noisy examples that the run exports.
      found: the verdict, if there is one.

    There are three test accuracies: of the last step; the best one, which looks at the test set;
    and the one at the best validation accuracy, `selected`. `step` is that of the state that
    corrects and predicts, by `Settings.best`; `test_accuracy` is the accuracy there.
    """
    dataset, exported = run.dataset, run.exported
    # The last phase has the classifier of the method.
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
            else used.get("corrected_label_accuracy")  # On rows that judge, if there are any.
        ),
        "labels_changed": int(np.sum(is_changed(corrected, exported.given))),
        "mean_confidence": float(np.mean(soft_labels.max(axis=-1), dtype=np.float64)),
        "most_changed": _most_changed(exported.given, corrected, dataset.class_names),
        "clean_labels_spent": dataset.clean_labels_spent(trained_on=run.bound.uses_clean),
        "num_noisy": len(dataset.noisy),
        "num_test": 0 if dataset.test is None else len(dataset.test),
        "train_seconds": progress["train_seconds"],
    } | ({} if found is None else {"verdict": found.to_json()})


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
    if results["noise"] == "given":  # Lines without a value are of no use here.
        rows = [(name, value) for name, value in rows if not value.startswith("- ")]
    width = max(len(name) for name, _ in rows)
    lines = [_title(results), *(f"{name:<{width}}  {value}" for name, value in rows)]
    return "\n".join(map(readable, lines))


def _title(results: dict[str, Any]) -> str:
    noise = "labels as given" if results["noise"] == "given" else f"{results['noise']} noise"
    return f"{results['method']} on {results['dataset']}, {noise}, seed {results['seed']}"


def _most_changed(
    given: np.ndarray, corrected: np.ndarray, class_names: tuple[str, ...], most: int = 3
) -> dict[str, int]:
    """The most frequent corrections: `{"3 -> 8": 41}`."""
    num_classes = len(class_names)
    changed = is_changed(corrected, given)
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
    """The columns of labels, `[N]` each.

    `annotator_agreement` is the share of a row's sources that gave it the corrected label. It and
    `label_quality` are NaN for a row without a given label, which is no label issue.
    """
    corrected = of_noisy.soft_labels.argmax(axis=-1).astype(np.int32)
    columns = {
        "id": exported.ids,
        "given_label": exported.given,
        "corrected_label": corrected,
        "confidence": of_noisy.soft_labels.max(axis=-1),
        "label_quality": of_noisy.label_quality,
        "is_label_issue": is_changed(corrected, exported.given),
    }
    if exported.votes is not None:
        agreeing, number = agreement(exported.votes, corrected)
        columns |= {"annotator_agreement": agreeing, "num_annotations": number}
    return columns


# More columns of a cross-fitted run: from a prediction to its column.
_PREDICTED = {
    "classifier": "predicted_label",
    "checked": "predicted_by_checked",
    "given": "predicted_by_given",
}


def predicted(probs: dict[str, np.ndarray] | None) -> dict[str, np.ndarray]:
    """Columns `[N]` of labels by classifiers that did not train on the row."""
    if probs is None:
        return {}
    return {column: probs[name].argmax(axis=-1) for name, column in _PREDICTED.items()}


def checked_columns(run: Run, of_noisy: Prediction) -> dict[str, np.ndarray]:
    """Columns `[M]` of the checked rows; labels are by classifiers that did not see the check.

    There are none for rows that do not judge, such as those that were looked up: all classifiers
    see their checks. Empty for methods other than `cross_fit`.
    """
    if of_noisy.out_of_fold is None:
        return {}
    assert isinstance(run.pipeline, AllRows) and isinstance(run.method, CrossFit)
    clean, probs = run.dataset.clean, of_noisy.out_of_fold[CHECKED_ROWS]
    first = len(run.dataset.noisy)
    is_judged = run.pipeline.rows.is_judged[first : first + len(clean)]
    said = {"corrected_label": probs[run.method.take].argmax(axis=-1), **predicted(probs)}
    return {
        "id": clean.ids,
        "drawn": run.pipeline.drawn,
        "given_label": clean.given,
        "checked_label": clean.truth,
        **{name: np.where(is_judged, x, UNKNOWN) for name, x in said.items()},
    }


def _write_checked(run: Run, of_noisy: Prediction, workdir: epath.Path) -> None:
    columns = checked_columns(run, of_noisy)
    if columns:
        paths.write(workdir / CHECKED_FILE, csv_of(_shown(run, columns)))


def _write_labels(run: Run, of_noisy: Prediction, workdir: epath.Path) -> None:
    exported, columns = run.exported, label_columns(run.exported, of_noisy)
    own = corrected.of_run(run, of_noisy)
    if own is None:
        # Some of their names are those that cleanlab uses.
        written = _shown(run, columns | predicted(of_noisy.out_of_fold))
        paths.write(workdir / LABELS_FILE, csv_of(written))
    else:
        paths.write(workdir / CORRECTED_FILE, own)
        _write_predicted(run, of_noisy, columns, workdir)
    content = io.BytesIO()
    truth = exported.truth if exported.has_truth else np.full(len(exported), UNKNOWN, np.int32)
    np.savez_compressed(
        content,
        id=columns["id"],
        given_label=exported.given,
        corrected_label=columns["corrected_label"],
        soft_label=of_noisy.soft_labels.astype(np.float32),
        label_quality=of_noisy.label_quality.astype(np.float32),
        true_label=truth,
    )
    paths.write(workdir / SOFT_LABELS_FILE, content.getvalue())


def no_labels(num_classes: int) -> dict[str, np.ndarray]:
    """The arrays of `SOFT_LABELS_FILE` without any row."""
    none, values = np.zeros(0, np.int32), np.zeros(0, np.float32)
    return {
        "id": np.zeros(0, np.str_), "given_label": none, "corrected_label": none,
        "soft_label": np.zeros((0, num_classes), np.float32), "label_quality": values,
    }  # fmt: skip


def _write_predicted(
    run: Run, of_noisy: Prediction, columns: dict[str, np.ndarray], workdir: epath.Path
) -> None:
    """More columns for a user's unchecked rows, if there are any."""
    agreeing = ("annotator_agreement", "num_annotations")
    known: dict[str, np.ndarray] = {x: columns[x] for x in agreeing if x in columns}
    known |= predicted(of_noisy.out_of_fold)
    if known:
        beside = {x: columns[x] for x in ("id", "given_label", "corrected_label")}
        paths.write(workdir / PREDICTED_FILE, csv_of(_shown(run, beside | known)))


def _shown(run: Run, columns: dict[str, np.ndarray]) -> dict[str, Any]:
    """Columns for a reader: labels by name, numbers with six decimals."""
    shown: dict[str, Any] = dict(columns)
    shown["id"] = columns["id"].tolist()
    for name in columns.keys() & {
        "given_label", "corrected_label", "checked_label", *_PREDICTED.values()
    }:  # fmt: skip
        if run.dataset.names_labels:  # The last one belongs to UNKNOWN, -1.
            names = np.asarray([*run.dataset.class_names, ""])
            shown[name] = names[columns[name]]
    for name in columns.keys() & {"confidence", "label_quality", "annotator_agreement"}:
        shown[name] = ["" if np.isnan(value) else f"{value:.6f}" for value in columns[name]]
    if "is_label_issue" in columns:
        issues = zip(columns["is_label_issue"], columns["given_label"], strict=True)
        shown["is_label_issue"] = ["" if given == UNKNOWN else bool(x) for x, given in issues]
    return shown


def _to_check(run: Run, of_noisy: Prediction, more: int | None) -> bytes:
    """The rows to check; `more` as for `to_check.choose`."""
    by_order = to_check.drawn_at_random(run.exported.ids, len(run.exported))
    rows, why = to_check.choose(
        by_order, of_noisy.soft_labels, run.exported.given, run.dataset.clean.truth, more
    )
    columns = label_columns(run.exported, of_noisy)
    shown = _shown(run, {name: column[rows] for name, column in columns.items()})
    del shown["is_label_issue"]
    source, of_source = run.exported.source, run.exported.rows[rows]
    if hasattr(source, "show"):  # The row as text, unless it is a picture.
        examples = [x for x in show(source, of_source) if isinstance(x, str)]
        if len(examples) == len(rows):
            shown["example"] = examples
    places = places_of(source.store, of_source) if hasattr(source, "store") else None
    if places is not None:
        shown["path"] = places
    return to_check.table(shown, why)
