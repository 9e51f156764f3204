"""The paper's Table 3: methods on Clothing1M, compared with the published numbers.

    python -m experiments.paper.table3 --data=DIR --workdir=DIR2 \
        --config.model.resnet50.checkpoint=resnet50.safetensors

This first prints an estimate of the cost; --cost_only stops then. It trains the methods one after
the other, in DIR2/<method>/seed<n>, and writes `table3.md` and `table3.csv`. The same command
resumes. DIR holds the files as they are distributed, or packed by mlc_jax.files.pack. --shard=i/n
trains a share of the runs on one of n machines; --collect then makes the table
(`experiments.shards`).
"""

import pathlib
import sys

from absl import flags, logging
from ml_collections import config_flags

from experiments import runs, shards, tables
from experiments.paper import noise_grid, paper_tables
from mlc_jax import command_line, paths
from mlc_jax.config import METHODS
from mlc_jax.errors import InputError

_CONFIG = config_flags.DEFINE_config_file(
    "config", "configs/clothing1m.py", "Config of all runs, but for the method.", lock_config=True
)
_DATA = flags.DEFINE_string("data", "", "Directory of Clothing1M, as distributed or packed.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory for the runs and the table.")
_METHODS = flags.DEFINE_list(
    "methods",
    ["cross_entropy", "clean_only", *paper_tables.TABLE3],
    f"all, or some of {', '.join(METHODS)}.",
)
_SEEDS = flags.DEFINE_integer("seeds", 1, "Number of seeds.", lower_bound=1)
_COST_ONLY = flags.DEFINE_bool("cost_only", False, "Say what it will cost, and stop.")
_SHARDS = shards.define_flags()


def main() -> None:
    logging.set_verbosity(logging.WARNING)
    config, methods = _CONFIG.value, noise_grid.parse_methods(_METHODS.value)
    config.dataset.data_dir = _DATA.value
    costs = paper_tables.cost(config, methods, _num_noisy(_DATA.value), _SEEDS.value)
    print(paper_tables.cost_table(costs))
    sys.stdout.flush()
    if _COST_ONLY.value:
        return
    grid: runs.Grid = {
        f"{name}/seed{seed}": ({}, runs.override(config, {"method": name}, seed=seed))
        for name in methods
        for seed in range(_SEEDS.value)
    }
    workdir = paths.absolute(_WORKDIR.value)
    rows = _SHARDS.rows(config, grid, workdir, batch_runs=1)
    if not rows:  # A worker's share makes no table.
        return
    text = (
        f"{rows[0]['dataset']}, {rows[0]['num_noisy']} noisy labels, percent, mean ± standard "
        "deviation over seeds; `published` is the paper's, as it stands there\n\n"
        + paper_tables.beside_published(rows, methods, paper_tables.TABLE3)
    )
    tables.write(workdir, "table3", rows, text)
    print(text)


def _num_noisy(directory: str) -> int:
    """Lines of the list: the pictures themselves are looked at when the first run begins."""
    from mlc_jax.benchmarks.clothing1m import KEY_LISTS

    file = pathlib.Path(directory).expanduser() / KEY_LISTS["noisy"]
    try:
        return len(file.read_bytes().split())
    except OSError as error:
        raise InputError(
            f"--data: {str(file)!r} cannot be read ({error.strerror}); expected a directory of "
            "Clothing1M"
        ) from error


if __name__ == "__main__":
    command_line.run(main, required=["data", "workdir"])
