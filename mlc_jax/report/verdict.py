"""Estimates how good labels are, on checks that the classifiers did not see, and recommends some.

Everything here is measured on *judged* rows: checked rows that were not chosen because of a run's
predictions. Classifiers that did not see the check predict them. The result is an estimate for the
rows that nobody checked; where some rows were looked up, for all rows. Uses NumPy and SciPy only.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import optimize, special, stats

from mlc_jax.data.source import UNKNOWN
from mlc_jax.errors import readable

BY_CLASS = "Corrected labels by class"
ENOUGH = 30  # With fewer judged rows there are intervals, but no recommendation.
AS_GIVEN, CORRECTED, CLASSIFIER, CHECKED, GIVEN = (
    "as_given", "corrected", "classifier", "checked", "given",
)  # fmt: skip
NAMES = {
    AS_GIVEN: "labels as given",
    CORRECTED: "corrected labels",
    CLASSIFIER: "the classifier's own predictions",
    CHECKED: "a classifier of the checked rows alone",
    GIVEN: "a classifier of the labels as given",
}
# What the pool is called if the corrected labels are others.
_TOGETHER = "given labels and classifiers together"
SENTENCES = {
    CORRECTED: "Take the corrected labels.",
    CLASSIFIER: "Take the classifier's own predictions (predicted_label in predicted_labels.csv).",
    CHECKED: "Take the predictions of the classifier of the checked rows (predicted_by_checked in "
    "predicted_labels.csv).",
    AS_GIVEN: "The corrected labels are not shown to be better than the labels as given.",
}

# Variance of a share over judged rows, divided by that of independent rows: rows of one fold are
# predicted by the same classifiers. Between 0.9 and 1.7 was measured, depending on the table.
_DEPENDENCE = 1.25
_LEVEL = 0.95
_POWER = 0.8
_MOST_ROWS = 20_000
_ROWS_PER_BIN, _MOST_BINS = 15, 10


@dataclasses.dataclass(frozen=True)
class Share:
    """A share of rows, from 0 to 1, estimated on n judged ones.

    Attributes:
      estimate: None without a judged row.
      low, high: of the 95 % interval.
      n: judged rows.
    """

    estimate: float | None
    low: float
    high: float
    n: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two predictions on the same rows: McNemar's exact test.

    Attributes:
      better, worse: rows that only the first has right, and only the second.
      p: two-sided.
    """

    better: int
    worse: int
    p: float

    @property
    def is_shown(self) -> bool:
        """Whether the first is shown to be the better one."""
        return self.better > self.worse and self.p < 1 - _LEVEL


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How good the labels are, and which to take. Print it.

    Attributes:
      shares: shares of right labels, by name in `NAMES`; `as_given` only if given labels are known.
      comparisons: each of them compared with the given labels.
      take: a key of `SENTENCES`, or `corrected`; None with fewer than `ENOUGH` rows, or without
        given labels.
      more: if no difference is shown, how many more rows, checked at random, would show one of this
        size with 80 % power; None if no number would.
      doubtful: number of rows that nobody checked.
      unseen: names of classes without a judged row.
      confidence, calibration_error: mean confidence in the corrected labels of judged rows, and its
        calibration error, with a temperature that was fitted on other folds.
      temperature: fitted on all folds; exported probabilities are flattened by it.
      per_class: whether a fixed number of rows per class was drawn. Shares are then weighted.
      tested: share of test rows that the classifier has right, if there are any.
      looked_up: number of checked rows that do not judge. They are no longer among the doubtful
        ones, but the judged rows stand for them, too. So shares are of all rows then.
      corrected: the predictions that became the corrected labels, see `CrossFit.take`.
      by_class: share of right corrected labels among the judged rows of each class, by its name.
    """

    shares: dict[str, Share]
    comparisons: dict[str, Comparison]
    take: str | None
    more: int | None
    doubtful: int
    unseen: tuple[str, ...]
    confidence: float | None
    calibration_error: float | None
    temperature: float
    per_class: bool
    tested: Share | None = None
    looked_up: int = 0
    corrected: str = CORRECTED
    by_class: dict[str, Share] = dataclasses.field(default_factory=dict)

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Verdict":
        """The inverse of `to_json`."""
        parts = {
            "shares": {name: Share(**x) for name, x in stored["shares"].items()},
            "comparisons": {name: Comparison(**x) for name, x in stored["comparisons"].items()},
            "unseen": tuple(stored["unseen"]),
            "tested": Share(**stored["tested"]) if stored.get("tested") else None,
            "by_class": {name: Share(**x) for name, x in stored.get("by_class", {}).items()},
        }
        return cls(**(dict(stored) | parts))

    @property
    def n(self) -> int:
        """Judged rows."""
        return self.shares[CORRECTED].n

    @property
    def sentence(self) -> str:
        """The recommendation."""
        if not self.n:
            return (
                "No row was checked at random, so there is no estimate of how good these labels "
                "are. Check the random rows of to_check.csv."
            )
        if AS_GIVEN not in self.shares:
            return (
                "The given labels of the checked rows are not known, so there is no comparison "
                "with them. Keep them, if you have them (given_label)."
            )
        if self.take is None:
            return f"{self.n} judged rows are too few for a recommendation; check {ENOUGH} or more."
        text = SENTENCES[CORRECTED if self.take == self.corrected else self.take]
        if self.take == CORRECTED != self.corrected:
            text = f"Take the {_TOGETHER} (cross_fit.take=corrected)."
        if self.take != AS_GIVEN:
            one = self.comparisons[self.take]
            return (
                f"{text} They are right on {one.better} judged rows where the given label is "
                f"wrong, and wrong on {one.worse} where it is right (p = {one.p:.2g})."
            )
        if self.more is not None:
            text += (
                f" {self.more} more rows, checked at random, would show a difference of this size."
            )
        return text

    @property
    def names(self) -> dict[str, str]:
        """`NAMES`, with a mark at what became the corrected labels if it is another prediction."""
        if self.corrected == CORRECTED:
            return NAMES
        marked = f"{NAMES[self.corrected]} (corrected_label)"
        return NAMES | {CORRECTED: _TOGETHER, self.corrected: marked}

    def narrowed(self, more: int) -> tuple[float, float] | None:
        """Half the interval's width for corrected labels: now, and with more random checks.

        None without a random sample, and if so few rows would be left that it is not narrower.
        """
        share, size = self.shares[self.corrected], self.doubtful + self.looked_up + self.n
        if share.estimate is None or self.per_class:
            return None
        p = share.estimate
        ends = [_wilson(p, n, size - n, _DEPENDENCE) for n in (self.n, self.n + more)]
        now, then = ((high - low) / 2 for low, high in ends)
        return (now, then) if then < now else None

    def lines(self) -> list[str]:
        """For the terminal; the last one says what to do."""
        tested = [self._of_tests(self.tested)] if self.tested else []
        if not self.n:
            return [*tested, f"Verdict: {self.sentence}"]
        how = "a number per class, weighted" if self.per_class else "a random sample"
        what = f"the {self.doubtful:,} unchecked labels that are right"
        if self.looked_up:
            size = self.doubtful + self.n + self.looked_up
            what = f"all {size:,} labels that would be right without their check"
        head = f"Percent of {what}, estimated on {self.n} hidden checks ({how}):"
        width = max(map(len, self.names.values()))
        rows = [f"  {self.names[name]:<{width}}  {_percent(x)}" for name, x in self.shares.items()]
        notes = tested
        if self.per_class:
            notes.append(f"{BY_CLASS}: {self._by_class()}.")
        if self.looked_up:
            notes.append(
                f"{self.looked_up:,} of them were looked up for a reason, so the labels of the "
                f"{self.doubtful:,} that nobody checked may be better than this."
            )
        if self.confidence is not None and self.calibration_error is not None:
            notes.append(
                f"Confidence in corrected labels: {100 * self.confidence:.1f} % on average, off by "
                f"{100 * self.calibration_error:.1f} points."
            )
        if self.unseen:
            more = f" and {len(self.unseen) - 5} more" if len(self.unseen) > 5 else ""
            notes.append(
                f"No judged row has class {', '.join(self.unseen[:5])}{more}: there is no estimate "
                "for labels of that class."
            )
        return [head, *rows, *map(readable, notes), f"Verdict: {self.sentence}"]

    def _by_class(self, most: int = 8) -> str:
        shown = [
            f"{name} {100 * (share.estimate or 0):.0f} ({100 * share.low:.0f} to "
            f"{100 * share.high:.0f})" for name, share in self.by_class.items()
        ]  # fmt: skip
        more = [f"{len(shown) - most} more in results.json"] if len(shown) > most else []
        return ", ".join([*shown[:most], *more])

    @staticmethod
    def _of_tests(share: Share) -> str:
        found = _percent(share).strip().replace("  ", " % ")
        return f"Of the {share.n:,} test rows, the classifier has {found} right."


def _percent(share: Share) -> str:
    assert share.estimate is not None
    return f"{100 * share.estimate:5.1f}  (95 %: {100 * share.low:.0f} to {100 * share.high:.0f})"


def judge(
    predictions: Mapping[str, np.ndarray],
    checks: np.ndarray,
    given: np.ndarray,
    folds: np.ndarray,
    *,
    doubtful: int,
    class_names: Sequence[str],
    class_shares: np.ndarray | None = None,
    tested: np.ndarray | None = None,
    looked_up: int = 0,
    corrected: str = CORRECTED,
) -> Verdict:
    """The verdict on predictions.

    Args:
      predictions: probabilities `[n, C]` by name, for all of `NAMES` except `as_given`, by
        classifiers that did not see the row's check.
      checks: `[n]`, the right labels.
      given: `[n]`, the given labels; UNKNOWN if not known, NO_LABEL if there was none, which counts
        as wrong.
      folds: `[n]`.
      doubtful: number of rows that nobody checked.
      class_names: C names.
      class_shares: `[C]`, if a fixed number of rows per class was drawn; None for a random sample.
      tested: `[T]` bool, which test rows the classifier has right.
      looked_up: number of checked rows that do not judge.
      corrected: the predictions that became the corrected labels.
    """
    right = {
        name: predictions[name].argmax(axis=-1) == checks for name in NAMES if name != AS_GIVEN
    }
    if len(checks) and (given != UNKNOWN).all():
        right = {AS_GIVEN: given == checks} | right

    def share(name: str) -> Share:
        dependence = 1.0 if name == AS_GIVEN else _DEPENDENCE
        others = doubtful + looked_up
        if class_shares is None:
            return share_right(right[name], others, dependence)
        return weighted_share(right[name], checks, class_shares, others, dependence)

    comparisons, take, more = {}, None, None
    if AS_GIVEN in right:
        comparisons = {
            name: compare(x, right[AS_GIVEN]) for name, x in right.items() if name != AS_GIVEN
        }
        if len(checks) >= ENOUGH:
            take, more = _choose(right, comparisons, corrected)
    confidence, error, temperature = calibrate(predictions[corrected], checks, folds)
    classes = np.unique(checks).tolist()
    return Verdict(
        shares={name: share(name) for name in right},
        comparisons=comparisons,
        take=take,
        more=more,
        doubtful=doubtful,
        unseen=tuple(class_names[i] for i in np.setdiff1d(np.arange(len(class_names)), checks)),
        confidence=confidence,
        calibration_error=error,
        temperature=temperature,
        per_class=class_shares is not None,
        tested=None if tested is None else share_right(tested, math.inf),
        looked_up=looked_up,
        corrected=corrected,
        by_class={
            class_names[i]: share_right(right[corrected][checks == i], math.inf, _DEPENDENCE)
            for i in classes
        },
    )


def _choose(
    right: Mapping[str, np.ndarray], comparisons: Mapping[str, Comparison], corrected: str
) -> tuple[str, int | None]:
    """The recommendation, and how many more rows would settle it."""
    is_shown = comparisons[corrected].is_shown
    for name in (CHECKED, CLASSIFIER, CORRECTED):
        if name != corrected and comparisons[name].is_shown:
            is_better = compare(right[name], right[corrected]).is_shown
            if is_better or (name != CHECKED and not is_shown):
                return name, None
    if is_shown:
        return corrected, None
    one, n = comparisons[corrected], len(right[corrected])
    needed = rows_needed(one.better / n, one.worse / n)
    return AS_GIVEN, None if needed is None else max(needed - n, 1)


def share_right(right: np.ndarray, doubtful: float, dependence: float = 1.0) -> Share:
    """Wilson's interval for the share of right labels among the rows that were not drawn.

    The error of the estimate has variance `p (1 - p) (1 / n + 1 / doubtful)`, so n rows count as
    fewer. The dependence within folds lowers their number further. The share of a few doubtful rows
    moves in steps of `1 / doubtful`, so half a step is added at both ends (Yates' correction).

    Args:
      right: `[n]` bool.
      doubtful: number of rows that the estimate is for; infinite for rows still to come.
      dependence: variance, divided by that of independent rows.
    """
    n = len(right)
    if n == 0:
        return Share(None, 0.0, 1.0, 0)
    p = float(np.mean(right))
    return Share(p, *_wilson(p, n, doubtful, dependence), n)


def _wilson(p: float, n: int, doubtful: float, dependence: float) -> tuple[float, float]:
    """Wilson's interval; see `share_right`."""
    z = float(stats.norm.ppf((1 + _LEVEL) / 2))
    m = n / ((1 + n / max(doubtful, 1)) * dependence)
    centre = (p + z**2 / (2 * m)) / (1 + z**2 / m)
    half = z * np.sqrt(p * (1 - p) / m + z**2 / (4 * m**2)) / (1 + z**2 / m)
    half += 0.5 / max(doubtful, 1)
    return float(max(0.0, centre - half)), float(min(1.0, centre + half))


def weighted_share(
    right: np.ndarray, checks: np.ndarray, class_shares: np.ndarray, doubtful: int,
    dependence: float = 1.0,
) -> Share:  # fmt: skip
    """The estimate if a fixed number per class was drawn: the weighted mean of shares per class.

    A class without a row counts as the mean of the others. The variance of a class is computed with
    two right and two wrong rows added. Shapes: right and checks `[n]`, class_shares `[C]`; the rest
    is as for `share_right`.
    """
    if not len(checks):
        return Share(None, 0.0, 1.0, 0)
    size = len(class_shares)
    counts = np.bincount(checks, minlength=size)
    hits = np.bincount(checks, weights=right, minlength=size)
    seen = counts > 0
    of_class = np.where(seen, hits / np.maximum(counts, 1), 0.0)
    weight = class_shares[seen].sum()
    of_class[~seen] = (class_shares * of_class)[seen].sum() / max(weight, 1e-9)
    estimate = float(np.sum(class_shares * of_class))
    smooth = (hits + 2) / (counts + 4)
    each = 1 / np.maximum(counts, 0.5) + 1 / (np.maximum(class_shares, 1e-9) * max(doubtful, 1))
    variance = float(np.sum(class_shares**2 * smooth * (1 - smooth) * each))
    half = float(stats.norm.ppf((1 + _LEVEL) / 2)) * np.sqrt(variance * dependence)
    half += 0.5 / max(doubtful, 1)
    centre = (estimate + float(np.sum(class_shares * smooth))) / 2
    low, high = min(estimate, centre - half), max(estimate, centre + half)
    return Share(estimate, float(max(0.0, low)), float(min(1.0, high)), len(checks))


def compare(first: np.ndarray, second: np.ndarray) -> Comparison:
    """McNemar's exact test of two arrays `[n]` that say which rows are right."""
    better, worse = int(np.sum(first & ~second)), int(np.sum(second & ~first))
    if better + worse == 0:
        return Comparison(0, 0, 1.0)
    return Comparison(better, worse, float(stats.binomtest(better, better + worse).pvalue))


def power(n: int, better: float, worse: float) -> float:
    """Power of McNemar's test with n rows, if shares `better` are won and `worse` are lost."""
    odd = np.arange(n + 1)
    chance = stats.binom.pmf(odd, n, better + worse)
    odd, chance = odd[chance > 1e-7], chance[chance > 1e-7]
    fewest = stats.binom.isf((1 - _LEVEL) / 2, odd, 0.5) + 1  # Wins that are significant.
    return float(np.sum(chance * stats.binom.sf(fewest - 1, odd, better / (better + worse))))


def rows_needed(better: float, worse: float) -> int | None:
    """Fewest rows that show this difference with 80 % power; None without one, or for too many."""
    if better <= worse:
        return None
    low, high = 4, 8
    while power(high, better, worse) < _POWER:
        low, high = high, 2 * high
        if high > _MOST_ROWS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, better, worse) >= _POWER else (middle, high)
    return high


def calibrate(
    probs: np.ndarray, checks: np.ndarray, folds: np.ndarray
) -> tuple[float | None, float | None, float]:
    """Mean confidence, its calibration error, and the temperature to export by.

    For confidence and error, the temperature of a fold is fitted on the other folds.

    Args:
      probs: `[n, C]`.
      checks, folds: `[n]`.
    """
    if not len(checks):
        return None, None, 1.0
    tempered = probs.copy()
    for fold in np.unique(folds):
        here = folds == fold
        tempered[here] = flatten(probs[here], _temperature(probs[~here], checks[~here]))
    confidence, right = tempered.max(axis=-1), tempered.argmax(axis=-1) == checks
    num_bins = int(np.clip(len(checks) // _ROWS_PER_BIN, 1, _MOST_BINS))
    bins = np.array_split(np.argsort(confidence, kind="stable"), num_bins)
    off = [len(rows) * abs(confidence[rows].mean() - right[rows].mean()) for rows in bins]
    return float(confidence.mean()), float(sum(off) / len(checks)), _temperature(probs, checks)


def flatten(probs: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities `[n, C]` to the power 1 / temperature, normalised."""
    log_probs = np.log(np.maximum(probs, 1e-6)) / temperature
    flat: np.ndarray = special.softmax(log_probs, axis=-1)
    return flat


def _temperature(probs: np.ndarray, checks: np.ndarray) -> float:
    """The most probable temperature given the checks, with a log-normal prior around 1."""
    if not len(checks):
        return 1.0
    log_probs = np.log(np.maximum(probs, 1e-6))

    def loss(log_temperature: float) -> float:
        said = special.log_softmax(log_probs / np.exp(log_temperature), axis=-1)
        likelihood = said[np.arange(len(checks)), checks].sum()
        return float(log_temperature**2 / 2 - likelihood)

    found = optimize.minimize_scalar(loss, bounds=(-3, 3), method="bounded")
    return float(np.exp(found.x))
