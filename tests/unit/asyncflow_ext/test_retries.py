"""Retries: which attempts are repeated, and what each gets."""

import asyncio
from typing import Any

import pytest
from radical.asyncflow import InputFile, OutputFile
from radical.asyncflow.errors import DependencyFailureError

from asyncflow_ext import WorkflowEngine
from asyncflow_ext.component import Stage
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from tests.support.engines import make_task
from tests.support.scripted import ScriptedBackend
from tests.support.waiting import until

pytestmark = pytest.mark.asyncflow


async def test_failed_attempt_is_repeated() -> None:
    attempts = []

    def fail_twice(task: dict[str, Any]) -> None:
        attempts.append(task["uid"])
        if len(attempts) < 3:
            backend.failed(task, OSError("flaky"))
        else:
            assert "exception" not in task
            backend.done(task, "at last")

    backend = ScriptedBackend(on_task=fail_twice)
    async with WorkflowEngine.create(backend=backend) as flow:
        assert await make_task(flow, retries=2, backoff=0.001)() == "at last"
    assert len(attempts) == 3


async def test_last_error_is_raised_after_all_retries() -> None:
    backend = ScriptedBackend(on_task=lambda task: backend.failed(task, OSError("broken")))
    async with WorkflowEngine.create(backend=backend) as flow:
        with pytest.raises(OSError, match="broken"):
            await make_task(flow, retries=2, backoff=0.001)()
    assert len(backend.batches) == 3


async def test_failed_block_is_repeated(engine: WorkflowEngine) -> None:
    attempts = []

    @engine.block(retries=1, backoff=0.001)
    async def block() -> str:
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("flaky")
        return "fine"

    assert await block() == "fine"


async def test_retry_of_block_cancels_members_of_failed_attempt() -> None:
    backend = ScriptedBackend(on_task=lambda task: None)
    backend.cancel_result = False
    async with WorkflowEngine.create(backend=backend) as flow:
        members: list[asyncio.Future[str]] = []

        @flow.block(retries=1, backoff=0.001)
        async def block() -> None:
            if not members:
                members.append(make_task(flow)())
                raise OSError("flaky")

        await block()
        await until(lambda: members[0].cancelled())


async def test_function_runs_once_per_attempt() -> None:
    bodies = []
    outcomes = [OSError("flaky"), None]

    def answer(task: dict[str, Any]) -> None:
        error = outcomes.pop(0)
        backend.failed(task, error) if error else backend.done(task, "out")

    backend = ScriptedBackend(on_task=answer)
    async with WorkflowEngine.create(backend=backend) as flow:

        @flow.executable_task(retries=1, backoff=0.001)
        async def task() -> str:
            bodies.append(1)
            return "/bin/true"

        assert await task() == "out"
    assert len(bodies) == 2


@pytest.mark.parametrize("kind", ["executable_task", "prompt_task"])
async def test_every_attempt_gets_the_same_arguments(kind: str) -> None:
    errors = [RuntimeError("once"), RuntimeError("twice"), None]
    seen = []

    def answer(task: dict[str, Any]) -> None:
        error = errors.pop(0) if task["name"] == "body" else None
        backend.failed(task, error) if error else backend.done(task, "out")

    backend = ScriptedBackend(on_task=answer)
    async with WorkflowEngine.create(backend=backend) as flow:

        @getattr(flow, kind)(retries=2, backoff=0.001)
        async def body(before: Any, values: Any) -> str:
            seen.append((await before, await values[0]))
            return "/bin/true"

        assert await body(make_task(flow)(), [make_task(flow)()]) == "out"
    assert seen == [("out", "out")] * 3


async def test_every_attempt_links_its_files() -> None:
    class Linking(ScriptedBackend):
        supports_explicit_data_linking = True

        def link_explicit_data_deps(self, **link: Any) -> dict[str, str]:
            links.append((link["src_task"]["name"], link["file_name"]))
            return {"target": link["file_name"]}

    def answer(task: dict[str, Any]) -> None:
        error = errors.pop(0) if task["name"] == "reader" else None
        backend.failed(task, error) if error else backend.done(task, None)

    errors, links = [RuntimeError("once"), None], list[tuple[str, str]]()
    backend = Linking(on_task=answer)
    async with WorkflowEngine.create(backend=backend) as flow:

        @flow.function_task
        async def writer(file: Any) -> None:
            return None

        @flow.function_task(retries=1, backoff=0.001)
        async def reader(file: Any, before: Any) -> None:
            return None

        await reader(InputFile("data"), writer(OutputFile("data")))
    assert links == [("writer", "data")] * 2


async def test_task_with_failed_dependency_is_not_repeated(engine: WorkflowEngine) -> None:
    @engine.function_task
    async def broken() -> None:
        raise ValueError("boom")

    with pytest.raises(DependencyFailureError):
        await asyncio.wait_for(make_task(engine, retries=5, backoff=60)(broken()), 5)


async def test_ai_task_has_dependencies_and_retries() -> None:
    async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:
        attempts = []

        @flow.function_task
        async def fact() -> None:
            return None

        @flow.ai_task(retries=1, backoff=0.001)
        async def ask(facts: Any) -> str:
            attempts.append(facts)
            if len(attempts) == 1:
                raise OSError("flaky")
            return "a question"

        known = fact()
        answer = ask([known])
        assert await answer == ""
        assert attempts == [[None], [None]]
        assert answer.task["uid"].startswith("task.")
        assert answer.task["metadata"]["dependencies"] == (
            {"uid": known.task["uid"], "name": "fact"},
        )


async def test_cancelled_task_is_not_repeated() -> None:
    backend = ScriptedBackend(on_task=lambda task: None)
    async with WorkflowEngine.create(backend=backend) as flow:
        future = make_task(flow, retries=3, backoff=0.001)()
        await until(lambda: backend.batches)
        future.cancel("no more")
        backend.failed(backend.batches[0][0], OSError("died while it was stopped"))
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(future), 5)
    assert len(backend.batches) == 1


async def test_many_retries_do_not_overflow() -> None:
    backend = ScriptedBackend(on_task=lambda task: backend.failed(task, OSError("broken")))
    async with WorkflowEngine.create(backend=backend) as flow:
        with pytest.raises(OSError, match="broken"):
            await make_task(flow, retries=1100, backoff=0.0)()


async def test_task_cancelled_in_the_pause_counts_as_cancelled() -> None:
    backend = ConcurrentExecutionBackend()
    async with WorkflowEngine.create(backend=backend) as flow:

        @flow.function_task(retries=1, backoff=50)
        async def fail() -> None:
            raise OSError("flaky")

        task = fail()
        await until(lambda: backend.history.counts == {"FAILED": 1})
        await until(lambda: task.stage == Stage.PAUSING)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        assert backend.history.counts == {"CANCELED": 1}
        assert backend.history.failures() == []
