"""The CIFAR residual network of He et al. (2016), with parameter-free ("option A") shortcuts."""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

STAGE_WIDTHS = (16, 32, 64)
# The published code's initialisation, PyTorch's kaiming_normal_.
_KAIMING_NORMAL = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class ResNetBlock(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the (padded, subsampled) input."""

    width: int
    stride: int
    dtype: DTypeLike | None
    axis_name: str | None

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv, norm = _layers(self.dtype, self.axis_name, train)
        y = conv(self.width, strides=(self.stride, self.stride), name="conv1")(x)
        y = nn.relu(norm(name="bn1")(y))
        y = conv(self.width, name="conv2")(y)
        y = norm(name="bn2")(y)
        return nn.relu(y + option_a_shortcut(x, self.width, self.stride))


class ResNet(nn.Module):
    """ResNet of depth 6n + 2 for 32x32 images (any size works): 16, 32, 64 channels, 64 features.

    Depth 32 has 464,154 parameters for 10 classes.

    Attributes:
      num_classes: number of logits.
      depth: 8, 14, 20, 26, 32, 44, 56, 110, ...
      dtype: of the computation, e.g. bfloat16; params, statistics and outputs stay in float32.
      sync_batch_norm: whether batch statistics are averaged over devices. Then the result does not
        depend on the number of devices.
      axis_name: the pmap axis to average them over; `Method.bind` sets it.
    """

    num_classes: int
    depth: int = 32
    dtype: DTypeLike | None = None
    sync_batch_norm: bool = True
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Maps images `[B, H, W, 3]` to logits `[B, C]` and features `[B, 64]`.

        Raises:
          ValueError: the depth is not 6n + 2 with n >= 1.
        """
        if self.depth < 8 or (self.depth - 2) % 6:
            raise ValueError(f"ResNet depth: got {self.depth}, expected 6n + 2 with n >= 1")
        conv, norm = _layers(self.dtype, self.axis_name, train)
        x = nn.relu(norm(name="bn1")(conv(STAGE_WIDTHS[0], name="conv1")(inputs)))
        for stage, width in enumerate(STAGE_WIDTHS):
            for block in range((self.depth - 2) // 6):
                x = ResNetBlock(
                    width=width,
                    stride=2 if stage > 0 and block == 0 else 1,
                    dtype=self.dtype,
                    axis_name=self.axis_name,
                    name=f"layer{stage + 1}_{block}",
                )(x, train=train)
        features = jnp.mean(jnp.asarray(x, inputs.dtype), axis=(1, 2))
        dense = nn.Dense(self.num_classes, kernel_init=_KAIMING_NORMAL, name="linear")
        return dense(features), features


def option_a_shortcut(x: jax.Array, width: int, stride: int) -> jax.Array:
    """Identity, subsampled by `stride`, zero-padded equally on both sides to `width` channels."""
    x = x[:, ::stride, ::stride]
    pad = (width - x.shape[-1]) // 2
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (pad, pad)))


def _layers(
    dtype: DTypeLike | None, axis_name: str | None, train: bool
) -> tuple[partial[nn.Conv], partial[nn.BatchNorm]]:
    conv = partial(
        nn.Conv,
        kernel_size=(3, 3),
        padding=1,  # On both sides, as in PyTorch; 'SAME' pads only one side at stride 2.
        use_bias=False,
        kernel_init=_KAIMING_NORMAL,
        dtype=dtype,
    )
    norm = partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        axis_name=axis_name if train else None,
    )
    return conv, norm
