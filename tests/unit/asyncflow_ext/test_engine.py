"""The engine: creation, backends, calls, reports and shutdown."""

import asyncio
import gc
import inspect
import resource
import threading
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from radical.asyncflow import WorkflowEngine as StockEngine

from asyncflow_ext import WorkflowEngine
from rhapsody.backends import ConcurrentExecutionBackend, NoopExecutionBackend
from rhapsody.errors import BackendInUseError, ConfigurationError
from tests.support.engines import make_task
from tests.support.scripted import ScriptedBackend
from tests.support.waiting import until

pytestmark = pytest.mark.asyncflow


async def test_unknown_backend_name_fails_only_its_task(engine: WorkflowEngine) -> None:
    with pytest.raises(ConfigurationError, match=r"no backend 'nowhere'.*'concurrent'"):
        await make_task(engine, backend="nowhere")()
    assert await make_task(engine)() == "fine"


async def test_call_after_shutdown_raises() -> None:
    flow = await WorkflowEngine.create(backend=NoopExecutionBackend())
    task = make_task(flow)
    await flow.shutdown()
    with pytest.raises(RuntimeError, match="was shut down"):
        task()


async def test_two_backends_of_one_name_are_rejected() -> None:
    first, second = NoopExecutionBackend("same"), NoopExecutionBackend("same")
    with pytest.raises(ConfigurationError, match="two backends are named 'same'"):
        await WorkflowEngine.create(backend=[first, second])
    flow = await WorkflowEngine.create(backend=first)  # the rejected engine detached from it
    await flow.shutdown()


async def test_backend_of_open_engine_is_rejected() -> None:
    backend = NoopExecutionBackend()
    async with WorkflowEngine.create(backend=backend) as flow:
        with pytest.raises(BackendInUseError):
            await WorkflowEngine.create(backend=backend)
        await make_task(flow)()


async def test_report_from_another_thread_is_handled() -> None:
    def report(task: dict[str, Any]) -> None:
        threading.Thread(target=backend.done, args=[task, "reported"]).start()

    backend = ScriptedBackend(on_task=report)
    async with WorkflowEngine.create(backend=backend) as flow:
        assert await asyncio.wait_for(make_task(flow)(), 5) == "reported"


async def test_call_from_another_thread_is_rejected(engine: WorkflowEngine) -> None:
    with pytest.raises(RuntimeError, match="must be called in the thread of its engine"):
        await asyncio.to_thread(make_task(engine))
    assert await make_task(engine)() == "fine"


async def test_create_can_be_awaited_or_entered() -> None:
    flow = await WorkflowEngine.create(backend=NoopExecutionBackend())
    async with flow:
        await make_task(flow)()
    assert flow._shutdown_event.is_set()
    async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:
        await make_task(flow)()
    assert flow._shutdown_event.is_set()


def test_signatures_match_stock_engine() -> None:
    for method in ("__init__", "create", "shutdown"):
        theirs = inspect.signature(getattr(StockEngine, method)).parameters
        ours = inspect.signature(getattr(WorkflowEngine, method)).parameters
        own = ("journal", "journal_required", "walltime", "walltime_margin")
        assert [(p.name, p.default, p.kind) for p in ours.values() if p.name not in own] == [
            (p.name, p.default, p.kind) for p in theirs.values()
        ]


async def test_dry_run_needs_no_backend() -> None:
    async with WorkflowEngine.create(dry_run=True) as flow:
        assert await make_task(flow)() == "Dummy Output"


async def test_uids_of_two_engines_never_collide() -> None:
    async with (
        WorkflowEngine.create(backend=NoopExecutionBackend("a")) as first,
        WorkflowEngine.create(backend=NoopExecutionBackend("b")) as second,
    ):
        futures = [make_task(flow)() for flow in (first, second) for _ in range(20)]
        await asyncio.gather(*futures)
        assert len({future.task["uid"] for future in futures}) == 40


async def test_shutdown_of_one_engine_leaves_others_running() -> None:
    first = await WorkflowEngine.create(backend=NoopExecutionBackend("a"))
    async with WorkflowEngine.create(backend=NoopExecutionBackend("b")) as second:
        await first.shutdown()
        await make_task(second)()


async def test_backend_can_serve_one_engine_after_another() -> None:
    backend = NoopExecutionBackend()
    for _ in range(2):
        flow = await WorkflowEngine.create(backend=backend)
        await make_task(flow)()
        await flow.shutdown(skip_execution_backend=True)


async def test_memory_does_not_grow_with_finished_tasks() -> None:
    async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:
        task = make_task(flow)

        async def wave(last: Any = None) -> None:
            for _ in range(20):
                last = await asyncio.gather(*(task(last) for _ in range(500)))

        await wave()
        gc.collect()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for _ in range(4):
            await wave()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    # 40,000 tasks; the stock engine keeps 3.2 kB of each, which would be 128 MB.
    assert grown < 20_000


def test_program_without_shutdown_raises_its_own_error() -> None:
    async def main() -> None:
        backend = ScriptedBackend(on_task=lambda task: None)
        flow = await WorkflowEngine.create(backend=backend)
        waiting = make_task(flow)()
        await until(lambda: backend.batches)
        assert not waiting.done()
        raise ValueError("the program's own")

    with pytest.raises(ValueError, match="the program's own"):
        asyncio.run(main())


@pytest.mark.skipif(not hasattr(asyncio, "eager_task_factory"), reason="Python 3.12 and later")
async def test_engine_works_with_eager_tasks() -> None:
    asyncio.get_running_loop().set_task_factory(getattr(asyncio, "eager_task_factory"))  # noqa: B009
    async with WorkflowEngine.create(backend=NoopExecutionBackend()) as flow:
        for _ in range(3):
            await asyncio.wait_for(make_task(flow)(), 5)


async def test_component_registered_directly_is_refused(engine: WorkflowEngine) -> None:
    future = engine.loop.create_future()
    with pytest.raises(RuntimeError, match=r"no _register_component.*call a function decorated"):
        engine._register_component(future, "task", {"function": print, "args": (), "kwargs": {}})


@pytest.mark.parametrize("capture", [False, True])
async def test_work_dir_is_created_with_first_captured_file(tmp_path: Path, capture: bool) -> None:
    backend = ConcurrentExecutionBackend()
    async with WorkflowEngine.create(backend=backend, uid="run", work_dir=str(tmp_path)) as flow:

        @flow.executable_task(capture_stdio=capture)
        async def greet() -> str:
            return "/bin/echo hello"

        assert not (tmp_path / "run").exists()
        await greet()
    assert (tmp_path / "run").exists() is capture


async def test_existing_work_dir_stays(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    backend = NoopExecutionBackend()
    async with WorkflowEngine.create(backend=backend, uid="run", work_dir=str(tmp_path)):
        pass
    assert (tmp_path / "run").exists()


async def test_recursive_function_task_is_refused_with_advice(engine: WorkflowEngine) -> None:
    @engine.function_task
    async def countdown(number: int) -> int:
        return await countdown(number - 1) if number else 0

    with pytest.raises(RuntimeError, match=r"'countdown' must be called.*@flow\.block"):
        await asyncio.wait_for(countdown(2), 10)


async def test_backend_that_another_owner_took_fails_tasks() -> None:
    backend = NoopExecutionBackend()
    async with WorkflowEngine.create(backend=backend) as first:
        await backend.shutdown()
        async with WorkflowEngine.create(backend=backend, uid="second"):
            with pytest.raises(BackendInUseError, match="WorkflowEngine second"):
                await asyncio.wait_for(make_task(first)(), 5)
        await asyncio.wait_for(make_task(first)(), 5)


@pytest.mark.parametrize("created_with", [None, "engine"])
@pytest.mark.parametrize("count", [1, 20])  # submitted on the caller's loop, on the service loop
async def test_function_in_thread_sees_context_variables_of_its_call(
    created_with: str | None, count: int
) -> None:
    variable: ContextVar[str] = ContextVar("variable", default="lost")
    if created_with:
        variable.set(created_with)
    async with WorkflowEngine.create(backend=ConcurrentExecutionBackend()) as flow:

        @flow.function_task
        async def read(*before: object) -> str:
            return variable.get()

        @flow.block
        async def block() -> Any:
            variable.set("block")
            return await asyncio.gather(*(read() for _ in range(count)))

        first = read()
        futures = []
        for number in range(count):
            variable.set(f"call {number}")
            futures.append(read(first))  # started later, by the engine
        inside = block()
        variable.set("after")
        assert await asyncio.gather(*futures) == [f"call {number}" for number in range(count)]
        assert await inside == ["block"] * count
        assert await first == (created_with or "lost")


async def test_every_attempt_sees_context_variables_of_its_call(engine: WorkflowEngine) -> None:
    variable: ContextVar[str] = ContextVar("variable", default="lost")
    seen: list[str] = []

    @engine.function_task(retries=1, backoff=0.0)
    async def read() -> None:
        seen.append(variable.get())
        variable.set("set by an attempt")
        raise ValueError("intended")

    variable.set("kept")
    future = read()
    with pytest.raises(ValueError, match="intended"):
        await future
    assert seen == ["kept", "kept"]
    assert "_context" not in future.description


async def test_backend_that_does_not_carry_contexts_gets_none() -> None:
    variable: ContextVar[str] = ContextVar("variable")
    variable.set("kept")
    backend = ScriptedBackend()
    async with WorkflowEngine.create(backend=backend) as flow:
        await make_task(flow)()
    assert "_context" not in backend.batches[0][0]


@pytest.mark.parametrize("uid", ["../elsewhere", "/absolute", ".."])
async def test_uid_that_leads_out_of_the_work_dir_is_refused(uid: str) -> None:
    with pytest.raises(ConfigurationError, match="'uid' must be the name of a directory"):
        await WorkflowEngine.create(backend=NoopExecutionBackend(), uid=uid)
