"""The processes of workers: what they inherit from the program, whatever kind of program it is."""

import asyncio
import multiprocessing
import os
import sys
import zipapp
from multiprocessing import shared_memory
from pathlib import Path
from typing import Any

import pytest

import rhapsody
from rhapsody.backends import ConcurrentExecutionBackend
from rhapsody.backends.concurrent import worker_process
from rhapsody.errors import BackendError
from tests.support.on_concurrent import ConcurrentRunner

ROOT = Path(rhapsody.__file__).parents[1]

UNGUARDED = """
import asyncio, enum, os, sys
from rhapsody import ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend

class Colour(enum.Enum):
    RED = 1

class Point:
    def __init__(self, x):
        self.x = x

offset = 1

def move(point):
    assert isinstance(point, Point)
    return Point(point.x + offset)

with Session([ConcurrentExecutionBackend("process", max_workers=1)]) as session:
    moved, colour = session.run([
        ComputeTask(function=move, args=[Point(1)]),
        ComputeTask(function=lambda colour: (os.getpid(), colour), args=[Colour.RED]),
    ])
assert isinstance(moved.return_value, Point), moved.exception
assert colour.return_value[0] != os.getpid()
assert colour.return_value[1] is Colour.RED
print(moved.return_value.x)
"""


async def run_python(*arguments: Any, given: str = "", **options: Any) -> str:
    """Run an interpreter and return its standard output and error."""
    options.setdefault("env", {**os.environ, "PYTHONPATH": str(ROOT)})
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        **options,
    )
    output, _ = await asyncio.wait_for(process.communicate(given.encode()), 50)
    return output.decode()


async def test_script_without_a_main_guard_works(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    assert await run_python(script) == "2\n"


async def test_script_from_standard_input_works() -> None:
    assert await run_python("-", given=UNGUARDED) == "2\n"


async def test_script_on_the_command_line_works() -> None:
    assert await run_python("-c", UNGUARDED) == "2\n"


async def test_package_run_as_a_module_works(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "__main__.py").write_text(UNGUARDED)
    assert await run_python("-m", "package", cwd=tmp_path) == "2\n"


async def test_zipapp_works(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "__main__.py").write_text(UNGUARDED)
    zipapp.create_archive(source, tmp_path / "app.pyz")
    assert await run_python(tmp_path / "app.pyz") == "2\n"


async def test_module_beside_the_script_is_importable(tmp_path: Path) -> None:
    (tmp_path / "beside.py").write_text("def answer():\n    return 42\n")
    script = tmp_path / "script.py"
    script.write_text(
        "import beside\n"
        "from rhapsody import ComputeTask, Session\n"
        "from rhapsody.backends import ConcurrentExecutionBackend\n"
        "with Session([ConcurrentExecutionBackend('process', max_workers=1)]) as session:\n"
        "    [task] = session.run(ComputeTask(function=beside.answer))\n"
        "print(task.return_value)\n"
    )
    assert await run_python(script) == "42\n"


async def test_temporary_directory_may_have_a_long_path(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 100)
    directory.mkdir()
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(directory)}
    assert await run_python(script, env=environment) == "2\n"


OPTIONS = """
import sys
from rhapsody import ComputeTask, Session
from rhapsody.backends import ConcurrentExecutionBackend

def options():
    return sys.warnoptions, sys.flags.utf8_mode, sys.flags.optimize, sys.argv

with Session([ConcurrentExecutionBackend("process", max_workers=1)]) as session:
    [task] = session.run(ComputeTask(function=options))
assert task.return_value == options(), (task.return_value, task.exception)
print(task.return_value)
"""


async def test_worker_has_the_options_of_the_interpreter() -> None:
    output = await run_python("-W", "error::FutureWarning", "-X", "utf8", "-O", "-c", OPTIONS, "x")
    assert output == "(['error::FutureWarning'], 1, 1, ['-c', 'x'])\n"


async def test_program_without_standard_error_works() -> None:
    assert await run_python("-c", "import os; os.close(2)" + UNGUARDED) == "2\n"


async def test_worker_has_the_working_directory_of_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with ConcurrentExecutionBackend("process", max_workers=1) as backend:
        assert await ConcurrentRunner(backend).call(os.getcwd) == str(tmp_path)


async def test_worker_reads_nothing_from_standard_input(processes: ConcurrentRunner) -> None:
    assert await processes.call(lambda: sys.stdin.read()) == ""


async def test_manager_of_the_program_can_be_used_in_a_task(processes: ConcurrentRunner) -> None:
    with multiprocessing.get_context("spawn").Manager() as manager:
        numbers = manager.list([1])
        await processes.call(numbers.append, 2)
        assert list(numbers) == [1, 2]


async def test_shared_memory_of_the_program_outlives_a_worker_that_used_it() -> None:
    def first_byte(name: str) -> int:
        memory = shared_memory.SharedMemory(name)
        try:
            return bytes(memory.buf or b"")[0]
        finally:
            memory.close()

    memory = shared_memory.SharedMemory(create=True, size=16)
    try:
        memory.buf[:1] = b"\x07"  # type: ignore[index]
        for _ in range(2):
            async with ConcurrentExecutionBackend("process", max_workers=1) as backend:
                assert await ConcurrentRunner(backend).call(first_byte, memory.name) == 7
    finally:
        memory.close()
        memory.unlink()


async def test_frozen_program_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    with pytest.raises(BackendError, match="this program is frozen or embedded"):
        await ConcurrentExecutionBackend("process")


def test_command_has_no_program_of_multiprocessing() -> None:
    assert not any("multiprocessing" in str(part) for part in worker_process.command())
