"""The trial of gradients for the label model: nobody learns from what judges."""

import chex
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
    monkeypatch.setattr(on_trial, "_ROUNDS", 2)
    monkeypatch.setattr(on_trial, "_STEPS", 100)
    rows = on_trial.measure("iris", [kind], 30, [3], arms)
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


@pytest.mark.parametrize("num_sources", [1, 3])
def test_a_trust_by_row_starts_as_one_for_all_rows(on_trial, num_sources):
    kind = "flip" if num_sources == 1 else "annotators"
    cell = on_trial._drawn("iris", kind, 30, 3)
    data = on_trial._arrays(on_trial.TABLES["iris"](), cell, 3)
    start = jax.tree.map(lambda leaf: leaf[0], data.start)
    log_p = jnp.log(jnp.broadcast_to(start[1], (len(data.x), 3)))
    said = []
    for by_row in (False, True):
        arm = on_trial.Arm("meta", matrix=False, by_row=by_row)
        learned = on_trial._init_belief(arm, data, 3)
        said.append(
            on_trial._log_labels(
                arm, {"start": start, "learned": learned}, data.x, log_p, data.votes
            )
        )
    np.testing.assert_allclose(*said, rtol=1e-5, atol=1e-6)
    # A source that is trusted nowhere says nothing.
    learned["by_row"] = jnp.full_like(learned["by_row"], -1e3) * jnp.sign(data.x[0])
    params = {"start": start, "learned": learned}
    row = on_trial._log_labels(arm, params, data.x[:1], log_p[:1], data.votes[:1])
    np.testing.assert_allclose(row, log_p[:1], rtol=1e-5)


def test_learned_decays_start_at_the_fixed_one(on_trial):
    params = {"w": jnp.ones((4, 3)), "b": jnp.ones(3)}
    grads = jax.tree.map(jnp.zeros_like, params)
    updates = []
    for decays in (None, jnp.zeros((4, 1))):
        problem = on_trial._problem(on_trial.Arm("likelihood", decays="each"), decays)
        updates.append(problem.tx.update(grads, problem.tx.init(params), params)[0])
    chex.assert_trees_all_close(*updates, rtol=1e-6)
    problem = on_trial._problem(on_trial.Arm("likelihood", decays="each"), jnp.eye(4)[:, :1])
    changed = problem.tx.update(grads, problem.tx.init(params), params)[0]
    np.testing.assert_allclose(
        changed["w"][:, 0] / updates[0]["w"][:, 0], [np.e, 1, 1, 1], rtol=1e-5
    )


@pytest.mark.slow  # It compiles an arm of each kind.
def test_arms_beyond_the_label_model(on_trial, monkeypatch, standard_promotion):
    monkeypatch.setattr(on_trial, "_ROUNDS", 2)
    monkeypatch.setattr(on_trial, "_STEPS", 100)
    fixed = [
        on_trial.Arm("likelihood", matrix=False, decay=decay) for decay in on_trial._DECAYS
    ]  # fmt: skip
    arms = [
        *fixed, on_trial.Arm("meta", 5, matrix=False, by_row=True),
        on_trial.Arm("likelihood", 5, matrix=False, decays="each"),
    ]  # fmt: skip
    rows = on_trial.measure("iris", ["region"], 30, [3], arms)
    assert [row["arm"] for row in rows] == [
        "decay 0.01", "likelihood, a and l alone", "decay 0.0001", "meta k=5 exact, by row",
        "decay of each, k=5", "decay chosen",
    ]  # fmt: skip
    for row in rows:
        assert row["right"] > row["given"] + 5, row
    best = max(rows[:3], key=lambda row: row["likelihood"])
    assert rows[-1]["right"] == best["right"]
    assert "| **cosine** |" in on_trial.tables(rows)
