"""Methods, noise and seeds: one grid of runs, one table, one figure.

    python -m experiments.noise_sweep --config=configs/digits.py --methods=all \
        --noise=uniform,flip --levels=0:1:0.1 --seeds=5 --batch_runs=55 --workdir=DIR

Every run has its own workdir, DIR/<noise>/<level>/<method>/seed<n>. Finished runs are not repeated,
interrupted ones resume. In DIR: `runs.csv`, `sweep.csv`, `sweep.md` and
`sweep.png` (`experiments.paper.noise_tables`).

--batch_runs=N trains up to N runs of a method, which differ in seed and noise alone, as one
program: many times faster for small models. Except for rounding, each run is the same as alone.

--shard=i/n trains a share of the grid, for n workers on n machines with one DIR; in a job array it
is --shard=auto. --collect then makes the tables (`experiments.shards`).
"""

from absl import flags, logging
from ml_collections import config_flags

from experiments import shards
from experiments.paper import noise_grid, noise_tables
from mlc_jax import command_line, paths
from mlc_jax.config import METHODS, NOISE_TYPES

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, such as configs/digits.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory for the runs, tables and the picture.")
_METHODS = flags.DEFINE_list("methods", ["all"], f"all, or some of {', '.join(METHODS)}.")
_NOISE = flags.DEFINE_list(
    "noise", [], f"Some of {', '.join(NOISE_TYPES)}; the config's if not given."
)
_LEVELS = flags.DEFINE_string(
    "levels", "", "Noise levels: 0.2,0.4 or first:last:step; none is the config's."
)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Number of seeds.", lower_bound=1)
_FIRST_SEED = flags.DEFINE_integer(
    "first_seed", 0, "The first of them: fresh ones for what was chosen on others.", lower_bound=0
)
_BATCH_RUNS = flags.DEFINE_integer(
    "batch_runs", 1, "Runs to train as one program, at most.", lower_bound=1
)
_SHARDS = shards.define_flags()


def main() -> None:
    logging.set_verbosity(logging.WARNING)
    config, methods = _CONFIG.value, noise_grid.parse_methods(_METHODS.value)
    levels = noise_grid.parse_levels(_LEVELS.value) if _LEVELS.value else []
    cells = noise_grid.cells(config, _NOISE.value, levels)
    seeds = range(_FIRST_SEED.value, _FIRST_SEED.value + _SEEDS.value)
    workdir = paths.absolute(_WORKDIR.value)
    grid = noise_grid.grid(config, {name: {"method": name} for name in methods}, cells, seeds)
    rows = _SHARDS.rows(config, grid, workdir, batch_runs=_BATCH_RUNS.value)
    if not rows:  # A worker's share makes no table.
        return
    noise_tables.write(rows, workdir, trained_here=not _SHARDS.collect.value)
    print(f"Everything is in {workdir}: results, corrected labels, metrics for each run.")


if __name__ == "__main__":
    command_line.run(main, required=["config", "workdir"])
