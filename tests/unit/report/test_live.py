"""`wait_tasks(progress=True)`: a live table on a terminal, plain lines elsewhere."""

import asyncio
import io
import re
import sys
from typing import Any

import pytest

from rhapsody import ComputeTask, Session
from rhapsody.backends import NoopExecutionBackend
from rhapsody.report import live
from tests.support.held import HeldBackend

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Talkative(NoopExecutionBackend):
    def get_statistics(self) -> dict[str, Any]:
        return {"mean_batch_size": 12.5}


def work() -> None:
    pass


async def run(backend: Any, number: int = 3) -> None:
    async with Session([backend]) as session:
        tasks = [ComputeTask(function=work) for _ in range(number)]
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks, progress=True)


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Put one in place of standard error; in the test itself, or pytest's own goes before it."""
    for variable in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    fake = Terminal()
    monkeypatch.setattr(sys, "stderr", fake)
    return fake


async def test_without_a_terminal_a_last_plain_line_says_how_it_ended(
    capsys: pytest.CaptureFixture[str],
) -> None:
    await run(NoopExecutionBackend())
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert re.fullmatch(r"\[ +\d+\.\d s\] noop: 3 done, [\d,.]+/s", line)


async def test_without_a_terminal_a_line_is_printed_now_and_then(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LINE_SECONDS", 0.02)
    held = HeldBackend()
    async with Session([held]) as session:
        task = ComputeTask(function=work)
        await session.submit_tasks([task])
        waiting = asyncio.ensure_future(session.wait_tasks([task], progress=True))
        lines = ""
        while "1 running" not in lines:
            await asyncio.sleep(0.01)
            lines += capsys.readouterr().err
        held.release()
        await waiting
    assert "1 done" in capsys.readouterr().err


async def test_mean_batch_sizes_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    await run(Talkative("ai"))
    assert "12.5 prompts a batch" in capsys.readouterr().err


async def test_on_a_terminal_a_table_shows_tasks_by_state(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    await run(Talkative("ai"))
    shown = ESCAPE.sub("", screen.getvalue())
    last = [line for line in shown.splitlines() if "ai" in line][-1]
    assert re.split(r"[│\s]+", last.strip("│ "))[:6] == ["ai", "0", "0", "3", "0", "0"]
    assert "12.5" in last
    for heading in ("backend", "pending", "running", "done", "failed", "canceled"):
        assert heading in shown


async def test_the_cursor_is_back_after_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    await run(NoopExecutionBackend())
    shown = screen.getvalue()
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")


async def test_the_cursor_is_back_after_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    async with Session([HeldBackend()]) as session:
        task = ComputeTask(function=work)
        await session.submit_tasks([task])
        with pytest.raises(asyncio.TimeoutError):
            await session.wait_tasks([task], timeout=0.05, progress=True)
    shown = screen.getvalue()
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")


def test_the_blocking_face_shows_progress_too(capsys: pytest.CaptureFixture[str]) -> None:
    with Session([NoopExecutionBackend()]) as session:
        session.run([ComputeTask(function=work)], progress=True)
    assert "1 done" in capsys.readouterr().err


async def test_nothing_is_shown_unless_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    async with Session([NoopExecutionBackend()]) as session:
        task = ComputeTask(function=work)
        await session.submit_tasks([task])
        await session.wait_tasks([task])
    assert capsys.readouterr() == ("", "")
