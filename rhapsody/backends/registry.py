"""Backends by name: those that come with Rhapsody, and third parties' by entry point.

A package offers a backend by the entry-point group `rhapsody.backends`:

    [project.entry-points."rhapsody.backends"]
    mybatch = "my_package.backend:MyBatchBackend"
"""

from __future__ import annotations

import difflib
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar

from rhapsody.api.errors import ConfigurationError

__all__ = ["ENTRY_POINT_GROUP", "BackendRegistry", "discover_backends", "get_backend"]

ENTRY_POINT_GROUP = "rhapsody.backends"

BUILT_IN = {
    "concurrent": "rhapsody.backends.concurrent:ConcurrentExecutionBackend",
    "dask": "rhapsody.backends.dask:DaskExecutionBackend",
    "dragon": "rhapsody.backends.dragon:DragonExecutionBackend",
    "dragon_vllm": "rhapsody.backends.inference:DragonVllmInferenceBackend",
    "noop": "rhapsody.backends.noop:NoopExecutionBackend",
}


class BackendRegistry:
    """Names to backend classes, for the whole process; a class is imported when asked for."""

    _registered: ClassVar[dict[str, type | str]] = {}

    @classmethod
    def register_backend(cls, name: str, backend_class: type | str) -> None:
        """Add a class under a name; it goes before one of the same name from elsewhere.

        Args:
            name: The name.
            backend_class: The class, or "package.module.Class", imported when it is asked for.
        """
        cls._registered[name] = backend_class

    @classmethod
    def list_backends(cls) -> list[str]:
        """Return all names, sorted."""
        return sorted({*BUILT_IN, *cls._registered, *_entry_points()})

    @classmethod
    def get_backend_class(cls, name: str) -> Any:
        """Return the class of a name.

        Raises:
            ConfigurationError: There is no such name; the message lists those there are.
        """
        registered = cls._registered.get(name)
        if isinstance(registered, str):
            module, _, attribute = registered.rpartition(".")
            return getattr(import_module(module), attribute)
        if registered is not None:
            return registered
        if name in BUILT_IN:
            module, _, attribute = BUILT_IN[name].partition(":")
            return getattr(import_module(module), attribute)
        offered = _entry_points()
        if name in offered:
            return offered[name].load()
        known = cls.list_backends()
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        raise ConfigurationError(f"there is no backend '{name}'; {hint}known: {', '.join(known)}")


def _entry_points() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}


def get_backend(backend_name: str, /, *args: Any, **kwargs: Any) -> Any:
    """Make a backend by name; await it, or let it start by itself.

    Args:
        backend_name: A name that `discover_backends` knows.
        *args: Passed to the class.
        **kwargs: Passed to the class.

    Returns:
        The backend, not yet started.

    Raises:
        ConfigurationError: There is no such name.
    """
    return BackendRegistry.get_backend_class(backend_name)(*args, **kwargs)


def discover_backends() -> dict[str, bool]:
    """Return every known name, with False where its class cannot be imported here."""
    return {name: _can_be_had(name) for name in BackendRegistry.list_backends()}


def _can_be_had(name: str) -> bool:
    try:
        BackendRegistry.get_backend_class(name)
    except Exception:
        return False
    return True
