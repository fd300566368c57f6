"""`wait_tasks(progress=True)`: a table in a notebook or on a terminal, otherwise plain lines."""

import asyncio
import io
import re
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from rhapsody import ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from rhapsody.report import live
from tests.support.held import HeldBackend
from tests.support.notebooks import pretend_kernel
from tests.support.waiting import until

ESCAPE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class WithBatches(NoopExecutionBackend):
    def get_statistics(self) -> dict[str, Any]:
        return {"mean_batch_size": 12.5}


def work() -> None:
    pass


@pytest.fixture
async def held() -> AsyncIterator[HeldBackend]:
    backend = HeldBackend()
    yield backend
    await backend.shutdown()


async def run(backend: Any, number: int = 3) -> None:
    async with Session([backend]) as session:
        tasks = [ComputeTask(function=work) for _ in range(number)]
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks, progress=True)


def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Replace standard error by a terminal, in the test itself: pytest replaces it earlier."""
    for variable in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")
    fake = Terminal()
    monkeypatch.setattr(sys, "stderr", fake)
    return fake


async def test_last_line_is_plain_text_without_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    await run(NoopExecutionBackend())
    shown = capsys.readouterr()
    assert shown.out == ""
    (line,) = shown.err.splitlines()
    assert re.fullmatch(r"\[ +\d+\.\d s\] noop: 3 done, [\d,.]+/s", line)


async def test_lines_are_printed_periodically_without_a_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "LINE_SECONDS", 0.02)
    held = HeldBackend()
    async with Session([held]) as session:
        task = ComputeTask(function=work)
        await session.submit_tasks([task])
        waiting = asyncio.ensure_future(session.wait_tasks([task], progress=True))
        lines: list[str] = []

        def shows_running() -> bool:
            lines.append(capsys.readouterr().err)
            return "1 running" in "".join(lines)

        await until(shows_running)
        held.release()
        await waiting
    assert "1 done" in capsys.readouterr().err


async def test_mean_batch_size_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    await run(WithBatches("ai"))
    assert "12.5 prompts a batch" in capsys.readouterr().err


async def test_table_on_a_terminal_shows_tasks_by_state(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    await run(WithBatches("ai"))
    shown = ESCAPE.sub("", screen.getvalue())
    last = [line for line in shown.splitlines() if "ai" in line][-1]
    assert re.split(r"[│\s]+", last.strip("│ "))[:6] == ["ai", "0", "0", "3", "0", "0"]
    assert "12.5" in last
    for heading in ("backend", "pending", "running", "done", "failed", "canceled"):
        assert heading in shown


async def test_narrow_terminal_gets_a_bar_in_60_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("intended")

    screen = terminal(monkeypatch)
    monkeypatch.setenv("COLUMNS", "60")
    async with Session([ConcurrentExecutionBackend(name="a backend with a long name")]) as session:
        tasks = [ComputeTask(function=work), ComputeTask(function=fail)]
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks, progress=True)
    shown = ESCAPE.sub("", screen.getvalue()).splitlines()
    assert max(map(len, shown)) <= 60
    last = [line for line in shown if "a backend" in line][-1]
    assert re.search(r"━{8} +2/2 +[\d,.]+ +1 *$", last)


async def test_notebook_gets_one_output_that_changes_in_place(
    monkeypatch: pytest.MonkeyPatch, held: HeldBackend, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(live, "REFRESH_SECONDS", 0.02)
    outputs = pretend_kernel(monkeypatch)
    async with Session([held]) as session:
        task = ComputeTask(function=work)
        await session.submit_tasks([task])
        waiting = asyncio.ensure_future(session.wait_tasks([task], progress=True))
        await until(lambda: bool(outputs) and "0/1" in outputs[0][-1]["text/html"])
        held.release()
        await waiting
    (output,) = outputs
    assert output[-1]["text/plain"].startswith("[")
    assert "held: 1 done" in output[-1]["text/plain"]
    assert f"<td>{'█' * live.BAR_CHARACTERS}</td><td>1/1</td>" in output[-1]["text/html"]
    assert capsys.readouterr() == ("", "")


async def test_notebook_shows_reasons_of_failures_escaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail() -> None:
        raise ValueError("<b>intended")

    outputs = pretend_kernel(monkeypatch)
    async with Session([ConcurrentExecutionBackend()]) as session:
        task = ComputeTask(function=fail)
        await session.submit_tasks([task])
        await session.wait_tasks([task], progress=True)
    assert "<th>ValueError: &lt;b&gt;intended</th><td>1</td>" in outputs[0][-1]["text/html"]


async def test_failures_with_the_same_first_line_are_counted_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(number: int) -> None:
        raise ValueError(f"intended\nnumber {number}")

    outputs = pretend_kernel(monkeypatch)
    async with Session([ConcurrentExecutionBackend(name=name) for name in "ab"]) as session:
        tasks = [
            ComputeTask(function=fail, args=[number], backend=name)
            for name, number in (("a", 1), ("a", 2), ("b", 1))
        ]
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks, progress=True)
    assert "<th>ValueError: intended</th><td>3</td>" in outputs[0][-1]["text/html"]


async def test_lines_show_all_tasks_and_the_time_left(held: HeldBackend) -> None:
    async with Session([held]) as session:
        tasks = [ComputeTask(function=work) for _ in range(4)]
        await session.submit_tasks(tasks)
        row = live._Row(session._observation.runs["held"])
        await held.wait_entered()
        assert row.line(2.0).endswith(", 0.0/s, 0 of 4 ended")
        assert await session.cancel(tasks[0])
        assert row.line(2.0).endswith(", 0.5/s, 1 of 4 ended, 6 s left")


async def test_cursor_is_restored_after_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    await run(NoopExecutionBackend())
    shown = screen.getvalue()
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")


async def test_cursor_is_restored_after_a_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    async with Session([HeldBackend()]) as session:
        task = ComputeTask(function=work)
        await session.submit_tasks([task])
        with pytest.raises(asyncio.TimeoutError):
            await session.wait_tasks([task], timeout=0.05, progress=True)
    shown = screen.getvalue()
    assert shown.rfind("\x1b[?25h") > shown.rfind("\x1b[?25l")


def test_blocking_run_shows_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with Session([NoopExecutionBackend()]) as session:
        session.run([ComputeTask(function=work)], progress=True)
    assert "1 done" in capsys.readouterr().err


async def test_nothing_is_shown_by_default(capsys: pytest.CaptureFixture[str]) -> None:
    async with Session([NoopExecutionBackend()]) as session:
        task = ComputeTask(function=work)
        await session.submit_tasks([task])
        await session.wait_tasks([task])
    assert capsys.readouterr() == ("", "")


async def test_name_of_backend_is_not_read_as_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = terminal(monkeypatch)
    await run(NoopExecutionBackend("gpu[/a]"))
    assert "gpu[/a]" in ESCAPE.sub("", screen.getvalue())


async def test_line_shows_name_of_backend_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    await run(NoopExecutionBackend("gpu[/a][red]\x1b[2J"))
    assert "gpu[/a][red]: 3 done" in capsys.readouterr().err


async def test_failures_have_no_control_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ValueError("\x1b]0;title\x07\x1b[2Jintended")

    screen = terminal(monkeypatch)
    async with Session([ConcurrentExecutionBackend()]) as session:
        task = ComputeTask(function=fail)
        await session.submit_tasks([task])
        await session.wait_tasks([task], progress=True)
    assert "ValueError: intended" in screen.getvalue()
    assert "title" not in screen.getvalue()
    assert "\x1b[2J" not in screen.getvalue()
