"""What judged rows say of labels, against numbers worked out elsewhere."""

import json

import numpy as np
import pytest
from scipy import stats

from mlc_jax.report import verdict
from mlc_jax.report.verdict import CHECKED, CLASSIFIER, CORRECTED, GIVEN


def _probs(labels, num_classes=2, sure=0.9):
    probs = np.full((len(labels), num_classes), (1 - sure) / (num_classes - 1))
    probs[np.arange(len(labels)), labels] = sure
    return probs


def _judge(
    checks, given, *, corrected=None, classifier=None, checked=None, corrects=CORRECTED, **fields
):
    checks, given = np.asarray(checks), np.asarray(given)
    says = {CORRECTED: corrected, CLASSIFIER: classifier, CHECKED: checked, GIVEN: None}
    probs = {k: _probs(given if x is None else np.asarray(x)) for k, x in says.items()}
    folds = np.arange(len(checks)) % 5
    fields = {"doubtful": 10**9, "class_names": ("no", "yes"), "corrected": corrects} | fields
    return verdict.judge(probs, checks, given, folds, **fields)


def _wrong(labels, rows):
    """Labels 0 and 1, of which those of `rows` are the other one."""
    labels = np.array(labels)
    labels[rows] = 1 - labels[rows]
    return labels


CHECKS = np.arange(40) % 2


def test_an_interval_is_wilsons_where_almost_all_rows_are_left():
    right = np.arange(30) < 24
    share = verdict.share_right(right, doubtful=10**12)
    wilson = stats.binomtest(24, 30).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose((share.low, share.high), (wilson.low, wilson.high), rtol=1e-9)
    assert (share.estimate, share.n) == (0.8, 30)


def test_an_interval_is_for_the_rows_that_were_not_drawn():
    """Of 30 drawn and 30 left the error is that of a difference: twice the variance.

    And half a step of the share of 30 rows.
    """
    right = np.arange(30) < 24
    half = verdict.share_right(right, doubtful=30)
    fewer = verdict.share_right(np.arange(15) < 12, doubtful=10**12)
    expected = (fewer.low - 1 / 60, fewer.high + 1 / 60)
    np.testing.assert_allclose((half.low, half.high), expected, rtol=1e-9)


@pytest.mark.parametrize(("left", "most"), [(160, 0.98), (25, 0.99), (5, 1)])
def test_intervals_of_random_samples_hold_the_share_of_the_others(left, most):
    """Also where few rows are left: without the half step 0.67 for five and 0.90 for 25."""
    rng, held = np.random.default_rng(0), []
    for _ in range(2_000):
        right = rng.random(40 + left) < rng.uniform(0.5, 1)
        drawn = rng.permutation(40 + left)[:40]
        share = verdict.share_right(right[drawn], doubtful=left)
        rest = np.delete(right, drawn).mean()
        held.append(share.low <= rest <= share.high)
    assert 0.93 < np.mean(held) < most


def test_so_many_per_class_are_weighted_by_how_frequent_classes_are():
    checks = np.repeat([0, 1], 10)
    right = np.concatenate([np.arange(10) < 9, np.arange(10) < 3])
    shares = np.array([0.9, 0.1])
    share = verdict.weighted_share(right, checks, shares, doubtful=10**9)
    np.testing.assert_allclose(share.estimate, 0.9 * 0.9 + 0.1 * 0.3)
    assert share.low < share.estimate < share.high
    few = verdict.weighted_share(right, checks, shares, doubtful=10)
    smooth, each = np.array([11, 5]) / 14, 0.1 + 1 / (shares * 10)
    deviation = np.sqrt(np.sum(shares**2 * smooth * (1 - smooth) * each))
    np.testing.assert_allclose(few.low, (0.84 + shares @ smooth) / 2 - 1.959964 * deviation - 0.05,
                               rtol=1e-6)  # fmt: skip
    # A class that nobody checked counts as the others do, and widens the interval.
    other = verdict.weighted_share(right[:10], checks[:10], shares, doubtful=10**9)
    np.testing.assert_allclose(other.estimate, 0.9)


def test_the_paired_test_is_mcnemars_exact_one():
    first, second = (
        np.array([1, 1, 1, 1, 1, 0, 1, 0], bool),
        np.array([0, 0, 0, 0, 1, 1, 1, 0], bool),
    )
    found = verdict.compare(first, second)
    assert (found.better, found.worse) == (4, 1)
    np.testing.assert_allclose(found.p, 2 * (1 + 5) / 2**5)
    assert not found.is_shown
    assert verdict.compare(first, first).p == 1


def test_rows_needed_have_the_power_that_is_asked_for():
    needed = verdict.rows_needed(0.2, 0.05)
    assert verdict.power(needed, 0.2, 0.05) >= 0.8 > verdict.power(needed - 1, 0.2, 0.05)
    rng, shown = np.random.default_rng(1), []
    for _ in range(1_500):
        kind = rng.choice(3, size=needed, p=(0.2, 0.05, 0.75))
        shown.append(verdict.compare(kind == 0, kind == 1).is_shown)
    assert abs(np.mean(shown) - 0.8) < 0.05
    assert verdict.rows_needed(0.1, 0.1) is None


@pytest.mark.parametrize(
    ("wrong", "take"),
    [
        # Wrong rows of the labels as given, the corrected ones, the classifier, the checked rows.
        ((range(16), range(2), range(2), range(20)), CORRECTED),
        ((range(16), range(10), range(1), range(20)), CLASSIFIER),
        ((range(16), range(12), range(12), range(2)), CHECKED),
        ((range(6), range(4), range(5), range(9)), verdict.AS_GIVEN),
        ((range(4), range(12), range(12), range(12)), verdict.AS_GIVEN),
    ],
)
def test_what_to_take(wrong, take):
    given, corrected, classifier, checked = (_wrong(CHECKS, list(rows)) for rows in wrong)
    found = _judge(CHECKS, given, corrected=corrected, classifier=classifier, checked=checked)
    assert found.take == take
    assert found.lines()[-1].startswith(f"Verdict: {verdict.SENTENCES[take]}")
    assert (found.more is not None) == (take == verdict.AS_GIVEN and len(wrong[1]) < len(wrong[0]))


def test_few_rows_have_intervals_and_no_sentence():
    given = _wrong(CHECKS, range(16))[:20]
    found = _judge(CHECKS[:20], given, corrected=CHECKS[:20])
    assert found.take is None and "20 judged rows are too few" in found.sentence
    assert found.shares[CORRECTED].n == 20


def test_without_old_labels_nothing_is_compared():
    found = _judge(CHECKS, np.full(40, -1), corrected=CHECKS, classifier=CHECKS, checked=CHECKS)
    assert "as_given" not in found.shares and not found.comparisons
    assert "given_label" in found.sentence


def test_without_judged_rows_it_says_what_to_check():
    found = _judge(CHECKS[:0], CHECKS[:0])
    assert found.lines() == [f"Verdict: {found.sentence}"] and "to_check.csv" in found.sentence


@pytest.mark.parametrize("num_judged", [0, 40])
def test_test_rows_have_a_line_of_their_own(num_judged):
    """Whether or not any row is judged; their interval is Wilson's, for rows still to come."""
    found = _judge(CHECKS[:num_judged], CHECKS[:num_judged], tested=np.arange(200) < 176)
    wilson = stats.binomtest(176, 200).proportion_ci(0.95, method="wilson")
    np.testing.assert_allclose((found.tested.low, found.tested.high), (wilson.low, wilson.high))
    expected = "Of the 200 test rows, the classifier has 88.0 % (95 %: 83 to 92) right."
    assert expected in found.lines()[:-1]
    again = verdict.Verdict.from_json(json.loads(json.dumps(found.to_json())))
    assert again == found
    before = {name: x for name, x in found.to_json().items() if name != "tested"}
    assert verdict.Verdict.from_json(before).tested is None  # Of a run that knew none.


def test_once_rows_were_looked_up_the_verdict_is_about_all_rows():
    """The random sample stands for all rows, and the least certain ones are no longer left."""
    given = _wrong(CHECKS, range(12))
    found = _judge(CHECKS, given, corrected=CHECKS, doubtful=300, looked_up=160)
    head, *_, note, _, last = found.lines()
    assert head.startswith("Percent of all 500 labels that would be right without their check, ")
    assert "160 of them were looked up" in note and "300 that nobody checked" in note
    share = verdict.share_right(given == CHECKS, 460)
    assert found.shares[verdict.AS_GIVEN] == share and last.startswith("Verdict: ")
    assert verdict.Verdict.from_json(json.loads(json.dumps(found.to_json()))) == found
    alone = _judge(CHECKS, given, corrected=CHECKS, doubtful=460)
    assert alone.lines()[0].startswith("Percent of the 460 unchecked labels that are right, ")
    assert alone.shares == found.shares


@pytest.mark.parametrize("take", [CORRECTED, CLASSIFIER, CHECKED])
def test_which_predictions_are_the_corrected_labels(take):
    """The verdict says it, and is about these."""
    given = _wrong(CHECKS, range(16))
    says = dict.fromkeys(("corrected", "classifier", "checked"), given) | {take: CHECKS}
    found = _judge(CHECKS, given, **says, corrects=take)
    marked = [line for line in found.lines() if "(corrected_label)" in line]
    if take == CORRECTED:
        assert not marked and found.names == verdict.NAMES
    else:
        assert len(marked) == 1 and verdict.NAMES[take] in marked[0]
        assert "given labels and classifiers together" in found.lines()[2]
    assert found.take == take and found.sentence.startswith("Take the corrected labels. ")
    assert {x.estimate for x in found.by_class.values()} == {1.0}
    assert found.confidence == pytest.approx(0.99, abs=0.02)
    other = _judge(CHECKS, given, corrected=CHECKS, corrects=CLASSIFIER)
    expected = "Take the given labels and classifiers together (cross_fit.take=corrected). "
    assert other.sentence.startswith(expected)
    assert verdict.Verdict.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_other_corrected_labels_that_are_no_better():
    """What shows a difference then is said of them."""
    given = _wrong(CHECKS, range(10))
    found = _judge(CHECKS, given, corrected=_wrong(CHECKS, range(4)), classifier=given,
                   checked=_wrong(CHECKS, range(7)), corrects=CHECKED)  # fmt: skip
    assert found.take == CORRECTED  # Of 6 to 0, with p = 0.03; 3 to 0 is not shown.
    found = _judge(CHECKS, given, corrected=_wrong(CHECKS, range(6)), classifier=given,
                   checked=_wrong(CHECKS, range(7)), corrects=CHECKED)  # fmt: skip
    assert found.take == verdict.AS_GIVEN
    assert found.sentence.startswith(verdict.SENTENCES[verdict.AS_GIVEN])
    assert found.more == verdict.rows_needed(3 / 40, 0) - 40


def test_shares_of_classes():
    """Of corrected labels, among judged rows of a class; printed if rows were drawn per class."""
    corrected = _wrong(CHECKS, [0, 2, 4, 5])
    found = _judge(CHECKS, CHECKS, corrected=corrected, class_shares=np.array([0.9, 0.1]))
    assert {name: (x.estimate, x.n) for name, x in found.by_class.items()} == {
        "no": (0.85, 20), "yes": (0.95, 20),
    }  # fmt: skip
    assert any(x.startswith("Corrected labels by class: no 85 (6") for x in found.lines())
    assert not any("by class" in x for x in _judge(CHECKS, CHECKS, corrected=corrected).lines())


def test_what_more_random_rows_would_bring():
    """The interval is Wilson's for all of them, if as many are right as now."""
    found = _judge(CHECKS, CHECKS, corrected=_wrong(CHECKS, range(10)), doubtful=300)
    now, then = found.narrowed(60)
    share = found.shares[CORRECTED]
    np.testing.assert_allclose(2 * now, share.high - share.low)
    right = np.arange(100) < 75
    share = verdict.share_right(right, 240, 1.25)
    np.testing.assert_allclose(2 * then, share.high - share.low)
    more = _judge(CHECKS, CHECKS, corrected=_wrong(CHECKS, range(10)), doubtful=240, looked_up=60)
    assert more.narrowed(60) == (now, then)
    other = _judge(CHECKS, CHECKS, classifier=_wrong(CHECKS, range(10)), corrects=CLASSIFIER,
                   doubtful=300)  # fmt: skip
    assert other.narrowed(60) == (now, then)
    per_class = _judge(CHECKS, CHECKS, class_shares=np.array([0.5, 0.5]))
    assert per_class.narrowed(30) is None and _judge(CHECKS[:0], CHECKS[:0]).narrowed(30) is None
    assert _judge(CHECKS, CHECKS, doubtful=50).narrowed(30) is None  # Of the last twenty rows.


def test_classes_that_nobody_checked_are_named():
    found = _judge(np.zeros(40, int), CHECKS)
    assert found.unseen == ("yes",)
    assert any("class yes" in line for line in found.lines())


def test_confidence_is_calibrated_by_other_folds():
    """Predictions that are much surer than they are right: the temperature mends it."""
    rng = np.random.default_rng(2)
    checks = rng.integers(0, 3, 600)
    said = np.where(rng.random(600) < 0.7, checks, (checks + 1) % 3)
    probs = _probs(said, 3, sure=0.99)
    confidence, error, temperature = verdict.calibrate(probs, checks, np.arange(600) % 5)
    assert temperature > 1.5 and error < 0.05
    assert abs(confidence - np.mean(said == checks)) < 0.05
    flat = verdict.flatten(probs, temperature)
    np.testing.assert_allclose(flat.sum(axis=1), 1)
    np.testing.assert_array_equal(flat.argmax(axis=1), said)
