"""What people do to files between rounds: their answers are read as they are, and none is lost.

A newcomer adds a case by a line in `ANSWERS` or `CHANGES`. Letters are those of
`hostile_inputs_test`.
"""

import os
import re

import numpy as np
import pandas
import pytest
from cats_and_dogs import (
    GIVEN,
    OTHER,
    ROWS,
    SIZE,
    TRUTH,
    B,
    X,
    cases,
    csv,
    one_line,
    table,
)
from etils import epath

from mlc_jax.commands import rounds
from mlc_jax.errors import InputError
from mlc_jax.files.label_columns import Said, read_labels
from mlc_jax.files.tables import Table
from mlc_jax.files.values.checks import Checking, read_checks


def _answered(fields=("id", "checked_label", "why"), encoding="utf-8", delimiter=",", **changes):
    """A `to_check.csv` with the labels of ten rows, as a person or a program saves it."""
    rows = [{"id": f"{i:04d}", "checked_label": TRUTH[i], "why": "random"} for i in range(10)]
    columns = {name: [changes.get(name, str)(str(row[name])) for row in rows] for name in fields}
    return pandas.DataFrame(columns).to_csv(index=False, sep=delimiter).encode(encoding)


def _no_cells(rows):
    raise AssertionError("rows with ids are known by them")


# (name, the file of rows to check as it is saved, how many answers there are or what is wrong)
ANSWERS = [
    ("A semicolons", _answered(delimiter=";"), 10),
    ("A tabs, in UTF-16", _answered(delimiter="\t", encoding="utf-16"), 10),
    ("A a byte order mark", _answered(encoding="utf-8-sig"), 10),
    ("A blank lines", _answered().replace(b"\n", b"\r\n\r\n"), 10),
    ("A columns are gone", _answered(fields=("id", "checked_label")), 10),
    ("A ids lost their zeros", _answered(id=lambda x: x.lstrip("0") or "0"), 10),
    ("A ids became floats", _answered(id=lambda x: f"{int(x)}.0"), 10),
    ("A labels in capitals", _answered(checked_label=str.upper), 10),
    ("A labels with a blank", _answered(checked_label=lambda x: f"{x} "), 10),
    ("A labels in quotes", _answered(checked_label=lambda x: f'"{x}"'), 10),
    ("A ids as powers of ten", _answered(id=lambda x: "1.0E+3"), r"id '1\.0E\+3' is not in"),
    ("A an unknown id", _answered(id=lambda x: "zzz"), "id 'zzz' is not in"),
    ("A a new label of one row", _answered() + b"0011,emu,random\n",
     "to_check.csv' says that id '0011' is 'emu', which no row was given, and no other row has it"),
    ("A a new label of two rows", _answered() + b"0011,emu,random\n0012,Emu,random\n", 12),
    ("A a text that is no label", _answered(checked_label=lambda x: "todo"),
     "or nothing where nobody looked"),
    ("A two labels of a row", _answered() + b"0000,emu,\n".replace(b"emu", OTHER[0].encode()),
     "is checked as"),
    ("A nothing filled in", _answered(delimiter=";", checked_label=lambda x: ""), 0),
    ("A -1 is none", _answered(checked_label=lambda x: "-1"), 0),
    ("A nothing", b"", "is empty, expected a first line"),
    ("A a spreadsheet", b"PK\x03\x04" + b"\xff" * 40, "is a ZIP archive"),
    ("A cut off", _answered() + b'"00', "is never closed"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "expected"), cases(ANSWERS))
def test_answers_are_taken_up_as_they_are_saved(tmp_path, content, expected):
    path = tmp_path / "data.csv"
    path.write_bytes(csv(table(drop=["checked_label"], id=[f"{i:04d}" for i in ROWS])))
    file = read_labels(Table("config.dataset.data", str(path)), Said())
    out = epath.Path(tmp_path / "out")
    out.mkdir()
    (out / "to_check.csv").write_bytes(content)
    if isinstance(expected, str):
        with pytest.raises(InputError) as error:
            rounds.Rounds(out).take_up(file, _no_cells)
        assert re.search(expected, one_line(error.value)), str(error.value)
        assert os.listdir(out) == ["to_check.csv"]
    else:
        assert rounds.Rounds(out).take_up(file, _no_cells) == expected
        assert rounds.Rounds(out).take_up(file, _no_cells) == 0  # All are known now.
    if expected == 12:
        assert Checking(file).label("emu") is None
        assert read_checks([str(out / "answers.csv")], file).labels.names[-1] == "emu"
    if expected == 10:
        checks = read_checks([str(out / "answers.csv")], file)
        names = np.array([*checks.labels.names, ""])[checks.labels.numbers]
        assert names.tolist() == [*TRUTH[:10], *[""] * (SIZE - 10)]
        drawn = "random" if b"why" in content.replace(b"\0", b"") else "looked_up"
        assert set(checks.drawn[:10]) == {drawn}
    assert (out / "to_check.csv").read_bytes() == content


def test_a_new_class_is_counted_over_all_checks(tmp_path):
    """One row in to_check.csv and one in another file; the same row twice is one."""
    path, out = tmp_path / "data.csv", epath.Path(tmp_path / "out")
    path.write_bytes(csv(table(drop=["checked_label"], id=[f"{i:04d}" for i in ROWS])))
    file = read_labels(Table("config.dataset.data", str(path)), Said())
    out.mkdir()
    (out / "to_check.csv").write_bytes(_answered() + b"0011,emu,random\n")
    more = tmp_path / "more.csv"
    more.write_text("id,checked_label\n0011,emu\n0012,dog\n")
    with pytest.raises(InputError, match=r"to_check\.csv' says that id '0011' is 'emu'"):
        rounds.Rounds(out, [str(more)]).take_up(file, _no_cells)
    assert not (out / "answers.csv").exists()
    more.write_text("id,checked_label\n0012,emu\n")
    assert rounds.Rounds(out, [str(more)]).take_up(file, _no_cells) == 11
    # A later look without the other file names answers.csv: that is where the answer stands now.
    with pytest.raises(InputError, match=r"answers\.csv' says that id '0011' is 'emu'.* such as '"):
        rounds.Rounds(out).standing(file)
    checks = read_checks([str(more), str(out / "answers.csv")], file)
    assert checks.labels.names[-1] == "emu"


NAMED = table(drop=["checked_label"], id=[f"{i:04d}" for i in ROWS])
NAMELESS = NAMED.drop(columns="id")


def _relabelled(row, name="to_check.csv", **forms):
    """In a file of answers, another label of a row, and everything in other forms."""

    def change(out):
        # An editor that was open all the time saves the first rows in the place of the next ones.
        source = "to_check_first.csv" if name == "to_check.csv" else name
        frame = pandas.read_csv(out / source, dtype=str, keep_default_na=False)
        frame.loc[row, "checked_label"] = OTHER[row]
        for column, form in forms.items():
            frame[column] = frame[column].map(form)
        frame.to_csv(out / name, index=False)

    return change


def _blanked(row, name):
    """In a file of answers, one that is taken out."""

    def change(out):
        frame = pandas.read_csv(out / name, dtype=str, keep_default_na=False)
        frame.loc[row, "checked_label"] = ""
        frame.to_csv(out / name, index=False)

    return change


def _shuffled(frame):
    return frame.sample(frac=1, random_state=0)


def _nothing(out):
    pass


# (name, the table, what it is for the next round, what is done to the files of the first one,
# how many answers are new and all answers of that round, by row, or what is wrong)
LABELS = dict(enumerate(TRUTH[:10]))
CHANGES = [
    ("A nothing", NAMED, lambda x: x, _nothing, (0, LABELS, True)),
    ("A an answer changes its mind", NAMED, lambda x: x, _relabelled(3),
     (1, LABELS | {3: OTHER[3]}, False)),
    ("A a spreadsheet took the zeros of ids", NAMED, lambda x: x,
     _relabelled(3, id=lambda x: f"{int(x)}", checked_label=str.upper),
     (1, LABELS | {3: OTHER[3]}, False)),
    ("A answers.csv is edited", NAMED, lambda x: x, _relabelled(3, "answers.csv"),
     (0, LABELS | {3: OTHER[3]}, False)),
    ("A the first rows are edited", NAMED, lambda x: x, _relabelled(3, "to_check_first.csv"),
     (1, LABELS | {3: OTHER[3]}, False)),
    *(
        (f"A {name} loses an answer", NAMED, lambda x: x, _blanked(3, name),
         (0, {i: x for i, x in LABELS.items() if i != 3}, False))
        for name in ("answers.csv", "to_check_first.csv")
    ),
    ("B rows move, with ids", NAMED, _shuffled, _nothing, (0, LABELS, False)),
    ("B rows come", NAMED, lambda x: pandas.concat([x, x.assign(id=x["id"] + "b")]), _nothing,
     (0, LABELS, False)),
    ("B rows go", NAMED, lambda x: x.drop(index=[2, 4]), _nothing,
     (0, {i: x for i, x in LABELS.items() if i not in (2, 4)}, False)),
    ("B a column comes", NAMED, lambda x: x.assign(c=B), _nothing, (0, LABELS, True)),
    ("B other ids", NAMED, lambda x: x.assign(id="q" + x["id"]), _nothing,
     "no id of .*answers.csv', such as '0000', is in"),
    # Two rows have each of the old names, so these are new classes; the run refuses them.
    ("B other classes", NAMED, lambda x: x.assign(label=x["label"] + "s"), _nothing,
     (0, LABELS, False)),
    ("B rows without ids move", NAMELESS, _shuffled, _nothing, "is another one than when to_check"),
    ("B a row without an id goes", NAMELESS, lambda x: x.drop(index=5), _nothing,
     "line 7 of .* is another one than when to_check"),
    ("B a row without an id comes first", NAMELESS, lambda x: pandas.concat([x[7:8], x]), _nothing,
     "is another one than when to_check"),
    ("B rows without ids come last", NAMELESS, lambda x: pandas.concat([x, x]), _nothing,
     (0, LABELS, False)),
    ("B a cell of rows without ids", NAMELESS, lambda x: x.assign(b=1.0), _nothing,
     (0, LABELS, True)),
]  # fmt: skip


@pytest.mark.parametrize(("frame", "change", "edit", "expected"), cases(CHANGES))
def test_what_changes_between_rounds(tmp_path, frame, change, edit, expected):
    path, out = tmp_path / "data.csv", epath.Path(tmp_path / "out")
    out.mkdir()

    def read(frame):
        path.write_bytes(csv(frame))
        cells = frame.drop(columns=["label"]).astype(str).to_dict("records")
        file = read_labels(Table("config.dataset.data", str(path)), Said())
        return file, lambda rows: [cells[row] for row in rows]

    file, cells = read(frame)
    done = rounds.Rounds(out)
    (out / "to_check.csv").write_bytes(
        _answered(id=str if "id" in frame else lambda x: f"{int(x)}")
    )
    done.remember(1, file, cells)
    assert done.take_up(file, cells) == 10
    done.begin(1, file, [])
    (out / "config.json").touch()
    edit(out)

    file, cells = read(change(frame))
    before = (out / "answers.csv").read_bytes()
    if isinstance(expected, str):
        with pytest.raises(InputError) as error:
            done.take_up(file, cells)
            done.begin(2, file, [])
        assert re.search(expected, one_line(error.value)), str(error.value)
        assert (out / "answers.csv").read_bytes() == before
        return
    number, labels, is_known = expected
    assert done.take_up(file, cells) == number
    assert (out / "answers.csv").read_bytes().startswith(before)  # Nothing is lost.
    assert done.is_known(1, file, []) == is_known
    done.begin(2, file, [])
    assert done.take_up(file, cells) == 0
    checks = read_checks([str(out / "round_2" / "answers_used.csv")], file)
    names = [str(i) for i in range(len(checks.labels.numbers))] if file.ids is None else file.ids
    got = zip(names, checks.labels.numbers, strict=True)
    assert {int(name): checks.labels.names[x] for name, x in got if x >= 0} == labels


def test_what_is_changed_last_counts(tmp_path):
    """In whichever file, however often, and before or after a round."""
    (tmp_path / "data.csv").write_bytes(csv(NAMED))
    file = read_labels(Table("config.dataset.data", str(tmp_path / "data.csv")), Said())
    out = epath.Path(tmp_path / "out")
    out.mkdir()
    (out / "to_check.csv").write_bytes(_answered())
    done = rounds.Rounds(out)
    assert done.take_up(file, _no_cells) == 10

    def changed(name, label, number=0, row=3):
        frame = pandas.read_csv(out / name, dtype=str, keep_default_na=False)
        place = frame.index[frame["id"] == f"{row:04d}"][-1]
        frame.loc[place, "checked_label"] = label
        frame.to_csv(out / name, index=False)
        for new in (number, 0):
            assert rounds.Rounds(out).take_up(file, _no_cells) == new
        found = {int(x.id): x.label for x in done.standing(file)}
        assert found.get(row, "") == label

    right, wrong = TRUTH[3], OTHER[3]
    changed("to_check.csv", "")
    changed("to_check.csv", wrong, 1)
    changed("answers.csv", right)
    changed("to_check.csv", right)
    changed("to_check.csv", "", row=4)
    changed("to_check.csv", TRUTH[4], 1, row=4)
    for number in (1, 2):
        done.begin(number, file, [])
        (done.directory(number) / "config.json").touch()
        rows = [f"{i:04d},,random\n" for i in range(10 * number, 10 * number + 10)]
        to_check = "".join(["id,checked_label,why\n", *rows])
        (done.directory(number) / "to_check.csv").write_text(to_check)
        changed("to_check_first.csv", wrong, 1)
        changed("answers.csv", right)
        changed("answers.csv", "")
        changed("to_check_first.csv", right, 1)
        changed("to_check_first.csv", "")
        changed("answers.csv", right)
    changed("round_2/to_check.csv", TRUTH[22], 1, row=22)
    changed("to_check.csv", TRUTH[12], 1, row=12)
    changed("round_2/to_check.csv", "", row=22)
    changed("to_check.csv", "", row=12)
    for row in range(10):
        changed("answers.csv", "", row=row)
    assert not done.standing(file)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-8-sig"])
def test_answers_that_a_spreadsheet_saved_take_up_more(tmp_path, encoding):
    """And answers.csv may be a link: it stays one."""
    (tmp_path / "data.csv").write_bytes(csv(NAMED))
    file = read_labels(Table("config.dataset.data", str(tmp_path / "data.csv")), Said())
    out = epath.Path(tmp_path / "out")
    out.mkdir()
    saved = "id\tnote\tchecked_label\twhy\tfile\n0050\t\u00fcnsure\tdog\trandom\tx.csv\n"
    (tmp_path / "mine.csv").write_bytes(saved.encode(encoding))
    (tmp_path / "out" / "answers.csv").symlink_to(tmp_path / "mine.csv")
    (out / "to_check.csv").write_bytes(_answered())
    assert rounds.Rounds(out).take_up(file, _no_cells) == 10
    assert len(rounds.Rounds(out).standing(file)) == 11
    text = (tmp_path / "mine.csv").read_text(encoding="utf-8-sig")
    assert text.startswith(saved) and (tmp_path / "out" / "answers.csv").is_symlink()


def test_a_round_is_no_directory_of_rounds(run_command, tmp_path):
    (tmp_path / "data.csv").write_bytes(csv(table()))
    out = tmp_path / "data.mlc"
    out.mkdir()
    (out / "config.json").write_text('{"method": "mlc", "dataset": {}}')
    place = out / "round_2"
    code, _, err = run_command("correct", str(tmp_path / "data.csv"), f"--out={place}")
    assert code == 2 and f"--out: {str(place)!r} is a round of {str(out)!r}; expected that" in err
    assert os.listdir(out) == ["config.json"]


def test_a_directory_of_somebody_is_no_round(tmp_path):
    """Nor is anything written into it."""
    (tmp_path / "data.csv").write_bytes(csv(table()))
    file = read_labels(Table("config.dataset.data", str(tmp_path / "data.csv")), Said())
    out = epath.Path(tmp_path / "out")
    (out / "round_2").mkdir(parents=True)
    (out / "config.json").touch()
    (out / "round_2" / "mine.txt").touch()
    with pytest.raises(InputError, match=r"not of a round, such as 'mine\.txt'"):
        rounds.Rounds(out).begin(2, file, [])
    assert os.listdir(out / "round_2") == ["mine.txt"]


def test_a_round_that_could_not_start_is_taken_back(tmp_path):
    """All files are as they were; what a run has begun stays."""
    (tmp_path / "data.csv").write_bytes(csv(NAMED))
    file = read_labels(Table("config.dataset.data", str(tmp_path / "data.csv")), Said())
    out = epath.Path(tmp_path / "out")
    out.mkdir()
    (out / "to_check.csv").write_bytes(_answered())
    done = rounds.Rounds(out)
    done.take_up(file, _no_cells)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    done.begin(1, file, [])
    assert {x.name for x in out.iterdir()} > {"to_check_first.csv", "answers_used.csv"}
    done.take_back(1)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    done.begin(2, file, [])
    done.take_back(2)
    assert not (out / "round_2").exists()
    done.begin(2, file, [])
    (out / "round_2" / ".lock").touch()
    done.take_back(2)
    assert (out / "round_2" / "answers_used.csv").exists()


def test_what_a_person_added_to_the_answers_stays(tmp_path):
    (tmp_path / "data.csv").write_bytes(csv(NAMED))
    file = read_labels(Table("config.dataset.data", str(tmp_path / "data.csv")), Said())
    out = epath.Path(tmp_path / "out")
    out.mkdir()
    mine = "id;note;checked_label;why;file\n0050;ünsure;dog;random;x.csv"
    (out / "answers.csv").write_text(mine, encoding="utf-8")
    (out / "to_check.csv").write_bytes(_answered())
    assert rounds.Rounds(out).take_up(file, _no_cells) == 10
    lines = (out / "answers.csv").read_text(encoding="utf-8").splitlines()
    assert "\n".join(lines[:2]) == mine and len(lines) == 12
    assert lines[2].startswith(f"0000;;{TRUTH[0]};") and lines[2].endswith(";to_check.csv")


@pytest.mark.parametrize(
    ("frame", "problem"),
    [
        (NAMED.assign(label="cat"), "has one class, 'cat'"),
        (NAMED.assign(label=np.where(ROWS == 3, "Cat", NAMED["label"])), "which looks like it"),
        (NAMED[["id", "label"]].assign(year=2024), "has no column that can be a feature"),
        (NAMED.assign(target=NAMED["label"]), "column 'target' equals label"),
    ],
)
def test_nobody_checks_rows_of_a_file_that_is_refused_then(run_command, tmp_path, frame, problem):
    path = tmp_path / "data.csv"
    path.write_bytes(csv(frame))
    code, _, err = run_command("correct", str(path))
    assert code == 2 and problem in err
    assert os.listdir(tmp_path) == ["data.csv"]


@pytest.mark.parametrize("option", ["--label=a,b,c", "--votes=votes.csv"])
def test_the_first_rows_to_check_have_the_majority_vote(run_command, tmp_path, option, monkeypatch):
    """Ties: the class that comes first."""
    monkeypatch.chdir(tmp_path)
    votes = ["2,1,1", "10,2,", ",,", "1,2,10"] * 40
    columns, long = ["id,x,a,b,c"], ["id,source,label"]
    for i, row in enumerate(votes):
        columns.append(f"{i},{i % 7},{row}" if "label" in option else f"{i},{i % 7},,,")
        long += [f"{i},{name},{x}" for name, x in zip("abc", row.split(","), strict=True)]
    (tmp_path / "data.csv").write_text("\n".join(columns) + "\n")
    (tmp_path / "votes.csv").write_text("\n".join(long) + "\n")
    code, out, err = run_command("correct", "data.csv", option)
    assert code == 2 and "60 rows, drawn at random" in out, err
    (place,) = tmp_path.rglob("to_check.csv")
    rows = pandas.read_csv(place, dtype=str, keep_default_na=False)
    most = ["1", "2", "", "1"]
    assert rows["given_label"].tolist() == [most[int(number) % 4] for number in rows["id"]]


def test_whole_floats_of_a_source_are_no_classes(run_command, tmp_path):
    """`0` and `0.0` are one when rows are drawn, as when a run learns from them."""
    x = (GIVEN == "cat").astype(int)
    NAMED.drop(columns="label").assign(x=x, y=x * 1.0).to_csv(tmp_path / "data.csv", index=False)
    code, out, err = run_command("correct", str(tmp_path / "data.csv"), "--label=x,y")
    assert code == 2 and "60 rows, drawn at random" in out, err


@pytest.mark.parametrize("ending", ["csv", "jsonl", "npz"])
def test_rows_without_ids_that_have_moved_are_refused(run_command, tmp_path, ending):
    """By the command: answers would go to other rows, silently."""
    path, to_check = tmp_path / f"data.{ending}", tmp_path / "data.mlc" / "to_check.csv"

    def write(rows):
        if ending == "npz":
            np.savez(path, inputs=X[rows], labels=GIVEN[rows])
        elif ending == "csv":
            path.write_bytes(csv(NAMELESS.iloc[rows]))
        else:
            NAMELESS.iloc[rows].to_json(path, orient="records", lines=True)

    write(ROWS)
    assert run_command("correct", str(path))[0] == 2
    frame = pandas.read_csv(to_check, dtype=str)
    frame["checked_label"] = [TRUTH[int(x)] for x in frame["id"]]
    frame.to_csv(to_check, index=False)
    before = to_check.read_bytes()
    write(ROWS[::-1])
    code, _, err = run_command("correct", str(path))
    assert code == 2 and "is another one than when to_check.csv asked for it" in err
    assert to_check.read_bytes() == before and not (to_check.parent / "answers.csv").exists()
