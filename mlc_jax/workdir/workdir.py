"""The directory of a run: made, checked and held by one run at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator

import jax
from etils import epath

from mlc_jax import paths
from mlc_jax.errors import InputError
from mlc_jax.workdir.lease import Lease

LOCK_FILE = ".lock"
CONFIG_FILE = "config.json"  # What the run is; written when it starts.
DATASET_FILE = "dataset.json"  # What is needed of the data to use what it learned.

_leases: dict[str, Lease] = {}  # Of this process, by workdir.


@contextlib.contextmanager
def locked_workdir(path: str) -> Iterator[epath.Path]:
    """Makes the directory and keeps other runs out of it until the context ends.

    On a disk the lock is the operating system's and goes with the process, however it dies; in a
    bucket it is a `Lease`. Processes other than the first take none.

    Raises:
      InputError: the directory cannot be made or written, or another run is in it.
    """
    workdir = paths.absolute(path)
    if paths.is_remote(workdir):
        with _leased(workdir):
            yield workdir
        return
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


def check_held(workdir: epath.Path) -> None:
    """Before something is written that another run could be writing, too.

    Raises:
      Lost: the directory's lease is no longer this process'.
    """
    lease = _leases.get(str(workdir))
    if lease is not None:
        lease.check()


@contextlib.contextmanager
def _leased(workdir: epath.Path) -> Iterator[None]:
    if jax.process_index() > 0:
        yield
        return
    lease = _leases[str(workdir)] = Lease.acquire(workdir)
    try:
        yield
    finally:
        del _leases[str(workdir)]
        lease.release()


def _take(lock: int, workdir: epath.Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        raise InputError(
            f"--workdir: another run is using {str(workdir)!r}; expected a directory of its own"
        ) from error
