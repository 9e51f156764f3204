from mlc_jax.presets.clothing1m import __doc__ as __doc__
from mlc_jax.presets.clothing1m import get_config as get_config
