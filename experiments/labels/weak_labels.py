"""Labels without annotators: AG News by keyword rules, and by similarity to a sentence per class.

    python -m experiments.labels.weak_labels --config=configs/ag_news.py:frozen \
        --config.dataset.data_dir=DIR --config.model.bert.checkpoint=NAME --workdir=runs/weak

writes `weak_labels.npz` with the arrays `keywords` and `zero_shot`, a label for each training text,
and prints how many are right. This command learns from them:

    python -m mlc_jax.main --config=configs/ag_news.py:frozen ... --config.noise.type=human \
        --config.noise.file=runs/weak/weak_labels.npz --config.noise.key=keywords --workdir=DIR
"""

import re
from collections.abc import Sequence

import numpy as np
from absl import flags
from ml_collections import config_flags

from mlc_jax import command_line, config, paths
from mlc_jax.benchmarks.texts import read_published
from mlc_jax.encoders.encoding import frozen_encoder
from mlc_jax.errors import expect
from mlc_jax.files.tokens import Texts, Tokenizer, create_source

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "configs/ag_news.py:frozen.", lock_config=True
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Directory for the labels.")

# By class. Written down once, from general knowledge, without a look at any label.
KEYWORDS = (
    "iraq|israel|palestin|president|minister|election|troops|bomb|nuclear|peace|rebel|police"
    "|militant|hostage",
    "game|season|coach|team|cup|league|olympic|win|champion|players?|match|quarterback|tournament"
    "|inning",
    "stocks?|shares|oil prices?|profit|earnings|quarter|company|market|investors?|sales|bank"
    "|economy|deal|billion",
    "software|internet|microsoft|computer|nasa|space|scientists?|web|google|phone|technology|users"
    "|online|virus",
)
DESCRIPTIONS = (
    "World: politics, war, diplomacy and disasters in countries around the world.",
    "Sports: games, teams, players and results.",
    "Business: companies, markets, money and the economy.",
    "Science and technology: computers, the internet, software, space and research.",
)


def by_keywords(texts: Sequence[str], seed: int = 0) -> np.ndarray:
    """The class with most matches, the first one of equals; a random class without a match."""
    patterns = [re.compile(rf"\b({words})", re.IGNORECASE) for words in KEYWORDS]
    counts = np.array([[len(pattern.findall(text)) for pattern in patterns] for text in texts])
    drawn = np.random.default_rng(seed).integers(0, len(patterns), len(counts))
    return np.where(counts.max(axis=1) == 0, drawn, counts.argmax(axis=1)).astype(np.int32)


def by_likeness(texts: np.ndarray, descriptions: np.ndarray) -> np.ndarray:
    """The class with the most similar description, by cosine minus the class's mean cosine.

    Args:
      texts: features, `[N, F]`.
      descriptions: features of the classes' descriptions, `[C, F]`.
    """
    norm = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    cosines = norm(texts) @ norm(descriptions).T
    labels: np.ndarray = (cosines - cosines.mean(axis=0)).argmax(axis=1).astype(np.int32)
    return labels


def main() -> None:
    chosen = _CONFIG.value
    config.validate(chosen)
    data = chosen.dataset
    expect(
        data.name == "ag_news", "config.dataset.name", data.name, "ag_news: the rules are for it"
    )
    encoder = frozen_encoder(chosen)
    expect(encoder is not None, "config", "a trained encoder", "configs/ag_news.py:frozen")
    assert encoder is not None
    (texts, truth), _ = read_published(
        "ag_news", data.data_dir, tfds_name=data.tfds_name, download=data.download
    )
    tokenizer = Tokenizer.load(data.tokenizer or chosen.model.bert.checkpoint)
    of_texts, of_classes = (
        create_source(x, tokenizer, max_length=data.max_length, cache_dir=data.cache_dir)
        for x in (texts, Texts.scan(lambda: DESCRIPTIONS))
    )
    labels = {
        "keywords": by_keywords(list(texts.read())),
        "zero_shot": by_likeness(encoder(of_texts).inputs, encoder.encode(of_classes)),
    }
    workdir = paths.absolute(_WORKDIR.value)
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir / "weak_labels.npz").open("wb") as file:
        np.savez(file, keywords=labels["keywords"], zero_shot=labels["zero_shot"])
    for name, given in labels.items():
        print(f"{name}: {np.mean(given == truth):.1%} of {len(truth)} right")
    print(f"They are in {workdir / 'weak_labels.npz'}.")


if __name__ == "__main__":
    command_line.run(main, required=["config", "workdir"])
