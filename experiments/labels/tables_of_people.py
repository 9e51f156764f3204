"""Real public tables with their true labels, and with wrong ones; nothing is downloaded.

scikit-learn has four of them, and makes up three. The packages `palmerpenguins` and `pydataset`
have others, which are used if they are installed. pydataset's archive is read directly, because
importing the package unpacks 757 sets into the user's home.
"""

import csv
import functools
import importlib.util
import io
import pathlib
import tarfile
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from mlc_jax.errors import InputError, expect

_DIAMONDS, _MADE_ROWS = 6_000, 800
_MANY_ROWS = 400  # Of a table of MANY.
_MANY_WIDTH = 32  # Features are padded by zeros to a multiple of it: tables share programs.
_MOST_TEXTS = 12  # Different ones of a column; one with more is left out.
_UNSEEN = 0.3
KINDS = ("flip", "unif", "hard", "region")  # Of wrong labels.
_FLIP, _UNIF, _HARD, _REGION = 0.35, 0.5, 0.3, 0.6


class LabelledTable(NamedTuple):
    """Attributes: features float32 `[N, D]`, standardised; labels int32 `[N]`."""

    features: np.ndarray
    labels: np.ndarray


def _sklearn(name: str) -> LabelledTable:
    from sklearn import datasets

    bunch = getattr(datasets, f"load_{name}")()
    return _standardised(bunch.data, bunch.target)


def _made(make: str, **settings: Any) -> LabelledTable:
    from sklearn import datasets

    function = getattr(datasets, f"make_{make}")
    points, labels = function(n_samples=_MADE_ROWS, random_state=0, **settings)
    return _standardised(points, labels)


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
            kinds = sorted({*values})
            if len(kinds) <= _MOST_TEXTS:
                features += [np.array([x == kind for x in values], float) for kind in kinds]
    texts = np.array(["+".join(row[name] for name in label) for row in rows])
    return _standardised(np.stack(features, axis=1), np.unique(texts, return_inverse=True)[1])


def _one_of_many(path: str, label: str) -> LabelledTable:
    table = _archived(path, label, most=_MANY_ROWS)
    more = -table.features.shape[1] % _MANY_WIDTH
    return table._replace(features=np.pad(table.features, ((0, 0), (0, more))))


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

# Nothing was chosen on these either. They are tables of pydataset with 400 or more rows and at most
# 32 features. Labels are a column of texts, or of two values, with 2 to 10 classes. The accuracy of
# a linear model is at least ten points above the largest class's share, and below 99.5 %. There are
# no near copies.
_MANY = {
    "MASS/Aids2": "status",
    "Ecdat/Benefits": "dkids",
    "Ecdat/Catsup": "choice",
    "Ecdat/Computers": "cd",
    "Ecdat/Crime": "region",
    "Ecdat/DoctorContacts": "child",
    "Ecdat/Fair": "sex",
    "HistData/GaltonFamilies": "gender",
    "Ecdat/Griliches": "mrt",
    "Ecdat/HI": "hhi",
    "Ecdat/Kakadu": "answer",
    "Ecdat/Ketchup": "Ketchup.choice",
    "Ecdat/Males": "occupation",
    "Ecdat/MedExp": "child",
    "Ecdat/Mode": "choice",
    "car/Mroz": "work",
    "Ecdat/OFP": "maried",
    "MASS/OME": "Noise",
    "Ecdat/PatentsHGH": "scisect",
    "Ecdat/RetSchool": "smsa66",
    "car/SLID": "sex",
    "MASS/Sitka89": "treat",
    "Ecdat/Star": "freelunk",
    "Ecdat/Tobacco": "occupation",
    "Ecdat/Train": "choice",
    "Ecdat/Treatment": "u75",
    "Ecdat/Tuna": "Tuna.choice",
    "pscl/UKHouseOfCommons": "coninc",
    "Ecdat/UnempDur": "censor4",
    "lme4/VerbAgg": "resp",
    "Ecdat/VietNamH": "urban",
    "Ecdat/VietNamI": "married",
    "Ecdat/Wages": "bluecol",
    "Ecdat/Wages1": "sex",
    "Ecdat/Workinghours": "mortgage",
    "COUNT/azprocedure": "procedure",
    "survival/colon": "node4",
    "KMsurv/kidtran": "gender",
    "Zelig/mexico": "pri82",
    "gap/mfblong": "male",
    "Zelig/mid": "conflict",
    "ggplot2/midwest": "state",
    "ggplot2/movies": "Drama",
    "gap/nep499": "status",
    "survival/nwtco": "study",
    "pscl/politicalInformation": "collegeDegree",
    "geepack/respiratory": "center",
    "COUNT/rwm1984": "kids",
    "COUNT/rwm5yr": "female",
    "KMsurv/std": "os12m",
    "quantreg/uis": "TREAT",
    "pscl/vote92": "dem",
}
MANY = {
    path.split("/")[-1]: functools.partial(_one_of_many, path, label)
    for path, label in _MANY.items()
}
TABLES |= MANY

# Made up: no linear model separates these. Last, because the draws depend on a table's place.
MADE = {
    "rings": functools.partial(_made, "circles", noise=0.15, factor=0.5),
    "moons": functools.partial(_made, "moons", noise=0.2),
    "shells": functools.partial(_made, "gaussian_quantiles", n_features=5, n_classes=3),
}
TABLES |= MADE
_SEEDS: dict[str, int] = {}  # Of tables in files.


def named(sets: str) -> tuple[str, ...]:
    """The names in `--sets`; a path of an `.npz` file with `features` and `labels` is one, too.

    Raises:
      InputError: there is no such table.
    """
    names = []
    for name in sets.split(","):
        if name.endswith(".npz"):
            expect(pathlib.Path(name).is_file(), "--sets", name, "a file")
            stem = pathlib.Path(name).stem
            expect(stem not in TABLES, "--sets", name, "a file with a name of its own")
            TABLES[stem] = functools.partial(_of_file, name)
            _SEEDS[stem] = zlib.crc32(stem.encode())
            name = stem
        expect(name in TABLES, "--sets", name, f"a path of an .npz file, or {', '.join(TABLES)}")
        names.append(name)
    return tuple(names)


def _of_file(path: str) -> LabelledTable:
    with np.load(path) as arrays:
        return _standardised(arrays["features"], arrays["labels"])


class Cell(NamedTuple):
    """One draw of a table: rows to correct, and rows to test on.

    Attributes:
      rows: `[n]`, rows of the table to correct.
      given, truth: `[n]` labels.
      checked: `[n]` bool; methods see the truth of these rows alone.
      unseen: `[u]`, rows of the table to test on.
    """

    rows: np.ndarray
    given: np.ndarray
    truth: np.ndarray
    checked: np.ndarray
    unseen: np.ndarray


@functools.lru_cache(maxsize=2)
def _second_choices(name: str) -> tuple[np.ndarray, np.ndarray]:
    """How sure a linear model is of each row's label, out of fold, and its second choice."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict

    table = TABLES[name]()
    model = LogisticRegression(max_iter=500)
    probs = cross_val_predict(model, table.features, table.labels, method="predict_proba")
    at = np.arange(len(probs)), table.labels
    sure = probs[at].copy()
    probs[at] = -1
    return sure, probs.argmax(axis=1).astype(np.int32)


def draw(name: str, table: LabelledTable, noise: str, checked: str, number: int) -> Cell:
    """One draw; all kinds of noise have the same checked rows."""
    labels, num_classes = table.labels, int(table.labels.max()) + 1
    place = _SEEDS.get(name, list(TABLES).index(name))
    rng = np.random.default_rng([number, place])
    given = labels.copy()
    if noise == "flip":
        wrong = rng.random(len(labels)) < _FLIP
        given[wrong] = (labels[wrong] + 1) % num_classes
    elif noise == "unif":
        wrong = rng.random(len(labels)) < _UNIF
        given[wrong] = rng.integers(0, num_classes, wrong.sum())
    elif noise == "region":  # Wrong in one half of the table, along its first component, alone.
        along = table.features @ np.linalg.svd(table.features, full_matrices=False)[2][0]
        wrong = (rng.random(len(labels)) < _REGION) & (along > np.median(along))
        given[wrong] = (labels[wrong] + 1) % num_classes
    else:
        sure, second = _second_choices(name)
        hard = np.argsort(sure, kind="stable")[: round(_HARD * len(labels))]
        given[hard] = second[hard]
    how, _, count = checked.partition(":")
    rng = np.random.default_rng([number, place, int(count)])
    order = rng.permutation(len(labels))
    unseen, rows = np.split(order, [round(_UNSEEN * len(labels))])
    truth = labels[rows]
    is_checked = np.zeros(len(rows), bool)
    if how == "random":
        is_checked[: int(count)] = True  # Their order is a random one.
    else:
        for label in range(num_classes):
            of_class = np.flatnonzero(truth == label)
            is_checked[of_class[: min(int(count), max(1, len(of_class) // 2))]] = True
    return Cell(rows, given[rows], truth, is_checked, unseen)
