"""The journal of an engine: what a second run recalls, for every kind of task."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel
from radical.asyncflow import InputFile

from asyncflow_ext import WorkflowEngine, flow_report
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.errors import ConfigurationError, JournalError
from tests.support.engines import Echo, make_task
from tests.support.scripted import ScriptedBackend

pytestmark = pytest.mark.asyncflow

Program = Callable[[WorkflowEngine], Awaitable[Any]]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


@asynccontextmanager
async def opened(path: Path, **options: Any) -> AsyncIterator[WorkflowEngine]:
    backend = ConcurrentExecutionBackend()
    async with WorkflowEngine.create(backend=backend, journal=path, **options) as flow:
        yield flow


async def run_twice(path: Path, program: Program) -> list[Any]:
    """Run a program in two engines, one after the other; return the result of both runs."""
    results = []
    for _ in range(2):
        async with opened(path) as flow:
            results.append(await program(flow))
    return results


async def test_function_is_not_run_again(path: Path) -> None:
    ran: list[int] = []

    async def program(flow: WorkflowEngine) -> Any:
        async def double(x: int) -> int:
            ran.append(x)
            return 2 * x

        task = flow.function_task(double, version="1")
        tasks = [task(n) for n in range(3)]
        return await asyncio.gather(*tasks), [t.task.get("from_journal") for t in tasks]

    assert await run_twice(path, program) == [
        ([0, 2, 4], [None] * 3),
        ([0, 2, 4], [True] * 3),
    ]
    assert sorted(ran) == [0, 1, 2]


async def test_functions_of_one_decorator_have_their_own_results(path: Path) -> None:
    async def program(flow: WorkflowEngine) -> Any:
        async def double(x: int) -> int:
            return 2 * x

        async def square(x: int) -> int:
            return x * x

        decorator = flow.function_task(cache=True)
        return await asyncio.gather(decorator(double)(5), decorator(square)(5))

    assert await run_twice(path, program) == [[10, 25], [10, 25]]


async def test_dependents_of_recalled_tasks_are_recalled(path: Path) -> None:
    ran: list[str] = []

    async def program(flow: WorkflowEngine) -> Any:
        @flow.function_task(version="1")
        async def make() -> Any:
            ran.append("make")
            return np.arange(10)

        @flow.function_task(version="1")
        async def total(values: list[Any], scale: int) -> float:
            ran.append("total")
            return float(sum(value.sum() for value in values)) * scale

        return await total([make(), make()], scale=2)

    assert await run_twice(path, program) == [180.0, 180.0]
    assert ran == ["make", "make", "total"]


async def test_change_runs_task_and_its_dependents_again_and_nothing_else(path: Path) -> None:
    ran: list[str] = []

    async def program(flow: WorkflowEngine, version: str) -> Any:
        @flow.function_task(version="1")
        async def source() -> int:
            ran.append("source")
            return 1

        @flow.function_task(version=version)
        async def changed(x: int) -> int:
            ran.append("changed")
            return x

        @flow.function_task(version="1")
        async def other(x: int) -> int:
            ran.append("other")
            return x

        @flow.function_task(version="1")
        async def last(x: int, y: int) -> int:
            ran.append("last")
            return x + y

        first = source()
        return await last(changed(first), other(first))

    async with opened(path) as flow:
        await program(flow, "1")
    ran.clear()
    async with opened(path) as flow:
        await program(flow, "2")
    assert sorted(ran) == ["changed", "last"]


async def test_value_of_a_task_without_journal_belongs_to_the_key(path: Path) -> None:
    ran: list[int] = []
    values = iter([1, 1, 2])

    async def program(flow: WorkflowEngine) -> Any:
        @flow.function_task(journal=False)
        async def read() -> int:
            return next(values)

        @flow.function_task(version="1")
        async def use(x: int) -> int:
            ran.append(x)
            return x

        return await use(read())

    await run_twice(path, program)
    assert ran == [1]
    async with opened(path) as flow:
        assert await program(flow) == 2
    assert ran == [1, 2]


async def test_failed_task_runs_again(path: Path) -> None:
    ran: list[int] = []

    async def program(flow: WorkflowEngine) -> Any:
        @flow.function_task(version="1")
        async def flaky() -> str:
            ran.append(1)
            if len(ran) == 1:
                raise OSError("broken")
            return "fine"

        return (await asyncio.gather(flaky(), return_exceptions=True))[0]

    first, second = await run_twice(path, program)
    assert isinstance(first, OSError)
    assert second == "fine"


async def test_retried_task_is_recalled_as_one_call(path: Path) -> None:
    ran: list[int] = []

    async def program(flow: WorkflowEngine) -> Any:
        @flow.function_task(version="1", retries=2, backoff=0.001)
        async def flaky() -> int:
            ran.append(1)
            if len(ran) == 1:
                raise OSError("broken")
            return len(ran)

        return await flaky(), await flaky()

    assert await run_twice(path, program) == [(2, 3), (2, 3)]
    assert len(ran) == 3


async def test_cancelled_task_runs_again(path: Path) -> None:
    submitted = asyncio.Event()
    backend = ScriptedBackend(on_task=lambda task: submitted.set())
    async with WorkflowEngine.create(backend=backend, journal=path) as flow:
        waiting = make_task(flow, version="1")()
        await submitted.wait()
        backend._callback_func(backend.batches[0][0], "CANCELED")
        await asyncio.wait([waiting])
    finishing = ScriptedBackend(on_task=lambda task: finishing.done(task, "fine"))
    async with WorkflowEngine.create(backend=finishing, journal=path) as flow:
        again = make_task(flow, version="1")()
        assert await again == "fine"
        assert again.call.why == "it was cancelled before"


async def test_executable_is_recalled_with_all_its_results(path: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def program(flow: WorkflowEngine) -> Any:
        @flow.executable_task
        async def simulate(word: str) -> str:
            return f"sh -c 'echo ran >> {log}; echo {word}; echo warned >&2'"

        task = simulate("hello")
        await task
        return [task.task[name] for name in ("stdout", "stderr", "exit_code", "return_value")]

    assert await run_twice(path, program) == [["hello\n", "warned\n", 0, "hello\n"]] * 2
    assert log.read_text() == "ran\n"


async def test_environment_and_folder_of_executable_belong_to_the_key(
    path: Path, tmp_path: Path
) -> None:
    async def run(env: dict[str, str]) -> Any:
        async with opened(path) as flow:

            @flow.executable_task
            async def show(task_description: Any = {"env": env}) -> str:  # noqa: B006
                return "sh -c 'echo $A'"

            task = show()
            return await task, task.task.get("from_journal")

    assert await run({"A": "1"}) == ("1\n", None)
    assert await run({"A": "2"}) == ("2\n", None)
    assert await run({"A": "1"}) == ("1\n", True)


async def test_environment_of_resources_belongs_to_the_key(path: Path) -> None:
    found = []
    for text in ("1", "1", "2"):
        async with opened(path) as flow:

            @flow.executable_task(resources={"env": {"A": text}})
            async def show() -> str:
                return "true"

            task = show()
            await task
            found.append(task.task.get("from_journal"))
    assert found == [None, True, None]


async def test_standard_input_counts_by_contents(path: Path, tmp_path: Path) -> None:
    source = tmp_path / "input"
    found = []
    for text in ("a", "a", "b"):
        source.write_text(text)
        async with opened(path) as flow:

            @flow.executable_task
            async def show(task_description: Any = {"stdin": source}) -> str:  # noqa: B006
                return "cat"

            task = show()
            assert await task == text
            found.append(task.task.get("from_journal"))
    assert found == [None, True, None]


async def test_captured_output_belongs_to_the_key_and_has_to_exist(path: Path) -> None:
    async def run(capture: bool) -> tuple[str, Any]:
        async with opened(path, uid="flow") as flow:

            @flow.executable_task(capture_stdio=capture)
            async def show() -> str:
                return "echo shown"

            task = show()
            return await task, task.task.get("from_journal")

    assert await run(False) == ("shown\n", None)
    file, recalled = await run(True)
    assert Path(file).read_text() == "shown\n"
    assert recalled is None
    assert await run(True) == (file, True)
    Path(file).unlink()
    assert (await run(True))[1] is None


async def run_copy(path: Path, source: Path, target: Path) -> bool | None:
    """Run an executable that copies a file; return whether its result was recalled."""
    async with opened(path) as flow:

        @flow.executable_task(inputs=[source], outputs=lambda to: [to])
        async def copy(to: str) -> str:
            return f"cp {source} {to}"

        task = copy(str(target))
        await task
        recalled: bool | None = task.task.get("from_journal")
        return recalled


async def test_inputs_count_by_contents_and_outputs_have_to_exist(
    path: Path, tmp_path: Path
) -> None:
    source, target = tmp_path / "mesh.dat", tmp_path / "flow.out"
    source.write_text("mesh")
    assert not await run_copy(path, source, target)
    assert await run_copy(path, source, target)
    target.unlink()
    assert not await run_copy(path, source, target)
    assert target.read_text() == "mesh"
    source.write_text("other")
    assert not await run_copy(path, source, target)
    assert target.read_text() == "other"


@pytest.mark.parametrize("kind", ["executable_task", "function_task"])
async def test_input_file_of_asyncflow_counts_by_contents(
    path: Path, tmp_path: Path, kind: str
) -> None:
    source = tmp_path / "mesh.dat"

    async def run() -> Any:
        async with opened(path) as flow:

            async def read(file: Any) -> str:
                return f"cat {file.filepath}"

            task = getattr(flow, kind)(read)(InputFile(str(source)))
            await task
            return task.task.get("from_journal")

    source.write_text("mesh")
    assert [await run(), await run()] == [None, True]
    source.write_text("other")
    assert await run() is None


async def test_block_runs_again_and_its_tasks_are_recalled(path: Path) -> None:
    ran: list[str] = []

    async def program(flow: WorkflowEngine) -> Any:
        @flow.function_task(version="1")
        async def inner(x: int) -> int:
            ran.append("inner")
            return x

        @flow.block
        async def outer() -> int:
            ran.append("outer")
            return int(await inner(1)) + int(await inner(2))

        return await outer()

    assert await run_twice(path, program) == [3, 3]
    assert ran == ["outer", "inner", "inner", "outer"]


async def test_cached_calls_run_once(path: Path) -> None:
    ran: list[int] = []

    async def program(flow: WorkflowEngine) -> Any:
        @flow.function_task(version="1", cache=True)
        async def square(x: int) -> int:
            ran.append(x)
            return x * x

        return await asyncio.gather(*(square(n % 2) for n in range(6)))

    assert await run_twice(path, program) == [[0, 1] * 3] * 2
    assert sorted(ran) == [0, 1]


async def test_argument_without_stable_hash_runs_the_task_every_time(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ran: list[int] = []

    async def program(flow: WorkflowEngine) -> Any:
        @flow.function_task(version="1")
        async def guarded(lock: Any) -> int:
            ran.append(1)
            return len(ran)

        return await guarded(threading.Lock())

    assert await run_twice(path, program) == [1, 2]
    assert "argument 1 is or contains a _thread.lock" in caplog.text


async def test_result_that_cannot_be_pickled_is_done(path: Path) -> None:
    async def program(flow: WorkflowEngine) -> Any:
        @flow.function_task
        async def lock() -> Any:
            return threading.Lock()

        return type(await lock()).__name__

    assert await run_twice(path, program) == ["lock", "lock"]


async def test_large_result_is_recalled(path: Path) -> None:
    async def program(flow: WorkflowEngine) -> Any:
        @flow.function_task(version="1")
        async def large() -> Any:
            return np.arange(300_000)

        task = large()
        return (await task).sum(), task.task.get("from_journal")

    total = np.arange(300_000).sum()
    assert await run_twice(path, program) == [(total, None), (total, True)]


async def test_dry_run_does_not_use_the_journal(path: Path) -> None:
    async with WorkflowEngine.create(dry_run=True, journal=path) as flow:
        assert flow.journal is None
    assert not path.exists()


async def test_report_counts_recalled_tasks_apart(path: Path, tmp_path: Path) -> None:
    async def program(flow: WorkflowEngine) -> Any:
        @flow.function_task(version="1")
        async def simulate() -> int:
            return 1

        await asyncio.gather(*(simulate() for _ in range(3)))
        return flow_report(flow, tmp_path / "page.html").read_text()

    first, second = await run_twice(path, program)
    assert ">journal<" in second
    assert "simulate" in first


async def test_journal_in_use_is_refused_and_backend_stays_free(path: Path) -> None:
    async with opened(path):
        backend = ConcurrentExecutionBackend()
        with pytest.raises(JournalError, match="is in use by process"):
            await WorkflowEngine.create(backend=backend, journal=path)
        async with WorkflowEngine.create(backend=backend) as other:
            assert other.journal is None


async def test_shutdown_commits_everything(path: Path) -> None:
    async with opened(path) as flow:

        @flow.function_task
        async def simulate(n: int) -> int:
            return n

        await asyncio.gather(*(simulate(n) for n in range(50)))
    async with opened(path) as flow:
        assert flow.journal is not None
        assert len(flow.journal._done) == 50


async def test_reason_of_a_rerun_is_kept(path: Path) -> None:
    async def program(flow: WorkflowEngine, version: str) -> Any:
        @flow.function_task(version=version)
        async def first() -> int:
            return 1

        @flow.function_task(version="1")
        async def second(x: int) -> int:
            return x

        task = second(first())
        await task
        return task.call.why

    async with opened(path) as flow:
        assert await program(flow, "1") == "it is new"
    async with opened(path) as flow:
        assert await program(flow, "2") == "first(), which it depends on, ran again"


async def ask(path: Path, backend: Echo, *words: str, **options: Any) -> list[Any]:
    """Ask a question for each word; return the responses, and whether they were recalled."""
    async with WorkflowEngine.create(backend=backend, journal=path) as flow:

        @flow.ai_task(**options)
        async def question(word: str) -> str:
            return f"What is {word}?"

        tasks = [question(word) for word in words]
        responses = await asyncio.gather(*tasks)
        return [
            (r, bool(t.task.get("from_journal"))) for r, t in zip(responses, tasks, strict=True)
        ]


async def test_prompt_is_recalled(path: Path) -> None:
    first, second = Echo(), Echo()
    assert await ask(path, first, "AI") == [("<What is AI?>", False)]
    assert await ask(path, second, "AI", "ML") == [
        ("<What is AI?>", True),
        ("<What is ML?>", False),
    ]
    assert second.prompts == ["What is ML?"]


async def test_agent_that_is_recalled_in_part_has_run(path: Path) -> None:
    class Model(Echo):
        is_broken = True

        async def run_one(self, task: Any) -> dict[str, Any]:
            result = await super().run_one(task)
            call = {"id": "c", "type": "function", "function": {"name": "tool", "arguments": "{}"}}
            if len(task["prompt"]) == 1:
                return {**result, "usage": {}, "message": {"tool_calls": [call]}}
            if self.is_broken:
                raise OSError("broken")
            return {**result, "usage": {}, "message": {"content": "done"}}

    def tool() -> str:
        return "found"

    for is_broken, recalled in ((True, None), (False, False), (True, True)):
        model = Model()
        model.is_broken = is_broken
        async with WorkflowEngine.create(backend=model, journal=path) as flow:

            @flow.ai_task(tools=[tool])
            async def agent() -> str:
                return "find it"

            future = agent()
            await asyncio.gather(future, return_exceptions=True)
            assert future.task.get("from_journal") is recalled


@pytest.mark.parametrize("field", [{"temperature": 0.5}, {"seed": 2}, {"system_prompt": "Hi"}])
async def test_every_field_of_a_prompt_belongs_to_the_key(
    path: Path, field: dict[str, Any]
) -> None:
    await ask(path, Echo(), "AI")
    assert await ask(path, Echo(), "AI", **field) == [("<What is AI?>", False)]
    assert await ask(path, Echo(), "AI", **field) == [("<What is AI?>", True)]


async def test_model_belongs_to_the_key_and_backend_does_not(path: Path) -> None:
    await ask(path, Echo(), "AI")
    assert await ask(path, Echo("other name"), "AI") == [("<What is AI?>", True)]
    assert await ask(path, Echo(model_name="other"), "AI") == [("<What is AI?>", False)]


async def test_equal_prompts_are_different_samples_unless_cached(path: Path) -> None:
    backend = Echo()
    await ask(path, backend, "AI", "AI")
    assert len(backend.prompts) == 2
    again = Echo()
    assert [recalled for _, recalled in await ask(path, again, *["AI"] * 3)] == [True, True, False]
    cached = Echo()
    await ask(path, cached, *["cached"] * 3, cache=True)
    assert len(cached.prompts) == 1


async def test_recalled_response_is_streamed_in_one_piece(path: Path) -> None:
    pieces: list[str] = []
    await ask(path, Echo(), "AI", on_text=print)
    await ask(path, Echo(), "AI", on_text=pieces.append)
    assert pieces == ["<What is AI?>"]


class Answer(BaseModel):
    text: str


class Parsing(Echo):
    """Parses every response as an `Answer`."""

    async def run_one(self, task: Any) -> dict[str, Any]:
        fields = await super().run_one(task)
        return {**fields, "parsed": Answer(text=fields["response"])}


async def test_parsed_response_is_recalled(path: Path) -> None:
    for recalled in (False, True):
        found = await ask(path, Parsing(), "AI", response_format=Answer)
        assert found == [(Answer(text="<What is AI?>"), recalled)]


async def test_tasks_after_a_prompt_follow_its_key(path: Path) -> None:
    ran: list[str] = []
    for temperature in (0.1, 0.1, 0.2):
        backends = [ConcurrentExecutionBackend(), Echo()]
        async with WorkflowEngine.create(backend=backends, journal=path) as flow:

            @flow.ai_task(temperature=temperature)
            async def question() -> str:
                return "What is AI?"

            @flow.function_task(version="1")
            async def use(text: str) -> str:
                ran.append(text)
                return text

            await use(question())
    assert len(ran) == 2


async def test_task_with_inputs_and_an_unknown_backend_fails(path: Path) -> None:
    async with opened(path) as flow:

        @flow.executable_task(backend="typo", inputs=["data"])
        async def run() -> str:
            return "true"

        with pytest.raises(ConfigurationError, match="typo"):
            await asyncio.wait_for(run(), 20)


async def test_reason_that_is_no_unicode_text_is_recorded(path: Path) -> None:
    async with opened(path) as flow:

        @flow.function_task
        async def fail() -> None:
            raise FileNotFoundError("caf\udce9")

        with pytest.raises(FileNotFoundError):
            await fail()
        assert flow.journal is not None
        await asyncio.wait_for(flow.journal.flush(), 20)
