"""Every setting, with its default: `mlc-jax settings` prints them. Configs override this.

    python -m mlc_jax.main --config=configs/default.py --workdir=DIR

The defaults are the paper's for CIFAR-10 where it publishes any; `mlc-jax settings cifar10` has the
command, the runtime and the accuracy.
"""

from mlc_jax.config import get_config

__all__ = ["get_config"]
