"""Every setting with its default; `mlc-jax settings` prints them. Other configs override these.

    python -m mlc_jax.main --config=configs/default.py --workdir=DIR

The defaults are the paper's for CIFAR-10 where it publishes any. `mlc-jax settings cifar10` prints
the command, and says what has been run.
"""

from mlc_jax.config import get_config

__all__ = ["get_config"]
