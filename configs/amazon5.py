from mlc_jax.presets.amazon5 import __doc__ as __doc__
from mlc_jax.presets.amazon5 import get_config as get_config
