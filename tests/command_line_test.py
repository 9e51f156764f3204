"""What a user sees on the command line: one clear message and an exit code, no traceback."""

import os
import pathlib
import re
import socket
import subprocess
import sys
import time
import types

import pytest
from absl import logging

from mlc_jax import command_line, errors
from mlc_jax.errors import (
    CheckpointError,
    ExitCode,
    InputError,
    Lost,
    NonFiniteLossError,
    Preempted,
    exit_code,
)

MAIN = "mlc_jax.main"
CONFIG = f"--config={pathlib.Path(__file__).parents[1] / 'configs' / 'digits.py'}"
HELP = "\n--help lists the flags.\n"


@pytest.fixture
def run_main(run_program, tmp_path):
    """(arguments) -> exit code, stdout, stderr, sure that no training was begun."""
    workdir = tmp_path / "run"

    def run(*args, workdir_flag=True):
        args = [*args, f"--workdir={workdir}"] if workdir_flag else args
        code, out, err = run_program(MAIN, *args)
        assert not workdir.exists()
        assert "Traceback" not in err
        return code, out, err

    return run


@pytest.mark.parametrize(
    ("args", "missing"),
    [
        ((CONFIG,), ["workdir="]),
        ((CONFIG, "--workdir="), ["workdir="]),
        (("--workdir=x",), ["config=None"]),
        ((), ["config=None", "workdir="]),
    ],
)
def test_required_flags(run_main, args, missing):
    lines = [f"flag --{flag}: --{flag.split('=')[0]} is required." for flag in missing]
    assert run_main(*args, workdir_flag=False) == (2, "", "error: " + "\n".join(lines) + HELP)


@pytest.mark.parametrize(
    ("flag", "right", "given"),
    [
        ("--config.nosie.level=0.3", "noise", "nosie"),
        ("--config.noise.levl=0.3", "level", "levl"),
        ("--config.main_optimizer.learning_rat=1", "learning_rate", "learning_rat"),
        ("--config.num_epoch=1", "num_epochs", "num_epoch"),
    ],
)
def test_misspelt_field_names_the_nearest(run_main, flag, right, given):
    message = (
        "error: --config: no such field, or of another type. "
        f'Did you mean "{right}" instead of "{given}"?\n'
    )
    assert run_main(CONFIG, flag) == (2, "", message)


def test_misspelt_flag_names_the_nearest(run_main):
    message = f"error: Unknown command line flag 'progres'. Did you mean: progress ?{HELP}"
    assert run_main(CONFIG, "--progres") == (2, "", message)


@pytest.mark.parametrize(
    ("flag", "reason"),
    [
        ("config.noise.level=abc", "could not convert string to float: 'abc'"),
        ("config.num_epochs=1.5", "invalid literal for int() with base 10: '1.5'"),
        ("num_processes=two", "invalid literal for int() with base 10: 'two'"),
    ],
)
def test_value_of_another_type(run_main, flag, reason):
    assert run_main(CONFIG, f"--{flag}") == (2, "", f"error: flag --{flag}: {reason}{HELP}")


TOGETHER = (
    "expected --coordinator=HOST:PORT, --num_processes=N and --process_id=I together, or none of "
    "them"
)
FORM = "expected HOST:PORT"
PROCESSES = ("--coordinator=host:1234", "--num_processes=4", "--process_id=0")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (PROCESSES[:1], f"--num_processes, --process_id: missing; {TOGETHER}"),
        (PROCESSES[1:2], f"--coordinator, --process_id: missing; {TOGETHER}"),
        (PROCESSES[2:], f"--coordinator, --num_processes: missing; {TOGETHER}"),
        (PROCESSES[:2], f"--process_id: missing; {TOGETHER}"),
        (PROCESSES[1:], f"--coordinator: missing; {TOGETHER}"),
        ((PROCESSES[0], PROCESSES[2]), f"--num_processes: missing; {TOGETHER}"),
        (("--distributed", PROCESSES[0]), f"--num_processes, --process_id: missing; {TOGETHER}"),
        ((*PROCESSES[:2], "--process_id=4"), "--process_id: got 4, expected 0 to 3"),
        ((*PROCESSES[:2], "--process_id=-1"), "--process_id: got -1, expected 0 to 3"),
        ((*PROCESSES, "--num_processes=0"), "--num_processes: got 0, expected at least 1"),
        *(
            (
                (*PROCESSES, f"--coordinator={bad}"),
                f"--coordinator: got {bad!r}, expected HOST:PORT",
            )
            for bad in ("host", "host:", ":1234", "host:port", "host:0", "host:65536", "")
        ),
    ],
)
def test_processes_that_do_not_go_together(run_main, args, message):
    assert run_main(CONFIG, *args) == (2, "", f"error: {message}\n")


def test_no_cluster_is_found(tmp_path):
    """In a process of its own: JAX joins a cluster before it does anything else."""
    workdir = tmp_path / "run"
    cluster = re.compile("SLURM|OMPI|PMI|TPU|KUBERNETES|JAX_COORDINATOR|JAX_NUM_PROC|JAX_PROC")
    result = subprocess.run(
        [sys.executable, "-m", MAIN, CONFIG, f"--workdir={workdir}", "--distributed"],
        cwd=pathlib.Path(__file__).parents[1],
        env={name: value for name, value in os.environ.items() if not cluster.match(name)},
        capture_output=True,
        text=True,
    )
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert re.fullmatch(
        r"error: --distributed: JAX found no cluster to join \(.+\); expected a TPU pod or a Slurm "
        r"job, or --coordinator=HOST:PORT --num_processes=N --process_id=I in each process",
        line,
    )
    assert not workdir.exists()


@pytest.mark.parametrize(
    ("coordinator", "expected"),
    [("127.0.0.1:1234", True), ("[::1]:1234", True), ("192.0.2.1:1234", False), (None, False)],
)
def test_the_coordinator_listens_where_it_was_told_to(
    load_program, monkeypatch, coordinator, expected
):
    """192.0.2.1 is nobody's address: that of a proxy, maybe."""
    monkeypatch.delenv("JAX_COORDINATOR_BIND_ADDRESS", raising=False)
    bound = load_program(MAIN)._bind_address(coordinator)
    assert bound == (coordinator if expected else None)


@pytest.mark.slow  # A process that waits for another one, which never comes.
@pytest.mark.skipif(not pathlib.Path("/proc/net/tcp6").exists(), reason="Linux alone says so")
def test_nobody_else_can_reach_a_local_coordinator(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    root = pathlib.Path(__file__).parents[1]
    process = subprocess.Popen(
        [
            sys.executable, "-m", MAIN, CONFIG, f"--workdir={tmp_path}", "--nosupervise",
            f"--coordinator=127.0.0.1:{port}", "--num_processes=2", "--process_id=0",
        ],
        cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    listening = []
    try:
        for _ in range(300):
            lines = "".join(
                pathlib.Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6")
            ).splitlines()
            rows = [line.split() for line in lines]
            listening = [x[1] for x in rows if x[1].endswith(f":{port:04X}") and x[3] == "0A"]
            if listening or process.poll() is not None:
                break
            time.sleep(0.1)
    finally:
        process.kill()
        process.wait()
    assert listening and all("0100007F:" in address for address in listening)


@pytest.mark.parametrize("overrides", [(), ("--config.noise.level=0.3",)])
def test_config_file_that_is_not_there(run_main, tmp_path, overrides):
    path = tmp_path / "no.py"
    message = f"error: --config: [Errno 2] No such file or directory: '{path}'\n"
    assert run_main(f"--config={path}", *overrides) == (2, "", message)


def test_unexpected_arguments(run_main):
    assert run_main(CONFIG, "extra", "more") == (2, "", "error: unexpected arguments: extra more\n")


def test_bad_values_are_told_together(run_main):
    code, out, err = run_main(
        CONFIG,
        "--config.noise.level=-1",
        "--config.model.name=cnn",
        "--config.noisy_batch_size=64",
        "--config.clean_batch_size=32",
    )
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "error: config.noise.level: got -1.0, expected a number from 0 to 1",
        "config.model.name: got 'cnn', expected one of mlp, resnet, resnet50, bert",
    ]


def test_help(run_main):
    code, out, err = run_main("--help", workdir_flag=False)
    assert (code, err) == (1, "")  # absl's exit code for it.
    assert out.startswith("Trains a classifier on noisy labels, and corrects the labels.\n")
    assert "python -m mlc_jax.main --config=configs/digits.py --workdir=runs/digits" in out
    for flag in (
        "--config:", "--workdir:", "--[no]progress:", "--[no]distributed:", "--coordinator:",
        "--num_processes:", "--process_id:", "--[no]supervise:",
    ):  # fmt: skip
        assert f"\n  {flag} " in out


def test_all_goes_to_training(run_program, tmp_path, monkeypatch):
    """Overrides reach the config; the table is printed."""
    calls = []

    def train_and_evaluate(config, workdir, *, show_progress, again):
        calls.append((config, workdir, show_progress))
        assert again == ""  # Of own files alone: a benchmark has no next round.
        return {"table": "the table"}

    monkeypatch.setattr("mlc_jax.commands.train.train_and_evaluate", train_and_evaluate)
    args = (
        "--noprogress",
        "--config.noise.level=0.25",
        "--config.model.mlp.hidden_sizes=(7, 5)",
        "--config.dataset.data_dir=/data",
    )
    code, out, err = run_program(MAIN, CONFIG, f"--workdir={tmp_path}", *args)
    assert (code, out, err) == (0, "the table\n", "")
    ((config, workdir, show_progress),) = calls
    assert (workdir, show_progress) == (str(tmp_path), False)
    assert config.noise.level == 0.25
    assert tuple(config.model.mlp.hidden_sizes) == (7, 5)
    assert config.dataset.data_dir == "/data"
    assert config.is_locked


def test_own_files_have_a_next_round(run_program, tmp_path, monkeypatch):
    """Its command is that of this one, on more checks, into another directory."""
    calls = []

    def train_and_evaluate(*_, again, **__):
        calls.append(again)
        return {"table": "the table"}

    monkeypatch.setattr("mlc_jax.commands.train.train_and_evaluate", train_and_evaluate)
    monkeypatch.setattr("mlc_jax.benchmarks.datasets.load", lambda config: None)
    config = CONFIG.replace("digits", "table")
    args = (config, "--config.dataset.data=a b.csv", "--config.dataset.checked=1.csv")
    for workdir in ([f"--workdir={tmp_path}/"], ["--workdir", f"{tmp_path}"]):
        assert run_program(MAIN, *args, *workdir)[0] == 0
    assert calls == 2 * [
        f"python -m mlc_jax.main {config} '--config.dataset.data=a b.csv' "
        f"--config.dataset.checked=1.csv,{tmp_path}/to_check.csv --workdir={tmp_path}.next"
    ]


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (InputError("config.x: bad"), 2, "error: config.x: bad\n"),
        (CheckpointError("no space\nadvice"), 3, "error: no space\nadvice\n"),
        (NonFiniteLossError("step 3: loss is nan"), 3, "error: step 3: loss is nan\n"),
        (
            Preempted("SIGTERM: saved step 3 of 9."),
            143,
            "error: SIGTERM: saved step 3 of 9. The same command resumes from there.\n",
        ),
        (
            OSError(28, "No space left on device", "results.json"),
            3,
            "error: [Errno 28] No space left on device: 'results.json'\n",
        ),
        (
            Lost("process 1 is gone."),
            200,
            "error: process 1 is gone. The same command resumes from the newest checkpoint.\n",
        ),
        (
            ConnectionResetError(104, "Connection reset by peer"),
            200,
            "error: [Errno 104] Connection reset by peer "
            "The same command resumes from the newest checkpoint.\n",
        ),
    ],
)
def test_errors_of_the_user(run_program, tmp_path, monkeypatch, error, code, message):
    def train_and_evaluate(*_, **__):
        raise error

    monkeypatch.setattr("mlc_jax.commands.train.train_and_evaluate", train_and_evaluate)
    assert run_program(MAIN, CONFIG, f"--workdir={tmp_path}") == (code, "", message)


def test_codes_say_whether_to_start_again():
    """A shell's own codes for signals are among those that do; a bug's is Python's."""
    assert {int(code) for code in ExitCode if code.should_retry} == {137, 143, 200}
    assert {int(code) for code in ExitCode if not code.should_retry} == {0, 1, 2, 3}
    assert exit_code(ZeroDivisionError()) == 1
    # The first that fits counts: these are OSErrors, as a full disk is.
    assert exit_code(TimeoutError()) == exit_code(BrokenPipeError()) == ExitCode.LOST


def test_our_own_errors_are_not_hidden(monkeypatch, tmp_path, run_program):
    def train_and_evaluate(*_, **__):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("mlc_jax.commands.train.train_and_evaluate", train_and_evaluate)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        run_program(MAIN, CONFIG, f"--workdir={tmp_path}")


@pytest.mark.parametrize(
    ("path", "level", "with_traceback", "shown"),
    [
        ("/home/me/mlc_jax/train.py", "INFO", False, True),
        ("/home/me/mlc_jax/train.py", "ERROR", True, True),
        ("/lib/orbax/checkpoint_manager.py", "INFO", False, False),
        ("/lib/orbax/checkpoint_manager.py", "WARNING", False, True),
        ("/lib/orbax/future.py", "ERROR", True, False),  # Raised, too.
    ],
)
def test_whose_logs_are_shown(path, level, with_traceback, shown):
    trace = (ValueError, ValueError("x"), None) if with_traceback else None
    record = logging.get_absl_logger().makeRecord(
        "absl", logging.converter.string_to_standard(level), path, 1, "text", (), trace
    )
    assert command_line._is_for_users(record) == shown


def test_only_known_noise_of_threads_is_dropped(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "__unraisablehook__", seen.append)
    known = types.SimpleNamespace(exc_value=RuntimeError("Event loop is closed"))
    other = types.SimpleNamespace(exc_value=RuntimeError("Event loop"))
    for unraisable in (known, other):
        command_line._print_unless_known(unraisable)
    assert seen == [other]


def test_a_notebook_sees_progress_bars(monkeypatch):
    """Its stderr is no terminal."""
    assert not errors.is_watched()
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert errors.is_watched()
