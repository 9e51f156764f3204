"""The honest baselines: cross-entropy on everything, and on the clean labels alone.

Both spend the same clean labels and make the same number of updates as MLC. They train on the whole
clean batch: without an outer loss there is nothing to keep half of it for.
"""

import jax
import jax.numpy as jnp

from mlc_jax.bilevel import Batch, Examples
from mlc_jax.methods.base import Method, MethodInputs, supervised


def cross_entropy(inputs: MethodInputs) -> Method:
    """Learns the noisy labels as given, and the clean ones beside them."""
    return supervised(inputs, lambda batch: Batch(batch.noisy, _all_clean(batch), None))


def clean_only(inputs: MethodInputs) -> Method:
    """Never looks at a noisy example."""
    return supervised(inputs, lambda batch: Batch(None, _all_clean(batch), None))


def _all_clean(batch: Batch) -> Examples:
    """Both halves of the clean batch, `[k, B, ...]`."""
    parts = [part for part in (batch.clean_inner, batch.clean_outer) if part is not None]
    return jax.tree.map(lambda *xs: jnp.concatenate(xs, axis=1), *parts)
