"""An estimator for scikit-learn."""

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.exceptions import DataConversionWarning
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted, check_random_state

from mlc_jax.data.folds import DRAWN
from mlc_jax.errors import InputError, expect
from mlc_jax.files.label_columns import NAMES, Said
from mlc_jax.files.memory import inputs as memory
from mlc_jax.files.memory.frames import Frame, as_frame, is_missing, without
from mlc_jax.files.values.names import is_one_hot
from mlc_jax.labels.words import in_words

if TYPE_CHECKING:
    from mlc_jax.result import Result

_UNCHECKED = -1  # In whole numbers: nobody looked, or no label.


class LabelCorrector(ClassifierMixin, BaseEstimator):
    """A classifier that learns from wrong labels, and corrects them.

    It is an estimator of scikit-learn::

        corrector = mlc_jax.LabelCorrector()
        corrector.fit(X, y, checked=checked)  # checked: None, NaN or "" where nobody looked
        print(corrector.result_.verdict)  # how good the labels are, by hidden checks
        corrector.labels_, corrector.label_quality_, corrector.predict(X_new)

    Parameters
    ----------
    method : str, default="auto"
        "auto" is "cross_fit", which also estimates how good its labels are. Other methods are given
        by name, and need checked rows.
    model : str or tuple, default="auto"
        "linear", "mlp", or the widths of hidden layers. "auto" is both "linear" and "mlp", combined
        by what is right in the checked rows; for texts and pictures "linear".
    encoder : str or callable, default=None
        For texts or pictures: the directory of a pretrained encoder, or its name on the Hugging
        Face hub. For pictures it may be a function of your own, see `mlc_jax.PictureReader`.
    num_epochs : int, default=None
        Passes over the rows; for "cross_fit", rounds of training. None chooses a number by the
        number of rows.
    random_state : int, RandomState instance or None, default=None
        Seed of all random numbers. None is 0, so fitting twice gives the same result.
    verbose : int, default=0
        1 shows a progress bar.
    class_names : sequence, default=None
        All classes. Any other label is then an error, and a class may be without a row. None takes
        all labels in y, checked and votes.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The classes, sorted.
    labels_ : ndarray of shape (n_samples,)
        Corrected labels, in the order of X. A checked row keeps its checked label. With
        "cross_fit", the label of a row comes from classifiers that were not trained on the row.
    label_quality_ : ndarray of shape (n_samples,)
        Probability that the given label is right: 1 or 0 where it was checked, NaN where no label
        was given.
    soft_labels_ : ndarray of shape (n_samples, n_classes)
        Probabilities of the corrected labels.
    result_ : mlc_jax.Result
        Everything else, such as the verdict.
    n_features_in_ : int
        Number of features.
    feature_names_in_ : ndarray of shape (n_features,)
        Names of the columns, if X was a data frame.
    """

    labels_: np.ndarray
    label_quality_: np.ndarray
    soft_labels_: np.ndarray
    classes_: np.ndarray
    result_: "Result"

    def __init__(
        self,
        method: str = "auto",
        model: Any = "auto",
        encoder: Any = None,
        num_epochs: int | None = None,
        random_state: Any = None,
        verbose: int = 0,
        class_names: Any = None,
    ):
        self.method = method
        self.model = model
        self.encoder = encoder
        self.num_epochs = num_epochs
        self.random_state = random_state
        self.verbose = verbose
        self.class_names = class_names

    @in_words()
    def fit(
        self,
        X: Any,
        y: Any = None,
        checked: Any = None,
        drawn: Any = None,
        votes: Any = None,
    ) -> "LabelCorrector":
        """Corrects labels, and trains a classifier on them.

        Parameters
        ----------
        X : data frame, array of shape (n_samples, ...), list of lists, of texts, or of paths
            Columns of a data frame may be numbers, booleans, dates, categories and texts, with
            missing values. Arrays hold finite numbers. Paths are those of pictures.
        y : array of shape (n_samples,), default=None
            Labels as given: names, whole numbers or booleans. None and NaN are no label. With
            `votes`, y may be None.
        checked : array of shape (n_samples,), default=None
            Labels that somebody checked; None, NaN, "" (or -1, unless that is a class) where
            nobody looked. Without any checked row there is no estimate of how good the labels are.
        drawn : str or array of shape (n_samples,), default=None
            How checked rows were chosen: "random", "per_class" or "looked_up". None guesses.
        votes : array of shape (n_samples, n_sources), or data frame, default=None
            Labels by several annotators, rules or models, in addition to y. In an array of whole
            numbers -1 is no label.

        Raises
        ------
        InputError
            Data or settings are wrong. It is a ValueError.
        """
        from mlc_jax.labels import correct

        X = as_frame(X)
        _check_dense(X)
        _check_order({"X": X, "y": y, "checked": checked, "drawn": drawn, "votes": votes})
        kind = memory.kind_of(X)
        x = X if kind != memory.ARRAYS else memory.as_array(X)
        labels = _labels(X, y, checked, drawn, votes, _num_rows(x))
        named = correct.named_classes(self.class_names)
        labels = labels._replace(said=labels.said._replace(classes=tuple(named)))
        seed = 0
        if self.random_state is not None:
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        settings = correct.settings_of(
            kind, self.method, self.model, seed, self.encoder, self.num_epochs
        )
        if not any(Frame("checked", labels.columns).texts("checked_label")):
            if settings.method != "cross_fit":
                raise InputError(
                    f"checked: no row is checked, and {settings.method} needs some; expected them, "
                    "or method='auto'"
                )
            warnings.warn(
                "No row is checked: there is no estimate of how good the labels are, and no "
                "verdict. Check some at random, and pass them as checked=.", stacklevel=3,
            )  # fmt: skip
        reader = correct.reader_of(settings, self.encoder)
        read = correct.read_of(settings, reader)
        own = memory.from_memory(x, labels, read=read, drawn=_one_text(drawn))
        columns = [labels.columns[name] for name in labels.columns if name != "drawn"]
        result = correct.train(
            settings, own, kind, classes=correct.classes_of(own, columns, named),
            progress=self.verbose > 0, reader=reader,
        )  # fmt: skip
        assert result.rows is not None
        self._keep(result, x, kind)
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities (n_samples, n_classes) of new examples, in the order of `classes_`."""
        check_is_fitted(self)
        X = as_frame(X)
        _check_dense(X)
        if self.result_.kind == "arrays":
            X = memory.as_array(X)
            if X.shape[1:] != self._shape:
                raise InputError(
                    f"X has {X.shape[1]} features, but LabelCorrector is expecting "
                    f"{self.n_features_in_} features as input"
                    if X.ndim == 2 and len(self._shape) == 1
                    else f"X: got examples of shape {X.shape[1:]}, expected {self._shape}"
                )
        return self.result_.predict_proba(X)[:, self._order]

    def predict(self, X: Any) -> np.ndarray:
        """The most probable labels (n_samples,) of new examples."""
        probs = self.predict_proba(X)
        return self.classes_[probs.argmax(axis=1)]

    def score(self, X: Any, y: Any, checked: Any = None, sample_weight: Any = None) -> float:
        """Accuracy on the checked rows; without any, accuracy on y, with a warning.

        Parameters
        ----------
        X, y, checked : see `fit`
        sample_weight : array of shape (n_samples,), default=None
        """
        predicted = self.predict(X)
        columns = _columns(y, checked)
        _check_lengths(columns, len(predicted))
        truth = np.array(Frame("checked", columns).texts("checked_label"))
        if not (truth != "").any():
            warnings.warn(
                "No row is checked: the score is accuracy on y, whose labels may be wrong.",
                stacklevel=2,
            )
            truth = np.array(Frame("y", columns).texts("label"))
        there = truth != ""
        said = np.array(Frame("predicted", {"label": predicted}).texts("label"))
        weight = np.ones(len(there)) if sample_weight is None else np.asarray(sample_weight)
        _check_lengths({"sample_weight": weight}, len(predicted))
        if not weight[there].sum():
            raise InputError("sample_weight: is 0 in all rows that are judged, expected more")
        return float(np.average(said[there] == truth[there], weights=weight[there]))

    def _keep(self, result: "Result", x: Any, kind: str) -> None:
        rows = result.rows
        assert rows is not None
        self.result_ = result
        # scikit-learn's scorers rely on sorted classes; the result may have the texts 2, 9, 10.
        self._order = np.argsort(result.classes, kind="stable")
        self.classes_ = result.classes[self._order]
        self.labels_ = result.classes[rows.corrected_label]
        self.label_quality_ = rows.label_quality
        self.soft_labels_ = rows.soft_label[:, self._order]
        for name in ("n_features_in_", "feature_names_in_"):
            self.__dict__.pop(name, None)
        if kind == memory.TABLE:
            self.feature_names_in_ = np.asarray([str(name) for name in x], object)
            self.n_features_in_ = len(self.feature_names_in_)
        elif kind == memory.ARRAYS:
            self._shape = x.shape[1:]
            self.n_features_in_ = x.shape[1]


def _check_order(given: dict[str, Any]) -> None:
    """Refuses pandas objects whose rows differ in order; rows are matched by position."""
    indexes = {name: x.index for name, x in given.items() if hasattr(x, "iloc")}
    first = next(iter(indexes), "")
    for name, index in indexes.items():
        if not index.equals(indexes[first]) and {*index} == {*indexes[first]}:
            raise InputError(
                f"{name}: its index is that of {first} in another order; expected the rows in one "
                f"order: {name}.loc[{first}.index], or {name}.to_numpy() if they are"
            )


def _check_dense(x: Any) -> None:
    if hasattr(x, "toarray"):
        raise TypeError(
            "X: Sparse data was passed, but dense data is required. Use X.toarray(), or fewer "
            "features by sklearn.decomposition.TruncatedSVD"
        )


def _labels(
    x: Any, y: Any, checked: Any, drawn: Any, votes: Any, num_rows: int
) -> memory.LabelsInMemory:
    """Columns of labels, as in a file, all of one length.

    Raises:
      InputError: lengths differ, labels have an unknown type, or a source has a column's name.
    """
    if y is None and votes is not None:
        y = np.full(num_rows, None)
    names, sources = ([], None) if votes is None else _sources(votes)
    columns = _columns(y, checked, sources)
    if drawn is not None and not isinstance(drawn, str):
        columns["drawn"] = drawn
    said = Said()
    if sources is not None:
        for source in sources:
            _check_lengths({"votes": source}, num_rows)
        features = {str(name) for name in x} if memory.kind_of(x) == memory.TABLE else set()
        for name in names:
            if name in NAMES or name in features:
                other = "X has one" if name in features else f"{name!r} has a meaning of its own"
                raise InputError(f"votes: has a column {name!r}; expected another name: {other}")
        columns |= dict(zip(names, sources, strict=True))
        if (np.array(Frame("y", columns).texts("label")) != "").any():
            names = ["label", *names]
        said = Said(tuple(names))
    _check_lengths(columns, num_rows)
    return memory.LabelsInMemory(columns, said)


def _check_lengths(columns: dict[str, Any], num_rows: int) -> None:
    for name, column in columns.items():
        if len(column) != num_rows:
            name = {"label": "y", "checked_label": "checked"}.get(name, name)
            raise InputError(
                f"{name}: Found input variables with inconsistent numbers of samples: "
                f"[{num_rows}, {len(column)}]; expected one for each row of X"
            )


def _columns(y: Any, checked: Any, sources: list[Any] | None = None) -> dict[str, Any]:
    """The columns `label` and `checked_label`; `sources` are further labels, `[N]` each."""
    if y is None:
        raise InputError("y: LabelCorrector requires y to be passed, but the target y is None")
    label = _one_dimensional("y", y)
    if label.dtype.kind == "c":
        raise InputError("y: Complex data not supported; expected names or whole numbers")
    if label.dtype.kind == "O":
        kinds = {isinstance(x, str) for x in label.tolist() if not is_missing(x)}
        if len(kinds) > 1:
            raise InputError("y: has texts and numbers, expected one of them")
    if label.dtype.kind == "f" and np.isinf(label).any():
        raise InputError("y: Input contains infinity; expected names or whole numbers, or NaN")
    if label.dtype.kind in "fc" and type_of_target(label[label == label]).startswith("continuous"):
        raise InputError("y: Unknown label type: continuous; expected names or whole numbers")
    texts = Frame("y", {"label": label})
    if not any(texts.texts("label")) and checked is None and sources is None:
        raise InputError("y: Input contains NaN: no row has a label; expected labels, or votes=")
    if checked is None:
        return {"label": label, "checked_label": [""] * len(label)}
    truth = _one_dimensional("checked", checked)
    said = Frame("checked", {"checked_label": truth}).texts("checked_label")
    if str(_UNCHECKED) in said and str(_UNCHECKED) in texts.texts("label"):
        if "" not in said:
            raise InputError(
                "checked: has -1, which is a class of y; expected None or NaN where nobody looked"
            )
    elif str(_UNCHECKED) in said and not ("" in said and _say_unchecked(sources or [])):
        unchecked = np.array([text == str(_UNCHECKED) for text in said])
        truth = without(truth, unchecked)
    return {"label": label, "checked_label": truth}


def _say_unchecked(sources: list[Any]) -> bool:
    """Whether -1 is a label of some source."""
    return any(str(_UNCHECKED) in Frame("votes", {"x": x}).texts("x") for x in sources)


def _one_dimensional(name: str, values: Any) -> Any:
    if hasattr(values, "columns"):
        values = values.to_numpy()
    if hasattr(values, "isna") and not isinstance(values.dtype, np.dtype):
        values = without(np.asarray(values, object), np.asarray(values.isna()))
    if isinstance(values, list | tuple) and any(isinstance(x, str) for x in values):
        objects = np.empty(len(values), object)  # NumPy would make the text "nan" of NaN.
        objects[:] = values
        values = objects
    if isinstance(values, np.ma.MaskedArray):
        values = without(values.data, np.ma.getmaskarray(values))
    array = np.asarray(values)
    if array.ndim == 2 and array.shape[1] == 1:
        warnings.warn(
            f"A column-vector {name} was passed when a 1d array was expected. Please change the "
            "shape to (n_samples,), for example using ravel().",
            DataConversionWarning, stacklevel=6,
        )  # fmt: skip
        array = array[:, 0]
    if array.ndim != 1:
        raise InputError(f"{name}: got shape {array.shape}, expected [N]")
    return array


def _sources(votes: Any) -> tuple[list[str], list[Any]]:
    """Names of sources, and the labels of each."""
    if hasattr(votes, "columns") or isinstance(votes, dict):
        return [str(name) for name in votes], [votes[name] for name in votes]
    array = np.asarray(votes)
    if array.ndim != 2:
        raise InputError(f"votes: got shape {array.shape}, expected [N, S]")
    if is_one_hot(array):
        raise InputError(
            f"votes: one-hot, expected a label of each of {array.shape[1]} sources; or "
            "y=votes.argmax(axis=1) if these are classes"
        )
    missing = array == _UNCHECKED if array.dtype.kind in "iu" else np.zeros(array.shape, bool)
    columns = without(array, missing)
    return [f"source_{number}" for number in range(array.shape[1])], [*columns.T]


def _one_text(drawn: Any) -> str | None:
    if not isinstance(drawn, str):
        return None
    expect(drawn in DRAWN, "drawn", drawn, f"{', '.join(DRAWN)}, or one for each row")
    return drawn


def _num_rows(x: Any) -> int:
    if hasattr(x, "columns"):
        return len(x)
    return len(next(iter(x.values()))) if isinstance(x, dict) else len(x)
