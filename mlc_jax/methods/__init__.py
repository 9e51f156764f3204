"""Ways to train with noisy labels, by name: a new one is one file and one line here."""

from mlc_jax.methods.base import Method, MethodInputs
from mlc_jax.methods.cross_entropy import clean_only, cross_entropy
from mlc_jax.methods.mlc import mlc

METHODS = {"mlc": mlc, "cross_entropy": cross_entropy, "clean_only": clean_only}

__all__ = ["METHODS", "Method", "MethodInputs"]
