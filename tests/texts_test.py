"""Training on texts: a frozen encoder's features, computed once, or the encoder itself."""

import csv
import json
import pathlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors.numpy

import mlc_jax as mlc
from configs import ag_news, amazon5, text, yahoo, yelp5
from mlc_jax.benchmarks.texts import LAYOUTS
from mlc_jax.commands import train
from mlc_jax.config import validate
from mlc_jax.data.source import read_rows
from mlc_jax.encoders import encoding
from mlc_jax.errors import InputError
from mlc_jax.training import sizing

LAYERS = 3  # Of the tiny BERT.
WORDS = {"good": ("good", "news"), "bad": ("bad", "text")}


@pytest.fixture
def checkpoint(tiny_bert):
    return tiny_bert


def _rows(number, seed):
    """Texts of two kinds, and the label of each."""
    rng = np.random.default_rng(seed)
    for _ in range(number):
        label = rng.choice(list(WORDS))
        yield f"{rng.choice(WORDS[label])} {rng.choice(list('abcdefg'))}", label


def _write(path, header, rows):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
    return str(path)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(noisy, clean, test): a fifth of the noisy labels are wrong."""
    directory = tmp_path_factory.mktemp("files")
    other = {"good": "bad", "bad": "good"}
    noisy = [(x, other[y] if i % 5 == 0 else y) for i, (x, y) in enumerate(_rows(160, 0))]
    parts = {"noisy": noisy, "clean": list(_rows(32, 1)), "test": list(_rows(64, 2))}
    return {
        name: _write(directory / f"{name}.csv", ["text", "label"], rows)
        for name, rows in parts.items()
    }


@pytest.fixture
def create(checkpoint, files, tmp_path):
    """(kind, overrides) -> a small config."""

    def make(kind, **overrides):
        config = text.get_config(kind)
        fields = {f"dataset.{name}": path for name, path in files.items()} | {
            "dataset.max_length": 24, "dataset.cache_dir": str(tmp_path / "cache"),
            "model.bert.checkpoint": str(checkpoint), "noisy_batch_size": 16,
            "clean_batch_size": 16, "num_epochs": 2, "lcn.hidden_size": 8,
            "lcn.embedding_size": 8, "log_every_steps": 5, "meta_optimizer.name": "amsgrad",
        }  # fmt: skip
        config.update_from_flattened_dict(fields | overrides)
        return config

    return make


@pytest.mark.slow
def test_a_frozen_encoder_is_asked_once(create, tmp_path, monkeypatch, standard_promotion):
    fields = {"model.mlp.hidden_sizes": (8,), "num_epochs": 20}
    config = create("frozen", method="mlc", **fields)
    results = train.train_and_evaluate(config, str(tmp_path / "run"), show_progress=False)
    assert results["last_test_accuracy"] > 0.9  # Of two classes, by a word each has.
    encoding._load.cache_clear()
    monkeypatch.setattr(encoding.FrozenEncoder, "_outputs", None)  # Features come from the cache.
    config.seed, config.num_epochs = 1, 1
    train.train_and_evaluate(config, str(tmp_path / "other"), show_progress=False)


@pytest.mark.slow
def test_the_page_shows_texts(create, tmp_path, monkeypatch, standard_promotion):
    """Not features; and epochs come from the sizes of the data."""
    monkeypatch.setattr(sizing, "_EPOCHS", 10)  # Not 60.
    monkeypatch.setattr(sizing, "_FEWEST_EPOCHS", 1)
    config = create("frozen", method="mlc", **{"model.mlp.hidden_sizes": (8,), "num_epochs": 0})
    train.train_and_evaluate(config, str(tmp_path / "run"), show_progress=False)
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["num_epochs"] == 29  # From the sizes of the data.
    page = (tmp_path / "run" / "report.html").read_text()
    assert '<div class="example">good ' in page or '<div class="example">bad ' in page
    with (tmp_path / "run" / "to_check.csv").open(newline="") as file:
        assert all(
            row["example"].split()[0] in "good news bad text" for row in csv.DictReader(file)
        )


@pytest.mark.parametrize("kind", ["frozen", pytest.param("finetuned", marks=pytest.mark.slow)])
def test_a_workdir_is_all_that_predictions_need(
    kind, create, checkpoint, tmp_path, run_command, standard_promotion
):
    copy = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    config = create(
        kind, method="cross_entropy", **{"model.bert.checkpoint": str(copy), "length_buckets": 1}
    )
    train.train_and_evaluate(config, str(tmp_path / "run"), show_progress=False)
    shutil.rmtree(copy)
    shutil.rmtree(tmp_path / "cache")
    loaded = mlc.load(tmp_path / "run")
    texts = [x for x, _ in _rows(5, 3)]
    probs = loaded.predict_proba(texts)
    assert probs.shape == (5, 2) and set(loaded.predict(texts)) <= set(WORDS)
    np.testing.assert_allclose(loaded.predict_proba(texts[:2]), probs[:2], atol=1e-5)
    new = _write(tmp_path / "new.csv", ["id", "text"], enumerate(texts, 7))
    code, _, err = run_command(
        "predict", str(tmp_path / "run"), str(new), f"--output={tmp_path / 'out.csv'}"
    )
    assert code == 0, err
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == ["7", "8", "9", "10", "11"]
    written = [[float(row["p_bad"]), float(row["p_good"])] for row in rows]
    np.testing.assert_allclose(written, probs, atol=1e-5)
    for bad in ("a text", []):
        with pytest.raises(InputError, match=r"^x: got"):
            loaded.predict(bad)
    has_weights = (tmp_path / "run" / encoding.FOLDER / "model.safetensors").exists()
    assert has_weights == (kind == "frozen")


def _examples(number, seed):
    texts, labels = zip(*_rows(number, seed), strict=True)
    return mlc.Examples(list(texts), list(labels))


def _method(checkpoint, frozen):
    lcn = mlc.models.LabelCorrectionNetwork(2, 8, 8)
    settings = {"lcn": lcn, "tx": mlc.sgd(0.1, momentum=0.9), "meta_tx": mlc.amsgrad(1e-3)}
    if frozen:
        return mlc.methods.mlc(model=mlc.models.MLP(2, (8,)), **settings)
    bert = mlc.models.Bert(mlc.models.load_bert_config(checkpoint), 2)
    return mlc.methods.mlc(model=bert, initial_params=str(checkpoint), **settings)


@pytest.mark.slow
@pytest.mark.parametrize("frozen", [True, False])
def test_texts_in_python(frozen, checkpoint, tmp_path):
    copy = shutil.copytree(checkpoint, tmp_path / "checkpoint")
    reader = mlc.TextReader(
        str(copy), frozen=frozen, max_length=24, cache_dir=str(tmp_path / "cache")
    )
    noisy, clean, test = _examples(64, 0), _examples(16, 1), _examples(32, 2)
    result = mlc.fit(
        _method(copy, frozen), noisy, clean, test=test, reader=reader, num_epochs=20,
        batch_size=16, seed=0 if frozen else 2, workdir=tmp_path / "run", progress=False,
    )  # fmt: skip
    # So small an encoder does not learn from every seed.
    assert result.figures["last_test_accuracy"] > 0.7
    assert set(result.labels) == set(WORDS)
    texts = np.array(test.x)  # An array of them will do, too.
    probs = result.predict_proba(texts)
    assert np.mean(result.predict(texts) == test.labels) == result.figures["last_test_accuracy"]
    # Neither the checkpoint nor the cache is needed any more.
    shutil.rmtree(copy)
    shutil.rmtree(tmp_path / "cache")
    np.testing.assert_allclose(
        mlc.load(tmp_path / "run").predict_proba(texts), probs, rtol=0, atol=1e-5
    )


def test_texts_without_a_reader(checkpoint):
    noisy, clean = _examples(64, 0), _examples(16, 1)
    with pytest.raises(InputError, match=r"^x: got 'texts', expected numbers; texts need fit\("):
        mlc.fit(_method(checkpoint, frozen=True), noisy, clean)
    with pytest.raises(InputError, match=r"^config.dataset.tokenizer: no directory '/nowhere'"):
        reader = mlc.TextReader("/nowhere")
        mlc.fit(_method(checkpoint, frozen=True), noisy, clean, reader=reader)


@pytest.mark.slow
def test_runs_that_are_trained_together_keep_no_encoder(create, tmp_path, standard_promotion):
    configs = {
        str(tmp_path / f"seed{i}"): create("frozen", seed=i, method="cross_entropy") for i in (0, 1)
    }
    train.train_together(configs, show_progress=False)
    assert not (tmp_path / "seed1" / encoding.FOLDER).exists()
    loaded = mlc.load(tmp_path / "seed1")  # From the checkpoint where it was.
    assert loaded.predict_proba(["good news"]).shape == (1, 2)


@pytest.mark.slow
def test_frozen_layers_stay_and_others_learn(create, checkpoint, tmp_path, standard_promotion):
    config = create(
        "finetuned", method="cross_entropy", length_buckets=1,
        **{"model.bert.num_frozen_layers": 2, "main_optimizer.learning_rate": 1e-2},
    )  # fmt: skip
    train.train_and_evaluate(config, str(tmp_path / "run"), show_progress=False)
    state = mlc.load(tmp_path / "run").state
    params = state.main.params["encoder"]
    weights = safetensors.numpy.load_file(checkpoint / "model.safetensors")
    before = [weights[f"encoder.layer.{i}.output.dense.weight"].T for i in range(LAYERS)]
    np.testing.assert_array_equal(params["frozen_layers"]["output"]["kernel"], before[:2])
    assert np.abs(params["layers"]["output"]["kernel"][0] - before[2]).max() > 1e-3
    paths = [jax.tree_util.keystr(x) for x, _ in jax.tree.leaves_with_path(state.main.opt_state)]
    assert paths and not any("frozen_" in path for path in paths)


def test_a_cache_of_features_that_was_cut_off_is_made_again(create, tmp_path, checkpoint):
    encode = encoding.FrozenEncoder(str(checkpoint), cache_dir=str(tmp_path))
    source = _token_source(checkpoint, tmp_path)
    want = np.array(encode(source).inputs)
    (path,) = (tmp_path / "features").iterdir()
    path.write_bytes(path.read_bytes()[:-8])
    np.testing.assert_array_equal(encode(source).inputs, want)
    assert encode(source).fingerprint() != source.fingerprint()
    np.testing.assert_array_equal(encode(source).ids(np.array([2])), source.ids(np.array([2])))


def test_features_do_not_depend_on_the_batch(tmp_path, checkpoint):
    encode = encoding.FrozenEncoder(str(checkpoint), cache_dir=str(tmp_path))
    source = _token_source(checkpoint, tmp_path)
    together = encode.encode(source)
    for row in (0, 3):
        tokens = read_rows(source, np.array([row]))
        alone = encode._encode(encode._params, tokens, 1)
        np.testing.assert_allclose(together[row], alone[0], atol=1e-5)


def _token_source(checkpoint, directory):
    texts = ["good", "bad news " * 5, "text", "a good text of news, and a bad one"]
    return encoding.create_source(
        encoding.Texts.scan(lambda: texts),
        encoding.Tokenizer.load(str(checkpoint)),
        max_length=24,
        cache_dir=str(directory),
    )


def test_a_tokenizer_of_another_vocabulary(create, checkpoint, tmp_path):
    directory = shutil.copytree(checkpoint, tmp_path / "other")
    settings = json.loads((directory / "config.json").read_text())
    weights = safetensors.numpy.load_file(directory / "model.safetensors")
    weights["embeddings.word_embeddings.weight"] = weights["embeddings.word_embeddings.weight"][:9]
    safetensors.numpy.save_file(weights, directory / "model.safetensors")
    (directory / "config.json").write_text(json.dumps(settings | {"vocab_size": 9}))
    for kind in ("frozen", "finetuned"):
        config = create(kind, **{"model.bert.checkpoint": str(directory)})
        with pytest.raises(InputError, match=r"tokenizer: got '?\d+ ids'?, expected at most 9"):
            train.train_and_evaluate(config, str(tmp_path / kind), show_progress=False)


@pytest.mark.parametrize("kind", ["frozen", "finetuned"])
@pytest.mark.parametrize("module", [ag_news, yelp5, amazon5, yahoo], ids=lambda x: x.__name__)
def test_published_tasks(module, kind):
    config = module.get_config(kind)
    assert config.dataset.name in LAYOUTS and config.dataset.clean_per_class == 100
    with pytest.raises(InputError) as error:
        validate(config)
    lines = [line.split(":")[0] for line in str(error.value).splitlines()]
    assert lines == ["config.dataset.data_dir", "config.model.bert.checkpoint"]
    config.update_from_flattened_dict(
        {"dataset.data_dir": "somewhere", "model.bert.checkpoint": "bert-base-uncased"}
    )
    validate(config)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("finetuned", {"method": "robust_mlc"}, "inner_loss.mixup: got None, expected 0 with tok"),
        ("finetuned", {"inner_loss.mixup": 0.5}, "inner_loss.mixup: got 0.5, expected 0 with tok"),
        ("frozen", {"model.name": "mlp"}, "model.name: got 'mlp', expected bert for texts"),
        ("frozen", {"dataset.tfds_name": "x"}, "tfds_name: got 'x', expected None"),
    ],
)
def test_settings_that_do_not_go_with_texts(create, kind, changes, message):
    with pytest.raises(InputError, match=message):
        validate(create(kind, **changes))
    if "method" in changes:
        validate(create(kind, **changes, **{"inner_loss.mixup": 0.0}))


@pytest.mark.parametrize(("kind", "ok"), [("finetuned", False), ("frozen", True)])
def test_instance_noise_wants_features(kind, ok):
    config = ag_news.get_config(kind)
    fields = {"dataset.data_dir": "x", "model.bert.checkpoint": "x", "noise.type": "instance"}
    config.update_from_flattened_dict(fields)
    if ok:
        validate(config)
        return
    with pytest.raises(InputError, match=r"noise\.type: got 'instance', expected another: tokens"):
        validate(config)


def test_more_frozen_layers_than_there_are(create, tmp_path):
    config = create("finetuned", **{"model.bert.num_frozen_layers": 4})
    with pytest.raises(InputError, match=r"num_frozen_layers: got 4, expected at most 3"):
        train.train_and_evaluate(config, str(tmp_path / "run"), show_progress=False)


def test_a_config_file_says_which_kinds_it_has():
    command = [sys.executable, "-m", "mlc_jax.main", "--config=configs/text.py:partly"]
    root = pathlib.Path(__file__).parents[1]
    result = subprocess.run([*command, "--workdir=x"], capture_output=True, text=True, cwd=root)
    assert result.returncode == 2
    assert result.stderr.splitlines() == [
        "error: --config: got '...:partly', expected ...:frozen or ...:finetuned"
    ]
