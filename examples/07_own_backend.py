"""Your own backend: one class with one coroutine, registered and created by name.

`BaseBackend` implements what all backends share: attachment, delivery of results on the right loop,
one end for each task, time limits, cancellation, start and shutdown. The subclass only runs a task,
here as an executable under `nice`; `srun` or `ssh node7` would work as well. Needs only Rhapsody,
and `nice`, which every Unix has. Takes 2 seconds.

    python examples/07_own_backend.py
"""

import asyncio
import tempfile
from dataclasses import replace
from typing import Any

from radical.asyncflow import WorkflowEngine

from rhapsody import ComputeTask, Session, discover_backends, get_backend
from rhapsody.backends import BackendRegistry, BaseBackend, Work
from rhapsody.backends.executables.executable import Executable
from rhapsody.backends.executables.guard import GuardedGroups


class NiceBackend(BaseBackend):
    """Runs executables at a low priority, a few at a time."""

    task_kinds = frozenset({"executable"})

    def __init__(self, niceness: int = 10, limit: int = 2, name: str = "nice") -> None:
        super().__init__(name)
        self.prefix = ["nice", "-n", str(niceness)]
        self.limit = limit
        self.children = GuardedGroups()

    async def start(self) -> None:
        self.slots = asyncio.Semaphore(self.limit)

    async def stop(self) -> None:
        await asyncio.to_thread(self.children.close)

    async def execute(self, work: Work) -> dict[str, Any]:
        executable = Executable.from_task(work.task, work.work_dir)
        async with self.slots:
            self.report_running(work)
            command = [*self.prefix, *executable.command]
            return await replace(executable, command=command).run(self.children)


async def main() -> None:
    # A package uses an entry point of the group "rhapsody.backends" instead.
    BackendRegistry.register_backend("nice", NiceBackend)
    print("Backends:", ", ".join(discover_backends()))

    async with Session(get_backend("nice", 5)) as session:
        # Without arguments, `nice` prints its niceness.
        good = [ComputeTask(executable="nice") for _ in range(4)]
        slow = ComputeTask(executable="sleep", arguments=["60"], timeout=0.2)
        await session.submit_tasks([*good, slow])
        await session.wait_tasks([*good, slow])
        print("In a Session, niceness:", [int(task.stdout) for task in good])
        print("Stopped by its timeout:", slow.exception)

    with tempfile.TemporaryDirectory() as folder:
        flow = await WorkflowEngine.create(backend=get_backend("nice"), work_dir=folder)

        @flow.executable_task
        async def niceness() -> str:
            return "nice"

        print("In AsyncFlow, niceness:", int(await niceness()))
        await flow.shutdown()


if __name__ == "__main__":
    asyncio.run(main())
