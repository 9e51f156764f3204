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

Normalize = Callable[[Any], Any]
CorrectLabels = Callable[[TrainState, jax.Array, jax.Array, jax.Array], jax.Array]


class Method(NamedTuple):
    """The common face of all methods; pure functions.

    Attributes:
      init: typed key -> the state before the first step.
      train_step: (state, batches `[k, B, ...]`) -> the state k inner steps later, and scalar
        metrics, averaged over devices.
      correct_labels: (state, features `[B, F]`, logits `[B, C]`, given labels `[B]`) -> soft labels
        `[B, C]`: what the method holds the labels to be.
      window: (estimator, state, batches) -> what `train_step` would see of that estimator, the
        state left alone; None for methods without a meta model.
    """

    init: Callable[[chex.PRNGKey], TrainState]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    correct_labels: CorrectLabels
    window: Callable[[Estimator, TrainState, Batch], Window] | None = None


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
      steps_per_epoch, num_steps: inner steps, for the schedules.
      axis_name: pmap axis or None.
    """

    config: ConfigDict
    model: nn.Module
    normalize: Normalize
    example_inputs: jax.Array
    num_classes: int
    steps_per_epoch: int
    num_steps: int
    axis_name: str | None

    @property
    def options(self) -> Options:
        """Settings of the unroll and of the meta-gradient."""
        return estimator_options(self.config)

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


def supervised(inputs: MethodInputs, view: Callable[[Batch], Batch]) -> Method:
    """Plain training on labels as given.

    Args:
      inputs: see `MethodInputs`.
      view: from a batch to the part of it that is trained on: `noisy` and `clean_inner`.
    """
    tx = inputs.optimizer("main_optimizer")
    apply = train_mode(inputs.model, inputs.normalize)
    problem = Problem(apply, bilevel.given_labels, tx, inputs.axis_name)

    def init(rng: chex.PRNGKey) -> TrainState:
        init_rng, state_rng = jax.random.split(rng)
        main = inputs.main_state(init_rng, tx)
        return TrainState(jnp.zeros((), jnp.int32), state_rng, main, None)

    def train_step(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        batches = view(batches)
        num_inner_steps = jax.tree.leaves(batches)[0].shape[0]
        rngs = bilevel.step_rngs(state.rng, state.step, num_inner_steps, inputs.axis_name)
        main, metrics = bilevel.unroll(
            problem, state.main, None, batches, rngs, scan_unroll=inputs.options.scan_unroll
        )
        state = state.replace(step=state.step + num_inner_steps, main=main)
        return state, bilevel.pmean(jax.tree.map(jnp.mean, metrics), inputs.axis_name)

    def correct_labels(
        state: TrainState, features: jax.Array, logits: jax.Array, labels: jax.Array
    ) -> jax.Array:
        """The classifier's own prediction: all that such a method knows about a label."""
        del state, features, labels
        return jax.nn.softmax(logits)

    return Method(init, train_step, correct_labels)


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
    main_tx, meta_tx = inputs.optimizer("main_optimizer"), inputs.optimizer("meta_optimizer")
    apply = train_mode(inputs.model, inputs.normalize)
    problem = Problem(apply, targets, main_tx, inputs.axis_name)

    def init(rng: chex.PRNGKey) -> TrainState:
        # The classifier's start does not depend on the method: same split as in `supervised`.
        init_rng, state_rng = jax.random.split(rng)
        main = inputs.main_state(init_rng, main_tx)
        variables = {"params": main.params, "batch_stats": main.batch_stats}
        example = inputs.normalize(inputs.example_inputs)
        _, features = cast(Any, inputs.model.apply(variables, example, train=False))
        meta_params = init_meta(jax.random.fold_in(init_rng, 1), features.shape[-1])
        meta = MetaState(meta_params, meta_tx.init(meta_params))
        return TrainState(jnp.zeros((), jnp.int32), state_rng, main, meta)

    def window(estimator: Estimator, state: TrainState, batches: Batch) -> Window:
        num_inner_steps = jax.tree.leaves(batches)[0].shape[0]
        rngs = bilevel.step_rngs(state.rng, state.step, num_inner_steps, inputs.axis_name)
        meta_params = cast(MetaState, state.meta).params
        result = estimator(problem, state.main, meta_params, batches, rngs, inputs.options)
        return result._replace(metrics=bilevel.pmean(result.metrics, inputs.axis_name))

    def train_step(state: TrainState, batches: Batch) -> tuple[TrainState, Metrics]:
        estimator = ESTIMATORS[inputs.config.meta_gradient.estimator]
        meta_grads, main, metrics = window(estimator, state, batches)
        meta = cast(MetaState, state.meta)
        updates, opt_state = meta_tx.update(meta_grads, meta.opt_state, meta.params)
        meta = MetaState(optax.apply_updates(meta.params, updates), opt_state)
        step = state.step + jax.tree.leaves(batches)[0].shape[0]
        metrics = metrics | {"meta_grad_norm": optax.tree.norm(meta_grads)}
        return state.replace(step=step, main=main, meta=meta), metrics

    return Method(init, train_step, correct_labels, window)
