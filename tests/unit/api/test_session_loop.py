"""The loop of a session: bound by its first use, and called from other threads."""

import asyncio
import threading
from typing import Any

import pytest

from rhapsody.api.session_loop import SessionLoop, wait_on_any_loop
from rhapsody.api.submissions.submissions import Submissions
from rhapsody.backends.core.service_loop import service_loop
from rhapsody.errors import SessionError


class Owner:
    """What a session is to its submissions."""

    def reattach(self, backend: Any) -> None:
        """Do nothing: no backend was shut down."""


@pytest.fixture
def owner() -> Owner:
    return Owner()


@pytest.fixture
def submissions(owner: Owner) -> Submissions:
    return Submissions(owner.reattach)


@pytest.fixture
def session_loop(submissions: Submissions) -> SessionLoop:
    return SessionLoop("mine", submissions)


def test_without_a_loop_a_function_is_called_here(session_loop: SessionLoop) -> None:
    called: list[int] = []
    session_loop.call(lambda: called.append(threading.get_ident()))
    assert called == [threading.get_ident()]


async def test_function_of_another_thread_is_called_on_the_loop(session_loop: SessionLoop) -> None:
    session_loop.bind(asyncio.get_running_loop())
    called: list[int] = []
    await asyncio.to_thread(session_loop.call, lambda: called.append(threading.get_ident()))
    assert called == [threading.get_ident()]


async def test_exception_of_the_function_reaches_the_other_thread(
    session_loop: SessionLoop,
) -> None:
    def fail() -> None:
        raise ValueError("no")

    session_loop.bind(asyncio.get_running_loop())
    with pytest.raises(ValueError, match="no"):
        await asyncio.to_thread(session_loop.call, fail)


def test_call_on_an_ended_loop_is_refused(session_loop: SessionLoop) -> None:
    async def bind() -> None:
        session_loop.bind(asyncio.get_running_loop())

    asyncio.run(bind())
    with pytest.raises(SessionError, match="session mine was used on an event loop that does not"):
        session_loop.call(lambda: None)


async def test_another_loop_is_refused_while_tasks_are_active(
    session_loop: SessionLoop, submissions: Submissions
) -> None:
    async def bind() -> Any:
        return session_loop.bind(asyncio.get_running_loop())

    session_loop.bind(asyncio.get_running_loop())
    active: dict[str, Any] = submissions.active
    active["task.1"] = None
    with pytest.raises(SessionError, match="session mine has active tasks on another event loop"):
        await asyncio.to_thread(asyncio.run, bind())
    active.clear()
    assert await asyncio.to_thread(asyncio.run, bind()) is not asyncio.get_running_loop()


def test_threads_without_a_loop_use_the_service_loop(session_loop: SessionLoop) -> None:
    assert session_loop.bind_for_threads() is service_loop().loop


async def test_task_of_the_running_loop_is_awaited() -> None:
    async def fail() -> None:
        raise ValueError("no")

    assert await wait_on_any_loop(asyncio.create_task(asyncio.sleep(0)))
    with pytest.raises(ValueError, match="no"):
        await wait_on_any_loop(asyncio.create_task(fail()))


async def test_task_of_the_loop_of_another_thread_is_awaited() -> None:
    loop, began = service_loop().loop, asyncio.Event()

    async def make() -> "asyncio.Task[None]":
        return asyncio.create_task(began.wait())  # type: ignore[arg-type]

    task = await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(make(), loop))
    loop.call_soon_threadsafe(began.set)
    assert await wait_on_any_loop(task)
    assert task.done()


def test_task_of_an_ended_loop_is_not_awaited() -> None:
    loop = asyncio.new_event_loop()
    task = loop.create_task(asyncio.sleep(0))
    assert not asyncio.run(wait_on_any_loop(task))
    loop.run_until_complete(task)
    loop.close()
