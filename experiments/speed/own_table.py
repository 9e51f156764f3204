"""How long a table takes: to be judged, and to be corrected, from the command to its end.

    python -m experiments.speed.own_table                                # 10,000 rows, 100 columns
    python -m experiments.speed.own_table --rows=1000000 --columns=64

The table is a CSV file of random numbers whose mean depends on one of three classes. 3 in 10 labels
are drawn anew, and a hundred rows are checked. Three commands run, each in a process of its own:

* judged: `mlc-jax correct` with a text among the numbers of the last row, which is refused before
  JAX is imported;
* corrected: the same without the text, at its defaults, to the report and `corrected.csv`;
* with two runs: the same with two folds and one part. The default is ten runs of four classifiers.

For each: seconds, CPU seconds, and the largest memory.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

import numpy as np
from absl import flags

from mlc_jax import command_line

_ROWS = flags.DEFINE_integer("rows", 10_000, "Of the table.", lower_bound=1_000)
_COLUMNS = flags.DEFINE_integer("columns", 100, "Of numbers.", lower_bound=3)
_CHUNK = 10_000
_CLASSES, _CHECKED = "abc", 100


class Cost(NamedTuple):
    """The cost of one command: wall-clock and CPU time in seconds, and the largest memory."""

    seconds: float
    cpu_seconds: float
    gib: float

    def __str__(self) -> str:
        return f"{self.seconds:.1f} s, {self.cpu_seconds:.1f} s of CPU time, {self.gib:.2f} GiB"


def write(path: pathlib.Path, rows: int, columns: int, last: str = "") -> None:
    """A table; `last` stands in its last row in place of a number."""
    rng = np.random.default_rng(0)
    with path.open("w") as file:
        names = [f"x{i}" for i in range(columns)]
        file.write(",".join(["id", *names, "label", "checked_label"]) + "\n")
        for start in range(0, rows, _CHUNK):
            size = min(_CHUNK, rows - start)
            truth = rng.integers(len(_CLASSES), size=size)
            given = np.where(rng.random(size) < 0.3, rng.integers(len(_CLASSES), size=size), truth)
            values = rng.normal(size=(size, columns))
            values[np.arange(size), truth] += 1.5
            for i in range(size):
                row = start + i
                cells = [f"{x:.4f}" for x in values[i]]
                if last and row == rows - 1:
                    cells[-1] = last
                check = _CLASSES[truth[i]] if row % (rows // _CHECKED) == 0 else ""
                line = [f"r{row * 7919 % 10_000_019}", *cells, _CLASSES[given[i]], check]
                file.write(",".join(line) + "\n")


def cost(arguments: list[str], code: int) -> Cost:
    """Runs `mlc-jax` to its end.

    Its largest memory is at least that of this process at the start, so import nothing large here.

    Raises:
      RuntimeError: it ends with another exit code.
    """
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "mlc_jax", *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    said = process.stderr.read() if process.stderr else ""
    _, status, used = os.wait4(process.pid, 0)
    seconds, found = time.monotonic() - started, os.waitstatus_to_exitcode(status)
    if found != code:
        raise RuntimeError(f"mlc-jax ended with {found}, expected {code}: {said[-2000:]}")
    unit = 1 if sys.platform == "darwin" else 1024  # Bytes; KiB elsewhere.
    return Cost(seconds, used.ru_utime + used.ru_stime, used.ru_maxrss * unit / 2**30)


def main() -> None:
    """Prints what each command costs."""
    with tempfile.TemporaryDirectory() as name:
        file, out = pathlib.Path(name) / "all.csv", pathlib.Path(name) / "out"
        command = ["correct", str(file), f"--out={out}"]
        print(f"{_ROWS.value:,} rows, {_COLUMNS.value} columns, {os.cpu_count()} cores", flush=True)
        write(file, _ROWS.value, _COLUMNS.value, last="n.s.")
        print("judged:", cost(command, code=2), flush=True)
        write(file, _ROWS.value, _COLUMNS.value)
        print("corrected:", cost(command, code=0), flush=True)
        few = ["--cross_fit.num_folds=2", "--cross_fit.num_parts=1"]
        command = ["correct", str(file), f"--out={out}_few", *few]
        print("with two runs:", cost(command, code=0), flush=True)


if __name__ == "__main__":
    command_line.run(main, required=[])
