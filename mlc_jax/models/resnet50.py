"""The bottleneck residual networks of He et al. (2016) for photographs: ResNet-26, -50, -101.

This is "v1.5" of torchvision and timm: the stride is in a block's second convolution. Names follow
theirs (`layer1_0/conv1/kernel` is their `layer1.0.conv1.weight`), so that `torch_weights` can map
their pretrained weights; see `resnet50_checkpoint`.
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from mlc_jax.errors import expect

BLOCKS = {26: (2, 2, 2, 2), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
EXPANSION = 4  # A block's last convolution has this times its width.
# torchvision's initialisation, scaled by each layer's outputs, not its inputs.
_KAIMING_NORMAL = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


class ResNet50(nn.Module):
    """Bottleneck ResNet for images of any size: `32 * width` features, 2,048 as published.

    Depth 50 has 23,508,032 parameters without the last layer. A narrower one (`width=16`) suits
    small pictures.

    Attributes:
      num_classes: number of logits.
      depth: 26, 50 or 101.
      width: channels of the stem and of the first stage's 3x3 convolutions.
      freeze_batch_norm: whether the running statistics of pretraining do not change and normalise
        in training, too. Scales and biases are still trained.
      remat: whether the backward pass computes a block's activations again instead of storing them.
      dtype: of the computation, e.g. bfloat16; params, statistics and outputs stay in float32.
      sync_batch_norm: whether batch statistics are averaged over devices. Then the result does not
        depend on the number of devices.
      axis_name: the pmap axis to average them over; `Method.bind` sets it.
    """

    num_classes: int
    depth: int = 50
    width: int = 64
    freeze_batch_norm: bool = False
    remat: bool = False
    dtype: DTypeLike | None = None
    sync_batch_norm: bool = True
    axis_name: str | None = None

    @nn.compact
    def __call__(self, inputs: jax.Array, *, train: bool) -> tuple[jax.Array, jax.Array]:
        """Maps images `[B, H, W, 3]` to logits `[B, C]` and features `[B, 32 * width]`.

        Raises:
          InputError: the depth is unknown.
        """
        expect(self.depth in BLOCKS, "depth", self.depth, f"one of {[*BLOCKS]}")
        batch_statistics = train and not self.freeze_batch_norm
        norm = partial(
            nn.BatchNorm,
            use_running_average=not batch_statistics,
            momentum=0.9,  # PyTorch calls it 0.1.
            epsilon=1e-5,
            dtype=self.dtype,
            axis_name=self.axis_name if batch_statistics else None,
        )
        conv = partial(_conv, self.dtype)
        x = nn.relu(norm(name="bn1")(conv(self.width, 7, 2, name="conv1")(inputs)))
        # Not 'SAME', which pads on one side at stride 2.
        x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        block = nn.remat(_Bottleneck) if self.remat else _Bottleneck
        for stage, num_blocks in enumerate(BLOCKS[self.depth]):
            for i in range(num_blocks):
                x = block(
                    width=self.width * 2**stage,
                    stride=2 if stage > 0 and i == 0 else 1,
                    conv=conv,
                    norm=norm,
                    name=f"layer{stage + 1}_{i}",
                )(x)
        features = jnp.mean(jnp.asarray(x, inputs.dtype), axis=(1, 2))
        # Small, so that a new head on pretrained features starts with even probabilities.
        head = nn.Dense(self.num_classes, kernel_init=nn.initializers.normal(0.01), name="fc")
        return head(features), features


class _Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with batch norm, added to the (projected) input."""

    width: int
    stride: int
    conv: partial[nn.Conv]
    norm: partial[nn.BatchNorm]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        conv, norm, num_outputs = self.conv, self.norm, EXPANSION * self.width
        y = nn.relu(norm(name="bn1")(conv(self.width, 1, 1, name="conv1")(x)))
        y = nn.relu(norm(name="bn2")(conv(self.width, 3, self.stride, name="conv2")(y)))
        y = norm(name="bn3")(conv(num_outputs, 1, 1, name="conv3")(y))
        if x.shape[-1] != num_outputs or self.stride > 1:
            x = conv(num_outputs, 1, self.stride, name="downsample_0")(x)
            x = norm(name="downsample_1")(x)
        return nn.relu(y + x)


def _conv(dtype: DTypeLike | None, features: int, size: int, stride: int, *, name: str) -> nn.Conv:
    return nn.Conv(
        features,
        kernel_size=(size, size),
        strides=(stride, stride),
        padding=size // 2,
        use_bias=False,
        kernel_init=_KAIMING_NORMAL,
        dtype=dtype,
        name=name,
    )
