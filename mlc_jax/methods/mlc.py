"""Meta Label Correction.

Source: Zheng, Awadallah, Dumais (2021), "Meta Label Correction for Noisy Label Learning".
"""

import dataclasses
from typing import ClassVar, cast

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from mlc_jax.core import MetaState, Params, TrainState
from mlc_jax.methods.blocks import BilevelMethod, bilevel_method
from mlc_jax.methods.types import Binding, BoundMethod


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLC(BilevelMethod):
    """The classifier learns labels that the LCN rewrites; the LCN learns from the clean loss.

    Attributes:
      lcn: the label correction network, a Flax module: (features `[B, F]`, given labels `[B]`) ->
        soft labels `[B, C]`.
    """

    name: ClassVar[str] = "mlc"
    lcn: nn.Module

    def build(self, binding: Binding) -> BoundMethod:
        def init_lcn(rng: chex.PRNGKey, num_features: int) -> Params:
            features, labels = jnp.zeros((1, num_features)), jnp.zeros((1,), jnp.int32)
            return self.lcn.init(rng, features, labels)["params"]

        def targets(
            meta_params: Params, features: jax.Array, logits: jax.Array, labels: jax.Array
        ) -> jax.Array:
            """Corrected labels: the LCN's distribution over the classes."""
            del logits
            return cast(jax.Array, self.lcn.apply({"params": meta_params}, features, labels))

        def correct_labels(
            state: TrainState, features: jax.Array, logits: jax.Array, labels: jax.Array
        ) -> jax.Array:
            return targets(cast(MetaState, state.meta).params, features, logits, labels)

        return bilevel_method(self, binding, targets, init_lcn, correct_labels)
