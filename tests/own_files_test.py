"""What is wrong with a user's files, whatever their kind: a class nobody checked, no permission."""

import contextlib
import os

import numpy as np
import pandas
import pytest
from PIL import Image

import mlc_jax as mlc
from mlc_jax.benchmarks import datasets
from mlc_jax.errors import InputError

NAMES = np.array(["ant", "bee", "cow"])
LABELS = NAMES[np.arange(30) % 3]
CHECKED = np.where(np.arange(30) < 9, LABELS, "")


def _arrays(path, checked):
    np.savez(path / "all.npz", inputs=np.arange(30.0)[:, None], labels=LABELS,
             checked_labels=checked)  # fmt: skip
    return path / "all.npz"


def _mapped(path, checked):
    np.save(path / "all.npy", np.arange(30.0)[:, None])
    pandas.DataFrame({"label": LABELS, "checked_label": checked}).to_csv(path / "all.csv")
    return path / "all.npy"


def _table(path, checked):
    columns = {"label": LABELS, "checked_label": checked, "x": np.arange(30.0)}
    pandas.DataFrame(columns).to_csv(path / "all.csv", index=False)
    return path / "all.csv"


def _parquet(path, checked):
    columns = {"label": LABELS, "checked_label": checked, "x": np.arange(30.0)}
    pandas.DataFrame(columns).to_parquet(path / "all.parquet")
    return path / "all.parquet"


def _pictures(path, checked):
    for i in range(30):
        Image.new("RGB", (9, 9), (i, 0, 0)).save(path / f"{i}.png")
    columns = {"path": [f"{i}.png" for i in range(30)], "label": LABELS, "checked_label": checked}
    pandas.DataFrame(columns).to_csv(path / "all.csv", index=False)
    return path / "all.csv"


KINDS = {
    "arrays": (_arrays, "arrays"), "mapped": (_mapped, "arrays"), "table": (_table, "table"),
    "parquet": (_parquet, "table"), "pictures": (_pictures, "image_folder"),
}  # fmt: skip
each_kind = pytest.mark.parametrize("kind", KINDS)


def _config(kind, tmp_path, checked=CHECKED):
    from configs import arrays, image_folder, table

    save, name = KINDS[kind]
    config = {"arrays": arrays, "table": table, "image_folder": image_folder}[name].get_config()
    config.dataset.data = str(save(tmp_path, checked))
    config.dataset.holdout_per_class = 0
    if name == "image_folder":
        config.dataset.cache_dir = str(tmp_path / "cache")
    return config


@each_kind
def test_each_class_needs_a_clean_example(tmp_path, kind):
    config = _config(kind, tmp_path)
    assert len(datasets.load(config).clean) == 9
    labels = config.dataset.data.replace(".npy", ".csv")  # Those of a memory map are beside it.
    config = _config(kind, tmp_path, np.where(CHECKED == "bee", "", CHECKED))
    with pytest.raises(InputError) as raised:
        datasets.load(config)
    row = {"arrays": "row '1'", "parquet": "row 2"}.get(kind, "line 3")
    assert str(raised.value) == (
        f"config.dataset.data: {labels!r} {row} has label 'bee', as 10 noisy examples have and no "
        "clean one; expected a clean example at least of each class"
    )


def test_each_class_needs_a_clean_example_in_two_files_and_in_python(tmp_path):
    from configs import arrays

    config = arrays.get_config()
    for name, rows in (("noisy", slice(9, 30)), ("clean", [0, 3, 6])):
        x, labels = np.arange(30.0)[rows, None], LABELS[rows]
        np.savez(tmp_path / f"{name}.npz", inputs=x, labels=labels)
        config.dataset[name] = str(tmp_path / f"{name}.npz")
    problem = " has label 'bee', as 7 noisy examples have and no clean one; expected a clean"
    with pytest.raises(InputError) as raised:
        datasets.load(config)
    assert str(raised.value).startswith(
        f"config.dataset.noisy: {config.dataset.noisy!r} row '1'{problem}"
    )
    inputs = np.arange(30, dtype=np.float32)[:, None]
    method = mlc.methods.cross_entropy(model=mlc.models.MLP(3, (4,)), tx=mlc.sgd(0.1))
    noisy = mlc.Examples(inputs[9:], LABELS[9:])
    with pytest.raises(InputError) as raised:
        mlc.fit(method, noisy, mlc.Examples(inputs[[0, 3, 6]], LABELS[[0, 3, 6]]))
    assert str(raised.value).startswith(f"noisy: example 1{problem}")


@contextlib.contextmanager
def _somebody_else():
    """Root may read everything."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@each_kind
def test_a_file_that_may_not_be_read(tmp_path, kind):
    config = _config(kind, tmp_path)
    secret = tmp_path / "7.png" if kind == "pictures" else config.dataset.data
    os.chmod(secret, 0)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    # Of pytest's directories nobody but their owner sees anything.
    for directory in (tmp_path, *tmp_path.parents):
        if "pytest" in str(directory):
            directory.chmod(0o755)
    with _somebody_else(), pytest.raises(InputError) as raised:
        datasets.load(config)
    text = str(raised.value)
    assert "\n" not in text and "ermission denied" in text
    assert ("7.png" if kind == "pictures" else config.dataset.data) in text
