"""SIGTERM, the notice before a preemption, as a flag that the training loop looks at."""

import contextlib
import signal
import threading
from collections.abc import Iterator

import jax
from jax.experimental import multihost_utils


class PreemptionFlag:
    """Whether SIGTERM came. With several processes JAX chooses one step for all."""

    def __init__(self) -> None:
        self.is_set = False

    def reached(self, count: int) -> bool:
        """Whether to save and stop now; `count` is the number of windows so far."""
        if jax.process_count() > 1:
            # JAX stops all processes one step after the largest count, so it must rise by one.
            return multihost_utils.reached_preemption_sync_point(count)
        return self.is_set


@contextlib.contextmanager
def sigterm_noticed() -> Iterator[PreemptionFlag]:
    """Turns SIGTERM into a flag. With several processes JAX's own handler does."""
    flag = PreemptionFlag()
    in_main_thread = threading.current_thread() is threading.main_thread()
    if jax.process_count() > 1 or not in_main_thread:  # Only the main thread may set handlers.
        yield flag
        return

    def handle(signum: int, frame: object) -> None:
        del signum, frame
        flag.is_set = True

    before = signal.signal(signal.SIGTERM, handle)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGTERM, before)
