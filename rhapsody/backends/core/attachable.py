"""The part of a backend that owners attach to: its attributes, its callback and data linking."""

from __future__ import annotations

import os
from typing import Any

from rhapsody.backends.core.attachment import Attachment, ignore
from rhapsody.backends.core.history import TaskHistory
from rhapsody.backends.protocol import TaskCallback, TaskStates
from rhapsody.errors import BackendInUseError

__all__ = ["Attachable"]


class Attachable:
    """Accepts one open owner at a time; `rhapsody.backends.protocol.Backend` lists the calls."""

    name: str
    supports_implicit_data_linking = False
    supports_explicit_data_linking = False

    def __init__(self) -> None:
        self._work_dir = os.getcwd()
        self.is_attached = False
        self.attached_to: list[str] = []
        self._attachment: Attachment | None = None
        self._history = TaskHistory()
        self._attached_as: tuple[str, int] = (self._work_dir, 0)

    def _cancel_tasks_of(self, attachment: Attachment) -> None:
        """Cancel the tasks of an attachment."""
        raise NotImplementedError

    def register_callback(self, func: TaskCallback) -> None:
        """Attach an owner: the object whose bound method the callback is, held weakly.

        A callback of the same owner, or a plain function after another, replaces the current one.
        Tasks that an earlier, closed owner left behind are cancelled without a report.

        Args:
            func: Called as `func(task, state)` on the running loop. If no loop runs, it is called
                on the loop that first submits tasks.

        Raises:
            BackendInUseError: Another owner is still open; its attachment stays as it is.
        """
        present = self._attachment
        if present is not None:
            if present.is_same_owner(func):
                present.replace_callback(func)
                return
            owner = present.open_owner()
            if owner is not None:
                self._work_dir, owners = self._attached_as
                del self.attached_to[owners:]
                uid = getattr(owner, "uid", "")
                raise BackendInUseError(self.name, f"{type(owner).__name__} {uid}".strip())
            present.close()
            self._cancel_tasks_of(present)
        self._attachment = Attachment(func)
        self._history = self._attachment.history
        self._attached_as = (self._work_dir, len(self.attached_to))

    def reattach(
        self, func: TaskCallback, work_dir: str, history: TaskHistory | None = None
    ) -> None:
        """Attach an owner again if another one had the backend meanwhile; else do nothing.

        A shutdown of the backend lets another owner attach, while the first one is still open.

        Args:
            func: The callback, a bound method of the owner.
            work_dir: Directory for captured output.
            history: Records the tasks from now on. None: a new history.

        Raises:
            BackendInUseError: Another owner is still open.
        """
        present = self._attachment
        owner = getattr(func, "__self__", None)
        if present is not None and present.owner is not None and present.owner() is owner:
            return
        self._work_dir = work_dir
        self.attached_to.append(getattr(owner, "uid", ""))
        self.register_callback(func)
        if history is not None and self._attachment is not None:
            self._attachment.history = self._history = history

    def detach(self, owner: Any) -> None:
        """Release the backend from an owner without a shutdown, so that another can attach."""
        attachment = self._attachment
        if attachment is not None and attachment.owner is not None and attachment.owner() is owner:
            attachment.detached = True

    @property
    def _callback_func(self) -> TaskCallback:
        callback = self._attachment.callback if self._attachment is not None else None
        return callback or ignore

    @_callback_func.setter
    def _callback_func(self, func: TaskCallback | None) -> None:
        # Backends written for other versions of the protocol assign it in their constructors.
        # Not `self.register_callback`: theirs may assign this very attribute.
        if func is not None:
            Attachable.register_callback(self, func)

    @property
    def history(self) -> TaskHistory:
        """The history of the current owner's tasks; without an owner, of all tasks."""
        return self._history

    def get_task_states_map(self) -> Any:
        """Return an object with the states of tasks as attributes, and `terminal_states`."""
        return TaskStates()

    def link_implicit_data_deps(self, src_task: Any, dst_task: Any) -> None:
        """Do nothing: all tasks see the same files."""

    def link_explicit_data_deps(
        self,
        src_task: Any = None,
        dst_task: Any = None,
        file_name: str | None = None,
        file_path: str | None = None,
    ) -> dict[str, Any]:
        """Return the name of the file at its destination; the file itself stays where it is."""
        return {"target": file_name or os.path.basename(file_path or "")}
