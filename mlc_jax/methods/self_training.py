"""The control of `robust_mlc`: the same inner loss, and nothing of the given labels.

What this reaches, MixUp, the regularisers and the clean labels reach alone.
"""

import dataclasses
from typing import Any, ClassVar

import jax

from mlc_jax.core import InnerLoss
from mlc_jax.methods.blocks import noisy_and_clean, supervised
from mlc_jax.methods.mlc import ROBUST
from mlc_jax.methods.types import Binding, BoundMethod, Method

_REGULARIZED = dataclasses.replace(ROBUST, hand_over=False)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfTraining(Method):
    """The classifier's own prediction in place of a noisy example's label.

    Attributes:
      inner_loss: what is added to cross-entropy. With `hand_over` the given labels come first.
    """

    name: ClassVar[str] = "self_training"
    inner_loss: InnerLoss = _REGULARIZED

    def build(self, binding: Binding) -> BoundMethod:
        return supervised(binding, noisy_and_clean, own_prediction, self.inner_loss)


def own_prediction(
    belief: Any, features: jax.Array, logits: jax.Array, labels: jax.Array
) -> jax.Array:
    """The `TargetFn` that believes the classifier, `[B, C]`; held fixed, as every target is."""
    del belief, features, labels
    return jax.nn.softmax(logits)
