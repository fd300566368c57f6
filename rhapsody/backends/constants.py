"""Task states under the names of `rhapsody-py`; `rhapsody.backends.TaskStates` has the strings.

Rhapsody's own backends report the strings of `TaskStates`. A backend written for `rhapsody-py` may
register other states with `StateMapper`, and its owner translates what it reports.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, ClassVar

from rhapsody.backends.protocol import TaskStates
from rhapsody.errors import ConfigurationError

__all__ = ["BackendMainStates", "StateMapper", "TasksMainStates"]


class BackendMainStates(Enum):
    """The states of a backend itself, which backends written for `rhapsody-py` keep."""

    INITIALIZED = "INITIALIZED"
    RUNNING = "RUNNING"
    SHUTDOWN = "SHUTDOWN"


class TasksMainStates(Enum):
    """The states that a backend reports; each value is the string in `task.state`."""

    DONE = TaskStates.DONE
    FAILED = TaskStates.FAILED
    CANCELED = TaskStates.CANCELED
    RUNNING = TaskStates.RUNNING


DEFAULT_STATES: dict[TasksMainStates, Any] = {state: state.value for state in TasksMainStates}


class StateMapper:
    """The states that one backend reports, as attributes.

    Args:
        backend: A backend, or the name under which its states were registered. A backend without
            registered states has those of `TaskStates`.

    Attributes:
        backend_name: The name, in lower case. That of a backend is the name of its class.
        backend_module: The backend; None if only its name was given.

    Raises:
        ConfigurationError: No states are registered under the name.
    """

    _backend_registry: ClassVar[dict[str, dict[TasksMainStates, Any]]] = {}

    def __init__(self, backend: Any) -> None:
        self.backend_name = _key(backend)
        self.backend_module = None if isinstance(backend, str) else backend
        states = self._backend_registry.get(self.backend_name)
        if states is None:
            if isinstance(backend, str):
                known = ", ".join(sorted(self._backend_registry)) or "none"
                raise ConfigurationError(
                    f"no task states are registered for the backend '{backend}'; registered: "
                    f"{known}. Call StateMapper.register_backend_tasks_states_with_defaults"
                )
            states = DEFAULT_STATES
        self._states = dict(states)
        self.DONE = states[TasksMainStates.DONE]
        self.FAILED = states[TasksMainStates.FAILED]
        self.CANCELED = states[TasksMainStates.CANCELED]
        self.RUNNING = states[TasksMainStates.RUNNING]

    @property
    def terminal_states(self) -> tuple[Any, Any, Any]:
        """The backend's states of tasks that have ended."""
        return (self.DONE, self.FAILED, self.CANCELED)

    def to_main_state(self, backend_state: Any) -> TasksMainStates:
        """Return what a state of the backend means.

        Raises:
            ValueError: The backend has no such state.
        """
        for main, state in self._states.items():
            if state == backend_state:
                return main
        known = ", ".join(repr(state) for state in self._states.values())
        raise ValueError(f"unknown state {backend_state!r} of {self.backend_name}; known: {known}")

    def get_backend_state(self, main_state: TasksMainStates | str) -> Any:
        """Return the backend's own state for a main state, or for the name of one.

        Raises:
            ValueError: There is no main state of this name.
        """
        return self._states[TasksMainStates(main_state)]

    @classmethod
    def register_backend_tasks_states(
        cls,
        backend: Any,
        done_state: Any,
        failed_state: Any,
        canceled_state: Any,
        running_state: Any,
    ) -> None:
        """Register the states that a backend reports instead of those of `TaskStates`.

        Args:
            backend: The backend, or a name for `StateMapper`.
            done_state: Its state for DONE.
            failed_state: Its state for FAILED.
            canceled_state: Its state for CANCELED.
            running_state: Its state for RUNNING.
        """
        cls._backend_registry[_key(backend)] = {
            TasksMainStates.DONE: done_state,
            TasksMainStates.FAILED: failed_state,
            TasksMainStates.CANCELED: canceled_state,
            TasksMainStates.RUNNING: running_state,
        }

    @classmethod
    def register_backend_tasks_states_with_defaults(cls, backend: Any) -> None:
        """Register that a backend reports the states of `TaskStates`."""
        cls._backend_registry[_key(backend)] = DEFAULT_STATES

    @classmethod
    def register_backend_states(
        cls, backend: Any, initialized_state: Any, running_state: Any, shutdown_state: Any
    ) -> None:
        """Do nothing: the states of a backend itself are only read by the backend."""

    @classmethod
    def register_backend_states_with_defaults(cls, backend: Any) -> None:
        """Do nothing, as `register_backend_states`."""


def _key(backend: Any) -> str:
    """Return the name of a backend's states: modules and classes have one, objects their class."""
    name = backend if isinstance(backend, str) else getattr(backend, "__name__", None)
    return str(name or type(backend).__name__).lower()
