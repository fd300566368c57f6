"""Objects as tables of HTML, as notebooks show them."""

from html.parser import HTMLParser

import pytest

from asyncflow_ext import WorkflowEngine
from rhapsody import AITask, ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.backends.core.html import as_html
from tests.support.foreign import ForeignBackend
from tests.support.sessions import boom, work


class Cells(HTMLParser):
    """Collects the texts, and checks that every element is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        assert tag in {"b", "div", "table", "td", "th", "tr"}
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_texts_are_escaped_shortened_and_without_control_sequences() -> None:
    page = as_html("<script>", {"a": "\x1b[2J&", "b": None}, [["x"], ["y" * 1000]])
    cells = Cells(page).texts
    assert cells[0] == "<script>"
    assert "&" in cells
    assert "b" not in cells
    assert "y" * 200 + " ..." in cells


async def test_session_and_backend_show_tasks_by_state() -> None:
    async with Session([ConcurrentExecutionBackend(), ForeignBackend()], uid="s1") as session:
        tasks = [session.submit(work), session.submit(boom)]
        await session.wait_tasks(tasks)
        shown = Cells(session._repr_html_()).texts
        backend = Cells(session.backends["concurrent"]._repr_html_()).texts
    assert {"s1", "open", "concurrent", "foreign", "done", "failed", "1"} <= set(shown)
    assert {"ConcurrentExecutionBackend", "RUNNING", "s1", "1"} <= set(backend)
    assert "closed" in Cells(session._repr_html_()).texts


async def test_task_shows_its_result_or_its_failure() -> None:
    async with Session([ConcurrentExecutionBackend()]) as session:
        good, bad = session.submit(pow, 2, 3), session.submit(boom)
        await session.wait_tasks([good, bad])
    assert {good.uid, "function=pow", "DONE", "8"} <= set(Cells(good._repr_html_()).texts)
    assert {"FAILED", "ValueError: intended"} <= set(Cells(bad._repr_html_()).texts)


@pytest.mark.parametrize("task", [AITask("hi"), ComputeTask("ls")])
def test_new_task_is_not_submitted(task: AITask | ComputeTask) -> None:
    assert "not submitted" in Cells(task._repr_html_()).texts


@pytest.mark.asyncflow
async def test_engine_shows_its_backends() -> None:
    async with WorkflowEngine.create(backend=ConcurrentExecutionBackend()) as flow:

        @flow.function_task
        async def double(value: int) -> int:
            return value * 2

        await double(2)
        shown = Cells(flow._repr_html_()).texts
        assert {"WorkflowEngine", str(flow.uid), "open", "concurrent", "1"} <= set(shown)
    assert "shut down" in Cells(flow._repr_html_()).texts
