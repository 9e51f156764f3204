"""Where the training loop spends its time, and a trace of steps for TensorBoard or XProf."""

import contextlib
import pathlib
import tempfile
import time
from collections.abc import Iterator

import jax
from absl import logging
from etils import epath

from mlc_jax import paths

FOLDER = "profile"  # A folder of the workdir.


class Clock:
    """Throughput and waiting times of the loop, without compilation, evaluation and saving.

    Args:
      step: inner steps made so far.
      examples_per_step: examples over all devices.
      num_devices: devices of all processes.
    """

    def __init__(self, step: int, examples_per_step: int, num_devices: int):
        self._examples_per_step, self._num_devices = examples_per_step, num_devices
        self.seconds = self.waited = 0.0  # Totals over all calls of `read`.
        self._lap = time.perf_counter()
        self.is_first = True
        self._restart(step)

    def restart(self, step: int) -> None:
        """Leaves out the time so far; the loop calls it after compilation."""
        self.is_first = False
        self._restart(step)

    def _restart(self, step: int) -> None:
        self._step, self._start = step, time.perf_counter()
        self._waited = self._paused = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time inside as waiting for data."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves the time inside out of the throughput."""
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def read(self, step: int) -> dict[str, float]:
        """Throughput and waiting since the last call or the restart."""
        seconds = max(time.perf_counter() - self._start - self._paused, 1e-9)
        steps = step - self._step
        examples_per_second = steps * self._examples_per_step / seconds
        row = {
            "seconds_per_step": seconds / max(steps, 1),
            "examples_per_second": examples_per_second,
            "examples_per_second_per_chip": examples_per_second / self._num_devices,
            "data_wait_share": self._waited / seconds,
        }
        self.seconds += seconds
        self.waited += self._waited
        self._restart(step)
        return row

    def lap(self) -> float:
        """Seconds since the last call, everything included."""
        now = time.perf_counter()
        seconds, self._lap = now - self._lap, now
        return seconds


class Profiler:
    """Traces inner steps START to STOP of one process, by JAX's profiler, into `workdir/profile`.

    Args:
      steps: "START:STOP", or "" for no trace.
      workdir: the run's; None traces nothing.
    """

    def __init__(self, steps: str, workdir: epath.Path | None):
        start, _, stop = steps.partition(":")
        self._workdir = workdir
        self._steps = range(int(start), int(stop)) if steps and workdir is not None else range(0)
        self._local: tempfile.TemporaryDirectory[str] | None = None

    @property
    def is_tracing(self) -> bool:
        return self._local is not None

    def is_due(self, step: int) -> bool:
        """Whether the trace begins or ends after `step` inner steps."""
        return (step in self._steps) != self.is_tracing

    def switch(self) -> None:
        """Begins the trace, or ends and writes it. All earlier steps must be finished."""
        if self._local is None:
            # JAX writes only to a local disk, into a folder that is named after the time.
            self._local = tempfile.TemporaryDirectory()
            jax.profiler.start_trace(self._local.name)
            return
        jax.profiler.stop_trace()
        assert self._workdir is not None
        root = pathlib.Path(self._local.name)
        for file in root.rglob("*"):
            if file.is_file():
                place = self._workdir / FOLDER / file.relative_to(root)
                place.parent.mkdir(parents=True, exist_ok=True)
                paths.write(place, file.read_bytes())
        self._local.cleanup()
        self._local = None
        logging.info("Steps %d to %d are traced in %s.", self._steps.start, self._steps.stop,
                     self._workdir / FOLDER)  # fmt: skip

    def close(self) -> None:
        """Ends a running trace."""
        if self.is_tracing:
            self.switch()
