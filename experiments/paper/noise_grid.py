"""Grids over methods, noise and seeds: their flags, and the config of every run.

A seed stands for everything that is drawn: the split, the noise, the start, the order of the
batches. All methods of a seed see the same split and, at every level, the same noise.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from experiments import runs
from mlc_jax.config import METHODS, NOISE_TYPES
from mlc_jax.errors import expect

# Fields that differ between the runs of a grid, whatever else its settings change.
AXES = ("method", "noise.type", "noise.level", "seed", "noise.seed", "dataset.split_seed")


class Cell(NamedTuple):
    """One noise type at one level.

    Attributes:
      place: `noise_type` and `level`, as tables name them.
      fields: of the config, as on the command line.
    """

    place: dict[str, Any]
    fields: dict[str, Any]


# What --methods=all stands for: methods that train one network on batches, as the paper's do.
ALL = tuple(name for name in METHODS if name != "cross_fit")


def parse_methods(names: Sequence[str]) -> list[str]:
    """`--methods`: all of them, or those named."""
    ok = names and set(names) <= {"all", *METHODS}
    expect(ok, "--methods", ",".join(names), f"all or some of {', '.join(METHODS)}")
    return list(ALL) if "all" in names else list(dict.fromkeys(names))


def parse_levels(text: str, flag: str = "--levels") -> list[float]:
    """`0,0.4` or `0:1:0.25`, the last included.

    Raises:
      InputError: names `flag`.
    """
    try:
        if ":" in text:
            first, last, step = (float(part) for part in text.split(":"))
            count = round((last - first) / step) + 1
            levels = [round(first + i * step, 10) for i in range(count)]
        else:
            levels = [float(part) for part in text.split(",")]
    except (ValueError, ZeroDivisionError, OverflowError):
        levels = []
    ok = levels and all(0 <= level <= 1 for level in levels)
    expect(ok, flag, text, "numbers from 0 to 1, as in 0.2,0.4, or first:last:step")
    return list(dict.fromkeys(levels))


def cells(config: ConfigDict, types: Sequence[str], levels: Sequence[float]) -> list[Cell]:
    """Every noise type at every level.

    Args:
      config: whose noise it is where `types` or `levels` is empty.
      types: `--noise`.
      levels: see `parse_levels`.

    Raises:
      InputError: there is no such noise.
    """
    types, levels = types or [config.noise.type], levels or [config.noise.level]
    known = ", ".join(NOISE_TYPES)
    expect(set(types) <= set(NOISE_TYPES), "--noise", ",".join(types), f"some of {known}")
    of_all = []
    for name in dict.fromkeys(types):
        if name in ("human", "none"):  # Labels are what they are: they have no level.
            level = config.noise.key if name == "human" else "given"
            of_all.append(Cell({"noise_type": name, "level": level}, {"noise.type": name}))
            continue
        for level in levels:
            place = {"noise_type": name, "level": level}
            of_all.append(Cell(place, {"noise.type": name, "noise.level": level}))
    return of_all


def grid(
    config: ConfigDict,
    settings: Mapping[str, Mapping[str, Any]],
    cells: Sequence[Cell],
    seeds: Sequence[int],
) -> runs.Grid:
    """Every setting with all noise and seeds: `<noise>/<level>/<setting>/seed<n>`.

    Runs of one setting follow each other, because they have equal shapes.

    Args:
      config: stays as it is.
      settings: by name, in which fields each differs from `config`: `{"mlc": {"method": "mlc"}}`.
      cells: of the noise.
      seeds: with each of them.
    """
    return {
        f"{cell.place['noise_type']}/{cell.place['level']}/{name}/seed{seed}": (
            cell.place,
            runs.override(config, {**fields, **cell.fields}, seed=seed),
        )
        for name, fields in settings.items()
        for cell in cells
        for seed in seeds
    }
