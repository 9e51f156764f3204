"""Methods that train with noisy labels: each has a file, a line here, and a name in `config`."""

from mlc_jax.methods.cross_entropy import CleanOnly as clean_only
from mlc_jax.methods.cross_entropy import CrossEntropy as cross_entropy
from mlc_jax.methods.cross_entropy import NoisyOnly as noisy_only
from mlc_jax.methods.cross_fit import CrossFit as cross_fit
from mlc_jax.methods.distillation import Distillation as distillation
from mlc_jax.methods.emlc import EMLC as emlc
from mlc_jax.methods.forward import Forward as forward
from mlc_jax.methods.glc import GLC as glc
from mlc_jax.methods.joint import Joint as joint
from mlc_jax.methods.l2rw import L2RW as l2rw
from mlc_jax.methods.meta_weight_net import MetaWeightNet as meta_weight_net
from mlc_jax.methods.mlc import MLC as mlc
from mlc_jax.methods.mlc import RobustMLC as robust_mlc
from mlc_jax.methods.mlnt import MLNT as mlnt
from mlc_jax.methods.self_training import SelfTraining as self_training
from mlc_jax.methods.types import BilevelMethod, BoundMethod, Method

METHODS: dict[str, type[Method]] = {
    "cross_entropy": cross_entropy,
    "clean_only": clean_only,
    "noisy_only": noisy_only,
    "forward": forward,
    "joint": joint,
    "mlnt": mlnt,
    "distillation": distillation,
    "l2rw": l2rw,
    "meta_weight_net": meta_weight_net,
    "glc": glc,
    "mlc": mlc,
    "self_training": self_training,
    "robust_mlc": robust_mlc,
    "emlc": emlc,
    "cross_fit": cross_fit,
}

__all__ = ["METHODS", "BilevelMethod", "BoundMethod", "Method", *METHODS]
