"""The exceptions that futures raise."""

import asyncio
from typing import Any

import pytest
from radical.asyncflow.errors import DependencyFailureError

from asyncflow_ext import WorkflowEngine
from tests.support.engines import make_task
from tests.support.scripted import ScriptedBackend

pytestmark = pytest.mark.asyncflow


class TwoArguments(Exception):
    def __init__(self, code: int, reason: str) -> None:
        super().__init__(code, reason)
        self.code, self.reason = code, reason


class Unprintable(Exception):
    def __str__(self) -> str:
        raise LookupError("no text")


async def test_done_without_result_fails_task() -> None:
    backend = ScriptedBackend(on_task=lambda task: backend._callback_func(task, "DONE"))
    async with WorkflowEngine.create(backend=backend) as flow:
        with pytest.raises(RuntimeError, match="without its 'return_value'"):
            await make_task(flow)()


@pytest.mark.parametrize("error", [StopIteration("end"), SystemExit(3), "just words", None])
async def test_reported_error_of_any_type_becomes_exception(error: Any) -> None:
    backend = ScriptedBackend(on_task=lambda task: backend.failed(task, error))
    async with WorkflowEngine.create(backend=backend) as flow:
        with pytest.raises(RuntimeError):
            await make_task(flow)()


async def test_exception_with_two_arguments_keeps_type_and_fields(engine: WorkflowEngine) -> None:
    @engine.function_task
    async def task() -> None:
        raise TwoArguments(7, "seven")

    with pytest.raises(TwoArguments) as caught:
        await task()
    assert (caught.value.code, caught.value.reason) == (7, "seven")


async def test_failed_dependency_names_chain_to_root_cause(engine: WorkflowEngine) -> None:
    @engine.function_task
    async def first() -> None:
        raise ValueError("boom")

    @engine.function_task
    async def second(before: Any) -> Any:
        return before

    @engine.function_task
    async def third(before: Any) -> Any:
        return before

    with pytest.raises(DependencyFailureError) as caught:
        await third(second(first()))
    message = str(caught.value)
    assert "'third'" in message
    assert "'second' failed" in message
    assert "'first' failed: ValueError: boom" in message
    assert caught.value.failed_dependencies == ["second"]
    assert isinstance(caught.value.root_cause.root_cause, ValueError)


async def test_error_of_executable_function_fails_dependents(engine: WorkflowEngine) -> None:
    @engine.executable_task
    async def broken() -> None:
        raise LookupError("no input deck")

    with pytest.raises(DependencyFailureError, match="LookupError: no input deck"):
        await make_task(engine)(broken())


async def test_exception_with_failing_str_is_raised(engine: WorkflowEngine) -> None:
    @engine.function_task
    async def broken() -> None:
        raise Unprintable

    first = broken()
    with pytest.raises(Unprintable):
        await asyncio.wait_for(asyncio.shield(first), 10)
    with pytest.raises(DependencyFailureError, match="Unprintable"):
        await make_task(engine)(first)


async def test_message_of_long_chain_is_shortened(engine: WorkflowEngine) -> None:
    @engine.function_task
    async def broken() -> None:
        raise ValueError("boom")

    last = broken()
    for _ in range(100):
        last = make_task(engine)(last)
    with pytest.raises(DependencyFailureError) as caught:
        await last
    assert len(str(caught.value)) < 1500
    assert "boom" in str(caught.value)
