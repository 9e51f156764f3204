"""Picture files: what a model sees of them, which are bad, folders and tables of one's own."""

import csv
import io
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import mlc_jax as mlc
from configs import image_folder as image_folder_config
from mlc_jax.benchmarks import datasets
from mlc_jax.commands import train
from mlc_jax.config import validate
from mlc_jax.data.loader import Pipeline
from mlc_jax.data.show import show
from mlc_jax.data.source import UNKNOWN, read_rows
from mlc_jax.errors import InputError
from mlc_jax.files import image_folder, pictures
from mlc_jax.files.pictures import Files, Geometry, Pictures

SMALL = Geometry(image_size=16, resize_size=20)


def _photo(width, height, seed=0):
    """A smooth picture with some detail."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(coarse).resize((width, height), Image.BICUBIC)).astype(int)
    return np.clip(image + rng.integers(-9, 10, image.shape), 0, 255).astype(np.uint8)


def _encoded(image, kind="PNG", mode="RGB", **options):
    stream = io.BytesIO()
    Image.fromarray(image).convert(mode).save(stream, kind, **options)
    return stream.getvalue()


def _save(path, seed=0, kind=None, width=24, height=20, mode="RGB"):
    kind = kind or {".jpg": "JPEG", ".webp": "WEBP"}.get(path.suffix, path.suffix[1:].upper())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(_encoded(_photo(width, height, seed), kind, mode))


class _Memory:
    """Encoded pictures in memory, read as a `Store` is."""

    def __init__(self, *encoded):
        self._encoded = encoded

    def __len__(self):
        return len(self._encoded)

    def fingerprint(self):
        return str(hash(self._encoded))

    def __getitem__(self, row):
        return self._encoded[row]

    def read(self, row):
        return tf.gather(tf.constant(self._encoded), row)


def _seen(image, geometry, draws=None):
    source = Pictures(_Memory(_encoded(image)), geometry)
    draws = None if draws is None else tf.constant(draws, tf.float32)
    return source.read(tf.constant(0, tf.int64), draws).numpy()


# --- What is seen.


@pytest.mark.parametrize(
    ("width", "height"), [(800, 600), (333, 500), (256, 256), (60, 64), (30, 700), (701, 24)]
)
def test_the_middle_is_that_of_pil(width, height):
    image = _photo(width, height)
    short = min(width, height)
    resized = Image.fromarray(image).resize(
        (256 * width // short, 256 * height // short), Image.BILINEAR
    )
    left, top = (round((side - 224) / 2) for side in resized.size)
    want = np.asarray(resized.crop((left, top, left + 224, top + 224))).astype(int)
    got = _seen(image, Geometry())
    assert got.shape == (224, 224, 3) and got.dtype == np.uint8
    difference = np.abs(got - want)
    assert difference.mean() < 0.3 and difference.max() <= 2


def test_a_random_crop_is_where_its_draws_say():
    """On a slope, a value says where a pixel was."""
    rows, columns = np.mgrid[:200, :240]
    image = np.stack([rows, columns, 0 * rows], axis=-1).astype(np.uint8)
    plain = Geometry(image_size=100, resize_size=200, crop="plain")
    for draws, top, left in (((0, 0), 0, 0), ((0.999, 0.999), 100, 140), ((0.5, 0.25), 50, 35)):
        got = _seen(image, plain, [0, 0, *draws, 0])
        np.testing.assert_array_equal(got, image[top : top + 100, left : left + 100])
        mirrored = _seen(image, plain, [0, 0, *draws, 0.5])
        np.testing.assert_array_equal(mirrored, got[:, ::-1])
    resized = Geometry(image_size=50)
    # All of the area, as wide as high: cut to the picture's height.
    got = _seen(image, resized, [1, 0.5, 0, 0, 0]).astype(int)
    assert got[0, 0, 0] <= 2 and got[-1, 0, 0] >= 197 and 214 <= got[0, -1, 1] <= 219
    # 8 % of it, in the lower right corner: 62 pixels of each side.
    got = _seen(image, resized, [0, 0.5, 0.999, 0.999, 0]).astype(int)
    assert 138 <= got[0, 0, 0] <= 140 and 178 <= got[0, 0, 1] <= 180
    assert got[-1, -1].tolist() == [199, 239, 0]


@pytest.mark.parametrize("crop", pictures.CROPS)
@pytest.mark.parametrize(("width", "height"), [(1, 1), (3, 300), (640, 480)])
def test_any_draws_of_any_shape_give_a_picture(crop, width, height):
    geometry = Geometry(image_size=16, crop=crop)
    for draws in ([0.0] * 5, [0.9999999] * 5, [0, 0.9999999, 0, 0, 0.7]):
        assert _seen(_photo(width, height), geometry, draws).shape == (16, 16, 3)


@pytest.mark.parametrize(
    ("kind", "mode"),
    [
        ("JPEG", "RGB"), ("JPEG", "L"), ("JPEG", "CMYK"), ("PNG", "RGB"), ("PNG", "P"),
        ("PNG", "RGBA"), ("PNG", "L"), ("PNG", "LA"), ("WEBP", "RGB"), ("WEBP", "RGBA"),
        ("BMP", "RGB"), ("BMP", "L"),
    ],
)  # fmt: skip
def test_kinds_of_files(kind, mode):
    """By what they hold, not by name."""
    image = np.full((20, 24, 3), (200, 120, 40), np.uint8)
    grey_or_not = "L" if mode in ("L", "LA") else "RGB"
    want = np.asarray(Image.fromarray(image).convert(grey_or_not).convert("RGB"))
    source = Pictures(_Memory(_encoded(image, kind, mode)), SMALL)
    got = read_rows(source, np.array([0]))[0].astype(int)
    assert np.abs(got - want[:16, :16]).max() < (90 if mode == "P" else 6)


def test_a_reader_is_shown_the_whole_picture_in_pixels():
    data = _encoded(_photo(300, 100), "JPEG")
    (small,) = show(Pictures(_Memory(data), Geometry()), np.array([0]))
    assert small.shape == (32, 96, 3) and small.dtype == np.uint8
    whole = np.asarray(Image.open(io.BytesIO(data)).resize((96, 32), Image.BILINEAR)).astype(int)
    assert np.abs(small - whole).max() < 8


def test_fingerprint_knows_names_sizes_and_geometry():
    names, sizes = np.array([b"a.jpg", b"b.jpg"]), np.array([3, 4])
    same = Pictures(Files("here", names, sizes), SMALL).fingerprint()
    assert Pictures(Files("there", names, sizes), SMALL).fingerprint() == same
    others = [
        Pictures(Files("here", names[::-1], sizes), SMALL),
        Pictures(Files("here", names, sizes + 1), SMALL),
        Pictures(Files("here", names, sizes), Geometry(16, 20, "plain")),
    ]
    assert len({same, *(x.fingerprint() for x in others)}) == 4


# --- Which are bad.


def _bad_files(folder):
    """One of each kind, and what is said of it."""
    jpeg = _encoded(_photo(64, 64), "JPEG")
    cannot = "is no JPEG, PNG, WebP or BMP that can be decoded to its end"
    (folder / "palette.bmp").write_bytes(_encoded(_photo(64, 64), "BMP", "P"))
    whole = {
        "jpg": jpeg,
        "jpeg": _encoded(_photo(64, 64), "JPEG", progressive=True),
        "png": _encoded(_photo(64, 64)),
        "webp": _encoded(_photo(64, 64), "WEBP"),
        "bmp": _encoded(_photo(64, 64), "BMP"),
    }
    truncated = {}
    for suffix, encoded in whole.items():
        for name, size in (("half", len(encoded) // 2), ("almost", len(encoded) - 2)):
            (folder / f"{name}.{suffix}").write_bytes(encoded[:size])
            truncated[f"{name}.{suffix}"] = cannot
    (folder / "text.jpg").write_text("not a picture")
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "gone.jpg").symlink_to("nowhere.jpg")
    return truncated | {
        "palette.bmp": "is a BMP with a palette; PNG could hold its colours",
        "text.jpg": cannot,
        "empty.jpg": "is empty",
        "loop.jpg": "cannot be read (Too many levels of symbolic links)",
        "gone.jpg": "cannot be read (No such file or directory)",
    }


def test_bad_files_are_found(tmp_path):
    expected = _bad_files(tmp_path)
    _save(tmp_path / "good.jpg")
    (tmp_path / "folder.jpg").mkdir()
    expected["folder.jpg"] = "cannot be read (a directory, no regular file)"
    names = [*expected, "good.jpg"]
    found = pictures.check_pictures(
        str(tmp_path), np.array([os.fsencode(x) for x in names]), str(tmp_path / "cache")
    )
    assert {names[row]: problem for row, problem in found[1].items()} == expected
    assert found[0][-1] == (tmp_path / "good.jpg").stat().st_size


def test_a_damaged_picture_is_bad_though_a_crop_of_it_could_be_decoded(tmp_path):
    whole = _encoded(_photo(300, 300), "JPEG")
    half = whole[: len(whole) // 2]
    assert tf.image.decode_and_crop_jpeg(half, [0, 0, 60, 60]).shape == (60, 60, 3)
    (tmp_path / "half.jpg").write_bytes(half)
    assert "decoded to its end" in pictures.problem_of(os.fsencode(tmp_path / "half.jpg"))
    with pytest.raises(InputError):  # And whoever reads it all the same is told.
        read_rows(Pictures(_Memory(half), SMALL), np.array([0]))


def test_good_files_are_looked_at_once(tmp_path, monkeypatch):
    names = np.array([b"a.png", b"b.png"])
    for i, name in enumerate(names):
        _save(tmp_path / name.decode(), seed=i)

    def check():
        return pictures.check_pictures(str(tmp_path), names, str(tmp_path / "cache"))[1]

    looked, problem = [], pictures.problem_of
    monkeypatch.setattr(pictures, "problem_of", lambda path: looked.append(path) or problem(path))
    assert check() == {} and len(looked) == 2
    assert check() == {} and len(looked) == 2
    (tmp_path / "b.png").write_bytes(b"something else")
    assert [*check()] == [1] and len(looked) == 3
    assert [*check()] == [1] and len(looked) == 4  # It may be repaired meanwhile.
    for cache in (tmp_path / "cache" / "pictures").iterdir():
        cache.write_bytes(b"damaged")
    assert [*check()] == [1] and len(looked) == 6


# --- Own folders and tables.


def _folder(root, num=4, classes=("cat", "dog")):
    for j, label in enumerate(classes):
        for i in range(num):
            _save(root / label / f"{i}.png", seed=10 * j + i)
    return str(root)


def _table(path, rows, header=("path", "label", "checked_label")):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return str(path)


@pytest.fixture
def create(tmp_path):
    """(overrides without `dataset.`) -> a small config of pictures."""

    def make(**fields):
        config = image_folder_config.get_config("small")
        fields = {"image_size": 16, "cache_dir": str(tmp_path / "cache"), **fields}
        config.update_from_flattened_dict({f"dataset.{x}": y for x, y in fields.items()})
        return config

    return make


@pytest.fixture
def load(create):
    def run(**fields):
        config = create(**fields)
        validate(config)
        return datasets.load(config)

    return run


def test_folders(load, tmp_path):
    noisy = _folder(tmp_path / "noisy", 3)
    clean, test = _folder(tmp_path / "clean", 2), _folder(tmp_path / "test", 1)
    _save(tmp_path / "noisy" / "cat" / "deep" / "er.JPG", kind="JPEG")
    (tmp_path / "noisy" / "cat" / "notes.txt").write_text("no picture")
    dataset = load(noisy=noisy, clean=clean, test=test)
    assert dataset.class_names == ("cat", "dog") and not dataset.noisy.has_truth
    names = ["cat/0.png", "cat/1.png", "cat/2.png", "cat/deep/er.JPG"]
    names += ["dog/0.png", "dog/1.png", "dog/2.png"]
    assert dataset.noisy.ids.tolist() == [f"{noisy}/{x}" for x in names]
    assert dataset.noisy.given.tolist() == [0] * 4 + [1] * 3
    assert dataset.clean.truth.tolist() == [0, 0, 1, 1] and dataset.test.truth.tolist() == [0, 1]
    read = read_rows(dataset.noisy.source, np.array([4]))
    assert read.shape == (1, 16, 16, 3)
    want = _seen(_photo(24, 20, 10), Geometry(16))
    np.testing.assert_array_equal(read[0], want)
    prepared = dataset.prepare(read)
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    np.testing.assert_allclose(prepared, (read / 255 - mean) / deviation, atol=1e-5)


def test_a_folder_alone_is_a_benchmark(load, tmp_path):
    path = _folder(tmp_path / "all", 5)
    dataset = load(data=path, benchmark=True, clean_per_class=2)
    assert len(dataset.clean) == 4 and dataset.noisy.has_truth


def test_a_table(load, tmp_path):
    _folder(tmp_path / "elsewhere", 3)
    _folder(tmp_path / "all", 3)
    inside, absolute = "all/cat/0.png", str(tmp_path / "all" / "dog" / "0.png")
    rows = [
        (inside, "dog", "cat"), (absolute, "dog", ""), ("../elsewhere/cat/0.png", "cat", ""),
        ("all/cat/1.png", "cat", ""), ("all/dog/1.png", "cat", "dog"),
    ]  # fmt: skip
    (tmp_path / "tables").mkdir()
    rows[0] = ("../all/cat/0.png", *rows[0][1:])
    rows[3], rows[4] = (f"../{rows[3][0]}", *rows[3][1:]), (f"../{rows[4][0]}", *rows[4][1:])
    dataset = load(data=_table(tmp_path / "tables" / "a.csv", rows))
    assert dataset.clean.ids.tolist() == [rows[0][0], rows[4][0]]
    assert dataset.clean.truth.tolist() == [0, 1] and dataset.clean.given.tolist() == [1, 0]
    assert dataset.noisy.ids.tolist() == [rows[1][0], rows[2][0], rows[3][0]]
    assert (dataset.noisy.truth == UNKNOWN).all()
    got = read_rows(dataset.noisy.source, dataset.noisy.rows[:1])[0]
    np.testing.assert_array_equal(got, _seen(_photo(24, 20, 10), Geometry(16)))


def _with_bad(tmp_path):
    """A table whose second, third and last pictures are bad."""
    tmp_path.mkdir(exist_ok=True)
    _folder(tmp_path, 4)
    (tmp_path / "cat" / "1.png").write_bytes(b"")
    (tmp_path / "cat" / "2.png").unlink()
    (tmp_path / "dog" / "3.png").write_text("no picture")
    rows = [(f"{x}/{i}.png", x, x if i in (0, 3) else "") for x in ("cat", "dog") for i in range(4)]
    return _table(tmp_path / "all.csv", rows)


def test_bad_pictures_are_refused_by_name(load, tmp_path):
    path = _with_bad(tmp_path)
    with pytest.raises(InputError) as error:
        load(data=path)
    assert str(error.value) == (
        f"config.dataset.data: {path!r}: 'cat/1.png' is empty; 'cat/2.png' cannot be read (No such "
        "file or directory); 'dog/3.png' is no JPEG, PNG, WebP or BMP that can be decoded to its "
        "end; expected pictures that can be decoded, or config.dataset.bad_images=leave_out, which "
        "goes on without these 3"
    )


def test_bad_pictures_are_left_out_and_listed(load, create, tmp_path):
    path = _with_bad(tmp_path)
    dataset = load(data=path, bad_images="leave_out")
    assert dataset.clean.ids.tolist() == ["cat/0.png", "cat/3.png", "dog/0.png"]
    assert dataset.noisy.ids.tolist() == ["dog/1.png", "dog/2.png"]
    assert [name for name, _ in dataset.left_out] == ["cat/1.png", "cat/2.png", "dog/3.png"]
    other = load(data=path, bad_images="leave_out", image_size=24)
    assert dataset.fingerprint() != other.fingerprint()


def test_labels_are_checked_before_pictures(load, tmp_path, monkeypatch):
    path = _with_bad(tmp_path)
    text = pathlib.Path(path).read_text().replace("dog,dog", "dog,dgo", 1)
    pathlib.Path(path).write_text(text)
    monkeypatch.setattr(image_folder, "check_pictures", None)
    with pytest.raises(InputError, match="alone has label 'dgo', which no row"):
        load(data=path)


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([("", "cat", "")], None, "line 2: path is empty, expected that of a picture"),
        (
            [("a.png", "cat", ""), ("a.png", "dog", "")],
            None,
            "line 3: id 'a.png' is that of line 2",
        ),
        ([("a.png", "cat")], ("file", "label"), "has no column 'path', only 'file', 'label'"),
        (
            [("a.png", "cat", "cat"), ("b.png", "dog", "dog")],
            None,
            "all rows are checked, so there is no label to correct; expected rows that "
            "nobody checked, too, or an ordinary classifier on the checked labels",
        ),
        ([("a.png", "cat", "cat")], None, "has one class, 'cat', in all of its labels; expected"),
    ],
)
def test_bad_tables(load, tmp_path, rows, header, message):
    _save(tmp_path / "a.png")
    path = _table(tmp_path / "all.csv", rows, *([header] if header else []))
    with pytest.raises(InputError) as error:
        load(data=path)
    assert message in str(error.value)


def test_bad_folders(load, tmp_path):
    (tmp_path / "none" / "cat").mkdir(parents=True)
    with pytest.raises(InputError, match="has no picture; expected a sub-directory for each class"):
        load(data=str(tmp_path / "none"))
    path = _folder(tmp_path / "loop", 1)
    (tmp_path / "loop" / "cat" / "again").symlink_to(tmp_path / "loop", target_is_directory=True)
    with pytest.raises(InputError, match="cat/again' is a link to a directory that it lies in"):
        load(data=path)
    with pytest.raises(InputError, match=r"no file or directory .*; expected a directory"):
        load(data=str(tmp_path / "nowhere"))


def test_pictures_to_predict(tmp_path):
    options = image_folder.Options(SMALL, "leave_out", str(tmp_path / "cache"))
    path = _folder(tmp_path / "new", 2)
    (tmp_path / "new" / "dog" / "1.png").write_bytes(b"")
    source = image_folder.unlabelled(path, options, "--input")
    assert source.ids(np.arange(3)).tolist() == ["cat/0.png", "cat/1.png", "dog/0.png"]
    table = _table(tmp_path / "new.csv", [["new/cat/1.png"]], ["path"])
    of_table = image_folder.unlabelled(table, options, "--input")
    rows = [read_rows(x, np.array([row])) for x, row in ((source, 1), (of_table, 0))]
    np.testing.assert_array_equal(*rows)
    with pytest.raises(InputError, match=r"^--input: .* has no picture"):
        (tmp_path / "empty").mkdir()
        image_folder.unlabelled(str(tmp_path / "empty"), options, "--input")


# --- In training.


def _pipeline(dataset, **changes):
    settings = {"noisy_batch_size": 4, "clean_batch_size": 4, "split_clean": True}
    settings |= {"num_inner_steps": 1, "augment": True, "seed": 3} | changes
    return Pipeline(dataset.noisy, dataset.clean, **settings)


@pytest.mark.slow
def test_batches_are_a_function_of_seed_and_step(load, tmp_path):
    path = _folder(tmp_path / "all", 10)
    pipeline = _pipeline(load(data=path, benchmark=True, clean_per_class=2))

    def take(number, start=0, **share):
        batches = pipeline.batches(start, **share)
        taken = [next(batches) for _ in range(number)]
        batches.close()
        return [batch.noisy.inputs[0, 0] for batch in taken]

    whole = take(4)
    assert whole[0].dtype == np.uint8  # So do they go to the device.
    np.testing.assert_array_equal(take(1, 3), whole[3:])
    shares = [take(2, process_index=i, process_count=2) for i in range(2)]
    for batch, *parts in zip(whole[:2], *shares, strict=True):
        np.testing.assert_array_equal(batch, np.concatenate(parts))
    assert not np.array_equal(whole[1], whole[0])
    rows = pipeline.batches(0)
    batch = next(rows)
    rows.close()
    stored = read_rows(pipeline.noisy.source, pipeline.noisy.rows[batch.noisy.rows[0, 0]])
    assert not np.array_equal(stored, whole[0])  # Changed at random.


def test_a_run_from_end_to_end(create, tmp_path, run_command, standard_promotion):
    """What it left out is listed, its page shows pictures, and it predicts a folder."""
    config = create(data=_with_bad(tmp_path / "all"), bad_images="leave_out")
    for label in ("cat", "dog"):
        for i in range(4, 16):
            _save(tmp_path / "all" / label / f"{i}.png", seed=i)
    with open(config.dataset.data, "a") as file:
        for label in ("cat", "dog"):
            for i in range(4, 16):
                file.write(f"{label}/{i}.png,{label},{label if i < 12 else ''}\n")
    fields = {"model.name": "mlp", "method": "mlc", "num_steps": 3, "lcn.hidden_size": 8}
    fields |= {"noisy_batch_size": 8, "clean_batch_size": 16, "lcn.embedding_size": 8}
    config.update_from_flattened_dict(fields)
    run = tmp_path / "run"
    train.train_and_evaluate(config, str(run), show_progress=False)
    rows = list(csv.reader((run / "left_out.csv").open()))
    assert rows[0] == ["id", "problem"] and [row[0] for row in rows[1:]] == [
        "cat/1.png", "cat/2.png", "dog/3.png",
    ]  # fmt: skip
    labels = list(csv.DictReader((run / "corrected.csv").open()))
    theirs = list(csv.DictReader(pathlib.Path(config.dataset.data).read_text().splitlines()))
    assert [row["path"] for row in labels] == [row["path"] for row in theirs]
    bad = [row for row in labels if row["path"] in ("cat/1.png", "cat/2.png", "dog/3.png")]
    assert {row["corrected_label"] for row in bad} == {""} != {x["corrected_label"] for x in labels}
    changed = any(row["is_label_issue"] == "True" for row in labels if not row["checked_label"])
    page = (run / "report.html").read_text()
    assert page.count("data:image/") > changed

    for path in (tmp_path / "all" / "cat" / "1.png", tmp_path / "all" / "dog" / "3.png"):
        path.unlink()
    code, _, err = run_command(
        "predict", str(run), str(tmp_path / "all"), f"--output={tmp_path / 'out.csv'}",
        "--noprogress",
    )  # fmt: skip
    assert code == 0, err
    predicted = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert len(predicted) == 29 and predicted[0]["id"] == "cat/0.png"
    loaded = mlc.load(run)
    paths = [str(tmp_path / "all" / "cat" / "0.png"), str(tmp_path / "all" / "dog" / "2.png")]
    probs = loaded.predict_proba(paths)
    want = [float(row["p_cat"]) for row in predicted if row["id"] in ("cat/0.png", "dog/2.png")]
    np.testing.assert_allclose(probs[:, 0], want, atol=1e-5)


@pytest.mark.slow  # It compiles and times steps of a ResNet.
def test_a_network_that_takes_too_long_is_not_begun(
    create, tmp_path, caplog, monkeypatch, standard_promotion
):
    """What its first step's compilation would hide for minutes: how many hours follow."""
    path = _folder(tmp_path / "all", 20)
    config = create(data=path, benchmark=True, clean_per_class=8)
    fields = {"model.resnet50.width": 1, "noisy_batch_size": 8, "clean_batch_size": 16}
    config.update_from_flattened_dict(fields | {"num_epochs": 3})
    monkeypatch.setattr(train, "train_runs", None)
    config.max_hours = 1e-9
    message = r"config.max_hours: got 1e-09, expected .* or more: 9 steps of 24 pictures take less"
    with caplog.at_level("INFO", "absl"), pytest.raises(InputError, match=message):
        train.train_and_evaluate(config, str(tmp_path / "run"), show_progress=False)
    assert not (tmp_path / "run").exists() and "s a picture" in caplog.text
    config.max_hours = 1.0
    with pytest.raises(TypeError, match="not callable"):  # It would be trained.
        train.train_and_evaluate(config, str(tmp_path / "run"), show_progress=False)
