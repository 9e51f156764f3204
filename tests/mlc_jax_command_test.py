"""`mlc-jax`: what it finds out, what it refuses, and its rounds. No JAX before there is work."""

import csv
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest

from mlc_jax import __main__ as program
from mlc_jax import presets
from mlc_jax.commands import correct, kinds, overrides
from mlc_jax.report.corrected import ADDED

ROOT = pathlib.Path(__file__).parents[1]
NAMES = ("ant", "bee")
SHORT = ("--cross_fit.num_folds=2", "--cross_fit.num_rounds=1", "--cross_fit.steps_per_round=30",
         "--noprogress")  # fmt: skip


def _table(path, size=120, checked=None, label="label"):
    """Two classes apart, every fourth given label wrong; returns the true ones by id."""
    rng = np.random.default_rng(0)
    truth = rng.integers(2, size=size)
    given = np.where(np.arange(size) % 4 == 0, 1 - truth, truth)
    x = (rng.normal(0, 0.5, (size, 3)) + 3 * truth[:, None]).round(4)
    rows = [
        [f"r{i}", *x[i].tolist(), NAMES[given[i]]]
        + ([NAMES[truth[i]] if i in checked else ""] if checked else [])
        for i in range(size)
    ]
    header = ["id", "a", "b", "c", label, *(["checked_label"] if checked else [])]
    _write(path, header, rows)
    return {f"r{i}": NAMES[x] for i, x in enumerate(truth)}


def _write(path, header, rows):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


def _rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def _fill(path, truth, rows=None):
    """Types labels into a `to_check.csv`."""
    written = _rows(path)
    for row in written[:rows]:
        row["checked_label"] = truth[row["id"]]
    _write(path, list(written[0]), [list(row.values()) for row in written])


@pytest.fixture
def trained(monkeypatch):
    """What `correct` trains: (config, workdir); nothing is trained, but its marks are left."""
    calls = []

    def train_and_evaluate(config, workdir, *, show_progress, again):
        place = pathlib.Path(workdir)
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text("{}")
        (place / "results.json").write_text("{}")
        if not (place / "to_check.csv").exists():
            _write(place / "to_check.csv", ["id", "checked_label", "why"],
                   [["r1", "", "random"], ["r2", "", "uncertain"]])  # fmt: skip
        calls.append((config, place))
        return {"table": "the table"}

    monkeypatch.setattr("mlc_jax.commands.train.train_and_evaluate", train_and_evaluate)
    return calls


@pytest.fixture
def refused(run_command, trained):
    """(arguments) -> the one line that says why; nothing was trained."""

    def run(*args):
        code, _, err = run_command(*args)
        assert code == 2 and not trained, err
        return [x for x in err.splitlines() if x.startswith("error: ")][-1].removeprefix("error: ")

    return run


# It trains: that the command makes of a file what it says, from the first rows to predictions.
def test_from_nothing_checked_to_predictions(
    run_command, tmp_path, monkeypatch, compilation_cache, standard_promotion
):
    monkeypatch.chdir(tmp_path)
    truth = _table("all.csv", label="kind")
    before = pathlib.Path("all.csv").read_bytes()
    command = ("correct", "all.csv", "--label=kind", *SHORT)
    code, out, _ = run_command(*command)
    assert code == 2 and not pathlib.Path("all.mlc/config.json").exists()
    assert "Nothing was trained." in out
    assert f"  mlc-jax {' '.join(command)}\n" in out
    to_check = _rows("all.mlc/to_check.csv")
    assert len(to_check) == 60 and {row["why"] for row in to_check} == {"random"}
    assert to_check[0]["example"].startswith("a=") and to_check[0]["given_label"] in NAMES

    _fill("all.mlc/to_check.csv", truth)
    code, out, err = run_command(*command)
    assert code == 0, err
    *_, verdict, _, report, labels, _, again = out.splitlines()
    assert verdict.startswith("Verdict: ")
    assert (report, labels) == ("Report: all.mlc/report.html", "Labels: all.mlc/corrected.csv")
    assert again == f"  mlc-jax {' '.join(command)}"
    assert pathlib.Path("all.csv").read_bytes() == before
    lines = pathlib.Path("all.mlc/corrected.csv").read_text().splitlines()
    theirs = before.decode().splitlines()
    assert all(x.startswith(f"{y},") for x, y in zip(lines, theirs, strict=True))
    rows = _rows("all.mlc/corrected.csv")
    assert list(rows[0])[-4:] == list(ADDED)
    checked = {row["id"] for row in to_check}
    for row in rows:
        if row["id"] in checked:
            is_right = row["kind"] == truth[row["id"]]
            assert [row[name] for name in ADDED] == [
                truth[row["id"]], "1.000000", f"{is_right:.6f}", str(not is_right),
            ]  # fmt: skip
    assert np.mean([row["corrected_label"] == truth[row["id"]] for row in rows]) > 0.95
    assert len(_rows("all.mlc/to_check.csv")) == 60  # Of the next round, and nothing is lost:
    assert {row["id"] for row in _rows("all.mlc/to_check_first.csv")} == checked
    assert {row["id"] for row in _rows("all.mlc/answers.csv")} == checked
    page = pathlib.Path("all.mlc/report.html").read_text()
    assert "<pre>mlc-jax correct all.csv --label=kind" in page

    code, out, err = run_command("predict", "all.mlc", "all.csv", "--noprogress")
    assert (code, out) == (0, "120 predictions in all.mlc/predictions/all.csv\n"), err
    assert _rows("all.mlc/predictions/all.csv")[5]["id"] == "r5"


def test_rounds(run_command, trained, tmp_path, monkeypatch, caplog):
    """What is typed is taken up before anything else, and a round learns from all of it."""
    monkeypatch.chdir(tmp_path)
    truth = _table("all.csv", checked={3, 4, 7})
    command = ("correct", "all.csv")
    assert run_command(*command)[0] == 0
    ((config, place),) = trained
    assert config.dataset.checked is None and place == tmp_path / "all.mlc"
    assert run_command(*command)[0] == 0 and trained[-1][1] == place  # Nothing is new.

    _fill("all.mlc/to_check.csv", truth)
    typed = pathlib.Path("all.mlc/to_check.csv").read_bytes()
    assert run_command(*command)[0] == 0
    assert "Round 2, in all.mlc/round_2." in caplog.text
    config, place = trained[-1]
    assert place == tmp_path / "all.mlc" / "round_2"
    assert config.dataset.checked == str(place / "answers_used.csv")
    assert [row["id"] for row in _rows(config.dataset.checked)] == ["r1", "r2"]
    assert pathlib.Path("all.mlc/to_check.csv").read_bytes() == typed

    run_command(*command)
    assert trained[-1][1] == place and len(_rows("all.mlc/answers.csv")) == 2
    # An answer that is changed is another one, and the newest counts; the old one is kept.
    _write("all.mlc/to_check.csv", ["id", "checked_label"], [["r1", "ant"], ["r2", "bee"]])
    _fill("all.mlc/to_check.csv", {"r1": "bee", "r2": "ant"})
    run_command(*command)
    config, place = trained[-1]
    assert place == tmp_path / "all.mlc" / "round_3"
    assert len(_rows("all.mlc/answers.csv")) > 2 == len(_rows(config.dataset.checked))
    # So are checks in the file itself, and other files of checks.
    _table("all.csv", checked={3, 4, 7, 9})
    run_command(*command)
    assert trained[-1][1].name == "round_4"
    more = _write("more.csv", ["id", "checked_label"], [["r20", truth["r20"]]])
    run_command(*command, f"--checks={more}")
    config, place = trained[-1]
    assert place.name == "round_5"
    assert config.dataset.checked == f"more.csv,{place / 'answers_used.csv'}"


def test_a_round_that_was_stopped_goes_on(run_command, trained, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    truth = _table("all.csv")
    run_command("correct", "all.csv")
    _fill("all.mlc/to_check.csv", truth)
    assert run_command("correct", "all.csv")[0] == 0
    place = trained[-1][1]
    (place / "results.json").unlink()
    _fill("all.mlc/to_check.csv", truth)  # Too early: it is kept for the round after.
    used = (place / "answers_used.csv").read_bytes()
    assert run_command("correct", "all.csv")[0] == 0 and "Resuming round 1." in caplog.text
    assert trained[-1][1] == place and (place / "answers_used.csv").read_bytes() == used
    run_command("correct", "all.csv")
    assert trained[-1][1] == place / "round_2"


def test_an_answer_that_is_misspelt_is_told_and_not_taken_up(refused, run_command, tmp_path):
    path = tmp_path / "all.csv"
    truth = _table(path)
    run_command("correct", str(path))
    _fill(tmp_path / "all.mlc" / "to_check.csv", dict.fromkeys(truth, "wasp"), rows=1)
    line = refused("correct", str(path))
    assert line.startswith("--checks: ") and "is 'wasp', which no row was given" in line
    assert not (tmp_path / "all.mlc" / "answers.csv").exists()


def test_what_is_being_filled_in_is_not_written_over(run_command, tmp_path):
    """The first rows to check are drawn once."""
    path = tmp_path / "all.csv"
    _table(path)
    run_command("correct", str(path))
    file = tmp_path / "all.mlc" / "to_check.csv"
    file.write_text(file.read_text().replace("random,\n", "random, \n"))
    before = file.read_bytes()
    assert run_command("correct", str(path))[0] == 2
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("header", "rows", "kind", "columns"),
    [
        (["label", "a", "b"], [["x", 1, "Rome"], ["y", 2, "Bonn"]], "table", {}),
        (["label", "text", "a"], [["x", "so it is", 1]], "text", {}),
        (["label", "review"], [["x", "good as it is"], ["y", "bad it is then"]], "text",
         {"text": "review"}),
        (["label", "path", "a"], [["x", "a/1.png", 1], ["y", "b.JPG", 2]], "image_folder", {}),
        (["label", "file"], [["x", "a/1.png"], ["y", "b.JPG"]], "image_folder", {"path": "file"}),
        (["label", "note", "a"], [["x", "good as it is", 1], ["y", "bad it is then", 2]], "table",
         {}),
        (["label", "note", "a"], [["x", "good as it is", "1,5"], ["y", "bad it is", "$2"]], "table",
         {}),
    ],
)  # fmt: skip
def test_what_a_table_is(tmp_path, header, rows, kind, columns):
    path = _write(tmp_path / "x.csv", header, rows)
    assert kinds.kind_of(path, {}) == (kind, columns)


def test_blank_lines_are_no_rows(tmp_path):
    (tmp_path / "x.csv").write_text("\nlabel,photo\n\ncat,a.png\ndog,b.jpg\n")
    found = kinds.kind_of(str(tmp_path / "x.csv"), {})
    assert found == ("image_folder", {"path": "photo"})


def test_what_other_files_are(tmp_path):
    (tmp_path / "x.npz").touch()
    (tmp_path / "x.jsonl").write_text('{"label": "x", "a": 0.5}\n{"label": "y", "b": [1]}\n')
    for name, kind in (("x.npz", "arrays"), ("x.jsonl", "table"), ("", "image_folder")):
        assert kinds.kind_of(str(tmp_path / name), {}).name == kind


def test_columns_of_other_names(run_command, trained, tmp_path):
    path = _write(
        tmp_path / "x.csv", ["key", "Kategorie", "gut", "label", "x"],
        [[f"k{i}", NAMES[i % 2], NAMES[i % 2] if i < 9 else "", "?", i * 0.7] for i in range(30)],
    )  # fmt: skip
    args = ("--label=Kategorie", "--checked=gut", "--id=key")
    assert run_command("correct", path, *args)[0] == 0
    config, _ = trained[-1]
    assert config.dataset.columns == "checked_label=gut,id=key,label=Kategorie"
    from mlc_jax.benchmarks import datasets

    dataset = datasets.load(config)
    assert dataset.class_names == NAMES and len(dataset.clean) == 9
    assert dataset.columns.names == ["x"]  # The column `label` is not the label, and no feature.
    assert dataset.noisy.ids[0] == "k9"


def test_what_a_run_wrote_is_no_feature(tmp_path):
    from mlc_jax.benchmarks import datasets

    added = [*ADDED, "predicted_label", "given_label", "why", "drawn", "why.1"]
    path = _write(
        tmp_path / "x.csv", ["label", "checked_label", "x", *added],
        [[NAMES[i % 2], NAMES[i % 2] if i < 9 else "", i * 0.7, *[i] * 7, "", i * 7 % 11]
         for i in range(30)],
    )  # fmt: skip
    config, _ = correct.create_config(correct.Options(path))
    columns = datasets.load(config).columns
    assert columns.names == ["x", "why.1"]
    assert dict(columns.left_out)["label_quality"] == "written by a run"


BAD = [
    (["no.csv"], "FILE: no file or directory 'no.csv'; expected a table"),
    (["x.txt"], "FILE: got 'x.txt', expected a file that ends in .csv"),
    (["all.csv", "--label=kin"], "--label: 'all.csv' has no column 'kin'; expected one of its 5, "
     "such as 'kind'"),
    (["all.csv", "--label=kind,b,x"], "--label: 'all.csv' has no column 'x'"),
    (["all.csv", "--checked=kint"], "--checked: 'all.csv' has no column 'kint'"),
    (["all.csv"], "FILE: 'all.csv' has no column 'label'; expected that of the labels to be named, "
     "--label=NAME, one of 'id', 'a', 'b', 'c', 'kind'"),
    (["all.csv", "--label=kind", "--dataset.drawn=rand"], "--dataset.drawn: got 'rand', expected "
     "one of random, per_class, looked_up, or None"),
    (["all.csv", "--label=kind", "--config.dataset.drwan=x"], "--config.dataset.drwan: there is no "
     "such setting; expected one that `mlc-jax settings` lists, such as --dataset.drawn"),
    (["all.csv", "--label=kind", "--dataset.class_names=emu,gnu"], "FILE: 'all.csv' line 2 has "),
    (["all.csv", "--label=kind", "--seed=x"], "--seed: got 'x', expected a whole number"),
    (["all.csv", "--label=kind", "--seed"], "--seed: has no value; expected --seed=VALUE"),
    (["all.csv", "--label=kind", "--encoder=x"], "--encoder: got 'x', expected none with"),
    (["all.csv", "--label=kind", "--out=."], "--out: "),
    (["all.csv", "--label=kind", "--label=b"], "--label is given twice; expected it once, with "
     "commas between names"),
    (["all.csv", "--label=kind", "--votes=no.csv"], "--votes: no file 'no.csv'"),
    (["all.csv", "--label=kind", "--checks=,"], "--checks: got ',', expected FILE[,FILE...]"),
    (["all.csv", "--label=kind", "--dataset.checked="], "--checks: got ''"),
    ([""], "FILE: is empty"),
    (["texts.csv"], "--encoder: got None, expected a pretrained encoder of texts"),
    (["all.csv", "--lable=kind"], "unknown: --lable=kind"),
    ([], "the following arguments are required: FILE"),
    (["empty.csv"], "FILE: 'empty.csv' is empty, expected a first line that names its columns"),
    (["none.csv"], "FILE: 'none.csv' has no label in any row; expected some to correct"),
    (["folder", "--id=x"], "--id: got 'x' with"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "problem"), BAD)
def test_what_is_wrong_is_told_as_it_was_typed(refused, tmp_path, monkeypatch, args, problem):
    monkeypatch.chdir(tmp_path)
    _table("all.csv", label="kind")
    _write("texts.csv", ["label", "text"], [["x", "so it is"], ["y", "good"]])
    _write("none.csv", ["label", "a"], [["", 1], ["", 2]])
    for name in ("x.txt", "empty.csv"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    assert refused("correct", *args).startswith(problem)


def test_settings_in_messages():
    told = [
        ("config.dataset.data: 'x.csv' line 3: bad", "FILE: 'x.csv' line 3: bad"),
        ("name all in dataset.features", "name all in --dataset.features"),
        ("--config.dataset.features=A,B takes", "--dataset.features=A,B takes"),
        ("config.seed: got -1", "--seed: got -1"),
        ("the seed, the method, a.b and 'dataset.drawn'",) * 2,
    ]
    for text, want in told:
        assert overrides.told(text, correct.WORDS) == want


def test_settings(run_command):
    assert run_command("settings", "table") == (0, presets.page("table") + "\n", "")
    code, out, _ = run_command("settings", "split_seed")
    assert code == 0 and out.splitlines()[0] == "dataset.split_seed = 0"
    assert "seed = 0" in run_command("settings")[1]
    code, _, err = run_command("settings", "zzz")
    assert code == 2 and err.startswith("error: 'zzz' is not in the name")


def test_presets_by_name(monkeypatch):
    """A preset's name before a file of that name; ./table is the file."""
    monkeypatch.setattr(sys, "argv", ["mlc-jax"])
    of = program._with_preset
    assert of("--config=table") == f"--config={ROOT}/mlc_jax/presets/table.py"
    assert of("--config=text:finetuned") == f"--config={ROOT}/mlc_jax/presets/text.py:finetuned"
    for same in ("--config=./table", "--config=table.py", "--workdir=table", "--noprogress"):
        assert of(same) == same
    assert len(presets.names()) == 12 and "digits" in presets.names()


def test_help(run_command, load_program):
    load_program("mlc_jax.main")  # Its flags may have been taken back by a test before.
    for args, shown in (
        (["--help"], "correct"), (["correct", "--help"], "--checks FILE"),
        (["predict", "--help"], "RUN"), (["settings", "--help"], "WORD"),
        (["train", "--help"], "--workdir:"),
    ):  # fmt: skip
        code, out, err = run_command(*args)
        assert (code, err) == (0, "") and shown in out


# A process of its own: that what is wrong is told before JAX and TensorFlow are imported.
@pytest.mark.parametrize(
    "args",
    [
        ["--help"], ["settings", "drawn"], ["correct", "no.csv"], ["predict", "no", "no"],
        ["correct", "slip.csv"], ["correct", "slip.csv", "--dataset.features=zz"],
        ["predict", "run", "slip.csv"],
        ["train", "--config=table", "--config.dataset.data=no.csv", "--workdir=w"],
        ["train", "--config=tabel", "--workdir=w"],
    ],
)  # fmt: skip
def test_an_answer_needs_no_jax(args, tmp_path):
    rows = [["a" if i % 2 else "b", {0: "b", 1: "cta"}.get(i, ""), i * i] for i in range(10)]
    _write(tmp_path / "slip.csv", ["label", "checked_label", "x"], rows)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text('{"method": "mlc", "dataset": {}}')
    (tmp_path / "run" / "results.json").write_text('{"step": 1}')
    (tmp_path / "run" / "dataset.json").write_text('{"columns": [{"name": "y"}]}')
    code = (
        "import sys; from mlc_jax.__main__ import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print([x for x in ('jax', 'tensorflow') if x in sys.modules])"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, cwd=tmp_path,
        env={"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert result.stdout.splitlines()[-1] == "[]", result.stderr
    assert args[0] not in ("correct", "predict", "train") or "error: " in result.stderr


@pytest.mark.slow  # Builds a wheel.
def test_the_wheel_has_the_command_and_its_presets(tmp_path):
    import zipfile

    source = tmp_path / "source"
    source.mkdir()
    for name in ("mlc_jax", "configs"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w",
         str(tmp_path), str(source)],
        check=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        (points,) = [x for x in names if x.endswith("entry_points.txt")]
        assert "mlc-jax = mlc_jax.__main__:main" in file.read(points).decode()
    assert {f"mlc_jax/presets/{name}.py" for name in presets.names()} <= {*names}
    assert not [x for x in names if x.startswith(("configs", "tests", "experiments"))]
