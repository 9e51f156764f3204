"""The directory of a run: it is created, checked, and locked for one run at a time."""

import contextlib
import fcntl
import os
from collections.abc import Iterator

import jax
from etils import epath

from mlc_jax import paths
from mlc_jax.errors import InputError
from mlc_jax.workdir.described import (
    DESCRIBED,
    HARMLESS,
    is_config,
    is_of_others,
    is_opened,
)
from mlc_jax.workdir.lease import OBJECT, Lease

LOCK_FILE = ".lock"
_LOCKED = b"mlc_jax\n"  # What stands in it; older versions left it empty.
CONFIG_FILE = "config.json"  # The run's description, written at its start.
DATASET_FILE = "dataset.json"  # The facts about the data that prediction needs.

_FILES = (".json", ".jsonl", ".csv", ".npz", ".html", ".png")  # Suffixes of files that we write.
_SHOWN = 3  # Number of a foreign directory's files in a message.

_leases: dict[str, Lease] = {}  # This process' leases by workdir.


@contextlib.contextmanager
def locked_workdir(path: str) -> Iterator[epath.Path]:
    """Makes the directory and keeps other runs out of it until the context ends.

    On a disk it is a file lock, which ends with the process, however that ends. In a bucket it is a
    `Lease`. Only the first process of a run takes one.

    Raises:
      InputError: the directory cannot be created or written, another run is in it, or it has files
        that no run wrote.
    """
    workdir = paths.absolute(path)
    paths.check_no_pattern(workdir, "--workdir")
    if jax.process_index() == 0:
        paths.check_regular(workdir, "--workdir", is_opened)
        _check_ours(workdir)
    if paths.is_remote(workdir):
        with _leased(workdir):
            yield workdir
        return
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = _opened_lock(workdir / LOCK_FILE)
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


def _opened_lock(place: epath.Path) -> int:
    """The lock file. A new one says whose it is: a stranger's may have the same name."""
    try:
        lock = os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return os.open(place, os.O_RDWR)
    os.write(lock, _LOCKED)
    return lock


def _check_ours(workdir: epath.Path) -> None:
    """Refuses a directory with other files, because ours could replace them."""
    try:
        there = sorted(path.name for path in workdir.iterdir()) if workdir.is_dir() else []
        clash = [name for name in there if name.endswith(_FILES) and (workdir / name).is_dir()]
        said = {x: (workdir / x).read_bytes() for x in DESCRIBED if x in there and x not in clash}
        is_locked = OBJECT in there or (
            LOCK_FILE in there and (workdir / LOCK_FILE).read_bytes() in (_LOCKED, b"")
        )
        is_ours = is_config(said.get(CONFIG_FILE, b"")) or (
            is_locked and not any(is_of_others(name, text) for name, text in said.items())
        )
    except OSError:  # Writing to it will report the error.
        return
    for name in clash:
        if not HARMLESS.fullmatch(name):
            raise InputError(
                f"--workdir: {str(workdir / name)!r} is a directory; expected none of this name"
            )
    others = [name for name in there if not HARMLESS.fullmatch(name)]
    if others and not is_ours:
        more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        raise InputError(
            f"--workdir: {str(workdir)!r} has files that are not of a run: "
            f"{', '.join(others[:_SHOWN])}{more}; expected a new or an empty directory, or a run's"
        )


def check_held(workdir: epath.Path) -> None:
    """Checks, before writing, that no other run may be writing.

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
