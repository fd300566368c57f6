"""Clauses on attachment: what an owner reads, sets and registers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rhapsody.backends.protocol import EXECUTABLE, TaskStates
from rhapsody.testing import samples
from rhapsody.testing.conformance.base import Clauses
from rhapsody.testing.owners import FakeEngine, Reports

__all__ = ["AttachmentClauses"]


class AttachmentClauses(Clauses):
    """Tests of the clauses on attachment."""

    async def test_name_is_a_stable_non_empty_string(
        self, backend: Any, engine: FakeEngine
    ) -> None:
        """C1: `name` is a non-empty `str` that never changes."""
        name = backend.name
        assert isinstance(name, str)
        assert name
        await engine.run(backend, self.one_task(backend))
        assert backend.name == name

    async def test_work_dir_is_read_at_submission(
        self, backend: Any, engine: FakeEngine, tmp_path: Path
    ) -> None:
        """C2: `_work_dir` is writable, and read when a task is submitted."""
        self.need(backend, EXECUTABLE, real=True)
        for uid in ("task.000001", "task.000002"):
            directory = tmp_path / uid
            directory.mkdir()
            backend._work_dir = str(directory)
            await engine.run(
                backend, samples.executable(uid, "/bin/echo", "here", capture_stdio=True)
            )
            assert (directory / f"{uid}.stdout").read_text() == "here\n"

    async def test_tasks_do_not_reset_is_attached(self, backend: Any, engine: FakeEngine) -> None:
        """C3: `is_attached` is writable, and tasks do not reset it."""
        assert backend.is_attached is True
        await engine.run(backend, self.one_task(backend))
        assert backend.is_attached is True

    async def test_attached_to_lists_owners(
        self, backend: Any, make_engine: Callable[..., FakeEngine]
    ) -> None:
        """C4: `attached_to` is an existing list that owners append to."""
        before = list(backend.attached_to)
        make_engine("first").close()
        make_engine("second")
        assert backend.attached_to == [*before, "first", "second"]

    async def test_last_registered_callback_is_called(self, backend: Any) -> None:
        """C6: `register_callback` is sync and keeps one callback; the last one wins."""
        first, last = Reports(), Reports()
        assert backend.register_callback(first.callback) is None
        assert backend.register_callback(last.callback) is None
        assert backend._callback_func == last.callback
        await backend.submit_tasks([self.one_task(backend)])
        await last.end("task.000001")
        assert first.log == []

    async def test_registered_callback_can_be_read(self, backend: Any, engine: FakeEngine) -> None:
        """C6: the callback can be read as `_callback_func`."""
        assert backend._callback_func == engine.task_callbacks

    async def test_states_map_is_available_after_attachment(
        self, backend: Any, engine: FakeEngine
    ) -> None:
        """C7: `get_task_states_map` is sync; `terminal_states` has all final states."""
        states = backend.get_task_states_map()
        for state in (states.DONE, states.FAILED, states.CANCELED):
            assert type(state) is str
            assert state in states.terminal_states
        assert type(states.RUNNING) is str
        assert states.RUNNING not in states.terminal_states

    async def test_states_are_the_common_strings(self, backend: Any) -> None:
        """C21, C24: all backends of an engine use the same state strings."""
        states = backend.get_task_states_map()
        assert (states.DONE, states.RUNNING, states.CANCELED, states.FAILED) == (
            "DONE",
            "RUNNING",
            "CANCELED",
            "FAILED",
        )
        assert set(states.terminal_states) == {"DONE", "CANCELED", "FAILED"}

    async def test_attached_backend_needs_no_initialization(
        self, make_backend: Callable[[], Any], tmp_path: Path
    ) -> None:
        """C8: the engine never starts a backend; its first task does."""
        backend = make_backend()
        engine = FakeEngine(tmp_path)
        engine.attach(backend)
        (report,) = await engine.run(backend, self.one_task(backend))
        assert report.state == TaskStates.DONE
        await engine.shutdown(backend)
