import asyncio
import gc
import logging
import threading
import weakref
from typing import Any

import pytest

from rhapsody.backends.core.attachment import DELIVERIES_PER_PASS, Attachment, ignore
from rhapsody.backends.core.history import CROWD
from tests.support.waiting import until


class Owner:
    """An owner that records reports."""

    def __init__(self) -> None:
        self.closed = False
        self.reports: list[tuple[Any, str]] = []

    def on_state(self, task: Any, state: str) -> None:
        self.reports.append((task["uid"], state))


async def test_post_adds_fields_and_calls_callback_on_the_loop() -> None:
    owner = Owner()
    attachment = Attachment(owner.on_state)
    task = {"uid": "one"}
    attachment.post(task, {"return_value": 1}, "DONE")
    assert owner.reports == []
    await attachment.delivered()
    assert owner.reports == [("one", "DONE")]
    assert task == {"uid": "one", "return_value": 1}


async def test_post_from_other_thread_is_delivered_on_the_loop() -> None:
    threads: list[int] = []
    told = asyncio.Event()

    def on_state(task: Any, state: str) -> None:
        threads.append(threading.get_ident())
        told.set()

    attachment = Attachment(on_state)
    await asyncio.to_thread(attachment.post, {"uid": "one"}, {}, "DONE")
    await told.wait()
    assert threads == [threading.get_ident()]


async def test_calls_and_states_keep_their_order() -> None:
    seen: list[str] = []
    attachment = Attachment(lambda task, state: seen.append(state))
    attachment.post({"uid": "one"}, {}, "RUNNING")
    attachment.call(lambda: seen.append("call"))
    attachment.post({"uid": "one"}, {}, "DONE")
    await attachment.delivered()
    assert seen == ["RUNNING", "call", "DONE"]


async def test_delivery_is_bounded_per_pass() -> None:
    seen: list[str] = []
    attachment = Attachment(lambda task, state: seen.append(state))
    for _ in range(DELIVERIES_PER_PASS + 1):
        attachment.post({"uid": "one"}, {}, "DONE")
    await asyncio.sleep(0)
    assert len(seen) == DELIVERIES_PER_PASS
    await attachment.delivered()
    assert len(seen) == DELIVERIES_PER_PASS + 1


async def test_exception_of_callback_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def fail(task: Any, state: str) -> None:
        raise ValueError("no")

    attachment = Attachment(fail)
    with caplog.at_level(logging.ERROR):
        attachment.post({"uid": "one"}, {}, "DONE")
        await attachment.delivered()
    assert "the owner's callback failed on task one" in caplog.text


async def test_close_drops_queued_states() -> None:
    owner = Owner()
    attachment = Attachment(owner.on_state)
    attachment.post({"uid": "one"}, {}, "DONE")
    attachment.close()
    await attachment.delivered()
    assert attachment.callback is None
    assert owner.reports == []


def test_states_wait_for_a_loop() -> None:
    owner = Owner()
    attachment = Attachment(owner.on_state)
    attachment.post({"uid": "one"}, {}, "DONE")
    assert attachment.loop is None

    async def bind() -> None:
        attachment.bind(asyncio.get_running_loop())
        await asyncio.sleep(0)

    asyncio.run(bind())
    assert owner.reports == [("one", "DONE")]


async def test_owner_is_held_weakly() -> None:
    owner = Owner()
    attachment = Attachment(owner.on_state)
    assert attachment.open_owner() is owner
    reference = weakref.ref(owner)
    del owner
    gc.collect()
    assert reference() is None
    assert attachment.callback is None
    assert attachment.open_owner() is None


async def test_closed_owner_is_not_open() -> None:
    owner = Owner()
    attachment = Attachment(owner.on_state)
    owner.closed = True
    assert attachment.open_owner() is None


async def test_detached_owner_is_not_open_and_not_the_same() -> None:
    owner = Owner()
    attachment = Attachment(owner.on_state)
    assert attachment.is_same_owner(owner.on_state)
    attachment.detached = True
    assert attachment.open_owner() is None
    assert not attachment.is_same_owner(owner.on_state)


async def test_callbacks_of_two_owners_differ() -> None:
    owner, other = Owner(), Owner()
    attachment = Attachment(owner.on_state)
    assert not attachment.is_same_owner(other.on_state)
    assert not attachment.is_same_owner(ignore)
    assert Attachment(ignore).is_same_owner(lambda task, state: None)


async def test_method_of_built_in_object_has_no_owner() -> None:
    attachment = Attachment([].append)  # type: ignore[arg-type]
    assert attachment.owner is None
    assert attachment.callback is not None


async def test_results_of_a_crowd_gather_before_they_wake_the_loop() -> None:
    reports: list[str] = []
    attachment = Attachment(lambda task, state: reports.append(task["uid"]))
    attachment.history.count_submitted(CROWD)
    attachment.post({"uid": "first"}, {}, "DONE")
    attachment._drain()
    assert reports == ["first"]
    assert attachment.waking  # the next pass is due, and no report need wake the loop for it
    attachment.post({"uid": "second"}, {}, "DONE")
    await until(lambda: reports == ["first", "second"])
    await until(lambda: not attachment.waking)
    attachment.post({"uid": "third"}, {}, "DONE")
    await until(lambda: reports == ["first", "second", "third"])
