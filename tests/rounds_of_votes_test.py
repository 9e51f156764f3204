"""Rounds of checks of tables with several labels per row."""

import numpy as np
import pytest

from mlc_jax.errors import InputError


@pytest.fixture
def program(load_program):
    return load_program("experiments.labels.rounds")


def test_rows_that_tell_most_of_sources_come_first(program):
    """All rows are as unsure: first the source that labels most rows, then one without a check."""
    probs = np.full((6, 2), 0.5)
    votes = np.full((6, 2), program.UNKNOWN)
    votes[:4, 0], votes[4, 1] = 0, 1
    checked = np.array([[program.UNKNOWN, program.UNKNOWN]])
    chosen = program._settling(probs, votes, checked, 6)
    assert chosen[0] == 0 and chosen[-1] == 5 and sorted(chosen) == [*range(6)]
    many = np.array([[0, program.UNKNOWN]] * 100)  # What is left to know of the first is little.
    assert program._settling(probs, votes, many, 6)[0] == 4
    sure = probs.copy()
    sure[4] = 0.99, 0.01
    assert program._settling(sure, votes, many, 6)[-1] == 4


def test_draws_of_votes_have_equally_many_sources(program):
    start = program._with_votes("rules:iris", [0, 1, 2], 30)
    assert len({cell.votes.shape for cell in start.cells}) == 1
    for cell, place in zip(start.cells, start.orders, strict=True):
        assert cell.checked.sum() == 30 and sorted(place) == [*range(len(cell.rows))]
    for number, cell in enumerate(start.cells):
        votes = program.load("rules:iris", number).votes
        np.testing.assert_array_equal(cell.votes[:, : votes.shape[1]], votes)
        assert (cell.votes[:, votes.shape[1] :] == program.UNKNOWN).all()


def test_names_of_sets(program):
    assert program._named("iris,crowd:wine") == ["iris", "crowd:wine"]
    assert len(program._named("rules:many")) == len(program.MANY_SETS)
    with pytest.raises(InputError, match="--sets"):
        program._named("rules:nowhere")


@pytest.mark.slow  # Two rounds: that they go on with several sources, until all rows are checked.
def test_rounds_of_votes(program, standard_promotion):
    first, second = program.measure("crowd:iris", program.WAYS[3], [0], 2, 20)
    assert (first["checked"], second["checked"]) == (20, 105)
    assert second["right"] >= first["right"] > 80
