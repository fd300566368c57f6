"""The cost of the journal: no-op tasks with it, without it, and recalled from it."""

from __future__ import annotations

import asyncio
import gc
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from asyncflow_ext import WorkflowEngine
from benchmarks.figures import Figure
from rhapsody.backends import NoopExecutionBackend
from rhapsody.journal import Journal

TASKS = 10_000
LOADED = 100_000
ROUNDS = 5


async def run(folder: str, journal: Path | None, made: Callable[[Any, int], Any]) -> float:
    """Return microseconds per task of independent no-op tasks, until the journal is written."""
    flow = await WorkflowEngine.create(
        backend=NoopExecutionBackend(), journal=journal, work_dir=folder
    )
    try:

        @flow.function_task(version="1")
        async def task(*arguments: Any) -> None:
            return None

        gc.collect()
        began = time.perf_counter()
        await asyncio.gather(*(made(task, number) for number in range(TASKS)))
        if flow.journal is not None:
            await flow.journal.flush()
        return (time.perf_counter() - began) / TASKS * 1e6
    finally:
        await flow.shutdown()


def numbered(task: Any, number: int) -> Any:
    return task(number)


def with_dict(task: Any, number: int) -> Any:
    return task({"number": number, "options": [1.0, "text"]})


def opening(folder: str) -> tuple[float, float]:
    """Return milliseconds to open a journal of many tasks, and to read as many lines of text."""
    path = Path(folder) / "large.journal"
    journal = Journal(path)
    function = journal.function("task", "function", None)
    for number in range(LOADED):
        call = journal.call(function, (number,), {})
        assert call is not None
        assert not journal.recall(call, print)
        journal.done(call, {"return_value": None})
    asyncio.run(journal.close())
    lines = Path(folder) / "lines"
    lines.write_text("".join(f"{number} None\n" for number in range(LOADED)))
    began = time.perf_counter()
    journal = Journal(path)
    opened = time.perf_counter() - began
    asyncio.run(journal.close())
    began = time.perf_counter()
    dict(line.split() for line in lines.read_text().splitlines())
    return opened * 1e3, (time.perf_counter() - began) * 1e3


async def measure() -> list[Figure]:
    """Return figures of the journal."""
    plain: list[float] = []
    new: list[float] = []
    recalled: list[float] = []
    plain_dicts: list[float] = []
    dicts: list[float] = []
    for number in range(ROUNDS):
        with tempfile.TemporaryDirectory(prefix="rhapsody-benchmark-") as folder:
            plain.append(await run(folder, None, numbered))
            new.append(await run(folder, Path(folder) / "numbers", numbered))
            recalled.append(await run(folder, Path(folder) / "numbers", numbered))
            plain_dicts.append(await run(folder, None, with_dict))
            dicts.append(await run(folder, Path(folder) / f"dicts.{number}", with_dict))
    with tempfile.TemporaryDirectory(prefix="rhapsody-benchmark-") as folder:
        pairs = [await asyncio.to_thread(opening, f"{folder}") for folder in _folders(folder)]
    opened, read = zip(*pairs, strict=True)
    what = f"{TASKS:,} no-op tasks with a journal"
    without = "the same without a journal"
    return [
        Figure(what=f"{what}: time per task", over=without, ours=new, base=plain, unit="us"),
        Figure(
            what=f"{what}, a dict as argument: time per task",
            over=without,
            ours=dicts,
            base=plain_dicts,
            unit="us",
        ),
        Figure(
            what=f"{TASKS:,} no-op tasks recalled from a journal: time per task",
            over=without,
            ours=recalled,
            base=plain,
            unit="us",
            at_most=2.0,
        ),
        Figure(
            what=f"opening a journal of {LOADED:,} tasks",
            over="reading as many lines of text",
            ours=opened,
            base=read,
            unit="ms",
        ),
    ]


def _folders(folder: str) -> list[str]:
    return [tempfile.mkdtemp(dir=folder) for _ in range(3)]
