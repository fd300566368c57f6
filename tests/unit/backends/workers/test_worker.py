"""The program of a worker, in a separate process: calls in, outcomes out, without a backend."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio

from rhapsody.backends.executables.executable import Executable
from rhapsody.backends.workers.connections import Connections
from rhapsody.backends.workers.messages import (
    CANCEL,
    CANCELED,
    DISCONNECTED,
    FIELDS,
    GIVE_BACK,
    GIVEN_BACK,
    PING,
    PONG,
    RAISED,
    READY,
    RUNNING,
    RUNNING_URGENT,
    STOP,
    VALUE,
    Call,
    RunMessage,
    WorkerMessage,
    encode_message,
    load_payload,
)
from rhapsody.backends.workers.pickling import dump_arguments
from tests.support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has abstract sockets")

PROGRAM = """
    import sys
    from rhapsody.backends.workers.program_connection import connect
    from rhapsody.backends.workers.worker import WorkerSetup, serve

    serve(WorkerSetup(1, sys.argv[1], tuple(sys.argv[2:])), connect(sys.argv[1]))
"""


class Worker:
    """A worker process, and the program's side of its connection."""

    def __init__(self, *path: str) -> None:
        address = f"\0rhapsody-test-{uuid.uuid4().hex}"
        self.messages: dict[int, list[tuple[int, Any]]] = {}
        self._connections = Connections("here", address, self._on_messages)
        self._last_id = 0
        # A NUL cannot be passed in an argument.
        program = textwrap.dedent(PROGRAM).replace("sys.argv[1]", repr(address))
        environment = {**os.environ, "RHAPSODY_API_KEY": "secret"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "-", *path], env=environment, stdout=subprocess.PIPE
        )

    def _on_messages(self, _number: int, messages: list[WorkerMessage]) -> None:
        for message in messages:
            call_id, kind, _, payload = load_payload(*message)
            self.messages.setdefault(call_id, []).append((kind, payload))

    def kinds(self, call_id: int) -> list[int]:
        return [kind for kind, _ in self.messages.get(call_id, [])]

    def send(self, *message: Any) -> None:
        self._connections.send(1, encode_message(*message))

    def run(
        self,
        function: Callable[..., Any],
        *args: Any,
        concurrent: bool = False,
        urgent: bool = False,
        capture: str | None = None,
    ) -> int:
        """Send a call of a function; return its id."""
        self._last_id += 1
        message = RunMessage()
        index = message.add_function("task", function)
        arguments = dump_arguments("task", args, {})
        message.add(
            Call(self._last_id + 100, "task", urgent, concurrent, index, arguments, capture, None)
        )
        self._connections.send(1, message.encode())
        return self._last_id + 100

    def run_executable(self, *command: str) -> int:
        """Send a call of an executable; return its id."""
        self._last_id += 1
        message = RunMessage()
        executable = Executable("task", command)
        message.add(Call(self._last_id + 100, "task", False, False, -1, None, None, executable))
        self._connections.send(1, message.encode())
        return self._last_id + 100

    async def end_of(self, call_id: int) -> tuple[int, Any]:
        """Wait for the end of a call; return the kind of its last message and the payload."""
        ends = (VALUE, RAISED, FIELDS, CANCELED, GIVEN_BACK)
        await until(lambda: any(kind in ends for kind in self.kinds(call_id)))
        kind, payload = self.messages[call_id][-1]
        assert kind in ends
        return kind, payload

    async def is_ready(self) -> None:
        await until(lambda: READY in self.kinds(1))

    def close(self) -> None:
        self._connections.close()
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest_asyncio.fixture
async def worker(tmp_path: Path) -> AsyncIterator[Worker]:
    worker = Worker(str(tmp_path))
    try:
        await worker.is_ready()
        yield worker
    finally:
        worker.close()


def touch_and_sleep(path: Path) -> None:
    path.touch()
    time.sleep(60)


async def touch_and_wait(path: Path) -> None:
    path.touch()
    await asyncio.sleep(60)


async def touch_and_block(path: Path) -> None:
    touch_and_sleep(path)


async def test_ready_message_has_process_id_and_node(worker: Worker) -> None:
    assert worker.messages[1] == [(READY, (worker.process.pid, "here"))]


async def test_result_of_a_function_is_sent(worker: Worker) -> None:
    offset = 40
    assert await worker.end_of(worker.run(lambda n: offset + n, 2)) == (VALUE, 42)
    assert await worker.end_of(worker.run(asyncio.sleep, 0, "fine")) == (VALUE, "fine")
    concurrent = worker.run(asyncio.sleep, 0, "fine", concurrent=True)
    assert await worker.end_of(concurrent) == (VALUE, "fine")


async def test_exception_of_a_function_is_sent(worker: Worker) -> None:
    kind, error = await worker.end_of(worker.run({}.__getitem__, "missing"))
    assert kind == RAISED
    assert type(error) is KeyError


async def test_result_fields_of_an_executable_are_sent(worker: Worker) -> None:
    kind, fields = await worker.end_of(worker.run_executable("/bin/echo", "hello"))
    assert kind == FIELDS
    assert (fields["stdout"], fields["exit_code"]) == ("hello\n", 0)


async def test_secrets_are_not_in_the_environment(worker: Worker) -> None:
    assert await worker.end_of(worker.run(os.environ.get, "RHAPSODY_API_KEY")) == (VALUE, None)


async def test_unloadable_function_is_an_error(worker: Worker) -> None:
    class Unloadable:
        def __reduce__(self) -> Any:
            return __import__, ("no_such_module",)

    kind, error = await worker.end_of(worker.run(len, Unloadable()))
    assert kind == RAISED
    assert "a worker could not load its function or arguments: ModuleNotFoundError" in str(error)


async def test_output_of_a_function_is_captured(worker: Worker, tmp_path: Path) -> None:
    call_id = worker.run(print, "hello", capture=str(tmp_path / "task"))
    assert await worker.end_of(call_id) == (VALUE, None)
    assert (tmp_path / "task.stdout").read_text() == "hello\n"


async def test_urgent_call_is_reported_at_once(worker: Worker) -> None:
    call_id = worker.run(len, "four", urgent=True)
    assert await worker.end_of(call_id) == (VALUE, 4)
    assert worker.kinds(call_id) == [RUNNING_URGENT, VALUE]


async def test_concurrent_calls_run_at_the_same_time(worker: Worker, tmp_path: Path) -> None:
    waiting = [worker.run(touch_and_wait, tmp_path / str(n), concurrent=True) for n in range(3)]
    await until(lambda: len(list(tmp_path.iterdir())) == 3)
    worker.send(CANCEL, waiting)
    assert [await worker.end_of(call_id) for call_id in waiting] == [(CANCELED, b"")] * 3


@pytest.mark.parametrize(
    ("function", "concurrent"),
    [
        (touch_and_sleep, False),
        (touch_and_wait, False),
        (touch_and_wait, True),
        (touch_and_block, True),
    ],
    ids=["sync", "awaited", "concurrent", "concurrent, blocking"],
)
async def test_running_call_is_cancelled(
    worker: Worker, function: Any, concurrent: bool, tmp_path: Path
) -> None:
    call_id = worker.run(function, tmp_path / "runs", concurrent=concurrent)
    await until((tmp_path / "runs").exists)
    worker.send(CANCEL, [call_id])
    assert await worker.end_of(call_id) == (CANCELED, b"")
    assert await worker.end_of(worker.run(len, "four")) == (VALUE, 4)


ASYNCIO_X = """
    import time

    async def block(path):
        path.touch()
        time.sleep(60)
"""


async def test_blocking_call_in_module_named_asyncio_x_is_cancelled(
    worker: Worker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "asyncio_x.py").write_text(textwrap.dedent(ASYNCIO_X))
    monkeypatch.syspath_prepend(tmp_path)
    import asyncio_x  # type: ignore[import-not-found]

    call_id = worker.run(asyncio_x.block, tmp_path / "runs", concurrent=True)
    await until((tmp_path / "runs").exists)
    worker.send(CANCEL, [call_id])
    assert await worker.end_of(call_id) == (CANCELED, b"")


async def test_executable_is_cancelled_with_its_children(worker: Worker, tmp_path: Path) -> None:
    script = f"echo half; sleep 60.25 & echo $$ $! > {tmp_path}/pids; wait"
    call_id = worker.run_executable("/bin/sh", "-c", script)
    pids = tmp_path / "pids"
    await until(lambda: pids.exists() and len(pids.read_text().split()) == 2)
    worker.send(CANCEL, [call_id])
    kind, output = await worker.end_of(call_id)
    assert kind == CANCELED
    assert (output["stdout"], output["exit_code"]) == ("half\n", -signal.SIGTERM)
    await until(lambda: not any(psutil.pid_exists(int(pid)) for pid in pids.read_text().split()))


async def test_waiting_call_is_cancelled_before_it_runs(worker: Worker, tmp_path: Path) -> None:
    running = worker.run(touch_and_sleep, tmp_path / "runs")
    waiting = worker.run(Path.touch, tmp_path / "never")
    await until((tmp_path / "runs").exists)
    worker.send(CANCEL, [waiting])
    assert await worker.end_of(waiting) == (CANCELED, b"")
    worker.send(CANCEL, [running])
    assert await worker.end_of(running) == (CANCELED, b"")
    assert not (tmp_path / "never").exists()


async def test_waiting_calls_are_given_back_while_a_call_runs(
    worker: Worker, tmp_path: Path
) -> None:
    running = worker.run(touch_and_sleep, tmp_path / "runs")
    waiting = [worker.run(len, "four") for _ in range(3)]
    await until((tmp_path / "runs").exists)
    worker.send(GIVE_BACK)
    assert [await worker.end_of(call_id) for call_id in waiting] == [(GIVEN_BACK, b"")] * 3
    assert worker.kinds(running) in ([], [RUNNING])


async def test_ping_is_answered_while_async_calls_wait(worker: Worker, tmp_path: Path) -> None:
    worker.run(touch_and_wait, tmp_path / "runs", concurrent=True)
    await until((tmp_path / "runs").exists)
    worker.send(PING)
    await until(lambda: PONG in worker.kinds(0))


async def test_stop_ends_the_worker_after_its_calls(worker: Worker) -> None:
    call_id = worker.run(time.sleep, 0.1)
    worker.send(STOP)
    assert await worker.end_of(call_id) == (VALUE, None)
    await until(lambda: DISCONNECTED in worker.kinds(0))
    assert worker.process.wait(20) == 0


async def test_worker_that_cannot_read_its_messages_ends(worker: Worker) -> None:
    worker.send(CANCEL, None)  # not a list of calls
    await until(lambda: worker.process.poll() is not None)
    assert worker.process.returncode == 1


async def test_worker_exits_with_its_children_when_the_connection_closes(
    worker: Worker, tmp_path: Path
) -> None:
    worker.run_executable("/bin/sh", "-c", f"echo $$ > {tmp_path}/pid; sleep 60.5")
    await until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    child = psutil.Process(int((tmp_path / "pid").read_text()))
    worker._connections.close()
    worker._connections = Connections(
        "here", f"\0{uuid.uuid4().hex}", lambda number, messages: None
    )
    assert worker.process.wait(20) == 1
    await until(lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE)
