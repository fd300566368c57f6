"""Bodies of blocks, and functions that make commands and prompts."""

import asyncio
from contextvars import ContextVar
from typing import Any

import pytest

from asyncflow_ext import WorkflowEngine
from rhapsody.api import TaskValidationError
from rhapsody.backends import NoopExecutionBackend
from tests.support.engines import make_task

pytestmark = pytest.mark.asyncflow


SCOPE: ContextVar[str] = ContextVar("scope", default="outside")


class OddError(BaseException):
    """Neither an `Exception` nor one of those that end a program."""


async def test_slow_function_of_one_task_delays_no_other() -> None:
    async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:
        release = asyncio.Event()

        @flow.executable_task
        async def slow() -> str:
            await release.wait()
            return "/bin/true"

        waiting = slow()
        await asyncio.wait_for(make_task(flow)(), 5)
        assert not waiting.done()
        release.set()
        await waiting


async def test_function_of_executable_gets_values(engine: WorkflowEngine, number: Any) -> None:
    @engine.executable_task
    async def echo(values: Any, *, more: Any) -> str:
        assert values == [1, 2]
        return f"/bin/echo {values[0]} {more['x']}"

    assert await echo([number(1), number(2)], more={"x": number(3)}) == "1 3\n"


async def test_function_may_await_its_argument(engine: WorkflowEngine, number: Any) -> None:
    @engine.executable_task
    async def echo(value: Any) -> str:
        return f"/bin/echo {await value}"

    assert await echo(number(5)) == "5\n"


async def test_function_may_gather_its_arguments(engine: WorkflowEngine, number: Any) -> None:
    @engine.executable_task
    async def echo(*values: Any) -> str:
        first, second = await asyncio.gather(*values)
        return f"/bin/echo {first + second}"

    assert await echo(number(1), number(2)) == "3\n"


async def test_type_error_of_function_is_raised(engine: WorkflowEngine, number: Any) -> None:
    @engine.executable_task
    async def echo(value: Any) -> Any:
        return "/bin/echo " + value

    with pytest.raises(TypeError, match="concatenate"):
        await echo(number(1))


async def test_block_gets_values_and_returns_one(engine: WorkflowEngine, number: Any) -> None:
    @engine.block
    async def block(value: Any) -> Any:
        return await number(value + 1)

    assert await number(block(number(1))) == 2


async def test_body_runs_in_context_of_its_call(engine: WorkflowEngine, number: Any) -> None:
    seen = []

    @engine.block
    async def block(value: Any) -> None:
        seen.append(SCOPE.get())

    waiting = number(1)
    SCOPE.set("inside")
    future = block(waiting)
    SCOPE.set("later")
    await future
    assert seen == ["inside"]


@pytest.mark.parametrize("text", ["", None, 7, "   "])
async def test_command_must_be_non_empty_string(engine: WorkflowEngine, text: Any) -> None:
    @engine.executable_task
    async def task() -> Any:
        return text

    with pytest.raises(ValueError, match="non-empty command string"):
        await task()


@pytest.mark.parametrize("kind", ["block", "executable_task", "prompt_task"])
async def test_base_exception_of_body_fails_its_task(engine: WorkflowEngine, kind: str) -> None:
    @getattr(engine, kind)
    async def body() -> None:
        raise OddError("odd")

    with pytest.raises(RuntimeError, match="OddError: odd"):
        await asyncio.wait_for(body(), 5)


async def test_command_with_the_text_of_a_pending_future_is_refused(
    engine: WorkflowEngine,
) -> None:
    gate = asyncio.Event()

    @engine.block
    async def name() -> str:
        await gate.wait()
        return "a name"

    @engine.executable_task
    async def greet(name: str) -> str:
        return f"/bin/echo {name}"

    pending = name()
    with pytest.raises(TaskValidationError, match="Task 'greet': it contains the text '<Component"):
        await greet(f"{pending}")
    gate.set()
    await greet(pending)
