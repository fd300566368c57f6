"""The server process: `python -m rhapsody.inference.vllm.server serve MODEL ...`.

It is `vllm serve` with one more thread, which ends the server when the program that started it is
gone. The thread starts before vLLM is imported, which takes seconds.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import threading
import time

from rhapsody.inference.protocol.process import open_parent_pipe
from rhapsody.inference.protocol.shared_memory import segments_of

__all__ = ["main"]

VLLM_SOCKET_BYTES = len("/01234567-89ab-cdef-0123-456789abcdef")
LONGEST_SOCKET_BYTES = 107
END_SECONDS = 5
"""Time for the server's processes to end after SIGTERM."""


def main() -> None:
    """Run vLLM's command line with a watch on the parent process."""
    if (pipe := open_parent_pipe()) is not None:
        _watch_parent(pipe)
    _keep_sockets_beside(sys.argv)
    from rhapsody.inference.vllm.versions import run_serve

    sys.argv[0] = "vllm"
    run_serve()


def _keep_sockets_beside(arguments: list[str]) -> None:
    """Make vLLM create its own sockets beside this server's, since it removes none of them."""
    if "--uds" in arguments:
        folder = os.path.dirname(arguments[arguments.index("--uds") + 1])
        if len(os.fsencode(folder)) + VLLM_SOCKET_BYTES <= LONGEST_SOCKET_BYTES:
            os.environ.setdefault("VLLM_RPC_BASE_PATH", folder)


def _watch_parent(pipe: int) -> None:
    def watch() -> None:
        while os.read(pipe, 4096):
            pass
        # This process leads a group that holds the engine's processes. A shell outside the group
        # kills those that do not end on SIGTERM, and removes the shared memory that they leave.
        group = os.getpgrp()
        if group == os.getpid():
            segments = shlex.join(sorted(segments_of(group)))
            kill = f"sleep {END_SECONDS}; kill -9 -{group}; rm -f {segments}"
            subprocess.Popen(["/bin/sh", "-c", kill], start_new_session=True, close_fds=True)
            os.killpg(group, signal.SIGTERM)
            time.sleep(END_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="rhapsody-parent-watch", daemon=True).start()


if __name__ == "__main__":
    main()
