"""A parent for one process of several. It says in one line that another process is gone.

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

# JAX's default is 100 seconds. A busy process sends its heartbeat from a thread of its own.
HEARTBEAT_SECONDS = 30
LOST = Lost("another process of this run is gone.")

_LOST_LINE = f"error: {LOST} The same command resumes from the newest checkpoint."
_SECONDS_TO_ABORT = 10  # JAX needs one second.
# From such a line on, only stack traces follow. It is a log line of JAX's coordination service, or
# the child's own last line, because the log may run into that.
_ABORTS = re.compile(
    rb"[EF]\d{4} .*(coordination_service|client\.h:)|" + re.escape(_LOST_LINE.encode())
)
_OF_A_PEER = re.compile(
    "Gloo .* failed|oordination ?[sS]ervice|heartbeat timeout|onnection (reset|closed) by peer"
)
_PR_SET_PDEATHSIG = 1
_ENDED_BY_ITSELF = {ExitCode.DONE, ExitCode.BAD_INPUT, ExitCode.FAILED, ExitCode.PREEMPTED}


def supervise(command: Sequence[str]) -> int:
    """Runs a command to its end, and passes SIGTERM on to it.

    Args:
      command: the program and its arguments.

    Returns:
      Its exit code, or `ExitCode.LOST` where JAX ended it because another process was gone.
    """
    process = subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=_end_with_parent)
    # Set only now, because the child would inherit them. A terminal sends SIGINT to both.
    signal.signal(signal.SIGTERM, lambda *_: process.send_signal(signal.SIGTERM))
    signal.signal(signal.SIGINT, lambda *_: None)
    kept = _forward(process)
    code = process.wait()
    if kept and code in _ENDED_BY_ITSELF:  # The child's own message may be in it.
        sys.stderr.buffer.write(kept)
    elif kept:
        print(_LOST_LINE, file=sys.stderr)
        return ExitCode.LOST
    return code if code >= 0 else 128 - code


def is_of_a_lost_peer(error: BaseException) -> bool:
    """Whether a process failed because another one is gone."""
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
      The output from where JAX gave up, which is not for users. The child is killed if it then
      writes nothing for `_SECONDS_TO_ABORT`.
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
        # A progress bar ends its lines with a carriage return.
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
    """In the child: ends it with its parent, which cannot pass SIGKILL on."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
