"""The training loop: data in, checkpoints, metrics and a report out."""

import collections
import contextlib
import json
import sys
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from etils import epath
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict
from tqdm import tqdm

from mlc_jax import (
    checkpoint,
    data,
    evaluate,
    meta_gradients,
    methods,
    models,
    report,
    validation,
)
from mlc_jax.bilevel import Batch, Examples, Metrics
from mlc_jax.clock import Clock
from mlc_jax.data.pipeline import to_devices
from mlc_jax.errors import NonFiniteLossError, Preempted
from mlc_jax.evaluate import AXIS_NAME, PredictFn
from mlc_jax.methods.base import estimator_options
from mlc_jax.metrics import MetricWriter
from mlc_jax.preemption import PreemptionFlag, sigterm_noticed
from mlc_jax.train_state import TrainState, num_params
from mlc_jax.workdir import locked_workdir

# Noisy examples whose labels are measured at every evaluation; all of them at the end.
LABEL_PROBE_SIZE = 2_000


class Run(NamedTuple):
    """What a config builds."""

    config: ConfigDict
    dataset: data.Dataset
    pipeline: data.Pipeline
    method: methods.Method
    predict: PredictFn
    num_steps: int


def train_and_evaluate(
    config: ConfigDict, workdir: str, *, show_progress: bool = True
) -> dict[str, Any]:
    """Trains one run to its end, going on from the newest checkpoint in `workdir`.

    Args:
      config: see configs/default.py.
      workdir: made if need be; see `report` for what it holds at the end.
      show_progress: whether process 0 draws a progress bar.

    Returns:
      The results, as in `results.json`.

    Raises:
      InputError: bad config or data; nothing was started.
      CheckpointError: a checkpoint of another config, or one that cannot be read or written.
      NonFiniteLossError: training diverged.
      Preempted: SIGTERM; the same call goes on.
    """
    validation.validate(config, num_devices=jax.device_count())
    run = build(config)
    with locked_workdir(workdir) as path, sigterm_noticed() as preempted:
        sharding = NamedSharding(Mesh(np.asarray(jax.devices()), (AXIS_NAME,)), PartitionSpec())
        checkpointer = checkpoint.Checkpointer(path, sharding, keep=config.checkpoints_to_keep)
        try:
            state, progress = _restore_or_init(run, checkpointer, sharding)
            loop = _Loop(run, path, checkpointer, preempted, show_progress)
            state, progress = loop.run(state, progress)
            return report.write(run, state, progress, path) | {"workdir": str(path)}
        finally:
            checkpointer.close()


def build(config: ConfigDict) -> Run:
    """Builds everything but the state; raises InputError for what the data do not allow."""
    dataset = data.load(config)
    pipeline = data.Pipeline(
        noisy=Examples(dataset.noisy.inputs, dataset.given_labels),
        clean=Examples(dataset.clean.inputs, dataset.clean.labels),
        noisy_batch_size=config.noisy_batch_size,
        clean_batch_size=config.clean_batch_size,
        split_clean=config.meta_gradient.mix_clean,
        num_inner_steps=config.meta_gradient.num_inner_steps,
        augment=config.dataset.augment,
        seed=config.seed,
    )
    pipeline.check()
    num_inner_steps = config.meta_gradient.num_inner_steps
    windows = -(-config.num_epochs * pipeline.steps_per_epoch // num_inner_steps)
    num_steps = windows * num_inner_steps
    num_classes = dataset.source.num_classes
    model = models.create_classifier(config.model, num_classes, AXIS_NAME)
    method = methods.METHODS[config.method](
        methods.MethodInputs(
            config=config,
            model=model,
            normalize=dataset.normalize,
            example_inputs=jnp.asarray(dataset.clean.inputs[:1]),
            num_classes=num_classes,
            steps_per_epoch=pipeline.steps_per_epoch,
            num_steps=num_steps,
            axis_name=AXIS_NAME,
        )
    )
    predict = evaluate.create_predict(
        model, method, dataset.normalize, batch_size=config.eval_batch_size
    )
    return Run(config, dataset, pipeline, method, predict, num_steps)


def create_train_step(method: methods.Method) -> Any:
    """The pmapped step: (state, batches `[devices, k, B, ...]`) -> (state, metrics).

    pmap is the jit. The state goes in and comes out replicated, not stacked; that is right because
    every output is averaged over the devices. The old state's memory is donated.
    """
    return jax.pmap(
        method.train_step,
        axis_name=AXIS_NAME,
        in_axes=(None, 0),
        out_axes=None,
        donate_argnums=0,
    )


def create_diagnose(method: methods.Method, config: ConfigDict) -> Any:
    """The pmapped comparison: (state, batches) -> how near the config's meta-gradient is to exact.

    Takes what the training step takes, and changes nothing.
    """
    window = method.window
    if window is None:
        raise ValueError(f"{config.method} has no meta-gradient")
    estimator = meta_gradients.ESTIMATORS[config.meta_gradient.estimator]

    def diagnose(state: TrainState, batches: Batch) -> Metrics:
        ours, exact = (window(e, state, batches) for e in (estimator, meta_gradients.exact))
        return meta_gradients.agreement(ours.meta_grads, exact.meta_grads)

    return jax.pmap(diagnose, axis_name=AXIS_NAME, in_axes=(None, 0), out_axes=None)


def _restore_or_init(
    run: Run, checkpointer: checkpoint.Checkpointer, sharding: NamedSharding
) -> tuple[TrainState, dict[str, Any]]:
    # Initialised under jit, so that it lies replicated on all devices of all processes from the
    # start: donating a state that does not would delete it. The seed is an argument, so that runs
    # that differ in it share one program.
    seed = np.uint32(run.config.seed)
    init = jax.jit(lambda seed: run.method.init(jax.random.key(seed)), out_shardings=sharding)
    config = json.loads(run.config.to_json())
    restored = checkpointer.restore(jax.eval_shape(init, seed), config)
    if restored is None:
        return init(seed), {"config": config, "evals": [], "train_seconds": 0.0}
    state, progress = restored
    logging.info("Going on from the checkpoint of step %d.", int(state.step))
    return state, progress | {"config": config}


class _Loop:
    """Windows of k steps, and what happens between them."""

    def __init__(
        self,
        run: Run,
        workdir: epath.Path,
        checkpointer: checkpoint.Checkpointer,
        preempted: PreemptionFlag,
        show_progress: bool,
    ):
        self._run = run
        self._workdir = workdir
        self._checkpointer = checkpointer
        self._preempted = preempted
        self._is_main_process = jax.process_index() == 0
        self._show_progress = show_progress and self._is_main_process
        self._pending: collections.deque[tuple[int, Any]] = collections.deque()
        self._newest: dict[str, float] = {}
        self._last_save = time.monotonic()

    def run(self, state: TrainState, progress: dict[str, Any]) -> tuple[TrainState, dict[str, Any]]:
        """Trains from `state` to the end and saves; evaluates on the way."""
        run, config = self._run, self._run.config
        num_inner_steps = config.meta_gradient.num_inner_steps
        step = int(state.step)
        train_step = create_train_step(run.method)
        diagnose_every = config.meta_gradient.diagnose_every if run.method.window else 0
        diagnose = create_diagnose(run.method, config) if diagnose_every else None
        writer = MetricWriter(self._workdir, start_step=step) if self._is_main_process else None
        batches = to_devices(
            run.pipeline.batches(
                step // num_inner_steps,
                num_devices=jax.local_device_count(),
                process_index=jax.process_index(),
                process_count=jax.process_count(),
            ),
            jax.local_devices(),
        )
        if step == 0 and self._is_main_process:
            self._log_start(state)
        bar = tqdm(
            total=run.num_steps, initial=step, unit="step", disable=not self._show_progress,
            desc=config.method, dynamic_ncols=True, mininterval=_bar_interval(),
        )  # fmt: skip
        clock = Clock(step, config.noisy_batch_size + config.clean_batch_size)

        def due(every: int) -> bool:
            """Whether this window passed a multiple of `every` steps: the one rule of cadence."""
            return step // every > (step - num_inner_steps) // every or step == run.num_steps

        with bar, contextlib.closing(writer) if writer else contextlib.nullcontext():
            while step < run.num_steps:
                with clock.waiting():
                    batch: Batch = next(batches)
                step += num_inner_steps
                if diagnose and due(diagnose_every):
                    with clock.paused():
                        self._diagnose(writer, step, diagnose(state, batch))
                state, metrics = train_step(state, batch)
                self._check(step, metrics)
                if clock.is_first:
                    self._drain()
                    clock.restart(step)  # What went before was compilation.
                bar.update(num_inner_steps)
                if due(config.log_every_steps):
                    row = self._drain() | clock.read(step)
                    self._log(writer, bar, step, row, progress)
                if due(config.eval_every_epochs * run.pipeline.steps_per_epoch):
                    with clock.paused():
                        self._evaluate(writer, step, state, progress)
                progress["train_seconds"] += clock.lap()
                preempted = self._preempted.reached(step // num_inner_steps)
                if preempted or self._should_save(
                    due(config.checkpoint_every_steps), due(config.log_every_steps)
                ):
                    with clock.paused():
                        self._save(step, state, progress)
                if preempted and step < run.num_steps:
                    self._checkpointer.wait()
                    raise Preempted(f"SIGTERM: saved step {step} of {run.num_steps}.")
            self._save(step, state, progress)
            self._checkpointer.wait()
        return state, progress

    def _log(
        self,
        writer: MetricWriter | None,
        bar: tqdm,
        step: int,
        row: dict[str, float],
        progress: dict[str, Any],
    ) -> None:
        if writer:
            writer.write(step, {f"train/{name}": value for name, value in row.items()})
        shown = {"loss": row["inner_loss"], "clean_acc": row["clean_accuracy"]}
        if progress["evals"]:
            shown["test_acc"] = progress["evals"][-1]["test_accuracy"]
        speed = f"{row['examples_per_second']:.0f}"
        bar.set_postfix({k: f"{v:.3f}" for k, v in shown.items()} | {"examples/s": speed})

    def _diagnose(self, writer: MetricWriter | None, step: int, metrics: Any) -> None:
        row = {f"meta_gradient/{name}": float(x) for name, x in jax.device_get(metrics).items()}
        if writer:
            writer.write(step, row)

    def _log_start(self, state: TrainState) -> None:
        dataset, config = self._run.dataset, self._run.config
        (self._workdir / "config.json").write_text(config.to_json(indent=2) + "\n")
        logging.info(
            "%s on %s: %d noisy (%.1f %% wrong), %d clean labels spent, %d test; %s with %s "
            "parameters; %d steps on %d %s device(s).",
            config.method,
            dataset.source.name,
            len(dataset.noisy),
            100 * dataset.noise_rate,
            dataset.clean_labels_spent,
            len(dataset.test),
            config.model.name,
            f"{num_params(state.main.params):,}",
            self._run.num_steps,
            jax.device_count(),
            jax.default_backend(),
        )
        options, gradient = estimator_options(config), config.meta_gradient
        goes_back = gradient.estimator in ("exact", "truncated") and gradient.num_inner_steps > 1
        keeps_all = options.scan_unroll > 1 and options.backward != "store"
        if self._run.method.window and goes_back and keeps_all:
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

    def _drain(self) -> dict[str, float]:
        """Waits for all steps; the last one's metrics."""
        while self._pending:
            self._newest = self._check_finite(*self._pending.popleft())
        return self._newest

    def _check_finite(self, step: int, metrics: Any) -> dict[str, float]:
        values = {name: float(x) for name, x in jax.device_get(metrics).items()}
        bad = [f"{name} is {x}" for name, x in values.items() if not np.isfinite(x)]
        if bad:
            raise NonFiniteLossError(f"step {step}: {', '.join(bad)}.\n{self._how_to_go_on()}")
        return values

    def _how_to_go_on(self) -> str:
        last = self._checkpointer.latest_step()
        where = self._workdir / checkpoint.DIRECTORY
        good = (
            "There is no checkpoint."
            if last is None
            else f"Last good checkpoint: {where / str(last)}."
        )
        return f"{good} Lower main_optimizer.learning_rate or meta_optimizer.learning_rate."

    def _evaluate(
        self,
        writer: MetricWriter | None,
        step: int,
        state: TrainState,
        progress: dict[str, Any],
    ) -> None:
        """Accuracy on test and validation set, and of the corrected labels on a fixed probe."""
        self._drain()
        dataset, predict = self._run.dataset, self._run.predict
        logits, _ = predict(state, dataset.test.inputs, dataset.test.labels)
        test = evaluate.scores(logits, dataset.test.labels)
        row: dict[str, float | None] = {f"test_{name}": x for name, x in test.items()}
        row["validation_accuracy"] = None
        if len(dataset.validation):
            logits, _ = predict(state, dataset.validation.inputs, dataset.validation.labels)
            row["validation_accuracy"] = evaluate.scores(logits, dataset.validation.labels)[
                "accuracy"
            ]
        rows = np.arange(0, len(dataset.noisy), -(-len(dataset.noisy) // LABEL_PROBE_SIZE))
        probe = dataset.noisy.take(rows)
        _, soft_labels = predict(state, probe.inputs, dataset.given_labels[rows])
        row["corrected_label_accuracy"] = float(np.mean(soft_labels.argmax(-1) == probe.labels))
        progress["evals"].append({"step": step} | row)
        if writer:
            writer.write(step, {f"eval/{name}": value for name, value in row.items()})

    def _should_save(self, by_step: bool, may_ask: bool) -> bool:
        """By steps, or by time. Processes' clocks differ: process 0 decides, at log steps."""
        minutes = (time.monotonic() - self._last_save) / 60
        by_time = minutes > self._run.config.checkpoint_every_minutes
        if by_step or jax.process_count() == 1:
            return by_step or by_time
        return may_ask and bool(multihost_utils.broadcast_one_to_all(np.asarray(by_time)))

    def _save(self, step: int, state: TrainState, progress: dict[str, Any]) -> None:
        self._drain()
        if not checkpoint.all_finite(state):
            raise NonFiniteLossError(
                f"step {step}: a parameter is not finite.\n{self._how_to_go_on()}"
            )
        self._checkpointer.save(step, state, progress)
        self._last_save = time.monotonic()


def _bar_interval() -> float:
    """Seconds between redraws: many for a person, few for a log file."""
    return 0.2 if sys.stderr.isatty() else 30.0
