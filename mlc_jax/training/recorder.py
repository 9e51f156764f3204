"""Records one run while it trains: metrics, checkpoints, or its failure."""

import contextlib
import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from mlc_jax import paths
from mlc_jax.core import TrainState
from mlc_jax.data.source import Subset, read_rows
from mlc_jax.data.votes import is_changed
from mlc_jax.errors import CheckpointError, NonFiniteLossError
from mlc_jax.training import evaluate, stack
from mlc_jax.training.metrics import MetricWriter
from mlc_jax.training.run import Run
from mlc_jax.workdir import checkpoint
from mlc_jax.workdir.described import has_key
from mlc_jax.workdir.workdir import CONFIG_FILE, DATASET_FILE

_PROBED = 500  # Number of inputs to inspect after a run diverged.
_SCALED = 1e3  # Inputs with larger numbers are not scaled.


@dataclasses.dataclass
class Recorder:
    """One run of the stack.

    Attributes:
      run: the run.
      progress: saved in addition to the state: description, evaluations, seconds.
      workdir: the run's; None keeps everything in memory.
      checkpointer: saves to `workdir`.
      failure: why the run was given up; other runs of the stack continue.
      newest: metrics of the newest finished step.
    """

    run: Run
    progress: dict[str, Any]
    workdir: epath.Path | None = None
    checkpointer: checkpoint.Checkpointer | None = None
    failure: NonFiniteLossError | None = None
    newest: dict[str, float] = dataclasses.field(default_factory=dict)
    _writer: MetricWriter | None = None
    _kept: TrainState | None = None

    def open(self, step: int) -> None:
        """Opens the metrics files, and describes a new run in the workdir; one process does."""
        if self.workdir is None:
            return
        self._writer = MetricWriter(self.workdir, start_step=step)
        # The checkpoint belongs to this run, so damaged files may be written again.
        if step == 0 or not self._has(CONFIG_FILE, "method"):
            text = json.dumps(self.run.description, indent=2, sort_keys=True) + "\n"
            paths.write(self.workdir / CONFIG_FILE, text.encode())
        if not self._has(DATASET_FILE, "class_names"):
            text = json.dumps(self.run.sizes(), indent=2) + "\n"
            paths.write(self.workdir / DATASET_FILE, text.encode())

    def _has(self, name: str, key: str) -> bool:
        """Whether the workdir has this file, undamaged."""
        assert self.workdir is not None
        file = self.workdir / name
        return file.exists() and has_key(file.read_bytes(), key)

    def close(self) -> None:
        if self._writer:
            self._writer.close()

    def write(self, step: int, group: str, row: Mapping[str, Any]) -> None:
        """Writes the metrics of a step as `group/name`."""
        if self._writer:
            self._writer.write(step, {f"{group}/{name}": value for name, value in row.items()})

    def check(self, step: int, metrics: dict[str, float]) -> None:
        """Stores the metrics of a step; gives the run up if one of them is not finite."""
        self.newest = metrics
        bad = [f"{name} is {x}" for name, x in metrics.items() if not np.isfinite(x)]
        if bad:
            self.give_up(f"step {step}: {', '.join(bad)}.")

    def give_up(self, problem: str) -> None:
        """Records that the run diverged."""
        if self.failure is not None:
            return
        good = "There is no checkpoint."
        last = self.checkpointer.latest_step() if self.checkpointer else None
        if self.workdir is not None and last is not None:
            good = f"Last good checkpoint: {self.workdir / checkpoint.DIRECTORY / str(last)}."
        self.failure = NonFiniteLossError(f"{problem}\n{good} {self._advice()}")
        logging.warning("%s has failed and is stopped: %s", self.workdir, self.failure)

    def _advice(self) -> str:
        """The most likely remedy. For inputs that are not scaled no learning rate helps."""
        dataset = self.run.dataset
        rows = dataset.noisy.rows[:: max(1, len(dataset.noisy) // _PROBED)]
        inputs = jax.tree.map(np.asarray, dataset.prepare(read_rows(dataset.noisy.source, rows)))
        largest = 0.0
        for leaf in jax.tree.leaves(inputs):
            if np.issubdtype(leaf.dtype, np.floating) and leaf.size:
                if not np.isfinite(leaf).all():
                    return "Some inputs are not finite; expected them left out or filled in."
                largest = max(largest, float(np.abs(leaf).max()))
        if largest > _SCALED:
            return (
                f"Inputs are as large as {largest:.3g}; expected them scaled to mean 0 and "
                "deviation 1: dataset.standardize=True of files, prepare=... of fit."
            )
        return "Lower main_optimizer.learning_rate or meta_optimizer.learning_rate."

    def save(self, step: int, state: TrainState) -> None:
        """Starts to save, unless the run has failed or a parameter is not finite.

        Without a workdir it copies a state that the run may end with.
        """
        if self.failure is None and not checkpoint.all_finite(state):
            self.give_up(f"step {step}: a parameter is not finite.")
        if self.failure is not None:
            return
        if self.checkpointer:
            self.checkpointer.save(step, state, self.progress, self._selected)
            self._flush()
        elif self._selected(step) == step:
            self._kept = jax.device_put(state, may_alias=False)  # The next step donates the state.

    def wait(self) -> None:
        """Blocks until all saves are on disk."""
        if self.failure is None and self.checkpointer:
            self.checkpointer.wait()

    @property
    def has_new_best(self) -> bool:
        """Whether the state of the newest evaluation is the best one and must be saved."""
        evals = self.progress["evals"]
        return (
            self.failure is None
            and self.run.settings.best == "validation"
            and evals[-1]["phase"] == len(self.run.bound.phases) - 1
            and evaluate.selected(evals) is evals[-1]
        )

    def _selected(self, step: int) -> int | None:
        """The step of the best state that was evaluated up to a step."""
        if self.run.settings.best == "last":
            return None
        row = evaluate.selected([row for row in self.progress["evals"] if row["step"] <= step])
        return None if row is None else row["step"]

    def final(self, last: TrainState) -> TrainState:
        """The finished run's state for corrections and predictions.

        Args:
          last: the state of the last step.

        Raises:
          CheckpointError: the best state is gone, or damaged.
        """
        if self.run.settings.best == "last" or self.failure is not None:
            return last
        if self.checkpointer is None:
            assert self._kept is not None  # There was an evaluation.
            return self._kept
        selected = self._selected(int(last.step))
        assert selected is not None and self.workdir is not None
        restored = self.checkpointer.restore(
            jax.eval_shape(lambda: last),
            self.run.description,
            formerly={},
            init=lambda: last,
            prefix=self.run.prefix,
            step=selected,
        )
        if restored is None:
            raise CheckpointError(
                f"{self.workdir / checkpoint.DIRECTORY} lacks step {selected}, which has the best "
                "validation accuracy.\nUse another workdir."
            )
        return restored[0]

    def evaluated(
        self, step: int, phase: int, predictions: Mapping[str, evaluate.Prediction]
    ) -> None:
        """Records an evaluation.

        Args:
          step, phase: when it took place.
          predictions: for the set `probe`, and for `test`, `validation` and `judged` if they exist.
        """
        dataset = self.run.dataset
        row: dict[str, float | None] = {}
        row |= _scores("test", dataset.test, predictions)
        row |= _scores("validation", dataset.validation, predictions)
        del row["validation_loss"]
        probed = dataset.noisy.take(self.run.probe)
        corrected = predictions["probe"].soft_labels.argmax(-1)
        right = float(np.mean(corrected == probed.truth)) if probed.has_truth else None
        if dataset.judged is not None and "judged" in predictions:
            right = float(
                np.mean(predictions["judged"].soft_labels.argmax(-1) == dataset.judged.truth)
            )
        row["corrected_label_accuracy"] = right
        row["labels_changed"] = float(np.mean(is_changed(corrected, probed.given)))
        self.progress["evals"].append({"step": step, "phase": phase} | row)
        self.write(step, "eval", row)
        self._flush()

    def _flush(self) -> None:
        if self._writer:
            self._writer.flush()


def write_run(run: Run, progress: dict[str, Any], state: TrainState, workdir: epath.Path) -> None:
    """Writes the description and last state of a finished run that was kept in memory.

    Raises:
      CheckpointError: it cannot be written.
    """
    keep = run.settings.checkpoints_to_keep
    with contextlib.closing(
        checkpoint.Checkpointer(workdir, stack.replicated(), keep=keep)
    ) as checkpointer:
        recorder = Recorder(run, progress, workdir, checkpointer)
        recorder.open(0)
        recorder.save(int(state.step), state)
        recorder.wait()
        recorder.close()


def _scores(
    name: str, subset: Subset | None, predictions: Mapping[str, evaluate.Prediction]
) -> dict[str, float | None]:
    if subset is None:
        return {f"{name}_accuracy": None, f"{name}_loss": None}
    of_set = evaluate.scores(predictions[name].logits, subset.truth)
    return {f"{name}_{key}": value for key, value in of_set.items()}
