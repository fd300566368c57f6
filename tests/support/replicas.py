"""Replicas without servers, for faults that no server can be brought to."""

import asyncio
from collections.abc import Sequence

from rhapsody.api.errors import ReplicaError
from rhapsody.inference.prompts import Completion, PromptRequest


class FakeReplica:
    """Starts at once, lives until `die` is called, and answers by a script.

    Args:
        index: Its number.
        in_flight: Prompts it has already.
        state: Its state.
    """

    def __init__(self, index: int, in_flight: int = 0, state: str = "READY") -> None:
        self.index = index
        self.in_flight = in_flight
        self.state = state
        self.limit = 8
        self.restarts = 0
        self.taken: list[PromptRequest] = []
        self.starts = 0
        self.fail_starts = 0
        self.loses = False
        self.watching: Exception | None = None
        self._deaths: asyncio.Queue[str] = asyncio.Queue()

    @property
    def room(self) -> int:
        return max(self.limit - self.in_flight, 0)

    def log_tail(self) -> str:
        return f"last words of {self.index}"

    async def start(self, timeout: float) -> None:
        self.starts += 1
        if self.fail_starts:
            self.fail_starts -= 1
            self.state = "DEAD"
            raise ReplicaError(f"model server {self.index} exited with code 1 while it started")
        self.state = "READY"

    async def until_dead(self, interval: float) -> str:
        if self.watching is not None:
            raise self.watching
        return await self._deaths.get()

    def die(self, reason: str = "exited with code -9") -> None:
        self._deaths.put_nowait(reason)

    async def end(self, state: str = "DEAD") -> None:
        self.state = state

    def kill(self) -> None:
        self.state = "KILLED"

    def take(self, requests: Sequence[PromptRequest]) -> None:
        self.in_flight += len(requests)
        self.taken.extend(requests)
        for request in requests:
            request.replica = self

    async def answer(self, requests: Sequence[PromptRequest]) -> list[PromptRequest]:
        self.in_flight -= len(requests)
        if self.loses:
            return list(requests)
        for request in requests:
            request.finish(Completion([f"from {self.index}"], ["stop"], {}))
        return []
