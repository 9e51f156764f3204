"""How good each source of labels is: annotators, rules, models."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mlc_jax.data.source import UNKNOWN, Subset
from mlc_jax.report.verdict import share_right

_NAMED = 0.5  # Confusions of fewer labels are not named.


def of_sources(
    noisy: Subset,
    soft_labels: np.ndarray,
    checked: Subset,
    known: Subset,
    names: Sequence[str],
    class_names: Sequence[str],
    copies: Mapping[str, str],
) -> list[dict[str, Any]]:
    """A row for each source.

    `labels`: how many it gave. `checked`: how many of them on judged rows. `checked_right`,
    `low`, `high`: percent of these that are right, and the 95 % interval. `estimated_right`:
    percent of its labels on doubtful rows that are right, by the soft labels. `bits_per_label`: how
    much one label says about the class, at most log2 C. `confuses_most`: its most frequent mistake.
    `copy_of`: the source that it copies; then all figures are of the labels that differ.

    Args:
      noisy: doubtful examples, N.
      soft_labels: `[N, C]`.
      checked: judged examples, see `report.verdict`.
      known: all checked examples, also those that do not judge.
      names: of the S sources.
      class_names: C of them.
      copies: from a source to the one that it copies.
    """
    num_classes = len(class_names)
    shares = soft_labels.mean(axis=0)
    rows = []
    for number, name in enumerate(names):
        votes, tested = noisy.all_votes[:, number], checked.all_votes[:, number]
        said, judged = votes != UNKNOWN, tested != UNKNOWN
        joint = np.zeros((num_classes, num_classes))  # Of label and class.
        np.add.at(joint, votes[said], soft_labels[said])
        right = tested[judged] == checked.truth[judged]
        share = share_right(right, doubtful=10**9) if len(right) else None
        wrong = joint * (1 - np.eye(num_classes))
        label, true = divmod(int(wrong.argmax()), num_classes)
        confusion = f"{class_names[true]} as {class_names[label]}"
        rows.append({
            "source": name,
            "labels": int(said.sum() + (known.all_votes[:, number] != UNKNOWN).sum()),
            "checked": len(right),
            "checked_right": None if share is None else 100 * float(right.mean()),
            "low": None if share is None else 100 * share.low,
            "high": None if share is None else 100 * share.high,
            "estimated_right": 100 * float(np.trace(joint) / said.sum()) if said.any() else None,
            "bits_per_label": _bits(joint, shares) if said.any() else None,
            "confuses_most": confusion if wrong.max() >= _NAMED else "",
            "copy_of": copies.get(name, ""),
        })  # fmt: skip
    return rows


def _bits(joint: np.ndarray, shares: np.ndarray) -> float:
    """Mean KL divergence of a label's classes, `joint[v]`, from the shares of all classes."""
    total = joint.sum(axis=1)
    given = joint / np.maximum(total, 1e-12)[:, None]
    ratio = np.maximum(given, 1e-12) / np.maximum(shares, 1e-12)
    return float(np.sum(total / total.sum() * np.sum(given * np.log2(ratio), axis=1)))
