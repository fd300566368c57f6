"""Rhapsody in a notebook: the example runs, and an interrupt ends the cell only."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

nbformat = pytest.importorskip("nbformat", reason="nbclient is not installed")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted(ROOT.glob("examples/*.ipynb"))

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]


def texts_of(notebook: Any) -> str:
    """Return all that the cells show, as text and as HTML."""
    shown = []
    for cell in notebook.cells:
        for output in cell.get("outputs", ()):
            shown += [output.get("text", ""), *map(str, output.get("data", {}).values())]
    return "\n".join(shown)


def kernel_in(folder: Path) -> dict[str, Any]:
    return {"resources": {"metadata": {"path": str(folder)}}, "timeout": 120}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
async def test_notebook_runs(path: Path, tmp_path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "clear the outputs"
    await nbclient.NotebookClient(notebook, **kernel_in(tmp_path)).async_execute()
    shown = texts_of(notebook)
    assert "[0.4964, 0.0699" in shown
    progress = [cell for cell in notebook.cells if "progress=True" in cell.source]
    (in_place, _) = progress[0].outputs  # and the value of the cell
    assert "dragon_vllm: 50 done" in in_place["data"]["text/plain"]
    assert "<td>50/50</td>" in in_place["data"]["text/html"]
    assert "20" in shown
    assert "<table>" in shown
    assert 'href="http://127.0.0.1:' in shown
    assert shown.rstrip().endswith("True")


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Any]:
    made = nbclient.NotebookClient(nbformat.v4.new_notebook(), **kernel_in(tmp_path))
    async with made.async_setup_kernel():
        yield made


async def run_cell(client: Any, source: str) -> str:
    """Run a cell, and return what it shows; an exception is named at the end."""
    cell = nbformat.v4.new_code_cell(source)
    client.nb.cells.append(cell)
    shown = ""
    try:
        await client.async_execute_cell(cell, len(client.nb.cells) - 1)
    except nbclient.exceptions.CellExecutionError as error:
        shown = error.ename
    return f"{texts_of(client.nb.__class__(cells=[cell]))}{shown}"


async def interrupted(client: Any, source: str) -> str:
    """Run a cell that prints "waiting", interrupt it there, and return what it shows."""
    before = len(client.nb.cells)
    running = asyncio.ensure_future(run_cell(client, source))
    while not any("waiting" in str(c.get("outputs")) for c in client.nb.cells[before:]):
        assert not running.done(), running.result()
        await asyncio.sleep(0.05)
    await client.km.interrupt_kernel()
    return await running


MAKE = """
import asyncio, time
from rhapsody import ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend
"""


async def test_interrupt_leaves_a_session_usable(client: Any) -> None:
    await run_cell(client, f"{MAKE}\nsession = Session([ConcurrentExecutionBackend()])")
    blocking = (
        "print('waiting', flush=True); session.run(ComputeTask(function=time.sleep, args=[5]))"
    )
    assert "KeyboardInterrupt" in await interrupted(client, blocking)
    again = "print(session.run(ComputeTask(function=abs, args=[-7]))[0].return_value)"
    assert "7" in await run_cell(client, again)
    assert "True" in await run_cell(client, "await session.close(); print(session.closed)")


ENGINE = """
from rhapsody import inference_backend
from asyncflow_ext import WorkflowEngine

threads = ConcurrentExecutionBackend()
processes = ConcurrentExecutionBackend("process", "processes", max_workers=1)
model = inference_backend("embedded", launcher="local")
flow = await WorkflowEngine.create([threads, processes, model])

@flow.function_task
async def echo(value):
    await asyncio.sleep(0.01)
    return value

async def wait_long():  # in steps: a kernel reacts to an interrupt when its loop has an event
    print("waiting", flush=True)
    for _ in range(6000):
        await echo(0)

@flow.function_task(backend="processes")
def square(value):
    return value * value

@flow.ai_task(max_tokens=3)
async def ask(prompt):
    return prompt

await asyncio.gather(square(2), ask("one"))
"""


async def test_interrupt_of_the_cell_that_created_an_engine_leaves_it_usable(client: Any) -> None:
    begin = f"{MAKE}\n{ENGINE}\nawait wait_long()"
    assert "CancelledError" in await interrupted(client, begin)
    again = "print(await asyncio.gather(echo(0), square(7)), (await ask('two')) != '')"
    assert "[0, 49] True" in await run_cell(client, again)
    assert "CancelledError" in await interrupted(client, "await wait_long()")
    assert "[0, 49] True" in await run_cell(client, again)
    assert "ended" in await run_cell(client, "await flow.shutdown(); print('ended')")
