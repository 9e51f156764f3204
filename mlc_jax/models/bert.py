"""The text encoder of Devlin et al. (2019) with a classifier on top; RoBERTa and DistilBERT, too.

Layers are scanned over: they are compiled once, and their parameters are stacked on axis 0.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name
from jax.typing import DTypeLike

from mlc_jax.errors import InputError, expect
from mlc_jax.models.mlp import MLP

FEATURES = ("mean", "cls", "pooler")
# The names of Hugging Face's configs.
ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "gelu": functools.partial(jax.nn.gelu, approximate=False),
    "gelu_new": functools.partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
    "tanh": jnp.tanh,
}
# The published code's initialisation of all weights; biases start at 0.
_NORMAL = nn.initializers.normal(0.02)
# By `model_type`: field of `BertConfig` -> name in a `config.json`.
_BERT_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_length": "max_position_embeddings",
    "num_token_types": "type_vocab_size",
    "activation": "hidden_act",
    "dropout_rate": "hidden_dropout_prob",
    "attention_dropout_rate": "attention_probs_dropout_prob",
    "layer_norm_eps": "layer_norm_eps",
}
_DISTILBERT_NAMES = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_layers": "n_layers",
    "num_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "max_length": "max_position_embeddings",
    "activation": "activation",
    "dropout_rate": "dropout",
    "attention_dropout_rate": "attention_dropout",
}
_NAMES = {"bert": _BERT_NAMES, "roberta": _BERT_NAMES, "distilbert": _DISTILBERT_NAMES}
# Fields of `config.json` that are not supported, and the only value that they may have.
_FIXED = {
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
    "is_encoder_decoder": False,
}


@dataclass(frozen=True)
class BertConfig:
    """The shape of an encoder; the defaults are those of BERT base, uncased.

    Attributes:
      vocab_size: number of token ids.
      hidden_size: size of a token's vector.
      num_layers: number of attention layers.
      num_heads: heads per layer; the number divides `hidden_size`.
      intermediate_size: width between the two dense layers after attention.
      max_length: the most tokens of an input.
      num_token_types: 0 if the encoder has none.
      activation: one of `ACTIVATIONS`; `gelu` is exact.
      dropout_rate: for embeddings, for each layer's output, and for the features.
      attention_dropout_rate: for the attention weights.
      layer_norm_eps: added to variances.
      first_position: position of the first token; RoBERTa's tables hold unused rows before it.

    Raises:
      InputError: `activation` is unknown, or `num_heads` does not divide `hidden_size`.
    """

    vocab_size: int = 30522
    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    intermediate_size: int = 3072
    max_length: int = 512
    num_token_types: int = 2
    activation: str = "gelu"
    dropout_rate: float = 0.1
    attention_dropout_rate: float = 0.1
    layer_norm_eps: float = 1e-12
    first_position: int = 0

    def __post_init__(self) -> None:
        activation = self.activation
        expect(activation in ACTIVATIONS, "activation", activation, f"one of {[*ACTIVATIONS]}")
        heads = f"a divisor of hidden_size, {self.hidden_size}"
        expect(self.hidden_size % self.num_heads == 0, "num_heads", self.num_heads, heads)

    @classmethod
    def from_json(cls, settings: Mapping[str, Any]) -> "BertConfig":
        """Reads the content of a Hugging Face `config.json`.

        Args:
          settings: the file's content; `model_type` is one of bert, roberta and distilbert. Old
            files lack `layer_norm_eps`, which then has its default.

        Raises:
          InputError: a field is missing, or is not supported.
        """
        model_type = settings.get("model_type", "bert")  # Old files lack it.
        expect(model_type in _NAMES, "config.json: model_type", model_type, f"one of {[*_NAMES]}")
        for name, value in _FIXED.items():
            expect(settings.get(name, value) == value, f"config.json: {name}", settings.get(name),
                   f"{value!r}: no other is supported")  # fmt: skip
        names = {
            field: name
            for field, name in _NAMES[str(model_type)].items()
            if field != "layer_norm_eps" or name in settings
        }
        missing = [name for name in names.values() if name not in settings]
        if missing:
            raise InputError(f"config.json: {', '.join(missing)} missing, expected a value of each")
        fields: dict[str, Any] = {field: settings[name] for field, name in names.items()}
        if model_type == "distilbert":
            fields["num_token_types"] = 0
        if model_type == "roberta":
            first = settings.get("pad_token_id", 1) + 1
            fields["first_position"] = first
            fields["max_length"] -= first
        try:
            return cls(**fields)
        except InputError as error:
            raise InputError(f"config.json: {error}") from error


class Bert(nn.Module):
    """A text classifier: an encoder, one vector for each text, dense layers with ReLU, logits.

    Inputs are a dict of `input_ids` (int32 `[B, T]`), `attention_mask` (int32 `[B, T]`, 1 for a
    token, 0 for padding) and optionally `token_type_ids` (int32 `[B, T]`, 0 by default). In
    place of ids there may be `frozen_states` (`[B, T, H]`), the output of the frozen layers for
    them. Padding only changes the time per step.

    The paths of frozen parameters begin with `encoder/frozen_`.

    Attributes:
      config: shape of the encoder.
      num_classes: number of logits.
      feature: the vector of a text, from the last layer: 'mean' of its tokens, its first token
        ('cls'), or the first token after one more dense layer and tanh ('pooler').
      hidden_sizes: widths of dense layers between that vector and the logits. If there are any, the
        last one's activations are the features.
      num_frozen_layers: N > 0 freezes the embeddings and the first N layers: they have no dropout
        and pass no gradient. -1 freezes the whole encoder. Its output for a text never changes, and
        `encode` can compute it once. 0 freezes nothing.
      dtype: of the computation, e.g. bfloat16; params, logits and features stay in float32.
      remat: whether the backward pass computes a layer's activations again instead of storing them.
    """

    config: BertConfig
    num_classes: int
    feature: str = "mean"
    hidden_sizes: tuple[int, ...] = ()
    num_frozen_layers: int = 0
    dtype: DTypeLike | None = None
    remat: bool = False

    @property
    def frozen_paths(self) -> str | None:
        """See `models.frozen_paths`."""
        return "encoder/frozen_" if self.num_frozen_layers else None

    def setup(self) -> None:
        self.encoder = _Encoder(
            self.config, self.feature, self.num_frozen_layers, self.dtype, self.remat
        )
        self.head = MLP(self.num_classes, self.hidden_sizes, self.config.dropout_rate, self.dtype)

    def __call__(
        self, inputs: Mapping[str, jax.Array], *, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Maps a dict of `[B, T]` to logits `[B, C]` and features `[B, F]`.

        Raises:
          InputError: inputs or an attribute are wrong.
        """
        _, pooled = self.encoder(inputs, train=train)
        logits, features = self.head(pooled, train=train)
        return logits, features

    def encode(
        self, inputs: Mapping[str, jax.Array], *, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        """Maps a dict of `[B, T]` to the last layer `[B, T, H]` and a vector per text, `[B, H]`.

        `model.apply(variables, inputs, train=False, method="encode")` needs no params of the head.
        """
        hidden, pooled = self.encoder(inputs, train=train)
        return hidden, pooled


class _Encoder(nn.Module):
    config: BertConfig
    feature: str
    num_frozen_layers: int
    dtype: DTypeLike | None
    remat: bool

    @nn.compact
    def __call__(
        self, inputs: Mapping[str, jax.Array], *, train: bool
    ) -> tuple[jax.Array, jax.Array]:
        self._check(inputs)
        config, all_frozen = self.config, self.num_frozen_layers == -1
        num_frozen = config.num_layers if all_frozen else self.num_frozen_layers
        num_trained = config.num_layers - num_frozen
        part = functools.partial(self._part, train=train)
        mask = jnp.asarray(inputs["attention_mask"]).astype(bool)

        if "frozen_states" in inputs:
            x = jnp.asarray(inputs["frozen_states"], self.dtype)
        else:
            x = part(_Embeddings, "embeddings", frozen=num_frozen > 0)(inputs)
            if num_frozen:
                x, _ = part(_stack(_Layer, num_frozen), "layers", frozen=True)(x, mask)
        if num_frozen:
            # Stored even if a backward pass computes activations again, see `second_order`.
            x = checkpoint_name(x, "frozen")
        if num_trained:
            layer = nn.remat(_Layer, prevent_cse=False) if self.remat else _Layer
            x, _ = part(_stack(layer, num_trained), "layers", frozen=False)(x, mask)

        x = jnp.asarray(x, jnp.promote_types(x.dtype, jnp.float32))
        if self.feature == "mean":
            # A text without tokens, such as a padding row, has the mean 0.
            weights = mask[:, :, None].astype(x.dtype)
            pooled = jnp.sum(weights * x, axis=1) / jnp.maximum(jnp.sum(weights, axis=1), 1)
        else:
            pooled = x[:, 0]
        if self.feature == "pooler":
            pooled = part(_Pooler, "pooler", frozen=all_frozen)(pooled)
        dropout = nn.Dropout(config.dropout_rate, deterministic=all_frozen or not train)
        return x, dropout(pooled)

    def _part(self, kind: Any, name: str, *, frozen: bool, train: bool) -> nn.Module:
        """A submodule; a frozen one under another name, without dropout or gradient."""
        if frozen:
            # The gradient is stopped at the params, so nothing is differentiated in either mode.
            kind = nn.map_variables(kind, "params", _stopped, init=self.is_initializing())
            name = f"frozen_{name}"
        part: nn.Module = kind(self.config, self.dtype, frozen or not train, name=name)
        return part

    def _check(self, inputs: Mapping[str, jax.Array]) -> None:
        num_layers, num_frozen = self.config.num_layers, self.num_frozen_layers
        expect(self.feature in FEATURES, "feature", self.feature, f"one of {', '.join(FEATURES)}")
        expect(
            -1 <= num_frozen <= num_layers,
            "num_frozen_layers",
            num_frozen,
            f"-1 for the whole encoder, or 0 to {num_layers}, the number of layers",
        )
        tokens = "frozen_states" if num_frozen and "frozen_states" in inputs else "input_ids"
        expect(
            isinstance(inputs, Mapping) and {tokens, "attention_mask"} <= set(inputs),
            "inputs",
            sorted(inputs) if isinstance(inputs, Mapping) else "an array",
            "a dict with input_ids and attention_mask",
        )
        length, most = inputs[tokens].shape[1], self.config.max_length
        expect(length <= most, tokens, f"{length} tokens a text", f"at most {most}")


class _Embeddings(nn.Module):
    config: BertConfig
    dtype: DTypeLike | None
    deterministic: bool

    @nn.compact
    def __call__(self, inputs: Mapping[str, jax.Array]) -> jax.Array:
        config = self.config

        def embed(size: int, name: str, ids: jax.Array) -> jax.Array:
            table = nn.Embed(size, config.hidden_size, embedding_init=_NORMAL, name=name)
            return table(ids)

        ids = jnp.asarray(inputs["input_ids"])
        x = embed(config.vocab_size, "word", ids)
        # As many rows as in a checkpoint, with those before the first position.
        positions = config.first_position + jnp.arange(ids.shape[1])
        x += embed(config.first_position + config.max_length, "position", positions)
        if config.num_token_types:
            types = inputs.get("token_type_ids")
            types = jnp.zeros_like(ids) if types is None else jnp.asarray(types)
            x += embed(config.num_token_types, "token_type", types)
        # The sum is normalised in its own dtype, which is also the dtype of the scanned layers.
        x = _norm(config, self.dtype, "norm")(x)
        return nn.Dropout(config.dropout_rate, deterministic=self.deterministic)(x)


class _Layer(nn.Module):
    config: BertConfig
    dtype: DTypeLike | None
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> tuple[jax.Array, None]:
        """Maps tokens `[B, T, H]`; the mask `[B, T]` is 0 for padding."""
        config = self.config
        dropout = nn.Dropout(config.dropout_rate, deterministic=self.deterministic)
        attention = _Attention(config, self.dtype, self.deterministic, name="attention")
        x = _norm(config, self.dtype, "attention_norm")(x + dropout(attention(x, mask)))
        y = _dense(config.intermediate_size, self.dtype, "hidden")(x)
        y = _dense(config.hidden_size, self.dtype, "output")(ACTIVATIONS[config.activation](y))
        return _norm(config, self.dtype, "output_norm")(x + dropout(y)), None


class _Attention(nn.Module):
    config: BertConfig
    dtype: DTypeLike | None
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array, mask: jax.Array) -> jax.Array:
        size, num_heads = self.config.hidden_size, self.config.num_heads
        query, key, value = (
            _dense(size, self.dtype, name)(x).reshape(*x.shape[:2], num_heads, size // num_heads)
            for name in ("query", "key", "value")
        )
        mask = mask[:, None, None, :]  # A mask of keys for each head and query.
        rate = self.config.attention_dropout_rate
        if self.deterministic or rate == 0:
            # Chosen explicitly, because the fused kernel has no second derivative.
            y = jax.nn.dot_product_attention(query, key, value, mask=mask, implementation="xla")
        else:
            weights = _attention_weights(query, key, mask)
            weights = nn.Dropout(rate, deterministic=False)(weights).astype(value.dtype)
            y = jnp.einsum("bhqk,bkhd->bqhd", weights, value)
        return _dense(size, self.dtype, "output")(y.reshape(x.shape))


class _Pooler(nn.Module):
    config: BertConfig
    dtype: DTypeLike | None
    deterministic: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        y = jnp.tanh(_dense(self.config.hidden_size, self.dtype, "dense")(x))
        return jnp.asarray(y, x.dtype)


def _stack(layer: Any, length: int) -> Any:
    return nn.scan(
        layer,
        variable_axes={"params": 0},
        split_rngs={"params": True, "dropout": True},
        in_axes=nn.broadcast,
        length=length,
    )


def _stopped(variables: Any) -> Any:
    return jax.tree.map(jax.lax.stop_gradient, variables)


def _dense(size: int, dtype: DTypeLike | None, name: str) -> nn.Dense:
    return nn.Dense(size, dtype=dtype, kernel_init=_NORMAL, name=name)


def _norm(config: BertConfig, dtype: DTypeLike | None, name: str) -> nn.LayerNorm:
    # The fast variance, a difference of squares, is too inexact for large means.
    return nn.LayerNorm(config.layer_norm_eps, dtype=dtype, use_fast_variance=False, name=name)


def _attention_weights(query: jax.Array, key: jax.Array, mask: jax.Array) -> jax.Array:
    """Weights `[B, heads, T, T]`, in float32 at least: bfloat16 would round small ones away."""
    dtype = jnp.promote_types(query.dtype, jnp.float32)
    scores = jnp.einsum("bqhd,bkhd->bhqk", query, key).astype(dtype)
    scores /= query.shape[-1] ** 0.5
    return jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(dtype).min), axis=-1)
