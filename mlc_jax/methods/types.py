"""The interface between the training loop and methods.

There are two stages, because a method's settings and the data's sizes are known at different times.
A `Method` has the settings; `Method.bind` makes pure functions of them, a `BoundMethod`.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import chex
import jax
import numpy as np
import optax
from flax import linen as nn

from mlc_jax.core import (
    OVERLAPPING,
    Batch,
    Estimator,
    EstimatorSpec,
    Evidence,
    Inputs,
    Metrics,
    Output,
    Params,
    Rows,
    TrainState,
    Window,
    features_of,
    has_convolutions,
    optimizers,
    resolve_unroll,
)
from mlc_jax.core.optimizers import Optimizer
from mlc_jax.errors import expect
from mlc_jax.models import frozen_paths, initial_params, over_axis

Prepare = Callable[[Inputs], Inputs]
# (state, inputs [B, ...] as stored) -> (logits [B, C], evidence), in evaluation mode.
Classify = Callable[[TrainState, Inputs], tuple[jax.Array, Any]]
TrainStep = Callable[[TrainState, Any], tuple[TrainState, Metrics]]
CorrectLabels = Callable[[TrainState, Any, jax.Array, jax.Array], jax.Array]
# (state, batch `[B, ...]`, key) -> (state, metrics of this device's slice); must not advance
# `state.step`.
InnerStep = Callable[[TrainState, Batch, chex.PRNGKey], tuple[TrainState, Metrics]]


class Seen(NamedTuple):
    """The argument of a hook.

    Attributes:
      example: one input `[1, ...]`, as stored, to initialise a model with.
      probs: the classifier's probabilities `[N, C]` on the hook's set; None without a set.
      labels: the set's labels as training sees them `[N]`; None without a set.
      given: for the clean set, the labels before somebody checked them, negative if unknown:
        `[N]`, or `[N, S]` if the method takes votes; None if all are unknown.
    """

    example: Inputs
    probs: Any = None
    labels: Any = None
    given: Any = None


class Hook(NamedTuple):
    """A method's work between two epochs.

    Attributes:
      examples: the set that the classifier predicts first, `noisy` or `clean`; None for no set.
      update: (state, `Seen`) -> state; pure.
    """

    examples: str | None
    update: Callable[[TrainState, Seen], TrainState]


class Phase(NamedTuple):
    """A stretch of training with one step function.

    Attributes:
      num_steps: inner steps, a multiple of `Method.stride`.
      train_step: (state, batches `[k, B, ...]`) -> the state `Method.stride` inner steps later, and
        scalar metrics, averaged over devices. The batches are those of the last k steps; a method
        with `out_of_fold` gets all `Rows` instead.
      before: runs once, before the first step.
      after_epoch: runs after every epoch.
    """

    num_steps: int
    train_step: TrainStep
    before: Hook | None = None
    after_epoch: Hook | None = None


class OnHost(NamedTuple):
    """The classifier for inputs that the host prepares: one program for all data.

    Attributes:
      prepare: maps stored inputs, NumPy arrays, to the inputs of `classify`.
      classify: see `BoundMethod`; the same function for all data of one shape.
    """

    prepare: Prepare
    classify: Classify


class BoundMethod(NamedTuple):
    """A method for data of known sizes: pure functions, which also work under a plain `jax.jit`.

    Attributes:
      init: (typed key, one input `[1, ...]` as stored) -> the state before the first step.
      phases: in order; the classifier of the last phase is the method's.
      correct_labels: (state, evidence, logits `[B, C]`, given labels `[B]`) -> soft labels
        `[B, C]`: the corrected labels. Given labels are `[B, S]` if the method takes votes.
      window: (estimator, state, batches) -> the window that `train_step` would get from that
        estimator, without changing the state; None without a meta model or without windows
        (`BilevelMethod.goes_on`).
      uses_clean: whether the clean labels are trained on.
      label_quality: (arguments of `correct_labels`) -> `[B]` in [0, 1], trust in the given label.
        None takes the soft label's probability of it.
      learned_labels: state -> soft labels `[N, C]` of the noisy set, for methods that learn one for
        each example; they replace the result of `correct_labels`.
      evidence: the evidence that `correct_labels` and `label_quality` get beside the logits.
      classify: the classifier in evaluation mode. None is the model itself; `Method.bind` sets it.
      on_host: the same for inputs that the host prepares; None prepares them in each step.
      out_of_fold: for methods that train on `Rows`: (state, rows) -> probabilities `[N, C]` by
        name. Noisy and judged rows are predicted by classifiers that did not learn from them.
    """

    init: Callable[[chex.PRNGKey, Inputs], TrainState]
    phases: tuple[Phase, ...]
    correct_labels: CorrectLabels
    window: Callable[[Estimator, TrainState, Batch], Window] | None = None
    uses_clean: bool = True
    label_quality: CorrectLabels | None = None
    learned_labels: Callable[[TrainState], jax.Array] | None = None
    evidence: Evidence = features_of
    classify: Classify | None = None
    on_host: OnHost | None = None
    out_of_fold: Callable[[TrainState, Rows], dict[str, jax.Array]] | None = None

    @property
    def num_steps(self) -> int:
        """The number of inner steps of all phases."""
        return sum(phase.num_steps for phase in self.phases)

    @property
    def train_step(self) -> TrainStep:
        """The training step of the last phase."""
        return self.phases[-1].train_step


@dataclasses.dataclass(frozen=True)
class Binding:
    """Shared settings and sizes of the data, from which a method makes its functions.

    Attributes:
      model: the classifier.
      tx: the classifier's optimizer, a spec or an optax transformation.
      stride: see `Method`.
      unroll: see `Method`.
      loaded: initial parameters by path, see `models.pretrained`; they replace random ones.
      num_noisy: N, the number of noisy examples.
      num_classes: C.
      steps_per_epoch: inner steps of one pass over the noisy set.
      num_epochs: epochs of the phase that is built; its schedules begin with it.
      prepare: maps stored inputs to the model's.
      axis_name: pmap axis or None.
      num_sources: S, the number of sources of given labels.
    """

    model: nn.Module
    tx: Optimizer
    stride: int
    unroll: int
    loaded: dict[str, np.ndarray]
    num_noisy: int
    num_classes: int
    steps_per_epoch: int
    num_epochs: float
    prepare: Prepare
    axis_name: str | None
    num_sources: int = 1

    @property
    def num_steps(self) -> int:
        """Inner steps of the phase: its epochs, rounded up to a multiple of the stride."""
        s = self.stride
        return -(-round(self.num_epochs * self.steps_per_epoch) // s) * s

    def phase_of(self, num_epochs: float) -> "Binding":
        """The binding with another phase's number of epochs; 0 keeps the number."""
        return dataclasses.replace(self, num_epochs=num_epochs or self.num_epochs)

    def optimizer(self) -> optax.GradientTransformation:
        """The classifier's optimizer, which makes one update per inner step."""
        frozen = frozen_paths(self.model)
        tx = optimizers.freeze(self.tx, frozen) if frozen else self.tx
        return optimizers.bind(
            tx, num_updates=self.num_steps, updates_per_epoch=self.steps_per_epoch
        )

    def meta_optimizer(self, tx: Optimizer) -> optax.GradientTransformation:
        """A meta model's optimizer: one update per stride, and a schedule that counts updates."""
        return optimizers.bind(
            tx,
            num_updates=self.num_steps // self.stride,
            updates_per_epoch=max(1, self.steps_per_epoch // self.stride),
        )

    def scan_unroll(self, params: Params, length: int) -> int:
        """Steps per turn of a compiled loop of `length` steps, for these params' classifier."""
        return resolve_unroll(self.unroll, length, convolutions=has_convolutions(params))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Method(abc.ABC):
    """A way to train with noisy labels: settings, no data.

    Attributes:
      name: its name in `config.method`.
      model: the classifier, a Flax module: (inputs `[B, ...]`, `train`) -> (logits `[B, C]`,
        features `[B, F]`).
      tx: the classifier's optimizer: a spec with schedules in epochs, such as `mlc_jax.sgd(...)`,
        or any optax transformation, whose schedules count inner steps.
      num_inner_steps: k, inner steps per window; methods without a meta model have it, too.
      mix_clean: whether half of each clean batch joins the inner loss and the other half is for the
        outer loss. Otherwise the whole clean batch is for the outer loss.
      unroll: inner steps per turn of the compiled loop. 0 chooses k for convolutions on CPU, where
        XLA runs their gradients in a loop body on a slow path, and 1 otherwise.
      initial_params: a `.safetensors` file of parameters to start from, see `models.pretrained`,
        or for a `Bert` a Hugging Face checkpoint. Parameters that it lacks start at random. Methods
        that train twice start from it twice.
    """

    name: ClassVar[str]
    model: nn.Module
    tx: Optimizer = dataclasses.field(default_factory=lambda: optimizers.sgd(0.1, momentum=0.9))
    num_inner_steps: int = 1
    mix_clean: bool = True
    unroll: int = 0
    initial_params: str | None = None

    @property
    def stride(self) -> int:
        """Number of inner steps of one `train_step`."""
        return self.num_inner_steps

    @property
    def num_replayed(self) -> int:
        """How many earlier steps `train_step` replays."""
        return 0

    @property
    def takes_votes(self) -> bool:
        """Whether given labels of batches are those of all sources, `[B, S]`.

        S may be 1; -1 stands for no label. Otherwise they are the majority vote, `[B]`, and every
        row has one.
        """
        return False

    def bind(
        self,
        *,
        num_noisy: int,
        num_classes: int,
        steps_per_epoch: int,
        num_epochs: float,
        prepare: Prepare | None = None,
        axis_name: str | None = None,
        num_sources: int = 1,
    ) -> BoundMethod:
        """Makes the functions that train on data of these sizes.

        Args:
          num_noisy: N, the number of noisy examples.
          num_classes: C.
          steps_per_epoch: inner steps of one pass over the noisy set.
          num_epochs: passes over the noisy set, for each phase that does not set its own.
          prepare: maps stored inputs to the model's, in the step, on the device. None does not
            change them.
          axis_name: the pmap axis that batches are spread over; None on one device.
          num_sources: S, the number of sources of given labels.

        Raises:
          InputError: a setting does not suit the sizes, or `initial_params` cannot be read.
        """
        expect(self.num_inner_steps >= 1, "num_inner_steps", self.num_inner_steps, "at least 1")
        prepare = prepare or (lambda inputs: inputs)
        binding = Binding(
            model=over_axis(self.model, axis_name),
            tx=self.tx,
            stride=self.stride,
            unroll=self.unroll,
            loaded=initial_params(self.model, self.initial_params),
            num_noisy=num_noisy,
            num_classes=num_classes,
            steps_per_epoch=steps_per_epoch,
            num_epochs=num_epochs,
            prepare=prepare,
            axis_name=axis_name,
            num_sources=num_sources,
        )

        bound = self.build(binding)

        def classify(state: TrainState, inputs: Inputs) -> tuple[jax.Array, Any]:
            variables = {"params": state.main.params, "batch_stats": state.main.batch_stats}
            prepared = prepare(inputs)
            outputs: Any = binding.model.apply(variables, prepared, train=False)
            output = Output(*outputs)
            return output.logits, bound.evidence(output, prepared, None)

        return bound if bound.classify else bound._replace(classify=classify)

    @abc.abstractmethod
    def build(self, binding: Binding) -> BoundMethod:
        """A new method implements this: `bind` without the parts that all methods share."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TwoPhaseMethod(Method):
    """A method that trains twice.

    Attributes:
      first_phase_epochs: epochs of the first phase; 0 takes the second phase's number.
    """

    first_phase_epochs: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class BilevelMethod(Method):
    """A method with a meta model that is learned from the clean loss.

    Attributes:
      meta_tx: the meta model's optimizer: a spec, or any optax transformation, whose schedules
        count its updates.
      estimator: computes the meta-gradient, such as `mlc_jax.estimators.exact()`.
      update_every: s, inner steps between updates of the meta model, each by the gradient through
        the last k. 0 is k: each window begins at the end of the last. A smaller number must divide
        k; windows then overlap, see `core.overlap`.

    Raises:
      InputError: `update_every` does not suit k or the estimator.
    """

    meta_tx: Optimizer = dataclasses.field(default_factory=lambda: optimizers.adam(1e-3))
    estimator: EstimatorSpec = dataclasses.field(default_factory=EstimatorSpec)
    update_every: int = 0

    def __post_init__(self) -> None:
        k, s = self.num_inner_steps, self.update_every
        expect(
            isinstance(s, int) and s >= 0 and (s == 0 or k % s == 0),
            "update_every",
            s,
            f"0, or a divisor of num_inner_steps, which is {k}",
        )
        name = self.estimator.name
        expect(
            s in (0, k) or name in OVERLAPPING,
            "update_every",
            s,
            f"0 with {name}, which uses only the window's end; {', '.join(OVERLAPPING)} allow "
            "less than num_inner_steps",
        )

    @property
    def stride(self) -> int:
        return self.update_every or self.num_inner_steps

    @property
    def goes_on(self) -> bool:
        """Whether the paper's recursion sums over all updates, without replay or reset."""
        return self.estimator.name == "approximate" and self.stride < self.num_inner_steps

    @property
    def num_replayed(self) -> int:
        return 0 if self.goes_on else self.num_inner_steps - self.stride
