"""The directory of a run: made, checked and held by one run at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator

import jax
from etils import epath

from mlc_jax.errors import InputError

LOCK_FILE = ".lock"
CONFIG_FILE = "config.json"  # What the run is; written when it starts.
DATASET_FILE = "dataset.json"  # What is needed of the data to use what it learned.


@contextlib.contextmanager
def locked_workdir(path: str) -> Iterator[epath.Path]:
    """Makes the directory and keeps other runs out of it until the context ends.

    The lock is the operating system's and goes with the process, however it dies. Remote paths
    (gs://...) and processes other than the first take no lock.

    Raises:
      InputError: the directory cannot be made or written, or another run is in it.
    """
    workdir = epath.Path(path).expanduser()
    if "://" in str(path):
        yield workdir
        return
    workdir = workdir.resolve()
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = os.open(workdir / LOCK_FILE, os.O_RDWR | os.O_CREAT)
    except OSError as error:
        raise InputError(
            f"--workdir: cannot write to {str(workdir)!r} ({error.strerror}); expected a directory "
            "that this user may write to"
        ) from error
    try:
        if jax.process_index() == 0:
            _take(lock, workdir)
        yield workdir
    finally:
        os.close(lock)


def _take(lock: int, workdir: epath.Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(
            f"--workdir: another run is using {str(workdir)!r}; expected a directory of its own"
        ) from error
