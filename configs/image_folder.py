from mlc_jax.presets.image_folder import __doc__ as __doc__
from mlc_jax.presets.image_folder import get_config as get_config
