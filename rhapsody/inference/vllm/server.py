"""The server process: `python -m rhapsody.inference.vllm.server serve MODEL ...`.

It is `vllm serve` and nothing else, but for a thread that ends it when the program that started
it is gone: from its first moment on, while vLLM is still being imported as well.
"""

from __future__ import annotations

import os
import signal
import sys
import threading

__all__ = ["main"]

PARENT_VARIABLE = "RHAPSODY_PARENT_FD"


def main() -> None:
    """Run vLLM's command line under a watch on the parent."""
    if pipe := os.environ.pop(PARENT_VARIABLE, None):
        _watch_parent(int(pipe))
    from rhapsody.inference.vllm.versions import run_serve

    sys.argv[0] = "vllm"
    run_serve()


def _watch_parent(pipe: int) -> None:
    os.set_inheritable(pipe, False)

    def watch() -> None:
        while os.read(pipe, 4096):
            pass
        # The launcher gave this process a group of its own, in which the engine's processes are.
        if os.getpgrp() == os.getpid():
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, name="rhapsody-parent-watch", daemon=True).start()


if __name__ == "__main__":
    main()
