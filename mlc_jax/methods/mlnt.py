"""MLNT: a classifier that does not follow synthetic label noise away from its teacher.

Source: Li, Wong, Zhao, Kankanhalli (2019), "Learning to Learn from Noisy Labeled Data", section 3.
This is its first iteration (no mentor from a run before); neighbours are found in the classifier's
own features, for want of a pretrained network. The clean labels of the table are trained on with
plain cross-entropy, as by all methods here.
"""

import chex
import jax
import jax.numpy as jnp
import optax

from mlc_jax import bilevel, losses, models
from mlc_jax.bilevel import Batch, Metrics, Params
from mlc_jax.methods.base import (
    Method,
    MethodInputs,
    Phase,
    classifier_labels,
    create_init,
    create_problem,
    descend,
    in_steps,
    noisy_and_clean,
)
from mlc_jax.train_state import TrainState

_NOISE_STREAM = 1  # Of a step's key: another one than the loop's devices draw from.


def mlnt(inputs: MethodInputs) -> Method:
    """Cross-entropy, and consistency with the teacher after a step on labels made wrong."""
    config = inputs.config.mlnt
    problem = create_problem(inputs)
    ramp_steps = max(1, config.ramp_share * inputs.num_steps)

    def init(rng: chex.PRNGKey) -> TrainState:
        state = create_init(inputs)(rng)
        return state.replace(extra=state.main.params)

    def inner_step(
        state: TrainState, batch: Batch, rng: chex.PRNGKey
    ) -> tuple[TrainState, Metrics]:
        batch = noisy_and_clean(batch)
        noisy = batch.noisy
        assert noisy is not None
        main, teacher = state.main, state.extra
        train_rng, look_rng = jax.random.split(rng)
        # Synthetic labels are of the whole batch, the same whichever device looks.
        noise_rng = jax.random.fold_in(jax.random.fold_in(state.rng, state.step), _NOISE_STREAM)
        forward = bilevel.forward_pass(problem, main.batch_stats, batch, train_rng)

        def classify(params: Params) -> jax.Array:
            return problem.apply(params, main.batch_stats, noisy.inputs, look_rng)[0]

        teacher_probs = jax.nn.softmax(classify(teacher))
        ramp = jnp.clip(state.step / ramp_steps, 0, 1)
        weight = config.consistency_weight * jnp.exp(-5 * (1 - ramp) ** 2)

        def loss(params: Params) -> tuple[jax.Array, tuple[Params, Metrics]]:
            (logits, features), batch_stats = forward(params)
            targets = bilevel.given_labels(None, features, logits[0], noisy.labels)
            value, metrics = bilevel.inner_loss(logits, targets, batch)
            fixed = _of_all_devices(jax.lax.stop_gradient(features), problem.axis_name)
            neighbours = nearest(fixed, config.num_neighbours)
            labels = _of_all_devices(noisy.labels, problem.axis_name)

            # Recomputed on the way back: ten look-aheads are not kept.
            @jax.checkpoint
            def divergence(total: jax.Array, rng: chex.PRNGKey) -> tuple[jax.Array, None]:
                wrong = transfer_labels(rng, labels, neighbours, config.transferred_share)
                wrong = _of_this_device(wrong, len(noisy.labels), problem.axis_name)
                step_loss = lambda p: jnp.mean(losses.cross_entropy(classify(p), wrong))  # noqa: E731
                grads = bilevel.pmean(jax.grad(step_loss)(params), problem.axis_name)
                ahead = optax.tree.add_scale(params, -config.lookahead_rate, grads)
                return total + kl_divergence(teacher_probs, classify(ahead)), None

            rngs = jax.random.split(noise_rng, config.num_synthetic)
            turns = bilevel.resolve_unroll(
                inputs.config.meta_gradient.unroll,
                config.num_synthetic,
                convolutions=inputs.config.model.name in models.CONVOLUTIONAL,
            )
            total, _ = bilevel.scan(divergence, jnp.zeros(()), rngs, turns)
            consistency = total / config.num_synthetic
            value += weight * consistency
            return value, (batch_stats, metrics | {"consistency": consistency})

        state, metrics = descend(problem, state, loss)
        # The teacher follows faster at first (section 3.3).
        decay = jnp.where(ramp < 1, config.early_teacher_decay, config.teacher_decay)
        move = lambda old, new: decay * old + (1 - decay) * new  # noqa: E731
        return state.replace(extra=jax.tree.map(move, teacher, state.main.params)), metrics

    return Method(init, (Phase(inputs.num_steps, in_steps(inputs, inner_step)),), classifier_labels)


def _of_all_devices(x: jax.Array, axis_name: str | None) -> jax.Array:
    """A slice of a batch to the whole batch."""
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)


def _of_this_device(x: jax.Array, size: int, axis_name: str | None) -> jax.Array:
    """The whole batch to this device's slice."""
    if axis_name is None:
        return x
    return jax.lax.dynamic_slice_in_dim(x, jax.lax.axis_index(axis_name) * size, size)


def nearest(features: jax.Array, num_neighbours: int) -> jax.Array:
    """Rows of each example's nearest others in its batch, `[B, min(num_neighbours, B - 1)]`."""
    distances = jnp.sum((features[:, None] - features[None]) ** 2, axis=-1)
    others = jnp.where(jnp.eye(len(features), dtype=bool), jnp.inf, distances)
    return jax.lax.top_k(-others, min(num_neighbours, len(features) - 1))[1]


def transfer_labels(
    rng: chex.PRNGKey, labels: jax.Array, neighbours: jax.Array, share: float
) -> jax.Array:
    """Synthetic noise: a share of the labels `[B]` become that of a random neighbour.

    Args:
      rng: typed key.
      labels: `[B]`, as given.
      neighbours: `[B, n]`, rows, see `nearest`.
      share: of the batch, rounded down to whole examples.
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
