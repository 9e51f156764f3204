"""The trial of gradients for the label model: nobody learns from what judges."""

import numpy as np
import pytest

from experiments.labels.tables_of_people import TABLES


@pytest.fixture
def on_trial(load_program):
    return load_program("experiments.labels.on_trial")


@pytest.fixture
def arrays(on_trial):
    table = TABLES["iris"]()
    cell = on_trial._drawn("iris", "flip", 30, 3)
    return table, cell, on_trial._arrays(table, cell, 3)


def test_two_folds_are_hidden_and_a_part_is_left_out(arrays):
    _, cell, data = arrays
    judges, outer, known = (np.asarray(x) for x in (data.judges, data.outer, data.known))
    assert sorted(judges.ravel()) == sorted(np.flatnonzero(cell.checked))
    for k in range(len(judges)):
        hidden = {*judges[k], *outer[k]}
        assert len(hidden) == 12
        assert {*np.flatnonzero(known[k] >= 0)} == {*np.flatnonzero(cell.checked)} - hidden
        seen = known[k] >= 0
        assert np.array_equal(known[k][seen], cell.truth[seen])
        for h, rows in enumerate(np.asarray(data.lists[k])):
            assert not (np.asarray(data.part)[rows] == h).any()


@pytest.mark.slow  # It compiles an arm of each kind.
def test_labels_of_every_arm_are_better_than_given(on_trial, monkeypatch, standard_promotion):
    arms = [on_trial.Arm("fixed"), on_trial.Arm("likelihood"), on_trial.Arm("meta", 5)]
    monkeypatch.setattr(on_trial, "ARMS", arms)
    monkeypatch.setattr(on_trial, "_ROUNDS", 2)
    monkeypatch.setattr(on_trial, "_STEPS", 100)
    rows = on_trial.measure("iris", ["flip"], 30, [3])
    assert [row["arm"] for row in rows] == ["fixed", "likelihood", "meta k=5 exact"]
    for row in rows:
        assert row["right"] > row["given"] + 5
        assert -1 <= row["cosine"] <= 1
    table = on_trial.tables(rows)
    assert "| iris | flip |" in table and "**minus likelihood**" in table
