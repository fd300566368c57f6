"""Metadata of tasks, and the hooks that link their files."""

from typing import Any

import pytest
from radical.asyncflow import InputFile

from asyncflow_ext import WorkflowEngine
from rhapsody.backends import NoopExecutionBackend
from tests.support.engines import make_task
from tests.support.scripted import ScriptedBackend

pytestmark = pytest.mark.asyncflow


async def test_metadata_of_chain_names_only_direct_dependencies() -> None:
    async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:
        task = make_task(flow)
        first = task()
        second = task(first)
        await second
        assert second.task["metadata"]["dependencies"] == (
            {"uid": first.task["uid"], "name": "task"},
        )


async def test_future_passed_twice_is_one_dependency(engine: WorkflowEngine, number: Any) -> None:
    @engine.function_task
    async def add(a: int, b: int) -> int:
        return a + b

    one = number(1)
    result = add(one, one)
    assert await result == 2
    assert len(result.task["metadata"]["dependencies"]) == 1


@pytest.mark.parametrize("link", [None, {}, RuntimeError("no such file")])
async def test_error_of_link_hook_fails_only_its_task(link: Any) -> None:
    class Linking(ScriptedBackend):
        supports_explicit_data_linking = True

        def link_explicit_data_deps(self, **kwargs: Any) -> Any:
            if isinstance(link, Exception):
                raise link
            return link

    async with WorkflowEngine.create(backend=Linking()) as flow:
        task = make_task(flow)
        with pytest.raises((TypeError, RuntimeError), match=r"target|no such file"):
            await task(InputFile(__file__))
        await task()
