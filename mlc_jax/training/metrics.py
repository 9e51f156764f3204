"""Where metrics go: `metrics.jsonl` and TensorBoard events."""

import contextlib
import json
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import logging
from etils import epath

from mlc_jax import paths

METRICS_FILE = "metrics.jsonl"
_EVENTS = "tensorboard"


class MetricWriter:
    """Appends one row per step to `metrics.jsonl`, and the same scalars to TensorBoard.

    Rows after `start_step` are dropped first: a run that was killed after its last checkpoint wrote
    them, and they will be written again. Objects in a bucket cannot be appended to. There `flush`
    uploads whole local files.
    """

    def __init__(self, workdir: epath.Path, *, start_step: int):
        # Imported here, since `read_metrics` does not need it. TensorFlow's writer takes 3 ms per
        # scalar.
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.plugins.scalar.summary_v2 import scalar_pb
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._scalar = Event, scalar_pb
        self._workdir = workdir
        self._local = epath.Path(tempfile.mkdtemp()) if paths.is_remote(workdir) else workdir
        rows = [row for row in read_metrics(workdir) if row["step"] <= start_step]
        with self._named_errors():
            text = "".join(json.dumps(row) + "\n" for row in rows)
            paths.write(self._local / METRICS_FILE, text.encode())
            directory, now = self._local / _EVENTS, time.time()
            directory.mkdir(parents=True, exist_ok=True)
            name = f"events.out.tfevents.{now:.6f}.{socket.gethostname()}"
            self._events = RecordWriter((directory / name).open("wb"))
            self._add(Event(wall_time=now, file_version="brain.Event:2"))

    def write(self, step: int, scalars: dict[str, Any]) -> None:
        """Writes and flushes; values are numbers or None."""
        scalars = {k: None if x is None else float(np.asarray(x)) for k, x in scalars.items()}
        with self._named_errors():
            with (self._local / METRICS_FILE).open("a") as file:
                file.write(json.dumps({"step": step} | scalars) + "\n")
            event = self._event(wall_time=time.time(), step=step)
            for name, value in scalars.items():
                if value is not None:
                    event.summary.MergeFrom(self._scalar(name, value))
            self._add(event)

    def _add(self, event: Any) -> None:
        self._events.write(event.SerializeToString())
        self._events.flush()

    def flush(self) -> None:
        """Uploads the files if the directory is in a bucket."""
        if self._local is self._workdir:
            return
        for file in (self._local / METRICS_FILE, *(self._local / _EVENTS).iterdir()):
            place = self._workdir / file.relative_to(self._local)
            paths.write(place, file.read_bytes())

    def close(self) -> None:
        """Closes the files, and uploads them if the directory is in a bucket."""
        with self._named_errors():
            self._events.close()
        self.flush()
        if self._local is not self._workdir:
            shutil.rmtree(self._local, ignore_errors=True)

    @contextlib.contextmanager
    def _named_errors(self) -> Iterator[None]:
        """Adds the directory to errors, because Python does not name it for a full disk."""
        try:
            yield
        except OSError as error:
            raise OSError(f"cannot write metrics to {self._workdir}: {error.strerror}") from error


def read_metrics(workdir: epath.PathLike) -> list[dict[str, Any]]:
    """The rows of a workdir's `metrics.jsonl`, without damaged lines.

    A kill may cut off the last line; for other damaged lines there is a warning.
    """
    path = epath.Path(workdir) / METRICS_FILE
    lines = path.read_bytes().splitlines() if path.exists() else []
    rows, damaged = [], []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # Not JSON, or not text.
            row = None
        if isinstance(row, dict) and type(row.get("step")) is int:
            rows.append(row)
        else:
            damaged.append(number)
    if damaged and damaged != [len(lines)]:
        logging.warning("%s: left out damaged lines, the first is line %d.", path, damaged[0])
    return rows
