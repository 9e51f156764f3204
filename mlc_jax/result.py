"""The result of a run: labels, how good they are, and a classifier."""

import dataclasses
import functools
import html
import pathlib
import tempfile
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import special

from mlc_jax.config.checks import is_whole
from mlc_jax.core import TrainState
from mlc_jax.data import Source, Subset
from mlc_jax.data.prepare import Normalize
from mlc_jax.errors import InputError, expect, readable
from mlc_jax.examples import check_layout, create_source, prepare_for
from mlc_jax.files.columns import Columns
from mlc_jax.methods import BoundMethod, Method
from mlc_jax.training import stack

if TYPE_CHECKING:
    import pandas

    from mlc_jax.report.corrected import Corrected
    from mlc_jax.report.verdict import Verdict
    from mlc_jax.training.evaluate import Prediction
    from mlc_jax.training.run import Run

_SHOWN = 10  # Rows of a notebook's table.


@dataclasses.dataclass(frozen=True, eq=False)
class Trained:
    """The data from which the files of a workdir are written.

    Attributes:
      run: the run.
      progress: the loop's description, evaluations and seconds.
      of_noisy: predictions for the noisy examples.
    """

    run: "Run"
    progress: dict[str, Any]
    of_noisy: "Prediction"


@dataclasses.dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class Result:
    """Corrected labels, how good they are, and a classifier.

    It can be pickled if its method can. N is the number of noisy examples, C that of classes.

    Attributes:
      labels: `[N]`, corrected labels of the noisy examples, in their order; numbers or names, as
        they were given.
      label_quality: `[N]`, probability that the given label is right; NaN if there is none.
      soft_labels: `[N, C]`, probabilities of the classes.
      given_labels: `[N]`; with several sources the majority vote. -1 or "" if there is none.
      ids: `[N]` text, names of the noisy examples.
      classes: `[C]`, the label of each column of `soft_labels` and `predict_proba`.
      figures: as in `results.json`; None where truth or a test set is missing.
      state: the trained state.
      method: the method with its settings.
      sizes: the sizes of the data that the method is bound to; see `Run.sizes`.
      prepare: maps stored inputs `[B, ...]` to what the model takes.
      read: maps a user's inputs to a source like the training data.
      kind: the kind of inputs: arrays, table, text or image_folder.
      columns: how a table's columns become features; None for other inputs.
      frame: the data frame that was passed to `correct_labels`.
      rows: the labels of all rows, from `correct_labels` and `LabelCorrector`.
      predictions: of `cross_fit`: labels `[N]` of the same examples by three classifiers, which did
        not learn from the row. `predicted_label` is the prediction without the given label. The
        classifier of `predicted_by_checked` learned only from checked rows, that of
        `predicted_by_given` from labels as given. They are the columns of `predicted_labels.csv`;
        empty in a result that was loaded.
      checked_rows: of `cross_fit`: the columns `[M]` of `checked_rows.csv`. They are `id`, `drawn`,
        `given_label` and `checked_label` of checked rows, and the same predictions as for the
        others, by classifiers that did not see the check. A row that does not judge, such as one
        that was looked up, has no prediction (-1 or ""). Empty in a result that was loaded.
      sources: with several labels per row, a dict for each source: how many labels it gave, how
        many are right, what it confuses. `pandas.DataFrame(result.sources)` is the table of
        `sources.csv`; empty in a result that was loaded.
      trained: the data for a report; None in a result that was loaded.
    """

    labels: np.ndarray
    label_quality: np.ndarray
    soft_labels: np.ndarray
    given_labels: np.ndarray
    ids: np.ndarray
    classes: np.ndarray
    figures: dict[str, Any]
    state: TrainState
    method: Method
    sizes: dict[str, Any]
    prepare: Callable[[Any], Any]
    read: Callable[[Any], Source] = create_source
    kind: str = "arrays"
    columns: Columns | None = None
    frame: Any = None
    rows: "Corrected | None" = None
    predictions: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    checked_rows: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    sources: Sequence[dict[str, Any]] = ()
    trained: Trained | None = None

    @functools.cached_property
    def bound(self) -> BoundMethod:
        """The method's functions."""
        return bind(self.method, self.sizes, self.prepare)

    @property
    def verdict(self) -> "Verdict | None":
        """How good the labels are, measured on hidden checks; print it. Only from `cross_fit`."""
        from mlc_jax.report.verdict import Verdict

        stored = self.figures.get("verdict")
        return None if stored is None else Verdict.from_json(stored)

    def predict_proba(self, x: Any, *, batch_size: int = 1000) -> np.ndarray:
        """The classifier's probabilities `[n, C]` for inputs like those it was trained on.

        Args:
          x: as in `Examples`; texts for a run that was given texts. For runs on tables, a data
            frame or a dict of columns; on pictures, their paths, a directory of them, or a table
            with a column `path`.
          batch_size: inputs per batch, over all devices.

        Raises:
          InputError: inputs of other shapes, types or columns.
        """
        return self.predict_source(self.read(x), batch_size=batch_size)

    def predict_source(self, source: Source, *, batch_size: int = 1000) -> np.ndarray:
        """`predict_proba` for a source of inputs in the stored form."""
        from mlc_jax.training import evaluate

        expect(is_whole(batch_size) and batch_size > 0, "batch_size", batch_size, "1 or more")
        check_layout(source, self.sizes["example"])
        if not len(source):
            return np.zeros((0, len(self.classes)), np.float32)
        subset = Subset.whole(source)
        labels = evaluate.no_labels(self.method, len(subset), num_sources(self.sizes))
        reader = evaluate.create_reader([subset], [labels], batch_size=batch_size)
        logits = self._predict(self.state, reader, [subset.given])[0].logits.astype(np.float32)
        probs: np.ndarray = special.softmax(logits, axis=-1)
        return probs

    @functools.cached_property
    def _predict(self) -> Any:
        """The compiled prediction; cached, because compiling takes seconds."""
        from mlc_jax.training import evaluate

        return evaluate.create_predict(self.bound)

    def predict(self, x: Any, *, batch_size: int = 1000) -> np.ndarray:
        """The most probable label `[n]` of each input."""
        return self.classes[self.predict_proba(x, batch_size=batch_size).argmax(axis=1)]

    def to_frame(self) -> "pandas.DataFrame":
        """A row for each example, under cleanlab's names.

        After `correct_labels` it is the frame with four more columns. `corrected_label` is right
        with the probability `confidence`, the given label with the probability `label_quality`.
        `is_label_issue` says whether the given label was corrected. If the frame already has one of
        these columns, ours are called `mlc_...`, as in `corrected.csv`.

        Otherwise a row for each noisy example: `id`, `is_label_issue`, `label_quality`,
        `given_label`, `predicted_label` (the corrected one), `confidence`. That table goes into
        cleanlab's `CleanLearning.fit(..., label_issues=table)`.
        """
        import pandas

        from mlc_jax.report.corrected import added_names

        if self.rows is None or self.frame is None:
            issues = (self.labels != self.given_labels) & ~np.isnan(self.label_quality)
            return pandas.DataFrame({
                "id": self.ids,
                "is_label_issue": issues,
                "label_quality": self.label_quality,
                "given_label": self.given_labels,
                "predicted_label": self.labels,
                "confidence": self.soft_labels.max(axis=1),
            })  # fmt: skip
        rows = self.rows
        frame = self.frame if hasattr(self.frame, "assign") else pandas.DataFrame(self.frame)
        added = (
            self.classes[rows.corrected_label],
            rows.confidence,
            rows.label_quality,
            rows.is_label_issue,
        )
        names = added_names([str(name) for name in frame.columns])
        return frame.assign(**dict(zip(names, added, strict=True)))

    def report(self, path: str | pathlib.Path) -> None:
        """Writes the report, one page, to a file.

        The files that it names are those of `save("DIR")`.

        Raises:
          InputError: the result was loaded, and so has a `report.html` in its workdir already; or
            the file cannot be written.
        """
        from mlc_jax.report import report

        with tempfile.TemporaryDirectory() as directory:
            self._write(pathlib.Path(directory), shown="DIR")
            page = (pathlib.Path(directory) / report.PAGE_FILE).read_bytes()
        try:
            pathlib.Path(path).write_bytes(page)
        except OSError as error:
            raise InputError(f"path: cannot write {str(path)!r} ({error.strerror})") from error

    def save(self, workdir: str | pathlib.Path) -> None:
        """Writes a workdir, as a run with `workdir=` does: `mlc_jax.load` reads it.

        Raises:
          InputError: the result was loaded; or the directory cannot be written, or is not empty.
        """
        place = pathlib.Path(workdir)
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise InputError(f"workdir: {str(place)!r} is not empty; expected a new directory")
        self._write(place, state=self.state)

    def _write(self, place: pathlib.Path, state: TrainState | None = None, shown: str = "") -> None:
        from mlc_jax.training.recorder import write_run
        from mlc_jax.workdir.workdir import locked_workdir

        if self.trained is None:
            raise InputError(
                "result: it was loaded; expected one of `fit` or `correct_labels`. What was loaded "
                "from a workdir has its files there"
            )
        from mlc_jax.report import report

        run, progress, of_noisy = self.trained.run, self.trained.progress, self.trained.of_noisy
        with locked_workdir(str(place)) as workdir:
            if state is not None:
                write_run(run, progress, state, workdir)
            report.write(run, progress, of_noisy, workdir, shown=shown)

    def __repr__(self) -> str:
        changed = int(np.sum((self.labels != self.given_labels) & ~np.isnan(self.label_quality)))
        head = (
            f"<Result of {self.method.name}: {len(self.labels):,} doubtful labels of "
            f"{len(self.classes)} classes, {changed:,} changed"
        )
        verdict = self.verdict
        return f"{head}>" if verdict is None else f"{head}. {verdict.sentence}>"

    def _repr_html_(self) -> str:
        """For notebooks: the verdict, the most frequent changes, and the least trusted rows."""
        from mlc_jax.report.corrected import added_names

        verdict = self.verdict
        lines = [repr(self)] if verdict is None else verdict.lines()
        told = [html.escape(line) for line in lines]
        changes = ", ".join(f"{name}: {n}" for name, n in self.figures["most_changed"].items())
        frame, quality = self.to_frame(), self.label_quality
        if self.rows is not None and self.frame is not None:
            quality, ours = self.rows.label_quality, added_names([str(x) for x in self.frame])
            # Ours first: wide frames are cut.
            frame = frame[[*ours, *(name for name in frame.columns if name not in ours)]]
        worst = frame.iloc[np.argsort(quality, kind="stable")[:_SHOWN]]
        return (
            f"<pre>{chr(10).join(told)}</pre>"
            f"<p>Most often changed: {html.escape(readable(changes) or '-')}</p>"
            f"{worst.to_html(max_cols=12, escape=True)}"
        )

    def __getstate__(self) -> dict[str, Any]:
        kept = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return kept | {"state": jax.tree.map(_to_host, self.state), "trained": None}

    def __setstate__(self, kept: Mapping[str, Any]) -> None:
        is_key = lambda x: isinstance(x, _Key)  # noqa: E731
        state = jax.tree.map(_from_host, kept["state"], is_leaf=is_key)
        self.__dict__.update(kept, state=state)


class _Key(tuple):
    """A random key on the host."""


def _to_host(leaf: Any) -> Any:
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return _Key((str(jax.random.key_impl(leaf)), np.asarray(jax.random.key_data(leaf))))
    return np.asarray(leaf)


def _from_host(leaf: Any) -> Any:
    if isinstance(leaf, _Key):
        return jax.random.wrap_key_data(jnp.asarray(leaf[1]), impl=leaf[0])
    return leaf


def bind(method: Method, sizes: Mapping[str, Any], prepare: Callable[[Any], Any]) -> BoundMethod:
    """A method's functions for data of certain sizes; see `Run.sizes`."""
    return method.bind(
        num_noisy=sizes["num_noisy"],
        num_classes=len(sizes["class_names"]),
        steps_per_epoch=sizes["steps_per_epoch"],
        num_epochs=sizes["num_epochs"],
        prepare=prepare,
        axis_name=stack.AXIS_NAME,
        num_sources=num_sources(sizes),
    )


def num_sources(sizes: Mapping[str, Any]) -> int:
    """S, the number of sources of given labels; see `Run.sizes`."""
    return len(sizes.get("sources", "1"))


def stored_prepare(sizes: Mapping[str, Any]) -> Callable[[Any], Any]:
    """`prepare` as stored in a workdir; only `fit` takes a user's own functions."""
    stored = sizes["prepare"]
    return Normalize(**stored) if stored else prepare_for(sizes["example"])
