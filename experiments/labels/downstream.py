"""The value of corrected labels for other tools: scikit-learn and cleanlab, on digits.

    python -m experiments.labels.downstream --config=configs/digits.py --seeds=5 --workdir=DIR

For each seed, MLC corrects the given labels (a run in DIR/seed<n>, resumable). Then a logistic
regression, which sees no clean labels, learns

    the given labels
    the given labels within cleanlab's CleanLearning, which finds label issues and drops them
    the same with `label_issues=` this project's corrected_labels.csv

and is evaluated on the test set: DIR/downstream.csv, DIR/downstream.md. It needs cleanlab (pip
install cleanlab), and a dataset of numbers that fits into memory.
"""

import csv
from typing import Any

import numpy as np
from absl import flags, logging
from etils import epath
from ml_collections import config_flags

from experiments import runs, tables
from mlc_jax import command_line, paths
from mlc_jax.benchmarks import datasets
from mlc_jax.data import ArraySource, Subset
from mlc_jax.data.dataset import Dataset
from mlc_jax.errors import InputError, expect
from mlc_jax.report import report

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, such as configs/digits.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory for the runs and the table.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Number of seeds, from 0.", lower_bound=1)
_BATCH_RUNS = flags.DEFINE_integer(
    "batch_runs", 5, "Runs to train as one program, at most.", lower_bound=1
)

_ROWS = {
    "as_given": "logistic regression on the labels as given",
    "cleanlab": "the same in cleanlab's CleanLearning",
    "with_mlc": "the same with label_issues=corrected_labels.csv",
}


def main() -> None:
    logging.set_verbosity(logging.WARNING)
    try:
        import cleanlab  # noqa: F401  Before any run is trained.
    except ImportError as error:
        raise InputError("cleanlab is not installed: pip install cleanlab") from error
    workdir = paths.absolute(_WORKDIR.value)
    grid = {
        f"seed{seed}": runs.override(_CONFIG.value, {}, seed=seed) for seed in range(_SEEDS.value)
    }
    runs.run_grid(grid, workdir, batch_runs=_BATCH_RUNS.value)
    rows = []
    for name, config in grid.items():
        accuracies = judge(datasets.load(config), workdir / name / report.LABELS_FILE)
        rows.append({"run": name} | accuracies)
    text = to_markdown(rows)
    tables.write(workdir, "downstream", rows, text)
    print(text)


def judge(dataset: Dataset, labels_file: epath.Path) -> dict[str, float]:
    """Test accuracy of the three models, in [0, 1]."""
    import pandas
    from cleanlab.classification import CleanLearning
    from sklearn.linear_model import LogisticRegression

    expect(dataset.test is not None, "config.dataset", dataset.name, "one with a test set")
    assert dataset.test is not None
    inputs, given = _flat(dataset, dataset.noisy), dataset.noisy.given
    test_inputs, truth = _flat(dataset, dataset.test), dataset.test.truth
    with labels_file.open("r") as file:
        table = pandas.DataFrame(list(csv.DictReader(file)))
    issues = pandas.DataFrame({
        "is_label_issue": table["is_label_issue"] == "True",
        "label_quality": table["label_quality"].astype(float),
    })  # fmt: skip

    def accuracy(model: Any) -> float:
        return float(np.mean(model.predict(test_inputs) == truth))

    # In this process: a fork of one that runs JAX and TensorFlow may hang.
    options = {"find_label_issues_kwargs": {"n_jobs": 1}}
    model = lambda: LogisticRegression(max_iter=1000)  # noqa: E731
    return {
        "as_given": accuracy(model().fit(inputs, given)),
        "cleanlab": accuracy(CleanLearning(model(), **options).fit(inputs, given)),
        "with_mlc": accuracy(
            CleanLearning(model(), **options).fit(inputs, given, label_issues=issues)
        ),
    }


def to_markdown(rows: list[dict[str, Any]]) -> str:
    """Mean and deviation over the seeds, in percent."""
    lines = [f"Test accuracy, percent, {len(rows)} seeds.", "", "| | |", "| --- | ---: |"]
    for key, name in _ROWS.items():
        lines.append(f"| {name} | {runs.mean_and_spread(row[key] for row in rows)} |")
    return "\n".join(lines) + "\n"


def _flat(dataset: Dataset, subset: Subset) -> np.ndarray:
    """Prepared inputs as a matrix `[N, F]`."""
    source = subset.source
    in_memory = isinstance(source, ArraySource) and isinstance(source.inputs, np.ndarray)
    expect(in_memory, "config.dataset", dataset.name, "one array in memory")
    assert isinstance(source, ArraySource)
    return np.asarray(dataset.prepare(source.inputs[subset.rows])).reshape(len(subset), -1)


if __name__ == "__main__":
    command_line.run(main, required=["config", "workdir"])
