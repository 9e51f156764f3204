"""Sources of examples, splits into clean and noisy, and tf.data pipelines.

`load` is all that training needs. TensorFlow is imported here and below, nowhere else but for the
TensorBoard writer.
"""

from mlc_jax.data.datasets import Dataset, load
from mlc_jax.data.pipeline import Pipeline

__all__ = ["Dataset", "Pipeline", "load"]
