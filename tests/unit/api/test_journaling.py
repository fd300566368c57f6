"""The journal of a session: what a second run recalls, for every kind of task."""

import asyncio
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rhapsody.api import AITask, ComputeTask, JournalError, Session, TaskCancelledError
from rhapsody.backends import ConcurrentExecutionBackend
from tests.support.engines import Echo
from tests.support.scripted import ScriptedBackend


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.journal"


async def run(path: Path, *tasks: Any, backend: Any = None) -> list[bool]:
    """Run tasks in a session; return whether each was recalled."""
    async with Session([backend or ConcurrentExecutionBackend()], journal=path) as session:
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)
    assert [task["state"] for task in tasks] == ["DONE"] * len(tasks)
    return [task.get("from_journal", False) for task in tasks]


def square(x: int) -> int:
    return x * x


def make_array() -> Any:
    return np.arange(300_000)


class Proxy:
    """A callable object that raises as a proxy without an object does."""

    def __call__(self, text: str) -> int:
        return len(text)

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no object") if name == "__wrapped__" else AttributeError(name)


async def test_callable_object_that_cannot_be_read_runs(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    task = ComputeTask(function=Proxy(), args=["x" * 10**6])
    assert await asyncio.wait_for(run(path, task), 20) == [False]
    assert task.return_value == 10**6
    assert f"task {task.uid} runs without the journal, which cannot read it" in caplog.text


class Sparse:
    """An array without a size in bytes, as a sparse tensor of PyTorch."""

    @property
    def nbytes(self) -> int:
        raise RuntimeError("nbytes is not defined for sparse tensors")


def transposed(array: Sparse) -> Sparse:
    return array


async def test_array_without_a_size_is_recalled(path: Path) -> None:
    tasks = [ComputeTask(function=transposed, args=[Sparse()]) for _ in range(2)]
    recalled = [await asyncio.wait_for(run(path, task), 20) for task in tasks]
    assert recalled == [[False], [True]]
    assert isinstance(tasks[1].return_value, Sparse)


async def test_function_is_recalled(path: Path) -> None:
    assert await run(path, ComputeTask(function=square, args=[3])) == [False]
    again, other = (ComputeTask(function=square, args=[n]) for n in (3, 4))
    assert await run(path, again, other) == [True, False]
    assert (again.return_value, other.return_value) == (9, 16)


def cube(x: int) -> int:
    return x**3


async def test_version_does_not_mix_functions(path: Path) -> None:
    bound = [functools.partial(pow, exp=n) for n in (4, 5)]
    functions: list[Callable[[int], int]] = [square, cube, functools.partial(square), *bound]
    for function in functions:
        task = ComputeTask(function=function, args=[2], version="1", cache=True)
        assert await run(path, task) == [False]
        assert task.return_value == function(2)
        again = ComputeTask(function=function, args=[2], version="1", cache=True)
        assert await run(path, again) == [True]


async def test_recalled_task_can_be_awaited(path: Path) -> None:
    await run(path, ComputeTask(function=square, args=[3]))
    async with Session([ConcurrentExecutionBackend()], journal=path) as session:
        [future] = await session.submit_tasks(ComputeTask(function=square, args=[3]))
        assert (await future)["return_value"] == 9


async def test_large_result_is_recalled(path: Path) -> None:
    assert await run(path, ComputeTask(function=make_array)) == [False]
    again = ComputeTask(function=make_array)
    assert await run(path, again) == [True]
    assert (again.return_value == make_array()).all()


async def test_executable_is_recalled_with_all_its_results(path: Path) -> None:
    for recalled in (False, True):
        task = ComputeTask(executable="echo", arguments=["hello"])
        assert await run(path, task) == [recalled]
        assert (task.stdout, task.exit_code) == ("hello\n", 0)


async def test_inputs_count_by_contents_and_outputs_have_to_exist(
    path: Path, tmp_path: Path
) -> None:
    source, target = tmp_path / "mesh.dat", tmp_path / "flow.out"

    def copy() -> ComputeTask:
        return ComputeTask(
            executable="cp", arguments=[source, target], inputs=[source], outputs=[target]
        )

    source.write_text("mesh")
    assert await run(path, copy()) == [False]
    assert await run(path, copy()) == [True]
    target.unlink()
    assert await run(path, copy()) == [False]
    source.write_text("other")
    assert await run(path, copy()) == [False]


async def test_prompt_is_recalled(path: Path) -> None:
    def respond(task: dict[str, Any]) -> None:
        task["response"] = "fine"
        backend.done(task, "fine")

    pieces: list[str] = []
    for recalled in (False, True):
        backend = ScriptedBackend(on_task=respond)
        backend.task_kinds = frozenset({"prompt"})  # type: ignore[attr-defined]
        task = AITask(prompt="How?", on_text=pieces.append)
        assert await run(path, task, backend=backend) == [recalled]
        assert task.response == "fine"
    assert pieces == ["fine"]


async def test_failed_task_runs_again(path: Path) -> None:
    async with Session([ConcurrentExecutionBackend()], journal=path) as session:
        failing = ComputeTask(executable="false")
        await session.submit_tasks(failing)
        await session.wait_tasks(failing)
        assert failing.state == "FAILED"
    async with Session([ConcurrentExecutionBackend()], journal=path) as session:
        again = ComputeTask(executable="false")
        await session.submit_tasks(again)
        await session.wait_tasks(again)
        assert again.state == "FAILED"


async def test_options_of_a_task(path: Path) -> None:
    def tasks(**options: Any) -> list[ComputeTask]:
        return [ComputeTask(function=square, args=[2], **options) for _ in range(2)]

    assert await run(path, *tasks(journal=False)) == [False, False]
    assert await run(path, *tasks(journal=False)) == [False, False]
    assert await run(path, *tasks(cache=True)) == [False, True]
    assert await run(path, *tasks(version="1")) == [False, False]
    assert await run(path, *tasks(version="1")) == [True, True]
    assert await run(path, *tasks(version="2")) == [False, False]


async def test_statistics_count_recalled_tasks_apart(path: Path) -> None:
    await run(path, ComputeTask(function=square, args=[3]))
    async with Session([ConcurrentExecutionBackend()], journal=path) as session:
        tasks = [ComputeTask(function=square, args=[n]) for n in (3, 4)]
        await session.submit_tasks(tasks)
        await session.wait_tasks(tasks)
        statistics = session.get_statistics()
    assert statistics["tasks"] == {"DONE": 2}
    assert statistics["backends"]["journal"]["tasks"] == {"DONE": 1}
    assert statistics["backends"]["journal"]["backend"]["recalled"] == 1


def test_blocking_session_is_journaled(path: Path) -> None:
    for recalled in (False, True):
        with Session([ConcurrentExecutionBackend()], journal=path) as session:
            [task] = session.run([ComputeTask(function=square, args=[3])])
            assert bool(task.get("from_journal")) is recalled
            assert task["return_value"] == 9


async def test_journal_in_use_is_refused_and_backend_stays_free(path: Path) -> None:
    async with Session([ConcurrentExecutionBackend()], journal=path):
        backend = ConcurrentExecutionBackend()
        with pytest.raises(JournalError, match="is in use by process"):
            Session([backend], journal=path)
        async with Session([backend]) as other:
            assert other.journal is None


async def test_cached_tasks_whose_output_is_missing_run_once(path: Path, tmp_path: Path) -> None:
    log, output = tmp_path / "log", tmp_path / "out"
    command = ["-c", f"echo ran >> {log}; echo x > {output}"]
    for number in (1, 2):
        tasks = [
            ComputeTask(executable="sh", arguments=command, cache=True, outputs=[output])
            for _ in range(3)
        ]
        await run(path, *tasks)
        assert log.read_text() == "ran\n" * number
        output.unlink()


async def test_options_that_change_a_result_belong_to_the_key(path: Path) -> None:
    def task(**options: Any) -> ComputeTask:
        return ComputeTask(executable="true", **options)

    for options in (
        {"resources": {"env": {"A": "1"}}},
        {"resources": {"env": {"A": "2"}}},
        {"capture_stdio": True},
        {"task_backend_specific_kwargs": {"env": {"A": "1"}}},
    ):
        assert await run(path, task(**options)) == [False]


async def test_task_that_waits_for_an_equal_one_can_be_cancelled(path: Path) -> None:
    backend = ScriptedBackend(on_task=lambda task: None)
    async with Session([backend], journal=path) as session:
        first, second = (ComputeTask(executable="true", cache=True) for _ in range(2))
        await session.submit_tasks([first, second])
        assert await session.cancel(second)
        with pytest.raises(TaskCancelledError):
            await second
        assert not await session.cancel(second)
        backend.done(backend.batches[0][0], "fine")
        assert (await first).stdout == "fine"
        assert [len(batch) for batch in backend.batches] == [1]


async def test_task_whose_inputs_are_read_can_be_cancelled(path: Path, tmp_path: Path) -> None:
    (tmp_path / "in").touch()
    backend = ScriptedBackend()
    async with Session([backend], journal=path) as session:
        task, other = (
            ComputeTask(executable="true", inputs=[tmp_path / "in"], version=text) for text in "12"
        )
        await session.submit_tasks([task, other])
        assert await session.cancel(task)
        with pytest.raises(TaskCancelledError):
            await task
        await other
        assert [batch[0]["uid"] for batch in backend.batches] == [other.uid]


async def test_on_text_that_raises_ends_no_task(path: Path, caplog: Any) -> None:
    def fail(text: str) -> None:
        raise RuntimeError("no terminal")

    for recalled in (False, True):
        tasks = [AITask("a", on_text=fail), AITask("b")]
        assert await asyncio.wait_for(run(path, *tasks, backend=Echo()), 20) == [recalled] * 2
    assert "on_text of task" in caplog.text


async def test_task_that_the_journal_cannot_look_up_fails_alone(path: Path) -> None:
    async with Session([ScriptedBackend()], journal=path) as session:
        broken, task = ComputeTask(executable="true"), ComputeTask(executable="true")
        broken["arguments"] = 5
        await session.submit_tasks([broken, task])
        await task
        with pytest.raises(TypeError):
            await broken


async def test_task_with_an_impossible_path_runs(path: Path) -> None:
    task = ComputeTask(executable="true", inputs=["a\0b"])
    assert await asyncio.wait_for(run(path, task, backend=ScriptedBackend()), 20) == [False]


async def test_task_that_runs_after_all_can_be_cancelled(path: Path) -> None:
    backend = ScriptedBackend(on_task=lambda task: None)
    async with Session([backend], journal=path) as session:
        tasks = [ComputeTask(executable="true", cache=True) for _ in range(3)]
        await session.submit_tasks(tasks)
        backend.failed(backend.batches[0][0], OSError("broken"))
        assert await session.cancel(tasks[1])
        await session.wait_tasks(tasks[:2])
        while len(backend.batches) < 2:  # noqa: ASYNC110 - no event says so
            await asyncio.sleep(0)
        backend.done(backend.batches[1][0], "fine")
        assert (await tasks[2]).stdout == "fine"
