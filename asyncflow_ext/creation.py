"""The making of an engine: a coroutine that can also be entered by `async with`."""

from __future__ import annotations

from collections.abc import Coroutine, Generator
from types import TracebackType
from typing import Any, Generic, TypeVar

__all__ = ["Creation"]

E = TypeVar("E")


class Creation(Coroutine[Any, Any, E], Generic[E]):
    """Await it for the engine, or `async with` it to have the engine shut down at the end.

    Args:
        coroutine: Makes the engine.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, E]) -> None:
        self._coroutine = coroutine
        self._engine: Any = None

    def send(self, value: Any) -> Any:
        """As of any coroutine."""
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        """As of any coroutine."""
        return self._coroutine.throw(*error)

    def close(self) -> None:
        """As of any coroutine."""
        self._coroutine.close()

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(
            f"the engine has not been made yet, so it has no '{name}': write "
            "flow = await WorkflowEngine.create(...), or async with WorkflowEngine.create(...)"
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
