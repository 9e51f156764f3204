"""The inner loss, from a classifier's outputs and the values that the gradient holds fixed.

The plain form is cross-entropy on targets. `InnerLoss` adds terms to it. One number controls these
terms: how far the clean labels are fitted. So they need no schedule and no further labels.
"""

import dataclasses
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from mlc_jax.core import losses
from mlc_jax.core.types import Batch, Metrics
from mlc_jax.errors import expect

PRIORS = ("uniform", "targets")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InnerLoss:
    """Additions to plain cross-entropy on the targets; none by default.

    `f = clip(1 - L / log C, 0, 1)` says how far the clean labels are fitted. `L` is the
    cross-entropy on the step's clean inner half before the update. The regularisers have the
    strength `r = f ** power`.

    Attributes:
      mixup: parameter of the Beta distribution that mixing weights are drawn from, as in Zhang et
        al. (2018), "mixup"; 0 mixes nothing. Noisy and clean examples are mixed together:
        `x + r (1 - l) (x' - x)` with `l = max(b, 1 - b)`, and targets likewise.
      prior_weight: alpha, the weight of `r KL(prior || mean prediction)` on the noisy examples. It
        keeps labels from collapsing into one class (Tanaka et al. 2018).
      prior: one of `PRIORS`: `uniform` classes, or the mean of the batch's `targets`, the
        method's current labels of the noisy set.
      entropy_weight: beta, the weight of `r` times the mean entropy of predictions on the noisy
        examples. It keeps labels from staying soft (same source).
      power: how late the regularisers set in; with 0 they act at once, `r = 1`.
      hand_over: whether the classifier learns `(1 - f) onehot(y') + f q` in place of the targets
        `q`. Given labels come first, because networks learn right labels before wrong ones.

    Raises:
      InputError: a value is out of range.
    """

    mixup: float = 0.0
    prior_weight: float = 0.0
    prior: str = "uniform"
    entropy_weight: float = 0.0
    power: float = 4.0
    hand_over: bool = False

    def __post_init__(self) -> None:
        for name in ("mixup", "prior_weight", "entropy_weight"):
            expect(
                getattr(self, name) >= 0, f"inner_loss.{name}", getattr(self, name), "at least 0"
            )
        expect(self.prior in PRIORS, "inner_loss.prior", self.prior, "one of " + ", ".join(PRIORS))
        expect(
            self.power == 0 or self.power >= 1, "inner_loss.power", self.power, "0, or at least 1"
        )

    @property
    def regularizes(self) -> bool:
        """Whether the noisy examples' predictions are penalised."""
        return bool(self.prior_weight or self.entropy_weight)

    @property
    def needs_fit(self) -> bool:
        """Whether f is used; it needs clean examples."""
        ramps = bool(self.mixup or self.regularizes) and self.power > 0
        return self.hand_over or ramps

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the passes that the loss reads; others only give values that are held fixed."""
        if not self.mixup:
            return ("noisy", "clean")
        return ("mixed", "noisy") if self.regularizes else ("mixed",)

    def strength(self, fitted: jax.Array | None) -> jax.Array:
        """The regularisers' strength r, a scalar."""
        if self.power == 0 or fitted is None:
            return jnp.ones(())
        return fitted**self.power


class Output(NamedTuple):
    """Output of one pass of the classifier: logits `[B, C]` and features `[B, F]`."""

    logits: jax.Array
    features: jax.Array


# Outputs by pass: `noisy` and `clean` examples unmixed, `mixed` for both together.
Outputs = dict[str, Output]


class Held(NamedTuple):
    """Values that the inner gradient holds fixed, though they depend on the classifier.

    Attributes:
      targets: `[B, C]` for the noisy examples; None without any.
      fitted: f, see `InnerLoss`; None if it is not needed.
    """

    targets: jax.Array | None
    fitted: jax.Array | None


class Mixing(NamedTuple):
    """Which examples MixUp mixes, for n examples.

    Attributes:
      partners: `[n]`, a permutation.
      shares: `[n]`, `1 - l`, the partner's share at full strength, in [0, 1/2].
    """

    partners: jax.Array
    shares: jax.Array


def draw_mixing(rule: InnerLoss, size: int, rng: chex.PRNGKey) -> Mixing:
    """Draws partners and shares for `size` examples."""
    partner_rng, share_rng = jax.random.split(rng)
    b = jax.random.beta(share_rng, rule.mixup, rule.mixup, (size,))
    return Mixing(jax.random.permutation(partner_rng, size), jnp.minimum(b, 1 - b))


def mix(arrays: Any, mixing: Mixing, strength: jax.Array) -> Any:
    """Moves every example of a tree of arrays `[n, ...]` towards its partner.

    Raises:
      InputError: the arrays are not floating-point numbers.
    """

    def move(x: jax.Array) -> jax.Array:
        expect(
            jnp.issubdtype(x.dtype, jnp.floating),
            "inner_loss.mixup",
            strength,
            f"0 with inputs of {x.dtype}: only real numbers can be mixed",
        )
        amount = (strength * mixing.shares).astype(x.dtype)
        return x + amount.reshape(-1, *[1] * (x.ndim - 1)) * (x[mixing.partners] - x)

    return jax.tree.map(move, arrays)


def regularizers(
    logits: jax.Array, targets: jax.Array | None, axis_name: str | None
) -> tuple[jax.Array, jax.Array]:
    """`L_p` and `L_e` of Tanaka et al. (2018), in nats.

    `L_p` is the divergence of the mean prediction from the prior; the mean is over the batches of
    all devices. `L_e` is the mean entropy of the predictions.

    Args:
      logits: `[B, C]`.
      targets: `[B, C]`, whose mean is the prior; None for uniform classes.
      axis_name: pmap axis or None.
    """
    log_probs = jax.nn.log_softmax(logits)
    probs = jnp.exp(log_probs)
    mean = losses.pmean(jnp.mean(probs, axis=0), axis_name)
    if targets is None:
        num_classes = logits.shape[-1]
        prior = -jnp.mean(jnp.log(mean)) - jnp.log(jnp.asarray(num_classes, logits.dtype))
    else:
        share = losses.pmean(jnp.mean(targets, axis=0), axis_name)
        share /= jnp.sum(share)  # The sum is not one for weighted labels.
        prior = jnp.sum(jax.scipy.special.xlogy(share, share) - share * jnp.log(mean))
    entropy = -jnp.mean(jnp.sum(probs * log_probs, axis=-1))
    return prior, entropy


def inner_loss(
    rule: InnerLoss,
    outputs: Outputs,
    held: Held,
    batch: Batch,
    mixing: Mixing | None = None,
    axis_name: str | None = None,
) -> tuple[jax.Array, Metrics]:
    """Loss of the classifier on corrected noisy labels and on the inner clean half.

    `L = (B * L_noisy + B_c * L_clean) / (B + B_c)` ("Training with Soft Labels from LCN" in the
    paper), plus the terms of `rule`.

    Args:
      rule: see `InnerLoss`.
      outputs: the passes over the batch's parts, and over the mixed examples.
      held: targets of the noisy examples, and how far the clean ones are fitted.
      batch: its labels are read.
      mixing: pairs of noisy and clean examples, the noisy ones first; None mixes nothing.
      axis_name: pmap axis or None; the mean prediction is over all devices' examples.

    Returns:
      The scalar loss and metrics: `inner_loss`; `labels_kept`, the share of noisy examples whose
      target is largest at the given label, or at one that most sources gave; `clean_accuracy` on
      the clean half; and `fitted`, `prior` and `entropy` if they are used. `fitted` and `prior` are
      those of all devices, the others are means over this device's slice.
    """
    per_example, targets, metrics = [], [], Metrics()
    if batch.noisy is not None and held.targets is not None:
        logits = outputs["noisy"].logits
        chex.assert_equal_shape([held.targets, logits])
        per_example.append(losses.soft_cross_entropy(logits, held.targets))
        targets.append(held.targets)
        said = losses.vote_shares(batch.noisy.labels, logits.shape[-1])
        is_given = (said > 0) & (said == jnp.max(said, axis=1, keepdims=True))
        given = jnp.max(jnp.where(is_given, held.targets, 0), axis=1)
        # A target may be all zero: that of an example without weight.
        kept = (given > 0) & (given == jnp.max(held.targets, axis=1))
        metrics["labels_kept"] = jnp.mean(kept, dtype=jnp.float32)
    if batch.clean_inner is not None:
        logits, labels = outputs["clean"].logits, batch.clean_inner.labels
        per_example.append(losses.cross_entropy(logits, labels))
        targets.append(jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype))
        metrics["clean_accuracy"] = losses.accuracy(logits, labels)
    strength = rule.strength(held.fitted)
    if mixing is not None:
        mixed = mix(jnp.concatenate(targets), mixing, strength)
        per_example = [losses.soft_cross_entropy(outputs["mixed"].logits, mixed)]
    loss = jnp.mean(jnp.concatenate(per_example))  # So parts count by their sizes.
    if rule.regularizes and batch.noisy is not None:
        shares = held.targets if rule.prior == "targets" else None
        prior, entropy = regularizers(outputs["noisy"].logits, shares, axis_name)
        loss += strength * (rule.prior_weight * prior + rule.entropy_weight * entropy)
        metrics |= {"prior": prior, "entropy": entropy}
    if held.fitted is not None:
        metrics["fitted"] = held.fitted
    return loss, metrics | {"inner_loss": loss}
