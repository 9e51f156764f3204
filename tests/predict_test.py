"""The command that predicts: from a workdir and a file of new examples to a table."""

import csv
import os
import shutil

import numpy as np
import pandas
import pytest

import mlc_jax as mlc
from configs import table as table_config
from mlc_jax.benchmarks.images import digits
from mlc_jax.commands import new_examples, train
from mlc_jax.errors import InputError

NAMES = ["=one", "two"]  # A spreadsheet would run the first.


@pytest.fixture
def command(run_command, tmp_path):
    """(run, examples, flags) -> exit code, stderr, and the rows that were written."""

    def run(workdir, input_file, **flags):
        output = tmp_path / "predictions.csv"
        flags = {"output": output} | flags
        code, _, err = run_command(
            "predict", str(workdir), str(input_file), "--noprogress",
            *(f"--{name}={value}" for name, value in flags.items()),
        )  # fmt: skip
        assert not list(tmp_path.glob("*.partial"))
        if not output.exists():
            return code, err, None
        with output.open(newline="") as file:
            return code, err, list(csv.DictReader(file))

    return run


@pytest.fixture
def refused(command):
    """The same -> the error; nothing was written."""

    def run(workdir, input_file, **flags):
        code, err, rows = command(workdir, input_file, **flags)
        assert (code, rows) == (2, None)
        (line,) = [x for x in err.splitlines() if x.startswith("error: ")]
        return line.removeprefix("error: ")

    return run


@pytest.fixture(scope="module")
def frame():
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=200)
    given = np.where(rng.random(200) < 0.2, 1 - truth, truth)
    names = np.array(NAMES)
    return pandas.DataFrame({
        "label": names[given],
        "checked_label": np.where(np.arange(200) % 4 == 0, names[truth], ""),
        "age": np.where(np.arange(200) % 9, (truth * 20 + rng.normal(30, 4, 200)).round(2), np.nan),
        "city": np.array(["Bonn", "Rome"])[rng.integers(2, size=200)],
    })  # fmt: skip


@pytest.fixture(scope="module")
def of_table(tmp_path_factory, frame, compilation_cache):
    """The workdir of a run on a table that is gone."""
    directory = tmp_path_factory.mktemp("table")
    frame.to_csv(directory / "all.csv", index=False)
    config = table_config.get_config()
    config.dataset.update(data=str(directory / "all.csv"), features="age,city")
    config.update_from_flattened_dict({
        "method": "cross_entropy", "model.mlp.hidden_sizes": (8,), "noisy_batch_size": 48,
        "clean_batch_size": 32, "num_epochs": 10,
    })  # fmt: skip
    train.train_and_evaluate(config, str(directory / "run"), show_progress=False)
    (directory / "all.csv").unlink()
    return directory / "run"


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_a_table(command, of_table, frame, tmp_path, ending, monkeypatch):
    monkeypatch.setattr(new_examples, "CHUNK", 64)  # It is streamed.
    new = frame[["city", "age"]].assign(id=[f"{i:03d}" for i in range(200)])
    file = tmp_path / f"new.{ending}"
    new.to_csv(file, index=False) if ending == "csv" else new.to_parquet(file)
    code, err, rows = command(of_table, file, batch_size=8)
    assert code == 0, err
    assert [row["id"] for row in rows] == list(new["id"])
    result = mlc.load(of_table)
    probs = result.predict_proba(new)
    written = [[float(row[f"p_{name}"]) for name in NAMES] for row in rows]
    np.testing.assert_allclose(written, probs, atol=1e-5)
    assert [row["label"] for row in rows] == [["'=one", "two"][i] for i in probs.argmax(axis=1)]
    np.testing.assert_allclose([float(row["confidence"]) for row in rows], probs.max(axis=1), 1e-4)
    assert (result.predict(new) == np.array(NAMES)[probs.argmax(axis=1)]).all()
    right = probs.argmax(axis=1) == (frame["age"].fillna(40) > 40)
    assert right.mean() > 0.8  # It learned something.
    # What a user has at hand is the same.
    columns = {"age": [30, None, 50.5], "city": ["Bonn", "nowhere", ""]}
    np.testing.assert_allclose(
        result.predict_proba(columns), result.predict_proba(pandas.DataFrame(columns)), atol=1e-6
    )


def test_tables_that_are_not_like_the_trained_one(refused, of_table, frame, tmp_path):
    file = tmp_path / "new.csv"
    frame[["city"]].to_csv(file, index=False)
    assert refused(of_table, file) == (f"NEW: {str(file)!r} has no column 'age', only 'city'")
    file.write_text("age,city\n30,Bonn\nold,Rome\n")
    assert refused(of_table, file) == (
        f"NEW: {str(file)!r} line 3: age is 'old', expected a number, or nothing where it is "
        "missing"
    )
    file.write_text("age,city\n30,Bonn\n30\n")
    assert refused(of_table, file) == (
        f"NEW: {str(file)!r} line 3: has 1 field, expected 2: age, city"
    )
    file.write_text("age,city\n")
    assert refused(of_table, file) == (
        f"NEW: {str(file)!r} has no row, expected one for each example"
    )
    with pytest.raises(InputError, match=r"^x: has no column 'city', only 'age'"):
        mlc.load(of_table).predict({"age": [1]})
    with pytest.raises(InputError, match=r"^x: row 1: age is 'old', expected a number"):
        mlc.load(of_table).predict({"age": [1, "old"], "city": ["Bonn", "Rome"]})


@pytest.mark.parametrize("ending", ["npz", "npy"])
def test_arrays(command, trained, tmp_path, ending, monkeypatch):
    monkeypatch.setattr(new_examples, "CHUNK", 100)
    run, inputs = trained("cross_entropy"), digits().test.inputs
    file, ids = tmp_path / f"new.{ending}", [str(i) for i in range(360)]
    if ending == "npy":
        np.save(file, inputs)
    else:
        ids = [f"x{i}" for i in range(360)]
        np.savez(file, inputs=inputs, ids=np.array(ids))
    code, err, rows = command(run.workdir, file)
    assert code == 0, err
    assert [row["id"] for row in rows] == ids
    right = np.mean([int(x["label"]) for x in rows] == digits().test_labels)
    assert right == pytest.approx(run.results["last_test_accuracy"])


def test_arrays_that_are_not_like_the_trained_ones(refused, trained, tmp_path):
    workdir, inputs = trained("cross_entropy").workdir, digits().test.inputs
    for name, x, expected in (
        ("wide", inputs[..., [0, 0]], "inputs: got examples of uint8 [8, 8, 2], expected those of "
         "the training, uint8 [8, 8, 1]"),
        ("scaled", inputs / np.float32(16), "inputs: got examples of float32 [8, 8, 1], expected "
         "those of the training, uint8 [8, 8, 1]"),
    ):  # fmt: skip
        np.save(tmp_path / f"{name}.npy", x)
        assert refused(workdir, tmp_path / f"{name}.npy") == expected
    file = str(tmp_path / "new.npz")
    np.savez(file, x=inputs)
    assert refused(workdir, file) == f"NEW: {file!r} has no array 'inputs', only ['x']"
    np.savez(file, inputs=inputs.astype(object))
    assert refused(workdir, file).startswith(f"NEW: {file!r} is not a readable .npz (Object")
    np.savez(file, inputs=inputs, ids=np.arange(3))
    assert refused(workdir, file) == (f"NEW: {file!r} has 3 ids, expected 360, one for each input")
    file = str(tmp_path / "new.csv")
    (tmp_path / "new.csv").touch()
    assert refused(workdir, file) == (
        f"NEW: got {file!r}, expected an .npz or .npy file, as trained on"
    )


def test_a_run_that_has_not_ended(refused, trained, tmp_path):
    """Or that was never there."""
    np.save(tmp_path / "new.npy", digits().test.inputs)
    copy = tmp_path / "run"
    shutil.copytree(trained("cross_entropy").workdir, copy)
    (copy / "results.json").unlink()
    expected = (
        "which lacks {}; expected the directory of a run that has ended (run an older one's "
        "command again to bring it up to date)"
    )
    line = refused(copy, tmp_path / "new.npy")
    assert line == f"RUN: no finished run in {str(copy)!r}, {expected.format('results.json')}"
    line = refused(tmp_path, tmp_path / "new.npy")
    assert line == f"RUN: no finished run in {str(tmp_path)!r}, {expected.format('config.json')}"
    np.save(tmp_path / "new.npy", digits().test.inputs)
    copy = trained("cross_entropy").workdir
    assert refused(copy, tmp_path / "new.npy", output="/no/such/out.csv") == (
        "--output: no directory '/no/such'; expected one to write out.csv to"
    )
    assert refused(copy, tmp_path / "no.npy") == (
        f"NEW: no file {str(tmp_path / 'no.npy')!r}; expected one of examples"
    )


@pytest.mark.parametrize("kind", ["directory", "fifo", "input", "link to the input"])
def test_an_output_that_would_destroy_something(run_command, tmp_path, kind):
    """Before anything is loaded: there is no such run."""
    examples = tmp_path / "new.csv"
    examples.write_text("a\n1\n")
    output = tmp_path / "out.csv"
    if kind == "directory":
        output.mkdir()
    elif kind == "fifo":
        os.mkfifo(output)
    elif kind == "input":
        output = examples
    else:
        output.symlink_to(examples)
    code, _, err = run_command(
        "predict", str(tmp_path / "none"), str(examples), f"--output={output}"
    )
    assert code == 2
    expected = "is NEW; expected another file" if "input" in kind else "expected a file to write"
    assert expected in err
    assert examples.read_text() == "a\n1\n" and output.exists()
