"""Manifests of TPU jobs: what Kubernetes would make of them, as far as that shows without it.

Kubernetes' own kinds and JobSet's are checked where packages with their schemas are installed:
kubeflow-trainer-api (in [test]) and kubernetes-validate (in [test-all]).
"""

import configparser
import math
import pathlib

import pytest
import yaml
from kubernetes_rules import outcome, pod_and_spec

from experiments import shards
from mlc_jax.errors import ExitCode, InputError

ROOT = pathlib.Path(__file__).parents[1]
MANIFESTS = ROOT / "tests" / "data" / "manifests"
PROGRAM = "experiments.tpu.job"
IMAGE = "europe-docker.pkg.dev/project/images/mlc-jax:1"
CIFAR100 = (
    f"--config={ROOT / 'configs' / 'cifar100.py'}",
    "--config.noisy_batch_size=128",
    "--config.clean_batch_size=128",
)
GOLDENS = {
    "v5litepod-8_spot": (
        "--tpu=v5litepod-8", "--spot", "--workdir=gs://bucket/cifar100", "--name=cifar100", "--",
        *CIFAR100,
    ),
    "v6e-16": (
        "--tpu=v6e-16", "--cache", "--queue=tpus", "--workdir=gs://bucket/cifar100",
        "--name=cifar100", "--", *CIFAR100,
    ),
    "v6e-1_array": (
        "--tpu=v6e-1", "--spot", "--array=20", "--workdir=gs://bucket/table2", "--name=table2",
        "--", f"--config={ROOT / 'configs' / 'cifar10.py'}", "--methods=all",
    ),
}  # fmt: skip


@pytest.fixture
def program(load_program):
    return load_program(PROGRAM)


@pytest.fixture
def run_job(run_program):
    """(arguments) -> exit code, stdout, stderr."""

    def run(*args):
        required = ["tpu", "image", "workdir"]
        return run_program(
            PROGRAM, f"--image={IMAGE}", *args, required=required, takes_arguments=True
        )

    return run


def _golden(name):
    return yaml.safe_load((MANIFESTS / f"{name}.yaml").read_text())


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_manifests(run_job, name):
    code, out, err = run_job(*GOLDENS[name])
    assert (code, err) == (0, "")
    assert out.replace(f"{ROOT}/", "") == (MANIFESTS / f"{name}.yaml").read_text()


def test_slices_have_as_many_chips_as_their_topology(program):
    """Of every type, with every machine; each is asked for as it is."""
    seen = set()
    for kind, family in program.FAMILIES.items():
        for chips, topology in family.topologies.items():
            for size in (None, *family.chips_per_host):
                name = f"{kind}-{chips * family.cores_per_chip}"
                try:
                    tpu = program.parse_tpu(name, size)
                except InputError as error:
                    assert size is not None and str(error).startswith("--chips_per_host: got ")
                    continue
                assert tpu.hosts * tpu.chips_per_host == tpu.chips == chips
                assert math.prod(map(int, tpu.topology.split("x"))) == chips
                assert tpu.machine.endswith(f"-{tpu.chips_per_host}t")
                pod, spec = pod_and_spec(program.manifest(_job(program), tpu))
                assert spec["parallelism"] == spec["completions"] == tpu.hosts
                (container,) = pod["containers"]
                for of_container in container["resources"].values():
                    assert of_container == {"google.com/tpu": str(tpu.chips_per_host)}
                assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == topology
                seen.add((name, tpu.hosts))
    # As the documentation of GKE has them.
    assert {("v5litepod-8", 1), ("v5litepod-8", 2), ("v6e-8", 1), ("v6e-8", 2)} <= seen
    assert {("v5p-8", 1), ("v6e-16", 4), ("v5p-128", 16), ("v5litepod-256", 64)} <= seen
    assert {("v5p-8", 2), ("v6e-16", 2), ("v5litepod-4", 4)}.isdisjoint(seen)


def _job(program, **fields):
    given = {
        "name": "run", "image": IMAGE, "command": ["python"], "workdir": "gs://bucket/run",
        "array": 0, "spot": True, "restarts": 3, "grace_seconds": 15, "service_account": "mlc-jax",
        "queue": "", "cache": False,
    }  # fmt: skip
    return program.Job(**given | fields)


@pytest.mark.parametrize("array", [0, 20])
@pytest.mark.parametrize("spot", [False, True])
def test_jobs_do_what_exit_codes_say(program, spot, array):
    """Also with codes that are none of ours: of a shell that finds no program, or of a crash."""
    tpu = program.parse_tpu("v6e-1" if array else "v6e-16")
    manifest = program.manifest(_job(program, spot=spot, array=array), tpu)
    again = "again" if spot else "again, counted"
    for code in ExitCode:
        if code != ExitCode.DONE:
            want = again if code.should_retry else "failed"
            assert outcome(manifest, int(code)) == want, code
        # Whatever it says when its machine is being taken away.
        assert outcome(manifest, int(code), disrupted=True) == (
            again if code.should_retry or spot or not array else "failed"
        )
    for code in (126, 127, 128 + 6, 128 + 11):
        assert outcome(manifest, code) == "failed"


def test_the_command_gets_sigterm_and_finds_its_share(program):
    """No shell is between; workers of an array know how many they are."""
    for name in GOLDENS:
        pod, _ = pod_and_spec(_golden(name))
        (container,) = pod["containers"]
        assert container["command"][:2] == ["python", "-m"] and "args" not in container
        variables = {x["name"]: x.get("value") for x in container["env"]}
        is_array = "--shard=auto" in container["command"]
        assert is_array == (name == "v6e-1_array")
        if is_array:
            index = {"JOB_COMPLETION_INDEX": "19"}  # As Kubernetes sets it.
            assert shards.parse("auto", variables | index) == (19, 20)
        assert ("--distributed" in container["command"]) == (name == "v6e-16")
        mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        assert {"name": mounted["/dev/shm"], "emptyDir": {"medium": "Memory"}} in pod["volumes"]


def test_a_job_gets_a_name_of_its_own(program):
    for workdir in ("gs://b/Run_1", "gs://b/2026", "gs://b/" + 80 * "x", "gs://b/---"):
        name = program._name(workdir)
        assert program.re.fullmatch("[a-z][-a-z0-9]{0,38}[a-z0-9]", name), name


@pytest.mark.parametrize(
    ("args", "problem"),
    [
        (("--tpu=v5e-8",), "--tpu: got 'v5e-8', expected one of v5litepod-1, v5litepod-4, "),
        (("--tpu=v6e-2",), "--tpu: got 'v6e-2', expected one of "),
        (("--tpu=v5p-4",), "--tpu: got 'v5p-4', expected one of "),
        (("--tpu=v6e-16", "--chips_per_host=8"), "--chips_per_host: got 8, expected 4"),
        (("--tpu=v6e-8", "--chips_per_host=1"), "--chips_per_host: got 1, expected 4 or 8"),
        (("--workdir=runs/x",), "--workdir: got 'runs/x', expected gs://BUCKET/NAME"),
        (("--workdir=gs:/typo/x",), "--workdir: got 'gs:/typo/x', expected gs://BUCKET/NAME"),
        (("--workdir=gs://bucket/",), "--workdir: got 'gs://bucket/', expected gs://BUCKET/NAME"),
        (("--name=Run",), "--name: got 'Run', expected at most 40 of a-z"),
        (("--tpu=v6e-16", "--array=3"), "--array: got 3, expected a TPU of one host with it"),
        (
            ("--tpu=v6e-16", "--program=experiments.noise_sweep"),
            "--program: got 'experiments.noise_sweep', expected mlc_jax.main on 4 hosts",
        ),
        (("--", "--shard=0/6"), "--shard=0/6: not expected after --"),
        (("--", "--workdir=gs://b/x"), "--workdir=gs://b/x: not expected after --"),
        (("--",), "--config: got None, expected a config file after --"),
        (("--", "--config=no.py"), "--config: [Errno 2] No such file or directory: "),
        (("--", CIFAR100[0], "--config.nosie.level=1"), "--config: no such field, or of another "),
        (("--", *CIFAR100, "--config.num_epochs=0"), "config.num_epochs: got 0, expected "),
    ],
)  # fmt: skip
def test_bad_flags(run_job, args, problem):
    args = args if args[0] == "--" else (*args, "--", *CIFAR100)
    code, out, err = run_job("--tpu=v6e-8", "--workdir=gs://bucket/run", *args)
    assert (code, out) == (2, "")
    assert err.startswith(f"error: {problem}") and len(err.splitlines()) == 1


def test_batches_that_the_chips_do_not_divide(run_job):
    flags = ("--tpu=v6e-8", "--workdir=gs://bucket/run", "--", CIFAR100[0])
    code, out, err = run_job(*flags)
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "error: config.noisy_batch_size: got 100, expected a positive multiple of 8 (8 devices)",
        "config.clean_batch_size: got 100, expected a positive multiple of 16 (two halves, 8 "
        "devices)",
    ]


def _jobset_problems(manifest):
    """Keys of a JobSet, or of the Job's spec, that its schema does not have."""
    models = pytest.importorskip(
        "kubeflow_trainer_api.models", reason="kubeflow-trainer-api is not installed"
    )
    if manifest["kind"] == "JobSet":
        return _lost(manifest, models.JobsetV1alpha2JobSet.from_dict(manifest).to_dict())
    spec = manifest["spec"]
    return _lost(spec, models.IoK8sApiBatchV1JobSpec.from_dict(spec).to_dict())


def _lost(given, kept, where=""):
    """What the models drop: they do not refuse what they do not know."""
    if isinstance(given, dict):
        lost = []
        for key, value in given.items():
            path = f"{where}.{key}"
            lost += _lost(value, kept[key], path) if key in kept else [path]
        return lost
    if isinstance(given, list):
        assert len(given) == len(kept)
        return [x for a, b in zip(given, kept, strict=True) for x in _lost(a, b, where)]
    return [] if given == kept else [f"{where}: {given!r} is {kept!r}"]


@pytest.mark.parametrize("name", GOLDENS)
def test_manifests_have_no_unknown_keys(name):
    assert _jobset_problems(_golden(name)) == []


def test_unknown_keys_are_noticed():
    """Those that one gets wrong first: one is misspelt, one belongs to the pod."""
    manifest = _golden("v6e-16")
    manifest["spec"]["failurePolicy"]["maxRestart"] = 3
    manifest["spec"]["terminationGracePeriod"] = 15
    assert _jobset_problems(manifest) == [
        ".spec.failurePolicy.maxRestart",
        ".spec.terminationGracePeriod",
    ]


@pytest.mark.parametrize("name", GOLDENS)
def test_kubernetes_own_kinds(name):
    """By the schemas of Kubernetes itself, unknown keys refused."""
    validate = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate is not installed"
    )
    manifest = _golden(name)
    if manifest["kind"] == "JobSet":
        (replicated,) = manifest["spec"]["replicatedJobs"]
        manifest = {"apiVersion": "batch/v1", "kind": "Job", "metadata": manifest["metadata"]}
        manifest |= replicated["template"]
    version = validate.latest_version()
    validate.validate(manifest, version, strict=True)
    manifest["spec"]["template"]["spec"]["terminationGracePeriod"] = 15
    with pytest.raises(validate.ValidationError, match="terminationGracePeriod"):
        validate.validate(manifest, version, strict=True)


def test_the_image_gets_what_it_copies():
    """The Dockerfile's sources are there, and .dockerignore leaves them in."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    copied = [name for line in lines if line.startswith("COPY ") for name in line.split()[1:-1]]
    passed = [x[1:] for x in (ROOT / ".dockerignore").read_text().splitlines() if x[:1] == "!"]
    assert {"setup.cfg", "constraints.txt", "mlc_jax", "configs", "experiments"} <= set(copied)
    for name in copied:
        assert (ROOT / name).exists(), name
        assert name.split("/")[0] in passed, name
    extras = configparser.ConfigParser()
    extras.read(ROOT / "setup.cfg")
    assert {"tpu", "gcs"} <= set(extras["options.extras_require"])
    assert any(line.endswith("'.[tpu,gcs]'") for line in lines)


def test_skypilot_tries_again_what_is_worth_it():
    task = yaml.safe_load((ROOT / "cloud" / "sky.yaml").read_text())
    codes = task["resources"]["job_recovery"]["recover_on_exit_codes"]
    assert codes == [code for code in ExitCode if code.should_retry]
    assert task["run"].splitlines()[-1].startswith("exec python -m ")


def test_jax_finds_the_hosts_of_a_pod(program, monkeypatch):
    """By the variables that GKE sets on TPU nodes, as far as that shows without a chip."""
    from jax._src.clusters import cloud_tpu_cluster

    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setenv("TPU_WORKER_ID", "1")
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "localhost,other")
    for name in ("COORDINATOR_ADDRESS", "NUM_SLICES", "SLICE_ID"):
        monkeypatch.setenv(f"MEGASCALE_{name}", "")  # Otherwise it asks Google's metadata server.
    cluster = cloud_tpu_cluster.GkeTpuCluster
    assert cluster.is_env_present()
    assert (cluster.get_process_count(), cluster.get_process_id()) == (2, 1)
    host, port = cluster.get_coordinator_address(1, None).split(":")
    assert host == "localhost" and int(port) in program.COORDINATOR_PORTS
