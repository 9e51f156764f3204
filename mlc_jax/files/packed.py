"""Pictures packed into a few large files with random access: ArrayRecord shards.

    DIR/packed.json                  which pictures, how they were resized, which were bad
    DIR/names.npy                    bytes [N], sorted
    DIR/pictures-00000.array_record  the first pictures, in the order of names

`python -m mlc_jax.files.pack` writes them.
"""

import hashlib
import json
import os
import pathlib
import shutil
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from etils import epath
from PIL import Image
from tqdm import tqdm

from mlc_jax import paths
from mlc_jax.errors import InputError
from mlc_jax.files.images import pillow
from mlc_jax.files.images.listing import pictures_below
from mlc_jax.files.tables import ENDINGS

INFO_FILE, NAMES_FILE = "packed.json", "names.npy"
# Random access needs no threads or buffers, and a hundred shards may be open.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"
_PLAN_FILE = "plan.json"  # The plan of unfinished packing; removed at the end.
_COPIED = (".txt", *ENDINGS)
_CHUNK = 64  # Pictures that threads take at a time.


def shard_name(number: int) -> str:
    return f"pictures-{number:05d}.array_record"


def is_packed(root: epath.PathLike) -> bool:
    """Whether a directory has a complete set of packed pictures."""
    return (epath.Path(root).expanduser() / INFO_FILE).exists()


def local_directory(field: str, path: str) -> str:
    """The local directory of pictures. In a bucket they must be packed: few files are copied.

    Raises:
      InputError: pictures in a bucket are not packed, or cannot be read; names the setting `field`.
    """
    if paths.is_remote(path):
        paths.absolute(path, field)
        if not is_packed(path):
            raise InputError(
                f"{field}: {path!r} holds no packed pictures; expected, in a bucket, what "
                "mlc_jax.files.pack writes"
            )
    return str(paths.local(path, field))


class Packed:
    """Packed pictures, a `Store`.

    tf.data cannot read ArrayRecord, so Python threads do. A reader is not thread-safe, so each
    thread has its own.

    Args:
      root: the directory.
      names: of the pictures to read, bytes `[N]`; None reads all.
      field: the setting that names the directory, for messages.

    Attributes:
      names: see above.
      problems: by row, what was wrong with a picture when it was packed, or that it was not packed.

    Raises:
      InputError: the directory is damaged.
    """

    def __init__(self, root: str, names: np.ndarray | None = None, field: str = "inputs"):
        self.root = paths.expanded(root)
        paths.check_regular(self.root, field)
        try:
            info = json.loads((self.root / INFO_FILE).read_text())
            every = np.load(self.root / NAMES_FILE, allow_pickle=False)
            self._per_shard, bad = int(info["per_shard"]), dict(info["bad"])
            self._stamp = json.dumps(info, sort_keys=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{field}: {str(root)!r} is not a complete set of packed pictures ({error}); "
                "expected what mlc_jax.files.pack writes"
            ) from error
        self.names = every if names is None else names
        places = np.searchsorted(every, self.names)
        there = every[np.minimum(places, len(every) - 1)] == self.names
        self._records = np.where(there, places, 0)
        self.problems = {int(row): "is not among the packed" for row in np.flatnonzero(~there)}
        if bad:
            known = np.isin(self.names, np.array([name.encode() for name in bad]))
            for row in np.flatnonzero(known).tolist():
                self.problems[row] = bad[self.names[row].decode()]
        self._local = threading.local()

    def __len__(self) -> int:
        return len(self.names)

    def take(self, keep: Any) -> "Packed":
        return Packed(str(self.root), self.names[keep])

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(self._stamp.encode(), digest_size=8)
        digest.update(b"\0".join(self.names.tolist()))
        return digest.hexdigest()

    def __getitem__(self, row: int) -> bytes:
        """The encoded picture of a row."""
        from array_record.python import array_record_module

        shard, record = divmod(int(self._records[row]), self._per_shard)
        readers = self._local.__dict__.setdefault("readers", {})
        if shard not in readers:
            path = str(self.root / shard_name(shard))
            readers[shard] = array_record_module.ArrayRecordReader(path, _READER_OPTIONS)
        data: bytes = readers[shard].read([record])[0]
        return data

    def read(self, row: Any) -> Any:
        from mlc_jax.data.streaming import tf

        if tf.executing_eagerly():
            return tf.constant(self[int(row)])
        weak = weakref.ref(self)  # TensorFlow keeps `get` as long as the process lives.

        def get(row: np.ndarray) -> bytes:
            store = weak()
            assert store is not None
            return store[int(row)]

        data = tf.numpy_function(get, [row], tf.string)
        data.set_shape([])
        return data


def pack(root: str, output: str, *, size: int, quality: int, per_shard: int) -> dict[str, Any]:
    """Packs a directory; resumes where it was stopped.

    Args:
      root: the directory of the pictures.
      output: the directory for the shards; made if need be.
      size: pixels of the shorter side, at most.
      quality: of the JPEGs.
      per_shard: pictures in one file.

    Returns:
      What `packed.json` says.

    Raises:
      InputError: there is no picture, or the output has other contents.
    """
    source, target = paths.expanded(root), paths.expanded(output)
    if not source.is_dir():
        raise InputError(f"--input: no directory {root!r}; expected one with pictures")
    names = sorted(os.fsencode(name) for name in pictures_below("--input", str(source), ""))
    if not names:
        raise InputError(f"--input: {root!r} has no picture")
    stats = [os.stat(source / os.fsdecode(name), follow_symlinks=False) for name in names]
    plan = {
        "num_pictures": len(names),
        "num_bytes": sum(x.st_size for x in stats),
        "newest": max(x.st_mtime_ns for x in stats),
        "size": size,
        "quality": quality,
        "per_shard": per_shard,
    }
    target.mkdir(parents=True, exist_ok=True)
    _check_plan(target, plan)
    bad: dict[str, str] = {}
    num_shards = -(-len(names) // per_shard)
    bar = tqdm(total=len(names), desc="Packing", unit=" pictures", dynamic_ncols=True)
    with bar, ThreadPoolExecutor(os.cpu_count()) as threads:
        for number in range(num_shards):
            of_shard = names[number * per_shard : (number + 1) * per_shard]
            bad |= _pack_shard(source, target, number, of_shard, plan, threads, bar)
    for file in sorted(source.iterdir()):
        if file.suffix.lower() in _COPIED and file.is_file():
            shutil.copyfile(file, target / file.name)
    np.save(target / NAMES_FILE, np.array(names))
    info = plan | {"bad": bad}
    _write(target / INFO_FILE, info)  # Written last: it shows that the rest is complete.
    for number in range(num_shards):
        _bad_file(target, number).unlink()
    (target / _PLAN_FILE).unlink()
    return info


def _check_plan(target: pathlib.Path, plan: dict[str, Any]) -> None:
    """Raises InputError unless the directory is empty, or was started with the same plan."""
    if is_packed(target):
        raise InputError(f"--output: {str(target)!r} is packed already; expected another directory")
    file = target / _PLAN_FILE
    if not file.exists():
        if any(target.iterdir()):
            raise InputError(f"--output: {str(target)!r} is not empty; expected a new directory")
        _write(file, plan)
        return
    before = json.loads(file.read_text())
    changed = [f"{x} {before.get(x)} then, {plan[x]} now" for x in plan if plan[x] != before.get(x)]
    if changed:
        raise InputError(
            f"--output: {str(target)!r} was started with another input or setting "
            f"({'; '.join(changed)}); expected another directory"
        )


def _pack_shard(
    source: pathlib.Path,
    target: pathlib.Path,
    number: int,
    names: list[bytes],
    plan: dict[str, Any],
    threads: ThreadPoolExecutor,
    bar: tqdm,
) -> dict[str, str]:
    """Writes one shard unless it is there; returns its bad pictures."""
    from array_record.python import array_record_module

    shard, bad_file = target / shard_name(number), _bad_file(target, number)
    if shard.exists() and bad_file.exists():
        bar.update(len(names))
        before: dict[str, str] = json.loads(bad_file.read_text())
        return before
    partial, bad = shard.with_suffix(".part"), {}
    writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
    for start in range(0, len(names), _CHUNK):
        chunk = names[start : start + _CHUNK]
        paths = [source / os.fsdecode(name) for name in chunk]
        encoded = threads.map(lambda path: _smaller(path, plan["size"], plan["quality"]), paths)
        for name, (data, problem) in zip(chunk, encoded, strict=True):
            if problem:
                bad[name.decode()] = problem
            writer.write(data)  # Empty for a bad one: records are numbered as names are.
        bar.update(len(chunk))
    writer.close()
    _write(bad_file, bad)
    partial.replace(shard)
    return bad


def _smaller(path: pathlib.Path, size: int, quality: int) -> tuple[bytes, str]:
    """A picture's JPEG, or what is wrong with it."""
    from mlc_jax.data.streaming import tf
    from mlc_jax.files.pictures import decode, problem_of, to_uint8

    problem = problem_of(os.fsencode(path))
    if problem:
        return b"", problem
    data = path.read_bytes()
    image, turn = decode(tf.constant(data)), pillow.orientation(data)
    if turn != 1:
        upright = pillow.turned(Image.fromarray(image.numpy()), turn)
        image = tf.constant(np.asarray(upright))
    height, width, _ = image.shape
    if min(height, width) > size:
        shape = [size * x // min(height, width) for x in (height, width)]
        image = to_uint8(tf.image.resize(image, shape, antialias=True))
    return tf.io.encode_jpeg(image, quality=quality).numpy(), ""


def _bad_file(target: pathlib.Path, number: int) -> pathlib.Path:
    return target / f"bad-{number:05d}.json"


def _write(file: pathlib.Path, content: dict[str, Any]) -> None:
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(file)
