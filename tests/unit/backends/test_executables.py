"""Executables: how they are run, what comes back, and that all of them ends."""

import asyncio
import enum
import os
import pickle
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rhapsody.api.errors import TaskExecutionError, UnsupportedTaskError
from rhapsody.backends import executables
from rhapsody.backends.executables import Executable
from rhapsody.backends.guard import GuardedGroups
from tests.support.processes import wait_gone


def sh(script: str, **options: Any) -> Executable:
    return Executable("task.1", ["/bin/sh", "-c", script], **options)


async def run(executable: Executable) -> dict[str, Any]:
    children = GuardedGroups()
    try:
        return await executable.run(children)
    finally:
        children.close()


async def line_of(path: Path) -> str:
    """The first line that somebody writes to a FIFO."""

    def read() -> str:
        with path.open() as fifo:
            return fifo.readline()

    return await asyncio.wait_for(asyncio.to_thread(read), 20)


@pytest.fixture
def fifo(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "fifo")
    return tmp_path / "fifo"


async def test_output_and_exit_code_come_back() -> None:
    assert await run(sh("echo out; echo err >&2")) == {
        "stdout": "out\n",
        "stderr": "err\n",
        "exit_code": 0,
        "return_value": "out\n",
    }


async def test_bytes_that_are_not_text_are_replaced() -> None:
    fields = await run(sh(r"printf 'caf\351 \377\n'"))
    assert fields["stdout"] == "caf\N{REPLACEMENT CHARACTER} \N{REPLACEMENT CHARACTER}\n"


async def test_output_larger_than_a_pipe_comes_back_whole() -> None:
    fields = await run(sh("head -c 1000000 /dev/zero | tr '\\0' x"))
    assert len(fields["stdout"]) == 1_000_000


async def test_input_is_empty() -> None:
    assert (await run(sh("cat")))["stdout"] == ""


async def test_it_runs_where_it_is_told_to(tmp_path: Path) -> None:
    assert (await run(sh("pwd -P", cwd=str(tmp_path))))["stdout"] == f"{tmp_path.resolve()}\n"


async def test_variables_are_set_and_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GONE", "1")
    monkeypatch.setenv("KEPT", "2")
    env: Mapping[str, str | None] = {"GONE": None, "NEW": "3"}
    fields = await run(sh('echo "${GONE-none} $KEPT $NEW"', env=env))
    assert fields["stdout"] == "none 2 3\n"


async def test_secrets_are_not_handed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHAPSODY_API_KEY", "secret")
    assert (await run(sh('echo "${RHAPSODY_API_KEY-none}"')))["stdout"] == "none\n"


async def test_without_a_shell_nothing_is_expanded() -> None:
    fields = await run(Executable("task.1", ["/bin/echo", "$HOME", "*", "a b"]))
    assert fields["stdout"] == "$HOME * a b\n"


async def test_with_a_shell_everything_is() -> None:
    fields = await run(Executable("task.1", ["echo", "$((1 + 2))", "|", "tr 3 4"], shell=True))
    assert fields["stdout"] == "4\n"


async def test_captured_output_is_in_files(tmp_path: Path) -> None:
    directory = tmp_path / "made" / "when needed"
    fields = await run(sh("echo out; echo err >&2", capture_dir=str(directory)))
    assert fields["stdout"] == fields["return_value"] == str(directory / "task.1.stdout")
    assert Path(fields["stdout"]).read_text() == "out\n"
    assert Path(fields["stderr"]).read_text() == "err\n"


async def test_the_reason_of_a_failure_is_read_from_the_captured_file(tmp_path: Path) -> None:
    fields = await run(sh("echo no licence >&2; exit 4", capture_dir=str(tmp_path)))
    assert str(fields["exception"]) == "Task 'task.1' failed with exit code 4: no licence"


async def test_a_failure_has_its_exit_code_and_what_it_said() -> None:
    fields = await run(sh("echo half; echo broken >&2; exit 3"))
    error = fields["exception"]
    assert isinstance(error, TaskExecutionError)
    assert (error.task_uid, error.exit_code) == ("task.1", 3)
    assert str(error) == "Task 'task.1' failed with exit code 3: broken"
    assert (fields["stdout"], fields["exit_code"]) == ("half\n", 3)


async def test_a_silent_failure_says_so() -> None:
    fields = await run(sh("exit 3"))
    assert "exit code 3: it wrote nothing to stderr" in str(fields["exception"])


async def test_a_signal_is_named() -> None:
    fields = await run(sh("kill -KILL $$"))
    assert fields["exit_code"] == -signal.SIGKILL
    assert "ended by SIGKILL" in str(fields["exception"])


async def test_a_missing_program_is_named() -> None:
    with pytest.raises(TaskExecutionError, match=r"no such program: 'no-such-program'$"):
        await run(Executable("task.1", ["no-such-program"]))


async def test_a_program_with_blanks_gets_a_hint() -> None:
    with pytest.raises(TaskExecutionError) as caught:
        await run(Executable("task.1", ["/bin/echo hello world"]))
    assert "executable='/bin/echo', arguments=['hello', 'world'], or set shell=True" in str(
        caught.value
    )


async def test_a_program_with_an_open_quote_gets_its_reason_all_the_same() -> None:
    with pytest.raises(TaskExecutionError, match="no such program"):
        await run(Executable("task.1", ["/bin/echo it's"]))


async def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(TaskExecutionError, match=f"directory does not exist: '{missing}'"):
        await run(sh("true", cwd=missing))


async def test_a_file_that_is_no_program_is_refused_with_the_systems_words(
    tmp_path: Path,
) -> None:
    (tmp_path / "data").write_text("1\n")
    with pytest.raises(TaskExecutionError, match="could not be started: Permission denied"):
        await run(Executable("task.1", [str(tmp_path / "data")]))


async def test_its_process_is_known_while_it_runs() -> None:
    class Children(GuardedGroups):
        def discard(self, pid: object, /) -> None:
            ended.append((pid, pid in self))
            super().discard(pid)

    ended: list[tuple[object, bool]] = []
    children = Children()
    fields = await sh("echo $$").run(children)
    children.close()
    assert ended == [(int(fields["stdout"]), True)]


async def test_cancelling_ends_it_and_its_children(fifo: Path, children: GuardedGroups) -> None:
    running = asyncio.ensure_future(sh(f"sleep 60 & echo $$ $! > {fifo}; wait").run(children))
    pids = [int(pid) for pid in (await line_of(fifo)).split()]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert children == set()
    assert wait_gone(*pids) == []


async def test_cancelling_ends_what_ignores_being_asked(
    fifo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executables, "GRACE_SECONDS", 0.05)
    script = f"trap '' TERM; sleep 60 & echo $$ $! > {fifo}; wait; sleep 60"
    running = asyncio.ensure_future(run(sh(script)))
    pids = [int(pid) for pid in (await line_of(fifo)).split()]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert wait_gone(*pids) == []


async def test_a_process_that_left_its_group_does_not_hold_up_the_end(
    fifo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executables, "GRACE_SECONDS", 0.05)
    stranger = (
        "import os, sys, time; os.setsid(); "
        f"open({str(fifo)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    running = asyncio.ensure_future(run(sh(f'{sys.executable} -S -c "{stranger}" & wait')))
    pid = int(await line_of(fifo))
    try:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(running), 20)
    finally:
        os.kill(pid, signal.SIGKILL)
    assert wait_gone(pid) == []


async def test_cancelling_while_it_is_being_started_ends_its_children(fifo: Path) -> None:
    running = asyncio.ensure_future(run(sh(f"sleep 60 & echo $$ $! > {fifo}; wait")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    # The process exists by now, and the loop has not yet had the time to take it over.
    pids = [int(pid) for pid in fifo.read_text().split()]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert wait_gone(*pids) == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"cwd": 7}, "'cwd' must be a path, not 7"),
        ({"env": ["A=1"]}, "'env' must be a dict"),
    ],
)
def test_an_option_of_the_wrong_type_is_refused(options: dict[str, Any], reason: str) -> None:
    task = {"uid": "task.1", "executable": "true", "task_backend_specific_kwargs": options}
    with pytest.raises(UnsupportedTaskError, match=reason):
        Executable.from_task(task, "/tmp")


def test_a_task_is_read_with_its_options(tmp_path: Path) -> None:
    task = {
        "uid": "task.1",
        "executable": Path("/bin/echo"),
        "arguments": ["a", 1],
        "capture_stdio": True,
        "task_backend_specific_kwargs": {"cwd": tmp_path, "env": {"A": "1"}, "shell": True},
    }
    assert Executable.from_task(task, "/captured") == Executable(
        "task.1", ["/bin/echo", "a", "1"], True, str(tmp_path), {"A": "1"}, "/captured"
    )


def test_an_environment_of_any_mapping_and_values_travels_as_text() -> None:
    class Colour(enum.Enum):  # which no other process knows
        RED = 1

        def __str__(self) -> str:
            return "red"

    for env in (os.environ, {"A": Colour.RED, "B": None}):
        task = {"uid": "t", "executable": "env", "task_backend_specific_kwargs": {"env": env}}
        sent = pickle.loads(pickle.dumps(Executable.from_task(task, "")))
        assert sent.env == {k: None if v is None else str(v) for k, v in env.items()}
