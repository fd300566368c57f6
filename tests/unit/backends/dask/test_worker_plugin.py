import asyncio
import os
import pickle
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio

from rhapsody.errors import TaskExecutionError
from rhapsody.testing.gate import Gate, hold_async
from tests.support.functions import fail, unpicklable
from tests.support.waiting import until

pytestmark = pytest.mark.dask


class StandIn:
    """Stands for a future."""


class FakeWorker:
    """What the plugin uses of a Dask worker."""

    address = "tcp://10.0.0.1:1"

    def __init__(self) -> None:
        self.plugins: dict[str, Any] = {}
        self.events: list[tuple[str, Any]] = []
        self.loop = self
        self.executors: dict[str, Any] = {"default": None}
        self.asyncio_loop = asyncio.get_running_loop()
        self.data: dict[str, Any] = {}
        self.state: Any = None
        self.restarts = 0

    def add_callback(self, callback: Callable[[], None]) -> None:
        self.asyncio_loop.call_soon_threadsafe(callback)

    async def close_gracefully(self, restart: bool) -> None:
        self.restarts += restart

    def log_event(self, topic: str, message: Any) -> None:
        self.events.append((topic, message))


@pytest_asyncio.fixture
async def worker(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeWorker]:
    """A worker with the plugin "rhapsody-test"."""
    from rhapsody.backends.dask import worker_plugin

    worker = FakeWorker()
    plugin = worker_plugin.RemoteCallPlugin("rhapsody-test")
    plugin.setup(worker)
    worker.plugins[plugin.name] = plugin
    monkeypatch.setattr(worker_plugin, "get_worker", lambda: worker)
    yield worker
    await plugin.teardown(worker)


def call(function: Callable[..., Any], *args: Any, token: str = "token") -> Any:
    from rhapsody.backends.dask.remote_call import RemoteCall, dump, pickler_for

    return RemoteCall(
        "task.1",
        f"key-{token}",
        token,
        "rhapsody-test",
        function=dump(function, pickler_for(StandIn, [])),
        arguments=dump((args, {}), pickler_for(StandIn, [])),
    )


async def run(remote_call: Any) -> Any:
    """Run a call in a thread, as a worker does."""
    from rhapsody.backends.dask.worker_plugin import run_call

    return await asyncio.to_thread(run_call, remote_call)


async def test_started_call_is_reported_on_the_plugins_topic(worker: FakeWorker) -> None:
    async with Gate() as gate:
        running = asyncio.ensure_future(run(call(hold_async, *gate.address, "held")))
        await until(lambda: worker.events)
        where = {"host": socket.gethostname(), "pid": os.getpid(), "worker": worker.address}
        assert worker.events == [("rhapsody-test", {**where, "started": ["key-token"]})]
        gate.release("held")
        assert await running == "held"


async def test_finished_call_is_not_reported_as_started(worker: FakeWorker) -> None:
    assert await run(call(abs, -1, token="short")) == 1
    async with Gate() as gate:
        running = asyncio.ensure_future(run(call(hold_async, *gate.address, "held")))
        await until(lambda: reported(worker, "started"))
        assert reported(worker, "started") == [["key-token"]]
        await gate.started("held")
        gate.release("held")
        await running


def reported(worker: FakeWorker, kind: str) -> list[Any]:
    return [message[kind] for _, message in worker.events if kind in message]


async def test_small_result_is_reported_with_the_end_of_its_call(worker: FakeWorker) -> None:
    assert await run(call(abs, -1)) == 1
    await until(lambda: reported(worker, "ended"))
    [[(key, data, form, seconds, segments)]] = reported(worker, "ended")
    assert (key, pickle.loads(data), form, segments) == ("key-token", 1, "plain", [])
    assert seconds >= 0


async def test_large_result_is_not_reported(worker: FakeWorker) -> None:
    await run(call(bytes, 100_000))
    await run(call(abs, -1, token="small"))
    await until(lambda: reported(worker, "ended"))
    [[(key, *_)]] = reported(worker, "ended")
    assert key == "key-small"


async def test_result_that_needs_user_code_to_load_is_marked(worker: FakeWorker) -> None:
    await run(call(StandIn))
    await until(lambda: reported(worker, "ended"))
    [[(_, _, form, *_)]] = reported(worker, "ended")
    assert form == "pickled"


async def test_call_is_sent_back_while_its_worker_restarts(worker: FakeWorker) -> None:
    from distributed import Reschedule

    worker.plugins["rhapsody-test"].is_restarting = True
    with pytest.raises(Reschedule):
        await run(call(abs, -1))


async def test_restart_waits_for_results_that_are_fetched_but_not_for_kept_ones(
    worker: FakeWorker,
) -> None:
    from rhapsody.backends.dask.snapshot import Snapshot

    worker.data = {"kept": Snapshot.of([1]), "fetched": [1]}
    types = {key: SimpleNamespace(type=type(value)) for key, value in worker.data.items()}
    worker.state = SimpleNamespace(tasks=types)
    restarting = asyncio.ensure_future(worker.plugins["rhapsody-test"]._restart())
    done, _ = await asyncio.wait([restarting], timeout=0.5)
    assert not done
    del worker.data["fetched"]
    await asyncio.wait_for(restarting, 5)
    assert worker.restarts == 1


async def test_interrupted_async_call_ends_and_returns_nothing(worker: FakeWorker) -> None:
    from rhapsody.backends.dask.worker_plugin import interrupt_calls

    async with Gate() as gate:
        running = asyncio.ensure_future(run(call(hold_async, *gate.address, "held")))
        await gate.started("held")
        await interrupt_calls("rhapsody-test", ["token"], dask_worker=worker)
        await gate.ended("held")
        assert await running is None


async def test_call_interrupted_before_start_never_runs(worker: FakeWorker) -> None:
    ran: list[int] = []
    await worker.plugins["rhapsody-test"].interrupt(["token"])
    assert await run(call(ran.append, 1)) is None
    assert ran == []


@pytest.fixture
def sync_call() -> Iterator[tuple[threading.Event, threading.Event]]:
    """Events for a sync function: it has started, and it may return."""
    started, released = threading.Event(), threading.Event()
    yield started, released
    released.set()


async def test_interrupt_does_not_wait_for_sync_call(
    worker: FakeWorker,
    sync_call: tuple[threading.Event, threading.Event],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rhapsody.backends.dask.remote_call import RemoteCall

    started, released = sync_call

    def wait() -> str:
        started.set()
        assert released.wait(20)
        return "result"

    monkeypatch.setattr(RemoteCall, "load", lambda self, *data: (wait, (), {}))
    running = asyncio.ensure_future(run(call(abs)))
    assert await asyncio.to_thread(started.wait, 20)
    await asyncio.wait_for(worker.plugins["rhapsody-test"].interrupt(["token"]), 2)
    assert not running.done()
    released.set()
    assert await running == "result"


@pytest.mark.parametrize(
    ("error", "args"),
    [(SystemExit, (3,)), (StopIteration, ())],
    ids=["SystemExit", "StopIteration"],
)
async def test_exception_that_no_future_takes_is_replaced(
    error: type[BaseException], args: tuple[Any, ...], worker: FakeWorker
) -> None:
    with pytest.raises(TaskExecutionError, match=f"it raised {error.__name__}"):
        await run(call(fail, error, *args))


async def test_unpicklable_result_fails_the_call(worker: FakeWorker) -> None:
    with pytest.raises(TaskExecutionError, match="its result, a lock, cannot be pickled"):
        await run(call(unpicklable))
