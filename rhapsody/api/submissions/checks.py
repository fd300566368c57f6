"""Checks of new tasks: each is valid, and its uid is not taken."""

from __future__ import annotations

import weakref
from collections.abc import Container, Iterable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

from rhapsody.api.agents import check_tools, is_agent, is_turn
from rhapsody.api.routing import Router
from rhapsody.api.submissions.parts import after_part, in_parts
from rhapsody.api.submissions.submission import AnyTask
from rhapsody.api.tasks import BaseTask
from rhapsody.api.tasks.fields import UID_DESCRIPTION, is_uid
from rhapsody.api.tasks.formatted import refuse_formatted_tasks
from rhapsody.errors import TaskValidationError
from rhapsody.garbage import prepare_for
from rhapsody.validation import brief, must_be

__all__ = ["TaskChecks", "refuse_tasks_as_arguments"]

CONTAINERS = (list, tuple, set, frozenset, dict)

TEXTS = ("prompt", "system_prompt", "executable", "arguments")
"""Fields that take the results of other tasks as text."""


class TaskChecks:
    """Checks the tasks of each submission before a backend gets any of them.

    Args:
        active: The uids of tasks that have not ended.

    Attributes:
        entering: Number of tasks of the submissions that are in progress.
    """

    def __init__(self, active: Container[str]) -> None:
        self.entering = 0
        self._active = active
        # The uids of submissions whose tasks are being checked.
        self._entering: list[set[str]] = []
        # Tasks that have ended and that the user still holds. Their uids stay taken.
        self._held: weakref.WeakValueDictionary[str, BaseTask] = weakref.WeakValueDictionary()

    def hold(self, task: BaseTask) -> None:
        """Keep the uid of a task that ends taken for as long as the user holds the task."""
        self._held[task["uid"]] = task

    def _is_submitted(self, uid: str) -> bool:
        return uid in self._active or uid in self._held

    @contextmanager
    def reserve(self, number: int = 1) -> Iterator[set[str]]:
        """Yield a set for the uids of one submission, which no other may use meanwhile.

        Args:
            number: Its number of tasks.
        """
        uids: set[str] = set()
        self._entering.append(uids)
        self.entering += number
        prepare_for(number)
        try:
            yield uids
        finally:
            self.entering -= number
            self._entering = [entering for entering in self._entering if entering is not uids]

    def check(self, tasks: Sequence[AnyTask], uids: set[str]) -> None:
        """Check that tasks are valid and new.

        Args:
            tasks: A part of the tasks of one submission.
            uids: The uids of its earlier parts; those of this part are added.

        Raises:
            TaskValidationError: A task is invalid or was submitted before, or its uid is taken.
        """
        others = [entering for entering in self._entering if entering is not uids]
        for task in tasks:
            if not isinstance(task, BaseTask):
                _check_mapping(task)
            uid = task["uid"]
            if not is_uid(uid):  # it was changed after the task was made
                message = must_be("uid", UID_DESCRIPTION, uid)
                raise TaskValidationError(None, message, "uid", uid)
            if getattr(task, "_future", None) is not None:
                raise TaskValidationError(uid, "it was submitted before; make a new task")
            if (
                uid in uids
                or self._is_submitted(uid)
                or any(uid in entering for entering in others)
            ):
                raise TaskValidationError(
                    uid,
                    "another task has this uid; leave 'uid' out to get a unique one",
                    "uid",
                    uid,
                )
            uids.add(uid)
            refuse_tasks_as_arguments(task)
            # A turn repeats what tools returned, such as a list of the tasks that run.
            for field in () if is_turn(task) else TEXTS:
                if text := task.get(field):
                    refuse_formatted_tasks(uid, text, self._is_submitted)
            if task.get("retries") and task.get("on_text") is not None:
                message = "'on_text' would get the text of every attempt; leave out 'retries'"
                raise TaskValidationError(uid, message, "retries", task["retries"])

    async def group(
        self, tasks: Sequence[AnyTask], router: Router, uids: set[str]
    ) -> list[tuple[Any, list[AnyTask]]]:
        """Check tasks, and group them by their backends.

        Args:
            tasks: The tasks.
            router: Chooses the backends.
            uids: A set from `reserve`.

        Returns:
            The backends, each with its tasks.

        Raises:
            TaskValidationError: As `check` and `Router.group` raise it; no task was submitted.
        """
        grouped: dict[str, tuple[Any, list[AnyTask]]] = {}
        for part in in_parts(tasks):
            self.check(part, uids)
            for task in part:
                if is_agent(task):
                    check_tools(task, router.backend_for)
            for backend, batch in router.group(part):
                grouped.setdefault(backend.name, (backend, []))[1].extend(batch)
            await after_part(tasks)
        return list(grouped.values())


def _check_mapping(task: Any) -> None:
    if not isinstance(task, MutableMapping):
        raise TaskValidationError(
            None, f"a task must be a ComputeTask, an AITask or a dict, got {type(task).__name__}"
        )
    task.setdefault("uid", BaseTask.from_dict(task)["uid"])


def refuse_tasks_as_arguments(task: AnyTask) -> None:
    """Refuse a task whose arguments are tasks: a session does not wait for them.

    Raises:
        TaskValidationError: An argument is a task.
    """
    if args := task.get("args"):
        _refuse_tasks(task["uid"], "args", args, args)
    if kwargs := task.get("kwargs"):
        _refuse_tasks(task["uid"], "kwargs", kwargs, kwargs.values())


def _refuse_tasks(uid: str, field: str, arguments: Any, values: Iterable[Any]) -> None:
    """Refuse arguments that are tasks: a session does not replace them by their results.

    In a list or another container, only tasks that are pending are refused.
    """
    for value in values:
        found = value if _is_task(value) else None
        if found is None and type(value) in CONTAINERS:
            items = value.values() if isinstance(value, dict) else value
            if any(map(_is_task_type, set(map(type, items)))):  # fast, also for many numbers
                found = next(filter(_is_pending, items), None)
        if found is not None:
            raise TaskValidationError(
                uid,
                f"'{field}' contains {brief(found)}; await it and pass its result, or use a "
                "workflow of AsyncFlow for tasks that depend on each other",
                field,
                arguments,
            )


def _is_task(value: Any) -> bool:
    return _is_task_type(type(value))


def _is_task_type(kind: type) -> bool:
    return issubclass(kind, BaseTask) or hasattr(kind, "_asyncio_future_blocking")


def _is_pending(item: Any) -> bool:
    """Return whether an object is a future, or a task that was submitted, and has not ended."""
    if isinstance(item, BaseTask) and getattr(item, "_future", None) is None:
        return False  # a description, perhaps for a session of the function
    return _is_task(item) and not item.done()
