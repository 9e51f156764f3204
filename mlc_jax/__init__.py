"""Meta Label Correction for noisy labels, in JAX and Flax.

import mlc_jax as mlc

corrector = mlc.LabelCorrector()
corrector.fit(X, y, checked=checked)  # checked: None where nobody looked
print(corrector.result_.verdict)
corrector.labels_, corrector.label_quality_, corrector.predict_proba(X_new)
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# Imported on first use: JAX and Flax take seconds to import, and a command that only rejects its
# flags needs neither.
_PLACES = {
    "Examples": "mlc_jax.examples",
    "InnerLoss": "mlc_jax.core",
    "PictureReader": "mlc_jax.encoders.pictures",
    "Result": "mlc_jax.result",
    "LabelCorrector": "mlc_jax.labels.estimator",
    "TextReader": "mlc_jax.encoders.encoding",
    "correct_labels": "mlc_jax.labels.correct",
    "fit": "mlc_jax.api",
    "load": "mlc_jax.api",
    "adam": "mlc_jax.core.optimizers",
    "adamw": "mlc_jax.core.optimizers",
    "amsgrad": "mlc_jax.core.optimizers",
    "sgd": "mlc_jax.core.optimizers",
}
_MODULES = ("estimators", "methods", "models")

__all__ = [
    "Examples",
    "InnerLoss",
    "LabelCorrector",
    "PictureReader",
    "Result",
    "TextReader",
    "__version__",
    "adam",
    "adamw",
    "amsgrad",
    "correct_labels",
    "estimators",
    "fit",
    "load",
    "methods",
    "models",
    "sgd",
]

if TYPE_CHECKING:
    from mlc_jax import estimators, methods, models
    from mlc_jax.api import fit, load
    from mlc_jax.core import InnerLoss
    from mlc_jax.core.optimizers import adam, adamw, amsgrad, sgd
    from mlc_jax.encoders.encoding import TextReader
    from mlc_jax.encoders.pictures import PictureReader
    from mlc_jax.examples import Examples
    from mlc_jax.labels.correct import correct_labels
    from mlc_jax.labels.estimator import LabelCorrector
    from mlc_jax.result import Result


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"mlc_jax.{name}")
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    raise AttributeError(f"module 'mlc_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
