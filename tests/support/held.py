"""A backend whose tasks stay active until they are let go."""

import asyncio
import threading
from typing import Any

from rhapsody.backends import BaseBackend, Work
from rhapsody.backends.protocol import ALL_KINDS
from rhapsody.backends.service import service_loop


class HeldBackend(BaseBackend):
    """Runs nothing: a task is RUNNING until `release`, and DONE then."""

    task_kinds = ALL_KINDS

    def __init__(self, name: str = "held") -> None:
        super().__init__(name)
        self.entered = threading.Event()
        self.cancelled: list[str] = []
        self._gate = asyncio.Event()

    async def execute(self, work: Work) -> dict[str, Any]:
        self.running(work)
        self.entered.set()
        try:
            await self._gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(work.uid)
            raise
        return {"return_value": work.uid, "stdout": work.uid, "response": work.uid}

    def release(self) -> None:
        service_loop().call(self._gate.set)

    async def has_begun(self) -> None:
        """Wait until a task is inside."""
        assert await asyncio.to_thread(self.entered.wait, 20)
