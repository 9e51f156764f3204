"""Sets with many labels per row: how votes are made, and what is said of the cells."""

import gzip
import json
from types import SimpleNamespace

import numpy as np
import pytest

PROGRAM = "experiments.labels.weak_supervision"


@pytest.fixture
def program(load_program):
    return load_program(PROGRAM)


@pytest.mark.parametrize("kind", ["annotators", "crowd", "rules"])
def test_votes_are_of_the_training_rows_and_anew_in_each_draw(program, kind):
    one, again, other = (program.load(f"{kind}:iris", number) for number in (3, 3, 4))
    for x, y in zip(one, again, strict=True):
        np.testing.assert_array_equal(x, y)
    assert not np.array_equal(one.rows, other.rows)
    assert not {*one.rows} & {*one.test}
    assert len(one.rows) + len(one.test) == 150 and len(one.votes) == len(one.rows)
    said = one.votes != program.UNKNOWN
    assert said.any(axis=0).all() and one.votes.max() < 3
    if kind == "rules":  # Each says one class.
        assert all(
            len({*votes[there]}) == 1 for votes, there in zip(one.votes.T, said.T, strict=True)
        )
    if kind == "crowd":
        assert {*said.sum(axis=1)} == {1, 2, 3}
    if kind == "annotators":
        assert one.votes.shape[1] == 5 and (said.mean(axis=0) > 0.1).all()


def test_annotators_are_right_as_often_as_drawn(program):
    """The mean of shares between chance and 95 %."""
    labels = np.random.default_rng(0).integers(0, 3, 300)
    right = []
    for seed in range(40):
        votes = program.KINDS["annotators"](np.random.default_rng(seed), labels, labels, 3)
        said = votes != program.UNKNOWN
        right.append((votes == labels[:, None])[said].mean())
    assert np.mean(right) == pytest.approx((1 / 3 + 0.95) / 2, abs=0.03)


def test_rivals_label_rows_without_votes_by_the_classifier(program, monkeypatch):
    monkeypatch.setattr(program.importlib.util, "find_spec", lambda name: None)  # None installed.
    data = program.load("rules:wine", 0)
    cell = program.draw(data, "per_class:5", 0)
    assert np.bincount(cell.truth[cell.checked]).tolist() == [5, 5, 5]
    silent = data._replace(votes=np.where(cell.checked[:, None], data.votes, program.UNKNOWN))
    unchecked = program.without_checks(silent)
    found = program.of_rivals(silent, cell._replace(votes=silent.votes), unchecked)
    # Nothing but the checked rows is known, so what is learned from both is the same.
    assert found["majority +"] == found["checked rows alone"]
    assert found["labels, majority +"] == found["labels, checked rows alone"]
    assert found["all true"] >= found["majority +"] > 60


def test_true_matrices_know_what_each_source_is_worth(program):
    """The first source is right in 80 % of its 300 rows, the second always wrong in its 100."""
    labels = np.arange(401) % 2
    votes = np.full((401, 2), program.UNKNOWN)
    votes[:300, 0] = np.where(np.arange(300) % 10 < 2, 1 - labels[:300], labels[:300])
    votes[300:400, 1] = 1 - labels[300:400]
    soft = program._by_true_matrices(votes, np.eye(2)[labels])
    rows = np.arange(401)
    np.testing.assert_allclose(soft[rows[:300], votes[:300, 0]], 0.8, atol=0.01)
    np.testing.assert_allclose(soft[rows[300:400], labels[300:400]], 1, atol=0.03)
    assert np.isnan(soft[400]).all()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Of pandas, to crowd-kit.
@pytest.mark.parametrize("name", ["dawid_skene", "glad", "mace", "snorkel", "crowdlab"])
def test_rivals_find_the_source_that_is_right(program, name):
    """Two sources are right in 95 %, three in 60 %; the last ten rows have no label."""
    packages = {"snorkel": "snorkel", "crowdlab": "cleanlab"}
    pytest.importorskip(packages.get(name, "crowdkit"))
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 400).astype(np.int32)
    wrong = rng.random((400, 5)) > [0.95, 0.95, 0.6, 0.6, 0.6]
    votes = np.where(wrong, (labels[:, None] + rng.integers(1, 3, (400, 5))) % 3, labels[:, None])
    votes[rng.random((400, 5)) < 0.2] = program.UNKNOWN
    votes[-10:] = program.UNKNOWN
    features = np.eye(3, dtype=np.float32)[labels] + rng.normal(size=(400, 3)).astype(np.float32)
    rows = np.arange(400)
    data = program.VoteSet(features, labels, rows, votes, rows[:0])
    soft = program.soft_labels(data)
    assert np.isnan(soft[name][-10:]).all()
    there = (votes != program.UNKNOWN).any(axis=1)
    np.testing.assert_allclose(soft[name][there].sum(axis=1), 1, atol=1e-3)
    right = {x: (soft[x][there].argmax(axis=1) == labels[there]).mean() for x in soft}
    assert right[name] > max(0.9, right["majority"])


@pytest.mark.slow  # Four runs: that both forms of `mlc` get the votes, and the checked ones' too.
def test_mlc_with_all_votes_learns_whom_to_believe(program, monkeypatch, standard_promotion):
    """Features say nothing, one source of three is right, and the majority is right in 64 %.

    The meta-gradient alone has nothing to go by then: no classifier is better on new rows.
    """
    monkeypatch.setattr(program, "_MLC_STEPS", 600)
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 500).astype(np.int32)
    others = np.where(rng.random((2, 500)) < 0.6, 1 - labels, labels)
    votes = np.stack([labels, *others], axis=1)[:400]
    features = rng.normal(size=(500, 2)).astype(np.float32)
    data = program.VoteSet(features, labels, np.arange(400), votes, np.arange(400, 500))
    cell = program.draw(data, "random:60", 0)
    most = (votes.sum(axis=1) > 1).astype(np.int32)[:, None]
    one = program.of_mlc(data, cell._replace(votes=most), "one", 0)
    several = program.of_mlc(data, cell, "all", 0)
    assert one.keys() == {"one", "labels, one", "one, pairs", "labels, one, pairs"}
    assert one["labels, one, pairs"] < 75
    assert several["labels, all, pairs"] > 90
    robust = program.of_mlc(data, cell, "robust", 0, robust=True)
    assert robust.keys() == {"robust", "labels, robust"} and robust["labels, robust"] > 90


def test_nothing_but_the_checked_rows_is_known(program, monkeypatch):
    seen = []

    def prepared(votes, truth, names, num_classes):
        seen.append(truth)
        return votes[:, 0], votes, {}

    value = lambda x: SimpleNamespace(value=x)  # noqa: E731
    for name, x in (("_BESIDE", []), ("_DATA", ""), ("_CHECKPOINT", "")):
        monkeypatch.setattr(program, name, value(x))
    monkeypatch.setattr(program, "prepared", prepared)
    monkeypatch.setattr(program, "of_cross_fit", lambda data, cells, *_: [{} for _ in cells])
    program.measure("crowd:iris", "random:20", [3])
    (truth,) = seen
    data = program.load("crowd:iris", 3)
    checked = program.draw(data, "random:20", 3).checked
    assert checked.sum() == 20 and (truth[~checked] == program.UNKNOWN).all()
    np.testing.assert_array_equal(truth[checked], data.labels[data.rows][checked])


def test_wrench_files(program, tmp_path, monkeypatch):
    rows = {"train": [("one two", 1, [0, -1, 1]), ("three", 0, [-1, -1, 0])],
            "test": [("a b c", 1, [1, 1, 1])]}  # fmt: skip
    directory = tmp_path / "weak" / "trec"
    directory.mkdir(parents=True)
    for part, lines in rows.items():
        texts = [
            json.dumps({"text": text, "label": label, "weak_labels": votes})
            for text, label, votes in lines
        ]
        with gzip.open(directory / f"{part}.jsonl.gz", "wt") as file:
            file.write("\n".join(texts))

    def lengths(texts):
        return SimpleNamespace(inputs=np.float32([[len(text)] for text in texts]))

    monkeypatch.setattr("mlc_jax.encoders.encoding.TextReader", lambda name: lengths)
    data = program.load("trec", 0, str(tmp_path), "encoder")
    np.testing.assert_array_equal(data.features, [[7], [5], [5]])
    np.testing.assert_array_equal(data.labels, [1, 0, 1])
    np.testing.assert_array_equal(data.votes, [[0, -1, 1], [-1, -1, 0]])
    assert data.rows.tolist() == [0, 1] and data.test.tolist() == [2]


def test_the_gap_is_to_the_best_other_column(program):
    rows = [
        {"set": f"crowd:{name}", "checked": "per_class:5", "draw": draw, "all true": 99.0,
         "glad": 80.0, "mace": 70.0, program._POOL: ours}
        for name, of_set in (("a", (82.0, 84.0)), ("b", (70.0, 72.0)))
        for draw, ours in enumerate(of_set)
    ]  # fmt: skip
    table = program._table(rows, ["all true", "glad", "mace", program._POOL], program._POOL)
    lines = {line.split("|")[1].strip(): line for line in table.splitlines()}
    assert "1 of 2" in lines["sets not below their best"]
    assert "-3.0 ± 3.5 (glad)" in lines["gap to the best"]
    of_labels = [{f"labels, {name}": x for name, x in row.items()} | row for row in rows]
    best = program._gap(of_labels, ["labels, all true", "labels, glad"], program._POOL)[2]
    assert best == "labels, glad"
    rows = [row | {"majority +": 60.0 + 2 * row["draw"]} for row in rows]
    columns = ["all true", "glad", "majority +", program._POOL]
    lines = {
        x.split("|")[1].strip(): x
        for x in program._table(rows, columns, program._POOL).splitlines()
    }
    assert "+16.0 ± 3.5" in lines["minus majority +"]
    assert "minus checked rows alone" not in lines
