"""The process of a worker, or of a rank, that Dragon starts."""

from __future__ import annotations

from rhapsody.backends.dragon.stdio_relay import relay_stdio
from rhapsody.backends.workers import worker
from rhapsody.backends.workers.program_connection import connect
from rhapsody.backends.workers.worker import WorkerSetup

__all__ = ["node_address", "serve"]


def node_address(run: str) -> str:
    """Return the Unix socket that the workers of this node connect to.

    It is an abstract socket. Its name has the node's id, because nodes that are simulated on one
    machine may share the namespace of abstract sockets.

    Args:
        run: The unique name of the backend's run.
    """
    from dragon.utils import host_id

    return f"\0{run}-{host_id():x}"


def serve(setup: WorkerSetup) -> None:
    """Run a worker in this process.

    Args:
        setup: The worker's setup; its address is the name of the backend's run.
    """
    # It stays in the process group of Dragon's local services, which notice the exits of no other
    # processes: they call `os.waitpid(0, ...)`.
    relay_stdio()
    worker.serve(setup, connect(node_address(setup.address)))
