"""The surest corrections of pictures at a glance, class by class."""

from collections.abc import Sequence

import numpy as np

from mlc_jax.data.show import show
from mlc_jax.data.source import UNKNOWN, Subset
from mlc_jax.data.votes import is_changed
from mlc_jax.report.pieces import example, text

NUM_CLASSES = 20  # Those with the most corrections.
PER_CLASS = 12


def contact_sheet(exported: Subset, soft_labels: np.ndarray, names: Sequence[str]) -> str:
    """HTML of the surest corrections; "" if no label was changed, or examples are not pictures.

    Args:
      exported: doubtful examples, N.
      soft_labels: `[N, C]`, corrected labels.
      names: of the C classes.
    """
    corrected, confidence = soft_labels.argmax(axis=-1), soft_labels.max(axis=-1)
    changed = np.flatnonzero(is_changed(corrected, exported.given))
    if not len(changed):
        return ""
    first = show(exported.source, exported.rows[changed[:1]])[0]
    if not isinstance(first, np.ndarray):
        return ""
    changed = changed[np.argsort(-confidence[changed], kind="stable")]
    counts = np.bincount(corrected[changed], minlength=len(names))
    sections = []
    for number in np.argsort(-counts, kind="stable")[:NUM_CLASSES].tolist():
        rows = changed[corrected[changed] == number][:PER_CLASS]
        if not len(rows):
            break
        subset = exported.take(rows)
        figures = [
            f"<figure>{example(picture)}<figcaption>{_given(label, names)}</figcaption></figure>"
            for picture, label in zip(show(subset.source, subset.rows), subset.given, strict=True)
        ]
        head = f"<h3>{text(names[number])}: {counts[number]:,} corrected to it</h3>"
        sections.append(f'{head}<div class="sheet">{"".join(figures)}</div>')
    return "<h2>The surest corrections, by class</h2>" + "".join(sections)


def _given(label: int, names: Sequence[str]) -> str:
    return "no label" if label == UNKNOWN else f"given {text(names[label])}"
