"""Two processes of two devices: like one of four, and preempted together."""

import json
import os
import pathlib
import socket
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest

pytestmark = pytest.mark.slow  # Eight processes.

ROOT = pathlib.Path(__file__).parents[1]
NUM_DEVICES = 4
TIMEOUT = 240  # Seconds, for processes that wait for each other on a busy machine.
SIGTERM_AT = 8  # Windows before one of the processes is told to stop; a run has 32.


class Observed(NamedTuple):
    """What a process of a run saw (see multi_process_worker.py)."""

    facts: dict
    arrays: dict

    @property
    def state(self):
        return {k: v for k, v in self.arrays.items() if k.startswith("state/")}


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _start(directory, num_processes, name, sigterm_at=None, method="mlc"):
    """Starts the processes of a run; process 1 is the one that gets the signal."""
    port = _free_port()
    flags = os.environ["XLA_FLAGS"].split()
    flags = [flag for flag in flags if "device_count" not in flag]
    flags.append(f"--xla_force_host_platform_device_count={NUM_DEVICES // num_processes}")
    env = os.environ | {"XLA_FLAGS": " ".join(flags), "PYTHONPATH": str(ROOT)}
    processes = []
    for i in range(num_processes):
        settings = {
            "num_processes": num_processes, "process_id": i, "port": port,
            "workdir": str(directory / "workdir"), "observed": str(directory / f"{name}{i}"),
            "sigterm_at": sigterm_at if i == 1 else None, "method": method,
        }  # fmt: skip
        command = [sys.executable, str(ROOT / "tests" / "multi_process_worker.py")]
        with (directory / f"{name}{i}.log").open("w") as log:
            process = subprocess.Popen(
                [*command, json.dumps(settings)], env=env, cwd=ROOT, stdout=log, stderr=log
            )
        processes.append(process)
    return processes


def _finish(processes, directory, name):
    try:
        for process in processes:
            process.wait(TIMEOUT)
    finally:
        for process in processes:
            process.kill()  # What still waits for one that died.
    observed = []
    for i, process in enumerate(processes):
        path = directory / f"{name}{i}"
        assert process.returncode == 0, path.with_suffix(".log").read_text()[-3000:]
        arrays = dict(np.load(path.with_suffix(".npz")))
        observed.append(Observed(json.loads(path.with_suffix(".json").read_text()), arrays))
    return observed


def _run(directory, num_processes, name="run", sigterm_at=None):
    return _finish(_start(directory, num_processes, name, sigterm_at), directory, name)


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    return {n: tmp_path_factory.mktemp(n) for n in ("one", "two", "preempted")}


@pytest.fixture(scope="module")
def finished(directories):
    """One process, and two, from start to end, at the same time."""
    started = {
        name: _start(directories[name], num_processes, "run")
        for name, num_processes in (("one", 1), ("two", 2))
    }
    return {
        name: _finish(processes, directories[name], "run") for name, processes in started.items()
    }


@pytest.fixture(scope="module")
def preempted(directories, finished):
    """Two processes, one of which is told to stop."""
    observed = _run(directories["preempted"], 2, "stopped", SIGTERM_AT)
    assert not (directories["preempted"] / "workdir" / "results.json").exists()
    return observed


@pytest.fixture(scope="module")
def resumed(directories, preempted):
    return _run(directories["preempted"], 2, "resumed")


def _results(directory):
    return json.loads((directory / "workdir" / "results.json").read_text())


def _rows(directory):
    lines = (directory / "workdir" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def _assert_equal(a, b):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def test_two_processes_train_like_one(finished, directories):
    """Not bit for bit: gloo adds the gradients up in another order than one process does."""
    (one,), (two, _) = finished["one"], finished["two"]
    assert one.state.keys() == two.state.keys()
    for name, want in one.state.items():
        np.testing.assert_allclose(two.state[name], want, rtol=1e-4, atol=1e-5, err_msg=name)
    one_results, two_results = (_results(directories[name]) for name in ("one", "two"))
    for name in one_results.keys() - {"train_seconds", "mean_confidence"}:
        assert two_results[name] == one_results[name], name
    confidences = [results["mean_confidence"] for results in (one_results, two_results)]
    assert confidences[1] == pytest.approx(confidences[0], rel=1e-5)
    assert one_results["last_test_accuracy"] > 0.5  # It learned.


def test_processes_hold_the_same_state(finished):
    first, second = finished["two"]
    _assert_equal(first.state, second.state)


def test_each_process_reads_its_slice_of_the_batch(finished):
    (whole,) = finished["one"]
    shares = [observed.arrays["first_labels"] for observed in finished["two"]]
    want = whole.arrays["first_labels"]
    assert want.shape == (NUM_DEVICES, 2, 64 // NUM_DEVICES, 1)
    np.testing.assert_array_equal(np.concatenate(shares), want)


def test_one_process_alone_writes(finished, directories):
    steps, kinds = {}, {}
    for name in ("one", "two"):
        rows = _rows(directories[name])
        kinds[name] = [(row["step"], sorted(row)) for row in rows]
        steps[name] = [row["step"] for row in rows if "train/inner_loss" in row]
    assert kinds["two"] == kinds["one"]
    assert len(set(steps["two"])) == len(steps["two"]) > 10
    events = list((directories["two"] / "workdir" / "tensorboard").iterdir())
    assert len(events) == 1
    labels = (directories["two"] / "workdir" / "corrected_labels.csv").read_text().splitlines()
    assert len(labels) == 1 + _results(directories["two"])["num_noisy"]


def test_preemption_of_one_process_stops_both_at_the_same_step(preempted):
    messages = [observed.facts["preempted"] for observed in preempted]
    assert messages[0] == messages[1]
    assert messages[0].startswith("SIGTERM: saved step")
    windows = [observed.facts["windows"] for observed in preempted]
    assert windows[0] == windows[1] > SIGTERM_AT
    assert f"saved step {2 * windows[0]} of 64" in messages[0]


def test_both_processes_go_on_from_the_saved_step(preempted, resumed):
    windows = preempted[0].facts["windows"]
    for observed in resumed:
        assert observed.facts["preempted"] is None
        assert observed.facts["first_step"] == 2 * windows
        assert observed.facts["windows"] == 32 - windows


def test_resumed_run_ends_bit_equal_to_the_uninterrupted_one(finished, resumed, directories):
    for observed, want in zip(resumed, finished["two"], strict=True):
        _assert_equal(observed.state, want.state)
    results, want = (_results(directories[name]) for name in ("preempted", "two"))
    assert results | {"train_seconds": 0} == want | {"train_seconds": 0}


def test_resumed_run_logs_every_row_once(finished, resumed, directories):
    rows, want = (
        [
            {k: v for k, v in row.items() if "second" not in k and "wait" not in k}
            for row in _rows(directories[name])
        ]
        for name in ("preempted", "two")
    )
    assert rows == want


def test_phases_and_hooks_of_two_processes(tmp_path_factory):
    """Joint looks at its predictions after every epoch, and begins anew in between."""
    places = {n: tmp_path_factory.mktemp("joint") for n in (1, 2)}
    started = {n: _start(place, n, "run", method="joint") for n, place in places.items()}
    observed = {n: _finish(processes, places[n], "run") for n, processes in started.items()}
    for name, alone in observed[1][0].state.items():
        for process in observed[2]:
            np.testing.assert_allclose(process.state[name], alone, rtol=1e-3, atol=1e-4)
    one, two = (_results(place) for place in places.values())
    assert two["num_steps"] == one["num_steps"] == 2 * 64
    assert two["last_test_accuracy"] == pytest.approx(one["last_test_accuracy"], abs=0.01)
