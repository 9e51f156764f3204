"""The suite of people's tables: how labels are made wrong, and what is said of the cells."""

import numpy as np
import pytest

from experiments.labels import instead, tables_of_people
from experiments.labels.tables_of_people import TABLES, draw
from mlc_jax.errors import InputError


@pytest.mark.parametrize(
    ("noise", "right"), [("flip", 0.65), ("unif", 2 / 3), ("hard", 0.7), ("region", 0.7)]
)
def test_labels_are_wrong_as_often_as_said(noise, right):
    table = TABLES["iris"]()
    shares = []
    for number in range(20):
        cell = draw("iris", table, noise, "random:30", number)
        assert np.array_equal(cell.truth, table.labels[cell.rows])
        shares.append(np.mean(cell.given == cell.truth))
        wrong = cell.given != cell.truth
        if noise == "flip":
            assert np.array_equal(cell.given[wrong], (cell.truth[wrong] + 1) % 3)
    assert np.mean(shares) == pytest.approx(right, abs=0.03)


def test_the_same_rows_are_checked_whatever_the_noise():
    table = TABLES["wine"]()
    cells = [draw("wine", table, noise, "random:30", 4) for noise in ("flip", "unif", "hard")]
    for cell in cells:
        assert np.array_equal(cell.rows, cells[0].rows)
        assert np.array_equal(cell.checked, cells[0].checked)
        assert cell.checked.sum() == 30
        assert not {*cell.rows} & {*cell.unseen}
        assert len(cell.rows) + len(cell.unseen) == len(table.labels)
    of_each = draw("wine", table, "flip", "per_class:5", 4)
    assert np.bincount(of_each.truth[of_each.checked]).tolist() == [5, 5, 5]


def test_a_gap_is_to_the_best_baseline_of_the_cell(load_program):
    own_data_suite = load_program("experiments.labels.own_data_suite")
    one = {"given": 60.0, "lr_checked": 80.0, "lr_given": 70.0}
    other = {"given": 60.0, "lr_checked": 60.0, "lr_given": 90.0}
    cell = [one | {"corrected": 82.0}, other | {"corrected": 84.0}]
    gap, error = own_data_suite._gap(cell)  # The means are 60, 70 and 80: lr_given.
    assert gap == pytest.approx((12 - 6) / 2)
    assert error == pytest.approx(9.0)


def test_a_column_of_many_texts_is_left_out_and_rows_with_gaps(monkeypatch):
    rows = [
        {"a": str(i), "name": f"n{i}", "colour": "red" if i % 2 else "blue", "label": "xy"[i % 2]}
        for i in range(20)
    ]
    rows[3]["a"] = "NA"
    table = tables_of_people._encoded(rows, ["label"], ("a", "name", "colour"), 0)
    assert table.features.shape == (19, 3)  # The number and two colours.
    np.testing.assert_allclose(table.features.mean(axis=0), 0, atol=1e-6)


def test_the_many_are_none_of_those_that_something_was_chosen_on():
    assert len(tables_of_people.MANY) == 52
    first = [name for name in TABLES if name not in tables_of_people.MANY | tables_of_people.MADE]
    assert len(first) == 13
    # The draws depend on a table's place.
    assert list(TABLES)[13:65] == list(tables_of_people.MANY)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cleanlab", "linear", "self_training"])
def test_slower_columns_judge_the_same_rows(name, standard_promotion):
    if name == "cleanlab":
        pytest.importorskip("cleanlab")
    table = TABLES["iris"]()
    cell = draw("iris", table, "flip", "random:30", 3)
    found, simple = instead.by_others(name, table, cell), instead.baselines(table, cell)
    assert set(found) == {name, f"unseen_{name}"}
    assert found[name] > simple["given"] + 5
    num_doubtful = (~cell.checked).sum()
    assert (found[name] * num_doubtful / 100) % 1 == pytest.approx(0, abs=1e-6)


def test_texts_become_a_table(tmp_path, tiny_bert, run_program, monkeypatch):
    """Published files to features, and these to a table for --sets."""
    monkeypatch.setattr(tables_of_people, "TABLES", dict(tables_of_people.TABLES))
    monkeypatch.setattr(tables_of_people, "_SEEDS", {})
    for name in ("train", "test"):
        rows = [f'"{i % 4 + 1}","title {i}","a text of {"abcd"[i % 4]}"' for i in range(12)]
        (tmp_path / f"{name}.csv").write_text("\n".join(rows) + "\n")
    out = tmp_path / "news.npz"
    flags = [f"--data_dir={tmp_path}", f"--checkpoint={tiny_bert}", f"--out={out}"]
    program, required = "experiments.labels.text_features", ["checkpoint", "out"]
    code, told, _ = run_program(program, *flags, required=required)
    assert code == 0 and told.endswith("news.npz: 12 texts\n")
    assert tables_of_people.named(str(out)) == ("news",)
    table = tables_of_people.TABLES["news"]()
    assert table.features.shape == (12, 16) and table.labels.tolist() == [i % 4 for i in range(12)]
    code, _, err = run_program(program, *flags[1:], required=required)
    assert code == 2 and "--data_dir: got None, expected a directory" in err


def test_a_table_of_ones_own(tmp_path, monkeypatch):
    """Its draws depend on its name alone; no other table may have that name."""
    monkeypatch.setattr(tables_of_people, "TABLES", dict(tables_of_people.TABLES))
    monkeypatch.setattr(tables_of_people, "_SEEDS", {})
    rng = np.random.default_rng(0)
    for name in ("one", "two", "wine"):
        arrays = {"features": rng.normal(3, 2, size=(50, 4)), "labels": np.arange(50) % 3}
        np.savez(tmp_path / f"{name}.npz", **arrays)
    files = [f"{tmp_path}/{name}.npz" for name in ("one", "two")]
    assert tables_of_people.named(",".join(["iris", *files])) == ("iris", "one", "two")
    table = tables_of_people.TABLES["two"]()
    np.testing.assert_allclose(table.features.std(axis=0), 1, rtol=1e-5)
    first = tables_of_people.draw("two", table, "flip", "random:10", 3)
    for name in ("one", "two"):
        del tables_of_people.TABLES[name]
    assert tables_of_people.named(files[1]) == ("two",)
    again = tables_of_people.draw("two", table, "flip", "random:10", 3)
    np.testing.assert_array_equal(first.given, again.given)
    for sets in (f"{tmp_path}/wine.npz", f"{tmp_path}/no.npz", "no"):
        with pytest.raises(InputError, match="--sets"):
            tables_of_people.named(sets)
