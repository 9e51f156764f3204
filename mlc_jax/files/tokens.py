"""Texts as token ids: tokenised once, in parallel, into a memory-mapped cache.

Neither the texts nor their tokens need to fit into memory.
"""

import contextlib
import fcntl
import functools
import hashlib
import itertools
import json
import os
import pathlib
import shutil
import tempfile
import threading
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from tqdm import tqdm

from mlc_jax import paths
from mlc_jax.data.source import IndexedSource
from mlc_jax.errors import InputError, is_watched

CACHE_DIR = "~/.cache/mlc_jax"  # For tokens, and for features that are computed from them.

_FORMAT = 1  # The version of the cache's files; a new one makes new caches.
_CHUNK = 1_024  # Texts that are tokenised at once: enough for all cores, and only a few MB.
_IDS, _LENGTHS, _INFO = "ids.bin", "lengths.npy", "info.json"
_CHECKED_AT_ONCE = 16 * 2**20  # Ids per step of the checksum.
_PADDING = ("[PAD]", "<pad>")  # The names of the tokenizers of BERT and of RoBERTa.


class Texts(NamedTuple):
    """Texts in their order, read again whenever they are needed.

    Attributes:
      read: () -> all texts.
      size: N.
      fingerprint: differs for other texts.
    """

    read: Callable[[], Iterable[str]]
    size: int
    fingerprint: str

    @classmethod
    def scan(cls, read: Callable[[], Iterable[str]], first: Iterable[str] | None = None) -> "Texts":
        """Reads all texts once.

        Args:
          read: see `Texts`.
          first: the texts for this first reading; None calls `read`.
        """
        digest, size = hashlib.blake2b(digest_size=16), 0
        for text in read() if first is None else first:
            size += 1
            _add(digest, text)
        return cls(read, size, digest.hexdigest())


_one_encodes = threading.Lock()


class Tokenizer:
    """Texts to ids, with the special tokens of a checkpoint and none of its padding.

    Args:
      backend: a `tokenizers.Tokenizer`; truncation and padding of its file are turned off.
      pad_id: the id for padding; None looks for it in the backend.

    Attributes:
      vocab_size: the largest id plus one: rows that an embedding must have.
      pad_id: see above.
      fingerprint: differs for a tokenizer with other results.

    Raises:
      InputError: it has no padding token.
    """

    def __init__(self, backend: Any, pad_id: int | None = None):
        if pad_id is None:
            known = (backend.token_to_id(token) for token in _PADDING)
            padding = backend.padding or {"pad_id": next((x for x in known if x is not None), None)}
            pad_id = padding["pad_id"]
        if pad_id is None:
            raise InputError(
                f"the tokenizer has no padding token, expected {' or '.join(_PADDING)}"
            )
        backend.no_padding()
        backend.no_truncation()
        self._backend, self.pad_id = backend, pad_id
        self.vocab_size = 1 + max(backend.get_vocab(with_added_tokens=True).values())
        content = f"{pad_id} {backend.to_str()}".encode()
        self.fingerprint = hashlib.blake2b(content, digest_size=16).hexdigest()

    @classmethod
    def load(cls, name: str, field: str = "config.dataset.tokenizer") -> "Tokenizer":
        """Reads a tokenizer.

        Args:
          name: a `tokenizer.json`, a directory with that or with an older checkpoint's
            vocabulary, or a name on the Hugging Face hub.
          field: the setting that names it, for messages.

        Raises:
          InputError: it does not exist or cannot be read.
        """
        expected = "a directory with a tokenizer.json, or a name on the Hugging Face hub"
        path = paths.expanded(name)
        file = path / "tokenizer.json" if path.is_dir() else path
        if not path.exists() and (path.is_absolute() or name.startswith((".", "~"))):
            raise InputError(f"{field}: no directory {name!r}; expected {expected}")
        paths.check_regular(path, field)
        try:
            if file.is_file():
                import tokenizers

                return cls(tokenizers.Tokenizer.from_file(str(file)))
            # It can read an older checkpoint's vocabulary; its import takes seconds.
            from transformers import AutoTokenizer

            slow = AutoTokenizer.from_pretrained(str(path) if path.is_dir() else name)
            return cls(slow.backend_tokenizer, slow.pad_token_id)
        except Exception as error:  # Rust, JSON, the hub and the network raise a dozen types.
            reason = " ".join(str(error).split())
            raise InputError(
                f"{field}: {name!r} cannot be read ({reason}); expected {expected}"
            ) from error

    def encode(self, texts: Sequence[str], max_length: int) -> list[Any]:
        """Encodings, in parallel, with `ids` of at most `max_length`; `overflowing` if cut off."""
        with _one_encodes:  # The length is a setting of the backend, and threads may share it.
            self._backend.enable_truncation(max_length)
            try:
                return list(self._backend.encode_batch_fast(texts))
            finally:
                self._backend.no_truncation()

    def save(self, file: str | os.PathLike[str]) -> None:
        """Writes a `tokenizer.json` that `load` can read."""
        token = self._backend.id_to_token(self.pad_id)
        self._backend.enable_padding(pad_id=self.pad_id, pad_token=token)
        try:
            self._backend.save(os.fspath(file))
        finally:
            self._backend.no_padding()


class TokenCache:
    """`x[rows]` of tokenised texts, padded.

    Attributes:
      lengths: `[N]` int32, tokens of each text, special ones included.
      max_length: T.
      num_truncated: texts that were cut off.
    """

    def __init__(self, directory: pathlib.Path, max_length: int, pad_id: int):
        info = json.loads((directory / _INFO).read_text())
        self.lengths = np.load(directory / _LENGTHS, allow_pickle=False)
        self.num_truncated: int = info["num_truncated"]
        dtype, size = np.dtype(info["dtype"]), int(self.lengths.sum(dtype=np.int64))
        there = (directory / _IDS).stat().st_size, len(self.lengths)
        if there != (size * dtype.itemsize, info["num_texts"]):
            raise ValueError("files of other sizes than they were written with")
        self._ids = np.memmap(directory / _IDS, dtype, "r") if size else np.zeros(0, dtype)
        # A flipped bit would change a text. A checksum of a GB takes a second at most.
        checksum = 0
        for start in range(0, size, _CHECKED_AT_ONCE):
            checksum = zlib.crc32(self._ids[start : start + _CHECKED_AT_ONCE].data, checksum)
        if zlib.crc32(self.lengths.data, checksum) != info["checksum"]:
            raise ValueError("files of other content than they were written with")
        self._starts = np.cumsum(self.lengths, dtype=np.int64) - self.lengths
        self.max_length, self._pad_id = max_length, pad_id

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        lengths = self.lengths[rows]
        inside = np.arange(self.max_length) < lengths[:, None]
        ids = np.full(inside.shape, self._pad_id, np.int32)
        first = np.cumsum(lengths) - lengths  # In the batch; in the cache it is at `_starts`.
        places = np.repeat(self._starts[rows] - first, lengths) + np.arange(lengths.sum())
        ids[inside] = self._ids[places]
        return {"input_ids": ids, "attention_mask": inside.astype(np.int32)}


class TokenSource(IndexedSource):
    """Tokens of texts, a `Source`: `{"input_ids": int32 [n, T], "attention_mask": int32 [n, T]}`.

    Args:
      cache: the cache of the tokens.
      tokenizer: the tokenizer that made them.
      fingerprint: differs for other texts, tokenizers and lengths.
      ids: text `[N]`; None makes them from row numbers.
      id_format: format of a row number.
      texts: texts to show; None shows nothing.

    Attributes:
      tokenizer: see above; an embedding of its ids needs `tokenizer.vocab_size` rows.
      lengths: `[N]` int32, tokens that are not padding.
      max_length: T.
    """

    def __init__(
        self,
        cache: TokenCache,
        tokenizer: Tokenizer,
        fingerprint: str,
        ids: Sequence[str] | np.ndarray | None = None,
        id_format: str = "{}",
        texts: Texts | None = None,
    ):
        super().__init__(cache, ids)
        self.tokenizer, self.lengths, self._texts = tokenizer, cache.lengths, texts
        self.max_length = cache.max_length
        self._of_everything, self._id_format = fingerprint, id_format

    def ids(self, rows: np.ndarray) -> np.ndarray:
        if self._ids is None:
            return np.array([self._id_format.format(row) for row in rows], np.str_)
        return super().ids(rows)

    def fingerprint(self) -> str:
        return self._of_everything

    def show(self, rows: np.ndarray) -> list[str]:
        """The texts of a few rows; it reads all texts."""
        wanted = set(rows.tolist())
        texts = self._texts.read() if self._texts else ()
        there = {row: text for row, text in enumerate(texts) if row in wanted}
        return [there.get(row, "") for row in rows.tolist()]


def create_source(
    texts: Texts,
    tokenizer: Tokenizer,
    *,
    max_length: int,
    cache_dir: str | None = None,
    ids: Sequence[str] | np.ndarray | None = None,
    id_format: str = "{}",
) -> TokenSource:
    """A source of texts; they are tokenised unless the cache holds them.

    The key of the cache depends on all texts, the tokenizer and the length. The cache is written
    elsewhere and renamed when it is complete; a damaged cache is made again.

    Args:
      texts: at least one.
      tokenizer: see `Tokenizer.load`.
      max_length: T, tokens of an input; longer texts are cut off, and their share is logged.
      cache_dir: its folder `tokens` has the caches; None is `CACHE_DIR`.
      ids, id_format: see `TokenSource`.

    Raises:
      InputError: the cache cannot be written, or the texts changed meanwhile.
    """
    parts = json.dumps([_FORMAT, texts.fingerprint, tokenizer.fingerprint, max_length])
    key = hashlib.blake2b(parts.encode(), digest_size=16).hexdigest()
    place = f"{cache_dir or CACHE_DIR}/tokens/{key}"
    with paths.kept(place, "config.dataset.cache_dir") as directory:
        cache = _opened_or_made(directory, texts, tokenizer, max_length)
    share = 100 * cache.num_truncated / max(1, len(cache))
    logging.info("%.1f %% of %d texts are cut off at %d tokens.", share, len(cache), max_length)
    return TokenSource(cache, tokenizer, key, ids, id_format, texts)


def _opened_or_made(
    directory: pathlib.Path, texts: Texts, tokenizer: Tokenizer, max_length: int
) -> TokenCache:
    root, key = directory.parent, directory.name
    open_cache = functools.partial(TokenCache, directory, max_length, tokenizer.pad_id)
    with paths.cache_written(root):
        cache = _opened(open_cache)
        if cache is None:
            with _alone(root / f"{key}.lock") as alone:
                cache = _opened(open_cache)  # Another process may have made it meanwhile.
                if cache is None:
                    _make(root, key, texts, tokenizer, max_length, alone)
                    cache = open_cache()
    return cache


def _opened(open_cache: Callable[[], TokenCache]) -> TokenCache | None:
    """The cache, or None if it is missing or was cut off."""
    try:
        return open_cache()
    except (OSError, ValueError, KeyError, TypeError, EOFError):
        return None


def _make(
    root: pathlib.Path, key: str, texts: Texts, tokenizer: Tokenizer, max_length: int, alone: bool
) -> None:
    """Writes a cache under another name, and renames it when it is complete."""
    if alone:  # No other process is writing: these are leftovers.
        for left in root.glob(f"{key}*.part"):
            shutil.rmtree(left, ignore_errors=True)
    part = pathlib.Path(tempfile.mkdtemp(".part", f"{key}.", root))
    try:
        _write(part, texts, tokenizer, max_length)
        if alone:
            shutil.rmtree(root / key, ignore_errors=True)  # A damaged cache.
        try:
            part.rename(root / key)
        except OSError:
            if not (root / key / _INFO).is_file():
                raise  # Otherwise another process was first, without locks.
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _write(directory: pathlib.Path, texts: Texts, tokenizer: Tokenizer, max_length: int) -> None:
    dtype = np.dtype(np.uint16 if tokenizer.vocab_size <= 2**16 else np.int32)
    lengths, num_truncated, checksum = array("i"), 0, 0
    digest = hashlib.blake2b(digest_size=16)
    remaining = iter(texts.read())
    bar = tqdm(
        total=texts.size, desc="Tokenising", unit=" texts", disable=not is_watched(), delay=2
    )
    with (directory / _IDS).open("wb") as file, bar:
        while chunk := list(itertools.islice(remaining, _CHUNK)):
            for text in chunk:
                _add(digest, text)
            encodings = tokenizer.encode(chunk, max_length)
            ids = [encoding.ids for encoding in encodings]
            lengths.extend(map(len, ids))
            num_truncated += sum(bool(encoding.overflowing) for encoding in encodings)
            content = np.fromiter(itertools.chain.from_iterable(ids), dtype)
            content.tofile(file)
            checksum = zlib.crc32(content.data, checksum)
            bar.update(len(chunk))
        _sync(file)
    if digest.hexdigest() != texts.fingerprint:
        raise InputError("inputs: the texts changed while they were read; expected them to stay")
    with (directory / _LENGTHS).open("wb") as file:
        np.save(file, np.array(lengths, np.int32))
        _sync(file)
    info = {
        "num_texts": len(lengths),
        "num_truncated": num_truncated,
        "dtype": dtype.name,
        "checksum": zlib.crc32(np.array(lengths, np.int32).data, checksum),
    }
    with (directory / _INFO).open("wb") as file:
        file.write(json.dumps(info).encode())
        _sync(file)


def _add(digest: Any, text: str) -> None:
    content = text.encode()
    digest.update(len(content).to_bytes(8, "little"))  # Separates texts.
    digest.update(content)


def _sync(file: Any) -> None:
    """Writes to the disk, before the cache counts as complete."""
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _alone(path: pathlib.Path) -> Iterator[bool]:
    """Waits until no other process is inside; yields False if the file system has no locks."""
    with path.open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
        except OSError:
            yield False
        else:
            yield True
