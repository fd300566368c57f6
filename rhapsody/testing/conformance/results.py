"""Clauses on results, errors and captured output."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends.protocol import EXECUTABLE, FUNCTION, PROMPT, TaskStates
from rhapsody.testing import samples
from rhapsody.testing.conformance.base import Clauses, every_kind
from rhapsody.testing.owners import FakeEngine

__all__ = ["ResultClauses"]

result_keys = {FUNCTION: "return_value", EXECUTABLE: "stdout", PROMPT: "stdout"}


class ResultClauses(Clauses):
    """Tests of the clauses on results."""

    @every_kind
    async def test_done_task_has_result(self, kind: str, backend: Any, engine: FakeEngine) -> None:
        """C19: a DONE function has `return_value`; other DONE tasks have `stdout`."""
        self.need(backend, kind)
        task = samples.quick(kind, "task.000001")
        (report,) = await engine.run(backend, task)
        assert report.state == TaskStates.DONE
        assert result_keys[kind] in task
        expected = {FUNCTION: 5, EXECUTABLE: "hello\n"}
        if self.runs_tasks and kind in expected:
            assert task[result_keys[kind]] == expected[kind]

    async def test_async_function_is_awaited(self, backend: Any, engine: FakeEngine) -> None:
        """C19: `return_value` is what the function returns, not its coroutine."""
        self.need(backend, FUNCTION, real=True)
        task = samples.function("task.000001", samples.add_async, 2, 3)
        await engine.run(backend, task)
        assert task["return_value"] == 5

    async def test_failed_function_has_exception(self, backend: Any, engine: FakeEngine) -> None:
        """C20: the exception of a FAILED function is the one that it raised."""
        self.need(backend, FUNCTION, real=True)
        task = samples.failing(FUNCTION, "task.000001")
        (report,) = await engine.run(backend, task)
        assert report.state == TaskStates.FAILED
        assert type(task["exception"]) is ValueError
        assert str(task["exception"]) == "no such luck"

    @pytest.mark.parametrize(
        "error", [StopIteration(1), SystemExit(2), KeyboardInterrupt(), asyncio.CancelledError()]
    )
    async def test_exception_unfit_for_future_is_wrapped(
        self, error: BaseException, backend: Any, engine: FakeEngine
    ) -> None:
        """C20: an exception that would hang a future or end the loop is wrapped and named."""
        self.need(backend, FUNCTION, real=True)
        task = samples.function("task.000001", samples.fail, error)
        (report,) = await engine.run(backend, task)
        assert report.state == TaskStates.FAILED
        assert isinstance(task["exception"], Exception)
        assert not isinstance(task["exception"], StopIteration)
        assert type(error).__name__ in str(task["exception"])

    async def test_failed_executable_without_output_has_exit_code(
        self, backend: Any, engine: FakeEngine
    ) -> None:
        """C20: the reason of a failed executable has its exit code, even without output."""
        self.need(backend, EXECUTABLE, real=True)
        task = samples.failing(EXECUTABLE, "task.000001")
        (report,) = await engine.run(backend, task)
        assert report.state == TaskStates.FAILED
        assert "3" in str(task.get("exception") or task["stderr"])

    async def test_missing_program_is_named(self, backend: Any, engine: FakeEngine) -> None:
        """C20: a task whose program does not exist is FAILED, and its reason names it."""
        self.need(backend, EXECUTABLE, real=True)
        task = samples.executable("task.000001", "/no/such/program")
        (report,) = await engine.run(backend, task)
        assert report.state == TaskStates.FAILED
        assert "/no/such/program" in str(task["exception"])

    async def test_captured_output_is_in_files(self, backend: Any, engine: FakeEngine) -> None:
        """C33: `capture_stdio` writes `<_work_dir>/<uid>.stdout` and `.stderr`."""
        self.need(backend, EXECUTABLE, real=True)
        task = samples.executable(
            "task.000001", "/bin/sh", "-c", "echo out; echo err >&2", capture_stdio=True
        )
        await engine.run(backend, task)
        directory = Path(backend._work_dir)
        assert task["stdout"] == str(directory / "task.000001.stdout")
        assert (directory / "task.000001.stdout").read_text() == "out\n"
        assert (directory / "task.000001.stderr").read_text() == "err\n"
