"""The estimator: what people of scikit-learn expect, and what stands in README."""

import csv
import pickle

import jax
import joblib
import numpy as np
import pandas
import pytest
import sklearn
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import mlc_jax as mlc
from mlc_jax.commands.train import train_and_evaluate
from mlc_jax.errors import InputError
from mlc_jax.files.memory import inputs as memory
from mlc_jax.labels import estimator
from mlc_jax.labels.correct import classes_of, settings_of
from mlc_jax.labels.words import in_words

NAMES = np.array(["setosa", "versicolor", "virginica"])
UNJUDGED = "ignore:No row is checked"
pytestmark = pytest.mark.usefixtures("standard_promotion")  # For optax's Adam.


def _iris():
    """Measurements with a category and missing values; a quarter of the labels is wrong; checks."""
    x = load_iris(as_frame=True).data.set_axis(["a", "b", "c", "d"], axis=1)
    truth, rng = load_iris().target, np.random.default_rng(0)
    wrong = rng.random(150) < 0.25
    given = np.where(wrong, (truth + rng.integers(1, 3, 150)) % 3, truth)
    x["soil"] = rng.choice(["clay", "sand"], 150)
    x.loc[rng.choice(150, 12, replace=False), "b"] = np.nan
    checked = np.full(150, None, object)
    rows = rng.choice(150, 40, replace=False)
    checked[rows] = NAMES[truth[rows]]
    return x, NAMES[given], checked, NAMES[truth]


@pytest.fixture(scope="module")
def fitted():
    """One run of its own kind: a data frame, checks, names."""
    x, y, checked, _ = _iris()
    with jax.numpy_dtype_promotion("standard"):
        return mlc.LabelCorrector(num_epochs=2).fit(x, y, checked=checked, drawn="random")


def test_new_rows_that_are_sparse_are_refused_as_those_to_learn_from(fitted):
    import scipy.sparse

    with pytest.raises(TypeError, match=r"Use X\.toarray"):
        fitted.predict(scipy.sparse.csr_matrix(np.eye(5)))


def test_labels_are_corrected_and_checked_rows_stay(fitted):
    x, y, checked, truth = _iris()
    seen = checked != None  # noqa: E711
    assert list(fitted.classes_) == list(NAMES)
    assert list(fitted.feature_names_in_) == list(x) and fitted.n_features_in_ == 5
    assert np.array_equal(fitted.labels_[seen], checked[seen])
    assert (fitted.labels_[~seen] == truth[~seen]).mean() > (y[~seen] == truth[~seen]).mean() + 0.1
    assert np.array_equal(fitted.label_quality_[seen], (y[seen] == checked[seen]).astype(float))
    # Wrong labels of rows that nobody looked at are believed least.
    right = y == truth
    quality = fitted.label_quality_
    assert quality[~seen & right].mean() > quality[~seen & ~right].mean() + 0.5
    assert fitted.soft_labels_.shape == (150, 3)
    np.testing.assert_allclose(fitted.soft_labels_.sum(axis=1), 1, rtol=1e-5)
    assert fitted.result_.verdict.n == 40


def test_what_a_verdict_may_recommend_is_at_hand(fitted, tmp_path):
    """Predictions of other classifiers, in Python as in the file of a workdir."""
    _, y, checked, truth = _iris()
    seen = checked != None  # noqa: E711
    predictions = fitted.result_.predictions
    assert predictions.keys() == {"predicted_label", "predicted_by_checked", "predicted_by_given"}
    for labels in predictions.values():
        assert (labels == truth[~seen]).mean() > (y[~seen] == truth[~seen]).mean()
    fitted.result_.save(tmp_path / "run")
    with (tmp_path / "run/predicted_labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    for name, labels in predictions.items():
        assert [row[name] for row in rows] == labels.tolist()
    with (tmp_path / "run/checked_rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert fitted.result_.checked_rows.keys() == rows[0].keys()
    for name, column in fitted.result_.checked_rows.items():
        assert [row[name] for row in rows] == column.tolist()
    judged = fitted.result_.checked_rows["corrected_label"] == checked[seen]
    share = fitted.result_.verdict.shares["corrected"]
    assert (judged.mean(), len(judged)) == (pytest.approx(share.estimate), share.n)


def test_prediction(fitted):
    x, y, checked, truth = _iris()
    probs = fitted.predict_proba(x)
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-5)
    assert np.array_equal(fitted.predict(x), NAMES[probs.argmax(axis=1)])
    # By name, in whatever order; as a dict of columns, too.
    assert np.array_equal(fitted.predict_proba(x[list(x)[::-1]]), probs)
    assert np.array_equal(fitted.predict_proba({name: x[name] for name in x}), probs)
    seen = checked != None  # noqa: E711
    expected = (fitted.predict(x)[seen] == truth[seen]).mean()
    assert fitted.score(x, y, checked=checked) == expected
    with pytest.warns(UserWarning, match="accuracy on y, whose labels may be wrong"):
        assert fitted.score(x, y) == (fitted.predict(x) == y).mean()
    with pytest.raises(InputError, match="has no column 'd'"):
        fitted.predict(x.drop(columns="d"))


def test_the_result_is_shown_pickled_and_written(fitted, tmp_path):
    x, *_ = _iris()
    result = fitted.result_
    assert len(repr(result)) < 400 and "doubtful labels of 3 classes" in repr(result)
    assert "<table" in result._repr_html_() and len(result._repr_html_()) < 20_000
    again = pickle.loads(pickle.dumps(fitted))
    assert np.array_equal(again.predict_proba(x), fitted.predict_proba(x))
    assert np.array_equal(again.labels_, fitted.labels_)
    with pytest.raises(InputError, match="it was loaded"):
        again.result_.report(tmp_path / "page.html")
    result.report(tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text()
    assert "labels as given" in page and "DIR/to_check.csv" in page and "/tmp" not in page
    result.save(tmp_path / "run")
    assert np.array_equal(mlc.load(tmp_path / "run").predict_proba(x), fitted.predict_proba(x))
    with pytest.raises(InputError, match="is not empty"):
        result.save(tmp_path / "run")


@pytest.mark.filterwarnings(UNJUDGED)
def test_in_a_pipeline_and_across_folds():
    """What people do first: two fits of one shape, which are compiled once."""
    x, y, checked, _ = _iris()
    numbers = x[["a", "c", "d"]].to_numpy()
    corrector = mlc.LabelCorrector(num_epochs=1)
    assert clone(corrector).get_params() == corrector.get_params()
    with sklearn.config_context(enable_metadata_routing=True):
        corrector.set_fit_request(checked=True).set_score_request(checked=True)
        pipeline = make_pipeline(StandardScaler(), corrector)
        scores = cross_val_score(pipeline, numbers, y, cv=2, params={"checked": checked})
    assert scores.shape == (2,) and scores.min() > 0.6


@pytest.mark.slow
@pytest.mark.filterwarnings(UNJUDGED)
def test_in_a_grid_search():
    x, _, _, truth = _iris()
    numbers = x[["a", "c", "d"]].to_numpy()
    search = GridSearchCV(mlc.LabelCorrector(num_epochs=1), {"random_state": [3]}, cv=2)
    with pytest.warns(UserWarning, match="may be wrong"):
        search.fit(numbers, truth)
    assert search.best_score_ > 0.8


@pytest.mark.slow
@pytest.mark.filterwarnings(UNJUDGED)
def test_votes_and_rows_without_a_label():
    x, y, _, truth = _iris()
    numbers, rng = x[["a", "c", "d"]].to_numpy(), np.random.default_rng(1)
    votes = {
        name: np.where(rng.random(150) < rate, truth, rng.choice(NAMES, 150)).astype(object)
        for name, rate in (("first", 0.8), ("second", 0.6))
    }
    votes["first"][:20] = None
    corrector = mlc.LabelCorrector(num_epochs=2).fit(numbers, votes=votes)
    assert (corrector.labels_ == truth).mean() > 0.85
    first, second = corrector.result_.sources
    assert (first["source"], first["labels"], second["labels"]) == ("first", 130, 150)
    assert first["bits_per_label"] > second["bits_per_label"]
    with_labels = np.where(np.arange(150) < 10, None, y.astype(object))
    quality = mlc.LabelCorrector(num_epochs=1).fit(numbers, with_labels).label_quality_
    assert np.isnan(quality[:10]).all() and not np.isnan(quality[10:]).any()


@pytest.mark.parametrize("y", [None, np.full(60, np.nan)])
def test_a_class_minus_one_of_votes(y):
    """Where nobody looked, `checked` is None: so -1 is a class, of checks as of votes."""
    truth = np.where(np.arange(60) % 2, 1.0, -1.0)
    votes = {"a": truth.copy(), "b": np.where(np.arange(60) < 20, np.nan, truth)}
    checked = np.where(np.arange(60) < 30, truth.astype(object), None)
    read = estimator._labels(np.zeros((60, 1)), y, checked, None, votes, 60)
    assert read.columns["checked_label"].tolist() == checked.tolist()
    votes = {"a": np.where(truth > 0, 1, 0)}
    mixed = np.where(np.arange(60) < 20, votes["a"].astype(object), None)
    mixed[40:] = -1  # No source says -1: nobody looked.
    read = estimator._labels(np.zeros((60, 1)), y, mixed, None, votes, 60)
    assert pandas.isna(read.columns["checked_label"][20:]).all()
    hidden = np.where(np.arange(60) < 30, truth, -1)
    plain = estimator._labels(np.zeros((60, 1)), np.where(truth > 0, 1, 0), hidden, None, None, 60)
    assert [*plain.columns["checked_label"]].count(1) == 15


@pytest.mark.parametrize(
    "classes", [np.array([10, 2, 3]), np.array([-1, 0, 1]), np.array([2.0, 5.0, 7.0]),
                np.array([2**40, 5, 7])],
)  # fmt: skip
@pytest.mark.filterwarnings(UNJUDGED)
@pytest.mark.slow
def test_labels_keep_their_type(classes):
    x, *_ = _iris()
    y = classes[load_iris().target]
    corrector = mlc.LabelCorrector(num_epochs=1).fit(x[["a", "d"]].to_numpy(), y)
    assert np.array_equal(corrector.classes_, np.unique(y))
    assert corrector.labels_.dtype == y.dtype == corrector.predict(x[["a", "d"]].to_numpy()).dtype
    assert (corrector.labels_ == y).mean() > 0.8


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ("config.dataset.checked: no file 'x'", "checks: no file 'x'"),
        (
            "config.model.mlp.hidden_sizes: got 0\nconfig.cross_fit.hidden_sizes: got 0",
            "model: got 0",
        ),
        ("config.dataset.drawn: got 1", "dataset.drawn: got 1"),
        ("workdir: '/x' lacks config.json", "workdir: '/x' lacks config.json"),
        ("X: column 'k' ...: --config.dataset.features=+k", "X: column 'k' ...: features=['+k']"),
    ],
)
def test_errors_are_in_the_words_of_the_arguments(told, wanted):
    with pytest.raises(InputError) as raised, in_words():
        raise InputError(told)
    assert str(raised.value) == wanted


@pytest.mark.filterwarnings(UNJUDGED)
@pytest.mark.parametrize(
    ("y", "checked", "classes"),
    [
        (pandas.array([None, 0, 1, 1, 0] * 12, dtype="Int64"), None, [0, 1]),
        (pandas.array([None, "a", "b", "b", "a"] * 12, dtype="string"), None, ["a", "b"]),
        ([np.nan, "a", "b", "b", "a"] * 12, [np.nan, np.nan, "b", "b", "a"] * 12, ["a", "b"]),
        ([pandas.NA, 0, 1, 1, 0] * 12, None, [0, 1]),
        (np.array([True, False] * 30), [1.0, 0.0, *[np.nan] * 4] * 10, [False, True]),
        (np.array([-1, 1] * 30), [-1, 1, *[None] * 4] * 10, [-1, 1]),
    ],
)
def test_missing_labels_and_checks_in_other_forms(y, checked, classes):
    columns = estimator._labels(np.zeros((60, 2)), y, checked, None, None, 60)
    x = np.random.default_rng(0).normal(size=(60, 2))
    own = memory.from_memory(x, columns)
    found = classes_of(own, list(columns.columns.values()))
    assert found.tolist() == classes and {type(a) for a in found.tolist()} == {type(classes[0])}
    assert len(own.clean) == (0 if checked is None else sum(pandas.notna(checked)))


def test_columns_that_are_not_used_are_named(fitted, caplog):
    x, *_ = _iris()
    fitted.predict(x[:3])
    assert not caplog.messages
    fitted.predict(x[:3].assign(weight=1.0))
    assert caplog.messages == [
        "Columns that the rows to learn from did not have are not used: 'weight'."
    ]


def test_no_check_in_a_column_of_them_is_said():
    x, y, *_ = _iris()
    numbers = x[["a", "d"]].to_numpy()
    with pytest.warns(UserWarning, match="No row is checked"):
        mlc.LabelCorrector(num_epochs=1).fit(numbers, y, checked=np.full(150, None))


BAD = {
    "sparse": ({"x": "sparse"}, "Use X.toarray"),
    "NaN": ({"x": np.array([[1.0], [np.nan]] * 5)}, "X: row 1 is nan, which is not finite"),
    "infinite": ({"x": np.array([[1.0], [np.inf]] * 5)}, "X: row 1 is inf"),
    "beyond float32": ({"x": np.array([[1.0], [1e300]] * 5)}, "X: row 1 is 1e[+]300"),
    "complex": ({"x": np.ones((10, 2)) * 1j}, "Complex data not supported"),
    "one dimension": ({"x": np.ones(10)}, "Reshape your data"),
    "ragged": ({"x": [[1, 2], [3]] * 5}, "rows of different lengths"),
    "no rows": ({"x": np.ones((0, 2)), "y": []}, "0 sample"),
    "no features": ({"x": np.ones((10, 0))}, r"0 feature\(s\)"),
    "texts": ({"x": ["a b"] * 10}, "encoder: got None"),
    "a label among X": ({"x": {"label": [1] * 10, "a": [2.0] * 10}}, "has a column 'label'"),
    "lengths": ({"y": [0, 1]}, "inconsistent numbers of samples"),
    "no y": ({"y": None}, "requires y to be passed"),
    "continuous": ({"y": np.linspace(0.1, 1, 10)}, "Unknown label type"),
    "one class": ({"y": [1] * 10}, "has one class, '1'"),
    "two columns of y": ({"y": np.zeros((10, 2))}, r"y: got shape \(10, 2\)"),
    "-1 is a class": ({"y": [-1, 1] * 5, "checked": [-1] * 10}, "has -1, which is a class"),
    "method": ({"settings": {"method": "mcl"}}, "method: got 'mcl'"),
    "no checks": ({"settings": {"method": "mlc"}}, "no row is checked, and mlc needs some"),
    "model": ({"settings": {"model": "forest"}}, "model: got 'forest', expected auto"),
    "drawn": ({"checked": [0, 1] * 2 + [None] * 6, "drawn": "by hand"}, "drawn: got 'by hand'"),
    "votes": ({"votes": np.zeros(10)}, r"votes: got shape \(10,\)"),
    "votes of sources in rows": (
        {"y": None, "votes": np.zeros((3, 10))},
        r"^votes: Found .* numbers of samples: \[10, 3\]",
    ),
    "votes of nothing": ({"y": None, "votes": np.full((10, 2), -1)}, "has no label at all"),
    "votes one-hot": ({"y": None, "votes": np.eye(2)[[0, 1] * 5]}, "votes: one-hot, expected a"),
    "a column that is the label": (
        {
            "x": pandas.DataFrame({"a b": [0, 1] * 40, "c": np.arange(80) % 7}),
            "y": [0, 1] * 40,
            "checked": [0, 1] * 40,
        },
        r"^X: .*column 'a b' .*checked_label.* Take it out, or X.to_numpy\(\)$",
    ),
    "votes named label": ({"votes": {"label": [0, 1] * 5}}, "votes: has a column 'label'"),
    "no check is a label": (
        {"y": ["a", "b"] * 5, "checked": [0, 1, 0, 1, *[None] * 6]},
        "'0', and none of them was given; given ones are such as 'a'",
    ),
    "epochs": ({"settings": {"num_epochs": 0}}, "^num_epochs: got 0"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.filterwarnings(UNJUDGED)
def test_bad_input_is_one_line_before_anything_starts(case):
    given, message = BAD[case]
    x = given.get("x", np.arange(20.0).reshape(10, 2))
    if isinstance(x, str):
        import scipy.sparse

        x = scipy.sparse.csr_matrix(np.eye(10))
    y = given.get("y", [0, 1] * 5)
    corrector = mlc.LabelCorrector(**given.get("settings", {}))
    others = {name: given[name] for name in ("checked", "drawn", "votes") if name in given}
    with pytest.raises((ValueError, TypeError), match=message) as error:
        corrector.fit(x, y, **others)
    assert "\n" not in str(error.value)


def test_a_frame_and_its_file_give_the_same(tmp_path):
    """One rule for both: `correct_labels` and the command. It shares what `fitted` compiled."""
    x, y, checked, _ = _iris()
    frame = x.assign(label=y, checked_label=checked, when=pandas.Timestamp("2024-03-01"))
    frame["confidence"] = 5  # Of the user's own.
    frame.to_csv(tmp_path / "all.csv", index=False)
    frame = pandas.read_csv(tmp_path / "all.csv")
    result = mlc.correct_labels(frame, num_epochs=2, progress=False)
    config = settings_of("table", "auto", "auto", 0, None, num_epochs=2)
    config.dataset.data = str(tmp_path / "all.csv")
    train_and_evaluate(config, str(tmp_path / "run"), show_progress=False)
    of_command = mlc.load(tmp_path / "run")
    np.testing.assert_array_equal(result.soft_labels, of_command.soft_labels)
    done = result.to_frame()
    assert list(done)[: len(list(frame))] == list(frame) and len(done) == 150
    added = ["corrected_label", "mlc_confidence", "label_quality", "is_label_issue"]
    assert list(done)[-4:] == added
    assert list(pandas.read_csv(tmp_path / "run" / "corrected.csv")) == list(done)
    pandas.testing.assert_frame_equal(done[list(frame)], frame)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_scikit_learn_accepts_it():
    """Some fifty fits of other shapes; compilation is most of the time."""
    from sklearn.utils.estimator_checks import check_estimator

    results = check_estimator(mlc.LabelCorrector(num_epochs=1), on_fail=None)
    failed = {x["check_name"]: x["exception"] for x in results if x["status"] == "failed"}
    assert not failed


@pytest.mark.slow  # Two processes that import JAX and train, beside two folds in this one.
def test_processes_of_joblib_score_as_this_one_does():
    """JAX must not be forked, and loky's processes are not; the estimator goes there by pickle."""
    x, y, checked, _ = _iris()
    scores = []
    for n_jobs in (1, 2):
        with (
            sklearn.config_context(enable_metadata_routing=True),
            joblib.parallel_config("loky", n_jobs=n_jobs),
        ):
            corrector = mlc.LabelCorrector(num_epochs=1).set_fit_request(checked=True)
            corrector.set_score_request(checked=True)
            scores.append(
                cross_val_score(
                    corrector, x, y, cv=2, params={"checked": checked}, error_score="raise"
                )
            )
    np.testing.assert_array_equal(*scores)
