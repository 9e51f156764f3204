"""Several given labels per row: in by every way, through as one array, out by source."""

import csv
import pathlib
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import mlc_jax as mlc
from mlc_jax.benchmarks import datasets
from mlc_jax.core.losses import vote_shares
from mlc_jax.data.votes import (
    accuracies,
    agreement,
    counted_once,
    is_changed,
    prepared,
    vote_of_most,
)
from mlc_jax.errors import InputError
from mlc_jax.examples import create_dataset
from mlc_jax.models.label_model import source_counts
from mlc_jax.report.sources import of_sources

CIFAR10N = pathlib.Path(__file__).parents[2] / "shared" / "data" / "cifar10n" / "cifar10n.npz"
NAMES = ("ann", "bob", "eve")
CLASSES = np.array(["bird", "cat", "dog"])


def _rows(number=60, seed=0):
    """Features, labels by each source ("" says nothing), the truth, and who is checked."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, number)
    x = (2 * np.eye(3)[truth] + rng.normal(0, 0.6, (number, 3))).astype(np.float32)
    votes = []
    for right, there in ((0.9, 0.6), (0.7, 0.9), (0.5, 0.8)):
        said = np.where(rng.random(number) < right, truth, rng.integers(0, 3, number))
        votes.append(np.where(rng.random(number) < there, said, -1))
    votes = np.stack(votes, axis=1)
    votes[0] = -1  # A row without any label.
    return x, votes, truth, (rng.random(number) < 0.5) & (np.arange(number) > 0)


def _named(votes):
    return np.append(CLASSES, "")[votes]


def _write(path, header, rows):
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return str(path)


@pytest.fixture
def wide(tmp_path):
    """(x, votes, truth, is_checked) -> a CSV file with a column for each source."""

    def write(x, votes, truth, is_checked, prefix="label_", **columns):
        header = ["id", "a", "b", "c", *(f"{prefix}{name}" for name in NAMES), "checked_label"]
        checked = np.where(is_checked, CLASSES[truth], "")
        rows = [
            [f"r{i}", *x[i], *_named(votes[i]), checked[i], *(c[i] for c in columns.values())]
            for i in range(len(x))
        ]
        return _write(tmp_path / "wide.csv", [*header, *columns], rows)

    return write


def _load(path, **changes):
    from configs import table

    config = table.get_config()
    config.dataset.data = path
    config.update_from_flattened_dict({f"dataset.{name}": x for name, x in changes.items()})
    return datasets.load(config)


def test_wide_and_long_files_arrays_and_python_are_the_same(wide, tmp_path, caplog):
    """The votes, and the vote of most; ties by who is right more often on checked rows."""
    caplog.set_level("INFO")
    x, votes, truth, is_checked = _rows()
    of_wide = _load(wide(x, votes, truth, is_checked))
    assert "one column per source: label_ann, label_bob, label_eve." in caplog.text
    plain = _write(
        tmp_path / "plain.csv", ["id", "a", "b", "c", "checked_label"],
        [[f"r{i}", *x[i], CLASSES[truth[i]] if is_checked[i] else ""] for i in range(len(x))],
    )  # fmt: skip
    long = _write(
        tmp_path / "votes.csv", ["id", "source", "label"],
        [[f"r{i}", f"label_{name}", label]
         for name, column in zip(NAMES, _named(votes).T, strict=True)
         for i, label in enumerate(column) if label],
    )  # fmt: skip
    of_long = _load(plain, votes=long)
    named = _load(
        wide(x, votes, truth, is_checked), label_columns=",".join(f"label_{n}" for n in NAMES)
    )
    np.savez(
        tmp_path / "x.npz", inputs=x, labels=_named(votes),
        ids=np.array([f"r{i}" for i in range(60)]),
        checked_labels=np.where(is_checked, CLASSES[truth], ""),
        sources=np.array([f"label_{name}" for name in NAMES]),
    )  # fmt: skip
    from configs import arrays

    config = arrays.get_config()
    config.dataset.data = str(tmp_path / "x.npz")
    of_arrays = datasets.load(config)
    most = vote_of_most(votes, accuracies(votes, np.where(is_checked, truth, -1)), 3)
    for dataset in (of_wide, of_long, named, of_arrays):
        assert dataset.source_names == tuple(f"label_{name}" for name in NAMES)
        for part, mask in ((dataset.noisy, ~is_checked), (dataset.clean, is_checked)):
            np.testing.assert_array_equal(part.votes, votes[mask])
            np.testing.assert_array_equal(part.given, most[mask])
            assert part.votes.dtype == np.int16
    assert of_wide.noisy.given[0] == -1
    assert of_wide.fingerprint() == named.fingerprint() == of_long.fingerprint()
    agreed = np.flatnonzero((votes[:, :1] == votes).all(axis=1) & (votes[:, 0] >= 0))[0]
    other = votes.copy()
    other[agreed, 1] = (other[agreed, 1] + 1) % 3  # The majority stays.
    assert _load(wide(x, other, truth, is_checked)).fingerprint() != of_wide.fingerprint()


def test_a_column_label_is_the_one_that_counts(wide):
    x, votes, truth, is_checked = _rows()
    dataset = _load(wide(x, votes, truth, is_checked, label=CLASSES[truth]))
    assert dataset.noisy.votes is None and dataset.source_names == ()
    np.testing.assert_array_equal(dataset.noisy.given, truth[~is_checked])


def test_a_run_with_one_label_per_row_still_knows_its_data(tmp_path):
    """With another fingerprint, older runs would not resume."""
    rows = [
        [f"r{i}", i % 7, i * i % 5, "abc"[i % 3], "abc"[i // 2 % 3] if i % 4 == 0 else ""]
        for i in range(60)
    ]
    path = _write(tmp_path / "one.csv", ["id", "x", "z", "label", "checked_label"], rows)
    assert _load(path).fingerprint() == "985dbbd2e6841b44"


def test_rows_that_only_judge_say_nothing_of_a_source(wide):
    """Of two sources that differ, the one that checked rows to train with say is better."""
    x, votes, truth, is_checked = _rows()
    split = np.where(is_checked & (np.arange(60) % 2 == 0), "test", "")
    learned = np.where(is_checked & (split == ""), truth, -1)
    dataset = _load(wide(x, votes, truth, is_checked, split=split))
    most = vote_of_most(votes, accuracies(votes, learned), 3)
    np.testing.assert_array_equal(dataset.noisy.given, most[~is_checked])
    changed = truth.copy()
    changed[split == "test"] = (truth[split == "test"] + 1) % 3
    other = _load(wide(x, votes, changed, is_checked, split=split))
    np.testing.assert_array_equal(other.noisy.given, dataset.noisy.given)


def test_what_we_write_beside_a_label_is_no_source(wide):
    x, votes, truth, is_checked = _rows()
    quality = np.full(len(x), "0.5")
    dataset = _load(wide(x, votes, truth, is_checked, label_quality=quality))
    assert "label_quality" not in dataset.source_names


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"label_columns": "label_ann,label_ann"},
            r"got 'label_ann,label_ann', expected",
        ),
        ({"label_columns": "label_ann,nobody"}, r"has no column 'nobody'"),
        ({"label_columns": "label_ann,id"}, r"label_columns: 'id' holds no labels as given"),
    ],
)
def test_columns_that_are_no_sources(wide, changes, message):
    with pytest.raises(InputError, match=message):
        _load(wide(*_rows()), **changes)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([["r99", "ann", "cat"]], r"line 2: id 'r99' is not in .*wide.csv'; expected one of its"),
        ([["r1", "", "cat"]], r"line 2: source is empty"),
        ([["r1", "ann", "c" * 5_000]], r"line 2: label has 5,000 characters, 'cccc"),
        ([["r1", "ann", "cat"], ["r1", "ann", "dog"]], r"labels id 'r1' as 'cat' and as 'dog'"),
        (
            [["r1", "ann", "caat"]],
            r"has label 'caat' by 'ann' in .*votes.csv', which nobody else gave.*'cat'",
        ),
        ([["r1", "unused_bob", "cat"]], r"source 'unused_bob' is also a column of labels of"),
    ],
)
def test_votes_that_are_none(wide, tmp_path, rows, message):
    path = wide(*_rows(), prefix="unused_")
    votes = _write(tmp_path / "votes.csv", ["id", "source", "label"], rows)
    features = {"features": "a,b,c"}
    with pytest.raises(InputError, match=message):
        _load(path, votes=votes, label_columns="unused_bob", **features)


def test_a_source_may_say_nothing_twice(wide, tmp_path):
    path = wide(*_rows(), prefix="unused_")
    rows = [["r1", "ann", " "], ["r1", "ann", ""], ["r2", "ann", "cat"], ["r2", "ann", ""]]
    rows += [["r3", "ann", ""], ["r3", "ann", "dog "]]
    votes = _write(tmp_path / "votes.csv", ["id", "source", "label"], rows)
    dataset = _load(path, votes=votes, label_columns="unused_bob", features="a,b,c")
    assert "ann" in dataset.source_names
    number = dataset.source_names.index("ann")
    whole = np.concatenate([dataset.noisy.votes, dataset.clean.votes])[:, number]
    assert sorted(whole[whole >= 0].tolist()) == [1, 2]


def test_unsure_may_mean_no_label(wide, tmp_path, caplog):
    path = wide(*_rows(), prefix="unused_")
    rows = [[f"r{i}", "ann", ("?", "None", "yes")[i % 3]] for i in range(1, 10)]
    votes = _write(tmp_path / "votes.csv", ["id", "source", "label"], rows)
    _load(path, votes=votes, label_columns="unused_bob", features="a,b,c")
    assert "None, ? is a class of" in caplog.text and "leave it empty" in caplog.text
    caplog.clear()
    x, _, truth, _ = _rows()
    checked = np.array(["Unknown", "cat"])[truth % 2]
    path = _write(
        tmp_path / "checked.csv", ["id", "a", "one", "two", "checked_label"],
        [[i, x[i, 0], *["Unknown", "cat"][:: 1 if i % 3 else -1], checked[i] if i % 2 else ""]
         for i in range(60)],
    )  # fmt: skip
    _load(path, label_columns="one,two", features="a")
    assert "leave it empty" not in caplog.text  # Somebody checked it.


def test_one_column_and_a_source_of_its_name(wide, tmp_path):
    path = wide(*_rows(), prefix="")
    votes = _write(tmp_path / "votes.csv", ["id", "source", "label"], [["r1", "ann", "cat"]])
    with pytest.raises(InputError, match="source 'ann' is also a column of labels"):
        _load(path, votes=votes, columns="label=ann", features="a,b,c")


def test_a_silent_source_is_left_out(wide, caplog):
    x, votes, truth, is_checked = _rows()
    votes[:, 2] = -1
    dataset = _load(wide(x, votes, truth, is_checked))
    assert dataset.source_names == ("label_ann", "label_bob")
    assert "label no row: label_eve" in caplog.text


def test_a_silent_source_of_arrays_and_of_python_is_left_out(tmp_path, caplog):
    from configs import arrays

    x, votes, truth, is_checked = _rows()
    votes[:, 0] = -1
    checked = np.where(is_checked, truth, -1)
    np.savez(
        tmp_path / "x.npz", inputs=x, labels=votes, checked_labels=checked, sources=np.array(NAMES)
    )
    config = arrays.get_config()
    config.dataset.data = str(tmp_path / "x.npz")
    of_file = datasets.load(config)
    method = mlc.methods.cross_fit(model=mlc.models.MLP(3, ()))
    named = dict(zip(NAMES, votes[~is_checked].T, strict=True))
    given = dict(zip(NAMES, votes[is_checked].T, strict=True))
    clean = mlc.Examples(x[is_checked], truth[is_checked], given=given)
    in_python = create_dataset(method, mlc.Examples(x[~is_checked], named), clean, None, None, None)
    assert caplog.text.count("label no row: ann") == 2
    for dataset in (of_file, in_python):
        assert dataset.source_names == NAMES[1:]
        np.testing.assert_array_equal(dataset.noisy.votes, votes[~is_checked, 1:])
        np.testing.assert_array_equal(dataset.clean.votes, votes[is_checked, 1:])


def test_abstain_is_no_label_of_arrays_and_of_python(tmp_path):
    from configs import arrays

    x, votes, truth, is_checked = _rows()
    texts = np.where(votes < 0, "ABSTAIN", _named(votes))
    np.savez(
        tmp_path / "x.npz", inputs=x, labels=texts,
        checked_labels=np.where(is_checked, CLASSES[truth], ""),
    )  # fmt: skip
    config = arrays.get_config()
    config.dataset.data = str(tmp_path / "x.npz")
    of_file = datasets.load(config)
    method = mlc.methods.cross_fit(model=mlc.models.MLP(3, ()))
    for kind in (np.asarray, lambda part: dict(zip(NAMES, part.T, strict=True))):
        clean = mlc.Examples(
            x[is_checked], CLASSES[truth[is_checked]], given=kind(texts[is_checked])
        )
        noisy = mlc.Examples(x[~is_checked], kind(texts[~is_checked]))
        dataset = create_dataset(method, noisy, clean, None, None, None)
        for one in (of_file, dataset):
            assert one.class_names == tuple(CLASSES)
            np.testing.assert_array_equal(one.noisy.votes, votes[~is_checked])


def test_arrays_of_no_source(tmp_path):
    from configs import arrays

    np.savez(tmp_path / "x.npz", inputs=np.arange(12.0).reshape(6, 2), labels=np.zeros((6, 0)))
    config = arrays.get_config()
    config.dataset.data = str(tmp_path / "x.npz")
    with pytest.raises(InputError, match=r"\['labels'\] has no column; expected one for each"):
        datasets.load(config)


def test_a_class_that_nobody_checked_is_said_even_if_it_wins_no_vote(wide, caplog):
    x, votes, truth, is_checked = _rows()
    path = wide(x, votes, truth, is_checked)
    text = pathlib.Path(path).read_text().splitlines()
    rows = [row for row in range(1, 61) if not is_checked[row - 1] and votes[row - 1, 0] >= 0][:2]
    for row in rows:
        cells = text[row].split(",")
        cells[4] = "unsure"
        text[row] = ",".join(cells)
    pathlib.Path(path).write_text("\n".join(text) + "\n")
    dataset = _load(path)
    assert "unsure" in dataset.class_names
    assert "No checked row has class unsure" in caplog.text


def test_a_copy_is_named_and_counts_once(wide, caplog):
    """In a file: without that, a bad source and its copy would outvote a good one."""
    x, votes, truth, is_checked = _rows(400)
    votes[:, 1] = votes[:, 2]
    dataset = _load(wide(x, votes, truth, is_checked))
    assert "Source label_eve agrees with label_bob more often than chance" in caplog.text
    assert (dataset.noisy.votes[:, 2] == -1).all()
    np.testing.assert_array_equal(dataset.noisy.votes[:, :2], votes[~is_checked, :2])
    assert dataset.copies == {"label_eve": "label_bob"}
    both = (votes[~is_checked, :2] >= 0).all(axis=1)
    np.testing.assert_array_equal(dataset.noisy.given[both], votes[~is_checked][both, 0])


def test_in_python_rows_that_only_judge_say_nothing_of_a_source():
    """The better of two sources that differ is the one that `clean` says is better."""
    x, votes = np.zeros((10, 3), np.float32), np.tile([1, 2], (10, 1))
    method = mlc.methods.cross_fit(model=mlc.models.MLP(3, ()))
    parts = [mlc.Examples(x, np.full(10, label), given=votes) for label in (2, 1, 1)]
    dataset = create_dataset(method, mlc.Examples(x, votes), *parts, None)
    assert (dataset.noisy.given == 2).all()


def test_rows_without_a_label_want_a_method_that_predicts_them(wide):
    from configs import table
    from mlc_jax.training.run import build_run

    config = table.get_config()
    config.dataset.data = wide(*_rows())
    config.method = "glc"
    with pytest.raises(InputError, match=r"^labels: rows without one: 1; glc expects"):
        build_run(config)


def test_a_method_that_knows_one_label_says_what_it_gets(wide, caplog):
    from configs import table
    from mlc_jax.training.run import build_run

    x, votes, truth, is_checked = _rows()
    votes[0, 0] = 1
    config = table.get_config()
    config.dataset.data = wide(x, votes, truth, is_checked)
    config.method = "glc"
    caplog.set_level("INFO")
    build_run(config)
    assert "glc knows one label per row: it gets the majority vote of 3 sources" in caplog.text


def test_ties_go_to_the_more_accurate_source_then_to_the_lower_class():
    votes = np.array([[0, 1], [1, 0], [2, -1], [-1, -1]])
    np.testing.assert_array_equal(vote_of_most(votes, np.array([0.9, 0.6]), 3), [0, 1, 2, -1])
    np.testing.assert_array_equal(vote_of_most(votes, np.array([0.6, 0.6]), 3), [0, 0, 2, -1])
    three = np.array([[0, 1, 1]])
    np.testing.assert_array_equal(vote_of_most(three, np.array([0.99, 0.1, 0.1]), 3), [1])


def test_agreement_and_changes():
    votes, labels = np.array([[0, 0, 1], [-1, -1, -1], [2, -1, -1]]), np.array([0, 1, 1])
    share, number = agreement(votes, labels)
    np.testing.assert_allclose(share, [2 / 3, np.nan, 0])
    np.testing.assert_array_equal(number, [3, 0, 1])
    np.testing.assert_array_equal(is_changed(labels, np.array([1, -1, 1])), [True, False, False])


def test_copies_count_once():
    """Ten copies of one that is half wrong; two good ones who agree are none."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 400)
    make = lambda right: np.where(rng.random(400) < right, truth, rng.integers(0, 3, 400))  # noqa: E731
    bad, good, other = make(0.3), make(0.95), make(0.95)
    votes = np.stack([bad, *[bad] * 10, good, other], axis=1)
    known = np.where(np.arange(400) < 40, truth, -1)
    counted, copies = counted_once(votes, known, 3)
    assert {later for later, _ in copies} == set(range(1, 11))
    assert (counted[:, 1:11] == -1).all()
    np.testing.assert_array_equal(counted[:, [0, 11, 12]], votes[:, [0, 11, 12]])
    most = vote_of_most(counted, accuracies(counted, known), 3)
    assert np.mean(most == truth) > 0.9 > np.mean(bad == truth)


def test_rules_of_one_class_are_no_copies():
    """They always agree, and often wrongly."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, 500)
    fires = lambda: rng.random(500) < np.where(truth == 1, 0.5, 0.4)  # noqa: E731
    votes = np.stack([np.where(fires(), 1, -1) for _ in range(4)], axis=1)
    counted, copies = counted_once(votes, np.where(np.arange(500) < 60, truth, -1), 2)
    assert copies == []
    np.testing.assert_array_equal(counted, votes)


def test_people_who_find_the_same_rows_hard_are_no_copies():
    """In three rows of ten they are right in 35 %, and they take the same class for the right one.

    Their errors are far from independent, as those of real people. Many rows are checked, so even
    small differences are certain.
    """
    rng = np.random.default_rng(0)
    truth, right = rng.integers(0, 10, 20_000), np.where(rng.random(20_000) < 0.3, 0.35, 0.95)
    people = [np.where(rng.random(20_000) < right, truth, (truth + 1) % 10) for _ in range(3)]
    copy = np.where(rng.random(20_000) < 0.9, people[0], rng.integers(0, 10, 20_000))
    votes = np.stack([*people, copy], axis=1)
    counted, copies = counted_once(votes, np.where(np.arange(20_000) < 2_000, truth, -1), 10)
    assert copies == [(3, 0)]
    np.testing.assert_array_equal(counted[:, :3], votes[:, :3])


@pytest.mark.skipif(not CIFAR10N.exists(), reason="needs CIFAR-10N's labels")
def test_three_people_of_cifar10n_are_no_copies():
    """Half of their labels were left out, and the majority fell from 91 to 83 % right."""
    arrays = np.load(CIFAR10N)
    votes = np.stack([arrays[f"random{number}"] for number in (1, 2, 3)], axis=1).astype(np.int32)
    truth = arrays["clean"].astype(np.int32)
    checked = np.random.default_rng(0).permutation(len(truth))[:2_000]
    known = np.full_like(truth, -1)
    known[checked] = truth[checked]
    most, counted, copies = prepared(votes, known, NAMES, 10)
    assert not copies
    np.testing.assert_array_equal(counted, votes)
    assert np.mean(most == truth) > 0.91


def test_a_source_that_says_much_does_not_speak_for_the_others():
    """R of a source without a check: of the mean source's accuracy, not of the mean label's."""
    votes = np.full((100, 3), -1, np.int16)
    votes[:, 0], votes[:10, 1], votes[10:20, 2] = 1, 0, 0  # The first is always wrong.
    q = np.tile(np.float32([1, 0]), (100, 1))
    checked = np.zeros(100, np.float32)
    checked[:10] = 1
    matrices = np.asarray(source_counts(votes, q, checked, checked, np.float32([0.5, 0.5]), 10.0))
    np.testing.assert_allclose(matrices.sum(axis=-1), 1, rtol=1e-5)
    assert matrices[0, 1, 0] > 0.6  # Label 1 by the first one means class 0.
    assert matrices[1, 0, 0] > 0.7
    np.testing.assert_allclose(matrices[2, 0, 0], 0.5, atol=1e-5)  # One right, one wrong.


def test_each_source_counts_once_in_the_accuracy_of_all():
    """By hand: one gave 30 checked labels, all wrong, another 2, both right; a third none."""
    votes = np.full((40, 3), -1, np.int16)
    votes[:30, 0], votes[:2, 1], votes[30:36, 2] = 1, 0, 0
    q = np.tile(np.float32([1, 0]), (40, 1))
    checked = (np.arange(40) < 30).astype(np.float32)
    flat, prior = np.float32([0.5, 0.5]), 10.0
    matrices = np.asarray(source_counts(votes, q, checked, checked, flat, prior))
    rho = (0 + 1 + 1) / (1 + 1 + 2)  # Of two sources with checks, and two pseudo-counts.
    for number, (right, said, label) in enumerate([(0, 30, 1), (2, 2, 0), (0, 0, 0)]):
        own = (right + prior * rho) / (said + prior)
        of_class_0 = own if label == 0 else 1 - own
        expected = (said + prior * of_class_0) / (said + prior)
        assert matrices[number, label, 0] == pytest.approx(expected, abs=1e-5)


def test_the_rival_learns_from_rows_with_a_label_alone():
    from mlc_jax.data.folds import assign

    votes = np.full((40, 2), -1)
    votes[:15, 0], votes[10:25, 1] = np.arange(15) % 2, 1
    checks, drawn = np.where(np.arange(40) % 4 == 0, 1, -1), np.full(40, "random")
    fields = assign(votes, checks, drawn, 5, 2, seed=0)
    lists, lengths = fields["rival_lists"], fields["rival_lengths"]
    learned = [{*lists[part, : lengths[part]].tolist()} for part in range(2)]
    assert learned[0] | learned[1] == {*range(25)}


def test_the_share_of_sources_is_of_the_corrected_label():
    from mlc_jax.data import ArraySource, Subset
    from mlc_jax.report.report import label_columns

    votes = np.array([[0, 0, 1], [0, 0, 0], [-1, -1, -1]], np.int16)
    given = np.array([0, 0, -1])
    noisy = Subset(ArraySource(np.zeros((3, 1))), np.arange(3), given, np.full(3, -1), votes)
    soft = np.eye(2, dtype=np.float32)[[1, 0, 1]]
    columns = label_columns(noisy, SimpleNamespace(soft_labels=soft, label_quality=soft[:, 0]))
    np.testing.assert_allclose(columns["annotator_agreement"], [1 / 3, 1, np.nan])
    assert columns["num_annotations"].tolist() == [3, 3, 0]
    assert columns["is_label_issue"].tolist() == [True, False, False]


def test_shares_of_votes():
    shares = vote_shares(np.array([[0, 0, 1], [-1, -1, -1]], np.int16), 2)
    np.testing.assert_allclose(shares, [[2 / 3, 1 / 3], [0, 0]], rtol=1e-6)
    one = vote_shares(np.array([2, -1, 0]), 3)
    np.testing.assert_array_equal(one, [[0, 0, 1], [0, 0, 0], [1, 0, 0]])
    votes = np.random.default_rng(0).integers(-1, 3, (50, 40))  # More than one turn of the loop.
    counts = (votes[:, :, None] == np.arange(3)).sum(axis=1)
    want = counts / counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(vote_shares(votes, 3), want, rtol=1e-6)


def test_what_is_known_of_a_source():
    from mlc_jax.data import ArraySource, Subset

    votes = np.array([[0, 1], [0, -1], [1, 1], [1, 1]], np.int16)
    source = ArraySource(np.zeros((4, 1)))
    subset = Subset(
        source, np.arange(4), votes[:, 0].astype(np.int32), np.array([0, 0, 1, 0]), votes
    )
    soft = np.eye(2)[[0, 0, 1, 0]]
    first, second = of_sources(subset, soft, subset, subset, ("a", "b"), ("no", "yes"), {"b": "a"})
    unsure, _ = of_sources(
        subset, 0.4 + 0.2 * soft, subset, subset, ("a", "b"), ("no", "yes"), {"b": "a"}
    )
    assert unsure["estimated_right"] == pytest.approx(55)  # Three of 0.6, and one of 0.4.
    assert (first["labels"], first["checked"], first["checked_right"]) == (8, 4, 75)
    assert first["estimated_right"] == 75 and first["confuses_most"] == "no as yes"
    assert (second["checked"], second["estimated_right"]) == (3, pytest.approx(100 / 3))
    assert first["bits_per_label"] > second["bits_per_label"] >= 0
    assert (first["copy_of"], second["copy_of"]) == ("", "a")
    assert first["low"] < 75 < first["high"]


def test_bits_compare_with_how_frequent_classes_are():
    """Nine rows of ten are `no`: a label that leaves this as it is says nothing."""
    from mlc_jax.data import ArraySource, Subset

    truth = np.array([1, *[0] * 9] * 2)
    votes = np.stack([[0] * 10 + [-1] * 10, truth], axis=1).astype(np.int16)
    subset = Subset(ArraySource(np.zeros((20, 1))), np.arange(20), truth, truth, votes)
    always, right = of_sources(
        subset, np.eye(2)[truth], subset, subset, ("a", "b"), ("no", "yes"), {"b": "a"}
    )
    assert always["bits_per_label"] == pytest.approx(0, abs=1e-6)
    entropy = -0.9 * np.log2(0.9) - 0.1 * np.log2(0.1)
    assert right["bits_per_label"] == pytest.approx(entropy, abs=1e-6)


def test_only_judged_rows_tell_how_often_a_source_is_right():
    """One source is right where rows were drawn, the other where they were looked up."""
    from mlc_jax.data import ArraySource, Subset
    from mlc_jax.data.folds import AllRows
    from mlc_jax.report.report import of_each_source

    truth = np.arange(40) % 2
    drawn = np.where(np.arange(20) < 12, "random", "looked_up")
    votes = np.stack([truth, 1 - truth], axis=1).astype(np.int16)
    votes[20:][drawn == "looked_up"] = votes[20:][drawn == "looked_up"][:, ::-1]
    source = ArraySource(np.zeros((40, 1), np.float32))
    everything = Subset(source, np.arange(40), truth, truth, votes)
    noisy, clean = everything.take(np.arange(20)), everything.take(np.arange(20, 40))
    dataset = SimpleNamespace(
        noisy=noisy, clean=clean, source_names=("a", "b"), class_names=("no", "yes"), copies={}
    )
    rows = AllRows(noisy, clean, drawn, 5, 2, 0, 8, 1)
    run = SimpleNamespace(dataset=dataset, pipeline=rows, exported=noisy)
    first, second = of_each_source(run, SimpleNamespace(soft_labels=np.eye(2)[truth[:20]]))
    assert (first["labels"], first["checked"], first["checked_right"]) == (40, 12, 100)
    assert (second["checked"], second["checked_right"]) == (12, 0)


def _fit(noisy, clean):
    method = mlc.methods.cross_fit(
        model=mlc.models.MLP(3, ()), num_folds=2, num_rounds=2, steps_per_round=60
    )
    return mlc.fit(method, noisy, clean, progress=False)


def test_in_python_and_by_name(standard_promotion):
    """`[N, S]`, a dict and a data frame; a row without any label is labelled, and is no issue."""
    import pandas

    x, votes, truth, is_checked = _rows(90, seed=1)
    doubtful = ~is_checked
    clean = mlc.Examples(x[is_checked], truth[is_checked], given=votes[is_checked])
    result = _fit(mlc.Examples(x[doubtful], votes[doubtful]), clean)
    assert np.mean(result.labels == truth[doubtful]) > 0.9
    assert result.given_labels[0] == -1 and np.isnan(result.label_quality[0])
    assert not result.to_frame().is_label_issue[0]
    assert result.verdict.shares["as_given"].n == is_checked.sum()
    assert 0.3 < result.state.meta.params["weights"][1] < 3  # However few checks fit it.
    columns = dict(zip(NAMES, votes.T, strict=True))
    given = {name: column[is_checked] for name, column in columns.items()}
    method = mlc.methods.cross_fit(model=mlc.models.MLP(3, ()))
    for kind in (dict, pandas.DataFrame):
        noisy = mlc.Examples(x[doubtful], kind({n: c[doubtful] for n, c in columns.items()}))
        clean = mlc.Examples(x[is_checked], truth[is_checked], given=kind(given))
        dataset = create_dataset(method, noisy, clean, None, None, None)
        assert dataset.source_names == NAMES
        np.testing.assert_array_equal(dataset.noisy.votes, votes[doubtful])
        assert dataset.noisy.votes.dtype == np.int16
        np.testing.assert_array_equal(dataset.clean.votes, votes[is_checked])


class _Asked(nn.Module):
    """A user's LCN; notes what labels it gets."""

    note: Callable[[Any], None]
    takes_votes: bool = False

    @nn.compact
    def __call__(self, features, labels, logits):
        self.note(labels.shape[1:])
        votes = labels.reshape(len(labels), -1)
        one_hot = jax.nn.one_hot(votes, 2).reshape(len(labels), -1)
        return jax.nn.softmax(nn.Dense(2)(jnp.concatenate([features, one_hot], axis=1)))


def _one_knows(number=400, num_checked=60):
    """Features say nothing; of three sources two are worse than chance, one is right."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, number)
    wrong = [np.where(rng.random(number) < 0.6, 1 - truth, truth) for _ in range(2)]
    votes = np.stack([truth, *wrong], axis=1)
    x = rng.normal(size=(number, 2)).astype(np.float32)
    clean = mlc.Examples(x[:num_checked], truth[:num_checked], given=votes[:num_checked])
    return x[num_checked:], votes[num_checked:], truth[num_checked:], clean


def _mlc(lcn, **settings):
    return mlc.methods.mlc(model=mlc.models.MLP(2, ()), lcn=lcn, pair_weight=1.0, **settings)


def test_mlc_learns_whom_to_believe(tmp_path, standard_promotion):
    """From the votes of all sources; the majority is wrong. A loaded run predicts, too."""
    x, votes, truth, clean = _one_knows()
    votes[:5] = -1  # Rows without any label.
    method = _mlc(mlc.models.LabelCorrectionNetwork(2, 16, 16), meta_tx=mlc.adam(1e-2))
    result = mlc.fit(
        method, mlc.Examples(x, votes), clean, num_epochs=20, workdir=tmp_path, progress=False
    )
    assert np.mean(result.labels[5:] == truth[5:]) > 0.97
    assert np.mean(result.given_labels[5:] == truth[5:]) < 0.75
    assert np.isnan(result.label_quality[:5]).all() and (result.label_quality[5:] >= 0).all()
    place = np.arange(5, len(x))
    np.testing.assert_array_equal(
        result.label_quality[5:], result.soft_labels[place, result.given_labels[5:]]
    )
    again = mlc.load(tmp_path)
    np.testing.assert_array_equal(again.predict_proba(x[:9]), result.predict_proba(x[:9]))
    embedding = again.state.meta.params["label_embedding"]["embedding"]
    assert embedding.shape == (3 * 2, 16)


@pytest.mark.parametrize(("takes_votes", "shape", "right"), [(True, (3,), 0.97), (False, (), 0.55)])
def test_a_users_lcn_gets_all_votes_only_if_it_says_so(
    takes_votes, shape, right, standard_promotion
):
    x, votes, truth, clean = _one_knows()
    seen = []
    method = _mlc(_Asked(seen.append, takes_votes), meta_tx=mlc.adam(3e-2))
    result = mlc.fit(method, mlc.Examples(x, votes), clean, num_epochs=20, progress=False)
    assert set(seen) == {shape}
    # The majority is wrong where both others are, in 36 % of the rows.
    accuracy = np.mean(result.labels == truth)
    assert right < accuracy and (takes_votes or accuracy < 0.75)


def test_robust_mlc_starts_from_shares_of_votes_and_counted_pairs(standard_promotion):
    x, votes, truth, clean = _one_knows()
    lcn = mlc.models.LabelCorrectionNetwork(2, form="posterior")
    method = mlc.methods.robust_mlc(model=mlc.models.MLP(2, ()), lcn=lcn)
    result = mlc.fit(method, mlc.Examples(x, votes), clean, num_epochs=1, progress=False)
    matrices = jax.nn.softmax(30 * result.state.meta.params["transition"]).reshape(3, 2, 2)
    assert (np.diagonal(matrices[0]) > 0.9).all()
    assert (np.diagonal(matrices[1:], axis1=1, axis2=2) < 0.7).all()
    assert np.mean(result.labels == truth) > 0.97


@pytest.mark.parametrize(
    ("labels", "given", "message"),
    [
        ({"a": [0, 1]}, {"b": [0, 1]}, r"clean.given: source 'b' is not one of noisy.labels"),
        ([[0, 1], [1, 1]], [[0], [1]], r"clean.given: got \[2, 1\], expected a column for each of"),
        ([0, 1], [[0, 1], [1, 1]], r"clean.given: got several labels for a row, noisy rows have"),
        ({"a": [0, 1, 1]}, None, r"labels: got 3 of them, expected 2, one per row"),
        ({}, None, r"labels: got \{\}, expected at least one source"),
        ([[0, 1], [1]], None, r"labels: .*inhomogeneous.*; expected one in each row"),
    ],
)
def test_sources_that_do_not_go_together(labels, given, message):
    x = np.zeros((2, 3), np.float32)
    with pytest.raises(InputError, match=message):
        mlc.fit(
            mlc.methods.cross_fit(model=mlc.models.MLP(3, ())),
            mlc.Examples(x, labels), mlc.Examples(x, [0, 1], given=given),
        )  # fmt: skip


@pytest.mark.slow
def test_the_command_says_what_is_known_of_each_source(wide, tmp_path, compilation_cache):
    x, votes, truth, is_checked = _rows(90, seed=1)
    run = tmp_path / "run"
    subprocess.run(
        [
            sys.executable, "-m", "mlc_jax.main", "--config=configs/table.py", "--noprogress",
            f"--config.dataset.data={wide(x, votes, truth, is_checked)}", f"--workdir={run}",
            "--config.cross_fit.num_folds=2", "--config.cross_fit.steps_per_round=60",
        ],
        check=True, capture_output=True,
    )  # fmt: skip
    with (run / "sources.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["source"] for row in rows] == [f"label_{name}" for name in NAMES]
    assert float(rows[0]["bits_per_label"]) > float(rows[2]["bits_per_label"])
    with (run / "corrected.csv").open(newline="") as file:
        labels = list(csv.DictReader(file))
    with (run / "predicted_labels.csv").open(newline="") as file:
        predicted = list(csv.DictReader(file))
    assert {"annotator_agreement", "num_annotations"} <= predicted[0].keys()
    for row in (row for row in predicted if row["num_annotations"] == "0"):
        (whole,) = (x for x in labels if x["id"] == row["id"])
        assert row["given_label"] == whole["label_quality"] == whole["is_label_issue"] == ""
    assert "Sources of labels" in (run / "report.html").read_text()
    loaded = mlc.load(run)
    assert loaded.predict(dict(zip("abc", x.T, strict=True))).shape == (len(x),)


@pytest.mark.parametrize(
    "name",
    [
        "checked_lable",
        "checked_labels",
        "Checked_Label",
        "checked",
        "checked label",
        "cheked_label",
    ],
)
def test_a_misspelt_column_of_checks_is_not_passed_over(tmp_path, name):
    """All labels would count as true, and the column become a feature."""
    path = _write(tmp_path / "x.csv", ["label", name, "a"], [["cat", "dog", 1], ["dog", "", 2]])
    with pytest.raises(InputError, match=f"has column '{name}' and none named 'checked_label'"):
        _load(path)


@pytest.mark.parametrize("name", ["checksum", "label_checked_by", "shelf_label"])
def test_other_columns_are_theirs(tmp_path, name):
    header = ["label", name, "checked_label", "a"]
    path = _write(tmp_path / "x.csv", header, [["cat", 1, "cat", 5], ["dog", 2, "", 3]])
    assert len(_load(path).noisy) == 1
