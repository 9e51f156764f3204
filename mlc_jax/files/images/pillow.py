"""Decodes pictures by Pillow, as a person sees them, with limited memory.

Pictures are turned by their EXIF orientation, and transparent parts become white. Large pictures
are made smaller while they are decoded, because an encoder sees a few hundred pixels.
"""

import io
import os
import stat
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from PIL import Image

THUMBNAIL_SIZE = 96
SHORTER_SIDE = 1024  # The fewest pixels of a large picture's shorter side after scaling.
MAX_PIXELS = 100_000_000  # The most pixels of a picture that must be decoded whole: 400 MB.

TURNED = "are turned by their EXIF orientation"
TRANSPARENT = "are partly transparent, and are put on white"
DEEP = "have 16-bit grey levels, scaled from the darkest to the brightest of each picture"

_KINDS = ("JPEG", "PNG", "WEBP", "BMP", "GIF")
_LARGE = 20_000_000  # Pictures with more pixels are decoded one at a time.
_ORIENTATION = 0x0112  # The EXIF tag.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
_PNG_DEPTH = 24  # The byte of a PNG with the number of bits per value.
_DARK = 16  # The highest of 256 levels if only 12 bits of 16 are used.
_CANNOT = "is no JPEG, PNG, WebP or BMP that can be decoded to its end"

_one_at_a_time = threading.Lock()


class BadPicture(ValueError):
    """The problem of a picture, to follow its name: `is empty`."""


class Decoded(NamedTuple):
    """A picture.

    Attributes:
      image: mode RGB.
      notes: changes that were made, of TURNED, TRANSPARENT and DEEP.
    """

    image: Image.Image
    notes: tuple[str, ...]


def read_file(path: str | bytes) -> bytes:
    """Reads a regular file; a pipe or a device may never end.

    Raises:
      BadPicture: it cannot be read.
    """
    try:
        mode = os.stat(path).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise BadPicture("is a pipe or a device; expected a file")
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise BadPicture(f"cannot be read ({error.strerror or error})") from error


def decode(data: bytes, shorter_side: int = SHORTER_SIDE) -> Decoded:
    """Decodes a picture.

    Args:
      data: of a JPEG, PNG, WebP, BMP or GIF file.
      shorter_side: pixels. A picture with at least twice as many is made smaller, by a whole
        factor, but not below `shorter_side`.

    Raises:
      BadPicture: it cannot be decoded to its end, is an animation, or is too large.
    """
    if not data:
        raise BadPicture("is empty")
    try:
        image = _opened(data)
        if image.width * image.height <= _LARGE or _is_made_smaller(image):
            return _decoded(image, data, shorter_side)
        with _one_at_a_time:
            return _decoded(image, data, shorter_side)
    except BadPicture:
        raise
    except Exception as error:  # Pillow and its plugins raise a dozen types.
        raise BadPicture(_CANNOT) from error


def thumbnail(read: Callable[[], bytes]) -> np.ndarray:
    """A whole picture made small, uint8 `[H, W, 3]` of `THUMBNAIL_SIZE` at most.

    It is grey if it cannot be read or decoded (any more), because a report must not fail.
    """
    try:
        image = decode(read(), THUMBNAIL_SIZE).image
    except BadPicture:
        return np.full((THUMBNAIL_SIZE, THUMBNAIL_SIZE, 3), 128, np.uint8)
    image.thumbnail((THUMBNAIL_SIZE, THUMBNAIL_SIZE), Image.Resampling.BILINEAR)
    return np.asarray(image)


def orientation(data: bytes) -> int:
    """The orientation of the EXIF tag, 1 to 8; 1 (upright) if there is none that can be read."""
    try:
        return _orientation(_opened(data))
    except Exception:  # Pillow and its plugins raise a dozen types.
        return 1


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """Turns a stored picture upright; see `orientation`."""
    return image if orientation == 1 else image.transpose(_TURNS[orientation])


def log_notes(notes: Iterable[str]) -> None:
    """Logs the changes made to pictures, one line for each kind."""
    noted = list(notes)
    for note in (TURNED, TRANSPARENT, DEEP):
        if note in noted:
            logging.info("Pictures that %s: %d.", note, noted.count(note))


def _opened(data: bytes) -> Any:
    """A picture whose pixels are not decoded yet.

    `Image.open` would refuse pictures above `Image.MAX_IMAGE_PIXELS`, a bound of the whole process.
    Here the bound is `MAX_PIXELS`.
    """
    Image.init()
    for kind in _KINDS:
        factory, accept = Image.OPEN[kind]
        if accept is not None and accept(data[:16]) is True:
            return factory(io.BytesIO(data), "")
    raise BadPicture(_CANNOT)


def _decoded(image: Any, data: bytes, shorter_side: int) -> Decoded:
    width, height = image.size
    # A photo with a preview in the same file is no animation.
    if image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
        raise BadPicture(f"is an animation of {image.n_frames} pictures; expected one")
    if width * height > MAX_PIXELS and not _is_made_smaller(image):
        raise BadPicture(
            f"has {width:,} x {height:,} pixels; expected {MAX_PIXELS:,} at most: make it smaller"
        )
    if _is_made_smaller(image):
        image.draft(image.mode, (shorter_side, shorter_side))
    turn = _orientation(image)
    image.load()
    notes = []
    if data.startswith(b"\x89PNG") and data[_PNG_DEPTH] == 16:
        image, is_deep = _eight_bits(image)
        notes += [DEEP] if is_deep else []
    is_transparent = "A" in image.mode or "transparency" in image.info
    image = image.convert("RGBA" if is_transparent else "RGB")
    factor = min(image.size) // shorter_side
    if factor > 1:
        image = image.reduce(factor)
    if is_transparent and image.getextrema()[3][0] < 255:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
        notes.append(TRANSPARENT)
    image = image.convert("RGB")
    if turn != 1:
        notes.append(TURNED)
    return Decoded(turned(image, turn), tuple(notes))


def _is_made_smaller(image: Any) -> bool:
    """Whether decoding can reduce it; libjpeg decodes a progressive JPEG as a whole."""
    is_jpeg = image.format in ("JPEG", "MPO") and image.mode in ("RGB", "L")
    return is_jpeg and not image.info.get("progressive")


def _orientation(image: Any) -> int:
    try:
        found = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # A tag that cannot be read is ignored, because the pixels may be undamaged.
        return 1
    return found if found in range(1, 9) else 1


def _eight_bits(image: Any) -> tuple[Any, bool]:
    """A 16-bit PNG with 8 bits, and whether it was scaled; Pillow keeps 16 bits only of grey."""
    if image.mode.startswith("I"):
        levels = np.asarray(image).astype(np.float64)
        low, high = levels.min(), levels.max()
        scaled = np.round((levels - low) * (255 / max(high - low, 1)))
        return Image.fromarray(scaled.astype(np.uint8)), True
    extrema = image.getextrema()
    brightest = max(high for _, high in extrema[: 1 if image.mode == "LA" else 3])
    if brightest < _DARK:
        raise BadPicture(
            "has 16-bit colours, of which it uses 12 bits at most; expected 8 bits, or all 16"
        )
    return image, False
