"""Finds columns that give the checked or the given label away: target leakage."""

from collections.abc import Iterable

import numpy as np

_CHANCE = 1e-6  # The largest probability that a column determines a label by chance.
_SAME = 0.95  # The least share of rows in which a column equals a label.
_BEYOND_CHANCE = 0.8  # The least Cohen's kappa of the two.
_OFTEN = 0.8  # The least share of rows in which a copy of the given label agrees with it.
_HALF = 0.5  # The least Cohen's kappa of the two: any column agrees if most rows have one label.
_MIN_WRONG = 8  # The least number of rows whose check contradicts the given label.
_AS_ROWS = 0.9  # A column with so many values per different row only tells rows apart.
_ROWS_PER_LABEL = 10  # Fewer different rows per label show nothing.
_ROWS_PER_VALUE = 5  # The least average: a value of one row always agrees with that row's label.


def leak(
    values: np.ndarray | None,
    texts: np.ndarray | None,
    given: np.ndarray,
    checked: np.ndarray | None,
    names: list[str],
    rows: np.ndarray | None = None,
) -> str | None:
    """What a column gives away, as the end of a sentence: `determines checked_label`.

    Args:
      values: `[N]` float64, equal where the column's values are equal, NaN where one is missing;
        None if that is not known.
      texts: `[N]`, the values as texts; None for columns with many texts.
      given: `[N]`, numbers of given labels; negative for no label.
      checked: `[N]`, the same for checked labels; None if there are none.
      names: of the labels.
      rows: `[N]`, equal where rows are equal in all columns, see `same_rows`; None if not known.
    """
    columns = {"checked_label": checked, "label": given}
    for name, labels in columns.items():
        if labels is not None and texts is not None:
            share = _share_of_equal(texts, labels, names)
            if share >= _SAME:
                return f"equals {name} in {100 * share:.0f} % of rows"
    if values is None:
        return None
    for name, labels in columns.items():
        if labels is not None and _determines(values, labels, rows):
            return f"determines {name}"
    if checked is not None and _follows_slips(values, given, checked, rows):
        return "agrees with label also where checked_label says that it is wrong"
    return None


def _share_of_equal(texts: np.ndarray, labels: np.ndarray, names: list[str]) -> float:
    """The share of rows with equal text and label; 0 if chance explains much of it."""
    known = (labels >= 0) & (texts != "")
    if not known.any():
        return 0.0
    places = {name: number for number, name in enumerate(names)}
    said = np.array([places.get(text, len(names)) for text in texts[known]], np.int64)
    numbers = labels[known]
    share = float((said == numbers).mean())
    sizes = [np.bincount(x, minlength=len(names) + 1) / len(numbers) for x in (said, numbers)]
    chance = float(sizes[0] @ sizes[1])
    return share if chance < 1 and (share - chance) / (1 - chance) >= _BEYOND_CHANCE else 0.0


def _codes(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mask of rows with known value and label, their values as numbers, and their labels."""
    known = (labels >= 0) & ~np.isnan(values)
    _, codes = np.unique(values[known], return_inverse=True)
    return known, codes, labels[known].astype(np.int64)


def _usual(codes: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """The most frequent label of each value."""
    num_labels = int(numbers.max()) + 1
    pairs, counts = np.unique(codes * num_labels + numbers, return_counts=True)
    order = np.lexsort((counts, pairs // num_labels))  # Each value's largest count comes last.
    usual = np.zeros(int(codes.max()) + 1, np.int64)
    usual[pairs[order] // num_labels] = pairs[order] % num_labels
    return usual


def _determines(values: np.ndarray, labels: np.ndarray, rows: np.ndarray | None) -> bool:
    """Whether equal values always have equal labels, and chance does not explain it.

    Nearly always is enough if each value stands for a label of its own. If rows are in the table
    several times, any column that tells rows apart does this: it does not count.
    """
    known, codes, numbers = _codes(values, labels)
    num_values = int(codes.max()) + 1 if len(codes) else 0
    if num_values < 2:
        return False
    if _are_rows(num_values, numbers, rows, known):
        return False
    if _separates(values[known], numbers, num_values):
        return False
    agreeing = np.sum((np.bincount(numbers) / len(numbers)) ** 2)  # Chance that two labels agree.
    if agreeing ** (len(codes) - num_values) >= _CHANCE:
        return False
    usual = _usual(codes, numbers)
    one_each = num_values == len(np.unique(numbers)) == len(np.unique(usual))
    share = (usual[codes] == numbers).mean()
    return bool(share == 1 or (one_each and share >= _SAME))


def _separates(values: np.ndarray, labels: np.ndarray, num_values: int) -> bool:
    """Whether values in order are labels in blocks, hardly more blocks than labels.

    Then they may well be measured, as the length of a petal, which tells 40 irises apart. Values
    that stand for labels are of many rows each.
    """
    if len(values) >= _ROWS_PER_VALUE * num_values:
        return False
    in_order = labels[np.argsort(values, kind="stable")]
    return bool(np.sum(in_order[1:] != in_order[:-1]) <= len(np.unique(labels)))


def _are_rows(
    num_values: int, labels: np.ndarray, rows: np.ndarray | None, known: np.ndarray
) -> bool:
    """Whether a column has a value for each different row, and there are many different rows."""
    if rows is None:
        return False
    is_many = len(np.unique(rows)) >= _ROWS_PER_LABEL * len(np.unique(labels))
    return is_many and num_values >= _AS_ROWS * len(np.unique(rows[known]))


def _follows_slips(
    values: np.ndarray, given: np.ndarray, checked: np.ndarray, rows: np.ndarray | None
) -> bool:
    """Whether a column agrees with given labels where they are wrong, as a copy of them does."""
    known, codes, numbers = _codes(values, given)
    if not len(codes) or len(codes) < _ROWS_PER_VALUE * (int(codes.max()) + 1):
        return False
    if _are_rows(int(codes.max()) + 1, numbers, rows, known):
        return False
    usual = _usual(codes, numbers)[codes]
    agrees = usual == numbers
    size = int(numbers.max()) + 1
    chance = float(np.bincount(usual, minlength=size) @ np.bincount(numbers, minlength=size))
    chance /= len(numbers) ** 2
    if agrees.mean() - chance < _HALF * (1 - chance):
        return False
    wrong = (checked[known] >= 0) & (checked[known] != numbers)
    often = agrees.mean() >= _OFTEN and len(np.unique(codes)) > 1
    return bool(wrong.sum() >= _MIN_WRONG and agrees[wrong].mean() >= _SAME and often)


def same_rows(columns: Iterable[np.ndarray]) -> np.ndarray:
    """Hashes `[N]` uint64 of the rows of some columns `[N]` float64."""
    hashes, step = np.zeros(1, np.uint64), np.uint64(0x9E3779B97F4A7C15)
    for column in columns:
        bits = np.where(np.isnan(column), np.nan, column + 0.0).view(np.uint64)
        mixed = (bits ^ (bits >> np.uint64(29))) * step
        hashes = (hashes * np.uint64(0x100000001B3)) ^ mixed ^ (mixed >> np.uint64(32))
    return np.asarray(hashes)
