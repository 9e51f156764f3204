"""How fast pictures are read, compared with bare tf.data and torch's DataLoader.

    python -m experiments.speed.loader_benchmark --workdir=DIR --image_size=224 --rounds=5 \
        --torch_python=PYTHON

JPEG files of about 500 x 375 pixels are made of scikit-learn's two photographs. All sides decode
them, cut a random resized crop with antialiasing, mirror half of them, and give batches of 96. The
loader and bare tf.data do it with the same function, in parallel and in order. The loader also
draws its order and its crops from the seed, and splits batches into noisy and clean examples.
Packed pictures have a shorter side of 256 pixels at most. PYTHON is an interpreter with torch and
torchvision; without it there is no such row.

Sides are timed in turn, each time from the start, so that other work on the machine affects all
alike. On a shared machine look at the ratios.
"""

import itertools
import json
import os
import pathlib
import statistics
import subprocess
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from experiments import tables
from experiments.tables import to_markdown
from mlc_jax import command_line
from mlc_jax.errors import InputError
from mlc_jax.files.pictures import Files, Geometry, Pictures, Store, decode, see
from mlc_jax.workdir.workdir import locked_workdir

_WORKDIR = flags.DEFINE_string("workdir", "", "Directory for files and tables; made if need be.")
_IMAGE_SIZE = flags.DEFINE_integer("image_size", 224, "Pixels after resizing.", lower_bound=1)
_NUM_FILES = flags.DEFINE_integer("num_files", 500, "JPEG files to make.", lower_bound=96)
_BATCHES = flags.DEFINE_integer("batches", 20, "Batches of 96 per timing.", lower_bound=1)
_ROUNDS = flags.DEFINE_integer("rounds", 5, "Timings of each side.", lower_bound=1)
_TORCH_PYTHON = flags.DEFINE_string(
    "torch_python", None, "An interpreter with torch and torchvision, to time its DataLoader."
)

_NOISY_BATCH, _CLEAN_BATCH = 64, 32
_BATCH = _NOISY_BATCH + _CLEAN_BATCH
_WARM_UP = 5  # Batches before a timing: tf.data's autotuning finds its way.
_FILE_SHAPE = (375, 500)
_BARE, _TORCH = "tf.data", "torch"
_SPEED, _WORK = "images/s", "CPU ms/image"


def make_files(folder: pathlib.Path, num_files: int) -> list[str]:
    """Writes different crops of two photographs; returns their paths."""
    from sklearn.datasets import load_sample_images

    from mlc_jax.data.streaming import tf

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


def loader_batches(store: Store, size: int, seed: int) -> Iterator[Any]:
    """Training batches of 64 noisy, 16 clean inner and 16 clean outer examples."""
    from mlc_jax.data.loader import Pipeline
    from mlc_jax.data.source import Subset

    labels = np.zeros(len(store), np.int32)
    source = Pictures(store, Geometry(size))
    everything = Subset(source, np.arange(len(store)), labels, labels)
    num_clean = len(store) // 3
    pipeline = Pipeline(
        noisy=everything.take(slice(num_clean, None)),
        clean=everything.take(slice(num_clean)),
        noisy_batch_size=_NOISY_BATCH,
        clean_batch_size=_CLEAN_BATCH,
        split_clean=True,
        num_inner_steps=1,
        augment=True,
        seed=seed,
    )
    return pipeline.batches(0)


def bare_batches(paths: list[str], size: int, seed: int) -> Iterator[Any]:
    """Batches of 96 images, as one would write them by hand."""
    from mlc_jax.data.streaming import tf

    geometry = Geometry(size)

    def read(path: Any) -> Any:
        return see(decode(tf.io.read_file(path)), geometry, tf.random.uniform([5]))

    dataset = tf.data.Dataset.from_tensor_slices(paths).shuffle(len(paths), seed).repeat()
    dataset = dataset.map(read, num_parallel_calls=tf.data.AUTOTUNE)
    yield from dataset.batch(_BATCH).prefetch(tf.data.AUTOTUNE).as_numpy_iterator()


def speed(batches: Any, num_batches: int) -> dict[str, float]:
    """The speed of a generator of batches of 96, which is closed afterwards."""
    for _ in itertools.islice(batches, _WARM_UP):
        pass
    start, cpu_start = time.perf_counter(), time.process_time()
    for _ in itertools.islice(batches, num_batches):
        pass
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    batches.close()
    num_images = num_batches * _BATCH
    return {_SPEED: num_images / seconds, _WORK: 1e3 * cpu_seconds / num_images}


def torch_speed(python: str, paths: list[str], size: int, num_batches: int) -> dict[str, float]:
    """The speed of torch's DataLoader with a worker for each core, in its own process."""
    asked = {"paths": paths, "size": size, "batch_size": _BATCH, "batches": num_batches}
    asked |= {"warm_up": _WARM_UP, "workers": os.cpu_count()}
    script = pathlib.Path(__file__).with_name("torch_loader.py")
    result = subprocess.run(
        [python, str(script), json.dumps(asked)], capture_output=True, text=True
    )
    if result.returncode:
        reason = (result.stderr.strip().splitlines() or [f"code {result.returncode}"])[-1]
        raise InputError(f"--torch_python: {python!r} cannot run torchvision ({reason})")
    return dict(json.loads(result.stdout))


def measure(
    paths: list[str],
    packed: Store,
    size: int,
    num_batches: int,
    num_rounds: int,
    python: str | None,
) -> list[dict[str, float]]:
    """One row per round: the speed of all sides, and divided by that of bare tf.data."""
    folder = pathlib.Path(paths[0]).parent
    names = np.array([pathlib.Path(path).name.encode() for path in paths])
    files = Files(str(folder), names, np.zeros(len(names), np.int64))
    sides = {
        "files": lambda seed: speed(loader_batches(files, size, seed), num_batches),
        "packed": lambda seed: speed(loader_batches(packed, size, seed), num_batches),
        _BARE: lambda seed: speed(bare_batches(paths, size, seed), num_batches),
    }
    if python:
        sides[_TORCH] = lambda seed: torch_speed(python, paths, size, num_batches)
    rows = []
    for i in tqdm(range(num_rounds), desc="rounds", dynamic_ncols=True):
        order = list(sides) if i % 2 == 0 else list(sides)[::-1]
        measured = {name: sides[name](i) for name in order}
        row: dict[str, float] = {"round": i}
        for name in sides:
            row |= {f"{name} {unit}": value for unit, value in measured[name].items()}
        for name in (x for x in sides if x != _BARE):
            for unit, value in measured[name].items():
                row[f"{name} over {_BARE} {unit}"] = value / measured[_BARE][unit]
        rows.append(row)
    return rows


def summary(rows: list[dict[str, float]]) -> str:
    """A table of medians and ranges over the rounds."""
    body = []
    for name in [x for unit in (_SPEED, _WORK) for x in rows[0] if x.endswith(unit)]:
        values = [row[name] for row in rows]
        figures = (statistics.median(values), min(values), max(values))
        body.append((name, *(f"{x:.3g}" for x in figures)))
    return to_markdown(("", "median", "lowest", "highest"), body)


def main() -> None:
    with locked_workdir(_WORKDIR.value) as workdir:
        from mlc_jax.files.packed import Packed, is_packed, pack

        paths = make_files(pathlib.Path(workdir / "files"), _NUM_FILES.value)
        packed = workdir / "packed"
        if not is_packed(str(packed)):
            pack(str(workdir / "files"), str(packed), size=256, quality=92, per_shard=4096)
        rows = measure(
            paths, Packed(str(packed)), _IMAGE_SIZE.value, _BATCHES.value, _ROUNDS.value,
            _TORCH_PYTHON.value,
        )  # fmt: skip
        setting = {"image_size": _IMAGE_SIZE.value, "num_files": _NUM_FILES.value}
        setting |= {"batches": _BATCHES.value, "batch_size": _BATCH}
        text = ", ".join(f"{name} {value}" for name, value in setting.items())
        text += f"\n\n{summary(rows)}"
        tables.write(workdir, "loader_benchmark", [setting | x for x in rows], text)
        print(text)


if __name__ == "__main__":
    command_line.run(main, required=["workdir"])
