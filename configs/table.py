from mlc_jax.presets.table import __doc__ as __doc__
from mlc_jax.presets.table import get_config as get_config
