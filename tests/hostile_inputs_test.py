"""Hostile and merely ordinary inputs: each is answered, or refused in one line that says why.

A newcomer adds a case by a line in one of the tables: own tables (`TABLES`), arrays in files
(`ARRAYS`), arrays in Python (`FITS`), new rows (`NEW_ROWS`, `NUMBERS_ANEW`), directories
(`DIRECTORIES`, `IRREGULAR`). These train nothing; the marked ones at the end start the real
command. Frames in Python are in `FRAMES`, settings and config files in `SETTINGS` and
`CONFIG_FILES`, rounds in `hostile_rounds_test`. Letters are kinds: A what somebody made is lost, B
something is silently something else, C numbers, D bounds, E one line, F screens.
"""

import decimal
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types
import unicodedata
import zipfile

import numpy as np
import pandas
import pytest
from cats_and_dogs import (
    CHECKED,
    DAYS,
    GIVEN,
    OTHER,
    ROWS,
    SIZE,
    TRUTH,
    WORDS,
    A,
    B,
    X,
    cases,
    csv,
    one_line,
    table,
)
from etils import epath

import mlc_jax as mlc
from configs import arrays as arrays_config
from configs import table as table_config
from mlc_jax import config as settings
from mlc_jax.api import read_frame
from mlc_jax.benchmarks import datasets
from mlc_jax.commands import predict, rounds, train
from mlc_jax.commands.new_examples import open_examples
from mlc_jax.config import starts
from mlc_jax.config.file import ConfigFile, WrongFile
from mlc_jax.data.source import read_rows
from mlc_jax.encoders.image_models import open_model
from mlc_jax.errors import InputError
from mlc_jax.examples import create_dataset, create_source
from mlc_jax.files import image_folder, table_files
from mlc_jax.files.columns import Columns
from mlc_jax.files.label_columns import Said, read_labels
from mlc_jax.files.memory import inputs as memory
from mlc_jax.files.packed import Packed
from mlc_jax.files.pictures import check_pictures
from mlc_jax.files.tables import Table
from mlc_jax.files.tokens import Tokenizer
from mlc_jax.models.bert_checkpoint import load_config
from mlc_jax.models.pretrained import load_params
from mlc_jax.report import glyphs
from mlc_jax.training.run import build_run
from mlc_jax.workdir.workdir import locked_workdir

ROOT = pathlib.Path(__file__).parents[1]


def with_cell(column, row, value):
    """A table in which one cell is something else."""
    frame = table()
    frame[column] = frame[column].astype(object)
    frame.loc[row, column] = value
    return frame


def json_lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


# What is expected: a text is (part of) the one line, as a regular expression; a set is the columns
# that became features; a function is given the dataset.
def feature(name, values):
    """The first feature `name` of the first rows is this."""

    def check(dataset):
        source = dataset.noisy.source
        column = dataset.columns.features.index(name)
        offset = next(x.offset for x in dataset.columns.columns if name in x.features)
        got = source.inputs[: len(values), column].astype(np.float64) + offset
        np.testing.assert_allclose(got, values, rtol=1e-6)

    return check


def ready(dataset):
    """What the model sees is finite, and as large as it should be."""
    inputs = dataset.prepare(read_rows(dataset.noisy.source, dataset.noisy.rows))
    assert np.isfinite(inputs).all() and np.abs(inputs).max() < 100
    return inputs


def told_apart(dataset):
    column = dataset.columns.features.index("t")
    assert len(np.unique(ready(dataset)[:, column])) == len(dataset.noisy)


def many(**columns):
    """Fifty times as many rows."""
    frame = pandas.concat([table()] * 50, ignore_index=True)
    numbers = np.random.default_rng(1).normal(size=(2, len(frame)))
    return frame.assign(a=numbers[0], b=numbers[1], **columns)


def written(number):
    """A column of numbers as somebody writes them, `number(i)`."""
    return table(n=[number(int(i)) for i in ROWS])


def days(form, **step):
    moments = pandas.date_range("2024-01-01", periods=SIZE, **(step or {"freq": "31h"}))
    return table(day=[moment.strftime(form) for moment in moments])


def renamed(label, other, checked=None):
    """Label `cat` under a name, and under another one in row 3, or in the checks."""
    names = np.where(GIVEN == "cat", label, GIVEN).astype(object)
    checks = np.where(CHECKED == "cat", checked or label, CHECKED)
    names[3] = names[3] if checked else other
    return table(label=names, checked_label=checks)


def _of_sources(said, checked):
    """Labels by two sources, and checks, that take these values in turn."""
    columns = {"x": np.resize(said, SIZE), "y": np.resize(said[::-1], SIZE)}
    return table(
        drop=["label"], checked_label=np.resize(np.array(checked, object), SIZE), **columns
    )


NOTHING_CHECKED = "nobody knows how right its labels are"
MISSPELT = "and none named 'checked_label'"
ALIKE = "which looks like it; expected one name for each class"
AB = {"a", "b"}

# (name, frame or bytes, ending of the file, settings of the dataset, what is expected)
TABLES = [
    # B: labels.
    ("B checked_lable", table().rename(columns={"checked_label": "checked_lable"}), MISSPELT),
    ("B checked_labels", table().rename(columns={"checked_label": "checked_labels"}), MISSPELT),
    ("B Checked_Label", table().rename(columns={"checked_label": "Checked_Label"}), MISSPELT),
    ("B checked", table().rename(columns={"checked_label": "checked"}), MISSPELT),
    ("B checkd label", table().rename(columns={"checked_label": "checkd label"}), MISSPELT),
    ("B no column of checks", table(drop=["checked_label"]), NOTHING_CHECKED),
    ("B an empty column of checks", table(checked_label=""), NOTHING_CHECKED),
    ("B a benchmark", table(drop=["checked_label"]), {"benchmark": True, "clean_per_class": 3}, AB),
    ("B a benchmark with checks", table(), {"benchmark": True}, "benchmark: got True, expected F"),
    ("B cat and a blank", table(label=np.where(ROWS == 3, "cat ", GIVEN)), ALIKE),
    ("B cat and Cat", table(label=np.where(ROWS == 3, "Cat", GIVEN)), ALIKE),
    ("B cat and CAT in checks", table(checked_label=np.char.upper(CHECKED)), ALIKE),
    ("B cat and ['cat']", table(label=np.where(ROWS == 3, "['cat']", GIVEN)), ALIKE),
    ("B cat and choices", table(label=np.where(ROWS == 3, '{"choices": ["cat"]}', GIVEN)), ALIKE),
    ("B NFC and NFD", table(
        label=np.where(GIVEN == "cat", "é", "dog"),
        checked_label=np.where(CHECKED == "cat", unicodedata.normalize("NFD", "é"), CHECKED),
    ), ALIKE),
    ("B whole floats", table(
        label=np.where(GIVEN == "cat", 0, 1),
        checked_label=np.select([CHECKED == "cat", CHECKED == "dog"], ["0.0", "1.0"], ""),
    ), lambda dataset: dataset.class_names == ("0", "1") and (dataset.clean.truth >= 0).all()),
    ("B floats of pandas", table(
        label=np.where(GIVEN == "cat", 0, 1),
        checked_label=np.select([CHECKED == "cat", CHECKED == "dog"], [0.0, 1.0], np.nan),
    ), {"ending": "parquet"}, lambda dataset: dataset.class_names == ("0", "1")),
    ("B floats in JSON", table(
        label=np.where(GIVEN == "cat", 0, 1),
        checked_label=np.select([CHECKED == "cat", CHECKED == "dog"], [0.0, 1.0], np.nan),
    ), {"ending": "jsonl"}, lambda dataset: dataset.class_names == ("0", "1")),
    ("B a class NA", table(
        label=np.where(GIVEN == "cat", "NA", "dog"),
        checked_label=np.where(CHECKED == "cat", "NA", CHECKED),
    ), lambda dataset: dataset.class_names == ("NA", "dog")),
    ("E TODO in checks", table(checked_label=np.where(CHECKED == "", "TODO", CHECKED)),
     "leave it empty where nobody looked"),
    ("E -1 in checks", table(checked_label=np.where(CHECKED == "", "-1", CHECKED)),
     lambda dataset: len(dataset.clean) == SIZE // 2),
    ("E blanks in checks", table(checked_label=np.where(CHECKED == "", " ", CHECKED)),
     lambda dataset: len(dataset.clean) == SIZE // 2),
    ("B one class in all", table(label="cat", checked_label=np.where(CHECKED == "", "", "cat")),
     "has one class, 'cat', in all of its labels"),
    ("B a class of test rows alone", table(
        split=np.where(ROWS == 0, "test", ""), checked_label=np.where(ROWS == 0, "emu", CHECKED)
    ), "line 2 has label 'emu', which no row to train with has"),
    ("B cat and Cat, of a second source", table(
        drop=["label"], x=GIVEN, y=np.where(ROWS == 3, "Cat", GIVEN)
    ), {"label_columns": "x,y"}, "line 5 has label 'Cat', and .* line . has 'cat', which looks"),
    ("B -1 of several sources", _of_sources([1, 0, -1], checked=["", 0, 1]),
     {"label_columns": "x,y"}, lambda dataset: dataset.class_names == ("0", "1")),
    ("B -1 where nobody looked, either", _of_sources([1, 0, -1], checked=[-1, 0, 1]),
     {"label_columns": "x,y"}, lambda dataset: len(dataset.clean) == 2 * SIZE // 3),
    ("B -1 that somebody checked", _of_sources([1, 0, -1], checked=["", -1, 1]),
     {"label_columns": "x,y"}, lambda dataset: dataset.class_names == ("-1", "0", "1")),
    ("B -1 and 1", _of_sources([1, -1], checked=["", 1, -1]),
     {"label_columns": "x,y"}, lambda dataset: dataset.class_names == ("-1", "1")),
    ("B what was looked at is ok", table(checked_label=np.where(ROWS % 4 == 1, "ok", CHECKED)),
     "checked_label is 'ok', which no row was given; leave it empty"),
    ("B checks in other words", table(
        checked_label=np.select([CHECKED == "cat", CHECKED == "dog"], ["chat", "chien"], "")
    ), "'chat', and none of them was given; given ones are such as 'cat'"),
    ("B a slip in one word of the checks", table(checked_label=np.where(
        int(np.flatnonzero(CHECKED == "cat")[0]) == ROWS, "cta", CHECKED
    )), "alone has label 'cta'"),
    ("B truth values, checked as floats", table(label=GIVEN == "cat", checked_label=np.select(
        [CHECKED == "cat", CHECKED == "dog"], ["1.0", "0.0"], ""
    )), lambda dataset: dataset.class_names == ("False", "True")),
    ("B numbers, checked as truth values", table(
        label=np.where(GIVEN == "cat", 1, 0), checked_label=np.select(
            [CHECKED == "cat", CHECKED == "dog"], ["TRUE", "FALSE"], ""
        )
    ), lambda dataset: dataset.class_names == ("FALSE", "TRUE")),
    ("B a list of one number", table(
        label=np.where(GIVEN == "cat", "[1]", "2"),
        checked_label=np.select([CHECKED == "cat", CHECKED == "dog"], ["1", "2"], ""),
    ), "which looks like it"),
    ("B a picture in two ways", table(
        label=np.where(GIVEN == "cat", "\u2764", "dog"),
        checked_label=np.select([CHECKED == "cat", CHECKED == "dog"], ["\u2764\ufe0f", "dog"], ""),
    ), "which looks like it"),
    ("B sources that abstain", _of_sources(["a", "b", "ABSTAIN"], checked=["", "a", "b"]),
     {"label_columns": "x,y"}, lambda dataset: dataset.class_names == ("a", "b")),
    ("B one source that abstains", _of_sources(["a", "b", "Abstain"], checked=["", "a", "b"]),
     {"label_columns": "x", "features": "a,b"},
     lambda dataset: dataset.class_names == ("a", "b") and bool((dataset.clean.given == -1).any())),
    ("B people who abstain in a vote",
     table(label=np.resize(["aye", "nay", "Abstain"], SIZE), checked_label=np.resize(
         ["", "aye", "nay", "Abstain"], SIZE)),
     lambda dataset: dataset.class_names == ("Abstain", "aye", "nay")),
    ("B a key of JSON twice", b'{"label": "cat", "a": 1, "a": 2}\n', {"ending": "jsonl"},
     "line 1: is not JSON .it names 'a' 2 times"),
    ("B UTF-16 without its mark", csv(table()).decode().encode("utf-16-le"), AB),
    ("B UTF-16 the other way round", csv(table()).decode().encode("utf-16-be"), AB),
    ("D a name of 10^6 letters", table().rename(columns={"a": "x" * 10**6}),
     "whose name has 1,000,000 characters; expected 1,000 at most"),
    ("B percent in some rows", written(lambda i: f"{i} %" if i % 2 else f"{i / 100}"),
     "line 4: n is '0.02', and others are '1 %'; expected one unit"),
    ("B two currencies", written(lambda i: f"${i + 1}" if i % 2 else f"{i * i + 1} EUR"),
     "line 3: n is '.2', and others are '1 EUR'; expected one unit"),
    ("C numbers below float32", written(lambda i: f"{i * i}e-300"),
     "column 'n' has numbers that differ by 1.4161e-296 at most; expected them in a smaller unit"),
    ("C numbers that float32 just holds", written(lambda i: f"{i * i}e-40"), AB | {"n"}),
    ("B Split", table(Split=np.where(ROWS % 4, "train", "test")),
     "has column 'Split' and none named 'split'"),
    ("B splits", table(splits="train"), "has column 'splits' and none named 'split'"),
    ("B two letters of checked_label", table().rename(columns={"checked_label": "chocked_lobel"}),
     "has column 'chocked_lobel' and none named 'checked_label'"),
    ("B three letters of it", table(checked_table=WORDS), AB | {"checked_table"}),
    # B: which columns are features.
    ("B features=a,checked_label", table(), {"features": "a,checked_label"},
     "'checked_label' gives the label away"),
    ("B features=label", table(), {"features": "label"}, "'label' gives the label away"),
    ("B features=", table(), {"features": ""}, "features: got '', expected names"),
    ("B features=a,a", table(), {"features": "a,a"}, "features: got 'a,a', expected names"),
    ("B features=a,+a", table(), {"features": "a,+a"}, "'a' is named twice"),
    ("B features=a,", table(), {"features": "a,"}, "features: got 'a,', expected names"),
    ("B checked=,", table(), {"checked": ","}, "checked: got ',', expected names"),
    ("B features=-nobody", table(), {"features": "-nobody"}, "has no column 'nobody', only"),
    ("B features=-b", table(), {"features": "-b"}, {"a"}),
    ("B features=+name", table(code=[f"{i // 2}x" for i in ROWS]), {"features": "+code"},
     AB | {"code"}),
    ("B all are left out", table(drop=["a", "b"], year=2024), r"\('year': one value in all rows\)"),
    ("B the label again", table(target=GIVEN), "column 'target' equals label in 100 % of rows"),
    ("B nearly the label", table(target=np.where(ROWS % 40, GIVEN, OTHER)),
     "column 'target' equals label in 9. % of rows"),
    ("B the checks again", table(truth=CHECKED), "column 'truth' equals checked_label in 100 %"),
    ("B the label, one-hot in lists", table(z=[[int(x == "cat"), int(x != "cat")] for x in GIVEN]),
     {"ending": "jsonl"}, "column 'z' determines label"),
    ("B one list in all rows", table(z=[[1, 2]] * SIZE), {"ending": "jsonl"}, AB),
    ("B the label, named", table(target=GIVEN), {"features": "a,target"},
     r"'target' equals label .*--config.dataset.features=\+target"),
    ("B the label, vouched for", table(target=GIVEN), {"features": "+target"}, AB | {"target"}),
    ("B the label in numbers", table(code=np.where(GIVEN == "cat", 17, 4)),
     "column 'code' determines label"),
    ("B who labels follows slips", table(rater=[
        f"{label}{i % 4}" if i % 10 else "x" for i, label in enumerate(GIVEN)
    ]), "agrees with label also where checked_label says that it is wrong"),
    ("B rows that are there five times", pandas.concat([table()] * 5), AB),
    ("B the label in numbers, in such rows", pandas.concat(
        [table(code=np.where(GIVEN == "cat", 17, 4), many=ROWS * 7 % 50)] * 5
    ), "column 'code' determines label"),
    ("B the wrong labels alone are written down", table(
        checked_label=np.where(GIVEN != TRUTH, TRUTH, "")
    ), lambda dataset: set(dataset.drawn) == {"looked_up"}),
    ("B the same of a random sample", table(checked_label=np.where(GIVEN != TRUTH, TRUTH, "")),
     {"drawn": "random"}, lambda dataset: set(dataset.drawn) == {"random"}),
    ("B a few wrong ones", table(
        checked_label=np.where((GIVEN != TRUTH) & (ROWS < 36), TRUTH, "")
    ), lambda dataset: set(dataset.drawn) == {"random"}),
    ("B slips towards the usual label", table(
        label=np.where(ROWS % 9, "dog", "cat"), day=[DAYS[i % 20] for i in ROWS],
        checked_label=np.select([ROWS % 2 == 0, ROWS % 4 == 1, ROWS % 9 == 0], ["", "cat", "cat"],
                                "dog"),
    ), AB | {"day"}),
    ("B a good feature", table(size=np.where(TRUTH == "cat", 1, 5) + ROWS % 3 * 2), AB | {"size"}),
    ("B row numbers", table(index=ROWS, **{"Unnamed: 0": ROWS + 5, "row": ROWS * 1.0}), AB),
    ("B row numbers, wanted", table(row=ROWS), {"features": "+row"}, AB | {"row"}),
    ("B an index of Parquet", table().sample(frac=1, random_state=0), {"ending": "parquet"}, AB),
    ("B an annotation tool", table(
        annotation_id=ROWS[::-1] * 3, annotator=1, lead_time=np.abs(A), created_at=DAYS
    ), AB),
    ("B lead_time alone", table(lead_time=np.abs(A)), AB | {"lead_time"}),
    ("B what a run wrote", table(corrected_label=GIVEN, confidence=0.5 + A / 9, why="x"), AB),
    ("B texts", table(note=[f"note {i}" for i in ROWS]), AB),
    ("B few texts", table(city=WORDS), AB | {"city"}),
    ("B many texts", table(city=[f"c{i % 60}" for i in ROWS]), AB),
    ("B an empty column", table(nothing=""), AB),
    # B: what values mean.
    ("B lists in Parquet", table(vector=[[float(i), 2.0, -i / 7] for i in ROWS]),
     {"ending": "parquet"}, feature("vector[2]", [0, -1 / 7, -2 / 7])),
    ("B lists in JSON", table(vector=[[i, 2] for i in ROWS]), {"ending": "jsonl"},
     feature("vector[0]", [0, 1, 2])),
    ("B lists of other lengths", table(vector=[[1.0] * (1 + i % 2) for i in ROWS]),
     {"ending": "parquet"}, "has lists of 1 to 2 numbers"),
    ("B JSON lines without a key", json_lines(*(
        {"label": str(x), "a": float(a)} | ({"b": float(b)} if i else {})
        | ({"checked_label": str(c)} if c else {})
        for i, (x, c, a, b) in enumerate(zip(GIVEN, CHECKED, A, B, strict=True))
    )), {"ending": "jsonl"}, AB),
    ("B Label Studio", json_lines({"data": {"text": "x"}, "annotations": [], "label": {}}),
     {"ending": "jsonl"}, "as Label Studio writes it; expected its export CSV"),
    ("B doccano", json_lines({"id": 1, "a": 1, "label": ["cat"], "checked_label": ""}),
     {"ending": "jsonl"}, "as doccano writes it; expected its export CSV"),
    ("B Argilla", json_lines({"fields": {"a": 1}, "responses": {}, "suggestions": {}, "label": {}}),
     {"ending": "jsonl"}, "as Argilla writes it; expected dataset.records.to_list"),
    ("B a JSON document", b'[{"label": "cat"}]\n', {"ending": "jsonl"}, "is a list, expected one"),
    ("B a .json", b"[]", {"ending": "json"}, "to have one object per line: pandas.read_json"),
    ("B a spreadsheet", b"PK", {"ending": "xlsx"}, "a spreadsheet saves its sheet as CSV"),
    ("B missing numbers", with_cell("a", 3, "NA"), AB),
    ("B N/A", with_cell("a", 3, "N/A"), AB),
    ("B null", with_cell("a", 3, "null"), AB),
    ("B ?", with_cell("a", 3, "?"), AB),
    ("B semicolons", csv(table(), sep=";"), AB),
    ("B tabs", csv(table(), sep="\t"), AB),
    ("B semicolons and decimal commas", csv(table(), sep=";", decimal=","), feature("a", A[:3])),
    ("B quoted decimal commas", csv(table(), decimal=","), feature("a", A[:3])),
    ("B semicolons and commas that could be either", csv(table(
        w=[f"{i},{37 * i % 1000:03d}" if i % 5 else f"{i}" for i in ROWS]
    ), sep=";", decimal=","), feature("w", [0, 1.037, 2.074])),
    ("B semicolons and dots that could be either", csv(table(
        w=[f"{900 + 5 * i}" if i < 20 else f"1.{5 * i % 1000:03d}" for i in ROWS]
    ), sep=";", decimal=","), feature("w", [900, 905, 910])),
    ("B a comma and a zero before it", table(w=[f"{i % 2},{37 * i:04d}"[:5] for i in ROWS]),
     feature("w", [0, 1.003, 0.007])),
    ("B rows of empty cells", csv(table()) + b",,,\n" * 60,
     lambda dataset: len(dataset.noisy.source) == SIZE),
    ("B dots between thousands", table(pay=[f"1.{i:03d},5" for i in ROWS]),
     feature("pay", [1000.5, 1001.5])),
    ("B dollars", table(pay=[f"${1000 + i * i:,}" for i in ROWS]), feature("pay", [1000, 1001])),
    ("C large numbers in groups", table(
        pay=[f"{10**17 + int(i) ** 2:,}" for i in ROWS]), feature("pay", [1e17, 1e17])),
    ("C a number of 400 digits in a list", table(
        v=[f"[{'9' * 400}, 1]" if i == 3 else f"[{i}, 1]" for i in ROWS]
    ), "expected finite numbers"),
    ("C a mark of missing values that is a number", table(
        a=np.where(ROWS % 15 == 7, 1e30, A)), "a is 1e[+]30, while others are about"),
    ("C most are 0", table(a=np.where(ROWS % 3 == 0, 1e9 * np.exp(A), 0) + 1e-9 * ROWS), AB),
    ("D a split of 100,000 letters", table(split="x" * 10**5), "split is 'xxx"),
    ("B percent", table(share=[f"{i * i} %" for i in ROWS]), feature("share", [0, 1, 4])),
    ("B 1_000", table(code=[f"1_{i % 20}" for i in ROWS]), AB | {"code"}),
    ("B dates", table(day=DAYS), feature("day", [19723, 19723 + 32])),
    ("B dates of Germany", table(day=[f"{1 + i % 28}.{1 + i % 12}.2024" for i in ROWS]),
     feature("day", [19723, 19723 + 32])),
    ("B dates of America", table(day=[f"{1 + i % 12}/{1 + i % 28}/2024" for i in ROWS]),
     feature("day", [19723, 19723 + 32])),
    ("B dates of nobody knows where", table(day=[f"{1 + i % 5}/{1 + i % 7}/2024" for i in ROWS]),
     AB),
    ("B dates that are named", table(day=[f"{1 + i % 5}/{1 + i % 7}/2024" for i in ROWS]),
     {"features": "day"}, "dates whose day and month cannot be told apart"),
    ("B times of day", table(at=[f"{i % 24:02d}:30" for i in ROWS]),
     feature("at", [0.5 / 24, 1.5 / 24])),
    ("B moments of Parquet", table(at=pandas.date_range("2024-01-01", periods=SIZE, freq="36h")),
     {"ending": "parquet"}, feature("at", [19723, 19724.5])),
    ("B a date among numbers", with_cell("a", 3, "2024-01-01"),
     "line 5: a is '2024-01-01', expected a number"),
    # B: as people export it.
    ("B UTF-16", csv(table()).decode().encode("utf-16"), feature("a", A[:3])),
    ("B UTF-16, cut off", csv(table()).decode().encode("utf-16")[:-3] + b"\0\xd8",
     "is no UTF-16, as its first bytes say"),
    ("B UTF-16 lines", json_lines(*json.loads(table().to_json(orient="records"))).decode()
     .encode("utf-16"), {"ending": "jsonl"}, feature("a", A[:3])),
    ("B Windows-1252", csv(table(city="Köln")).decode().encode("cp1252"), "iconv -f WINDOWS-1252"),
    ("B CRLF", csv(table()).replace(b"\n", b"\r\n"), feature("a", A[:3])),
    ("B CR", csv(table()).replace(b"\n", b"\r"), feature("a", A[:3])),
    ("B blank lines", csv(table()).replace(b"\n", b"\n\n"), feature("a", A[:3])),
    ("B pipes", csv(table(), sep="|"), feature("a", A[:3])),
    ("B sep=;", b"sep=;\n" + csv(table(), sep=";"), feature("a", A[:3])),
    ("B .tsv", csv(table(), sep="\t"), {"ending": "tsv"}, feature("a", A[:3])),
    ("B a comma at the end", csv(table()).replace(b"\n", b",\n"), AB),
    ("B a column twice", csv(table()).replace(b"a,b\n", b"a,a\n"), "has column 'a' 2 times"),
    ("B a column without a name", table().rename(columns={"b": ""}), {"a", ""}),
    ("B row numbers without a name", table(**{"": ROWS[::-1] * 3}), AB),
    ("B a header alone", b"label,checked_label,a\n", "has no row, expected one"),
    ("B gzip under another name", b"\x1f\x8b\x08" + b"\xff" * 50, "is packed by gzip"),
    ("B .xlsx under another name", b"PK\x03\x04" + b"\xff" * 50, r"a ZIP archive, as spreadsheets"),
    ("B .csv.gz", b"", {"ending": "csv.gz"}, "unpack it: gunzip FILE"),
    ("B 1'234.50", written(lambda i: f"1'{i:03d}.50"), feature("n", [1000.5, 1001.5])),
    ("B 1 234", written(lambda i: f"1\u202f{i * 7:03d}"), feature("n", [1000, 1007])),
    ("B 1,00,234", written(lambda i: f"1,00,{i * 7:03d}"), feature("n", [100_000, 100_007])),
    ("B USD 3.50", written(lambda i: f"USD {3 * i}.50"), feature("n", [0.5, 3.5])),
    ("B (3)", written(lambda i: f"({3 * i})" if i % 2 else f"{i}"), feature("n", [0, -3, 2])),
    ("B 3-", written(lambda i: f"{3 * i}-" if i % 2 else f"{i}"), feature("n", [0, -3, 2])),
    ("B a long minus", written(lambda i: f"\u2212{3 * i}"), feature("n", [0, -3, -6])),
    ("B 3,5E-2", written(lambda i: f"{3 * i},5E-2"), feature("n", [0.005, 0.035])),
    ("B hexadecimal", written(lambda i: hex(i * 7919 % 1000)), AB),
    ("B 05 Jan 2024", days("%d %b %Y"), feature("day", [19723, 19724])),
    ("B January 05, 2024", days("%B %d, %Y"), feature("day", [19723, 19724])),
    ("B 1:30 PM", days("%m/%d/%Y %I:%M %p", freq="36h"), feature("day", [19723, 19724.5])),
    ("B zones by name", days("%Y-%m-%d %H:%M UTC", freq="36h"), feature("day", [19723, 19724.5])),
    ("B dates of two forms", table(day=[f"{1 + i % 28}.1.2024" if i % 2 else x
                                         for i, x in enumerate(DAYS)]), AB),
    ("B spans of Parquet", table(t=pandas.to_timedelta(ROWS * ROWS, unit="h")),
     {"ending": "parquet"}, feature("t", [0, 1 / 24, 4 / 24])),
    ("B structs in Parquet", table(s=[{"x": 1}] * SIZE), {"ending": "parquet"}, AB),
    ("B structs in Parquet, named", table(s=[{"x": 1}] * SIZE),
     {"ending": "parquet", "features": "+s"}, "column 's' holds struct<x: int64>"),
    ("B objects in JSON", table(s=[{"x": 1}] * SIZE), {"ending": "jsonl"},
     "features=-s leaves it out"),
    ("B yes and no", table(q=np.where(ROWS % 3, "ja", "nein")), AB | {"q"}),
    ("B 007 and 7", renamed("007", None, checked="7"), ALIKE),
    ("B 1 and 1e0", renamed("1", None, checked="1e0"), ALIKE),
    ("B 007 alone", renamed("007", "007"), lambda dataset: dataset.class_names == ("007", "dog")),
    ("B a blank of zero width", renamed("cat", "ca\u200bt"), ALIKE),
    ("B a blank that does not break", renamed("cat", "cat\xa0"), ALIKE),
    ("B a soft hyphen", renamed("cat", "ca\xadt"), ALIKE),
    ("B a byte order mark", renamed("cat", "\ufeffcat"), ALIKE),
    ("B a mark of direction", renamed("cat", "cat\u200f"), ALIKE),
    ("B NUL", renamed("cat", "c\0at"), ALIKE),
    ("B Cyrillic", renamed("cat", "c\u0430t"), ALIKE),
    ("B dashes", renamed("a-b", "a\u2013b"), ALIKE),
    ("B big_cat", renamed("big cat", "big_cat"), ALIKE),
    ("B numbers for labels", table(label=A), "has 12. different labels in 120 rows"),
    ("B a label per row", table(label=[f"c{i}" for i in ROWS]), "expected names of classes, each"),
    # C.
    ("C a constant", table(year=2024), AB),
    ("C a constant of texts", table(land="Italy"), AB),
    ("C a constant, named", table(year=2024), {"features": "a,year"}, {"a"}),
    ("C unix times", table(t=1_700_000_000 + 100 * (ROWS * 7 % SIZE)), told_apart),
    ("C times with fractions", table(t=1.7e9 + 0.25 * (ROWS * 7 % SIZE)), told_apart),
    ("C ids of 1e18", table(t=[10**18 + int(i) * 7 % SIZE for i in ROWS]), told_apart),
    ("C a value far off", with_cell("a", 3, 1e30), "line 5: a is 1e[+]30, while others are about"),
    ("C inf", with_cell("a", 3, "inf"), "line 5: a is 'inf', expected a number"),
    ("C beyond float32", with_cell("a", 3, "1e39"), "line 5: a is '1e39', expected a number"),
    ("C beyond float64", with_cell("a", 3, "1e999"), "line 5: a is '1e999', expected a number"),
    ("C inf in Parquet", table(a=np.where(ROWS == 3, np.inf, A)), {"ending": "parquet"},
     "row 4: a is 'inf', expected a number"),
    ("C a list with inf", table(vector=[[float(i), np.inf if i == 3 else 0.5] for i in ROWS]),
     {"ending": "parquet"}, r"row 4: vector is '\[3.0, Infinity\]', expected finite numbers"),
    # D.
    ("D more rows than a chunk", many(), AB),
    ("D many dates of two forms", many(day=[f"{1 + i % 5}/{1 + i % 7}/2024" for i in range(6000)]),
     AB),
    ("D many dates of America", many(day=[f"{1 + i % 12}/{1 + i % 28}/2024" for i in range(6000)]),
     feature("day", [19723, 19723 + 32])),
    ("D many numbers with commas", many(n=[f"{1 + i % 9},{i % 1000:03d}" for i in range(6000)]),
     feature("n", [1000, 2001])),
    ("D many ids of 1e18", many(t=[10**18 + i * 7919 % 6000 for i in range(50 * SIZE)]),
     AB | {"t"}),
    ("D many columns", pandas.concat(
        [table(), pandas.DataFrame({f"c{i}": A + i for i in range(3_000)})], axis=1),
     lambda dataset: len(dataset.columns.names) == 3_002),
    ("D a long cell in an unused column", table(
        note=["x" * 10**6 if i == 3 else f"n{i}" for i in ROWS]), AB),
    ("D a long cell among numbers", with_cell("a", 3, "x" * 10**6), r"1,000,000 characters"),
    ("D a long label", table(label=np.where(ROWS == 3, "x" * 10**6, GIVEN).astype(object)),
     "label has 1,000,000 characters"),
    ("D a long id", table(id=["x" * 10**6 if i == 3 else str(i) for i in ROWS]),
     "id has 1,000,000 characters"),
]  # fmt: skip


@pytest.fixture
def load_table(tmp_path):
    def load(content, ending="csv", **fields):
        path = tmp_path / f"data.{ending}"
        if isinstance(content, bytes):
            path.write_bytes(content)
        elif ending == "csv":
            path.write_bytes(csv(content))
        elif ending == "jsonl":
            content.to_json(path, orient="records", lines=True)
        else:
            content.to_parquet(path)
        before = path.read_bytes()
        config = table_config.get_config()
        config.dataset.update(data=str(path), **fields)
        try:
            settings.validate(config)
            return datasets.load(config)
        finally:
            assert path.read_bytes() == before and os.listdir(tmp_path) == [path.name]

    return load


@pytest.mark.parametrize(
    ("content", "fields", "expected"),
    cases((x if len(x) == 4 else (x[0], x[1], {}, x[2])) for x in TABLES),
)
def test_tables(load_table, content, fields, expected):
    if isinstance(expected, str):
        with pytest.raises(InputError) as error:
            load_table(content, **fields)
        assert re.search(expected, one_line(error.value)), str(error.value)
        return
    dataset = load_table(content, **fields)
    if isinstance(expected, set):
        assert {*dataset.columns.names} == expected
    else:
        assert expected(dataset) in (None, True)
    assert np.isfinite(dataset.noisy.source.inputs).all()


def test_a_class_of_one_row_is_said(load_table, caplog):
    with caplog.at_level("WARNING"):
        load_table(table(label=np.where(ROWS == 3, "emu", GIVEN)))
    assert "Only one row has class emu" in caplog.text


@pytest.mark.parametrize(
    ("column", "value", "names"),
    [("year", 2024, ["a", "b", "year (one value"]), ("row", ROWS, ["row (row numbers)"])],
)
def test_what_is_left_out_is_listed(load_table, caplog, column, value, names):
    import logging

    logging.getLogger("absl").setLevel(logging.INFO)
    with caplog.at_level(logging.INFO, "absl"):
        load_table(table(**{column: value}))
    assert all(name in caplog.text for name in names)


# (name, new rows -> what is expected): a text, or a function of features.
NEW_ROWS = [
    ("B columns in another order", lambda x: x[x.columns[::-1]], None),
    ("B a blank more", lambda x: x.assign(city=x["city"] + " "), None),
    ("B moments for texts", lambda x: x.assign(day=pandas.to_datetime(x["day"])), None),
    ("C a dropped column is not there", lambda x: x.drop(columns="year"), None),
    ("C a dropped column is another", lambda x: x.assign(year="none"), None),
    ("B a column is not there", lambda x: x.drop(columns="a"), "has no column 'a'"),
    ("B texts for numbers", lambda x: x.assign(a="old"), "row 0: a is 'old', expected a number"),
    ("C inf", lambda x: x.assign(a=np.inf), "row 0: a is 'inf', expected a number"),
    ("C beyond float32", lambda x: x.assign(a=1e300), "row 0: a is '1e[+]300', expected a number"),
    ("B texts for dates", lambda x: x.assign(day="soon"), "row 0: day is 'soon', expected a date"),
]


@pytest.mark.parametrize(("change", "problem"), cases(NEW_ROWS))
def test_new_rows(load_table, change, problem):
    frame = table(city=WORDS, day=DAYS, year=2024)
    dataset = load_table(frame)
    if problem is None:
        got = read_frame(dataset.columns, change(frame)).inputs
        np.testing.assert_array_equal(got, dataset.noisy.source.inputs)
        return
    with pytest.raises(InputError) as error:
        read_frame(dataset.columns, change(frame))
    assert re.search(problem, one_line(error.value)), str(error.value)


def test_missing_numbers_where_none_was_are_counted(load_table, caplog):
    frame = table(n=np.where(ROWS % 9, ROWS * ROWS, np.nan))
    dataset = load_table(frame)
    with caplog.at_level("WARNING"):
        read_frame(dataset.columns, frame.assign(a=np.where(ROWS < 7, np.nan, A), n="NA"))
    assert "Column a has 7 missing values, and none in rows to learn from" in caplog.text
    assert "Column n" not in caplog.text


# (name, a column to learn from, the same in new rows, what is expected)
NUMBERS_ANEW = [
    ("B a point and a comma", "{:.3f}", "1,234", "row 0: n is '1,234', .* 1234 or 1.234, which"),
    ("B whole ones and a comma", "{:.0f}", "$1,234", r"row 0: n is '\$1,234', .* \$1234 or \$1.23"),
    ("B thousands and a point", "{:,.0f}", "1.234", "no number .* has a point; .* 1234 or 1.2340,"),
    ("B whole ones and a point", "{:.0f}", "1.234", 1.234),
    ("B percent and none", "{:.1f} %", "0.12", "row 0: n is '0.12', .* are written with %"),
    ("B none and percent", "{:.1f}", "12%", "row 0: n is '12%', .* are written without"),
    ("B percent and nothing at all", "{:.1f} %", "0", 0.0),
    ("B dollars and euros", "${:.2f}", "5 €", "row 0: n is '5 €', .* are written with [$]"),
    ("B dollars and none", "{:.2f} USD", "5", 5.0),
    ("B dollars in two ways", "{:.2f} USD", "$5", 5.0),
    ("B thousands and points", "{:,.2f}", "1,234", 1234.0),
    ("B no thousands, for certain", "{:.0f}", "1,234,567", 1234567.0),
    ("B no thousands, but a rest", "{:.0f}", "1,234.5", 1234.5),
    ("B commas and a point", "{:.3f},", "1.234", "row 0: n is '1.234', .* 1234 or 1,234, which"),
    ("B commas and a comma", "{:.3f},", "1,234", 1.234),
    ("B points and commas and a point", "{:,.1f},", "1.234", 1234.0),
]


@pytest.mark.parametrize(("form", "new", "expected"), cases(NUMBERS_ANEW))
def test_numbers_are_read_as_the_first_ones(load_table, form, new, expected):
    """A trailing comma stands for a spreadsheet that swaps commas and points."""
    numbers = [form.format(900 + 37.625 * i).removesuffix(",") for i in ROWS]
    if form.endswith(","):
        numbers = [x.translate(str.maketrans(",.", ".,")) for x in numbers]
    frame = table(n=numbers)
    dataset = load_table(csv(frame, sep=";" if form[-1] == "," else ","))
    kept = Columns.from_json(json.loads(json.dumps(dataset.columns.to_json())))
    assert kept == dataset.columns
    changed = frame.assign(n=new)
    if isinstance(expected, str):
        with pytest.raises(InputError) as error:
            read_frame(kept, changed)
        assert re.search(expected, one_line(error.value)), str(error.value)
        return
    got = read_frame(kept, changed).inputs[:, kept.features.index("n")]
    np.testing.assert_allclose(got, expected)


@pytest.mark.parametrize("ending", ["frame", "jsonl", "parquet"])
@pytest.mark.parametrize("form", ["{:.1f}", "{:,.1f}", "{:,.0f},"])
def test_numbers_are_no_texts(load_table, tmp_path_factory, form, ending):
    """What was learned from a CSV file with decimal commas, say, sees them in a data frame."""
    texts = [form.removesuffix(",").format(900 + 37.5 * i) for i in ROWS]
    if not form.endswith(","):
        texts = [x.translate(str.maketrans(",.", ".,")) for x in texts]
    columns = load_table(csv(table(n=texts), sep=";")).columns
    new = table(n=np.array([1.234, 1234.5, *A[2:]]))
    if ending == "frame":
        got = read_frame(columns, new)
    else:
        path = tmp_path_factory.mktemp("new") / f"new.{ending}"
        if ending == "parquet":
            new.to_parquet(path)
        else:
            new.to_json(path, orient="records", lines=True)
        opened = open_examples(
            types.SimpleNamespace(kind="table", columns=columns, sizes={}), str(path), {}
        )
        ((_, got),) = opened.chunks
    inputs = got.inputs[:, columns.features.index("n")]
    np.testing.assert_allclose(inputs, new["n"], rtol=1e-6)


def test_categories_that_no_row_had_are_counted(load_table, caplog):
    frame = table(city=WORDS)
    dataset = load_table(frame)
    with caplog.at_level("WARNING"):
        read_frame(dataset.columns, frame.assign(city=np.where(ROWS < 7, "Ulm", WORDS)))
    assert "Column city has 7 values that no row to learn from has, such as 'Ulm'" in caplog.text


def with_number(value):
    """`X` with another number in row 4, column 1."""
    changed = X.copy()
    changed[4, 1] = value
    return changed


NPZ = {"inputs": X, "labels": GIVEN, "checked_labels": CHECKED}

# (name, arrays of the .npz, what is expected)
ARRAYS = [
    ("B no checks", {"checked_labels": None}, NOTHING_CHECKED),
    ("B look-alikes", {"labels": np.where(ROWS == 3, "Cat", GIVEN)}, ALIKE),
    ("E TODO", {"checked_labels": np.where(CHECKED == "", "TODO", CHECKED)}, "leave it empty"),
    ("B whole floats", {
        "labels": np.where(GIVEN == "cat", 0.0, 1.0),
        "checked_labels": np.select([CHECKED == "cat", CHECKED == "dog"], [0.0, 1.0], np.nan),
    }, None),
    ("C a constant", {"inputs": np.stack([A, np.full(SIZE, 2024.0)], axis=1)}, None),
    ("C nearly a constant", {"inputs": np.stack([A, np.full(SIZE, 0.1)], axis=1)}, None),
    ("C a constant of large numbers", {"inputs": np.stack([A * 9, np.full(SIZE, 1e30)], axis=1)},
     None),
    ("C NaN", {"inputs": with_number(np.nan)}, "row 4, column 1 is nan"),
    ("C inf", {"inputs": with_number(np.inf)}, "row 4, column 1 is inf"),
    ("C beyond float32", {"inputs": with_number(1e39)}, "row 4, column 1 is 1e[+]39"),
    ("C below float32", {"inputs": X * 1e-300}, "column 0 has numbers that differ by .* unit"),
    ("C far off", {"inputs": with_number(1e30)}, "row 4, column 1 is 1e[+]30, while"),
    ("C large offsets", {"inputs": X * 100 + 1.7e9}, None),
    ("C ids of 1e18", {"inputs": np.stack([ROWS, 10**18 + ROWS], axis=1)}, None),
    ("C numbers of 16 bits", {"inputs": X.astype(np.float16)}, None),
    ("C whole numbers of 64 bits", {"inputs": (X * 1e12).astype(np.int64)}, None),
    ("B complex", {"inputs": X * 1j}, "holds complex128, expected real numbers"),
    ("B one-hot", {
        "labels": np.eye(2)[(GIVEN == "cat") * 1], "checked_labels": np.where(CHECKED == "", -1, 0)
    }, "is one-hot, expected the classes"),
    ("B bytes", {"labels": GIVEN.astype("S")}, r"labels\.astype\(str\)"),
    ("B booleans", {"labels": GIVEN == "cat", "checked_labels": np.select(
        [CHECKED == "cat", CHECKED == "dog"], ["True", "False"], "")}, None),
    ("B splits, misspelt", {"split": np.full(SIZE, "test")},
     "has array 'split' and none named 'splits'"),
    ("B checks, misspelt", {"checked_labels": None, "checked_label": CHECKED},
     "has array 'checked_label' and none named 'checked_labels'"),
    ("B bad names", {"inputs": None, "X": X}, r"has no array 'inputs', only \['X', 'checked"),
    ("E labels for five rows", {"labels": GIVEN[:5]}, r"has shape \(5,\), expected \(120,\)"),
    ("E no features", {"inputs": X[:, :0]}, "expected one number at least for each example"),
    ("E one class", {"labels": np.full(SIZE, "cat"), "checked_labels": np.where(
        CHECKED == "", "", "cat")}, "has one class, 'cat'"),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "problem"), cases(ARRAYS))
@pytest.mark.filterwarnings("ignore:overflow")  # Of the test's own arrays.
def test_arrays(tmp_path, changes, problem):
    arrays = {name: x for name, x in (NPZ | changes).items() if x is not None}
    np.savez(tmp_path / "all.npz", **arrays)
    config = arrays_config.get_config()
    config.dataset.data = str(tmp_path / "all.npz")
    if problem is None:
        inputs = ready(datasets.load(config))
        varied = [x for x in arrays["inputs"].T if len(np.unique(x)) > 1]
        numbers = [len(np.unique(x)) for x in inputs.T]
        assert all(len(np.unique(x)) > len(inputs) / 3 for x in varied)
        assert sorted(numbers)[-len(varied) :] >= [len(inputs) // 3] * len(varied)
        return
    with pytest.raises(InputError) as error:
        datasets.load(config)
    assert re.search(problem, one_line(error.value)), str(error.value)


def test_offsets_are_taken_off_new_rows_too(tmp_path):
    """Ids of 1e18 as the only feature: float32 would make one number of all of them."""
    ids = np.stack([10**18 + ROWS * 7 % SIZE, ROWS % 3], axis=1)
    labels = np.where(ids[:, 0] - 10**18 > SIZE // 2, "cat", "dog")
    checked = np.where(ROWS % 2, labels, "")
    np.savez(tmp_path / "all.npz", inputs=ids, labels=labels, checked_labels=checked)
    np.save(tmp_path / "new.npy", ids)  # Which is read as a memory map.
    config = arrays_config.get_config()
    config.update_from_flattened_dict({
        "dataset.data": str(tmp_path / "all.npz"), "method": "cross_entropy", "num_steps": 200,
        "model.mlp.hidden_sizes": (), "noisy_batch_size": 32, "clean_batch_size": 32,
    })  # fmt: skip
    train.train_and_evaluate(config, str(tmp_path / "run"), show_progress=False)
    result = mlc.load(tmp_path / "run")
    assert (result.predict(ids) == labels).mean() > 0.9
    for name in ("new.npy", "all.npz"):
        predict.predict(str(tmp_path / "run"), str(tmp_path / name), str(tmp_path / "new.csv"))
        written = pandas.read_csv(tmp_path / "new.csv")
        assert written["label"].tolist() == result.predict(ids).tolist()


def test_a_csv_given_as_npz(tmp_path):
    path = tmp_path / "all.npz"
    path.write_bytes(csv(table()))
    config = arrays_config.get_config()
    config.dataset.data = str(path)
    with pytest.raises(InputError, match=r"is not a readable \.npz") as error:
        datasets.load(config)
    assert "allow_pickle" not in one_line(error.value)


def test_a_zip_archive_of_anything(tmp_path):
    np.savez(tmp_path / "all.npz", labels=GIVEN)
    with zipfile.ZipFile(tmp_path / "all.npz", "a") as file:
        file.writestr("inputs.npy", b"1, 2, 3")
    config = arrays_config.get_config()
    config.dataset.data = str(tmp_path / "all.npz")
    with pytest.raises(InputError, match=r"\['inputs'\] is no array, as numpy.savez writes it"):
        datasets.load(config)


NUMBERS = np.where(GIVEN == "cat", 0, 1)

# (name, inputs, labels of the noisy rows, what is expected)
FITS = [
    ("B labels beyond 32 bits", X, NUMBERS + 2**32, "is 429496729., expected 0 to 1"),
    ("B labels beyond 64 bits", X, [2**70, *NUMBERS[1:]], "whole numbers of 64 bits"),
    ("B labels of bytes", X, GIVEN.astype("S"), "whole numbers or texts; of bytes"),
    ("B bytes among objects", X, np.array([b"cat", *GIVEN[1:]], object), "got 'bytes', expected"),
    ("B complex labels", X, NUMBERS * 1j, "complex128"),
    ("B labels of two kinds", X, np.array([1, *GIVEN[1:]], object), "texts and numbers"),
    ("B masked inputs", np.ma.masked_less(X, 0), NUMBERS, "has masked values"),
    ("B complex inputs", X * 1j, NUMBERS, "holds complex128"),
    ("C NaN", with_number(np.nan), NUMBERS, "row 4, column 1 is nan"),
    ("C inf", with_number(np.inf), NUMBERS, "row 4, column 1 is inf"),
    ("C beyond float32", with_number(1e300), NUMBERS, "row 4, column 1 is 1e[+]300"),
    ("C far off", with_number(1e30), NUMBERS, "row 4, column 1 is 1e[+]30"),
    ("C large offsets", X + 1e12, NUMBERS, None),
    ("E no features", X[:, :0], NUMBERS, "expected one number at least"),
    ("E a generator", (x for x in X), NUMBERS, "got generator, expected an array or a list"),
    ("E labels by a generator", X, (x for x in NUMBERS), "got generator, expected an array"),
    ("E ragged", [[1.0], *X[1:].tolist()], NUMBERS, "expected rows of equal length"),
    ("B one-hot", X, np.eye(2)[NUMBERS], "one-hot, expected the classes"),
    ("E ragged labels", X, [[1], *NUMBERS[1:].tolist()], "expected one in each row"),
    ("E long double", X.astype(np.longdouble), NUMBERS, None),
    ("E tuples", tuple(map(tuple, X.tolist())), tuple(NUMBERS.tolist()), None),
    ("B masked labels", X, np.ma.masked_where(ROWS == 3, NUMBERS), None),
    ("B objects that are numbers", X, NUMBERS.astype(object), None),
    ("B numbers of pandas", X, pandas.Series(NUMBERS).astype("Int64").where(ROWS != 3), None),
]


@pytest.mark.parametrize(("x", "labels", "problem"), cases(FITS))
def test_fit(x, labels, problem):
    method = mlc.methods.cross_entropy(model=mlc.models.MLP(2, (4,)), tx=mlc.sgd(0.1))

    def dataset():
        clean = mlc.Examples(X[:8], np.array([0, 1] * 4))
        if isinstance(labels, list | np.ndarray) and np.asarray(labels, object).dtype == object:
            first = next(iter(labels))
            if isinstance(first, bytes | str):
                clean = mlc.Examples(X[:8], np.array(["cat", "dog"] * 4))
        return create_dataset(method, mlc.Examples(x, labels), clean, None, None, None)

    if problem is None:
        got = dataset()
        assert not got.names_labels and set(np.unique(got.noisy.given)) <= {-1, 0, 1}
        return
    with pytest.raises(InputError) as error:
        dataset()
    assert re.search(problem, one_line(error.value)), str(error.value)


@pytest.mark.parametrize("x", [np.array([[1.0, np.nan]]), np.array([[1e300, 0]]), np.zeros((2, 0))])
def test_new_arrays(x):
    with pytest.raises(InputError, match=r"^x: "):
        create_source(x)


# (name, columns of a data frame beside those of `table`, what is expected): a set is its features.
FRAMES = [
    ("B an interval", {"c": pandas.cut(A, 2, labels=None)}, None),
    (
        "B nullable whole numbers",
        {"c": pandas.array([None, *ROWS[1:] ** 2], "Int64")},
        {"c", "c is missing"},
    ),
    (
        "B nullable booleans",
        {"c": pandas.array([None, *(ROWS[1:] % 2 == 0)], "boolean")},
        {"c", "c is missing"},
    ),
    (
        "B strings of Arrow",
        {"c": pandas.array(WORDS, "string[pyarrow]")},
        {"c=Bonn", "c=Oslo", "c=Rome"},
    ),
    (
        "B categories that no row has",
        {"c": pandas.Categorical(WORDS, sorted({*WORDS, "x"}))},
        {"c=Bonn", "c=Oslo", "c=Rome"},
    ),
    ("B decimals", {"c": [decimal.Decimal(int(i) * 3) / 2 for i in ROWS]}, {"c"}),
    ("B periods", {"c": pandas.period_range("2000-01", periods=SIZE, freq="M")}, {"c"}),
    ("B spans", {"c": pandas.to_timedelta(ROWS * ROWS, unit="h")}, {"c"}),
    (
        "B moments with a zone",
        {"c": pandas.date_range("2024", periods=SIZE, freq="7h", tz="CET")},
        {"c"},
    ),
    ("B a sparse column", {"c": pandas.arrays.SparseArray(np.where(ROWS % 9, 0, A))}, {"c"}),
    ("B long doubles", {"c": A.astype(np.longdouble)}, {"c"}),
    (
        "B numbers and texts",
        {"c": [str(i) if i % 2 else int(i * i) for i in ROWS]},
        {"c"},
    ),
    ("B dicts", {"c": [{"x": 1}] * SIZE}, set()),
    ("B bytes", {"c": [b"x"] * SIZE}, set()),
    ("B objects", {"c": [object()] * SIZE}, set()),
    ("B complex", {"c": A * 1j}, "holds complex128, expected numbers"),
    ("B bytes for labels", {"label": [x.encode() for x in GIVEN]}, "column 'label' has bytes"),
    ("B numbers for labels", {"label": A}, "expected names of classes"),
    ("C inf", {"c": np.where(ROWS == 3, np.inf, A)}, "row 3: c is 'inf'"),
]


@pytest.mark.parametrize(("columns", "expected"), cases(FRAMES))
def test_frames(columns, expected):
    frame = memory.Frame("frame", table().assign(**columns))
    options = table_files.Options((), None)
    if isinstance(expected, str):
        with pytest.raises(InputError) as error:
            memory.of_frame(frame, options)
        assert re.search(expected, one_line(error.value)), str(error.value)
        return
    own = memory.of_frame(frame, options)
    names = {*own.columns.features}
    assert len(names) == 4 if expected is None else names == AB | expected


# (name, what is called, what is expected)
CALLS = [
    ("E a label by number", lambda x: mlc.correct_labels(x, label=3), "label: got 3, expected"),
    ("B labels are the checks", lambda x: mlc.correct_labels(x, label="checked_label"),
     "label: got 'checked_label', expected another column"),
    ("E no such column", lambda x: mlc.correct_labels(x, label="y"), "has no column 'y'"),
    ("E a broken seed", lambda x: mlc.correct_labels(x, seed=0.5), "seed: got 0.5, expected"),
    ("E no such text", lambda x: mlc.correct_labels(x, text="t", encoder="/no"), "no column 't'"),
    ("E an encoder of numbers", lambda x: mlc.correct_labels(x, encoder="/no"),
     "encoder: got '/no', expected None"),
    ("E no such encoder", lambda x: mlc.correct_labels(x.assign(t="a b"), text="t", encoder="/no"),
     "no directory '/no'"),
    ("B rows in another order", lambda x: _fitted(x[["a", "b"]], x["label"][::-1]),
     r"y: its index is that of X in another order; expected .* y\.loc\[X\.index\]"),
    ("E scalars", lambda x: mlc.correct_labels({"label": "cat", "a": 1}), "column 'label' is str"),
    ("E a list", lambda x: mlc.correct_labels(x.to_dict("records")), "got list, expected a data"),
    ("B texts and numbers", lambda x: _fitted(x, np.array(["cat", 1] * (SIZE // 2), object)),
     "y: has texts and numbers"),
    ("B complex labels", lambda x: _fitted(x, NUMBERS * 1j), "y: Complex data not supported"),
    ("E a generator", lambda x: _fitted((x for _ in range(3)), GIVEN), "X: got generator"),
    ("E all are checked", lambda x: _fitted(x[["a", "b"]], GIVEN, GIVEN), "no label to correct"),
    ("D 10^9 rounds", lambda x: mlc.correct_labels(x, num_epochs=10**9), "expected a whole number"),
    ("D a layer of 10^9", lambda x: mlc.correct_labels(x, model=(10**9,)), "expected widths"),
]  # fmt: skip


def _fitted(x, y, checked=None):
    checked = np.where(ROWS % 2, None, np.asarray(y).astype(object)) if checked is None else checked
    return mlc.LabelCorrector().fit(x, y, checked=checked)


@pytest.mark.parametrize(("call", "expected"), cases(CALLS))
def test_calls(call, expected):
    with pytest.raises(InputError) as error:
        call(table())
    assert re.search(expected, str(error.value)), str(error.value)


def test_a_network_that_does_not_fit_is_refused_before_it_is_compiled():
    """LCN and classifier of other classes; a state that no machine holds; pictures of a table."""
    examples = mlc.Examples(X[:40], NUMBERS[:40]), mlc.Examples(X[40:80], NUMBERS[40:80])
    lcn = mlc.models.LabelCorrectionNetwork(3, 4, 4)
    optimizers = {"tx": mlc.sgd(0.1), "meta_tx": mlc.adam(1e-3)}
    for method, expected in [
        (mlc.methods.mlc(model=mlc.models.MLP(2, (4,)), lcn=lcn, **optimizers),
         r"lcn\.num_classes: got 3, expected 2"),
        (mlc.methods.cross_entropy(model=mlc.models.MLP(2, (200_000, 200_000)), tx=mlc.sgd(0.1)),
         r"take 298\.\d\d GiB, and a device has"),
    ]:  # fmt: skip
        with pytest.raises(InputError, match=expected):
            mlc.fit(method, *examples, progress=False)


@pytest.mark.parametrize(
    ("names", "classes"),
    [
        (["train/cat/1.png", "Val/dog/1.png"], None),
        (["train/1.png", "val/2.png"], ("train", "val")),
        (["train/a/1.png", "car/a/1.png"], ("car", "train")),
    ],
)
def test_directories_of_splits_are_no_classes(tmp_path, names, classes):
    """B: as torchvision expects them; all pictures were of class `train` or `val`."""
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).touch()
    if classes is not None:
        assert image_folder.read_labels(str(tmp_path), Said()).labels.names == classes
        return
    with pytest.raises(InputError, match=r"in the place of a class, .* such as '.*(train|Val)'$"):
        image_folder.read_labels(str(tmp_path), Said())


def test_pictures_that_are_too_large_for_a_network(tmp_path):
    pictures = np.zeros((SIZE, 65, 32, 3), np.uint8)
    np.savez(tmp_path / "all.npz", **NPZ | {"inputs": pictures})
    config = arrays_config.get_config()
    fields = {"dataset.data": str(tmp_path / "all.npz"), "method": "mlc", "model.name": "resnet"}
    config.update_from_flattened_dict(fields)
    with pytest.raises(InputError, match="with pictures of 65 pixels, expected resnet50, or 64"):
        build_run(config)


# (name, settings of a run on a table, what is expected)
SETTINGS = [
    ("D lcn.hidden_size", {"lcn.hidden_size": 10**9}, "expected a whole number from 1 to 65536"),
    ("D joint.num_averaged", {"joint.num_averaged": 10**9}, "expected a whole number from 1 to"),
    ("D num_steps", {"num_steps": 10**20}, "expected a whole number from 0 to 2147483647"),
    ("D a large rate", {"main_optimizer.learning_rate": 1e39}, "expected a positive number"),
    ("D a small rate", {"meta_optimizer.learning_rate": 1e-50}, "expected a positive number"),
    ("D profile", {"profile": f"1:{10**30}"}, "expected START:STOP"),
    ("E a picture's network", {"method": "mlc", "model.name": "resnet"},
     "got 'resnet', expected mlp with a table"),
    ("D a network of small pictures", {
        "dataset.name": "image_folder", "dataset.data": "all.csv", "method": "mlc",
        "dataset.standardize": None, "model.name": "resnet",
    }, "image_size: got 224, expected at most 64 with model.name=resnet"),
    ("E a pattern", {"main_optimizer.groups": (("(", 1.0, None),)}, r"'\(' is none \(missing \)"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "expected"), cases(SETTINGS))
def test_settings(fields, expected):
    config = table_config.get_config()
    config.update_from_flattened_dict({"dataset.data": "all.csv"} | fields)
    with pytest.raises(InputError) as error:
        settings.validate(config)
    assert re.search(expected, one_line(error.value)), str(error.value)


_MINE = "from mlc_jax.config import get_config as defaults\ndef get_config():\n    c = defaults()\n"
# (name, a config file of somebody's, what is expected)
CONFIG_FILES = [
    ("E a slip of syntax", _MINE + "    c.(\n", "line 4: SyntaxError"),
    ("E indentation", "def get_config():\nreturn 1\n", "line 2: IndentationError"),
    ("E an exception", _MINE + "    1 / 0\n", "line 4: ZeroDivisionError"),
    ("E of several lines", _MINE + "    raise ValueError('a\\nb')\n", "line 4: ValueError: a b$"),
    ("E no such module", "import nosuchmodule\n", "line 1: ModuleNotFoundError"),
    ("E a file that is missing", "open('/nope')\n", "line 1: FileNotFoundError"),
    ("E a dict", "def get_config():\n    return {}\n", "line 1: get_config returns dict"),
    ("E nothing", _MINE, "line 2: get_config returns nothing"),
    ("E no section", _MINE + "    c.unlock()\n    del c.lcn\n    return c\n",
     "line 2: config.lcn.hidden_size: is not there"),
    ("E a key of its own", _MINE + "    c.unlock()\n    c.nois = 1\n    return c\n",
     "line 2: config.nois: there is no such setting"),
    ("E a misspelt key", _MINE + "    c.nois = 1\n", 'line 4: .*Did you mean "noise"'),
    ("E another type", _MINE + "    c.seed = 'a'\n", "line 4: TypeError"),
    ("E no function", "", "has no function get_config"),
    ("E no arguments", "def get_config(a, b):\n    pass\n", "line 1: TypeError"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), cases(CONFIG_FILES))
def test_config_files(tmp_path, content, expected):
    path = tmp_path / "mine.py"
    path.write_text(content)
    with pytest.raises(WrongFile) as error:
        ConfigFile().parse(str(path))
    assert re.search(expected, one_line(error.value)), str(error.value)
    assert one_line(error.value).startswith(f"--config: {str(path)!r}")


def test_only_regular_files_are_opened(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    os.mkfifo(tmp_path / "x.safetensors")
    for name, kind in (("x.png", "FIFO"), ("/dev/zero", "device")):
        _, problems = check_pictures(str(tmp_path), np.array([name.encode()]), str(tmp_path / "c"))
        assert problems == {0: f"cannot be read (a {kind}, no regular file)"}
    for name in (tmp_path / "x.safetensors", "/dev/zero", tmp_path):
        with pytest.raises(InputError, match=r"cannot be read \(a .*, no regular file\)"):
            load_params(name)
    for field in ("initial_params", "resnet50.checkpoint"):
        config = table_config.get_config()
        config.model.name = "resnet50"
        config.update_from_flattened_dict({f"model.{field}": str(tmp_path / "x.safetensors")})
        with pytest.raises(InputError, match=rf"model\.{field}: .*a FIFO, no regular file"):
            starts.check(config)


@pytest.mark.parametrize("open_directory", [load_config, Tokenizer.load, open_model, Packed])
def test_only_regular_files_are_opened_in_an_encoder(tmp_path, open_directory):
    for name in ("config.json", "tokenizer.json", "info.json"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match=r"json' is a FIFO; expected a regular file"):
        open_directory(str(tmp_path))


# Names of files of ours, in a directory of ours, that are something else.
IRREGULAR = [
    "to_check.csv", "to_check_first.csv", "answers.csv", "answers_used.csv", "checks.txt",
    "config.json", "dataset.json", "results.json", "metrics.jsonl", "corrected_labels.npz", ".lock",
    "to_check_rows.json", "answers.csv.partial", "round_2/to_check.csv", "round_2/config.json",
    "checkpoints/4/state/_METADATA", "checkpoints/4/progress/metadata", "encoder/config.json",
]  # fmt: skip


@pytest.mark.parametrize("name", IRREGULAR)
def test_only_regular_files_are_opened_in_a_directory(tmp_path, name):
    """Whoever opens a FIFO waits for ever. Others, which nobody opens, may be there."""
    if name != "config.json":
        (tmp_path / "config.json").write_text('{"method": "mlc", "dataset": {}}')
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(tmp_path / "mine.log")
    with locked_workdir(str(tmp_path)):
        (tmp_path / ".lock").unlink()
    os.mkfifo(tmp_path / name)
    for start in (
        lambda: locked_workdir(str(tmp_path)).__enter__(),
        lambda: rounds.Rounds(epath.Path(tmp_path)),
        lambda: predict.predict(str(tmp_path), str(ROOT)),
        lambda: mlc.load(tmp_path),
    ):
        with pytest.raises(InputError) as error:
            start()
        found = rf"/{re.escape(name)}' is a FIFO; expected a regular file, or none of this name"
        assert re.search(found, one_line(error.value))


# (name, arguments of `mlc-jax correct` beside the file, what is expected)
TYPED = [
    ("A --out is a device", ["--out=/dev/full"], "is there with other files in it"),
    ("A --out below a device", ["--out=/dev/full/x"], r"--out: cannot write to '/dev/full/x'"),
    (
        "E --out in another cloud",
        ["--out=s3://a/b"],
        "--out: got 's3://a/b', expected a local",
    ),
    (
        "B labels are the checks",
        ["--label=checked_label"],
        "--label: 'checked_label' is the column",
    ),
    ("B checks are the labels", ["--checked=label"], "--label: 'label' is the column of checked"),
    ("E no such checks", ["--checks=/nope.csv"], "--checks: no file '/nope.csv'"),
    ("E no such encoder", ["--encoder=/nope"], "--encoder: got '/nope', expected none with"),
    ("E no such setting", ["--lcn.hiden_size=3"], "such as --lcn.hidden_size"),
]


@pytest.mark.parametrize(("arguments", "expected"), cases(TYPED))
def test_what_is_typed(run_command, tmp_path, arguments, expected):
    path = tmp_path / "data.csv"
    path.write_bytes(csv(table()))
    code, out, err = run_command("correct", str(path), *arguments)
    (line,) = [x for x in err.splitlines() if x.startswith("error: ")]
    assert (code, out) == (2, "") and re.search(expected, line), err
    assert path.read_bytes() == csv(table()) and os.listdir(tmp_path) == ["data.csv"]


def test_the_output_is_no_input(run_command, tmp_path):
    """A directory of results is one of pictures, too: it has one."""
    out = tmp_path / "data.mlc"
    out.mkdir()
    (out / "config.json").write_text("{}")
    (out / "training.png").touch()
    code, _, err = run_command("correct", str(out))
    assert code == 2 and "is the directory of the output; expected the file" in err
    assert sorted(os.listdir(out)) == ["config.json", "training.png"]


def test_votes_by_ids_that_lost_their_zeros(tmp_path):
    """As in a file of checks; a blank after a source's name makes no second source."""
    path, votes = tmp_path / "data.csv", tmp_path / "votes.csv"
    path.write_bytes(csv(table(drop=["label", "checked_label"], id=[f"{i:04d}" for i in ROWS])))
    rows = [(i, f"{name} " if i % 2 else name, GIVEN[i]) for i in ROWS for name in ("anna", "ben")]
    votes.write_bytes(csv(pandas.DataFrame(rows, columns=["id", "source", "label"])))
    file = read_labels(Table("config.dataset.data", str(path)), Said(votes=str(votes)))
    assert file.source_names == ("anna", "ben")
    assert np.array(file.votes.names)[file.votes.numbers].tolist() == [[x, x] for x in GIVEN]


HOSTILE = "\x1b[31m=cmd\u202e\nnew\u732b$\\frac$"  # A class that wants to be obeyed.


def test_what_is_shown_is_not_obeyed(run_command, tmp_path):
    """F: in the terminal, the page, the picture's names and the tables for a spreadsheet."""
    other = "\uff1ddog"
    given = np.where(GIVEN == "cat", HOSTILE, other)
    checks = np.select([CHECKED == "cat", CHECKED == "dog"], [HOSTILE, other], "")
    ids = [f"=id{i}\x1b[2J" for i in ROWS]
    path = tmp_path / "data.csv"
    path.write_bytes(csv(table(id=ids, label=given, checked_label=checks)))
    code, out, err = run_command(
        "correct", str(path), "--method=cross_entropy", "--num_steps=4", "--noprogress",
        "--model.mlp.hidden_sizes=(4,)", "--noisy_batch_size=8", "--clean_batch_size=16",
    )  # fmt: skip
    assert code == 0, err
    run = tmp_path / "data.mlc"
    page = (run / "report.html").read_text(encoding="utf-8")
    for text in (out, err, page):
        assert not {*"\x1b\u202e"} & {*text}
    assert r"\x1b[31m=cmd\u202e\nnew" in page
    written = (run / "to_check.csv").read_text(encoding="utf-8")
    assert f"'{other}" in written and f"\n{other}" not in written and f",{other}" not in written
    assert re.search(r"^'=id\d+", written, re.MULTILINE)
    assert not re.search(r"^=id", written, re.MULTILINE)


def test_letters_without_a_glyph_are_escapes(caplog, monkeypatch):
    monkeypatch.setattr(glyphs, "_others", lambda usual: [])
    with caplog.at_level("WARNING"):
        names = glyphs.drawable(["\u732b", "caf\u00e9", HOSTILE]).names
    assert names == [r"\u732b", "caf\u00e9", r"\x1b[31m=cmd\u202e\nnew\u732b$\frac$"]
    assert "No font of this machine has glyphs for \u732b" in caplog.text


def test_letters_that_a_terminal_does_not_have_are_escapes(tmp_path):
    (tmp_path / "data.csv").write_bytes(csv(table(label="\u732b", drop=["checked_label"])))
    done = subprocess.run(
        [sys.executable, "-m", "mlc_jax", "correct", str(tmp_path / "data.csv")],
        capture_output=True, cwd=tmp_path, env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )  # fmt: skip
    assert done.returncode == 2 and rb"has one class, '\u732b'" in done.stderr


def test_a_closed_pipe_ends_nothing():
    """`| head`: what is printed goes nowhere, and what is left to do is done."""
    code = (
        "import sys; from mlc_jax.errors import closed_pipes_forgiven as f\n"
        "with f():\n"
        "    for i in range(99_999): print(i)\n"
        "    print('x', file=sys.stderr)\n"
    )
    programs = [["-m", "mlc_jax.config"], ["-c", code], ["-m", "mlc_jax", "settings"]]
    for program in programs:
        read, write = os.pipe()
        os.close(read)
        done = subprocess.run(
            [sys.executable, *program], stdout=write, stderr=subprocess.PIPE, text=True, cwd=ROOT
        )
        os.close(write)
        assert (done.returncode, done.stderr) == (0, "x\n" if program[0] == "-c" else "")


# (name, file -> content, what is expected)
DIRECTORIES = [
    ("A a project", {"main.py": b"", "config.json": b"{}"}, "has files that are not of a run"),
    (
        "A a model of others",
        {"config.json": b'{"model_type": "bert"}'},
        "not of a run: config.json",
    ),
    ("A results of others", {"results.json": b"[]"}, "not of a run: results.json"),
    ("A checkpoints of others", {"checkpoints/12/x": b""}, "not of a run: checkpoints"),
    ("A a directory of our name", {"results.json/x": b""}, "results.json' is a directory"),
    ("A our run", {"config.json": b'{"method": "mlc", "dataset": {}}', "notes.txt": b"mine"}, None),
    (
        "A a sweep of others",
        {"config.json": b'{"method": "bayes"}', "results.json": b"[]"},
        "not of a run: config.json, results.json",
    ),
    (
        "A a sweep of others, locked",
        {".lock": b"", "config.json": b'{"method": "bayes"}'},
        "not of a run: config.json",
    ),
    (
        "A a lock of others",
        {".lock": b"4711\n", "metrics.jsonl": b"{}\n"},
        "not of a run: metrics.jsonl",
    ),
    (
        "A results of others, locked",
        {".lock": b"", "results.json": b'{"f1": 0.9}'},
        "not of a run: results.json",
    ),
    (
        "A a dataset of others, locked",
        {".lock": b"", "dataset.json": b'{"url": "x"}'},
        "not of a run: dataset.json",
    ),
    ("A a kill left half a file", {"answers.csv.partial": b"i", "to_check.csv.partial": b""}, None),
    ("A a lock of others alone", {".lock": b"4711\n"}, None),
    ("A a run of today, without its config.json", {".lock": b"mlc_jax\n", "cost.jsonl": b""}, None),
    ("A pictures to check", {"to_check.html": b"x", "answers.csv": b"id\n"}, None),
    ("A a run that lost its config.json", {".lock": b"", "results.json": b"{}"}, None),
    ("A a run that was cut off", {".lock": b"", "config.json": b'{"meth'}, None),
    ("A rows to check", {"to_check.csv": b"id\n"}, None),
    ("A a new disk", {"lost+found/x": b""}, None),
    ("A hidden files", {".DS_Store": b"x"}, None),
]


@pytest.mark.parametrize(("files", "problem"), cases(DIRECTORIES))
def test_directories(tmp_path, files, problem):
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    if problem is None:
        with locked_workdir(str(tmp_path)) as workdir:
            assert isinstance(workdir, epath.Path)
    else:
        with pytest.raises(InputError) as error, locked_workdir(str(tmp_path)):
            pass
        assert re.search(problem, one_line(error.value)), str(error.value)
        assert (tmp_path / ".lock").exists() == (".lock" in files)
    assert all((tmp_path / name).read_bytes() == content for name, content in files.items())


DAMAGED = ["", "{}", "[]", "null", '{"method', None]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, compilation_cache):
    """A run on a table that has ended: its config and its workdir."""
    directory = tmp_path_factory.mktemp("finished")
    (directory / "all.csv").write_bytes(csv(table()))
    config = table_config.get_config()
    config.update_from_flattened_dict({
        "dataset.data": str(directory / "all.csv"), "method": "cross_entropy", "num_steps": 8,
        "model.mlp.hidden_sizes": (4,), "noisy_batch_size": 8, "clean_batch_size": 16,
    })  # fmt: skip
    train.train_and_evaluate(config, str(directory / "run"), show_progress=False)
    return config, directory / "run"


def test_a_damaged_description_is_mended(tmp_path, finished):
    """The same command again: the run is there, and what says of what kind it is, was not."""
    config, source = finished
    want = mlc.load(source).soft_labels
    whole = {name: (source / name).read_bytes() for name in ("config.json", "dataset.json")}
    for number, content in enumerate(DAMAGED):
        run = tmp_path / str(number)
        shutil.copytree(source, run)
        (run / "checkpoints" / "999999").mkdir()
        (run / "checkpoints" / "999999" / "mine.txt").write_text("mine")
        for name in whole:
            (run / name).unlink()
            if content is not None:
                (run / name).write_text(content)
        with pytest.raises(InputError) as error:
            mlc.load(run)
        assert re.search(r"damaged|cannot be read|lacks", one_line(error.value))
        if number in (0, len(DAMAGED) - 1):
            train.train_and_evaluate(config, str(run), show_progress=False)
            assert {name: (run / name).read_bytes() for name in whole} == whole
            np.testing.assert_array_equal(mlc.load(run).soft_labels, want)
        assert (run / "checkpoints" / "999999" / "mine.txt").read_text() == "mine"


def test_cut_off_labels_of_a_run(tmp_path, finished):
    run = tmp_path / "run"
    shutil.copytree(finished[1], run)
    (run / "corrected_labels.npz").write_bytes((run / "corrected_labels.npz").read_bytes()[:99])
    with pytest.raises(InputError, match=r"corrected_labels\.npz' is not a readable \.npz"):
        mlc.load(run)
    predictions = []
    for place in (run, finished[1]):  # Which needs no corrected labels.
        predict.predict(str(place), finished[0].dataset.data, str(tmp_path / "new.csv"))
        predictions.append((tmp_path / "new.csv").read_bytes())
    assert predictions[0] == predictions[1] and predictions[0].count(b"\n") == 1 + SIZE
    (tmp_path / "link.csv").symlink_to(tmp_path / "target.csv")
    for _ in range(2):  # It is not there yet; then it is.
        predict.predict(str(run), finished[0].dataset.data, str(tmp_path / "link.csv"))
        assert (tmp_path / "link.csv").is_symlink()
        assert (tmp_path / "target.csv").read_bytes() == predictions[0]


@pytest.mark.parametrize("mine", ["all.csv", "run/config.json", "run/corrected.csv", "notes.txt"])
def test_predictions_take_the_place_of_older_ones_alone(run_command, tmp_path, finished, mine):
    """`--output` of a table with labels, of a run's own files, or of anything else there is."""
    shutil.copytree(finished[1], tmp_path / "run")
    (tmp_path / "new.csv").write_bytes(csv(table()))
    shutil.copy(tmp_path / "new.csv", tmp_path / "all.csv")
    (tmp_path / "notes.txt").write_text("mine")
    before = (tmp_path / mine).read_bytes()
    arguments = ("predict", str(tmp_path / "run"), str(tmp_path / "new.csv"), "--noprogress")
    code, _, err = run_command(*arguments, f"--output={tmp_path / mine}")
    assert code == 2 and "is there, and holds no predictions" in err
    assert (tmp_path / mine).read_bytes() == before
    for _ in range(2):
        assert run_command(*arguments, f"--output={tmp_path / 'out.csv'}")[0] == 0
    (tmp_path / "run" / "predictions").write_text("mine")
    code, _, err = run_command(*arguments)
    assert code == 2 and "--output: cannot write to" in err.splitlines()[-1]
    assert (tmp_path / "run" / "predictions").read_text() == "mine"


def test_predictions_of_another_file_of_the_same_name_stay(run_command, tmp_path, finished):
    run, written = tmp_path / "run", tmp_path / "run" / "predictions" / "n.csv"
    shutil.copytree(finished[1], run)
    for name in ("x/n.csv", "y/n.csv", "x/n.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        rows = table()[: 3 + len(name)]
        if name.endswith("csv"):
            (tmp_path / name).write_bytes(csv(rows))
        else:
            rows.to_json(tmp_path / name, orient="records", lines=True)

    def predicted(name, *flags):
        arguments = ("predict", str(run), str(tmp_path / name), "--noprogress", *flags)
        return run_command(*arguments)[::2]

    assert predicted("x/n.csv")[0] == 0
    (tmp_path / "x" / "n.csv").write_bytes(csv(table()[:5]))
    assert predicted("x/n.csv")[0] == 0 and written.read_bytes().count(b"\n") == 6
    before = written.read_bytes()
    for name in ("y/n.csv", "x/n.jsonl"):
        code, err = predicted(name)
        assert code == 2 and "x/n.csv'; expected another file for those of" in err.splitlines()[-1]
        assert written.read_bytes() == before
        assert predicted(name, f"--output={tmp_path / 'out.csv'}")[0] == 0
    for damaged in ("[]", "{", None):  # As older runs have none.
        place = written.parent / "inputs.json"
        place.unlink() if damaged is None else place.write_text(damaged)
        assert predicted("y/n.csv")[0] == 0 and written.read_bytes().count(b"\n") == 11
        assert predicted("x/n.csv")[0] == 2


# One of each letter by the real command: that what is refused above is one line there, too.
COMMANDS = [
    ("A", table(), {"out": ROOT / "docs"}, "is there with other files in it"),
    ("B", table().rename(columns={"checked_label": "Checked"}), {}, "none named 'checked_label'"),
    ("C", with_cell("a", 3, 1e30), {}, "line 5: a is 1e[+]30, while others"),
    ("D", table(label="x" * 10**6), {}, "label has 1,000,000 characters"),
    ("E", table(checked_label="TODO"), {}, "leave it empty where nobody looked"),
    ("F", with_cell("checked_label", 3, "\x1b[31mred"), {}, r"has label '\\x1b\[31mred', which"),
]


@pytest.mark.slow  # Each starts a process that imports JAX: seven seconds.
@pytest.mark.parametrize(("frame", "flags", "problem"), cases(COMMANDS))
def test_the_command(tmp_path, frame, flags, problem):
    (tmp_path / "data.csv").write_bytes(csv(frame))
    before = {*os.listdir(tmp_path)}
    done = subprocess.run(
        [
            sys.executable, "-m", "mlc_jax", "correct", str(tmp_path / "data.csv"),
            *(f"--{name}={value}" for name, value in flags.items()),
        ],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert {*os.listdir(tmp_path)} == before
    errors = [x for x in done.stderr.splitlines() if x.startswith("error: ")]
    assert len(errors) == 1 and re.search(problem, errors[0])
    assert "Traceback" not in done.stderr
