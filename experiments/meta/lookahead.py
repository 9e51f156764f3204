"""Does it help to look ahead, and how exactly must one look?

A window of k steps looks k steps ahead, and with s = k the LCN is updated only once per k steps.
Here both effects are separated: `update_every` = s is 1 or k. Every arm uses its best meta rate. It
is chosen on UNIF 0.6 by additional clean labels, with other seeds. This is the part `lookahead` of
`experiments.compare_meta_gradients`.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from experiments import runs
from experiments.meta.meta_gradient_plots import NOISE_NAMES
from experiments.records import Row
from experiments.speed import costs, programs
from experiments.tables import to_markdown, values, where
from mlc_jax.training.run import build_run

NOISES = (("uniform", 0.4), ("uniform", 0.6), ("uniform", 0.8), ("flip", 0.4), ("flip", 0.8))
HARD = (("uniform", 0.8), ("flip", 0.4))  # Further noise, to test whether results hold there.
TUNED_ON = ("uniform", 0.6)
VALIDATION_PER_CLASS = 5
FIRST_SEED, FIRST_TUNING_SEED = 100, 200
LONGER = 4  # Factor on the number of steps.


class Arm(NamedTuple):
    """One way to train."""

    estimator: str
    k: int
    s: int
    normalize: bool = False

    @property
    def name(self) -> str:
        normalized = ", normalised" if self.normalize else ""
        if self.k == 1:
            return f"k = 1{normalized}"
        kind = "" if self.estimator == "exact" else f"{self.estimator}, "
        return f"{kind}k = {self.k}, s = {self.s}{normalized}"

    @property
    def directory(self) -> str:
        normalized = "_normalized" if self.normalize else ""
        return f"{self.estimator.replace(':', '_')}_k{self.k}_s{self.s}{normalized}"

    def fields(self) -> dict[str, Any]:
        """The arm's fields of a config."""
        of_estimator = programs.settings(self.estimator)
        of_estimator |= {"num_inner_steps": self.k, "update_every": self.s}
        return {f"meta_gradient.{name}": value for name, value in of_estimator.items()} | {
            "meta_optimizer.normalize": self.normalize
        }


def arms(lengths: Sequence[int]) -> dict[str, list[Arm]]:
    """The arms of each question."""
    longest = max(lengths)
    one, far = Arm("exact", 1, 1), Arm("exact", longest, 1)
    looking = [Arm("exact", k, s) for k in lengths for s in dict.fromkeys((1, k))]
    less_exact = (f"truncated:{max(1, longest // 2)}", "first_order", "approximate")
    exactness = [far, *(Arm(name, longest, 1) for name in less_exact), one]
    normalized = [arm._replace(normalize=on) for arm in (one, far) for on in (False, True)]
    return {"looking": looking, "exactness": exactness, "normalized": normalized}


def tuning_grid(
    config: ConfigDict, lengths: Sequence[int], rates: Sequence[float], num_seeds: int
) -> runs.Grid:
    """Every arm with every meta rate and seed on `TUNED_ON`, with validation labels."""
    grid = {}
    for arm in _distinct(arms(lengths).values()):
        for rate in rates:
            for seed in range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + num_seeds):
                changed = _config(config, arm, rate, TUNED_ON, seed)
                changed.dataset.validation_per_class = VALIDATION_PER_CLASS
                path = f"lookahead/tuning/{arm.directory}/rate{rate:g}/seed{seed}"
                grid[path] = ({"arm": arm.name, "rate": rate}, changed)
    return grid


def chosen_rates(rows: Sequence[Row]) -> dict[str, float]:
    """The rate of each arm with the best mean of the last validation accuracy."""

    def score(arm: str, rate: float) -> float:
        of_rate = where(rows, arm=arm, rate=rate)
        return float(np.mean([row["last_validation_accuracy"] for row in of_rate]))

    return {
        arm: max(values(where(rows, arm=arm), "rate"), key=lambda rate: score(arm, rate))
        for arm in values(rows, "arm")
    }


def grid_of(
    config: ConfigDict,
    lengths: Sequence[int],
    rates: dict[str, float],
    num_seeds: int,
    flop_ratio: float,
) -> runs.Grid:
    """Runs for the tables at chosen rates; `flop_ratio`: FLOPs of the longest arm over k = 1."""
    of_question, grid = arms(lengths), {}
    steps = _num_steps(config)
    settings: list[tuple[str, list[Arm], Any, dict[str, Any]]] = [
        ("plain", _distinct([of_question["looking"], of_question["exactness"]]), NOISES, {}),
        (
            "equal FLOPs",
            [Arm("exact", 1, 1)],
            NOISES,
            {"num_steps": round(steps * flop_ratio)},
        ),
        ("normalised", [arm for arm in of_question["normalized"] if arm.normalize], HARD, {}),
        ("standardised", of_question["normalized"], HARD, {"dataset.standardize": True}),
        (f"{LONGER}x steps", of_question["normalized"], HARD, {"num_steps": LONGER * steps}),
    ]
    for setting, of_setting, noises, fields in settings:
        for arm in of_setting:
            for noise in noises:
                for seed in range(FIRST_SEED, FIRST_SEED + num_seeds):
                    changed = _config(config, arm, rates[arm.name], noise, seed)
                    changed.update_from_flattened_dict(fields)
                    path = "/".join((
                        "lookahead", setting.replace(" ", "_"), arm.directory,
                        f"{noise[0]}{noise[1]:g}", f"seed{seed}",
                    ))  # fmt: skip
                    row = {
                        "setting": setting, "arm": arm.name, "k": arm.k,
                        "s": arm.s, "estimator": arm.estimator, "normalized": arm.normalize,
                        "rate": rates[arm.name], "noise_type": noise[0], "noise_level": noise[1],
                    }  # fmt: skip
                    grid[path] = (row, changed)
    return grid


def _config(
    config: ConfigDict, arm: Arm, rate: float, noise: tuple[str, float], seed: int
) -> ConfigDict:
    fields = arm.fields() | {
        "meta_optimizer.learning_rate": rate,
        "noise.type": noise[0],
        "noise.level": noise[1],
    }
    return runs.override(config, fields, seed=seed)


def _num_steps(config: ConfigDict) -> int:
    one = {"meta_gradient.num_inner_steps": 1, "meta_gradient.update_every": 0}
    return build_run(runs.override(config, one)).bound.num_steps


def _distinct(lists: Iterable[Iterable[Arm]]) -> list[Arm]:
    return list(dict.fromkeys(arm for arms in lists for arm in arms))


def table(rows: Sequence[Row], lengths: Sequence[int], flop_ratio: float) -> str:
    """All tables: last test accuracy in percent over the seeds, and the rates."""
    plain = where(rows, setting="plain")
    noises = [f"{NOISE_NAMES[kind]} {level:g}" for kind, level in NOISES]
    of_question = arms(lengths)

    def cells(
        some: Sequence[Mapping[str, Any]], arm: str, shown: Sequence[tuple[str, float]]
    ) -> list[str]:
        return [
            runs.mean_and_spread(
                row["last_test_accuracy"]
                for row in where(some, arm=arm, noise_type=kind, noise_level=level)
            )
            for kind, level in shown
        ]

    rate_of = {row["arm"]: f"{row['rate']:g}" for row in rows}
    header = ["exact", *noises, "meta rate"]
    body = [
        [a.name, *cells(plain, a.name, NOISES), rate_of[a.name]] for a in of_question["looking"]
    ]
    text = ["Does looking ahead help?", "", to_markdown(header, body)]
    body = [
        [arm.name, *cells(plain, arm.name, NOISES), rate_of[arm.name]]
        for arm in of_question["exactness"]
    ]
    one = Arm("exact", 1, 1).name
    equal = cells(where(rows, setting="equal FLOPs"), one, NOISES)
    body.append([f"{one}, equal FLOPs ({flop_ratio:.1f} times the steps)", *equal, rate_of[one]])
    text += ["Does exactness matter?", "", to_markdown(["estimator", *noises, "meta rate"], body)]
    header, body = ["setting", "arm", *(f"{NOISE_NAMES[t]} {x:g}" for t, x in HARD)], []
    by_setting: dict[str, tuple[str, ...]] = {"as configured": ("plain", "normalised")}
    by_setting |= {name: (name,) for name in ("standardised", f"{LONGER}x steps")}
    for name, settings in by_setting.items():
        some = [row for row in rows if row["setting"] in settings]
        body += [
            [name, arm.name, *cells(some, arm.name, HARD)] for arm in of_question["normalized"]
        ]
    text += ["Where does it hold?", "", to_markdown(header, body, text_columns=(0, 1))]
    return "\n".join(text)


def flops_over_one(config: ConfigDict, lengths: Sequence[int]) -> float:
    """FLOPs of an inner step of the longest arm over those at k = 1."""
    far = costs.window_flops(config, "exact@1", max(lengths))
    return far / costs.window_flops(config, "exact", 1)


def train(
    config: ConfigDict,
    workdir: epath.Path,
    lengths: Sequence[int],
    rates: Sequence[float],
    num_seeds: int,
    batch_runs: int,
) -> tuple[list[Row], str]:
    """Tunes, trains missing runs, and returns rows and tables.

    Args:
      config: has the data, the models and the number of steps.
      workdir: see `runs.run_grid`.
      lengths: values of k; the first is 1.
      rates: meta rates to choose from.
      num_seeds: seeds per arm, for tuning and for the tables.
      batch_runs: see `runs.run_grid`.
    """
    tuned = runs.train_rows(
        tuning_grid(config, lengths, rates, num_seeds), workdir, batch_runs=batch_runs
    )
    ratio = flops_over_one(config, lengths)
    grid = grid_of(config, lengths, chosen_rates(tuned), num_seeds, ratio)
    rows = runs.train_rows(grid, workdir, batch_runs=batch_runs)
    return rows, table(rows, lengths, ratio)
