"""Workers on this machine: clean interpreters, each in a process group of its own."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import platform
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing import process, resource_tracker

from rhapsody.allocation import Node
from rhapsody.backends.concurrent import worker_process
from rhapsody.backends.concurrent.worker_process import ProcessSetup
from rhapsody.backends.core.reports import TaskReports
from rhapsody.backends.core.work import Work
from rhapsody.backends.workers.connections import Connections
from rhapsody.backends.workers.manager import Limits, WorkerManager
from rhapsody.backends.workers.worker_state import WorkerState
from rhapsody.processes import GROUP, child_environment, signal_group, watch_exit

__all__ = ["LocalWorkers"]

logger = logging.getLogger(__name__)

EXIT_SECONDS = 2.0
"""How long a process may take to exit after its connection was closed, before it is killed."""

LAST_MESSAGES_SECONDS = 0.5
"""How long messages of a process that has ended may take, if a child holds its connection open."""

STDERR_BYTES = 65536
"""Maximum number of bytes kept of what a starting worker writes to standard error."""

_no_fork = threading.Lock()
"""Held while a descriptor exists that a child forked by another thread must not keep open."""

os.register_at_fork(
    before=_no_fork.acquire, after_in_parent=_no_fork.release, after_in_child=_no_fork.release
)


class _Process:
    """The process of a worker, and what it wrote to standard error before it was ready."""

    def __init__(self, child: subprocess.Popen[bytes], connection: socket.socket) -> None:
        assert child.stderr is not None
        self.child = child
        self.connection = connection
        self._stderr = child.stderr
        self._written = b""
        self._loop = asyncio.get_running_loop()
        os.set_blocking(self._stderr.fileno(), False)
        self._loop.add_reader(self._stderr, self._read)

    def _read(self) -> None:
        try:
            data = os.read(self._stderr.fileno(), STDERR_BYTES)
        except BlockingIOError:
            return
        self._written = (self._written + data)[:STDERR_BYTES]
        if not data and self.child.returncode is None:  # it is ready and writes to the program's
            self._close()
            if self._written:
                with contextlib.suppress(OSError):
                    os.write(2, self._written)

    def _close(self) -> None:
        self._loop.remove_reader(self._stderr)
        self._stderr.close()

    def start_error(self) -> str:
        """Return what an ended process wrote to standard error before it was ready."""
        if not self._stderr.closed:
            self._read()
            self._close()
        return self._written.decode(errors="replace")

    def kill(self) -> None:
        """Kill the process, and what its task started; from any thread."""
        if self.child.returncode is None:
            signal_group(self.child.pid, signal.SIGKILL)


class LocalWorkers(WorkerManager):
    """Starts and ends workers on this machine and exchanges messages with them.

    Args:
        name: The backend's name.
        limits: Limits of the workers.
        mode_of: Returns the mode that a task runs in.
        reports: Takes reports about tasks.

    Raises:
        RuntimeError: This program cannot start an interpreter.
    """

    def __init__(
        self, name: str, limits: Limits, mode_of: Callable[[Work], str], reports: TaskReports
    ) -> None:
        node = Node(platform.node() or "localhost", limits.workers, is_head=True)
        super().__init__(name, [node], limits, mode_of, reports)
        self._command = worker_process.command()
        self._own_connections = self._connections = Connections(node.name, None, self._on_unread)
        self._processes: dict[int, _Process] = {}
        self._stopped = False

    async def stop(self) -> None:
        """Stop the workers, after every task has ended."""
        await super().stop()
        self._stopped = True

    def kill_children(self) -> None:
        """Kill all workers, and what their tasks started; from any thread."""
        for started in list(self._processes.values()):
            started.kill()

    # -- processes --------------------------------------------------------------------------------

    def start_workers(self, workers: Sequence[WorkerState]) -> None:
        """Start workers, in a thread."""
        self._loop.run_in_executor(None, self._start_all, workers)

    def _start_all(self, workers: Sequence[WorkerState]) -> None:
        for worker in workers:
            if worker.retiring:  # killed before its start
                self.report_exit(worker, None)
                continue
            try:
                started = self._start_one(worker)
            except Exception as error:
                logger.error("backend '%s': a worker could not be started: %s", self._name, error)
                worker.start_error = str(error)
                self.report_exit(worker, None)
            else:
                self._loop.call_soon_threadsafe(self._on_started, worker, *started)

    def _start_one(self, worker: WorkerState) -> tuple[subprocess.Popen[bytes], socket.socket]:
        tracker = resource_tracker.getfd()
        authkey = bytes(process.current_process().authkey)
        with _no_fork:
            own, inherited = socket.socketpair()
            with inherited:
                try:
                    stderr = _duplicate_of_stderr()
                    setup = ProcessSetup(
                        self.setup(worker.number, self.data_for(worker)),
                        inherited.fileno(),
                        stderr,
                        tracker,
                        authkey,
                        tuple(sys.argv),
                    )
                    try:
                        child = subprocess.Popen(
                            self._command,
                            stdin=subprocess.PIPE,
                            stderr=subprocess.PIPE,
                            pass_fds=setup.descriptors,
                            env=child_environment(worker.own and worker.own.environment),
                            **GROUP,
                        )
                    finally:
                        if stderr is not None:
                            os.close(stderr)
                except BaseException:
                    own.close()
                    raise
        assert child.stdin is not None
        try:
            with child.stdin:
                child.stdin.write(setup.encode())
        except OSError:  # it has ended; its exit code is reported
            pass
        return child, own

    def _on_started(
        self, worker: WorkerState, child: subprocess.Popen[bytes], connection: socket.socket
    ) -> None:
        started = _Process(child, connection)
        self._processes[worker.number] = started
        worker.handle = started.child.pid
        watch_exit(started.child, lambda: self._on_exit(worker, started))
        if self._stopped:
            started.connection.close()
        else:
            self._own_connections.adopt(worker.number, started.connection)
        if worker.retiring or self._stopped:  # killed during its start
            started.kill()

    def _on_exit(self, worker: WorkerState, started: _Process) -> None:
        exit_code = started.child.returncode
        if exit_code:
            signal_group(started.child.pid, signal.SIGKILL)  # what its task started
        del self._processes[worker.number]
        worker.start_error = started.start_error()
        self.scheduler.on_exit(worker.number, exit_code)
        self._loop.call_later(
            LAST_MESSAGES_SECONDS, self._own_connections.disconnect, worker.number
        )

    def kill(self, worker: WorkerState) -> None:
        """Kill a worker, and what its tasks started."""
        worker.retiring = True
        if (started := self._processes.get(worker.number)) is not None:
            started.kill()

    def reap(self, worker: WorkerState) -> None:
        """Kill a worker that has closed its connection, unless it exits soon."""
        self._loop.call_later(EXIT_SECONDS, self.kill, worker)


def _duplicate_of_stderr() -> int | None:
    try:
        return os.dup(2)
    except OSError:  # the program has closed it
        return None
