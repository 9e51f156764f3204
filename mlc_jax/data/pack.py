"""Packs a directory of pictures into ArrayRecord shards, for disks that hate small files.

    python -m mlc_jax.data.pack --input=clothing1m --output=packed
    python -m mlc_jax.main --config=configs/clothing1m.py --config.dataset.data_dir=packed ...

Pictures are decoded, their shorter side is resized to --size (larger ones only), and they are
encoded as JPEG. All cores work, shard by shard; the same command goes on where it was stopped.
Lists and tables (.txt, .csv, .jsonl, .parquet) that lie in the input directory are copied, and name
the packed pictures as they named the files. Pictures that cannot be decoded are listed in
packed.json, and are then refused or left out as files would be.
"""

import json
import os
import pathlib
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from absl import flags, logging
from tqdm import tqdm

from mlc_jax import command_line
from mlc_jax.data.image_folder import pictures_below
from mlc_jax.data.packed import INFO_FILE, NAMES_FILE, is_packed, shard_name
from mlc_jax.errors import InputError

_INPUT = flags.DEFINE_string("input", "", "Directory of pictures, at any depth.")
_OUTPUT = flags.DEFINE_string("output", "", "Directory for the shards; made if need be.")
_SIZE = flags.DEFINE_integer("size", 256, "Pixels of the shorter side, at most.", lower_bound=8)
_QUALITY = flags.DEFINE_integer("quality", 92, "Of the JPEGs.", lower_bound=1, upper_bound=100)
_PER_SHARD = flags.DEFINE_integer("per_shard", 8192, "Pictures in one file.", lower_bound=1)

_PLAN_FILE = "plan.json"  # What is being packed; gone when it is done.
_COPIED = (".txt", ".csv", ".jsonl", ".parquet")
_CHUNK = 64  # Pictures that the threads have before them.


def pack(root: str, output: str, *, size: int, quality: int, per_shard: int) -> dict[str, Any]:
    """Packs a directory; goes on where it was stopped.

    Args:
      root: of the pictures.
      output: made if need be.
      size, quality, per_shard: see the flags.

    Returns:
      What `packed.json` says.

    Raises:
      InputError: there is no picture, or the output is of something else.
    """
    source, target = pathlib.Path(root).expanduser(), pathlib.Path(output).expanduser()
    if not source.is_dir():
        raise InputError(f"--input: no directory {root!r}; expected one with pictures")
    names = sorted(os.fsencode(name) for name in pictures_below("--input", str(source), ""))
    if not names:
        raise InputError(f"--input: {root!r} has no picture")
    stats = [os.stat(source / os.fsdecode(name), follow_symlinks=False) for name in names]
    plan = {
        "num_pictures": len(names),
        "num_bytes": sum(x.st_size for x in stats),
        "newest": max(x.st_mtime_ns for x in stats),
        "size": size,
        "quality": quality,
        "per_shard": per_shard,
    }
    target.mkdir(parents=True, exist_ok=True)
    _check_plan(target, plan)
    bad: dict[str, str] = {}
    num_shards = -(-len(names) // per_shard)
    bar = tqdm(total=len(names), desc="Packing", unit=" pictures", dynamic_ncols=True)
    with bar, ThreadPoolExecutor(os.cpu_count()) as threads:
        for number in range(num_shards):
            of_shard = names[number * per_shard : (number + 1) * per_shard]
            bad |= _pack_shard(source, target, number, of_shard, plan, threads, bar)
    for file in sorted(source.iterdir()):
        if file.suffix.lower() in _COPIED and file.is_file():
            shutil.copyfile(file, target / file.name)
    np.save(target / NAMES_FILE, np.array(names))
    info = plan | {"bad": bad}
    _write(target / INFO_FILE, info)  # Last of all: it says that the rest is there.
    for number in range(num_shards):
        _bad_file(target, number).unlink()
    (target / _PLAN_FILE).unlink()
    return info


def _check_plan(target: pathlib.Path, plan: dict[str, Any]) -> None:
    """Raises InputError unless the directory is empty, or was begun with the same plan."""
    if is_packed(target):
        raise InputError(f"--output: {str(target)!r} is packed already; expected another directory")
    file = target / _PLAN_FILE
    if not file.exists():
        if any(target.iterdir()):
            raise InputError(f"--output: {str(target)!r} is not empty; expected a new directory")
        _write(file, plan)
        return
    before = json.loads(file.read_text())
    changed = [f"{x} {before.get(x)} then, {plan[x]} now" for x in plan if plan[x] != before.get(x)]
    if changed:
        raise InputError(
            f"--output: {str(target)!r} was begun with another input or setting "
            f"({'; '.join(changed)}); expected another directory"
        )


def _pack_shard(
    source: pathlib.Path,
    target: pathlib.Path,
    number: int,
    names: list[bytes],
    plan: dict[str, Any],
    threads: ThreadPoolExecutor,
    bar: tqdm,
) -> dict[str, str]:
    """Writes one shard unless it is there; returns its bad pictures."""
    from array_record.python import array_record_module

    shard, bad_file = target / shard_name(number), _bad_file(target, number)
    if shard.exists() and bad_file.exists():
        bar.update(len(names))
        before: dict[str, str] = json.loads(bad_file.read_text())
        return before
    partial, bad = shard.with_suffix(".part"), {}
    writer = array_record_module.ArrayRecordWriter(str(partial), "group_size:1")
    for start in range(0, len(names), _CHUNK):
        chunk = names[start : start + _CHUNK]
        paths = [source / os.fsdecode(name) for name in chunk]
        encoded = threads.map(lambda path: _smaller(path, plan["size"], plan["quality"]), paths)
        for name, (data, problem) in zip(chunk, encoded, strict=True):
            if problem:
                bad[name.decode()] = problem
            writer.write(data)  # Nothing, of a bad one: a record's number is its name's.
        bar.update(len(chunk))
    writer.close()
    _write(bad_file, bad)
    partial.replace(shard)
    return bad


def _smaller(path: pathlib.Path, size: int, quality: int) -> tuple[bytes, str]:
    """A picture's JPEG, or what is wrong with it."""
    import tensorflow as tf

    from mlc_jax.data.picture_check import problem_of
    from mlc_jax.data.pictures import decode, to_uint8

    problem = problem_of(os.fsencode(path))
    if problem:
        return b"", problem
    image = decode(tf.constant(path.read_bytes()))
    height, width, _ = image.shape
    if min(height, width) > size:
        shape = [size * x // min(height, width) for x in (height, width)]
        image = to_uint8(tf.image.resize(image, shape, antialias=True))
    return tf.io.encode_jpeg(image, quality=quality).numpy(), ""


def _bad_file(target: pathlib.Path, number: int) -> pathlib.Path:
    return target / f"bad-{number:05d}.json"


def _write(file: pathlib.Path, content: dict[str, Any]) -> None:
    partial = file.with_suffix(".part")
    partial.write_text(json.dumps(content, indent=2) + "\n")
    partial.replace(file)


def main() -> None:
    info = pack(
        _INPUT.value, _OUTPUT.value, size=_SIZE.value, quality=_QUALITY.value,
        per_shard=_PER_SHARD.value,
    )  # fmt: skip
    logging.info("%d pictures, %d of them bad.", info["num_pictures"], len(info["bad"]))


if __name__ == "__main__":
    command_line.run(main, required=["input", "output"])
