"""Enhanced Meta Label Correction: a teacher with a body of its own corrects the labels.

Source: Taraday and Baskin (2023), "Enhanced Meta Label Correction for Coping with Label
Corruption", arXiv 2305.12961, and the authors' code.

The teacher sees the inputs, not the classifier's features, so labels that the classifier has
memorised do not mislead it. The classifier is the paper's student.

Their gradient for k = 1 is `one_step` here, equal to `exact`. For k > 1 they take the outer
gradient once, at `w_k`, and sum `(1 - eta)^(k-1-t) eta v^T H_wa(w_t)`. That is `first_order` with
a discount, and without the effect of momentum.

Differences from their code: the gate sees every clean example with its right label and with a wrong
one; theirs sees one half right and the other half wrong. The teacher sees noisy and clean examples
as two batches. All examples count alike in the classifier's loss; theirs adds the means over noisy
and over clean examples. Their CIFAR runs start both networks from self-supervised ones
(`initial_params`) and use k = 5, `sgd(0.02, momentum=0.9, weight_decay=5e-4)` for the classifier
and `sgd(0.02, weight_decay=5e-4)` for the teacher.
"""

import dataclasses
from typing import Any, ClassVar, cast

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from mlc_jax.core import Inputs, Labelled, MetaState, Metrics, Output, Params, TrainState, losses
from mlc_jax.errors import expect
from mlc_jax.methods.blocks import bilevel_method, init_model, train_mode
from mlc_jax.methods.types import BilevelMethod, Binding, BoundMethod

# Prepared inputs, and a key, which is None in evaluation mode.
_Seen = tuple[Inputs, chex.PRNGKey | None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class EMLC(BilevelMethod):
    """The classifier learns labels that a teacher, a second network of the same kind, corrects.

    `q = s onehot(y') + (1 - s) softmax(z)`, with the teacher's logits `z` and its gate's output
    `s`. Meta params are `{"teacher", "gate"}`; `state.extra` has the teacher's batch statistics.

    Attributes:
      embedding_size: size of the label's embedding in the gate.
      hidden_size: size of the gate's hidden layer.
      bce_weight: weight of the gate's loss; the teacher's cross-entropy on clean labels has 1.

    Raises:
      InputError: a value is out of range.
    """

    name: ClassVar[str] = "emlc"
    embedding_size: int = 128
    hidden_size: int = 128
    bce_weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in (("embedding_size", 1), ("hidden_size", 1), ("bce_weight", 0)):
            value = getattr(self, name)
            expect(value >= least, name, value, f"at least {least}")

    def build(self, binding: Binding) -> BoundMethod:
        is_frozen = getattr(binding.model, "freeze_batch_norm", False)
        expect(not is_frozen, "model.freeze_batch_norm", is_frozen, "False: emlc's teacher has "
               "statistics of its own")  # fmt: skip
        gate = LabelGate(binding.num_classes, self.embedding_size, self.hidden_size)
        teacher = _Teacher(binding, gate)

        def targets(
            meta_params: Params, seen: _Seen, logits: jax.Array, labels: jax.Array
        ) -> jax.Array:
            del logits
            # In training mode batch norm that is not frozen reads no running statistics. Those that
            # it writes are dropped.
            return teacher.correct(meta_params, {}, seen, labels)

        def correct_labels(
            state: TrainState, seen: _Seen, logits: jax.Array, labels: jax.Array
        ) -> jax.Array:
            del logits
            return teacher.correct(cast(MetaState, state.meta).params, state.extra, seen, labels)

        def teacher_loss(
            meta_params: Params, batch_stats: Params, seen: _Seen, logits: jax.Array,
            clean: Labelled,
        ) -> tuple[jax.Array, tuple[Params, Metrics]]:  # fmt: skip
            """The loss on clean examples, whose pass also updates the running statistics."""
            del logits
            logits, features, batch_stats = teacher.run(meta_params, batch_stats, seen)
            right = teacher.opinion(meta_params, features, clean.labels)
            wrong = teacher.opinion(meta_params, features, strongest_wrong(logits, clean.labels))
            fit, bce = jnp.mean(losses.cross_entropy(logits, clean.labels)), gate_loss(right, wrong)
            metrics = {"teacher_loss": fit, "gate_loss": bce}
            return fit + self.bce_weight * bce, (batch_stats, metrics)

        return bilevel_method(
            self, binding, targets, teacher.init, correct_labels,
            evidence=inputs_and_key, auxiliary=teacher_loss,
        )  # fmt: skip


class LabelGate(nn.Module):
    """Trust in a given label, from a teacher's features: an MLP with one hidden layer (ReLU).

    Attributes:
      num_classes: C.
      embedding_size: size of the label's embedding.
      hidden_size: size of the hidden layer.
    """

    num_classes: int
    embedding_size: int
    hidden_size: int

    @nn.compact
    def __call__(self, features: jax.Array, labels: jax.Array) -> jax.Array:
        """Logits of the gate `[B]`, from features `[B, F]` and labels `[B]`."""
        embedded = nn.Embed(self.num_classes, self.embedding_size, name="label_embedding")(labels)
        x = jnp.concatenate([features, embedded.astype(features.dtype)], axis=-1)
        x = nn.relu(nn.Dense(self.hidden_size, name="hidden")(x))
        return jnp.squeeze(nn.Dense(1, name="output")(x), axis=-1)


@dataclasses.dataclass(frozen=True)
class _Teacher:
    """A second network like the classifier, and a gate; both are in `meta_params`."""

    binding: Binding
    gate: LabelGate

    def init(self, rng: chex.PRNGKey, seen: _Seen) -> tuple[Params, Params]:
        """Meta params, and the network's batch statistics."""
        teacher_rng, gate_rng = jax.random.split(rng)
        params, batch_stats = init_model(self.binding, teacher_rng, seen[0])
        _, features, _ = self.run({"teacher": params}, batch_stats, seen)
        gate = self.gate.init(gate_rng, features, jnp.zeros((1,), jnp.int32))["params"]
        return {"teacher": params, "gate": gate}, batch_stats

    def run(
        self, meta_params: Params, batch_stats: Params, seen: _Seen
    ) -> tuple[jax.Array, jax.Array, Params]:
        """Logits `[B, C]`, features `[B, F]`, and new batch statistics."""
        (inputs, rng), params = seen, meta_params["teacher"]
        if rng is not None:
            return train_mode(self.binding)(params, batch_stats, inputs, rng)
        variables = {"params": params, "batch_stats": batch_stats}
        outputs: Any = self.binding.model.apply(variables, inputs, train=False)
        return (*outputs, batch_stats)

    def opinion(self, meta_params: Params, features: jax.Array, labels: jax.Array) -> jax.Array:
        """The gate's logits `[B]`."""
        return cast(jax.Array, self.gate.apply({"params": meta_params["gate"]}, features, labels))

    def correct(
        self, meta_params: Params, batch_stats: Params, seen: _Seen, labels: jax.Array
    ) -> jax.Array:
        """Corrected labels, `[B, C]`."""
        logits, features, _ = self.run(meta_params, batch_stats, seen)
        return gated(self.opinion(meta_params, features, labels), logits, labels)


def inputs_and_key(output: Output, inputs: Inputs, rng: chex.PRNGKey | None) -> _Seen:
    """The `Evidence` of a teacher that uses no output of the classifier."""
    del output
    return inputs, rng


def gated(gate_logits: jax.Array, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """`s onehot(y') + (1 - s) softmax(z)`, `[B, C]`, with `s` the sigmoid of the gate's logits."""
    share = jax.nn.sigmoid(gate_logits)[:, None]
    given = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return share * given + (1 - share) * jax.nn.softmax(logits)


def strongest_wrong(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The class `[B]` with the largest logit among all but the label's class."""
    is_label = jax.nn.one_hot(labels, logits.shape[-1], dtype=bool)
    return jnp.argmax(jnp.where(is_label, -jnp.inf, logits), axis=-1)


def gate_loss(right: jax.Array, wrong: jax.Array) -> jax.Array:
    """Binary cross-entropy of the gate's logits `[B]` at right labels and at wrong ones, in nats.

    It is the mean over all choices of the half with wrong labels, so none is drawn.
    """
    return jnp.mean(jax.nn.softplus(-right) + jax.nn.softplus(wrong)) / 2
