"""Pictures by features of a frozen encoder: what they are, where they are kept, what is trained."""

import csv
import dataclasses
import pathlib
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import mlc_jax as mlc
from mlc_jax.benchmarks import datasets
from mlc_jax.encoders import image_models, picture_features, pictures, readers
from mlc_jax.errors import InputError
from mlc_jax.files import image_folder
from mlc_jax.files.label_columns import Said
from mlc_jax.files.packed import pack
from mlc_jax.files.values.checks import read_checks
from mlc_jax.presets import image_folder as preset

NAMES = ("dark", "light")
SHORT = ("--cross_fit.num_folds=2", "--cross_fit.num_rounds=1", "--cross_fit.steps_per_round=30",
         "--noprogress")  # fmt: skip


def _save(path, level=128, seed=0):
    """A picture of noise around a grey level."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng([level, seed]).normal(level, 20, (24, 24, 3))
    Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(path)


def _pictures(folder, number, classes=1):
    """Paths of new pictures, in folders by class."""
    places = []
    for i in range(number):
        places.append(folder / NAMES[i % classes] / f"{i}.png")
        _save(places[-1], 60 + 120 * (i % classes), i)
    return places


def _means(images):
    """An encoder: mean and deviation of each colour."""
    arrays = [np.asarray(image, np.float32) / 255 for image in images]
    return np.stack([np.concatenate([x.mean((0, 1)), x.std((0, 1))]) for x in arrays])


class Counted:
    """The same with a name, so that its features are cached; counts what it was asked."""

    def __init__(self, name="means"):
        self.fingerprint, self.seen = name, 0

    def __call__(self, images):
        self.seen += len(images)
        return _means(images)


@pytest.fixture(autouse=True)
def _no_shared_model():
    yield
    pictures._load.cache_clear()


def _read(encoder, places, cache, **options):
    return mlc.PictureReader(encoder, cache_dir=str(cache), **options)([str(x) for x in places])


# --- What the features are.


def test_features_are_those_of_the_model_and_its_processor(tiny_vit, tmp_path):
    import torch
    from transformers import AutoImageProcessor, AutoModel

    places = _pictures(tmp_path, 5)
    processor = AutoImageProcessor.from_pretrained(tiny_vit, backend="pil")
    inputs = processor([Image.open(x).convert("RGB") for x in places], return_tensors="pt")
    with torch.no_grad():
        said = AutoModel.from_pretrained(tiny_vit).eval()(**inputs)
    for feature, want in (
        (None, said.pooler_output), ("pooler", said.pooler_output),
        ("mean", said.last_hidden_state.mean(1)), ("cls", said.last_hidden_state[:, 0]),
    ):  # fmt: skip
        got = _read(str(tiny_vit), places, tmp_path / "cache", feature=feature)
        np.testing.assert_allclose(got.inputs, want.numpy(), atol=1e-5)
        assert got.ids(np.arange(2)).tolist() == [str(x) for x in places[:2]]
    with pytest.raises(InputError, match="encoder_feature: got 'image_features', expected pooler"):
        _read(str(tiny_vit), places, tmp_path / "cache", feature="image_features")


def _clip(directory):
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    of_both = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    of_both |= {"intermediate_size": 16}
    vision = of_both | {"image_size": 16, "patch_size": 8}
    text = of_both | {"vocab_size": 20, "max_position_embeddings": 8}
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=12)
    CLIPModel(config).save_pretrained(directory)
    sizes = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    CLIPImageProcessorPil(**sizes).save_pretrained(directory)
    return 12


def _resnet(directory):
    from transformers import ConvNextImageProcessorPil, ResNetConfig, ResNetModel

    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    ResNetModel(config).save_pretrained(directory)
    ConvNextImageProcessorPil(size={"shortest_edge": 32}).save_pretrained(directory)
    return 16


def _convnext(directory):
    from transformers import ConvNextConfig, ConvNextImageProcessorPil, ConvNextModel

    config = ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2)
    ConvNextModel(config).save_pretrained(directory)
    ConvNextImageProcessorPil(size={"shortest_edge": 32}).save_pretrained(directory)
    return 16


def _dinov2(directory):
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = Dinov2Config(**shape, image_size=28, patch_size=14, mlp_ratio=2)
    Dinov2Model(config).save_pretrained(directory)
    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    BitImageProcessorPil(**sizes).save_pretrained(directory)
    return 16


@pytest.mark.parametrize("create", [_clip, _resnet, _convnext, _dinov2])
def test_models_of_other_kinds(create, tmp_path):
    """CLIP's features are projected, ResNet's have two axes more."""
    pytest.importorskip("torch", reason="the extra `pictures`")
    size = create(tmp_path / "model")
    places = _pictures(tmp_path, 3)
    source = _read(str(tmp_path / "model"), places, tmp_path / "cache")
    assert source.inputs.shape == (3, size) and source.inputs.dtype == np.float32
    assert np.ptp(source.inputs, axis=0).max() > 0
    mean = _read(str(tmp_path / "model"), places, tmp_path / "cache", feature="mean")
    assert mean.inputs.shape == (3, 16) and len(np.unique(mean.inputs)) > 16


@pytest.mark.slow  # It compiles a ResNet-50.
def test_a_resnet_50_needs_no_pytorch(tmp_path, monkeypatch):
    """A small one in its place, by JAX: the mean of its last layer of a picture's middle."""
    import functools

    import jax
    import safetensors.numpy
    from flax import traverse_util

    from mlc_jax import models

    small = functools.partial(models.ResNet50, depth=26, width=2)
    monkeypatch.setattr(models, "ResNet50", small)
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.setattr(image_models, "_RESNET50_SIZE", 32)
    model = small(1)
    trees = jax.jit(functools.partial(model.init, train=False))(
        jax.random.key(0), np.zeros((1, 32, 32, 3), np.float32)
    )
    flat = {}
    for tree in trees.values():
        flat |= traverse_util.flatten_dict(jax.tree.map(np.asarray, tree), sep="/")
    kept = {name: x for name, x in flat.items() if not name.startswith("fc/")}
    safetensors.numpy.save_file(kept, tmp_path / "resnet.safetensors")
    places = _pictures(tmp_path, 3)
    got = _read(str(tmp_path / "resnet.safetensors"), places, tmp_path / "cache").inputs
    pixels = np.stack([
        np.asarray(Image.open(x).resize((36, 36), Image.Resampling.BILINEAR))[2:34, 2:34]
        for x in places
    ])  # fmt: skip
    mean, deviation = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)
    want = model.apply(trees, ((pixels / np.float32(255)) - mean) / deviation, train=False)[1]
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-4)
    with pytest.raises(InputError, match=r"no file 'none\.pth'; expected weights of a ResNet-50"):
        _read("none.pth", places, tmp_path / "cache")


def test_a_pooler_without_weights_is_not_asked(tiny_vit, tmp_path, caplog):
    """It would be a random one, and another in each process."""
    import safetensors.numpy

    place = tmp_path / "model"
    shutil.copytree(tiny_vit, place)
    weights = safetensors.numpy.load_file(place / "model.safetensors")
    kept = {name: x for name, x in weights.items() if "pooler" not in name}
    safetensors.numpy.save_file(kept, place / "model.safetensors", {"format": "pt"})
    places = _pictures(tmp_path, 3)
    cache = tmp_path / "cache"
    got = _read(str(place), places, cache)
    want = _read(str(tiny_vit), places, cache, feature="mean")
    np.testing.assert_allclose(got.inputs, want.inputs, atol=1e-6)
    with pytest.raises(InputError, match="got 'pooler', expected mean or cls"):
        _read(str(place), places, cache, feature="pooler")
    first = next(name for name in kept if "pooler" not in name)
    del kept[first]
    safetensors.numpy.save_file(kept, place / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="has no weights for 1 parts of its model"):
        _read(str(place), places, cache)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ((), "has no model.safetensors or"),
        (("model.safetensors",), "has no preprocessor_config.json"),
        (("model.safetensors", "preprocessor_config.json"), "has no config.json"),
        (("model.safetensors", "preprocessor_config.json", "config.json"), "cannot be used"),
    ],
)
def test_directories_that_are_no_encoder(files, message, tmp_path):
    (tmp_path / "model").mkdir()
    for name in files:
        (tmp_path / "model" / name).write_text("{}")
    if len(files) == 3:
        pytest.importorskip("torch", reason="the extra `pictures`")
    with pytest.raises(InputError, match=message):
        _read(str(tmp_path / "model"), _pictures(tmp_path, 2), tmp_path / "cache")


@pytest.mark.parametrize(
    "wrong",
    [lambda x: np.zeros(len(x)), lambda x: np.zeros((1, 3)), lambda x: np.full((len(x), 2), "a")],
)
def test_what_a_function_makes_is_looked_at(wrong, tmp_path):
    with pytest.raises(InputError, match=r"encoder: made .* of 2 pictures; expected numbers"):
        _read(wrong, _pictures(tmp_path, 2), tmp_path / "cache")
    with pytest.raises(InputError, match="not finite"):
        _read(lambda x: np.full((len(x), 2), np.nan), _pictures(tmp_path, 2), tmp_path / "cache")


# --- Where they are kept.


def test_a_picture_is_what_it_holds(tmp_path):
    """Not what it is called: neither a copy nor another name is computed again."""
    places, encoder, cache = _pictures(tmp_path / "a", 4), Counted(), tmp_path / "cache"
    first = _read(encoder, [*places, places[0]], cache)
    assert encoder.seen == 4 and len(first) == 5
    np.testing.assert_array_equal(first.inputs[0], first.inputs[4])
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    moved = [tmp_path / "b" / x.relative_to(tmp_path / "a") for x in places]
    again = _read(encoder, moved[::-1], cache)
    assert encoder.seen == 4
    np.testing.assert_array_equal(again.inputs, first.inputs[:4][::-1])
    assert again.fingerprint() != first.fingerprint()
    assert _read(encoder, [*places, places[0]], cache).fingerprint() == first.fingerprint()
    _save(places[1], 10)  # Of the same size, maybe within one tick of the clock.
    assert _read(encoder, [*places, places[0]], cache).fingerprint() != first.fingerprint()
    assert encoder.seen == 5
    other = Counted("others")
    _read(other, places, cache)
    assert other.seen == 4


def test_a_function_without_a_name_is_asked_again(tmp_path):
    places, asked = _pictures(tmp_path, 3), []
    for _ in range(2):
        _read(lambda x: asked.append(len(x)) or _means(x), places, tmp_path / "cache")
    assert asked == [3, 3] and not (tmp_path / "cache" / "features").exists()


def test_what_is_in_the_cache_needs_no_pytorch(tiny_vit, tmp_path, monkeypatch):
    places, cache = _pictures(tmp_path, 3), tmp_path / "cache"
    first = _read(str(tiny_vit), places, cache)
    pictures._load.cache_clear()
    monkeypatch.setattr(image_models.Transformers, "load", None)
    again = _read(str(tiny_vit), places, cache)
    np.testing.assert_array_equal(again.inputs, first.inputs)
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "torch", None)
    _save(places[0], 10)
    with pytest.raises(InputError, match=r"needs PyTorch, .*pip install 'mlc_jax\[pictures\]'"):
        _read(str(tiny_vit), places, cache)


def test_what_was_stopped_goes_on(tmp_path, monkeypatch):
    """All shards that were written stay; one that is damaged is made again."""
    monkeypatch.setattr(picture_features, "SHARD", 8)
    places, cache, encoder = _pictures(tmp_path, 30), tmp_path / "cache", Counted()

    class Stopped(Counted):
        def __call__(self, images):
            if self.seen >= 16:
                raise KeyboardInterrupt
            return super().__call__(images)

    with pytest.raises(KeyboardInterrupt):
        _read(Stopped(), places, cache)
    whole = _read(encoder, places, cache)
    assert encoder.seen == 14
    want = _means([Image.open(x) for x in places])
    np.testing.assert_allclose(whole.inputs, want, atol=1e-6)
    shards = sorted((cache / "features").rglob("*.npz"))
    assert len(shards) == 4
    shards[0].write_bytes(shards[0].read_bytes()[:-50])
    np.testing.assert_array_equal(_read(encoder, places, cache).inputs, whole.inputs)
    assert 14 < encoder.seen <= 22


def test_the_cache_may_be_in_a_bucket(place, tmp_path):
    places, encoder = _pictures(tmp_path, 3), Counted()
    first = mlc.PictureReader(encoder, cache_dir=place)([str(x) for x in places])
    again = mlc.PictureReader(encoder, cache_dir=place)([str(x) for x in places[::-1]])
    assert encoder.seen == 3
    np.testing.assert_array_equal(again.inputs, first.inputs[::-1])


def test_bad_pictures_are_refused_or_left_out(tmp_path):
    places, cache = _pictures(tmp_path, 4), tmp_path / "cache"
    places[1].write_bytes(b"no picture")
    places[2].unlink()
    with pytest.raises(InputError, match=r"0.png|1.png' is no JPEG.*2.png' cannot be read"):
        _read(Counted(), places, cache)
    left = _read(Counted(), places, cache, bad="leave_out")
    assert left.ids(np.arange(2)).tolist() == [str(places[0]), str(places[3])]
    shown = left.show(np.array([1]))[0]
    assert shown.shape == (24, 24, 3)
    places[3].unlink()
    assert (left.show(np.array([1]))[0] == 128).all()


def test_packed_pictures_have_features_too(tmp_path):
    _pictures(tmp_path / "all", 6, 2)
    pack(str(tmp_path / "all"), str(tmp_path / "packed"), size=64, quality=95, per_shard=4)
    encoder = mlc.PictureReader(_means, cache_dir=str(tmp_path / "cache"))
    files, packed = (encoder(str(tmp_path / x)) for x in ("all", "packed"))
    assert files.ids(np.arange(6)).tolist() == packed.ids(np.arange(6)).tolist()
    np.testing.assert_allclose(files.inputs[:, :3], packed.inputs[:, :3], atol=0.02)
    options = dataclasses.replace(encoder, bad="leave_out").options
    names = np.array([b"dark/0.png", b"dark/none.png", b"light/1.png"])
    listed = image_folder.Listed("packed", str(tmp_path / "packed"), names)
    some = image_folder.looked_at(listed, options, "x")
    np.testing.assert_array_equal(some.inputs, packed.inputs[[0, 3]])


# --- What is trained.


def _table(path, number=60, checked=30):
    """Every fourth given label is wrong; returns the true ones."""
    places = _pictures(path.parent / "photos", number, 2)
    truth = [NAMES[i % 2] for i in range(number)]
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("photo", "label", "checked_label"))
        for i, (place, label) in enumerate(zip(places, truth, strict=True)):
            given = NAMES[(i + 1) % 2] if i % 8 < 2 else label
            table.writerow((place.relative_to(path.parent), given, label if i < checked else ""))
    return places, truth


def _rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# It trains: from a table of paths to a report and to predictions, by the command.
def test_from_a_table_to_predictions(
    run_command, tiny_vit, tmp_path, monkeypatch, standard_promotion
):
    monkeypatch.chdir(tmp_path)
    _, truth = _table(tmp_path / "all.csv")
    settings = (f"--encoder={tiny_vit}", f"--dataset.cache_dir={tmp_path / 'cache'}", *SHORT)
    code, out, err = run_command("correct", "all.csv", "--image=photo", *settings)
    assert code == 0, err
    assert "Verdict: " in out
    rows = _rows("all.mlc/corrected.csv")
    assert np.mean([row["corrected_label"] == x for row, x in zip(rows, truth, strict=True)]) > 0.9
    page = pathlib.Path("all.mlc/report.html").read_text()
    assert page.count('src="data:image/') > 4
    kept = {path.name for path in pathlib.Path("all.mlc/encoder").iterdir()}
    assert kept == {"config.json", "preprocessor_config.json", "model.safetensors"}

    # The workdir has all that it takes, and the features are the same.
    result = mlc.load("all.mlc")
    assert pathlib.Path(result.read.encoder) == tmp_path / "all.mlc" / "encoder"
    trained_on = mlc.PictureReader(str(tiny_vit), cache_dir=str(tmp_path / "cache"))
    anew = dataclasses.replace(result.read, cache_dir=str(tmp_path / "elsewhere"))
    np.testing.assert_array_equal(anew("photos").inputs, trained_on("photos").inputs)
    for new in ("photos", "new.csv"):
        with open("new.csv", "w") as file:
            file.write("photo\n" + "\n".join(f"photos/{NAMES[i % 2]}/{i}.png" for i in range(60)))
        code, out, err = run_command("predict", "all.mlc", new, "--noprogress")
        assert (code, out.split()[0]) == (0, "60"), err
    by_folder = {row["id"]: row for row in _rows("all.mlc/predictions/photos.csv")}
    by_table = {
        row["id"].removeprefix("photos/"): row for row in _rows("all.mlc/predictions/new.csv")
    }
    assert {x: y["label"] for x, y in by_folder.items()} == {
        x: y["label"] for x, y in by_table.items()
    }


def test_paths_go_into_the_estimator(tmp_path, standard_promotion):
    """With a function of one's own; two parts of a program may share its features."""
    places, truth = _table(tmp_path / "all.csv")
    given = [row["label"] for row in _rows(tmp_path / "all.csv")]
    checked = [x if i < 30 else None for i, x in enumerate(truth)]
    corrector = mlc.LabelCorrector(encoder=_means, num_epochs=1)
    corrector.fit(places, given, checked)
    assert np.mean(corrector.labels_ == np.array(truth)) > 0.9
    assert corrector.predict(places[:4]).tolist() == truth[:4]
    with pytest.raises(InputError, match="encoder: got None, expected that of the pictures"):
        mlc.LabelCorrector().fit(places, given, checked)
    frame = {"photo": [str(x) for x in places], "label": given}
    frame |= {"checked_label": [x or "" for x in checked]}
    result = mlc.correct_labels(
        frame, image="photo", encoder=_means, num_epochs=1, workdir=tmp_path / "run", progress=False
    )
    np.testing.assert_array_equal(
        result.rows.corrected_label, corrector.result_.rows.corrected_label
    )
    with pytest.raises(
        InputError, match="reader: got None, expected the pictures' function _means"
    ):
        mlc.load(tmp_path / "run")
    loaded = mlc.load(tmp_path / "run", reader=mlc.PictureReader(_means))
    np.testing.assert_allclose(
        loaded.predict_proba([str(x) for x in places[:3]]),
        result.predict_proba(places[:3]),
        rtol=1e-5,
    )


@pytest.mark.slow  # The estimator's paths go the same way.
def test_fit_takes_paths_with_a_reader(tmp_path, standard_promotion):
    places, truth = _table(tmp_path / "all.csv")
    labels = np.array([NAMES.index(x) for x in truth])
    reader = mlc.PictureReader(_means)
    method = mlc.methods.cross_fit(
        model=mlc.models.MLP(2, ()), num_folds=2, num_rounds=1, steps_per_round=30
    )
    paths = [str(x) for x in places]
    noisy, clean = mlc.Examples(paths[30:], labels[30:]), mlc.Examples(paths[:30], labels[:30])
    result = mlc.fit(method, noisy, clean, reader=reader, progress=False)
    assert np.mean(result.predict(paths) == labels) > 0.9


# --- Folders, by the command.


@pytest.fixture
def trained(monkeypatch):
    """What `correct` would train: configs."""
    configs = []

    def train_and_evaluate(config, workdir, **_):
        configs.append(config)
        return {"table": "the table"}

    monkeypatch.setattr("mlc_jax.commands.train.train_and_evaluate", train_and_evaluate)
    return configs


def _loaded(config, tmp_path):
    config.dataset.cache_dir = str(tmp_path / "cache")
    return datasets.load(config, readers.encode_of(config))


def _given(subset, dataset):
    """Of each row its given label, and the right one, if these are known."""
    names = np.array([*dataset.class_names, ""])
    return {
        str(x): (str(names[given]), str(names[truth]))
        for x, given, truth in zip(subset.ids, subset.given, subset.truth, strict=True)
    }


def test_without_an_encoder_none_is_downloaded(run_command, trained, tmp_path, monkeypatch):
    """Two are named, with the time that one of them takes which is here."""
    _pictures(tmp_path / "all", 40, 2)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(image_models, "is_at_hand", lambda name: False)
    monkeypatch.setattr(image_models, "_downloaded", None)
    code, out, err = run_command("correct", "all")
    assert code == 2 and not trained and not out
    (line,) = (x for x in err.splitlines() if x.startswith("error: "))
    assert line.startswith("error: --encoder: got None, expected a pretrained image model, such as")
    assert "=facebook/dinov2-small" in line and "=microsoft/resnet-18" in line
    assert "takes" not in line

    pytest.importorskip("torch", reason="the extra `pictures`")
    slow = Counted()
    monkeypatch.setattr(image_models, "is_at_hand", lambda name: "resnet" in name)
    monkeypatch.setattr(image_models, "open_model", lambda *_: image_models.Function(slow))
    line = run_command("correct", "all")[2]
    assert "microsoft/resnet-18 is here, and takes 1 s for these 40 pictures" in line
    assert "going by 16 of them" in line and slow.seen == 32 and not trained


def test_a_folder_begins_with_pictures_to_check(
    run_command, trained, tiny_vit, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    _pictures(tmp_path / "all", 80, 2)
    command = ("correct", "all", f"--encoder={tiny_vit}")
    code, out, _ = run_command(*command)
    assert code == 2 and not trained
    assert "To see the pictures, open all.mlc/to_check.html." in out
    rows = _rows("all.mlc/to_check.csv")
    assert len(rows) == 40
    assert list(rows[0]) == ["id", "given_label", "path", "why", "checked_label"]
    assert all(row["path"] == str(tmp_path / "all" / row["id"]) for row in rows)
    page = pathlib.Path("all.mlc/to_check.html").read_text()
    assert page.count("<img") == 40 and rows[0]["id"] in page
    for row in rows[:20]:
        row["checked_label"] = row["given_label"]
    with open("all.mlc/to_check.csv", "w", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    assert run_command(*command)[0] == 0
    dataset = _loaded(trained[0], tmp_path)
    assert _given(dataset.clean, dataset) == {
        row["id"]: (row["given_label"], row["given_label"]) for row in rows[:20]
    }
    assert set(dataset.drawn) == {"random"} and len(dataset.noisy) == 60


def test_checks_of_a_folder_name_pictures_below_it(
    run_command, trained, tiny_vit, tmp_path, monkeypatch
):
    """In any way that means the same file; older ids were whole paths."""
    monkeypatch.chdir(tmp_path)
    _pictures(tmp_path / "all", 20, 2)
    names = ["dark/0.png", "./dark/2.png", f"{tmp_path}/all/dark/4.png", "light/../light/1.png"]
    checks = [(name, "light") for name in names]
    with open("checks.csv", "w", newline="") as file:
        csv.writer(file).writerows([("id", "checked_label"), *checks])
    args = (f"--encoder={tiny_vit}", "--checks=checks.csv")
    assert run_command("correct", "all", *args)[0] == 0
    dataset = _loaded(trained[0], tmp_path)
    right = {"dark/0.png": "dark", "dark/2.png": "dark", "dark/4.png": "dark"}
    right |= {"light/1.png": "light"}
    assert _given(dataset.clean, dataset) == {x: (y, "light") for x, y in right.items()}


def test_a_folder_of_checked_pictures_beside_it(
    run_command, trained, tiny_vit, tmp_path, monkeypatch
):
    """What is in both, by what it holds, is one row, whose two labels are known."""
    monkeypatch.chdir(tmp_path)
    _pictures(tmp_path / "all", 20, 2)
    right = tmp_path / "right"
    for source, target in (("light/1.png", "light/1.png"), ("light/3.png", "dark/copy.png")):
        (right / target).parent.mkdir(parents=True)
        shutil.copy(tmp_path / "all" / source, right / target)
    for i in range(5):
        _save(right / "dark" / f"new{i}.png", 20, 100 + i)
    args = (f"--encoder={tiny_vit}", "--clean=right")
    code, _, err = run_command("correct", "all", *args)
    assert code == 0, err
    dataset = _loaded(trained[0], tmp_path)
    new = {f"{right}/dark/new{i}.png": ("", "dark") for i in range(5)}
    both = {"light/1.png": ("light", "light"), "light/3.png": ("light", "dark")}
    assert _given(dataset.clean, dataset) == both | new
    assert len(dataset.noisy) == 18
    shown = dataset.clean.source.show(dataset.clean.rows)
    assert len(shown) == 7 and all(x.shape == (24, 24, 3) for x in shown)
    shutil.copy(right / "dark" / "copy.png", right / "light" / "3.png")
    code, _, err = run_command("correct", "all", *args)
    assert code == 2 and "is checked as 'light', and as 'dark'" in err


def test_a_folder_of_right_labels_is_a_benchmark(tiny_vit, tmp_path):
    _pictures(tmp_path / "all", 40, 2)
    config = preset.get_config()
    fields = {"data": str(tmp_path / "all"), "benchmark": True, "encoder": str(tiny_vit)}
    fields |= {"clean_per_class": 5}
    config.update_from_flattened_dict({f"dataset.{x}": y for x, y in fields.items()})
    config.noise.type = "uniform"
    dataset = _loaded(config, tmp_path)
    assert len(dataset.clean) == 10 and 0 < dataset.noise_rate < 1
    prepared = dataset.prepare(dataset.noisy.source.inputs[dataset.noisy.rows])
    np.testing.assert_allclose(prepared.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(prepared.std(axis=0), 1, atol=1e-2)


def test_a_picture_has_one_name_in_a_table(tmp_path):
    _pictures(tmp_path / "all", 4, 2)
    (tmp_path / "all.csv").write_text(
        "path,label\nall/dark/0.png,dark\n./all/light/1.png,light\nall/dark/2.png,light\n"
    )
    file = image_folder.read_labels(str(tmp_path / "all.csv"), Said())
    (tmp_path / "checks.csv").write_text("id,checked_label\nall/light/1.png,dark\n")
    checks = read_checks([str(tmp_path / "checks.csv")], file)
    assert checks.labels.numbers.tolist() == [-1, file.labels.names.index("dark"), -1]
    with (tmp_path / "all.csv").open("a") as table:
        table.write("all/./light/1.png,dark\n")
    with pytest.raises(InputError, match=r"line 5: id 'all/\./light/1\.png' is that of line 3"):
        image_folder.read_labels(str(tmp_path / "all.csv"), Said())


def test_checked_pictures_are_for_pictures(run_command, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.csv").write_text("a,label\n1,x\n2,y\n")
    code, _, err = run_command("correct", "x.csv", "--clean=right")
    assert code == 2 and "--clean: got 'right', expected none with 'x.csv'" in err and not trained


# --- The whole way.

_PROGRAM = """
import sys
import time
from mlc_jax import __main__
from mlc_jax.encoders import picture_features
picture_features.SHARD = 128
sys.exit(__main__.main(sys.argv[1:]))
"""


def _digits(folder, checks):
    """scikit-learn's 1,797 digits as PNG files below folders of doubtful labels, 3 in 10 wrong.

    Every tenth is checked. Returns the true labels by path below the folder.
    """
    digits = load_digits()
    rng = np.random.default_rng(0)
    wrong = rng.random(len(digits.target)) < 0.3
    given = np.where(wrong, (digits.target + rng.integers(1, 10, len(wrong))) % 10, digits.target)
    truth = {}
    for i, (pixels, label) in enumerate(zip(digits.images, given, strict=True)):
        place = folder / f"digit{label}" / f"{i}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray((pixels * (255 / 16)).astype(np.uint8))
        image.resize((32, 32), Image.Resampling.BILINEAR).save(place)
        truth[str(place.relative_to(folder))] = f"digit{digits.target[i]}"
    with checks.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "checked_label"), *[*truth.items()][::10]])
    return truth


# A process of its own, killed while it encodes, and the same command again: that no more than a
# shard is lost, and that a folder of real pictures comes to a report and to predictions.
@pytest.mark.slow
def test_from_a_folder_to_predictions_though_it_was_killed(tiny_vit, tmp_path):
    truth = _digits(tmp_path / "digits", tmp_path / "checks.csv")
    cache = tmp_path / "cache"
    command = [
        sys.executable, "-c", _PROGRAM, "correct", "digits", "--checks=checks.csv",
        f"--encoder={tiny_vit}", f"--dataset.cache_dir={cache}", "--noprogress",
        "--dataset.drawn=random", SHORT[0], "--cross_fit.num_rounds=3",
    ]  # fmt: skip
    first = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list(cache.rglob("*.npz"))) < 3:
        assert first.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    first.send_signal(signal.SIGKILL)
    first.wait()
    written = sum(len(np.load(x)["digests"]) for x in cache.rglob("*.npz"))
    assert 3 * 128 <= written < len(truth)

    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert f"; {written} were in the cache." in again.stderr
    rows = _rows(tmp_path / "digits.mlc" / "corrected.csv")
    assert {row["id"] for row in rows} == {*truth}
    given = np.mean([row["id"].split("/")[0] == truth[row["id"]] for row in rows])
    right = np.mean([row["corrected_label"] == truth[row["id"]] for row in rows])
    assert given < 0.72 and right > given + 0.03  # Random weights see little.
    assert (tmp_path / "digits.mlc" / "report.html").stat().st_size > 100_000

    # Where the encoder was is no matter, and neither is the cache.
    predict = [sys.executable, "-m", "mlc_jax", "predict", "digits.mlc", "digits", "--noprogress"]
    shutil.rmtree(cache)
    done = subprocess.run(predict, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    predicted = _rows(tmp_path / "digits.mlc" / "predictions" / "digits.csv")
    assert len(predicted) == len(truth)
    assert np.mean([row["label"] == truth[row["id"]] for row in predicted]) > given + 0.03
