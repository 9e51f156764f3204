"""What was measured is measured once, however an experiment is stopped."""

import math

import pytest
from etils import epath

from experiments.records import Records, flat_settings
from mlc_jax.errors import InputError

SETTINGS = {
    "config.seed": 0,
    "--estimators": ("exact", "one_step"),
}  # A tuple reads back as a list.


@pytest.fixture
def path(tmp_path):
    return epath.Path(tmp_path / "cost.jsonl")


def _fail():
    raise AssertionError("measured again")


def test_a_measurement_is_made_once(path):
    records = Records(path, SETTINGS)
    assert not path.exists()
    rows = [{"time": 1.5, "memory": math.nan}, {"time": 2.5}]
    assert records.get({"k": 1, "level": 0.2}, lambda: rows) is rows
    assert records.get({"level": 0.2, "k": 1}, _fail) is rows
    records.get({"k": 2, "level": 0.2}, lambda: [])
    again = Records(path, SETTINGS)
    first, second = again.get({"k": 1, "level": 0.2}, _fail)
    assert (first["time"], second) == (1.5, {"time": 2.5})
    assert math.isnan(first["memory"])
    assert again.get({"k": 2, "level": 0.2}, _fail) == []


def test_one_that_is_stopped_leaves_those_before(path):
    records = Records(path, SETTINGS)
    records.get({"k": 1}, lambda: [{"time": 1.0}])

    def stopped():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        records.get({"k": 2}, stopped)
    again = Records(path, SETTINGS)
    assert again.get({"k": 1}, _fail) == [{"time": 1.0}]
    assert again.get({"k": 2}, lambda: [{"time": 2.0}]) == [{"time": 2.0}]
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_other_settings_are_named(path):
    Records(path, SETTINGS).get({"k": 1}, lambda: [])
    with pytest.raises(InputError) as error:
        Records(path, {"config.seed": 1, "--estimators": ["exact", "one_step"], "--repeats": 5})
    assert str(error.value).splitlines() == [
        f"{str(path)!r} was measured with other settings:",
        "  --repeats: None before, 5 now",
        "  config.seed: 0 before, 1 now",
        "Use another --workdir, or remove this file.",
    ]


@pytest.mark.parametrize("text", ["", "{}", "[1]", '{"settings": {}}\n{"place": {"k": 1}'])
def test_a_file_that_cannot_be_read_is_named(path, text):
    path.write_text(text)
    with pytest.raises(InputError, match=r"cost.jsonl' cannot be read .* remove it"):
        Records(path, {})


def test_settings_are_named_as_on_the_command_line(tiny_config):
    settings = flat_settings(tiny_config())
    assert settings["config.noise.level"] == 0.4
    assert settings["config.model.mlp.hidden_sizes"] == [32, 16]
