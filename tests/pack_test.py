"""Packed pictures: the same rows as files, resumed where it was stopped."""

import json
import os

import clothing1m_replica
import numpy as np
import pytest

from configs import clothing1m as clothing1m_config
from mlc_jax.benchmarks import datasets
from mlc_jax.data.loader import Pipeline
from mlc_jax.data.reading import EvaluationReader
from mlc_jax.data.source import read_rows
from mlc_jax.errors import InputError
from mlc_jax.files import image_folder, packed
from mlc_jax.files.packed import Packed, pack
from mlc_jax.files.pictures import Geometry

SETTINGS = {"size": 72, "quality": 95, "per_shard": 50}


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    """(of files, packed, keys): one picture is bad."""
    root, output = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("packed")
    keys = clothing1m_replica.build(root, truncated=True)
    pack(str(root), str(output), **SETTINGS)
    return root, output, keys


def _load(root, tmp_path, **fields):
    config = clothing1m_config.get_config()
    fields = {"data_dir": str(root), "image_size": 63, "bad_images": "leave_out", **fields}
    fields["cache_dir"] = str(tmp_path / "cache")
    config.update_from_flattened_dict({f"dataset.{x}": y for x, y in fields.items()})
    return datasets.load(config)


def test_packed_rows_are_those_of_the_files(directories, tmp_path):
    root, output, keys = directories
    files, from_pack = _load(root, tmp_path), _load(output, tmp_path)
    assert files.left_out == from_pack.left_out
    assert [name for name, _ in files.left_out] == [keys["noisy_train"][-1]]
    for name in ("noisy", "clean", "validation", "test", "judged"):
        one, other = getattr(files, name), getattr(from_pack, name)
        assert one.ids.tolist() == other.ids.tolist()
        np.testing.assert_array_equal(one.given, other.given)
        np.testing.assert_array_equal(one.truth, other.truth)
    rows = files.test.rows[:12]
    one, other = (read_rows(x.test.source, rows).astype(int) for x in (files, from_pack))
    assert np.abs(one - other).mean() < 3  # Resized alike, and encoded once more.
    assert files.fingerprint() != from_pack.fingerprint()


def test_the_reader_gives_the_same_as_a_row_alone(directories, tmp_path):
    """In many threads, in order."""
    dataset = _load(directories[1], tmp_path)
    reader = EvaluationReader([dataset.noisy], [dataset.noisy.given], 19)
    read = np.concatenate([inputs[0] for inputs, _ in reader])[: len(dataset.noisy)]
    np.testing.assert_array_equal(read, read_rows(dataset.noisy.source, dataset.noisy.rows))
    pipeline = Pipeline(dataset.noisy, dataset.clean, 8, 8, True, 1, augment=True, seed=0)
    batches = pipeline.batches(0)
    assert next(batches).noisy.inputs.shape == (1, 1, 8, 63, 63, 3)
    batches.close()


def test_a_folder_of_classes_can_be_packed(tmp_path):
    for label in ("cat", "dog"):
        for i in range(3):
            (tmp_path / "in" / label).mkdir(parents=True, exist_ok=True)
            image = np.full((20, 30, 3), 80 * i, np.uint8)
            clothing1m_replica.Image.fromarray(image).save(tmp_path / "in" / label / f"{i}.png")
    pack(str(tmp_path / "in"), str(tmp_path / "out"), **SETTINGS)
    options = image_folder.Options(Geometry(16))
    one, other = (
        image_folder.load(str(tmp_path / x), None, None, None, options, benchmark=True)
        for x in ("in", "out")
    )
    assert one.train_labels.tolist() == other.train_labels.tolist() == [0, 0, 0, 1, 1, 1]
    rows = [read_rows(x.train, np.arange(6)).astype(int) for x in (one, other)]
    assert np.abs(rows[0] - rows[1]).max() <= 2  # Small pictures are not enlarged.


def test_packing_goes_on_where_it_was_stopped(directories, tmp_path, monkeypatch):
    root, output, _ = directories
    smaller, calls = packed._smaller, []

    def stopping(path, size, quality):
        calls.append(path)
        if len(calls) == 120:
            raise KeyboardInterrupt
        return smaller(path, size, quality)

    monkeypatch.setattr(packed, "_smaller", stopping)
    with pytest.raises(KeyboardInterrupt):
        pack(str(root), str(tmp_path / "out"), **SETTINGS)
    assert not packed.is_packed(tmp_path / "out")
    with pytest.raises(InputError, match=r"started with another .*\(size 72 then, 80 now\)"):
        pack(str(root), str(tmp_path / "out"), **SETTINGS | {"size": 80})
    monkeypatch.setattr(packed, "_smaller", lambda *args: calls.append(args) or smaller(*args))
    calls.clear()
    pack(str(root), str(tmp_path / "out"), **SETTINGS)
    assert len(calls) == 180 - 100  # Two shards were whole.
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == sorted(path.name for path in output.iterdir())
    for name in names:
        if name.endswith("array_record"):
            assert (tmp_path / "out" / name).read_bytes() == (output / name).read_bytes()
    with pytest.raises(InputError, match="is packed already"):
        pack(str(root), str(tmp_path / "out"), **SETTINGS)


def test_the_program(run_program, directories, tmp_path):
    arguments = [f"--input={directories[0]}", f"--output={tmp_path / 'out'}", "--size=72"]
    code, _, err = run_program("mlc_jax.files.pack", *arguments, required=["input", "output"])
    assert code == 0 and packed.is_packed(tmp_path / "out"), err
    code, _, err = run_program("mlc_jax.files.pack", *arguments, required=["input", "output"])
    assert code == 2 and "is packed already" in err


def test_bad_inputs(directories, tmp_path):
    root, output, keys = directories
    for place, message in (("nowhere", "no directory"), ("empty", "has no picture")):
        (tmp_path / "empty").mkdir(exist_ok=True)
        with pytest.raises(InputError, match=f"^--input: .*{message}"):
            pack(str(tmp_path / place), str(tmp_path / "out"), **SETTINGS)
    with pytest.raises(InputError, match="is not empty; expected a new directory"):
        pack(str(root), str(root), **SETTINGS)
    names = np.array([b"images/none.jpg", os.fsencode(keys["clean_val"][0])])
    assert Packed(str(output), names).problems == {0: "is not among the packed"}
    (tmp_path / "packed.json").write_text(json.dumps({"per_shard": 3}))
    with pytest.raises(InputError, match=r"^here: .* is not a complete set of packed pictures"):
        Packed(str(tmp_path), field="here")
