"""Cross-fitting: every row is labelled, and judged, by classifiers that did not learn from it.

K x H runs are trained as one program. Run (k, h) does not see the checks of fold k. It learns from
the checks that it sees, and from all rows outside of part h (`data.folds`). Training goes in
rounds. Before each round, the label of every row is estimated from predictions of runs that did not
learn from the row (`models.label_model`). In the round, all runs learn these labels. New rows are
predicted by the mean of all runs. The verdict judges the same mean.

Sources: Dawid and Skene (1979) estimate labels and the quality of each source of labels in turn.
Here classifiers take part in that loop. Northcutt, Jiang and Chuang (2021, cleanlab) judge labels
by out-of-fold predictions. scikit-learn's `CalibratedClassifierCV` also calibrates on held-out rows
and predicts new rows by the mean over folds.
"""

import dataclasses
import functools
import math
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp

from mlc_jax.core import (
    Inputs,
    MainState,
    MetaState,
    Metrics,
    Params,
    Rows,
    TrainState,
    losses,
)
from mlc_jax.errors import expect
from mlc_jax.methods.blocks import init_model
from mlc_jax.methods.cross_fitting.label_steps import LabelSteps
from mlc_jax.methods.cross_fitting.members import Members
from mlc_jax.methods.types import Binding, BoundMethod, Method, OnHost, Phase
from mlc_jax.models.label_model import NUM_TERMS, label_term, pool

TAKEN = ("corrected", "classifier", "checked", "given")  # See `_Machine.out_of_fold`.
# Streams of the state's key: batches of the rivals, and of the runs.
_RIVALS, _RUNS = 1, 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossFit(Method):
    """Classifiers and a label model, judged on checks that they did not see.

    Classifiers are trained by Adam. The learning rate falls along a cosine within each round.

    Attributes:
      num_folds: K, folds of the judged rows: checked rows that were not looked up for a reason.
      num_parts: H, parts of all rows; with 1 every run learns from all rows.
      num_rounds: rounds of training; labels are estimated before each.
      steps_per_round: training steps of each classifier in a round.
      batch_size: rows in a step of one classifier.
      learning_rate: its value at the start of a round.
      weight_decays: E of them. Classifiers are trained with each, and combined by the likelihood of
        the checks that they did not see.
      prior_strength: pseudo-counts of the prior of R, P(class | given label).
      expected_weight: weight of a doubtful row, which nobody checked, in the counts of R; a checked
        row has 1.
      trust_width: width of the prior of a and l, the weights of the classifier and of the given
        label. With several sources it is at most 0.5 for l above 1.
      rival_width: width of the prior of b and c, the weights of the rivals, see `label_model`; near
        0 these are left out.
      beside: a second kind of classifier, a Flax module, or None. Each run trains both kinds on the
        same batches. They are combined by the likelihood of checks, as weight decays are. The
        rivals are of the first kind, `model`.
      beside_decays: weight decays of the second kind.
      take: which predictions become the corrected labels, one of `TAKEN`.

    Raises:
      InputError: a value is out of range.
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
    beside: Any = None
    beside_decays: tuple[float, ...] = (1e-3,)
    take: str = "corrected"

    def __post_init__(self) -> None:
        for name, least in (("num_folds", 2), ("num_parts", 1), ("num_rounds", 1)):
            expect(getattr(self, name) >= least, name, getattr(self, name), f"at least {least}")
        for name in ("prior_strength", "trust_width", "rival_width"):
            expect(getattr(self, name) > 0, name, getattr(self, name), "more than 0")
        for name in ("weight_decays", "beside_decays"):
            expect(len(getattr(self, name)) > 0, name, getattr(self, name), "one at least")
        expect(self.take in TAKEN, "take", self.take, ", ".join(TAKEN))

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


def _as_is(inputs: Inputs) -> Inputs:
    return inputs


def _machine_of(method: CrossFit, binding: Binding) -> "_Machine":
    """The functions for data of any size: `Rows` are prepared already."""
    neutral = dataclasses.replace(
        binding, prepare=_as_is, num_noisy=0, steps_per_epoch=0, num_epochs=0.0
    )
    if binding.loaded:
        return _Machine(method, neutral)
    method = dataclasses.replace(method, take="corrected")  # No function depends on it.
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
    """The functions of a bound `CrossFit`; all are pure and take prepared inputs."""

    def __init__(self, method: CrossFit, binding: Binding):
        self.method, self.binding = method, binding
        self.num_runs = method.num_folds * method.num_parts
        models, self.decays = {"runs": binding.model}, {"runs": method.weight_decays}
        if method.beside is not None:
            models["beside"], self.decays["beside"] = method.beside, method.beside_decays
        self.shapes = {name: (self.num_runs, len(x)) for name, x in self.decays.items()}
        self.kinds = {
            name: Members(
                model=model, num_folds=method.num_folds, num_parts=method.num_parts,
                steps=method.steps_per_round, batch_size=method.batch_size,
                learning_rate=method.learning_rate, axis_name=binding.axis_name,
            )
            for name, model in models.items()
        }  # fmt: skip
        self.members = self.kinds["runs"]
        self.label_steps = LabelSteps(
            kinds=self.kinds, num_classes=binding.num_classes,
            prior_strength=method.prior_strength, expected_weight=method.expected_weight,
            trust_width=method.trust_width, rival_width=method.rival_width,
        )  # fmt: skip

    # State: main.params has the runs, `[K * H, E, ...]`, those of the second kind (`beside`), and
    # the rivals, `[H + K, 1, ...]`. The first H rivals learn labels as given, the others the
    # checked rows. meta.params is the label model: R, pi, the first estimate of class shares, and
    # weights. These are the pool's `[4]`, those for judging, which were fitted without fold k,
    # `[K, 4]`, and those of the decays of both kinds, `[E]`.

    def init(self, rng: chex.PRNGKey, example: Inputs) -> TrainState:
        method, num_classes = self.method, self.binding.num_classes
        init_rng, state_rng = jax.random.split(rng)
        num_rivals = method.num_parts + method.num_folds
        params = self._started(
            self.binding.model, {"runs": self.shapes["runs"], "rivals": (num_rivals, 1)},
            init_rng, 0, example,
        )  # fmt: skip
        if method.beside is not None:
            params |= self._started(
                method.beside, {"beside": self.shapes["beside"]}, init_rng, 2, example
            )
        num_members = sum(size for _, size in self.shapes.values())
        num_sources = self.binding.num_sources
        flat = jnp.full((method.num_folds, num_classes), 1 / num_classes, jnp.float32)
        meta = {
            "matrices": jnp.broadcast_to(
                flat[:, None, None, :], (method.num_folds, num_sources, num_classes, num_classes)
            ),
            "class_shares": flat,
            "estimated_shares": flat,
            "weights": jnp.ones(NUM_TERMS, jnp.float32),
            "judging_weights": jnp.ones((method.num_folds, NUM_TERMS), jnp.float32),
            "decay_weights": jnp.full(num_members, 1 / num_members, jnp.float32),
        }
        main = MainState(params, {}, ())
        return TrainState(jnp.zeros((), jnp.int32), state_rng, main, MetaState(meta, ()))

    def _started(
        self,
        model: Any,
        shapes: dict[str, tuple[int, int]],
        rng: chex.PRNGKey,
        first_stream: int,
        example: Inputs,
    ) -> dict[str, Params]:
        """Random params by name, with leaves `[G, E, ...]` of `shapes`."""
        binding = dataclasses.replace(self.binding, model=model)

        def start(key: chex.PRNGKey) -> Params:
            params, batch_stats = init_model(binding, key, example)
            expect(
                not jax.tree.leaves(batch_stats), "model", type(model).__name__,
                "one without batch normalisation: cross_fit trains classifiers of features",
            )  # fmt: skip
            return params

        # They are drawn at once and then cut, because random numbers compile slowly.
        sizes = [math.prod(shape) for shape in shapes.values()]
        streams = first_stream + jnp.arange(len(shapes))
        of_streams = jax.vmap(jax.random.fold_in, (None, 0))(rng, streams)
        keys = jax.vmap(lambda stream: jax.random.split(stream, max(sizes)))(of_streams)
        started = jax.vmap(jax.vmap(start))(keys)
        return {
            name: jax.tree.map(
                lambda leaf: leaf[number, : sizes[number]].reshape(*shape, *leaf.shape[2:]),  # noqa: B023
                started,
            )
            for number, (name, shape) in enumerate(shapes.items())
        }

    def train_rivals(self, state: TrainState, rows: Rows) -> tuple[TrainState, Metrics]:
        """Phase 1: trains the rivals, each without one part or fold; starts the label model."""
        x, one_hot = rows.inputs, jax.nn.one_hot(rows.checks, self.binding.num_classes)
        said = losses.vote_shares(rows.votes, self.binding.num_classes)
        params = dict(state.main.params)
        target_of = jnp.repeat(
            jnp.arange(2), jnp.array([self.method.num_parts, self.method.num_folds]),
            total_repeat_length=len(rows.rival_lists),
        )  # fmt: skip
        # As in scikit-learn's LogisticRegression(C=1).
        decays = 1 / jnp.maximum(rows.rival_lengths, 1)[:, None].astype(jnp.float32)
        params["rivals"], loss = self.members.train(
            params["rivals"], x, jnp.stack([said, one_hot]), rows.rival_lists, rows.rival_lengths,
            target_of, decays, jax.random.fold_in(state.rng, _RIVALS), state.step,
        )  # fmt: skip
        known = self.label_steps.known(params, rows)
        shares = self.label_steps.shares(known)
        labels = self.label_steps.start(known, shares)
        meta = state.meta.params | {  # type: ignore[union-attr]
            "matrices": labels.matrices, "class_shares": labels.pi, "estimated_shares": shares,
        }  # fmt: skip
        return self._advanced(state, params, meta), {"inner_loss": loss}

    def train_round(self, state: TrainState, rows: Rows) -> tuple[TrainState, Metrics]:
        """One round of phase 2: all runs learn the estimated labels; then these are updated."""
        method = self.method
        params, meta = dict(state.main.params), state.meta.params  # type: ignore[union-attr]
        known = self.label_steps.known(params, rows)
        is_first = state.step == method.steps_per_round
        labels = self.label_steps.labels(params, meta, known, is_first)
        lists = rows.lists.reshape(self.num_runs, -1)
        target_of = jnp.repeat(jnp.arange(method.num_folds), method.num_parts)
        loss = jnp.zeros(())
        for name, members in self.kinds.items():
            decays = jnp.broadcast_to(
                jnp.asarray(self.decays[name], jnp.float32), self.shapes[name]
            )
            params[name], of_kind = members.train(
                params[name], known.x, labels.q, lists, rows.lengths.reshape(-1), target_of,
                decays, jax.random.fold_in(state.rng, _RUNS), state.step,
            )  # fmt: skip
            loss += of_kind / len(self.kinds)
        shares = meta["estimated_shares"]
        meta = meta | self.label_steps.said_anew(params, labels, shares, known)
        metrics = {"inner_loss": loss} | {
            f"weight_of_{name}": x
            for name, x in zip(
                ("classifier", "label", "given", "checked"), meta["weights"], strict=True
            )
        }
        return self._advanced(state, params, meta), metrics

    def out_of_fold(self, state: TrainState, rows: Rows) -> dict[str, jax.Array]:
        """Probabilities `[N, C]` by name, each row's by classifiers that did not learn from it.

        `corrected` are all four terms of the pool, `classifier` all but the given label's,
        `checked` and `given` the rivals.

        A checked row that is not judged is an exception: all runs see its check. A judged row is
        predicted by the runs that its check was hidden from, with weights of the pool that were
        fitted without its fold. With weights fitted on all folds the verdict was two points too
        good (docs/results/own_data.md).
        """
        params, meta = state.main.params, state.meta.params  # type: ignore[union-attr]
        known = self.label_steps.known(params, rows)
        mixed = self.label_steps.mixed(params, meta["decay_weights"], known)
        says = self.label_steps.says(meta["matrices"], meta["class_shares"], rows)
        terms = self.label_steps.terms(mixed, says, known)
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
        """Logits `[B, C]` of new rows: log of the runs' mean probability, without given labels."""
        params, meta = state.main.params, state.meta.params  # type: ignore[union-attr]
        shape = (self.method.num_folds, self.method.num_parts)
        log_probs = self.label_steps.log_probs(params, x)
        runs = self.members.over_decays(log_probs, meta["decay_weights"])
        rivals = self.members.log_probs(params["rivals"], x)[:, 0]
        given = rivals[None, : self.method.num_parts]
        checked = rivals[self.method.num_parts :, None]
        runs = runs.reshape(*shape, *runs.shape[1:])
        zero = jnp.zeros((), runs.dtype)
        log_q = pool(meta["weights"], runs, zero, given, checked)
        return jnp.log(jnp.mean(jnp.exp(log_q), axis=(0, 1))), None

    def correct_labels(
        self, state: TrainState, evidence: Any, logits: jax.Array, labels: jax.Array
    ) -> jax.Array:
        """Labels of rows that no run learned from: from the prediction and the given label.

        With several sources nobody knows whose label it is, so only the prediction is used.
        """
        meta = state.meta.params  # type: ignore[union-attr]
        if meta["matrices"].shape[1] > 1:
            return jax.nn.softmax(logits)
        says = jax.vmap(label_term, in_axes=(None, 0, 0))(
            labels[:, None], meta["matrices"], meta["class_shares"]
        )
        return jax.nn.softmax(logits + meta["weights"][1] * jnp.mean(says, axis=0))

    def _advanced(self, state: TrainState, params: Params, meta: Params) -> TrainState:
        return state.replace(
            step=state.step + self.method.steps_per_round,
            main=MainState(params, {}, ()),
            meta=MetaState(meta, ()),
        )
