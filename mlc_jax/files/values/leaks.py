"""Finds columns that give the right or the given label away, so that nothing is left to learn."""

import numpy as np

_CHANCE = 1e-6  # A column determines a label if chance does so less often than this.
_SAME = 0.95  # Smallest share of equal rows.
_BEYOND_CHANCE = 0.8  # Smallest Cohen's kappa.
_OFTEN = 0.8  # Smallest share of rows in which a copy of the given label agrees with it.
_MIN_WRONG = 8  # The test needs so many rows whose given label the check calls wrong.
_ROWS_PER_VALUE = 5  # Smallest average; a value with a single row always agrees with its label.


def leak(
    values: np.ndarray | None,
    texts: np.ndarray | None,
    given: np.ndarray,
    checked: np.ndarray | None,
    names: list[str],
) -> str | None:
    """What a column gives away, as the end of a sentence: `determines checked_label`.

    Args:
      values: `[N]` float64, equal for equal values of the column, NaN for missing ones; None if
        unknown.
      texts: `[N]`, the values as texts, for columns with few different ones; else None.
      given: `[N]`, numbers of the given labels, negative for none.
      checked: the same for checked labels; None if no row is checked.
      names: the labels' names.
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
        if labels is not None and _determines(values, labels):
            return f"determines {name}"
    if checked is not None and _follows_slips(values, given, checked):
        return "agrees with label also where checked_label says that it is wrong"
    return None


def _share_of_equal(texts: np.ndarray, labels: np.ndarray, names: list[str]) -> float:
    """The share of equal rows among those with both; 0 if chance comes near it."""
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


def _determines(values: np.ndarray, labels: np.ndarray) -> bool:
    """Whether equal values always have equal labels, more often than by chance.

    Nearly always is enough if there are as many values as labels, one for each.
    """
    _, codes, numbers = _codes(values, labels)
    num_values = int(codes.max()) + 1 if len(codes) else 0
    if num_values < 2:
        return False
    agreeing = np.sum((np.bincount(numbers) / len(numbers)) ** 2)  # Two labels agree by chance.
    if agreeing ** (len(codes) - num_values) >= _CHANCE:
        return False
    usual = _usual(codes, numbers)
    one_each = num_values == len(np.unique(numbers)) == len(np.unique(usual))
    share = (usual[codes] == numbers).mean()
    return bool(share == 1 or (one_each and share >= _SAME))


def _follows_slips(values: np.ndarray, given: np.ndarray, checked: np.ndarray) -> bool:
    """Whether it agrees with wrong given labels, which no feature of the input does."""
    known, codes, numbers = _codes(values, given)
    if not len(codes) or len(codes) < _ROWS_PER_VALUE * (int(codes.max()) + 1):
        return False
    agrees = _usual(codes, numbers)[codes] == numbers
    wrong = (checked[known] >= 0) & (checked[known] != numbers)
    often = agrees.mean() >= _OFTEN and len(np.unique(codes)) > 1
    return bool(wrong.sum() >= _MIN_WRONG and agrees[wrong].mean() >= _SAME and often)
