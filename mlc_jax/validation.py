"""Checks a config before anything expensive starts.

One `InputError` for all that is wrong, each line naming the field, what was given and what would be
right. What only the data can tell (class sizes, label files) is checked in `mlc_jax.data`.
"""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from mlc_jax import methods, models, noise, optimizers
from mlc_jax.data.sources import SOURCES
from mlc_jax.errors import InputError
from mlc_jax.meta_gradients import ESTIMATORS

DTYPES = ("float32", "bfloat16")


def validate(config: ConfigDict, *, num_devices: int) -> None:
    """Raises InputError if `config` cannot be run on `num_devices` devices."""
    checks = _Checks(config)
    _check_names(checks)
    _check_ranges(checks)
    _check_batches(checks, num_devices)
    if checks.problems:
        raise InputError("\n".join(checks.problems))


class _Checks:
    """Collects problems, worded alike."""

    def __init__(self, config: ConfigDict):
        self.config = config
        self.problems: list[str] = []

    def get(self, field: str) -> Any:
        value = self.config
        for name in field.split("."):
            value = value[name]
        return value

    def expect(self, ok: bool, field: str, expected: str) -> None:
        if not ok:
            self.problems.append(f"config.{field}: got {self.get(field)!r}, expected {expected}")

    def one_of(self, field: str, choices: Sequence[str]) -> None:
        self.expect(self.get(field) in choices, field, "one of " + ", ".join(choices))

    def at_least(self, field: str, low: float, *, high: float = float("inf")) -> None:
        span = f"a number from {low} to {high}" if high < float("inf") else f"at least {low}"
        self.expect(low <= self._number(field) <= high, field, span)

    def positive(self, field: str) -> None:
        self.expect(0 < self._number(field) < float("inf"), field, "a positive, finite number")

    def _number(self, field: str) -> float:
        """None, which any field can be set to, is NaN: no comparison holds."""
        value = self.get(field)
        return float("nan") if value is None else value


def _check_names(checks: _Checks) -> None:
    checks.one_of("method", tuple(methods.METHODS))
    checks.one_of("dataset.name", SOURCES)
    checks.one_of("noise.type", noise.NOISE_TYPES)
    checks.one_of("model.name", models.CLASSIFIERS)
    checks.one_of("model.dtype", DTYPES)
    checks.one_of("meta_gradient.estimator", tuple(ESTIMATORS))
    for optimizer in ("main_optimizer", "meta_optimizer"):
        checks.one_of(f"{optimizer}.name", optimizers.OPTIMIZERS)
        checks.one_of(f"{optimizer}.schedule", optimizers.SCHEDULES)


def _check_ranges(checks: _Checks) -> None:
    config = checks.config
    for field in ("seed", "dataset.split_seed", "noise.seed"):
        checks.at_least(field, 0, high=2**32 - 1)
    checks.at_least("dataset.clean_per_class", 1)
    checks.at_least("dataset.validation_per_class", 0)
    checks.at_least("noise.level", 0, high=1)
    depth = config.model.resnet.depth
    checks.expect(
        depth >= 8 and (depth - 2) % 6 == 0, "model.resnet.depth", "6n + 2 with n >= 1: 8, 14, ..."
    )
    sizes = config.model.mlp.hidden_sizes
    checks.expect(
        len(sizes) > 0 and all(isinstance(size, int) and size > 0 for size in sizes),
        "model.mlp.hidden_sizes",
        "one or more positive widths, such as (128, 64)",
    )
    checks.at_least("model.mlp.dropout_rate", 0, high=0.99)
    for field in ("lcn.hidden_size", "lcn.embedding_size"):
        checks.at_least(field, 1)
    checks.expect(
        not config.lcn.tie_embeddings or config.lcn.hidden_size == config.lcn.embedding_size,
        "lcn.tie_embeddings",
        f"equal lcn.hidden_size ({config.lcn.hidden_size}) and lcn.embedding_size "
        f"({config.lcn.embedding_size}) to tie",
    )
    checks.at_least("meta_gradient.num_inner_steps", 1)
    checks.at_least("meta_gradient.unroll", 0)
    for optimizer in ("main_optimizer", "meta_optimizer"):
        checks.positive(f"{optimizer}.learning_rate")
        checks.at_least(f"{optimizer}.momentum", 0, high=0.9999)
        checks.at_least(f"{optimizer}.weight_decay", 0)
        checks.positive(f"{optimizer}.decay_factor")
        milestones = list(checks.get(f"{optimizer}.milestones"))
        checks.expect(
            all(isinstance(epoch, int) and epoch > 0 for epoch in milestones)
            and milestones == sorted(set(milestones)),
            f"{optimizer}.milestones",
            "whole epochs from 1 on, each later than the one before, such as (80, 100)",
        )
    checks.positive("num_epochs")
    checks.positive("checkpoint_every_minutes")
    for field in (
        "eval_every_epochs", "log_every_steps", "checkpoint_every_steps", "checkpoints_to_keep"
    ):  # fmt: skip
        checks.at_least(field, 1)


def _check_batches(checks: _Checks, num_devices: int) -> None:
    """Every device must get equally many rows of each part of a batch."""
    checks.at_least("eval_batch_size", 1)
    for field, parts in (
        ("noisy_batch_size", 1),
        ("clean_batch_size", 2 if checks.config.meta_gradient.mix_clean else 1),
    ):
        per = parts * num_devices
        halves = (
            f" (two halves, {num_devices} devices)" if parts == 2 else f" ({num_devices} devices)"
        )
        size = checks.get(field)
        checks.expect(size > 0 and size % per == 0, field, f"a positive multiple of {per}{halves}")
