"""The honest baselines: cross-entropy on everything, on the clean and on the noisy labels alone.

They make the same number of updates as MLC, on batches of the same sizes; `cross_entropy` and
`clean_only` spend the same clean labels.
"""

from mlc_jax.methods.base import (
    Method,
    MethodInputs,
    clean_part,
    noisy_and_clean,
    noisy_part,
    supervised,
)


def cross_entropy(inputs: MethodInputs) -> Method:
    """Learns the noisy labels as given, and the clean ones beside them."""
    return supervised(inputs, noisy_and_clean)


def clean_only(inputs: MethodInputs) -> Method:
    """Never looks at a noisy example."""
    return supervised(inputs, clean_part)


def noisy_only(inputs: MethodInputs) -> Method:
    """Never looks at a clean example."""
    return supervised(inputs, noisy_part, uses_clean=False)
