"""CPUs and memory that functions in threads lend to executables while they wait for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from rhapsody.backends.core.accounts import Account, Grant, Request
from rhapsody.backends.core.work import Work

__all__ = ["LentResources"]


class LentResources:
    """Resources of functions that wait, for the executables of such functions. Not thread-safe.

    If functions hold all CPUs and each waits for an executable that asks for some, they would
    otherwise wait for ever.

    Args:
        account: The resources of this machine.
        is_gone: Returns whether an executable needs no start any more.
    """

    def __init__(self, account: Account, is_gone: Callable[[Work], bool]) -> None:
        self._account = account
        self._is_gone = is_gone
        self._lenders: set[Work] = set()
        self._borrowed: dict[Work, Request] = {}
        self._waiting: dict[Request, dict[Work, None]] = {}

    def __bool__(self) -> bool:
        """Whether executables wait for resources."""
        return bool(self._waiting)

    def lend(self, function: Work) -> None:
        """Lend the resources of a function that waits from now on."""
        self._lenders.add(function)

    def take_back(self, function: Work) -> None:
        """Lend the resources of a function to no further executable."""
        self._lenders.discard(function)

    def add(self, executable: Work, request: Request) -> None:
        """Add an executable that a function may wait for."""
        self._waiting.setdefault(request, {})[executable] = None

    def drop(self, executable: Work, request: Request) -> None:
        """Drop an executable that has its resources."""
        group = self._waiting.get(request)
        if group is not None:
            group.pop(executable, None)
            if not group:
                del self._waiting[request]

    def take(self) -> tuple[Work, Grant] | None:
        """Remove the next executable that can start, and charge what it does not borrow."""
        for request in tuple(self._waiting):
            executable = self._first(request)
            if executable is None:
                continue
            charged = self._without_lent(request)
            grant = self._account.take(charged, inside=True)
            if grant is not None:
                self.drop(executable, request)
                self._borrowed[executable] = Request(
                    cpus=request.cpus - charged.cpus, memory=request.memory - charged.memory
                )
                return executable, grant
        return None

    def release(self, executable: Work) -> None:
        """Return what an executable has borrowed."""
        self._borrowed.pop(executable, None)

    def _first(self, request: Request) -> Work | None:
        for executable in tuple(self._waiting[request]):
            if not self._is_gone(executable):
                return executable
            self.drop(executable, request)
        return None

    def _without_lent(self, request: Request) -> Request:
        lent = [function.grant.request for function in self._lenders if function.grant is not None]
        borrowed = self._borrowed.values()
        cpus = sum(one.cpus for one in lent) - sum(one.cpus for one in borrowed)
        memory = sum(one.memory for one in lent) - sum(one.memory for one in borrowed)
        return replace(
            request,
            cpus=request.cpus - min(request.cpus, max(0, cpus)),
            memory=request.memory - min(request.memory, max(0, memory)),
        )
