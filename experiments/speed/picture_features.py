"""The time from a folder of pictures to a report, by features.

    python -m experiments.speed.picture_features --encoder=lite0
    python -m experiments.speed.picture_features --encoder=dinov2_small

lite0 is EfficientNet-Lite0 at 128 pixels (`experiments.labels.efficientnet_lite`). dinov2_small is
a network of DINOv2-small's shape at 224 pixels; its random weights take as long as trained ones.
Pictures are ten classes of noise, PNG of 32 pixels. 6 in 10 labels are drawn anew, and every tenth
is checked. Only the time is measured. The cache is empty at the start.
"""

import os
import pathlib
import tempfile
import time
from typing import Any

import numpy as np
from absl import flags
from PIL import Image

from experiments.labels.efficientnet_lite import EfficientNetLite0
from mlc_jax import LabelCorrector, PictureReader, command_line

_ENCODER = flags.DEFINE_enum("encoder", "lite0", ["lite0", "dinov2_small"], "Which.")
_PICTURES = flags.DEFINE_integer("pictures", 600, "How many.", lower_bound=40)
_CLASSES = 10


def pictures(folder: pathlib.Path, number: int) -> tuple[list[str], np.ndarray]:
    """Paths of new pictures of 32 pixels, and their classes `[number]`."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, _CLASSES, number)
    colours = rng.integers(0, 256, (_CLASSES, 3))
    paths = []
    for i, label in enumerate(truth):
        pixels = rng.normal(colours[label], 40, (32, 32, 3)).clip(0, 255).astype(np.uint8)
        paths.append(str(folder / f"{i}.png"))
        Image.fromarray(pixels).save(paths[-1])
    return paths, truth


def dinov2_small(folder: pathlib.Path) -> str:
    """A directory with a network of DINOv2-small's shape, of 22 million random weights."""
    import torch
    from transformers import BitImageProcessorPil, Dinov2Config, Dinov2Model

    torch.manual_seed(0)
    shape: Any = {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 6}
    Dinov2Model(Dinov2Config(**shape, image_size=518, patch_size=14)).save_pretrained(folder)
    sizes: Any = {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}}
    BitImageProcessorPil(**sizes).save_pretrained(folder)
    return str(folder)


def main() -> None:
    """Prints the seconds for the features alone, and from paths to the report."""
    with tempfile.TemporaryDirectory() as name:
        place = pathlib.Path(name)
        paths, truth = pictures(place, _PICTURES.value)
        encoder: Any = EfficientNetLite0(128)
        if _ENCODER.value == "dinov2_small":
            encoder = dinov2_small(place / "model")
        rng = np.random.default_rng(1)
        wrong = rng.random(len(truth)) < 0.6
        given = np.where(wrong, rng.integers(0, _CLASSES, len(truth)), truth)
        checked = np.where(np.arange(len(truth)) % 10 == 0, truth, -1)
        os.environ["HOME"] = name  # Where the cache is.
        started = time.monotonic()
        PictureReader(encoder)(paths)
        features = time.monotonic() - started
        corrector = LabelCorrector(encoder=encoder).fit(paths, given, checked)
        corrector.result_.report(place / "report.html")
        total = time.monotonic() - started
        print(
            f"{len(paths)} pictures, {os.cpu_count()} cores, {_ENCODER.value}: features "
            f"{features:.0f} s ({len(paths) / features:.1f} pictures/s), to the report "
            f"{total:.0f} s; {time.process_time():.0f} s of CPU time in all"
        )


if __name__ == "__main__":
    command_line.run(main, required=[])
