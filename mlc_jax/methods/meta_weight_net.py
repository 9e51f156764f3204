"""Meta-Weight-Net: weights of examples from their losses, by a network learned from clean data.

Source: Shu, Xie, Yi, Zhao, Zhou, Xu, Meng (2019), "Meta-Weight-Net: Learning an Explicit Mapping
For Sample Weighting", algorithm 1.

It shares MLC's algorithm. The classifier's target on a noisy example is a weight times the given
label, so the inner loss is the paper's, `1/n sum_i V(L_i; Theta) L_i`. The meta-gradient goes
through k updates of the classifier (k = 1 in the paper), by any estimator. Two things differ from
the paper. The classifier keeps the updates that the meta-gradient goes through; the paper repeats
them with the new weights. And half of each clean batch is trained on.
"""

import dataclasses
from typing import ClassVar, cast

import chex
import jax
import jax.numpy as jnp

from mlc_jax.core import InnerLoss, MetaState, Params, TrainState, losses
from mlc_jax.methods.blocks import PLAIN, bilevel_method, classifier_labels
from mlc_jax.methods.types import BilevelMethod, Binding, BoundMethod
from mlc_jax.models import WeightNet


@dataclasses.dataclass(frozen=True, kw_only=True)
class MetaWeightNet(BilevelMethod):
    """The classifier learns weighted labels; the weights are learned from the clean loss.

    Attributes:
      weight_net: maps an example's loss to its weight.
      inner_loss: terms beyond cross-entropy on the weighted labels.
    """

    name: ClassVar[str] = "meta_weight_net"
    weight_net: WeightNet = dataclasses.field(default_factory=WeightNet)
    inner_loss: InnerLoss = PLAIN

    def build(self, binding: Binding) -> BoundMethod:
        def init_weight_net(rng: chex.PRNGKey, features: jax.Array) -> tuple[Params, None]:
            del features
            return self.weight_net.init(rng, jnp.zeros((1,)))["params"], None

        def weights(meta_params: Params, logits: jax.Array, labels: jax.Array) -> jax.Array:
            """`V(L_i; Theta)` of the loss on the given label, `[B]`."""
            example_losses = losses.cross_entropy(logits, labels)
            return cast(jax.Array, self.weight_net.apply({"params": meta_params}, example_losses))

        def targets(
            meta_params: Params, features: jax.Array, logits: jax.Array, labels: jax.Array
        ) -> jax.Array:
            del features
            given = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
            return weights(meta_params, logits, labels)[:, None] * given

        def label_quality(
            state: TrainState, features: jax.Array, logits: jax.Array, labels: jax.Array
        ) -> jax.Array:
            del features
            return weights(cast(MetaState, state.meta).params, logits, labels)

        bound = bilevel_method(
            self, binding, targets, init_weight_net, classifier_labels, rule=self.inner_loss
        )
        return bound._replace(label_quality=label_quality)
