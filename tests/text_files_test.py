"""Texts in files: the published benchmarks, one's own, and what can be wrong with them."""

import csv
import json
import pathlib
import re

import numpy as np
import pandas
import pytest

from mlc_jax import config as settings
from mlc_jax.benchmarks import datasets, texts
from mlc_jax.data import UNKNOWN
from mlc_jax.data.source import read_rows
from mlc_jax.errors import InputError
from mlc_jax.files.tables import MAX_FIELD_CHARACTERS, Table
from mlc_jax.files.tokens import Tokenizer

PACKS = pathlib.Path(__file__).parents[2] / "shared" / "data" / "tfds"
AS_UTF8 = "(a spreadsheet's `CSV UTF-8`; iconv -f WINDOWS-1252 -t UTF-8 FILE)"
ROWS = [
    {"id": "001", "text": "good news", "label": "NA", "checked_label": ""},
    {"id": "1", "text": 'a "quoted", text\nof two lines', "label": "None", "checked_label": "NA"},
    {"id": "2", "text": "bad news", "label": "None", "checked_label": ""},
    {"id": "x", "text": "Zoë", "label": "None", "checked_label": "None"},
]


@pytest.fixture
def create_config(tiny_tokenizer, tmp_path):
    """(overrides without `dataset.`) -> a config of texts."""

    def create(name="text", noise="none", **fields):
        fields = {"tokenizer": tiny_tokenizer, "cache_dir": str(tmp_path / "cache")} | fields
        config = settings.get_config()
        config.update_from_flattened_dict(
            {"dataset.name": name, "noise.type": noise, "dataset.max_length": 16}
            | {"model.name": "bert", "model.bert.checkpoint": "no matter"}
            | {f"dataset.{key}": value for key, value in fields.items()}
        )
        return config

    return create


@pytest.fixture
def load(create_config):
    """The same -> its dataset."""

    def run(name="text", noise="none", **fields):
        config = create_config(name, noise, **fields)
        settings.validate(config)
        return datasets.load(config)

    return run


def _write(path, rows):
    """Rows of texts, in the format that the file's name says."""
    if path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pandas.DataFrame(rows).to_parquet(path)
    return str(path)


def _texts(subset, tokenizer):
    """What an example's tokens say."""
    backend = Tokenizer.load(tokenizer)._backend
    ids = read_rows(subset.source, subset.rows)["input_ids"]
    return [re.sub(r"\[\w+\]", "", text).strip() for text in backend.decode_batch(ids.tolist())]


def _names(dataset, labels):
    return ["" if i == UNKNOWN else dataset.class_names[i] for i in labels]


# --- Own files.


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_one_file(load, tmp_path, ending):
    file = _write(tmp_path / f"all.{ending}", ROWS)
    dataset = load(data=file)
    assert dataset.class_names == ("NA", "None")
    assert list(dataset.noisy.ids) == ["001", "2"] and list(dataset.clean.ids) == ["1", "x"]
    assert _names(dataset, dataset.noisy.given) == ["NA", "None"]
    assert _names(dataset, dataset.clean.given) == ["None", "None"]
    assert _names(dataset, dataset.clean.truth) == ["NA", "None"]
    assert not dataset.noisy.has_truth and dataset.names_labels
    assert (dataset.name, dataset.noise, dataset.test) == ("text", "given", None)
    inputs = read_rows(dataset.noisy.source, np.arange(4))
    assert dataset.prepare(inputs) is inputs
    assert dataset.noisy.source.lengths.tolist() == [4, 16, 4, 5]  # The second was cut off.
    assert dataset.noisy.source.show(np.array([3, 1])) == ["Zoë", ROWS[1]["text"]]


def test_rows_that_only_judge(load, tmp_path):
    more = ROWS[3] | {"id": "y"}
    rows = [row | {"split": "test" if row["id"] == "x" else ""} for row in [*ROWS, more]]
    dataset = load(data=_write(tmp_path / "all.csv", rows))
    assert list(dataset.clean.ids) == ["1", "y"] and list(dataset.test.ids) == ["x"]
    assert _names(dataset, dataset.test.truth) == ["None"]


def test_formats_agree(load, tmp_path):
    """Tokens, too: there is one cache for the three files."""
    files = [_write(tmp_path / f"all.{ending}", ROWS) for ending in ("csv", "jsonl", "parquet")]
    fingerprints = {load(data=file).fingerprint() for file in files}
    assert len(fingerprints) == 1
    assert len([path for path in (tmp_path / "cache" / "tokens").iterdir() if path.is_dir()]) == 1


def test_two_files_and_one_to_judge_by(load, tmp_path, tiny_tokenizer):
    noisy = [{"text": text, "label": "ab"[i % 2]} for i, text in enumerate("vwxyz")]
    clean = [
        {"label": "b", "text": "good", "given_label": "a"},
        {"label": "a", "text": "bad", "given_label": ""},
    ]
    dataset = load(
        noisy=_write(tmp_path / "noisy.csv", noisy),
        clean=_write(tmp_path / "clean.jsonl", clean),
        test=_write(tmp_path / "test.parquet", [{"text": "news", "label": "b"}]),
    )
    assert dataset.class_names == ("a", "b")
    assert list(dataset.noisy.ids) == ["0", "1", "2", "3", "4"]
    assert _texts(dataset.noisy, tiny_tokenizer) == list("vwxyz")
    assert _texts(dataset.clean, tiny_tokenizer) == ["good", "bad"]
    assert _texts(dataset.test, tiny_tokenizer) == ["news"]
    assert _names(dataset, dataset.clean.truth) == ["b", "a"]
    assert _names(dataset, dataset.clean.given) == ["a", ""]
    assert _names(dataset, dataset.test.truth) == ["b"]


def test_a_file_of_true_labels_is_a_benchmark(load, tmp_path):
    rows = [{"text": f"good {i}", "label": "ab"[i % 2]} for i in range(40)]
    file = _write(tmp_path / "bench.csv", rows)
    dataset = load(data=file, benchmark=True, clean_per_class=5, noise="flip")
    assert (dataset.name, dataset.noise, len(dataset.clean)) == ("bench", "flip 0.4", 10)
    assert 0.1 < dataset.noise_rate < 0.7


def test_labels_that_were_checked_get_no_noise(load, tmp_path):
    file = _write(tmp_path / "all.csv", ROWS)
    with pytest.raises(InputError) as error:
        load(data=file, noise="flip")
    assert str(error.value) == (
        f"config.noise.type: got 'flip', expected none: the labels of {file!r} are taken as they "
        "are, since it has checked_label"
    )


def test_other_labels_need_no_other_tokens(load, tmp_path, monkeypatch):
    """A file that was written again is read again; it is tokenised if its texts have changed."""
    file = _write(tmp_path / "all.csv", ROWS)
    before = load(data=file)
    assert load(data=file).noisy.source is before.noisy.source
    calls, encode = [], Tokenizer.encode

    def counted(self, texts, max_length):
        calls.append(len(texts))
        return encode(self, texts, max_length)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    first, *others = ROWS
    _write(tmp_path / "all.csv", [first | {"checked_label": "NA"}, *others])
    after = load(data=file)
    assert len(after.clean) == len(before.clean) + 1 and not calls
    _write(tmp_path / "all.csv", [*ROWS[:3], ROWS[3] | {"text": "other"}])
    assert load(data=file).fingerprint() != before.fingerprint()
    assert calls == [4]


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_columns_that_may_be_left_out(tmp_path, ending):
    table = Table("field", _write(tmp_path / f"x.{ending}", [{"a": "1", "b": "2"}] * 2))
    rows = list(table.rows(["b"], ["c", "a"]))
    assert [values for _, values in rows] == [["2", None, "1"]] * 2
    assert [number for number, _ in rows] == {"csv": [2, 3]}.get(ending, [1, 2])


CSV_FORMS = {
    "byte order mark": b"\xef\xbb\xbftext,label\ngood news,NA\n",
    "line ends of Windows": b"text,label\r\ngood news,NA\r\n",
    "no line end at the end": b"text,label\ngood news,NA",
    "blank lines": b"text,label\n\ngood news,NA\n\n\n",
    "quotes": b'"text","label"\n"good news","NA"\n',
    "other columns": b"x,label,y,text\n1,NA,,good news\n",
}


@pytest.mark.parametrize("form", CSV_FORMS)
def test_forms_of_csv(tmp_path, form):
    (tmp_path / "x.csv").write_bytes(CSV_FORMS[form])
    ((line, values),) = Table("field", str(tmp_path / "x.csv")).rows(["text", "label"])
    assert values == ["good news", "NA"]
    assert line == (3 if form == "blank lines" else 2)


def test_rows_stand_where_an_editor_shows_them(tmp_path):
    (tmp_path / "x.csv").write_text('text\n"a\nb\n""c"""\nd\n\n"e\r\nf"\ng\n')
    rows = list(Table("field", str(tmp_path / "x.csv")).rows(["text"]))
    assert rows == [(2, ['a\nb\n"c"']), (5, ["d"]), (7, ["e\r\nf"]), (9, ["g"])]


def test_json_lines(tmp_path):
    """Numbers are written out, null is empty, and a separator of Unicode ends no line."""
    lines = [b'\xef\xbb\xbf{"a": 1, "b": true}', b"", b'{"a": null}', '{"a": "x\u2028y"}'.encode()]
    (tmp_path / "x.jsonl").write_bytes(b"\r\n".join(lines))
    rows = list(Table("field", str(tmp_path / "x.jsonl")).rows(["a"], ["b"]))
    assert rows == [(1, ["1", "true"]), (3, ["", None]), (4, ["x\u2028y", None])]


def test_types_of_parquet(tmp_path):
    frame = pandas.DataFrame({
        "category": pandas.Categorical(["a", "b", None]),
        "object": pandas.Series(["NA", "None", None], dtype=object),
        "number": [1, 2, 3],
        "flag": [True, False, True],
        "nothing": pandas.Series([None] * 3, dtype=object),
    })  # fmt: skip
    frame.to_parquet(tmp_path / "x.PARQUET")
    rows = list(Table("field", str(tmp_path / "x.PARQUET")).rows([*frame.columns]))
    assert rows == [
        (1, ["a", "NA", "1", "true", ""]),
        (2, ["b", "None", "2", "false", ""]),
        (3, ["", "", "3", "true", ""]),
    ]


@pytest.mark.parametrize("length", [131_073, 1_000_000])
def test_long_fields(tmp_path, length):
    (tmp_path / "x.csv").write_text(f"text,label\n{'x' * length},a\n")
    ((_, (text, label)),) = Table("field", str(tmp_path / "x.csv")).rows(["text", "label"])
    assert (len(text), label) == (length, "a")


# --- What can be wrong with them.

BAD = {
    "x.csv": [
        (b"", "is empty, expected a first line that names 'text', 'label'"),
        (b"text,label\n", "has no row, expected one for each example"),
        (b"text,lable\na,b\n", "has no column 'label', only 'text', 'lable'"),
        (b"text:label\na:b\n", "has no column 'text', only 'text:label'"),
        (b"text,label,text\na,b,c\n", "has column 'text' 2 times, expected it once"),
        (b"text,label\na,b\nc\n", "line 3: has 1 field, expected 2: text, label"),
        (b'text,label\n"a\nb",c\nd,e,f\n', "line 4: has 3 fields, expected 2: text, label"),
        (b"text,label\na,b\n,b\n", "line 3: text is empty, expected a text in each row"),
        (b"text,label\na,b\n\n \t,b\n", "line 4: text is empty, expected a text in each row"),
        (
            b"text,label,split\na,b,dev\n",
            "line 2: split is 'dev', expected train, test, validation or nothing",
        ),
        (
            "text,label\nä,b\ncafé,d\n".encode("latin-1"),
            "line 2: is not UTF-8: byte 0xe4 at offset 11 of the file; expected it saved as UTF-8 "
            f"{AS_UTF8}",
        ),
        (
            "text,label\nä,b\n".encode("utf-16")[:-3] + b"\x00\xd8",
            "is no UTF-16, as its first bytes say; expected UTF-8",
        ),
        (
            b'text,label\na,b\n"c,d\ne,f\n',
            'line 3: a quote " in this row is never closed; expected one at the end of the field',
        ),
        (
            b'text,label\n"a\n"b",c\n',
            'line 2: in this row text follows a quote " that closes a field; expected a comma, and '
            'a quote within a field written twice, ""',
        ),
        (
            b"text,label\na,b\n" + b"x" * (MAX_FIELD_CHARACTERS + 1) + b",c\n",
            "line 3: a field of this row has more than 16,777,216 characters; expected fewer, or a "
            'quote " that closes it',
        ),
        (
            b"id,text,label\n1,a,b\n2,a,b\n01,a,b\n1,a,b\n",
            "line 5: id '1' is that of line 2, too; expected one each",
        ),
        (
            b"id,text,label\n1,a,b\n,a,b\n",
            "line 3: id is empty, expected one in each row, or no such column",
        ),
    ],
    "x.jsonl": [
        (b"", "has no row, expected one for each example"),
        (b'{"text": "a"}\n', "line 1: has no column 'label', only 'text'"),
        (
            b'{"text": "a", "label": "b"}\n\n["a", "b"]\n',
            "line 3: is list, expected an object with columns",
        ),
        (
            b'{"text": "a", "label": "b"}\n{"text": \n',
            "line 2: is not JSON (Expecting value: line 2 column 1 (char 10)); expected one object "
            "per line",
        ),
        (
            b'{"text": null, "label": "b"}\n',
            "line 1: text is empty, expected a text in each row",
        ),
        (
            b'{"text": "a", "label": 0.5}\n',
            "line 1: 'label' is 0.5, expected a text or a whole number",
        ),
        (
            b'{"text": "a\\ud800", "label": "b"}\n',
            "line 1: has half of a surrogate pair, expected text",
        ),
        (
            b'{"text": "a", "label": "b"}\n{"text": "\xff", "label": "b"}\n',
            "line 2: is not UTF-8: byte 0xff at offset 38 of the file; expected it saved as UTF-8 "
            f"{AS_UTF8}",
        ),
        (
            b'{"id": 1, "text": "a", "label": "b"}\n{"text": "a", "label": "b"}\n',
            "line 2: id is empty, expected one in each row, or no such column",
        ),
    ],
    "x.parquet": [
        (
            pandas.DataFrame({"text": ["a"], "lable": ["b"]}),
            "has no column 'label', only 'text', 'lable'",
        ),
        (
            pandas.DataFrame({"text": ["a", None], "label": ["b", "c"]}),
            "row 2: text is empty, expected a text in each row",
        ),
        (
            pandas.DataFrame({"text": ["a"], "label": [0.5]}),
            "row 1: label is 0.5, expected a text or a whole number",
        ),
        (pandas.DataFrame({"text": [], "label": []}).astype(str), "has no row, expected one for "
         "each example"),
        (b"text,label\na,b\n", "is not a readable Parquet file (Parquet magic bytes not found in "
         "footer. Either the file is corrupted or this is not a parquet file.)"),
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "content", "problem"), [(name, *case) for name, cases in BAD.items() for case in cases]
)
def test_bad_file(load, tmp_path, name, content, problem):
    file = tmp_path / name
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        content.to_parquet(file)
    with pytest.raises(InputError) as error:
        load(data=str(file))
    assert str(error.value) == f"config.dataset.data: {str(file)!r} {problem}"
    assert not (tmp_path / "cache").exists()


def test_files_that_are_not_there_or_of_another_kind(load, tmp_path):
    absent = str(tmp_path / "absent.csv")
    kinds = "one that ends in .csv, .tsv, .jsonl or .parquet"
    for path in (absent, str(tmp_path)):
        with pytest.raises(InputError) as error:
            load(data=path)
        assert str(error.value) == f"config.dataset.data: no file {path!r}; expected {kinds}"
    other = tmp_path / "all.xlsx"
    other.touch()
    with pytest.raises(InputError, match=r"got '.*/all\.xlsx', expected a file that ends in \.csv"):
        load(data=str(other))


def test_labels_that_do_not_go_together(load, tmp_path):
    def refused(rows):
        file = _write(tmp_path / "all.csv", rows)
        with pytest.raises(InputError) as error:
            load(data=file)
        assert not (tmp_path / "cache").exists()  # Told before anything is tokenised.
        return str(error.value).replace(repr(file), "FILE").removeprefix("config.dataset.data: ")

    assert refused([row | {"checked_label": ""} for row in ROWS]).startswith(
        "FILE has nothing in checked_label, so nobody knows how right its labels are; expected "
    )
    assert refused([row | {"checked_label": "NA"} for row in ROWS]) == (
        "all rows are checked, so there is no label to correct; expected rows that "
        "nobody checked, too, or an ordinary classifier on the checked labels"
    )
    assert refused([*ROWS[:3], ROWS[3] | {"checked_label": "nose"}]).startswith(
        "FILE line 6 alone has label 'nose', which no row was given; expected one of those that"
    )
    assert refused([*ROWS[:3], ROWS[3] | {"checked_label": "TODO"}]) == (
        "FILE line 6: checked_label is 'TODO', which no row was given; leave it empty where nobody "
        "looked, else write the right label"
    )


def test_a_clean_label_that_no_row_was_given(load, tmp_path):
    noisy = _write(tmp_path / "noisy.csv", [{"text": "x", "label": x} for x in "aab"])
    clean = _write(tmp_path / "clean.csv", [{"text": "x", "label": x} for x in "ac"])
    with pytest.raises(InputError) as error:
        load(noisy=noisy, clean=clean)
    assert str(error.value).startswith(
        f"config.dataset.clean: {clean!r} line 3 alone has label 'c', which no row was given; "
    )


# --- Benchmarks.

LINES = {
    "ag_news": (r'"{}","Wall St. ""Bears""","Short-sellers, the\never dwindling\band"',
                'Wall St. "Bears" Short-sellers, the\nnever dwindling\nband'),
    "yelp5": (r'"{}","dr. goldberg\n\nis \""good\"""', 'dr. goldberg\n\nis "good"'),
    "amazon5": (r'"{}","","A text\nof two lines"', "A text\nof two lines"),
    "yahoo": (r'"{}","Why?","","Because ""x""\nand y"', 'Why? Because "x"\nand y'),
}  # fmt: skip


def _published(directory, name, *, train=10, test=3):
    """Files as they are published; examples of class c are rows c, c + C, ..."""
    num_classes = len(texts.LAYOUTS[name].class_names)
    for split, per_class in (("train", train), ("test", test)):
        numbers = np.tile(np.arange(num_classes) + 1, per_class)
        lines = [LINES[name][0].format(number) + "\n" for number in numbers]
        (directory / f"{split}.csv").write_text("".join(lines))
    return str(directory)


def test_names_of_datasets():
    assert set(texts.LAYOUTS) == set(settings.TEXT_BENCHMARKS)
    assert set(datasets._OWN) == set(settings.OWN_FILES)
    layouts = texts.LAYOUTS
    assert {name: len(x.class_names) for name, x in layouts.items()} == {
        "ag_news": 4, "yelp5": 5, "amazon5": 5, "yahoo": 10,
    }  # fmt: skip
    assert layouts["ag_news"].class_names == ("World", "Sports", "Business", "Sci/Tech")
    assert layouts["yahoo"].class_names[0] == "Society & Culture"


@pytest.mark.parametrize("name", settings.TEXT_BENCHMARKS)
def test_published_files(load, tmp_path, name, tiny_tokenizer):
    directory = _published(tmp_path, name)
    dataset = load(
        name, "flip", data_dir=directory, clean_per_class=2, validation_per_class=1, max_length=99
    )
    num_classes = dataset.num_classes
    assert (dataset.name, dataset.noise) == (name, "flip 0.4")
    assert len(dataset.clean) == 2 * num_classes and len(dataset.noisy) == 7 * num_classes
    assert len(dataset.validation) == num_classes and len(dataset.test) == 3 * num_classes
    for subset in (dataset.noisy, dataset.clean, dataset.validation):
        np.testing.assert_array_equal(subset.truth, subset.rows % num_classes)
    assert dataset.clean.ids[0] == f"train_{dataset.clean.rows[0]:06d}"
    assert dataset.test.ids[1] == "test_000001"
    assert dataset.noise_rate > 0
    source = texts._read_published(texts.LAYOUTS[name], str(tmp_path / "train.csv"))[0]
    assert set(source.read()) == {LINES[name][1]}
    backend = Tokenizer.load(tiny_tokenizer)
    (want,) = backend.encode([LINES[name][1]], 99)
    got = read_rows(dataset.noisy.source, dataset.noisy.rows[:1])["input_ids"][0]
    assert got[: len(want.ids)].tolist() == want.ids and not got[len(want.ids) :].any()


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('"0","a","b"', "line 41: class is '0', expected 1 to 4"),
        ('"5","a","b"', "line 41: class is '5', expected 1 to 4"),
        ('"World","a","b"', "line 41: class is 'World', expected 1 to 4"),
        ('"1","a"', "line 41: has 2 fields, expected 3: class, title, description"),
    ],
)
def test_published_files_that_are_something_else(load, tmp_path, line, problem):
    directory = _published(tmp_path, "ag_news")
    with (tmp_path / "train.csv").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(InputError) as error:
        load("ag_news", data_dir=directory, clean_per_class=1)
    path = str(tmp_path / "train.csv")
    assert str(error.value) == f"config.dataset.data_dir: {path!r} {problem}"


def test_published_files_that_are_not_there(load, tmp_path):
    train, test = tmp_path / "train.csv", tmp_path / "test.csv"
    for file in (train, test):
        with pytest.raises(InputError) as error:
            load("yelp5", data_dir=str(tmp_path))
        assert str(error.value) == (
            f"config.dataset.data_dir: no file {str(file)!r}; expected the train.csv and test.csv "
            "of the published yelp5"
        )
        file.touch()
    with pytest.raises(InputError, match=r"train\.csv' has no row, expected one for each example"):
        load("yelp5", data_dir=str(tmp_path))


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        (
            {"name": "yahoo"},
            "dataset.data_dir: got None, expected a directory with the published train.csv and "
            "test.csv",
        ),
        (
            {"name": "yahoo", "data_dir": "d", "tfds_name": "x"},
            "dataset.tfds_name: got 'x', expected None: TensorFlow Datasets has ag_news alone of "
            "these",
        ),
        (
            {"data": "x.csv", "noise": "instance"},
            "noise.type: got 'instance', expected another: tokens are no vector of features; those "
            "of a frozen encoder are (model.bert.num_frozen_layers=-1)",
        ),
        (
            {"data": "x.csv", "standardize": True},
            "dataset.standardize: got True, expected False for texts: their inputs are the numbers "
            "of tokens",
        ),
        (
            {"data": "x.csv", "max_length": 7},
            "dataset.max_length: got 7, expected a whole number from 8 to 32768",
        ),
    ],
)
def test_bad_settings(create_config, fields, problem):
    with pytest.raises(InputError) as error:
        settings.validate(create_config(**fields))
    assert str(error.value) == f"config.{problem}"


@pytest.mark.parametrize(
    "builder", [pytest.param("ag_news_text", marks=pytest.mark.slow), "ag_news_subset"]
)
def test_ag_news_of_tensorflow_datasets(load, builder):
    if not (PACKS / builder).is_dir():
        pytest.skip(f"needs {builder} in ../shared/data/tfds")
    dataset = load("ag_news", "uniform", data_dir=str(PACKS), tfds_name=builder, max_length=128)
    sizes = len(dataset.noisy), len(dataset.clean), len(dataset.test)
    assert (
        sizes
        == {"ag_news_text": (10_800, 400, 7_600), "ag_news_subset": (6_200, 400, 1_000)}[builder]
    )
    assert dataset.class_names == ("World", "Sports", "Business", "Sci/Tech")
    np.testing.assert_array_equal(np.bincount(dataset.clean.truth), [100] * 4)
    assert 0.25 < dataset.noise_rate < 0.35
    assert (dataset.noisy.source.lengths > 2).all()


def test_a_builder_that_is_not_there(load, tmp_path):
    with pytest.raises(InputError) as error:
        load("ag_news", data_dir=str(tmp_path), tfds_name="ag_news_subset")
    assert str(error.value).startswith(
        f"config.dataset.data_dir: no prepared 'ag_news_subset' in {tmp_path}. Let TensorFlow "
    )
