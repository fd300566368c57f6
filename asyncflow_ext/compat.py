"""Compatibility with AsyncFlow: a check of its internals, `Creation`, and component registers."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Coroutine, Generator, Iterator, Mapping, MutableMapping, Set
from functools import partial
from importlib.metadata import version
from types import TracebackType
from typing import Any, Generic, TypeVar
from weakref import KeyedRef, ref

from radical.asyncflow import WorkflowEngine as StockEngine

from asyncflow_ext.component import Component, Stage

__all__ = [
    "SUPPORTED",
    "Components",
    "Creation",
    "Dependencies",
    "Resolved",
    "Running",
    "check_stock",
]

SUPPORTED = "0.6"

ENDED = 10_000
"""The number of components that can be read after their end."""

AT_BACKEND = frozenset(
    {
        Stage.SUBMITTING,
        Stage.SUBMITTED,
        Stage.CANCEL_PENDING,
        Stage.CANCELLING,
        Stage.TIMEOUT_PENDING,
        Stage.TIMING_OUT,
    }
)
"""The stages of a component that a backend has."""

METHODS = {
    "_attach_backend": ["self", "backend"],
    "_emit": ["self", "event_name", "task_id", "backend", "workflow_id", "kwargs"],
    "_register_decorator": ["self", "comp_type", "task_type"],
    "_setup_execution_backend": ["backend", "dry_run"],
    "_setup_signal_handlers": ["self"],
    "_start_async_components": ["self"],
    "shutdown": ["self", "skip_execution_backend"],
    "task_callbacks": ["self", "task", "state", "service_callback"],
}
"""Methods that the engine calls or overrides, with their parameters."""

ATTRIBUTES = (
    "_data_linking",
    "_default_backend_name",
    "_links_explicit_data",
    "_links_implicit_data",
    "_shutdown_event",
    "_telemetry",
    "_workflow_id_ctx",
    "components",
    "dependencies",
    "running",
    "task_states_map",
)
"""Attributes that the stock constructor sets and the engine uses."""


def check_stock(engine: type = StockEngine) -> None:
    """Check that AsyncFlow has the internals that the engine uses.

    Args:
        engine: The class of the stock engine.

    Raises:
        ImportError: Some differ; the message names them and the supported version.
    """
    changed = []
    for name, expected in METHODS.items():
        method = getattr(engine, name, None)
        if method is None or list(inspect.signature(method).parameters) != expected:
            changed.append(name)
    constructor_names = inspect.unwrap(engine.__init__).__code__.co_names  # type: ignore[misc]
    changed += [name for name in ATTRIBUTES if name not in constructor_names]
    if changed:
        raise ImportError(
            f"asyncflow_ext.WorkflowEngine supports radical.asyncflow {SUPPORTED}; the installed "
            f"{version('radical.asyncflow')} has changed: {', '.join(changed)}. Install "
            f"'radical.asyncflow=={SUPPORTED}.*', or use the stock engine with extend()"
        )


E = TypeVar("E")


class Creation(Coroutine[Any, Any, E], Generic[E]):
    """The creation of an engine: await it, or use `async with`, which also shuts the engine down.

    Args:
        coroutine: Creates the engine.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, E]) -> None:
        self._coroutine = coroutine
        self._engine: Any = None

    def send(self, value: Any) -> Any:
        """Implement `Coroutine`."""
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """Implement `Coroutine`."""
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """Implement `Coroutine`."""
        self._coroutine.close()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"the engine is not created yet and has no '{name}'; write "
            "flow = await WorkflowEngine.create(...) or async with WorkflowEngine.create(...)"
        )

    def __await__(self) -> Generator[Any, Any, E]:
        return self._coroutine.__await__()

    async def __aenter__(self) -> E:
        self._engine = await self._coroutine
        return self._engine  # type: ignore[no-any-return]

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._engine.shutdown()


class Components(MutableMapping[str, Any]):
    """Components by uid, as the stock engine's `components`.

    Active components, and those of the last `ENDED` that ended which the program still refers to:
    a register does not keep results in memory.

    Attributes:
        active: The components that have not ended; the engine uses it directly.
    """

    def __init__(self) -> None:
        self.active: dict[str, Any] = {}
        self._ended: OrderedDict[str, KeyedRef[str, Component]] = OrderedDict()
        self._forget = partial(_forget, ref(self))

    def end(self, component: Component) -> None:
        """Move a component to those that ended."""
        if self.active.pop(component.uid, None) is None:
            return
        self._ended[component.uid] = KeyedRef(component, self._forget, component.uid)
        if len(self._ended) > ENDED:
            self._ended.popitem(last=False)

    def count_active(self) -> int:
        """Return the number of components that have not ended."""
        return len(self.active)

    def __getitem__(self, uid: str) -> Any:
        if uid in self.active:
            return self.active[uid]
        component = self._ended[uid]()
        if component is None:
            raise KeyError(uid)
        return component

    def __setitem__(self, uid: str, component: Any) -> None:
        self.active[uid] = component

    def __delitem__(self, uid: str) -> None:
        if self.active.pop(uid, None) is None:
            del self._ended[uid]

    def __iter__(self) -> Iterator[str]:
        yield from [uid for uid, component in self._ended.items() if component() is not None]
        yield from list(self.active)

    def __len__(self) -> int:
        return sum(component() is not None for component in self._ended.values()) + len(self.active)

    def __repr__(self) -> str:
        return repr(dict(self))

    def is_resolved(self, uid: object) -> bool:
        """Return whether the dependencies of a component are done, or it has ended."""
        if uid in self._ended:
            return True
        component = self.active.get(str(uid))
        return isinstance(component, Component) and component.stage > Stage.WAITING


def _forget(components: ref[Components], gone: KeyedRef[str, Component]) -> None:
    """Forget a component that nobody refers to any more."""
    register = components()
    if register is not None:
        register._ended.pop(gone.key, None)


class _Uids(Set[str]):
    """Some of the uids in a register of components.

    Args:
        components: The register.
    """

    def __init__(self, components: Components) -> None:
        self._components = components

    @classmethod
    def _from_iterable(cls, uids: Any) -> Any:
        return set(uids)

    def __iter__(self) -> Iterator[str]:
        return (uid for uid in self._components if uid in self)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __repr__(self) -> str:
        return repr(set(self))


class Running(_Uids):
    """The uids of components that a backend has, as the stock engine's `running`."""

    def __contains__(self, uid: object) -> bool:
        component = self._components.active.get(str(uid))
        return isinstance(component, Component) and component.stage in AT_BACKEND


class Dependencies(Mapping[str, Any]):
    """The dependencies of active components by uid, as the stock engine's `dependencies`.

    Args:
        components: The register of components.
    """

    def __init__(self, components: Components) -> None:
        self._components = components

    def __getitem__(self, uid: str) -> Any:
        return self._components.active[uid].description["metadata"]["dependencies"]

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._components.active))

    def __len__(self) -> int:
        return len(self._components.active)

    def __repr__(self) -> str:
        return repr(dict(self))


class Resolved(_Uids):
    """The uids of components whose dependencies are done, as the stock engine's `resolved`."""

    def __contains__(self, uid: object) -> bool:
        return self._components.is_resolved(uid)
