"""Features of pictures: computed once, and cached by the content of the picture's file."""

import collections
import hashlib
import io
import pathlib
import time
import uuid
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from etils import epath
from tqdm import tqdm

from mlc_jax import paths
from mlc_jax.data.source import ArraySource
from mlc_jax.encoders.image_models import ImageModel, num_cores
from mlc_jax.errors import InputError, is_watched
from mlc_jax.files.images import pillow
from mlc_jax.files.pictures import Encoded, show_pictures
from mlc_jax.files.tokens import CACHE_DIR

SHARD = 1_024  # Pictures per file of the cache.
_BATCH = 32  # Pictures that are encoded at once.
_AHEAD = 2  # Batches that threads prepare ahead of use.
_FIELD = "config.dataset.cache_dir"


class EncodedPictures(ArraySource):
    """Features `[N, H]` of pictures, with their names.

    Args:
      features: float32 `[N, H]`.
      store: the pictures.
      digests: bytes `[N]`, digests of the files' content.
      encoder: the encoder, see `ImageModel.fingerprint`.
      ids: text `[N]`; None numbers the rows.
    """

    def __init__(
        self, features: np.ndarray, store: Encoded, digests: np.ndarray, encoder: str,
        ids: np.ndarray | None = None,
    ):  # fmt: skip
        super().__init__(features, ids)
        self.store, self._digests, self._encoder = store, digests, encoder

    def named(self, ids: np.ndarray) -> "EncodedPictures":
        """The same source with other names, text `[N]`."""
        return EncodedPictures(self.inputs, self.store, self._digests, self._encoder, ids)

    def fingerprint(self) -> str:
        digest = hashlib.blake2b(self._encoder.encode(), digest_size=8)
        digest.update(self._digests.tobytes())
        return digest.hexdigest()

    def show(self, rows: np.ndarray) -> list[np.ndarray]:
        return show_pictures(self.store, rows)


class PictureEncoder:
    """Maps stored pictures to their features.

    Args:
      model: see `open_model`.
      cache_dir: its folder `features` has the cache; None is `CACHE_DIR`.
    """

    def __init__(self, model: ImageModel, cache_dir: str | None):
        self.model = model
        self._cache_dir = cache_dir or CACHE_DIR

    def __call__(
        self, store: Encoded, ids: np.ndarray | None = None
    ) -> tuple["EncodedPictures", dict[int, str]]:
        """Features of all pictures that can be decoded.

        Features of known pictures come from the cache; others are written there, a shard at a time.

        Args:
          store: N pictures.
          ids: text `[N]`.

        Returns:
          The source of those that can be decoded, and by row the problem of the others.

        Raises:
          InputError: the cache cannot be written, or the encoder cannot be loaded.
        """
        digests, problems = _digests(store)
        known = self._features(store, digests, problems)
        places = np.array([row for row in range(len(digests)) if row not in problems], np.int64)
        features = np.zeros((0, 0), np.float32)
        if len(places):
            features = np.stack([known[digests[row]] for row in places])
        of_good = np.frombuffer(b"".join(digests[row] for row in places), np.uint8)
        source = EncodedPictures(
            features, store.take(places), of_good, self.model.fingerprint or _hash(features),
            None if ids is None else ids[places],
        )  # fmt: skip
        return source, dict(sorted(problems.items()))

    def _features(
        self, store: Encoded, digests: Sequence[bytes], problems: dict[int, str]
    ) -> dict[bytes, np.ndarray]:
        """Features by digest; adds rows whose pictures cannot be decoded to `problems`."""
        cache = None
        if self.model.fingerprint is not None:
            key = hashlib.blake2b(self.model.fingerprint.encode(), digest_size=16).hexdigest()
            cache = _Cache(f"{self._cache_dir}/features/{key}")
        wanted = {digest for row, digest in enumerate(digests) if row not in problems}
        known = {} if cache is None else cache.read(wanted)
        rows: dict[bytes, list[int]] = {}  # Rows of each new picture; copies are one.
        for row, digest in enumerate(digests):
            if row not in problems and digest not in known:
                rows.setdefault(digest, []).append(row)
        new, notes = [*rows], []
        if new:
            self.model.load()
        started = time.monotonic()
        with tqdm(
            total=len(new), desc="Encoding", unit=" pictures", disable=not is_watched(), delay=2
        ) as bar:
            for start in range(0, len(new), SHARD):
                shard: dict[bytes, np.ndarray] = {}
                part = new[start : start + SHARD]
                for batch in _encoded(self.model, store, part, [rows[x][0] for x in part]):
                    shard |= batch.features
                    notes += batch.notes
                    for digest, problem in batch.problems.items():
                        problems.update(dict.fromkeys(rows[digest], problem))
                    bar.update(len(batch.features) + len(batch.problems))
                if cache is not None and shard:
                    cache.write(shard)
                known |= shard
        if new:
            seconds = time.monotonic() - started
            logging.info(
                "Features of %d pictures in %.0f s, %.1f pictures/s; %d were in the cache.",
                len(new), seconds, len(new) / seconds, len(wanted) - len(new),
            )  # fmt: skip
        pillow.log_notes(notes)
        return known


def seconds(model: ImageModel, store: Encoded) -> float:
    """Seconds to decode and encode a few pictures with a loaded model; 0 for no pictures.

    Raises:
      InputError: the model cannot be loaded.
    """
    model.load()
    rows = list(range(len(store)))
    keys = [str(row).encode() for row in rows]
    started = time.monotonic()
    for _ in range(2):  # The first round compiles and allocates: only the second counts.
        started = time.monotonic()
        number = sum(len(batch.features) for batch in _encoded(model, store, keys, rows))
    return (time.monotonic() - started) * bool(number)


def _hash(features: np.ndarray) -> str:
    """A hash of the features of an encoder without a fingerprint."""
    return hashlib.blake2b(features.tobytes(), digest_size=16).hexdigest()


class _Batch(NamedTuple):
    """Some pictures: features or problems by digest, and the changes made to them."""

    features: dict[bytes, np.ndarray]
    problems: dict[bytes, str]
    notes: list[str]


def _encoded(
    model: ImageModel, store: Encoded, digests: Sequence[bytes], rows: Sequence[int]
) -> Iterator[_Batch]:
    """Encodes batches while threads decode the next ones."""

    def prepare(row: int) -> tuple[Any, tuple[str, ...]] | str:
        try:
            image, notes = pillow.decode(store[row])
        except pillow.BadPicture as error:
            return str(error)
        return model.prepare(image), notes

    waiting: collections.deque[tuple[Sequence[bytes], list[Future[Any]]]] = collections.deque()
    with ThreadPoolExecutor(num_cores()) as threads:
        for start in range(0, len(rows), _BATCH):
            part = slice(start, start + _BATCH)
            waiting.append((digests[part], [threads.submit(prepare, row) for row in rows[part]]))
            if len(waiting) > _AHEAD:
                yield _one_batch(model, *waiting.popleft())
        while waiting:
            yield _one_batch(model, *waiting.popleft())


def _one_batch(model: ImageModel, digests: Sequence[bytes], futures: list[Future[Any]]) -> _Batch:
    results = {x: future.result() for x, future in zip(digests, futures, strict=True)}
    problems = {x: result for x, result in results.items() if isinstance(result, str)}
    good = {x: result for x, result in results.items() if x not in problems}
    if not good:
        return _Batch({}, problems, [])
    features = model.encode([prepared for prepared, _ in good.values()])
    if not np.isfinite(features).all():
        raise InputError("encoder: made features that are not finite; expected numbers")
    notes = [note for _, noted in good.values() for note in noted]
    return _Batch(dict(zip(good, features, strict=True)), problems, notes)


def _digests(store: Encoded) -> tuple[list[bytes], dict[int, str]]:
    """Digests of the files' content, and by row the problem of files that cannot be read."""

    def digest(row: int) -> bytes | str:
        try:
            return hashlib.blake2b(store[row], digest_size=16).digest()
        except pillow.BadPicture as error:
            return str(error)

    found: list[bytes] = []
    problems: dict[int, str] = {}
    with (
        tqdm(
            total=len(store), desc="Reading", unit=" files", disable=not is_watched(), delay=2
        ) as bar,
        ThreadPoolExecutor(num_cores()) as threads,
    ):
        for start in range(0, len(store), SHARD):
            part = range(start, min(start + SHARD, len(store)))
            for row, result in zip(part, threads.map(digest, part), strict=True):
                problems |= {row: result} if isinstance(result, str) else {}
                found.append(b"" if isinstance(result, str) else result)
            bar.update(len(part))
    return found, problems


class _Cache:
    """Features of one encoder, in files of up to `SHARD` rows, each written at once."""

    def __init__(self, directory: str):
        self._directory = paths.absolute(directory, _FIELD)

    def read(self, wanted: set[bytes]) -> dict[bytes, np.ndarray]:
        """Features of the wanted pictures that are cached; damaged files are skipped."""
        found: dict[bytes, np.ndarray] = {}
        if not self._directory.exists():
            return found
        for file in self._directory.glob("*.npz"):
            try:
                with np.load(paths.local(file, _FIELD), allow_pickle=False) as stored:
                    keys = [key.tobytes() for key in stored["digests"]]
                    places = [i for i, key in enumerate(keys) if key in wanted]
                    if places:
                        features = stored["features"]
                        found |= {keys[i]: features[i] for i in places}
            except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
                logging.warning("%s is damaged, and is made again.", file)
        return found

    def write(self, shard: dict[bytes, np.ndarray]) -> None:
        """Writes a shard. InputError if that fails; `Lost` in a bucket."""
        content = io.BytesIO()
        digests = np.frombuffer(b"".join(shard), np.uint8).reshape(len(shard), -1)
        np.savez(content, digests=digests, features=np.stack([*shard.values()]))
        name = hashlib.blake2b(digests.tobytes(), digest_size=16).hexdigest()
        file = self._directory / f"{name}.npz"
        if paths.is_remote(file):
            paths.write(file, content.getvalue())
            return
        with paths.cache_written(pathlib.Path(self._directory)):
            beside = f".{uuid.uuid4().hex}.partial"  # Another process may write the same.
            paths.write(epath.Path(file), content.getvalue(), beside)
