"""The live page's server: who may read it, what it sends, and when it works."""

import asyncio
import json
import socket
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from rhapsody import ComputeTask, Session
from rhapsody.api import ResourceError, SessionError
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from rhapsody.report.live_page import LivePage, serve_if_wanted
from tests.support.held import HeldBackend

EVIL = "</script><script>alert(1)</script>\x1b[31m\udc80"


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(30)) as session:
        yield session


def broken(message: str) -> None:
    raise ValueError(message)


async def run(session: Session, *tasks: Any) -> None:
    await session.submit_tasks(tasks)
    await session.wait_tasks(tasks)


async def get(client: aiohttp.ClientSession, url: str) -> tuple[int, str]:
    async with client.get(url) as response:
        return response.status, await response.text(errors="replace")


class Events:
    """The events of a live page, one after the other."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def next(self, name: str) -> Any:
        """Return the data of the next event of a name."""
        found = ""
        while True:
            line = (await asyncio.wait_for(self._response.content.readuntil(b"\n"), 30)).decode()
            if line.startswith("event: "):
                found = line.removeprefix("event: ").strip()
            elif line.startswith("data: ") and found == name:
                data = line.removeprefix("data: ").strip()
                return json.loads(data) if data else None


def opened(client: aiohttp.ClientSession, page: LivePage) -> Any:
    return client.get(f"{page.url}events", read_bufsize=1 << 24)


async def test_only_who_knows_the_token_reads_the_page(client: aiohttp.ClientSession) -> None:
    async with Session([NoopExecutionBackend()]) as session:
        page = session.serve_page()
        origin = page.url.rsplit("/", 2)[0]
        for path in ("/", "/wrong/", "/wrong/tasks", f"{page.url[len(origin) : -2]}/", "/é/"):
            status, text = await get(client, origin + path)
            assert (status, session.uid in text) == (403, False)
        status, text = await get(client, page.url)
        assert (status, session.uid in text) == (200, True)
        status, text = await get(client, page.url.rstrip("/"))  # typed without the last slash
        assert (status, session.uid in text) == (200, True)
        assert (await get(client, f"{page.url}nothing"))[0] == 404
        assert socket.gethostbyname("127.0.0.1") in page.url


async def test_request_without_a_path_is_refused_without_an_error_of_the_server(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with Session([NoopExecutionBackend()]) as session:
        port = int(session.serve_page().url.split(":")[2].partition("/")[0])
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"OPTIONS * HTTP/1.1\r\nHost: page\r\nConnection: close\r\n\r\n")
        response = await asyncio.wait_for(reader.read(), 30)
        writer.close()
        await writer.wait_closed()
    assert response.startswith(b"HTTP/1.1 403 ")
    assert b"Content-Security-Policy: default-src 'none'" in response
    assert "Error handling request" not in caplog.text


async def test_page_that_closes_takes_no_new_viewers(
    client: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    called, may_end = threading.Event(), threading.Event()

    def charts(*_: Any) -> str:
        called.set()
        may_end.wait(30)
        return "null"

    async with Session([NoopExecutionBackend()]) as session:
        page = session.serve_page()
        async with opened(client, page) as response:
            events = Events(response)
            await events.next("summary")
            monkeypatch.setattr("rhapsody.report.live_page.charts_json", charts)
            closing = asyncio.ensure_future(page.stop())
            try:
                await asyncio.to_thread(called.wait, 30)
                async with client.get(f"{page.url}events") as late:
                    status = late.status
            finally:
                may_end.set()
            await events.next("end")
        await closing
    assert status == 410


async def test_page_allows_only_its_own_script_and_no_other_host(
    client: aiohttp.ClientSession,
) -> None:
    async with Session([NoopExecutionBackend()]) as session:
        page = session.serve_page()
        async with client.get(page.url) as response:
            policy = response.headers["Content-Security-Policy"]
            text = await response.text()
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in policy
    assert "connect-src 'self'" in policy
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers["Referrer-Policy"] == "no-referrer"
    assert "http" not in text


async def test_summary_shows_counts_failures_and_graph(client: aiohttp.ClientSession) -> None:
    async with Session([ConcurrentExecutionBackend(max_workers=1)]) as session:
        page = session.serve_page()
        await run(session, *[ComputeTask(function=broken, args=[f"run {n}"]) for n in range(3)])
        async with opened(client, page) as response:
            events = Events(response)
            parts = (await events.next("summary"))["parts"]
            graph = await events.next("graph")
    assert "<b>3</b> failed" in parts["tiles"]
    assert "ValueError: run 0" in parts["failures"]
    assert "and 2 more messages with other numbers" in parts["failures"]
    assert "raise ValueError(message)" in parts["failures"]
    [[name, kind, counts]] = graph["nodes"]
    assert (name, kind, dict(zip(graph["states"], counts, strict=True))["FAILED"]) == (
        "broken",
        "",
        3,
    )


async def test_text_of_tasks_is_escaped(client: aiohttp.ClientSession) -> None:
    async with Session([ConcurrentExecutionBackend(name="<b>&")]) as session:
        page = session.serve_page(title=EVIL)
        await run(session, ComputeTask(function=broken, args=[EVIL]))
        async with opened(client, page) as response:
            summary = await Events(response).next("summary")
        _, html = await get(client, page.url)
        _, report = await get(client, f"{page.url}report")
    for text in (html, report, *summary["parts"].values()):
        assert "<script>alert" not in text
        assert "<b>&" not in text
        assert "\x1b" not in text


async def test_page_works_while_the_program_is_blocked() -> None:
    async with Session([NoopExecutionBackend()]) as session:
        page = session.serve_page()
        await run(session, ComputeTask(function=print))
        seen: list[str] = []

        async def look() -> None:
            async with aiohttp.ClientSession() as client, opened(client, page) as response:
                seen.append((await Events(response).next("summary"))["parts"]["tiles"])

        thread = threading.Thread(target=lambda: asyncio.run(look()))
        thread.start()
        thread.join(30)  # which blocks the loop of the program
        assert "<b>1</b> done" in seen[0]


async def test_nobody_looks_nothing_works(client: aiohttp.ClientSession) -> None:
    async with Session([NoopExecutionBackend()]) as session:
        page = session.serve_page()
        assert page._publisher is None
        async with opened(client, page) as response:
            await Events(response).next("summary")
            publisher = page._publisher
            assert publisher is not None
        deadline = asyncio.get_running_loop().time() + 20
        while not publisher.done():
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.02)


async def test_close_sends_the_last_state(client: aiohttp.ClientSession) -> None:
    held = HeldBackend()
    session = Session([held])
    page = session.serve_page()
    await session.submit_tasks([ComputeTask(function=print, uid="slow")])
    await held.wait_entered()
    async with opened(client, page) as response:
        events = Events(response)
        assert "still active" in (await events.next("summary"))["parts"]["tiles"]
        closing = asyncio.ensure_future(session.close())
        end = await events.next("end")
        await closing
    assert "<b>1</b> canceled" in end["summary"]["parts"]["tiles"]
    assert end["charts"]["tasks"]["uid"] == ["slow"]
    with pytest.raises(aiohttp.ClientConnectionError):
        await get(client, page.url)
    with pytest.raises(SessionError, match="closed"):
        session.serve_page()


async def test_tasks_are_found_page_by_page(client: aiohttp.ClientSession) -> None:
    async with Session([NoopExecutionBackend()]) as session:
        page = session.serve_page()
        await run(session, *[ComputeTask(function=print, uid=f"t.{n}") for n in range(30)])
        _, text = await get(client, f"{page.url}tasks?text=T.1&offset=10&limit=5")
        found = json.loads(text)
        assert (found["found"], found["kept"], len(found["rows"])) == (11, 30, 1)
        status, text = await get(client, f"{page.url}tasks?offset=-1")
    assert (status, text) == (
        400,
        "'offset' must be a whole number that is not negative, got '-1'\n",
    )


async def test_slow_viewer_delays_nobody(client: aiohttp.ClientSession) -> None:
    async with Session([NoopExecutionBackend()]) as session:
        page = session.serve_page()
        async with opened(client, page), opened(client, page) as response:  # the first never reads
            events = Events(response)
            for _ in range(3):
                await events.next("summary")


def test_used_port_is_refused_in_one_sentence() -> None:
    with Session([NoopExecutionBackend()]) as session, socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ResourceError, match=f"127.0.0.1:{port} .*port=0 takes a free port"):
            session.serve_page(port)
        for wrong in (70000, True):
            with pytest.raises(ValueError, match="'port' must be a whole number from 0 to 65535"):
                session.serve_page(wrong)


def test_variable_serves_the_page_of_a_session(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RHAPSODY_PAGE", "1")
    with Session([NoopExecutionBackend()]):
        assert capfd.readouterr().err.startswith("Live page: http://127.0.0.1:")
    monkeypatch.setenv("RHAPSODY_PAGE", "0")
    with Session([NoopExecutionBackend()]):
        assert capfd.readouterr().err == ""


def test_wrong_variable_does_not_stop_the_program(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("RHAPSODY_PAGE", "yes")
    with Session([NoopExecutionBackend()]) as session:
        assert serve_if_wanted(session, session._observation.page_source()) is None
    assert "RHAPSODY_PAGE=yes: there is no live page" in caplog.text
    assert "must be 1, or the number of a port such as 8050" in caplog.text


async def test_session_that_nobody_holds_closes_its_page(client: aiohttp.ClientSession) -> None:
    session = Session([])
    page = session.serve_page()
    del session
    for _ in range(1000):
        if page._runner is None:
            break
        await asyncio.sleep(0.02)
    assert page._runner is None


async def test_report_of_the_page_is_the_static_page(
    client: aiohttp.ClientSession, tmp_path: Path
) -> None:
    async with Session([NoopExecutionBackend()]) as session:
        page = session.serve_page()
        await run(session, ComputeTask(function=print, uid="one"))
        _, text = await get(client, f"{page.url}report")
    assert '"uid":["one"]' in text
    assert "data-live" not in text
