"""Parameter groups: learning rate, weight decay or freezing by a parameter's path."""

import math
import numbers
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import optax

from mlc_jax.errors import InputError, expect

# The number of parameter paths that an error message lists.
PATHS_SHOWN = 6


class Group(NamedTuple):
    """Training settings for some of the parameters.

    Attributes:
      pattern: regular expression, searched for in a parameter's path, such as `hidden1/kernel`.
      factor: multiplies the learning rate. 0 freezes: the parameter never moves, is not decayed,
        does not count for `clip_norm` and `normalize`, and the optimizer keeps no state for it.
      weight_decay: replaces the optimizer's own. None keeps the optimizer's, 0 turns it off.
    """

    pattern: str
    factor: float = 1.0
    weight_decay: float | None = None


Groups = Sequence[tuple[Any, ...]]  # `Group`s, or plain tuples of their fields.


def add_weight_decay(weight_decay: float, groups: tuple[Group, ...]) -> Any:
    """Adds weight decay times the parameter to each update; a group may replace `weight_decay`."""
    if not groups:
        return optax.add_decayed_weights(weight_decay) if weight_decay else optax.identity()

    def decayed(path: Any, update: jax.Array, param: jax.Array) -> jax.Array:
        rate = _group_of(path, groups).weight_decay
        rate = weight_decay if rate is None else rate
        return update + rate * param if rate else update

    return optax.stateless(lambda updates, params: jax.tree.map_with_path(decayed, updates, params))


def in_groups(rules: list[Any], groups: tuple[Group, ...]) -> optax.GradientTransformation:
    """The chain of `rules` for all trained parameters, with each group's factor on its rate.

    All groups share one chain: one update count, and one norm to clip or divide by. Its `init`
    raises InputError if a group has no parameters, or if no parameter is trained.
    """

    def scaled(path: Any, update: jax.Array) -> jax.Array:
        factor = _group_of(path, groups).factor
        return update if factor == 1 else factor * update

    factors = optax.stateless(lambda updates, _: jax.tree.map_with_path(scaled, updates))
    tx = partitioned(optax.chain(*rules, factors), groups)

    def init(params: optax.Params) -> optax.OptState:
        _check_matches(params, groups)
        return tx.init(params)

    return optax.GradientTransformationExtraArgs(init, tx.update)


def partitioned(
    tx: optax.GradientTransformation, groups: tuple[Group, ...]
) -> optax.GradientTransformation:
    """`tx` for all parameters except frozen ones, which it does not see."""
    if all(group.factor for group in groups):
        return tx
    return optax.partition({"trained": tx, "frozen": optax.set_to_zero()}, _labels(groups))


def _labels(groups: tuple[Group, ...]) -> Any:
    def label(path: Any, _: Any) -> str:
        return "trained" if _group_of(path, groups).factor else "frozen"

    return lambda params: jax.tree.map_with_path(label, params)


def _group_of(path: Any, groups: tuple[Group, ...]) -> Group:
    """The first group that matches the path, or the optimizer's own settings without a match."""
    name = path_name(path)
    return next((g for g in groups if re.search(g.pattern, name)), Group(""))


def path_name(path: Any) -> str:
    """The path of a leaf in messages and files: `main/opt_state/0/trace`.

    Dataclasses and named tuples are stored as dicts, and have the same names as those dicts.
    """
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _check_matches(params: optax.Params, groups: tuple[Group, ...]) -> None:
    """Raises InputError if a group has no parameters, or if no parameter is trained."""
    paths = [path for path, _ in jax.tree.leaves_with_path(params)]
    names = [path_name(path) for path in paths]
    more = f", ... ({len(names)} in all)" if len(names) > PATHS_SHOWN else ""
    some = ", ".join(names[:PATHS_SHOWN]) + more
    taken = [_group_of(path, groups) for path in paths]
    for group in groups:
        matched = any(re.search(group.pattern, name) for name in names)
        expect(
            matched, "groups", group.pattern, f"a pattern that matches a parameter's path: {some}"
        )
        expect(
            group in taken,
            "groups",
            group.pattern,
            "a pattern that comes before those that match all of its parameters, too",
        )
    expect(
        any(group.factor for group in taken),
        "groups",
        [group.pattern for group in groups],
        f"some parameters that are not frozen: {some}",
    )


def as_groups(groups: Any) -> tuple[Group, ...]:
    """Checks groups and turns plain tuples, which the command line gives, into `Group`s.

    Raises:
      InputError: a value is wrong. The message names it and what would be right.
    """
    form = "tuples (pattern, factor, weight_decay), such as ('bias', 1.0, 0.0)"
    expect(isinstance(groups, tuple | list), "groups", groups, form)
    checked = []
    for i, group in enumerate(groups):
        name = f"groups[{i}]"
        expect(isinstance(group, tuple | list) and 1 <= len(group) <= 3, name, group, form)
        pattern, factor, decay = group = Group(*group)
        expect(isinstance(pattern, str), f"{name}.pattern", pattern, "a regular expression")
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(
                f"{name}.pattern: got {pattern!r}, expected a regular expression ({error})"
            ) from error
        at_least_0 = "a finite number, at least 0"
        expect(is_number(factor) and factor >= 0, f"{name}.factor", factor, at_least_0)
        expect(
            decay is None or (is_number(decay) and decay >= 0),
            f"{name}.weight_decay",
            decay,
            f"{at_least_0}, or None for the optimizer's own",
        )
        checked.append(group)
    return tuple(checked)


def is_number(value: Any) -> bool:
    """Whether it is a finite real number, and not a bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool) and math.isfinite(value)
