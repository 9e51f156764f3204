"""Real tables of other people, as numbers, with their true labels; nothing is downloaded.

scikit-learn carries four of them. The packages `palmerpenguins` and `pydataset` carry others:
what of them is installed is used. pydataset is read as the archive that it is, since importing
it unpacks 757 sets into the user's home.
"""

import csv
import functools
import importlib.util
import io
import pathlib
import tarfile
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mlc_jax.errors import InputError

_DIAMONDS = 6_000


class LabelledTable(NamedTuple):
    """Attributes: features float32 `[N, D]`, standardised; labels int32 `[N]`."""

    features: np.ndarray
    labels: np.ndarray


def _sklearn(name: str) -> LabelledTable:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    return _standardised(bunch.data, bunch.target)


def _archived(path: str, label: str, columns: tuple[str, ...] = (), most: int = 0) -> LabelledTable:
    """A table of pydataset.

    Args:
      path: in the archive, without `.csv`.
      label: a column, or several joined by `+`.
      columns: to use as features; none is all others.
      most: rows, drawn by a fixed seed; 0 is all.
    """
    archive = _package("pydataset") / "resources.tar.gz"
    with tarfile.open(archive) as file:
        member = next(x for x in file.getmembers() if x.name.endswith(f"/{path}.csv"))
        content = file.extractfile(member)
        assert content is not None
        rows = list(csv.DictReader(io.TextIOWrapper(content, "utf-8")))
    return _encoded(rows, label.split("+"), columns or tuple(rows[0])[1:], most)


def _penguins() -> LabelledTable:
    text = (_package("palmerpenguins") / "data" / "penguins.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    return _encoded(rows, ["species"], tuple(x for x in rows[0] if x != "year"), 0)


def _package(name: str) -> pathlib.Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise InputError(f"--sets: the package {name!r} is not installed; pip install {name}")
    return pathlib.Path(next(iter(spec.submodule_search_locations)))


def _encoded(
    rows: list[dict[str, str]], label: list[str], columns: tuple[str, ...], most: int
) -> LabelledTable:
    """Rows without a missing value; texts one-hot."""
    names = [name for name in columns if name not in (*label, "index", "ID")]
    rows = [row for row in rows if all(row[name] not in ("", "NA") for name in (*names, *label))]
    if most:
        chosen = np.random.default_rng(0).permutation(len(rows))[:most]
        rows = [rows[i] for i in chosen]
    features = []
    for name in names:
        values = [row[name] for row in rows]
        try:
            features.append(np.array(values, float))
        except ValueError:
            features += [np.array([x == kind for x in values], float) for kind in sorted({*values})]
    texts = np.array(["+".join(row[name] for name in label) for row in rows])
    return _standardised(np.stack(features, axis=1), np.unique(texts, return_inverse=True)[1])


def _standardised(features: np.ndarray, labels: np.ndarray) -> LabelledTable:
    features = np.asarray(features, float)
    deviation = features.std(axis=0)
    kept = deviation > 0
    scaled = (features - features.mean(axis=0))[:, kept] / deviation[kept]
    return LabelledTable(scaled.astype(np.float32), np.asarray(labels, np.int32))


_BIRTH = ("age", "lwt", "race", "smoke", "ptl", "ht", "ui", "ftv")
_NUMERIC = ("carat", "depth", "table", "price", "x", "y", "z")
TABLES: dict[str, Callable[[], LabelledTable]] = {
    "wine": functools.partial(_sklearn, "wine"),
    "breast_cancer": functools.partial(_sklearn, "breast_cancer"),
    "iris": functools.partial(_sklearn, "iris"),
    "digits": functools.partial(_sklearn, "digits"),
    "penguins": _penguins,
    "biopsy": functools.partial(_archived, "MASS/biopsy", "class"),
    "pima": functools.partial(_archived, "MASS/Pima.tr", "type"),
    "crabs": functools.partial(_archived, "MASS/crabs", "sp+sex"),
    "chile": functools.partial(_archived, "car/Chile", "vote"),
    "diamonds": functools.partial(_archived, "ggplot2/diamonds", "cut", _NUMERIC, _DIAMONDS),
    # Nothing was chosen on these three.
    "fishing": functools.partial(_archived, "Ecdat/Fishing", "mode"),
    "birth_weight": functools.partial(_archived, "MASS/birthwt", "low", _BIRTH),
    "glass": functools.partial(_archived, "MASS/fgl", "type"),
}
