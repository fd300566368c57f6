"""The event loop that the tasks of a session belong to, and its use from other threads."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any

from rhapsody.api.submissions.submission import AnyTask
from rhapsody.api.submissions.submissions import Submissions
from rhapsody.api.tasks import ComputeTask
from rhapsody.api.tasks.base import runs_a_loop
from rhapsody.backends.core.nested_runs import Attempts, is_in_task, run_calls_here
from rhapsody.backends.protocol import TaskStates
from rhapsody.errors import SessionError

__all__ = ["SessionLoop", "wait_on_any_loop"]


class SessionLoop:
    """The event loop of a session: that of its first use, until it has no active tasks.

    Args:
        uid: The session's uid, for messages.
        submissions: The session's tasks.
    """

    def __init__(self, uid: str, submissions: Submissions) -> None:
        self._uid = uid
        self._submissions = submissions
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0  # of the process that the loop belongs to

    @property
    def is_of_the_parent(self) -> bool:
        """Whether the session was used in the process from which this one was forked."""
        return self._loop is not None and self._pid != os.getpid()

    def _check_process(self) -> None:
        if self.is_of_the_parent:
            raise SessionError(
                f"session {self._uid} was used in process {self._pid}, from which this process "
                "was forked; make a session and backends in each process"
            )

    def bind(self, loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
        """Use this loop from now on, and return it.

        Raises:
            SessionError: Active tasks belong to another loop, or the session to another process.
        """
        self._check_process()
        if self._loop is not loop:
            if self._loop is not None and not self._loop.is_closed() and self._submissions.active:
                raise SessionError(
                    f"session {self._uid} has active tasks on another event loop (`run` has its "
                    "own loop); use it from one loop at a time"
                )
            self._loop, self._pid = loop, os.getpid()
            if self._submissions.walltime is not None:
                self._submissions.walltime.bind(loop)
        return loop

    def bind_for_threads(self) -> asyncio.AbstractEventLoop:
        """Use and return the loop of tasks that threads without a loop submit.

        Raises:
            SessionError: Active tasks belong to another loop.
        """
        self._check_process()
        if self._loop is not None and self._loop.is_running():
            return self.bind(self._loop)
        from rhapsody.backends.core.service_loop import service_loop

        return self.bind(service_loop().loop)

    def submit_soon(self, task: ComputeTask, backend: Any) -> None:
        """Submit a valid and new task, and return before its backend has it.

        Raises:
            SessionError: Active tasks belong to another loop.
            BackendInUseError: The backend was shut down, and another open owner uses it now.
        """
        submit, context = self._submissions.submit_soon, copy_context()
        if runs_a_loop():
            loop = self.bind(asyncio.get_running_loop())
            self._submissions.reattach(backend)
            submit(task, backend, loop.create_future(), context)
            return
        loop = self.bind_for_threads()
        future = loop.create_future()
        task.bind_future(future)
        task["state"] = TaskStates.PENDING  # its text shows that it was submitted
        attempts = Attempts()
        if is_in_task():  # the thread of the task may have to run this one while it waits
            task.bind_attempts(attempts)
        with run_calls_here(attempts):
            loop.call_soon_threadsafe(submit, task, backend, future, context)

    def cancel_all(self) -> list[AnyTask]:
        """Ask the backends to cancel all active tasks, and return these tasks."""
        tasks: list[AnyTask] = []

        def collect() -> None:
            tasks.extend(s.task for s in self._submissions.active.values())
            if tasks:
                self._submissions.cancel_soon(tasks)

        self.call(collect)
        return tasks

    def call(self, function: Callable[[], None]) -> None:
        """Call a function on the loop, and wait for its end.

        Without a loop, or in a thread that runs one, the function is called here.

        Raises:
            SessionError: The loop does not run any more, or is that of another process.
            Exception: The function raised it.
        """
        self._check_process()
        loop = self._loop
        if runs_a_loop() or loop is None:
            function()
            return
        if not loop.is_running():
            raise SessionError(
                f"session {self._uid} was used on an event loop that does not run any more; use it "
                "and wait for its tasks in the same asyncio.run()"
            )
        done: Future[None] = Future()

        def call() -> None:
            try:
                function()
            except Exception as error:
                done.set_exception(error)
            else:
                done.set_result(None)

        loop.call_soon_threadsafe(call)
        done.result()


async def wait_on_any_loop(task: asyncio.Task[None]) -> bool:
    """Wait for a task, which may belong to the loop of another thread.

    Returns:
        Whether the task has ended; False if its loop does not run any more.

    Raises:
        Exception: The task belongs to the running loop, and failed.
    """
    loop = task.get_loop()
    if loop is asyncio.get_running_loop():
        await asyncio.shield(task)
        return True
    if not loop.is_running():
        return False

    async def wait() -> None:
        await asyncio.wait([task])

    await asyncio.wait([asyncio.wrap_future(asyncio.run_coroutine_threadsafe(wait(), loop))])
    return True
