"""The directory of a run: made, checked and held by one run at a time."""

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator

import jax
from etils import epath

from mlc_jax import paths
from mlc_jax.errors import InputError
from mlc_jax.workdir.lease import OBJECT, Lease

LOCK_FILE = ".lock"
CONFIG_FILE = "config.json"  # What the run is; written when it starts.
DATASET_FILE = "dataset.json"  # What prediction needs to know about the data.

# What is written before a run starts, or lies in any directory; all else says whose it is.
_HARMLESS = re.compile(
    r"to_check((_first)?\.csv|_rows\.json)|answers(_used)?\.csv|checks\.txt|left_out\.csv|round_\d+|predictions"
    r"|lost\+found|\..*|.*\.log"
)
_FILES = (".json", ".jsonl", ".csv", ".npz", ".html", ".png")  # Ends of names that we write.
_SHOWN = 3  # Of a foreign directory's files.

_leases: dict[str, Lease] = {}  # Of this process, by workdir.


@contextlib.contextmanager
def locked_workdir(path: str) -> Iterator[epath.Path]:
    """Makes the directory and keeps other runs out of it until the context ends.

    On a disk the lock is the operating system's and goes with the process, however it dies; in a
    bucket it is a `Lease`. Processes other than the first take none.

    Raises:
      InputError: the directory cannot be made or written, another run is in it, or it has files
        that are not of a run.
    """
    workdir = paths.absolute(path)
    if jax.process_index() == 0:
        _check_ours(workdir)
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


def has_key(text: bytes, key: str) -> bool:
    """Whether it is JSON of an object with that key, as a run writes it."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and key in content


def _check_ours(workdir: epath.Path) -> None:
    """Nothing is written into a directory of others: some files would be lost under our names."""
    try:
        there = sorted(path.name for path in workdir.iterdir()) if workdir.is_dir() else []
        clash = [name for name in there if name.endswith(_FILES) and (workdir / name).is_dir()]
        config = workdir / CONFIG_FILE
        is_ours = (workdir / LOCK_FILE).exists() or (workdir / OBJECT).exists()
        if CONFIG_FILE in there and CONFIG_FILE not in clash and not is_ours:
            is_ours = has_key(config.read_bytes(), "method")
    except OSError:  # Reported when it is written to.
        return
    for name in clash:
        if not _HARMLESS.fullmatch(name):
            raise InputError(
                f"--workdir: {str(workdir / name)!r} is a directory; expected none of this name"
            )
    others = [name for name in there if not _HARMLESS.fullmatch(name)]
    if others and not is_ours:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        raise InputError(
            f"--workdir: {str(workdir)!r} has files that are not of a run: "
            f"{', '.join(others[:_SHOWN])}{more}; expected a new or an empty directory, or a run's"
        )


def check_held(workdir: epath.Path) -> None:
    """Before something is written that another run could be writing, too.

    Raises:
      Lost: this process no longer holds the directory's lease.
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
