"""Trees of arrays, as JAX has them. A lone array, which most inputs are, needs no import of JAX."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Tree = Any  # A pytree of arrays with one leading axis of examples.


def is_lone(tree: Tree) -> bool:
    """Whether the tree is one array."""
    return isinstance(tree, np.ndarray)


def flatten(tree: Tree) -> tuple[list[Any], Any]:
    """Leaves, and the structure around them; None around a lone array."""
    if is_lone(tree):
        return [tree], None
    import jax

    leaves, structure = jax.tree.flatten(tree)
    return leaves, None if jax.tree_util.treedef_is_leaf(structure) else structure


def unflatten(structure: Any, leaves: Sequence[Any]) -> Tree:
    """The inverse of `flatten`."""
    if structure is None:
        return leaves[0]
    import jax

    return jax.tree.unflatten(structure, leaves)


def leaves(tree: Tree) -> list[Any]:
    return flatten(tree)[0]


def map_leaves(fun: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """The tree of what `fun` makes of each leaf."""
    if is_lone(tree):
        return fun(tree, *others)
    import jax

    return jax.tree.map(fun, tree, *others)


def named_leaves(tree: Tree) -> list[tuple[str, Any]]:
    """Leaves with what leads to them: `['a'][0]`; nothing to a lone array."""
    if is_lone(tree):
        return [("", tree)]
    import jax

    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)]
