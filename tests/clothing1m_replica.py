"""A small Clothing1M: its layout, with real pictures where the packs of CIFAR-10 are there.

    python tests/clothing1m_replica.py DIR

Pictures are enlarged to 64 to 300 pixels, of odd sizes; some are grey, some CMYK, and one, the last
of the noisy list, may be cut in half. Noisy labels are those that people gave (CIFAR-10N, worst).
"""

import io
import pathlib
import sys

import numpy as np
from PIL import Image

SHARED = pathlib.Path(__file__).parents[2] / "shared" / "data"
SIZES = {"noisy_train": 96, "clean_train": 40, "clean_val": 20, "clean_test": 24}
OVERLAP = 0.6  # Of the clean lists, what has a noisy label, too.


def has_real_pictures() -> bool:
    return (SHARED / "tfds" / "cifar10").is_dir() and (SHARED / "cifar10n").is_dir()


def _examples(number: int):
    """(image, true label, noisy label) of each."""
    if not has_real_pictures():
        rng = np.random.default_rng(0)
        for _ in range(number):
            label = int(rng.integers(10))
            image = rng.integers(0, 60, (32, 32, 3)) + 18 * label
            yield image.astype(np.uint8), label, int(rng.integers(10))
        return
    import tensorflow_datasets as tfds

    given = np.load(SHARED / "cifar10n" / "cifar10n.npz")["worst"]
    builder = tfds.builder("cifar10", data_dir=str(SHARED / "tfds"))
    for example in tfds.as_numpy(builder.as_dataset(split="train").take(number)):
        row = int(example["id"].decode()[6:])
        yield example["image"], int(example["label"]), int(given[row])


def build(root: pathlib.Path, sizes=None, *, truncated: bool = False) -> dict[str, list[str]]:
    """Writes it; returns the keys of each list."""
    sizes, rng = sizes or SIZES, np.random.default_rng(1)
    root.mkdir(parents=True, exist_ok=True)
    examples = _examples(sum(sizes.values()))
    keys, labels = {}, {"noisy": [], "clean": []}
    for name, size in sizes.items():
        keys[name] = []
        for i in range(size):
            image, truth, given = next(examples)
            key = f"images/{i % 10}/{i % 7}/{name},{i}.jpg"
            mode = {7: "L", 8: "CMYK"}.get(i % 11, "RGB")
            shape = tuple(int(x) for x in rng.integers(64, 301, 2))
            stream = io.BytesIO()
            Image.fromarray(image).resize(shape).convert(mode).save(stream, "JPEG", quality=90)
            data = stream.getvalue()
            if truncated and name == "noisy_train" and i == size - 1:
                data = data[: len(data) // 2]
            (root / key).parent.mkdir(parents=True, exist_ok=True)
            (root / key).write_bytes(data)
            keys[name].append(key)
            if name != "noisy_train":
                labels["clean"].append(f"{key} {truth}")
            if name == "noisy_train" or rng.uniform() < OVERLAP:
                labels["noisy"].append(f"{key} {given}")
    for name, lines in keys.items():
        (root / f"{name}_key_list.txt").write_text("".join(f"{line}\n" for line in lines))
    for name, lines in labels.items():
        (root / f"{name}_label_kv.txt").write_text("".join(f"{line}\n" for line in lines))
    return keys


if __name__ == "__main__":
    build(pathlib.Path(sys.argv[1]))
