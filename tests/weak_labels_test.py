"""Rules that label texts, by hand."""

import numpy as np
import pytest


@pytest.fixture
def weak_labels(load_program):
    return load_program("experiments.labels.weak_labels")


def test_most_matches_win_and_nothing_is_drawn(weak_labels):
    by_keywords = weak_labels.by_keywords
    texts = [
        "President meets rebels; a game is off",  # Two of the world, one of sports.
        "Coach praises the TEAM",
        "Shares of a software company",  # Two of business, one of technology.
        "NASA",
    ]
    np.testing.assert_array_equal(by_keywords(texts), [0, 1, 2, 3])
    drawn = by_keywords(["nothing to see"] * 400)
    assert set(drawn) == {0, 1, 2, 3}
    np.testing.assert_array_equal(drawn, by_keywords(["nothing to see"] * 400))
    assert len(weak_labels.KEYWORDS) == len(weak_labels.DESCRIPTIONS) == 4


def test_likeness_is_relative_to_that_of_other_texts(weak_labels):
    descriptions = np.array([[1.0, 0.0], [0.0, 1.0]])
    # All texts are more like class 0; the last one less so than the others.
    texts = np.array([[3.0, 0.3], [10.0, 1.0], [2.0, 1.0]])
    np.testing.assert_array_equal(weak_labels.by_likeness(texts, descriptions), [0, 0, 1])
