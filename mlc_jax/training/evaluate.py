"""Predictions for every example of a set, each exactly once, on any number of devices."""

import functools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import numpy as np

from mlc_jax.core import Inputs, Rows, TrainState
from mlc_jax.data.folds import AllRows, of_one_length
from mlc_jax.data.reading import EvaluationReader
from mlc_jax.data.source import UNKNOWN, Subset
from mlc_jax.data.votes import quality_of
from mlc_jax.methods import BoundMethod, Method
from mlc_jax.methods.cross_fit import CrossFit
from mlc_jax.methods.types import Classify, CorrectLabels
from mlc_jax.training import stack
from mlc_jax.training.run import Run
from mlc_jax.training.stack import AXIS_NAME, over_devices


class Prediction(NamedTuple):
    """Predictions for N examples.

    Attributes:
      logits: of the classifier, `[N, C]`.
      soft_labels: the method's soft labels, `[N, C]`.
      label_quality: its trust in the given labels, `[N]` in [0, 1].
      out_of_fold: for a cross-fitted method, `BoundMethod.out_of_fold`: probabilities `[N, C]` by
        name; those of clean examples are under `CHECKED`.
    """

    logits: np.ndarray
    soft_labels: np.ndarray
    label_quality: np.ndarray
    out_of_fold: dict[str, Any] | None = None


CHECKED = "checked_rows"
_USUAL = 1_000  # The default number of examples in a batch.

# (state, reader, each run's given labels `[N]`) -> one prediction for each run.
PredictFn = Callable[[TrainState, EvaluationReader, Sequence[np.ndarray]], list[Prediction]]


class Evaluator:
    """Predictions for the sets of a stack of runs.

    Args:
      runs: runs of one shape.

    Attributes:
      out_of_fold: a cross-fitted method's compiled `out_of_fold`, or None.
    """

    def __init__(self, runs: Sequence[Run]):
        self._runs = runs
        self._predict = create_predict(runs[0].bound, num_runs=len(runs))
        self._readers: dict[str, tuple[EvaluationReader, Sequence[np.ndarray]]] = {}
        out_of_fold = runs[0].bound.out_of_fold
        self.out_of_fold = _out_of_fold(out_of_fold, len(runs)) if out_of_fold else None

    def predict(self, state: TrainState, name: str) -> list[Prediction]:
        """Each run's predictions for one of its sets.

        Sets are `noisy`, `clean`, `exported`, `probe`, `test`, `validation` and `judged`. If the
        method learns a label for each noisy example, `exported` and `probe` have these labels.
        """
        if self.out_of_fold and name in ("exported", "probe"):
            return self._of_rows(state, name)
        if name not in self._readers:
            examples = [_examples(run, name) for run in self._runs]
            subsets, given, labels = zip(*examples, strict=True)
            batch_size = self._runs[0].settings.eval_batch_size
            reader = create_reader(subsets, labels, batch_size=batch_size)
            self._readers[name] = reader, given
        reader, given = self._readers[name]
        predictions = self._predict(state, reader, given)
        learned_labels = self._runs[0].bound.learned_labels
        if learned_labels is None or name not in ("exported", "probe"):
            return predictions
        learned = stack.per_run(learned_labels, state, len(self._runs))
        positions = self._runs[0].probe if name == "probe" else np.arange(len(given[0]))
        return [
            _with_labels(prediction, np.asarray(soft)[positions], labels)
            for prediction, soft, labels in zip(predictions, learned, given, strict=True)
        ]

    def _of_rows(self, state: TrainState, name: str) -> list[Prediction]:
        """Predictions for noisy examples by classifiers that did not train on them."""
        assert self.out_of_fold is not None
        together = jax.device_get(self.out_of_fold(state, rows_on_devices(tuple(self._runs))))
        return [
            _of_noisy(run, probs, run.probe if name == "probe" else np.arange(len(run.exported)))
            for run, probs in zip(self._runs, stack.split(together, len(self._runs)), strict=True)
        ]


@functools.lru_cache(maxsize=8)  # Fits of one shape share the compiled program.
def _out_of_fold(out_of_fold: Callable[[TrainState, Rows], Any], num_runs: int) -> Any:
    return stack.over_devices(out_of_fold, num_runs=num_runs)


@functools.lru_cache(maxsize=1)  # The loop and the evaluator of a run share them.
def rows_on_devices(runs: tuple[Run, ...]) -> Rows:
    """All rows of cross-fitted runs, `[devices, ...]`, or `[devices, runs, ...]`."""
    rows = of_one_length([cast(AllRows, run.pipeline).rows for run in runs])
    return cast(Rows, stack.on_all_devices(rows))


def _of_noisy(run: Run, probs: dict[str, np.ndarray], positions: np.ndarray) -> Prediction:
    num_noisy = len(run.dataset.noisy)
    noisy = {name: x[:num_noisy][positions] for name, x in probs.items()}
    soft = noisy[cast(CrossFit, run.method).take]
    given = run.dataset.noisy.given[positions]
    num_rows = num_noisy + len(run.dataset.clean)  # All rows after these are padding.
    clean = {name: x[num_noisy:num_rows] for name, x in probs.items()}
    with np.errstate(divide="ignore"):
        logits = np.log(noisy["classifier"])
    return Prediction(logits, soft, quality_of(soft, given), noisy | {CHECKED: clean})


def _examples(run: Run, name: str) -> tuple[Subset, np.ndarray, np.ndarray]:
    """A set, the label to correct of each example, `[N]`, and labels as the method takes them."""
    subset, given = _labelled(run, name)
    if not run.method.takes_votes:
        return subset, given, given
    if name in ("test", "validation"):  # Only the classifier is asked, and votes may be unknown.
        sources = run.dataset.noisy.all_votes.shape[1]
        return subset, given, no_labels(run.method, len(subset), sources)
    return subset, given, subset.all_votes


def _labelled(run: Run, name: str) -> tuple[Subset, np.ndarray]:
    dataset = run.dataset
    if name in ("noisy", "clean"):
        return dataset.trained_on(name)
    if name == "judged":
        assert dataset.judged is not None
        return dataset.judged, dataset.judged.given
    if name in ("test", "validation"):
        subset = dataset.test if name == "test" else dataset.validation
        assert subset is not None
        return subset, subset.truth
    subset = run.exported if name == "exported" else dataset.noisy.take(run.probe)
    return subset, subset.given


def no_labels(method: Method, size: int, num_sources: int) -> np.ndarray:
    """Labels for predictions that need none: `[N, S]` if the method takes votes, else `[N]`."""
    if method.takes_votes:
        return np.full((size, num_sources), UNKNOWN, np.int32)
    return np.zeros(size, np.int32)


def _with_labels(prediction: Prediction, soft: np.ndarray, given: np.ndarray) -> Prediction:
    return prediction._replace(soft_labels=soft, label_quality=quality_of(soft, given))


def create_reader(
    subsets: Sequence[Subset], labels: Sequence[np.ndarray], *, batch_size: int
) -> EvaluationReader:
    """A reader of one set per run, all of one size, for the devices of this process.

    Args:
      subsets: the sets.
      labels: for each run the labels to correct, `[N]`, or `[N, S]` if the method takes votes.
      batch_size: over all devices; rounded up to a multiple of their number. It is reduced to the
        size of the set, but not below `_USUAL`, so that one program serves all small sets.
    """
    num_devices = jax.device_count()
    batch_size = min(batch_size, max(_USUAL, *map(len, subsets)))
    return EvaluationReader(
        subsets,
        labels,
        -(-batch_size // num_devices) * num_devices,
        num_devices=jax.local_device_count(),
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )


def create_predict(bound: BoundMethod, *, num_runs: int = 1) -> PredictFn:
    """Builds a predictor over all devices of all processes.

    Every process reads and computes its share and gets all rows back. The last batch is padded, so
    that one shape is compiled, and the padding is cut off again.

    Args:
      bound: has the classifier, which uses its running batch statistics, and `correct_labels`.
      num_runs: as for `over_devices`.
    """
    on_host, classify = bound.on_host, bound.classify
    assert classify is not None
    step = _predict_step(
        on_host.classify if on_host else classify,
        bound.correct_labels,
        bound.label_quality,
        num_runs,
    )

    def predict(
        state: TrainState, reader: EvaluationReader, given: Sequence[np.ndarray]
    ) -> list[Prediction]:
        size, outputs = len(given[0]), []
        for inputs, labels in reader:
            prepared = on_host.prepare(inputs) if on_host else inputs
            output = jax.device_get(step(state, (prepared, labels)))
            outputs.append(jax.tree.map(lambda x: x[None], output) if num_runs == 1 else output)
        logits, soft_labels, quality = jax.tree.map(
            lambda *parts: np.concatenate(parts, axis=1)[:, :size], *outputs
        )
        if quality is None:
            pairs = zip(soft_labels, given, strict=True)
            quality = [quality_of(soft, labels) for soft, labels in pairs]
        parts = zip(logits, soft_labels, quality, strict=True)
        return [Prediction(*of_run) for of_run in parts]

    return predict


@functools.lru_cache(maxsize=8)
def _predict_step(
    classify: Classify, correct_labels: CorrectLabels, label_quality: CorrectLabels | None,
    num_runs: int,
) -> Any:  # fmt: skip
    """(state, (inputs, given labels)) -> logits, soft labels and label quality of a batch.

    Outputs are gathered from all devices. Without `label_quality` the quality is None.
    """

    def body(state: TrainState, examples: tuple[Inputs, jax.Array]) -> Any:
        inputs, labels = examples
        logits, evidence = classify(state, inputs)
        soft_labels = correct_labels(state, evidence, logits, labels)
        quality = label_quality(state, evidence, logits, labels) if label_quality else None
        gather = partial(jax.lax.all_gather, axis_name=AXIS_NAME, tiled=True)
        return jax.tree.map(gather, (logits, soft_labels, quality))

    return over_devices(body, num_runs=num_runs)


def selected(evals: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The first evaluation with the best validation accuracy in the last phase; None without."""
    validated = [
        row
        for row in evals
        if row["phase"] == evals[-1]["phase"] and row["validation_accuracy"] is not None
    ]
    return max(validated, key=lambda row: row["validation_accuracy"], default=None)


def scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Accuracy and mean cross-entropy (nats) of logits `[N, C]` against labels `[N]`."""
    logits = logits.astype(np.float64)
    top = logits.max(axis=-1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=-1))
    loss = log_sum - logits[np.arange(len(labels)), labels]
    return {
        "accuracy": float(np.mean(logits.argmax(axis=-1) == labels)),
        "loss": float(loss.mean()),
    }
