"""The training loop: windows of k steps, and what happens between them.

It trains a stack of runs of one shape, each with its own data, workdir and results; a lone run is a
stack of one.
"""

import collections
import contextlib
import dataclasses
import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from ml_collections import ConfigDict
from tqdm import tqdm

from mlc_jax import checkpoint, evaluate, meta_gradients, methods, parallel
from mlc_jax.bilevel import Batch, Metrics
from mlc_jax.clock import Clock
from mlc_jax.data.pipeline import batches_of, to_devices
from mlc_jax.errors import NonFiniteLossError, Preempted
from mlc_jax.methods.base import Hook, Phase, estimator_options
from mlc_jax.metrics import MetricWriter
from mlc_jax.preemption import PreemptionFlag
from mlc_jax.train_state import TrainState, num_params

if TYPE_CHECKING:
    from mlc_jax.train import Run

# Noisy examples whose labels are measured at every evaluation; all of them at the end.
LABEL_PROBE_SIZE = 2_000


@dataclasses.dataclass
class Slot:
    """One run of the stack.

    Attributes:
      run: what its config builds.
      workdir: of this run alone.
      checkpointer: of `workdir`.
      progress: what the loop remembers beside the state: config, evaluations, seconds.
      failure: why it was given up; the others go on.
      writer: of `workdir`'s metrics; None on all processes but the first.
    """

    run: "Run"
    workdir: epath.Path
    checkpointer: checkpoint.Checkpointer
    progress: dict[str, Any]
    failure: NonFiniteLossError | None = None
    writer: MetricWriter | None = None

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        if self.writer:
            self.writer.write(step, dict(row))


def create_train_step(phase: Phase, num_runs: int = 1) -> Any:
    """The compiled step: (state, batches `[devices, k, B, ...]`) -> (state, metrics).

    The old state's memory is donated.
    """
    return parallel.over_devices(phase.train_step, num_runs=num_runs, donate=True)


def create_diagnose(method: methods.Method, config: ConfigDict, num_runs: int = 1) -> Any:
    """The compiled comparison: (state, batches) -> how near the config's meta-gradient is to exact.

    Takes what the training step takes, and changes nothing.
    """
    window = method.window
    if window is None:
        raise ValueError(f"{config.method} has no meta-gradient")
    estimator = meta_gradients.ESTIMATORS[config.meta_gradient.estimator]

    def diagnose(state: TrainState, batches: Batch) -> Metrics:
        ours, exact = (window(e, state, batches) for e in (estimator, meta_gradients.exact))
        return meta_gradients.agreement(ours.meta_grads, exact.meta_grads)

    return parallel.over_devices(diagnose, num_runs=num_runs)


class Loop:
    """Trains the runs of `slots`, which share one program, from where they stand.

    Args:
      slots: one a run.
      preempted: looked at after every window.
      show_progress: whether process 0 draws a progress bar.
    """

    def __init__(self, slots: Sequence[Slot], preempted: PreemptionFlag, show_progress: bool):
        self._slots = slots
        self._first = slots[0].run  # For all that the runs have in common.
        self._preempted = preempted
        self._is_main_process = jax.process_index() == 0
        self._show_progress = show_progress and self._is_main_process
        self._predict = evaluate.create_predict(
            self._first.model,
            self._first.method,
            self._first.dataset.normalize,
            batch_size=self._first.config.eval_batch_size,
            num_runs=len(slots),
        )
        self._hooks: dict[int, Any] = {}
        self._pending: collections.deque[tuple[int, Any]] = collections.deque()
        self._newest: list[dict[str, float]] = [{} for _ in slots]
        self._last_save = time.monotonic()

    def run(self, state: TrainState) -> TrainState:
        """Trains to the end and saves; evaluates on the way. Both states are stacked.

        Raises:
          NonFiniteLossError: the last run diverged. Those before it have a `failure`.
          CheckpointError, Preempted: as `train.train_and_evaluate`.
        """
        method = self._first.method
        step = self._step_of(state)
        with contextlib.ExitStack() as stack:
            if self._is_main_process:
                for slot in self._slots:
                    slot.writer = MetricWriter(slot.workdir, start_step=step)
                    stack.enter_context(contextlib.closing(slot.writer))
                if step == 0:
                    self._log_start(state)
            batches = self._batches(step)
            bar = stack.enter_context(self._bar(step))
            ends = list(itertools.accumulate(phase.num_steps for phase in method.phases))
            for number, end in enumerate(ends):
                if step < end:
                    state = self._run_phase(number, state, batches, end, bar)
                    step = end
            self._save(step, state)
            for slot in self._living():
                slot.checkpointer.wait()
        return state

    def correct_labels(self, state: TrainState) -> list[evaluate.Prediction]:
        """What each run says of all its noisy examples."""
        datasets = [slot.run.dataset for slot in self._slots]
        inputs, labels = zip(*(dataset.seen("noisy") for dataset in datasets), strict=True)
        rows = np.arange(len(labels[0]))
        return self._with_learned_labels(state, self._predict(state, inputs, labels), rows)

    def _run_phase(
        self, number: int, state: TrainState, batches: Iterator[Batch], end: int, bar: tqdm
    ) -> TrainState:
        """Trains to step `end`, the phase's last."""
        method, config = self._first.method, self._first.config
        phase = method.phases[number]
        num_inner_steps = config.meta_gradient.num_inner_steps
        steps_per_epoch = self._first.pipeline.steps_per_epoch
        step, start = self._step_of(state), end - phase.num_steps
        clock = Clock(step, (config.noisy_batch_size + config.clean_batch_size) * len(self._slots))
        if phase.before and step == start:
            state = self._apply(phase.before, state)
        train_step = create_train_step(phase, len(self._slots))
        diagnose_every = config.meta_gradient.diagnose_every if method.window else 0
        diagnose = create_diagnose(method, config, len(self._slots)) if diagnose_every else None

        def due(every: int, since: int = 0) -> bool:
            """Whether this window passed a multiple of `every` steps: the one rule of cadence."""
            done = step - since
            return done // every > (done - num_inner_steps) // every or step == end

        while step < end:
            with clock.waiting():
                batch: Batch = next(batches)
            step += num_inner_steps
            if diagnose and due(diagnose_every):
                with clock.paused():
                    self._diagnose(step, diagnose(state, batch))
            state, metrics = train_step(state, batch)
            self._check(step, metrics)
            if clock.is_first:
                self._drain()
                clock.restart(step)  # What went before was compilation.
            bar.update(num_inner_steps)
            if phase.after_epoch and due(steps_per_epoch, since=start):
                with clock.paused():
                    state = self._apply(phase.after_epoch, state)
            if due(config.log_every_steps):
                self._drain()
                self._log(bar, step, clock.read(step))
            if due(config.eval_every_epochs * steps_per_epoch):
                with clock.paused():
                    self._evaluate(step, number, state)
            seconds = clock.lap() / len(self._slots)
            for slot in self._slots:
                slot.progress["train_seconds"] += seconds
            preempted = self._preempted.reached(step // num_inner_steps)
            if preempted or self._should_save(
                due(config.checkpoint_every_steps), due(config.log_every_steps)
            ):
                with clock.paused():
                    self._save(step, state)
            if preempted and step < method.num_steps:
                for slot in self._living():
                    slot.checkpointer.wait()
                raise Preempted(f"SIGTERM: saved step {step} of {method.num_steps}.")
        return state

    def _with_learned_labels(
        self, state: TrainState, predictions: list[evaluate.Prediction], rows: np.ndarray
    ) -> list[evaluate.Prediction]:
        """Of noisy examples `rows`; those that the method learned, if it learned any."""
        learned_labels = self._first.method.learned_labels
        if learned_labels is None:
            return predictions
        together = []
        num_runs = len(self._slots)
        of_runs = (learned_labels if num_runs == 1 else jax.vmap(learned_labels))(state)
        labels = parallel.unstack(np.asarray(of_runs), num_runs)
        for slot, of_run, prediction in zip(self._slots, labels, predictions, strict=True):
            soft = of_run[rows]
            given = slot.run.dataset.given_labels[rows]
            quality = soft[np.arange(len(rows)), given]
            together.append(prediction._replace(soft_labels=soft, label_quality=quality))
        return together

    def _living(self) -> list[Slot]:
        return [slot for slot in self._slots if slot.failure is None]

    def _step_of(self, state: TrainState) -> int:
        """All runs stand at the same step."""
        return int(np.max(jax.device_get(state.step)))

    def _batches(self, step: int) -> Iterator[Batch]:
        """Batches of all runs from `step` on, `[devices, k, B, ...]`, runs second if several."""
        batches = batches_of(
            [slot.run.pipeline for slot in self._slots],
            step // self._first.config.meta_gradient.num_inner_steps,
            num_devices=jax.local_device_count(),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )
        return to_devices(batches, jax.local_devices())

    def _bar(self, step: int) -> tqdm:
        return tqdm(
            total=self._first.method.num_steps, initial=step, unit="step",
            disable=not self._show_progress, desc=self._first.config.method, dynamic_ncols=True,
            mininterval=_bar_interval(), leave=None,  # Below a grid's bar it vanishes at its end.
        )  # fmt: skip

    def _apply(self, hook: Hook, state: TrainState) -> TrainState:
        """Runs the classifier over the hook's set, and the hook on all devices alike."""
        self._drain()
        if id(hook) not in self._hooks:

            def update(state: TrainState, args: tuple[jax.Array, jax.Array]) -> TrainState:
                logits, labels = args
                return hook.update(state, jax.nn.softmax(logits), labels)

            self._hooks[id(hook)] = parallel.over_devices(
                update, num_runs=len(self._slots), donate=True
            )
        args: Any = [(np.zeros((1, 1)), np.zeros(1)) for _ in self._slots]
        if hook.examples is not None:
            seen = (slot.run.dataset.seen(hook.examples) for slot in self._slots)
            inputs, labels = zip(*seen, strict=True)
            predictions = self._predict(state, inputs, labels)
            logits = [prediction.logits for prediction in predictions]
            args = list(zip(logits, labels, strict=True))
        num_devices = jax.local_device_count()
        to_all = lambda x: np.broadcast_to(x, (num_devices, *x.shape))  # noqa: E731
        args = jax.tree.map(to_all, parallel.stack_arrays(args, axis=0))
        updated: TrainState = self._hooks[id(hook)](state, args)
        return updated

    def _log(self, bar: tqdm, step: int, figures: dict[str, float]) -> None:
        for slot, row in zip(self._slots, self._newest, strict=True):
            if slot.failure is None:
                slot.write(step, {f"train/{name}": x for name, x in (row | figures).items()})
        rows = [r for s, r in zip(self._slots, self._newest, strict=True) if s.failure is None]
        shown = {"loss": np.mean([row["inner_loss"] for row in rows])}
        if "clean_accuracy" in rows[0]:
            shown["clean_acc"] = np.mean([row["clean_accuracy"] for row in rows])
        evals = [slot.progress["evals"] for slot in self._living()]
        if evals[0]:
            shown["test_acc"] = np.mean([of_run[-1]["test_accuracy"] for of_run in evals])
        speed = f"{figures['examples_per_second']:.0f}"
        bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items()} | {"examples/s": speed})

    def _diagnose(self, step: int, metrics: Any) -> None:
        for slot, of_run in zip(self._slots, self._of_runs(metrics), strict=True):
            slot.write(step, {f"meta_gradient/{name}": x for name, x in of_run.items()})

    def _log_start(self, state: TrainState) -> None:
        for slot in self._slots:
            text = slot.run.config.to_json(indent=2) + "\n"
            (slot.workdir / "config.json").write_text(text)
        dataset, config = self._first.dataset, self._first.config
        together = f"{len(self._slots)} runs as one program, " if len(self._slots) > 1 else ""
        logging.info(
            "%s on %s: %d noisy (%.1f %% wrong), %d clean labels spent, %d test; %s with %s "
            "parameters; %s%d steps on %d %s device(s).",
            config.method,
            dataset.source.name,
            len(dataset.noisy),
            100 * dataset.noise_rate,
            dataset.clean_labels_spent(trained_on=self._first.method.uses_clean),
            len(dataset.test),
            config.model.name,
            f"{num_params(state.main.params) // len(self._slots):,}",
            together,
            self._first.method.num_steps,
            jax.device_count(),
            jax.default_backend(),
        )
        options, gradient = estimator_options(config), config.meta_gradient
        goes_back = gradient.estimator in ("exact", "truncated") and gradient.num_inner_steps > 1
        keeps_all = options.scan_unroll > 1 and options.backward != "store"
        if self._first.method.window and goes_back and keeps_all:
            logging.info(
                "The inner steps are unrolled into one program, which keeps all of them for the "
                "way back, as backward=store does. --config.meta_gradient.unroll=1 keeps memory "
                "flat (slow for convolutions on CPU)."
            )

    def _check(self, step: int, metrics: Any) -> None:
        """Waits for the step before this one, so that one at most is in flight, and checks it."""
        self._pending.append((step, metrics))
        if len(self._pending) > 1:
            self._check_finite(*self._pending.popleft())

    def _drain(self) -> None:
        """Waits for all steps; the last one's metrics are the newest."""
        while self._pending:
            self._check_finite(*self._pending.popleft())

    def _of_runs(self, metrics: Any) -> list[dict[str, float]]:
        """Scalars or `[runs]` to a dict of numbers a run."""
        values = {name: np.atleast_1d(x) for name, x in jax.device_get(metrics).items()}
        return [{name: float(x[i]) for name, x in values.items()} for i in range(len(self._slots))]

    def _check_finite(self, step: int, metrics: Any) -> None:
        self._newest = self._of_runs(metrics)
        for slot, values in zip(self._slots, self._newest, strict=True):
            bad = [f"{name} is {x}" for name, x in values.items() if not np.isfinite(x)]
            if bad:
                self._give_up(slot, f"step {step}: {', '.join(bad)}.")

    def _give_up(self, slot: Slot, problem: str) -> None:
        """Notes that the run diverged; raises if it was the last."""
        if slot.failure is not None:
            return
        last = slot.checkpointer.latest_step()
        where = slot.workdir / checkpoint.DIRECTORY
        good = (
            "There is no checkpoint."
            if last is None
            else f"Last good checkpoint: {where / str(last)}."
        )
        slot.failure = NonFiniteLossError(
            f"{problem}\n{good} Lower main_optimizer.learning_rate or meta_optimizer.learning_rate."
        )
        if not self._living():
            raise slot.failure
        logging.warning("%s is given up: %s", slot.workdir, slot.failure)

    def _evaluate(self, step: int, phase: int, state: TrainState) -> None:
        """Accuracy on test and validation set, and of the corrected labels on a fixed probe."""
        self._drain()
        datasets = [slot.run.dataset for slot in self._slots]
        size = len(datasets[0].noisy)
        rows = np.arange(0, size, -(-size // LABEL_PROBE_SIZE))
        probes = [dataset.noisy.take(rows) for dataset in datasets]
        sets = {
            "test": ([d.test.inputs for d in datasets], [d.test.labels for d in datasets]),
            "probe": ([p.inputs for p in probes], [d.given_labels[rows] for d in datasets]),
        }
        if len(datasets[0].validation):
            sets["validation"] = (
                [d.validation.inputs for d in datasets],
                [d.validation.labels for d in datasets],
            )
        predictions = {name: self._predict(state, *args) for name, args in sets.items()}
        predictions["probe"] = self._with_learned_labels(state, predictions["probe"], rows)
        for i, slot in enumerate(self._slots):
            if slot.failure is not None:
                continue
            test = evaluate.scores(predictions["test"][i].logits, datasets[i].test.labels)
            row: dict[str, float | None] = {f"test_{name}": x for name, x in test.items()}
            row["validation_accuracy"] = None
            if "validation" in predictions:
                of_run = predictions["validation"][i].logits
                labels = datasets[i].validation.labels
                row["validation_accuracy"] = evaluate.scores(of_run, labels)["accuracy"]
            corrected = predictions["probe"][i].soft_labels.argmax(-1)
            row["corrected_label_accuracy"] = float(np.mean(corrected == probes[i].labels))
            slot.progress["evals"].append({"step": step, "phase": phase} | row)
            slot.write(step, {f"eval/{name}": value for name, value in row.items()})

    def _should_save(self, by_step: bool, may_ask: bool) -> bool:
        """By steps, or by time. Processes' clocks differ: process 0 decides, at log steps."""
        minutes = (time.monotonic() - self._last_save) / 60
        by_time = minutes > self._first.config.checkpoint_every_minutes
        if by_step or jax.process_count() == 1:
            return by_step or by_time
        return may_ask and bool(multihost_utils.broadcast_one_to_all(np.asarray(by_time)))

    def _save(self, step: int, state: TrainState) -> None:
        self._drain()
        for slot, of_run in zip(
            self._slots, parallel.unstack(state, len(self._slots)), strict=True
        ):
            if slot.failure is None and not checkpoint.all_finite(of_run):
                self._give_up(slot, f"step {step}: a parameter is not finite.")
            if slot.failure is None:
                slot.checkpointer.save(step, of_run, slot.progress)
        self._last_save = time.monotonic()


def _bar_interval() -> float:
    """Seconds between redraws: many for a person, few for a log file."""
    return 0.2 if sys.stderr.isatty() else 30.0
