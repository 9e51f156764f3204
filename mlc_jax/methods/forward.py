"""Forward correction: the matrix of wrong labels is estimated without any clean label.

Source: Patrini, Rozza, Menon, Nock, Qu (2017), "Making Deep Neural Networks Robust to Label Noise:
a Loss Correction Approach", theorem 2 (the loss) and theorem 3 (the estimate).

As in all methods here, clean labels are trained on: they join the second phase with plain
cross-entropy. Hendrycks et al. (2018) call that Forward Gold.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp

from mlc_jax.errors import expect
from mlc_jax.methods.glc import corrected_by_matrix
from mlc_jax.methods.types import Binding, BoundMethod, Seen, TwoPhaseMethod


@dataclasses.dataclass(frozen=True, kw_only=True)
class Forward(TwoPhaseMethod):
    """A first classifier learns the noisy labels; its surest predictions give the matrix.

    Attributes:
      percentile: which example is a class's anchor: the last one below this percentile of the
        class's probabilities. The authors use 97 for ten classes, 100 (the largest) for a hundred.
    """

    name: ClassVar[str] = "forward"
    percentile: float = 97.0

    def build(self, binding: Binding) -> BoundMethod:
        classes = binding.num_classes
        expect(
            self.percentile == 100 or 100 - self.percentile < 100 / classes,
            "forward.percentile",
            self.percentile,
            f"more than {100 - 100 / classes:g}, or an anchor of one of {classes} classes may be "
            "of another",
        )

        def estimate(seen: Seen) -> jax.Array:
            return transition_matrix(seen.probs, self.percentile)

        first_phase_epochs = self.first_phase_epochs
        return corrected_by_matrix(binding, first_phase_epochs, "noisy", estimate)


def transition_matrix(probs: jax.Array, percentile: float) -> jax.Array:
    """`T[i, j]`, an estimate of P(given label j | true label i).

    Row i is the prediction for an anchor of class i: the example with the highest probability of
    that class, outliers aside: `T[i, j] = p(j | argmax_x p(i | x))`.

    Args:
      probs: `[N, C]`, the predictions of a classifier that was trained on the noisy labels.
      percentile: in (0, 100], rank of the anchor's probability of its class among all examples.
    """
    if percentile == 100:
        return probs[jnp.argmax(probs, axis=0)]
    # As in the authors' code: the largest value below the percentile.
    bound = jnp.sort(probs, axis=0)[math.ceil(percentile / 100 * (len(probs) - 1))]
    return probs[jnp.argmax(jnp.where(probs < bound, probs, -1.0), axis=0)]
