"""Predictions for every example of a set, each exactly once, on any number of devices."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mlc_jax.methods.base import Method, Normalize
from mlc_jax.parallel import AXIS_NAME, over_devices, stack_arrays
from mlc_jax.train_state import TrainState


class Prediction(NamedTuple):
    """What is said of N examples.

    Attributes:
      logits: of the classifier, `[N, C]`.
      soft_labels: what the method holds the labels to be, `[N, C]`.
      label_quality: how far it believes the given labels, `[N]` in [0, 1].
    """

    logits: np.ndarray
    soft_labels: np.ndarray
    label_quality: np.ndarray


# (state, inputs [N, ...] of each run, given labels [N] of each run) -> one prediction a run.
PredictFn = Callable[[TrainState, Sequence[np.ndarray], Sequence[np.ndarray]], list[Prediction]]


def create_predict(
    model: nn.Module, method: Method, normalize: Normalize, *, batch_size: int, num_runs: int = 1
) -> PredictFn:
    """Builds a predictor over all devices of all processes.

    Every process passes the same arrays, computes its share and gets all rows back. The last batch
    is padded and the padding cut off again, so that each example counts once and one shape is
    compiled.

    Args:
      model: the classifier, run with its running batch statistics.
      method: for its `correct_labels`.
      normalize: from stored inputs to what the model takes.
      batch_size: over all devices; rounded up to a multiple of their number.
      num_runs: as for `over_devices`. All runs' sets have the same size.
    """
    num_devices = jax.device_count()
    batch_size = -(-batch_size // num_devices) * num_devices

    def body(state: TrainState, examples: tuple[jax.Array, jax.Array]) -> Prediction:
        inputs, labels = examples
        variables = {"params": state.main.params, "batch_stats": state.main.batch_stats}
        logits, features = cast(Any, model.apply(variables, normalize(inputs), train=False))
        soft_labels = method.correct_labels(state, features, logits, labels)
        if method.label_quality:
            quality = method.label_quality(state, features, logits, labels)
        else:
            quality = jnp.take_along_axis(soft_labels, labels[:, None], axis=1)[:, 0]
        gather = partial(jax.lax.all_gather, axis_name=AXIS_NAME, tiled=True)
        return Prediction(gather(logits), gather(soft_labels), gather(quality))

    step = over_devices(body, num_runs=num_runs)

    def predict(
        state: TrainState, inputs: Sequence[np.ndarray], labels: Sequence[np.ndarray]
    ) -> list[Prediction]:
        size, outputs = len(labels[0]), []
        for start in range(0, size, batch_size):
            rows = np.arange(start, start + batch_size) % size  # Wraps around: padding.
            mine = np.split(rows, jax.process_count())[jax.process_index()]
            mine = mine.reshape(jax.local_device_count(), -1)
            examples = [(x[mine], y[mine]) for x, y in zip(inputs, labels, strict=True)]
            output = jax.device_get(step(state, stack_arrays(examples, axis=1)))
            outputs.append(jax.tree.map(lambda x: x[None], output) if num_runs == 1 else output)
        together: Prediction = jax.tree.map(
            lambda *parts: np.concatenate(parts, axis=1)[:, :size], *outputs
        )
        return [Prediction(*of_run) for of_run in zip(*together, strict=True)]

    return predict


def scores(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Accuracy and mean cross-entropy (nats) of logits `[N, C]` against labels `[N]`."""
    logits = logits.astype(np.float64)
    top = logits.max(axis=-1)
    log_sum = top + np.log(np.exp(logits - top[:, None]).sum(axis=-1))
    loss = log_sum - logits[np.arange(len(labels)), labels]
    return {
        "accuracy": float(np.mean(logits.argmax(axis=-1) == labels)),
        "loss": float(loss.mean()),
    }
