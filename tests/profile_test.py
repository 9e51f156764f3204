"""What a run says of its own speed."""

import logging

import pytest

from mlc_jax import paths
from mlc_jax.commands import train
from mlc_jax.training import loop
from mlc_jax.training.metrics import read_metrics

pytestmark = pytest.mark.usefixtures("standard_promotion")

SPEED = {
    "train/seconds_per_step",
    "train/examples_per_second",
    "train/examples_per_second_per_chip",
    "train/data_wait_share",
}
FLOP = "train/flop_per_second_per_chip"


def _train(config, workdir):
    train.train_and_evaluate(config, str(workdir), show_progress=False)
    return [row for row in read_metrics(workdir) if "train/inner_loss" in row]


def _learned(row):
    return {name: x for name, x in row.items() if name not in SPEED | {FLOP}}


def _check(rows, workdir):
    plain, traced = rows
    (trace,) = (paths.absolute(workdir) / "profile" / "plugins" / "profile").iterdir()
    assert any(path.name.endswith(".xplane.pb") for path in trace.iterdir())
    assert [_learned(row) for row in traced] == [_learned(row) for row in plain]
    for row in plain:
        assert row.keys() >= SPEED and FLOP not in row
        examples = row["train/examples_per_second"]
        assert row["train/seconds_per_step"] * examples == pytest.approx(64 + 32)
        assert row["train/examples_per_second_per_chip"] == pytest.approx(examples / 8)
    assert [FLOP in row for row in traced] == [row["step"] > 6 for row in traced]
    # Of one chip: its share of three products with each weight of 64 - 32 - 16 - 10, at least.
    least = 3 * 2 * (64 * 32 + 32 * 16 + 16 * 10) * (64 + 32) / 8
    for row in traced[2:]:
        assert row[FLOP] * row["train/seconds_per_step"] > least


@pytest.mark.slow
def test_steps_are_traced(tiny_config, tmp_path, compilation_cache):
    """Two runs of an epoch: tracing changes nothing of what is learned."""
    config = {"num_epochs": 1, "log_every_steps": 3}
    rows = [
        _train(tiny_config(**config, profile=steps), tmp_path / name)
        for name, steps in (("plain", ""), ("traced", "6:9"))
    ]
    assert not (tmp_path / "plain" / "profile").exists()
    _check(rows, tmp_path / "traced")


@pytest.mark.slow
def test_a_trace_in_a_bucket_that_the_run_ends_before(tiny_config, place, compilation_cache):
    config = {"num_epochs": 1, "log_every_steps": 3}
    rows = [
        _train(tiny_config(**config, profile=steps), f"{place}/{name}")
        for name, steps in (("plain", ""), ("traced", "6:1000"))
    ]
    _check(rows, f"{place}/traced")


@pytest.mark.parametrize(
    ("allowed", "lines"), [(-1.0, 1), pytest.param(1.0, 0, marks=pytest.mark.slow)]
)
def test_waiting_for_data_is_one_warning(
    tiny_config, tmp_path, compilation_cache, caplog, monkeypatch, allowed, lines
):
    monkeypatch.setattr(loop, "SECONDS_TO_JUDGE", 0.0)
    monkeypatch.setattr(loop, "MAX_WAIT_SHARE", allowed)
    with caplog.at_level(logging.WARNING):
        _train(tiny_config(method="clean_only", num_epochs=1), tmp_path)
    assert caplog.text.count("of the time was spent waiting for data") == lines
