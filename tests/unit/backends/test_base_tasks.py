import asyncio
import contextlib
import sys
import threading
from typing import Any

import pytest

from rhapsody.backends import BaseBackend, Work
from rhapsody.backends.core.service_loop import service_loop
from rhapsody.errors import TaskTimeoutError, UnsupportedTaskError
from rhapsody.testing.owners import FakeEngine
from tests.support.probe import Flag, Held, ProbeBackend, done_at_once, task
from tests.support.waiting import LIMIT_S, until


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"uid": ""}, "'uid' must be a non-empty string"),
        ({"uid": 7}, "'uid' must be a non-empty string, got 7"),
        ({"uid": ["task"]}, "'uid' must be a non-empty string"),
        ({"function": None}, "none of 'function', 'executable' and 'prompt'"),
        ({"task_backend_specific_kwargs": [1]}, "must be a dict, got [1]"),
        ({"timeout": -1}, "'timeout' must be a positive number of seconds, got -1"),
        ({"timeout": True}, "'timeout' must be a positive number of seconds, got True"),
        ({"timeout": float("nan")}, "'timeout' must be a positive number"),
    ],
)
async def test_invalid_task_fails_with_reason(changes: dict[str, Any], reason: str) -> None:
    backend = ProbeBackend()
    failed: asyncio.Queue[str] = asyncio.Queue()
    backend.register_callback(lambda task, state: failed.put_nowait(state))
    bad = {**task(), **changes}
    await backend.submit_tasks([bad])
    assert await asyncio.wait_for(failed.get(), LIMIT_S) == "FAILED"
    assert isinstance(bad["exception"], UnsupportedTaskError)
    assert reason in str(bad["exception"])
    assert backend.starts == 0


async def test_unsupported_kind_is_named_with_supported_kinds(engine: FakeEngine) -> None:
    class PromptsOnly(BaseBackend):
        task_kinds = frozenset({"prompt"})

    backend = PromptsOnly()
    engine.attach(backend)
    refused = task()
    await engine.run(backend, refused)
    assert "'PromptsOnly' cannot run a function task; it takes prompt tasks" in str(
        refused["exception"]
    )


async def test_task_with_uid_of_active_task_fails() -> None:
    held = Held()
    backend = ProbeBackend(held)
    reported: asyncio.Queue[tuple[Any, str]] = asyncio.Queue()
    backend.register_callback(lambda task, state: reported.put_nowait((task, state)))
    first, second = task(), task()
    await backend.submit_tasks([first, second])
    reports = [await asyncio.wait_for(reported.get(), LIMIT_S)]
    held.go.set()
    reports.append(await asyncio.wait_for(reported.get(), LIMIT_S))
    assert [(one is first, state) for one, state in reports] == [
        (False, "FAILED"),
        (True, "DONE"),
    ]
    assert "another active task has the same uid" in str(second["exception"])
    await backend.shutdown()


async def test_execute_must_return_fields(engine: FakeEngine) -> None:
    async def execute(work: Work) -> Any:
        return None

    backend = ProbeBackend(execute)
    engine.attach(backend)
    failing = task()
    (report,) = await engine.run(backend, failing)
    assert report.state == "FAILED"
    assert "ProbeBackend.execute must return a dict of result fields" in str(failing["exception"])
    assert "got None" in str(failing["exception"])
    await engine.shutdown(backend)


async def test_fields_with_exception_fail_task_and_are_kept(engine: FakeEngine) -> None:
    async def execute(work: Work) -> dict[str, Any]:
        return {"stdout": "half", "exception": ValueError("no")}

    backend = ProbeBackend(execute)
    engine.attach(backend)
    failed = task()
    (report,) = await engine.run(backend, failed)
    assert (report.state, failed["stdout"]) == ("FAILED", "half")
    await engine.shutdown(backend)


@pytest.mark.parametrize("where", ["task", "options"])
async def test_timeout_fails_task(where: str, engine: FakeEngine) -> None:
    held = Held()
    backend = ProbeBackend(held)
    engine.attach(backend)
    limit: dict[str, Any] = {"timeout": 0.01}
    late = task(**limit) if where == "task" else task(task_backend_specific_kwargs=limit)
    (report,) = await engine.run(backend, late)
    assert report.state == "FAILED"
    assert isinstance(late["exception"], TaskTimeoutError)
    assert isinstance(late["exception"], TimeoutError)
    assert held.cleaned_up.is_set
    await engine.shutdown(backend)


async def test_second_cancel_does_not_interrupt_clean_up(engine: FakeEngine) -> None:
    cleaning, finish = Flag(), Flag()

    async def clean_up() -> None:
        cleaning.set()
        await finish.wait()

    held = Held(clean_up)
    backend = ProbeBackend(held)
    engine.attach(backend)
    await backend.submit_tasks([task()])
    await held.inside.wait()
    first = asyncio.ensure_future(backend.cancel_task("task.000001"))
    await cleaning.wait()
    second = asyncio.ensure_future(backend.cancel_task("task.000001"))
    shutdown = asyncio.ensure_future(engine.shutdown(backend))
    await asyncio.sleep(0)  # both requests are on their way
    service_loop().run_blocking(asyncio.sleep(0))  # the service loop has received both
    finish.set()
    assert await first is True
    assert await second is True
    assert held.cleaned_up.is_set
    await shutdown
    assert engine.reports.states("task.000001") == ["CANCELED"]


async def test_cancel_of_finishing_task_returns_false(engine: FakeEngine) -> None:
    inside = Flag()

    async def execute(work: Work) -> dict[str, Any]:
        inside.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return await done_at_once(work)

    backend = ProbeBackend(execute)
    engine.attach(backend)
    await backend.submit_tasks([task()])
    await inside.wait()
    assert await backend.cancel_task("task.000001") is False
    assert (await engine.reports.end("task.000001")).state == "DONE"
    await engine.shutdown(backend)


class SlowText(Exception):
    """An exception whose text is made by slow code of the user."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = threading.Event()
        self.go_on = threading.Event()

    def __str__(self) -> str:
        self.asked.set()
        assert self.go_on.wait(LIMIT_S)
        return "slow"


async def test_slow_text_of_an_exception_holds_no_other_task(engine: FakeEngine) -> None:
    error = SlowText()

    class Failing(ProbeBackend):
        async def execute(self, work: Work) -> dict[str, Any]:
            if work.uid == "bad":
                raise error
            return await super().execute(work)

    backend = Failing()
    engine.attach(backend)
    bad = {**task(), "uid": "bad"}
    await backend.submit_tasks([bad])
    await until(error.asked.is_set)
    await engine.run(backend, task())  # waits for its end
    error.go_on.set()
    await until(lambda: "exception" in bad)
    assert bad["stderr"] == "slow"
    assert backend.history.failures()[0].reason == "SlowText: slow"


class NotingText(Exception):
    """An exception that notes whether its text was made on the service loop."""

    def __init__(self) -> None:
        super().__init__()
        self.on_loop: list[bool] = []

    def __str__(self) -> str:
        self.on_loop.append(service_loop().is_current)
        return "noted"


@pytest.mark.parametrize("is_cause", [False, True])
async def test_text_of_an_exception_is_never_made_on_the_service_loop(
    engine: FakeEngine, is_cause: bool
) -> None:
    noting = NotingText()

    async def fail(work: Work) -> dict[str, Any]:
        if is_cause:
            raise ValueError("plain") from noting
        raise noting

    backend, failed = ProbeBackend(fail), task()
    engine.attach(backend)
    await engine.run(backend, failed)
    [failure] = backend.history.failures()
    assert "NotingText: noted" in failure.traceback
    assert noting.on_loop
    assert not any(noting.on_loop)


class OwnArgs(Exception):
    @property
    def args(self) -> Any:  # type: ignore[override]
        raise RuntimeError("no args")


class OwnNotes(Exception):
    @property
    def __notes__(self) -> Any:
        raise SystemExit(3)


@pytest.mark.parametrize("error", [OwnArgs, OwnNotes])
async def test_exception_whose_own_code_raises_ends_its_task(
    engine: FakeEngine, error: type[Exception]
) -> None:
    async def fail(work: Work) -> dict[str, Any]:
        raise error("loss")

    backend, failed = ProbeBackend(fail), task()
    engine.attach(backend)
    await engine.run(backend, failed)
    assert type(failed["exception"]) is error
    assert backend.history.failures()[0].reason == f"{error.__name__}: loss"


def test_tasks_of_several_threads_may_have_the_same_uid() -> None:
    backend, ended = ProbeBackend(done_at_once), []

    async def run_all() -> None:
        for _ in range(100):
            runs = [backend.run_one(task()) for _ in range(4)]
            ended.extend(await asyncio.wait_for(asyncio.gather(*runs), LIMIT_S))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=asyncio.run, args=[run_all()]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(ended) == 1600
    assert backend.count_active() == 0
    asyncio.run(backend.shutdown())
