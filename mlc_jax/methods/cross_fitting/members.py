"""The classifiers of cross-fitting: many small ones of one shape, trained as one program."""

import dataclasses
from typing import Any

import chex
import jax
import jax.numpy as jnp
import optax

from mlc_jax.core import Inputs, Output, Params
from mlc_jax.models.label_model import LOG_FLOOR

_DROPOUT = 1  # A stream of a step's key.
_ADAM = optax.scale_by_adam(b2=0.99)
_LAST_RATE = 0.1  # The share of the learning rate that is left at the end of a round.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Members:
    """Classifiers with leaves `[G, E, ...]`: E weight decays for each of G lists of rows.

    Attributes:
      model: a Flax module; all are of this shape.
      num_folds, num_parts: K and H; the runs have K * H lists.
      steps: training steps per round.
      batch_size: rows per step and list.
      learning_rate: at the start of a round.
      axis_name: pmap axis of the devices that share the lists, or None.
    """

    model: Any
    num_folds: int
    num_parts: int
    steps: int
    batch_size: int
    learning_rate: float
    axis_name: str | None

    def _apply(self, params: Params, x: Inputs, *, train: bool = False) -> jax.Array:
        outputs: Any = self.model.apply({"params": params}, x, train=train)
        return Output(*outputs).logits

    def log_probs(self, params: Params, x: Inputs) -> jax.Array:
        """Log-probabilities `[G, E, N, C]`, at least `LOG_FLOOR`, of rows x `[N, ...]`."""
        each = jax.vmap(jax.vmap(self._apply, in_axes=(0, None)), in_axes=(0, None))
        return jnp.maximum(jax.nn.log_softmax(each(params, x)), LOG_FLOOR)

    def over_decays(self, log_probs: jax.Array, decay_weights: jax.Array) -> jax.Array:
        """`[G, E, ..., C]` -> `[G, ..., C]`: the weighted geometric mean over a list's members."""
        return jax.nn.log_softmax(jnp.einsum("e,ge...->g...", decay_weights, log_probs))

    def out_of_part(self, log_probs: jax.Array, part: jax.Array) -> jax.Array:
        """`[K * H, N, C]` -> `[K, N, C]`: of the H runs the one that did not learn from a row."""
        shape = (self.num_folds, self.num_parts)
        log_probs = log_probs.reshape(*shape, *log_probs.shape[1:])
        return jnp.take_along_axis(log_probs, part[None, None, :, None], axis=1)[:, 0]

    def train(
        self,
        params: Params,
        x: Inputs,
        targets: jax.Array,
        lists: jax.Array,
        lengths: jax.Array,
        target_of: jax.Array,
        decays: jax.Array,
        key: chex.PRNGKey,
        first_step: jax.Array,
    ) -> tuple[Params, jax.Array]:
        """Trains members with leaves `[G, E, ...]` for a round; devices share the G lists.

        Members of a list see the same batches. Batch t is a function of (key, first_step + t).

        Args:
          params: to start from.
          x: `[N, ...]`, one copy for all.
          targets: `[T, N, C]`; list g learns those of `target_of[g]`.
          lists, lengths: `[G, L]` row numbers, and `[G]`, how many there are before the padding.
          target_of: `[G]`, from 0 to T - 1.
          decays: `[G, E]`.
          key: typed key.
          first_step: the number of the round's first step.

        Returns:
          The params, and the mean loss of the last step.
        """
        axis, num_lists = self.axis_name, lists.shape[0]
        members = jnp.arange(num_lists)
        if axis is not None:
            share = -(-num_lists // jax.lax.axis_size(axis))
            members = jax.lax.axis_index(axis) * share + jnp.arange(share)
            members = jnp.minimum(members, num_lists - 1)  # The last ones may be trained twice.
        mine = lambda tree: jax.tree.map(lambda leaf: leaf[members], tree)  # noqa: E731
        over_decays = jax.vmap(self._updated, in_axes=(0, None, None, 0, None, None))
        over_lists = jax.vmap(over_decays, in_axes=(0, 0, 0, 0, None, None))

        def step(carry: Any, t: jax.Array) -> tuple[Any, jax.Array]:
            rng = jax.random.fold_in(key, first_step + t)
            # One draw for all lists, made on each device, because random numbers compile slowly.
            own = jnp.maximum(lengths, 1)[:, None]
            draws = jax.random.uniform(rng, (num_lists, self.batch_size)) * own
            places = jnp.minimum(draws.astype(jnp.int32), own - 1)
            rows = jnp.take_along_axis(lists, places, axis=1)[members]
            inputs = jax.tree.map(lambda leaf: leaf[rows], x)
            wanted = targets[target_of[members][:, None], rows]
            turn = jnp.asarray(t, jnp.float32) / self.steps
            rate = (1 + _LAST_RATE + (1 - _LAST_RATE) * jnp.cos(jnp.pi * turn)) / 2
            carry, loss = over_lists(
                carry,
                inputs,
                wanted,
                decays[members],
                self.learning_rate * rate,
                jax.random.fold_in(rng, _DROPOUT),
            )
            return carry, jnp.mean(loss)

        start = mine(params)
        opt_state = jax.vmap(jax.vmap(_ADAM.init))(start)
        (trained, _), losses = jax.lax.scan(step, (start, opt_state), jnp.arange(self.steps))
        loss = losses[-1]
        if axis is not None:
            trained = jax.tree.map(
                lambda leaf: jax.lax.all_gather(leaf, axis, tiled=True)[:num_lists], trained
            )
            loss = jax.lax.pmean(loss, axis)
        return trained, loss

    def _updated(
        self, member: Any, inputs: Inputs, wanted: jax.Array, decay: jax.Array, rate: jax.Array,
        rng: chex.PRNGKey,
    ) -> tuple[Any, jax.Array]:  # fmt: skip
        """One step of Adam of one classifier `(params, opt_state)`, and its loss."""

        def loss_of(params: Params) -> tuple[jax.Array, jax.Array]:
            outputs: Any = self.model.apply(
                {"params": params}, inputs, train=True, rngs={"dropout": rng}
            )
            log_probs = jax.nn.log_softmax(Output(*outputs).logits)
            loss = -jnp.mean(jnp.sum(wanted * log_probs, axis=-1))
            kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
            squares = sum(jnp.sum(jnp.square(leaf)) for leaf in kernels)
            return loss + decay / 2 * squares, loss

        params, opt_state = member
        grads, loss = jax.grad(loss_of, has_aux=True)(params)
        updates, opt_state = _ADAM.update(grads, opt_state)
        params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
        return (params, opt_state), loss
