"""The live page and the page of a run in a real browser."""

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from asyncflow_ext import WorkflowEngine, flow_report
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from tests.support.browser import CHROMIUM, Tab, browser

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.slow,
    pytest.mark.timeout(300),
]

EVIL = "<script>alert(1)</script>\x1b[31m\udc80"
STATUS = "document.getElementById('status').textContent"
FOUND = "document.getElementById('found').textContent"
ROWS = "[...document.querySelectorAll('#tasks th')].map((cell) => cell.textContent)"


@pytest.fixture
async def tab() -> AsyncIterator[Tab]:
    async with browser() as opened:
        await opened.size(1200)
        yield opened


def hosts(tab: Tab) -> set[str]:
    return {url.split("/")[2] for url in tab.requests if url.startswith("http")}


async def test_ten_tasks(tab: Tab, tmp_path: Path) -> None:
    flow = await WorkflowEngine.create(ConcurrentExecutionBackend(), work_dir=str(tmp_path))
    page = flow.serve_page(title=f"Ten tasks {EVIL}")
    gate = threading.Event()

    @flow.function_task
    async def simulate(number: int) -> int:
        await asyncio.to_thread(gate.wait, 200)
        return number

    @flow.function_task
    def analyse(number: int) -> int:
        if number == 3:
            raise ValueError(EVIL)
        return number

    ends = [analyse(simulate(number)) for number in range(5)]
    await tab.open(page.url)
    await tab.until(f"{STATUS} === 'live'")
    await tab.until("document.querySelector('#graph .waits') !== null")
    assert "5 of 5 wait" in await tab.run("document.getElementById('graph').textContent")
    gate.set()
    await asyncio.gather(*ends, return_exceptions=True)
    await tab.until("document.querySelector('#tiles').textContent.includes('9 done')")
    await tab.until(f"{FOUND} === '10 tasks'")

    # A click on a box finds its tasks, also by keyboard.
    await tab.until("document.querySelectorAll('#graph .box').length === 2")
    await tab.run("document.querySelector('#graph .box[data-find=analyse]').focus()")
    await tab.key("Enter", 13)
    await tab.until(f"{FOUND} === '5 of 10 tasks'")
    await tab.click("#graph-tasks")
    await tab.until("document.querySelectorAll('#graph .box').length === 10")
    await tab.click("#graph-names")
    await tab.until("document.querySelectorAll('#graph .box').length === 2")
    await tab.run("document.getElementById('graph').focus()")
    before = await tab.run("document.querySelector('#graph > g').getAttribute('transform')")
    await tab.key("+")
    await tab.until(
        f"document.querySelector('#graph > g').getAttribute('transform') !== '{before}'"
    )

    # The failure with its traceback, and the task that failed.
    failure = await tab.until("document.querySelector('#failures').textContent")
    assert "raise ValueError(EVIL)" in failure
    await tab.click("#failures summary + p button")
    await tab.until(f"{FOUND} === '1 of 10 tasks'")
    assert await tab.run("document.querySelector('#tasks .state').textContent") == "FAILED"

    # Nothing of the text is markup.
    assert await tab.run("document.scripts.length") == 2
    assert "<script>" in await tab.run("document.querySelector('h1').textContent")

    report = flow_report(flow, tmp_path / "run.html")
    await flow.shutdown()
    await tab.until(f"{STATUS} === 'the run has ended'")
    assert hosts(tab) == {page.url.split("/")[2]}
    assert tab.console == []

    tab.requests.clear()
    await tab.open(report.as_uri())
    await tab.until(f"{FOUND} === '10 tasks'")
    assert await tab.run("document.querySelectorAll('#graph .box').length") == 2
    assert (hosts(tab), tab.console) == (set(), [])


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_twenty_thousand_tasks_on_a_narrow_screen(
    tab: Tab, tmp_path: Path, scheme: str
) -> None:
    flow = await WorkflowEngine.create(NoopExecutionBackend(), work_dir=str(tmp_path))
    page = flow.serve_page()

    @flow.function_task
    def simulate(number: int) -> int:
        return number

    await tab.size(420, 900)
    await tab.color_scheme(scheme)
    await tab.open(page.url)
    for _ in range(4):
        await asyncio.gather(*(simulate(number) for number in range(5000)))
    await tab.until(f"{FOUND} === '20,000 tasks'", 120)
    assert await tab.run("document.documentElement.scrollWidth") <= 420
    paper = await tab.run("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(255, 255, 255)") == (scheme == "light")
    last = (await tab.run(ROWS))[0]

    await tab.click("#tasks-on")
    await tab.until("document.getElementById('tasks-at').textContent === '51 to 100'")
    await tab.run("document.getElementById('find-text').focus()")
    for key in last[-5:]:
        await tab.key(key)
    await tab.until(f"{ROWS}[0] === {last!r} && {FOUND}.includes(' of ')", 120)
    await tab.until("document.getElementById('timeline').clientHeight > 20")
    await flow.shutdown()
    await tab.until(f"{STATUS} === 'the run has ended'")
    assert (hosts(tab), tab.console) == ({page.url.split("/")[2]}, [])


async def test_wrong_token_shows_nothing(tab: Tab, tmp_path: Path) -> None:
    flow: Any = await WorkflowEngine.create(NoopExecutionBackend(), work_dir=str(tmp_path))
    page = flow.serve_page()
    await tab.open(page.url.rsplit("/", 2)[0] + "/")
    assert "no valid token" in await tab.run("document.body.innerText")
    await flow.shutdown()
