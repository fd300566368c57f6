"""Subscribers: order, failures, limits, and their end."""

import asyncio
import logging
from collections.abc import AsyncIterator

import pytest

from rhapsody.telemetry import subscribers as subscribers_module
from rhapsody.telemetry.events import BaseEvent, TaskStarted, make_event
from rhapsody.telemetry.subscribers import Subscribers


def event(uid: str) -> BaseEvent:
    return make_event(TaskStarted, session_id="s", backend="b", task_id=uid)


@pytest.fixture
async def subscribers() -> AsyncIterator[Subscribers]:
    made = Subscribers(100)
    made.start()
    yield made
    await made.close()


async def test_functions_and_coroutine_functions_receive_events_in_order(
    subscribers: Subscribers,
) -> None:
    plain: list[str | None] = []
    awaited: list[str | None] = []

    async def subscriber(one: BaseEvent) -> None:
        await asyncio.sleep(0)
        awaited.append(one.task_id)

    subscribers.add(lambda one: plain.append(one.task_id))
    subscribers.add(subscriber)
    for number in range(5):
        subscribers.put(event(str(number)))
    await subscribers.close()
    assert plain == awaited == ["0", "1", "2", "3", "4"]


async def test_events_before_the_first_subscriber_are_not_delivered(
    subscribers: Subscribers,
) -> None:
    received: list[str | None] = []
    subscribers.put(event("early"))
    subscribers.add(lambda one: received.append(one.task_id))
    subscribers.put(event("late"))
    await subscribers.close()
    assert received == ["late"]
    assert subscribers.dropped == 0


async def test_events_beyond_the_limit_are_counted() -> None:
    subscribers = Subscribers(2)
    subscribers.add(lambda one: None)
    for number in range(5):
        subscribers.put(event(str(number)))
    assert subscribers.dropped == 3


async def test_failing_subscriber_is_logged_once_and_counted(
    subscribers: Subscribers, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(one: BaseEvent) -> None:
        raise RuntimeError("no")

    subscribers.add(broken)
    with caplog.at_level(logging.ERROR):
        for number in range(3):
            subscribers.put(event(str(number)))
        await subscribers.close()
    first, last = (record.getMessage() for record in caplog.records)
    assert "raised on TaskStarted; further failures are only counted" in first
    assert last.endswith("raised 3 times")


async def test_loop_runs_between_the_events_of_plain_callbacks(subscribers: Subscribers) -> None:
    first, second = asyncio.Event(), asyncio.Event()

    def put_again(one: BaseEvent) -> None:
        if not first.is_set():
            subscribers.put(one)
        else:
            second.set()

    subscribers.add(put_again)
    subscribers.put(event("t"))
    asyncio.get_running_loop().call_soon(first.set)
    await asyncio.wait_for(second.wait(), 5)


async def test_close_cancels_a_hanging_callback_after_a_while(
    subscribers: Subscribers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(subscribers_module, "_CLOSE_SECONDS", 0.01)
    cancelled = asyncio.Event()

    async def hang(one: BaseEvent) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    subscribers.add(hang)
    subscribers.put(event("t"))
    await subscribers.close()
    assert cancelled.is_set()
    assert "did not finish in" in caplog.text


async def test_close_before_start_does_nothing() -> None:
    await Subscribers(1).close()
