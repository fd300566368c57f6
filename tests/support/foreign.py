"""A backend of another package: it has only what the protocol demands, and keeps no history."""

from typing import Any


class ForeignBackend:
    """Calls functions at their submission."""

    name = "foreign"

    def __init__(self) -> None:
        self.attached_to: list[str] = []

    async def submit_tasks(self, tasks: Any) -> None:
        for task in tasks:
            try:
                task["return_value"] = task["function"](*task["args"], **task["kwargs"])
                self.callback(task, "DONE")
            except Exception as error:
                task["exception"] = error
                self.callback(task, "FAILED")

    async def cancel_task(self, uid: str) -> bool:
        return False

    def register_callback(self, callback: Any) -> None:
        self.callback = callback

    async def shutdown(self) -> None:
        pass
