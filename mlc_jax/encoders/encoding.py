"""Maps a user's texts to a classifier's inputs, and stores encoders in workdirs."""

import dataclasses
import functools
import tempfile
from typing import Any, ClassVar

import jax.numpy as jnp
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from mlc_jax import paths
from mlc_jax.data.dataset import Dataset
from mlc_jax.data.source import ArraySource, Source
from mlc_jax.encoders.frozen import (
    EncodedSource,
    FrozenEncoder,
    FrozenLayers,
    StatesSource,
    check_tokens,
)
from mlc_jax.errors import InputError, expect
from mlc_jax.files.tokens import Texts, Tokenizer, TokenSource, create_source
from mlc_jax.methods import Method
from mlc_jax.models.bert import Bert, BertConfig
from mlc_jax.models.bert_checkpoint import copy_checkpoint

FOLDER = "encoder"  # The folder of a workdir with the files that later texts need.


@dataclasses.dataclass(frozen=True)
class TextReader:
    """Maps texts to a classifier's inputs.

    Attributes:
      checkpoint: pretrained BERT, RoBERTa or DistilBERT: a directory, or a name on the Hugging Face
        hub.
      frozen: whether its encoder is not trained. Texts then become its features, `[N, H]` float32,
        for a model of vectors, such as `mlc_jax.models.MLP`. Otherwise they become tokens, for a
        `mlc_jax.models.Bert` that starts from the checkpoint (`initial_params=`).
      max_length: T, the most tokens of a text; longer texts are cut off.
      feature, dtype: of the frozen encoder, see `mlc_jax.models.Bert`.
      tokenizer: a directory with a `tokenizer.json`, or a name on the hub; None takes `checkpoint`.
      cache_dir: directory for tokens and features; None is ~/.cache/mlc_jax.
      max_cached_gb: for an encoder with frozen first layers (`num_frozen_layers` of
        `mlc_jax.models.Bert`). Their output for all texts is computed once and cached if it takes
        at most this many GB. Otherwise it is computed in every step.
    """

    kind: ClassVar[str] = "text"

    checkpoint: str
    frozen: bool = True
    max_length: int = 128
    feature: str = "mean"
    dtype: str = "float32"
    tokenizer: str | None = None
    cache_dir: str | None = None
    max_cached_gb: float = 4.0

    def __call__(self, texts: Any) -> Source:
        """A source of a few texts, without a cache.

        Raises:
          InputError: the input is no list of texts, or the checkpoint cannot be read.
        """
        with tempfile.TemporaryDirectory() as cache:
            source = self._tokens(texts, None, cache)
        return ArraySource(self._encoder().encode(source)) if self.frozen else source

    def cached(self, texts: Any, ids: Any = None) -> Source:
        """A source of texts with a cache; `ids` are names `[N]` of the texts, or None.

        Raises:
          InputError: as for a call, or the cache cannot be written.
        """
        source = self._tokens(texts, ids, self.cache_dir)
        return self._encoder()(source) if self.frozen else source

    def to_json(self) -> dict[str, Any]:
        """The settings that a run depends on, for its workdir; see `reader_from_workdir`."""
        aside = ("cache_dir", "max_cached_gb")
        return {k: x for k, x in dataclasses.asdict(self).items() if k not in aside}

    def with_states(self, dataset: Dataset, method: Method) -> Dataset:
        """The dataset with frozen layers' outputs in place of tokens, if there are such layers."""
        model, most = method.model, self.max_cached_gb
        # Initial parameters other than the checkpoint's may have other frozen layers.
        if (
            not isinstance(model, Bert)
            or model.num_frozen_layers <= 0
            or method.initial_params != self.checkpoint
        ):
            return dataset
        dtype = jnp.dtype(model.dtype or jnp.float32).name
        layers = _load_layers(
            self.checkpoint, model.num_frozen_layers, dtype=dtype, cache_dir=self.cache_dir
        )
        names = ("noisy", "clean", "validation", "test")
        subsets = {name: part for name in names if (part := getattr(dataset, name)) is not None}
        sources = {id(subset.source): subset.source for subset in subsets.values()}.values()
        size = sum(layers.num_bytes(source) for source in sources) / 1e9
        if size > most:
            logging.info(
                "Frozen layers are computed in each step: their output for all texts would take "
                "%.1f GB, and max_cached_gb is %g.", size, most,
            )  # fmt: skip
            return dataset
        changed = {
            name: dataclasses.replace(subset, source=_states(layers, subset.source))
            for name, subset in subsets.items()
        }
        return dataclasses.replace(dataset, **changed)

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
    """The config's frozen encoder, a BERT that is frozen as a whole, or None."""
    model = config.model
    if model.name != "bert" or model.bert.num_frozen_layers != -1:
        return None
    return _load(model.bert.checkpoint, model.bert.feature, model.dtype, config.dataset.cache_dir)


_load_layers = functools.lru_cache(maxsize=1)(FrozenLayers)
_load_tokenizer = functools.lru_cache(maxsize=1)(Tokenizer.load)


@functools.lru_cache(maxsize=4)  # Runs of one program share their sources.
def _states(layers: FrozenLayers, source: TokenSource) -> StatesSource:
    return layers(source)


@functools.lru_cache(maxsize=1)  # Runs of one process share it and its features.
def _load(checkpoint: str, feature: str, dtype: str, cache_dir: str | None) -> FrozenEncoder:
    return FrozenEncoder(checkpoint, feature=feature, dtype=dtype, cache_dir=cache_dir)


def check_dataset(dataset: Dataset, shape: BertConfig) -> None:
    """Raises InputError if a trained BERT has no row for a token or a position of the texts."""
    subsets = (dataset.noisy, dataset.clean, dataset.validation, dataset.test)
    sources = [subset.source for subset in subsets if subset is not None]
    for source in sources:
        if isinstance(source, TokenSource):
            check_tokens(source, shape)


def save(checkpoint: str, dataset: Dataset, workdir: epath.Path) -> None:
    """Copies an encoder's tokenizer and shape into a workdir, and weights if it is frozen.

    They go to `FOLDER`, see `from_workdir`. A trained encoder's weights are in the run's
    checkpoint. Runs without texts have nothing to copy.

    Raises:
      InputError: the workdir cannot be written.
    """
    source = dataset.clean.source
    if not isinstance(source, TokenSource | EncodedSource | StatesSource):
        return
    folder = workdir / FOLDER
    if (folder / "config.json").exists():  # This file is copied last.
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
    """The config of a run, changed to use the encoder that `save` copied to its workdir.

    Runs that were trained together have no copy; their config does not change.
    """
    if (workdir / FOLDER / "config.json").exists():
        local = str(paths.local(workdir / FOLDER, "--workdir"))
        config.model.bert.checkpoint = config.dataset.tokenizer = local
    return config


def text_reader(config: ConfigDict) -> TextReader:
    """The reader of a run's texts."""
    model, dataset = config.model, config.dataset
    return TextReader(
        checkpoint=model.bert.checkpoint,
        frozen=model.bert.num_frozen_layers == -1,
        max_length=dataset.max_length,
        feature=model.bert.feature,
        dtype=model.dtype,
        tokenizer=dataset.tokenizer,
        cache_dir=dataset.cache_dir,
        max_cached_gb=dataset.max_cached_gb,
    )


def reader_from_workdir(described: dict[str, Any], workdir: epath.Path) -> TextReader:
    """The reader of a call of `fit`, with the encoder that `save` copied to its workdir."""
    folder = str(paths.local(workdir / FOLDER, "--workdir"))
    return TextReader(**described | {"checkpoint": folder, "tokenizer": folder})
