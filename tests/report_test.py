"""What a run reports, recomputed from its files."""

import csv
import io
import json
import types

import numpy as np
import pytest
from matplotlib import image

from mlc_jax import data, report
from mlc_jax.metrics import read_metrics

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
    return data.load(trained("mlc").config)


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
    np.testing.assert_array_equal(given, dataset.given_labels)


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
    np.testing.assert_array_equal(_arrays(run.workdir)["true_label"], dataset.noisy.labels)


def test_label_accuracies_are_those_of_the_files(run, dataset):
    results, arrays = json.loads((run.workdir / "results.json").read_text()), _arrays(run.workdir)
    true = dict(zip(dataset.noisy.ids, dataset.noisy.labels, strict=True))
    true = np.array([true[name] for name in arrays["id"]])
    assert results["given_label_accuracy"] == pytest.approx(np.mean(arrays["given_label"] == true))
    assert results["corrected_label_accuracy"] == np.mean(arrays["corrected_label"] == true)
    # The probe of 2,000 covers all of this set, so the last evaluation saw the same.
    evals = [row for row in read_metrics(run.workdir) if "eval/test_accuracy" in row]
    assert evals[-1]["eval/corrected_label_accuracy"] == results["corrected_label_accuracy"]
    assert results["given_label_accuracy"] == pytest.approx(0.6, abs=0.05)  # FLIP 0.4.


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


def _summary(validation, test, first_phase=0):
    """`report.summarize` of evaluations with these accuracies, some of a first phase."""
    config = types.SimpleNamespace(
        method="mlc", seed=3, noise=types.SimpleNamespace(type="human", key="worst", level=0.4)
    )
    dataset = types.SimpleNamespace(
        source=types.SimpleNamespace(name="digits"),
        noise_rate=0.25,
        noisy=_Labels(np.array([0, 1, 1, 0])),
        test=[0] * 7,
        clean_labels_spent=lambda *, trained_on: 70 if trained_on else 20,
    )
    method = types.SimpleNamespace(num_steps=12, uses_clean=True)
    run = types.SimpleNamespace(config=config, dataset=dataset, method=method)
    evals = [
        {"step": i, "phase": int(i >= first_phase), "validation_accuracy": v, "test_accuracy": t}
        for i, (v, t) in enumerate(zip(validation, test, strict=True))
    ]
    soft_labels = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.7, 0.3]])
    return report.summarize(run, {"evals": evals, "train_seconds": 1.5}, soft_labels)


class _Labels:
    def __init__(self, labels):
        self.labels = labels

    def __len__(self):
        return len(self.labels)


def test_the_first_phase_has_another_classifier():
    results = _summary([0.9, 0.5, 0.6], test=[0.8, 0.3, 0.2], first_phase=1)
    assert results["best_test_accuracy"] == 0.3
    assert results["selected_test_accuracy"] == results["last_test_accuracy"] == 0.2


def test_selected_is_at_the_best_validation_accuracy():
    results = _summary(validation=[0.5, 0.9, 0.7, 0.9], test=[0.2, 0.6, 0.8, 0.7])
    assert results["selected_test_accuracy"] == 0.6  # The first of the two.
    assert results["best_test_accuracy"] == 0.8
    assert results["last_test_accuracy"] == 0.7
    assert results["corrected_label_accuracy"] == 0.75
    assert results["given_label_accuracy"] == 0.75
    assert results["noise"] == "human worst"


def test_nothing_is_selected_without_a_validation_set():
    results = _summary(validation=[None, None], test=[0.8, 0.7])
    assert results["selected_test_accuracy"] is None
    assert (results["best_test_accuracy"], results["last_test_accuracy"]) == (0.8, 0.7)
    assert "selected by validation        -  (no validation set)" in report.format_table(results)


def test_table_holds_every_figure(run):
    results = run.results
    lines = results["table"].splitlines()
    assert lines[0] == f"{results['method']} on digits, flip 0.4 noise, seed 0"
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
        "clean labels spent": "70",
        "noisy / test examples": f"{NUM_NOISY} / 360",
        "training time": f"{results['train_seconds']:.1f} s",
    }
    assert max(map(len, lines)) < 80  # Fits a terminal.


def test_picture_shows_something_in_each_panel(run):
    content = (run.workdir / report.PICTURE_FILE).read_bytes()
    pixels = image.imread(io.BytesIO(content))[..., :3]
    height, width, _ = pixels.shape
    assert (height, width) == (750, 1300)
    for rows in (slice(30, height // 2), slice(height // 2, height)):
        for columns in (slice(0, width // 2), slice(width // 2, width)):
            panel = pixels[rows, columns].reshape(-1, 3)
            colors = np.unique((panel * 255).astype(np.uint8), axis=0)
            assert len(colors) > 20
            saturation = panel.max(axis=1) - panel.min(axis=1)
            assert np.mean(saturation > 0.2) > 0.001  # Curves and matrices are in colour.
            assert np.mean(panel.min(axis=1) < 0.5) > 0.002  # Axes and names are dark.
