from mlc_jax.presets.digits import __doc__ as __doc__
from mlc_jax.presets.digits import get_config as get_config
