"""Random tables, labels and settings: an answer or one line, in time; the file stays as it is."""

import os
import resource
import time

import numpy as np
import pytest

from configs import table as table_config
from mlc_jax import config as settings
from mlc_jax.benchmarks import datasets
from mlc_jax.commands import train
from mlc_jax.errors import InputError, NonFiniteLossError

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

SECONDS, BYTES = 20, 2 * 2**30  # Beyond that an answer is none.
LABELS = ["cat", "dog", "Cat", "cat ", "é", "é", "0", "1", "0.0", "-1", "NA", "TODO", "", " "]
CELLS = [
    "", "0", "1", "-1", "1e30", "1e39", "inf", "nan", "NA", "?", "null", "true", "1,5", "1.234,5",
    "$1,234", "12 %", "1_0", "2024-01-31", "31.1.2024", "1/2/2024", "12:30", "[1, 2]", "[1]", "[]",
    "Rome", "Rome ", "=1+1", "x" * 300, '"', "\u202eabc", "\uff1d1", "\x1b[31m", "9" * 400,
    "1700000000", "1700000100", "1000000000000000000", "1000000000000000001", "{", "0x10", "٣",
]  # fmt: skip
ORDINARY = ["a", "b", "é", "a b", "-a", "c", "text", "index"]
NAMES = [
    "a", "b", "index", "Unnamed: 0", "annotation_id", "lead_time", "label_bob", "checked_lable",
    "why", "drawn", "split", "id", "text", "", "é", "a b", "-a", "+a",
]  # fmt: skip


def _normal(size):
    draws = lambda seed: np.random.default_rng(seed).normal(size=size)  # noqa: E731
    return st.integers(0, 2**32 - 1).map(lambda seed: draws(seed).astype(str).tolist())


def _columns(size):
    few = st.lists(st.sampled_from(CELLS), min_size=1, max_size=3)
    picked = few.flatmap(lambda x: st.lists(st.sampled_from(x), min_size=size, max_size=size))
    normal = _normal(size)
    counted = st.just([str(i) for i in range(size)])
    one_off = st.tuples(normal, st.sampled_from(CELLS)).map(lambda x: [x[1], *x[0][1:]])
    return st.one_of(normal, normal, normal, picked, counted, one_off)


@st.composite
def tables(draw):
    """(contents of a CSV file, settings of the dataset)."""
    size = draw(st.sampled_from([80, 60, 40, 12, 2, 1]))
    few = draw(st.lists(st.sampled_from(LABELS), min_size=1, max_size=3))
    two = draw(st.sampled_from([["cat", "dog"], ["cat", "dog"], few]))
    labels = draw(st.lists(st.sampled_from(two), min_size=size, max_size=size))
    every = draw(st.sampled_from([3, 2, 5, 4, 1]))
    right = draw(st.sampled_from([labels, labels[::-1]]))
    columns = {"label": labels}
    benchmark = draw(st.sampled_from([False, False, False, True]))
    if benchmark == draw(st.sampled_from([False, False, False, True])):
        columns["checked_label"] = [x if i % every == 0 else "" for i, x in enumerate(right)]
    columns |= {"x": draw(_normal(size)), "y": draw(_normal(size))} if size > 2 else {}
    names = st.one_of(*[st.sampled_from(ORDINARY)] * 4, st.sampled_from(NAMES))
    for name in draw(st.lists(names, max_size=4, unique=True)):
        columns[name] = draw(_columns(size))
    separator = draw(st.sampled_from([",", ",", ";", "\t"]))
    lines = [columns, *zip(*columns.values(), strict=True)]
    quoted = draw(st.booleans()) or draw(st.booleans())
    text = "\n".join(
        separator.join(f'"{x.replace(chr(34), 2 * chr(34))}"' if quoted else x for x in line)
        for line in lines
    )
    features = st.lists(
        st.tuples(
            st.sampled_from(["", "", "+", "-"]), st.sampled_from(["x", "y", *NAMES, "label"])
        ),
        max_size=2,
    ).map(lambda x: ",".join(sign + name for sign, name in x))
    fields = {
        "features": draw(st.one_of(*[st.none()] * 5, st.just("+a,-x"), features)),
        "benchmark": benchmark,
        "standardize": draw(st.sampled_from([None, None, True, False])),
        "clean_per_class": draw(st.integers(1, 3)),
    }
    return text.encode(), fields


def _checked(case, directory, act):
    """What `act` says of the config: None, or the line that refuses it."""
    content, fields = case
    path = directory / "data.csv"
    path.write_bytes(content)
    config = table_config.get_config()
    config.dataset.update(data=str(path), **fields)
    before, memory = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        settings.validate(config)
        act(config)
        line = None
    except InputError as error:
        line = str(error)
        assert "\n" not in line and len(line) < 2_000 and line.isprintable(), line
    except NonFiniteLossError as error:
        line = str(error)
    assert path.read_bytes() == content
    assert time.monotonic() - before < SECONDS
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory
    assert grown * 1024 < BYTES
    return line


def _load(config):
    dataset = datasets.load(config)
    inputs = dataset.prepare(dataset.noisy.source.inputs)
    assert np.isfinite(inputs).all()


_HEALTH = list(hypothesis.HealthCheck)


@pytest.mark.slow  # Three hundred tables: half a minute.
@hypothesis.settings(
    max_examples=300, deadline=None, derandomize=True, suppress_health_check=_HEALTH, database=None
)
@hypothesis.given(case=tables())
def test_up_to_the_end_of_the_checks(case, tmp_path_factory):
    directory = tmp_path_factory.mktemp("fuzz")
    _checked(case, directory, _load)
    assert os.listdir(directory) == ["data.csv"]


@pytest.mark.slow  # Twenty trainings, each of a program of its own: two minutes.
def test_trained(tmp_path):
    trained = []

    @hypothesis.settings(
        # Which tables come depends on our sources, too; about one in twenty is trained.
        max_examples=1_500, deadline=None, derandomize=True, suppress_health_check=_HEALTH,
        database=None,
    )  # fmt: skip
    @hypothesis.given(case=tables())
    def run(case):
        if len(trained) == 20:
            return
        number = len(os.listdir(tmp_path))
        directory = tmp_path / str(number)
        directory.mkdir()

        def act(config):
            _load(config)
            config.update_from_flattened_dict({"method": "cross_entropy", "num_steps": 4})
            config.model.mlp.hidden_sizes = (4,)
            train.train_and_evaluate(config, str(directory / "run"), show_progress=False)
            trained.append(number)

        _checked(case, directory, act)

    run()
    assert len(trained) == 20
