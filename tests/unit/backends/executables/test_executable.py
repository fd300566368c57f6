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

from rhapsody import processes
from rhapsody.backends.executables.executable import Executable
from rhapsody.backends.executables.guard import GuardedGroups
from rhapsody.errors import TaskExecutionError, UnsupportedTaskError
from tests.support.executables import run
from tests.support.processes import wait_gone
from tests.support.waiting import LIMIT_S
from tests.unit.backends.executables.conftest import Fifo


def sh(script: str, **options: Any) -> Executable:
    return Executable("task.1", ["/bin/sh", "-c", script], **options)


async def test_run_returns_output_and_exit_code() -> None:
    assert await run(sh("echo out; echo err >&2")) == {
        "stdout": "out\n",
        "stderr": "err\n",
        "exit_code": 0,
        "return_value": "out\n",
    }


async def test_undecodable_bytes_are_replaced() -> None:
    fields = await run(sh(r"printf 'caf\351 \377\n'"))
    assert fields["stdout"] == "caf\N{REPLACEMENT CHARACTER} \N{REPLACEMENT CHARACTER}\n"


async def test_output_larger_than_a_pipe_is_complete() -> None:
    fields = await run(sh("head -c 1000000 /dev/zero | tr '\\0' x"))
    assert len(fields["stdout"]) == 1_000_000


def described(**options: Any) -> dict[str, Any]:
    what = {"uid": "task.1", "executable": "cat"}
    return {**what, "task_backend_specific_kwargs": options}


async def test_text_that_no_program_can_take_is_refused() -> None:
    null = {"uid": "task.1", "executable": "echo", "arguments": ["a\0b"]}
    for task in (null, described(env={"A=B": "1"}), described(env={"A": "\0"})):
        with pytest.raises(TaskExecutionError, match=r"'(echo|cat)' could not be started: "):
            await run(Executable.from_task(task, ""))


async def test_captured_output_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    task = {"uid": "long" * 100, "executable": "true", "capture_stdio": True}
    with pytest.raises(TaskExecutionError, match=r"cannot be written to '.*stdout': File name"):
        await run(Executable.from_task(task, str(tmp_path)))


async def test_cwd_sets_working_directory(tmp_path: Path) -> None:
    assert (await run(sh("pwd -P", cwd=str(tmp_path))))["stdout"] == f"{tmp_path.resolve()}\n"


async def test_env_sets_and_removes_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GONE", "1")
    monkeypatch.setenv("KEPT", "2")
    env: Mapping[str, str | None] = {"GONE": None, "NEW": "3"}
    fields = await run(sh('echo "${GONE-none} $KEPT $NEW"', env=env))
    assert fields["stdout"] == "none 2 3\n"


async def test_environment_has_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RHAPSODY_API_KEY", "secret")
    assert (await run(sh('echo "${RHAPSODY_API_KEY-none}"')))["stdout"] == "none\n"


async def test_command_is_not_expanded_without_shell() -> None:
    fields = await run(Executable("task.1", ["/bin/echo", "$HOME", "*", "a b"]))
    assert fields["stdout"] == "$HOME * a b\n"


async def test_command_is_expanded_with_shell() -> None:
    fields = await run(Executable("task.1", ["echo", "$((1 + 2))", "|", "tr 3 4"], shell=True))
    assert fields["stdout"] == "4\n"


async def test_captured_output_is_in_files(tmp_path: Path) -> None:
    directory = tmp_path / "made" / "when needed"
    fields = await run(sh("echo out; echo err >&2", capture_dir=str(directory)))
    assert fields["stdout"] == fields["return_value"] == str(directory / "task.1.stdout")
    assert Path(fields["stdout"]).read_text() == "out\n"
    assert Path(fields["stderr"]).read_text() == "err\n"


async def test_failure_message_quotes_captured_stderr(tmp_path: Path) -> None:
    fields = await run(sh("echo no licence >&2; exit 4", capture_dir=str(tmp_path)))
    assert str(fields["exception"]) == "Task 'task.1' failed with exit code 4: no licence"


async def test_failure_message_has_exit_code_and_stderr() -> None:
    fields = await run(sh("echo half; echo broken >&2; exit 3"))
    error = fields["exception"]
    assert isinstance(error, TaskExecutionError)
    assert (error.task_uid, error.exit_code) == ("task.1", 3)
    assert str(error) == "Task 'task.1' failed with exit code 3: broken"
    assert (fields["stdout"], fields["exit_code"]) == ("half\n", 3)


async def test_failure_message_without_stderr() -> None:
    fields = await run(sh("exit 3"))
    assert "exit code 3: it wrote nothing to stderr" in str(fields["exception"])


async def test_failure_message_names_signal() -> None:
    fields = await run(sh("kill -KILL $$"))
    assert fields["exit_code"] == -signal.SIGKILL
    assert "ended by SIGKILL" in str(fields["exception"])


async def test_missing_program_is_named() -> None:
    with pytest.raises(TaskExecutionError, match=r"no such program: 'no-such-program'$"):
        await run(Executable("task.1", ["no-such-program"]))


@pytest.mark.parametrize(
    ("first_line", "reason"),
    [
        ("#!/bin/sh\r\n", "its first line, '#!/bin/sh', ends with a carriage return; convert"),
        ("#!/no/such/sh -e\n", "its interpreter '/no/such/sh' does not exist"),
    ],
)
async def test_missing_interpreter_of_script_is_named(
    first_line: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "my run.sh"
    script.write_text(f"{first_line}echo hi\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    for program, cwd in ((str(script), None), ("./my run.sh", str(tmp_path)), ("my run.sh", None)):
        with pytest.raises(TaskExecutionError, match=f"could not be started: {reason}"):
            await run(Executable("task.1", [program], cwd=cwd))


async def test_missing_program_with_blanks_gets_hint() -> None:
    with pytest.raises(TaskExecutionError) as caught:
        await run(Executable("task.1", ["/bin/echo hello world"]))
    assert "executable='/bin/echo', arguments=['hello', 'world'], or set shell=True" in str(
        caught.value
    )


async def test_missing_program_with_unbalanced_quote_is_named() -> None:
    with pytest.raises(TaskExecutionError, match="no such program"):
        await run(Executable("task.1", ["/bin/echo it's"]))


async def test_missing_working_directory_is_named(tmp_path: Path) -> None:
    missing = str(tmp_path / "missing")
    with pytest.raises(TaskExecutionError, match=f"directory does not exist: '{missing}'"):
        await run(sh("true", cwd=missing))


async def test_non_executable_file_fails_with_system_message(
    tmp_path: Path,
) -> None:
    (tmp_path / "data").write_text("1\n")
    with pytest.raises(TaskExecutionError, match="could not be started: Permission denied"):
        await run(Executable("task.1", [str(tmp_path / "data")]))


async def test_process_is_guarded_until_exit() -> None:
    class Children(GuardedGroups):
        def discard(self, pid: object, /) -> None:
            ended.append((pid, pid in self))
            super().discard(pid)

    ended: list[tuple[object, bool]] = []
    children = Children()
    fields = await sh("echo $$").run(children)
    children.close()
    assert ended == [(int(fields["stdout"]), True)]


async def test_cancel_ends_process_group(fifo: Fifo, children: GuardedGroups) -> None:
    running = asyncio.ensure_future(sh(f"sleep 60 & echo $$ $! > {fifo}; wait").run(children))
    pids = await fifo.numbers()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert children == set()
    assert wait_gone(*pids) == []


async def test_cancel_kills_group_ignoring_sigterm(
    fifo: Fifo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.05)
    script = f"trap '' TERM; sleep 60 & echo $$ $! > {fifo}; wait; sleep 60"
    running = asyncio.ensure_future(run(sh(script)))
    pids = await fifo.numbers()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert wait_gone(*pids) == []


async def test_process_outside_the_group_does_not_delay_the_end(
    fifo: Fifo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.05)
    stranger = (
        "import os, sys, time; os.setsid(); "
        f"open({str(fifo)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    running = asyncio.ensure_future(run(sh(f'{sys.executable} -S -c "{stranger}" & wait')))
    (pid,) = await fifo.numbers()
    try:
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(asyncio.shield(running), LIMIT_S)
    finally:
        os.kill(pid, signal.SIGKILL)
    assert wait_gone(pid) == []


async def test_cancel_right_after_start_ends_process_group(fifo: Fifo) -> None:
    running = asyncio.ensure_future(run(sh(f"sleep 60 & echo $$ $! > {fifo}; wait")))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    # The process exists, and the loop has not begun to watch it.
    pids = [int(pid) for pid in fifo.path.read_text().split()]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert wait_gone(*pids) == []


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"cwd": 7}, "'cwd' must be a path, got 7"),
        ({"env": ["A=1"]}, "'env' must be a dict"),
    ],
)
def test_option_of_wrong_type_is_refused(options: dict[str, Any], reason: str) -> None:
    task = {"uid": "task.1", "executable": "true", "task_backend_specific_kwargs": options}
    with pytest.raises(UnsupportedTaskError, match=reason):
        Executable.from_task(task, "/tmp")


def test_from_task_reads_options(tmp_path: Path) -> None:
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


def test_from_task_converts_env_to_text() -> None:
    class Colour(enum.Enum):  # cannot be unpickled in another process
        RED = 1

        def __str__(self) -> str:
            return "red"

    for env in (os.environ, {"A": Colour.RED, "B": None}):
        task = {"uid": "t", "executable": "env", "task_backend_specific_kwargs": {"env": env}}
        sent = pickle.loads(pickle.dumps(Executable.from_task(task, "")))
        assert sent.env == {k: None if v is None else str(v) for k, v in env.items()}
