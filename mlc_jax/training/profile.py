"""A trace of some inner steps, for TensorBoard or XProf."""

import pathlib
import tempfile

import jax
from absl import logging
from etils import epath

from mlc_jax import paths

FOLDER = "profile"  # In a workdir.


class Profiler:
    """Traces inner steps START to STOP of one process, by JAX's profiler, into `workdir/profile`.

    Args:
      steps: "START:STOP", or "" for none.
      workdir: of the run; None traces nothing.
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
        """Begins, or ends and writes the trace. All steps before must have been waited for."""
        if self._local is None:
            # JAX writes to a disk, under a name of the time.
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
        """Ends a trace that still runs."""
        if self.is_tracing:
            self.switch()
