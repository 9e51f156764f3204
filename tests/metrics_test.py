"""Metrics survive kills: rows that a resumed run writes again are dropped, cut-off ones too."""

import json

import numpy as np
import pytest
from etils import epath
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.util import tensor_util

from mlc_jax.training.metrics import METRICS_FILE, MetricWriter, read_metrics


def _write(workdir, rows, *, start_step=0):
    writer = MetricWriter(epath.Path(workdir), start_step=start_step)
    for step, scalars in rows:
        writer.write(step, scalars)
    writer.close()


def _events(workdir):
    """{name: [(step, value), ...]} as TensorBoard reads them, from all event files."""
    accumulator = EventAccumulator(str(workdir / "tensorboard"), {"tensors": 0})  # 0 is all.
    accumulator.Reload()
    return {
        name: [
            (event.step, tensor_util.make_ndarray(event.tensor_proto).item())
            for event in accumulator.Tensors(name)
        ]
        for name in accumulator.Tags()["tensors"]
    }


def test_rows_are_written_as_json_lines(tmp_path):
    rows = [
        (1, {"train/loss": 0.5, "train/count": 3}),
        (2, {"train/loss": np.float32(0.25), "train/count": np.int64(4)}),
        (2, {"eval/accuracy": 1.0, "eval/validation_accuracy": None}),
    ]
    _write(tmp_path, rows)
    want = [
        {"step": 1, "train/loss": 0.5, "train/count": 3.0},
        {"step": 2, "train/loss": 0.25, "train/count": 4.0},
        {"step": 2, "eval/accuracy": 1.0, "eval/validation_accuracy": None},
    ]
    lines = (tmp_path / METRICS_FILE).read_text().splitlines()
    assert [json.loads(line) for line in lines] == want
    assert read_metrics(tmp_path) == want


def test_every_row_is_on_disk_before_the_next(tmp_path):
    writer = MetricWriter(epath.Path(tmp_path), start_step=0)
    for step in (1, 2):
        writer.write(step, {"loss": 1.0})
        assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, step + 1))
        assert [event[0] for event in _events(tmp_path)["loss"]] == list(range(1, step + 1))
    writer.close()


def test_tensorboard_holds_the_same_scalars(tmp_path):
    rows = [(step, {"loss": 1 / step, "accuracy": step / 10}) for step in (3, 6, 9)]
    rows.append((9, {"validation_accuracy": None}))
    _write(tmp_path, rows)
    events = _events(tmp_path)
    assert events.keys() == {"loss", "accuracy"}
    for name, points in events.items():
        assert points == [
            (row["step"], pytest.approx(row[name])) for row in read_metrics(tmp_path) if name in row
        ]


def test_a_whole_run_in_tensorboard(trained):
    workdir = trained("mlc").workdir
    rows, events = read_metrics(workdir), _events(workdir)
    assert events.keys() == {name for row in rows for name in row} - {"step"}
    for name, points in events.items():
        want = [(row["step"], pytest.approx(row[name], rel=1e-6)) for row in rows if name in row]
        assert points == want, name


@pytest.mark.parametrize(("start_step", "kept"), [(0, 0), (4, 1), (6, 3), (7, 3), (99, 4)])
def test_rows_after_the_step_gone_on_from_are_dropped(tmp_path, start_step, kept):
    steps = [3, 6, 6, 9]
    _write(tmp_path, [(step, {"loss": float(i)}) for i, step in enumerate(steps)])
    _write(tmp_path, [(100, {"loss": -1.0})], start_step=start_step)
    rows = read_metrics(tmp_path)
    assert [row["step"] for row in rows] == [*steps[:kept], 100]
    assert [row["loss"] for row in rows[:-1]] == [float(i) for i in range(kept)]
    assert [path.name for path in tmp_path.iterdir() if "partial" in path.name] == []


@pytest.mark.parametrize("cut", [1, 5, 12])
def test_a_last_line_cut_off_by_a_kill(tmp_path, cut):
    _write(tmp_path, [(3, {"loss": 0.5}), (6, {"loss": 0.25})])
    path = tmp_path / METRICS_FILE
    path.write_text(path.read_text()[: -1 - cut])
    assert [row["step"] for row in read_metrics(tmp_path)] == [3]
    _write(tmp_path, [(6, {"loss": 0.125})], start_step=6)
    assert [(row["step"], row["loss"]) for row in read_metrics(tmp_path)] == [(3, 0.5), (6, 0.125)]


@pytest.mark.parametrize("damage", [b"12", b"{}", b"[1]", b'{"step": 3', b"\xff\xfe", b"null"])
def test_a_damaged_line_costs_no_other(tmp_path, damage):
    _write(tmp_path, [(3, {"loss": 0.5}), (6, {"loss": 0.25}), (9, {"loss": 0.125})])
    path = tmp_path / METRICS_FILE
    first, _, last = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([first, damage, last]) + b"\n")
    assert [row["step"] for row in read_metrics(tmp_path)] == [3, 9]
    _write(tmp_path, [(12, {"loss": 0.1})], start_step=9)
    assert [row["step"] for row in read_metrics(tmp_path)] == [3, 9, 12]


def test_nothing_to_read(tmp_path):
    assert read_metrics(tmp_path) == []


def test_a_failed_write_names_the_workdir(tmp_path):
    writer = MetricWriter(epath.Path(tmp_path), start_step=0)
    (tmp_path / METRICS_FILE).unlink()
    (tmp_path / METRICS_FILE).mkdir()
    with pytest.raises(OSError, match=f"^cannot write metrics to {tmp_path}: Is a directory$"):
        writer.write(1, {"loss": 1.0})
    writer.close()


def test_a_tensorboard_directory_that_cannot_be_made_names_the_workdir(tmp_path):
    (tmp_path / "tensorboard").write_text("")
    with pytest.raises(OSError, match=f"^cannot write metrics to {tmp_path}: "):
        MetricWriter(epath.Path(tmp_path), start_step=0)
