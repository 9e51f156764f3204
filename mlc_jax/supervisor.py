"""A parent for one process of several, which says in one line that another one is gone.

If a peer dies, JAX aborts the process from a thread of its own: code 134, after pages of stack
traces. Nothing inside the process can prevent that. The parent hides the stack traces. Its exit
code says that the same command may be tried again.
"""

import ctypes
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Sequence

from mlc_jax.errors import ExitCode, InputError, Lost, Preempted

# JAX's own is 100 seconds. A process that computes or compiles has a thread for its heartbeat.
HEARTBEAT_SECONDS = 30
LOST = Lost("another process of this run is gone.")

_LOST_LINE = f"error: {LOST} The same command resumes from the newest checkpoint."
_SECONDS_TO_ABORT = 10  # JAX takes one.
# The log of JAX's coordination service, or the child's own last line, into which it may run: from
# there on nothing else follows.
_ABORTS = re.compile(
    rb"[EF]\d{4} .*(coordination_service|client\.h:)|" + re.escape(_LOST_LINE.encode())
)
_OF_A_PEER = re.compile(
    "Gloo .* failed|oordination ?[sS]ervice|heartbeat timeout|onnection (reset|closed) by peer"
)
_PR_SET_PDEATHSIG = 1
_ENDED_BY_ITSELF = {ExitCode.DONE, ExitCode.BAD_INPUT, ExitCode.FAILED, ExitCode.PREEMPTED}


def supervise(command: Sequence[str]) -> int:
    """Runs a command to its end; SIGTERM goes on to it.

    Args:
      command: the program and its arguments.

    Returns:
      Its exit code, or `ExitCode.LOST` where JAX ended it because another process was gone.
    """
    process = subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=_end_with_parent)
    # After the child was made, which would inherit them. A terminal's SIGINT goes to both.
    signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGTERM))
    signal.signal(signal.SIGINT, lambda *_: None)
    kept = _forward(process)
    code = process.wait()
    if kept and code in _ENDED_BY_ITSELF:  # Its own message may be among it.
        sys.stderr.buffer.write(kept)
    elif kept:
        print(_LOST_LINE, file=sys.stderr)
        return ExitCode.LOST
    return code if code >= 0 else 128 - code


def is_of_a_lost_peer(error: BaseException) -> bool:
    """Whether an error of several processes came about because another one is gone."""
    if isinstance(error, (InputError, Preempted)):
        return False
    chain: BaseException | None = error
    while chain is not None:
        if _OF_A_PEER.search(str(chain)):
            return True
        chain = chain.__cause__ or chain.__context__
    return False


def _forward(process: subprocess.Popen[bytes]) -> bytes:
    """Copies the child's stderr to ours until the child ends or JAX gives up.

    Returns:
      What is not for users: from where JAX gave up. It gets a few seconds for it.
    """
    assert process.stderr is not None
    stream = process.stderr.fileno()
    rest, kept = b"", b""
    while True:
        ready, _, _ = select.select([stream], [], [], _SECONDS_TO_ABORT if kept else None)
        if not ready:
            process.kill()
            return kept
        chunk = os.read(stream, 1 << 16)
        # A progress bar's lines begin anew without an end.
        *lines, rest = re.split(rb"(?<=[\r\n])", rest + chunk) if chunk else (rest, b"")
        for line in lines:
            if kept or _ABORTS.match(line):
                kept += line
                continue
            sys.stderr.buffer.write(line)
            sys.stderr.buffer.flush()
        if not chunk:
            return kept


def _end_with_parent() -> None:
    """In the child: SIGKILL of its parent is not passed on otherwise."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
