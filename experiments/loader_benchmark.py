"""How fast the loader reads image files, beside bare tf.data that does the same work.

    python -m experiments.loader_benchmark --workdir=DIR --image_size=224 --rounds=5

JPEG files of about 500 x 375 pixels are made of scikit-learn's two photographs. Both sides read,
decode and resize them with the same function, in parallel and in order; the loader also draws its
order from the seed, splits clean from noisy examples and deals them out. The two are timed in turn,
each time from the start, so that whatever else the machine does weighs on both alike: on a shared
machine the ratios are the message, that of CPU time most of all.
"""

import itertools
import pathlib
import statistics
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from experiments.tables import to_csv, to_markdown
from mlc_jax import command_line
from mlc_jax.training.workdir import locked_workdir

_WORKDIR = flags.DEFINE_string("workdir", "", "Directory for files and tables; made if need be.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Pixels after resizing.", lower_bound=1)
_NUM_FILES = flags.DEFINE_integer("num_files", 500, "JPEG files to make.", lower_bound=96)
_BATCHES = flags.DEFINE_integer("batches", 20, "Batches of 96 per timing.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timings of each side.", lower_bound=1)

_NOISY_BATCH, _CLEAN_BATCH = 64, 32
_BATCH = _NOISY_BATCH + _CLEAN_BATCH
_WARM_UP = 5  # Batches before a timing: tf.data's autotuning finds its way.
_FILE_SHAPE = (375, 500)


class ImageFiles:
    """Image files as a `Source`: uint8 `[size, size, 3]`."""

    by_row = True
    num_draws = 0

    def __init__(self, paths: list[str], size: int):
        self.paths, self._size = np.array(paths), size

    def __len__(self) -> int:
        return len(self.paths)

    def ids(self, rows: np.ndarray) -> np.ndarray:
        return self.paths[rows]

    def fingerprint(self) -> str:
        return "\n".join(self.paths)

    def read(self, row: Any, draws: Any = None) -> Any:
        import tensorflow as tf

        del draws

        return read_image(tf.gather(self.paths, row), self._size)


def read_image(path: Any, size: int) -> Any:
    """Reads, decodes and resizes one file, in TensorFlow."""
    import tensorflow as tf

    image = tf.io.decode_image(tf.io.read_file(path), channels=3, expand_animations=False)
    image = tf.image.resize(image, [size, size], antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(image), 0, 255), tf.uint8)


def make_files(folder: pathlib.Path, num_files: int) -> list[str]:
    """Writes crops of two photographs, each another one; returns their paths."""
    import tensorflow as tf
    from sklearn.datasets import load_sample_images

    photos = load_sample_images().images  # 427 x 640.
    rng = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    paths = [str(folder / f"{i:05d}.jpg") for i in range(num_files)]
    for i, path in enumerate(tqdm(paths, desc="writing files", dynamic_ncols=True)):
        scale = rng.uniform(0.6, 1.0)
        shape = [int(427 * scale), int(640 * scale), 3]
        crop = tf.image.stateless_random_crop(photos[i % 2], shape, seed=[0, i])
        image = tf.cast(tf.image.resize(crop, _FILE_SHAPE), tf.uint8)
        pathlib.Path(path).write_bytes(tf.io.encode_jpeg(image, quality=92).numpy())
    return paths


def loader_batches(paths: list[str], size: int, seed: int) -> Iterator[Any]:
    """Training batches of 64 noisy, 16 clean inner and 16 clean outer examples."""
    from mlc_jax.data.loader import Pipeline
    from mlc_jax.data.source import Subset

    labels = np.zeros(len(paths), np.int32)
    everything = Subset(ImageFiles(paths, size), np.arange(len(paths)), labels, labels)
    num_clean = len(paths) // 3
    pipeline = Pipeline(
        noisy=everything.take(slice(num_clean, None)),
        clean=everything.take(slice(num_clean)),
        noisy_batch_size=_NOISY_BATCH,
        clean_batch_size=_CLEAN_BATCH,
        split_clean=True,
        num_inner_steps=1,
        augment=False,
        seed=seed,
    )
    return pipeline.batches(0)


def bare_batches(paths: list[str], size: int, seed: int) -> Iterator[Any]:
    """Batches of 96 images, as one would write them by hand."""
    import tensorflow as tf

    dataset = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths), seed).repeat()
    dataset = dataset.map(lambda path: read_image(path, size), num_parallel_calls=tf.data.AUTOTUNE)
    yield from dataset.batch(_BATCH).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


_SIDES = {"loader": loader_batches, "tf.data": bare_batches}
_UNITS = ("images/s", "CPU ms/image")


def speed(batches: Any, num_batches: int) -> dict[str, float]:
    """Of a generator of batches of 96, which is closed afterwards."""
    for _ in itertools.islice(batches, _WARM_UP):
        pass
    start, cpu_start = time.perf_counter(), time.process_time()
    for _ in itertools.islice(batches, num_batches):
        pass
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    batches.close()
    num_images = num_batches * _BATCH
    return {"images/s": num_images / seconds, "CPU ms/image": 1e3 * cpu_seconds / num_images}


def measure(
    paths: list[str], size: int, num_batches: int, num_rounds: int
) -> list[dict[str, float]]:
    """One row per round: speed of both sides, and the loader's over that of bare tf.data."""
    rows = []
    for i in tqdm(range(num_rounds), desc="rounds", dynamic_ncols=True):
        names = list(_SIDES) if i % 2 == 0 else list(_SIDES)[::-1]
        row: dict[str, float] = {"round": i}
        for name in names:
            measured = speed(_SIDES[name](paths, size, i), num_batches)
            row |= {f"{name} {unit}": value for unit, value in measured.items()}
        for unit in _UNITS:
            row[f"ratio {unit}"] = row[f"loader {unit}"] / row[f"tf.data {unit}"]
        rows.append(row)
    return rows


def summary(rows: list[dict[str, float]]) -> str:
    """A table of medians and ranges over the rounds."""
    body = []
    for unit in _UNITS:
        for name in (*_SIDES, "ratio"):
            values = [row[f"{name} {unit}"] for row in rows]
            figures = (statistics.median(values), min(values), max(values))
            body.append((f"{name}, {unit}", *(f"{x:.3g}" for x in figures)))
    return to_markdown(("", "median", "lowest", "highest"), body)


def main() -> None:
    with locked_workdir(_WORKDIR.value) as workdir:
        # Before TensorFlow: the loader says how it is to be imported.
        import mlc_jax.data.loader  # noqa: F401

        paths = make_files(pathlib.Path(workdir / "files"), _NUM_FILES.value)
        rows = measure(paths, _IMAGE_SIZE.value, _BATCHES.value, _ROUNDS.value)
        setting = {"image_size": _IMAGE_SIZE.value, "num_files": _NUM_FILES.value}
        setting |= {"batches": _BATCHES.value, "batch_size": _BATCH}
        workdir.joinpath("loader_benchmark.csv").write_text(to_csv([setting | x for x in rows]))
        text = ", ".join(f"{name} {value}" for name, value in setting.items())
        text += f"\n\n{summary(rows)}"
        workdir.joinpath("loader_benchmark.md").write_text(text)
        print(text)


if __name__ == "__main__":
    command_line.run(main, required=["workdir"])
