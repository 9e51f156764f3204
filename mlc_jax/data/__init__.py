"""Sources of examples, the order in which they are read, and the one reader.

TensorFlow is imported by `streaming` alone, for sources that it reads, and by `tfds`. `source`,
`dataset`, `folds`, `votes` and `show` import neither it nor JAX.
"""

from mlc_jax.data.source import UNKNOWN, ArraySource, IndexedSource, Source, Subset

__all__ = ["UNKNOWN", "ArraySource", "IndexedSource", "Source", "Subset"]
