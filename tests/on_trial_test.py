"""The trial of gradients for the label model: nobody learns from what judges."""

import jax
import jax.numpy as jnp
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


@pytest.mark.parametrize("network", [False, True])
def test_a_source_that_says_nothing_adds_nothing(on_trial, network):
    """So draws with fewer sources are padded; each source has a matrix, or embeddings, of its own.

    What is counted sees the checks of three folds only.
    """
    table = TABLES["iris"]()
    cell = on_trial._drawn("iris", "annotators", 30, 3)
    silent = np.pad(cell.votes, ((0, 0), (0, 1)), constant_values=-1)
    (_, alone), (longer, _) = (
        on_trial._of_one_size([cell._replace(votes=x) for x in (a, b)])
        for a, b in ((silent, cell.votes), (cell.votes, silent))
    )
    for padded in (alone, longer):
        np.testing.assert_array_equal(padded.votes, silent)
    arm, rows = on_trial.Arm("meta", network=network), slice(0, 40)
    said = []
    for each in (cell, alone):
        data = on_trial._arrays(table, each, 3)
        start = jax.tree.map(lambda leaf: leaf[0], data.start)
        assert start[0].shape == (each.votes.shape[1], 3, 3)
        log_p = jnp.log(jnp.broadcast_to(start[1], (40, 3)))
        params = {"start": start, "learned": on_trial._init_belief(arm, data, 3)}
        said.append(on_trial._log_labels(arm, params, data.x[rows], log_p, data.votes[rows]))
    np.testing.assert_allclose(*said, rtol=1e-5, atol=1e-6)
    # Of the network, which begins as the labels as given, the most frequent.
    given = on_trial._given(cell, 3)[rows]
    if network:
        spoke = given >= 0
        np.testing.assert_array_equal(np.argmax(said[0], axis=1)[spoke], given[spoke])


@pytest.mark.slow  # It compiles an arm of each kind.
@pytest.mark.parametrize("kind", ["flip", "annotators"])
def test_labels_of_every_arm_are_better_than_given(on_trial, monkeypatch, standard_promotion, kind):
    arms = [
        on_trial.Arm("fixed"), on_trial.Arm("likelihood"), on_trial.Arm("meta", 5),
        on_trial.Arm("likelihood", network=True), on_trial.Arm("meta", 5, network=True),
    ]  # fmt: skip
    monkeypatch.setattr(on_trial, "ARMS", arms)
    monkeypatch.setattr(on_trial, "_ROUNDS", 2)
    monkeypatch.setattr(on_trial, "_STEPS", 100)
    rows = on_trial.measure("iris", [kind], 30, [3])
    assert [row["arm"] for row in rows] == [
        "fixed", "likelihood", "meta k=5 exact", "network likelihood", "network k=5 exact"
    ]  # fmt: skip
    for row in rows:
        # Six checks may mislead the likelihood of a matrix; the network starts as labels are given.
        least = 5 if row["arm"] in ("fixed", "meta k=5 exact") else -5
        assert row["right"] > row["given"] + least, row
        assert -1 <= row["cosine"] <= 1
    table = on_trial.tables(rows)
    assert f"| iris | {kind} |" in table and "**minus likelihood**" in table
