"""Outputs of frozen layers for texts: computed once, cached in a file, and trained on."""

import dataclasses
import functools
import hashlib
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util
from tqdm import tqdm

from mlc_jax import paths
from mlc_jax.data.source import ArraySource, IndexedSource, read_rows
from mlc_jax.errors import expect, is_watched
from mlc_jax.files.tokens import CACHE_DIR, TokenSource
from mlc_jax.models.bert import Bert, BertConfig
from mlc_jax.models.bert_checkpoint import bert_params, load_bert

_BATCH = 64  # Texts per batch, on one device.
_STEP = 16  # Lengths are rounded up to multiples of it: few programs, little padding.


class _Frozen:
    """A frozen encoder, and a cache of its outputs.

    Args:
      shape, weights: see `load_bert`.
      feature: see `Bert`.
      dtype: of the computation.
      cache_dir: its folder `features` has the cache; None is `CACHE_DIR`.

    Attributes:
      fingerprint: differs for other weights, features and dtypes.
    """

    def __init__(
        self, shape: BertConfig, weights: dict[str, np.ndarray], feature: str, dtype: str,
        cache_dir: str | None,
    ):  # fmt: skip
        self.model = Bert(shape, 1, feature=feature, num_frozen_layers=-1, dtype=dtype)
        params = bert_params(self.model, weights)
        self._params = jax.device_put(traverse_util.unflatten_dict(params, sep="/"))
        self._cache = f"{cache_dir or CACHE_DIR}/features"
        digest = hashlib.blake2b(f"{shape} {feature} {dtype}".encode(), digest_size=16)
        for name in sorted(params):
            digest.update(np.ascontiguousarray(params[name]).data)
        self.fingerprint = digest.hexdigest()
        encode = functools.partial(self.model.apply, train=False, method="encode")
        # `i` selects one of two outputs; only that one is computed.
        one = lambda params, inputs, i: encode({"params": params}, inputs)[i]  # noqa: E731
        self._encode = jax.jit(one, static_argnums=2)

    def _outputs(self, source: TokenSource, *, pooled: bool) -> Iterator[tuple[np.ndarray, Any]]:
        """(rows `[n]`, features `[n, H]` or token states `[n, T, H]`), the longest texts first."""
        order = np.argsort(-source.lengths, kind="stable")
        with tqdm(
            total=len(order), desc="Encoding", unit=" texts", disable=not is_watched(), delay=2
        ) as bar:
            for start in range(0, len(order), _BATCH):
                rows = order[start : start + _BATCH]
                filled = np.resize(rows, _BATCH)  # The last batch has the same shape.
                length = max(1, -(-int(source.lengths[rows[0]]) // _STEP)) * _STEP
                tokens = read_rows(source, filled)
                cut = {name: x[:, :length] for name, x in tokens.items()}
                outputs = self._encode(self._params, cut, int(pooled))
                yield rows, np.asarray(outputs)[: len(rows)]
                bar.update(len(rows))

    def _kept(
        self, key: str, shape: tuple[int, int], dtype: Any, fill: Callable[[np.ndarray], None]
    ) -> np.ndarray:
        """A memory-mapped array from the cache; `fill` computes it if the cache has none.

        It is written to another file, which is renamed when it is complete.

        Raises:
          InputError: the cache cannot be written.
        """
        with paths.kept(f"{self._cache}/{key}.npy", "config.dataset.cache_dir") as path:
            if _opened(path, shape) is None:
                with paths.file_of_cache(path) as file:
                    array = np.lib.format.open_memmap(file, "w+", dtype, shape)
                    fill(array)
                    array.flush()
        kept = _opened(path, shape)
        assert kept is not None
        return kept


class FrozenEncoder(_Frozen):
    """A whole encoder: maps token sources to sources of features.

    Args:
      checkpoint: a directory or a name on the Hugging Face hub, see `load_bert`.
      feature, dtype, cache_dir: see `_Frozen`.

    Raises:
      InputError: the checkpoint cannot be read, or has no such feature.
    """

    def __init__(
        self, checkpoint: str, *, feature: str = "mean", dtype: str = "float32",
        cache_dir: str | None = None,
    ):  # fmt: skip
        super().__init__(*load_bert(checkpoint), feature, dtype, cache_dir)

    def __call__(self, source: TokenSource) -> "EncodedSource":
        """Features `[N, H]` float32 of all texts, from the cache if possible.

        Raises:
          InputError: the tokens are not this encoder's, or the cache cannot be written.
        """
        check_tokens(source, self.model.config)
        key = _key(source, self.fingerprint)
        shape = len(source), self.model.config.hidden_size
        features = self._kept(key, shape, np.float32, functools.partial(self._fill, source))
        return EncodedSource(features, source, key)

    def encode(self, source: TokenSource) -> np.ndarray:
        """Computes features `[N, H]` float32."""
        features = np.empty((len(source), self.model.config.hidden_size), np.float32)
        self._fill(source, features)
        return features

    def _fill(self, source: TokenSource, features: np.ndarray) -> None:
        for rows, outputs in self._outputs(source, pooled=True):
            features[rows] = outputs


class FrozenLayers(_Frozen):
    """The first layers of an encoder: maps token sources to sources of their outputs, token states.

    Args:
      checkpoint: as for `FrozenEncoder`.
      num_layers: number of layers after the embeddings.
      dtype, cache_dir: see `_Frozen`.

    Raises:
      InputError: the checkpoint cannot be read.
    """

    def __init__(self, checkpoint: str, num_layers: int, *, dtype: str, cache_dir: str | None):
        shape, weights = load_bert(checkpoint)
        expect(
            num_layers <= shape.num_layers,
            "config.model.bert.num_frozen_layers",
            num_layers,
            f"at most {shape.num_layers}, the checkpoint's layers, or -1",
        )
        of_part = {k: x[:num_layers] if k.startswith("layers/") else x for k, x in weights.items()}
        shape = dataclasses.replace(shape, num_layers=num_layers)
        super().__init__(shape, of_part, "mean", dtype, cache_dir)
        self._dtype = jnp.dtype(dtype)

    def num_bytes(self, source: TokenSource) -> int:
        """The size in bytes of the token states of all texts."""
        return math.prod(self._shape(source)) * self._dtype.itemsize

    def __call__(self, source: TokenSource) -> "StatesSource":
        """Token states `[sum(lengths), H]` of all texts, from the cache if possible.

        Raises:
          InputError: as for `FrozenEncoder`.
        """
        check_tokens(source, self.model.config)
        key = _key(source, f"{self.fingerprint} states")
        # NumPy's files have no bfloat16, so its bits are stored.
        bits = np.dtype(f"u{self._dtype.itemsize}")
        states = self._kept(key, self._shape(source), bits, functools.partial(self._fill, source))
        return StatesSource(states.view(self._dtype), source)

    def _shape(self, source: TokenSource) -> tuple[int, int]:
        return int(source.lengths.sum()), self.model.config.hidden_size

    def _fill(self, source: TokenSource, states: np.ndarray) -> None:
        starts = _starts(source.lengths)
        for rows, outputs in self._outputs(source, pooled=False):
            for row, output in zip(rows, outputs.astype(self._dtype), strict=True):
                length = source.lengths[row]
                states[starts[row] : starts[row] + length] = output[:length].view(states.dtype)


class EncodedSource(ArraySource):
    """Features of texts, with the texts' names and fingerprint.

    Attributes:
      tokenizer: the texts'.
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


class StatesSource(IndexedSource):
    """Token states in place of the tokens: `{"frozen_states": [n, T, H], "attention_mask": ...}`.

    Names, lengths and fingerprint are the texts', since a run is the same with both.

    Args:
      states: `[sum(lengths), H]`, one text after the other.
      source: the source of the tokens.

    Attributes:
      tokens: that source.
      lengths, tokenizer: those of `tokens`.
    """

    def __init__(self, states: np.ndarray, source: TokenSource):
        self.tokens, self.lengths, self.tokenizer = source, source.lengths, source.tokenizer
        super().__init__(_States(states, source))

    def ids(self, rows: np.ndarray) -> np.ndarray:
        return self.tokens.ids(rows)

    def fingerprint(self) -> str:
        return self.tokens.fingerprint()

    def show(self, rows: np.ndarray) -> list[str]:
        return self.tokens.show(rows)


class _States:
    """`x[rows]` of token states, padded with zeros."""

    def __init__(self, states: np.ndarray, source: TokenSource):
        self._states, self._lengths = states, source.lengths
        self._starts, self._max_length = _starts(source.lengths), source.max_length

    def __len__(self) -> int:
        return len(self._lengths)

    def __getitem__(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        lengths = self._lengths[rows]
        inside = np.arange(self._max_length) < lengths[:, None]
        states = np.zeros((*inside.shape, self._states.shape[1]), self._states.dtype)
        for x, start, length in zip(states, self._starts[rows], lengths, strict=True):
            x[:length] = self._states[start : start + length]
        return {"frozen_states": states, "attention_mask": inside.astype(np.int32)}


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


def _key(source: TokenSource, fingerprint: str) -> str:
    text = f"{source.fingerprint()} {fingerprint}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _starts(lengths: np.ndarray) -> np.ndarray:
    starts: np.ndarray = np.cumsum(lengths, dtype=np.int64) - lengths
    return starts


def _opened(path: pathlib.Path, shape: tuple[int, int]) -> np.ndarray | None:
    """The cached array, or None if it is missing or was cut off."""
    try:
        array: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    return array if array.shape == shape else None
