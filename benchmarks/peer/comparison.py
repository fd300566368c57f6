"""Both packages at the same work: `program.py` is run by the interpreters of both, in turns."""

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

from benchmarks.figures import Figure, Problem
from benchmarks.machine import missing
from benchmarks.peer.environment import PEER, peer_python
from benchmarks.processes import ROOT, dragon_command, program

PROGRAM = str(Path(__file__).with_name("program.py"))
START_SECONDS = 60


@dataclass(frozen=True)
class Work:
    """So many tasks of a kind, so many times, each time not longer than so many seconds."""

    kind: str
    number: int
    rounds: int
    limit: float = 60

    def __str__(self) -> str:
        if self.kind == "making":
            return f"making {self.number:,} tasks"
        return f"{self.number:,} {self.kind}s"


# The peer may not reach the end of the last one under Dragon: after that it is of no more use.
WORKS = {
    "noop": [Work("making", 10_000, 5), Work("function", 10_000, 5)],
    "concurrent": [Work("function", 5_000, 5), Work("executable", 300, 5)],
    "dask": [Work("function", 2_000, 3), Work("executable", 200, 3)],
    "dragon": [Work("function", 100, 2), Work("executable", 20, 2), Work("function", 1_000, 1, 40)],
}
NEEDS = {"dask": "Dask", "dragon": "Dragon"}


class Side:
    """One of the two packages at work, reached by a socket."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, log: Path
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._log = log

    async def run(self, work: Work) -> tuple[float, int]:
        """Return seconds, and how many tasks were done.

        Raises:
            RuntimeError: No answer came, with the last line of what the program wrote.
        """
        request = {"kind": work.kind, "number": work.number, "limit": work.limit}
        self._writer.write(json.dumps(request).encode() + b"\n")
        try:
            line = await asyncio.wait_for(self._reader.readline(), 2 * work.limit)
        except asyncio.TimeoutError:
            line = b""
        if not line:
            raise RuntimeError(f"no answer about {work}: {last_line(self._log)}")
        answer: dict[str, Any] = json.loads(line)
        return answer["seconds"], answer["done"]


def last_line(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it wrote nothing"


@contextlib.asynccontextmanager
async def side(python: str, backend: str) -> AsyncIterator[Side]:
    """Start a package's program, and end it.

    Raises:
        RuntimeError: It did not start, with the last line of what it wrote.
    """
    interpreter = dragon_command(python) if backend == "dragon" else python
    came: asyncio.Future[Side] = asyncio.get_running_loop().create_future()
    with tempfile.TemporaryDirectory(prefix="rhapsody-") as folder:
        socket, log = str(Path(folder) / "socket"), Path(folder) / "log"
        server = await asyncio.start_unix_server(
            lambda reader, writer: came.set_result(Side(reader, writer, log)), socket
        )
        with _started(python, [interpreter, PROGRAM, backend, socket], folder, log):
            try:
                yield await asyncio.wait_for(came, START_SECONDS)
            except asyncio.TimeoutError:
                raise RuntimeError(f"no start in {START_SECONDS} s: {last_line(log)}") from None
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


async def compare(backend: str, work: Work, ours: Side, theirs: Side) -> Figure:
    """Let both run the same, in turns."""
    seconds: list[float] = []
    base: list[float] = []
    done = work.number
    for _ in range(work.rounds):
        seconds.append((await ours.run(work))[0])
        taken, done = await theirs.run(work)
        base.append(taken)
        if done < work.number:
            break
    return Figure(
        what=f"{backend} backend: {work}",
        over=PEER,
        ours=seconds,
        base=base,
        base_stopped=done < work.number,
        note="" if done == work.number else f"{PEER} had done {done:,} when stopped",
    )


async def measure() -> list[Figure | Problem]:
    """Return figures of every backend that both packages have here."""
    python = await asyncio.to_thread(peer_python)
    found: list[Figure | Problem] = []
    for backend, works in WORKS.items():
        if reason := missing(NEEDS.get(backend)):
            found.append(Problem(what=f"{backend} backend", reason=reason))
            continue
        try:
            async with side(sys.executable, backend) as ours, side(python, backend) as theirs:
                for one in (ours, theirs):  # they have imported everything from here on
                    await one.run(Work("function", 2, 1))
                for work in works:  # one by one: what is found before an error is kept
                    found.append(await compare(backend, work, ours, theirs))  # noqa: PERF401
        except RuntimeError as error:
            found.append(Problem(what=f"{backend} backend", reason=str(error)))
    return found
