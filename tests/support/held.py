"""A backend whose tasks stay active until a test releases them."""

import asyncio
import threading
from typing import Any

from rhapsody.backends import BaseBackend, Work
from rhapsody.backends.core.service_loop import service_loop
from rhapsody.backends.protocol import ALL_KINDS


class HeldBackend(BaseBackend):
    """Keeps tasks RUNNING until `release`; then they are DONE."""

    task_kinds = ALL_KINDS

    def __init__(self, name: str = "held") -> None:
        super().__init__(name)
        self.entered = threading.Event()
        self.cancelled: list[str] = []
        self._gate = asyncio.Event()

    async def execute(self, work: Work) -> dict[str, Any]:
        self.report_running(work)
        self.entered.set()
        try:
            await self._gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append(work.uid)
            raise
        return {"return_value": work.uid, "stdout": work.uid, "response": work.uid}

    def release(self) -> None:
        service_loop().call(self._gate.set)

    async def wait_entered(self) -> None:
        """Wait until a task is running."""
        assert await asyncio.to_thread(self.entered.wait, 20)
