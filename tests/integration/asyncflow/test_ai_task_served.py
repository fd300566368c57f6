"""`@flow.ai_task` with the embedded model: values, batches, cancelling, timeouts, shutdown."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody import AITask
from rhapsody.api import PartialFailureError, PromptError, TaskTimeoutError, TaskValidationError
from rhapsody.backends import ConcurrentExecutionBackend, DragonVllmInferenceBackend
from rhapsody.backends.core.service_loop import service_loop
from tests.support.engines import ENGINES, make_engine
from tests.support.waiting import until

pytestmark = pytest.mark.asyncflow

GREEDY = {"temperature": 0, "max_tokens": 12}


def serve(name: str, config: Path | None = None) -> DragonVllmInferenceBackend:
    return DragonVllmInferenceBackend(
        config_file=config,
        model_name=name,
        num_gpus=0,
        use_service=False,
        name=name,
        engine="embedded",
        launcher="local",
    )


@pytest.fixture(scope="module")
def backends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Three servers of one model: fast, with a delay per token, and too slow to finish a prompt."""
    made = {"quick": serve("quick")}
    for name, delay in (("paced", 20), ("slow", 60_000)):
        config = tmp_path_factory.mktemp(name) / "delay.yaml"
        config.write_text(f"token-delay-ms: {delay}\n")
        made[name] = serve(name, config)
    for backend in made.values():
        service_loop().run_blocking(backend.initialize())
    yield made
    for backend in made.values():
        service_loop().run_blocking(backend.shutdown())


@pytest.fixture(params=ENGINES)
async def flow(
    request: pytest.FixtureRequest, backends: dict[str, Any], tmp_path: Path
) -> AsyncIterator[Any]:
    cpu = ConcurrentExecutionBackend(name="cpu")
    every = [cpu, *backends.values()]
    engine = await make_engine(request.param, every, work_dir=str(tmp_path))
    yield engine
    await engine.shutdown(skip_execution_backend=True)  # the next test uses the servers
    await cpu.shutdown()


def pending(backend: Any) -> tuple[int, int]:
    """Return the numbers of prompts in the service and in its servers."""
    statistics = backend.get_statistics()
    in_flight = sum(replica["in_flight"] for replica in statistics["replicas"])
    return statistics["pending_prompts"], in_flight


async def test_model_gets_value_of_dependency(flow: Any, backends: dict[str, Any]) -> None:
    @flow.executable_task
    async def simulate() -> str:
        return "/bin/echo energy 42"

    @flow.ai_task(backend="quick", **GREEDY)
    async def summarise(output: str) -> str:
        return f"Summarise: {output.strip()}"

    expected = await backends["quick"].generate("Summarise: energy 42", **GREEDY)
    assert [await summarise(simulate())] == expected


@pytest.mark.parametrize("many", [False, True])
async def test_response_has_shape_of_prompt(flow: Any, many: bool) -> None:
    @flow.ai_task(backend="quick")
    async def ask() -> Any:
        return ["one", "two"] if many else [{"role": "user", "content": "one"}]

    response = await ask(max_tokens=5)
    assert [type(part) for part in response] == [str, str] if many else type(response) is str


async def test_two_hundred_prompts_are_completed_in_batches(
    flow: Any, backends: dict[str, Any]
) -> None:
    @flow.ai_task(backend="quick", max_tokens=4)
    async def ask(number: int) -> str:
        return f"number {number}"

    before = backends["quick"].get_statistics()
    responses = await asyncio.gather(*(ask(i) for i in range(200)))
    after = backends["quick"].get_statistics()
    assert all(isinstance(response, str) for response in responses)
    assert after["batched_prompts"] - before["batched_prompts"] == 200
    assert after["batches"] - before["batches"] < 100
    assert pending(backends["quick"]) == (0, 0)


async def test_stock_prompt_task_runs_beside_ai_task(flow: Any, backends: dict[str, Any]) -> None:
    @flow.prompt_task(backend="quick")
    async def ask(what: str) -> str:
        return what

    @flow.ai_task(backend="quick")
    async def repeat(response: str) -> str:
        return response

    assert isinstance(await repeat(ask("hello")), str)


async def test_cancel_removes_prompt_from_server(flow: Any, backends: dict[str, Any]) -> None:
    @flow.ai_task(backend="slow")
    async def ask() -> list[str]:
        return ["one", "two", "three"]

    asked = ask()
    await until(lambda: pending(backends["slow"]) == (3, 3))
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await until(lambda: pending(backends["slow"]) == (0, 0))


async def test_cancel_of_one_prompt_leaves_the_other_running(
    flow: Any, backends: dict[str, Any]
) -> None:
    @flow.ai_task(backend="slow")
    async def ask() -> str:
        return "one"

    asked, kept = ask(), ask()
    await until(lambda: pending(backends["slow"]) == (2, 2))
    asked.cancel()
    await until(lambda: pending(backends["slow"]) == (1, 1))
    assert not kept.done()
    kept.cancel()
    await until(lambda: pending(backends["slow"]) == (0, 0))


async def test_cancel_before_start_sends_no_prompt(flow: Any, backends: dict[str, Any]) -> None:
    @flow.ai_task(backend="quick")
    async def ask() -> str:
        return "one"

    before = backends["quick"].get_statistics()["batched_prompts"]
    asked = ask()
    asked.cancel()
    assert isinstance(await ask(max_tokens=3), str)
    assert asked.cancelled()
    assert backends["quick"].get_statistics()["batched_prompts"] - before == 1


async def test_cancel_of_block_removes_its_prompts(flow: Any, backends: dict[str, Any]) -> None:
    @flow.ai_task(backend="slow")
    async def ask() -> str:
        return "one"

    @flow.block
    async def pipeline() -> None:
        await asyncio.gather(ask(), ask())

    block = pipeline()
    await until(lambda: pending(backends["slow"]) == (2, 2))
    block.cancel()
    await until(lambda: pending(backends["slow"]) == (0, 0))
    assert block.cancelled()


@pytest.mark.parametrize("where", ["decorator", "call", "AITask"])
async def test_streamed_text_joins_to_response(flow: Any, where: str) -> None:
    texts: list[str] = []
    streamed: dict[str, Any] = {"on_text": texts.append}

    async def ask() -> Any:
        chat = [{"role": "user", "content": "What is heat?"}]
        return AITask("What is heat?", **streamed) if where == "AITask" else chat

    made = flow.ai_task(backend="quick", **GREEDY, **(streamed if where == "decorator" else {}))(
        ask
    )
    response = await made(**(streamed if where == "call" else {}))
    assert len(texts) > 1
    assert "".join(texts) == response


async def test_cancel_ends_stream_and_generation(flow: Any, backends: dict[str, Any]) -> None:
    begun = asyncio.Event()

    @flow.ai_task(backend="paced", on_text=lambda _: begun.set(), max_tokens=1500, ignore_eos=True)
    async def ask() -> str:
        return "one"

    asked = ask()
    await asyncio.wait_for(begun.wait(), 20)
    asked.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asked
    await until(lambda: pending(backends["paced"]) == (0, 0))


async def test_streamed_text_can_go_into_queue(flow: Any) -> None:
    texts: asyncio.Queue[str | None] = asyncio.Queue()

    @flow.ai_task(backend="quick", on_text=texts.put_nowait, **GREEDY)
    async def ask() -> str:
        return "What is heat?"

    asked = ask()
    asked.add_done_callback(lambda _: texts.put_nowait(None))
    pieces = []
    while (text := await texts.get()) is not None:
        pieces.append(text)
    assert "".join(pieces) == await asked


async def test_stream_of_list_of_prompts_is_rejected(flow: Any) -> None:
    @flow.ai_task(backend="quick", on_text=print)
    async def ask() -> Any:
        return ["one", "two"]

    with pytest.raises(TaskValidationError, match="'on_text' needs one response to one prompt"):
        await ask()


async def test_timeout_fails_task_by_name_and_removes_prompt(
    flow: Any, backends: dict[str, Any]
) -> None:
    @flow.ai_task(backend="slow", timeout=0.2)
    async def ponder() -> str:
        return "one"

    with pytest.raises(TaskTimeoutError, match=r"'ponder' failed: .* timeout of 0.2 s"):
        await ponder()
    await until(lambda: pending(backends["slow"]) == (0, 0))


async def test_prompt_rejected_by_model_fails_task(flow: Any) -> None:
    @flow.ai_task(backend="quick", max_tokens=100_000)
    async def ask(number: int) -> Any:
        return "one" if number == 1 else ["one", "two"]

    with pytest.raises(PromptError, match="maximum context length"):
        await ask(1)
    with pytest.raises(PartialFailureError, match="2 of 2 prompts failed"):
        await ask(2)


async def test_shutdown_of_engine_removes_all_prompts(flow: Any, backends: dict[str, Any]) -> None:
    @flow.ai_task(backend="slow")
    async def ask(number: int) -> str:
        return f"number {number}"

    tasks = [ask(i) for i in range(20)]
    await until(lambda: pending(backends["slow"])[0] == 20)
    await flow.shutdown(skip_execution_backend=True)
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, asyncio.CancelledError) for result in results)
    await until(lambda: pending(backends["slow"]) == (0, 0))


@pytest.mark.parametrize("kind", ENGINES)
async def test_shutdown_of_engine_and_backend_leaves_no_server(
    kind: str, backends: dict[str, Any], tmp_path: Path
) -> None:
    config = tmp_path / "slow.yaml"
    config.write_text("token-delay-ms: 60000\n")
    backend = serve("own", config)
    engine = await make_engine(kind, backend, work_dir=str(tmp_path))

    @engine.ai_task
    async def ask() -> str:
        return "one"

    asked = ask()  # the first prompt starts the backend
    await until(lambda: backend.get_statistics().get("pending_prompts"))
    await engine.shutdown()
    assert asked.cancelled()
    assert backend.state() == "STOPPED"


async def test_telemetry_counts_ai_tasks(flow: Any) -> None:
    telemetry = await flow.start_telemetry()

    @flow.function_task
    async def three() -> int:
        return 3

    @flow.ai_task(backend="quick", max_tokens=3)
    async def ask(number: int) -> str:
        return f"number {number}"

    async with flow.workflow_scope("wf-1"):
        await ask(three())
    counts = telemetry.task_count()
    await telemetry.stop()
    assert counts["failed"] == 0
    assert counts["completed"] >= 1
    assert {span["asyncflow.workflow_id"] for span in telemetry.task_spans()} == {"wf-1"}
