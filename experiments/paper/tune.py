"""Fair tuning: every method gets the same number of trials, and is shown on fresh seeds.

    python -m experiments.paper.tune --config=configs/digits.py \
        --config.dataset.validation_per_class=5 --methods=all --noise=uniform,flip \
        --levels=0.2,0.6,0.8 --trials=8 --batch_runs=30 --workdir=DIR

A trial is one setting of a method, trained on all noise with --tuning_seeds seeds. The first one is
the config as it is. The others are drawn from the method's space, `SPACES`: its learning rate and
one to three settings of its own. The draws follow from --search_seed, the method and the number of
the trial alone. So a search can be continued with more --trials, and a method's draws do not depend
on which others are tuned.

The setting with the best last validation accuracy, mean over all noise and tuning seeds, is trained
with --seeds other seeds on --final_levels. The test set is not used to choose. A setting with which
runs diverge ranks below all settings with fewer such runs; its accuracy is over the runs that end.
Validation labels count as clean labels spent.

In DIR: `trials.csv`, a row per trial; `chosen.csv` and `chosen.md`, the setting of each method; of
the final runs `runs.csv`, `sweep.csv`, `sweep.md`, `sweep.png` (`noise_tables`). Every run has a
workdir of its own, `<noise>/<level>/<method>/trial<n>/seed<n>` in DIR/tuning or DIR/final. Finished
runs are not repeated, interrupted ones resume, and those that diverged are tried again.

Learning rates are constants of a program. So --batch_runs trains only runs of one trial together,
and each trial is compiled.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from experiments import runs, tables
from experiments.paper import noise_grid, noise_tables
from experiments.records import Row, flat_settings
from experiments.tables import to_csv, values, where
from mlc_jax import command_line, paths
from mlc_jax.benchmarks import datasets
from mlc_jax.config import METHODS, NOISE_TYPES
from mlc_jax.errors import expect

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, such as configs/digits.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory for the runs, tables and the picture.")
_METHODS = flags.DEFINE_list("methods", ["all"], f"all, or some of {', '.join(METHODS)}.")
_NOISE = flags.DEFINE_list(
    "noise", [], f"Some of {', '.join(NOISE_TYPES)}; the config's if not given."
)
_LEVELS = flags.DEFINE_string(
    "levels", "", "Noise levels to tune on: 0.2,0.4 or first:last:step; none is the config's."
)
_FINAL_LEVELS = flags.DEFINE_string(
    "final_levels", "", "Noise levels of the final runs; those of --levels if not given."
)
_TRIALS = flags.DEFINE_integer(
    "trials", 8, "Settings to try per method, the config's included.", lower_bound=1
)
_SEARCH_SEED = flags.DEFINE_integer("search_seed", 0, "Of the settings drawn.", lower_bound=0)
_TUNING_SEEDS = flags.DEFINE_integer("tuning_seeds", 3, "Seeds of every trial.", lower_bound=1)
_FIRST_TUNING_SEED = flags.DEFINE_integer(
    "first_tuning_seed", 200, "The first of them.", lower_bound=0
)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Seeds of the final runs.", lower_bound=1)
_FIRST_SEED = flags.DEFINE_integer(
    "first_seed", 300, "The first of them; none may be one of the tuning seeds.", lower_bound=0
)
_BATCH_RUNS = flags.DEFINE_integer(
    "batch_runs", 1, "Runs to train as one program, at most.", lower_bound=1
)


class Dimension(NamedTuple):
    """One field of the config that a search draws.

    Attributes:
      field: as on the command line.
      kind: `log` (uniform in the logarithm), `linear`, or `choice`.
      values: lowest and highest; or all choices.
    """

    field: str
    kind: str
    values: tuple[float, ...]


_LEARNING_RATE = Dimension("main_optimizer.learning_rate", "log", (0.01, 0.3))
_WEIGHT_DECAY = Dimension("main_optimizer.weight_decay", "log", (1e-5, 1e-2))
_POWER = Dimension("inner_loss.power", "choice", (1.0, 2.0, 4.0, 8.0))


def _meta_rate(low: float, high: float) -> Dimension:
    return Dimension("meta_optimizer.learning_rate", "log", (low, high))


# The settings that are drawn for each method, in addition to the learning rate.
_OWN: dict[str, tuple[Dimension, ...]] = {
    "cross_entropy": (_WEIGHT_DECAY,),
    "clean_only": (_WEIGHT_DECAY,),
    "noisy_only": (_WEIGHT_DECAY,),
    "glc": (_WEIGHT_DECAY,),
    "forward": (Dimension("forward.percentile", "linear", (90.0, 100.0)),),
    "joint": (
        Dimension("joint.prior_weight", "linear", (0.4, 2.0)),
        Dimension("joint.entropy_weight", "linear", (0.0, 1.2)),
    ),
    "mlnt": (
        Dimension("mlnt.lookahead_rate", "log", (0.05, 0.5)),
        Dimension("mlnt.consistency_weight", "log", (0.3, 10.0)),
        Dimension("mlnt.transferred_share", "linear", (0.2, 0.6)),
    ),
    "distillation": (Dimension("distillation.label_weight", "linear", (0.0, 1.0)),),
    "l2rw": (Dimension("main_optimizer.clip_norm", "choice", (0.0, 1.0, 5.0)),),
    "meta_weight_net": (
        _meta_rate(1e-4, 1e-1),
        Dimension("weight_net.hidden_size", "choice", (50, 100, 200)),
    ),
    "mlc": (
        _meta_rate(1e-4, 1e-2),
        Dimension("lcn.hidden_size", "choice", (32, 64, 128)),
    ),
    "robust_mlc": (_meta_rate(1e-4, 1e-2), _POWER),
    "self_training": (_POWER, Dimension("inner_loss.prior_weight", "linear", (0.4, 2.0))),
    "emlc": (_meta_rate(1e-3, 1e-1),),
}
SPACES = {method: (_LEARNING_RATE, *own) for method, own in _OWN.items()}


class Trial(NamedTuple):
    """One setting of a method.

    Attributes:
      method: whose it is.
      number: from 0, which is the config as it is.
      settings: a value for every field of the method's space.
    """

    method: str
    number: int
    settings: dict[str, Any]

    @property
    def name(self) -> str:
        return f"{self.method}/trial{self.number}"

    @property
    def fields(self) -> dict[str, Any]:
        """The trial's fields of the config."""
        return {"method": self.method} | (self.settings if self.number else {})


def main() -> None:
    logging.set_verbosity(logging.WARNING)
    config, methods = _CONFIG.value, noise_grid.parse_methods(_METHODS.value)
    for method in methods:
        expect(method in SPACES, "--methods", method, f"all or some of {', '.join(SPACES)}")
    tuned_on, final_cells = _cells(config)
    tuning_seeds, seeds = _seeds()
    given = config.dataset.validation_per_class
    expect(given, "config.dataset.validation_per_class", given, "at least 1, to choose settings by")
    workdir = paths.absolute(_WORKDIR.value)
    trials = [
        trial
        for method in methods
        for trial in create_trials(config, method, _TRIALS.value, _SEARCH_SEED.value)
    ]
    tuning = grid_of("tuning", config, trials, tuned_on, tuning_seeds)
    # Before the first run. If the config itself is right, so are drawn settings.
    untuned = [trial for trial in trials if trial.number == 0]
    of_untuned = grid_of("final", config, untuned, final_cells, seeds)
    runs.check({path: of_run for path, (_, of_run) in of_untuned.items()}, workdir)

    results = runs.train_rows(tuning, workdir, batch_runs=_BATCH_RUNS.value)
    scored = score(trials, results, runs_per_trial=len(tuned_on) * len(tuning_seeds))
    workdir.joinpath("trials.csv").write_text(to_csv(scored))
    chosen = choose(scored)
    num_validation = _num_validation(next(of_run for _, of_run in tuning.values()))
    text = to_markdown(chosen, results, num_trials=_TRIALS.value, num_validation=num_validation)
    tables.write(workdir, "chosen", chosen, text)
    print(text)

    winners = {(row["method"], row["trial"]) for row in chosen}
    final = [trial for trial in trials if (trial.method, trial.number) in winners]
    grid = grid_of("final", config, final, final_cells, seeds)
    noise_tables.write(runs.train_rows(grid, workdir, batch_runs=_BATCH_RUNS.value), workdir)
    print(f"Everything is in {workdir}: trials, settings, and metrics for each run.")


def _cells(config: ConfigDict) -> tuple[list[noise_grid.Cell], list[noise_grid.Cell]]:
    """Noise to tune on, and that of the final runs."""
    levels = noise_grid.parse_levels(_LEVELS.value) if _LEVELS.value else []
    tuned_on = noise_grid.cells(config, _NOISE.value, levels)
    if not _FINAL_LEVELS.value:
        return tuned_on, tuned_on
    levels = noise_grid.parse_levels(_FINAL_LEVELS.value, "--final_levels")
    return tuned_on, noise_grid.cells(config, _NOISE.value, levels)


def _seeds() -> tuple[range, range]:
    """The seeds of the trials, and those of the final runs, which must differ."""
    tuning = range(_FIRST_TUNING_SEED.value, _FIRST_TUNING_SEED.value + _TUNING_SEEDS.value)
    final = range(_FIRST_SEED.value, _FIRST_SEED.value + _SEEDS.value)
    fresh = not set(tuning) & set(final)
    expected = f"seeds apart from those of tuning, {_span(tuning)}"
    expect(fresh, "--first_seed and --seeds", _span(final), expected)
    return tuning, final


def _span(seeds: Sequence[int]) -> str:
    return f"{seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"{seeds[0]}"


def draw(method: str, number: int, search_seed: int) -> dict[str, Any]:
    """Settings of a trial: a pure function of the arguments.

    Args:
      method: a key of `SPACES`.
      number: of the trial.
      search_seed: of all trials.

    Returns:
      A value for each field. Numbers have three digits, so tables show exactly what was trained.
    """
    rng = np.random.default_rng([search_seed, number, *method.encode()])
    drawn: dict[str, Any] = {}
    for field, kind, bounds in SPACES[method]:
        if kind == "choice":
            drawn[field] = bounds[rng.integers(len(bounds))]
        elif kind == "log":
            low, high = np.log(bounds)
            drawn[field] = float(f"{np.exp(rng.uniform(low, high)):.3g}")
        else:
            low, high = bounds
            drawn[field] = float(f"{rng.uniform(low, high):.3g}")
    return drawn


def create_trials(config: ConfigDict, method: str, count: int, search_seed: int) -> list[Trial]:
    """The config as it is, so that tuning never chooses worse, and `count - 1` settings drawn."""
    flat = flat_settings(config)
    as_it_is = {field: flat[f"config.{field}"] for field, _, _ in SPACES[method]}
    drawn = [Trial(method, i, draw(method, i, search_seed)) for i in range(1, count)]
    return [Trial(method, 0, as_it_is), *drawn]


def grid_of(
    stage: str,
    config: ConfigDict,
    trials: Iterable[Trial],
    cells: Sequence[noise_grid.Cell],
    seeds: Sequence[int],
) -> runs.Grid:
    """Every trial with all noise and seeds, below the directory `stage`."""
    return {
        f"{stage}/{path}": (place | {"trial": trial.number}, of_run)
        for trial in trials
        for path, (place, of_run) in noise_grid.grid(
            config, {trial.name: trial.fields}, cells, seeds
        ).items()
    }


def score(trials: Iterable[Trial], rows: Sequence[Row], *, runs_per_trial: int) -> list[Row]:
    """One row per trial: mean last validation accuracy, and the runs that diverged.

    Args:
      trials: all that were made.
      rows: of the runs that ended.
      runs_per_trial: noise types and levels, times seeds.
    """
    scored = []
    for method, number, settings in trials:
        ended = where(rows, method=method, trial=number)
        accuracies = [row["last_validation_accuracy"] for row in ended]
        scored.append({
            "method": method,
            "trial": number,
            "settings": settings,
            "validation_accuracy": float(np.mean(accuracies)) if accuracies else None,
            "failures": runs_per_trial - len(ended),
        })  # fmt: skip
    return scored


def choose(scored: Sequence[Row]) -> list[Row]:
    """The best trial of each method, with the validation accuracy of the config as it is.

    The best trial has the fewest failures, then the highest accuracy; of equals it is the first.
    """

    def rank(trial: Mapping[str, Any]) -> tuple[int, float]:
        return -trial["failures"], trial["validation_accuracy"] or 0.0

    chosen = []
    for method in values(scored, "method"):
        of_method = where(scored, method=method)
        (untuned,) = where(of_method, trial=0)
        beside = {
            "untuned_validation_accuracy": untuned["validation_accuracy"],
            "untuned_failures": untuned["failures"],
        }
        best = max(of_method, key=rank)
        chosen.append({**best, **beside})
    return chosen


def to_markdown(
    chosen: Sequence[Row], results: Sequence[Row], *, num_trials: int, num_validation: int
) -> str:
    """A table of the chosen settings and their scores.

    Args:
      chosen: see `choose`.
      results: of the tuning runs.
      num_trials: per method.
      num_validation: labels that every run was validated by.
    """
    noise = noise_tables.noise_of(results)
    seeds = _span(sorted(values(results, "seed")))
    title = (
        f"{results[0]['dataset']}, tuned on {noise}, seeds {seeds}: {num_trials} trials per "
        f"method, the first of them the config as it is; the best by {num_validation} validation "
        "labels, which count as spent; validation accuracy in percent, mean over all runs of a "
        "trial that did not diverge"
    )
    header = ["method", "trial", "settings", "validation acc.", "diverged", "as it is", "diverged"]
    body = [
        [
            row["method"],
            str(row["trial"]),
            ", ".join(f"{field}={value}" for field, value in row["settings"].items()),
            runs.mean_and_spread([row["validation_accuracy"]]),
            str(row["failures"]),
            runs.mean_and_spread([row["untuned_validation_accuracy"]]),
            str(row["untuned_failures"]),
        ]
        for row in chosen
    ]
    return f"{title}\n\n{tables.to_markdown(header, body, text_columns=(0, 2))}"


def _num_validation(config: ConfigDict) -> int:
    validation = datasets.load(config).validation
    assert validation is not None  # There are some per class.
    return len(validation)


if __name__ == "__main__":
    command_line.run(main, required=["config", "workdir"])
