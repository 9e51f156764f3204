from mlc_jax.presets.yahoo import __doc__ as __doc__
from mlc_jax.presets.yahoo import get_config as get_config
