"""Own tables: what becomes a feature, what is missing, and what can be wrong with them."""

import json
import logging

import numpy as np
import pandas
import pytest

from configs import table as table_config
from mlc_jax import config as settings
from mlc_jax.benchmarks import datasets
from mlc_jax.data.source import read_rows
from mlc_jax.errors import InputError
from mlc_jax.files.columns import Columns
from mlc_jax.files.tables import Table
from mlc_jax.files.values import forms
from mlc_jax.files.values.survey import MAX_CATEGORIES

SIZE = 60


@pytest.fixture
def frame():
    """Sixty rows: two classes, every sixth row checked; missing values, texts, row numbers."""
    rng = np.random.default_rng(0)
    truth = np.array(["no", "yes"])[rng.integers(2, size=SIZE)]
    given = np.where(np.arange(SIZE) % 5 == 1, "yes", truth)
    checked = np.arange(SIZE) % 6 == 0
    return pandas.DataFrame({
        "id": [f"{i:03d}" for i in range(SIZE)],
        "label": given,
        "checked_label": np.where(checked, truth, ""),
        "age": [str(20 + i % 30) if i % 10 else "" for i in range(SIZE)],
        "city": np.array(["Rome", "Bonn", ""])[np.arange(SIZE) % 3],
        "height": rng.normal(size=SIZE).round(3),
        "member": np.array(["True", "false"])[rng.integers(2, size=SIZE)],
    })  # fmt: skip


@pytest.fixture
def load(tmp_path):
    """(frames or contents by file, fields) -> the dataset; files are CSV unless they say so."""

    def run(files, ending="csv", **fields):
        config = table_config.get_config()
        for name, content in files.items():
            path = tmp_path / f"{name}.{ending}"
            if isinstance(content, bytes):
                path.write_bytes(content)
            elif ending == "csv":
                content.to_csv(path, index=False)
            elif ending == "jsonl":
                content.to_json(path, orient="records", lines=True)
            else:
                content.to_parquet(path)
            config.dataset[name] = str(path)
        config.update_from_flattened_dict({f"dataset.{k}": v for k, v in fields.items()})
        settings.validate(config)
        return datasets.load(config)

    return run


def _features(dataset, subset):
    inputs = read_rows(subset.source, subset.rows)
    return dict(zip(dataset.columns.features, inputs.T, strict=True))


def test_columns_of_numbers_become_features(load, frame, caplog):
    logging.getLogger("absl").setLevel(logging.INFO)
    with caplog.at_level(logging.INFO, "absl"):
        more = {"name": [f"{i} Main St" for i in range(SIZE)], "year": [2024] * SIZE}
        dataset = load({"data": frame.assign(**more)})
    of_city = ["city=", "city=Bonn", "city=Rome"]  # Three texts in sixty rows.
    assert dataset.columns.features == ["age", "age is missing", *of_city, "height", "member"]
    assert dataset.class_names == ("no", "yes")
    noisy = _features(dataset, dataset.noisy)
    rows = dataset.noisy.rows
    there = frame["age"] != ""
    median = frame["age"][there].astype(float).median()
    want = np.where(there, pandas.to_numeric(frame["age"]), median)
    np.testing.assert_array_equal(noisy["age"], want[rows].astype(np.float32))
    np.testing.assert_array_equal(noisy["age is missing"], ~there[rows])
    np.testing.assert_array_equal(noisy["height"], frame["height"][rows].astype(np.float32))
    np.testing.assert_array_equal(noisy["member"], (frame["member"] == "True")[rows])
    assert list(dataset.clean.ids) == [f"{i:03d}" for i in range(0, SIZE, 6)]
    text = " ".join(record.getMessage() for record in caplog.records)
    assert f"7 features of columns age (missing: {median:g}, and a feature that says so)" in text
    assert "city (3 categories), height, member" in text
    assert "Left out: name (texts), year (one value in all rows)" in text


def test_named_columns_and_categories(load, frame):
    dataset = load({"data": frame}, features="city,height")
    assert dataset.columns.features == ["city=", "city=Bonn", "city=Rome", "height"]
    noisy = _features(dataset, dataset.noisy)
    for city in ("", "Bonn", "Rome"):
        np.testing.assert_array_equal(noisy[f"city={city}"], (frame["city"] == city)[
            dataset.noisy.rows])  # fmt: skip
    shown = dataset.noisy.source.show(np.array([1]))
    assert shown == [f"city=Bonn, height={frame['height'][1]:g}"]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_formats_agree(load, frame, ending):
    typed = frame.assign(
        age=pandas.to_numeric(frame["age"]).astype("Int64"), member=frame["member"] == "True"
    )
    one, other = load({"data": frame}), load({"data": typed}, ending)
    assert one.columns == other.columns
    np.testing.assert_array_equal(one.noisy.source.inputs, other.noisy.source.inputs)
    assert one.fingerprint() == other.fingerprint()


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_rows_are_read_once_and_encoded_as_new_ones(load, frame, tmp_path, ending, monkeypatch):
    """Lists and whole numbers that float64 cannot hold are read again, and nothing else is."""
    rng, passes, rows = np.random.default_rng(1), [], Table.rows

    def counted(self, required, optional=(), values=()):
        passes.append([*values])
        return rows(self, required, optional, values)

    frame["day"] = pandas.date_range("2024-01-01", periods=SIZE, freq="9D").astype(str)
    frame["unix"] = 1.7e9 + rng.integers(10**6, size=SIZE)
    more = frame.assign(
        vector=[json.dumps(rng.normal(size=3).round(3).tolist()) for _ in range(SIZE)],
        whole=[str(2**60 + int(x)) for x in rng.permutation(SIZE)],
    )
    monkeypatch.setattr(Table, "rows", counted)
    for data, again in ((frame, []), (more, [["vector", "whole"]])):
        passes.clear()
        dataset = load({"data": data}, ending)
        assert {"age", "city", "day", "unix"} < {*passes[0]} and passes[1:] == again
        table, columns = Table("--", str(tmp_path / f"data.{ending}")), dataset.columns
        as_new = columns.encode(table.fail, rows(table, [], [], columns.names))
        np.testing.assert_array_equal(dataset.noisy.source.inputs, as_new)


def test_a_day_has_24_hours():
    numbers, bad = forms.read(["00:00", "12:00", "24:00", "24:01", "7:60"], "time")
    np.testing.assert_array_equal(numbers, [0, 0.5, 1, np.nan, np.nan])
    assert bad.tolist() == [False, False, False, True, True]


def test_row_numbers_are_no_feature(load, frame):
    """pandas writes them under no name, and reads them back under one."""
    numbered = pandas.concat([pandas.Series(range(SIZE), name=""), frame], axis=1)
    numbered.insert(0, "Unnamed: 0", range(SIZE))
    assert load({"data": numbered}).columns == load({"data": frame}).columns


def test_test_rows_make_no_features(load, frame):
    split = np.where(np.arange(SIZE) % 12 == 0, "test", "")
    changed = frame.assign(split=split)
    changed.loc[split == "test", "age"] = "1000"
    changed.loc[split == "test", "city"] = "Oslo"
    dataset = load({"data": changed}, features="age,city")
    training = changed[split == ""]
    median = pandas.to_numeric(training["age"]).median()
    assert dataset.columns.columns[0].median == median < 100
    assert dataset.columns.columns[1].categories == ("", "Bonn", "Rome")
    test = _features(dataset, dataset.test)
    np.testing.assert_array_equal(test["age"], 1000)
    assert not any(test[f"city={city}"].any() for city in ("", "Bonn", "Rome"))


def test_two_files_have_the_columns_of_the_noisy_one(load, frame):
    checked = frame["checked_label"] != ""
    noisy = frame[~checked].drop(columns="checked_label")
    clean = frame[checked].assign(
        given_label=frame["label"], label=frame["checked_label"]
    ).drop(columns="checked_label")[::-1]  # fmt: skip
    two = load({"noisy": noisy, "clean": clean[[*clean.columns[::-1]]]})
    one = load({"data": frame})
    assert two.columns.names == one.columns.names
    np.testing.assert_array_equal(two.clean.truth[::-1], one.clean.truth)
    np.testing.assert_array_equal(two.clean.given[::-1], one.clean.given)
    np.testing.assert_array_equal(
        read_rows(two.noisy.source, two.noisy.rows), read_rows(one.noisy.source, one.noisy.rows)
    )
    with pytest.raises(InputError, match=r"clean\.csv' has no column 'height', only 'id', 'label'"):
        load({"noisy": noisy, "clean": clean.drop(columns="height")})


def test_columns_survive_json(load, frame):
    columns = load({"data": frame}, features="age,city,height").columns
    again = Columns.from_json(json.loads(json.dumps(columns.to_json())))
    assert again == columns and again.left_out == columns.left_out


# --- What is refused.


@pytest.mark.parametrize("name", ["checked_label", "label"])
def test_a_column_that_is_the_label(load, frame, name):
    """Left in by accident: numbers of classes, known for the checked rows or for all."""
    rng = np.random.default_rng(1)
    truth = rng.integers(2, size=600)
    given = np.where(rng.random(600) < 0.4, 1 - truth, truth)
    frame = pandas.DataFrame({
        "label": given, "checked_label": np.where(np.arange(600) % 10, "", truth.astype(str)),
        "height": rng.normal(size=600), "shoes": rng.integers(30, 50, size=600),
        "sex": rng.integers(2, size=600),
        "target": truth if name == "checked_label" else given,
    })  # fmt: skip
    with pytest.raises(InputError) as error:
        load({"data": frame})
    assert str(error.value).endswith(
        f"data.csv' column 'target' equals {name} in 100 % of rows; expected no label among the "
        "features. Take it out, or say that it is a feature: --config.dataset.features=+target"
    )
    recoded = frame.assign(target=np.where(frame["target"] == 1, 7.5, -2))
    with pytest.raises(InputError, match=f"column 'target' determines {name}; "):
        load({"data": recoded}, features="sex,target")
    assert load({"data": frame.drop(columns="target")}).columns.names == ["height", "shoes", "sex"]
    assert load({"data": frame}, features="sex,+target").columns.names == ["sex", "target"]


def test_a_measure_that_tells_the_classes_apart_is_no_leak(load):
    """As the length of a petal among 40 checked irises; a code of each class still is one."""
    from sklearn.datasets import load_iris

    iris = load_iris(as_frame=True)
    rng = np.random.default_rng(7)
    checked = np.isin(np.arange(150), rng.permutation(150)[:40])
    names = np.array(iris.target_names)[iris.target]
    given = np.where(rng.random(150) < 0.2, rng.permutation(names), names)
    frame = iris.data.assign(label=given, checked_label=np.where(checked, names, ""))
    of_checked = frame[checked].groupby("petal length (cm)").checked_label.nunique()
    assert of_checked.max() == 1 and len(of_checked) < 30
    assert load({"data": frame}).columns.names == list(iris.data)
    with pytest.raises(InputError, match="column 'code' determines checked_label"):
        load({"data": frame.assign(code=iris.target * 7)})


HEADER = b"id,label,checked_label,age\n"
GOOD = b"".join(b"%d,%s,%s,%d\n" % (i, b"ab"[i % 2 :][:1], b"a" if i == 0 else b"", i)
                for i in range(20))  # fmt: skip


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (HEADER + GOOD + b"20,a,,1e999\n", "line 22: age is '1e999', expected a number, or nothing "
         "where it is missing"),
        (HEADER + b"x,a,,old\n" + GOOD, "line 2: age is 'old', expected a number, or nothing where "
         "it is missing"),
        (HEADER + GOOD + b"20,a,,1,\n", "line 22: has 5 fields, expected 4: id, label, "
         "checked_label, age"),
        (HEADER + GOOD + b"20,a,\n", "line 22: has 3 fields, expected 4: id, label, "
         "checked_label, age"),
        (HEADER + GOOD + b"3,a,,1\n", "line 22: id '3' is that of line 5, too; expected one each"),
        (HEADER + GOOD + b"20,\xe4,,1\n", "line 22: is not UTF-8: byte 0xe4 at offset 191 of the "
         "file; expected it saved as UTF-8 (a spreadsheet's `CSV UTF-8`; iconv -f WINDOWS-1252 -t "
         "UTF-8 FILE)"),
        (HEADER + GOOD + b"20,a,c,1\n", "line 22 alone has label 'c', which no row was given; "
         "expected one of those that were, such as 'a', or two rows at least of a new class"),
        (b"id,checked_label,age\n1,a,2\n", "has no column 'label', only 'id', 'checked_label', "
         "'age'"),
        (b"", "is empty, expected a first line that names 'label'"),
        (HEADER, "has no row, expected one for each example"),
        (b"label,checked_label,name\na,a,x\nb,,y\n", "has no column that can be a feature "
         "('name': texts); expected columns of numbers, or of few different texts; "
         "--config.dataset.features=+NAME takes a column, -NAME leaves one out"),
    ],
)  # fmt: skip
def test_bad_table(load, tmp_path, content, problem):
    with pytest.raises(InputError) as error:
        load({"data": content})
    assert str(error.value) == f"config.dataset.data: {str(tmp_path / 'data.csv')!r} {problem}"


def test_columns_that_cannot_be_features(load, frame):
    with pytest.raises(InputError, match=r"has no column 'weight', only 'id', 'label'"):
        load({"data": frame}, features="age,weight")
    many = pandas.concat([frame] * 2, ignore_index=True)
    many["id"] = many["name"] = [f"{i} Main St" for i in range(2 * SIZE)]
    with pytest.raises(InputError) as error:
        load({"data": many}, features="age,name")
    assert str(error.value).endswith(
        f"column 'name' has more than {MAX_CATEGORIES} different texts; expected numbers, or fewer "
        "categories"
    )
    nested = frame.assign(vector=[[{"x": 1.0}]] * SIZE)
    assert "vector" not in load({"data": nested}, "parquet").columns.names


def test_features_are_for_tables_alone(frame):
    config = table_config.get_config()
    config.dataset.update(name="arrays", data="x.npz", features="age")
    with pytest.raises(InputError, match=r"features: got 'age', expected None: only a table has"):
        settings.validate(config)


def test_columns_of_a_file(tmp_path, frame):
    frame.to_csv(tmp_path / "x.csv", index=False)
    assert Table("x", str(tmp_path / "x.csv")).columns() == list(frame.columns)
    (tmp_path / "empty.csv").touch()
    assert Table("x", str(tmp_path / "empty.csv")).columns() == []
