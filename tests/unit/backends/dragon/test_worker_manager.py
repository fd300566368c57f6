"""Workers as local subprocesses instead of Dragon's: start, messages, death and stop."""

import asyncio
import gc
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import pytest_asyncio

from rhapsody.allocation import Node
from rhapsody.backends.core.attachment import Attachment, ignore
from rhapsody.backends.core.work import Work
from rhapsody.backends.dragon import worker_manager
from rhapsody.backends.dragon.worker_manager import DragonWorkers
from rhapsody.backends.workers import scheduler
from rhapsody.backends.workers.manager import Limits
from rhapsody.backends.workers.worker_state import CONCURRENT, EXCLUSIVE
from rhapsody.errors import BackendError, TaskExecutionError, WorkerDied
from tests.support.fake_dragon import FakeProcesses
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract sockets")

HEAD = Node("head", 2, is_head=True)


class Reports:
    """Records reports about tasks."""

    def __init__(self) -> None:
        self.running: dict[str, str] = {}
        self.ends: dict[str, Any] = {}

    def report_running(self, work: Work, place: str = "") -> None:
        self.running[work.uid] = place

    def _end(self, work: Work, end: Any) -> bool:
        assert work.uid not in self.ends
        self.ends[work.uid] = end
        return True

    def report_done(self, work: Work, fields: dict[str, Any]) -> bool:
        return self._end(work, fields)

    def report_failed(self, work: Work, error: BaseException) -> bool:
        return self._end(work, error)

    def report_cancelled(self, work: Work) -> bool:
        return self._end(work, "cancelled")


def mode_of(work: Work) -> str:
    return CONCURRENT if asyncio.iscoroutinefunction(work.task.get("function")) else EXCLUSIVE


class Program:
    """The workers of a backend, and tasks for them."""

    def __init__(self, nodes: list[Node], workers: int = 1) -> None:
        self.reports = Reports()
        limits = Limits(workers=workers, async_per_worker=8, grace=0.5)
        self.manager = DragonWorkers("dragon", nodes, limits, mode_of, self.reports)
        self._attachment = Attachment(ignore)
        self._last_uid = 0

    def submit(self, function: Any, *args: Any, **task: Any) -> Work:
        self._last_uid += 1
        task = {"uid": f"task.{self._last_uid}", "function": function, "args": args, **task}
        work = Work(task, self._attachment, "")
        self.manager.scheduler.submit([(work, mode_of(work))])
        return work

    async def end(self, work: Work) -> Any:
        await until(lambda: work.uid in self.reports.ends)
        return self.reports.ends[work.uid]

    async def run(self, function: Any, *args: Any, **task: Any) -> Any:
        return await self.end(self.submit(function, *args, **task))


@pytest_asyncio.fixture
async def program(local_processes: FakeProcesses) -> AsyncIterator[Program]:
    program = Program([HEAD])
    await program.manager.start()
    yield program
    await program.manager.stop()


async def test_function_runs_in_a_worker(program: Program) -> None:
    assert await program.run(lambda number: number + 1, 41) == {"return_value": 42}
    assert await program.run(asyncio.sleep, 0, "fine") == {"return_value": "fine"}
    (pid,) = program.manager.scheduler.pids()
    assert await program.run(os.getpid) == {"return_value": pid}
    assert pid != os.getpid()


async def test_executable_runs_in_a_worker(program: Program) -> None:
    fields = await program.run(None, executable="/bin/echo", arguments=["hello"], args=())
    assert fields["stdout"] == "hello\n"


async def test_running_task_is_reported_with_its_node(program: Program) -> None:
    work = program.submit(time.sleep, 60)
    await until(lambda: program.reports.running.get(work.uid) == "head")
    program.manager.scheduler.cancel(work)
    assert await program.end(work) == "cancelled"


async def test_killed_worker_fails_its_running_task_and_is_replaced(program: Program) -> None:
    work, waiting = program.submit(time.sleep, 60), program.submit(len, "four")
    await until(lambda: work.uid in program.reports.running)
    (pid,) = program.manager.scheduler.pids()
    os.kill(pid, signal.SIGKILL)
    error = await program.end(work)
    assert isinstance(error, WorkerDied)
    assert "on node head, was ended by SIGKILL" in str(error)
    assert await program.end(waiting) == {"return_value": 4}
    assert program.manager.scheduler.pids() != [pid]


async def test_unpicklable_arguments_fail_their_task_alone(program: Program) -> None:
    bad, good = program.submit(len, sys._getframe()), program.submit(len, "four")
    error = await program.end(bad)
    assert isinstance(error, TaskExecutionError)
    assert "its arguments cannot be pickled" in str(error)
    assert await program.end(good) == {"return_value": 4}


async def test_large_results_are_loaded_in_order(program: Program) -> None:
    works = [program.submit(bytes, 200_000 if n % 2 else 1) for n in range(20)]
    for n, work in enumerate(works):
        assert len((await program.end(work))["return_value"]) == (200_000 if n % 2 else 1)


async def test_immediate_exits_fail_the_waiting_tasks(
    program: Program, local_processes: FakeProcesses
) -> None:
    local_processes.worker_program = "raise SystemExit(7)"
    error = await program.run(len, "four")
    assert isinstance(error, BackendError)
    assert "3 workers in a row ended before they were ready" in str(error)


async def test_failed_starts_fail_the_waiting_tasks(
    program: Program, local_processes: FakeProcesses, caplog: pytest.LogCaptureFixture
) -> None:
    local_processes.failing.add("head")
    with caplog.at_level(logging.ERROR):
        assert isinstance(await program.run(len, "four"), BackendError)
    assert "a worker could not be started on node head: no such node" in caplog.text
    local_processes.failing.clear()
    assert await program.run(len, "four") == {"return_value": 4}


async def test_failed_message_is_logged_and_later_ones_are_sent(
    program: Program, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        program.manager.send_to("elsewhere", 1, "message")
        await until(lambda: "a message to a worker was not sent" in caplog.text)
    assert await program.run(len, "four") == {"return_value": 4}


async def test_garbage_collection_is_enabled_again(program: Program) -> None:
    gc.disable()
    try:
        await program.run(len, "four")
        assert gc.isenabled()
    finally:
        gc.enable()


async def test_setup_has_absolute_paths(program: Program, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", ["", "relative", "/absolute"])
    setup = program.manager.setup(7)
    assert setup.number == 7
    assert setup.path == (os.getcwd(), os.path.abspath("relative"), "/absolute")


async def test_call_of_a_rank_has_its_number_in_the_names_of_output(
    program: Program, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    sent: list[Any] = []
    monkeypatch.setattr(program.manager, "_deliver", lambda *message: sent.append(message))
    task = {"uid": "job", "executable": "true", "capture_stdio": True}
    work = Work(task, Attachment(ignore), str(tmp_path))
    program.manager.send_rank_call("head", 7, work, 3)
    await until(lambda: bool(sent))
    ((node, number, message),) = sent
    assert (node, number) == ("head", 7)
    assert f"{tmp_path}/job.3".encode() in message


async def test_call_of_a_rank_is_pickled_in_a_thread(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing:
        def __reduce__(self) -> str:
            raise OSError(threading.current_thread().name)

    unsent: list[tuple[int, BaseException]] = []
    monkeypatch.setattr(program.manager.jobs, "on_unsent", lambda *call: unsent.append(call))
    work = Work({"uid": "job", "function": len, "args": (Refusing(),)}, Attachment(ignore), "/tmp")
    program.manager.send_rank_call("head", 7, work, 3)
    await until(lambda: bool(unsent))
    ((number, error),) = unsent
    assert number == 7
    assert "rhapsody-workers-out" in str(error)


async def test_stop_ends_idle_workers(
    local_processes: FakeProcesses, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scheduler, "STOP_SECONDS", 20.0)
    program = Program([HEAD], workers=2)
    await program.manager.start()
    works = [program.submit(len, "four") for _ in range(2)]
    for work in works:
        await program.end(work)
    await until(lambda: program.manager.scheduler.statistics()["workers"] == 2)
    await program.manager.stop()
    assert [worker.poll() for worker in local_processes.workers.values()] == [0, 0]
    assert local_processes.killed == []


@pytest.fixture
def agents_here(monkeypatch: pytest.MonkeyPatch) -> None:
    """The head node has an agent, in this process, and counts as another node."""
    # An agent must not change the handler of SIGINT of this process.
    monkeypatch.setattr(signal, "signal", lambda *args: None)
    monkeypatch.setattr(worker_manager, "AGENTS_EVERYWHERE", True)
    monkeypatch.setattr("rhapsody.backends.dragon.agent._exit_with", lambda pids: None)


async def test_workers_of_another_node_are_reached_through_its_agent(
    local_processes: FakeProcesses, agents_here: None
) -> None:
    program = Program([HEAD])
    await program.manager.start()
    assert await program.run(lambda number: number + 1, 41) == {"return_value": 42}
    work = program.submit(time.sleep, 60)
    await until(lambda: work.uid in program.reports.running)
    program.manager.on_node_lost(HEAD)
    assert isinstance(await program.end(work), WorkerDied)
    await program.manager.stop()


async def test_large_data_is_shared_on_the_head_node(program: Program) -> None:
    result = (await program.run(os.urandom, 1_000_000))["return_value"]
    assert (await program.run(len, result))["return_value"] == 1_000_000
    array = (await program.run(numpy.ones, 200_000))["return_value"]
    array += 1
    assert (await program.run(numpy.sum, array))["return_value"] == 400_000


async def test_large_data_of_other_nodes_travels_in_messages(
    local_processes: FakeProcesses, agents_here: None
) -> None:
    program = Program([HEAD])
    await program.manager.start()
    array = (await program.run(numpy.ones, 200_000))["return_value"]
    assert (await program.run(numpy.sum, array))["return_value"] == 200_000
    await program.manager.stop()
