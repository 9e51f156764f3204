"""Picture files as a source: decoded, cropped and resized in tf.data, uint8 to the device.

Pretrained weights were made with antialiased resizing; without it a picture differs by several grey
levels on average from what they saw.

The pictures are listed and decoded once before training, and the result is stored. A random crop
may lie in the intact part of a damaged file, so it must not decide whether a picture is bad. The
set of rows must not change during training either: it fixes the order of batches.
"""

import dataclasses
import functools
import hashlib
import math
import os
import pathlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from absl import logging
from tqdm import tqdm

from mlc_jax import paths
from mlc_jax.data.prepare import Normalize
from mlc_jax.errors import is_watched
from mlc_jax.files.images import pillow
from mlc_jax.files.tokens import CACHE_DIR

# Mean and deviation of ImageNet's training pictures in [0, 1], as pretrained weights expect.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PREPARE = Normalize(255.0, IMAGENET_MEAN, IMAGENET_STD)
CROPS = ("resized", "plain")

# A random resized crop's share of the area, and width over height, as in torchvision.
_AREAS, _RATIOS = (0.08, 1.0), (3 / 4, 4 / 3)
_DRAWS = 5  # Area, shape, row, column, flip.

_CHUNK = 256  # Files that threads take at a time.
_GREY = b"".join(bytes([level, level, level, 0]) for level in range(256))


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The part of a picture that a model sees.

    Attributes:
      image_size: side of the square in pixels.
      resize_size: pixels of the shorter side, before the middle square or a plain crop is taken;
        None is 8/7 of `image_size`.
      crop: how pictures are cropped at random. `resized`: 8 to 100 % of the area, any shape from
        3:4 to 4:3, stretched to a square. `plain`: any square. Half of them are mirrored.
    """

    image_size: int = 224
    resize_size: int | None = None
    crop: str = "resized"

    @property
    def shorter_side(self) -> int:
        return self.resize_size or round(self.image_size * 8 / 7)


class Encoded(Protocol):
    """Encoded pictures by row number."""

    def __len__(self) -> int: ...

    def __getitem__(self, row: int) -> bytes:
        """The bytes of one picture.

        Raises:
          BadPicture: they cannot be read.
        """
        ...

    def take(self, keep: Any) -> "Encoded":
        """The pictures of a mask `[N]`, or of a slice."""
        ...


class Store(Encoded, Protocol):
    """Files, or packed records.

    Attributes:
      names: bytes `[N]`, their paths below some directory.
    """

    names: np.ndarray

    def fingerprint(self) -> str:
        """See `Source`."""
        ...

    def take(self, keep: Any) -> "Store": ...

    def read(self, row: Any) -> Any:
        """The same inside tf.data, from an int64 scalar to a string scalar."""
        ...


class Files:
    """Pictures in files. Only their names take memory.

    Args:
      root: the directory that names are relative to.
      names: bytes `[N]`, paths.
      sizes: `[N]`, sizes of the files.
    """

    def __init__(self, root: str, names: np.ndarray, sizes: np.ndarray):
        self.root, self.names, self.sizes = root, names, sizes

    def __len__(self) -> int:
        return len(self.names)

    def take(self, keep: Any) -> "Files":
        return Files(self.root, self.names[keep], self.sizes[keep])

    def __getitem__(self, row: int) -> bytes:
        return pillow.read_file(os.path.join(os.fsencode(self.root), bytes(self.names[row])))

    def place(self, row: int) -> str:
        """The file of a row."""
        return os.path.join(self.root, os.fsdecode(bytes(self.names[row])))

    def fingerprint(self) -> str:
        # It depends on no root and no times, because a folder may be copied elsewhere.
        digest = hashlib.blake2b(digest_size=8)
        digest.update(b"\0".join(self.names.tolist()))
        digest.update(np.ascontiguousarray(self.sizes, np.int64).data)
        return digest.hexdigest()

    @functools.cached_property
    def _constant(self) -> Any:
        from mlc_jax.data.streaming import tf

        with tf.init_scope():
            return tf.constant(self.names)

    def read(self, row: Any) -> Any:
        from mlc_jax.data.streaming import tf

        # `tf.strings.join` does not know that a name may be an absolute path.
        name = tf.gather(self._constant, row)
        is_absolute = tf.equal(tf.strings.substr(name, 0, 1), "/")
        prefix = tf.where(is_absolute, "", os.path.join(self.root, ""))
        return tf.io.read_file(tf.strings.join([prefix, name]))


class Pictures:
    """A `Source` of pictures, uint8 `[image_size, image_size, 3]`; see `Geometry`.

    JPEG (also grey and CMYK), PNG, WebP and BMP are known by their content. Orientation tags are
    ignored.

    Args:
      store, geometry: the pictures, and the part of them that is used.
      ids: text `[N]`, or its bytes, which take a quarter of the memory; None numbers the rows.
    """

    num_draws = _DRAWS

    def __init__(self, store: Store, geometry: Geometry, ids: np.ndarray | None = None):
        self.store, self.geometry, self._ids = store, geometry, ids

    def __len__(self) -> int:
        return len(self.store)

    def ids(self, rows: np.ndarray) -> np.ndarray:
        if self._ids is None:
            return rows.astype(str)
        ids = self._ids[rows]
        return np.char.decode(ids) if ids.dtype.kind == "S" else ids

    def fingerprint(self) -> str:
        return f"{self.store.fingerprint()} {self.geometry}"

    def read(self, row: Any, draws: Any = None) -> Any:
        return see(decode(self.store.read(row)), self.geometry, draws)

    def take(self, keep: Any) -> "Pictures":
        """The pictures of a mask `[N]`, or of a slice."""
        ids = None if self._ids is None else self._ids[keep]
        return Pictures(self.store.take(keep), self.geometry, ids)

    def show(self, rows: np.ndarray) -> list[np.ndarray]:
        """Whole pictures made small; see `pillow.thumbnail`."""
        return show_pictures(self.store, rows)


def places_of(store: Encoded, rows: np.ndarray) -> list[str] | None:
    """The paths of pictures, for people; None if they are packed."""
    return [store.place(row) for row in rows.tolist()] if isinstance(store, Files) else None


def show_pictures(store: Encoded, rows: np.ndarray) -> list[np.ndarray]:
    """Pictures for people, uint8 `[H, W, 3]`; see `pillow.thumbnail`."""
    return [pillow.thumbnail(functools.partial(store.__getitem__, row)) for row in rows.tolist()]


def decode(data: Any) -> Any:
    """Decodes a picture to uint8 `[H, W, 3]`, in TensorFlow; of an animation, the first frame."""
    from mlc_jax.data.streaming import tf

    image = tf.io.decode_image(data, channels=3, expand_animations=False)
    return tf.ensure_shape(image, [None, None, 3])


def see(image: Any, geometry: Geometry, draws: Any = None) -> Any:
    """The part of a picture that a model sees: uint8 `[image_size, image_size, 3]`.

    Args:
      image: uint8 `[H, W, 3]`.
      geometry: how to cut it out.
      draws: float32 `[5]` in [0, 1) for a random crop; None takes the middle.
    """
    if draws is None:
        return _middle(image, geometry)
    crop = _resized_crop if geometry.crop == "resized" else _plain_crop
    return crop(image, geometry, draws)


def to_uint8(image: Any) -> Any:
    """Rounds and clips; a cast alone would cut off and wrap around."""
    from mlc_jax.data.streaming import tf

    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)


def _middle(image: Any, geometry: Geometry) -> Any:
    """Resizes the shorter side, then takes the middle square."""
    from mlc_jax.data.streaming import tf

    resized = _resized_shape(image, geometry)
    # A half is rounded to even, as in torchvision.
    offset = tf.round(tf.cast(resized - geometry.image_size, tf.float32) / 2)
    return _window(image, resized, offset, geometry.image_size)


def _plain_crop(image: Any, geometry: Geometry, draws: Any) -> Any:
    """Resizes the shorter side, then takes any square."""
    from mlc_jax.data.streaming import tf

    resized = _resized_shape(image, geometry)
    room = tf.cast(resized - geometry.image_size + 1, tf.float32)
    return _mirror(_window(image, resized, tf.floor(draws[2:4] * room), geometry.image_size), draws)


def _resized_crop(image: Any, geometry: Geometry, draws: Any) -> Any:
    """A part of the picture, stretched to a square.

    A part that does not fit into the picture is cut to fit; torchvision draws again.
    """
    from mlc_jax.data.streaming import tf

    whole = tf.cast(tf.shape(image)[:2], tf.float32)
    area = (_AREAS[0] + (_AREAS[1] - _AREAS[0]) * draws[0]) * whole[0] * whole[1]
    low, high = (math.log(x) for x in _RATIOS)
    ratio = tf.exp(low + (high - low) * draws[1])
    part = tf.round(tf.sqrt(tf.stack([area / ratio, area * ratio])))
    part = tf.clip_by_value(part, 1, whole)
    begin = tf.cast(tf.floor(draws[2:4] * (whole - part + 1)), tf.int32)
    size = tf.cast(part, tf.int32)
    cut = tf.slice(image, tf.pad(begin, [[0, 1]]), tf.concat([size, [3]], 0))
    side = tf.fill([2], geometry.image_size)
    return _mirror(_window(cut, side, tf.zeros([2]), geometry.image_size), draws)


def _resized_shape(image: Any, geometry: Geometry) -> Any:
    """The new shape, int32 `[2]`: the longer side is in proportion, rounded down."""
    from mlc_jax.data.streaming import tf

    shape = tf.shape(image)[:2]
    return geometry.shorter_side * shape // tf.reduce_min(shape)


def _window(image: Any, resized: Any, offset: Any, size: int) -> Any:
    """The square at `offset` of the picture after resizing to the shape `resized`.

    Only that square is computed, with the same pixels as in the whole picture.
    """
    from mlc_jax.data.streaming import tf

    scale = tf.cast(resized, tf.float32) / tf.cast(tf.shape(image)[:2], tf.float32)
    square = tf.raw_ops.ScaleAndTranslate(
        images=image[None], size=[size, size], scale=scale, translation=-offset,
        kernel_type="triangle", antialias=True,
    )  # fmt: skip
    return tf.ensure_shape(to_uint8(square[0]), [size, size, 3])


def _mirror(image: Any, draws: Any) -> Any:
    from mlc_jax.data.streaming import tf

    return tf.cond(draws[4] < 0.5, lambda: image, lambda: image[:, ::-1])


def check_pictures(
    root: str, names: np.ndarray, cache_dir: str | None = None
) -> tuple[np.ndarray, dict[int, str]]:
    """Decodes every file that is not known to be good.

    A file counts as new if its size or its time of modification changed.

    Args:
      root: the directory that names are relative to.
      names: bytes `[N]`.
      cache_dir: its folder `pictures` lists good files; None is `CACHE_DIR`.

    Returns:
      Sizes of the files in bytes, int64 `[N]`, and the problems of bad files by row.

    Raises:
      InputError: the cache cannot be written.
    """
    sizes, keys = np.zeros(len(names), np.int64), np.zeros(len(names), np.uint64)
    problems: dict[int, str] = {}
    path_of = lambda row: os.path.join(os.fsencode(root), bytes(names[row]))  # noqa: E731
    for row in range(len(names)):
        try:
            stat = paths.regular_file(path_of(row))
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
        problems |= _look_at({row: path_of(row) for row in new})
        found = [keys[row] for row in new if row not in problems]
        if found:
            with paths.file_of_cache(cache) as file:
                np.save(file, np.union1d(good, np.array(found, np.uint64)))
    return sizes, dict(sorted(problems.items()))


def problem_of(path: bytes) -> str:
    """Decodes a file to its end and returns its problem; empty if there is none."""
    from mlc_jax.data.streaming import tf

    try:
        data = pillow.read_file(path)
        decode(tf.constant(data))
    except pillow.BadPicture as error:
        return str(error)
    except (tf.errors.OpError, ValueError):
        if not data:
            return "is empty"
        return "is no JPEG, PNG, WebP or BMP that can be decoded to its end"
    if _is_bmp_with_palette(data):
        return "is a BMP with a palette; PNG could hold its colours"
    return ""


def _look_at(files: dict[int, bytes]) -> dict[int, str]:
    """The problems of bad files by row."""
    rows = list(files)
    problems: dict[int, str] = {}
    num_turned = 0
    bar = tqdm(
        total=len(rows), desc="Looking at pictures", unit="", disable=not is_watched(), delay=2
    )
    with bar, ThreadPoolExecutor(os.cpu_count()) as threads:
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            found = threads.map(lambda row: problem_of(files[row]), chunk)
            of_chunk = {row: x for row, x in zip(chunk, found, strict=True) if x}
            good = [row for row in chunk if row not in of_chunk]
            num_turned += sum(threads.map(lambda row: _is_turned(files[row]), good))
            problems |= of_chunk
            bar.update(len(chunk))
    if num_turned:
        logging.warning(
            "Pictures with an EXIF orientation, which is not applied to pixels that are trained "
            "on: %d. mlc_jax.files.pack applies it.", num_turned,
        )  # fmt: skip
    return problems


def _is_turned(path: bytes) -> bool:
    return pillow.orientation(pillow.read_file(path)) != 1


def _is_bmp_with_palette(data: bytes) -> bool:
    """Whether a BMP has a palette of colours: TensorFlow would take its entries for grey levels."""
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
    except (OSError, ValueError, EOFError):  # Missing or damaged: it is made again.
        return np.zeros(0, np.uint64)
    return good if good.dtype == np.uint64 else np.zeros(0, np.uint64)
