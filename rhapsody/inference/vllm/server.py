"""The server process: `python -m rhapsody.inference.vllm.server serve MODEL ...`.

It is `vllm serve` and nothing else, but for a thread that ends it when the program that started
it is gone: from its first moment on, while vLLM is still being imported as well.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

__all__ = ["main"]

PARENT_VARIABLE = "RHAPSODY_PARENT_FD"
VLLM_SOCKET_BYTES = len("/01234567-89ab-cdef-0123-456789abcdef")
LONGEST_SOCKET_BYTES = 107
END_SECONDS = 5
"""How long an orphan's processes may take to end by themselves."""


def main() -> None:
    """Run vLLM's command line under a watch on the parent."""
    if pipe := os.environ.pop(PARENT_VARIABLE, None):
        _watch_parent(int(pipe))
    _keep_sockets_beside(sys.argv)
    from rhapsody.inference.vllm.versions import run_serve

    sys.argv[0] = "vllm"
    run_serve()


def _keep_sockets_beside(arguments: list[str]) -> None:
    """Have vLLM make its own sockets where this server's is, since it removes none of them."""
    if "--uds" in arguments:
        folder = os.path.dirname(arguments[arguments.index("--uds") + 1])
        if len(os.fsencode(folder)) + VLLM_SOCKET_BYTES <= LONGEST_SOCKET_BYTES:
            os.environ.setdefault("VLLM_RPC_BASE_PATH", folder)


def _watch_parent(pipe: int) -> None:
    os.set_inheritable(pipe, False)

    def watch() -> None:
        while os.read(pipe, 4096):
            pass
        # The launcher gave this process a group of its own, in which the engine's processes are.
        # They remove their shared memory if they are asked to end; what does not is killed, by
        # one who is not in the group.
        group = os.getpgrp()
        if group == os.getpid():
            kill = f"sleep {END_SECONDS}; kill -9 -{group}"
            subprocess.Popen(["/bin/sh", "-c", kill], start_new_session=True, close_fds=True)
            os.killpg(group, signal.SIGTERM)
            time.sleep(END_SECONDS)
        os._exit(1)

    threading.Thread(target=watch, name="rhapsody-parent-watch", daemon=True).start()


if __name__ == "__main__":
    main()
