"""What the training loop knows of a method, and what methods are built from."""

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import chex
import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from ml_collections import ConfigDict

from mlc_jax import bilevel, models, optimizers
from mlc_jax.bilevel import ApplyFn, Batch, Metrics, Params, Problem, TargetFn
from mlc_jax.meta_gradients import ESTIMATORS, Estimator, Options, Window
from mlc_jax.train_state import MainState, MetaState, TrainState, create_main_state

# Streams of the initial key, so that what is started later does not draw the first numbers again.
_META_STREAM, _RESTART_STREAM = 1, 2

Normalize = Callable[[Any], Any]
TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
CorrectLabels = Callable[[TrainState, jax.Array, jax.Array, jax.Array], jax.Array]
# One inner step: (state, batch `[B, ...]`, key) -> (state, metrics of this device's slice). The
# count of steps is not its business.
InnerStep = Callable[[TrainState, Batch, chex.PRNGKey], tuple[TrainState, Metrics]]


class Hook(NamedTuple):
    """What a method does between two epochs.

    Attributes:
      examples: the set that the classifier is run on first, `noisy` or `clean`; None for no set.
      update: (state, the classifier's probabilities `[N, C]`, the set's labels as training sees
        them `[N]`) -> state; pure. Without a set there is neither one nor the other.
    """

    examples: str | None
    update: Callable[[TrainState, jax.Array, jax.Array], TrainState]


class Phase(NamedTuple):
    """A stretch of training with one step function.

    Attributes:
      num_steps: inner steps, whole windows.
      train_step: (state, batches `[k, B, ...]`) -> the state k inner steps later, and scalar
        metrics, averaged over devices.
      before: run once, before the first step.
      after_epoch: run after every epoch.
    """

    num_steps: int
    train_step: TrainStep
    before: Hook | None = None
    after_epoch: Hook | None = None


class Method(NamedTuple):
    """The common face of all methods; pure functions.

    Attributes:
      init: typed key -> the state before the first step.
      phases: one after the other; the last one's classifier is the method's.
      correct_labels: (state, features `[B, F]`, logits `[B, C]`, given labels `[B]`) -> soft labels
        `[B, C]`: what the method holds the labels to be.
      window: (estimator, state, batches) -> what `train_step` would see of that estimator, the
        state left alone; None for methods without a meta model.
      uses_clean: whether the clean labels are trained on.
      learned_labels: state -> soft labels `[N, C]` of the noisy set, for methods that learn one for
        each example; they stand for what `correct_labels` says of it.
      label_quality: (as `correct_labels`) -> `[B]` in [0, 1], how far the given label is believed;
        None for the soft label's probability of it.
    """

    init: Callable[[chex.PRNGKey], TrainState]
    phases: tuple[Phase, ...]
    correct_labels: CorrectLabels
    window: Callable[[Estimator, TrainState, Batch], Window] | None = None
    uses_clean: bool = True
    label_quality: CorrectLabels | None = None
    learned_labels: Callable[[TrainState], jax.Array] | None = None

    @property
    def num_steps(self) -> int:
        """Inner steps of all phases."""
        return sum(phase.num_steps for phase in self.phases)

    @property
    def train_step(self) -> TrainStep:
        """The last phase's."""
        return self.phases[-1].train_step


def estimator_options(config: ConfigDict) -> Options:
    """`config.meta_gradient` for the estimators, with the unroll that suits model and platform."""
    settings = config.meta_gradient
    return Options(
        backward=settings.backward,
        scan_unroll=bilevel.resolve_unroll(
            settings.unroll,
            settings.num_inner_steps,
            convolutions=config.model.name in models.CONVOLUTIONAL,
        ),
        truncation=settings.truncation,
        solver_steps=settings.solver_steps,
        damping=settings.damping,
    )


class MethodInputs(NamedTuple):
    """What every method is built from.

    Attributes:
      config: the whole config.
      model: the classifier.
      normalize: from stored inputs to what the model takes.
      example_inputs: `[1, ...]`, as stored.
      num_classes: C.
      num_noisy: N, the number of noisy examples.
      steps_per_epoch: inner steps of one pass over the noisy set.
      num_epochs: of the phase that is built; its schedules begin with it.
      axis_name: pmap axis or None.
    """

    config: ConfigDict
    model: nn.Module
    normalize: Normalize
    example_inputs: jax.Array
    num_classes: int
    num_noisy: int
    steps_per_epoch: int
    num_epochs: int
    axis_name: str | None

    @property
    def options(self) -> Options:
        """Settings of the unroll and of the meta-gradient."""
        return estimator_options(self.config)

    @property
    def num_steps(self) -> int:
        """Inner steps of the phase: its epochs, filled up to whole windows."""
        num_inner_steps = self.config.meta_gradient.num_inner_steps
        return -(-self.num_epochs * self.steps_per_epoch // num_inner_steps) * num_inner_steps

    def first_phase(self) -> "MethodInputs":
        """For the first of two phases: with its number of epochs."""
        return self._replace(num_epochs=self.config.first_phase_epochs or self.num_epochs)

    def optimizer(self, name: str) -> optax.GradientTransformation:
        """Builds `config.main_optimizer` or `config.meta_optimizer`.

        The meta optimizer makes one update a window, so its schedule counts windows.
        """
        config = self.config[name]
        per_update = 1 if name == "main_optimizer" else self.config.meta_gradient.num_inner_steps
        schedule = optimizers.create_schedule(
            config.schedule,
            config.learning_rate,
            num_steps=self.num_steps // per_update,
            steps_per_epoch=max(1, self.steps_per_epoch // per_update),
            milestones=tuple(config.milestones),
            decay_factor=config.decay_factor,
        )
        return optimizers.create_optimizer(
            config.name,
            schedule,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            clip_norm=config.clip_norm,
        )

    def main_state(self, rng: chex.PRNGKey, tx: optax.GradientTransformation) -> MainState:
        """The classifier before the first step."""
        return create_main_state(rng, self.model, tx, self.normalize(self.example_inputs))


def train_mode(model: nn.Module, normalize: Normalize) -> ApplyFn:
    """The classifier as `bilevel` wants it: training mode, arguments in, statistics out."""

    def apply(
        params: Params, batch_stats: Params, inputs: jax.Array, rng: chex.PRNGKey
    ) -> tuple[jax.Array, jax.Array, Params]:
        (logits, features), updated = model.apply(
            {"params": params, "batch_stats": batch_stats},
            normalize(inputs),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        return logits, features, updated.get("batch_stats", {})

    return apply


def create_problem(
    inputs: MethodInputs, targets: TargetFn = bilevel.given_labels
) -> bilevel.Problem:
    """The classifier with the config's optimizer, and what it is to learn on noisy examples."""
    apply = train_mode(inputs.model, inputs.normalize)
    return Problem(apply, targets, inputs.optimizer("main_optimizer"), inputs.axis_name)


def create_init(inputs: MethodInputs, extra: Any = None) -> Callable[[chex.PRNGKey], TrainState]:
    """`Method.init` without a meta model; the classifier's start is the same for all methods."""

    def init(rng: chex.PRNGKey) -> TrainState:
        init_rng, state_rng = jax.random.split(rng)
        main = inputs.main_state(init_rng, inputs.optimizer("main_optimizer"))
        return TrainState(jnp.zeros((), jnp.int32), state_rng, main, None, extra)

    return init


def restart(inputs: MethodInputs, state: TrainState) -> TrainState:
    """The state with a new classifier, started from other random numbers than the first."""
    rng = jax.random.fold_in(jax.random.fold_in(state.rng, state.step), _RESTART_STREAM)
    return state.replace(main=inputs.main_state(rng, inputs.optimizer("main_optimizer")))


def in_steps(inputs: MethodInputs, inner_step: InnerStep) -> TrainStep:
    """`Phase.train_step`: k inner steps, one after the other."""

    def train_step(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        rngs = bilevel.step_rngs(state.rng, state.step, num_steps_of(batches), inputs.axis_name)

        def body(state: TrainState, xs: tuple[Batch, chex.PRNGKey]) -> tuple[TrainState, Metrics]:
            state, metrics = inner_step(state, *xs)
            return state.replace(step=state.step + 1), metrics

        scan_unroll = inputs.options.scan_unroll
        state, metrics = bilevel.scan(body, state, (batches, rngs), scan_unroll)
        return state, bilevel.pmean(jax.tree.map(jnp.mean, metrics), inputs.axis_name)

    return train_step


def num_steps_of(batches: Batch) -> int:
    """k, the leading axis of all arrays."""
    return jax.tree.leaves(batches)[0].shape[0]


def supervised_step(
    inputs: MethodInputs,
    view: Callable[[Batch], Batch],
    targets: TargetFn = bilevel.given_labels,
    beliefs: Callable[[TrainState, Batch], Any] = lambda state, batch: None,
) -> TrainStep:
    """Plain training, no meta-gradient.

    Args:
      inputs: see `MethodInputs`.
      view: from a batch of one inner step to the part of it that is trained on: `noisy` and
        `clean_inner`.
      targets: what the classifier is to learn on a noisy example.
      beliefs: (state, batch) -> the first argument of `targets`.
    """
    problem = create_problem(inputs, targets)

    def inner_step(
        state: TrainState, batch: Batch, rng: chex.PRNGKey
    ) -> tuple[TrainState, Metrics]:
        batch = view(batch)
        believed = beliefs(state, batch)
        main, metrics = bilevel.inner_step(problem, state.main, believed, batch, rng)
        return state.replace(main=main), metrics

    return in_steps(inputs, inner_step)


def descend(
    problem: Problem,
    state: TrainState,
    loss: Callable[[Params], tuple[jax.Array, tuple[Params, Metrics]]],
) -> tuple[TrainState, Metrics]:
    """One update of the classifier along the gradient of a loss of its own.

    Args:
      problem: for its optimizer and axis.
      state: before the update.
      loss: params -> (this device's loss, (new batch_stats, metrics)).
    """
    grads, (batch_stats, metrics) = jax.grad(loss, has_aux=True)(state.main.params)
    grads, batch_stats = bilevel.pmean((grads, batch_stats), problem.axis_name)
    main = bilevel.apply_inner_grads(problem, state.main, grads, batch_stats)
    return state.replace(main=main), metrics


def remembered_labels(state: TrainState, batch: Batch) -> jax.Array:
    """Soft labels `[B, C]` of a batch's noisy examples, from `state.extra["labels"]` `[N, C]`."""
    assert batch.noisy is not None
    labels: jax.Array = state.extra["labels"][batch.noisy.rows]
    return labels


def soft_labels(
    soft: jax.Array, features: jax.Array, logits: jax.Array, labels: jax.Array
) -> jax.Array:
    """The `TargetFn` that learns soft labels as they are, `[B, C]`."""
    del features, logits, labels
    return soft


def noisy_and_clean(batch: Batch) -> Batch:
    """All that a batch has: without an outer loss there is nothing to keep clean examples for."""
    parts = [part for part in (batch.clean_inner, batch.clean_outer) if part is not None]
    return Batch(batch.noisy, jax.tree.map(lambda *xs: jnp.concatenate(xs), *parts), None)


def noisy_part(batch: Batch) -> Batch:
    """The noisy examples alone."""
    return Batch(batch.noisy, None, None)


def clean_part(batch: Batch) -> Batch:
    """The clean examples alone."""
    return noisy_and_clean(batch)._replace(noisy=None)


def classifier_labels(
    state: TrainState, features: jax.Array, logits: jax.Array, labels: jax.Array
) -> jax.Array:
    """`Method.correct_labels` of methods that know no more than the classifier's prediction."""
    del state, features, labels
    return jax.nn.softmax(logits)


def supervised(inputs: MethodInputs, view: Callable[[Batch], Batch], **fields: Any) -> Method:
    """Plain training on labels as given, in one phase; `view` as in `supervised_step`."""
    phase = Phase(inputs.num_steps, supervised_step(inputs, view))
    return Method(create_init(inputs), (phase,), classifier_labels, **fields)


def bilevel_method(
    inputs: MethodInputs,
    targets: TargetFn,
    init_meta: Callable[[chex.PRNGKey, int], Params],
    correct_labels: CorrectLabels,
) -> Method:
    """A classifier that learns what a meta model says, and the meta model from the clean loss.

    One `train_step` is one window (the paper's algorithm 1): k real updates of the classifier with
    targets from the meta model as it stands, then one update of the meta model along the
    meta-gradient through all k.

    Args:
      inputs: see `MethodInputs`.
      targets: what the classifier is to learn on a noisy example.
      init_meta: (typed key, number of features) -> meta params.
      correct_labels: see `Method`.
    """
    meta_tx = inputs.optimizer("meta_optimizer")
    problem = create_problem(inputs, targets)

    def init(rng: chex.PRNGKey) -> TrainState:
        state = create_init(inputs)(rng)
        variables = {"params": state.main.params, "batch_stats": state.main.batch_stats}
        example = inputs.normalize(inputs.example_inputs)
        _, features = cast(Any, inputs.model.apply(variables, example, train=False))
        meta_rng = jax.random.fold_in(jax.random.split(rng)[0], _META_STREAM)
        meta_params = init_meta(meta_rng, features.shape[-1])
        return state.replace(meta=MetaState(meta_params, meta_tx.init(meta_params)))

    def window(estimator: Estimator, state: TrainState, batches: Batch) -> Window:
        rngs = bilevel.step_rngs(state.rng, state.step, num_steps_of(batches), inputs.axis_name)
        meta_params = cast(MetaState, state.meta).params
        result = estimator(problem, state.main, meta_params, batches, rngs, inputs.options)
        return result._replace(metrics=bilevel.pmean(result.metrics, inputs.axis_name))

    def train_step(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        estimator = ESTIMATORS[inputs.config.meta_gradient.estimator]
        meta_grads, main, metrics = window(estimator, state, batches)
        meta = cast(MetaState, state.meta)
        updates, opt_state = meta_tx.update(meta_grads, meta.opt_state, meta.params)
        meta = MetaState(optax.apply_updates(meta.params, updates), opt_state)
        step = state.step + num_steps_of(batches)
        metrics = metrics | {"meta_grad_norm": optax.tree.norm(meta_grads)}
        return state.replace(step=step, main=main, meta=meta), metrics

    return Method(init, (Phase(inputs.num_steps, train_step),), correct_labels, window)
