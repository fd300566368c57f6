"""The registry of backends by name: built-in, registered, and from installed packages.

A package provides a backend by an entry point of the group `rhapsody.backends`:

    [project.entry-points."rhapsody.backends"]
    mybatch = "my_package.backend:MyBatchBackend"
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, ClassVar

from rhapsody.backends.core.service_loop import refuse_at_end
from rhapsody.errors import ConfigurationError
from rhapsody.suggest import unknown_name

__all__ = ["ENTRY_POINT_GROUP", "BackendRegistry", "discover_backends", "get_backend"]

ENTRY_POINT_GROUP = "rhapsody.backends"

BUILT_IN = {
    "concurrent": "rhapsody.backends.concurrent:ConcurrentExecutionBackend",
    "dask": "rhapsody.backends.dask:DaskExecutionBackend",
    "dragon": "rhapsody.backends.dragon:DragonExecutionBackend",
    "dragon_v3": "rhapsody.backends.dragon:DragonExecutionBackend",  # its name in `rhapsody-py`
    "dragon_vllm": "rhapsody.backends.inference:DragonVllmInferenceBackend",
    "endpoint": "rhapsody.backends.endpoint:EndpointInferenceBackend",
    "noop": "rhapsody.backends.noop:NoopExecutionBackend",
}


class BackendRegistry:
    """Maps names to backend classes, for the whole process. Classes are imported on first use."""

    _backends: ClassVar[dict[str, type | str]] = {}

    @classmethod
    def register_backend(cls, name: str, backend_class: type | str) -> None:
        """Register a class under a name. It takes precedence over any other of that name.

        Args:
            name: The name.
            backend_class: The class, or "package.module.Class", which is imported on first use.
        """
        cls._backends[name] = backend_class

    @classmethod
    def list_backends(cls) -> list[str]:
        """Return all names, sorted."""
        return sorted({*BUILT_IN, *cls._backends, *_entry_points()})

    @classmethod
    def get_backend_class(cls, name: str) -> Any:
        """Return the class registered under a name.

        Raises:
            ConfigurationError: The name is unknown; the message lists the known names.
        """
        registered = cls._backends.get(name)
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
        raise ConfigurationError(unknown_name("backend", name, cls.list_backends()))


def _entry_points() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}


def get_backend(backend_name: str, /, *args: Any, **kwargs: Any) -> Any:
    """Create a backend by name.

    Args:
        backend_name: A name that `discover_backends` returns.
        *args: Passed to the class.
        **kwargs: Passed to the class.

    Returns:
        The backend, not started yet. Await it to start it; otherwise its first task does.

    Raises:
        ConfigurationError: The name is unknown.
        RhapsodyError: The main thread of the program has ended.
    """
    refuse_at_end()  # its module may need what Python refuses then
    return BackendRegistry.get_backend_class(backend_name)(*args, **kwargs)


def discover_backends() -> dict[str, bool]:
    """Return every known name, and whether its class can be imported."""
    return {name: _can_be_imported(name) for name in BackendRegistry.list_backends()}


def _can_be_imported(name: str) -> bool:
    try:
        BackendRegistry.get_backend_class(name)
    except Exception:
        return False
    return True
