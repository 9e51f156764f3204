"""Meta Label Correction.

Source: Zheng, Awadallah, Dumais (2021), "Meta Label Correction for Noisy Label Learning".
"""

from typing import cast

import chex
import jax
import jax.numpy as jnp

from mlc_jax.methods.base import Method, MethodInputs, bilevel_method
from mlc_jax.models import LabelCorrectionNetwork
from mlc_jax.train_state import MetaState, Params, TrainState


def mlc(inputs: MethodInputs) -> Method:
    """The classifier learns labels that the LCN rewrites; the LCN learns from the clean loss."""
    lcn = LabelCorrectionNetwork(num_classes=inputs.num_classes, **inputs.config.lcn)

    def init_lcn(rng: chex.PRNGKey, num_features: int) -> Params:
        return lcn.init(rng, jnp.zeros((1, num_features)), jnp.zeros((1,), jnp.int32))["params"]

    def targets(
        meta_params: Params, features: jax.Array, logits: jax.Array, labels: jax.Array
    ) -> jax.Array:
        """Corrected labels: the LCN's distribution over the classes."""
        del logits
        return cast(jax.Array, lcn.apply({"params": meta_params}, features, labels))

    def correct_labels(
        state: TrainState, features: jax.Array, logits: jax.Array, labels: jax.Array
    ) -> jax.Array:
        return targets(cast(MetaState, state.meta).params, features, logits, labels)

    return bilevel_method(inputs, targets, init_lcn, correct_labels)
