"""The baselines: cross-entropy on all labels, on clean labels only, on noisy labels only.

They make the same number of updates as MLC, on batches of the same sizes; `cross_entropy` and
`clean_only` spend the same clean labels.
"""

import dataclasses
from typing import ClassVar

from mlc_jax.core import InnerLoss
from mlc_jax.methods.blocks import PLAIN, clean_part, noisy_and_clean, noisy_part, supervised
from mlc_jax.methods.types import Binding, BoundMethod, Method


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossEntropy(Method):
    """Learns the given noisy labels and the clean ones together.

    Attributes:
      inner_loss: what is added to cross-entropy.
    """

    name: ClassVar[str] = "cross_entropy"
    inner_loss: InnerLoss = PLAIN

    def build(self, binding: Binding) -> BoundMethod:
        return supervised(binding, noisy_and_clean, rule=self.inner_loss)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CleanOnly(Method):
    """Never looks at a noisy example.

    Attributes:
      inner_loss: what is added to cross-entropy; only MixUp works without noisy examples.
    """

    name: ClassVar[str] = "clean_only"
    inner_loss: InnerLoss = PLAIN

    def build(self, binding: Binding) -> BoundMethod:
        return supervised(binding, clean_part, rule=self.inner_loss)


@dataclasses.dataclass(frozen=True, kw_only=True)
class NoisyOnly(Method):
    """Never looks at a clean example."""

    name: ClassVar[str] = "noisy_only"

    def build(self, binding: Binding) -> BoundMethod:
        return supervised(binding, noisy_part, uses_clean=False)
