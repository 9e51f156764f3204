"""Every estimator of the meta-gradient side by side: how right, at what cost, to what end.

    python -m experiments.compare_meta_gradients --config=configs/digits.py --workdir=DIR

Three parts, each with a table (CSV and Markdown) and a picture in DIR:

    agreement   cosine with the exact k-step meta-gradient, and norm over its norm, on the same
                windows: at three points of one real run, at low and at high noise
    cost        time, compilation, memory and FLOPs beside plain steps (`experiments.benchmark`)
    accuracy    what training with each of them ends at, over seeds; runs that are finished are not
                run again

Estimators are named as in `meta_gradient.estimator`; `truncated:5` is truncated with
`meta_gradient.truncation=5`, `exact:store` exact with `meta_gradient.backward=store`.
"""

import io
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

from experiments import costs, runs
from experiments.meta_gradient_plots import Rows, plot_accuracy, plot_agreement, plot_cost
from experiments.tables import to_csv, values, where
from mlc_jax import command_line, parallel, train, validation
from mlc_jax.bilevel import BACKWARDS, Batch, Problem
from mlc_jax.data.pipeline import to_devices
from mlc_jax.errors import expect
from mlc_jax.meta_gradients import DEFAULTS, ESTIMATORS, Estimator, Options, Window, agreement
from mlc_jax.train_state import MainState, Params, TrainState

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
    "num_inner_steps", ["1", "2", "5", "10", "20", "50"], "Window lengths k."
)
_TRAINED = flags.DEFINE_list("trained", ["1", "5", "20"], "Window lengths k of accuracy.")
_LEVELS = flags.DEFINE_list("levels", ["0.2", "0.6"], "Noise levels of agreement, low to high.")
_WINDOWS = flags.DEFINE_integer("windows", 10, "Windows at each point of a run.", lower_bound=2)
_SEEDS = flags.DEFINE_integer("seeds", 5, "Seeds of accuracy, from 0.", lower_bound=1)
_REPEATS = flags.DEFINE_integer("repeats", 10, "Timings of every step.", lower_bound=1)

# Points of a run, as shares of its steps.
PHASES = {"early": 0.05, "middle": 0.5, "late": 0.95}
PARTS = ("agreement", "cost", "accuracy")


def main() -> None:
    logging.set_verbosity(logging.WARNING)
    config = _CONFIG.value
    lengths, trained, levels = _check_flags(config)
    workdir = epath.Path(_WORKDIR.value).expanduser().resolve()
    workdir.mkdir(parents=True, exist_ok=True)
    if "cost" in _PARTS.value:
        steps = [f"exact:{backward}" for backward in BACKWARDS]
        programs = costs.mlc_programs(config, lengths, steps + _ESTIMATORS.value)
        rows = costs.to_rows(costs.measure(programs, repeats=_REPEATS.value))
        _write(workdir, "cost", rows, costs.to_markdown(rows), plot_cost)
    runs.cache_programs(workdir)  # After the cost: compilation is part of that.
    if "agreement" in _PARTS.value:
        rows = measure_agreement(config, levels, lengths, _ESTIMATORS.value, _WINDOWS.value)
        _write(workdir, "agreement", rows, agreement_table(rows), plot_agreement)
    if "accuracy" in _PARTS.value:
        rows = train_with_each(config, trained, ["exact", *_ESTIMATORS.value], workdir)
        _write(workdir, "accuracy", rows, accuracy_table(rows), plot_accuracy)


def _overrides(name: str, num_inner_steps: int) -> dict[str, Any]:
    fields = costs.settings(name) | {"num_inner_steps": num_inner_steps}
    return {f"meta_gradient.{field}": value for field, value in fields.items()}


# --- Agreement.


def measure_agreement(
    config: ConfigDict,
    levels: Sequence[float],
    lengths: Sequence[int],
    names: Sequence[str],
    num_windows: int,
) -> list[dict[str, Any]]:
    """Cosine and norm ratio to exact of every estimator, window, length, phase and level.

    At each phase the training state is held, and `num_windows` windows of the data that would come
    next are tried on it: all estimators on the same ones.
    """
    rows = []
    bar = tqdm(total=len(levels) * len(lengths) * len(PHASES), desc="agreement", unit="point")
    with bar:
        for level in levels:
            config = runs.override(config, {"noise.level": level})
            states = trajectory(config)
            for k in lengths:
                compare = _comparison(config, k, names)
                for phase, state in states.items():
                    for window, of_window in enumerate(compare(state, num_windows)):
                        place = {"level": level, "k": k, "phase": phase, "window": window}
                        rows += [place | {"estimator": name} | x for name, x in of_window.items()]
                    bar.update()
    return rows


def trajectory(config: ConfigDict) -> dict[str, TrainState]:
    """States of one run of `config`, one for each of `PHASES`."""
    run = train.build(config)
    num_inner_steps = config.meta_gradient.num_inner_steps
    num_windows = run.method.num_steps / num_inner_steps
    points = {round(share * num_windows): phase for phase, share in PHASES.items()}
    step = parallel.over_devices(run.method.train_step, donate=True)
    state = train.initial_state(run)
    states = {}
    windows = tqdm(range(max(points) + 1), desc="trajectory", unit="window", leave=False)
    for window, batch in zip(windows, _batches(run, 0), strict=False):
        if window in points:
            states[points[window]] = jax.tree.map(lambda x: x.copy(), state)  # Donated otherwise.
        state, _ = jax.block_until_ready(step(state, batch))
    return states


def _comparison(
    config: ConfigDict, num_inner_steps: int, names: Sequence[str]
) -> Callable[[TrainState, int], Iterator[dict[str, dict[str, float]]]]:
    """A function: (state, number of windows) -> for each window, every estimator's agreement."""
    run = train.build(runs.override(config, _overrides("exact", num_inner_steps)))
    window = run.method.window
    assert window is not None

    def compare(state: TrainState, batch: Batch) -> dict[str, dict[str, jax.Array]]:
        exact, *others = (
            window(_estimator(name), state, batch).meta_grads for name in ("exact", *names)
        )
        return {name: agreement(ours, exact) for name, ours in zip(names, others, strict=True)}

    step = parallel.over_devices(compare)

    def windows(state: TrainState, num_windows: int) -> Iterator[dict[str, dict[str, float]]]:
        batches = _batches(run, int(state.step) // num_inner_steps)
        for _, batch in zip(range(num_windows), batches, strict=False):
            yield jax.tree.map(float, jax.device_get(step(state, batch)))

    return windows


def _estimator(name: str) -> Estimator:
    """The estimator of that name, with the option in it."""
    fields = costs.settings(name)
    estimator = ESTIMATORS[fields.pop("estimator")]

    def with_option(
        problem: Problem, main: MainState, meta_params: Params, batches: Batch, rngs: chex.PRNGKey,
        options: Options = DEFAULTS,
    ) -> Window:  # fmt: skip
        options = options._replace(**fields)
        return estimator(problem, main, meta_params, batches, rngs, options)

    return with_option


def _batches(run: train.Run, first_window: int) -> Iterator[Batch]:
    arrays = run.pipeline.batches(first_window, num_devices=jax.local_device_count())
    return to_devices(arrays, jax.local_devices())


def agreement_table(rows: Rows) -> str:
    """A block a noise level; cosine / norm ratio, means over windows and phases."""
    names, lengths, levels = (values(rows, key) for key in ("estimator", "k", "level"))
    lines = []
    for level in levels:
        lines += [f"Noise {level}: cosine (mean ± std) and norm ratio, windows of all phases.", ""]
        lines += ["| estimator | " + " | ".join(f"k = {k}" for k in lengths) + " |"]
        lines += ["| --- |" + " ---: |" * len(lengths)]
        for name in names:
            cells = [
                _agreement_cell(where(rows, estimator=name, k=k, level=level)) for k in lengths
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    return "\n".join(lines)


def _agreement_cell(rows: Rows) -> str:
    cosines, ratios = ([row[key] for row in rows] for key in ("cosine", "norm_ratio"))
    return f"{np.mean(cosines):.2f} ± {np.std(cosines):.2f}, {np.median(ratios):.2g}x"


# --- Accuracy.


def train_with_each(
    config: ConfigDict, lengths: Sequence[int], names: Sequence[str], workdir: epath.Path
) -> list[dict[str, Any]]:
    """Trains with every estimator at every k and seed: the results of all runs."""
    grid = {
        f"runs/{name.replace(':', '_')}/k{k}/seed{seed}": (name, k, seed)
        for seed in range(_SEEDS.value)
        for k in lengths
        for name in names
    }
    configs = {
        path: runs.override(config, _overrides(name, k), seed=seed)
        for path, (name, k, seed) in grid.items()
    }
    results = runs.run_grid(configs, workdir)
    return [{"estimator": name, "k": k} | results[path] for path, (name, k, _) in grid.items()]


def accuracy_table(rows: Rows) -> str:
    """Last test accuracy in percent, mean and standard deviation over the seeds."""
    names, lengths = values(rows, "estimator"), values(rows, "k")
    lines = ["| estimator | " + " | ".join(f"k = {k}" for k in lengths) + " |"]
    lines += ["| --- |" + " ---: |" * len(lengths)]
    for name in names:
        of_name = [where(rows, estimator=name, k=k) for k in lengths]
        cells = [runs.mean_and_spread(row["last_test_accuracy"] for row in x) for x in of_name]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


# --- Files and flags.


def _write(
    workdir: epath.Path,
    name: str,
    rows: Rows,
    table: str,
    plot: Callable[[Rows], Figure],
) -> None:
    """`name`.csv, .md and .png, and the table on the screen."""
    (workdir / f"{name}.csv").write_text(to_csv(rows))
    (workdir / f"{name}.md").write_text(table)
    png = io.BytesIO()
    plot(rows).savefig(png, format="png", dpi=110)
    (workdir / f"{name}.png").write_bytes(png.getvalue())
    print(table)


def _check_flags(config: ConfigDict) -> tuple[list[int], list[int], list[float]]:
    """Raises InputError, or returns the values of k, those trained with, and the noise levels."""
    for name in _PARTS.value:
        expect(name in PARTS, "--parts", name, f"some of {', '.join(PARTS)}")
    lengths, trained = (
        _numbers(flag, int, lambda k: k >= 1, "whole numbers from 1")
        for flag in (_NUM_INNER_STEPS, _TRAINED)
    )
    levels = _numbers(_LEVELS, float, lambda x: 0 <= x <= 1, "numbers from 0 to 1")
    for name in _ESTIMATORS.value:
        estimator, colon, option = name.partition(":")
        ok = estimator in ESTIMATORS and estimator != "exact"
        if colon:
            ok = estimator == "truncated" and option.isdecimal() and int(option) >= 1
        others = ", ".join(x for x in ESTIMATORS if x != "exact")
        expect(ok, "--estimators", name, f"some of {others}; truncated:5 goes back 5 steps")
    for k in {*lengths, *trained}:
        changed = runs.override(config, _overrides("exact", k))
        validation.validate(changed, num_devices=jax.device_count())
    bilevel = train.build(config).method.window
    expect(bilevel, "config.method", config.method, "one with a meta model")
    return lengths, trained, levels


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
