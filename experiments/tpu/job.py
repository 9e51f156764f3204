"""A Kubernetes manifest for a run, or a job array of runs, on Cloud TPUs.

    python -m experiments.tpu.job --tpu=v5litepod-8 --spot --image=IMAGE --workdir=gs://BUCKET/run \
        -- --config=configs/cifar100.py --config.noisy_batch_size=128 \
        --config.clean_batch_size=128 | kubectl apply -f -
    python -m experiments.tpu.job --tpu=v6e-1 --spot --image=IMAGE --workdir=gs://BUCKET/sweep \
        --array=20 -- --config=configs/cifar10.py --methods=all | kubectl apply -f -

Prints the manifest and does nothing else: no cloud is called. What stands after -- goes to
`mlc_jax.main`, with --array to `experiments.noise_sweep` (another program: --program). The config
is checked here, as far as that is possible without data: before any chip is requested.
docs/cloud_tpu.md says what a project needs beside it.

One run is a JobSet (jobset.x-k8s.io) of one slice, restarted on all hosts when one is lost.
--array=N is an Indexed Job of N machines, each of which trains a share of the grid (--shard=auto).
What exit codes mean is `mlc_jax.errors.ExitCode`.
"""

import datetime
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml
from absl import flags
from ml_collections import config_flags

from mlc_jax import command_line, config
from mlc_jax.errors import ExitCode, InputError, expect
from mlc_jax.workdir.lease import ATTEMPT_VARIABLE, JOB_VARIABLE

COUNT_VARIABLE = "JOB_COMPLETIONS"  # See `experiments.shards`.
COORDINATOR_PORTS = (8471, 8482)  # Ports of libtpu and of jax.distributed.
DISRUPTED = {"type": "DisruptionTarget", "status": "True"}
SPOT_GRACE_SECONDS = 15  # The most that GKE gives spot pods.
GRACE_SECONDS = 120
SECONDS_KEPT = 24 * 60 * 60  # A finished job, for its state and events; logs are kept elsewhere.

_TPU = flags.DEFINE_string("tpu", "", "v5litepod-8, v6e-8 (8 chips), v5p-8 (8 cores: 4 chips), ...")
_CHIPS_PER_HOST = flags.DEFINE_integer(
    "chips_per_host", None, "Chips of a machine, where there is a choice: 8 or 4 for v6e-8."
)
_SPOT = flags.DEFINE_bool("spot", False, "Spot capacity: may be taken away at any time.")
_IMAGE = flags.DEFINE_string("image", "", "Container image, made from the Dockerfile.")
_WORKDIR = flags.DEFINE_string("workdir", "", "gs://BUCKET/NAME, in the chips' region.")
_ARRAY = flags.DEFINE_integer(
    "array", 0, "Number of machines that share a grid of runs; 0 is one run.", lower_bound=0
)
_PROGRAM = flags.DEFINE_string(
    "program", "", "Module to run: experiments.noise_sweep with --array."
)
_NAME = flags.DEFINE_string("name", "", "Of the job; by default the workdir's and the time.")
_RESTARTS = flags.DEFINE_integer(
    "restarts", 10, "At most, beside those after preemptions of spot capacity.", lower_bound=0
)
_GRACE_SECONDS = flags.DEFINE_integer(
    "grace_seconds", None, "Between SIGTERM and SIGKILL; 15 with --spot, else 120.", lower_bound=1
)
_SERVICE_ACCOUNT = flags.DEFINE_string(
    "service_account", "mlc-jax", "Kubernetes service account that may write to the bucket."
)
_QUEUE = flags.DEFINE_string("queue", "", "Kueue's local queue, if there is one.")
_CACHE = flags.DEFINE_bool(
    "cache",
    False,
    "Keep compiled programs in WORKDIR/compilation_cache. Who can write there can run code here.",
)
_OURS = (  # Flags that the manifest sets, or that its machines need none of.
    "workdir", "shard", "collect", "distributed", "coordinator", "num_processes", "process_id",
)  # fmt: skip

# The workdir's lease knows the next attempt by this, so that it need not wait.
_ATTEMPT = {
    "name": ATTEMPT_VARIABLE,
    "valueFrom": {
        "fieldRef": {"fieldPath": "metadata.labels['jobset.sigs.k8s.io/restart-attempt']"}
    },
}


class Family(NamedTuple):
    """A kind of TPU.

    Attributes:
      accelerator: value of the nodes' label.
      machine: name of the machine type with {} chips.
      chips_per_host: of the machine types for slices of one host.
      chips_of_many_hosts: of the machine type for slices of several hosts.
      topologies: of the slices, by their number of chips.
      cores_per_chip: what the number in a name counts.
    """

    accelerator: str
    machine: str
    chips_per_host: tuple[int, ...]
    chips_of_many_hosts: int
    topologies: Mapping[int, str]
    cores_per_chip: int = 1


_FLAT = {
    1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16",
}  # fmt: skip
_CUBES = {
    4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8",
    512: "8x8x8", 1024: "8x8x16",
}  # fmt: skip
# Source: "Plan TPUs in GKE" (cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus), 2026.
FAMILIES = {
    "v5litepod": Family("tpu-v5-lite-podslice", "ct5lp-hightpu-{}t", (1, 4, 8), 4, _FLAT),
    "v6e": Family("tpu-v6e-slice", "ct6e-standard-{}t", (1, 4, 8), 4, _FLAT),
    "v5p": Family("tpu-v5p-slice", "ct5p-hightpu-{}t", (4,), 4, _CUBES, cores_per_chip=2),
}


class Slice(NamedTuple):
    """Chips that are wired together, `hosts * chips_per_host` of them."""

    accelerator: str
    machine: str
    topology: str
    hosts: int
    chips_per_host: int

    @property
    def chips(self) -> int:
        return self.hosts * self.chips_per_host


class Job(NamedTuple):
    """The request, except for the chips.

    Attributes:
      name: of the job, unique.
      image: of the container.
      command: in exec form: a shell would not pass SIGTERM on.
      workdir: in a bucket.
      array: machines that share the work; 0 is one run.
      spot: whether the capacity may be taken away.
      restarts: at most, beside those after preemptions of spot capacity.
      grace_seconds: between SIGTERM and SIGKILL.
      service_account: of Kubernetes.
      queue: Kueue's, or "".
      cache: whether compiled programs are kept in the workdir.
    """

    name: str
    image: str
    command: Sequence[str]
    workdir: str
    array: int
    spot: bool
    restarts: int
    grace_seconds: int
    service_account: str
    queue: str
    cache: bool


def main(arguments: list[str]) -> None:
    tpu = parse_tpu(_TPU.value, _CHIPS_PER_HOST.value)
    job = _job(arguments, tpu)
    print(yaml.safe_dump(manifest(job, tpu), sort_keys=False), end="")


def parse_tpu(name: str, chips_per_host: int | None = None) -> Slice:
    """The slice of a name such as v5litepod-8.

    Args:
      name: of the slice.
      chips_per_host: None is the largest machine for one host.

    Raises:
      InputError: there is no such slice, or not with such machines.
    """
    kind = name.rpartition("-")[0]
    family = FAMILIES.get(kind)
    names = {
        f"{kind}-{family.cores_per_chip * chips}": chips
        for kind, family in FAMILIES.items()
        for chips in family.topologies
    }
    if family is None or name not in names:
        raise InputError(f"--tpu: got {name!r}, expected one of {', '.join(names)}")
    chips = names[name]
    many = family.chips_of_many_hosts
    possible = [n for n in family.chips_per_host if n == chips or (n == many and chips > n)]
    size = possible[-1] if chips_per_host is None else chips_per_host
    expect(size in possible, "--chips_per_host", size, " or ".join(map(str, possible)))
    return Slice(
        family.accelerator,
        family.machine.format(size),
        family.topologies[chips],
        chips // size,
        size,
    )


def manifest(job: Job, tpu: Slice) -> dict[str, Any]:
    """The JobSet of one run, or the Indexed Job of an array; for one slice each."""
    labels = {"app": "mlc-jax"} | ({"kueue.x-k8s.io/queue-name": job.queue} if job.queue else {})
    pod = {"metadata": {"labels": {"app": "mlc-jax"}}, "spec": _pod(job, tpu)}
    if job.array:
        return {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": job.name, "labels": labels},
            "spec": _array(job, pod),
        }
    # All hosts start again together, which the JobSet does: a Job would do it for one.
    of_slice = {
        "parallelism": tpu.hosts,
        "completions": tpu.hosts,
        "backoffLimit": 0,
        "podFailurePolicy": {
            "rules": [
                {"action": "Count", "onPodConditions": [DISRUPTED]},
                {"action": "FailJob", "onExitCodes": _permanent()},
            ]
        },
        "template": pod,
    }
    metadata: dict[str, Any] = {"name": job.name, "labels": labels}
    if tpu.hosts > 1:  # A node pool is one slice then.
        key = "alpha.jobset.sigs.k8s.io/exclusive-topology"
        metadata["annotations"] = {key: "cloud.google.com/gke-nodepool"}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": metadata,
        "spec": {
            "ttlSecondsAfterFinished": SECONDS_KEPT,
            "failurePolicy": _failure_policy(job),
            "replicatedJobs": [{"name": "slice", "replicas": 1, "template": {"spec": of_slice}}],
        },
    }


def _failure_policy(job: Job) -> dict[str, Any]:
    """Permanent failures end the JobSet; preemptions of spot capacity do not count as restarts."""
    rules = [
        {
            "name": "permanent",
            "action": "FailJobSet",
            "onJobFailureReasons": ["PodFailurePolicy"],
        }
    ]
    if job.spot:
        rules.append({
            "name": "preempted",
            "action": "RestartJobSetAndIgnoreMaxRestarts",
            "onJobFailureReasons": ["BackoffLimitExceeded"],
        })  # fmt: skip
    return {"maxRestarts": job.restarts, "restartStrategy": "BlockingRecreate", "rules": rules}


def _array(job: Job, pod: dict[str, Any]) -> dict[str, Any]:
    """The spec of an array; an index that fails for good does not stop the others."""
    rules: list[dict[str, Any]] = []
    if job.spot:  # Preemptions do not count.
        retried = [int(code) for code in ExitCode if code.should_retry]
        rules = [
            {"action": "Ignore", "onPodConditions": [DISRUPTED]},
            {"action": "Ignore", "onExitCodes": _codes("In", retried)},
        ]
    return {
        "completionMode": "Indexed",
        "completions": job.array,
        "parallelism": job.array,
        "backoffLimitPerIndex": job.restarts,
        "ttlSecondsAfterFinished": SECONDS_KEPT,
        "podFailurePolicy": {
            "rules": [*rules, {"action": "FailIndex", "onExitCodes": _permanent()}]
        },
        "template": pod,
    }


def _permanent() -> dict[str, Any]:
    """Exit codes that are not retried: all except those with `ExitCode.should_retry`."""
    return _codes("NotIn", [int(code) for code in ExitCode if code.should_retry])


def _codes(operator: str, values: list[int]) -> dict[str, Any]:
    return {"containerName": "main", "operator": operator, "values": values}


def _pod(job: Job, tpu: Slice) -> dict[str, Any]:
    selector = {
        "cloud.google.com/gke-tpu-accelerator": tpu.accelerator,
        "cloud.google.com/gke-tpu-topology": tpu.topology,
        # A topology alone may be had in one machine or in two.
        "node.kubernetes.io/instance-type": tpu.machine,
    }
    tolerations = [{"key": "google.com/tpu", "operator": "Exists", "effect": "NoSchedule"}]
    if job.spot:
        name = "cloud.google.com/gke-spot"
        selector[name] = "true"
        tolerations.append(
            {"key": name, "operator": "Equal", "value": "true", "effect": "NoSchedule"}
        )
    # Without a TPU JAX would train on the CPU.
    variables = {"JAX_PLATFORMS": "tpu,cpu", "PYTHONUNBUFFERED": "1"}
    if job.array:
        variables[COUNT_VARIABLE] = str(job.array)
    else:
        variables[JOB_VARIABLE] = job.name
    if job.cache:
        variables["JAX_COMPILATION_CACHE_DIR"] = f"{job.workdir}/compilation_cache"
    chips = {"google.com/tpu": str(tpu.chips_per_host)}
    container = {
        "name": "main",
        "image": job.image,
        "command": list(job.command),
        "env": [
            *({"name": name, "value": value} for name, value in variables.items()),
            *([] if job.array else [_ATTEMPT]),
        ],
        "ports": [{"containerPort": port} for port in COORDINATOR_PORTS],
        "resources": {"requests": chips, "limits": dict(chips)},
        "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
    }
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": job.grace_seconds,
        "serviceAccountName": job.service_account,
        "nodeSelector": selector,
        "tolerations": tolerations,
        "containers": [container],
        # Kubernetes' own is of 64 MiB.
        "volumes": [{"name": "shm", "emptyDir": {"medium": "Memory"}}],
    }


def _job(arguments: list[str], tpu: Slice) -> Job:
    """The job of the flags; raises InputError for wrong ones."""
    array, workdir = _ARRAY.value, _WORKDIR.value.rstrip("/")
    in_bucket = re.fullmatch(r"gs://[a-z0-9][-_.a-z0-9]+/.+", workdir)
    expect(
        in_bucket, "--workdir", _WORKDIR.value, "gs://BUCKET/NAME: a pod's own disk goes with it"
    )
    ok = not array or tpu.hosts == 1
    expect(ok, "--array", array, f"a TPU of one host with it; {_TPU.value} has {tpu.hosts}")
    _check_arguments(arguments, tpu)
    program = _PROGRAM.value or ("experiments.noise_sweep" if array else "mlc_jax.main")
    ok = tpu.hosts == 1 or program == "mlc_jax.main"
    expect(ok, "--program", program, f"mlc_jax.main on {tpu.hosts} hosts, or a TPU of one host")
    command = ["python", "-m", program, f"--workdir={workdir}", *arguments]
    if array:
        command.append("--shard=auto")
    if program == "mlc_jax.main":
        command += ["--noprogress"] + ["--distributed"] * (tpu.hosts > 1)
    grace_seconds = _GRACE_SECONDS.value or (SPOT_GRACE_SECONDS if _SPOT.value else GRACE_SECONDS)
    return Job(
        name=_name(workdir),
        image=_IMAGE.value,
        command=command,
        workdir=workdir,
        array=array,
        spot=_SPOT.value,
        restarts=_RESTARTS.value,
        grace_seconds=grace_seconds,
        service_account=_SERVICE_ACCOUNT.value,
        queue=_QUEUE.value,
        cache=_CACHE.value,
    )


def _name(workdir: str) -> str:
    """Unique: a finished job stands in the way of another one of its name."""
    if _NAME.value:
        # Pods are called NAME-slice-0-HOST-xxxxx, in at most 63 letters.
        ok = re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", _NAME.value)
        expect(ok, "--name", _NAME.value, "at most 40 of a-z, 0-9 and -, a letter first")
        return _NAME.value
    last = re.sub("[^a-z0-9]+", "-", workdir.rpartition("/")[2].lower()).strip("-")
    last = last if last[:1].isalpha() else f"run-{last}"
    return f"{last[:24].rstrip('-')}-{datetime.datetime.now(datetime.UTC):%m%d-%H%M%S}"


def _check_arguments(arguments: list[str], tpu: Slice) -> None:
    """Raises InputError for a config that cannot be trained on these chips."""
    for argument in arguments:
        if argument.lstrip("-").partition("=")[0] in _OURS:
            raise InputError(f"{argument}: not expected after --; the manifest says what it needs")
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    command_line.parse(["job", *arguments], values, known_only=True)
    if values.config is None:  # Other programs may have one of their own.
        expect(_PROGRAM.value, "--config", None, "a config file after --")
        return
    config.validate(values.config, num_devices=tpu.chips)


if __name__ == "__main__":
    command_line.run(main, required=["tpu", "image", "workdir"], takes_arguments=True)
