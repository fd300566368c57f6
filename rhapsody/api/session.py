"""Session: tasks in, results out, over any number of backends, without a workflow engine."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
import weakref
from collections.abc import Iterable, MutableMapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rhapsody.api.errors import (
    SessionError,
    TaskCancelledError,
    TaskExecutionError,
    TaskValidationError,
)
from rhapsody.api.routing import Router
from rhapsody.api.statistics import BackendStatistics
from rhapsody.api.tasks import BaseTask
from rhapsody.backends.protocol import TaskStates

if TYPE_CHECKING:
    from rhapsody.telemetry.manager import TelemetryManager

__all__ = ["Session"]

logger = logging.getLogger(__name__)

AnyTask = MutableMapping[str, Any]


class _Entry:
    """An active task: where it runs, since when, and who waits for it."""

    __slots__ = ("backend", "ended", "future", "submitted", "task")

    def __init__(
        self, task: AnyTask, backend: Any, future: asyncio.Future[Any], submitted: float
    ) -> None:
        self.task = task
        self.backend = backend
        self.future = future
        self.ended: asyncio.Future[None] = future.get_loop().create_future()
        self.submitted = submitted


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
        self._active: dict[str, _Entry] = {}
        # Finished tasks that the user still holds: their uids cannot be taken again.
        self._known: weakref.WeakValueDictionary[str, BaseTask] = weakref.WeakValueDictionary()
        self._statistics: dict[str, BackendStatistics] = {}
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
        self._statistics[backend.name] = BackendStatistics()
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
        now = time.monotonic()
        for backend, batch in batches:
            for task in batch:
                self._register(task, backend, loop.create_future(), now)
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

    def _register(
        self, task: AnyTask, backend: Any, future: asyncio.Future[Any], now: float
    ) -> None:
        if isinstance(task, BaseTask):
            task.bind_future(future)
            self._known[task["uid"]] = task
        task["backend"] = backend.name
        task["state"] = TaskStates.PENDING
        self._active[task["uid"]] = _Entry(task, backend, future, now)
        self._statistics[backend.name].submitted()
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
        statistics = self._statistics[entry.backend.name]
        if state in TaskStates.terminal_states:
            del self._active[task["uid"]]
            statistics.ended(task["state"], state, time.monotonic() - entry.submitted)
            task["state"] = state
            _settle(entry, task, state)
        elif state == TaskStates.RUNNING:
            statistics.started(task["state"])
            task["state"] = state
        if self._telemetry is not None:
            self._telemetry.on_task_state(task, state)

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
        if progress:
            from rhapsody.api.progress import watch

            pending = await watch(self, waiter)
        else:
            pending = (await waiter)[1] if waiter is not None else set()
        if pending:
            ended = len(tasks) - len(pending)
            raise asyncio.TimeoutError(
                f"{ended} of {len(tasks)} tasks ended within {timeout:g} s; the others go on"
            )
        return list(tasks)

    def _entry(self, task: AnyTask) -> _Entry | None:
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
            10,000), and under `backend` what the backend says of itself.
        """
        total: dict[str, int] = {}
        backends = {}
        for name, statistics in self._statistics.items():
            backends[name] = statistics.as_dict()
            for state, number in backends[name]["tasks"].items():
                total[state] = total.get(state, 0) + number
            own = getattr(self.backends[name], "get_statistics", None)
            if own is not None:
                backends[name]["backend"] = own()
        return {"tasks": total, "backends": backends}

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

        return service_loop().run_blocking(self._run(tasks, timeout, progress))

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


def _settle(entry: _Entry, task: AnyTask, state: str) -> None:
    future = entry.future
    loop = future.get_loop()
    if not _runs_here(loop) and not loop.is_closed():
        # `with` left where a loop runs, or a third party's backend that reports from a thread.
        loop.call_soon_threadsafe(_settle, entry, task, state)
        return
    if not entry.ended.done():
        entry.ended.set_result(None)
    if future.done():  # cancelled by whoever awaited the future itself
        future = loop.create_future()
        if isinstance(task, BaseTask):
            task.bind_future(future)
    if state == TaskStates.DONE:
        future.set_result(task)
        return
    if state == TaskStates.CANCELED:
        error: Any = TaskCancelledError(task["uid"])
        task.setdefault("exception", error)
    else:
        error = task.get("exception")
        if error is None:
            error = TaskExecutionError(
                task["uid"], task.get("stderr") or "no reason was given", task.get("exit_code")
            )
    future.set_exception(error)
    future.exception()  # retrieved: those who use wait_tasks get no warnings


def _runs_here(loop: asyncio.AbstractEventLoop) -> bool:
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def _release(backend: Any, owner: Any) -> None:
    release = getattr(backend, "release", None)
    if release is not None:
        release(owner)
