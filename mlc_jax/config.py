"""Checks a config before anything expensive starts.

One `InputError` for all that is wrong, each line naming the field, what was given and what would be
right. What only the data can tell (class sizes, label files) is checked in `mlc_jax.data`.
"""

from collections.abc import Sequence
from typing import Any

from ml_collections import ConfigDict

from mlc_jax import methods, models, noise, optimizers
from mlc_jax.bilevel import BACKWARDS
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

    def flag(self, field: str) -> None:
        self.expect(isinstance(self.get(field), bool), field, "True or False")

    def whole(self, field: str, low: int, *, high: float = float("inf")) -> None:
        span = f" from {low} to {high}" if high < float("inf") else f", at least {low}"
        value = self.get(field)
        self.expect(_is_whole(value) and low <= value <= high, field, f"a whole number{span}")

    def at_least(self, field: str, low: float, *, high: float = float("inf")) -> None:
        finite = high < float("inf")
        span = f"a number from {low} to {high}" if finite else f"a finite number, at least {low}"
        number = self._number(field)
        self.expect(low <= number <= high and number < float("inf"), field, span)

    def positive(self, field: str) -> None:
        self.expect(0 < self._number(field) < float("inf"), field, "a positive, finite number")

    def _number(self, field: str) -> float:
        """What is no number, such as None, is NaN: no comparison holds."""
        value = self.get(field)
        return value if _is_whole(value) or isinstance(value, float) else float("nan")


def _is_whole(value: Any) -> bool:
    """Any field can be set to None, and through None to any type; bool is a kind of int."""
    return isinstance(value, int) and not isinstance(value, bool)


def _are_whole(values: Any) -> bool:
    """Whether `values` is a sequence, maybe an empty one, of whole numbers from 1 on."""
    return isinstance(values, tuple | list) and all(_is_whole(x) and x > 0 for x in values)


def _check_names(checks: _Checks) -> None:
    checks.one_of("method", tuple(methods.METHODS))
    checks.one_of("dataset.name", SOURCES)
    checks.one_of("noise.type", noise.NOISE_TYPES)
    checks.one_of("model.name", models.CLASSIFIERS)
    checks.one_of("model.dtype", DTYPES)
    checks.one_of("meta_gradient.estimator", tuple(ESTIMATORS))
    checks.one_of("meta_gradient.backward", BACKWARDS)
    for optimizer in ("main_optimizer", "meta_optimizer"):
        checks.one_of(f"{optimizer}.name", optimizers.OPTIMIZERS)
        checks.one_of(f"{optimizer}.schedule", optimizers.SCHEDULES)


def _check_ranges(checks: _Checks) -> None:
    config = checks.config
    for field in (
        "dataset.download", "dataset.augment", "model.resnet.sync_batch_norm", "lcn.skip_link",
        "lcn.sparsemax", "lcn.tie_embeddings", "meta_gradient.mix_clean",
        "main_optimizer.nesterov", "meta_optimizer.nesterov",
    ):  # fmt: skip
        checks.flag(field)
    for field in ("seed", "dataset.split_seed", "noise.seed"):
        checks.whole(field, 0, high=2**32 - 1)
    checks.whole("dataset.clean_per_class", 1)
    checks.whole("dataset.validation_per_class", 0)
    checks.at_least("noise.level", 0, high=1)
    depth = config.model.resnet.depth
    checks.expect(
        _is_whole(depth) and depth >= 8 and (depth - 2) % 6 == 0,
        "model.resnet.depth",
        "6n + 2 with n >= 1: 8, 14, ...",
    )
    sizes = config.model.mlp.hidden_sizes
    checks.expect(
        _are_whole(sizes) and len(sizes) > 0,
        "model.mlp.hidden_sizes",
        "one or more positive widths, such as (128, 64)",
    )
    checks.at_least("model.mlp.dropout_rate", 0, high=0.99)
    _check_methods(checks)
    _check_optimizers(checks)
    checks.whole("first_phase_epochs", 0)
    checks.positive("checkpoint_every_minutes")
    for field in (
        "num_epochs", "eval_batch_size", "eval_every_epochs", "log_every_steps",
        "checkpoint_every_steps", "checkpoints_to_keep",
    ):  # fmt: skip
        checks.whole(field, 1)


def _check_methods(checks: _Checks) -> None:
    """Settings of meta models, of single methods, and of the meta-gradient."""
    config = checks.config
    for field in ("lcn.hidden_size", "lcn.embedding_size"):
        checks.whole(field, 1)
    checks.expect(
        config.lcn.tie_embeddings is not True
        or config.lcn.hidden_size == config.lcn.embedding_size,
        "lcn.tie_embeddings",
        f"equal lcn.hidden_size ({config.lcn.hidden_size}) and lcn.embedding_size "
        f"({config.lcn.embedding_size}) to tie",
    )
    for field in (
        "weight_net.hidden_size", "joint.num_averaged", "mlnt.num_synthetic", "mlnt.num_neighbours",
    ):  # fmt: skip
        checks.whole(field, 1)
    for field in (
        "joint.update_from", "mlnt.transferred_share", "mlnt.ramp_share",
        "mlnt.early_teacher_decay", "mlnt.teacher_decay", "distillation.label_weight",
    ):  # fmt: skip
        checks.at_least(field, 0, high=1)
    for field in ("joint.prior_weight", "joint.entropy_weight", "mlnt.consistency_weight"):
        checks.at_least(field, 0)
    checks.positive("mlnt.lookahead_rate")
    checks.at_least("forward.percentile", 0.1, high=100)
    for field in ("num_inner_steps", "truncation", "solver_steps"):
        checks.whole(f"meta_gradient.{field}", 1)
    checks.at_least("meta_gradient.damping", 0)
    checks.whole("meta_gradient.diagnose_every", 0)
    checks.expect(
        config.meta_gradient.estimator != "exact"
        or not _is_whole(config.meta_gradient.diagnose_every)
        or config.meta_gradient.diagnose_every <= 0,
        "meta_gradient.diagnose_every",
        "0 with the estimator exact: the others are compared with it",
    )
    checks.whole("meta_gradient.unroll", 0)


def _check_optimizers(checks: _Checks) -> None:
    for optimizer in ("main_optimizer", "meta_optimizer"):
        checks.positive(f"{optimizer}.learning_rate")
        checks.at_least(f"{optimizer}.momentum", 0, high=0.9999)
        for field in ("weight_decay", "clip_norm"):
            checks.at_least(f"{optimizer}.{field}", 0)
        checks.positive(f"{optimizer}.decay_factor")
        milestones = checks.get(f"{optimizer}.milestones")
        checks.expect(
            _are_whole(milestones) and list(milestones) == sorted(set(milestones)),
            f"{optimizer}.milestones",
            "whole epochs from 1 on, each later than the one before, such as (80, 100)",
        )


def _check_batches(checks: _Checks, num_devices: int) -> None:
    """Every device must get equally many rows of each part of a batch."""
    for field, parts in (
        ("noisy_batch_size", 1),
        ("clean_batch_size", 2 if checks.config.meta_gradient.mix_clean else 1),
    ):
        per = parts * num_devices
        halves = (
            f" (two halves, {num_devices} devices)" if parts == 2 else f" ({num_devices} devices)"
        )
        size = checks.get(field)
        checks.expect(
            _is_whole(size) and size > 0 and size % per == 0,
            field,
            f"a positive multiple of {per}{halves}",
        )
