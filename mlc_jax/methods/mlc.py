"""Meta Label Correction.

Source: Zheng, Awadallah, Dumais (2021), "Meta Label Correction for Noisy Label Learning".
"""

import dataclasses
from typing import ClassVar, cast

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from mlc_jax.core import InnerLoss, Labelled, MetaState, Metrics, Params, TrainState, pmean
from mlc_jax.errors import expect
from mlc_jax.methods.blocks import PLAIN, bilevel_method
from mlc_jax.methods.types import BilevelMethod, Binding, BoundMethod, Hook, Seen
from mlc_jax.models import LabelCorrectionNetwork

# The weights of Tanaka et al. (2018) for symmetric noise.
ROBUST = InnerLoss(mixup=1.0, prior_weight=1.2, entropy_weight=0.8, hand_over=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLC(BilevelMethod):
    """The classifier learns labels that the LCN rewrites; the LCN learns from the clean loss.

    Attributes:
      lcn: the label correction network, a Flax module: (features `[B, F]`, given labels `[B]`, the
        classifier's logits `[B, C]`) -> soft labels `[B, C]`. With an attribute `takes_votes` that
        is true, given labels are those of all sources, `[B, S]`, -1 where one said nothing; else
        they are the majority vote.
      inner_loss: terms of the classifier's loss beyond cross-entropy on the LCN's labels.
      pair_weight: gamma, weight of `CE(LCN(h, y'), y)`, the LCN's cross-entropy on clean rows with
        a known given label. It adds to the meta-gradient. The paper has no such rows.
    """

    name: ClassVar[str] = "mlc"
    lcn: nn.Module
    inner_loss: InnerLoss = PLAIN
    pair_weight: float = 0.0

    @classmethod
    def default_form(cls, *, paired: bool) -> str:
        """The form of `LabelCorrectionNetwork` that a config makes for this method by default.

        Args:
          paired: whether given labels of clean rows are known.
        """
        del paired
        return "network"

    @property
    def takes_votes(self) -> bool:
        return bool(getattr(self.lcn, "takes_votes", False))

    def build(self, binding: Binding) -> BoundMethod:
        classes = getattr(self.lcn, "num_classes", binding.num_classes)  # A user's LCN may lack it.
        expected = f"{binding.num_classes}, as the classifier has"
        expect(classes == binding.num_classes, "lcn.num_classes", classes, expected)

        def init_lcn(rng: chex.PRNGKey, features: jax.Array) -> tuple[Params, None]:
            shape = (1, binding.num_sources) if self.takes_votes else (1,)
            labels, logits = jnp.zeros(shape, jnp.int32), jnp.zeros((1, binding.num_classes))
            return self.lcn.init(rng, features, labels, logits)["params"], None

        def targets(
            meta_params: Params, features: jax.Array, logits: jax.Array, labels: jax.Array
        ) -> jax.Array:
            """Corrected labels: the LCN's distribution over the classes."""
            return cast(
                jax.Array, self.lcn.apply({"params": meta_params}, features, labels, logits)
            )

        def correct_labels(
            state: TrainState, features: jax.Array, logits: jax.Array, labels: jax.Array
        ) -> jax.Array:
            return targets(cast(MetaState, state.meta).params, features, logits, labels)

        def pair_loss(
            meta_params: Params, extra: None, features: jax.Array, logits: jax.Array,
            clean: Labelled,
        ) -> tuple[jax.Array, tuple[None, Metrics]]:  # fmt: skip
            """The loss on this device's slice; its mean over devices is the mean over all pairs."""
            if clean.given is None:
                return jnp.zeros(()), (extra, {})
            given = clean.given if self.takes_votes else jnp.maximum(clean.given, 0)
            said = targets(meta_params, features, logits, given)
            is_known = jnp.any(clean.given.reshape(len(given), -1) >= 0, axis=1)
            known = is_known.astype(said.dtype)
            true = jnp.take_along_axis(said, clean.labels[:, None], axis=1)[:, 0]
            per_pair = -jnp.log(jnp.maximum(true, jnp.finfo(said.dtype).tiny))
            share = pmean(jnp.mean(known), binding.axis_name)
            loss = jnp.mean(known * per_pair) / jnp.where(share > 0, share, 1)
            return self.pair_weight * loss, (extra, {"pair_loss": loss})

        bound = bilevel_method(
            self, binding, targets, init_lcn, correct_labels,
            rule=self.inner_loss, auxiliary=pair_loss if self.pair_weight else None,
        )  # fmt: skip
        if not isinstance(self.lcn, LabelCorrectionNetwork) or self.lcn.form == "network":
            return bound
        lcn = self.lcn

        def count_pairs(state: TrainState, seen: Seen) -> TrainState:
            if seen.given is None:
                return state
            meta = cast(MetaState, state.meta)
            params = lcn.start_from_pairs(meta.params, seen.labels, seen.given)
            return state.replace(meta=meta.replace(params=params))

        (phase,) = bound.phases
        return bound._replace(phases=(phase._replace(before=Hook("clean", count_pairs)),))


@dataclasses.dataclass(frozen=True, kw_only=True)
class RobustMLC(MLC):
    """MLC with other defaults: it starts from the given labels and does not memorise them.

    As the clean labels are fitted, the LCN's labels replace the given ones, and the classifier is
    regularised more (`InnerLoss`). Pairs of given and true label teach the LCN.
    """

    name: ClassVar[str] = "robust_mlc"
    inner_loss: InnerLoss = ROBUST
    pair_weight: float = 0.1

    @classmethod
    def default_form(cls, *, paired: bool) -> str:
        """Bayes' rule if its matrix can start from counts; else the paper's network."""
        return "posterior" if paired else "network"
