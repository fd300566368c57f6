"""Routing: which backend of a session gets a task."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, MutableMapping, Sequence
from typing import Any

from rhapsody.backends.protocol import (
    PROMPT,
    accepted_kinds,
    backends_for_ai_kind,
    task_kind,
)
from rhapsody.errors import TaskValidationError
from rhapsody.inference.kinds import GENERATE

__all__ = ["Router"]


class Router:
    """Chooses the backends for the tasks of one submission.

    Args:
        backends: The session's backends by name, in the order in which they were added.
    """

    def __init__(self, backends: Mapping[str, Any]) -> None:
        self._backends = backends
        self._defaults: dict[tuple[str | None, str | None, str | None], Any] = {}

    def group(
        self, tasks: Iterable[MutableMapping[str, Any]]
    ) -> list[tuple[Any, list[MutableMapping[str, Any]]]]:
        """Group tasks by the backends that get them.

        Raises:
            TaskValidationError: As `backend_for` raises it.
        """
        batches: dict[str, list[MutableMapping[str, Any]]] = {}
        for task in tasks:
            backend = self.backend_for(task)
            name = backend.name
            if task.get("queue_timeout") is not None:
                _check_queue_timeout(task, backend)
            if name not in batches:
                batches[name] = []
            batches[name].append(task)
        return [(self._backends[name], batch) for name, batch in batches.items()]

    def backend_for(self, task: MutableMapping[str, Any]) -> Any:
        """Return the backend that a task names, or the first one that takes its kind and model.

        Raises:
            TaskValidationError: There is no such backend, or it cannot run the task.
        """
        if task.get("backend") is not None:
            return self._named_backend(task)
        key = (task_kind(task), task.get("kind"), task.get("model"))
        if key not in self._defaults:
            self._defaults[key] = self._default_backend(task)
        return self._defaults[key]

    def _backends_for_kind(self, kind: str | None) -> list[Any]:
        return [b for b in self._backends.values() if kind in accepted_kinds(b)]

    def _named_backend(self, task: MutableMapping[str, Any]) -> Any:
        name, kind = task["backend"], task_kind(task)
        backend = self._backends.get(name)
        if backend is None:
            raise TaskValidationError(
                task["uid"],
                f"the session has no backend '{name}'; it has {_quoted(self._backends)}",
                "backend",
                name,
            )
        if kind not in accepted_kinds(backend):
            able = _quoted(b.name for b in self._backends_for_kind(kind)) or "none of the session's"
            raise TaskValidationError(
                task["uid"],
                f"backend '{name}' cannot run a {kind} task; these can: {able}",
                "backend",
                name,
            )
        if kind == PROMPT:
            self._check_ai_kind(task, [backend])
        return backend

    def _check_ai_kind(self, task: MutableMapping[str, Any], backends: Sequence[Any]) -> list[Any]:
        """Return the backends that take the kind of an AI task, those that surely do first."""
        kind = task.get("kind") or GENERATE
        able = backends_for_ai_kind(backends, kind)
        if not able:
            others = _quoted(
                b.name for b in backends_for_ai_kind(self._backends_for_kind(PROMPT), kind)
            )
            raise TaskValidationError(
                task["uid"],
                f"{_quoted(b.name for b in backends)} cannot run an AI task of kind '{kind}'; "
                f"these can: {others or 'none of the session'}",
                "kind",
                kind,
            )
        return able

    def _default_backend(self, task: MutableMapping[str, Any]) -> Any:
        kind, model = task_kind(task), task.get("model")
        able = self._backends_for_kind(kind)
        if not able:
            raise TaskValidationError(
                task["uid"],
                f"no backend of the session runs {kind} tasks; it has {_quoted(self._backends)}",
            )
        if kind == PROMPT:
            able = self._check_ai_kind(task, able)
        if model is None:
            return able[0]
        for backend in able:
            if getattr(backend, "model_name", None) == model:
                return backend
        for backend in able:
            if getattr(backend, "model_name", None) == "":  # it asks its server at its start
                return backend
        served = _quoted(str(getattr(backend, "model_name", None)) for backend in able)
        raise TaskValidationError(
            task["uid"],
            f"no backend serves the model '{model}'; served: {served}",
            "model",
            model,
        )


def _check_queue_timeout(task: MutableMapping[str, Any], backend: Any) -> None:
    """Refuse a limit of the wait at a backend that does not say when the wait ends."""
    if task_kind(task) != PROMPT and getattr(backend, "reports_running", False):
        return
    raise TaskValidationError(
        task["uid"],
        f"backend '{backend.name}' does not report when a {task_kind(task)} task starts, so "
        "'queue_timeout' cannot limit its wait; use 'timeout'",
        "queue_timeout",
        task["queue_timeout"],
    )


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)
