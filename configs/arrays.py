from mlc_jax.presets.arrays import __doc__ as __doc__
from mlc_jax.presets.arrays import get_config as get_config
