"""Ways to train with noisy labels, by name: a new one is one file and one line here."""

from mlc_jax.methods.base import Method, MethodInputs
from mlc_jax.methods.cross_entropy import clean_only, cross_entropy, noisy_only
from mlc_jax.methods.distillation import distillation
from mlc_jax.methods.forward import forward
from mlc_jax.methods.glc import glc
from mlc_jax.methods.joint import joint
from mlc_jax.methods.l2rw import l2rw
from mlc_jax.methods.meta_weight_net import meta_weight_net
from mlc_jax.methods.mlc import mlc
from mlc_jax.methods.mlnt import mlnt

METHODS = {
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
}

__all__ = ["METHODS", "Method", "MethodInputs"]
