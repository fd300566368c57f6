"""A headless Chromium, driven by its DevTools protocol over a websocket.

The requests that a page makes, and what it writes to its console, are recorded.
"""

import asyncio
import base64
import contextlib
import itertools
import json
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, NAMES)), None)
START_SECONDS = 40.0


class Tab:
    """A tab of the browser.

    Attributes:
        console: Messages of the console, and exceptions.
        requests: The addresses that were requested.
    """

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.console: list[str] = []
        self.requests: list[str] = []
        self._reader = asyncio.create_task(self._read())

    async def _read(self) -> None:
        async for message in self._socket:
            event = json.loads(message.data)
            if "id" in event:
                if (answer := self._answers.pop(event["id"], None)) is not None:
                    answer.set_result(event)
                continue
            method, params = event.get("method"), event.get("params", {})
            if method == "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            elif method == "Runtime.exceptionThrown":
                self.console.append(json.dumps(params["exceptionDetails"]))
            elif method == "Runtime.consoleAPICalled":
                self.console.append(json.dumps(params["args"]))
            elif method == "Log.entryAdded":
                self.console.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
        number = next(self._numbers)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_str(json.dumps({"id": number, "method": method, "params": params}))
        event = await asyncio.wait_for(answer, 30)
        assert "error" not in event, event
        result: dict[str, Any] = event["result"]
        return result

    async def run(self, script: str) -> Any:
        """Return the value of a JavaScript expression, whose promises are awaited."""
        found = await self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    async def until(self, script: str, seconds: float = 40.0) -> Any:
        """Wait until an expression is true, and return its value."""
        deadline = asyncio.get_running_loop().time() + seconds
        while not (value := await self.run(script)):
            if asyncio.get_running_loop().time() > deadline:
                text = await self.run("document.body.innerText")
                raise AssertionError(f"never true: {script}\n{self.console}\n{text}")
            await asyncio.sleep(0.05)
        return value

    async def open(self, url: str) -> None:
        """Go to an address and wait until the page is loaded."""
        await self.call("Page.navigate", url=url)
        here = f"location.href === {json.dumps(url)}"
        await self.until(f"{here} && document.readyState === 'complete'")

    async def size(self, width: int, height: int = 800) -> None:
        """Set the size of the window."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    async def color_scheme(self, scheme: str) -> None:
        """Prefer "light" or "dark", and no motion: a click must meet what stands still."""
        features = [
            {"name": "prefers-color-scheme", "value": scheme},
            {"name": "prefers-reduced-motion", "value": "reduce"},
        ]
        await self.call("Emulation.setEmulatedMedia", features=features)

    async def key(self, key: str, code: int = 0) -> None:
        """Press a key."""
        text = key if len(key) == 1 else "\r" if key == "Enter" else ""
        for kind in ("keyDown", "keyUp"):
            await self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                text=text if kind == "keyDown" else "",
                windowsVirtualKeyCode=code,
            )

    async def click(self, selector: str) -> None:
        """Click the middle of an element."""
        box = await self.run(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)});"
            "one.scrollIntoView({block: 'center', behavior: 'instant'});"
            "const b = one.getBoundingClientRect();"
            "return [b.x + b.width / 2, b.y + b.height / 2] })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call(
                "Input.dispatchMouseEvent",
                type=kind,
                x=box[0],
                y=box[1],
                button="left",
                clickCount=1,
            )

    async def picture(self, path: Path, whole: bool = True) -> None:
        """Write a PNG of the page."""
        taken = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(taken["data"]))

    async def close(self) -> None:
        """Close the connection."""
        await self._socket.close()
        await asyncio.gather(self._reader, return_exceptions=True)


@contextlib.asynccontextmanager
async def browser() -> AsyncIterator[Tab]:
    """Start a browser, and end it after the block."""
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(prefix="browser-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                CHROMIUM,
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-dev-shm-usage",
                "--disable-background-networking",
                "--disable-component-update",
                "--no-first-run",
                "--remote-debugging-port=0",
                f"--user-data-dir={profile}",
                "about:blank",
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={"HOME": profile, "PATH": "/usr/bin:/bin", "TMPDIR": profile},
        )
        try:
            port = await _port_of(Path(profile), process)
            async with aiohttp.ClientSession() as client:
                async with client.get(f"http://127.0.0.1:{port}/json") as response:
                    targets = await response.json()
                address = next(t for t in targets if t["type"] == "page")["webSocketDebuggerUrl"]
                async with client.ws_connect(address, max_msg_size=0) as socket:
                    tab = Tab(socket)
                    for domain in ("Page", "Runtime", "Network", "Log"):
                        await tab.call(f"{domain}.enable")
                    await tab.color_scheme("light")
                    yield tab
                    await tab.close()
        finally:
            process.terminate()
            await asyncio.to_thread(process.wait, 20)


async def _port_of(profile: Path, process: "subprocess.Popen[bytes]") -> int:
    file = profile / "DevToolsActivePort"
    deadline = asyncio.get_running_loop().time() + START_SECONDS
    while asyncio.get_running_loop().time() < deadline:
        assert process.poll() is None, f"the browser exited with {process.returncode}"
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        await asyncio.sleep(0.05)
    raise AssertionError("the browser did not start")
