"""Sources of examples, splits into clean and noisy, noise on labels, and the reader.

`load` is all that training from a config needs. TensorFlow is imported by `loader` and where a
source reads, nowhere else but for the TensorBoard writer.
"""

from mlc_jax.data.datasets import Dataset, load
from mlc_jax.data.source import UNKNOWN, ArraySource, IndexedSource, Source, Subset

__all__ = ["UNKNOWN", "ArraySource", "Dataset", "IndexedSource", "Source", "Subset", "load"]
