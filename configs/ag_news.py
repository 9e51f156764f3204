from mlc_jax.presets.ag_news import __doc__ as __doc__
from mlc_jax.presets.ag_news import get_config as get_config
