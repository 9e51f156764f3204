"""A plain multi-layer perceptron."""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike


class MLP(nn.Module):
    """Dense layers with ReLU.

    Attributes:
      num_classes: number of logits.
      hidden_sizes: widths of the hidden layers. The last one's activations are the features;
        without hidden layers the inputs are.
      dropout_rate: for the hidden activations, in training.
      dtype: of the computation; params stay in float32, outputs have the inputs' dtype.
    """

    num_classes: int
    hidden_sizes: tuple[int, ...] = (128, 64)
    dropout_rate: float = 0.0
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Maps inputs `[B, ...]` to logits `[B, C]` and features `[B, F]`."""
        out_dtype = inputs.dtype
        x = inputs.reshape(inputs.shape[0], -1)
        for i, size in enumerate(self.hidden_sizes):
            x = nn.relu(nn.Dense(size, dtype=self.dtype, name=f"hidden{i + 1}")(x))
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        logits = nn.Dense(self.num_classes, dtype=self.dtype, name="output")(x)
        return jnp.asarray(logits, out_dtype), jnp.asarray(x, out_dtype)
