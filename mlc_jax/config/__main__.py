"""`python -m mlc_jax.config` prints every setting."""

from mlc_jax.config import describe

print(describe())
