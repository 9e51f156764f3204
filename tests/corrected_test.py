"""A user's file with the labels of all its rows: what is added, and that nothing else changes."""

import csv
import io

import numpy as np
import pandas
import pytest
from etils import epath

from mlc_jax.data.source import UNKNOWN, ArraySource, Subset
from mlc_jax.report import to_check
from mlc_jax.report.corrected import ADDED, add_to_table, of_all_rows

SAID = ("a,b", "0.500000", "", "")


def _subset(source, rows, given, truth):
    arrays = (np.array(x, np.int32) for x in (given, truth))
    return Subset(source, np.array(rows), *arrays)


def test_what_is_said_of_all_rows():
    """Row 6 was left out."""
    source = ArraySource(np.zeros((7, 2), np.float32))
    exported = _subset(source, [4, 0, 2], [1, 0, UNKNOWN], [UNKNOWN] * 3)
    soft = np.array([[0.75, 0.25], [0.5, 0.5], [0.125, 0.875]], np.float32)
    quality = np.array([0.25, 0.5, np.nan], np.float32)
    clean = _subset(source, [1, 5], [0, UNKNOWN], [0, 1])
    test = _subset(source, [3], [0], [1])
    said = of_all_rows(7, exported, soft, quality, [clean, test])
    assert said.corrected_label.tolist() == [0, 0, 1, 1, 0, 1, UNKNOWN]
    assert said.is_label_issue.tolist() == [False, False, False, True, True, False, False]
    nan = np.nan
    np.testing.assert_array_equal(said.confidence, [0.5, 1, 0.875, 1, 0.75, 1, nan])
    np.testing.assert_array_equal(said.label_quality, [0.5, 1, nan, 0, 0.25, nan, nan])
    assert said.texts(["=x", "y"]) == [
        ("=x", "0.500000", "0.500000", "False"),
        ("=x", "1.000000", "1.000000", "False"),
        ("y", "0.875000", "", ""),
        ("y", "1.000000", "0.000000", "True"),
        ("=x", "0.750000", "0.250000", "True"),
        ("y", "1.000000", "", ""),
        ("", "", "", ""),
    ]


@pytest.mark.parametrize(
    ("text", "identifier", "want"),
    [
        # Quotes, line ends, a byte order mark, a formula and blanks stay as they are.
        (
            '\ufeff"id",a\r\n1,"x, ""y"""\r\n\r\n2,=1+1\r\n3,"two\r\nlines"\r\n',
            "id",
            '\ufeff"id",a,{added}\r\n1,"x, ""y""",{none}\r\n2,=1+1,{said}\r\n'
            '3,"two\r\nlines",{none}\r\n',
        ),
        ("a\nx\ny\nz", None, "a,{added}\nx,{none}\ny,{none}\nz,{said}\n"),
        ("\na\n x \n", None, "a,{added}\n x ,{none}\n"),
        # Of its own.
        ("a,confidence\n2,9\n", "a",
         "a,confidence,corrected_label,mlc_confidence,label_quality,is_label_issue\n2,9,{said}\n"),
    ],
)  # fmt: skip
def test_nothing_else_changes(tmp_path, text, identifier, want):
    (tmp_path / "x.csv").write_bytes(text.encode())
    said = {"2": SAID}
    content = add_to_table(str(tmp_path / "x.csv"), said.get, identifier).decode()
    words = {"added": ",".join(ADDED), "none": ",,,", "said": '"a,b",0.500000,,'}
    assert content == want.format(**words)
    # What came out goes in: the columns are written anew, where they are.
    (tmp_path / "y.csv").write_text(content, newline="")
    again = add_to_table(str(tmp_path / "y.csv"), {}.get, identifier).decode()
    first, second = (
        list(csv.DictReader(io.StringIO(x.lstrip("\ufeff")))) for x in (content, again)
    )
    assert [list(row) for row in first] == [list(row) for row in second]
    theirs = [x for x in first[0] if x not in (*ADDED, "mlc_confidence")]
    assert [[row[x] for x in theirs] for row in first] == [[r[x] for x in theirs] for r in second]
    assert {row["corrected_label"] for row in second} == {""}


def test_other_tables_become_csv(tmp_path):
    (tmp_path / "x.jsonl").write_text('{"id": 2, "a": [1, "x"]}\n{"id": 3, "b": null, "c": 0.5}\n')
    content = add_to_table(str(tmp_path / "x.jsonl"), {"2": SAID}.get, "id").decode()
    rows = list(csv.DictReader(io.StringIO(content)))
    assert list(rows[0]) == ["id", "a", "b", "c", *ADDED]
    assert [rows[0]["a"], rows[0]["corrected_label"], rows[1]["c"]] == ['[1, "x"]', "a,b", "0.5"]
    frame = pandas.DataFrame({"id": [2, 3], "a": ["x", None]})
    frame.to_parquet(tmp_path / "x.parquet")
    content = add_to_table(str(tmp_path / "x.parquet"), {"3": SAID}.get, "id").decode()
    assert content.splitlines() == [
        f"id,a,{','.join(ADDED)}", "2,x,,,,", '3,,"a,b",0.500000,,',
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "is_theirs"),
    [
        ("id,why,checked_label\n1,random,\n", False),
        ("id,why,checked_label\n1,random, \n", False),
        ("id,why,checked_label\n1,random,x\n", True),
        ("\ufeffid,why,checked_label\n1,random,x\n", True),
        ("id;why;checked_label\n1;random;x\n", True),  # Saved in another form.
        ("", True),
    ],
)
def test_a_file_that_somebody_fills_in_is_theirs(tmp_path, text, is_theirs):
    (tmp_path / "to_check.csv").write_text(text)
    assert to_check.is_filled_in(epath.Path(tmp_path / "to_check.csv")) == is_theirs
    assert not to_check.is_filled_in(epath.Path(tmp_path / "none.csv"))
