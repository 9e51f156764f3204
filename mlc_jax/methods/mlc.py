"""Meta Label Correction.

Source: Zheng, Awadallah, Dumais (2021), "Meta Label Correction for Noisy Label Learning".
"""

from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import optax

from mlc_jax import bilevel
from mlc_jax.bilevel import Batch, Metrics, Params, Problem
from mlc_jax.meta_gradients import ESTIMATORS
from mlc_jax.methods.base import Method, MethodInputs, train_mode
from mlc_jax.models import LabelCorrectionNetwork
from mlc_jax.train_state import MetaState, TrainState, create_meta_state


def mlc(inputs: MethodInputs) -> Method:
    """The classifier learns labels that the LCN rewrites; the LCN learns from the clean loss.

    One `train_step` is one window (Algorithm 1): k real updates of the classifier with labels from
    the LCN as it stands, then one update of the LCN along the meta-gradient through all k.
    """
    config = inputs.config
    lcn = LabelCorrectionNetwork(num_classes=inputs.num_classes, **config.lcn)
    estimator = ESTIMATORS[config.meta_gradient.estimator]
    main_tx, meta_tx = inputs.optimizer("main_optimizer"), inputs.optimizer("meta_optimizer")

    def targets(
        meta_params: Params, features: jax.Array, logits: jax.Array, labels: jax.Array
    ) -> jax.Array:
        del logits
        return cast(jax.Array, lcn.apply({"params": meta_params}, features, labels))

    apply = train_mode(inputs.model, inputs.normalize)
    problem = Problem(apply, targets, main_tx, inputs.axis_name)

    def init(rng: chex.PRNGKey) -> TrainState:
        # The classifier's start does not depend on the method: same split as in `supervised`.
        init_rng, state_rng = jax.random.split(rng)
        main = inputs.main_state(init_rng, main_tx)
        variables = {"params": main.params, "batch_stats": main.batch_stats}
        example = inputs.normalize(inputs.example_inputs)
        _, features = cast(Any, inputs.model.apply(variables, example, train=False))
        meta_rng = jax.random.fold_in(init_rng, 1)
        meta = create_meta_state(meta_rng, lcn, meta_tx, num_features=features.shape[-1])
        return TrainState(jnp.zeros((), jnp.int32), state_rng, main, meta)

    def train_step(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        num_inner_steps = jax.tree.leaves(batches)[0].shape[0]
        rngs = bilevel.step_rngs(state.rng, state.step, num_inner_steps, inputs.axis_name)
        meta = cast(MetaState, state.meta)
        window = estimator(
            problem, state.main, meta.params, batches, rngs, scan_unroll=inputs.scan_unroll
        )
        updates, opt_state = meta_tx.update(window.meta_grads, meta.opt_state, meta.params)
        meta_params = optax.apply_updates(meta.params, updates)
        metrics = window.metrics | {"meta_grad_norm": optax.tree.norm(window.meta_grads)}
        state = state.replace(
            step=state.step + num_inner_steps,
            main=window.main,
            meta=MetaState(meta_params, opt_state),
        )
        return state, bilevel.pmean(metrics, inputs.axis_name)

    def correct_labels(
        state: TrainState, features: jax.Array, logits: jax.Array, labels: jax.Array
    ) -> jax.Array:
        return targets(cast(MetaState, state.meta).params, features, logits, labels)

    return Method(init, train_step, correct_labels)
