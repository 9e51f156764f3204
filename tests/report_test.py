"""What a run reports, recomputed from its files."""

import collections
import csv
import io
import json
import types

import numpy as np
import pytest
from matplotlib import image

from mlc_jax.benchmarks import datasets
from mlc_jax.data import UNKNOWN, ArraySource, Subset
from mlc_jax.data.dataset import Dataset
from mlc_jax.files.values.checks import random_order
from mlc_jax.report import plots, report
from mlc_jax.report.steps import shown_path
from mlc_jax.training.evaluate import Prediction
from mlc_jax.training.metrics import METRICS_FILE, read_metrics
from mlc_jax.training.run import Settings

NUM_NOISY = 1367  # 1,437 less seven clean labels for each of ten classes.


def _rows(workdir):
    with (workdir / report.LABELS_FILE).open(newline="") as file:
        return list(csv.DictReader(file))


def _arrays(workdir):
    with np.load(workdir / report.SOFT_LABELS_FILE, allow_pickle=False) as file:
        return dict(file)


@pytest.fixture(params=["mlc", "cross_entropy"])
def run(request, trained):
    return trained(request.param)


@pytest.fixture(scope="module")
def dataset(trained):
    return datasets.load(trained("mlc").config)


def test_csv_has_a_row_for_each_noisy_example_by_id(run, dataset):
    text = (run.workdir / report.LABELS_FILE).read_text()
    assert (
        text.splitlines()[0]
        == "id,given_label,corrected_label,confidence,label_quality,is_label_issue"
    )
    assert text.endswith("\n") and "\r" not in text
    rows = _rows(run.workdir)
    ids = [row["id"] for row in rows]
    assert len(ids) == NUM_NOISY == len(set(ids))
    assert ids == sorted(ids)
    assert ids == list(dataset.noisy.ids)
    # The clean and the validation examples are not among them, nor is the test set.
    assert not set(ids) & {*dataset.clean.ids, *dataset.validation.ids, *dataset.test.ids}
    given = [int(row["given_label"]) for row in rows]
    np.testing.assert_array_equal(given, dataset.noisy.given)


def test_npz_and_csv_agree(run):
    rows, arrays = _rows(run.workdir), _arrays(run.workdir)
    assert arrays.keys() == {
        "id", "given_label", "corrected_label", "soft_label", "label_quality", "true_label"
    }  # fmt: skip
    assert arrays["soft_label"].shape == (NUM_NOISY, 10)
    assert arrays["soft_label"].dtype == np.float32
    np.testing.assert_allclose(arrays["soft_label"].sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(arrays["corrected_label"], arrays["soft_label"].argmax(axis=1))
    for column in ("id", "given_label", "corrected_label"):
        np.testing.assert_array_equal([row[column] for row in rows], arrays[column].astype(str))
    confidence = [float(row["confidence"]) for row in rows]
    np.testing.assert_allclose(confidence, arrays["soft_label"].max(axis=1), atol=5.1e-7)
    assert len(set(confidence)) > 10
    given = arrays["soft_label"][np.arange(NUM_NOISY), arrays["given_label"]]
    np.testing.assert_array_equal(arrays["label_quality"], given)
    np.testing.assert_allclose([float(x["label_quality"]) for x in rows], given, atol=5.1e-7)
    assert [row["is_label_issue"] for row in rows] == [
        str(row["given_label"] != row["corrected_label"]) for row in rows
    ]


def test_true_labels_are_for_judging(run, dataset):
    np.testing.assert_array_equal(_arrays(run.workdir)["true_label"], dataset.noisy.truth)


def test_label_accuracies_are_those_of_the_files(run, dataset):
    results, arrays = json.loads((run.workdir / "results.json").read_text()), _arrays(run.workdir)
    true = dict(zip(dataset.noisy.ids, dataset.noisy.truth, strict=True))
    true = np.array([true[name] for name in arrays["id"]])
    assert results["given_label_accuracy"] == pytest.approx(np.mean(arrays["given_label"] == true))
    assert results["corrected_label_accuracy"] == np.mean(arrays["corrected_label"] == true)
    # The probe of 2,000 covers all of this set, so the last evaluation saw the same.
    evals = [row for row in read_metrics(run.workdir) if "eval/test_accuracy" in row]
    assert evals[-1]["eval/corrected_label_accuracy"] == results["corrected_label_accuracy"]
    assert results["given_label_accuracy"] == pytest.approx(0.6, abs=0.05)  # FLIP 0.4.


def test_changes_are_those_of_the_files(run):
    results, arrays = json.loads((run.workdir / "results.json").read_text()), _arrays(run.workdir)
    given, corrected = arrays["given_label"], arrays["corrected_label"]
    assert results["labels_changed"] == np.sum(given != corrected) > 0
    pairs = zip(given, corrected, strict=True)
    counts = collections.Counter(f"{a} -> {b}" for a, b in pairs if a != b)
    most = results["most_changed"]
    assert list(most.values()) == [count for _, count in counts.most_common(3)]
    assert all(counts[name] == count for name, count in most.items())
    confidence = arrays["soft_label"].max(axis=1).mean(dtype=np.float64)
    assert results["mean_confidence"] == pytest.approx(confidence)
    evals = [row for row in read_metrics(run.workdir) if "eval/test_accuracy" in row]
    assert evals[-1]["eval/labels_changed"] == results["labels_changed"] / NUM_NOISY


def test_test_accuracies_are_those_of_the_evaluations(run):
    evals = [row for row in read_metrics(run.workdir) if "eval/test_accuracy" in row]
    test = [row["eval/test_accuracy"] for row in evals]
    validation = [row["eval/validation_accuracy"] for row in evals]
    assert run.results["last_test_accuracy"] == test[-1]
    assert run.results["best_test_accuracy"] == max(test)
    assert run.results["selected_test_accuracy"] == test[validation.index(max(validation))]
    assert all(round(x * 360) == pytest.approx(x * 360) for x in test)  # Each counted once.
    assert all(round(x * 20) == pytest.approx(x * 20) for x in validation)


def test_labels_spent_and_sizes(run):
    assert run.results["clean_labels_spent"] == 10 * (5 + 2)
    assert run.results["num_noisy"] == NUM_NOISY
    assert run.results["num_test"] == 360
    assert run.results["noise"] == "flip 0.4"
    assert run.results["train_seconds"] > 0


def _subset(truth, given=None):
    truth = np.asarray(truth, np.int32)
    given = np.full(len(truth), UNKNOWN) if given is None else np.asarray(given, np.int32)
    ids = [f"row{i}" for i in range(len(truth))]
    return Subset(ArraySource(np.zeros((len(truth), 1)), ids), np.arange(len(truth)), given, truth)


def _run(*, truth=(0, 1, 1, 0, 0), has_test=True, noise="human worst", names_labels=False):
    """Five noisy labels of cats and dogs, one of them wrong, if the truth is known."""
    dataset = Dataset(
        name="animals",
        class_names=("cat", "dog"),
        noisy=_subset(truth, given=(0, 1, 1, 1, 0)),
        clean=_subset([0, 1] * 25),
        validation=_subset([0, 1] * 10),
        test=_subset([0] * 7) if has_test else None,
        prepare=None,
        noise=noise,
        names_labels=names_labels,
    )
    return types.SimpleNamespace(
        dataset=dataset,
        method=types.SimpleNamespace(name="mlc"),
        settings=Settings(seed=3),
        bound=types.SimpleNamespace(num_steps=12, uses_clean=True),
        exported=dataset.noisy,
        description={"dataset": {"name": "digits"}},
    )


SOFT_LABELS = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3], [0.75, 0.25]])


def _summary(validation, test, first_phase=0, **of_run):
    """`report.summarize` of evaluations with these accuracies, some of a first phase."""
    evals = [
        {"step": i, "phase": int(i >= first_phase), "validation_accuracy": v, "test_accuracy": t}
        for i, (v, t) in enumerate(zip(validation, test, strict=True))
    ]
    progress = {"evals": evals, "train_seconds": 1.5}
    return report.summarize(_run(**of_run), progress, SOFT_LABELS)


def test_the_first_phase_has_another_classifier():
    results = _summary([0.9, 0.5, 0.6], test=[0.8, 0.3, 0.2], first_phase=1)
    assert results["best_test_accuracy"] == 0.3
    assert results["selected_test_accuracy"] == results["last_test_accuracy"] == 0.2


def test_selected_is_at_the_best_validation_accuracy():
    results = _summary(validation=[0.5, 0.9, 0.7, 0.9], test=[0.2, 0.6, 0.8, 0.7])
    assert results["selected_test_accuracy"] == 0.6  # The first of the two.
    assert results["best_test_accuracy"] == 0.8
    assert results["last_test_accuracy"] == 0.7
    assert results["corrected_label_accuracy"] == 0.8
    assert results["given_label_accuracy"] == 0.8
    assert results["noise"] == "human worst"
    assert (results["labels_changed"], results["most_changed"]) == (2, {"dog -> cat": 2})
    assert results["mean_confidence"] == 0.75
    assert results["clean_labels_spent"] == 50 + 20


def test_nothing_is_selected_without_a_validation_set():
    results = _summary(validation=[None, None], test=[0.8, 0.7])
    assert results["selected_test_accuracy"] is None
    assert (results["best_test_accuracy"], results["last_test_accuracy"]) == (0.8, 0.7)
    assert "selected by validation        -  (no validation set)" in report.format_table(results)


UNTOLD = ("given_label_accuracy", "corrected_label_accuracy")


def test_nothing_is_said_of_a_truth_that_is_not_known():
    results = _summary([0.9, 0.8], test=[0.8, 0.7], truth=[UNKNOWN] * 5, noise="given")
    assert [results[name] for name in UNTOLD] == [None, None]
    assert (results["labels_changed"], results["most_changed"]) == (2, {"dog -> cat": 2})
    assert (results["last_test_accuracy"], results["num_noisy"]) == (0.7, 5)
    json.loads(json.dumps(results, allow_nan=False))
    lines = report.format_table(results).splitlines()
    assert lines[0] == "mlc on animals, labels as given, seed 3"
    cells = {line[:43].strip(): line[43:].strip() for line in lines[1:]}
    assert not cells.keys() & {"given labels right", "corrected labels right"}
    assert cells["labels changed"] == "2"
    assert cells["most often"] == "dog -> cat 2"


def test_truth_of_some_rows_is_no_truth_of_the_set():
    results = _summary([0.9], test=[0.8], truth=[0, 1, UNKNOWN, 0, 0])
    assert [results[name] for name in UNTOLD] == [None, None]


def test_nothing_is_said_of_a_test_set_that_is_not_there():
    results = _summary([0.9, 0.8], test=[None, None], has_test=False)
    names = ("last_test_accuracy", "best_test_accuracy", "selected_test_accuracy")
    assert [results[name] for name in names] == [None] * 3
    assert results["num_test"] == 0
    table = report.format_table(results)
    assert "test accuracy, last                          -  (no test set)" in table
    assert "noisy / test examples                        5 / 0" in table


@pytest.mark.parametrize(
    ("names_labels", "shown"),
    [(False, ["0", "0"]), (True, ["cat", "cat"])],
)
@pytest.mark.parametrize("known", [False, True])
def test_files_of_a_run(tmp_path, names_labels, shown, known):
    """Labels by name where they came by name; unknown truth is -1."""
    truth = [0, 1, 1, 0, 0] if known else [UNKNOWN] * 5
    run = _run(names_labels=names_labels, truth=truth)
    evals = [
        {"step": 0, "phase": 0, "validation_accuracy": 0.5, "test_accuracy": 0.5,
         "corrected_label_accuracy": 0.75 if known else None, "labels_changed": 0.5}
    ]  # fmt: skip
    quality = np.array([0.9, 0.8, 0.4, 0.3, 0.75])
    (tmp_path / METRICS_FILE).write_text('{"step": 0, "train/inner_loss": 1.0}\n')
    progress = {"evals": evals, "train_seconds": 1.0}
    report.write(run, progress, Prediction(None, SOFT_LABELS, quality), tmp_path)
    rows = _rows(tmp_path)
    assert [row["id"] for row in rows] == ["row0", "row1", "row2", "row3", "row4"]
    assert [row["corrected_label"] for row in rows][::3] == shown
    assert [row["is_label_issue"] for row in rows] == ["False", "False", "True", "True", "False"]
    assert [row["label_quality"] for row in rows] == [f"{x:.6f}" for x in quality]
    arrays = _arrays(tmp_path)
    np.testing.assert_array_equal(arrays["true_label"], truth)
    np.testing.assert_array_equal(arrays["corrected_label"], [0, 1, 0, 0, 0])
    results = json.loads((tmp_path / report.RESULTS_FILE).read_text())
    assert results["corrected_label_accuracy"] == (0.8 if known else None)
    assert (tmp_path / report.PICTURE_FILE).read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / report.PAGE_FILE).read_text().startswith("<!DOCTYPE html>")
    if known:
        assert not (tmp_path / "to_check.csv").exists()
        return
    with (tmp_path / "to_check.csv").open(newline="") as file:
        to_check = list(csv.DictReader(file))
    # Those drawn at random first; here that is all of them.
    order = np.argsort(random_order([row["id"] for row in rows]))
    assert [row["id"] for row in to_check] == [f"row{i}" for i in order]
    for row, of_all in zip(to_check, (rows[i] for i in order), strict=True):
        assert row == {
            name: of_all[name]
            for name in ("id", "given_label", "corrected_label", "confidence", "label_quality")
        } | {"why": "random", "checked_label": ""}
    # What somebody has typed into it stays.
    typed = (tmp_path / "to_check.csv").read_text().replace("random,\n", "random,cat\n")
    (tmp_path / "to_check.csv").write_text(typed)
    report.write(run, progress, Prediction(None, SOFT_LABELS, quality), tmp_path, picture=False)
    assert (tmp_path / "to_check.csv").read_text() == typed


def test_table_holds_every_figure(run):
    results = run.results
    table, closing = results["table"].split("\n\n")
    lines = table.splitlines()
    assert lines[0] == f"{results['method']} on digits, flip 0.4 noise, seed 0"
    place = shown_path(run.workdir)
    assert closing.splitlines() == [
        f"Report: {place}/report.html",
        f"Labels: {place}/corrected_labels.csv",
        "New examples:",
        f"  mlc-jax predict {place} NEW",
    ]
    cells = dict(line.rsplit("  ", 1) for line in lines[1:])
    assert {name.strip(): value for name, value in cells.items()} == {
        "test accuracy, last": f"{100 * results['last_test_accuracy']:.2f} %",
        "test accuracy, best (looks at the test set)": (
            f"{100 * results['best_test_accuracy']:.2f} %"
        ),
        "test accuracy, selected by validation": (
            f"{100 * results['selected_test_accuracy']:.2f} %"
        ),
        "given labels right": f"{100 * results['given_label_accuracy']:.2f} %",
        "corrected labels right": f"{100 * results['corrected_label_accuracy']:.2f} %",
        "labels changed": str(results["labels_changed"]),
        "most often": ", ".join(f"{name} {n}" for name, n in results["most_changed"].items()),
        "mean confidence of corrected labels": f"{results['mean_confidence']:.3f}",
        "clean labels spent": "70",
        "noisy / test examples": f"{NUM_NOISY} / 360",
        "training time": f"{results['train_seconds']:.1f} s",
    }
    assert max(map(len, lines)) < 80  # Fits a terminal.


def _assert_panels(content, upper=2):
    """`upper` panels above two others."""
    pixels = image.imread(io.BytesIO(content))[..., :3]
    height, width, _ = pixels.shape
    assert (height, width) == (750, 1300 if upper == 2 else 1600)
    for rows, number in ((slice(30, height // 2), upper), (slice(height // 2, height), 2)):
        for i in range(number):
            columns = slice(i * width // number, (i + 1) * width // number)
            panel = pixels[rows, columns].reshape(-1, 3)
            colors = np.unique((panel * 255).astype(np.uint8), axis=0)
            assert len(colors) > 20
            saturation = panel.max(axis=1) - panel.min(axis=1)
            assert np.mean(saturation > 0.2) > 0.001  # Curves and matrices are in colour.
            assert np.mean(panel.min(axis=1) < 0.5) > 0.002  # Axes and names are dark.


def test_picture_shows_something_in_each_panel(run):
    """With a meta model, its gradient in a third one."""
    upper = 3 if run.results["method"] == "mlc" else 2
    _assert_panels((run.workdir / report.PICTURE_FILE).read_bytes(), upper)


@pytest.mark.slow
# Of 30 the names are left out.
@pytest.mark.parametrize("num_classes", [4, pytest.param(30, marks=pytest.mark.slow)])
def test_picture_without_truth_shows_something_in_each_panel(num_classes):
    """Draws four pictures: with and without norms and an outer loss, and other labels."""
    rng = np.random.default_rng(0)
    given = rng.integers(0, num_classes, 200)
    corrected = np.where(rng.random(200) < 0.7, given, (given + 1) % num_classes)
    noisy = _subset([UNKNOWN] * 200, given=given)
    metrics = [{"step": i, "train/inner_loss": 1 / i, "train/outer_loss": 0.5} for i in (1, 2, 3)]
    evals = [
        {"step": i, "test_accuracy": None, "validation_accuracy": None,
         "corrected_label_accuracy": None, "labels_changed": i / 9}
        for i in (1, 2, 3)
    ]  # fmt: skip
    names = [f"class {i}" for i in range(num_classes)]
    drawn = plots.training(metrics, evals, noisy, corrected, names, "title")
    _assert_panels(drawn)
    for i, row in enumerate(metrics):  # A norm of zero, which has no logarithm, is left out.
        row |= {"train/meta_grad_norm": 0.0 if i == 1 else 0.1**i, "train/meta_update_norm": 0.1}
    _assert_panels(plots.training(metrics, evals, noisy, corrected, names, "title"), upper=3)
    metrics = [
        {"step": row["step"], "train/inner_loss": row["train/inner_loss"]} for row in metrics
    ]
    drawn = plots.training(metrics, evals, noisy, corrected, names, "title")
    fewer = plots.training(metrics, evals, noisy, given, names, "title")
    assert fewer != drawn  # It is the corrected labels that are shown.
