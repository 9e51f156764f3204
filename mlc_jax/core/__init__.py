"""The pure core: arrays in, arrays out; no config, files, logging or pmap.

Bottom up: `types` (batches and the train state), `losses`, `groups` and `optimizers`, `inner_loss`
(what a classifier learns), `problem` (the two levels), `second_order` (the two products that
estimators are made of), `inner_loop` (k inner steps), `window` (what estimators share), `implicit`
and `estimators` (the meta-gradient; start reading at `exact_reference`), `overlap` (windows that
begin before the last one's end).
"""

from mlc_jax.core.estimators import (
    ESTIMATORS,
    OUTER_METRICS,
    OVERLAPPING,
    agreement,
    approximate,
)
from mlc_jax.core.inner_loop import (
    BACKWARDS,
    at_step,
    has_convolutions,
    resolve_unroll,
    scan,
    unroll,
)
from mlc_jax.core.inner_loss import Held, InnerLoss, Output, inner_loss, regularizers
from mlc_jax.core.losses import pmean
from mlc_jax.core.overlap import start_ring, turn_ring
from mlc_jax.core.problem import (
    ApplyFn,
    Evidence,
    Problem,
    TargetFn,
    apply_inner_grads,
    evidence_of,
    features_of,
    given_labels,
    inner_grads,
    inner_step,
    outer_loss,
    passes,
    run_passes,
    step_rngs,
)
from mlc_jax.core.second_order import inner_grads_vjp, meta_product
from mlc_jax.core.types import (
    Batch,
    Inputs,
    Labelled,
    MainState,
    MetaState,
    Metrics,
    Params,
    Rows,
    TrainState,
    num_params,
)
from mlc_jax.core.window import Estimator, EstimatorSpec, Options, Window

__all__ = [
    "BACKWARDS",
    "ESTIMATORS",
    "OUTER_METRICS",
    "OVERLAPPING",
    "ApplyFn",
    "Batch",
    "Estimator",
    "EstimatorSpec",
    "Evidence",
    "Held",
    "InnerLoss",
    "Inputs",
    "Labelled",
    "MainState",
    "MetaState",
    "Metrics",
    "Options",
    "Output",
    "Params",
    "Problem",
    "Rows",
    "TargetFn",
    "TrainState",
    "Window",
    "agreement",
    "apply_inner_grads",
    "approximate",
    "at_step",
    "evidence_of",
    "features_of",
    "given_labels",
    "has_convolutions",
    "inner_grads",
    "inner_grads_vjp",
    "inner_loss",
    "inner_step",
    "meta_product",
    "num_params",
    "outer_loss",
    "passes",
    "pmean",
    "regularizers",
    "resolve_unroll",
    "run_passes",
    "scan",
    "start_ring",
    "step_rngs",
    "turn_ring",
    "unroll",
]
