"""The backend protocol: the one seam between those who own tasks and those who run them.

An owner is AsyncFlow's `WorkflowEngine` or Rhapsody's `Session`. The clauses here are what the
engine of `radical.asyncflow` 0.6.0 really does with a backend; `rhapsody.testing` turns each into
a test that any backend can be put to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, ClassVar, Protocol, runtime_checkable

__all__ = [
    "ALL_KINDS",
    "COMPUTE_KINDS",
    "EXECUTABLE",
    "FUNCTION",
    "PROMPT",
    "PROMPT_KINDS",
    "Backend",
    "Task",
    "TaskCallback",
    "TaskStates",
    "accepted_kinds",
    "task_kind",
    "task_name",
]

Task = MutableMapping[str, Any]
"""A task as the owner describes it: a mutable mapping that keeps its identity throughout."""

TaskCallback = Callable[[Any, str], Any]
"""Called as `callback(task, state)` on the owner's loop, with a plain `str` state."""

FUNCTION = "function"
EXECUTABLE = "executable"
PROMPT = "prompt"
COMPUTE_KINDS = frozenset({FUNCTION, EXECUTABLE})
PROMPT_KINDS = frozenset({PROMPT})
ALL_KINDS = COMPUTE_KINDS | PROMPT_KINDS


class TaskStates:
    """The states of a task: plain strings, the same ones for every backend."""

    PENDING: ClassVar[str] = "PENDING"
    RUNNING: ClassVar[str] = "RUNNING"
    DONE: ClassVar[str] = "DONE"
    FAILED: ClassVar[str] = "FAILED"
    CANCELED: ClassVar[str] = "CANCELED"
    terminal_states: ClassVar[frozenset[str]] = frozenset({DONE, FAILED, CANCELED})


def task_kind(task: Mapping[str, Any]) -> str | None:
    """Say what a task is: the first of function, executable and prompt that is set.

    AsyncFlow leaves the other keys in place with the value None, so the mere presence of a key
    says nothing.

    Args:
        task: The task's description.

    Returns:
        "function", "executable", "prompt", or None where no key is set.
    """
    for kind in (FUNCTION, EXECUTABLE, PROMPT):
        if task.get(kind):
            return kind
    return None


def task_name(task: Mapping[str, Any], kind: str | None) -> str:
    """Say what a task runs, in a word.

    Args:
        task: The task's description.
        kind: What `task_kind` says of it.

    Returns:
        The name of its function or executable, or else its kind.
    """
    if kind == FUNCTION:
        # AsyncFlow wraps functions, and notes the name of the one inside.
        name = task.get("_tel_executable") or getattr(task[FUNCTION], "__name__", None)
        return name or type(task[FUNCTION]).__name__
    return str(task[EXECUTABLE]) if kind == EXECUTABLE else kind or ""


@runtime_checkable
class Backend(Protocol):
    """What an owner may rely on.

    The owner attaches in this order: it sets `_work_dir`, creates that directory, sets
    `is_attached`, appends its uid to `attached_to`, reads `name` and the two `supports_*` flags,
    and calls `register_callback`. It never initialises a backend.
    """

    name: str
    """Not empty, never changing. Owners refuse or replace a second backend of the same name."""

    _work_dir: str
    """Directory for captured output, written by the owner, read when a task is submitted."""

    is_attached: bool
    """Set by the owner."""

    attached_to: list[str]
    """Uids of the owners so far, the latest last."""

    supports_implicit_data_linking: bool
    supports_explicit_data_linking: bool

    def register_callback(self, func: TaskCallback) -> None:
        """Keep the one callback that states are reported to; a later one replaces it.

        Raises:
            BackendInUseError: The owner behind the present callback is still open.
        """

    def get_task_states_map(self) -> Any:
        """Return an object with DONE, RUNNING, CANCELED, FAILED and `terminal_states`.

        Valid as soon as the backend exists; it does not block.
        """

    async def submit_tasks(self, tasks: list[Any]) -> Any:
        """Take tasks over and return within milliseconds.

        Never raises: a task that cannot run is reported FAILED with the reason. The mappings are
        the owner's own; results are added to them, nothing else in them changes. Each ends in
        exactly one of DONE, FAILED and CANCELED. DONE brings `return_value` (functions) or
        `stdout` (executables and prompts); FAILED brings `exception`.
        """

    async def cancel_task(self, uid: str) -> bool:
        """Stop a task and report it CANCELED.

        Returns:
            False where the uid is unknown or has ended, and then nothing is reported.
        """

    def link_implicit_data_deps(self, src_task: Any, dst_task: Any) -> Any:
        """Called between dependent tasks where `supports_implicit_data_linking` is true."""

    def link_explicit_data_deps(
        self,
        src_task: Any = None,
        dst_task: Any = None,
        file_name: str | None = None,
        file_path: str | None = None,
    ) -> Any:
        """Called per file where `supports_explicit_data_linking` is true.

        Returns:
            A dict with at least `target`, the name at the destination.
        """

    async def shutdown(self) -> None:
        """End all work and release everything. Idempotent, never raises, never blocks the loop.

        Tasks still active are reported CANCELED. The backend can be attached and used again.
        """


def accepted_kinds(backend: Any) -> frozenset[str]:
    """Say which kinds of task a backend takes.

    Args:
        backend: Any backend. Those which do not declare `task_kinds` (AsyncFlow's own, older
            third-party ones) are taken to run functions and executables.

    Returns:
        A subset of {"function", "executable", "prompt"}.
    """
    return frozenset(getattr(backend, "task_kinds", COMPUTE_KINDS))
