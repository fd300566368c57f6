"""Tasks on a concurrent backend."""

import os
import signal
from typing import Any

from rhapsody.testing import samples
from rhapsody.testing.gate import Gate
from tests.support import functions
from tests.support.runner import TaskRunner


class ConcurrentRunner(TaskRunner):
    """Describes tasks, submits them and waits for their ends."""

    def function(self, function: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return samples.function(self.next_uid(), function, *args, **kwargs)

    async def call(self, function: Any, *args: Any, **kwargs: Any) -> Any:
        """Run a function and return its value, or raise its exception."""
        task = self.function(function, *args, **kwargs)
        if await self.run(task) == ["DONE"]:
            return task["return_value"]
        raise task["exception"]


async def cancel_one_and_kill_worker(runner: ConcurrentRunner, gate: Gate) -> list[str]:
    """Kill a worker that runs a task while ten wait, one of them cancelled; return all ends."""
    worker = await runner.call(functions.pid)
    held = samples.held("function", "held", gate)
    queued = [runner.function(functions.add, n) for n in range(10)]
    await runner.submit(held)
    await gate.started("held")  # before the others: calls are pickled in threads, in any order
    await runner.submit(*queued)
    cancelled = queued.pop(5)  # not one of the first, which the pool has passed to its processes
    assert await runner.backend.cancel_task(cancelled["uid"])
    os.kill(worker, signal.SIGKILL)
    return [await runner.end(task) for task in (held, *queued, cancelled)]
