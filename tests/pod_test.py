"""A TPU pod of two hosts, played: the manifest's own command and variables, without Kubernetes.

What is not the manifest's: chips (two fake CPU devices in each process, and gloo between them), and
where process 0 is (--coordinator), which JAX finds out by itself only where there are chips.
"""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import yaml
from emulated_bucket import take_away
from kubernetes_rules import outcome, pod_and_spec

import mlc_jax as mlc
from mlc_jax import paths
from mlc_jax.workdir.checkpoint import finished_steps

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("standard_promotion")]

ROOT = pathlib.Path(__file__).parents[1]
HOSTS, DEVICES = 2, 4
STEPS = 168
LONG = {"num_epochs": STEPS // 21, "checkpoint_every_steps": 12, "eval_every_epochs": 4}
RESTART = "metadata.labels['jobset.sigs.k8s.io/restart-attempt']"
TIMEOUT = 240  # Seconds to a checkpoint, on a busy machine.


class Pods:
    """All pods of one attempt of a JobSet.

    Args:
      manifest: of the JobSet; an attempt of one process with all devices plays none of its own.
      attempt: what JobSet's label says.
      hosts: processes that share the devices.
      logs: a directory.
    """

    def __init__(self, manifest, attempt, logs, hosts=HOSTS):
        pod, _ = pod_and_spec(manifest)
        (container,) = pod["containers"]
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        python, *arguments = container["command"]
        assert python == "python"
        self.logs = [logs / f"attempt{attempt}_host{i}" for i in range(hosts)]
        self.processes = []
        for i, log in enumerate(self.logs):
            command = [
                sys.executable, *arguments, f"--coordinator=127.0.0.1:{port}",
                f"--num_processes={hosts}", f"--process_id={i}",
            ]  # fmt: skip
            with log.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        command,
                        env=_environment(container, attempt, DEVICES // hosts),
                        cwd=ROOT,  # The image's.
                        start_new_session=True,
                        stdout=file,
                        stderr=file,
                    )
                )

    def wait_for(self, checkpoints, at_least):
        """Blocks until there is a checkpoint of this step or a later one; returns the newest."""
        end = time.monotonic() + TIMEOUT
        while max(finished_steps(checkpoints), default=0) < at_least:
            assert [p.poll() for p in self.processes] == [None] * len(self.processes), self.told()
            assert time.monotonic() < end
            time.sleep(0.3)
        return max(finished_steps(checkpoints))

    def end(self):
        """Their exit codes."""
        return [process.wait(TIMEOUT) for process in self.processes]

    def told(self):
        return [log.read_text()[-2000:] for log in self.logs]

    def kill(self):
        for process in self.processes:
            with contextlib.suppress(ProcessLookupError):  # It has ended.
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _environment(container, attempt, devices):
    flags = [x for x in os.environ["XLA_FLAGS"].split() if "device_count" not in x]
    flags.append(f"--xla_force_host_platform_device_count={devices}")
    variables = {}
    for variable in container["env"]:
        if "valueFrom" in variable:
            assert variable["valueFrom"] == {"fieldRef": {"fieldPath": RESTART}}
            variables[variable["name"]] = str(attempt)
        else:
            variables[variable["name"]] = variable["value"]
    assert variables["JAX_PLATFORMS"] == "tpu,cpu"
    chips = {
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "XLA_FLAGS": " ".join(flags),
    }
    return os.environ | variables | chips


@pytest.fixture
def play(tmp_path, run_program, tiny_flags, place):
    """(workdir, attempt, hosts) -> manifest and pods, which end with the test."""
    started = []

    def start(workdir, attempt, hosts=HOSTS):
        code, out, err = run_program(
            "experiments.tpu.job", "--tpu=v6e-8", "--chips_per_host=4", "--spot", "--name=run",
            "--image=image", f"--workdir={workdir}", "--", *tiny_flags(**LONG),
            required=["tpu", "image", "workdir"], takes_arguments=True,
        )  # fmt: skip
        assert (code, err) == (0, "")
        manifest = yaml.safe_load(out)
        assert pod_and_spec(manifest)[1]["completions"] == HOSTS
        logs = tmp_path / f"{workdir.rpartition('/')[2]}"
        logs.mkdir(exist_ok=True)
        started.append(Pods(manifest, attempt, logs, hosts))
        return manifest, started[-1]

    yield start
    for pods in started:
        pods.kill()


def test_a_pod_that_is_preempted_and_loses_a_host(play, place, bucket_server, compilation_cache):
    """It ends with the numbers of one process with as many devices that nobody disturbed."""
    workdir = paths.absolute(place) / "pod"
    checkpoints = workdir / "checkpoints"

    # One host is preempted: both save, and the JobSet starts both again.
    manifest, pods = play(str(workdir), attempt=0)
    pods.wait_for(checkpoints, 12)
    pods.processes[1].terminate()
    assert pods.end() == [143, 143], pods.told()
    ends = [told.splitlines()[-1] for told in pods.told()]
    assert ends[0] == ends[1]
    assert outcome(manifest, 143) == "again"
    saved = max(finished_steps(checkpoints))
    assert 12 < saved < STEPS
    assert ends[0].startswith(f"error: SIGTERM: saved step {saved} of {STEPS}. The same")

    # One host is lost, that which holds the lease.
    manifest, pods = play(str(workdir), attempt=1)
    newest = pods.wait_for(checkpoints, saved + 12)
    os.killpg(pods.processes[0].pid, signal.SIGKILL)
    assert pods.end() == [-signal.SIGKILL, 200], pods.told()
    assert outcome(manifest, 137) == outcome(manifest, 200) == "again"
    assert newest < STEPS

    # The bucket does not answer for 20 seconds.
    manifest, pods = play(str(workdir), attempt=2)
    pods.wait_for(checkpoints, newest + 12)
    take_away(bucket_server, 20)
    assert pods.end() == [0, 0], pods.told()
    assert "Waiting" not in pods.logs[0].read_text()  # For the lease, which was not given back.

    _, alone = play(f"{place}/alone", attempt=0, hosts=1)
    assert alone.end() == [0], alone.told()
    want, got = mlc.load(f"{place}/alone"), mlc.load(str(workdir))
    for x, y in zip(*(_leaves(result) for result in (want, got)), strict=True):
        np.testing.assert_array_equal(x, y)
    for name in ("corrected_labels.csv", "config.json", "dataset.json"):
        assert (workdir / name).read_bytes() == (workdir.parent / "alone" / name).read_bytes()


def _leaves(result):
    import jax

    return jax.tree.leaves((result.state.main.params, result.state.meta.params))
