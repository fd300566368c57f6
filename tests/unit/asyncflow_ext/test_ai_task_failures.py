"""Failures of an ai_task: of its function, its dependencies, and its backend."""

import asyncio
from typing import Any

import pytest
from radical.asyncflow.errors import DependencyFailureError

from tests.support.engines import Echo, MakeFlow
from tests.support.waiting import LIMIT_S

pytestmark = pytest.mark.asyncflow


async def test_error_of_function_fails_task(flow: Any, ai: Echo) -> None:
    @flow.ai_task
    async def bad() -> str:
        raise KeyError("intended")

    with pytest.raises(KeyError, match="intended"):
        await bad()
    assert ai.asked == []


async def test_failed_dependency_is_named_with_cause(ask: Any, failing: Any) -> None:
    with pytest.raises(DependencyFailureError, match="Cannot execute 'ask' due to") as failed:
        await ask([1, failing()])
    assert failed.value.failed_dependencies == ["failing"]
    assert isinstance(failed.value.root_cause, ValueError)
    assert failed.value.__cause__ is failed.value.root_cause


async def test_all_failed_dependencies_are_named(flow: Any, ask: Any, failing: Any) -> None:
    @flow.executable_task
    async def absent() -> str:
        return "/nonexistent/program"

    with pytest.raises(DependencyFailureError) as failed:
        await ask({"a": failing(), "b": absent()})
    assert sorted(failed.value.failed_dependencies) == ["absent", "failing"]


async def test_function_does_not_run_after_failed_dependency(ask: Any, failing: Any) -> None:
    asked = ask(ask(failing()))
    with pytest.raises(DependencyFailureError) as failed:
        await asked
    assert failed.value.failed_dependencies == ["ask"]


async def test_failed_ai_task_fails_dependents(flow: Any) -> None:
    @flow.ai_task
    async def bad() -> str:
        raise ValueError("intended")

    @flow.function_task
    async def after(_response: str) -> None:
        pass

    with pytest.raises(DependencyFailureError) as failed:
        await after(bad())
    assert failed.value.failed_dependencies == ["bad"]


async def test_cancelled_dependency_cancels_task(ask: Any, ai: Echo) -> None:
    plain = asyncio.get_running_loop().create_future()
    asked = ask([plain])
    plain.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(asked, LIMIT_S)
    assert asked.cancelled()
    assert ai.asked == []


async def test_error_of_backend_fails_task(make: MakeFlow) -> None:
    class Broken(Echo):
        async def run_one(self, task: Any) -> dict[str, Any]:
            raise OSError("connection lost")

    flow = await make(Broken())

    @flow.ai_task
    async def ask() -> str:
        return "hi"

    with pytest.raises(OSError, match="connection lost"):
        await ask()
