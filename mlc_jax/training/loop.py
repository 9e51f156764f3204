"""The training loop: steps of a method, and what happens between them.

It trains a stack of runs of one shape, each with its own data, workdir and results. A single run is
a stack of one; only `stack` treats it differently.
"""

import collections
import contextlib
import functools
import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, cast

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from tqdm import tqdm

from mlc_jax.core import TrainState
from mlc_jax.data.folds import AllRows
from mlc_jax.data.loader import Pipeline, batches_of
from mlc_jax.errors import InputError, NonFiniteLossError, Preempted
from mlc_jax.methods.types import Hook, Phase, Seen
from mlc_jax.training import diagnosis, evaluate, progress, stack
from mlc_jax.training.profile import Clock, Profiler
from mlc_jax.training.recorder import Recorder
from mlc_jax.training.run import Run, check_memory, create_init, restore_or_init
from mlc_jax.workdir.checkpoint import Checkpointer
from mlc_jax.workdir.preemption import PreemptionFlag, sigterm_noticed

MAX_WAIT_SHARE = 0.05  # A larger share of time spent waiting for data is logged as a warning.
SECONDS_TO_JUDGE = 30.0  # Training time before the warning: readers fill their buffers at first.


@functools.lru_cache(maxsize=8)  # Shared by fits of one shape, and by timing.
def create_train_step(phase: Phase, num_runs: int = 1) -> Any:
    """The compiled step: (state, batches `[devices, k, B, ...]`) -> (state, metrics).

    It donates the old state's memory.
    """
    return stack.over_devices(phase.train_step, num_runs=num_runs, donate=True)


class Loop:
    """Trains runs that share one program, from their current steps.

    Args:
      recorders: one for each run.
      preempted: checked after every step of the method.
      show_progress: whether process 0 draws a progress bar.
    """

    def __init__(
        self, recorders: Sequence[Recorder], preempted: PreemptionFlag, show_progress: bool
    ):
        self._recorders = recorders
        self._first = recorders[0].run  # For everything that the runs share.
        self._preempted = preempted
        self._is_main_process = jax.process_index() == 0
        self._show_progress = show_progress and self._is_main_process
        self._evaluator = evaluate.Evaluator([recorder.run for recorder in recorders])
        self._hooks: dict[int, Any] = {}
        self._pending: collections.deque[tuple[int, Any]] = collections.deque()
        self._last_save = time.monotonic()
        # One process only: TensorBoard shows one at a time.
        steps = self._first.settings.profile if self._is_main_process else ""
        self._profiler = Profiler(steps, recorders[0].workdir)
        self._flop: float | None = None  # FLOPs of a step; None before the first trace.
        self._warned = False
        self._compiling: list[tuple[int, Future[Any]]] = []  # The phase, and its compilation.

    def run(self, state: TrainState) -> TrainState:
        """Trains to the end, evaluates on the way, and saves. Argument and result are stacked.

        Raises:
          NonFiniteLossError: the last run diverged. Those before it have a `failure`.
          CheckpointError, Preempted: as `train.train_and_evaluate`.
        """
        step, phases = stack.step_of(state), self._first.bound.phases
        with contextlib.ExitStack() as files:
            if self._is_main_process:
                for recorder in self._recorders:
                    recorder.open(step)
                    files.callback(recorder.close)
                if step == 0:
                    one = stack.split(state, len(self._recorders))[0]
                    progress.log_start(self._first, one, len(self._recorders))
            files.callback(self._profiler.close)
            batches = self._batches(step)
            bar = files.enter_context(progress.bar(self._first, step, self._show_progress))
            ends = list(itertools.accumulate(phase.num_steps for phase in phases))
            if isinstance(self._first.pipeline, AllRows) and jax.process_count() == 1:
                threads = files.enter_context(ThreadPoolExecutor())
                self._compile_ahead(state, sum(end <= step for end in ends), threads)
            for number, end in enumerate(ends):
                if step < end:
                    state = self._run_phase(number, state, batches, end, bar)
                    step = end
            self._save(step, state)
            for recorder in self._recorders:
                recorder.wait()
        return state

    def _compile_ahead(self, state: TrainState, first: int, threads: ThreadPoolExecutor) -> None:
        """Compiles the steps of phase `first` and later phases, and the predictor, in parallel.

        Only for cross-fitted runs, whose compilation takes longer than their training.
        """
        rows, num_runs = next(self._batches(0)), len(self._recorders)
        numbers = range(first, len(self._first.bound.phases))
        for number in reversed(numbers):  # Rounds take longest.
            program = create_train_step(self._first.bound.phases[number], num_runs)
            compiling = threads.submit(program.lower(state, rows).compile)
            self._compiling.append((number, compiling))
        if self._evaluator.out_of_fold is not None and numbers:
            compiling = threads.submit(self._evaluator.out_of_fold.lower(state, rows).compile)
            self._compiling.append((numbers[0], compiling))

    def correct_labels(self, state: TrainState) -> list[evaluate.Prediction]:
        """Predictions of each run for the noisy examples whose labels it exports."""
        return self._evaluator.predict(state, "exported")

    def _run_phase(
        self, number: int, state: TrainState, batches: Iterator[Any], end: int, bar: tqdm
    ) -> TrainState:
        """Trains to step `end`, the phase's last."""
        run, settings, num_runs = self._first, self._first.settings, len(self._recorders)
        phase, stride = run.bound.phases[number], run.method.stride
        steps_per_epoch = run.pipeline.steps_per_epoch
        step, start = stack.step_of(state), end - phase.num_steps
        examples_per_step = run.pipeline.examples_per_step * num_runs
        clock = Clock(step, examples_per_step, jax.device_count())
        if phase.before and step == start:
            state = self._apply(phase.before, state)
        train_step = create_train_step(phase, num_runs)
        for _, compiling in (x for x in self._compiling if x[0] == number):
            compiling.result()
        diagnose_every = settings.diagnose_every if run.bound.window else 0
        diagnose = diagnosis.create_diagnose(run, num_runs) if diagnose_every else None

        def due(every: int, since: int = 0) -> bool:
            """Whether a multiple of `every` inner steps was passed: the one rule of cadence."""
            done = step - since
            return done // every > (done - stride) // every or step == end

        while step < end:
            with clock.waiting():
                batch = next(batches)
            if self._profiler.is_due(step):
                with clock.paused():
                    self._profile(train_step, state, batch)
            step += stride
            if diagnose and due(diagnose_every):
                with clock.paused():
                    self._write(step, "meta_gradient", diagnose(state, batch))
            state, metrics = train_step(state, batch)
            self._check(step, metrics)
            if clock.is_first:
                self._drain()
                clock.restart(step)  # The time before was compilation.
            bar.update(stride)
            if phase.after_epoch and due(steps_per_epoch, since=start):
                with clock.paused():
                    state = self._apply(phase.after_epoch, state)
            if due(settings.log_every_steps):
                self._drain()
                self._log(bar, step, clock.read(step))
                self._warn_of_waiting(clock)
            is_better = False
            if due(settings.eval_every_epochs * steps_per_epoch):
                with clock.paused():
                    is_better = self._evaluate(step, number, state)
            seconds = clock.lap() / num_runs
            for recorder in self._recorders:
                recorder.progress["train_seconds"] += seconds
            preempted = self._preempted.reached(step // stride)
            if preempted or self._should_save(
                is_better or due(settings.checkpoint_every_steps), due(settings.log_every_steps)
            ):
                with clock.paused():
                    self._save(step, state)
            if preempted and step < run.bound.num_steps:
                for recorder in self._recorders:
                    recorder.wait()
                raise Preempted(f"SIGTERM: saved step {step} of {run.bound.num_steps}.")
        return state

    def _batches(self, step: int) -> Iterator[Any]:
        """The batches of the following steps."""
        runs = tuple(recorder.run for recorder in self._recorders)
        if isinstance(self._first.pipeline, AllRows):
            return itertools.repeat(evaluate.rows_on_devices(runs))
        return batches_of(
            [cast(Pipeline, run.pipeline) for run in runs],
            step // self._first.method.stride,
            num_devices=jax.local_device_count(),
            process_index=jax.process_index(),
            process_count=jax.process_count(),
            devices=jax.local_devices(),
        )

    def _apply(self, hook: Hook, state: TrainState) -> TrainState:
        """Runs the classifier over the hook's set, and then the hook on all devices."""
        self._drain()
        num_runs = len(self._recorders)
        if id(hook) not in self._hooks:

            def update(state: TrainState, seen: Seen) -> TrainState:
                if hook.examples is not None:
                    seen = seen._replace(probs=jax.nn.softmax(seen.probs))
                return hook.update(state, seen)

            self._hooks[id(hook)] = stack.over_devices(update, num_runs=num_runs, donate=True)
        seen = [Seen(recorder.run.example) for recorder in self._recorders]
        if hook.examples is not None:
            predictions = self._evaluator.predict(state, hook.examples)
            datasets = [recorder.run.dataset for recorder in self._recorders]
            labels = [dataset.trained_on(hook.examples)[1] for dataset in datasets]
            of_runs = zip(seen, predictions, labels, strict=True)
            seen = [x._replace(probs=p.logits, labels=y) for x, p, y in of_runs]
            if hook.examples == "clean" and any(dataset.paired for dataset in datasets):
                votes = self._first.method.takes_votes
                pairs = [dataset.clean.given_to(takes_votes=votes) for dataset in datasets]
                seen = [x._replace(given=given) for x, given in zip(seen, pairs, strict=True)]
        updated: TrainState = self._hooks[id(hook)](state, stack.for_all_devices(seen))
        return updated

    def _evaluate(self, step: int, phase: int, state: TrainState) -> bool:
        """Accuracy on test and validation set, and of the corrected labels on a fixed probe.

        Returns:
          Whether a run may end with this state, which must be saved then.
        """
        self._drain()
        dataset = self._first.dataset
        sets = {"probe": True, "test": dataset.test, "validation": dataset.validation}
        sets["judged"] = None if dataset.noisy.has_truth else dataset.judged
        names = [name for name, subset in sets.items() if subset is not None]
        predictions = {name: self._evaluator.predict(state, name) for name in names}
        for i, recorder in enumerate(self._recorders):
            if recorder.failure is None:
                of_run = {name: of_runs[i] for name, of_runs in predictions.items()}
                recorder.evaluated(step, phase, of_run)
        return any(recorder.has_new_best for recorder in self._recorders)

    def _log(self, bar: tqdm, step: int, figures: dict[str, float]) -> None:
        if self._flop is not None:
            figures |= {"flop_per_second_per_chip": self._flop / figures["seconds_per_step"]}
        living = [recorder for recorder in self._recorders if recorder.failure is None]
        for recorder in living:
            recorder.write(step, "train", recorder.newest | figures)
        progress.show(bar, living, figures["examples_per_second"])

    def _profile(self, train_step: Any, state: TrainState, batch: Any) -> None:
        """Begins or ends a trace, after all earlier steps have finished."""
        self._drain()
        if not self._profiler.is_tracing and self._first.method.stride == 1:
            # Counted before XLA's optimisations, for one device; a loop's body would count once.
            self._flop = (train_step.lower(state, batch).cost_analysis() or {}).get("flops")
        self._profiler.switch()

    def _warn_of_waiting(self, clock: Clock) -> None:
        if self._warned or clock.seconds < SECONDS_TO_JUDGE:
            return
        if clock.waited > MAX_WAIT_SHARE * clock.seconds:
            self._warned = True
            logging.warning(
                "%.0f %% of the time was spent waiting for data. More CPUs would help, or pictures "
                "that are packed (mlc_jax.files.pack).",
                100 * clock.waited / clock.seconds,
            )

    def _write(self, step: int, group: str, metrics: Any) -> None:
        numbers = stack.numbers(metrics, len(self._recorders))
        for recorder, row in zip(self._recorders, numbers, strict=True):
            recorder.write(step, group, row)

    def _check(self, step: int, metrics: Any) -> None:
        """Waits for the previous step and checks it, so that at most one step is in flight."""
        self._pending.append((step, metrics))
        if len(self._pending) > 1:
            self._check_finite(*self._pending.popleft())

    def _drain(self) -> None:
        """Waits for all steps; the last one's metrics are the newest."""
        while self._pending:
            self._check_finite(*self._pending.popleft())

    def _check_finite(self, step: int, metrics: Any) -> None:
        numbers = stack.numbers(metrics, len(self._recorders))
        for recorder, row in zip(self._recorders, numbers, strict=True):
            recorder.check(step, row)
        self._raise_if_all_failed()

    def _raise_if_all_failed(self) -> None:
        failures = [recorder.failure for recorder in self._recorders]
        if all(failures) and failures[-1] is not None:
            raise failures[-1]

    def _should_save(self, by_step: bool, may_ask: bool) -> bool:
        """Whether to save, by steps or time; process 0 decides on time, as clocks differ."""
        minutes = (time.monotonic() - self._last_save) / 60
        by_time = minutes > self._first.settings.checkpoint_every_minutes
        if by_step or jax.process_count() == 1:
            return by_step or by_time
        return may_ask and bool(multihost_utils.broadcast_one_to_all(np.asarray(by_time)))

    def _save(self, step: int, state: TrainState) -> None:
        self._drain()
        states = stack.split(state, len(self._recorders))
        for recorder, of_run in zip(self._recorders, states, strict=True):
            recorder.save(step, of_run)
        self._raise_if_all_failed()
        self._last_save = time.monotonic()


def train_runs(
    runs: Sequence[Run],
    workdirs: Sequence[epath.Path | None],
    *,
    formerly: Mapping[str, Any],
    show_progress: bool,
) -> tuple[list[Recorder], TrainState | None, Sequence[evaluate.Prediction | None]]:
    """Trains runs of one shape to their end, from the checkpoints in their workdirs.

    Args:
      runs: the runs.
      workdirs: locked; None keeps a run in memory.
      formerly: see `config.formerly`.
      show_progress: whether process 0 draws a progress bar.

    Returns:
      One recorder for each run; the stacked state, of the last step or the best one, None if all
      diverged; and each run's predictions for the noisy examples that it exports.
    """
    check_memory(runs[0], len(runs))
    with contextlib.ExitStack() as contexts:
        saves = any(path is not None for path in workdirs)
        preempted = contexts.enter_context(sigterm_noticed()) if saves else PreemptionFlag()
        init, recorders, states = create_init(runs[0]), [], []
        for run, path in zip(runs, workdirs, strict=True):
            checkpointer = None
            if path is not None:
                keep = run.settings.checkpoints_to_keep
                checkpointer = Checkpointer(path, stack.replicated(), keep=keep)
                contexts.callback(checkpointer.close)
            state, progress = restore_or_init(run, init, checkpointer, formerly)
            recorders.append(Recorder(run, progress, path, checkpointer))
            states.append(state)
        if len({int(state.step) for state in states}) > 1:
            raise InputError(
                "runs of one program stand at different steps: " + ", ".join(map(str, workdirs))
            )
        loop = Loop(recorders, preempted, show_progress)
        try:
            state = loop.run(stack.join_states(states))
        except NonFiniteLossError:  # Raised by the last run that was left.
            return recorders, None, [None] * len(runs)
        if runs[0].settings.best != "last":
            states = stack.split(state, len(runs))
            pairs = zip(recorders, states, strict=True)
            state = stack.join_states([recorder.final(last) for recorder, last in pairs])
        return recorders, state, loop.correct_labels(state)
