from mlc_jax.presets.cifar100 import __doc__ as __doc__
from mlc_jax.presets.cifar100 import get_config as get_config
