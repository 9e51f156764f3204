"""Hugging Face checkpoints of BERT, RoBERTa and DistilBERT: `config.json` and safetensors files.

PyTorch is not needed. Weights are arranged by path, for `models.pretrained.with_initial`:

    config, weights = load_bert("sentence-transformers/all-MiniLM-L6-v2")
    model = Bert(config, num_classes=4, num_frozen_layers=3)
    params = with_initial(params, bert_params(model, weights))
"""

import json
import os
import pathlib
import re
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from mlc_jax import paths
from mlc_jax.errors import InputError, expect
from mlc_jax.models.bert import Bert, BertConfig
from mlc_jax.models.pretrained import load_params

_CONFIG, _WEIGHTS, _INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_SHARDS = "model-*.safetensors"
_PYTORCH = "pytorch_model.bin"


class _Names(NamedTuple):
    """A checkpoint's names for the parts of a layer, and for parts outside of the encoder."""

    layers: str
    parts: Mapping[str, str]
    ignored: str


_EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "embeddings/word/embedding",
    "embeddings.position_embeddings.weight": "embeddings/position/embedding",
    "embeddings.token_type_embeddings.weight": "embeddings/token_type/embedding",
    "embeddings.LayerNorm.weight": "embeddings/norm/scale",
    "embeddings.LayerNorm.bias": "embeddings/norm/bias",
}
# Checkpoints for token or span labels, or for masked words, lack it.
_POOLER = {
    "pooler.dense.weight": "pooler/dense/kernel",
    "pooler.dense.bias": "pooler/dense/bias",
}
_BERT_PARTS = {
    "attention.self.query": "attention/query",
    "attention.self.key": "attention/key",
    "attention.self.value": "attention/value",
    "attention.output.dense": "attention/output",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "hidden",
    "output.dense": "output",
    "output.LayerNorm": "output_norm",
}
_DISTILBERT_PARTS = {
    "attention.q_lin": "attention/query",
    "attention.k_lin": "attention/key",
    "attention.v_lin": "attention/value",
    "attention.out_lin": "attention/output",
    "sa_layer_norm": "attention_norm",
    "ffn.lin1": "hidden",
    "ffn.lin2": "output",
    "output_layer_norm": "output_norm",
}
# By `model_type`. The heads of a checkpoint's own task are ignored, and so are constants.
_NAMES = {
    "bert": _Names("encoder.layer", _BERT_PARTS, r"cls\.|classifier\.|qa_outputs\."),
    "roberta": _Names("encoder.layer", _BERT_PARTS, r"lm_head\.|classifier\.|qa_outputs\."),
    "distilbert": _Names(
        "transformer.layer",
        _DISTILBERT_PARTS,
        r"vocab_transform\.|vocab_layer_norm\.|vocab_projector\.|pre_classifier\.|classifier\."
        r"|qa_outputs\.",
    ),
}
_CONSTANTS = r"embeddings\.position_ids$|embeddings\.token_type_ids$"


def load_bert(source: str | os.PathLike[str]) -> tuple[BertConfig, dict[str, np.ndarray]]:
    """Reads an encoder.

    Args:
      source: a directory, or a name on the Hugging Face hub, such as `bert-base-uncased`, which is
        downloaded once.

    Returns:
      Its shape, and its float32 weights by path below `encoder/`, with layers stacked on axis 0. If
      the checkpoint has no pooler, its weights are missing.

    Raises:
      InputError: it cannot be read, is another kind of model, or a weight is missing or unknown.
    """
    try:
        directory = _directory(os.fspath(source))
        settings = _read_json(directory / _CONFIG)
        config = BertConfig.from_json(settings)
        model_type = settings.get("model_type", "bert")
        return config, _arranged(_read_weights(directory), config, model_type)
    except InputError as error:
        raise InputError(f"BERT {os.fspath(source)!r}: {error}") from error


def load_config(source: str | os.PathLike[str]) -> BertConfig:
    """Reads only the shape; arguments and errors as for `load_bert`."""
    try:
        return BertConfig.from_json(_read_json(_directory(os.fspath(source)) / _CONFIG))
    except InputError as error:
        raise InputError(f"BERT {os.fspath(source)!r}: {error}") from error


def copy_checkpoint(
    source: str | os.PathLike[str], directory: str | os.PathLike[str], *, weights: bool
) -> None:
    """Copies `config.json`, and optionally the weights, so that `load_bert` can read the copy.

    Args:
      source: see `load_bert`.
      directory: must exist.
      weights: whether to copy them.
    """
    place = _directory(os.fspath(source))
    shards = [_INDEX, *(path.name for path in place.glob(_SHARDS))]
    files = [_WEIGHTS] if (place / _WEIGHTS).exists() else shards
    for name in [
        *(files if weights else []),
        _CONFIG,
    ]:  # The shape is last: it marks the copy as complete.
        shutil.copyfile(place / name, pathlib.Path(directory) / name)


def bert_params(model: Bert, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Arranges the weights of `load_bert` by a model's parameter paths, for `with_initial`.

    Args:
      model: its `num_frozen_layers` layers have other paths than the rest. It has a pooler only for
        the feature 'pooler'.
      weights: as `load_bert` returns them.

    Raises:
      InputError: the model needs a pooler, and there is none.
    """
    has_pooler = any(name.startswith("pooler/") for name in weights)
    expect(
        model.feature != "pooler" or has_pooler,
        "feature",
        model.feature,
        "'mean' or 'cls': the checkpoint has no pooler",
    )
    all_frozen = model.num_frozen_layers == -1
    num_frozen = model.config.num_layers if all_frozen else model.num_frozen_layers
    params = {}
    for name, value in weights.items():
        part = name.split("/")[0]
        if part == "layers":
            # A model without frozen layers, or without others, has no such path.
            params[f"encoder/frozen_{name}"] = value[:num_frozen]
            params[f"encoder/{name}"] = value[num_frozen:]
        elif part == "embeddings":
            params[f"encoder/{'frozen_' if num_frozen else ''}{name}"] = value
        elif model.feature == "pooler":
            params[f"encoder/{'frozen_' if all_frozen else ''}{name}"] = value
    return {name: value for name, value in params.items() if len(value)}


def _directory(source: str) -> pathlib.Path:
    path = paths.expanded(source)
    if path.is_dir():
        paths.check_regular(path, "checkpoint")
        return path
    import huggingface_hub  # Imported here, since it takes a second and most runs do not need it.

    try:
        files = [_CONFIG, _WEIGHTS, _INDEX, _SHARDS]
        return pathlib.Path(huggingface_hub.snapshot_download(source, allow_patterns=files))
    except Exception as error:  # The hub raises many types.
        reason = next(iter(str(error).splitlines()), "") or type(error).__name__
        raise InputError(
            "expected a directory, or a name on the Hugging Face hub that can be downloaded "
            f"({reason})"
        ) from error


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(
            f"{str(path)!r} cannot be read ({reason}); expected a JSON file, as "
            "`save_pretrained` of transformers writes it"
        ) from error
    expect(isinstance(content, dict), str(path), content, "a JSON object")
    return dict(content)


def _read_weights(directory: pathlib.Path) -> dict[str, np.ndarray]:
    if (directory / _WEIGHTS).exists():
        return load_params(directory / _WEIGHTS)
    if (directory / _INDEX).exists():
        place = _read_json(directory / _INDEX).get("weight_map")
        expect(isinstance(place, dict), f"{_INDEX}: weight_map", place, "file names by weight")
        weights = {}
        for file in sorted(set(dict(place or {}).values())):
            weights.update(load_params(directory / file))
        return weights
    found = sorted(path.name for path in directory.iterdir())
    raise InputError(
        f"got {', '.join(found)}, expected {_WEIGHTS} or {_INDEX}; where there is {_PYTORCH}, this "
        'writes it: python -c "from transformers import AutoModel as M; '
        "M.from_pretrained('DIRECTORY').save_pretrained('DIRECTORY')\" (needs PyTorch)"
    )


def _arranged(
    weights: Mapping[str, np.ndarray], config: BertConfig, model_type: str
) -> dict[str, np.ndarray]:
    """Weights by our paths; raises InputError for missing or unknown weights."""
    names = _NAMES[model_type]
    given = {_usual_name(name, model_type): value for name, value in weights.items()}
    single = dict(_EMBEDDINGS)
    if not config.num_token_types:
        del single["embeddings.token_type_embeddings.weight"]
    if any(name in given for name in _POOLER):
        single |= _POOLER
    stacked = {}
    for part, path in names.parts.items():
        weight = "scale" if path.endswith("norm") else "kernel"
        for theirs, ours in (("weight", weight), ("bias", "bias")):
            stacked[f"layers/{path}/{ours}"] = [
                f"{names.layers}.{i}.{part}.{theirs}" for i in range(config.num_layers)
            ]

    wanted = [*single, *(name for layers in stacked.values() for name in layers)]
    missing = [name for name in wanted if name not in given]
    unknown = sorted(
        name
        for name in set(given) - set(wanted)
        if not re.match(f"{names.ignored}|{_CONSTANTS}", name)
    )
    if missing or unknown:
        counts = f"weights of {model_type}: missing {_first(missing)}; not known {_first(unknown)}"
        raise InputError(f"{counts}; expected those of {config.num_layers} layers, as in {_CONFIG}")

    arranged = {path: _float32(given[name], path) for name, path in single.items()}
    for path, layers in stacked.items():
        arranged[path] = np.stack([_float32(given[name], path) for name in layers])
    return arranged


def _usual_name(name: str, model_type: str) -> str:
    """The name without the prefix of models with a head, and with PyTorch's names of norms."""
    name = name.removeprefix(f"{model_type}.")
    name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", name)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name)


def _float32(value: np.ndarray, path: str) -> np.ndarray:
    """Converts to float32; transposes a dense layer's weights from (out, in) to (in, out)."""
    value = value.T if path.endswith("kernel") else value
    return value.astype(np.float32)


def _first(names: list[str]) -> str:
    more = f", ... ({len(names)} in all)" if len(names) > 3 else ""
    return (", ".join(names[:3]) or "none") + more
