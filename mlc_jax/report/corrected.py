"""What a run says of every row that it was given, in the order of the rows."""

from typing import NamedTuple

import numpy as np

from mlc_jax.data.dataset import Dataset
from mlc_jax.data.source import UNKNOWN
from mlc_jax.data.votes import is_changed
from mlc_jax.training.evaluate import Prediction


class AllRows(NamedTuple):
    """Of each of N rows; of one that was left out UNKNOWN and NaN.

    A checked row keeps its label: nothing is predicted of what somebody has looked at.

    Attributes:
      given_label: `[N]`, or UNKNOWN; of several sources the vote of most.
      corrected_label: `[N]`.
      confidence: `[N]` in it; 1 where the row was checked.
      label_quality: `[N]`, how far the given label is believed; NaN where there is none. Of a
        checked row 1 or 0.
      is_label_issue: `[N]` bool, whether the given label was corrected.
      soft_label: `[N, C]`.
    """

    given_label: np.ndarray
    corrected_label: np.ndarray
    confidence: np.ndarray
    label_quality: np.ndarray
    is_label_issue: np.ndarray
    soft_label: np.ndarray


def of_all_rows(dataset: Dataset, of_noisy: Prediction) -> AllRows:
    """Of own data, whose noisy, clean and judging rows are rows of one source.

    Args:
      dataset: own data.
      of_noisy: what is said of its noisy rows.
    """
    size, num_classes = len(dataset.noisy.source), dataset.num_classes
    given, corrected = np.full(size, UNKNOWN, np.int32), np.full(size, UNKNOWN, np.int32)
    soft, quality = np.full((size, num_classes), np.nan), np.full(size, np.nan)
    rows = dataset.noisy.rows
    given[rows], soft[rows] = dataset.noisy.given, of_noisy.soft_labels
    corrected[rows] = of_noisy.soft_labels.argmax(axis=-1)
    quality[rows] = of_noisy.label_quality
    for part in (dataset.clean, dataset.validation, dataset.test):
        if part is not None and part.source is dataset.noisy.source:
            given[part.rows], corrected[part.rows] = part.given, part.truth
            soft[part.rows] = np.eye(num_classes)[part.truth]
            right = (part.given == part.truth).astype(np.float64)
            quality[part.rows] = np.where(part.given == UNKNOWN, np.nan, right)
    return AllRows(given, corrected, soft.max(axis=1), quality, is_changed(corrected, given), soft)
