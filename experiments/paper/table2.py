"""The paper's Table 2: mean accuracy over UNIF and FLIP at ten levels each, images and texts.

    python -m experiments.paper.table2 --data=cifar10:DIR,cifar100:DIR,ag_news:DIR2 --workdir=DIR3 \
        --checkpoint=bert-base-uncased --texts=finetuned

This first prints an estimate of the cost; --cost_only stops then. It trains every dataset with its
own config (configs/<name>.py), in DIR3/<dataset>/<noise>/<level>/<method>/seed<n>. It writes
`table2.md` and `table2.csv`, with the published numbers in their own column. The same command
resumes. --override=num_epochs=1 --override=model.resnet.depth=8 changes settings of all runs, and
the table names them. --shard=i/n trains a share of the runs on one of n machines; --collect then
makes the table (`experiments.shards`).
"""

import ast
import importlib
import sys
from typing import Any

from absl import flags, logging
from ml_collections import ConfigDict

from experiments import shards, tables
from experiments.paper import noise_grid, noise_tables, paper_tables
from mlc_jax import command_line, paths
from mlc_jax.config import METHODS, TEXT_BENCHMARKS
from mlc_jax.errors import InputError, expect

DATASETS = ("digits", *paper_tables.TABLE2)  # The first is not in the paper: it takes a minute.
# Noisy examples: all but the clean ones, 1,000 pictures, 100 texts per class, 5 digits per class.
_NUM_NOISY = {
    "digits": 1387, "cifar10": 49_000, "cifar100": 49_000, "ag_news": 119_600, "yelp5": 649_500,
    "amazon5": 2_999_500, "yahoo": 1_399_000,
}  # fmt: skip

_DATA = flags.DEFINE_list(
    "data", [], f"NAME:DIRECTORY of each dataset, some of {', '.join(DATASETS)}; digits needs none."
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory for the runs and the table.")
_METHODS = flags.DEFINE_list(
    "methods", ["meta_weight_net", "glc", "mlc"], f"all, or some of {', '.join(METHODS)}."
)
_LEVELS = flags.DEFINE_string("levels", "0:0.9:0.1", "0.2,0.4 or first:last:step.")
_SEEDS = flags.DEFINE_integer("seeds", 1, "Number of seeds.", lower_bound=1)
_CHECKPOINT = flags.DEFINE_string("checkpoint", "bert-base-uncased", "Of texts.")
_TEXTS = flags.DEFINE_enum("texts", "finetuned", ["finetuned", "frozen"], "How texts are learned.")
_OVERRIDE = flags.DEFINE_multi_string("override", [], "FIELD=VALUE of all configs; repeatable.")
_BATCH_RUNS = flags.DEFINE_integer(
    "batch_runs", 1, "Runs to train as one program, at most.", lower_bound=1
)
_COST_ONLY = flags.DEFINE_bool("cost_only", False, "Say what it will cost, and stop.")
_SHARDS = shards.define_flags()


def main() -> None:
    logging.set_verbosity(logging.WARNING)
    methods = noise_grid.parse_methods(_METHODS.value)
    levels = noise_grid.parse_levels(_LEVELS.value)
    configs = {name: _config(name, directory) for name, directory in _parse_data(_DATA.value)}
    for name, config in configs.items():
        number = 2 * len(levels) * _SEEDS.value
        costs = paper_tables.cost(config, methods, _NUM_NOISY[name], number)
        print(f"{name}\n\n{paper_tables.cost_table(costs)}")
    sys.stdout.flush()
    if _COST_ONLY.value:
        return
    workdir = paths.absolute(_WORKDIR.value)
    rows: list[dict[str, Any]] = []
    texts = []
    for name, config in configs.items():
        cells = noise_grid.cells(config, ["uniform", "flip"], levels)
        settings = {method: {"method": method} for method in methods}
        grid = noise_grid.grid(config, settings, cells, range(_SEEDS.value))
        of_dataset = _SHARDS.rows(config, grid, workdir / name, batch_runs=_BATCH_RUNS.value)
        if not of_dataset:  # A worker's share makes no table.
            continue
        rows += of_dataset
        published = paper_tables.TABLE2.get(name, {})
        texts.append(
            f"{name}, mean over {noise_tables.noise_of(of_dataset)}, "
            f"{of_dataset[0]['num_steps']} steps{_overridden()}\n\n"
            + paper_tables.beside_published(of_dataset, methods, published)
        )
        # Written after each dataset: the next may take days.
        tables.write(workdir, "table2", rows, "\n".join(texts))
    print("\n".join(texts))


def _overridden() -> str:
    return f" ({', '.join(_OVERRIDE.value)})" if _OVERRIDE.value else ""


def _parse_data(pairs: list[str]) -> list[tuple[str, str]]:
    parsed = []
    for pair in pairs:
        name, _, directory = pair.partition(":")
        ok = name in DATASETS and bool(directory or name == "digits")
        expect(ok, "--data", pair, f"NAME:DIRECTORY with a name of {', '.join(DATASETS)}")
        parsed.append((name, directory))
    return parsed


def _config(name: str, directory: str) -> ConfigDict:
    module = importlib.import_module(f"configs.{name}")
    is_text = name in TEXT_BENCHMARKS
    config: ConfigDict = module.get_config(_TEXTS.value) if is_text else module.get_config()
    config.dataset.data_dir = directory or None
    if is_text:
        config.model.bert.checkpoint = _CHECKPOINT.value
    for pair in _OVERRIDE.value:
        field, equals, text = pair.partition("=")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            value = text
        try:
            config.update_from_flattened_dict({field: value})
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(
                f"--override: got {pair!r}, expected FIELD=VALUE of a setting that "
                f"`python -m mlc_jax.config` lists ({error})"
            ) from error
        expect(equals, "--override", pair, "FIELD=VALUE")
    return config


if __name__ == "__main__":
    command_line.run(main, required=["data", "workdir"])
