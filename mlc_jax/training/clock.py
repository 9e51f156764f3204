"""What the training loop's time goes into."""

import contextlib
import time
from collections.abc import Iterator


class Clock:
    """Throughput and waiting times of the loop, without compilation, evaluation and saving.

    Args:
      step: inner steps made so far.
      examples_per_step: over all devices.
      num_devices: of all processes.
    """

    def __init__(self, step: int, examples_per_step: int, num_devices: int):
        self._examples_per_step, self._num_devices = examples_per_step, num_devices
        self.seconds = self.waited = 0.0  # Of all that was read.
        self._lap = time.perf_counter()
        self.is_first = True
        self._restart(step)

    def restart(self, step: int) -> None:
        self.is_first = False
        self._restart(step)

    def _restart(self, step: int) -> None:
        self._step, self._start = step, time.perf_counter()
        self._waited = self._paused = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self._paused += time.perf_counter() - start

    def read(self, step: int) -> dict[str, float]:
        """Figures since the last call (or the restart)."""
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
