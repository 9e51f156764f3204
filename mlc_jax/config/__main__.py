"""`python -m mlc_jax.config` prints every setting."""

from mlc_jax.config import describe
from mlc_jax.errors import closed_pipes_forgiven

with closed_pipes_forgiven():
    print(describe())
