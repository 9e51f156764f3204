"""Building blocks of methods."""

import dataclasses
from collections.abc import Callable
from typing import Any, cast

import chex
import jax
import jax.numpy as jnp
import optax
from flax import traverse_util

from mlc_jax import core
from mlc_jax.core import (
    ESTIMATORS,
    ApplyFn,
    Batch,
    Estimator,
    Evidence,
    InnerLoss,
    Inputs,
    Labelled,
    MainState,
    MetaState,
    Metrics,
    Output,
    Params,
    Problem,
    TargetFn,
    TrainState,
    Window,
    features_of,
)
from mlc_jax.errors import expect
from mlc_jax.methods.types import (
    BilevelMethod,
    Binding,
    BoundMethod,
    CorrectLabels,
    InnerStep,
    Phase,
    Seen,
    TrainStep,
)
from mlc_jax.models.pretrained import with_initial

# Streams of the initial key, so that a later start does not draw the same numbers again.
_META_STREAM, _RESTART_STREAM = 1, 2
_AUXILIARY_STREAM = 4  # A stream of the step's key, see `core.problem`.
PLAIN = InnerLoss()
# (meta params, `TrainState.extra`, evidence of clean examples, the classifier's logits [B, C] for
# them, the examples) -> this device's loss, (new extra, metrics); all are averaged over devices.
Auxiliary = Callable[[Params, Any, Any, jax.Array, Labelled], tuple[jax.Array, tuple[Any, Metrics]]]


def init_model(binding: Binding, rng: chex.PRNGKey, inputs: Inputs) -> tuple[Params, Params]:
    """Initial params and batch statistics of a network like the classifier.

    Args:
      binding: has the model, and the parameters and statistics that do not start at random.
      rng: typed key for all others.
      inputs: `[1, ...]`, prepared.
    """
    variables = binding.model.init(rng, inputs, train=False)
    params, batch_stats = variables["params"], variables.get("batch_stats", {})
    if binding.loaded:
        # No parameter has the path of a statistic: a norm has `scale` here and `mean` there.
        trees = [traverse_util.flatten_dict(x, sep="/") for x in (params, batch_stats)]
        flat = with_initial(trees[0] | trees[1], binding.loaded)
        params, batch_stats = (
            traverse_util.unflatten_dict({path: flat[path] for path in tree}, sep="/")
            for tree in trees
        )
    return params, batch_stats


def main_state(binding: Binding, rng: chex.PRNGKey, example: Inputs) -> MainState:
    """The classifier before the first step, initialised on `example` `[1, ...]`, as stored."""
    params, batch_stats = init_model(binding, rng, binding.prepare(example))
    return MainState(params, batch_stats, binding.optimizer().init(params))


def train_mode(binding: Binding) -> ApplyFn:
    """The classifier as the core's `ApplyFn`, in training mode."""

    def apply(
        params: Params, batch_stats: Params, inputs: Inputs, rng: chex.PRNGKey
    ) -> tuple[jax.Array, jax.Array, Params]:
        (logits, features), updated = binding.model.apply(
            {"params": params, "batch_stats": batch_stats},
            inputs,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        return logits, features, updated.get("batch_stats", {})

    return apply


def create_problem(
    binding: Binding,
    targets: TargetFn = core.given_labels,
    rule: InnerLoss = PLAIN,
    evidence: Evidence = features_of,
) -> Problem:
    """The classifier, its optimizer, and its targets on noisy examples."""
    return Problem(
        train_mode(binding), targets, binding.optimizer(), binding.axis_name, rule,
        binding.prepare, evidence,
    )  # fmt: skip


def create_init(
    binding: Binding, extra: Any = None
) -> Callable[[chex.PRNGKey, Inputs], TrainState]:
    """`BoundMethod.init` without a meta model; the classifier starts as in all methods."""

    def init(rng: chex.PRNGKey, example: Inputs) -> TrainState:
        init_rng, state_rng = jax.random.split(rng)
        main = main_state(binding, init_rng, example)
        return TrainState(jnp.zeros((), jnp.int32), state_rng, main, None, extra)

    return init


def restart(binding: Binding, state: TrainState, seen: Seen) -> TrainState:
    """The state with a new classifier, initialised with other random numbers than the first."""
    rng = jax.random.fold_in(jax.random.fold_in(state.rng, state.step), _RESTART_STREAM)
    return state.replace(main=main_state(binding, rng, seen.example))


def in_steps(binding: Binding, inner_step: InnerStep) -> TrainStep:
    """`Phase.train_step`: k inner steps, one after the other."""

    def train_step(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        rngs = core.step_rngs(state.rng, state.step, num_steps_of(batches), binding.axis_name)

        def body(state: TrainState, xs: tuple[Batch, chex.PRNGKey]) -> tuple[TrainState, Metrics]:
            state, metrics = inner_step(state, *xs)
            return state.replace(step=state.step + 1), metrics

        scan_unroll = binding.scan_unroll(state.main.params, num_steps_of(batches))
        state, metrics = core.scan(body, state, (batches, rngs), scan_unroll)
        return state, core.pmean(jax.tree.map(jnp.mean, metrics), binding.axis_name)

    return train_step


def num_steps_of(batches: Batch) -> int:
    """k, the leading axis of all arrays."""
    return jax.tree.leaves(batches)[0].shape[0]


def supervised_step(
    binding: Binding,
    view: Callable[[Batch], Batch],
    targets: TargetFn = core.given_labels,
    beliefs: Callable[[TrainState, Batch], Any] = lambda state, batch: None,
    rule: InnerLoss = PLAIN,
) -> TrainStep:
    """Plain training, no meta-gradient.

    Args:
      binding: see `Binding`.
      view: maps the batch of one inner step to the part that is trained on, in its `noisy` and
        `clean_inner`.
      targets: the classifier's targets on noisy examples.
      beliefs: (state, batch) -> the first argument of `targets`.
      rule: terms of the inner loss beyond cross-entropy.
    """
    problem = create_problem(binding, targets, rule)

    def inner_step(
        state: TrainState, batch: Batch, rng: chex.PRNGKey
    ) -> tuple[TrainState, Metrics]:
        batch = view(batch)
        believed = beliefs(state, batch)
        main, metrics = core.inner_step(problem, state.main, believed, batch, rng)
        return state.replace(main=main), metrics

    return in_steps(binding, inner_step)


def descend(
    problem: Problem,
    state: TrainState,
    loss: Callable[[Params], tuple[jax.Array, tuple[Params, Metrics]]],
) -> tuple[TrainState, Metrics]:
    """One update of the classifier along the gradient of any loss.

    Args:
      problem: for its optimizer and axis.
      state: before the update.
      loss: params -> (this device's loss, (new batch_stats, metrics)).
    """
    grads, (batch_stats, metrics) = jax.grad(loss, has_aux=True)(state.main.params)
    grads, batch_stats = core.pmean((grads, batch_stats), problem.axis_name)
    main = core.apply_inner_grads(problem, state.main, grads, batch_stats)
    return state.replace(main=main), metrics


def remembered_labels(state: TrainState, batch: Batch) -> jax.Array:
    """Soft labels `[B, C]` of a batch's noisy examples, from `state.extra["labels"]` `[N, C]`."""
    assert batch.noisy is not None
    labels: jax.Array = state.extra["labels"][batch.noisy.rows]
    return labels


def soft_labels(
    soft: jax.Array, features: jax.Array, logits: jax.Array, labels: jax.Array
) -> jax.Array:
    """The `TargetFn` whose targets are the given soft labels, `[B, C]`."""
    del features, logits, labels
    return soft


def noisy_and_clean(batch: Batch) -> Batch:
    """The whole batch: without an outer loss all clean examples are trained on."""
    parts = [part for part in (batch.clean_inner, batch.clean_outer) if part is not None]
    return Batch(batch.noisy, jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts), None)


def noisy_part(batch: Batch) -> Batch:
    """The noisy examples only."""
    return Batch(batch.noisy, None, None)


def clean_part(batch: Batch) -> Batch:
    """The clean examples only."""
    return noisy_and_clean(batch)._replace(noisy=None)


def classifier_labels(
    state: TrainState, features: jax.Array, logits: jax.Array, labels: jax.Array
) -> jax.Array:
    """`BoundMethod.correct_labels` that returns the classifier's prediction."""
    del state, features, labels
    return jax.nn.softmax(logits)


def supervised(
    binding: Binding,
    view: Callable[[Batch], Batch],
    targets: TargetFn = core.given_labels,
    rule: InnerLoss = PLAIN,
    **fields: Any,
) -> BoundMethod:
    """Training without a meta model, in one phase; arguments as for `supervised_step`."""
    phase = Phase(binding.num_steps, supervised_step(binding, view, targets, rule=rule))
    return BoundMethod(create_init(binding), (phase,), classifier_labels, **fields)


def bilevel_method(
    method: BilevelMethod,
    binding: Binding,
    targets: TargetFn,
    init_meta: Callable[[chex.PRNGKey, Any], tuple[Params, Any]],
    correct_labels: CorrectLabels,
    *,
    rule: InnerLoss = PLAIN,
    evidence: Evidence = features_of,
    auxiliary: Auxiliary | None = None,
) -> BoundMethod:
    """A classifier that learns a meta model's targets; the meta model learns from the clean loss.

    One `train_step` is the paper's algorithm 1. It makes k real updates of the classifier, with
    targets from the current meta model. Then it updates the meta model once, by the meta-gradient
    through all k. With `update_every` = s < k it makes s real updates. The window of the
    meta-gradient then begins k - s steps earlier, but not before the run's first step. It is
    replayed with the current meta model. `approximate` continues its sum instead of replaying.

    Args:
      method: has the meta model's optimizer and the estimator.
      binding: see `Binding`.
      targets: the classifier's targets on noisy examples.
      init_meta: (typed key, evidence of one example) -> meta params, and `TrainState.extra`.
      correct_labels: see `BoundMethod`.
      rule: terms of the inner loss beyond cross-entropy.
      evidence: the evidence that `targets` and `correct_labels` get in addition to the logits.
      auxiliary: a further loss of the meta model, on all clean examples of the last step and with
        the classifier after it; it also returns the method's new `extra`.

    Raises:
      InputError: `rule` needs clean examples in the inner loss.
    """
    expect(
        method.mix_clean or not rule.needs_fit,
        "mix_clean",
        method.mix_clean,
        f"True with {method.name}: its inner loss goes by how far the clean half is fitted",
    )
    problem = create_problem(binding, targets, rule, evidence)
    meta_tx = binding.meta_optimizer(method.meta_tx)
    made = _Bilevel(method, binding, problem, meta_tx, init_meta, auxiliary)
    phases = (Phase(binding.num_steps, made.train_step),)
    window = None if method.goes_on else made.window
    return BoundMethod(made.init, phases, correct_labels, window, evidence=evidence)


@dataclasses.dataclass(frozen=True, eq=False)
class _Bilevel:
    """The functions of `bilevel_method`; the fields are mostly its arguments."""

    method: BilevelMethod
    binding: Binding
    problem: Problem
    meta_tx: optax.GradientTransformation
    init_meta: Callable[[chex.PRNGKey, Any], tuple[Params, Any]]
    auxiliary: Auxiliary | None

    def init(self, rng: chex.PRNGKey, example: Inputs) -> TrainState:
        """The state before the first step; see `BoundMethod`."""
        binding = self.binding
        state = create_init(binding)(rng, example)
        variables = {"params": state.main.params, "batch_stats": state.main.batch_stats}
        inputs = binding.prepare(example)
        outputs: Any = binding.model.apply(variables, inputs, train=False)
        meta_rng = jax.random.fold_in(jax.random.split(rng)[0], _META_STREAM)
        evidence = self.problem.evidence(Output(*outputs), inputs, None)
        meta_params, extra = self.init_meta(meta_rng, evidence)
        past = None
        if self.method.goes_on:
            past = jax.tree.map(jnp.zeros_like, meta_params)
        elif self.method.num_replayed:
            past = core.start_ring(state.main, self.method.num_replayed // self.method.stride)
        meta = MetaState(meta_params, self.meta_tx.init(meta_params))
        return state.replace(meta=meta, extra=extra, past=past)

    def window(self, estimator: Estimator, state: TrainState, batches: Batch) -> Window:
        """An estimator's window on these batches; see `BoundMethod`."""
        return self.look(estimator, state, batches)[0]

    def look(self, estimator: Estimator, state: TrainState, batches: Batch) -> tuple[Window, Any]:
        """The window on these batches, and `state.past` after it."""
        problem, replayed = self.problem, self.method.num_replayed
        length = num_steps_of(batches)
        turns = self.binding.scan_unroll(state.main.params, length)
        options, past = self.method.estimator.options(turns), None
        given = (cast(MetaState, state.meta).params, batches, self.rngs(state, length))
        if self.method.goes_on:
            result = core.approximate(problem, state.main, *given, options, previous=state.past)
            past = result.meta_grads
        elif replayed:
            main, metrics = core.unroll(
                problem, state.main, *given, first=replayed, scan_unroll=turns
            )
            update = state.step // self.method.stride
            oldest, past = core.turn_ring(state.past, update, state.main)
            options = options._replace(skipped=jnp.maximum(0, replayed - state.step))
            replay = estimator(problem, oldest, *given, options)  # Its end is dropped.
            outer = {name: replay.metrics[name] for name in core.OUTER_METRICS}
            result = Window(replay.meta_grads, main, jax.tree.map(jnp.mean, metrics) | outer)
        else:
            result = estimator(problem, state.main, *given, options)
        metrics = core.pmean(result.metrics, problem.axis_name)
        return result._replace(metrics=metrics), past

    def auxiliary_grads(
        self, state: TrainState, main: MainState, batches: Batch
    ) -> tuple[Params | None, tuple[Any, Metrics]]:
        """Gradient in the meta params, new `extra`, metrics; `main` is the newest classifier."""
        if self.auxiliary is None:
            return None, (state.extra, {})
        problem = self.problem
        batch, rng = core.at_step((batches, self.rngs(state, num_steps_of(batches))), -1)
        clean = cast(Labelled, clean_part(batch).clean_inner)
        rng = jax.random.fold_in(rng, _AUXILIARY_STREAM)
        inputs = problem.prepare(clean.inputs)
        logits, features, _ = problem.apply(main.params, main.batch_stats, inputs, rng)
        seen = core.evidence_of(problem, Output(logits, features), inputs, rng)
        grad = jax.grad(self.auxiliary, has_aux=True)
        meta_params = cast(MetaState, state.meta).params
        result: tuple[Params, Any] = grad(meta_params, state.extra, seen, logits, clean)
        return core.pmean(result, problem.axis_name)

    def rngs(self, state: TrainState, length: int) -> chex.PRNGKey:
        """Keys `[length]` of a window's steps; a replayed step gets its former key."""
        first = state.step - self.method.num_replayed
        return core.step_rngs(state.rng, first, length, self.problem.axis_name)

    def train_step(self, state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        """See `Phase`."""
        estimator = ESTIMATORS[self.method.estimator.name]
        (meta_grads, main, metrics), past = self.look(estimator, state, batches)
        meta = cast(MetaState, state.meta)
        beside, (extra, of_beside) = self.auxiliary_grads(state, main, batches)
        updates, opt_state = self.meta_tx.update(
            meta_grads, meta.opt_state, meta.params, auxiliary=beside
        )
        meta = MetaState(optax.apply_updates(meta.params, updates), opt_state)
        metrics |= of_beside | {
            "meta_grad_norm": optax.tree.norm(meta_grads),
            "meta_update_norm": optax.tree.norm(updates),
        }
        step = state.step + self.method.stride
        return TrainState(step, state.rng, main, meta, extra, past), metrics
