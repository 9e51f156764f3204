"""Compares all estimators of the meta-gradient: agreement, cost, and accuracy after training.

    python -m experiments.compare_meta_gradients --config=configs/digits.py --workdir=DIR

Parts, each with a table (CSV and Markdown) and a picture in DIR; the first three by default:

    agreement   cosine with the exact k-step meta-gradient, and norm over its norm, on the same
                windows: at three points of one real run, at low and at high noise
    cost        time, compilation, memory and FLOPs beside plain steps (`speed.benchmark`)
    accuracy    accuracy after training with each of them, over seeds
    lookahead   the value of looking ahead and of exactness, with equally many updates of the LCN
                (`experiments.meta.lookahead`): `--parts=lookahead --batch_runs=25` took an hour

Results are written once they are measured: `cost.jsonl` after every k, `agreement.jsonl` after
every k and noise level, `runs/` after every run. The same command resumes. Seeds of one estimator
and k are trained as one program, at most `--batch_runs` of them. Except for rounding, each run is
the same as alone.

Estimators are named as in `meta_gradient.estimator`; `truncated:5` is truncated with
`meta_gradient.truncation=5`, `exact:store` exact with `meta_gradient.backward=store`.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import chex
import jax
import numpy as np
from absl import flags, logging
from etils import epath
from matplotlib.figure import Figure
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from experiments import runs, tables
from experiments.meta import lookahead
from experiments.meta.meta_gradient_plots import (
    Rows,
    plot_accuracy,
    plot_agreement,
    plot_cost,
    plot_lookahead,
)
from experiments.records import Records, Row, clear_programs, flat_settings
from experiments.speed import costs, programs
from experiments.tables import to_markdown, values, where
from mlc_jax import command_line
from mlc_jax.config import validate
from mlc_jax.core import (
    BACKWARDS,
    ESTIMATORS,
    Batch,
    Estimator,
    MainState,
    Options,
    Params,
    Problem,
    TrainState,
    Window,
    agreement,
)
from mlc_jax.core.estimators import DEFAULTS
from mlc_jax.data.loader import Pipeline, to_devices
from mlc_jax.errors import expect
from mlc_jax.training.run import Run, build_run, initial_state
from mlc_jax.training.stack import over_devices
from mlc_jax.workdir.workdir import locked_workdir

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, such as configs/digits.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory for runs, tables and pictures.")
_PARTS = flags.DEFINE_list("parts", ["agreement", "cost", "accuracy"], "Parts to make.")
_ESTIMATORS = flags.DEFINE_list(
    "estimators",
    ["approximate", "one_step", "truncated:2", "truncated:5", "finite_difference", "neumann",
     "conjugate_gradient"],
    "What is held against exact.",
)  # fmt: skip
_NUM_INNER_STEPS = flags.DEFINE_list(
    "num_inner_steps", ["1", "5", "10"], "Window lengths k of agreement and cost."
)
_TRAINED = flags.DEFINE_list("trained", ["1", "5"], "Window lengths k of accuracy.")
_LEVELS = flags.DEFINE_list("levels", ["0.2", "0.6"], "Noise levels of agreement, low to high.")
_AHEAD = flags.DEFINE_list(
    "ahead", ["1", "2", "5", "10"], "Window lengths k of lookahead; the first is 1."
)
_META_RATES = flags.DEFINE_list(
    "meta_rates", ["0.001", "0.003", "0.01"], "Meta rates that lookahead chooses from."
)
_WINDOWS = flags.DEFINE_integer("windows", 5, "Windows at each point of a run.", lower_bound=2)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Seeds of accuracy, from 0.", lower_bound=1)
_BATCH_RUNS = flags.DEFINE_integer(
    "batch_runs", 5, "Runs of accuracy to train as one program, at most.", lower_bound=1
)
_REPEATS = flags.DEFINE_integer("repeats", 5, "Timings of every step.", lower_bound=1)

# Points of a run, as shares of its steps.
PHASES = {"early": 0.05, "middle": 0.5, "late": 0.95}
PARTS = ("agreement", "cost", "accuracy", "lookahead")


def main() -> None:
    logging.set_verbosity(logging.WARNING)
    config, parts = _CONFIG.value, _PARTS.value
    lengths, trained, levels, ahead, rates = _check_flags(config)
    with locked_workdir(_WORKDIR.value) as workdir:
        # All files are checked for other settings before the first measurement.
        cost = _cost_records(config, workdir) if "cost" in parts else None
        agreements = _agreement_records(config, workdir) if "agreement" in parts else None
        grid = _grid(config, trained) if "accuracy" in parts else {}
        of_all = grid
        if "lookahead" in parts:
            of_all = {**grid, **lookahead.tuning_grid(config, ahead, rates, _SEEDS.value)}
        runs.check({path: of_run for path, (_, of_run) in of_all.items()}, workdir)
        if cost:
            steps = [*(f"exact:{backward}" for backward in BACKWARDS), *_ESTIMATORS.value]
            rows = costs.measure_lengths(
                config, lengths, steps, repeats=_REPEATS.value, records=cost
            )
            _write(workdir, "cost", rows, costs.to_markdown(rows), plot_cost)
        runs.cache_programs(workdir)  # After the cost, which includes compilation.
        if agreements:
            rows = measure_agreement(
                config, levels, lengths, _ESTIMATORS.value, _WINDOWS.value, agreements
            )
            _write(workdir, "agreement", rows, agreement_table(rows), plot_agreement)
        if grid:
            rows = runs.train_rows(grid, workdir, batch_runs=_BATCH_RUNS.value)
            _write(workdir, "accuracy", rows, accuracy_table(rows), plot_accuracy)
        if "lookahead" in parts:
            rows, table = lookahead.train(
                config, workdir, ahead, rates, _SEEDS.value, _BATCH_RUNS.value
            )
            _write(workdir, "lookahead", rows, table, plot_lookahead)


def _cost_records(config: ConfigDict, workdir: epath.Path) -> Records:
    settings = flat_settings(config) | programs.describe(config)  # Times depend on these, too.
    settings |= {"--estimators": _ESTIMATORS.value, "--repeats": _REPEATS.value}
    return Records(workdir / "cost.jsonl", settings)


def _agreement_records(config: ConfigDict, workdir: epath.Path) -> Records:
    settings = flat_settings(config)
    del settings["config.noise.level"]  # --levels has it.
    settings |= {"--estimators": _ESTIMATORS.value, "--windows": _WINDOWS.value}
    return Records(workdir / "agreement.jsonl", settings)


def _overrides(name: str, num_inner_steps: int) -> dict[str, Any]:
    fields = programs.settings(name) | {"num_inner_steps": num_inner_steps, "update_every": 0}
    return {f"meta_gradient.{field}": value for field, value in fields.items()}


# --- Agreement.


def measure_agreement(
    config: ConfigDict,
    levels: Sequence[float],
    lengths: Sequence[int],
    names: Sequence[str],
    num_windows: int,
    records: Records,
) -> list[dict[str, Any]]:
    """Cosine and norm ratio to exact of every estimator, window, phase, level and length.

    At each phase all estimators are tried on the same `num_windows` next windows, from the same
    training state. Measurements in `records` are not repeated.
    """
    at_level = {level: runs.override(config, {"noise.level": level}) for level in levels}
    states = functools.cache(lambda level: trajectory(at_level[level]))
    bar = tqdm(total=len(levels) * len(lengths), desc="agreement", unit="point")

    def of_length(k: int) -> list[Row]:
        step, rows = _comparison(config, k, names), []  # One program serves all levels.
        for level in levels:
            place, of_level = {"level": level, "k": k}, functools.partial(states, level)
            measure = functools.partial(
                _agreement_rows, at_level[level], k, of_level, step, num_windows
            )
            rows += [place | row for row in records.get(place, measure)]
            bar.update()
        return rows

    rows = []
    with bar:
        for k in lengths:
            rows += of_length(k)
            clear_programs()  # Nothing refers to the programs of `of_length` any more.
    return rows


def trajectory(config: ConfigDict) -> dict[str, TrainState]:
    """States of one run of `config`, one for each of `PHASES`."""
    run = build_run(config)
    num_windows = run.bound.num_steps / run.method.stride
    points = {round(share * num_windows): phase for phase, share in PHASES.items()}
    step = over_devices(run.bound.train_step, donate=True)
    state = initial_state(run)
    states = {}
    windows = tqdm(range(max(points) + 1), desc="trajectory", unit="window", leave=False)
    for window, batch in zip(windows, _batches(run, 0), strict=False):
        if window in points:
            states[points[window]] = jax.tree.map(lambda x: x.copy(), state)  # Donated next.
        state, _ = jax.block_until_ready(step(state, batch))
    return states


def _comparison(config: ConfigDict, num_inner_steps: int, names: Sequence[str]) -> Any:
    """(state, batch of one window) -> every estimator's agreement with exact; compiled if used."""
    run = build_run(_exact(config, num_inner_steps))
    window = run.bound.window
    assert window is not None

    def compare(state: TrainState, batch: Batch) -> dict[str, dict[str, jax.Array]]:
        exact, *others = (
            window(_estimator(name), state, batch).meta_grads for name in ("exact", *names)
        )
        return {name: agreement(ours, exact) for name, ours in zip(names, others, strict=True)}

    return over_devices(compare)


def _agreement_rows(
    config: ConfigDict,
    k: int,
    states: Callable[[], dict[str, TrainState]],
    step: Any,
    num_windows: int,
) -> list[Row]:
    """A row for each phase, window and estimator."""
    run, rows = build_run(_exact(config, k)), []
    for phase, state in states().items():
        batches = _batches(run, int(state.step) // k)
        for window, batch in zip(range(num_windows), batches, strict=False):
            of_window = jax.tree.map(float, jax.device_get(step(state, batch)))
            place = {"phase": phase, "window": window}
            rows += [place | {"estimator": name} | x for name, x in of_window.items()]
    return rows


def _exact(config: ConfigDict, num_inner_steps: int) -> ConfigDict:
    return runs.override(config, _overrides("exact", num_inner_steps))


def _estimator(name: str) -> Estimator:
    """The estimator of that name, with the option in it."""
    fields = programs.settings(name)
    estimator = ESTIMATORS[fields.pop("estimator")]

    def with_option(
        problem: Problem, main: MainState, meta_params: Params, batches: Batch, rngs: chex.PRNGKey,
        options: Options = DEFAULTS,
    ) -> Window:  # fmt: skip
        options = options._replace(**fields)
        return estimator(problem, main, meta_params, batches, rngs, options)

    return with_option


def _batches(run: Run, first_window: int) -> Iterator[Batch]:
    assert isinstance(run.pipeline, Pipeline)
    arrays = run.pipeline.batches(first_window, num_devices=jax.local_device_count())
    return to_devices(arrays, jax.local_devices())


def agreement_table(rows: Rows) -> str:
    """A block per noise level; cosine / norm ratio, means over windows and phases."""
    names, lengths, levels = (values(rows, key) for key in ("estimator", "k", "level"))
    lines = []
    for level in levels:
        lines += [f"Noise {level}: cosine (mean ± std) and norm ratio, windows of all phases.", ""]
        body = []
        for name in names:
            of_name = where(rows, estimator=name, level=level)
            body.append([name, *(_agreement_cell(where(of_name, k=k)) for k in lengths)])
        lines.append(to_markdown(["estimator", *(f"k = {k}" for k in lengths)], body))
    return "\n".join(lines)


def _agreement_cell(rows: Rows) -> str:
    cosines, ratios = ([row[key] for row in rows] for key in ("cosine", "norm_ratio"))
    return f"{np.mean(cosines):.2f} ± {np.std(cosines):.2f}, {np.median(ratios):.2g}x"


# --- Accuracy.


def _grid(config: ConfigDict, lengths: Sequence[int]) -> runs.Grid:
    """Every estimator, k and seed, keyed by directory: the fields of its row, and its config."""
    return {
        f"runs/{name.replace(':', '_')}/k{k}/seed{seed}": (
            {"estimator": name, "k": k},
            runs.override(config, _overrides(name, k), seed=seed),
        )
        for seed in range(_SEEDS.value)
        for k in lengths
        for name in ("exact", *_ESTIMATORS.value)
    }


def accuracy_table(rows: Rows) -> str:
    """Last test accuracy in percent, mean and standard deviation over the seeds."""
    names, lengths = values(rows, "estimator"), values(rows, "k")
    body = []
    for name in names:
        of_name = [where(rows, estimator=name, k=k) for k in lengths]
        cells = [runs.mean_and_spread(row["last_test_accuracy"] for row in x) for x in of_name]
        body.append([name, *cells])
    return to_markdown(["estimator", *(f"k = {k}" for k in lengths)], body)


# --- Files and flags.


def _write(
    workdir: epath.Path,
    name: str,
    rows: Rows,
    table: str,
    plot: Callable[[Rows], Figure],
) -> None:
    """`name`.csv, .md and .png, and the table on the screen."""
    tables.write(workdir, name, rows, table)
    tables.write_figure(workdir, name, plot(rows), dpi=110)
    print(table)


def _check_flags(
    config: ConfigDict,
) -> tuple[list[int], list[int], list[float], list[int], list[float]]:
    """Raises InputError, or returns what lists of numbers say, in the order of their flags."""
    for name in _PARTS.value:
        expect(name in PARTS, "--parts", name, f"some of {', '.join(PARTS)}")
    lengths, trained = (
        _numbers(flag, int, lambda k: k >= 1, "whole numbers from 1")
        for flag in (_NUM_INNER_STEPS, _TRAINED)
    )
    levels = _numbers(_LEVELS, float, lambda x: 0 <= x <= 1, "numbers from 0 to 1")
    ahead = _numbers(_AHEAD, int, lambda k: k >= 1, "whole numbers, 1 and more")
    more = ahead[0] == 1 and len(ahead) > 1
    expect(more, "--ahead", ",".join(_AHEAD.value), "whole numbers, the first of them 1")
    rates = _numbers(_META_RATES, float, lambda x: 0 < x < math.inf, "positive numbers")
    for name in _ESTIMATORS.value:
        estimator, colon, option = name.partition(":")
        ok = estimator in ESTIMATORS and estimator != "exact"
        if colon:
            ok = estimator == "truncated" and option.isdecimal() and int(option) >= 1
        others = ", ".join(x for x in ESTIMATORS if x != "exact")
        expect(ok, "--estimators", name, f"some of {others}; truncated:5 goes back 5 steps")
    for k in {*lengths, *trained}:
        changed = runs.override(config, _overrides("exact", k))
        validate(changed, num_devices=jax.device_count())
    bilevel = build_run(config).bound.window
    expect(bilevel, "config.method", config.method, "one with a meta model")
    return lengths, trained, levels, ahead, rates


def _numbers(flag: Any, kind: type, ok: Callable[[Any], bool], expected: str) -> list[Any]:
    try:
        values = [kind(value) for value in flag.value]
    except ValueError:
        values = []
    good = bool(values) and all(ok(value) for value in values)
    expect(good, f"--{flag.name}", ",".join(flag.value), expected)
    return values


if __name__ == "__main__":
    command_line.run(main, required=["config", "workdir"])
