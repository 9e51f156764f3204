"""Cross-fitting of several draws of one table as one program, without workdirs and reports."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from mlc_jax import methods
from mlc_jax.data import UNKNOWN, ArraySource, Subset, folds
from mlc_jax.data.votes import accuracies, vote_of_most
from mlc_jax.report import verdict


class Draw(NamedTuple):
    """One draw of a table's rows and labels.

    Attributes:
      rows: `[n]`, rows of the table.
      votes: `[n, S]` given labels, or UNKNOWN.
      truth: `[n]` true labels; the method sees those of checked rows.
      checked: `[n]` bool.
    """

    rows: np.ndarray
    votes: np.ndarray
    truth: np.ndarray
    checked: np.ndarray


class Fitted(NamedTuple):
    """The result of a draw.

    Attributes:
      pipeline: all rows: doubtful ones, then checked ones.
      out_of_fold: probabilities `[n, C]` by name, in that order of rows.
      probs: `[N, C]`, the classifier's, for every row of the table.
      weights: `[4]`, see `label_model.pool`.
      pi: `[C]`, shares of classes, mean over folds.
    """

    pipeline: folds.AllRows
    out_of_fold: dict[str, np.ndarray]
    probs: np.ndarray
    weights: np.ndarray
    pi: np.ndarray


def judged(pipeline: folds.AllRows, probs: dict[str, np.ndarray]) -> verdict.Verdict:
    """The verdict, from probabilities `[n, C]` by name; see `Fitted`."""
    rows, num_noisy = pipeline.rows, len(pipeline.noisy)
    places = rows.judged[rows.counts > 0]
    given = np.concatenate([pipeline.noisy.given, pipeline.clean.given])
    return verdict.judge(
        {name: x[places] for name, x in probs.items()},
        rows.checks[places],
        given[places],
        rows.fold[rows.counts > 0],
        doubtful=num_noisy,
        class_names=[str(i) for i in range(probs["corrected"].shape[1])],
        class_shares=None if rows.is_random else probs["corrected"][:num_noisy].mean(axis=0),
        looked_up=len(pipeline.clean) - len(places),
    )


def fit(
    method: methods.cross_fit,
    features: np.ndarray,
    draws: Sequence[Draw],
    drawn: str | Sequence[np.ndarray],
) -> list[Fitted]:
    """Trains `method` on each draw; the seed is the draw's place.

    Args:
      method: the method, with its classifier.
      features: the table's, `[N, F]`.
      draws: all with equally many checked rows.
      drawn: how rows were checked, one of `folds.DRAWN`; or, for each draw, `[n]` of these.
    """
    num_classes = method.model.num_classes
    source, pipelines = ArraySource(features), []
    for number, draw in enumerate(draws):
        clean, noisy = (np.flatnonzero(part) for part in (draw.checked, ~draw.checked))
        accuracy = accuracies(draw.votes[clean], draw.truth[clean])
        most = vote_of_most(draw.votes, accuracy, num_classes)
        votes = draw.votes.astype(np.int16) if draw.votes.shape[1] > 1 else None
        how = np.full(len(draw.checked), drawn) if isinstance(drawn, str) else drawn[number]
        everything = Subset(source, draw.rows, most, draw.truth, votes)
        doubtful = everything.take(noisy)
        pipelines.append(folds.AllRows(
            Subset(source, doubtful.rows, doubtful.given,
                   np.full(len(noisy), UNKNOWN, np.int32), doubtful.votes),
            everything.take(clean), how[clean], method.num_folds,
            method.num_parts, number, method.batch_size, method.steps_per_round,
        ))  # fmt: skip
    all_rows = folds.of_one_length([pipeline.rows for pipeline in pipelines])
    rows = jax.tree.map(lambda *arrays: np.stack(arrays), *all_rows)
    bound = method.bind(
        num_noisy=len(pipelines[0].noisy), num_classes=num_classes,
        steps_per_epoch=method.steps_per_round, num_epochs=1,
        num_sources=draws[0].votes.shape[1],
    )  # fmt: skip
    keys = jax.vmap(jax.random.key)(np.arange(len(draws)))
    state = jax.vmap(bound.init, in_axes=(0, None))(keys, features[:1])
    first, second = (jax.jit(jax.vmap(phase.train_step)) for phase in bound.phases)
    state, _ = first(state, rows)
    for _ in range(method.num_rounds):
        state, _ = second(state, rows)
    assert bound.out_of_fold is not None and bound.classify is not None
    probs = jax.device_get(jax.jit(jax.vmap(bound.out_of_fold))(state, rows))
    classify = jax.jit(jax.vmap(bound.classify, in_axes=(0, None)))
    logits = classify(state, features)[0]
    of_new = np.asarray(jax.nn.softmax(logits))
    weights = np.asarray(state.meta.params["weights"])
    shares = np.asarray(state.meta.params["class_shares"]).mean(axis=1)
    of_draw = [{name: x[i] for name, x in probs.items()} for i in range(len(draws))]
    return [Fitted(*each) for each in zip(pipelines, of_draw, of_new, weights, shares, strict=True)]
