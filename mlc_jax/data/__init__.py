"""Sources of examples, the order in which they are read, and the one reader.

Only `streaming` and `tfds` import TensorFlow. `source`, `dataset`, `folds`, `votes` and `show`
import neither TensorFlow nor JAX.
"""

from mlc_jax.data.source import UNKNOWN, ArraySource, IndexedSource, Source, Subset

__all__ = ["UNKNOWN", "ArraySource", "IndexedSource", "Source", "Subset"]
