"""Features of AG News by a frozen encoder, as a table for `--sets`.

    python -m experiments.labels.text_features --data_dir=DIR --checkpoint=ENCODER --out=ag_news.npz

4,000 of its training texts are drawn by a fixed seed. The file has `features` `[N, D]` and `labels`
`[N]`.
"""

import numpy as np
from absl import flags
from etils import epath

from mlc_jax import command_line, paths
from mlc_jax.benchmarks.texts import read_published
from mlc_jax.encoders.encoding import TextReader
from mlc_jax.errors import expect

_DATA = flags.DEFINE_string("data_dir", None, "Directory with the published train.csv, test.csv.")
_TFDS = flags.DEFINE_string("tfds_name", None, "Or the builder of TensorFlow Datasets to read.")
_CHECKPOINT = flags.DEFINE_string("checkpoint", "", "An encoder for texts.")
_OUT = flags.DEFINE_string("out", "", "File to write.")
_NUM_TEXTS = 4_000


def main() -> None:
    """Encodes the texts, and writes the file."""
    expect(bool(_DATA.value or _TFDS.value), "--data_dir", _DATA.value, "a directory")
    (texts, labels), _ = read_published("ag_news", _DATA.value, tfds_name=_TFDS.value)
    rows = np.sort(np.random.default_rng(0).permutation(len(labels))[:_NUM_TEXTS])
    everything = list(texts.read())
    source = TextReader(_CHECKPOINT.value)([everything[row] for row in rows])
    out = epath.Path(paths.absolute(_OUT.value, "--out"))
    with out.open("wb") as file:
        np.savez(file, features=np.asarray(source.inputs), labels=labels[rows])  # type: ignore
    print(f"{out}: {len(rows):,} texts")


if __name__ == "__main__":
    command_line.run(main, required=["checkpoint", "out"])
