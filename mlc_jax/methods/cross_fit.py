"""Cross-fitting: every row is labelled, and judged, by classifiers that did not learn from it.

Sources: the classifier learns soft labels of a label model, and the label model those of the
classifier, as in Dawid and Skene (1979) with a classifier in their place; out-of-fold predictions
are what cleanlab asks for (Northcutt, Jiang, Chuang 2021) and what `CalibratedClassifierCV` is.

K x H runs are trained as one program. Run (k, h) does not see the checks of fold k and does not
learn from part h (`data.folds`). Training goes in rounds. Before each, a step that sees all runs
says what every row's label is held to be, from predictions of runs that did not learn from it
(`models.label_model`); in the round, all runs learn that. What predicts new rows is the mean of all
of them, which is what was judged.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from mlc_jax.core import (
    Inputs,
    MainState,
    MetaState,
    Metrics,
    Output,
    Params,
    Rows,
    TrainState,
)  # fmt: skip
from mlc_jax.errors import expect
from mlc_jax.methods.blocks import init_model
from mlc_jax.methods.types import Binding, BoundMethod, Method, OnHost, Phase
from mlc_jax.models.label_model import (
    LOG_FLOOR,
    NUM_TERMS,
    class_shares,
    fit_weights,
    label_term,
    pool,
    shifted_shares,
    source_counts,
    vote_shares,
)

# Streams of the state's key: batches of the rivals, and of the runs.
_RIVALS, _RUNS = 1, 2
_DROPOUT = 1  # Of a step's key.
_ADAM_B2 = 0.99
_LAST_RATE = 0.1  # Of the learning rate, at the end of a round.
_CHECKED_TRUST = (
    0.5  # In the classifier on the checked rows alone, where class shares are estimated.
)
_BLOCK = 16_384  # Rows at a time, of which all classifiers' predictions are in memory.
_SOURCES_WIDTH = 0.5  # Of the prior of l, where there are several sources.
_UNCHECKED = -1
_SWEEPS = 2  # Of the label model between two rounds.


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossFit(Method):
    """A pool of classifiers and a label model, judged on checks that it did not see.

    The model is trained by Adam with a learning rate that falls along a cosine within each round.

    Attributes:
      num_folds: K, of the checked rows.
      num_parts: H, of all rows.
      num_rounds: of the pool and the label model.
      steps_per_round: of each run.
      batch_size: rows of a step of one run.
      learning_rate: at the start of a round.
      weight_decays: E of them; each run is trained with all, and they are weighed by the likelihood
        of the checks that the run did not see.
      prior_strength: pseudo-counts of the prior of R, the matrix of what given labels mean.
      expected_weight: of a doubtful row in R, beside a checked one's 1.
      trust_width: of the prior of a and l, the weights of classifier and given label; of l at most
        0.5 where there are several sources.
      rival_width: of the prior of b and c; towards 0 the rivals are left out.
    """

    name: ClassVar[str] = "cross_fit"
    num_folds: int = 5
    num_parts: int = 2
    num_rounds: int = 5
    steps_per_round: int = 300
    batch_size: int = 256
    learning_rate: float = 0.05
    weight_decays: tuple[float, ...] = (1e-2, 1e-3, 1e-4)
    prior_strength: float = 10.0
    expected_weight: float = 0.3
    trust_width: float = 2.0
    rival_width: float = 0.5

    def __post_init__(self) -> None:
        for name, least in (("num_folds", 2), ("num_parts", 1), ("num_rounds", 1)):
            expect(getattr(self, name) >= least, name, getattr(self, name), f"at least {least}")
        for name in ("prior_strength", "trust_width", "rival_width"):
            expect(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        expect(len(self.weight_decays) > 0, "weight_decays", self.weight_decays, "one at least")

    @property
    def stride(self) -> int:
        return self.steps_per_round

    def build(self, binding: Binding) -> BoundMethod:
        prepare, machine = binding.prepare, _machine_of(self, binding)

        def init(rng: chex.PRNGKey, example: Inputs) -> TrainState:
            return machine.init(rng, prepare(example))

        def classify(state: TrainState, inputs: Inputs) -> tuple[jax.Array, Any]:
            return machine.classify(state, prepare(inputs))

        phases = (
            Phase(self.steps_per_round, machine.train_rivals),
            Phase(self.num_rounds * self.steps_per_round, machine.train_round),
        )
        return BoundMethod(
            # The same function for all data of one shape is compiled once.
            machine.init if getattr(prepare, "keeps_shapes", False) else init,
            phases,
            machine.correct_labels,
            classify=classify,
            on_host=OnHost(prepare, machine.classify),
            out_of_fold=machine.out_of_fold,
        )


class _Known(NamedTuple):
    """What stays the same from round to round.

    Attributes:
      x: `[N, ...]`, as the model takes them.
      one_hot: `[N, C]`, of checks.
      given: `[N, C]`, log-probabilities of the classifier on labels as given, out of part.
      checked: `[K, N, C]`, of those on the checked rows alone.
      trust: in given labels before any row is checked, see `source_counts`.
    """

    rows: Rows
    x: Inputs
    one_hot: jax.Array
    given: jax.Array
    checked: jax.Array
    trust: jax.Array


class _Labels(NamedTuple):
    """What labels are held to be.

    Attributes:
      q: `[K, N, C]`.
      matrices: R, `[K, S, V, C]`.
      pi: `[K, C]`.
    """

    q: jax.Array
    matrices: jax.Array
    pi: jax.Array


def _by_blocks(fun: Callable[..., jax.Array], *arrays: Any) -> jax.Array:
    """`fun` of trees of arrays `[N, ...]` -> `[K, N, C]`, a block of rows at a time."""
    size = jax.tree.leaves(arrays)[0].shape[0]
    if size <= _BLOCK:
        return fun(*arrays)
    num_blocks = -(-size // _BLOCK)
    more = num_blocks * _BLOCK - size

    def cut(leaf: jax.Array) -> jax.Array:
        filled = jnp.pad(leaf, [(0, more)] + [(0, 0)] * (leaf.ndim - 1))
        return filled.reshape(num_blocks, _BLOCK, *leaf.shape[1:])

    blocks = jax.lax.map(lambda block: fun(*block), jax.tree.map(cut, arrays))
    together = jnp.moveaxis(blocks, 0, 1)
    return together.reshape(together.shape[0], -1, together.shape[-1])[:, :size]


def _trust(rows: Rows, given: jax.Array) -> jax.Array:
    """How far given labels are trusted before any row is checked.

    An even chance where rows are checked, which then say it. Where none is, how often a classifier
    of the labels as given, out of part, says the same: noise and what it cannot know lower it.
    """
    said = rows.votes >= 0
    same = (rows.votes == jnp.argmax(given, axis=-1)[:, None]) & said
    agreement = (jnp.sum(same) + 1) / (jnp.sum(said) + 2)
    return jnp.where(jnp.any(rows.checks >= 0), 0.5, jnp.clip(agreement, 0.5, 0.95))


def _doubtful(rows: Rows, is_visible: jax.Array) -> jax.Array:
    """`[N]`, 1 for the rows whose label is not known where checks `is_visible` `[N]` are."""
    unchecked = rows.checks == _UNCHECKED  # What fills up has another number.
    return (~is_visible & (rows.is_judged | unchecked)).astype(jnp.float32)


def _as_is(inputs: Inputs) -> Inputs:
    return inputs


def _machine_of(method: CrossFit, binding: Binding) -> "_Machine":
    """That of a method for data of any size: `Rows` are prepared already."""
    neutral = dataclasses.replace(
        binding, prepare=_as_is, num_noisy=0, steps_per_epoch=0, num_epochs=0.0
    )
    if binding.loaded:
        return _Machine(method, neutral)
    return _shared_machine(
        method, binding.model, binding.num_classes, binding.num_sources, binding.axis_name
    )


@functools.lru_cache(maxsize=8)  # Fits of one shape, as in cross-validation, share their programs.
def _shared_machine(
    method: CrossFit, model: Any, num_classes: int, num_sources: int, axis_name: str | None
) -> "_Machine":
    binding = Binding(
        model=model, tx=method.tx, stride=method.stride, unroll=method.unroll, loaded={},
        num_noisy=0, num_classes=num_classes, steps_per_epoch=0, num_epochs=0.0, prepare=_as_is,
        axis_name=axis_name, num_sources=num_sources,
    )  # fmt: skip
    return _Machine(method, binding)


class _Machine:
    """The functions of a `CrossFit` that is bound; all are pure, and take inputs as prepared."""

    def __init__(self, method: CrossFit, binding: Binding):
        self.method, self.binding = method, binding
        self.num_runs = method.num_folds * method.num_parts

    # State: main.params has the runs, `[K * H, E, ...]`, and the rivals, `[H + K, 1, ...]`: the
    # first H learn labels as given, the others the checked rows. meta.params is the label model:
    # R, pi, the weights of the pool, those without fold k `[K, 4]`, and those of the decays.

    def init(self, rng: chex.PRNGKey, example: Inputs) -> TrainState:
        method, num_classes = self.method, self.binding.num_classes
        init_rng, state_rng = jax.random.split(rng)
        families = {
            "runs": (self.num_runs, len(method.weight_decays)),
            "rivals": (method.num_parts + method.num_folds, 1),
        }

        def start(key: chex.PRNGKey) -> Params:
            params, batch_stats = init_model(self.binding, key, example)
            expect(
                not jax.tree.leaves(batch_stats), "model", type(self.binding.model).__name__,
                "one without batch normalisation: cross_fit trains classifiers of features",
            )  # fmt: skip
            return params

        # All families at once, and then cut: random numbers compile slowly.
        sizes = [math.prod(shape) for shape in families.values()]
        streams = jax.vmap(jax.random.fold_in, (None, 0))(init_rng, jnp.arange(len(families)))
        keys = jax.vmap(lambda stream: jax.random.split(stream, max(sizes)))(streams)
        started = jax.vmap(jax.vmap(start))(keys)
        params = {
            name: jax.tree.map(
                lambda leaf: leaf[number, : sizes[number]].reshape(*shape, *leaf.shape[2:]),  # noqa: B023
                started,
            )
            for number, (name, shape) in enumerate(families.items())
        }
        num_sources = self.binding.num_sources
        flat = jnp.full((method.num_folds, num_classes), 1 / num_classes, jnp.float32)
        meta = {
            "matrices": jnp.broadcast_to(
                flat[:, None, None, :], (method.num_folds, num_sources, num_classes, num_classes)
            ),
            "class_shares": flat,
            "weights": jnp.ones(NUM_TERMS, jnp.float32),
            "judging_weights": jnp.ones((method.num_folds, NUM_TERMS), jnp.float32),
            "decay_weights": jnp.full(
                len(method.weight_decays), 1 / len(method.weight_decays), jnp.float32
            ),
        }
        main = MainState(params, {}, ())
        return TrainState(jnp.zeros((), jnp.int32), state_rng, main, MetaState(meta, ()))

    def train_rivals(self, state: TrainState, rows: Rows) -> tuple[TrainState, Metrics]:
        """Phase 1: what one would do instead, out of part and fold."""
        x, one_hot = rows.inputs, self._one_hot(rows)
        said = vote_shares(rows.votes, self.binding.num_classes)
        params = dict(state.main.params)
        target_of = jnp.repeat(
            jnp.arange(2), jnp.array([self.method.num_parts, self.method.num_folds]),
            total_repeat_length=len(rows.rival_lists),
        )  # fmt: skip
        # As in scikit-learn's LogisticRegression(C=1).
        decays = 1 / jnp.maximum(rows.rival_lengths, 1)[:, None].astype(jnp.float32)
        params["rivals"], loss = self._train(
            params["rivals"], x, jnp.stack([said, one_hot]), rows.rival_lists, rows.rival_lengths,
            target_of, decays, jax.random.fold_in(state.rng, _RIVALS), state.step,
        )  # fmt: skip
        known = self._known(params, rows)
        labels = self._start(known)
        meta = state.meta.params | {"matrices": labels.matrices, "class_shares": labels.pi}  # type: ignore[union-attr]
        return self._advanced(state, params, meta), {"inner_loss": loss}

    def train_round(self, state: TrainState, rows: Rows) -> tuple[TrainState, Metrics]:
        """Phase 2: all runs learn what labels are held to be; then that is said anew."""
        method = self.method
        params, meta = dict(state.main.params), state.meta.params  # type: ignore[union-attr]
        known = self._known(params, rows)
        is_first = state.step == method.steps_per_round
        labels = self._labels(params, meta, known, is_first)
        lists = rows.lists.reshape(self.num_runs, -1)
        target_of = jnp.repeat(jnp.arange(method.num_folds), method.num_parts)
        decays = jnp.broadcast_to(
            jnp.asarray(method.weight_decays, jnp.float32),
            (self.num_runs, len(method.weight_decays)),
        )
        params["runs"], loss = self._train(
            params["runs"], known.x, labels.q, lists, rows.lengths.reshape(-1), target_of, decays,
            jax.random.fold_in(state.rng, _RUNS), state.step,
        )  # fmt: skip
        meta, _ = self._said_anew(params, labels, known)
        metrics = {"inner_loss": loss} | {
            f"weight_of_{name}": x
            for name, x in zip(
                ("classifier", "label", "given", "checked"), meta["weights"], strict=True
            )
        }
        return self._advanced(state, params, meta), metrics

    def out_of_fold(self, state: TrainState, rows: Rows) -> dict[str, jax.Array]:
        """Probabilities `[N, C]` of runs that did not learn from a row; the rivals' beside them.

        A judged row's are those of the runs that its check was hidden from, by weights that were
        fitted without its fold: by weights fitted with it, the verdict was 1.5 points too good
        (docs/results/own_data.md).
        """
        params, meta = state.main.params, state.meta.params  # type: ignore[union-attr]
        known = self._known(params, rows)
        mixed = self._mixed(params["runs"], meta["decay_weights"], known)
        terms = self._terms(mixed, self._says(meta["matrices"], meta["class_shares"], rows), known)
        terms = tuple(jnp.broadcast_to(term, mixed.shape) for term in terms)

        def each(weights: jax.Array, *terms: jax.Array) -> dict[str, jax.Array]:
            log_q = {
                "corrected": pool(weights, *terms),
                "classifier": pool(weights.at[1].set(0.0), *terms),
                "checked": terms[3],
                "given": terms[2],
            }
            return jax.tree.map(jnp.exp, log_q)

        judged = jax.vmap(each)(
            meta["judging_weights"][rows.fold], *(x[rows.fold, rows.judged] for x in terms)
        )
        place = jnp.where(rows.counts > 0, rows.judged, mixed.shape[1])
        return jax.tree.map(
            lambda probs, of_judged: jnp.mean(probs, axis=0).at[place].set(of_judged, mode="drop"),
            each(meta["weights"], *terms), judged,
        )  # fmt: skip

    def classify(self, state: TrainState, x: Inputs) -> tuple[jax.Array, Any]:
        """New rows: log of the mean probability of the pool without the label's term, over runs."""
        params, meta = state.main.params, state.meta.params  # type: ignore[union-attr]
        shape = (self.method.num_folds, self.method.num_parts)
        runs = self._over_decays(self._log_probs(params["runs"], x), meta["decay_weights"])
        rivals = self._log_probs(params["rivals"], x)[:, 0]
        given = rivals[None, : self.method.num_parts]
        checked = rivals[self.method.num_parts :, None]
        runs = runs.reshape(*shape, *runs.shape[1:])
        zero = jnp.zeros((), runs.dtype)
        log_q = pool(meta["weights"], runs, zero, given, checked)
        return jnp.log(jnp.mean(jnp.exp(log_q), axis=(0, 1))), None

    def correct_labels(
        self, state: TrainState, evidence: Any, logits: jax.Array, labels: jax.Array
    ) -> jax.Array:
        """Of rows that nothing learned from: the prediction, and what their given label says.

        Where there are several sources, nobody knows whose label it is: the prediction alone.
        """
        meta = state.meta.params  # type: ignore[union-attr]
        if meta["matrices"].shape[1] > 1:
            return jax.nn.softmax(logits)
        says = jax.vmap(label_term, in_axes=(None, 0, 0))(
            labels[:, None], meta["matrices"], meta["class_shares"]
        )
        return jax.nn.softmax(logits + meta["weights"][1] * jnp.mean(says, axis=0))

    # Classifiers.

    def _one_hot(self, rows: Rows) -> jax.Array:
        return jax.nn.one_hot(rows.checks, self.binding.num_classes)

    def _apply(self, params: Params, x: Inputs, *, train: bool = False) -> jax.Array:
        outputs: Any = self.binding.model.apply({"params": params}, x, train=train)
        return Output(*outputs).logits

    def _log_probs(self, params: Params, x: Inputs) -> jax.Array:
        """Of members with leaves `[G, E, ...]`, on x `[N, ...]`: `[G, E, N, C]`."""
        each = jax.vmap(jax.vmap(self._apply, in_axes=(0, None)), in_axes=(0, None))
        return jnp.maximum(jax.nn.log_softmax(each(params, x)), LOG_FLOOR)

    def _train(
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
        """A round of members with leaves `[G, E, ...]`; devices share the G lists.

        Members of a list see the same batches. Batch t is a function of (key, first_step + t).

        Args:
          params: to start from.
          x: `[N, ...]`, one copy for all.
          targets: `[T, N, C]`, of which `target_of` `[G]` says each list's.
          lists, lengths: `[G, L]` and `[G]`.
          decays: `[G, E]`.

        Returns:
          The params, and the mean loss of the last step.
        """
        method, axis = self.method, self.binding.axis_name
        num_lists, size = lists.shape[0], method.batch_size
        members = jnp.arange(num_lists)
        if axis is not None:
            share = -(-num_lists // jax.lax.axis_size(axis))
            members = jax.lax.axis_index(axis) * share + jnp.arange(share)
            members = jnp.minimum(members, num_lists - 1)  # The last ones may be trained twice.
        mine = lambda tree: jax.tree.map(lambda leaf: leaf[members], tree)  # noqa: E731
        adam = optax.scale_by_adam(b2=_ADAM_B2)

        def loss_of(
            params: Params, inputs: Inputs, wanted: jax.Array, decay: jax.Array, rng: chex.PRNGKey
        ) -> tuple[jax.Array, jax.Array]:
            outputs: Any = self.binding.model.apply(
                {"params": params}, inputs, train=True, rngs={"dropout": rng}
            )
            log_probs = jax.nn.log_softmax(Output(*outputs).logits)
            loss = -jnp.mean(jnp.sum(wanted * log_probs, axis=-1))
            kernels = [leaf for leaf in jax.tree.leaves(params) if leaf.ndim > 1]
            squares = sum(jnp.sum(jnp.square(leaf)) for leaf in kernels)
            return loss + decay / 2 * squares, loss

        def update(member: Any, inputs: Any, wanted: Any, decay: Any, rate: Any, rng: Any) -> Any:
            params, opt_state = member
            grads, loss = jax.grad(loss_of, has_aux=True)(params, inputs, wanted, decay, rng)
            updates, opt_state = adam.update(grads, opt_state)
            params = jax.tree.map(lambda p, u: p - rate * u, params, updates)
            return (params, opt_state), loss

        over_decays = jax.vmap(update, in_axes=(0, None, None, 0, None, None))
        over_lists = jax.vmap(over_decays, in_axes=(0, 0, 0, 0, None, None))

        def step(carry: Any, t: jax.Array) -> tuple[Any, jax.Array]:
            rng = jax.random.fold_in(key, first_step + t)
            # One draw for all, and all draws on each device: random numbers compile slowly.
            own = jnp.maximum(lengths, 1)[:, None]
            draws = jax.random.uniform(rng, (num_lists, size)) * own
            places = jnp.minimum(draws.astype(jnp.int32), own - 1)
            rows = jnp.take_along_axis(lists, places, axis=1)[members]
            inputs = jax.tree.map(lambda leaf: leaf[rows], x)
            wanted = targets[target_of[members][:, None], rows]
            turn = jnp.asarray(t, jnp.float32) / method.steps_per_round
            rate = (1 + _LAST_RATE + (1 - _LAST_RATE) * jnp.cos(jnp.pi * turn)) / 2
            carry, loss = over_lists(
                carry,
                inputs,
                wanted,
                decays[members],
                method.learning_rate * rate,
                jax.random.fold_in(rng, _DROPOUT),
            )
            return carry, jnp.mean(loss)

        start = mine(params)
        opt_state = jax.vmap(jax.vmap(adam.init))(start)
        (trained, _), losses = jax.lax.scan(
            step, (start, opt_state), jnp.arange(method.steps_per_round)
        )
        loss = losses[-1]
        if axis is not None:
            trained = jax.tree.map(
                lambda leaf: jax.lax.all_gather(leaf, axis, tiled=True)[:num_lists], trained
            )
            loss = jax.lax.pmean(loss, axis)
        return trained, loss

    # The label model.

    def _known(self, params: dict[str, Params], rows: Rows) -> _Known:
        x, num_parts = rows.inputs, self.method.num_parts
        unsure = -jnp.log(jnp.asarray(self.binding.num_classes, jnp.float32))

        def of_block(x: Inputs, part: jax.Array) -> jax.Array:
            """`[1 + K, B, C]`: given, and checked."""
            rivals = self._log_probs(params["rivals"], x)[:, 0]
            rivals = jnp.where(rows.rival_lengths[:, None, None] > 0, rivals, unsure)
            given = jnp.take_along_axis(rivals[:num_parts], part[None, :, None], axis=0)
            return jnp.concatenate([given, rivals[num_parts:]])

        rivals = _by_blocks(of_block, x, rows.part)
        return _Known(rows, x, self._one_hot(rows), rivals[0], rivals[1:], _trust(rows, rivals[0]))

    def _over_decays(self, log_probs: jax.Array, decay_weights: jax.Array) -> jax.Array:
        """`[G, E, ..., C]` -> `[G, ..., C]`."""
        return jax.nn.log_softmax(jnp.einsum("e,ge...->g...", decay_weights, log_probs))

    def _out_of_part(self, log_probs: jax.Array, part: jax.Array) -> jax.Array:
        """`[K * H, N, C]` -> `[K, N, C]`: of the H runs the one that did not learn from a row."""
        shape = (self.method.num_folds, self.method.num_parts)
        log_probs = log_probs.reshape(*shape, *log_probs.shape[1:])
        return jnp.take_along_axis(log_probs, part[None, None, :, None], axis=1)[:, 0]

    def _mixed(self, runs: Params, decay_weights: jax.Array, known: _Known) -> jax.Array:
        """`log p` `[K, N, C]`."""

        def of_block(x: Inputs, part: jax.Array) -> jax.Array:
            log_probs = self._over_decays(self._log_probs(runs, x), decay_weights)
            return self._out_of_part(log_probs, part)

        return _by_blocks(of_block, known.x, known.rows.part)

    def _says(self, matrices: jax.Array, pi: jax.Array, rows: Rows) -> jax.Array:
        """The label's term of all folds, `[K, N, C]`."""
        return jax.vmap(label_term, in_axes=(None, 0, 0))(rows.votes, matrices, pi)

    def _terms(self, mixed: jax.Array, says: jax.Array, known: _Known) -> tuple[jax.Array, ...]:
        return mixed, says, known.given[None], known.checked

    def _check_weights(self, clean: jax.Array, pi: jax.Array, known: _Known) -> jax.Array:
        """`[N]`, mean 1 on `clean`: where so many per class were drawn, a class counts by pi."""
        shares = jnp.sum(known.one_hot * clean[:, None], axis=0)
        weight = clean * (known.one_hot @ (pi / jnp.maximum(shares, 1e-9)))
        weight = weight * jnp.sum(clean) / jnp.maximum(jnp.sum(weight), 1e-9)
        return jnp.where(known.rows.is_random, clean, weight)

    def _start(self, known: _Known) -> _Labels:
        """Before the first round: from the given labels and the checks alone."""
        method, num_classes = self.method, self.binding.num_classes
        rows, flat = known.rows, jnp.full(num_classes, 1 / num_classes)

        def shares(is_visible: jax.Array, checked: jax.Array) -> jax.Array:
            """From what never saw a `pi`, so that nothing feeds itself."""
            clean = (is_visible & rows.is_judged).astype(jnp.float32)
            per_class = jnp.maximum(jnp.sum(known.one_hot * clean[:, None], axis=0), 1)
            balanced = clean * (known.one_hot @ (jnp.mean(per_class) / per_class))
            matrices = source_counts(
                rows.votes, known.one_hot, balanced, balanced, flat, method.prior_strength / 2,
                known.trust,
            )  # fmt: skip
            evidence = label_term(rows.votes, matrices, flat) + _CHECKED_TRUST * checked
            doubtful = _doubtful(rows, is_visible)
            return shifted_shares(evidence, doubtful, 0.2)

        pi = jax.vmap(shares)(rows.is_visible, known.checked)
        q = jnp.where(rows.is_visible[..., None], known.one_hot, pi[:, None, :])
        return self._sweep(None, q, pi, jnp.ones(NUM_TERMS), known)

    def _labels(
        self, params: dict[str, Params], meta: dict[str, jax.Array], known: _Known, is_first: Any
    ) -> _Labels:
        """What the newest label model says; before the first round the classifiers know nothing."""
        rows, matrices, pi = known.rows, meta["matrices"], meta["class_shares"]
        says = self._says(matrices, pi, rows)
        mixed = self._mixed(params["runs"], meta["decay_weights"], known)
        log_q = jnp.where(
            is_first,
            jax.nn.log_softmax(jnp.log(pi)[:, None] + says),
            pool(meta["weights"], *self._terms(mixed, says, known)),
        )
        q = jnp.where(rows.is_visible[..., None], known.one_hot, jnp.exp(log_q))
        return _Labels(q, matrices, pi)

    def _sweep(
        self,
        mixed: jax.Array | None,
        q: jax.Array,
        pi: jax.Array,
        weights: jax.Array,
        known: _Known,
    ) -> _Labels:
        """R, pi and q of all folds, one after the other; without `mixed`, from the labels alone."""
        method, rows = self.method, known.rows

        def of_fold(
            log_p: jax.Array | None, is_visible: jax.Array, q: jax.Array, pi: jax.Array,
            checked: jax.Array,
        ) -> _Labels:  # fmt: skip
            doubtful = _doubtful(rows, is_visible)
            doubtful = doubtful * (0.0 if log_p is None else method.expected_weight)
            seen = (is_visible & rows.is_judged).astype(jnp.float32)
            # Where nobody looked, labels would teach how good they are themselves.
            counted = jnp.where(jnp.any(rows.checks >= 0), doubtful, 0.0)

            def sweep(labels: _Labels, _: None) -> tuple[_Labels, None]:
                clean = self._check_weights(seen, labels.pi, known)
                shares = class_shares(labels.q, clean + doubtful)
                pi = jnp.where(rows.is_random, shares, labels.pi)
                matrices = source_counts(
                    rows.votes, labels.q, clean + counted, clean, pi, method.prior_strength,
                    known.trust,
                )  # fmt: skip
                says = label_term(rows.votes, matrices, pi)
                if log_p is None:
                    log_q = jax.nn.log_softmax(jnp.log(pi) + says)
                else:
                    log_q = pool(weights, log_p, says, known.given, checked)
                q = jnp.where(is_visible[:, None], known.one_hot, jnp.exp(log_q))
                return _Labels(q, matrices, pi), None

            num_classes = self.binding.num_classes
            nothing = jnp.zeros((rows.votes.shape[1], num_classes, num_classes), q.dtype)
            return jax.lax.scan(sweep, _Labels(q, nothing, pi), None, length=_SWEEPS)[0]

        axes = (None if mixed is None else 0, 0, 0, 0, 0)
        folds = jax.vmap(of_fold, in_axes=axes)
        result: _Labels = folds(mixed, rows.is_visible, q, pi, known.checked)
        return result

    def _said_anew(
        self, params: dict[str, Params], labels: _Labels, known: _Known
    ) -> tuple[dict[str, jax.Array], _Labels]:
        """Between rounds: weights by the likelihood of hidden checks, then R, pi and q."""
        method, rows = self.method, known.rows
        says = self._says(labels.matrices, labels.pi, rows)
        hidden = jnp.zeros(rows.checks.shape, jnp.float32).at[rows.judged].add(rows.counts)
        weight = self._check_weights(hidden, jnp.mean(labels.pi, axis=0), known)
        counts = weight[rows.judged] * rows.counts
        others = jnp.stack(
            [says[rows.fold, rows.judged], known.given[rows.judged],
             known.checked[rows.fold, rows.judged]], axis=1,
        )  # fmt: skip

        # The term of several sources is right as it is, but for what they have in common. Where
        # it is right in all of a few checks, a wide prior would let it overrule everything.
        several = rows.votes.shape[1] > 1
        widths = (
            method.trust_width,
            min(method.trust_width, _SOURCES_WIDTH if several else math.inf),
        )

        def fitted(log_p: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
            """Args: log_p: `[K, M, C]`, of the judged rows. counts: `[M]`."""
            own = log_p[rows.fold, jnp.arange(len(rows.judged))]
            terms = jnp.concatenate([own[:, None], others], axis=1)
            checks = jnp.maximum(rows.checks[rows.judged], 0)
            return fit_weights(terms, checks, counts, widths, method.rival_width)

        x = jax.tree.map(lambda leaf: leaf[rows.judged], known.x)
        log_probs, part = self._log_probs(params["runs"], x), rows.part[rows.judged]
        of_decays = jax.vmap(self._out_of_part, in_axes=(1, None))(log_probs, part)
        # Fits side by side. First of each decay alone, by all checks; then of all decays together,
        # by all checks, and by those of all folds but one. One loop compiles in half the time.
        num_decays, num_folds = len(method.weight_decays), method.num_folds
        lanes = jnp.arange(max(num_decays, 1 + num_folds))
        kept = counts * (rows.fold != lanes[:, None] - 1)

        def turn(fits: Any, _: None) -> tuple[Any, tuple[jax.Array, jax.Array]]:
            """The weights of each fit, `[L, 4]`, and those of the decays, `[E]`."""
            weights, likelihoods = jax.vmap(fitted)(*fits)
            decay_weights = jax.nn.softmax(likelihoods[:num_decays])
            judged = self._out_of_part(self._over_decays(log_probs, decay_weights), part)
            return (jnp.broadcast_to(judged, fits[0].shape), kept), (weights, decay_weights)

        fits = of_decays[lanes % num_decays], jnp.broadcast_to(counts, kept.shape)
        _, (weights, decay_weights) = jax.lax.scan(turn, fits, None, length=2)
        judging_weights, decay_weights = weights[1, 1 : 1 + num_folds], decay_weights[0]
        weights = weights[1, 0]
        mixed = self._mixed(params["runs"], decay_weights, known)
        pi = self._shares_of_predictions(mixed, says, weights, known)
        pi = jnp.where(rows.is_random, labels.pi, pi)
        said = self._sweep(mixed, labels.q, pi, weights, known)
        meta = {
            "matrices": said.matrices,
            "class_shares": said.pi,
            "weights": weights,
            "judging_weights": judging_weights,
            "decay_weights": decay_weights,
        }
        return meta, said

    def _shares_of_predictions(
        self, mixed: jax.Array, says: jax.Array, weights: jax.Array, known: _Known
    ) -> jax.Array:
        """`pi` `[K, C]` where so many checks per class were drawn: those say no shares.

        How often each class is predicted, and what each is taken for by hidden checks: the shares
        that explain the one by the other. No prediction feeds itself so, as the mean of q would.
        """
        method, rows, num_classes = self.method, known.rows, self.binding.num_classes
        predicted = jnp.argmax(pool(weights, *self._terms(mixed, says, known)), axis=-1)
        own = predicted[rows.fold, rows.judged]
        checks = jnp.maximum(rows.checks[rows.judged], 0)
        eye = jnp.eye(num_classes)

        def of_fold(fold: jax.Array, predicted: jax.Array, is_visible: jax.Array) -> jax.Array:
            seen = rows.counts * (rows.fold != fold)
            rho = (jnp.sum(seen * (own == checks)) + 1) / (jnp.sum(seen) + 2)
            prior = rho * eye + (1 - rho) * (1 - eye) / max(1, num_classes - 1)
            taken = (eye[checks] * seen[:, None]).T @ eye[own] + method.prior_strength / 2 * prior
            likelihood = taken / jnp.sum(taken, axis=1, keepdims=True)
            doubtful = _doubtful(rows, is_visible)
            return shifted_shares(jnp.log(likelihood).T, doubtful @ eye[predicted], 0.2)

        return jax.vmap(of_fold)(jnp.arange(method.num_folds), predicted, rows.is_visible)

    def _advanced(self, state: TrainState, params: Params, meta: Params) -> TrainState:
        return state.replace(
            step=state.step + self.method.steps_per_round,
            main=MainState(params, {}, ()),
            meta=MetaState(meta, ()),
        )
