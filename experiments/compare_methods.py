"""Trains several methods with several seeds and prints them side by side.

    python -m experiments.compare_methods --config=configs/digits.py --workdir=DIR \
        --methods=cross_entropy,clean_only,mlc --seeds=5

Every run has a workdir of its own, DIR/<method>/seed<n>; one that is finished is not run again. A
seed stands for everything that is drawn: the split, the noise, the start, the order of the batches.
All methods of a seed see the same split and the same noise.
"""

import copy
import csv
import io
import json
from typing import Any

import jax
import numpy as np
from absl import flags, logging
from etils import epath
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from mlc_jax import command_line, report, train

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
    workdir = epath.Path(_WORKDIR.value).expanduser().resolve()
    # Seeds share their programs: compiled once, read from here afterwards.
    jax.config.update("jax_compilation_cache_dir", str(workdir / "compilation_cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    results = run_all(_CONFIG.value, workdir, _METHODS.value, _SEEDS.value)
    workdir.joinpath("results.csv").write_text(to_csv(results))
    table = to_markdown(results)
    workdir.joinpath("results.md").write_text(table)
    print(table)
    print(f"Everything is in {workdir}: corrected_labels.csv, training.png, ... for each run.")


def run_all(
    config: ConfigDict, workdir: epath.Path, methods: list[str], num_seeds: int
) -> list[dict[str, Any]]:
    """Runs what is missing of the grid; returns every run's results."""
    grid = [(method, seed) for seed in range(num_seeds) for method in methods]
    results = []
    with tqdm(grid, unit="run") as bar:
        for method, seed in bar:
            bar.set_description(f"{method}, seed {seed}")
            run_dir = workdir / method / f"seed{seed}"
            results.append(_finished(run_dir) or _run(config, method, seed, run_dir))
            bar.set_postfix(test_acc=f"{results[-1]['last_test_accuracy']:.3f}")
    return results


def _finished(run_dir: epath.Path) -> dict[str, Any] | None:
    path = run_dir / report.RESULTS_FILE
    return json.loads(path.read_text()) if path.exists() else None


def _run(config: ConfigDict, method: str, seed: int, run_dir: epath.Path) -> dict[str, Any]:
    config = copy.deepcopy(config)
    config.method = method
    config.seed = config.noise.seed = config.dataset.split_seed = seed
    return train.train_and_evaluate(config, str(run_dir), show_progress=False)


def to_csv(results: list[dict[str, Any]]) -> str:
    """One row a run."""
    text = io.StringIO()
    fields = [name for name in results[0] if name not in ("table", "workdir")]
    table = csv.DictWriter(text, fields, extrasaction="ignore", lineterminator="\n")
    table.writeheader()
    table.writerows(results)
    return text.getvalue()


def to_markdown(results: list[dict[str, Any]]) -> str:
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
        cells = [_mean_and_spread([row[key] for row in rows]) for key in _COLUMNS.values()]
        lines.append(f"| {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _mean_and_spread(values: list[float | None]) -> str:
    numbers = [100 * value for value in values if value is not None]
    if not numbers:
        return "-"
    spread = f" ± {np.std(numbers, ddof=1):.1f}" if len(numbers) > 1 else ""
    return f"{np.mean(numbers):.1f}{spread}"


if __name__ == "__main__":
    command_line.run(main, required=["config", "workdir"])
