"""Where metrics go: `metrics.jsonl` and TensorBoard events."""

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
from etils import epath

METRICS_FILE = "metrics.jsonl"


class MetricWriter:
    """Appends one row per step to `metrics.jsonl`, and the same scalars to TensorBoard.

    Rows after `start_step` are dropped first: they are from a run that was killed after its last
    checkpoint, and will be written again.
    """

    def __init__(self, workdir: epath.Path, *, start_step: int):
        import tensorflow as tf  # Here, so that `read_metrics` does not need it.

        self._tf = tf
        self._path = workdir / METRICS_FILE
        rows = [row for row in read_metrics(workdir) if row["step"] <= start_step]
        partial = workdir / (METRICS_FILE + ".partial")
        with self._named_errors():
            partial.write_text("".join(json.dumps(row) + "\n" for row in rows))
            partial.replace(self._path)
            self._events = tf.summary.create_file_writer(str(workdir / "tensorboard"))

    def write(self, step: int, scalars: dict[str, Any]) -> None:
        """Writes and flushes; values are numbers or None."""
        scalars = {name: _as_number(value) for name, value in scalars.items()}
        with self._named_errors():
            with self._path.open("a") as file:
                file.write(json.dumps({"step": step} | scalars) + "\n")
            with self._events.as_default():
                for name, value in scalars.items():
                    if value is not None:
                        self._tf.summary.scalar(name, value, step=step)
            self._events.flush()

    def close(self) -> None:
        with self._named_errors():
            self._events.close()

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Names the directory: for a full disk Python does not, and TensorFlow in many lines."""
        try:
            yield
        except (OSError, self._tf.errors.OpError) as error:
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0].split("; ")[-1]
            raise OSError(f"cannot write metrics to {self._path.parent}: {reason}") from error


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The rows of a workdir's `metrics.jsonl`; a last line cut off by a kill is left out."""
    path = epath.Path(workdir) / METRICS_FILE
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


def _as_number(value: Any) -> float | None:
    return None if value is None else float(np.asarray(value))
