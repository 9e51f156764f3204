"""Which pictures there are, and whether all can be decoded: found out before training, remembered.

A crop may lie in the intact part of a damaged file, so what a random crop meets must not decide
whether a picture is bad. Nor may the set of rows change on the way: it fixes the order of batches.
"""

import hashlib
import os
import pathlib
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from mlc_jax import paths
from mlc_jax.data.tokens import CACHE_DIR
from mlc_jax.errors import InputError

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp")

_CHUNK = 256  # Files that the threads have before them.
_GREY = b"".join(bytes([level, level, level, 0]) for level in range(256))


def check_pictures(
    root: str, names: np.ndarray, cache_dir: str | None = None
) -> tuple[np.ndarray, dict[int, str]]:
    """Decodes every file that was not found good before.

    A file counts as another one once its size or its time of change differs.

    Args:
      root: what names are relative to.
      names: bytes `[N]`.
      cache_dir: where is kept which files are good, in `pictures`; None is `CACHE_DIR`.

    Returns:
      Sizes of the files, int64 `[N]`, and by row what is wrong with those that are bad.

    Raises:
      InputError: the cache cannot be written.
    """
    sizes, keys = np.zeros(len(names), np.int64), np.zeros(len(names), np.uint64)
    problems: dict[int, str] = {}
    files = _Files(root, names)
    for row in range(len(names)):
        try:
            stat = os.stat(files[row])
        except (OSError, ValueError) as error:
            problems[row] = _reason(error)
            continue
        sizes[row] = stat.st_size
        content = b"%s\0%d\0%d" % (bytes(names[row]), stat.st_size, stat.st_mtime_ns)
        digest = hashlib.blake2b(content, digest_size=8).digest()
        keys[row] = np.frombuffer(digest, np.uint64)[0]
    place = hashlib.blake2b(os.path.abspath(root).encode(), digest_size=16).hexdigest()
    place = f"{cache_dir or CACHE_DIR}/pictures/{place}.npy"
    with paths.kept(place, "config.dataset.cache_dir") as cache:
        good = _read(cache)
        new = [row for row in np.flatnonzero(~np.isin(keys, good)).tolist() if row not in problems]
        problems |= _look_at(files, new)
        found = [keys[row] for row in new if row not in problems]
        if found:
            _write(cache, np.union1d(good, np.array(found, np.uint64)))
    return sizes, dict(sorted(problems.items()))


def problem_of(path: bytes) -> str:
    """What is wrong with a file that is decoded to its end; empty if nothing is."""
    import tensorflow as tf

    from mlc_jax.data.pictures import decode

    try:
        data = pathlib.Path(os.fsdecode(path)).read_bytes()
        decode(tf.constant(data))
    except OSError as error:
        return _reason(error)
    except (tf.errors.OpError, ValueError):
        if not data:
            return "is empty"
        return "is no JPEG, PNG, WebP or BMP that can be decoded to its end"
    if _is_bmp_with_palette(data):
        return "is a BMP with a palette; PNG could hold its colours"
    return ""


def pictures_below(
    field: str, root: str, folder: str, parents: tuple[str, ...] = ()
) -> Iterator[str]:
    """Relative paths of pictures in a folder and below it."""
    place = os.path.join(root, folder)
    real = os.path.realpath(place)
    if real in parents:
        raise InputError(
            f"{field}: {place!r} is a link to a directory that it lies in; expected none"
        )
    try:
        entries = list(os.scandir(place))
    except OSError as error:
        raise InputError(
            f"{field}: {place!r} cannot be read ({error.strerror}); expected a directory"
        ) from error
    for entry in entries:
        name = os.path.join(folder, entry.name)
        if _is_directory(entry):
            yield from pictures_below(field, root, name, (*parents, real))
        elif entry.name.lower().endswith(ENDINGS):
            yield name


class _Files:
    def __init__(self, root: str, names: np.ndarray):
        self._root, self._names = os.fsencode(root), names

    def __getitem__(self, row: int) -> bytes:
        return os.path.join(self._root, bytes(self._names[row]))


def _look_at(files: _Files, rows: Sequence[int]) -> dict[int, str]:
    problems: dict[int, str] = {}
    bar = tqdm(total=len(rows), desc="Looking at pictures", unit="", disable=None, delay=2)
    with bar, ThreadPoolExecutor(os.cpu_count()) as threads:
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            found = threads.map(lambda row: problem_of(files[row]), chunk)
            problems |= {row: x for row, x in zip(chunk, found, strict=True) if x}
            bar.update(len(chunk))
    return problems


def _is_bmp_with_palette(data: bytes) -> bool:
    """One of colours: TensorFlow would take its numbers for grey levels."""
    if not data.startswith(b"BM") or int.from_bytes(data[28:30], "little") > 8:
        return False
    palette = 14 + int.from_bytes(data[14:18], "little")
    return data[palette : palette + len(_GREY)] != _GREY


def _reason(error: OSError | ValueError) -> str:
    reason = error.strerror if isinstance(error, OSError) else None
    return f"cannot be read ({reason or error})"


def _read(cache: pathlib.Path) -> np.ndarray:
    try:
        good: np.ndarray = np.load(cache, allow_pickle=False)
    except (OSError, ValueError, EOFError):  # Not there, or damaged: it is made again.
        return np.zeros(0, np.uint64)
    return good if good.dtype == np.uint64 else np.zeros(0, np.uint64)


def _write(cache: pathlib.Path, good: np.ndarray) -> None:
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(".part", dir=cache.parent) as part:
            file = pathlib.Path(part) / cache.name
            np.save(file, good)
            file.replace(cache)
    except OSError as error:
        raise InputError(
            f"config.dataset.cache_dir: cannot write to {str(cache.parent)!r} ({error.strerror}); "
            "expected a directory with room that this user may write to"
        ) from error


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link that leads to itself.
        return False
