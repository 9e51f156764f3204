"""Pictures as a person sees them, by Pillow, within bounds of memory."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from mlc_jax.errors import InputError
from mlc_jax.files import image_folder, pictures
from mlc_jax.files.images import listing, pillow


def _image(width=48, height=32, seed=0):
    """Smooth, so that a JPEG of it is nearly the same."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def _encoded(image, kind="PNG", **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def _distance(image, other):
    assert image.size == other.size and image.mode == other.mode == "RGB"
    return np.abs(np.asarray(image).astype(int) - np.asarray(other)).max()


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_stands_as_its_camera_was_held(kind, orientation):
    """An arrow is drawn as it looks, stored as the tag says, and seen as it looks."""
    upright = _image()
    stored = {
        1: [], 2: ["FLIP_LEFT_RIGHT"], 3: ["ROTATE_180"], 4: ["FLIP_TOP_BOTTOM"],
        5: ["TRANSPOSE"], 6: ["ROTATE_90"], 7: ["TRANSVERSE"], 8: ["ROTATE_270"],
    }[orientation]  # fmt: skip
    image = upright
    for name in stored:
        image = image.transpose(Image.Transpose[name])
    exif = Image.Exif()
    exif[0x0112] = orientation
    got, notes = pillow.decode(_encoded(image, kind, exif=exif))
    assert _distance(got, upright) < 40 and (pillow.TURNED in notes) == (orientation > 1)
    assert pillow.orientation(_encoded(image, kind, exif=exif)) == orientation


def _with_alpha(mode):
    """Left half seen, right half not: black where nothing is seen."""
    image = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    image.paste((200, 10, 10, 255), (0, 0, 10, 10))
    if mode == "P":
        return image.quantize(4)
    return image.convert(mode)


@pytest.mark.parametrize(
    ("kind", "mode"), [("PNG", "RGBA"), ("PNG", "LA"), ("PNG", "P"), ("WEBP", "RGBA")]
)
def test_what_is_transparent_lies_on_white(kind, mode):
    options = {"lossless": True} if kind == "WEBP" else {}
    image, notes = pillow.decode(_encoded(_with_alpha(mode), kind, **options))
    assert image.getpixel((15, 5)) == (255, 255, 255) and notes == (pillow.TRANSPARENT,)
    assert image.getpixel((5, 5)) != (255, 255, 255)


def test_a_colour_that_counts_as_transparent_lies_on_white():
    image = Image.new("RGB", (20, 10), (0, 0, 0))
    decoded = pillow.decode(_encoded(image, transparency=(0, 0, 0)))
    assert decoded.image.getpixel((3, 3)) == (255, 255, 255)
    opaque = pillow.decode(_encoded(image.convert("RGBA")))
    assert opaque.image.getpixel((3, 3)) == (0, 0, 0) and opaque.notes == ()


def test_grey_levels_of_16_bits_are_scaled_by_their_range():
    """Of 12 bits in 16 the upper eight are all but black."""
    levels = np.linspace(100, 4095, 20 * 10).reshape(10, 20).astype(np.uint16)
    image, notes = pillow.decode(_encoded(Image.fromarray(levels)))
    want = np.round((levels - 100.0) * 255 / 3995).astype(np.uint8)
    np.testing.assert_array_equal(np.asarray(image)[..., 0], want)
    assert notes == (pillow.DEEP,)
    flat = pillow.decode(_encoded(Image.fromarray(np.full((4, 4), 7, np.uint16))))
    assert flat.image.getpixel((0, 0)) == (0, 0, 0)


def _png(width, height, depth, colour, data=b""):
    def chunk(name, content):
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


def _deep_colours(brightest):
    pixels = np.linspace(0, brightest, 8 * 8 * 3).reshape(8, 24).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    return _png(8, 8, 16, 2, zlib.compress(rows))


def test_colours_of_12_bits_in_16_are_refused():
    """Pillow gives the upper eight of them alone."""
    assert pillow.decode(_deep_colours(65535)).image.getextrema()[2][1] == 255
    with pytest.raises(pillow.BadPicture, match="16-bit colours, of which it uses 12 bits at most"):
        pillow.decode(_deep_colours(4095))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_an_animation_is_no_picture(kind):
    frames = [_image(seed=i) for i in range(3)]
    data = _encoded(frames[0], kind, save_all=True, append_images=frames[1:])
    with pytest.raises(pillow.BadPicture, match="is an animation of 3 pictures; expected one"):
        pillow.decode(data)


def test_a_photo_with_a_second_picture_in_its_file_is_a_photo():
    image = _image()
    data = _encoded(image, "MPO", save_all=True, append_images=[_image(seed=1)])
    assert _distance(pillow.decode(data).image, image) < 40


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_half_of_a_file_is_no_picture(kind):
    data = _encoded(_image(64, 64), kind)
    for part in (data[: len(data) // 2], data[:20], b"no picture at all"):
        with pytest.raises(pillow.BadPicture, match="can be decoded to its end"):
            pillow.decode(part)
    with pytest.raises(pillow.BadPicture, match="is empty"):
        pillow.decode(b"")


# --- Large ones.


def test_a_huge_picture_is_refused_before_it_takes_memory():
    """Whatever Pillow's own limit is, which is the whole process's, and warns."""
    with pytest.raises(pillow.BadPicture, match="has 20,000 x 20,000 pixels; expected 100,000,000"):
        pillow.decode(_png(20_000, 20_000, 8, 2))


def test_a_large_photo_is_made_smaller_while_it_is_decoded(monkeypatch):
    monkeypatch.setattr(pillow, "MAX_PIXELS", 100)
    monkeypatch.setattr(pillow, "_LARGE", 100)
    image = _image(640, 320)
    small, _ = pillow.decode(_encoded(image, "JPEG"), 32)
    assert min(small.size) < 64 and small.size[0] == 2 * small.size[1]
    assert _distance(small, image.resize(small.size)) < 40
    for options in ({"progressive": True}, {"mode": "CMYK"}):  # Which are kept whole.
        changed = image.convert(options.pop("mode", "RGB"))
        with pytest.raises(pillow.BadPicture, match="has 640 x 320 pixels"):
            pillow.decode(_encoded(changed, "JPEG", **options))
    monkeypatch.setattr(pillow, "MAX_PIXELS", 10**6)
    small, _ = pillow.decode(_encoded(image), 32)
    assert small.size == (64, 32)


# --- Files.


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "folder.jpg").mkdir()
    with pytest.raises(pillow.BadPicture, match="is a pipe or a device; expected a file"):
        pillow.read_file(str(tmp_path / "pipe.jpg"))
    with pytest.raises(pillow.BadPicture, match=r"cannot be read \(Is a directory\)"):
        pillow.read_file(str(tmp_path / "folder.jpg"))
    assert pictures.problem_of(os.fsencode(tmp_path / "pipe.jpg")).startswith("is a pipe")


def test_what_programs_leave_in_folders_is_no_picture(tmp_path):
    for name in ("a.png", ".b.png", "._a.png", "__MACOSX/c.png", ".git/d.png", "deep/e.PNG"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(_encoded(_image()))
    found = listing.pictures_below("x", str(tmp_path), "")
    assert sorted(found) == ["a.png", "deep/e.PNG"]
    (tmp_path / "deep" / "e.PNG").unlink()
    (tmp_path / "a.png").unlink()
    with pytest.raises(InputError, match="has no picture"):
        image_folder.listed(str(tmp_path), "x")


def test_a_report_shows_grey_where_a_picture_cannot_be_decoded():
    assert (pillow.thumbnail(lambda: b"none") == 128).all()
    small = pillow.thumbnail(lambda: _encoded(_image(480, 240)))
    assert small.shape == (48, 96, 3) and small.dtype == np.uint8


def test_pixels_that_are_trained_on_are_as_they_are_stored_but_packed_upright(tmp_path, caplog):
    """Which is said; TensorFlow reads no orientation."""
    from mlc_jax.files.packed import Packed, pack

    upright = _image()
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = upright.transpose(Image.Transpose.ROTATE_90)
    (tmp_path / "all").mkdir()
    (tmp_path / "all" / "a.jpg").write_bytes(_encoded(stored, "JPEG", exif=exif, quality=95))
    names = np.array([b"a.jpg"])
    with caplog.at_level("WARNING", "absl"):
        pictures.check_pictures(str(tmp_path / "all"), names, str(tmp_path / "cache"))
    assert "orientation, which is not applied to pixels that are trained on: 1." in caplog.text
    pack(str(tmp_path / "all"), str(tmp_path / "packed"), size=64, quality=95, per_shard=4)
    packed = pillow.decode(Packed(str(tmp_path / "packed"))[0])
    assert _distance(packed.image, upright) < 40 and packed.notes == ()
