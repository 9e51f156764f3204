"""Cross-fitting: who learns from what, the label model's numbers, and whole runs."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlc_jax as mlc
from mlc_jax import build
from mlc_jax.commands import train
from mlc_jax.data import ArraySource, Subset, folds
from mlc_jax.errors import InputError, Preempted
from mlc_jax.files.values.checks import random_order
from mlc_jax.models import label_model
from mlc_jax.report import to_check
from mlc_jax.training import run, stack
from mlc_jax.workdir import preemption

pytestmark = pytest.mark.usefixtures("standard_promotion")  # For optax's Adam.

CLASSES, FEATURES = 3, 4
SHORT = {"num_folds": 3, "num_rounds": 2, "steps_per_round": 40, "batch_size": 32}


def _data(seed=0, size=150, num_checked=30, wrong=0.4):
    """Three clouds; labels of which some are the next class; some rows checked at random."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, CLASSES, size)
    x = rng.normal(size=(size, FEATURES)) + 2 * np.eye(CLASSES, FEATURES)[truth]
    given = np.where(rng.random(size) < wrong, (truth + 1) % CLASSES, truth)
    checked = np.zeros(size, bool)
    checked[rng.permutation(size)[:num_checked]] = True
    return x.astype(np.float32), truth.astype(np.int32), given.astype(np.int32), checked


def _pipeline(x, truth, given, checked, drawn=folds.RANDOM, votes=None, **fields):
    source = ArraySource(x)
    noisy, clean = np.flatnonzero(~checked), np.flatnonzero(checked)
    unknown = np.full(len(noisy), -1, np.int32)
    fields = {"folds": 3, "parts": 2, "seed": 0, "batch_size": 32, "steps_per_epoch": 40} | fields
    return folds.AllRows(
        Subset(source, noisy, given[noisy], unknown, None if votes is None else votes[noisy]),
        Subset(source, clean, given[clean], truth[clean], None if votes is None else votes[clean]),
        np.broadcast_to(drawn, len(clean)).astype("U9"), **fields,
    )  # fmt: skip


def _bound(num_noisy=120, axis_name=None, **fields):
    """Of both kinds: linear classifiers and ones with a hidden layer."""
    linear, hidden = (mlc.models.MLP(CLASSES, sizes) for sizes in ((), (8,)))
    method = mlc.methods.cross_fit(model=linear, **({"beside": hidden} | SHORT | fields))
    return method.bind(
        num_noisy=num_noisy, num_classes=CLASSES, steps_per_epoch=40, num_epochs=1,
        axis_name=axis_name,
    )  # fmt: skip


def _trained(bound, rows, x, rounds=2):
    state = jax.jit(bound.init)(jax.random.key(0), x[:1])
    state, _ = jax.jit(bound.phases[0].train_step)(state, rows)
    step = jax.jit(bound.phases[1].train_step)
    for _ in range(rounds):
        state, _ = step(state, rows)
    return state


# --- Who learns from what.


def test_nobody_is_judged_by_who_learned_from_it():
    x, truth, given, checked = _data()
    rows = _pipeline(x, truth, given, checked).rows
    num_noisy = int((~checked).sum())
    judged = rows.judged[rows.counts > 0]
    assert sorted(judged) == list(range(num_noisy, len(x)))  # All checked rows, after the others.
    for k in range(3):
        hidden = judged[rows.fold[rows.counts > 0] == k]
        assert len(hidden) == 10 and not rows.is_visible[k, hidden].any()
        assert rows.is_visible[k, np.setdiff1d(judged, hidden)].all()
        for h in range(2):
            learned = rows.lists[k, h, : rows.lengths[k, h]]
            assert len(np.unique(learned)) == len(learned)
            # All that is not in part h, and the checks that are seen.
            own = rows.part[learned] == h
            assert rows.is_visible[k, learned[own]].all()
            outside = np.flatnonzero(rows.part[: len(x)] != h)  # What follows fills up.
            assert np.isin(outside, learned).all()
            assert np.isin(hidden[rows.part[hidden] != h], learned).all()  # As doubtful rows.
    # Of the rivals, those of a part know no row of it, those of a fold only checks that are seen.
    for h in range(2):
        assert (rows.part[rows.rival_lists[h, : rows.rival_lengths[h]]] != h).all()
    for k in range(3):
        alone = rows.rival_lists[2 + k, : rows.rival_lengths[2 + k]]
        np.testing.assert_array_equal(np.sort(alone), np.flatnonzero(rows.is_visible[k]))


def test_folds_have_their_share_of_each_class():
    _, truth, given, checked = _data(num_checked=60)
    rows = _pipeline(np.zeros((150, 1), np.float32), truth, given, checked).rows
    checks = rows.checks[rows.judged]
    for label in range(CLASSES):
        counts = np.bincount(rows.fold[checks == label], minlength=3)
        assert counts.max() - counts.min() <= 1


def test_rows_that_were_looked_up_teach_and_do_not_judge():
    x, truth, given, checked = _data()
    drawn = np.where(np.arange(30) < 12, folds.LOOKED_UP, folds.RANDOM)
    rows = _pipeline(x, truth, given, checked, drawn).rows
    looked_up = np.flatnonzero(~rows.is_judged & (rows.checks >= 0))
    assert len(looked_up) == 12 and rows.counts.sum() == 18
    assert rows.is_visible[:, looked_up].all()
    assert not np.isin(rows.judged, looked_up).any()


@pytest.mark.parametrize(("num_random", "judging"), [(15, 15), (20, 20), (14, 30)])
def test_rows_per_class_do_not_judge_beside_as_many_random_ones(num_random, judging):
    """A mixture of both is no random sample."""
    x, truth, given, checked = _data()
    drawn = np.where(np.arange(30) < num_random, folds.RANDOM, folds.PER_CLASS)
    rows = _pipeline(x, truth, given, checked, drawn).rows
    assert rows.counts.sum() == judging and bool(rows.is_random) == (num_random >= 15)
    taught = np.flatnonzero(~rows.is_judged & (rows.checks >= 0))
    assert len(taught) == 30 - judging and rows.is_visible[:, taught].all()


@pytest.mark.slow
@pytest.mark.parametrize(
    "num_checked", [0, *(pytest.param(x, marks=pytest.mark.slow) for x in (1, 2))]
)
def test_hardly_any_judged_row(num_checked):
    x, truth, given, checked = _data(num_checked=max(1, num_checked))
    drawn = folds.RANDOM if num_checked else folds.LOOKED_UP
    rows = _pipeline(x, truth, given, checked, drawn).rows
    assert rows.counts.sum() == num_checked
    bound = _bound()
    probs = jax.jit(bound.out_of_fold)(_trained(bound, rows, x, rounds=1), rows)
    assert all(np.isfinite(p).all() for p in probs.values())


def test_two_checks_of_wrong_labels_make_no_label_worse():
    """They alone say that given labels are always wrong; few checks are not believed that far."""
    x, truth, given, _ = _data(size=152, wrong=0.3)
    checked = np.zeros(152, bool)
    checked[np.flatnonzero(given != truth)[[0, 5]]] = True
    rows = _pipeline(x, truth, given, checked).rows
    bound = _bound(num_noisy=150)
    probs = jax.jit(bound.out_of_fold)(_trained(bound, rows, x), rows)
    right = probs["corrected"][:150].argmax(axis=1) == truth[~checked]
    assert np.mean(right) > np.mean(given[~checked] == truth[~checked]) + 0.04


def test_stacked_runs_have_lists_of_one_length():
    pipelines = [_pipeline(*_data(seed=seed), seed=seed) for seed in (0, 1)]
    together = folds.of_one_length([pipeline.rows for pipeline in pipelines])
    for rows, pipeline in zip(together, pipelines, strict=True):
        own = pipeline.rows.lists.shape[-1]
        np.testing.assert_array_equal(rows.lists[..., :own], pipeline.rows.lists)
    assert together[0].lists.shape == together[1].lists.shape


# --- The label model, against NumPy.


def test_what_given_labels_mean():
    """R is counts, and a prior of all labels together: rho at the label itself."""
    votes = np.array([[0], [0], [1], [2], [-1]])
    checks, weight = np.array([0, 1, 1, 2, 0]), np.array([1.0, 1.0, 1.0, 0.3, 1.0])
    q, pi = np.eye(3)[checks], np.array([0.5, 0.3, 0.2])
    clean = np.array([1.0, 1.0, 1.0, 0.0, 1.0])
    found = label_model.source_counts(
        *map(jnp.asarray, (votes, q, weight, clean, pi)), prior_strength=10.0
    )
    rho = (2 + 1) / (3 + 2)  # Two of the three votes on checked rows are right.
    want = np.zeros((3, 3))
    for vote, label, w in zip(votes[:, 0], checks, weight, strict=True):
        if vote >= 0:
            want[vote, label] += w
    for v in range(3):
        others = np.where(np.arange(3) == v, 0, pi)
        want[v] += 10 * (rho * np.eye(3)[v] + (1 - rho) * others / others.sum())
    np.testing.assert_allclose(found[0], want / want.sum(axis=1, keepdims=True), rtol=1e-5)
    term = label_model.label_term(jnp.asarray(votes), found, jnp.asarray(pi))
    np.testing.assert_allclose(term[2], np.log(found[0, 1]) - np.log(pi), rtol=1e-5)
    np.testing.assert_array_equal(term[4], 0)  # Who says nothing changes nothing.


def test_two_sources_are_added_up():
    votes = jnp.array([[0, 1], [0, -1]])
    matrices = jnp.array([[[0.8, 0.2], [0.1, 0.9]], [[0.6, 0.4], [0.5, 0.5]]])
    pi = jnp.array([0.5, 0.5])
    term = label_model.label_term(votes, matrices, pi)
    one = np.log([0.8, 0.2]) - np.log(0.5)
    np.testing.assert_allclose(term, [one + np.log([0.5, 0.5]) - np.log(0.5), one], rtol=1e-5)


def test_weights_follow_what_can_be_trusted():
    """Labels that say nothing get an l near 0, a classifier that knows nothing an a near 0."""
    rng = np.random.default_rng(0)
    checks = rng.integers(0, 3, 200)

    def says(right):
        label = np.where(rng.random(200) < right, checks, rng.integers(0, 3, 200))
        return np.log(np.full((200, 3), 0.1) + 0.7 * np.eye(3)[label])

    good, noise = says(0.8), says(0.0)
    for terms, low, high in (((good, noise), 1, 0), ((noise, good), 0, 1)):
        stacked = jnp.asarray(np.stack([*terms, noise, noise], axis=1), jnp.float32)
        weights, _ = label_model.fit_weights(
            stacked, jnp.asarray(checks), jnp.ones(200), (2.0, 2.0), 0.5
        )
        assert weights[high] > 0.7 and weights[low] < 0.2
        assert (weights[2:] < 0.2).all() and (weights >= 0).all()


@pytest.mark.parametrize("true_weight", [0.5, 2.0])
def test_weights_are_where_the_posterior_is_highest(true_weight):
    """By its gradient as JAX takes it, of a random problem; l on both sides of 1."""
    rng = np.random.default_rng(1)
    terms = jnp.asarray(np.log(rng.dirichlet(np.ones(3), (80, 4))), jnp.float32)
    shares = np.asarray(jax.nn.softmax(terms[:, 0] + true_weight * terms[:, 1]), np.float64)
    checks = jnp.asarray([rng.choice(3, p=p / p.sum()) for p in shares])
    counts = jnp.asarray(rng.uniform(0.5, 1.5, 80), jnp.float32)

    def likelihood(weights):
        log_q = label_model.pool(weights, *jnp.moveaxis(terms, 1, 0))[jnp.arange(80), checks]
        return jnp.sum(counts * jnp.maximum(log_q, label_model.LOG_FLOOR))

    def loss(theta):
        weights = jnp.concatenate([jnp.exp(theta[:2]), theta[2:]])
        widths = jnp.array([2.0, 0.7 if true_weight > 1 else 2.0, 0.5, 0.5])
        prior = jnp.sum(jnp.square(theta / widths)) / 2
        return prior - likelihood(weights)

    weights, found = label_model.fit_weights(terms, checks, counts, (2.0, 0.7), 0.5)
    assert (weights[1] > 1) == (true_weight > 1)
    np.testing.assert_allclose(found, likelihood(weights), rtol=1e-5)
    slope = jax.grad(loss)(jnp.concatenate([jnp.log(weights[:2]), weights[2:]]))
    assert (jnp.abs(slope[:2]) < 0.05).all()
    for weight, x in zip(weights[2:], slope[2:], strict=True):  # At the bound it may push.
        assert abs(x) < 0.05 or (weight == 0 and x > 0)


def test_class_shares_do_not_run_away():
    """A rare class, of which nothing much is known, keeps a floor."""
    evidence = jnp.asarray(np.random.default_rng(0).normal(size=(500, 2)) + np.array([0.5, 0]))
    shares = label_model.shifted_shares(evidence, jnp.ones(500), 0.2)
    assert shares[1] >= 0.1 and abs(float(shares.sum()) - 1) < 1e-6
    informed = 4 * np.eye(2)[(np.arange(500) < 65).astype(int)]
    shares = label_model.shifted_shares(jnp.asarray(informed), jnp.ones(500), 0.2)
    np.testing.assert_allclose(shares[1], 65 / 500, atol=0.02)


# --- Training.


@pytest.fixture(scope="module")
def example():
    """A run of two rounds: data, rows, the bound method and the state."""
    with jax.numpy_dtype_promotion("standard"):
        x, truth, given, checked = _data()
        rows, bound = _pipeline(x, truth, given, checked).rows, _bound()
        return x, truth[~checked], given[~checked], rows, bound, _trained(bound, rows, x)


def test_labels_get_better_and_are_judged_right(example):
    _, truth, given, rows, bound, state = example
    probs = jax.device_get(jax.jit(bound.out_of_fold)(state, rows))
    right = {name: np.mean(p[: len(truth)].argmax(1) == truth) for name, p in probs.items()}
    assert np.mean(given == truth) < 0.7 and right["corrected"] > 0.85
    assert right["corrected"] > right["given"]
    judged = rows.judged
    estimate = np.mean(probs["corrected"][judged].argmax(1) == rows.checks[judged])
    assert abs(estimate - right["corrected"]) < 0.2  # Two standard errors of thirty rows.


def test_a_check_has_no_part_in_what_predicts_its_row(example):
    """All that runs (k, .) and the rivals know stays bit-equal when a check of fold k changes."""
    x, _, _, rows, bound, _ = example
    row, fold = int(rows.judged[0]), int(rows.fold[0])
    checks = rows.checks.copy()
    checks[row] = (checks[row] + 1) % CLASSES
    one, other = (_trained(bound, r, x, rounds=1) for r in (rows, rows._replace(checks=checks)))
    own = slice(2 * fold, 2 * fold + 2)  # Its K x H runs, and its rival.
    for before, after in zip(
        jax.tree.leaves(one.main.params), jax.tree.leaves(other.main.params), strict=True
    ):
        part = own if before.shape[0] == 6 else slice(2 + fold, 3 + fold)
        np.testing.assert_array_equal(before[part], after[part])
        assert not np.array_equal(before, after)  # Others saw it.


@pytest.mark.slow  # A program of its own: one weight decay, which no check chooses.
def test_a_row_is_judged_by_weights_that_its_check_did_not_fit(example):
    """Predictions stay as they are; a check is another one when the weights are fitted to them."""
    *_, rows, _, state = example
    steps = _bound(weight_decays=(1e-3,), beside=None).out_of_fold.__self__.label_steps
    params = state.main.params | {
        "runs": jax.tree.map(lambda leaf: leaf[:, 1:2], state.main.params["runs"])
    }
    del params["beside"]
    row, fold = int(rows.judged[0]), int(rows.fold[0])
    checks = rows.checks.copy()
    checks[row] = (checks[row] + 1) % CLASSES

    @jax.jit
    def fitted(checks):
        known = steps.known(params, rows)
        meta = state.meta.params | {"decay_weights": np.ones(1, np.float32)}
        labels = steps.labels(params, meta, known, False)
        changed = known._replace(rows=rows._replace(checks=checks))
        return steps.said_anew(params, labels, meta["estimated_shares"], changed)

    one, other = jax.device_get((fitted(rows.checks), fitted(checks)))
    changes = np.abs(one["judging_weights"] - other["judging_weights"]).max(axis=1)
    assert changes[fold] == 0 and np.delete(changes, fold).min() > 1e-3
    assert np.abs(one["weights"] - other["weights"]).max() > 1e-3


def test_new_rows_are_predicted_by_the_mean_of_all_runs(example):
    x, _, _, _, bound, state = example
    logits, _ = jax.jit(bound.classify)(state, x[:7])
    params, meta = jax.device_get((state.main.params, state.meta.params))

    def layer(inputs, dense):
        return inputs @ dense["kernel"] + dense["bias"][:, :, None]

    def log_probs(params):
        inputs = x[:7]
        if "hidden1" in params:
            inputs = np.maximum(layer(inputs, params["hidden1"]), 0)
        logits = layer(inputs, params["output"])
        shifted = logits - logits.max(axis=-1, keepdims=True)
        logs = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
        return np.maximum(logs, label_model.LOG_FLOOR)

    of_kinds = [log_probs(params[name]) for name in ("runs", "beside")]
    runs = np.einsum("e,genc->gnc", meta["decay_weights"], np.concatenate(of_kinds, axis=1))
    runs = runs - np.log(np.exp(runs).sum(axis=-1, keepdims=True))
    rivals = log_probs(params["rivals"])[:, 0]
    a, _, b, c = meta["weights"]
    probs = []
    for k in range(3):
        for h in range(2):
            total = a * runs[2 * k + h] + b * rivals[h] + c * rivals[2 + k]
            probs.append(np.exp(total) / np.exp(total).sum(axis=-1, keepdims=True))
    np.testing.assert_allclose(np.exp(logits), np.mean(probs, axis=0), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("is_ring", [True, False])
def test_the_checks_weigh_linear_classifiers_and_ones_with_a_hidden_layer(is_ring):
    rng = np.random.default_rng(2)
    x = rng.uniform(-1, 1, (400, 2)).astype(np.float32)
    truth = (np.hypot(*x.T) < 0.75) if is_ring else (x[:, 0] + 0.3 * x[:, 1] > 0)
    truth = truth.astype(np.int32)
    given = np.where(rng.random(400) < 0.3, 1 - truth, truth)
    checked = np.arange(400) < 40
    linear, hidden = (mlc.models.MLP(2, sizes) for sizes in ((), (16,)))
    method = mlc.methods.cross_fit(model=linear, beside=hidden, **SHORT)
    bound = method.bind(num_noisy=360, num_classes=2, steps_per_epoch=40, num_epochs=1)
    state = _trained(bound, _pipeline(x, truth, given, checked).rows, x)
    of_linear = state.meta.params["decay_weights"][:3].sum()
    assert of_linear < 0.05 if is_ring else of_linear > 0.5
    predicted = bound.classify(state, x)[0].argmax(axis=1)
    assert np.mean(predicted[40:] == truth[40:]) > 0.75


@pytest.mark.slow  # Four programs, for four and for eight devices.
def test_devices_share_the_runs(example):
    """Six runs on eight devices and on four: what one device trains."""
    x, _, _, rows, _, alone = example
    bound = _bound(axis_name=stack.AXIS_NAME)
    for num_devices in (4, 8):
        devices = jax.local_devices()[:num_devices]
        spread = jax.tree.map(lambda a: np.broadcast_to(a, (num_devices, *np.shape(a))), rows)  # noqa: B023
        state = jax.jit(bound.init)(jax.random.key(0), x[:1])
        for phase, times in zip(bound.phases, (1, 2), strict=True):
            step = stack.over_devices(phase.train_step, devices=devices)
            for _ in range(times):
                state, _ = step(state, spread)
        for one, other in zip(
            jax.tree.leaves((alone.main, alone.meta)), jax.tree.leaves((state.main, state.meta)),
            strict=True,
        ):  # fmt: skip
            np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-4)


@pytest.mark.slow  # A program of its own: two classes.
def test_so_many_per_class_leave_rare_classes_rare():
    """Classes of 87 and 13 %, five checked rows of each: labels do not run away."""
    rng = np.random.default_rng(3)
    truth = (rng.random(400) < 0.13).astype(np.int32)
    x = (rng.normal(size=(400, 2)) + 1.5 * np.eye(2)[truth]).astype(np.float32)
    given = np.where(rng.random(400) < 0.15, 1 - truth, truth).astype(np.int32)
    checked = np.zeros(400, bool)
    for label in (0, 1):
        checked[rng.permutation(np.flatnonzero(truth == label))[:5]] = True
    rows = _pipeline(x, truth, given, checked, folds.PER_CLASS).rows
    assert not rows.is_random
    method = mlc.methods.cross_fit(model=mlc.models.MLP(2, ()), **SHORT)
    bound = method.bind(num_noisy=390, num_classes=2, steps_per_epoch=40, num_epochs=1)
    state = _trained(bound, rows, x)
    probs = jax.device_get(jax.jit(bound.out_of_fold)(state, rows))["corrected"][:390]
    assert np.mean(probs.argmax(1) == truth[~checked]) > 0.84
    assert 0.05 < probs[:, 1].mean() < 0.3


@pytest.mark.slow  # A program of its own: two classes, eight sources.
@pytest.mark.parametrize("seed", [1, 2])
def test_many_sources_do_not_make_one_class_of_all(seed):
    """Shares of classes that are a little wrong must not count once per source."""
    rng = np.random.default_rng(seed)
    truth = (rng.random(400) < 0.3).astype(np.int32)
    x = (rng.normal(size=(400, 2)) + np.eye(2)[truth]).astype(np.float32)
    right = np.array([0.8] + [0.55] * 7)
    votes = np.where(rng.random((400, 8)) < right, truth[:, None], 1 - truth[:, None])
    checked = np.zeros(400, bool)
    for label in (0, 1):
        checked[rng.permutation(np.flatnonzero(truth == label))[:5]] = True
    rows = _pipeline(x, truth, votes[:, 0].astype(np.int32), checked, folds.PER_CLASS,
                     votes=votes.astype(np.int16)).rows  # fmt: skip
    method = mlc.methods.cross_fit(model=mlc.models.MLP(2, ()), **SHORT)
    bound = method.bind(
        num_noisy=390, num_classes=2, steps_per_epoch=40, num_epochs=1, num_sources=8
    )
    probs = jax.device_get(jax.jit(bound.out_of_fold)(_trained(bound, rows, x), rows))
    said = probs["corrected"][:390].argmax(1)
    assert np.mean(said == truth[~checked]) > 0.72  # 0.56 and 0.69 when they did.


@pytest.mark.slow  # A program of its own: six sources.
def test_what_each_kind_of_source_is_taken_for():
    x, truth, _, checked = _data(size=240, num_checked=40)
    rng = np.random.default_rng(100)
    votes = {
        "good": np.where(rng.random(240) < 0.8, truth, (truth + 1) % CLASSES),
        "as good": np.where(rng.random(240) < 0.8, truth, (truth + 1) % CLASSES),
        "at random": rng.integers(0, CLASSES, 240),
        "always wrong": (truth + 1) % CLASSES,
        "one class alone": np.where(truth == 0, 0, -1),
        "always the same": np.ones(240, int),
    }
    said = np.stack(list(votes.values()), axis=1).astype(np.int16)
    rows = _pipeline(x, truth, said[:, 0].astype(np.int32), checked, votes=said).rows
    method = mlc.methods.cross_fit(model=mlc.models.MLP(CLASSES, ()), **SHORT)
    bound = method.bind(
        num_noisy=200, num_classes=CLASSES, steps_per_epoch=40, num_epochs=1, num_sources=6
    )
    state = _trained(bound, rows, x)
    shares = np.asarray(state.meta.params["class_shares"]).mean(axis=0)
    matrices = np.asarray(state.meta.params["matrices"]).mean(axis=0)
    evidence = dict(zip(votes, np.log(matrices / shares), strict=True))
    assert np.abs(evidence["at random"]).max() < 0.6  # A vote says next to nothing,
    assert np.abs(evidence["always the same"][1]).max() < 0.2
    assert (evidence["good"].argmax(axis=1) == [0, 1, 2]).all()
    assert evidence["good"].diagonal().min() > 0.5
    # as much as a good one if one knows how to read it,
    assert (evidence["always wrong"].argmax(axis=1) == [2, 0, 1]).all()
    # and only about the classes that it names.
    assert evidence["one class alone"][0].argmax() == 0
    probs = jax.device_get(jax.jit(bound.out_of_fold)(state, rows))
    right = {name: np.mean(p[:200].argmax(1) == truth[~checked]) for name, p in probs.items()}
    assert right["corrected"] > 0.95 > right["classifier"]


# --- The command, and fit.


def _table(path, *, num_checked=30, column=None):
    x, truth, given, checked = _data(num_checked=num_checked)
    names = np.array(["ant", "bee", "cat"])
    with path.open("w") as file:
        table = csv.writer(file)
        table.writerow(["id", *"abcd", "label", "checked_label", *(["drawn"] if column else [])])
        for i, row in enumerate(x.tolist()):
            label = names[truth[i]] if checked[i] else ""
            more = [column if checked[i] else ""] if column else []
            table.writerow([f"r{i}", *row, names[given[i]], label, *more])
    return truth, checked


def _config(path, **fields):
    from configs import table

    config = table.get_config()
    config.dataset.data = str(path)
    config.cross_fit.update(num_folds=3, num_rounds=2, steps_per_round=40)
    config.update_from_flattened_dict(fields)
    return config


def test_a_table_to_its_verdict(tmp_path):
    truth, checked = _table(tmp_path / "all.csv")
    config = _config(tmp_path / "all.csv")
    results = train.train_and_evaluate(config, str(tmp_path / "run"), show_progress=False)
    assert "\nVerdict: Take the corrected labels." in results["table"]
    stored = json.loads((tmp_path / "run" / "results.json").read_text())["verdict"]
    assert stored["take"] == "corrected" and stored["shares"]["corrected"]["n"] == 30
    names = np.array(["ant", "bee", "cat"])[truth]
    with (tmp_path / "run" / "corrected.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["id"] for row in rows] == [f"r{i}" for i in range(150)]
    assert all(row["corrected_label"] == row["checked_label"] for row in rows if
               row["checked_label"])  # fmt: skip
    rows = [row for row in rows if not row["checked_label"]]
    right = [row["corrected_label"] == names[int(row["id"][1:])] for row in rows]
    assert len(rows) == 120 and np.mean(right) > 0.8
    with (tmp_path / "run" / "predicted_labels.csv").open() as file:
        predicted = list(csv.DictReader(file))
    assert {"predicted_label", "predicted_by_checked", "predicted_by_given"} <= predicted[0].keys()
    assert [row["id"] for row in predicted] == [row["id"] for row in rows]
    with (tmp_path / "run" / "checked_rows.csv").open() as file:
        judged = list(csv.DictReader(file))
    assert [row["id"] for row in judged] == [f"r{i}" for i in np.flatnonzero(checked)]
    share = np.mean([row["corrected_label"] == row["checked_label"] for row in judged])
    np.testing.assert_allclose(share, stored["shares"]["corrected"]["estimate"])
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.index("<h2>Verdict</h2>") < page.index("<h2>Figures</h2>")
    result = mlc.load(tmp_path / "run")
    assert result.labels.tolist() == [row["corrected_label"] for row in rows]
    probs = result.predict_proba({name: [0.0, 2.0] for name in "abcd"})
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-5)


def test_what_random_rows_would_bring_is_said_of_those_that_are_asked_for(tmp_path):
    """Not of a file that somebody has filled in."""
    _table(tmp_path / "all.csv")
    config = _config(tmp_path / "all.csv")
    again = {"show_progress": False, "again": "mlc-jax correct all.csv"}
    results = train.train_and_evaluate(config, str(tmp_path / "run"), **again)
    line = results["table"].splitlines()[-1]
    assert line.startswith("30 rows there are drawn at random: they would narrow the interval for ")
    text = (tmp_path / "run" / "to_check.csv").read_text()
    head, first, *rows = text.splitlines()
    (tmp_path / "run" / "to_check.csv").write_text("\n".join([head, f"{first}ant", *rows]))
    results = train.train_and_evaluate(config, str(tmp_path / "run"), **again)
    assert results["table"].splitlines()[-1] == "  mlc-jax correct all.csv"
    assert "drawn at random: they" not in (tmp_path / "run" / "report.html").read_text()


def test_the_classifiers_own_predictions_as_corrected_labels(tmp_path):
    """In every file, and in the verdict; the program is that of the default."""
    _table(tmp_path / "all.csv")
    config = _config(tmp_path / "all.csv", **{"cross_fit.take": "classifier"})
    results = train.train_and_evaluate(config, str(tmp_path / "run"), show_progress=False)
    assert "the classifier's own predictions (corrected_label)" in results["table"]
    for name in ("predicted_labels.csv", "checked_rows.csv"):
        with (tmp_path / "run" / name).open() as file:
            rows = list(csv.DictReader(file))
        assert len(rows) == (30 if name == "checked_rows.csv" else 120)
        assert all(row["corrected_label"] == row["predicted_label"] for row in rows)
    with (tmp_path / "run" / "corrected.csv").open() as file:
        corrected = {x["id"]: x["corrected_label"] for x in csv.DictReader(file)}
    with (tmp_path / "run" / "predicted_labels.csv").open() as file:
        assert all(corrected[x["id"]] == x["predicted_label"] for x in csv.DictReader(file))


@pytest.mark.slow
def test_no_prediction_is_shown_for_checks_that_all_classifiers_saw(tmp_path):
    """A training of its own: rows that were looked up are in every fold."""
    _table(tmp_path / "all.csv", column="looked_up")
    text = (tmp_path / "all.csv").read_text().replace("looked_up", "random", 12)
    text = text.replace("looked_up", "per_class", 5)  # Beside as many random rows they don't judge.
    (tmp_path / "all.csv").write_text(text)
    config = _config(tmp_path / "all.csv", **{"cross_fit.num_rounds": 1})
    train.train_and_evaluate(config, str(tmp_path / "run"), show_progress=False)
    with (tmp_path / "run" / "checked_rows.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["drawn"] for row in rows].count("random") == 12
    for name in ("corrected_label", "predicted_label", "predicted_by_checked"):
        assert all(bool(row[name]) == (row["drawn"] == "random") for row in rows)


def test_stopped_between_rounds_it_ends_the_same(tmp_path, monkeypatch):
    _table(tmp_path / "all.csv")
    config = _config(tmp_path / "all.csv")
    train.train_and_evaluate(config, str(tmp_path / "whole"), show_progress=False)
    reached = preemption.PreemptionFlag.reached
    monkeypatch.setattr(
        preemption.PreemptionFlag, "reached", lambda self, step: step == 2 or reached(self, step)
    )
    with pytest.raises(Preempted):
        train.train_and_evaluate(config, str(tmp_path / "parts"), show_progress=False)
    monkeypatch.undo()
    train.train_and_evaluate(config, str(tmp_path / "parts"), show_progress=False)
    for name in ("corrected.csv", "predicted_labels.csv", "checked_rows.csv"):
        whole, parts = ((tmp_path / run / name).read_bytes() for run in ("whole", "parts"))
        assert whole == parts


@pytest.mark.slow  # A program of two runs.
def test_stacked_seeds_are_the_runs_that_they_are_alone(tmp_path):
    _table(tmp_path / "all.csv")
    configs = {
        str(tmp_path / f"{seed}"): _config(tmp_path / "all.csv", seed=seed) for seed in (0, 1)
    }
    train.train_together(configs, show_progress=False)
    config = configs[str(tmp_path / "1")]
    train.train_and_evaluate(config, str(tmp_path / "alone"), show_progress=False)
    soft = []
    for name in ("1", "alone"):
        with np.load(tmp_path / name / "corrected_labels.npz") as arrays:
            soft.append(arrays["soft_label"])
    np.testing.assert_allclose(*soft, atol=2e-3)


def test_each_checked_row_says_how_it_was_drawn():
    x, truth, given, checked = _data()
    clean = mlc.Examples(x[checked], truth[checked], given[checked], drawn=["random"] * 29)
    with pytest.raises(InputError, match=r"clean.drawn: got \(29,\), expected one text, or"):
        mlc.fit(mlc.methods.cross_fit(model=mlc.models.MLP(CLASSES, ())),
                mlc.Examples(x[~checked], given[~checked]), clean, progress=False)  # fmt: skip


def test_fit_in_memory():
    x, truth, given, checked = _data()
    names = np.array(["ant", "bee", "cat"])
    result = mlc.fit(
        mlc.methods.cross_fit(model=mlc.models.MLP(CLASSES, ()), **SHORT),
        mlc.Examples(x[~checked], names[given[~checked]]),
        mlc.Examples(x[checked], names[truth[checked]], names[given[checked]], drawn="random"),
        progress=False,
    )
    assert np.mean(result.labels == names[truth[~checked]]) > 0.85
    assert result.verdict.take == "corrected"
    assert str(result.verdict).splitlines()[-1].startswith("Verdict: Take the corrected labels.")


@pytest.mark.parametrize("is_everywhere", [False, True])
def test_some_checked_rows_lack_a_given_label(is_everywhere):
    """They say nothing of given labels; or, where other rows have none, either, they are wrong."""
    x, truth, given, checked = _data()
    given = given.copy()
    lacking = np.flatnonzero(checked)[:3]
    given[lacking] = -1
    if is_everywhere:
        given[np.flatnonzero(~checked)[:20]] = -1
    result = mlc.fit(
        mlc.methods.cross_fit(model=mlc.models.MLP(CLASSES, ()), **SHORT),
        mlc.Examples(x[~checked], given[~checked]),
        mlc.Examples(x[checked], truth[checked], given[checked], drawn="random"),
        progress=False,
    )
    shares, right = result.verdict.shares, (given == truth)[checked]
    assert {share.n for share in shares.values()} == {len(right) - 3 * (not is_everywhere)}
    assert shares["as_given"].estimate == right.sum() / shares["as_given"].n


@pytest.mark.slow
def test_without_the_old_labels_of_checked_rows():
    x, truth, given, checked = _data()
    result = mlc.fit(
        mlc.methods.cross_fit(model=mlc.models.MLP(CLASSES, ()), **SHORT),
        mlc.Examples(x[~checked], given[~checked]), mlc.Examples(x[checked], truth[checked]),
        progress=False,
    )  # fmt: skip
    shares = result.figures["verdict"]["shares"]
    assert "as_given" not in shares and shares["corrected"]["n"] == 30


def test_a_checkpoint_remembers_how_rows_were_drawn(tmp_path):
    """As it does the labels: other rows would judge."""
    prints = set()
    for column in ("random", "looked_up"):
        _table(tmp_path / "all.csv", column=column)
        prints.add(run.build_run(_config(tmp_path / "all.csv")).fingerprint)
    assert len(prints) == 2


def test_a_config_is_the_constructors_arguments():
    from configs import default

    config = default.get_config()
    config.method, config.model.name = "cross_fit", "mlp"
    built = build.create_method(config, CLASSES)
    assert built == mlc.methods.cross_fit(model=mlc.models.MLP(CLASSES, ()))
    config.cross_fit.update(num_folds=4, num_parts=3, num_rounds=2, steps_per_round=7,
                            hidden_sizes=(8,))  # fmt: skip
    built = build.create_method(config, CLASSES)
    assert (built.num_folds, built.num_parts, built.num_rounds, built.steps_per_round) == (
        4, 3, 2, 7,
    )  # fmt: skip
    assert built.model.hidden_sizes == (8,) and built.beside is None
    config.cross_fit.hidden_sizes = None
    built = build.create_method(config, CLASSES)
    assert (built.model.hidden_sizes, built.beside.hidden_sizes) == ((), (64,))
    config.cross_fit.take = "classifier"
    assert build.create_method(config, CLASSES).take == "classifier"


@pytest.mark.slow  # Ten checked rows are another program than thirty.
def test_what_to_check_is_random_rows_and_uncertain_ones(tmp_path):
    """Thirty of one order of all rows, then those whose corrected label is least certain."""
    _table(tmp_path / "all.csv", num_checked=10)
    config = _config(tmp_path / "all.csv")
    train.train_and_evaluate(config, str(tmp_path / "run"), show_progress=False)
    with (tmp_path / "run" / "to_check.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (tmp_path / "run" / "corrected.csv").open() as file:
        rows_ = [row for row in csv.DictReader(file) if not row["checked_label"]]
    labels = {row["id"]: float(row["confidence"]) for row in rows_}
    assert [row["why"] for row in rows] == ["random"] * 30 + ["uncertain"] * 70
    ids = list(labels)
    order = [ids[i] for i in np.argsort(random_order(ids))]
    assert [row["id"] for row in rows[:30]] == order[:30]
    uncertain = [labels[row["id"]] for row in rows[30:]]
    assert uncertain == sorted(uncertain)
    left = labels.keys() - {row["id"] for row in rows}
    assert max(uncertain) <= min(labels[name] for name in left) + 1e-6


def _chosen(soft, given, checked, more=None):
    chosen = to_check.choose(np.arange(len(given)), soft, given, checked, more)
    assert len({*chosen.rows.tolist()}) == len(chosen.rows) == len(chosen.why)
    return chosen


@pytest.mark.parametrize(("more", "number"), [(None, 30), (9, 30), (45, 45), (100, 100), (101, 30)])
def test_as_many_random_rows_are_asked_for_as_would_show_a_difference(more, number):
    rng = np.random.default_rng(0)
    soft = rng.dirichlet(np.ones(3), 500)
    chosen = _chosen(soft, soft.argmax(axis=1), np.arange(3), more)
    assert chosen.why == ["random"] * number + ["uncertain"] * (100 - number)
    assert chosen.rows[:number].tolist() == [*range(number)]


@pytest.mark.parametrize("size", [20, 80, 400])
def test_classes_without_a_check_are_asked_for(size):
    """Their surest rows, five of each, after the random ones; none of classes without a row."""
    rng = np.random.default_rng(0)
    soft = rng.dirichlet(np.ones(5), size)
    soft[:, 4] = 0
    given = rng.integers(-1, 4, size)
    chosen = _chosen(soft, given, np.array([0, 0, 2]))
    why = np.array(chosen.why)
    asked = chosen.rows[why == to_check.NO_CHECK]
    assert len(chosen.rows) == min(size, 100) and (why == "random").sum() == min(size, 30)
    if size > 30:
        assert 5 < len(asked) <= 10
        labels = soft[asked].argmax(axis=1)
        assert (np.isin(labels, [1, 3]) | np.isin(given[asked], [1, 3])).all()
        left = np.setdiff1d(np.arange(30, size), asked)
        left = left[(soft[left].argmax(axis=1) == 1) | (given[left] == 1)]
        assert soft[left, 1].max(initial=0) <= soft[asked, 1].max()
    many = rng.dirichlet(np.ones(200), size)
    chosen = _chosen(many, many.argmax(axis=1), np.zeros(1, int))
    assert (np.array(chosen.why) == to_check.NO_CHECK).sum() <= 30


def test_networks_are_refused(tmp_path):
    with pytest.raises(mlc.errors.InputError, match="without batch normalisation"):
        x = np.zeros((20, 8, 8, 3), np.float32)
        mlc.fit(
            mlc.methods.cross_fit(model=mlc.models.ResNet(2, 8), **SHORT),
            mlc.Examples(x, np.arange(20) % 2), mlc.Examples(x, np.arange(20) % 2), progress=False,
        )  # fmt: skip
    from mlc_jax import config as settings

    _table(tmp_path / "all.csv")
    with pytest.raises(mlc.errors.InputError, match=r"config\.method: got 'cross_fit'"):
        settings.validate(_config(tmp_path / "all.csv", **{"model.name": "resnet"}))
