"""Shared parts of the paper's tables: published numbers, and the cost of running them.

Costs are rough estimates, to be read before a long run. XLA counts the FLOPs of a forward pass; the
cost of a method relative to a plain step is from docs/results/benchmark.md.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from experiments import runs
from experiments.speed import programs
from experiments.tables import to_markdown, where
from mlc_jax import build
from mlc_jax.methods import METHODS
from mlc_jax.methods.types import BilevelMethod, TwoPhaseMethod
from mlc_jax.models.bert_checkpoint import load_config

# From Zheng, Awadallah and Dumais (2021): mean accuracy over UNIF and FLIP at ten levels each.
TABLE2 = {
    "cifar10": {"meta_weight_net": 65.12, "glc": 86.62, "mlc": 86.81},
    "cifar100": {"meta_weight_net": 39.96, "glc": 50.50, "mlc": 53.68},
    "ag_news": {"meta_weight_net": 75.91, "glc": 83.88, "mlc": 85.27},
    "yelp5": {"meta_weight_net": 51.27, "glc": 60.12, "mlc": 62.61},
    "amazon5": {"meta_weight_net": 49.49, "glc": 60.31, "mlc": 61.21},
    "yahoo": {"meta_weight_net": 60.18, "glc": 68.03, "mlc": 73.72},
}
# Clothing1M. All numbers except the last are from the methods' own papers.
TABLE3 = {
    "forward": 69.84,
    "joint": 72.23,
    "mlnt": 73.47,
    "meta_weight_net": 73.72,
    "glc": 73.69,
    "mlc": 75.78,
}

# The cost of a step in forward passes of its images: three for a plain step, about nine with a
# meta-gradient (k = 5, exact). MLNT makes a step for each synthetic set, and two more.
_PLAIN, _BILEVEL = 3, 9


def cost(
    config: ConfigDict, methods: Sequence[str], num_noisy: int, num_runs: int
) -> list[dict[str, Any]]:
    """An estimate for each method, of all of its runs.

    Args:
      config: of the runs, but for the method.
      methods: names.
      num_noisy: noisy examples of a run.
      num_runs: of each method.

    Returns:
      Rows of `method`, `runs`, `steps` of a run, `passes` over examples of all runs in millions,
      and `pflop` of all runs.
    """
    flops = _forward_flops(config)
    batch = config.noisy_batch_size + config.clean_batch_size
    steps = config.num_steps or config.num_epochs * (num_noisy // config.noisy_batch_size)
    rows = []
    for name in methods:
        kind, work = METHODS[name], _PLAIN
        if issubclass(kind, BilevelMethod):
            work = _BILEVEL
        if name == "mlnt":
            work = _PLAIN * (config.mlnt.num_synthetic + 2)
        of_run = steps * (2 if issubclass(kind, TwoPhaseMethod) else 1)
        examples = of_run * batch * num_runs
        rows.append(
            {
                "method": name,
                "runs": num_runs,
                "steps": of_run,
                "passes": examples * work / 1e6,
                "pflop": examples * work * flops / 1e15,
            }
        )
    return rows


def cost_table(rows: Sequence[Mapping[str, Any]], seconds_per_pflop: float = 20.0) -> str:
    """Markdown.

    Args:
      rows: see `cost`.
      seconds_per_pflop: of the machine that the hours are for; 20 is 50 TFLOP/s, which a large GPU
        or a TPU chip of today reaches in bfloat16.
    """
    total = {"method": "all", "runs": sum(row["runs"] for row in rows), "steps": ""}
    total |= {name: sum(row[name] for row in rows) for name in ("passes", "pflop")}
    body = [
        (
            row["method"], str(row["runs"]), str(row["steps"]), f"{row['passes']:,.1f}",
            f"{row['pflop']:,.1f}", f"{row['pflop'] * seconds_per_pflop / 3600:,.1f}",
        )
        for row in (*rows, total)
    ]  # fmt: skip
    header = ["method", "runs", "steps of each", "million forward passes", "PFLOP"]
    return to_markdown([*header, f"hours at {1000 / seconds_per_pflop:g} TFLOP/s"], body)


def beside_published(
    rows: Sequence[Mapping[str, Any]], methods: Sequence[str], published: Mapping[str, float]
) -> str:
    """Markdown: a row for each method, mean ± deviation over the seeds, and the paper's number.

    Args:
      rows: `results.json` of runs; those of one seed are averaged first.
      methods: names, in their order.
      published: accuracy in percent by method.
    """
    columns = {
        "published": None,
        "test acc., last": "last_test_accuracy",
        "selected": "selected_test_accuracy",
        "best": "best_test_accuracy",
        "given labels right": "given_label_accuracy",
        "corrected labels right": "corrected_label_accuracy",
    }
    body = []
    for name in methods:
        of_method = where(rows, method=name)
        seeds = list(dict.fromkeys(row["seed"] for row in of_method))
        cells = [f"{published[name]:.2f}" if name in published else "-"]
        for key in (x for x in columns.values() if x):
            per_seed = [[r[key] for r in where(of_method, seed=seed)] for seed in seeds]
            known = [[x for x in values if x is not None] for values in per_seed]
            cells.append(runs.mean_and_spread([sum(x) / len(x) if x else None for x in known]))
        body.append([name, *cells, str(len(of_method))])
    return to_markdown(["method", *columns, "runs"], body)


def _forward_flops(config: ConfigDict) -> float:
    """FLOPs of one example, as XLA counts them before it optimises."""
    if config.model.name == "bert":
        shape, num_classes = load_config(config.model.bert.checkpoint), 10
        tokens = np.ones((1, config.dataset.max_length), np.int32)
        example: Any = {"input_ids": tokens, "attention_mask": tokens}
        if config.model.bert.num_frozen_layers == -1:  # The encoder's output is computed once.
            example = np.ones((1, shape.hidden_size), np.float32)
    else:
        pool = programs.load_pool(config)
        example, num_classes = pool.prepare(pool.example), pool.num_classes
    model = build.create_classifier(config.model, num_classes)
    init = functools.partial(model.init, jax.random.key(0), train=False)
    apply = functools.partial(model.apply, train=False)
    example = jax.tree.map(jnp.asarray, example)
    lowered = jax.jit(apply).lower(jax.eval_shape(init, example), example)
    analysis: Any = lowered.cost_analysis()
    return float(analysis["flops"])
