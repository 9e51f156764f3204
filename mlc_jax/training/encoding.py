"""Texts as a frozen encoder sees them: computed once, kept in a file, trained on in their place."""

import dataclasses
import functools
import hashlib
import pathlib
import tempfile
from typing import Any

import jax
import numpy as np
from etils import epath
from flax import traverse_util
from ml_collections import ConfigDict
from tqdm import tqdm

from mlc_jax import paths
from mlc_jax.data import Dataset
from mlc_jax.data.source import ArraySource, Source, read_rows
from mlc_jax.data.tokens import CACHE_DIR, Texts, Tokenizer, TokenSource, create_source
from mlc_jax.errors import InputError, expect
from mlc_jax.models.bert import Bert, BertConfig
from mlc_jax.models.bert_checkpoint import bert_params, copy_checkpoint, load_bert

FOLDER = "encoder"  # In a workdir: what it takes to read texts later.

_BATCH = 64  # Texts at once, on one device.
_STEP = 16  # Lengths are rounded up to a multiple of it: few programs, little padding.


class FrozenEncoder:
    """Token sources to sources of features.

    Args:
      checkpoint: a directory or a name on the Hugging Face hub, see `load_bert`.
      feature: see `Bert`.
      dtype: of the computation.
      cache_dir: where features are kept, in `features`; None is `CACHE_DIR`.

    Attributes:
      fingerprint: of weights, feature and dtype.

    Raises:
      InputError: the checkpoint cannot be read, or has no such feature.
    """

    def __init__(
        self, checkpoint: str, *, feature: str = "mean", dtype: str = "float32",
        cache_dir: str | None = None,
    ):  # fmt: skip
        shape, weights = load_bert(checkpoint)
        self.model = Bert(shape, 1, feature=feature, num_frozen_layers=-1, dtype=dtype)
        params = bert_params(self.model, weights)
        self._params = jax.device_put(traverse_util.unflatten_dict(params, sep="/"))
        self._cache = f"{cache_dir or CACHE_DIR}/features"
        digest = hashlib.blake2b(f"{shape} {feature} {dtype}".encode(), digest_size=16)
        for name in sorted(params):
            digest.update(np.ascontiguousarray(params[name]).data)
        self.fingerprint = digest.hexdigest()

        def encode(params: Any, inputs: Any) -> jax.Array:
            encode = functools.partial(self.model.apply, train=False, method="encode")
            outputs: Any = encode({"params": params}, inputs)
            pooled: jax.Array = outputs[1]
            return pooled

        self._encode = jax.jit(encode)

    def __call__(self, source: TokenSource) -> "EncodedSource":
        """Features `[N, H]` float32 of all texts, from the cache if it has them.

        They are written beside their place and moved there when they are whole.

        Raises:
          InputError: the tokens are not this encoder's, or the cache cannot be written.
        """
        check_tokens(source, self.model.config)
        key = f"{source.fingerprint()} {self.fingerprint}"
        key = hashlib.blake2b(key.encode(), digest_size=16).hexdigest()
        with paths.kept(f"{self._cache}/{key}.npy", "config.dataset.cache_dir") as path:
            if _opened(path, len(source)) is None:
                try:
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with tempfile.TemporaryDirectory(".part", dir=path.parent) as part:
                        file = pathlib.Path(part) / path.name
                        np.save(file, self.encode(source))
                        file.replace(path)
                except OSError as error:
                    raise InputError(
                        f"config.dataset.cache_dir: cannot write to {str(path.parent)!r} "
                        f"({error.strerror}); expected a directory with room that this user may "
                        "write to"
                    ) from error
        features = _opened(path, len(source))
        assert features is not None
        return EncodedSource(features, source, key)

    def encode(self, source: TokenSource) -> np.ndarray:
        """Features `[N, H]` float32, computed; the longest texts first."""
        features = np.empty((len(source), self.model.config.hidden_size), np.float32)
        order = np.argsort(-source.lengths, kind="stable")
        bar = tqdm(total=len(order), desc="Encoding", unit=" texts", disable=None, delay=2)
        with bar:
            for start in range(0, len(order), _BATCH):
                rows = order[start : start + _BATCH]
                filled = np.resize(rows, _BATCH)  # One shape for the last batch, too.
                length = max(1, -(-int(source.lengths[rows[0]]) // _STEP)) * _STEP
                tokens = read_rows(source, filled)
                cut = {name: x[:, :length] for name, x in tokens.items()}
                features[rows] = np.asarray(self._encode(self._params, cut))[: len(rows)]
                bar.update(len(rows))
        return features


class EncodedSource(ArraySource):
    """Features of texts; names and fingerprint are the texts'.

    Attributes:
      tokenizer: of the texts.
    """

    def __init__(self, features: np.ndarray, source: TokenSource, fingerprint: str):
        super().__init__(features)
        self.tokenizer, self._source, self._key = source.tokenizer, source, fingerprint

    def ids(self, rows: np.ndarray) -> np.ndarray:
        return self._source.ids(rows)

    def fingerprint(self) -> str:
        return self._key

    def show(self, rows: np.ndarray) -> list[str]:
        return self._source.show(rows)


@dataclasses.dataclass(frozen=True)
class TextReader:
    """Texts -> what a classifier reads of them.

    Attributes:
      checkpoint: pretrained BERT, RoBERTa or DistilBERT: a directory, or a name on the Hugging Face
        hub.
      frozen: whether its encoder stays as it is. Texts are its features then, `[N, H]` float32, for
        a model that takes vectors, such as `mlc_jax.models.MLP`. Otherwise they are tokens, for a
        `mlc_jax.models.Bert` that starts from the checkpoint (`initial_params=`).
      max_length: T, tokens of a text; longer ones are cut off.
      feature, dtype: of the frozen encoder, see `mlc_jax.models.Bert`.
      tokenizer: a directory with a `tokenizer.json`, or a name on the hub; None is `checkpoint`.
      cache_dir: where tokens and features are kept; None is ~/.cache/mlc_jax.
    """

    checkpoint: str
    frozen: bool = True
    max_length: int = 128
    feature: str = "mean"
    dtype: str = "float32"
    tokenizer: str | None = None
    cache_dir: str | None = None

    def __call__(self, texts: Any) -> Source:
        """A source of a few texts, of which nothing is kept.

        Raises:
          InputError: no list of texts, or a checkpoint that cannot be read.
        """
        with tempfile.TemporaryDirectory() as cache:
            source = self._tokens(texts, None, cache)
        return ArraySource(self._encoder().encode(source)) if self.frozen else source

    def cached(self, texts: Any, ids: Any = None) -> Source:
        """The same, from the cache if it has them; `ids` are names of the texts, or None."""
        source = self._tokens(texts, ids, self.cache_dir)
        return self._encoder()(source) if self.frozen else source

    def to_json(self) -> dict[str, Any]:
        """What a workdir remembers; see `reader_from_workdir`."""
        return {k: x for k, x in dataclasses.asdict(self).items() if k != "cache_dir"}

    def _tokens(self, texts: Any, ids: Any, cache_dir: str | None) -> TokenSource:
        expect(not isinstance(texts, str), "x", "one text", "a list of texts")
        texts = [str(text) for text in texts]
        expect(len(texts) > 0, "x", texts, "at least one text")
        tokenizer = _load_tokenizer(self.tokenizer or self.checkpoint)
        return create_source(
            Texts.scan(lambda: texts), tokenizer,
            max_length=self.max_length, cache_dir=cache_dir, ids=ids,
        )  # fmt: skip

    def _encoder(self) -> FrozenEncoder:
        return _load(self.checkpoint, self.feature, self.dtype, self.cache_dir)


def frozen_encoder(config: ConfigDict) -> FrozenEncoder | None:
    """That of a config, if it has one: a BERT that is frozen as a whole."""
    model = config.model
    if model.name != "bert" or model.bert.num_frozen_layers != -1:
        return None
    return _load(model.bert.checkpoint, model.bert.feature, model.dtype, config.dataset.cache_dir)


@functools.lru_cache(maxsize=1)  # Runs of one process share it, and the features it made.
def _load(checkpoint: str, feature: str, dtype: str, cache_dir: str | None) -> FrozenEncoder:
    return FrozenEncoder(checkpoint, feature=feature, dtype=dtype, cache_dir=cache_dir)


@functools.lru_cache(maxsize=1)
def _load_tokenizer(name: str) -> Tokenizer:
    return Tokenizer.load(name)


def check_dataset(dataset: Dataset, shape: BertConfig) -> None:
    """Raises InputError where a trained BERT has no row for a token or a position of the texts."""
    subsets = (dataset.noisy, dataset.clean, dataset.validation, dataset.test)
    sources = [subset.source for subset in subsets if subset is not None]
    for source in sources:
        if isinstance(source, TokenSource):
            check_tokens(source, shape)


def save(checkpoint: str, dataset: Dataset, workdir: epath.Path) -> None:
    """Copies tokenizer and shape of an encoder into a workdir, and a frozen one's weights.

    They are in `FOLDER`, see `from_workdir`. A trained encoder's weights are in the run's
    checkpoint. Nothing is done for runs without texts.
    """
    source = dataset.clean.source
    if not isinstance(source, TokenSource | EncodedSource):
        return
    folder = workdir / FOLDER
    if (folder / "config.json").exists():  # Which is copied last.
        return
    frozen = isinstance(source, EncodedSource)
    try:
        with paths.written_locally(folder) as local:
            source.tokenizer.save(local / "tokenizer.json")
            copy_checkpoint(checkpoint, local, weights=frozen)
    except OSError as error:
        raise InputError(
            f"--workdir: cannot write to {str(folder)!r} ({error.strerror}); expected a directory "
            "with room for the encoder"
        ) from error


def from_workdir(config: ConfigDict, workdir: epath.Path) -> ConfigDict:
    """The config of a run, with the encoder that `save` left in its workdir.

    Runs that were trained together leave none: theirs stay as they are.
    """
    if (workdir / FOLDER / "config.json").exists():
        local = str(paths.local(workdir / FOLDER, "--workdir"))
        config.model.bert.checkpoint = config.dataset.tokenizer = local
    return config


def text_reader(config: ConfigDict) -> TextReader:
    """Texts -> what a run's classifier reads of them."""
    model, dataset = config.model, config.dataset
    return TextReader(
        checkpoint=model.bert.checkpoint,
        frozen=model.bert.num_frozen_layers == -1,
        max_length=dataset.max_length,
        feature=model.bert.feature,
        dtype=model.dtype,
        tokenizer=dataset.tokenizer,
        cache_dir=dataset.cache_dir,
    )


def reader_from_workdir(described: dict[str, Any], workdir: epath.Path) -> TextReader:
    """The reader that `fit` was given, with the encoder that `save` left in its workdir."""
    folder = str(paths.local(workdir / FOLDER, "--workdir"))
    return TextReader(**described | {"checkpoint": folder, "tokenizer": folder})


def check_tokens(source: TokenSource, shape: BertConfig) -> None:
    """Raises InputError unless an encoder has a row for every token and every position."""
    vocab_size, rows = source.tokenizer.vocab_size, shape.vocab_size
    expect(
        vocab_size <= rows,
        "config.dataset.tokenizer",
        f"{vocab_size} ids",
        f"at most {rows}, the rows of the checkpoint's embedding: its own tokenizer",
    )
    length = int(source.lengths.max())
    expect(
        length <= shape.max_length,
        "config.dataset.max_length",
        f"texts of {length} tokens",
        f"at most {shape.max_length}, the positions of the checkpoint",
    )


def _opened(path: pathlib.Path, size: int) -> np.ndarray | None:
    """The features, or None where they are not there or were cut off."""
    try:
        features: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return features if features.ndim == 2 and len(features) == size else None
