"""Failures of an ai_task: its function's, its dependencies', its backend's."""

import asyncio
from typing import Any

import pytest

from tests.support.engines import Echo, MakeFlow
from tests.support.waiting import LIMIT_S

pytestmark = pytest.mark.asyncflow


async def test_an_error_in_the_body_is_the_tasks(flow: Any, ai: Echo) -> None:
    @flow.ai_task
    async def bad() -> str:
        raise KeyError("intended")

    with pytest.raises(KeyError, match="intended"):
        await bad()
    assert ai.asked == []


async def test_a_failed_dependency_is_named_with_its_cause(ask: Any, failing: Any) -> None:
    from radical.asyncflow.errors import DependencyFailureError

    with pytest.raises(DependencyFailureError, match="Cannot execute 'ask' due to") as failed:
        await ask([1, failing()])
    assert failed.value.failed_dependencies == ["failing"]
    assert isinstance(failed.value.root_cause, ValueError)
    assert failed.value.__cause__ is failed.value.root_cause


async def test_all_failed_dependencies_are_named(flow: Any, ask: Any, failing: Any) -> None:
    from radical.asyncflow.errors import DependencyFailureError

    @flow.executable_task
    async def absent() -> str:
        return "/nonexistent/program"

    with pytest.raises(DependencyFailureError) as failed:
        await ask({"a": failing(), "b": absent()})
    assert sorted(failed.value.failed_dependencies) == ["absent", "failing"]


async def test_after_a_failed_dependency_the_body_does_not_run(ask: Any, failing: Any) -> None:
    from radical.asyncflow.errors import DependencyFailureError

    asked = ask(ask(failing()))
    with pytest.raises(DependencyFailureError) as failed:
        await asked
    assert failed.value.failed_dependencies == ["ask"]


async def test_a_failed_ai_task_fails_what_depends_on_it(flow: Any) -> None:
    from radical.asyncflow.errors import DependencyFailureError

    @flow.ai_task
    async def bad() -> str:
        raise ValueError("intended")

    @flow.function_task
    async def after(_response: str) -> None:
        pass

    with pytest.raises(DependencyFailureError) as failed:
        await after(bad())
    assert failed.value.failed_dependencies == ["bad"]


async def test_a_cancelled_dependency_cancels_the_task(ask: Any, ai: Echo) -> None:
    plain = asyncio.get_running_loop().create_future()
    asked = ask([plain])
    plain.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asked, LIMIT_S)
    assert asked.cancelled()
    assert ai.asked == []


async def test_an_error_of_the_backend_is_the_tasks(make: MakeFlow) -> None:
    class Broken(Echo):
        async def answer(self, task: Any) -> dict[str, Any]:
            raise OSError("the wire is cut")

    flow = await make(Broken())

    @flow.ai_task
    async def ask() -> str:
        return "hi"

    with pytest.raises(OSError, match="the wire is cut"):
        await ask()
