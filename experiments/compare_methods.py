"""Trains several methods with several seeds and prints them side by side.

    python -m experiments.compare_methods --config=configs/digits.py --workdir=DIR \
        --methods=cross_entropy,clean_only,mlc --seeds=5

Every run has a workdir of its own, DIR/<method>/seed<n>; one that is finished is not run again. A
seed stands for everything that is drawn: the split, the noise, the start, the order of the batches.
All methods of a seed see the same split and the same noise.
"""

from collections.abc import Sequence
from typing import Any

import jax
from absl import flags, logging
from etils import epath
from ml_collections import config_flags

from experiments import runs
from experiments.tables import to_csv
from mlc_jax import command_line
from mlc_jax.errors import InputError
from mlc_jax.methods import METHODS

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, such as configs/digits.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory for the runs and the table.")
_METHODS = flags.DEFINE_list("methods", ["cross_entropy", "clean_only", "mlc"], "Methods to train.")
_SEEDS = flags.DEFINE_integer("seeds", 5, "Number of seeds, from 0.", lower_bound=1)

# Column of the table and its key in a run's results.
_COLUMNS = {
    "test acc., last": "last_test_accuracy",
    "best": "best_test_accuracy",
    "selected": "selected_test_accuracy",
    "given labels right": "given_label_accuracy",
    "corrected labels right": "corrected_label_accuracy",
}


def main() -> None:
    logging.set_verbosity(logging.WARNING)
    if not _METHODS.value:
        raise InputError(f"--methods: got none, expected one or more of {', '.join(METHODS)}")
    workdir = epath.Path(_WORKDIR.value).expanduser().resolve()
    grid = {
        f"{method}/seed{seed}": runs.override(_CONFIG.value, {"method": method}, seed=seed)
        for seed in range(_SEEDS.value)
        for method in _METHODS.value
    }
    results = list(runs.run_grid(grid, workdir).values())
    workdir.joinpath("results.csv").write_text(to_csv(results))
    table = to_markdown(results)
    workdir.joinpath("results.md").write_text(table)
    print(table)
    print(f"Everything is in {workdir}: corrected_labels.csv, training.png, ... for each run.")


def to_markdown(results: Sequence[dict[str, Any]]) -> str:
    """One row a method: mean and sample standard deviation over the seeds, in percent."""
    methods = list(dict.fromkeys(row["method"] for row in results))
    first = results[0]
    lines = [
        f"{first['dataset']}, {first['noise']} noise, {first['clean_labels_spent']} clean labels, "
        f"{len(results) // len(methods)} seeds, {first['num_steps']} steps "
        f"on {jax.device_count()} {jax.devices()[0].device_kind} device(s); "
        "percent, mean ± standard deviation over the seeds",
        "",
        "| method | " + " | ".join(_COLUMNS) + " |",
        "| --- |" + " ---: |" * len(_COLUMNS),
    ]
    for method in methods:
        rows = [row for row in results if row["method"] == method]
        cells = [runs.mean_and_spread([row[key] for row in rows]) for key in _COLUMNS.values()]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    command_line.run(main, required=["config", "workdir"])
