"""Which of a session's backends gets a task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping
from typing import Any

from rhapsody.api.errors import TaskValidationError
from rhapsody.backends.protocol import accepted_kinds, task_kind

__all__ = ["Router"]


class Router:
    """Chooses backends for the tasks of one submission.

    Args:
        backends: The session's backends by name, in the order in which they were added.
    """

    def __init__(self, backends: Mapping[str, Any]) -> None:
        self._backends = backends
        self._defaults: dict[tuple[str | None, str | None], Any] = {}

    def backend_of(self, task: MutableMapping[str, Any]) -> Any:
        """Return the backend that a task names, or else the first that takes its kind.

        Raises:
            TaskValidationError: There is no such backend, or it cannot run the task.
        """
        if task.get("backend") is not None:
            return self._named(task)
        wanted = (task_kind(task), task.get("model"))
        if wanted not in self._defaults:
            self._defaults[wanted] = self._default(task)
        return self._defaults[wanted]

    def _able(self, kind: str | None) -> list[Any]:
        return [b for b in self._backends.values() if kind in accepted_kinds(b)]

    def _named(self, task: MutableMapping[str, Any]) -> Any:
        name, kind = task["backend"], task_kind(task)
        backend = self._backends.get(name)
        if backend is None:
            raise TaskValidationError(
                task["uid"],
                f"the session has no backend '{name}'; it has {_names(self._backends)}",
                "backend",
                name,
            )
        if kind not in accepted_kinds(backend):
            able = _names(b.name for b in self._able(kind)) or "none of the session's"
            raise TaskValidationError(
                task["uid"],
                f"backend '{name}' cannot run a {kind} task; these can: {able}",
                "backend",
                name,
            )
        return backend

    def _default(self, task: MutableMapping[str, Any]) -> Any:
        kind, model = task_kind(task), task.get("model")
        able = self._able(kind)
        if not able:
            raise TaskValidationError(
                task["uid"],
                f"no backend of the session takes {kind} tasks; it has {_names(self._backends)}",
            )
        if model is None:
            return able[0]
        for backend in able:
            if getattr(backend, "model_name", None) == model:
                return backend
        served = _names(str(getattr(backend, "model_name", None)) for backend in able)
        raise TaskValidationError(
            task["uid"],
            f"no backend serves the model '{model}'; served: {served}",
            "model",
            model,
        )


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
