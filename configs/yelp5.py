from mlc_jax.presets.yelp5 import __doc__ as __doc__
from mlc_jax.presets.yelp5 import get_config as get_config
