"""The two-level problem: inner steps of the classifier, and the outer loss.

Pure functions, arrays in and arrays out. With `axis_name=None` they run on one device. Under
`jax.pmap(..., axis_name='batch')` each device holds a slice of every batch, and every inner step
averages the inner gradients over devices. So n devices with B/n examples each compute what one
device with B examples does.

Vocabulary (paper's symbol in brackets): `params` [w] of the classifier, `meta_params` [a] of the
label correction network, `inner_loss` [L_D'(a, w)] on corrected noisy labels, `outer_loss` [L_D(w)]
on clean labels, `num_inner_steps` [k].
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from mlc_jax.core import losses
from mlc_jax.core.inner_loss import (
    Held,
    InnerLoss,
    Mixing,
    Output,
    Outputs,
    draw_mixing,
    inner_loss,
    mix,
)
from mlc_jax.core.losses import pmean
from mlc_jax.core.types import Batch, Inputs, Labelled, MainState, Metrics, Params

# (params, batch_stats, inputs, rng) -> (logits [B, C], features [B, F], new batch_stats).
ApplyFn = Callable[[Params, Params, Inputs, chex.PRNGKey], tuple[jax.Array, jax.Array, Params]]
# (belief, evidence, logits [B, C], labels [B] or [B, S]) -> targets [B, C], non-negative. A belief
# corrects labels: meta params, weights, labels, a matrix. Evidence describes examples in addition
# to the logits: features [B, F], unless the problem says otherwise.
TargetFn = Callable[[Any, Any, jax.Array, jax.Array], jax.Array]
# (output of the classifier, its inputs, key or None in evaluation mode) -> evidence.
Evidence = Callable[[Output, Inputs, chex.PRNGKey | None], Any]
# One pass of the classifier: (params, batch_stats) -> its output, new batch_stats.
Pass = Callable[[Params, Params], tuple[Output, Params]]

# Streams: numbers that are folded into a step's key, in addition to the two keys that inner passes
# split from it, which are streams 0 and 1. `methods.blocks.bilevel_method` has stream 4.
_MIXING_STREAM, _MIXED_STREAM, _EVIDENCE_STREAM, _OUTER_STREAM = 2, 3, 5, 6


def features_of(output: Output, inputs: Inputs, rng: chex.PRNGKey | None) -> jax.Array:
    """The `Evidence` of most methods: the classifier's features, `[B, F]`."""
    del inputs, rng
    return output.features


class Problem(NamedTuple):
    """The functions that define the two levels; static under jit.

    Attributes:
      apply: the classifier in training mode; its inputs are prepared ones.
      targets: the classifier's targets on noisy examples. The inner gradient holds them fixed (see
        `local_grads`).
      tx: the classifier's optimizer. All of it is differentiated through.
      axis_name: the pmap axis to average over, or None.
      rule: terms of the inner loss beyond cross-entropy on the targets.
      prepare: maps stored inputs to the classifier's.
      evidence: the evidence of noisy examples for `targets`.
    """

    apply: ApplyFn
    targets: TargetFn
    tx: optax.GradientTransformation
    axis_name: str | None = None
    rule: InnerLoss = InnerLoss()
    prepare: Callable[[Inputs], Inputs] = lambda inputs: inputs
    evidence: Evidence = features_of


def given_labels(belief: Any, evidence: Any, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The `TargetFn` that believes the given labels: the shares of their votes, `[B, C]`.

    With one label per row they are one-hot.
    """
    del belief, evidence
    return losses.vote_shares(labels, logits.shape[-1]).astype(logits.dtype)


def passes(problem: Problem, batch: Batch, rng: chex.PRNGKey) -> dict[str, Pass]:
    """The passes in training mode over a batch's unmixed parts, `noisy` and `clean`.

    Batch normalisation sees them as two batches, as in the published setting.
    """
    noisy_rng, clean_rng = jax.random.split(rng)
    made = {}
    if batch.noisy is not None:
        made["noisy"] = _pass(problem, problem.prepare(batch.noisy.inputs), noisy_rng)
    if batch.clean_inner is not None:
        made["clean"] = _pass(problem, problem.prepare(batch.clean_inner.inputs), clean_rng)
    return made


def mixing_of(problem: Problem, batch: Batch, rng: chex.PRNGKey) -> Mixing | None:
    """Which examples are mixed on this device, noisy ones first; None if nothing is mixed."""
    if not problem.rule.mixup:
        return None
    parts = [part for part in (batch.noisy, batch.clean_inner) if part is not None]
    draw_rng = jax.random.fold_in(rng, _MIXING_STREAM)
    return draw_mixing(problem.rule, sum(len(part.labels) for part in parts), draw_rng)


def mixed_pass(
    problem: Problem, batch: Batch, rng: chex.PRNGKey, mixing: Mixing, held: Held
) -> Pass:
    """The pass over noisy and clean examples together, each mixed with its partner."""
    parts = [part for part in (batch.noisy, batch.clean_inner) if part is not None]
    prepared = [problem.prepare(part.inputs) for part in parts]
    together = jax.tree.map(lambda *xs: jnp.concatenate(xs), *prepared)
    mixed = mix(together, mixing, problem.rule.strength(held.fitted))
    return _pass(problem, mixed, jax.random.fold_in(rng, _MIXED_STREAM))


def _pass(problem: Problem, inputs: Inputs, rng: chex.PRNGKey) -> Pass:
    def run(params: Params, batch_stats: Params) -> tuple[Output, Params]:
        logits, features, batch_stats = problem.apply(params, batch_stats, inputs, rng)
        return Output(logits, features), batch_stats

    return run


def run_passes(
    made: dict[str, Pass], params: Params, batch_stats: Params
) -> tuple[Outputs, Params]:
    """Outputs of passes, and the batch statistics after the last pass."""
    outputs = {}
    for name, run in made.items():
        outputs[name], batch_stats = run(params, batch_stats)
    return outputs, batch_stats


def add_trees(trees: Sequence[Any]) -> Any:
    """The sum of one or more trees of arrays."""
    return jax.tree.map(lambda *xs: functools.reduce(jnp.add, xs), *trees)


def evidence_of(problem: Problem, output: Output, inputs: Inputs, rng: chex.PRNGKey) -> Any:
    """The evidence in training, with a key that no pass of the classifier uses."""
    return problem.evidence(output, inputs, jax.random.fold_in(rng, _EVIDENCE_STREAM))


def hold(problem: Problem, belief: Any, outputs: Outputs, batch: Batch, rng: chex.PRNGKey) -> Held:
    """The values that an inner gradient holds fixed, computed from the unmixed passes."""
    rule, targets, fitted = problem.rule, None, None
    if rule.needs_fit and batch.clean_inner is not None:
        logits = outputs["clean"].logits
        loss = jnp.mean(losses.cross_entropy(logits, batch.clean_inner.labels))
        chance = jnp.log(jnp.asarray(logits.shape[-1], logits.dtype))
        fitted = jnp.clip(1 - pmean(loss, problem.axis_name) / chance, 0, 1)
    if batch.noisy is not None:
        output, labels = outputs["noisy"], batch.noisy.labels
        evidence = evidence_of(problem, output, problem.prepare(batch.noisy.inputs), rng)
        targets = problem.targets(belief, evidence, output.logits, labels)
        if rule.hand_over:
            assert fitted is not None
            given = given_labels(None, None, output.logits, labels)
            targets = given + fitted * (targets - given)
    return Held(targets, fitted)


def loss_at(
    problem: Problem, params: Params, batch_stats: Params, held: Held, batch: Batch,
    rng: chex.PRNGKey,
) -> jax.Array:  # fmt: skip
    """The inner loss of this device's slice at given params and fixed values."""
    mixing = mixing_of(problem, batch, rng)
    made = passes(problem, batch, rng)
    if mixing is not None:
        made["mixed"] = mixed_pass(problem, batch, rng, mixing, held)
    outputs, _ = run_passes(made, params, batch_stats)
    return inner_loss(problem.rule, outputs, held, batch, mixing, problem.axis_name)[0]


def local_grads(
    problem: Problem, main: MainState, belief: Any, batch: Batch, rng: chex.PRNGKey
) -> tuple[Params, tuple[Params, Metrics]]:
    """This device's gradient of the inner loss in the classifier's params, not yet averaged.

    The fixed values (targets, how far clean labels are fitted) depend on the params through the
    outputs. This gradient ignores that: the paper puts a stop_gradient there. The meta-gradient of
    a whole window must not ignore it: the features of a later step depend on the labels of earlier
    steps. A stop_gradient would cut that derivative, too. So the gradient is taken in the outputs.

    Returns:
      Gradients shaped like `main.params`, and `(new batch_stats, metrics)` of this device.
    """
    outputs, pull_back = {}, {}

    def make(name: str, run: Pass, batch_stats: Params) -> Params:
        at = lambda params: run(params, batch_stats)  # noqa: E731
        outputs[name], pull_back[name], after = jax.vjp(at, main.params, has_aux=True)
        return after

    batch_stats = main.batch_stats
    for name, run in passes(problem, batch, rng).items():
        batch_stats = make(name, run, batch_stats)
    held = hold(problem, belief, outputs, batch, rng)
    mixing = mixing_of(problem, batch, rng)
    if mixing is not None:
        # With MixUp, only the mixed pass updates the running statistics.
        run = mixed_pass(problem, batch, rng, mixing, held)
        batch_stats = make("mixed", run, main.batch_stats)
    loss_fn = functools.partial(
        inner_loss, problem.rule, held=held, batch=batch, mixing=mixing,
        axis_name=problem.axis_name,
    )  # fmt: skip
    d_outputs, metrics = jax.grad(loss_fn, has_aux=True)(outputs)
    trained = [name for name in outputs if name in problem.rule.trained]
    grads = add_trees([pull_back[name](d_outputs[name])[0] for name in trained])
    return grads, (batch_stats, metrics)


def inner_grads(
    problem: Problem, main: MainState, belief: Any, batch: Batch, rng: chex.PRNGKey
) -> tuple[Params, tuple[Params, Metrics]]:
    """Gradient of the inner loss in the classifier's params, averaged over devices.

    Returns:
      Gradients shaped like `main.params`, and `(new batch_stats, metrics)`, which carry no
      derivative: a pass in training mode writes running statistics and reads none, or frozen ones.
    """
    grads, (batch_stats, metrics) = local_grads(problem, main, belief, batch, rng)
    aux = jax.lax.stop_gradient((pmean(batch_stats, problem.axis_name), metrics))
    return pmean(grads, problem.axis_name), aux


def apply_inner_grads(
    problem: Problem, main: MainState, grads: Params, batch_stats: Params
) -> MainState:
    """One optimizer update of the classifier (equation 2 for plain SGD)."""
    updates, opt_state = problem.tx.update(grads, main.opt_state, main.params)
    params = optax.apply_updates(main.params, updates)
    return MainState(params=params, batch_stats=batch_stats, opt_state=opt_state)


def inner_step(
    problem: Problem, main: MainState, belief: Any, batch: Batch, rng: chex.PRNGKey
) -> tuple[MainState, Metrics]:
    """One real update of the classifier on one batch."""
    grads, (batch_stats, metrics) = inner_grads(problem, main, belief, batch, rng)
    return apply_inner_grads(problem, main, grads, batch_stats), metrics


def outer_loss(
    problem: Problem, params: Params, batch_stats: Params, clean: Labelled, rng: chex.PRNGKey
) -> tuple[jax.Array, Metrics]:
    """Mean cross-entropy on clean labels, `L_D(w)`: the meta model's loss.

    Batch normalisation runs in training mode but does not update its running statistics, because
    this pass does not train. Dropout has a key that no inner pass of the step uses.
    """
    rng = jax.random.fold_in(rng, _OUTER_STREAM)
    logits, _, _ = problem.apply(params, batch_stats, problem.prepare(clean.inputs), rng)
    loss = jnp.mean(losses.cross_entropy(logits, clean.labels))
    return loss, {"outer_loss": loss, "clean_accuracy": losses.accuracy(logits, clean.labels)}


def step_rngs(
    rng: chex.PRNGKey, step: jax.Array, num_inner_steps: int, axis_name: str | None
) -> chex.PRNGKey:
    """Keys `[k]` of the window that starts at `step`: pure in (rng, step, device)."""
    steps = step + jnp.arange(num_inner_steps)
    rngs = jax.vmap(lambda t: jax.random.fold_in(rng, t))(steps)
    if axis_name is None:
        return rngs
    device = jax.lax.axis_index(axis_name)
    return jax.vmap(lambda key: jax.random.fold_in(key, device))(rngs)
