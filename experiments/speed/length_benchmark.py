"""What batches of similar length save, for texts: padding, steps and tokens per second.

    python -m experiments.speed.length_benchmark --config=configs/ag_news.py \
        --config.dataset.data_dir=DIR --config.model.bert.checkpoint=NAME --workdir=DIR \
        --num_inner_steps=1,5 --length_buckets=1,2,3

For every k and every `length_buckets`, the loader's batches of one epoch are read, to count padding
tokens and pairs of lengths (noisy, clean). Then the training step of every pair is compiled and
timed. Pairs take turns, so that other work on the machine affects all alike. A step's seconds are
the medians by pair, weighted by how often the pair occurs.
"""

import copy
import itertools
import statistics
import time
from collections import Counter
from typing import Any

import jax
import numpy as np
from absl import flags
from etils import epath
from ml_collections import ConfigDict, config_flags
from tqdm import tqdm

from experiments import tables
from experiments.records import clear_programs
from experiments.speed.programs import whole_numbers
from experiments.tables import to_markdown
from mlc_jax import command_line
from mlc_jax.config import validate
from mlc_jax.core import Batch
from mlc_jax.errors import expect
from mlc_jax.workdir.workdir import locked_workdir

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file of a text task, such as configs/ag_news.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory for the tables; made if need be.")
_NUM_INNER_STEPS = flags.DEFINE_list("num_inner_steps", ["1"], "Window lengths k.")
_LENGTH_BUCKETS = flags.DEFINE_list("length_buckets", ["1", "2", "3"], "Numbers of lengths.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Timings of every step.", lower_bound=1)

_COLUMNS = {
    "k": "{k}",
    "length_buckets": "{length_buckets}",
    "programs": "{programs}",
    "compile, s": "{compile_seconds:.0f}",
    "padding": "{padding:.1%}",
    "steps/s": "{steps_per_second:.3g}",
    "tokens/s": "{tokens_per_second:.0f}",
    "against one length": "{speedup:.2f}",
}

Lengths = tuple[int, ...]  # Tokens of a batch's parts.


class Variant:
    """The steps of one (k, length_buckets), and what an epoch of its batches is like."""

    def __init__(self, config: ConfigDict):
        from mlc_jax.data.loader import Pipeline
        from mlc_jax.training import loop, run

        built = run.build_run(config)
        self.num_inner_steps = config.meta_gradient.num_inner_steps
        self._init, self._seed = run.create_init(built), np.uint32(config.seed)
        self._step = loop.create_train_step(built.bound.phases[-1])
        self.counts: Counter[Lengths] = Counter()
        self.examples: dict[Lengths, Batch] = {}
        self.seconds: dict[Lengths, list[float]] = {}
        real = padded = 0
        num_windows = built.pipeline.steps_per_epoch // self.num_inner_steps
        assert isinstance(built.pipeline, Pipeline)
        batches = built.pipeline.batches(0, num_devices=jax.local_device_count())
        for batch in itertools.islice(batches, num_windows):
            masks = [part.inputs["attention_mask"] for part in batch if part is not None]
            lengths = tuple(mask.shape[-1] for mask in masks)
            self.counts[lengths] += 1
            self.examples.setdefault(lengths, batch)
            real += sum(int(mask.sum()) for mask in masks)
            padded += sum(mask.size for mask in masks)
        self.tokens_per_step = real / (num_windows * self.num_inner_steps)
        self.padding = 1 - real / padded

    def time(self, lengths: Lengths) -> None:
        """Times the step once more; the first timing includes compilation."""
        state = self._init(self._seed)  # The step donates it, so each timing needs a new one.
        jax.block_until_ready(state)
        start = time.perf_counter()
        jax.block_until_ready(self._step(state, self.examples[lengths]))
        self.seconds.setdefault(lengths, []).append(time.perf_counter() - start)

    def row(self) -> dict[str, Any]:
        """The row of the table, without `speedup`."""
        medians = {x: statistics.median(seconds[1:]) for x, seconds in self.seconds.items()}
        windows = sum(self.counts.values())
        per_window = sum(medians[x] * count for x, count in self.counts.items()) / windows
        steps_per_second = self.num_inner_steps / per_window
        return {
            "k": self.num_inner_steps,
            "programs": len(self.counts),
            "compile_seconds": sum(x[0] - medians[y] for y, x in self.seconds.items()),
            "padding": self.padding,
            "steps_per_second": steps_per_second,
            "tokens_per_second": steps_per_second * self.tokens_per_step,
        }


def measure(config: ConfigDict, num_inner_steps: int, buckets: list[int]) -> list[dict[str, Any]]:
    """One row for each number of lengths; the others are compared with the first."""
    variants = []
    for num in buckets:
        of_variant = copy.deepcopy(config)
        of_variant.length_buckets, of_variant.meta_gradient.num_inner_steps = num, num_inner_steps
        validate(of_variant, num_devices=jax.device_count())
        variants.append(Variant(of_variant))
    grid = [(variant, lengths) for variant in variants for lengths in variant.counts]
    for _ in range(1 + _ROUNDS.value):
        for variant, lengths in tqdm(grid, desc=f"k = {num_inner_steps}", dynamic_ncols=True):
            variant.time(lengths)
    rows = [{"length_buckets": x} | y.row() for x, y in zip(buckets, variants, strict=True)]
    speeds = [row["steps_per_second"] for row in rows]
    return [row | {"speedup": speed / speeds[0]} for row, speed in zip(rows, speeds, strict=True)]


def main() -> None:
    config = _CONFIG.value
    windows = whole_numbers("--num_inner_steps", _NUM_INNER_STEPS.value)
    buckets = whole_numbers("--length_buckets", _LENGTH_BUCKETS.value)
    validate(config, num_devices=jax.device_count())
    frozen = config.model.bert.num_frozen_layers == -1 or config.model.name != "bert"
    expect(not frozen, "config.model.bert.num_frozen_layers", -1, "0 or more: tokens are padded")
    with locked_workdir(_WORKDIR.value) as workdir:
        rows: list[dict[str, Any]] = []
        for k in windows:
            rows += measure(config, k, buckets)
            clear_programs()
            text = _write_tables(workdir, rows)
    print(text)


def _write_tables(workdir: epath.Path, rows: list[dict[str, Any]]) -> str:
    """Returns what `length_benchmark.md` says."""
    body = [[cell.format(**row) for cell in _COLUMNS.values()] for row in rows]
    text = f"{jax.devices()[0].device_kind}\n\n{to_markdown(list(_COLUMNS), body)}"
    tables.write(workdir, "length_benchmark", rows, text)
    return text


if __name__ == "__main__":
    command_line.run(main, required=["config", "workdir"])
