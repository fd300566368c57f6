"""The guard that ends a run in time: what it holds, and when it ends the run."""

import asyncio
import os
import time
from typing import Any

import pytest

import rhapsody.walltime.guard
from rhapsody.errors import WalltimeReached
from rhapsody.walltime import END_VARIABLE, WalltimeEnd
from rhapsody.walltime.guard import WalltimeGuard


class Guard(WalltimeGuard):
    """Guards futures that tests complete."""

    def __init__(self, margin: float = 60.0) -> None:
        super().__init__(margin)
        self.busy: set[asyncio.Future[Any]] = set()
        self.ended_with: asyncio.Future[WalltimeReached] = (
            asyncio.get_running_loop().create_future()
        )

    def _withdraw(self) -> None:
        return

    def _busy(self) -> list[asyncio.Future[Any]]:
        return [future for future in self.busy if not future.done()]

    def _is_idle(self) -> bool:
        return not self._busy()

    async def _end_run(self, error: WalltimeReached) -> None:
        self.ended_with.set_result(error)


def end_in(seconds: float) -> WalltimeEnd:
    return WalltimeEnd(time.time() + seconds, "a test")


async def started(seconds: float | None, margin: float = 60.0) -> Guard:
    guard = Guard(margin)
    guard.start(asyncio.get_running_loop(), None if seconds is None else end_in(seconds))
    return guard


async def test_run_ends_when_what_runs_has_ended() -> None:
    guard = await started(None)
    running: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    guard.busy.add(running)
    assert guard.begin("of a test")
    assert not guard.begin("of another")
    assert not guard.may_start("item", None, "item")
    running.set_result(None)
    assert str(await guard.ended_with).count("of a test") == 1
    guard.stop()


async def test_run_ends_when_the_margin_is_over() -> None:
    guard = await started(0.2, margin=0.1)
    guard.busy.add(asyncio.get_running_loop().create_future())
    assert "nearly over" in str(await guard.ended_with)
    guard.stop()


async def test_held_item_ends_the_run_only_when_nothing_else_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rhapsody.walltime.guard, "SETTLE_SECONDS", 0.001)
    guard = await started(100.0)
    running: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    guard.busy.add(running)
    assert guard.may_start("short", 10.0, "short")
    assert not guard.may_start("long", 200.0, "long")
    while guard._check is not None:  # noqa: ASYNC110 - no event says so
        await asyncio.sleep(0.001)
    assert guard.reached is None
    running.set_result(None)
    guard.ended("short")
    assert "what is left cannot end before the walltime" in str(await guard.ended_with)
    guard.stop()


async def test_held_item_that_was_cancelled_does_not_end_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rhapsody.walltime.guard, "SETTLE_SECONDS", 0.001)
    guard = await started(100.0)
    assert not guard.may_start("long", 200.0, "long")
    guard.ended("long")
    while guard._check is not None:  # noqa: ASYNC110 - no event says so
        await asyncio.sleep(0.001)
    assert guard.reached is None
    guard.stop()


async def test_environment_is_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(END_VARIABLE, "5")
    guard = await started(100.0)
    assert float(os.environ[END_VARIABLE]) > 5
    guard.stop()
    guard.stop()
    assert os.environ[END_VARIABLE] == "5"
