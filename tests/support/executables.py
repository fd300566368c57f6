"""Runs executables without a backend."""

from typing import Any

from rhapsody.backends.executables.executable import Executable
from rhapsody.backends.executables.guard import GuardedGroups


async def run(executable: Executable) -> dict[str, Any]:
    children = GuardedGroups()
    try:
        return await executable.run(children)
    finally:
        children.close()
