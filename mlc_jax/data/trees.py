"""Trees of arrays, like JAX's. A single array, the usual case, needs no import of JAX."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Tree = Any  # A pytree of arrays with one leading axis of examples.


class Structure:
    """A tree without its leaves; for a single array it is empty."""

    def __init__(self, treedef: Any = None):
        self._treedef = treedef

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Structure):
            return NotImplemented
        if self._treedef is None or other._treedef is None:
            return self._treedef is other._treedef
        return bool(self._treedef == other._treedef)

    def __hash__(self) -> int:
        return hash(self._treedef)

    def unflatten(self, leaves: Sequence[Any]) -> Tree:
        """The tree of these leaves."""
        return leaves[0] if self._treedef is None else self._treedef.unflatten(leaves)


def flatten(tree: Tree) -> tuple[list[Any], Structure]:
    """Leaves, and the structure around them."""
    if isinstance(tree, np.ndarray):
        return [tree], Structure()
    import jax

    leaves, treedef = jax.tree.flatten(tree)
    return leaves, Structure(None if jax.tree_util.treedef_is_leaf(treedef) else treedef)


def leaves(tree: Tree) -> list[Any]:
    return flatten(tree)[0]


def map_leaves(fun: Callable[..., Any], tree: Tree, *others: Tree) -> Tree:
    """Applies `fun` to each leaf."""
    if isinstance(tree, np.ndarray):
        return fun(tree, *others)
    import jax

    return jax.tree.map(fun, tree, *others)


def named_leaves(tree: Tree) -> list[tuple[str, Any]]:
    """Leaves with their paths, such as `['a'][0]`; a single array has an empty path."""
    if isinstance(tree, np.ndarray):
        return [("", tree)]
    import jax

    return [(jax.tree_util.keystr(path), leaf) for path, leaf in jax.tree.leaves_with_path(tree)]
