"""Programs that run workloads for a comparison, each in its own environment."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.processes import ROOT, dragon_command, program

__all__ = ["Side", "Workload", "side"]

START_SECONDS = 60


@dataclass(frozen=True)
class Workload:
    """A number of tasks of a kind, a number of rounds, and a time limit per round in seconds."""

    kind: str
    number: int
    rounds: int
    limit: float = 60

    def __str__(self) -> str:
        if self.kind == "creating":
            return f"creating {self.number:,} tasks"
        return f"{self.number:,} {self.kind}s"


class Side:
    """A program that runs workloads, connected by a socket."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, log: Path
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._log = log

    async def run(self, work: Workload) -> tuple[float, int]:
        """Return the seconds, and the number of tasks that were done.

        Raises:
            RuntimeError: There was no response; the message has the program's last line of output.
        """
        request = {"kind": work.kind, "number": work.number, "limit": work.limit}
        self._writer.write(json.dumps(request).encode() + b"\n")
        try:
            line = await asyncio.wait_for(self._reader.readline(), 2 * work.limit)
        except asyncio.TimeoutError:
            line = b""
        if not line:
            raise RuntimeError(f"no response for {work}: {last_line(self._log)}")
        response: dict[str, Any] = json.loads(line)
        return response["seconds"], response["done"]


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no output"


@contextlib.asynccontextmanager
async def side(python: str, file: str, system: str) -> AsyncIterator[Side]:
    """Run a program until the `with` block ends.

    Args:
        python: The interpreter of its environment.
        file: The program. It gets `system` and a Unix socket as arguments.
        system: What it runs the workloads on. `dragon`: the `dragon` command starts the program.

    Raises:
        RuntimeError: It did not start; the message has its last line of output.
    """
    interpreter = dragon_command(python) if system == "dragon" else python
    connected: asyncio.Future[Side] = asyncio.get_running_loop().create_future()
    with tempfile.TemporaryDirectory(prefix="rhapsody-") as folder:
        socket, log = str(Path(folder) / "socket"), Path(folder) / "log"
        server = await asyncio.start_unix_server(
            lambda reader, writer: connected.set_result(Side(reader, writer, log)), socket
        )
        with _started(python, [interpreter, file, system, socket], folder, log):
            try:
                yield await asyncio.wait_for(connected, START_SECONDS)
            except asyncio.TimeoutError:
                raise RuntimeError(
                    f"the program did not start within {START_SECONDS} s: {last_line(log)}"
                ) from None
            finally:
                server.close()


@contextlib.contextmanager
def _started(python: str, command: list[str], folder: str, log: Path) -> Iterator[None]:
    paths = {"PYTHONPATH": str(ROOT) if python == sys.executable else ""}
    paths["PATH"] = f"{Path(python).parent}:/usr/local/bin:/usr/bin:/bin"
    with (
        log.open("wb") as output,
        program(command, paths, stdout=output, stderr=output, cwd=folder),
    ):
        yield
