"""Stand-ins for Dragon's queues and processes, for tests without the runtime."""

import contextlib
import dataclasses
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from typing import Any

import pytest

from rhapsody.allocation import Node
from rhapsody.backends.dragon import agent, processes, worker_process
from rhapsody.backends.workers.worker import WorkerSetup

HOST_ID = 0xABC

_queues: dict[int, "FakeQueue"] = {}


class FakeQueue:
    """A queue that can be pickled within this process, like Dragon's between processes."""

    def __init__(self, maxsize: int = 0, block_size: int = 0) -> None:
        self._queue: queue.Queue[Any] = queue.Queue(maxsize)
        self.put = self._queue.put
        self.get = self._queue.get
        self.get_nowait = self._queue.get_nowait
        self.destroyed = False
        _queues[id(self)] = self

    def destroy(self) -> None:
        self.destroyed = True

    def __reduce__(self) -> Any:
        return _queue_by_id, (id(self),)


def _queue_by_id(key: int) -> FakeQueue:
    return _queues[key]


def install_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the imports of Dragon's queues and host id find stand-ins."""
    contents: dict[str, dict[str, Any]] = {
        "dragon": {},
        "dragon.native": {},
        "dragon.native.queue": {"Queue": FakeQueue},
        "dragon.utils": {"host_id": lambda: HOST_ID},
    }
    for name, attributes in contents.items():
        module = types.ModuleType(name)
        module.__dict__.update(attributes)
        monkeypatch.setitem(sys.modules, name, module)


WORKER = """
import pickle, sys
from rhapsody.backends.workers.program_connection import connect
from rhapsody.backends.workers.worker import serve
setup = pickle.loads(bytes.fromhex(sys.argv[1]))
serve(setup, connect(setup.address))
"""


class FakeProcesses:
    """Workers as subprocesses of this one, and agents as threads; puids are process ids.

    Attributes:
        failing: Names of nodes on which no process can be started.
        agents: The inboxes of the agents, by node.
        killed: The puids that were killed.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.failing: set[str] = set()
        self.workers: dict[int, subprocess.Popen[bytes]] = {}
        self.agents: dict[int, threading.Event] = {}
        self.started: list[str] = []
        self.killed: list[int] = []
        self.worker_program = WORKER
        self._lock = threading.Lock()
        for name in ("start", "kill", "wait_for_any"):
            monkeypatch.setattr(processes, name, getattr(self, name))
        for module in (worker_process, agent):
            monkeypatch.setattr(module, "node_address", self.address)

    @staticmethod
    def address(run: str) -> str:
        return f"\0{run}"

    def start(self, node: Node, target: Callable[..., None], *args: Any) -> int:
        with self._lock:
            self.started.append(node.name)
        if node.name in self.failing:
            raise RuntimeError("no such node")
        if target is worker_process.serve:
            return self._start_worker(*args)
        return self._start_agent(target, *args)

    def _start_worker(self, setup: WorkerSetup) -> int:
        setup = dataclasses.replace(setup, address=self.address(setup.address))
        program = [sys.executable, "-c", self.worker_program, pickle.dumps(setup).hex()]
        worker = subprocess.Popen(program, stdin=subprocess.DEVNULL)
        with self._lock:
            self.workers[worker.pid] = worker
        return worker.pid

    def _start_agent(self, target: Callable[..., None], *args: Any) -> int:
        ended = threading.Event()
        with self._lock:
            puid = -len(self.agents) - 1
            self.agents[puid] = ended

        def run() -> None:
            target(*args)
            ended.set()

        threading.Thread(target=run, daemon=True).start()
        return puid

    def wait_for_any(
        self, puids: list[int], seconds: float | None = None
    ) -> list[tuple[int, int | None]]:
        waiting = threading.Event()
        passes = 3_000 if seconds is None else int(seconds * 100)
        for _ in range(passes):
            codes: list[tuple[int, int | None]] = [(puid, self._code(puid)) for puid in puids]
            if ended := [entry for entry in codes if entry[1] is not None]:
                return ended
            waiting.wait(0.01)
        return []

    def _code(self, puid: int) -> int | None:
        if puid in self.agents:
            return 0 if self.agents[puid].is_set() else None
        return self.workers[puid].poll()

    def kill(self, puid: int) -> None:
        self.killed.append(puid)
        if puid in self.agents:
            self.agents[puid].set()
        else:
            with contextlib.suppress(ProcessLookupError):
                os.kill(puid, signal.SIGKILL)

    def close(self) -> None:
        for worker in self.workers.values():
            worker.kill()
            worker.wait()
