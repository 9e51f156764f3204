"""A table with doubtful labels, to try `mlc-jax correct` on: python examples/doubtful_table.py DIR.

scikit-learn's breast cancer data: 569 tumours, 30 measurements of each. Three labels in ten are
made wrong; 57 rows, drawn at random, have a checked one. Called again once DIR/tumours.csv is
corrected, it prints how many labels are right, since the truth is known here.
"""

import pathlib
import sys

import numpy as np
import pandas
from sklearn.datasets import load_breast_cancer

directory = pathlib.Path(sys.argv[1])
data = load_breast_cancer(as_frame=True)
truth = data.target_names[data.target]
rng = np.random.default_rng(0)
wrong = rng.random(len(truth)) < 0.3
given = np.where(wrong, data.target_names[1 - data.target], truth)
checked = rng.permutation(len(truth)) < 57

corrected = directory / "tumours.mlc" / "corrected.csv"
if corrected.exists():
    rows = pandas.read_csv(corrected)[~checked]
    print(f"Of the {len(rows)} labels that nobody checked, right as given: "
          f"{np.mean(rows.label == truth[~checked]):.1%}, corrected: "
          f"{np.mean(rows.corrected_label == truth[~checked]):.1%}.")  # fmt: skip
else:
    directory.mkdir(parents=True, exist_ok=True)
    table = data.data.assign(label=given, checked_label=np.where(checked, truth, ""))
    table.to_csv(directory / "tumours.csv", index=False)
    print(
        f"{directory}/tumours.csv: {len(table)} tumours, a row each, with 30 measurements.\n"
        "  label          benign or malignant, as given: three in ten are wrong\n"
        f"  checked_label  the right one, of {checked.sum()} rows that somebody looked at\n"
        "Classifiers learn from both, each from a part of the rows. A label is corrected by those\n"
        "that did not learn from its row; how good they are is measured on hidden checks."
    )
