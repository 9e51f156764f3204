"""Packs a directory of pictures into ArrayRecord shards, for disks that are slow with small files.

    python -m mlc_jax.files.pack --input=clothing1m --output=packed
    python -m mlc_jax.main --config=configs/clothing1m.py --config.dataset.data_dir=packed ...

Pictures are decoded and turned as their EXIF orientation says, their shorter side is resized to
--size (larger ones only), and they are encoded as JPEG. All cores work, shard by shard; the same
command resumes where it was stopped. Lists and tables (.txt, .csv, .jsonl, .parquet) in
the input directory are copied, and name the packed pictures as they named the files. Pictures that
cannot be decoded are listed in packed.json, and are then refused or left out as files would be.
"""

from absl import flags, logging

from mlc_jax import command_line
from mlc_jax.files.packed import pack

_INPUT = flags.DEFINE_string("input", "", "Directory of pictures, at any depth.")
_OUTPUT = flags.DEFINE_string("output", "", "Directory for the shards; made if need be.")
_SIZE = flags.DEFINE_integer("size", 256, "Pixels of the shorter side, at most.", lower_bound=8)
_QUALITY = flags.DEFINE_integer("quality", 92, "Of the JPEGs.", lower_bound=1, upper_bound=100)
_PER_SHARD = flags.DEFINE_integer("per_shard", 8192, "Pictures in one file.", lower_bound=1)


def main() -> None:
    info = pack(
        _INPUT.value, _OUTPUT.value, size=_SIZE.value, quality=_QUALITY.value,
        per_shard=_PER_SHARD.value,
    )  # fmt: skip
    logging.info("%d pictures, %d of them bad.", info["num_pictures"], len(info["bad"]))


if __name__ == "__main__":
    command_line.run(main, required=["input", "output"])
