"""How fast torch's DataLoader reads the same files; run by `experiments.speed.loader_benchmark`.

    PYTHON torch_loader.py '{"paths": [...], "size": 224, "batch_size": 96, "batches": 20, ...}'

It imports nothing of this project, since PyTorch is installed elsewhere. Transforms are
torchvision's of ImageNet: RandomResizedCrop, flip, to float, normalise; PIL decodes the pictures.
"""

import json
import sys
import time
import types
from typing import Any

import torch
from PIL import Image

# torchvision's own operations, which are not used here, may not fit the installed torch.
sys.modules["torchvision._meta_registrations"] = types.ModuleType("none")
from torchvision import transforms

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Files(torch.utils.data.Dataset):
    """Image files, transformed."""

    def __init__(self, paths: list[str], size: int):
        self.paths = paths
        self.transform = transforms.Compose([
            transforms.RandomResizedCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(_MEAN, _STD),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, row: int) -> Any:
        with Image.open(self.paths[row]) as image:
            return self.transform(image.convert("RGB"))


def main() -> None:
    asked = json.loads(sys.argv[1])
    dataset = Files(asked["paths"], asked["size"])
    number = (asked["warm_up"] + asked["batches"]) * asked["batch_size"]
    sampler = torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=number)
    batches = iter(
        torch.utils.data.DataLoader(
            dataset, asked["batch_size"], sampler=sampler, num_workers=asked["workers"]
        )
    )
    for _ in range(asked["warm_up"]):
        next(batches)
    start = time.perf_counter()
    for _ in range(asked["batches"]):
        next(batches)
    seconds = time.perf_counter() - start
    print(json.dumps({"images/s": asked["batches"] * asked["batch_size"] / seconds}))


if __name__ == "__main__":
    main()
