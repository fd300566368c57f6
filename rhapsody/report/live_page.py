"""The live page of a run: an HTTP server on the service loop, at a loopback address with a token.

It works only while somebody looks: the first open page starts the updates, and the end of the last
one stops them. The pause between two updates grows with their cost, so that they take a fixed share
of the program's time at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
import logging
import math
import os
import secrets
import socket
import sys
import time
import weakref
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

from aiohttp import web

from rhapsody.backends.core.history import RECORDS
from rhapsody.backends.core.service_loop import service_loop
from rhapsody.errors import ResourceError, RhapsodyError
from rhapsody.report.page import PageSource, charts_json, live_page, parts, policy, static_page
from rhapsody.report.task_table import TaskQuery, find_tasks
from rhapsody.validation import must_be

__all__ = ["LivePage", "serve_if_wanted", "serve_page"]

logger = logging.getLogger(__name__)

VARIABLE = "RHAPSODY_PAGE"
"""If it is set and not 0, sessions and engines serve their pages: at this port, or for 1 at any."""
ADDRESS = "127.0.0.1"
KEPT_RECORDS = 200_000
"""Ended tasks of each backend that can be searched; up to about 50 MB of memory."""
TICK_SECONDS = 0.5
SUMMARY_SECONDS = 0.9
CHARTS_SECONDS = 2.0
BUSY_RECORDS = 2000
"""Ended tasks of each backend in the charts while tasks are active, until the user redraws them."""
SHARE = 0.006
"""Largest share of the time of one CPU that the summaries take while tasks are active, and that the
charts take; the script of the page keeps a third such share for its table."""
IDLE_SECONDS = 2.0
"""Seconds after the end of the last task from which on the page need not spare the CPU."""
LOG_SECONDS = 5.0
END_SECONDS = 2.0
"""How long the last update may take to reach open pages."""
MOST_VIEWERS = 32


class LivePage:
    """Serves the live page of a run until it is closed.

    Args:
        source: What the page shows.
        port: The port at 127.0.0.1; 0: a free one.

    Attributes:
        url: The address of the page. It contains a secret: whoever knows it and is on this machine
            can read the page.

    Raises:
        ValueError: `port` is not the number of a port.
        ResourceError: The port is in use.
    """

    def __init__(self, source: PageSource, port: int = 0) -> None:
        if not isinstance(port, int) or isinstance(port, bool) or not 0 <= port < 1 << 16:
            raise ValueError(must_be("port", "a whole number from 0 to 65535", port))
        self._source = source
        self._token = secrets.token_urlsafe(24)
        self._viewers: set[asyncio.Queue[tuple[str, str]]] = set()
        self._publisher: asyncio.Task[None] | None = None
        self._charts = _Cached(self._make_charts, CHARTS_SECONDS)
        self._searching = asyncio.Lock()
        self._seen_ended, self._busy_at = 0, -math.inf
        self._logs_at = 0.0
        self._closed = False
        self._keep_records()
        self._socket = _bound(port)
        self.url = f"http://{ADDRESS}:{self._socket.getsockname()[1]}/{self._token}/"
        self._runner: web.AppRunner | None = service_loop().run_blocking(self._start())

    async def _start(self) -> web.AppRunner:
        app = web.Application(middlewares=[self._guard])
        prefix = f"/{self._token}"
        app.router.add_get(prefix, self._page_itself)
        app.router.add_get(f"{prefix}/", self._page)
        app.router.add_get(f"{prefix}/events", self._events)
        app.router.add_get(f"{prefix}/charts", self._send_charts)
        app.router.add_get(f"{prefix}/tasks", self._tasks)
        app.router.add_get(f"{prefix}/report", self._report)
        # Closing the page cancels the handlers of viewers that are still connected.
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.5
        )
        await runner.setup()
        await web.SockSite(runner, self._socket).start()
        return runner

    def __str__(self) -> str:
        return self.url

    def _repr_html_(self) -> str:
        """Return a link to the page, for a notebook."""
        state = " (closed)" if self._closed else ""
        return f'<a href="{self.url}" target="_blank" rel="noreferrer">Live page</a>{state}'

    def __enter__(self) -> LivePage:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Show the last state in open pages, and stop the server. Idempotent; blocks briefly."""
        loop = service_loop()
        if loop.is_current:
            self.close_soon()
        else:
            loop.run_blocking(self.stop())

    def close_soon(self) -> None:
        """Close the page, and return at once; thread-safe."""
        loop = service_loop()
        loop.call(lambda: loop.loop.create_task(self.stop()))

    async def stop(self) -> None:
        """Close the page; may be awaited on any loop. Idempotent."""
        await service_loop().run(self._stop())

    async def _stop(self) -> None:
        runner, self._runner = self._runner, None
        self._closed = True
        if runner is None:
            return
        if self._publisher is not None:
            self._publisher.cancel()
            await asyncio.gather(self._publisher, return_exceptions=True)
        if self._viewers:
            await self._publish_end()
        await runner.cleanup()

    async def _publish_end(self) -> None:
        try:
            updates = await asyncio.to_thread(self._all)
            charts = await asyncio.to_thread(charts_json, self._source, RECORDS)
        except Exception:
            logger.exception("the last state of the run could not be sent to its live page")
            return
        viewers = list(self._viewers)
        for viewer in viewers:
            while not viewer.empty():
                viewer.get_nowait()
                viewer.task_done()
            # In one event: the page must not ask the server for anything any more.
            parts_of_end = ",".join(f'"{name}":{text}' for name, text in updates)
            viewer.put_nowait(("end", f'{{{parts_of_end},"charts":{charts}}}'))
        ends = [asyncio.ensure_future(viewer.join()) for viewer in viewers]
        await asyncio.wait(ends, timeout=END_SECONDS)
        for end in ends:
            end.cancel()

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Any]
    ) -> web.StreamResponse:
        """Refuse requests without the token, and mark every response."""
        _, _, path = request.path.partition("/")  # of `OPTIONS *` it is empty
        given = path.partition("/")[0].encode("utf-8", "replace")
        response: web.StreamResponse
        try:
            if not hmac.compare_digest(given, self._token.encode()):
                raise web.HTTPForbidden(reason="The address of the page has no valid token.")
            response = await handler(request)
        except web.HTTPException as error:
            response = web.Response(status=error.status, text=f"{error.reason}\n")
        if not response.prepared:
            response.headers.update(_headers())
        return response

    async def _page_itself(self, _: web.Request) -> web.Response:
        """Redirect to the address with a slash, to which those in the page are relative."""
        return web.Response(status=308, headers={"Location": f"/{self._token}/"})

    async def _page(self, request: web.Request) -> web.Response:
        html = await asyncio.to_thread(live_page, self._source)
        return _html(html)

    async def _report(self, request: web.Request) -> web.Response:
        return _html(await asyncio.to_thread(static_page, self._source))

    async def _send_charts(self, request: web.Request) -> web.Response:
        text = await self._charts.get(fresh="now" in request.query)
        return web.Response(text=text, content_type="application/json")

    async def _tasks(self, request: web.Request) -> web.Response:
        try:
            query = TaskQuery.of(request.query)
        except ValueError as error:
            return web.Response(status=400, text=f"{error}\n")
        async with self._searching:  # searches side by side would take the time of the tasks
            text = await asyncio.to_thread(self._find, query)
        return web.Response(text=text, content_type="application/json")

    def _keep_records(self) -> None:
        for run in self._source.runs():  # backends may have been added
            run.history.keep(KEPT_RECORDS)

    def _find(self, query: TaskQuery) -> str:
        began = time.thread_time()
        found = find_tasks(self._source.runs(), query)
        return json.dumps({**found, "seconds": time.thread_time() - began})

    async def _events(self, request: web.Request) -> web.StreamResponse:
        if self._closed:
            return web.Response(status=410, text="The page is closed.\n")
        if len(self._viewers) >= MOST_VIEWERS:
            return web.Response(status=503, text=f"{MOST_VIEWERS} pages are open already.\n")
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", **_headers()})
        # A slow viewer gets the next update later, and the others do not wait for it.
        queue: asyncio.Queue[tuple[str, str]] = asyncio.Queue(maxsize=4)
        self._viewers.add(queue)
        try:
            await response.prepare(request)
            await response.write(b"retry: 2000\n\n")
            if self._publisher is None or self._publisher.done():
                self._logs_at = 0.0
                self._publisher = asyncio.create_task(self._publish(), name="rhapsody-live-page")
            else:
                for name, text in await asyncio.to_thread(self._all):
                    await response.write(_event(name, text))
            while True:
                name, data = await queue.get()
                await response.write(_event(name, data))
                queue.task_done()
        except ConnectionResetError:
            return response
        finally:
            self._viewers.discard(queue)

    async def _publish(self) -> None:
        """Send updates while there are viewers."""
        summary, graph, charts = _Pace(SUMMARY_SECONDS), _Pace(SUMMARY_SECONDS), self._charts.pace
        charts.start()
        drawn = self._ended()
        while self._viewers:
            share = SHARE if self._is_busy() else 1.0
            for name, pace, make in (
                ("summary", summary, self._summary),
                ("graph", graph, self._graph),
            ):
                if pace.is_due(share):
                    try:
                        self._send(name, await asyncio.to_thread(pace.timed, make))
                    except Exception:
                        logger.exception("an update of the live page failed")
            if self._ended() != drawn and charts.is_due(share):
                drawn = self._ended()
                self._charts.expire()
                self._send("charts", "")
            await asyncio.sleep(TICK_SECONDS)

    def _ended(self) -> list[int]:
        return [run.history.number_ended for run in self._source.runs()]

    def _make_charts(self, whole: bool) -> str:
        whole = whole or not self._is_busy()
        return charts_json(self._source, RECORDS if whole else BUSY_RECORDS)

    def _is_busy(self) -> bool:
        """Return whether tasks are active, or were a moment ago and may be again."""
        runs, now = self._source.runs(), time.monotonic()
        ended = sum(run.history.number_ended for run in runs)
        if ended != self._seen_ended or any(run.history.is_active for run in runs):
            self._seen_ended, self._busy_at = ended, now
        return now - self._busy_at < IDLE_SECONDS

    def _all(self) -> list[tuple[str, str]]:
        return [("summary", self._summary(True)), ("graph", self._graph())]

    def _send(self, name: str, data: str) -> None:
        for viewer in self._viewers:
            with contextlib.suppress(asyncio.QueueFull):
                viewer.put_nowait((name, data))

    def _summary(self, with_logs: bool | None = None) -> str:
        self._keep_records()
        now = time.monotonic()
        if with_logs is None:
            with_logs = now >= self._logs_at
        if with_logs:
            self._logs_at = now + LOG_SECONDS
        shown = {
            "parts": parts(self._source, with_logs=with_logs),
            "busy": self._is_busy(),
        }
        return json.dumps(shown, separators=(",", ":"))

    def _graph(self) -> str:
        return json.dumps(self._source.current_graph().as_dict(), separators=(",", ":"))


class _Pace:
    """The pace of an update: the more CPU time it takes, the longer is the pause after it.

    Args:
        seconds: The shortest pause.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._cost = 0.0
        self._last = -math.inf

    def start(self) -> None:
        """Begin with a pause."""
        self._last = time.monotonic()

    def is_due(self, share: float) -> bool:
        """Return whether the next update may be made.

        Args:
            share: The share of the time of one CPU that updates may take.
        """
        return time.monotonic() - self._last >= max(self._seconds, self._cost / share)

    def timed(self, make: Callable[[], str]) -> str:
        """Make the update."""
        began = time.thread_time()
        made = make()
        self._cost, self._last = time.thread_time() - began, time.monotonic()
        return made


class _Cached:
    """A text that is expensive to make: viewers share it, and it is made anew once it has expired.

    Args:
        make: Makes the text; called with whether all of it is wanted.
        seconds: How long a text is used at least.

    Attributes:
        pace: When the text may be made anew.
    """

    def __init__(self, make: Callable[[bool], str], seconds: float) -> None:
        self._make = make
        self.pace = _Pace(seconds)
        self._lock = asyncio.Lock()
        self._text = ""

    def expire(self) -> None:
        """Make the text anew when it is asked for."""
        self._text = ""

    async def get(self, fresh: bool = False) -> str:
        """Return the text.

        Args:
            fresh: Make it anew and whole, unless it was made just now.
        """
        async with self._lock:
            if not self._text or (fresh and self.pace.is_due(1.0)):
                make = partial(self._make, fresh)
                self._text = await asyncio.to_thread(self.pace.timed, make)
            return self._text


def _event(name: str, data: str) -> bytes:
    return f"event: {name}\ndata: {data}\n\n".encode()


def _html(text: str) -> web.Response:
    return web.Response(
        body=text.encode("utf-8", "backslashreplace"), content_type="text/html", charset="utf-8"
    )


def _headers() -> dict[str, str]:
    own = policy("connect-src 'self'")
    return {
        "Content-Security-Policy": f"{own}; frame-ancestors 'none'",
        "Cache-Control": "no-store",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def _bound(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((ADDRESS, port))
    except OSError as error:
        made.close()
        raise ResourceError(
            None,
            "port",
            f"the live page cannot listen at {ADDRESS}:{port} ({error.strerror}); port=0 takes a "
            "free port",
        ) from error
    return made


def serve_page(owner: Any, source: PageSource, port: int = 0) -> LivePage:
    """Serve a live page of a session or an engine, until nobody refers to its owner any more.

    Args:
        owner: The session or the engine.
        source: What the page shows; it must not refer to the owner.
        port: The port at 127.0.0.1. 0: a free one.

    Raises:
        ResourceError: The port is in use.
    """
    page = LivePage(source, port)
    weakref.finalize(owner, page.close_soon).atexit = False
    return page


def serve_if_wanted(owner: Any, source: PageSource) -> LivePage | None:
    """Serve a live page if the variable RHAPSODY_PAGE asks for it, and print its address.

    Args:
        owner: The session or the engine; see `serve_page`.
        source: What the page shows.

    Returns:
        The page; None if none is wanted, or if it cannot be served, which is logged.
    """
    wanted = os.environ.get(VARIABLE, "").strip()
    if wanted in ("", "0"):
        return None
    try:
        if not wanted.isdecimal():
            raise ValueError("the variable must be 1, or the number of a port such as 8050")
        page = serve_page(owner, source, 0 if wanted == "1" else int(wanted))
    except (ValueError, RhapsodyError) as error:
        logger.warning(
            "%s=%s: there is no live page of %s: %s", VARIABLE, wanted, source.title, error
        )
        return None
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no standard error
        print(f"Live page: {page.url}", file=sys.stderr, flush=True)  # noqa: T201 - it was asked for
    return page
