"""Pictures packed into a few large files with random access: ArrayRecord shards.

    DIR/packed.json                  which pictures, how they were resized, which were bad
    DIR/names.npy                    bytes [N], sorted
    DIR/pictures-00000.array_record  the first pictures, in the order of names

`mlc_jax.data.pack` writes them.
"""

import functools
import hashlib
import json
import pathlib
import threading
import weakref
from typing import Any

import numpy as np

from mlc_jax.errors import InputError

INFO_FILE, NAMES_FILE = "packed.json", "names.npy"
# For random access, and for no threads and buffers of each of a hundred open shards.
_READER_OPTIONS = "readahead_buffer_size:0,max_parallelism:0"


def shard_name(number: int) -> str:
    return f"pictures-{number:05d}.array_record"


def is_packed(root: str | pathlib.Path) -> bool:
    return (pathlib.Path(root).expanduser() / INFO_FILE).is_file()


class Packed:
    """Packed pictures, a `Store`.

    tf.data has no operation that reads ArrayRecord: a Python thread does. A reader is not safe
    against itself, so each thread has its own.

    Args:
      root: the directory.
      names: of the pictures that are read, bytes `[N]`; None is all.
      field: the setting that names the directory, for messages.

    Attributes:
      names: see above.
      problems: by row, what was wrong with pictures when they were packed.

    Raises:
      InputError: the directory is damaged.
    """

    def __init__(self, root: str, names: np.ndarray | None = None, field: str = "inputs"):
        self.root = pathlib.Path(root).expanduser()
        try:
            info = json.loads((self.root / INFO_FILE).read_text())
            every = np.load(self.root / NAMES_FILE, allow_pickle=False)
            self._per_shard, bad = int(info["per_shard"]), dict(info["bad"])
            self._stamp = json.dumps(info, sort_keys=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{field}: {str(root)!r} is no whole set of packed pictures ({error}); expected "
                "what mlc_jax.data.pack writes"
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

    def take(self, keep: np.ndarray) -> "Packed":
        """The rows of a mask `[N]`."""
        return Packed(str(self.root), self.names[keep])

    def fingerprint(self) -> str:
        return self._fingerprint

    @functools.cached_property
    def _fingerprint(self) -> str:
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
        import tensorflow as tf

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
