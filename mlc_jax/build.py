"""Builds methods, models and optimizers from a config. Imports no TensorFlow."""

import dataclasses

import jax.numpy as jnp
from flax import linen as nn
from ml_collections import ConfigDict

from mlc_jax.core import EstimatorSpec
from mlc_jax.core.optimizers import OptimizerSpec
from mlc_jax.errors import InputError, expect
from mlc_jax.methods import METHODS, BilevelMethod, Method
from mlc_jax.methods.cross_fit import CrossFit
from mlc_jax.methods.mlc import MLC
from mlc_jax.methods.types import TwoPhaseMethod
from mlc_jax.models import MLP, Bert, LabelCorrectionNetwork, ResNet, ResNet50, WeightNet
from mlc_jax.models.bert_checkpoint import load_config


def create_classifier(config: ConfigDict, num_classes: int) -> nn.Module:
    """Builds the classifier of `config.model`.

    Raises:
      InputError: the checkpoint cannot be read, or has fewer layers than are to be frozen.
    """
    dtype, is_bert = jnp.dtype(config.dtype), config.name == "bert"
    # On top of an encoder that is frozen as a whole, only an MLP is trained.
    if config.name == "mlp" or (is_bert and config.bert.num_frozen_layers == -1):
        return MLP(
            num_classes=num_classes,
            hidden_sizes=tuple(config.mlp.hidden_sizes),
            dropout_rate=config.mlp.dropout_rate,
            dtype=dtype,
        )
    if is_bert:
        return _create_bert(config, num_classes)
    if config.name == "resnet50":
        shape = config.resnet50
        return ResNet50(
            num_classes=num_classes,
            depth=shape.depth,
            width=shape.width,
            freeze_batch_norm=shape.freeze_batch_norm,
            remat=shape.remat,
            dtype=dtype,
        )
    return ResNet(
        num_classes=num_classes,
        depth=config.resnet.depth,
        dtype=dtype,
        sync_batch_norm=config.resnet.sync_batch_norm,
    )


def _create_bert(config: ConfigDict, num_classes: int) -> nn.Module:
    shape, rate = load_config(config.bert.checkpoint), config.bert.dropout_rate
    if rate is not None:
        shape = dataclasses.replace(shape, dropout_rate=rate, attention_dropout_rate=rate)
    num_frozen = config.bert.num_frozen_layers
    expect(
        num_frozen <= shape.num_layers,
        "config.model.bert.num_frozen_layers",
        num_frozen,
        f"at most {shape.num_layers}, the checkpoint's layers, or -1",
    )
    return Bert(
        shape,
        num_classes,
        feature=config.bert.feature,
        hidden_sizes=tuple(config.mlp.hidden_sizes),
        num_frozen_layers=num_frozen,
        dtype=jnp.dtype(config.dtype),
        remat=config.bert.remat,
    )


def create_optimizer(config: ConfigDict, name: str) -> OptimizerSpec:
    """Builds `config.main_optimizer` or `config.meta_optimizer`.

    Raises:
      InputError: values that do not suit each other, or a bad regular expression.
    """
    try:
        return OptimizerSpec(**config[name])
    except InputError as error:
        raise InputError(f"config.{name}.{error}") from error


def create_method(config: ConfigDict, num_classes: int, *, paired: bool = False) -> Method:
    """Builds `config.method` with all of its settings.

    Args:
      config: see `mlc_jax.config`.
      num_classes: C.
      paired: whether at least some clean rows also have a known given label.

    Raises:
      InputError: settings that do not suit each other.
    """
    kind = METHODS[config.method]
    settings = dict(config.get(config.method, {}))  # Such as config.joint.
    if issubclass(kind, BilevelMethod):
        settings["meta_tx"] = create_optimizer(config, "meta_optimizer")
        of_gradient = config.meta_gradient
        settings["estimator"] = EstimatorSpec(
            name=of_gradient.estimator,
            backward=of_gradient.backward,
            truncation=of_gradient.truncation,
            solver_steps=of_gradient.solver_steps,
            damping=of_gradient.damping,
        )
        settings["update_every"] = of_gradient.update_every
    if issubclass(kind, TwoPhaseMethod):
        settings["first_phase_epochs"] = config.first_phase_epochs
    if issubclass(kind, MLC):
        lcn = dict(config.lcn)
        pair_weight = lcn.pop("pair_weight")
        if pair_weight is not None:
            settings["pair_weight"] = pair_weight
        lcn["form"] = lcn["form"] or kind.default_form(paired=paired)
        settings["lcn"] = LabelCorrectionNetwork(num_classes, **lcn)
    if kind is CrossFit:
        sizes = settings.pop("hidden_sizes")
        if sizes is None:  # Both kinds.
            settings["beside"] = MLP(num_classes, (64,))
        return CrossFit(model=MLP(num_classes, tuple(sizes or ())), **settings)
    preset = getattr(kind, "inner_loss", None)
    if preset is not None:
        chosen = {name: x for name, x in config.inner_loss.items() if x is not None}
        settings["inner_loss"] = dataclasses.replace(preset, **chosen)
    if config.method == "meta_weight_net":
        settings["weight_net"] = WeightNet(**config.weight_net)
    model = create_classifier(config.model, num_classes)
    start = config.model.initial_params
    if isinstance(model, ResNet50):
        start = start or config.model.resnet50.checkpoint
    if isinstance(model, Bert):
        start = start or config.model.bert.checkpoint
    return kind(
        model=model,
        tx=create_optimizer(config, "main_optimizer"),
        num_inner_steps=config.meta_gradient.num_inner_steps,
        mix_clean=config.meta_gradient.mix_clean,
        unroll=config.meta_gradient.unroll,
        initial_params=start,
        **settings,
    )
