"""Training from a config: data in, checkpoints, metrics and a report out."""

import contextlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax import linen as nn
from ml_collections import ConfigDict

from mlc_jax import checkpoint, data, methods, models, parallel, report, validation
from mlc_jax.bilevel import Examples
from mlc_jax.errors import InputError, NonFiniteLossError
from mlc_jax.loop import Loop, Slot
from mlc_jax.preemption import sigterm_noticed
from mlc_jax.train_state import TrainState
from mlc_jax.workdir import locked_workdir

# Settings in which runs of one program may differ: they change numbers, but no shapes.
STACKED_FIELDS = ("seed", "dataset.split_seed", "noise")


class Run(NamedTuple):
    """What a config builds."""

    config: ConfigDict
    dataset: data.Dataset
    pipeline: data.Pipeline
    model: nn.Module
    method: methods.Method


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
    results = train_together({workdir: config}, show_progress=show_progress)[workdir]
    if isinstance(results, NonFiniteLossError):
        raise results
    return results


def train_together(
    runs: Mapping[str, ConfigDict], *, show_progress: bool = True
) -> dict[str, dict[str, Any] | NonFiniteLossError]:
    """Trains runs that differ in no more than `STACKED_FIELDS` as one program, by `jax.vmap`.

    Each is the run that it is alone, with a workdir, checkpoints and a report of its own (but for
    the picture, which takes as long as the run: `experiments.analyze` draws it), and may be
    finished alone; all must stand at the same step. One that diverges does not stop the others.

    Args:
      runs: configs, keyed by their workdirs.
      show_progress: as for `train_and_evaluate`.

    Returns:
      The results of each, or what stopped it.

    Raises:
      as `train_and_evaluate`, but for NonFiniteLossError.
    """
    for config in runs.values():
        validation.validate(config, num_devices=jax.device_count())
    if len({stack_key(config) for config in runs.values()}) > 1:
        raise InputError(
            f"runs of one program may differ in {', '.join(STACKED_FIELDS)} only: "
            + ", ".join(runs)
        )
    built = [build(config) for config in runs.values()]
    with contextlib.ExitStack() as stack:
        paths = [stack.enter_context(locked_workdir(workdir)) for workdir in runs]
        preempted = stack.enter_context(sigterm_noticed())
        slots, states = [], []
        init = _create_init(built[0])
        for run, path in zip(built, paths, strict=True):
            checkpointer = checkpoint.Checkpointer(
                path, parallel.replicated(), keep=run.config.checkpoints_to_keep
            )
            stack.callback(checkpointer.close)
            state, progress = _restore_or_init(run, init, checkpointer)
            slots.append(Slot(run, path, checkpointer, progress))
            states.append(state)
        if len({int(state.step) for state in states}) > 1:
            raise InputError(f"runs of one program stand at different steps: {', '.join(runs)}")
        loop = Loop(slots, preempted, show_progress)
        try:
            state = loop.run(parallel.stack_states(states))
        except NonFiniteLossError:  # Of the last: no other is left.
            return {workdir: _failure(slot) for workdir, slot in zip(runs, slots, strict=True)}
        labels = loop.correct_labels(state)
        return {
            workdir: slot.failure
            or report.write(slot.run, slot.progress, of_slot, slot.workdir, picture=len(slots) == 1)
            | {"workdir": str(slot.workdir)}
            for workdir, slot, of_slot in zip(runs, slots, labels, strict=True)
        }


def _failure(slot: Slot) -> NonFiniteLossError:
    assert slot.failure is not None
    return slot.failure


def stack_key(config: ConfigDict) -> str:
    """Equal for configs that `train_together` can train as one program."""
    plain: dict[str, Any] = json.loads(config.to_json())
    for field in STACKED_FIELDS:
        *path, name = field.split(".")
        place = plain
        for part in path:
            place = place[part]
        del place[name]
    return json.dumps(plain, sort_keys=True)


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
    num_classes = dataset.source.num_classes
    model = models.create_classifier(config.model, num_classes, parallel.AXIS_NAME)
    method = methods.METHODS[config.method](
        methods.MethodInputs(
            config=config,
            model=model,
            normalize=dataset.normalize,
            example_inputs=jnp.asarray(dataset.clean.inputs[:1]),
            num_classes=num_classes,
            num_noisy=len(dataset.noisy),
            steps_per_epoch=pipeline.steps_per_epoch,
            num_epochs=config.num_epochs,
            axis_name=parallel.AXIS_NAME,
        )
    )
    return Run(config, dataset, pipeline, model, method)


def initial_state(run: Run) -> TrainState:
    """The state before the first step, replicated over all devices of all processes."""
    return cast(TrainState, _create_init(run)(np.uint32(run.config.seed)))


def _create_init(run: Run) -> Any:
    # Under jit, so that the state lies replicated from the start: donating one that does not would
    # delete it. The seed is an argument, so that runs that differ in it share one program.
    return jax.jit(
        lambda seed: run.method.init(jax.random.key(seed)), out_shardings=parallel.replicated()
    )


def _restore_or_init(
    run: Run, init: Any, checkpointer: checkpoint.Checkpointer
) -> tuple[TrainState, dict[str, Any]]:
    config, seed = json.loads(run.config.to_json()), np.uint32(run.config.seed)
    restored = checkpointer.restore(jax.eval_shape(init, seed), config)
    if restored is None:
        return init(seed), {"config": config, "evals": [], "train_seconds": 0.0}
    state, progress = restored
    logging.info("Going on from the checkpoint of step %d.", int(state.step))
    return state, progress | {"config": config}
