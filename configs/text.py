from mlc_jax.presets.text import __doc__ as __doc__
from mlc_jax.presets.text import get_config as get_config
