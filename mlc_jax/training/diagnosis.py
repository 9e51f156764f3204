"""Compares a run's meta-gradient with the exact one."""

from typing import Any

from mlc_jax import core
from mlc_jax.core import Batch, Metrics, TrainState
from mlc_jax.methods import BilevelMethod
from mlc_jax.training import stack
from mlc_jax.training.run import Run


def create_diagnose(run: Run, num_runs: int = 1) -> Any:
    """Compiles the comparison of a run's meta-gradient with `exact`: (state, batches) -> metrics.

    It has the arguments of the training step, and does not change the state.
    """
    window = run.bound.window
    assert window is not None and isinstance(run.method, BilevelMethod)
    estimator = core.ESTIMATORS[run.method.estimator.name]

    def diagnose(state: TrainState, batches: Batch) -> Metrics:
        ours, exact = (window(e, state, batches) for e in (estimator, core.ESTIMATORS["exact"]))
        return core.agreement(ours.meta_grads, exact.meta_grads)

    return stack.over_devices(diagnose, num_runs=num_runs)
