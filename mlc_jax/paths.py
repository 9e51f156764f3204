"""Directories and files, on a disk or in a bucket: the one place that knows which is which."""

import atexit
import contextlib
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Iterator

# Before etils is imported. Its other client for buckets is TensorFlow's, which uploads a file anew
# for every line that is appended, and cannot be pointed at another endpoint.
os.environ.setdefault("EPATH_USE_TF", "false")
# Otherwise it asks for the kind of every bucket first, and warns where it may not know.
os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")

from etils import epath

from mlc_jax.errors import InputError, Lost

_SCHEME = re.compile(r"^([a-z][a-z0-9]+):/+")  # Longer than a drive letter.


def is_remote(path: epath.PathLike) -> bool:
    """Whether a path is in a bucket."""
    return os.fspath(path).startswith("gs://")


def absolute(path: epath.PathLike, name: str = "--workdir") -> epath.Path:
    """A path that does not depend on the current directory; `~` is expanded.

    Args:
      path: a directory of a disk, or `gs://BUCKET/NAME`.
      name: of the flag or argument, for messages.

    Raises:
      InputError: it is in no bucket that could be read, or no package for buckets is installed.
    """
    text = os.fspath(path)
    scheme = _SCHEME.match(text)
    if scheme is None:
        return epath.Path(text).expanduser().resolve()
    bucket, _, inside = text.removeprefix("gs://").strip("/").partition("/")
    if not is_remote(text) or not bucket or not inside:
        raise InputError(f"{name}: got {text!r}, expected a directory, or gs://BUCKET/NAME")
    try:
        import fsspec
        import gcsfs  # noqa: F401
        import google.cloud.storage  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{name}: got {text!r}, expected a local directory, or the packages for buckets "
            f"({error}): pip install 'mlc_jax[gcs]'"
        ) from error
    # What other processes write is to be seen: a run before this one, or workers of a sweep.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(f"gs://{bucket}/{inside}")


def write(path: epath.Path, content: bytes, beside: str = "") -> None:
    """Writes a file whole: a reader never sees half of it, nor loses the one before.

    On a disk it is written beside its place and renamed; an object of a bucket appears at once.

    Args:
      path: of the file.
      content: of it.
      beside: name that it has until it is whole; needed where several processes may write it.

    Raises:
      OSError: it cannot be written; names it.
      Lost: the same in a bucket, which may be back soon.
    """
    if is_remote(path):
        try:
            path.write_bytes(content)
        except Exception as error:  # Of gcsfs and of the network, a dozen types.
            raise Lost(f"cannot write {os.fspath(path)}: {_reason(error)}") from error
        return
    partial = path.parent / (beside or path.name + ".partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    except OSError as error:  # Without a name if the disk is full.
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextlib.contextmanager
def written_locally(folder: epath.Path) -> Iterator[pathlib.Path]:
    """A local directory to write files to, which end up in `folder`; `config.json` last of all."""
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


def read_locally(folder: epath.Path) -> pathlib.Path:
    """A local directory with the files of `folder`; a bucket's are copied, for this process."""
    if not is_remote(folder):
        return pathlib.Path(folder)
    local = pathlib.Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, local, ignore_errors=True)
    for file in folder.iterdir():
        (local / file.name).write_bytes(file.read_bytes())
    return local


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
