"""Directories and files on a disk or in a bucket. Only this module tells one from the other."""

import atexit
import contextlib
import errno
import functools
import os
import pathlib
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator

# Before etils is imported. Its other client for buckets is TensorFlow's, which uploads a file anew
# for every line that is appended, and cannot be pointed at another endpoint.
os.environ.setdefault("EPATH_USE_TF", "false")
# Otherwise gcsfs first asks for the kind of each bucket, and warns if it may not ask.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

from etils import epath

from mlc_jax.errors import InputError, Lost

_KINDS = {
    stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device", stat.S_IFBLK: "a device",
}  # fmt: skip
_BLOCK = 1 << 24  # Bytes that are copied at once.
_SCHEME = re.compile(r"^([a-z][a-z0-9]+):/+")  # Longer than a drive letter.


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is in a bucket."""
    return os.fspath(path).startswith("gs://")


def regular_file(path: str | bytes | os.PathLike[str]) -> os.stat_result:
    """The status of a file before it is opened, because a FIFO or a device may never end.

    Raises:
      OSError: there is none, or it is something else.
    """
    found = os.stat(path)
    if kind := _other_kind(found):
        raise OSError(errno.EINVAL, f"{kind}, no regular file", os.fsdecode(path))
    return found


def check_regular(
    directory: epath.PathLike, name: str, is_opened: Callable[[str], object] = bool
) -> None:
    """Refuses a directory with a FIFO or a device among the files that will be opened.

    Args:
      directory: is searched with its sub-directories. A bucket has only regular files.
      name: of the flag or argument, for messages.
      is_opened: whether a file or directory of this name, directly inside, will be opened.

    Raises:
      InputError: a FIFO or a device.
    """
    if is_remote(directory):
        return
    top = os.fspath(directory)
    for place, inside, files in os.walk(top):
        if place == top:
            inside[:] = filter(is_opened, inside)
            files = [*filter(is_opened, files)]
        for file in files:
            path = os.path.join(place, file)
            try:
                kind = _other_kind(os.stat(path))
            except OSError:  # It cannot be opened, either, or is a link to nothing.
                continue
            if kind:
                raise InputError(
                    f"{name}: {path!r} is {kind}; expected a regular file, or none of this name"
                )


def _other_kind(found: os.stat_result) -> str:
    """The kind of a file that is not regular; "" for a regular file."""
    if stat.S_ISREG(found.st_mode):
        return ""
    return _KINDS.get(stat.S_IFMT(found.st_mode), "something else")


def absolute(path: epath.PathLike, name: str = "--workdir") -> epath.Path:
    """A path that does not depend on the current directory; `~` is expanded.

    Args:
      path: of a disk, or `gs://BUCKET/NAME`.
      name: of the flag or argument, for messages.

    Raises:
      InputError: it is neither a local path nor `gs://BUCKET/NAME`, or the packages for buckets
        are not installed.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise InputError(f"{name}: got {text!r}, expected a path, which has no NUL in it")
    scheme = _SCHEME.match(text)
    if scheme is None:
        return epath.Path(text).expanduser().resolve()
    bucket, _, inside = text.removeprefix("gs://").strip("/").partition("/")
    if not is_remote(text) or not bucket or not inside:
        raise InputError(f"{name}: got {text!r}, expected a local path, or gs://BUCKET/NAME")
    try:
        import fsspec
        import gcsfs  # noqa: F401
        import google.cloud.storage  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{name}: got {text!r}, expected a local path, or the packages for buckets "
            f"({error}): pip install 'mlc_jax[gcs]'"
        ) from error
    # Files of other processes must be seen: of an earlier run, or of workers of a sweep.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(f"gs://{bucket}/{inside}")


def expanded(path: epath.PathLike) -> pathlib.Path:
    """The path with `~` and `~NAME` expanded; a NAME that is no user stays as it is."""
    return pathlib.Path(os.path.expanduser(path))


def whole(path: str) -> str:
    """The absolute path of a file; links are not resolved."""
    return path if is_remote(path) else os.path.abspath(expanded(path))


def check_no_pattern(path: epath.Path, name: str) -> None:
    """Refuses a directory for checkpoints whose path orbax would read as a pattern.

    Raises:
      InputError: the path has a [ or a backslash.
    """
    text = os.fspath(path)
    for letter in "[\\":
        if letter in text:
            raise InputError(f"{name}: got {text!r}, expected a path without {letter}")


def write(path: epath.Path, content: bytes, beside: str = "") -> None:
    """Writes a file at once: a reader sees either the old content or all of the new content.

    On a disk another file is written and renamed; an object of a bucket appears at once.

    Args:
      path: the file.
      content: its bytes.
      beside: its name until it is complete; needed where several processes may write it.

    Raises:
      OSError: it cannot be written; the error names it.
      Lost: it cannot be written to a bucket, which may be back soon.
    """
    if is_remote(path):
        try:
            path.write_bytes(content)
        except Exception as error:  # gcsfs and the network raise a dozen types.
            raise Lost(f"cannot write {os.fspath(path)}: {_reason(error)}") from error
        return
    path = epath.Path(os.path.realpath(path))  # A link stays; its target is replaced.
    partial = path.parent / (beside or path.name + ".partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:  # It names no file if the disk is full.
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def written_locally(folder: epath.Path) -> Iterator[pathlib.Path]:
    """A local directory for files that end up in `folder`; `config.json` is copied last."""
    if not is_remote(folder):
        folder.mkdir(exist_ok=True)
        yield pathlib.Path(folder)
        return
    with tempfile.TemporaryDirectory() as name:
        yield pathlib.Path(name)
        for file in sorted(
            pathlib.Path(name).iterdir(), key=lambda file: file.name == "config.json"
        ):
            write(folder / file.name, file.read_bytes())


def version(path: epath.PathLike, name: str) -> tuple[int, int] | None:
    """A value that changes when a file is written again; None if there is no file.

    Args and errors are those of `local`.
    """
    if not _SCHEME.match(os.fspath(path)):
        try:
            stat = os.stat(expanded(path))
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size
    remote = absolute(path, name)
    with _readable(path, name):
        try:
            of_object = remote.stat()
        except FileNotFoundError:
            return None
        return of_object.mtime, of_object.length


def local(path: epath.PathLike, name: str) -> pathlib.Path:
    """The path on a disk from which a file or a directory can be read; `~` is expanded.

    Files in a bucket are copied to temporary files of this process. A file that does not exist also
    gets a path.

    Args:
      path: of a disk, or `gs://BUCKET/NAME`.
      name: of the flag or argument, for messages.

    Raises:
      InputError: it is in a bucket that cannot be read.
    """
    found = version(path, name)
    if not _SCHEME.match(os.fspath(path)):
        return expanded(path)
    remote = absolute(path, name)
    if found is None:
        return _copies() / "nothing" / remote.name
    with _readable(path, name):
        return _copied(remote, found)


@contextlib.contextmanager
def kept(path: epath.PathLike, name: str) -> Iterator[pathlib.Path]:
    """A file or a flat directory of a cache, to be read, or to be written if it is missing.

    One in a bucket is copied to this machine, and uploaded at the end if it changed.

    Args are those of `local`. It raises InputError if the bucket cannot be read or written.
    """
    place = local(path, name)
    if not is_remote(path):
        yield place
        return
    if not place.exists():  # `local` gives all missing files of one name the same path.
        place = pathlib.Path(tempfile.mkdtemp(dir=_copies())) / place.name
    before = _stamps(place)
    yield place
    if _stamps(place) == before:
        return
    remote = epath.Path(path)
    try:
        for file in [place] if place.is_file() else place.iterdir():
            write(remote / file.relative_to(place), file.read_bytes())
    except Lost as error:
        raise InputError(f"{name}: {error}; expected a bucket that takes it") from error


@contextlib.contextmanager
def cache_written(directory: pathlib.Path) -> Iterator[None]:
    """Makes a directory of the cache, to write in the block.

    Raises:
      InputError: the directory cannot be written; an OSError in the block counts as this.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise InputError(
            f"config.dataset.cache_dir: cannot write to {str(directory)!r} ({error.strerror}); "
            "expected a directory with room that this user may write to"
        ) from error


@contextlib.contextmanager
def file_of_cache(place: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file to write; it is moved to its place in the cache when it is complete.

    Raises:
      InputError: it cannot be written.
    """
    with (
        cache_written(place.parent),
        tempfile.TemporaryDirectory(".part", dir=place.parent) as part,
    ):
        file = pathlib.Path(part) / place.name
        yield file
        file.replace(place)


@contextlib.contextmanager
def _readable(path: epath.PathLike, name: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # gcsfs and the network raise a dozen types.
        raise InputError(
            f"{name}: cannot read {os.fspath(path)!r} ({_reason(error)}); expected a bucket that "
            f"this account may read, and room for a copy in {tempfile.gettempdir()}"
        ) from error


@functools.cache
def _copies() -> pathlib.Path:
    """The directory of this process for copies of files in buckets."""
    place = pathlib.Path(tempfile.mkdtemp(prefix="mlc_jax."))
    atexit.register(shutil.rmtree, place, ignore_errors=True)
    return place


@functools.cache
def _copied(remote: epath.Path, found: tuple[int, int]) -> pathlib.Path:
    """A copy of one version of a file; `found` tells the versions apart."""
    del found
    place = pathlib.Path(tempfile.mkdtemp(dir=_copies())) / remote.name
    _copy(remote, place)
    return place


def _copy(remote: epath.Path, place: pathlib.Path) -> None:
    if not remote.is_dir():
        with remote.open("rb") as source, place.open("wb") as target:  # It may be large.
            shutil.copyfileobj(source, target, _BLOCK)
        return
    place.mkdir()
    for inside in remote.iterdir():
        _copy(inside, place / inside.name)


def _stamps(place: pathlib.Path) -> set[tuple[str, int, int]]:
    """Names, times and sizes of files: they change when files are written."""
    files = [place] if place.is_file() else place.glob("*")
    return {(x.name, x.stat().st_mtime_ns, x.stat().st_size) for x in files}


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
