"""Workdirs in a bucket, emulated on this machine (see emulated_bucket.py)."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from emulated_bucket import take_away

from mlc_jax import paths
from mlc_jax.config import flatten
from mlc_jax.errors import InputError, Lost, Preempted

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("standard_promotion"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


SECONDS_AWAY = 20
SPOT_GRACE_SECONDS = 15


@pytest.fixture
def short_lease(monkeypatch):
    from mlc_jax.workdir import lease

    monkeypatch.setattr(lease, "EXPIRY", 2.0)
    monkeypatch.setattr(lease, "RENEW_EVERY", 0.2)
    monkeypatch.setattr(lease, "_POLL", 0.1)
    return lease


def train(config, workdir):
    from mlc_jax.commands import train

    return train.train_and_evaluate(config, str(workdir), show_progress=False)


def assert_equal_runs(one, other):
    """Equal labels, metrics and parameters."""
    import mlc_jax as mlc

    one, other = (paths.absolute(x, "x") for x in (one, other))
    for name in ("config.json", "dataset.json", "corrected_labels.csv"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    rows = [
        [
            {
                key: x
                for key, x in json.loads(line).items()
                if "second" not in key and "wait" not in key
            }
            for line in (path / "metrics.jsonl").read_text().splitlines()
        ]
        for path in (one, other)
    ]
    assert rows[0] == rows[1]
    states = [jax.tree.leaves(mlc.load(str(path)).state.main.params) for path in (one, other)]
    for x, y in zip(*states, strict=True):
        np.testing.assert_array_equal(x, y)


def test_a_run_is_the_one_it_is_on_a_disk(place, tiny_config, trained):
    config = tiny_config()
    results = train(config, place)
    assert results["last_test_accuracy"] == trained("mlc").results["last_test_accuracy"]
    assert_equal_runs(place, trained("mlc").workdir)
    names = {path.name for path in (paths.absolute(place) / "tensorboard").iterdir()}
    assert len(names) == 1
    assert train(config, place) == results | {"train_seconds": results["train_seconds"]}


def test_stopped_and_gone_on_with(place, tiny_config, trained, monkeypatch):
    from mlc_jax.workdir import preemption

    steps = iter(range(100))
    monkeypatch.setattr(preemption.PreemptionFlag, "reached", lambda self, count: next(steps) == 30)
    with pytest.raises(Preempted):
        train(tiny_config(), place)
    before = paths.absolute(place)
    assert len((before / "metrics.jsonl").read_text().splitlines()) >= 10
    train(tiny_config(), place)
    assert_equal_runs(place, trained("mlc").workdir)


def test_killed_and_gone_on_with(place, tiny_config, trained, short_lease):
    """SIGKILL when all of the second checkpoint is written but the mark.

    Of a kill between checkpoints: tests/pod_test.py.
    """
    config = tiny_config(checkpoint_every_steps=20)
    overrides = {k: x for k, x in flatten(json.loads(config.to_json())).items() if x is not None}
    program = f"""
import os, signal, sys, threading, time
import jax, orbax.checkpoint as ocp
from mlc_jax.workdir import lease
from mlc_jax.commands import train
sys.path.insert(0, {str(pathlib.Path(__file__).parents[1])!r})
from configs import digits
from orbax.checkpoint._src.path import atomicity
config = digits.get_config()
config.update_from_flattened_dict({overrides!r})
saves = 0
save = ocp.CheckpointManager.save
def killing_save(self, *args, **kwargs):
    global saves
    saves += 1
    if saves == 2:
        self.wait_until_finished()
        async def killed(*args, **kwargs):  # All is written but the mark that says so.
            os.kill(os.getpid(), signal.SIGKILL)
        for name in dir(atomicity):
            kind = getattr(atomicity, name)
            if isinstance(kind, type) and "finalize" in vars(kind):
                kind.finalize = killed
    return save(self, *args, **kwargs)
ocp.CheckpointManager.save = killing_save
train.train_and_evaluate(config, {place!r}, show_progress=False)
"""
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()[-2000:]
    from mlc_jax.workdir.checkpoint import finished_steps

    directory = paths.absolute(place) / "checkpoints"
    there = sorted(int(path.name) for path in directory.iterdir() if path.name.isdigit())
    assert finished_steps(directory) == [20]
    assert there == [20, 40]
    train(config, place)
    assert_runs_but_config(place, trained("mlc").workdir)


def assert_runs_but_config(one, other):
    one, other = (paths.absolute(x, "x") for x in (one, other))
    assert (one / "corrected_labels.csv").read_bytes() == (
        other / "corrected_labels.csv"
    ).read_bytes()


def test_the_bucket_is_away_for_a_while(place, bucket_server, tiny_config, trained, monkeypatch):
    """From the second checkpoint on; metrics and checkpoints that are due meanwhile wait."""
    saves, save = [], ocp.CheckpointManager.save

    def save_and_take_away(self, *args, **kwargs):
        saves.append(time.monotonic())
        if len(saves) == 2:
            take_away(bucket_server, SECONDS_AWAY)
        return save(self, *args, **kwargs)

    monkeypatch.setattr(ocp.CheckpointManager, "save", save_and_take_away)
    train(tiny_config(checkpoint_every_steps=10), place)
    assert saves[-1] - saves[1] > SECONDS_AWAY
    assert_runs_but_config(place, trained("mlc").workdir)


def test_a_large_state_is_saved_within_the_grace_of_spot_pods(place, record_property):
    """As large as that of a ResNet-50, its momentum and an LCN."""
    from mlc_jax.training import stack
    from mlc_jax.workdir import checkpoint, workdir

    state = {"x": np.ones(181 * 2**18, np.float32)}
    with workdir.locked_workdir(place) as path:
        manager = checkpoint.Checkpointer(path, stack.replicated(), keep=1)
        start = time.monotonic()
        manager.save(1, jax.device_put(state, stack.replicated()), {"config": {}})
        manager.wait()
        seconds = time.monotonic() - start
        manager.close()
    record_property("seconds", seconds)
    assert seconds < SPOT_GRACE_SECONDS


def test_what_others_write_is_seen(place):
    """By whoever has listed the directory before."""
    from google.cloud import storage

    directory = paths.absolute(place)
    for name in ("one", "other"):
        inside = str(directory / name / "file").removeprefix("gs://bucket/")
        storage.Client().bucket("bucket").blob(inside).upload_from_string("")
        assert name in {path.name for path in directory.iterdir()}


def test_one_of_two_writers_gets_the_lease(place, short_lease):
    workdirs = [paths.absolute(f"{place}/{i}") for i in range(100)]
    held, refused = [], []

    def take(workdir):
        try:
            held.append(short_lease.Lease.acquire(workdir))
        except InputError:
            refused.append(workdir)

    for workdir in workdirs:
        writers = [threading.Thread(target=take, args=(workdir,)) for _ in range(2)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        held[-1].check()
        held[-1].release()
    assert (len(held), len(refused)) == (100, 100)


def test_a_renewal_whose_answer_is_lost_is_made_again(place, short_lease, monkeypatch):
    """The bucket has it, refuses it the second time, and cannot be read then."""

    class PreconditionFailed(Exception):
        pass

    def fail(error):
        raise error

    lease = short_lease.Lease.acquire(paths.absolute(place))
    with monkeypatch.context() as patch:
        patch.setattr(short_lease, "_write", lambda *_, **__: fail(PreconditionFailed()))
        patch.setattr(short_lease, "_read", lambda _: fail(OSError("unreachable")))
        time.sleep(3 * short_lease.RENEW_EVERY)
    assert lease._thread.is_alive()
    lease.check()
    lease.release()


def test_a_lease_is_taken_over(place, short_lease, monkeypatch):
    workdir = paths.absolute(place)
    first = short_lease.Lease.acquire(workdir)
    with pytest.raises(InputError, match=r"another run .* is using"):
        short_lease.Lease.acquire(workdir)
    first.release()
    start = time.monotonic()
    second = short_lease.Lease.acquire(workdir)  # Given back: at once.
    assert time.monotonic() - start < short_lease.EXPIRY
    second._stop.set()  # As if its process was stopped.
    second._thread.join()
    start = time.monotonic()
    third = short_lease.Lease.acquire(workdir)
    assert time.monotonic() - start > short_lease.EXPIRY
    with pytest.raises(Lost, match="was lost"):
        second.check()
    third.check()
    third.release()


def test_the_next_attempt_of_a_job_does_not_wait(place, short_lease, monkeypatch):
    workdir = paths.absolute(place)
    monkeypatch.setenv(short_lease.JOB_VARIABLE, "uid")
    monkeypatch.setenv(short_lease.ATTEMPT_VARIABLE, "1")
    first = short_lease.Lease.acquire(workdir)
    monkeypatch.setenv(short_lease.ATTEMPT_VARIABLE, "2")
    second = short_lease.Lease.acquire(workdir)
    with pytest.raises(Lost):
        first.check()
    monkeypatch.setenv(short_lease.ATTEMPT_VARIABLE, "1")  # One that was late.
    with pytest.raises(InputError, match="another run"):
        short_lease.Lease.acquire(workdir)
    second.release()


def test_a_holder_that_was_stopped_writes_no_checkpoint(place, short_lease, tiny_config):
    from mlc_jax.training import stack
    from mlc_jax.workdir import checkpoint, workdir

    with workdir.locked_workdir(place) as path:
        manager = checkpoint.Checkpointer(path, stack.replicated(), keep=1)
        held = workdir._leases[str(path)]
        held._stop.set()
        held._thread.join()
        other = short_lease.Lease.acquire(path)
        with pytest.raises(Lost):
            manager.save(3, jax.device_put({"x": np.zeros(2)}), {"config": {}})
        manager.close()
        assert checkpoint.finished_steps(path / "checkpoints") == []
        other.release()


@pytest.mark.parametrize(
    ("workdir", "message"),
    [
        ("gs://nowhere/run", "cannot write to 'gs://nowhere/run'"),
        ("gs:/bucket/run", "expected a local path, or gs://BUCKET/NAME"),
        ("gs://bucket/", "expected a local path, or gs://BUCKET/NAME"),
        ("s3://bucket/run", "expected a local path, or gs://BUCKET/NAME"),
    ],
)
def test_bad_buckets_are_one_line(bucket_server, workdir, message, run_program, tiny_flags):
    code, _, err = run_program("mlc_jax.main", *tiny_flags(), f"--workdir={workdir}")
    lines = [line for line in err.splitlines() if line.startswith("error")]
    assert (code, len(lines)) == (2, 1)
    assert message in lines[0]


def test_a_slash_at_the_end_changes_nothing():
    assert str(paths.absolute("gs://bucket/run/")) == "gs://bucket/run"
