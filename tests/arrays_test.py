"""Own arrays in .npz files: three layouts, labels by name and by number, and what can be wrong."""

import csv
import json
import logging
import pathlib
import re

import jax
import numpy as np
import pandas
import pytest

from configs import arrays as arrays_config
from configs import digits as digits_config
from mlc_jax.benchmarks import datasets
from mlc_jax.benchmarks.images import digits
from mlc_jax.commands import train
from mlc_jax.data import UNKNOWN
from mlc_jax.data.source import read_rows
from mlc_jax.errors import InputError
from mlc_jax.files.values import names as class_names
from mlc_jax.report import report
from mlc_jax.training import sizing
from mlc_jax.training.metrics import read_metrics

CONFIG = f"--config={pathlib.Path(__file__).parents[1] / 'configs' / 'arrays.py'}"
SMALL = {
    "method": "robust_mlc",
    "dataset.standardize": True,
    "model.mlp.hidden_sizes": (32, 16),
    "lcn.hidden_size": 16,
    "lcn.embedding_size": 16,
    "noisy_batch_size": 64,
    "clean_batch_size": 32,
    "num_epochs": 2,
    "eval_every_epochs": 1,
    "log_every_steps": 3,
}
NAMES = np.array(
    ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
)  # Their order is another than that of the digits.
NUM_CLEAN, NUM_ROWS = 100, 700
TOLD = {"names": lambda labels: NAMES[labels], "numbers": lambda labels: labels * 10 - 3}


@pytest.fixture(scope="module")
def rows():
    """Digits, 700 of them: inputs, true labels, and labels of which every third is wrong."""
    benchmark = digits()
    inputs = benchmark.train.inputs[:NUM_ROWS].reshape(NUM_ROWS, 64)
    truth = benchmark.train_labels[:NUM_ROWS]
    given = np.where(np.arange(NUM_ROWS) % 3 == 0, (truth + 1) % 10, truth)
    checked = np.arange(NUM_ROWS) % (NUM_ROWS // NUM_CLEAN) == 3
    return inputs, truth, given, checked


@pytest.fixture(scope="module")
def test_rows():
    benchmark = digits()
    return benchmark.test.inputs.reshape(-1, 64), benchmark.test_labels


def _unchecked(labels):
    """What stands where nobody looked."""
    return "" if labels.dtype.kind == "U" else -1


def _save(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


def _one_file(path, rows, told, **more):
    inputs, truth, given, checked = rows
    labels = told(truth)
    looked = np.where(checked, labels, _unchecked(labels))
    return _save(path, **{"inputs": inputs, "labels": told(given), "checked_labels": looked} | more)


def _two_files(directory, rows, told):
    inputs, truth, given, checked = rows
    return {
        "noisy": _save(
            directory / "noisy.npz", inputs=inputs[~checked], labels=told(given[~checked])
        ),
        "clean": _save(
            directory / "clean.npz", inputs=inputs[checked], labels=told(truth[checked]),
            given_labels=told(given[checked]),
        ),
    }  # fmt: skip


def _files(layout, directory, rows, told):
    """Settings of the data, by name."""
    if layout == "two files":
        return _two_files(directory, rows, told)
    if layout == "one file":
        ids = np.array([f"digit {i}" for i in range(NUM_ROWS)])
        return {"data": _one_file(directory / "all.npz", rows, told, ids=ids)}
    return {"data": _save(directory / "bench.npz", inputs=rows[0], labels=told(rows[1])),
            "benchmark": True}  # fmt: skip


def _config(files, **fields):
    config = arrays_config.get_config()
    config.update_from_flattened_dict(
        SMALL | {f"dataset.{name}": file for name, file in files.items()} | fields
    )
    return config


def _csv(place):
    with place.open(newline="") as file:
        return list(csv.DictReader(file))


def _any_line(lines, pattern):
    return any(re.fullmatch(pattern, line) for line in lines)


# --- What is read.


@pytest.mark.parametrize("kind", TOLD)
@pytest.mark.parametrize("layout", ["one file", "two files"])
def test_rows_and_labels_keep_together(tmp_path, rows, test_rows, layout, kind):
    told = TOLD[kind]
    files = _files(layout, tmp_path, rows, told)
    files["test"] = _save(tmp_path / "test.npz", inputs=test_rows[0], labels=told(test_rows[1]))
    dataset = datasets.load(_config(files))
    inputs, truth, given, checked = rows
    names = np.sort(told(np.arange(10)))  # Names as text, numbers as numbers: 7 before 17.
    assert dataset.class_names == tuple(str(name) for name in names)
    numbers = {name: i for i, name in enumerate(dataset.class_names)}
    number_of = lambda labels: [numbers[str(label)] for label in told(labels)]  # noqa: E731

    noisy, clean = dataset.noisy, dataset.clean
    assert (len(noisy), len(clean)) == (NUM_ROWS - NUM_CLEAN, NUM_CLEAN)
    np.testing.assert_array_equal(noisy.source.inputs[noisy.rows], inputs[~checked])
    np.testing.assert_array_equal(noisy.given, number_of(given[~checked]))
    np.testing.assert_array_equal(noisy.truth, UNKNOWN)
    np.testing.assert_array_equal(clean.source.inputs[clean.rows], inputs[checked])
    np.testing.assert_array_equal(clean.truth, number_of(truth[checked]))
    np.testing.assert_array_equal(clean.given, number_of(given[checked]))
    np.testing.assert_array_equal(dataset.test.truth, number_of(test_rows[1]))
    assert dataset.noise_rate is None and not noisy.has_truth and dataset.names_labels
    assert (dataset.validation, dataset.noise) == (None, "given")
    if layout == "one file":
        assert list(noisy.ids) == [f"digit {i}" for i in np.flatnonzero(~checked)]
    else:
        assert list(noisy.ids) == [str(i) for i in range(len(noisy))]


def test_old_labels_of_clean_rows_may_be_left_out(tmp_path, rows):
    files = _two_files(tmp_path, rows, TOLD["names"])
    with np.load(files["clean"]) as file:
        _save(tmp_path / "clean.npz", inputs=file["inputs"], labels=file["labels"])
    clean = datasets.load(_config(files)).clean
    assert clean.has_truth
    np.testing.assert_array_equal(clean.given, UNKNOWN)


@pytest.mark.parametrize(
    ("stored", "kept"),
    [("uint8", "uint8"), ("float64", "float32"), ("float32", "float32"), ("bool", "float32")],
)
def test_types_of_inputs(tmp_path, rows, stored, kept):
    inputs, *others = rows
    stored = (inputs > 8 if stored == "bool" else inputs).astype(stored)
    file = _one_file(tmp_path / "all.npz", (stored, *others), TOLD["names"])
    source = datasets.load(_config({"data": file})).noisy.source
    assert source.inputs.dtype == kept
    np.testing.assert_array_equal(source.inputs, stored)


def test_features_are_standardized_by_the_noisy_set(tmp_path, rows):
    """Constant ones stay as they are; clean and test rows go by the same figures."""
    inputs, _, _, checked = rows
    assert (inputs[~checked].std(axis=0) == 0).any()
    for layout in ("one file", "two files"):
        config = _config(_files(layout, tmp_path, rows, TOLD["names"]))
        dataset = datasets.load(config)
        noisy = inputs[~checked].astype(np.float64)
        mean, std = noisy.mean(axis=0), noisy.std(axis=0)
        want = np.where(std == 0, inputs, (inputs - mean) / np.where(std == 0, 1, std))
        np.testing.assert_allclose(dataset.prepare(inputs), want, rtol=1e-4, atol=1e-5)
        config.dataset.standardize = False
        np.testing.assert_array_equal(
            datasets.load(config).prepare(inputs), inputs.astype(np.float32)
        )


def test_a_benchmark_is_standardized_by_its_noisy_part(tmp_path, rows):
    config = _config(_files("benchmark", tmp_path, rows, TOLD["names"]))
    dataset = datasets.load(config)
    noisy = rows[0][dataset.noisy.rows]
    assert len(noisy) == NUM_ROWS - 50
    ready = dataset.prepare(noisy)
    np.testing.assert_allclose(ready[:, noisy.std(axis=0) > 0].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(ready[:, noisy.std(axis=0) > 0].std(axis=0), 1, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "scaled"),
    [
        (lambda x: x, lambda x: x / 16),  # Pixels.
        (lambda x: (x / 16).astype(np.float32), lambda x: x),
        (lambda x: x.astype(np.float32), None),
        (lambda x: x.astype(np.int16) - 3, None),
    ],
)
def test_inputs_are_scaled_as_they_are_like(tmp_path, rows, change, scaled):
    inputs, *others = rows
    stored = change(inputs)
    config = _config({"data": _one_file(tmp_path / "all.npz", (stored, *others), TOLD["names"])})
    config.dataset.standardize = None
    ready = datasets.load(config).prepare(stored)
    if scaled is None:
        config.dataset.standardize = True
        scaled = datasets.load(config).prepare
    np.testing.assert_allclose(ready, scaled(stored), rtol=1e-6)


def test_a_file_that_was_written_again_is_read_again(tmp_path, rows):
    file = _one_file(tmp_path / "all.npz", rows, TOLD["names"])
    config = _config({"data": file})
    before = datasets.load(config)
    # Runs of one process share it.
    assert datasets.load(config).noisy.source is before.noisy.source
    inputs, truth, given, checked = rows
    _one_file(tmp_path / "all.npz", (inputs, truth, (given + 1) % 10, checked), TOLD["names"])
    after = datasets.load(config)
    assert (after.noisy.given != before.noisy.given).all()
    assert after.fingerprint() != before.fingerprint()


@pytest.fixture(scope="module")
def digits_file(tmp_path_factory):
    """The digits as a benchmark of one's own; prepared, so that nothing is left to do."""
    directory, benchmark = tmp_path_factory.mktemp("digits"), digits()

    def save(name, source, labels):
        return _save(
            directory / f"{name}.npz", inputs=source.inputs.astype(np.float32) / 16,
            labels=labels, ids=source.ids(np.arange(len(source))),
        )  # fmt: skip

    return {
        "data": save("digits", benchmark.train, benchmark.train_labels),
        "test": save("test", benchmark.test, benchmark.test_labels),
        "benchmark": True,
    }


def _as_digits(config, files):
    """The config of digits for the same data from files."""
    config.dataset.update(name="arrays", standardize=False, **files)
    return config


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("kind", ["flip", "uniform", "flip_any", "none"])
def test_a_benchmark_is_split_and_made_noisy_as_ours_are(tiny_config, digits_file, kind, paired):
    fields = {
        "noise.type": kind,
        "noise.seed": 3,
        "dataset.split_seed": 5,
        "dataset.paired": paired,
    }
    ours = datasets.load(tiny_config(**fields))
    theirs = datasets.load(_as_digits(tiny_config(**fields), digits_file))
    assert (ours.class_names, ours.noise) == (theirs.class_names, theirs.noise)
    for name in ("noisy", "clean", "validation", "test"):
        one, other = getattr(ours, name), getattr(theirs, name)
        for field in ("rows", "given", "truth", "ids"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
        np.testing.assert_array_equal(
            ours.prepare(one.source.inputs), theirs.prepare(other.source.inputs)
        )


# --- Test rows, held-out rows, labels that are checked later.


def test_rows_that_only_judge(tmp_path, rows):
    _, truth, _, checked = rows
    splits = np.where(np.isin(np.arange(NUM_ROWS), np.flatnonzero(checked)[:40]), "test", "")
    file = _one_file(tmp_path / "all.npz", rows, TOLD["numbers"], splits=splits)
    dataset = datasets.load(_config({"data": file}))
    assert (len(dataset.test), len(dataset.clean)) == (40, NUM_CLEAN - 40)
    np.testing.assert_array_equal(dataset.test.rows, np.flatnonzero(checked)[:40])
    names = [dataset.class_names[i] for i in dataset.test.truth]
    assert names == [str(x) for x in TOLD["numbers"](truth[checked][:40])]
    assert len(dataset.noisy) == NUM_ROWS - NUM_CLEAN


def _checks(path, labels, key="id"):
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([key, "given_label", "checked_label"])
        writer.writerows([row, "no matter", label] for row, label in labels.items())
    return str(path)


@pytest.mark.parametrize("has_ids", [False, True])
def test_labels_that_are_checked_later(tmp_path, rows, has_ids):
    _, truth, _, checked = rows
    names = np.array([f"={i:03d}" if has_ids else str(i) for i in range(NUM_ROWS)])
    more = {"ids": names} if has_ids else {}
    file = _one_file(tmp_path / "all.npz", rows, TOLD["names"], **more)
    new = np.flatnonzero(~checked)[:5]
    written = {class_names.for_spreadsheet(names[i]): NAMES[truth[i]] for i in new}
    first = _checks(tmp_path / "1.csv", written | {names[new[4] + 20]: ""})
    old = int(np.flatnonzero(checked)[0])
    other = NAMES[(truth[new[0]] + 1) % 10]
    second = _checks(tmp_path / "2.csv", {names[old]: NAMES[truth[old]], names[new[0]]: other})
    config = _config({"data": file}, **{"dataset.checked": f"{first},{second}"})
    with pytest.raises(InputError, match=rf"2\.csv' line 3: id '.*' is checked as '{other}', and"):
        datasets.load(config)
    _checks(tmp_path / "2.csv", {names[old]: NAMES[truth[old]]})
    dataset = datasets.load(config)
    assert list(dataset.clean.rows) == sorted([*np.flatnonzero(checked), *new])
    assert not np.isin(new, dataset.noisy.rows).any()
    got = [dataset.class_names[i] for i in dataset.clean.truth]
    assert got == list(NAMES[truth[dataset.clean.rows]])


@pytest.mark.parametrize(
    ("labels", "problem"),
    [
        ({"9": "a"}, "line 2: id '9' is not in FILE; expected one of its ids"),
        ({"2": "c"}, "line 2: checked_label is 'c', which no row was given, and no other row has "
         "it; expected one of the file's labels, such as 'a', two rows at least of a new class, "
         "or its name in config.dataset.class_names"),
        ({"2": "unsure"}, "line 2: checked_label is 'unsure', which no row was given; expected one "
         "of a, b, or nothing where nobody looked"),
        ({"0": "b"}, "line 2: id '0' is checked as 'b', and as 'a' in FILE row '0'; expected one "
         "label"),
        ({"7": "a"}, "line 2: id '7' is a row that judges; expected one to train with"),
        ({"2": ""}, "has no checked_label; expected some that are filled in"),
    ],
)  # fmt: skip
def test_bad_labels_that_are_checked_later(refused, tmp_path, labels, problem):
    checked = np.array(["a", "b", "", "", "", "", "", "a"])
    splits = np.array([*[""] * 7, "test"])
    arrays = GOOD | {"checked_labels": checked, "splits": splits}
    file = _save(tmp_path / "all.npz", **arrays)
    checks = _checks(tmp_path / "round1.csv", labels)
    line = refused({"data": file, "checked": checks})
    assert line == f"dataset.checked: {checks!r} {problem.replace('FILE', repr(file))}"


def test_a_file_of_labels_that_are_checked_later_needs_its_columns(refused, tmp_path):
    file = _save(tmp_path / "all.npz", **GOOD)
    checks = _checks(tmp_path / "round1.csv", {"2": "a"}, key="name")
    assert refused({"data": file, "checked": checks}) == (
        f"dataset.checked: {checks!r} has no column 'id', only 'name', 'given_label', "
        "'checked_label'"
    )
    assert refused(_two(tmp_path) | {"checked": checks}) == (
        f"dataset.checked: got {checks!r}, expected None without dataset.data: rows of the noisy "
        "file that were checked go into the clean file"
    )


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"splits": np.array(["dev"] * 8)}, "['splits'] row 0 is 'dev', expected train, test, "
         "validation or nothing"),
        ({"splits": np.arange(8)}, "['splits'] holds int64, expected texts: train, test, "
         "validation or nothing"),
        ({"splits": np.array([*[""] * 7, "test"])}, "row '7' is a test row that nobody checked; "
         "expected its true label"),
    ],
)  # fmt: skip
def test_bad_splits(refused, tmp_path, changes, problem):
    arrays = {name: x for name, x in (GOOD | changes).items() if x is not None}
    file = _save(tmp_path / "all.npz", **arrays)
    assert refused({"data": file}) == f"dataset.data: {file!r} {problem}"


def test_an_example_is_in_one_file_alone(refused, tmp_path):
    files = _two(tmp_path, ids=np.array([7, 3]))
    _save(tmp_path / "noisy.npz", **{name: GOOD[name] for name in ("inputs", "labels", "ids")})
    assert refused(files) == (
        f"dataset.clean: {files['clean']!r} has id '3', which {files['noisy']!r} has, too; "
        "expected each example in one file"
    )


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("=1+1", "'=1+1"), ("+", "'+"), ("-x", "'-x"), ("@a", "'@a"), ("\t=1", "'\t=1"),
        ("-3", "-3"), ("+1e5", "+1e5"), ("cat", "cat"), ("", ""), ("'quoted'", "'quoted'"),
        ("'=1", "''=1"), ("''=1", "'''=1"), ("'-3", "''-3"),
    ],
)  # fmt: skip
def test_a_spreadsheet_runs_nothing(text, written):
    """And what it was is found again."""
    assert class_names.for_spreadsheet(text) == written
    assert class_names.from_spreadsheet(written) == text


# --- Memory-mapped.


def _mapped(directory, rows, told, **columns):
    """The same rows as an `.npy` of inputs and a table."""
    inputs, truth, given, checked = rows
    np.save(directory / "all.npy", inputs)
    table = {
        "label": told(given), "checked_label": np.where(checked, told(truth).astype(str), ""),
    } | columns  # fmt: skip
    pandas.DataFrame(table).to_csv(directory / "all.csv", index=False)
    return str(directory / "all.npy")


def test_inputs_may_stay_on_disk(tmp_path, rows):
    mapped = datasets.load(_config({"data": _mapped(tmp_path, rows, TOLD["names"])}))
    plain = datasets.load(_config({"data": _one_file(tmp_path / "all.npz", rows, TOLD["names"])}))
    assert isinstance(mapped.noisy.source.inputs, np.memmap)
    assert mapped.class_names == plain.class_names
    for name in ("noisy", "clean"):
        one, other = getattr(mapped, name), getattr(plain, name)
        for field in ("rows", "given", "truth", "ids"):
            np.testing.assert_array_equal(getattr(one, field), getattr(other, field))
        of_both = (read_rows(x.source, x.rows) for x in (one, other))
        np.testing.assert_array_equal(*of_both)
    np.testing.assert_allclose(mapped.prepare(rows[0]), plain.prepare(rows[0]), rtol=1e-6)


def test_bad_memory_maps(refused, tmp_path, rows):
    file = _mapped(tmp_path, rows, TOLD["names"])
    table = tmp_path / "all.csv"
    content = table.read_bytes()
    table.write_bytes(content + b"one,\n")
    assert refused({"data": file}) == (
        f"dataset.data: {str(table)!r} has 701 rows, expected 700, one for each of {file!r}"
    )
    table.unlink()
    stem = file.removesuffix(".npy")
    assert refused({"data": file}) == (
        f"dataset.data: {file!r} has no labels next to it; expected {stem}.csv, {stem}.tsv, "
        f"{stem}.jsonl or {stem}.parquet"
    )
    np.save(file, rows[0].astype(object), allow_pickle=True)
    line = refused({"data": file})
    assert line.startswith(f"dataset.data: {file!r} is not a readable .npy (Array can't be memory")
    pathlib.Path(file).write_bytes(b"no array")
    line = refused({"data": file})
    assert line.startswith(f"dataset.data: {file!r} is not a readable .npy (")


def test_files_in_the_home_directory(tmp_path, rows, monkeypatch):
    _one_file(tmp_path / "all.npz", rows, TOLD["names"])
    monkeypatch.setenv("HOME", str(tmp_path))
    assert len(datasets.load(_config({"data": "~/all.npz"})).clean) == NUM_CLEAN


# --- Whole runs.


@pytest.mark.slow
def test_the_same_data_from_files_are_the_same_run(
    trained, tiny_config, digits_file, tmp_path, standard_promotion
):
    """Bit for bit, though one stores whole numbers and divides by 16 in the step."""
    reference = trained("mlc")
    config = _as_digits(tiny_config(), digits_file)
    results = train.train_and_evaluate(config, str(tmp_path), show_progress=False)
    for name in ("corrected_labels.csv", "corrected_labels.npz"):
        assert (tmp_path / name).read_bytes() == (reference.workdir / name).read_bytes()
    differing = {"train_seconds", "table", "workdir"}
    for name in results.keys() - differing:
        assert results[name] == reference.results[name], name


# All of them are loaded above; here each layout, names, numbers and a test set are run once.
LAYOUTS = [
    ("one file", "names", "mlc", True),
    pytest.param("two files", "numbers", "cross_entropy", False, marks=pytest.mark.slow),
    pytest.param("benchmark", "numbers", "cross_entropy", True, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("layout", "kind", "method", "has_test"), LAYOUTS)
def test_the_command_trains_and_reports(
    run_program, tmp_path, rows, test_rows, layout, kind, method, has_test,
    compilation_cache, standard_promotion,
):  # fmt: skip
    told = TOLD[kind]
    files = _files(layout, tmp_path, rows, told)
    if has_test:
        test_file = {"inputs": test_rows[0], "labels": told(test_rows[1])}
        files["test"] = _save(tmp_path / "test.npz", **test_file)
    fields = SMALL | {"method": method} | {f"dataset.{k}": v for k, v in files.items()}
    if layout == "benchmark":
        fields |= {"noise.type": "flip", "noise.level": 0.3}
    workdir = tmp_path / "run"
    code, out, err = run_program(
        "mlc_jax.main", CONFIG, f"--workdir={workdir}", "--noprogress",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    )  # fmt: skip
    assert code == 0, err
    results = json.loads((workdir / "results.json").read_text())
    _, truth, given, checked = rows

    table = [line.strip() for line in out.splitlines()]
    if has_test:
        assert results["num_test"] == 360
        assert results["last_test_accuracy"] > 0.3  # One in ten is right by chance.
    else:
        assert results["last_test_accuracy"] is results["best_test_accuracy"] is None
        assert not _any_line(table, "test accuracy, last.*")
    is_own = layout != "benchmark"
    labels = _csv(workdir / (report.CORRECTED_FILE if is_own else report.LABELS_FILE))
    if layout == "one file":
        assert [row["id"] for row in labels] == [f"digit {i}" for i in range(NUM_ROWS)]
        assert {row["confidence"] for row, x in zip(labels, checked, strict=True) if x} == {
            "1.000000"
        }
        labels = [row for row, x in zip(labels, checked, strict=True) if not x]
    if is_own:
        doubtful = told(given[~checked])
        labels = [row | {"given_label": str(x)} for row, x in zip(labels, doubtful, strict=True)]
    with np.load(workdir / report.SOFT_LABELS_FILE) as file:
        arrays = dict(file)
    names = sorted(told(np.arange(10)))
    assert {row["corrected_label"] for row in labels} <= {str(name) for name in names}
    changed = sum(row["given_label"] != row["corrected_label"] for row in labels)
    assert results["labels_changed"] == changed
    assert [row["is_label_issue"] for row in labels].count("True") == changed
    evals = [row for row in read_metrics(workdir) if "eval/labels_changed" in row]
    assert evals[-1]["eval/labels_changed"] == pytest.approx(changed / len(labels))
    assert (workdir / report.PICTURE_FILE).read_bytes().startswith(b"\x89PNG")

    if layout == "benchmark":
        assert table[0] == f"{method} on bench, flip 0.3 noise, seed 0"
        assert (len(labels), results["clean_labels_spent"]) == (NUM_ROWS - 50, 50)
        right = [
            row["given_label"] == str(told(truth)[int(row["id"])]) for row in labels
        ]  # fmt: skip
        assert results["given_label_accuracy"] == pytest.approx(np.mean(right))
        assert 0.6 < np.mean(right) < 0.8
        assert results["corrected_label_accuracy"] is not None
        return
    assert table[0] == f"{method} on arrays, labels as given, seed 0"
    assert not _any_line(table, ".*(given|corrected) labels right.*")
    assert results["given_label_accuracy"] is results["corrected_label_accuracy"] is None
    assert evals[-1]["eval/corrected_label_accuracy"] is None
    assert (results["num_noisy"], results["clean_labels_spent"]) == (NUM_ROWS - NUM_CLEAN, 100)
    np.testing.assert_array_equal(arrays["true_label"], -1)
    first = "digit 0" if layout == "one file" else "0"
    assert labels[0]["id"] == arrays["id"][0] == first


def test_sizes_of_the_data_choose_what_is_left_open(tmp_path, rows, caplog):
    config = _config({"data": _one_file(tmp_path / "all.npz", rows, TOLD["names"])})
    open_ones = arrays_config.get_config()
    for name in ("num_epochs", "noisy_batch_size", "clean_batch_size", "lcn"):
        config[name] = open_ones[name]
    logging.getLogger("absl").setLevel(logging.INFO)
    with caplog.at_level(logging.INFO, "absl"):
        filled = sizing.fill(config, datasets.load(config))
    chosen = {"num_epochs": 91, "noisy_batch_size": 60, "clean_batch_size": 100}
    assert {name: filled[name] for name in chosen} == chosen
    assert (filled.lcn.hidden_size, filled.lcn.embedding_size) == (64, 64)
    assert (
        "From 600 noisy and 100 clean examples of 10 classes: num_epochs=91, noisy_batch_size=60, "
        "clean_batch_size=100, lcn.hidden_size=64, lcn.embedding_size=64." in caplog.messages
    )
    config.num_epochs, config.lcn.hidden_size = 7, 9
    filled = sizing.fill(config, datasets.load(config))
    assert (filled.num_epochs, filled.lcn.hidden_size, filled.noisy_batch_size) == (7, 9, 60)


def test_digits_as_own_data_get_the_settings_of_digits(digits_file):
    config = arrays_config.get_config()
    config.dataset.update(**digits_file)
    filled = sizing.fill(config, datasets.load(config))
    theirs = digits_config.get_config()
    for name in ("num_epochs", "noisy_batch_size", "clean_batch_size"):
        assert filled[name] == theirs[name]
    for name in ("hidden_size", "embedding_size"):
        assert filled.lcn[name] == theirs.lcn[name]


def test_many_features_are_those_of_an_encoder(digits_file, monkeypatch):
    config = arrays_config.get_config()
    config.dataset.update(**digits_file)
    dataset = datasets.load(config)
    assert sizing.fill(config, dataset).cross_fit.hidden_sizes is None  # Both kinds.
    monkeypatch.setattr(sizing, "_MOST_FEATURES", 63)
    assert sizing.fill(config, dataset).cross_fit.hidden_sizes == ()
    config.cross_fit.hidden_sizes = (8,)
    assert sizing.fill(config, dataset).cross_fit.hidden_sizes == (8,)


# --- What can be wrong: one line, exit 2, and nothing was started.


@pytest.fixture
def refused(run_program, tmp_path):
    """(files, fields) -> the error without its beginning."""

    def run(files, **fields):
        workdir = tmp_path / "run"
        settings = SMALL | {f"dataset.{name}": file for name, file in files.items()} | fields
        code, out, err = run_program(
            "mlc_jax.main", CONFIG, f"--workdir={workdir}",
            *(f"--config.{name}={value}" for name, value in settings.items()),
        )  # fmt: skip
        assert (code, out) == (2, "")
        assert not workdir.exists()
        (line,) = err.splitlines()
        assert line.startswith("error: config.")
        return line.removeprefix("error: config.")

    return run


def _changes(**changes):
    return lambda arrays: arrays | changes


GOOD = {
    "inputs": np.arange(24.0).reshape(8, 3),
    "labels": np.array(list("abababab")),
    "checked_labels": np.array(["a", "b", "", "", "", "", "", ""]),
    "ids": np.arange(8),
}
NAN = GOOD["inputs"] + np.where(np.arange(8)[:, None] == 5, np.nan, 0)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"inputs": None}, "has no array 'inputs', only ['checked_labels', 'ids', 'labels']"),
        ({"labels": None}, "has no array 'labels', only ['checked_labels', 'ids', 'inputs']"),
        ({"inputs": np.full((8, 3), "x")}, "['inputs'] holds <U1, expected real numbers"),
        (
            {"inputs": np.zeros((8, 3), np.complex64)},
            "['inputs'] holds complex64, expected real numbers",
        ),
        (
            {"inputs": np.zeros(8)},
            "['inputs'] has shape (8,), expected [N, ...] with N at least 1",
        ),
        (
            {"inputs": np.zeros((0, 3))},
            "['labels'] has shape (8,), expected (0,), one for each input",
        ),
        (
            {"inputs": NAN},
            "['inputs'] row 5, column 0 is nan, which is not finite; expected finite numbers",
        ),
        (
            {"inputs": np.where(np.isnan(NAN), -np.inf, NAN)},
            "['inputs'] row 5, column 0 is -inf, which is not finite; expected finite numbers",
        ),
        (
            {"labels": np.array(["a"])},
            "['labels'] has shape (1,), expected (8,), one for each input",
        ),
        (
            {"labels": np.zeros((8, 2, 2), np.int64)},
            "['labels'] has shape (8, 2, 2), expected (8,), one for each input",
        ),
        (
            {"checked_labels": np.array(["a", "b"])},
            "['checked_labels'] has shape (2,), expected (8,), one for each input",
        ),
        (
            {"given_labels": np.array(["a", "b"])},
            "['given_labels'] has shape (2,), expected (8,), one for each input",
        ),
        ({"ids": np.arange(7)}, "['ids'] has shape (7,), expected (8,), one for each input"),
        (
            {"ids": np.array([0, 1, 2, 3, 4, 5, 3, 7])},
            "['ids'] has 3 more than once; expected one each",
        ),
        (
            {"labels": np.arange(8) / 2, "checked_labels": np.full(8, -1)},
            "['labels'] holds float64, expected whole numbers or names",
        ),
        (
            {"labels": np.arange(8), "checked_labels": np.full(8, 0.5)},
            "['checked_labels'] holds float64, expected whole numbers or names",
        ),
        (
            {"labels": np.full(8, b"a"), "checked_labels": np.full(8, b"")},
            "['labels'] holds |S1, expected whole numbers or names: labels.astype(str)",
        ),
    ],
)  # fmt: skip
def test_bad_array(refused, tmp_path, changes, problem):
    arrays = {name: x for name, x in (GOOD | changes).items() if x is not None}
    file = _save(tmp_path / "all.npz", **arrays)
    assert refused({"data": file}) == f"dataset.data: {file!r} {problem}"


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        (
            {"labels": np.arange(8) % 2},
            "labels are numbers here and names there (FILE['labels'] int64, "
            "FILE['checked_labels'] <U1)",
        ),
        (
            {"checked_labels": np.full(8, "")},
            "FILE has nothing in checked_labels, so nobody knows how right its labels are; "
            "expected the right label of some rows there, and nothing in all others (60 rows drawn "
            "at random are a good start), or config.dataset.benchmark=True if all of its labels "
            "are right",
        ),
        (
            {"checked_labels": GOOD["labels"]},
            "all rows are checked, so there is no label to correct; expected rows that "
            "nobody checked, too, or an ordinary classifier on the checked labels",
        ),
        (
            {"checked_labels": np.array(["a", "bb", *[""] * 6])},
            "FILE row '1' alone has label 'bb', which no row was given; expected one of those that "
            "were, such as 'b', or two rows at least of a new class",
        ),
    ],
)
def test_labels_that_do_not_go_together(refused, tmp_path, changes, problem):
    file = _save(tmp_path / "all.npz", **GOOD | changes)
    shown = repr(file) if problem.startswith("FILE") else file
    assert refused({"data": file}) == f"dataset.data: {problem.replace('FILE', shown)}"


def _two(tmp_path, **of_clean):
    noisy = {name: GOOD[name] for name in ("inputs", "labels")}
    clean = {name: array[:2] for name, array in noisy.items()} | of_clean
    files = {"noisy": noisy, "clean": clean}
    return {name: _save(tmp_path / f"{name}.npz", **x) for name, x in files.items()}


@pytest.mark.parametrize(
    ("inputs", "given"),
    [
        (np.zeros((2, 4)), "[4] of float32"),
        (np.zeros((2, 3, 1)), "[3, 1] of float32"),
        (np.zeros((2, 3), np.uint8), "[3] of uint8"),
    ],
)
def test_files_have_inputs_of_one_kind(refused, tmp_path, inputs, given):
    files = _two(tmp_path, inputs=inputs)
    assert refused(files) == (
        f"dataset.clean: {files['clean']!r} has inputs {given}, expected those of "
        f"{files['noisy']!r}, [3] of float32"
    )


def test_a_clean_label_that_no_row_was_given(refused, tmp_path):
    """A misspelt one, most likely; a class of its own would have no noisy example."""
    files = _two(tmp_path, labels=np.array(["a", "c"]))
    assert refused(files).startswith(
        f"dataset.clean: {files['clean']!r} row '1' alone has label 'c', which no row was given; "
    )


def test_a_test_label_that_no_row_was_given(refused, tmp_path):
    files = _two(tmp_path)
    files["test"] = _save(tmp_path / "test.npz", **_changes(labels=np.full(8, "c"))(GOOD))
    assert refused(files) == (
        f"dataset.test: {files['test']!r} row '0' has label 'c', which no row to train with has; "
        "expected one of theirs"
    )


def test_the_clean_file_needs_its_labels(refused, tmp_path):
    files = _two(tmp_path, labels=np.array(["a", ""]))
    assert refused(files) == (
        f"dataset.clean: {files['clean']!r} row '1': label is empty, expected a label in each row"
    )


@pytest.mark.parametrize("name", ["data", "noisy", "clean", "test"])
def test_file_that_is_not_there(refused, tmp_path, name):
    files = {"data": _save(tmp_path / "all.npz", **GOOD)}
    if name in ("noisy", "clean"):
        files = _two(tmp_path)
    for path in (str(tmp_path / "no.npz"), str(tmp_path)):
        files[name] = path
        assert refused(files) == f"dataset.{name}: no file {path!r}; expected an .npz file"


def test_links(refused, tmp_path, rows):
    """One that leads to a file is as good as the file; one that leads to itself is none."""
    file = pathlib.Path(_one_file(tmp_path / "all.npz", rows, TOLD["names"]))
    (tmp_path / "link.npz").symlink_to(file)
    link = f"{tmp_path}/../{tmp_path.name}/link.npz"
    assert len(datasets.load(_config({"data": link})).clean) == NUM_CLEAN
    for ending in ("npz", "npy"):
        loop = tmp_path / f"loop.{ending}"
        loop.symlink_to(loop)
        assert refused({"data": str(loop)}) == (
            f"dataset.data: no file {str(loop)!r}; expected an .{ending} file"
        )


def test_file_that_is_something_else(refused, tmp_path):
    path = tmp_path / "all.npz"
    whole = pathlib.Path(_save(tmp_path / "whole.npz", **GOOD)).read_bytes()
    for content in (b"", b"inputs,labels\n", whole[: len(whole) // 2]):
        path.write_bytes(content)
        line = refused({"data": str(path)})
        assert line.startswith(f"dataset.data: {str(path)!r} is not a readable .npz (")


def test_texts_that_were_saved_as_objects(refused, tmp_path):
    """pandas' columns of text are; NumPy would have to run what is in the file."""
    file = _save(tmp_path / "all.npz", **GOOD | {"labels": GOOD["labels"].astype(object)})
    line = refused({"data": file})
    assert line.startswith(f"dataset.data: {file!r} is not a readable .npz (Object arrays cannot")
    assert line.endswith(". Texts are saved by numpy.asarray(texts).astype(str)")


def test_labels_that_are_given_get_no_noise(refused, tmp_path):
    file = _save(tmp_path / "all.npz", **GOOD)
    assert refused({"data": file}, **{"noise.type": "flip"}) == (
        f"noise.type: got 'flip', expected none: the labels of {file!r} are taken as they are, "
        "since it has checked_labels"
    )


def test_a_benchmark_needs_enough_of_every_class(refused, tmp_path):
    arrays = {name: GOOD[name] for name in ("inputs", "labels")}
    file = _save(tmp_path / "bench.npz", **arrays)
    assert refused({"data": file, "benchmark": True}) == (
        "dataset.clean_per_class + validation_per_class: got 5 + 0, but class 0 has only 4 "
        "training examples; expected at most 3 together"
    )


def test_too_few_rows_for_the_devices(refused, tmp_path):
    """Six noisy rows, eight devices."""
    assert jax.device_count() == 8
    file = _save(tmp_path / "all.npz", **GOOD)
    assert refused({"data": file}) == (
        "noisy_batch_size: got 64 with 6 noisy examples, expected at least 8 of them: every device "
        "and every half of a clean batch needs one"
    )


def test_bad_settings_are_told_before_files_are_read(tmp_path):
    files = {"data": str(tmp_path / "no.npz"), "noisy": str(tmp_path / "no.npz")}
    with pytest.raises(InputError, match=r"expected None beside dataset\.data: either"):
        train.train_and_evaluate(_config(files), str(tmp_path / "run"), show_progress=False)
    assert not (tmp_path / "run").exists()


def test_a_memory_map_does_not_lose_what_the_first_file_subtracts(tmp_path):
    """Unix times seconds apart: float32 tells them apart only without their offset."""
    rng = np.random.default_rng(0)
    inputs, labels = 1.7e9 + rng.integers(0, 500, (80, 2)), np.arange(80) % 2
    np.savez(tmp_path / "noisy.npz", inputs=inputs, labels=labels.astype(str))
    np.save(tmp_path / "clean.npy", inputs.astype(np.float32))
    (tmp_path / "clean.csv").write_text("label\n" + "".join(f"{x}\n" for x in labels))
    config = arrays_config.get_config()
    config.dataset.data = None
    config.dataset.noisy = str(tmp_path / "noisy.npz")
    config.dataset.clean = str(tmp_path / "clean.npy")
    with pytest.raises(InputError, match=r"clean\.npy' is a memory map, .* expected an \.npz, too"):
        datasets.load(config)
