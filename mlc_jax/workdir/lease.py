"""Keeps other runs out of a directory in a bucket, where file locks do not work.

The lease is an object in the bucket, which gives it a new generation number with every write. Each
write names the generation that it replaces: of two writers that saw the same one, one succeeds. The
holder renews the lease every `RENEW_EVERY` seconds. Another run watches it for `EXPIRY` seconds: if
nobody renewed it, its holder is gone. Clocks of different machines are never compared.
"""

import json
import os
import socket
import threading
import time
import uuid
from typing import Any

from absl import logging
from etils import epath

from mlc_jax.errors import InputError, Lost

OBJECT = ".lease"
EXPIRY = 60.0  # Seconds without a renewal until another run may take the lease.
RENEW_EVERY = 15.0  # Seconds.
# Identifies a job that restarts after a preemption: its next attempt need not wait.
JOB_VARIABLE, ATTEMPT_VARIABLE = "MLC_JAX_JOB", "MLC_JAX_ATTEMPT"

_POLL = 2.0  # Seconds between looks at another run's lease.
_TIMEOUT = 20.0  # Seconds for one request.


class Lease:
    """A held lease; `acquire` makes one."""

    def __init__(self, blob: Any, record: dict[str, Any], generation: int):
        self._blob, self._record, self._generation = blob, record, generation
        self._renewed, self._lost = time.monotonic(), False
        self._lock, self._stop = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._renew_forever, daemon=True)
        self._thread.start()

    @classmethod
    def acquire(cls, workdir: epath.Path) -> "Lease":
        """Takes a directory's lease as soon as it is free or its holder is gone.

        Raises:
          InputError: another run holds it, or the bucket cannot be read or written.
        """
        bucket, _, inside = os.fspath(workdir).removeprefix("gs://").partition("/")
        record = {
            "token": uuid.uuid4().hex,
            "holder": f"process {os.getpid()} on {socket.gethostname()}",
            "job": os.environ.get(JOB_VARIABLE, ""),
            "attempt": int(os.environ.get(ATTEMPT_VARIABLE) or 0),
        }
        try:
            from google.cloud import storage

            blob = storage.Client().bucket(bucket).blob(f"{inside}/{OBJECT}")
            generation = _take(blob, record, workdir)
        except InputError:
            raise
        except Exception as error:  # Credentials, rights, names, the network: a dozen types.
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"--workdir: cannot write to {str(workdir)!r} ({reason}); expected a bucket that "
                "exists and that this account may read and write"
            ) from error
        return cls(blob, record, generation)

    def check(self) -> None:
        """Renews at once.

        Raises:
          Lost: somebody else has taken it, or the bucket has not answered for so long that
            somebody may have.
        """
        self._renew()
        if self._lost or time.monotonic() - self._renewed > EXPIRY:
            raise Lost(
                f"gs://{self._blob.bucket.name}/{self._blob.name} was lost: another run has taken "
                "this workdir, or may have; nothing more is written to it."
            )

    def release(self) -> None:
        """Marks the lease as free."""
        self._stop.set()
        self._thread.join()
        if not self._lost:
            try:
                # It is written, not deleted: a deletion might remove the next holder's lease.
                self._write(self._record | {"token": "", "holder": ""})
            except Exception as error:  # Then it expires.
                logging.warning("The lease of the workdir was not given back: %s", error)

    def _renew_forever(self) -> None:
        while not self._stop.wait(RENEW_EVERY):
            self._renew()

    def _renew(self) -> None:
        with self._lock:
            if self._lost:
                return
            start = time.monotonic()  # A process may be stopped during the request.
            try:
                self._write(self._record, retry=None)  # The next renewal comes soon.
            except Exception as error:  # A bucket may be unreachable for a while.
                if self._taken(error):
                    self._lost = True
                return
            self._renewed = start

    def _write(self, record: dict[str, Any], **options: Any) -> None:
        self._generation = _write(self._blob, record, self._generation, **options)

    def _taken(self, error: Exception) -> bool:
        """Whether another run took it, rather than our own renewal whose answer was lost."""
        if type(error).__name__ != "PreconditionFailed":
            return False
        try:
            found = _read(self._blob)
        except Exception:  # The next renewal asks again, as long as the lease is ours.
            return False
        if found is None or found[0]["token"] != self._record["token"]:
            return True
        self._generation = found[1]
        return False


def _take(blob: Any, record: dict[str, Any], workdir: epath.Path) -> int:
    """Takes the lease and returns its generation."""
    deadline, first = time.monotonic() + EXPIRY, None
    while True:
        found = _read(blob)
        held, generation = found or (None, 0)
        gone = held is None or not held["token"] or _is_earlier_attempt(held, record)
        if gone or (generation == first and time.monotonic() > deadline):
            try:
                return _write(blob, record, generation)
            except Exception as error:
                if type(error).__name__ != "PreconditionFailed":
                    raise
                continue  # Another run was first.
        assert held is not None
        if first is None:
            first, deadline = generation, time.monotonic() + EXPIRY
            logging.info("Waiting %d s to see whether %s still uses it.", EXPIRY, held["holder"])
        elif generation != first:
            raise InputError(
                f"--workdir: another run ({held['holder']}) is using {str(workdir)!r}; expected a "
                "directory of its own"
            )
        time.sleep(_POLL)


def _is_earlier_attempt(held: dict[str, Any], record: dict[str, Any]) -> bool:
    same = bool(record["job"]) and held["job"] == record["job"]
    return same and held["attempt"] < record["attempt"]


def _read(blob: Any) -> tuple[dict[str, Any], int] | None:
    """The content of the object, and its generation."""
    blob = blob.bucket.blob(blob.name)  # A blob with a known generation reads only that one.
    try:
        blob.reload(timeout=_TIMEOUT)
        generation = blob.generation
        text = blob.download_as_bytes(if_generation_match=generation, timeout=_TIMEOUT)
    except Exception as error:
        if type(error).__name__ != "NotFound" or not blob.bucket.exists(timeout=_TIMEOUT):
            raise
        return None
    try:
        return json.loads(text), generation
    except ValueError:  # Not ours: treat it as free.
        return {"token": "", "holder": "", "job": "", "attempt": 0}, generation


def _write(blob: Any, record: dict[str, Any], generation: int, **options: Any) -> int:
    """Writes if the object still has this generation (0: no object); returns the new one."""
    text = json.dumps(record)
    blob.upload_from_string(text, if_generation_match=generation, timeout=_TIMEOUT, **options)
    return int(blob.generation)
