"""Simple alternatives to cross-fitting, measured on the cells of `tables_of_people`."""

from typing import Any

import numpy as np

from experiments.labels.tables_of_people import Cell, LabelledTable
from mlc_jax import LabelCorrector

BASELINES = ("given", "lr_checked", "lr_given")
BOOSTED = ("gb_checked", "gb_given")
CLEANLAB, LINEAR = "cleanlab", "linear"
ALSO = (CLEANLAB, LINEAR, "self_training", "robust_mlc", "mlc")


def baselines(table: LabelledTable, cell: Cell) -> dict[str, float]:
    """Percent of doubtful rows, and of unseen rows, that each simple alternative has right."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    known = np.where(cell.checked, cell.truth, cell.given)
    doubtful = ~cell.checked
    found = {"given": percent(cell.given[doubtful], cell.truth[doubtful])}
    for part, chosen in (("checked", cell.checked), ("given", np.ones(len(known), bool))):
        for short in ("lr", "gb"):
            model: Any = (
                _regression() if short == "lr" else HistGradientBoostingClassifier(random_state=0)
            )
            labels = known[chosen]
            if len(np.unique(labels)) == 1:
                said = np.full(len(table.labels), labels[0])
            else:
                said = model.fit(table.features[cell.rows[chosen]], labels).predict(table.features)
            found[f"{short}_{part}"] = percent(said[cell.rows[doubtful]], cell.truth[doubtful])
            found[f"unseen_{short}_{part}"] = percent(said[cell.unseen], table.labels[cell.unseen])
    return found


def by_others(name: str, table: LabelledTable, cell: Cell) -> dict[str, float]:
    """The same two figures of one of `ALSO`.

    cleanlab's `CleanLearning` wraps the logistic regression of `baselines`. It learns the checked
    labels, and given ones elsewhere. Where it finds an issue, its prediction is the label. `linear`
    is `cross_fit` with linear classifiers, whatever the data.
    """
    x, doubtful = table.features[cell.rows], ~cell.checked
    if name == CLEANLAB:
        from cleanlab.classification import CleanLearning

        known = np.where(cell.checked, cell.truth, cell.given)
        # In this process: a fork of one that runs JAX may hang.
        alone = {"n_jobs": 1}
        model: Any = CleanLearning(_regression(), seed=0, find_label_issues_kwargs=alone)
        model.fit(x, known)
        found = model.get_label_issues()
        labels = np.where(found["is_label_issue"], found["predicted_label"], known)
    else:
        checked = np.where(cell.checked, cell.truth, -1)
        corrector = LabelCorrector(model=LINEAR) if name == LINEAR else LabelCorrector(name)
        model = corrector.fit(x, cell.given, checked)
        labels = model.labels_
    unseen = model.predict(table.features[cell.unseen])
    return {
        name: percent(labels[doubtful], cell.truth[doubtful]),
        f"unseen_{name}": percent(unseen, table.labels[cell.unseen]),
    }


def percent(said: np.ndarray, truth: np.ndarray) -> float:
    """The percentage of labels `[n]` that are right."""
    return float(100 * np.mean(said == truth))


def _regression() -> Any:
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    return make_pipeline(StandardScaler(), LogisticRegression(C=1, max_iter=500))
