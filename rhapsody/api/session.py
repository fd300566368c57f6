"""Session: tasks in, results out, over any number of backends, without a workflow engine."""

from __future__ import annotations

import asyncio
import logging
import os
import uuid
import weakref
from collections import Counter
from collections.abc import AsyncGenerator, Iterable, MutableMapping, Sequence
from contextlib import AbstractContextManager, aclosing, nullcontext
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rhapsody.api.errors import SessionError, TaskValidationError
from rhapsody.api.routing import Router
from rhapsody.api.submitted import AnyTask, Submitted
from rhapsody.api.tasks import BaseTask
from rhapsody.backends.protocol import TaskStates
from rhapsody.report.runs import BackendRun, OwnersNotes
from rhapsody.streaming import OnText, called_here, pieces_of

if TYPE_CHECKING:
    from rhapsody.telemetry.manager import TelemetryManager

__all__ = ["Session"]

logger = logging.getLogger(__name__)


class Session:
    """Submits tasks to backends and waits for them.

    In asyncio code use `async with Session(...) as session`, `await session.submit_tasks(tasks)`
    and `await task`. In a script or a notebook use `with Session(...) as session` and
    `session.run(tasks)`, which block. A session belongs to one event loop, that of its first use.

    Args:
        backends: The backends, each with a name of its own. The session shuts them down when it
            is closed.
        uid: Name of the session; made where None.
        work_dir: Captured output goes to `<work_dir>/<uid>/`; the current directory where None.

    Raises:
        SessionError: Two backends have the same name.
        BackendInUseError: A backend belongs to another session or engine that is still open.
    """

    def __init__(
        self,
        backends: Any | Iterable[Any] | None = None,
        uid: str | None = None,
        work_dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self.uid = uid or f"rhapsody.session.{uuid.uuid4().hex[:8]}"
        self.work_dir = os.fspath(work_dir) if work_dir is not None else os.getcwd()
        self.backends: dict[str, Any] = {}
        self.closed = False
        self._closer: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._active: dict[str, Submitted] = {}
        # Finished tasks that the user still holds: their uids cannot be taken again.
        self._known: weakref.WeakValueDictionary[str, BaseTask] = weakref.WeakValueDictionary()
        self._runs: dict[str, BackendRun] = {}
        self._notes: dict[str, OwnersNotes] = {}
        self._telemetry: TelemetryManager | None = None
        self._poll_interval = 5.0
        if backends is None:
            backends = []
        elif hasattr(backends, "submit_tasks") or isinstance(backends, str):
            backends = [backends]
        try:
            for backend in backends:
                self.add_backend(backend)
        except BaseException:
            for backend in self.backends.values():
                _release(backend, self)
            raise

    def add_backend(self, backend: Any) -> None:
        """Add a backend.

        Raises:
            SessionError: The session is closed, or has a backend of this name already.
            BackendInUseError: The backend belongs to another owner that is still open.
        """
        self._check_open()
        if isinstance(backend, type) or not hasattr(backend, "submit_tasks"):
            made = f"{backend.__name__}()" if isinstance(backend, type) else "get_backend(name)"
            raise SessionError(f"a backend is wanted, not {backend!r}; make one, as by {made}")
        if backend.name in self.backends:
            raise SessionError(
                f"the session has a backend named '{backend.name}' already; "
                "give this one another name=..."
            )
        backend._work_dir = os.path.join(self.work_dir, self.uid)
        backend.is_attached = True
        backend.attached_to.append(self.uid)
        backend.register_callback(self._on_state)
        self.backends[backend.name] = backend
        if not hasattr(backend, "active_records"):
            self._notes[backend.name] = OwnersNotes()
        self._runs[backend.name] = BackendRun(backend, self._notes.get(backend.name))
        if self._telemetry is not None:
            self._watch(backend)

    async def submit_tasks(
        self, tasks: Sequence[AnyTask] | AnyTask
    ) -> list[asyncio.Future[AnyTask]]:
        """Submit tasks; returns as soon as their backends have them.

        Args:
            tasks: ComputeTasks, AITasks, or dicts with the same fields; a single one as well.
                Results are written into these very objects.

        Returns:
            One future per task, in order, whose result is the task. Awaiting the task does the
            same.

        Raises:
            TaskValidationError: A task is described wrongly, names a backend that there is not or
                that cannot run it, has a uid that is taken, or was submitted before. Nothing has
                been submitted then.
            SessionError: The session is closed, has no backends, or belongs to another loop.
        """
        self._check_open()
        tasks = _as_list(tasks)
        loop = self._bind_loop()
        batches = self._route(tasks)
        for backend, batch in batches:
            for task in batch:
                self._register(task, backend, loop.create_future())
        futures = [self._active[task["uid"]].future for task in tasks]
        left = [task for _, batch in batches for task in batch]
        try:
            for backend, batch in batches:
                del left[: len(batch)]
                await self._submit(backend, batch)
        finally:  # where this was cancelled, nobody will ever report these
            for task in left:
                self._on_state(task, TaskStates.CANCELED)
        return futures

    def _register(self, task: AnyTask, backend: Any, future: asyncio.Future[Any]) -> None:
        if isinstance(task, BaseTask):
            task.bind_future(future)
            self._known[task["uid"]] = task
        task["backend"] = backend.name
        task["state"] = TaskStates.PENDING
        self._active[task["uid"]] = Submitted(task, backend, future)
        if self._notes and backend.name in self._notes:
            self._notes[backend.name].submitted(task)
        if self._telemetry is not None:
            self._telemetry.on_task_created(task)

    async def _submit(self, backend: Any, batch: list[AnyTask]) -> None:
        if self._telemetry is not None:
            for task in batch:
                self._telemetry.on_task_submitted(task)
        try:
            await backend.submit_tasks(batch)
        except Exception as error:  # not ours: our backends report, task by task
            logger.exception("backend '%s' raised from submit_tasks", backend.name)
            for task in batch:
                task.setdefault("exception", error)
                self._on_state(task, TaskStates.FAILED)

    def _route(self, tasks: Sequence[AnyTask]) -> list[tuple[Any, list[AnyTask]]]:
        """Group tasks by backend; refuse all of them where one is wrong."""
        if not self.backends:
            raise SessionError("the session has no backends; pass some to Session([...])")
        router = Router(self.backends)
        batches: dict[str, list[AnyTask]] = {}
        uids: set[str] = set()
        for task in tasks:
            if not isinstance(task, BaseTask):
                _check_dict(task)
            uid = task["uid"]
            if getattr(task, "_future", None) is not None:
                raise TaskValidationError(uid, "it was submitted before; make a new task")
            if uid in uids or uid in self._active or uid in self._known:
                raise TaskValidationError(
                    uid, "another task has this uid; leave 'uid' out to get one made", "uid", uid
                )
            uids.add(uid)
            batches.setdefault(router.backend_of(task).name, []).append(task)
        return [(self.backends[name], batch) for name, batch in batches.items()]

    def _on_state(self, task: AnyTask, state: str) -> None:
        entry = self._active.get(task["uid"])
        if entry is None:
            return
        if self._notes and entry.backend.name in self._notes:
            self._notes[entry.backend.name].on_state(task, state)
        if state in TaskStates.terminal_states:
            del self._active[task["uid"]]
            task["state"] = state
            entry.settle(state)
        elif state == TaskStates.RUNNING:
            task["state"] = state
        if self._telemetry is not None:
            self._telemetry.on_task_state(task, state)

    async def stream(self, task: AnyTask) -> AsyncGenerator[str, None]:
        """Submit an AI task and yield its response piece by piece, as it is written.

        At the end the task has its results, as any other. Leaving early cancels it.

        Args:
            task: One prompt, not submitted yet, without an `on_text` of its own.

        Raises:
            TaskValidationError: As `submit_tasks` does, or it has an `on_text`.
            Exception: Whatever awaiting the task raises.
        """
        if task.get("on_text") is not None:
            raise TaskValidationError(
                task.get("uid"), "it has an 'on_text'; submit it, or leave that out to stream it"
            )

        async def answer(on_text: OnText) -> None:
            task["on_text"] = on_text
            try:
                [future] = await self.submit_tasks(task)
                await asyncio.shield(future)
            except asyncio.CancelledError:
                await self.cancel(task)
                raise
            finally:
                del task["on_text"]

        async with aclosing(pieces_of(answer)) as pieces:
            async for piece in pieces:
                yield piece

    async def wait_tasks(
        self,
        tasks: Sequence[AnyTask] | AnyTask,
        timeout: float | None = None,
        progress: bool = False,
    ) -> list[AnyTask]:
        """Wait until tasks have ended, well or not; their failures are not raised.

        Args:
            tasks: Submitted tasks, or a single one.
            timeout: Seconds; None waits as long as it takes.
            progress: Show a live table on standard error, or plain lines where that is no
                terminal.

        Returns:
            The tasks, in the order given.

        Raises:
            TimeoutError: Some have not ended in time; they go on. (`asyncio.TimeoutError` on
                Python 3.10.)
            SessionError: A task was not submitted to this session.
        """
        tasks = _as_list(tasks)
        waiting = [entry.ended for entry in map(self._entry, tasks) if entry is not None]
        waiter = asyncio.wait(waiting, timeout=timeout) if waiting else None
        view: AbstractContextManager[Any] = nullcontext()
        if progress:
            from rhapsody.report.live import LiveView

            view = LiveView(list(self._runs.values()))
        with view:
            pending = (await waiter)[1] if waiter is not None else set()
        if pending:
            ended = len(tasks) - len(pending)
            raise asyncio.TimeoutError(
                f"{ended} of {len(tasks)} tasks ended within {timeout:g} s; the others go on"
            )
        return list(tasks)

    def _entry(self, task: AnyTask) -> Submitted | None:
        entry = self._active.get(task.get("uid", ""))
        if entry is None and task.get("state") not in TaskStates.terminal_states:
            raise SessionError(f"task {task.get('uid')} was not submitted to this session")
        return entry

    async def cancel(self, task: AnyTask | str) -> bool:
        """Cancel one task, given itself or its uid.

        Returns:
            True where it was stopped, and awaiting it raises `TaskCancelledError`; False where it
            had ended already.
        """
        uid = task if isinstance(task, str) else task["uid"]
        entry = self._active.get(uid)
        return entry is not None and bool(await entry.backend.cancel_task(uid))

    def get_statistics(self) -> dict[str, Any]:
        """Count and time the session's tasks so far.

        Returns:
            `tasks`: tasks by state. `backends`: by name, `tasks` (by state), `latency_seconds`
            from submission to end (`count`, `mean`, `p50`, `p90`, `p99`, `max`, over the last
            20,000), and under `backend` what the backend says of itself.
        """
        backends = {
            name: {
                "tasks": run.history.counts,
                "latency_seconds": run.history.latency_seconds(),
                "backend": run.statistics(),
            }
            for name, run in self._runs.items()
        }
        total: Counter[str] = Counter()
        for figures in backends.values():
            total.update(figures["tasks"])
        return {"tasks": dict(total), "backends": backends}

    def report(self, path: str | os.PathLike[str], title: str | None = None) -> Path:
        """Write one HTML page about the session's tasks so far; it needs no other file.

        It shows when and where each ran, how many ended per second, sizes of batches, latencies,
        and why tasks failed. Of each backend the latest 20,000 tasks that ended are drawn, and
        all are counted. It takes about a second for 20,000 tasks, in this thread; it may be
        called at any time, after the session's end too, and from any thread.

        Args:
            path: The file, replaced where there is one.
            title: Heading of the page; the session's uid where None.

        Returns:
            The file.

        Raises:
            OSError: It cannot be written.
        """
        from rhapsody.report.page import write_page

        return write_page(path, title or self.uid, list(self._runs.values()))

    def _check_open(self) -> None:
        if self.closed or self._closer is not None:
            raise SessionError(f"session {self.uid} is closed; make a new one")

    def _bind_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.get_running_loop()
        if self._loop is not loop:
            if self._loop is not None and not self._loop.is_closed() and self._active:
                raise SessionError(
                    f"session {self.uid} has tasks on another event loop (`run` uses one of its "
                    "own); use it from one loop at a time"
                )
            self._loop = loop
        return loop

    async def close(self) -> None:
        """Shut the session's backends down, ending what still runs. Idempotent."""
        if self.closed:
            return
        if self._closer is None:
            self._closer = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closer)

    async def _close(self) -> None:
        try:
            ends = [backend.shutdown() for backend in self.backends.values()]
            for error in await asyncio.gather(*ends, return_exceptions=True):
                if isinstance(error, BaseException):
                    logger.error("a backend did not shut down cleanly", exc_info=error)
            for entry in list(self._active.values()):  # of backends that do not report at the end
                self._on_state(entry.task, TaskStates.CANCELED)
            if self._telemetry is not None:
                await self._telemetry.stop()
        finally:
            self.closed = True

    async def __aenter__(self) -> Session:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def run(
        self,
        tasks: Sequence[AnyTask] | AnyTask,
        timeout: float | None = None,
        progress: bool = False,
    ) -> list[AnyTask]:
        """Submit tasks and block until they have ended; for scripts and notebooks.

        Works where an event loop runs in this thread too, which then stands still meanwhile.

        Args:
            tasks: As for `submit_tasks`.
            timeout: As for `wait_tasks`.
            progress: As for `wait_tasks`.

        Returns:
            The tasks, in order. Failures are not raised; look at `state` and `exception`.

        Raises:
            TaskValidationError: As for `submit_tasks`.
            TimeoutError: As for `wait_tasks`.
        """
        from rhapsody.backends.service import service_loop

        tasks = _as_list(tasks)
        with called_here(tasks) as calls:
            return service_loop().run_blocking(self._run(tasks, timeout, progress), calls)

    async def _run(
        self, tasks: Sequence[AnyTask] | AnyTask, timeout: float | None, progress: bool
    ) -> list[AnyTask]:
        await self.submit_tasks(tasks)
        return await self.wait_tasks(tasks, timeout, progress)

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        from rhapsody.backends.service import service_loop

        service_loop().run_blocking(self.close())

    async def start_telemetry(
        self, resource_poll_interval: float = 5.0, **options: Any
    ) -> TelemetryManager:
        """Record events, spans and metrics of this session's tasks from now on.

        Args:
            resource_poll_interval: Seconds between looks at the backends' statistics.
            **options: Passed to `rhapsody.telemetry.manager.TelemetryManager`.

        Returns:
            The manager, which is stopped when the session is closed.
        """
        from rhapsody.telemetry.manager import TelemetryManager

        self._telemetry = TelemetryManager(session_id=self.uid, **options)
        self._poll_interval = resource_poll_interval
        for backend in self.backends.values():
            self._watch(backend)
        await self._telemetry.start()
        return self._telemetry

    def get_telemetry(self) -> TelemetryManager:
        """Return the manager that `start_telemetry` made.

        Raises:
            SessionError: Telemetry was not started.
        """
        if self._telemetry is None:
            raise SessionError("telemetry was not started; await session.start_telemetry() first")
        return self._telemetry

    def _watch(self, backend: Any) -> None:
        assert self._telemetry is not None
        self._telemetry.attach_backend(
            backend,
            session_id=self.uid,
            backend_name=backend.name,
            interval=self._poll_interval,
        )


def _as_list(tasks: Sequence[AnyTask] | AnyTask) -> list[AnyTask]:
    return [tasks] if isinstance(tasks, MutableMapping) else list(tasks)


def _check_dict(task: Any) -> None:
    if not isinstance(task, MutableMapping):
        raise TaskValidationError(
            None, f"a task is a ComputeTask, an AITask or a dict, not {type(task).__name__}"
        )
    task.setdefault("uid", BaseTask.from_dict(task)["uid"])


def _release(backend: Any, owner: Any) -> None:
    release = getattr(backend, "release", None)
    if release is not None:
        release(owner)
