"""Sources of examples, the order in which they are read, and the one reader.

TensorFlow is imported by `reading` and where a source reads, nowhere else but for the TensorBoard
writer.
"""

from mlc_jax.data.source import UNKNOWN, ArraySource, IndexedSource, Source, Subset

__all__ = ["UNKNOWN", "ArraySource", "IndexedSource", "Source", "Subset"]
