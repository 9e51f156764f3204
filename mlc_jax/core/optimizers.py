"""Optimizers and learning-rate schedules, from optax: described in epochs, then bound to updates.

`sgd`, `adam`, `amsgrad` and `adamw` describe an optimizer (`OptimizerSpec`); `bind` turns it into
an optax transformation once it is known how many updates there are. All of them can be
differentiated through, parameter groups, clipping and schedules included.

Weight decay is the L2 kind for all but `adamw`: added to the gradient of every parameter before
momentum, which is the published setting, biases and batch-norm included. A group can leave it out.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import chex
import jax
import jax.numpy as jnp
import optax

from mlc_jax.core.groups import (
    Groups,
    add_weight_decay,
    as_groups,
    in_groups,
    is_number,
    partitioned,
)
from mlc_jax.errors import expect

OPTIMIZERS = ("sgd", "adam", "amsgrad", "adamw")
SCHEDULES = ("constant", "step", "cosine", "linear")

# Added under Adam's square root, which has no derivative at a second moment of zero. It changes an
# update by at most as much as `eps` = 1e-8.
EPS_ROOT = 1e-16


class AmsgradState(NamedTuple):
    count: chex.Array
    mu: optax.Updates
    nu: optax.Updates
    nu_max: optax.Updates


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerSpec:
    """Plain description of an optimizer and its schedule, in epochs.

    A setting that the optimizer or the schedule does not read, such as Adam's momentum, has no
    effect.

    Attributes:
      name: one of `OPTIMIZERS`.
      learning_rate: the largest of the schedule.
      momentum, nesterov: only for `sgd`.
      weight_decay: factor on each parameter; the product is added to its gradient, or for `adamw`
        to its update.
      clip_norm: largest norm of the gradient over all trained parameters, before weight decay; 0
        does not clip.
      normalize: divide the gradient over all trained parameters by its norm, before weight decay; a
        gradient of zero stays zero. It replaces `clip_norm`. A meta-gradient fades by orders of
        magnitude as the classifier fits its clean labels, while Adam still divides by its former
        size.
      schedule: `constant`; `step`, times `decay_factor` at each milestone; `cosine` or `linear`,
        down to zero after the last update.
      milestones: epochs at which `step` decays, counted from the first update.
      decay_factor: used by `step`.
      warmup_epochs: epochs of linear warm-up, rounded to whole updates. Update t of W, from t = 1
        on, has t / W of the learning rate. The schedule fills the rest of the run.
      b1, b2: decay of the first and the second moment; used by all but `sgd`.
      groups: parameters to be trained differently, as `Group` or as plain tuples of its fields. The
        first group that matches a parameter counts.

    Raises:
      InputError: a wrong value. The message names it and what would be right.
    """

    name: str
    learning_rate: float
    momentum: float = 0.0
    nesterov: bool = False
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    normalize: bool = False
    schedule: str = "constant"
    milestones: Sequence[int] = ()
    decay_factor: float = 0.1
    warmup_epochs: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    groups: Groups = ()

    def __post_init__(self) -> None:
        """Checks every value; turns sequences into tuples, so that a spec can be hashed."""
        expect(self.name in OPTIMIZERS, "name", self.name, _one_of(OPTIMIZERS))
        expect(self.schedule in SCHEDULES, "schedule", self.schedule, _one_of(SCHEDULES))
        for field in ("learning_rate", "decay_factor"):
            value = getattr(self, field)
            expect(is_number(value) and value > 0, field, value, "a positive, finite number")
        for field in ("weight_decay", "clip_norm", "warmup_epochs"):
            value = getattr(self, field)
            expect(is_number(value) and value >= 0, field, value, "a finite number, at least 0")
        for field in ("momentum", "b1", "b2"):
            value = getattr(self, field)
            expect(is_number(value) and 0 <= value < 1, field, value, "a number from 0 to below 1")
        for field in ("nesterov", "normalize"):
            value = getattr(self, field)
            expect(isinstance(value, bool), field, value, "True or False")
        expect(
            not (self.normalize and self.clip_norm),
            "normalize",
            self.normalize,
            f"False with clip_norm={self.clip_norm:g}: a norm of one needs no clipping",
        )
        expect(
            _are_epochs(self.milestones),
            "milestones",
            self.milestones,
            "whole epochs from 1 on, each later than the one before, such as (80, 100)",
        )
        expect(
            self.schedule != "step" or all(e > self.warmup_epochs for e in self.milestones),
            "milestones",
            self.milestones,
            f"epochs after the warm-up, which takes {self.warmup_epochs:g}",
        )
        object.__setattr__(self, "milestones", tuple(self.milestones))
        object.__setattr__(self, "groups", as_groups(self.groups))

    def bind(self, *, num_updates: int, updates_per_epoch: int) -> optax.GradientTransformation:
        """The optimizer for a run of `num_updates` updates.

        Args:
          num_updates: updates of the whole run.
          updates_per_epoch: converts epochs to updates.

        Raises:
          InputError: the warm-up is as long as the run. The transformation's `init` raises it for a
            group that no parameter belongs to.
        """
        schedule = create_schedule(
            self.schedule,
            self.learning_rate,
            num_steps=num_updates,
            steps_per_epoch=updates_per_epoch,
            milestones=self.milestones,
            decay_factor=self.decay_factor,
            warmup_epochs=self.warmup_epochs,
        )
        return create_optimizer(
            self.name,
            schedule,
            momentum=self.momentum,
            nesterov=self.nesterov,
            weight_decay=self.weight_decay,
            clip_norm=self.clip_norm,
            normalize=self.normalize,
            b1=self.b1,
            b2=self.b2,
            groups=self.groups,
        )


Optimizer: TypeAlias = OptimizerSpec | optax.GradientTransformation


def bind(
    optimizer: Optimizer, *, num_updates: int, updates_per_epoch: int
) -> optax.GradientTransformation:
    """Binds a spec to a run's updates, see `OptimizerSpec.bind`; optax's own keep their schedules.

    The result's `update` takes a second gradient, `auxiliary`, see `add_auxiliary`.

    Raises:
      InputError: `optimizer` is neither, or does not suit the run.
    """
    if isinstance(optimizer, OptimizerSpec):
        return optimizer.bind(num_updates=num_updates, updates_per_epoch=updates_per_epoch)
    expect(
        isinstance(optimizer, optax.GradientTransformation),
        "optimizer",
        optimizer,
        f"one made by {', '.join(OPTIMIZERS)}, or an optax.GradientTransformation",
    )
    return add_auxiliary(optimizer, before=True)


def freeze(optimizer: Optimizer, pattern: str) -> Optimizer:
    """Freezes the parameters with these paths; the optimizer keeps no state for them.

    Args:
      optimizer: a spec, which gets them as its first group, or an optax transformation.
      pattern: regular expression, see `Group`.
    """
    if isinstance(optimizer, OptimizerSpec):
        return dataclasses.replace(optimizer, groups=((pattern, 0.0, None), *optimizer.groups))
    return partitioned(optimizer, as_groups([(pattern, 0.0)]))


def sgd(
    learning_rate: float, *, momentum: float = 0.0, nesterov: bool = False,
    weight_decay: float = 0.0, clip_norm: float = 0.0, normalize: bool = False,
    schedule: str = "constant", milestones: Sequence[int] = (), decay_factor: float = 0.1,
    warmup_epochs: float = 0.0, groups: Groups = (),
) -> OptimizerSpec:  # fmt: skip
    """Stochastic gradient descent with L2 weight decay, as PyTorch's; see `OptimizerSpec`."""
    return OptimizerSpec(
        name="sgd", learning_rate=learning_rate, momentum=momentum, nesterov=nesterov,
        weight_decay=weight_decay, clip_norm=clip_norm, normalize=normalize, schedule=schedule,
        milestones=milestones, decay_factor=decay_factor, warmup_epochs=warmup_epochs,
        groups=groups,
    )  # fmt: skip


def adam(
    learning_rate: float, *, b1: float = 0.9, b2: float = 0.999,
    weight_decay: float = 0.0, clip_norm: float = 0.0, normalize: bool = False,
    schedule: str = "constant", milestones: Sequence[int] = (), decay_factor: float = 0.1,
    warmup_epochs: float = 0.0, groups: Groups = (),
) -> OptimizerSpec:  # fmt: skip
    """Adam with L2 weight decay, as PyTorch's; see `OptimizerSpec`.

    Source: Kingma and Ba (2015), "Adam: A Method for Stochastic Optimization".
    """
    return OptimizerSpec(
        name="adam", learning_rate=learning_rate, b1=b1, b2=b2,
        weight_decay=weight_decay, clip_norm=clip_norm, normalize=normalize, schedule=schedule,
        milestones=milestones, decay_factor=decay_factor, warmup_epochs=warmup_epochs,
        groups=groups,
    )  # fmt: skip


def amsgrad(
    learning_rate: float, *, b1: float = 0.9, b2: float = 0.999,
    weight_decay: float = 0.0, clip_norm: float = 0.0, normalize: bool = False,
    schedule: str = "constant", milestones: Sequence[int] = (), decay_factor: float = 0.1,
    warmup_epochs: float = 0.0, groups: Groups = (),
) -> OptimizerSpec:  # fmt: skip
    """AMSGrad with L2 weight decay, as PyTorch's; see `scale_by_amsgrad` and `OptimizerSpec`."""
    return OptimizerSpec(
        name="amsgrad", learning_rate=learning_rate, b1=b1, b2=b2,
        weight_decay=weight_decay, clip_norm=clip_norm, normalize=normalize, schedule=schedule,
        milestones=milestones, decay_factor=decay_factor, warmup_epochs=warmup_epochs,
        groups=groups,
    )  # fmt: skip


def adamw(
    learning_rate: float, *, b1: float = 0.9, b2: float = 0.999,
    weight_decay: float = 0.01, clip_norm: float = 0.0, normalize: bool = False,
    schedule: str = "constant", milestones: Sequence[int] = (), decay_factor: float = 0.1,
    warmup_epochs: float = 0.0, groups: Groups = (),
) -> OptimizerSpec:  # fmt: skip
    """Adam with decoupled weight decay; see `OptimizerSpec`.

    In each update every parameter shrinks by the learning rate times `weight_decay`, as in PyTorch
    and optax. That is the paper's `eta_t * lambda`, its `lambda` being rate times `weight_decay`.

    Source: Loshchilov and Hutter (2019), "Decoupled Weight Decay Regularization", algorithm 2.
    """
    return OptimizerSpec(
        name="adamw", learning_rate=learning_rate, b1=b1, b2=b2,
        weight_decay=weight_decay, clip_norm=clip_norm, normalize=normalize, schedule=schedule,
        milestones=milestones, decay_factor=decay_factor, warmup_epochs=warmup_epochs,
        groups=groups,
    )  # fmt: skip


def create_schedule(
    name: str,
    learning_rate: float,
    *,
    num_steps: int,
    steps_per_epoch: int,
    milestones: Sequence[int] = (),
    decay_factor: float = 0.1,
    warmup_epochs: float = 0.0,
) -> optax.Schedule:
    """Learning rate as a function of the number of updates made before.

    Args:
      name, learning_rate, milestones, decay_factor, warmup_epochs: see `OptimizerSpec`.
      num_steps: updates of the whole run.
      steps_per_epoch: updates per epoch.

    Raises:
      InputError: an unknown name, or a warm-up that is as long as the run.
    """
    expect(name in SCHEDULES, "schedule", name, _one_of(SCHEDULES))
    warmup = round(warmup_epochs * steps_per_epoch)
    if warmup:
        run = f"less than the run, which takes {num_steps / steps_per_epoch:g} epochs"
        expect(warmup < num_steps, "warmup_epochs", warmup_epochs, run)
    if name == "constant":
        schedule = optax.constant_schedule(learning_rate)
    elif name == "step":
        # `join_schedules` counts from the end of the warm-up.
        boundaries = {epoch * steps_per_epoch - warmup: decay_factor for epoch in milestones}
        schedule = optax.piecewise_constant_schedule(learning_rate, boundaries)
    elif name == "cosine":
        schedule = optax.cosine_decay_schedule(learning_rate, decay_steps=num_steps - warmup)
    else:
        schedule = optax.linear_schedule(learning_rate, 0.0, num_steps - warmup)
    if not warmup:
        return schedule
    # The warm-up does not start at zero: no meta-gradient passes through an update of rate zero.
    step = learning_rate / warmup
    rise = optax.linear_schedule(step, learning_rate + step, warmup)
    return optax.join_schedules([rise, schedule], [warmup])


def create_optimizer(
    name: str,
    learning_rate: optax.ScalarOrSchedule,
    *,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    clip_norm: float = 0.0,
    normalize: bool = False,
    b1: float = 0.9,
    b2: float = 0.999,
    groups: Groups = (),
) -> optax.GradientTransformation:
    """A differentiable optimizer.

    Args:
      name: one of `OPTIMIZERS`; `amsgrad` is PyTorch's (see `scale_by_amsgrad`).
      learning_rate: a number, or a schedule.
      momentum, nesterov, weight_decay, clip_norm, normalize, b1, b2, groups: see `OptimizerSpec`.

    Raises:
      InputError: an unknown name or a bad group; by `init`, a group that no parameter belongs to.
    """
    expect(name in OPTIMIZERS, "optimizer", name, _one_of(OPTIMIZERS))
    groups = as_groups(groups)
    if name == "sgd":
        scale = optax.trace(momentum, nesterov) if momentum else optax.identity()
    elif name == "amsgrad":
        scale = scale_by_amsgrad(b1, b2)
    else:
        scale = optax.scale_by_adam(b1, b2, eps_root=EPS_ROOT)
    if normalize:
        clip = to_unit_norm()
    else:
        clip = optax.clip_by_global_norm(clip_norm) if clip_norm else optax.identity()
    clip = add_auxiliary(clip)
    decay = add_weight_decay(weight_decay, groups)
    rules = [clip, scale, decay] if name == "adamw" else [clip, decay, scale]
    rules.append(optax.scale_by_learning_rate(learning_rate))
    return in_groups(rules, groups) if groups else optax.chain(*rules)


def add_auxiliary(
    tx: optax.GradientTransformation, *, before: bool = False
) -> optax.GradientTransformationExtraArgs:
    """`tx` whose `update` takes a second gradient, `auxiliary`, and adds it to the updates.

    A gradient that is added after clipping or normalisation is not clipped.

    Args:
      tx: its state does not change.
      before: whether to add to the input of `tx` rather than to its output.
    """

    def update(
        updates: optax.Updates,
        state: optax.OptState,
        params: optax.Params | None = None,
        *,
        auxiliary: optax.Updates | None = None,
        **others: Any,
    ) -> tuple[optax.Updates, optax.OptState]:
        tx_update = optax.with_extra_args_support(tx).update
        if auxiliary is not None and before:
            updates = _sum(updates, auxiliary)
        updates, state = tx_update(updates, state, params, **others)
        if auxiliary is not None and not before:
            updates = _sum(updates, auxiliary)
        return updates, state

    return optax.GradientTransformationExtraArgs(tx.init, update)


def _sum(updates: optax.Updates, auxiliary: optax.Updates) -> optax.Updates:
    """Adds two gradients; masked (frozen) parameters stay masked."""
    masked = lambda x: isinstance(x, optax.MaskedNode)  # noqa: E731
    add = lambda x, y: x if masked(x) else x + y  # noqa: E731
    return jax.tree.map(add, updates, auxiliary, is_leaf=masked)


def to_unit_norm() -> optax.GradientTransformation:
    """Divides a gradient by its global norm; zero stays zero, with a finite derivative."""

    def update(
        updates: optax.Updates, state: optax.EmptyState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, optax.EmptyState]:
        del params
        # Divide by the largest entry first: the squares of a faded gradient underflow in float32.
        # Neither the direction nor its derivative depends on this scale, so it may be a constant.
        # For a gradient of zero the scale is infinity, which makes the derivative zero, too.
        largest = jax.lax.stop_gradient(optax.tree.norm(updates, jnp.inf))
        divisor = jnp.where(largest > 0, largest, jnp.inf)
        updates = jax.tree.map(lambda g: g / divisor, updates)
        square = optax.tree.norm(updates, squared=True)
        scale = jax.lax.rsqrt(jnp.where(square > 0, square, 1))
        return optax.tree.scale(scale, updates), state

    return optax.GradientTransformation(optax.init_empty_state, update)


def scale_by_amsgrad(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformation:
    """AMSGrad with the maximum over *uncorrected* second moments, as in PyTorch.

    `optax.scale_by_amsgrad` takes the maximum after bias correction. From the second update on the
    two differ (by 10 % on the reference cases in tests/data, which are PyTorch's).

    Source: Reddi et al. (2018), "On the Convergence of Adam and Beyond".
    """

    def init(params: optax.Params) -> AmsgradState:
        zeros = lambda: optax.tree.zeros_like(params)  # noqa: E731
        return AmsgradState(jnp.zeros((), jnp.int32), zeros(), zeros(), zeros())

    def update(
        updates: optax.Updates, state: AmsgradState, params: optax.Params | None = None
    ) -> tuple[optax.Updates, AmsgradState]:
        del params
        count = state.count + 1
        mu = optax.tree.update_moment(updates, state.mu, b1, 1)
        nu = optax.tree.update_moment(updates, state.nu, b2, 2)
        nu_max = jax.tree.map(jnp.maximum, state.nu_max, nu)

        def direction(m: jax.Array, v: jax.Array) -> jax.Array:
            t = count.astype(m.dtype)
            seen = v > 0  # At 0 the derivative of the square root is infinite.
            root = jnp.where(seen, jnp.sqrt(jnp.where(seen, v, 1) / (1 - b2**t)), 0)
            return m / (1 - b1**t) / (root + eps)

        updates = jax.tree.map(direction, mu, nu_max)
        return updates, AmsgradState(count, mu, nu, nu_max)

    return optax.GradientTransformation(init, update)


def _are_epochs(values: Any) -> bool:
    """Whether `values` is a (maybe empty) sequence of rising whole numbers from 1 on."""
    return (
        isinstance(values, tuple | list)
        and all(is_number(x) and x == int(x) and x > 0 for x in values)
        and list(values) == sorted(set(values))
    )


def _one_of(names: Sequence[str]) -> str:
    return "one of " + ", ".join(names)
