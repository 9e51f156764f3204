"""The meta model of Meta-Weight-Net."""

import jax
import jax.numpy as jnp
from flax import linen as nn


class WeightNet(nn.Module):
    """Maps an example's loss to its weight: an MLP 1-H-1 with a sigmoid at its end.

    Source: Shu et al. (2019), "Meta-Weight-Net: Learning an Explicit Mapping For Sample Weighting",
    section 2.1.

    Attributes:
      hidden_size: H.
    """

    hidden_size: int = 100

    @nn.compact
    def __call__(self, losses: jax.Array) -> jax.Array:
        """Losses `[B]` in nats to weights `[B]` in (0, 1)."""
        x = nn.relu(nn.Dense(self.hidden_size)(losses[:, None]))
        return jnp.squeeze(nn.sigmoid(nn.Dense(1)(x)), axis=-1)
