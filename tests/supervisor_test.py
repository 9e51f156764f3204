"""One of two processes is gone: the other ends within a minute, with one line and its code."""

import contextlib
import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import pytest

from mlc_jax import supervisor
from mlc_jax.errors import CheckpointError, InputError, Preempted

ROOT = pathlib.Path(__file__).parents[1]
ONE_LINE = (
    "error: another process of this run is gone. "
    "The same command resumes from the newest checkpoint.\n"
)
LONG = {"num_epochs": 5000, "checkpoint_every_steps": 20}
TIMEOUT = 240  # Seconds to the first checkpoint, on a busy machine.
# What JAX writes when it gives up, in short.
ABORT = (
    "E1126 04:04:23.534708    4397 coordination_service_agent.cc:289] Polled an error",
    "F1126 04:04:23.534745    4397 client.h:80] Terminating process because the JAX distributed",
    "*** Check failure stack trace: ***",
)
TOLD = "".join(f"{line}\n" for line in ABORT)
GIVE_UP = f"print(*{ABORT!r}, sep='\\n', file=sys.stderr, flush=True)"


def _supervise(program, **settings):
    command = [sys.executable, "-c", program]
    parent = (
        "import sys\nfrom mlc_jax import supervisor\n"
        f"supervisor._SECONDS_TO_ABORT = 2\nsys.exit(supervisor.supervise({command!r}))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", parent],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **settings,
    )


@pytest.mark.parametrize(
    ("end", "code", "message"),
    [
        ("sys.exit(0)", 0, ""),
        ("print('error: x', file=sys.stderr); sys.exit(2)", 2, "error: x\n"),
        ("sys.exit(3)", 3, ""),
        # Of a progress bar; read as lines.
        ("sys.stderr.write('  1%\\r  2%'); sys.exit(143)", 143, "  1%\n  2%"),
        ("os.kill(os.getpid(), 9)", 137, ""),
        ("os.abort()", 134, ""),  # For another reason.
        (f"{GIVE_UP}; os.abort()", 200, ONE_LINE),
        (f"{GIVE_UP}; print({ONE_LINE!r}, end='', file=sys.stderr); sys.exit(200)", 200, ONE_LINE),
        # Both at once, without an end between them.
        (
            f"print({ONE_LINE[:-1]!r}, end='', file=sys.stderr); {GIVE_UP}; sys.exit(200)",
            200,
            ONE_LINE,
        ),
        (f"{GIVE_UP}; print('error: x', file=sys.stderr); sys.exit(3)", 3, TOLD + "error: x\n"),
        # JAX has given up, and something keeps the process.
        (f"print({ABORT[0]!r}, file=sys.stderr, flush=True); time.sleep(600)", 200, ONE_LINE),
    ],
)
def test_how_a_child_ends(end, code, message):
    process = _supervise(f"import os, sys, time; print('at work', file=sys.stderr); {end}")
    out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, out, err) == (code, "", "at work\n" + message)


def test_bug_of_a_child_is_shown():
    process = _supervise("raise ZeroDivisionError('a bug')")
    _, err = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 1
    assert err.startswith("Traceback") and err.endswith("ZeroDivisionError: a bug\n")


def test_sigterm_goes_on_to_the_child():
    child = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "print('ready', flush=True)\ntime.sleep(600)"
    )
    process = _supervise(child)
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == 143


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux's prctl")
def test_the_child_does_not_outlive_its_parent():
    process = _supervise("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    child = int(process.stdout.readline())
    process.kill()
    # The child holds the other ends of its pipes; they close with it.
    process.communicate(timeout=TIMEOUT)
    with pytest.raises(ProcessLookupError):
        while True:  # Until it is reaped.
            os.kill(child, 0)
            time.sleep(0.1)


def test_which_errors_are_of_a_lost_peer():
    """As jaxlib and orbax word them; what this process did itself is not one."""
    gloo = ValueError("UNKNOWN: Gloo all-reduce failed: [...] Connection closed by peer [::]:1")
    save = CheckpointError("the checkpoint cannot be written")
    save.__cause__ = RuntimeError("UNAVAILABLE: Failed to send RPC to coordination service.")
    assert supervisor.is_of_a_lost_peer(gloo) and supervisor.is_of_a_lost_peer(save)
    for error in (ZeroDivisionError("a bug"), CheckpointError("damaged"), Preempted("SIGTERM")):
        assert not supervisor.is_of_a_lost_peer(error)
    joining = InputError("--distributed: JAX found no cluster to join")
    joining.__cause__ = RuntimeError("coordination service")
    assert not supervisor.is_of_a_lost_peer(joining)


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@contextlib.contextmanager
def _two_at_work(directory, flags):
    """Two processes of a long run, each with its parent, after the first checkpoint."""
    port, processes = _free_port(), []
    xla_flags = [x for x in os.environ["XLA_FLAGS"].split() if "device_count" not in x]
    env = os.environ | {
        "XLA_FLAGS": " ".join(xla_flags),
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "PYTHONPATH": str(ROOT),
    }
    command = [
        sys.executable, "-m", "mlc_jax.main", f"--workdir={directory / 'run'}", *flags,
        f"--coordinator=127.0.0.1:{port}", "--num_processes=2",
    ]  # fmt: skip
    try:
        for i in range(2):
            with _log(directory, i).open("w") as log:
                settings = {"cwd": ROOT, "env": env, "stdout": log, "stderr": log}
                process = subprocess.Popen(
                    [*command, f"--process_id={i}"], start_new_session=True, **settings
                )
            processes.append(process)
        end = time.monotonic() + TIMEOUT
        while not list(directory.glob("run/checkpoints/[0-9]*")):
            logs = [_log(directory, i).read_text()[-2000:] for i in range(2)]
            assert [p.poll() for p in processes] == [None, None], logs
            assert time.monotonic() < end
            time.sleep(0.2)
        yield processes
    finally:
        for process in processes:
            with contextlib.suppress(ProcessLookupError):  # It has ended.
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _log(directory, i):
    return directory / f"log{i}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "signal_"),
    [
        (1, signal.SIGKILL),  # Its connections break.
        (0, signal.SIGKILL),  # So does that to the coordinator.
        (1, signal.SIGSTOP),  # Nothing breaks, as on a TPU: there is no heartbeat.
    ],
)
def test_a_lost_peer_is_one_line(tiny_flags, tmp_path, compilation_cache, victim, signal_):
    """Four processes each, of which two import everything. Of SIGTERM: tests/pod_test.py."""
    log = _log(tmp_path, 1 - victim)
    with _two_at_work(tmp_path, tiny_flags(**LONG)) as processes:
        before = log.read_text()
        os.killpg(processes[victim].pid, signal_)
        start = time.monotonic()
        assert processes[1 - victim].wait(120) == 200
        assert time.monotonic() - start < 60
    told = log.read_text().removeprefix(before)
    assert told.endswith(ONE_LINE)
    assert "Traceback" not in told and "***" not in told and told.count("error") == 1
