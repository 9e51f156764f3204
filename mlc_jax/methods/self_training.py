"""The control experiment for `robust_mlc`: the same inner loss without the given labels.

Its accuracy is due to MixUp, the regularisers and the clean labels alone.
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
      inner_loss: terms beyond cross-entropy. With `hand_over` the given labels come first.
    """

    name: ClassVar[str] = "self_training"
    inner_loss: InnerLoss = _REGULARIZED

    def build(self, binding: Binding) -> BoundMethod:
        return supervised(binding, noisy_and_clean, own_prediction, self.inner_loss)


def own_prediction(
    belief: Any, features: jax.Array, logits: jax.Array, labels: jax.Array
) -> jax.Array:
    """The `TargetFn` whose targets are the classifier's prediction, `[B, C]`, held fixed."""
    del belief, features, labels
    return jax.nn.softmax(logits)
