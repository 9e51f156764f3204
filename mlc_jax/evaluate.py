"""Predictions for every example of a set, each exactly once, on any number of devices."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

import jax
import numpy as np
from flax import linen as nn

from mlc_jax.methods.base import Method, Normalize
from mlc_jax.train_state import TrainState

AXIS_NAME = "batch"

# (state, inputs [N, ...], given labels [N]) -> logits [N, C], soft labels [N, C].
PredictFn = Callable[[TrainState, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]


def create_predict(
    model: nn.Module, method: Method, normalize: Normalize, *, batch_size: int
) -> PredictFn:
    """Builds a pmapped predictor over all devices of all processes.

    Every process passes the same arrays, computes its share and gets all rows back. The last batch
    is padded and the padding cut off again, so that each example counts once and one shape is
    compiled.

    Args:
      model: the classifier, run with its running batch statistics.
      method: for its `correct_labels`.
      normalize: from stored inputs to what the model takes.
      batch_size: over all devices; rounded up to a multiple of their number.
    """
    num_devices = jax.device_count()
    batch_size = -(-batch_size // num_devices) * num_devices

    def body(
        state: TrainState, inputs: jax.Array, labels: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        variables = {"params": state.main.params, "batch_stats": state.main.batch_stats}
        logits, features = cast(Any, model.apply(variables, normalize(inputs), train=False))
        soft_labels = method.correct_labels(state, features, logits, labels)
        gather = partial(jax.lax.all_gather, axis_name=AXIS_NAME, tiled=True)
        return gather(logits), gather(soft_labels)

    step = jax.pmap(body, axis_name=AXIS_NAME, in_axes=(None, 0, 0), out_axes=None)

    def predict(
        state: TrainState, inputs: np.ndarray, labels: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        outputs = []
        for start in range(0, len(labels), batch_size):
            rows = np.arange(start, start + batch_size) % len(labels)  # Wraps around: padding.
            mine = np.split(rows, jax.process_count())[jax.process_index()]
            mine = mine.reshape(jax.local_device_count(), -1)
            outputs.append(jax.device_get(step(state, inputs[mine], labels[mine])))
        logits, soft_labels = (
            np.concatenate(parts)[: len(labels)] for parts in zip(*outputs, strict=True)
        )
        return logits, soft_labels

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
