"""MLNT: a classifier that stays close to its teacher after a step on synthetic label noise.

Source: Li, Wong, Zhao, Kankanhalli (2019), "Learning to Learn from Noisy Labeled Data", section 3.
This is its first iteration (no mentor from an earlier run). Neighbours are found in the
classifier's own features, because there is no pretrained network. As in all methods here, plain
cross-entropy trains on the clean labels.
"""

import dataclasses
from collections.abc import Callable
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
import optax

from mlc_jax import core
from mlc_jax.core import Batch, Inputs, Metrics, Params, TrainState, losses
from mlc_jax.methods.blocks import (
    classifier_labels,
    create_init,
    create_problem,
    descend,
    in_steps,
    noisy_and_clean,
)
from mlc_jax.methods.types import Binding, BoundMethod, InnerStep, Method, Phase

_NOISE_STREAM = 1  # A stream of the step's key; device 1's dropout has it, too.


@dataclasses.dataclass(frozen=True, kw_only=True)
class MLNT(Method):
    """Cross-entropy, and consistency with the teacher after a step on synthetic labels.

    Attributes:
      num_synthetic: M, sets of synthetic labels per step.
      transferred_share: share of a batch's labels that each set replaces.
      num_neighbours: number of neighbours whose labels a synthetic label is drawn from.
      lookahead_rate: alpha, the learning rate of the step on synthetic labels.
      consistency_weight: weight of the consistency loss; cross-entropy has weight 1.
      ramp_share: share of all steps until the consistency loss has its full weight.
      early_teacher_decay: decay of the teacher, a moving average of the params, in these steps.
      teacher_decay: the same afterwards.
    """

    name: ClassVar[str] = "mlnt"
    num_synthetic: int = 10
    transferred_share: float = 0.5
    num_neighbours: int = 10
    lookahead_rate: float = 0.2
    consistency_weight: float = 1.0
    ramp_share: float = 0.1
    early_teacher_decay: float = 0.99
    teacher_decay: float = 0.999

    def build(self, binding: Binding) -> BoundMethod:
        def init(rng: chex.PRNGKey, example: Inputs) -> TrainState:
            state = create_init(binding)(rng, example)
            return state.replace(extra=state.main.params)

        phase = Phase(binding.num_steps, in_steps(binding, self._inner_step(binding)))
        return BoundMethod(init, (phase,), classifier_labels)

    def _inner_step(self, binding: Binding) -> InnerStep:
        problem = create_problem(binding)
        ramp_steps = max(1, self.ramp_share * binding.num_steps)

        def inner_step(
            state: TrainState, batch: Batch, rng: chex.PRNGKey
        ) -> tuple[TrainState, Metrics]:
            batch = noisy_and_clean(batch)
            noisy = batch.noisy
            assert noisy is not None
            main, teacher = state.main, state.extra
            train_rng, look_rng = jax.random.split(rng)
            # Synthetic labels are drawn for the whole batch, alike on all devices.
            step_rng = jax.random.fold_in(state.rng, state.step)
            noise_rng = jax.random.fold_in(step_rng, _NOISE_STREAM)
            passes = core.passes(problem, batch, train_rng)
            inputs = problem.prepare(noisy.inputs)

            def classify(params: Params) -> jax.Array:
                return problem.apply(params, main.batch_stats, inputs, look_rng)[0]

            teacher_probs = jax.nn.softmax(classify(teacher))
            ramp = jnp.clip(state.step / ramp_steps, 0, 1)
            weight = self.consistency_weight * jnp.exp(-5 * (1 - ramp) ** 2)

            def loss(params: Params) -> tuple[jax.Array, tuple[Params, Metrics]]:
                outputs, batch_stats = core.run_passes(passes, params, main.batch_stats)
                logits, features = outputs["noisy"]
                targets = core.given_labels(None, features, logits, noisy.labels)
                held = core.Held(targets, None)
                value, metrics = core.inner_loss(problem.rule, outputs, held, batch)
                wrong = synthetic_labels(self, binding, features, noisy.labels, noise_rng)
                consistency = divergence_after_a_step(
                    self, binding, classify, params, wrong, teacher_probs
                )
                value += weight * consistency
                return value, (batch_stats, metrics | {"consistency": consistency})

            state, metrics = descend(problem, state, loss)
            # The teacher follows faster at first.
            decay = jnp.where(ramp < 1, self.early_teacher_decay, self.teacher_decay)
            move = lambda old, new: decay * old + (1 - decay) * new  # noqa: E731
            return state.replace(extra=jax.tree.map(move, teacher, state.main.params)), metrics

        return inner_step


def synthetic_labels(
    method: MLNT, binding: Binding, features: jax.Array, labels: jax.Array, rng: chex.PRNGKey
) -> jax.Array:
    """M sets of labels `[M, B]` for this device's slice, drawn for the whole batch."""
    axis_name = binding.axis_name
    neighbours = nearest(
        _of_all_devices(jax.lax.stop_gradient(features), axis_name), method.num_neighbours
    )
    together = _of_all_devices(labels, axis_name)
    draw = lambda rng: transfer_labels(rng, together, neighbours, method.transferred_share)  # noqa: E731
    sets = jax.vmap(draw)(jax.random.split(rng, method.num_synthetic))
    if axis_name is None:
        return sets
    start = jax.lax.axis_index(axis_name) * len(labels)
    return jax.lax.dynamic_slice_in_dim(sets, start, len(labels), axis=1)


def divergence_after_a_step(
    method: MLNT,
    binding: Binding,
    classify: Callable[[Params], jax.Array],
    params: Params,
    label_sets: jax.Array,
    teacher_probs: jax.Array,
) -> jax.Array:
    """Mean over the sets of the divergence from the teacher, after a step on each from `params`.

    Args:
      method: has the length of the step.
      binding: see `Binding`.
      classify: params -> logits `[B, C]` of the batch.
      params: the classifier's; the backward pass goes through the steps.
      label_sets: `[M, B]`.
      teacher_probs: `[B, C]`.
    """

    # The backward pass recomputes it, so that ten look-aheads are not stored.
    @jax.checkpoint
    def divergence(total: jax.Array, labels: jax.Array) -> tuple[jax.Array, None]:
        step_loss = lambda p: jnp.mean(losses.cross_entropy(classify(p), labels))  # noqa: E731
        grads = core.pmean(jax.grad(step_loss)(params), binding.axis_name)
        ahead = optax.tree.add_scale(params, -method.lookahead_rate, grads)
        return total + kl_divergence(teacher_probs, classify(ahead)), None

    turns = binding.scan_unroll(params, len(label_sets))
    total, _ = core.scan(divergence, jnp.zeros(()), label_sets, turns)
    return total / len(label_sets)


def _of_all_devices(x: jax.Array, axis_name: str | None) -> jax.Array:
    """Gathers the whole batch from the devices' slices."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def nearest(features: jax.Array, num_neighbours: int) -> jax.Array:
    """Rows of each example's nearest others in its batch, `[B, min(num_neighbours, B - 1)]`."""
    distances = jnp.sum((features[:, None] - features[None]) ** 2, axis=-1)
    others = jnp.where(jnp.eye(len(features), dtype=bool), jnp.inf, distances)
    return jax.lax.top_k(-others, min(num_neighbours, len(features) - 1))[1]


def transfer_labels(
    rng: chex.PRNGKey, labels: jax.Array, neighbours: jax.Array, share: float
) -> jax.Array:
    """Synthetic noise: a share of the labels `[B]` is replaced by a random neighbour's label.

    Args:
      rng: typed key.
      labels: `[B]`, as given.
      neighbours: `[B, n]` row numbers, see `nearest`.
      share: share of the batch, rounded down to whole examples.
    """
    size, num_neighbours = neighbours.shape
    if not num_neighbours:
        return labels
    who_rng, neighbour_rng = jax.random.split(rng)
    chosen = jax.random.permutation(who_rng, size) < int(share * size)
    column = jax.random.randint(neighbour_rng, (size,), 0, num_neighbours)
    transferred = labels[neighbours[jnp.arange(size), column]]
    return jnp.where(chosen, transferred, labels)


def kl_divergence(teacher_probs: jax.Array, logits: jax.Array) -> jax.Array:
    """Mean over the batch of `KL(teacher || student)`, `[B, C]` each, in nats."""
    log_teacher = jnp.log(jnp.maximum(teacher_probs, jnp.finfo(teacher_probs.dtype).tiny))
    pointwise = teacher_probs * (log_teacher - jax.nn.log_softmax(logits))
    return jnp.mean(jnp.sum(pointwise, axis=-1))
