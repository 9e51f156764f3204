"""The report on a finished run: figures by hand, pictures that are there, cleanlab's workflow."""

import csv
import json

import numpy as np
import pytest
from etils import epath

from mlc_jax.errors import InputError
from mlc_jax.report import report
from mlc_jax.workdir.workdir import CONFIG_FILE, DATASET_FILE

PROGRAM = "experiments.paper.analyze"
PICTURES = ("heat_maps.png", "label_quality.png", "dynamics.png")


def _copy(run, tmp_path):
    """Of what a run leaves, for writing beside it."""
    files = (CONFIG_FILE, DATASET_FILE, report.RESULTS_FILE, report.SOFT_LABELS_FILE)
    for name in (*files, "metrics.jsonl"):
        (tmp_path / name).write_bytes((run.workdir / name).read_bytes())
    return tmp_path


@pytest.mark.parametrize("method", ["mlc", pytest.param("clean_only", marks=pytest.mark.slow)])
def test_report_of_a_run(run_program, trained, tmp_path, method):
    run = trained(method)
    workdir = _copy(run, tmp_path)
    args = (f"--workdir={workdir}", "--nocleanlab")
    code, out, err = run_program(PROGRAM, *args, required=["workdir"])
    assert code == 0, err
    directory = workdir / "analysis"
    for name in PICTURES:
        assert (directory / name).read_bytes().startswith(b"\x89PNG")
    text = (directory / "label_errors.md").read_text()
    assert out.startswith(text)
    assert text.startswith(f"{method} on digits, flip 0.4 noise: ")
    (row,) = csv.DictReader((directory / "label_errors.csv").read_text().splitlines())
    with np.load(workdir / report.SOFT_LABELS_FILE) as labels:
        wrong = labels["given_label"] != labels["true_label"]
        flagged = labels["given_label"] != labels["corrected_label"]
        quality = labels["label_quality"]
    assert float(row["precision"]) == pytest.approx(np.mean(wrong[flagged]))
    assert float(row["recall"]) == pytest.approx(np.mean(flagged[wrong]))
    # The probability that a wrong label ranks before a right one.
    pairs = quality[wrong][:, None] - quality[~wrong][None]
    assert float(row["auc"]) == pytest.approx(np.mean(pairs < 0) + np.mean(pairs == 0) / 2)


def _forget_truth(workdir):
    """Makes a run one on own data, whose true labels nobody knows."""
    with np.load(workdir / report.SOFT_LABELS_FILE) as arrays:
        kept = dict(arrays)
    kept["true_label"] = np.full_like(kept["given_label"], -1)
    np.savez(workdir / report.SOFT_LABELS_FILE, **kept)
    path = workdir / report.RESULTS_FILE
    unknown = dict.fromkeys(("given_label_accuracy", "corrected_label_accuracy"))
    path.write_text(json.dumps(json.loads(path.read_text()) | unknown | {"noise": "given"}))
    path = workdir / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        if "eval/corrected_label_accuracy" in row:
            row |= {"eval/corrected_label_accuracy": None, "eval/test_accuracy": None}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_without_true_labels_given_and_corrected_ones_are_compared(
    run_program, load_program, trained, tmp_path
):
    workdir = _copy(trained("mlc"), tmp_path)
    _forget_truth(workdir)
    args = (f"--workdir={workdir}", "--nocleanlab")
    code, out, err = run_program(PROGRAM, *args, required=["workdir"])
    assert code == 0, err
    for name in PICTURES:
        assert (workdir / "analysis" / name).read_bytes().startswith(b"\x89PNG")
    with np.load(workdir / report.SOFT_LABELS_FILE) as arrays:
        given, corrected = arrays["given_label"], arrays["corrected_label"]
        soft = arrays["soft_label"]
    assert out.startswith(
        f"mlc on digits, labels as given: {len(given)} given labels; which of them are wrong is "
        "not known.\n"
    )
    (row,) = csv.DictReader((workdir / "analysis/label_errors.csv").read_text().splitlines())
    assert int(row.pop("flagged")) == np.sum(given != corrected) > 0
    assert set(row.values()) == {"mlc, 1 - label_quality", ""}
    program = load_program(PROGRAM)
    _, _, labels = program.read_run(epath.Path(workdir))
    axes = program.plot_heat_maps(labels, "0123456789", "a run").axes[0]
    assert axes.get_ylabel() == "given label"
    means = [soft[given == label].mean(axis=0) for label in range(10)]
    np.testing.assert_allclose(axes.images[0].get_array(), means, rtol=1e-5)
    _, names = program.plot_label_quality(labels, "a run").axes[0].get_legend_handles_labels()
    assert [name.partition(" (")[0] for name in names] == ["kept labels", "corrected labels"]


def test_rows_without_a_label_are_left_out(load_program, trained, tmp_path):
    workdir = _copy(trained("mlc"), tmp_path)
    with np.load(workdir / report.SOFT_LABELS_FILE) as arrays:
        kept = dict(arrays)
    kept["given_label"][[0, 7]] = -1
    np.savez(workdir / report.SOFT_LABELS_FILE, **kept)
    program = load_program(PROGRAM)
    _, _, labels = program.read_run(epath.Path(workdir))
    assert len(labels.given) == len(kept["given_label"]) - 2 and labels.given.min() == 0
    np.testing.assert_array_equal(labels.soft[0], kept["soft_label"][1])


@pytest.mark.slow
def test_a_run_of_fit(run_program, trained, tmp_path):
    """Its config is no config, and its inputs are not in its workdir."""
    pytest.importorskip("cleanlab")
    workdir = _copy(trained("mlc"), tmp_path)
    (workdir / CONFIG_FILE).write_text(json.dumps({"made_by": "fit", "method": {"name": "mlc"}}))
    code, out, err = run_program(PROGRAM, f"--workdir={workdir}", required=["workdir"])
    assert code == 0, err
    assert "cleanlab is skipped: It needs --pred_probs=FILE.npy" in out


def test_an_older_run_lacks_settings_and_class_names(load_program, trained, tmp_path):
    workdir = epath.Path(_copy(trained("mlc"), tmp_path))
    (workdir / DATASET_FILE).unlink()
    saved = json.loads((workdir / CONFIG_FILE).read_text())
    del saved["model"]["initial_params"], saved["dataset"]["paired"]
    (workdir / CONFIG_FILE).write_text(json.dumps(saved))
    program = load_program(PROGRAM)
    config, _, _ = program.read_run(workdir)
    assert config.dataset.name == "digits" and config.dataset.paired is False
    assert program._class_names(workdir, config, 10) == tuple("0123456789")
    assert program._class_names(workdir, None, 3) == ["0", "1", "2"]


def test_detection_by_hand(load_program):
    program = load_program(PROGRAM)
    given, true = np.array([0, 0, 1, 1]), np.array([0, 1, 1, 0])  # The second and the last.
    quality = np.array([0.9, 0.1, 0.3, 0.4])
    labels = program.Labels(given, given, np.eye(2)[given], quality, true)
    figures = program.detection(labels, np.array([False, True, True, False]), quality)
    assert figures == {
        "flagged": 2,
        "precision": 0.5,
        "recall": 0.5,
        "auc": 0.75,  # Of four pairs, the last one and the third are in the wrong order.
        "average_precision": pytest.approx((1 + 2 / 3) / 2),
    }


@pytest.mark.parametrize("all_wrong", [False, True])
def test_figures_without_meaning_are_left_out(load_program, all_wrong):
    program = load_program(PROGRAM)
    given = np.array([0, 1])
    true = 1 - given if all_wrong else given
    labels = program.Labels(given, given, np.eye(2)[given], np.array([0.9, 0.2]), true)
    figures = program.detection(labels, np.array([False, False]), labels.quality)
    assert figures["auc"] is None and figures["average_precision"] is None
    assert figures["precision"] is None
    assert figures["recall"] == (0 if all_wrong else None)
    text = program.to_markdown([{"ranked by": "mlc"} | figures], labels, "a run")
    assert text.splitlines()[-1].startswith("| mlc | 0 | - |")
    assert program.plot_label_quality(labels, "a run")


@pytest.mark.slow
def test_cleanlab_beside_it(run_program, trained, tmp_path):
    cleanlab_rank = pytest.importorskip("cleanlab.rank")
    workdir = _copy(trained("mlc"), tmp_path)
    with np.load(workdir / report.SOFT_LABELS_FILE) as labels:
        given, true = labels["given_label"], labels["true_label"]
    # A model that is right nine times of ten.
    probs = np.full((len(given), 10), 0.01, np.float32)
    shown = np.where(np.arange(len(given)) % 10 == 0, (true + 1) % 10, true)
    probs[np.arange(len(given)), shown] = 0.91
    np.save(tmp_path / "probs.npy", probs)
    args = (f"--workdir={workdir}", f"--pred_probs={tmp_path / 'probs.npy'}")
    code, _, err = run_program(PROGRAM, *args, required=["workdir"])
    assert code == 0, err
    _, row = csv.DictReader((workdir / "analysis" / "label_errors.csv").read_text().splitlines())
    assert row["ranked by"] == f"cleanlab, {tmp_path / 'probs.npy'}"
    assert float(row["auc"]) > 0.85
    quality = cleanlab_rank.get_label_quality_scores(given, probs)
    wrong = given != true
    pairs = quality[wrong][:, None] - quality[~wrong][None]
    assert float(row["auc"]) == pytest.approx(np.mean(pairs < 0) + np.mean(pairs == 0) / 2)

    np.save(tmp_path / "probs.npy", probs[1:])
    code, out, _ = run_program(PROGRAM, *args, required=["workdir"])
    assert code == 0
    assert "cleanlab is skipped: --pred_probs: got 'shape (" in out


def test_cross_validated_probabilities(load_program, trained):
    pytest.importorskip("cleanlab")
    program, run = load_program(PROGRAM), trained("mlc")
    _, _, labels = program.read_run(epath.Path(run.workdir))
    probs = program.cross_validated(run.config, labels.given)
    assert probs.shape == labels.soft.shape
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-5)
    assert len(program.cross_validated(run.config, labels.given[:300])) == 300
    assert np.mean(probs.argmax(axis=1) == labels.true) > 0.5


def test_labels_open_in_cleanlabs_workflow(trained):
    """`CleanLearning` takes the file's columns for the issues that it would look for itself."""
    pandas = pytest.importorskip("pandas")
    classification = pytest.importorskip("cleanlab.classification")
    from sklearn.linear_model import LogisticRegression

    from mlc_jax.benchmarks import datasets

    run = trained("mlc")
    table = pandas.read_csv(run.workdir / report.LABELS_FILE)
    noisy = datasets.load(run.config).noisy
    inputs = noisy.source.inputs[noisy.rows].reshape(len(table), -1).astype(np.float32)
    learner = classification.CleanLearning(LogisticRegression(max_iter=50))
    learner.fit(inputs, table["given_label"].to_numpy(), label_issues=table)
    kept = ~table["is_label_issue"].to_numpy()
    assert 0 < kept.sum() < len(kept)
    plain = LogisticRegression(max_iter=50).fit(inputs[kept], table["given_label"][kept])
    assert np.mean(learner.predict(inputs) == plain.predict(inputs)) > 0.95


def test_a_workdir_that_holds_no_run(run_program, trained, tmp_path):
    code, _, err = run_program(PROGRAM, f"--workdir={tmp_path}", required=["workdir"])
    assert (code, err) == (2, f"error: --workdir: no finished run in {str(tmp_path)!r}\n")
    below = tmp_path / "flip" / "0.4" / "mlc" / "seed0"
    below.mkdir(parents=True)
    _copy(trained("mlc"), below)
    code, _, err = run_program(PROGRAM, f"--workdir={tmp_path}", required=["workdir"])
    assert code == 2 and f"runs below it: {below}, ... (1)" in err


def test_a_run_that_cannot_be_read(load_program, trained, tmp_path):
    workdir = _copy(trained("mlc"), tmp_path)
    (workdir / report.SOFT_LABELS_FILE).write_bytes(b"PK")
    with pytest.raises(InputError, match="cannot be read"):
        load_program(PROGRAM).read_run(epath.Path(workdir))
