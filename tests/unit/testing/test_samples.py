import asyncio
import subprocess

import pytest

from rhapsody.backends.protocol import EXECUTABLE, FUNCTION, PROMPT, task_kind
from rhapsody.testing import samples
from rhapsody.testing.gate import Gate

ENGINE_KEYS = {
    "uid",
    "name",
    "function",
    "executable",
    "args",
    "kwargs",
    "is_service",
    "task_backend_specific_kwargs",
    "target_backend",
    "capture_stdio",
    "workflow_id",
    "metadata",
}


@pytest.mark.parametrize("kind", [FUNCTION, EXECUTABLE, PROMPT])
def test_quick_sample_has_the_engines_keys(kind: str) -> None:
    task = samples.quick(kind, "task.1")
    assert task["uid"] == "task.1"
    assert task_kind(task) == kind
    assert task.keys() >= ENGINE_KEYS
    assert ("prompt" in task) == (kind != EXECUTABLE)
    assert ("arguments" in task) == (kind == EXECUTABLE)


def test_quick_function_returns_five() -> None:
    task = samples.quick(FUNCTION, "task.1")
    assert task["function"](*task["args"], **task["kwargs"]) == 5
    assert asyncio.run(samples.add_async(2, 3)) == 5


def test_failing_function_raises() -> None:
    task = samples.failing(FUNCTION, "task.1")
    with pytest.raises(ValueError, match="no such luck"):
        task["function"](*task["args"])


def test_failing_executable_exits_silently() -> None:
    task = samples.failing(EXECUTABLE, "task.1")
    process = subprocess.run(
        [task["executable"], *task["arguments"]], capture_output=True, check=False
    )
    assert (process.returncode, process.stdout, process.stderr) == (3, b"", b"")


async def test_held_samples_wait_at_the_gate() -> None:
    async with Gate() as gate:
        task = samples.held("async function", "task.1", gate)
        held = asyncio.ensure_future(task["function"](*task["args"]))
        await gate.started("task.1")
        gate.release("task.1")
        assert await held == "task.1"
        assert samples.held(EXECUTABLE, "task.2", gate)["executable"] == "/bin/sh"
