"""An executable: read from a task, run as a child process, and reported as result fields."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhapsody.backends.core.execution import PEAK_MEMORY
from rhapsody.backends.executables.blocking_child import BlockingChild, Interruption
from rhapsody.backends.executables.child import Child
from rhapsody.backends.executables.descriptors import are_exhausted, available
from rhapsody.backends.executables.guard import GuardedGroups
from rhapsody.backends.executables.standard_input import input_of, opened_input
from rhapsody.errors import TaskExecutionError, UnsupportedTaskError
from rhapsody.processes import GROUP, child_environment, has_secrets

__all__ = ["OPTIONS", "Executable"]

OPTIONS = frozenset({"cwd", "env", "shell", "stdin", "timeout"})
"""Keys of `task_backend_specific_kwargs` that apply to executables."""

STDERR_CHARACTERS = 2000
"""How many of the last characters of stderr the message of a failure quotes."""


DESCRIPTORS_SECONDS = 10.0
"""How long an executable waits for free descriptors while no other executable runs."""

RETRY_SECONDS = 0.05
"""Time between two checks for free descriptors, whose release no event reports."""


@dataclass(frozen=True)
class Executable:
    """A program, its arguments and the options for running it.

    Attributes:
        uid: The task's uid, in the names of the files for captured output.
        command: The program and its arguments.
        shell: Run the command with `/bin/sh`, its words joined by blanks and not quoted.
        cwd: Working directory. None: the working directory of this process.
        env: Variables added to this process's environment; a value of None removes one.
        capture_dir: Directory for `<uid>.stdout` and `<uid>.stderr`. None: capture in memory.
        memory: Maximum data of each of its processes in bytes. None: not limited.
        stdin: Its standard input: the input itself, or the file to read. None: no input.
    """

    uid: str
    command: Sequence[str]
    shell: bool = False
    cwd: str | None = None
    env: Mapping[str, str | None] | None = None
    capture_dir: str | None = None
    memory: int | None = None
    stdin: bytes | Path | None = None

    @classmethod
    def from_task(cls, task: Mapping[str, Any], work_dir: str) -> Executable:
        """Read an executable from the description of a task.

        Args:
            task: A task with `executable`, and optionally `arguments`, `capture_stdio` and
                `task_backend_specific_kwargs`.
            work_dir: Directory for captured output.

        Raises:
            UnsupportedTaskError: An option has the wrong type.
        """
        uid, options = task["uid"], task.get("task_backend_specific_kwargs") or {}
        cwd, env = options.get("cwd"), options.get("env")
        if cwd is not None and not isinstance(cwd, (str, os.PathLike)):
            raise UnsupportedTaskError(uid, f"'cwd' must be a path, got {cwd!r}")
        if env is not None and not isinstance(env, Mapping):
            raise UnsupportedTaskError(uid, f"'env' must be a dict of str to str, got {env!r}")
        if env is not None:  # str can be unpickled in any process
            env = {str(k): None if v is None else str(v) for k, v in env.items()}
        return cls(
            uid=uid,
            command=[os.fspath(task["executable"]), *map(str, task.get("arguments") or ())],
            shell=bool(options.get("shell", False)),
            cwd=None if cwd is None else os.fspath(cwd),
            env=env,
            stdin=input_of(uid, options.get("stdin")),
            capture_dir=work_dir if task.get("capture_stdio") else None,
        )

    async def run(
        self,
        children: GuardedGroups,
        interrupted: Callable[[dict[str, Any]], None] | None = None,
        started: Callable[[int], None] | None = None,
    ) -> dict[str, Any]:
        """Run the executable and wait for it on the running loop.

        Cancelling the call ends the whole process group: SIGTERM, and SIGKILL a second later.

        Args:
            children: Contains the process id while the child lives, so that the child does not
                outlive this process.
            interrupted: Called with the result fields of an executable that is interrupted: the
                output so far, and its exit code.
            started: Called after the start with the process id.

        Returns:
            `stdout`, `stderr`, `exit_code` and `return_value` (the same as `stdout`): text, or the
            paths of the files if output is captured. Bytes that are not UTF-8 become U+FFFD. If
            the exit code is not 0, also `exception`. If the most memory that it used is known, also
            that, for `Execution`.

        Raises:
            TaskExecutionError: The executable could not be started.
        """
        with contextlib.ExitStack() as stack:
            process = await self._start_when_possible(children, stack)
            child = Child(process)
            if started is not None:
                started(process.pid)
            try:
                output = await child.communicate()
            except asyncio.CancelledError:
                await child.end()
                if interrupted is not None:
                    interrupted(self._output_fields(child.exit_code, *child.output))
                raise
            finally:
                children.discard(process.pid)
        return self.fields(child.exit_code, *output, peak_memory=child.peak_memory)

    def run_blocking(
        self,
        children: GuardedGroups,
        started: Callable[[], None] | None = None,
        interruption: Interruption | None = None,
        interrupted: Callable[[dict[str, Any]], None] | None = None,
    ) -> dict[str, Any]:
        """Run the executable and wait for it in the calling thread.

        An exception that a signal handler raises after the start ends the process group.

        Args:
            children: See `run`.
            started: Called after the start; an exception that it raises ends the process group.
            interruption: A request of another thread to end the process group.
            interrupted: See `run`.

        Returns:
            The same fields as `run`.

        Raises:
            TaskExecutionError: The executable could not be started.
            CancelledError: The other thread requested the end, before the start or after it.
        """
        with contextlib.ExitStack() as stack:
            process = self._start_blocking(children, stack, interruption)
            child = BlockingChild(process, interruption)
            try:
                if started is not None:
                    started()
                output = child.communicate()
            except BaseException:
                child.end()
                if interrupted is not None:
                    interrupted(self._output_fields(child.exit_code, *child.output))
                raise
            finally:
                children.discard(process.pid)
        return self.fields(child.exit_code, *output, peak_memory=child.peak_memory)

    async def _start_when_possible(
        self, children: GuardedGroups, stack: contextlib.ExitStack
    ) -> subprocess.Popen[bytes]:
        """Start the child, as soon as there are enough descriptors."""
        deadline = time.monotonic() + DESCRIPTORS_SECONDS
        while True:
            try:
                return self._start_with_outputs(children, stack)
            except (OSError, TaskExecutionError) as error:
                if not _lacks_descriptors(error) or not (children or time.monotonic() < deadline):
                    raise
            await asyncio.sleep(RETRY_SECONDS)
            while not available() and (children or time.monotonic() < deadline):
                if children:
                    deadline = time.monotonic() + DESCRIPTORS_SECONDS
                await asyncio.sleep(RETRY_SECONDS)

    def _start_blocking(
        self,
        children: GuardedGroups,
        stack: contextlib.ExitStack,
        interruption: Interruption | None,
    ) -> subprocess.Popen[bytes]:
        """Start the child from the calling thread, as soon as there are enough descriptors."""
        deadline = time.monotonic() + DESCRIPTORS_SECONDS
        while True:
            if interruption is not None and interruption.is_set:
                raise asyncio.CancelledError
            try:
                return self._start_with_outputs(children, stack)
            except (OSError, TaskExecutionError) as error:
                if children:
                    deadline = max(deadline, time.monotonic() + DESCRIPTORS_SECONDS)
                if not _lacks_descriptors(error) or time.monotonic() > deadline:
                    raise
            time.sleep(RETRY_SECONDS)

    def _start_with_outputs(
        self, children: GuardedGroups, stack: contextlib.ExitStack
    ) -> subprocess.Popen[bytes]:
        with contextlib.ExitStack() as opened:
            stdout, stderr = opened.enter_context(self.outputs())
            process = self.start(children, stdout, stderr)
            stack.push(opened.pop_all())
            return process

    def start(self, children: GuardedGroups, stdout: Any, stderr: Any) -> subprocess.Popen[bytes]:
        """Start the child in a new process group, which is guarded from its first moment.

        Raises:
            TaskExecutionError: The executable could not be started.
        """
        try:
            with opened_input(self.uid, self.stdin, self.cwd) as stdin, children.starting():
                process = subprocess.Popen(
                    " ".join(self.command) if self.shell else self.command,
                    shell=self.shell,
                    stdin=stdin,
                    stdout=stdout,
                    stderr=stderr,
                    cwd=self.cwd,
                    # None inherits the environment. A copy of it takes a tenth of the whole time.
                    env=child_environment(self.env) if self.env or has_secrets() else None,
                    **GROUP,
                )
                children.add(process.pid)
            self._limit_memory(process.pid)
        except OSError as error:
            raise TaskExecutionError(self.uid, self._start_failure(error)) from error
        except ValueError as error:  # a null byte in an argument, or "=" in a variable's name
            reason = f"{self.command[0]!r} could not be started: {error}"
            raise TaskExecutionError(self.uid, reason) from error
        return process

    def _limit_memory(self, pid: int) -> None:
        """Limit the child's data: what it allocates. Its address space may be far larger."""
        if self.memory is not None and hasattr(resource, "prlimit"):  # Linux
            with contextlib.suppress(ProcessLookupError, PermissionError):  # ended, or setuid
                _, hard = resource.prlimit(pid, resource.RLIMIT_DATA)
                limit = self.memory if hard == resource.RLIM_INFINITY else min(self.memory, hard)
                resource.prlimit(pid, resource.RLIMIT_DATA, (limit, hard))

    @contextlib.contextmanager
    def outputs(self) -> Iterator[tuple[Any, Any]]:
        """Yield the targets of stdout and stderr: open files if output is captured, else pipes."""
        if self.capture_dir is None:
            yield subprocess.PIPE, subprocess.PIPE
            return
        with contextlib.ExitStack() as stack:
            try:
                os.makedirs(self.capture_dir, exist_ok=True)
                out, err = (
                    stack.enter_context(self._file(stream).open("wb"))
                    for stream in ("stdout", "stderr")
                )
            except OSError as error:
                reason = f"its output cannot be written to {error.filename!r}: {error.strerror}"
                raise TaskExecutionError(self.uid, reason) from error
            yield out, err

    def _file(self, stream: str) -> Path:
        return Path(self.capture_dir or "", f"{self.uid}.{stream}")

    def _start_failure(self, error: OSError) -> str:
        """Return the reason why the child could not be started."""
        if self.cwd is not None and not os.path.isdir(self.cwd):
            return f"its working directory does not exist: {self.cwd!r}"
        if isinstance(self.stdin, Path) and error.filename == str(Path(self.cwd or "", self.stdin)):
            return f"its standard input {error.filename!r} cannot be read: {error.strerror}"
        program = self.command[0]
        if isinstance(error, FileNotFoundError):
            if found := self._find(program):
                return f"{program!r} could not be started: {_missing_interpreter(found)}"
            hint, words = "", program.split()
            if len(words) > 1:
                hint = (
                    f"; pass the program and its arguments separately: executable={words[0]!r}, "
                    f"arguments={words[1:]!r}, or set shell=True"
                )
            return f"no such program: {program!r}{hint}"
        return f"{program!r} could not be started: {error.strerror or error}"

    def _find(self, program: str) -> str | None:
        """Return the file of a program, relative to the working directory of the child."""
        if os.path.dirname(program):
            path = os.path.join(self.cwd or "", program)
            return path if os.path.isfile(path) else None
        path_variable = child_environment(self.env).get("PATH")
        return shutil.which(program, path=path_variable)

    def fields(
        self,
        exit_code: int,
        out: bytes | None = None,
        err: bytes | None = None,
        *,
        peak_memory: int | None = None,
    ) -> dict[str, Any]:
        """Return the result fields of a child that has exited; see `run`."""
        fields = self._output_fields(exit_code, out, err)
        if peak_memory is not None:
            fields[PEAK_MEMORY] = peak_memory
        if exit_code:
            captured = self.capture_dir is not None
            quoted = _tail(self._file("stderr")) if captured else fields["stderr"]
            reason = _failure(exit_code, quoted)
            fields["exception"] = TaskExecutionError(self.uid, reason, exit_code)
        return fields

    def _output_fields(
        self, exit_code: int, out: bytes | None = None, err: bytes | None = None
    ) -> dict[str, Any]:
        if self.capture_dir is None:
            stdout, stderr = _decode(out), _decode(err)
        else:
            stdout, stderr = str(self._file("stdout")), str(self._file("stderr"))
        return {
            "stdout": stdout,
            "stderr": stderr,
            "exit_code": exit_code,
            "return_value": stdout,
        }


def _lacks_descriptors(error: OSError | TaskExecutionError) -> bool:
    return are_exhausted(error if isinstance(error, OSError) else error.__cause__)


def _missing_interpreter(path: str) -> str:
    """Return why a file that exists cannot be started: the interpreter that it names is missing."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        first_line = file.read(256).split(b"\n")[0]
        if first_line.startswith(b"#!"):
            interpreter = os.fsdecode(first_line[2:].strip())
            if first_line.endswith(b"\r"):
                return (
                    f"its first line, '#!{interpreter}', ends with a carriage return; "
                    "convert the file to Unix line endings, for example with dos2unix"
                )
            return f"its interpreter {interpreter.split()[0]!r} does not exist"
    return "its interpreter or dynamic loader does not exist"


def _decode(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", errors="replace")


def _tail(path: Path) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - STDERR_CHARACTERS))
        return _decode(file.read())


def _failure(exit_code: int, stderr: str) -> str:
    """Return the reason for a failure: the signal's name and the end of stderr."""
    quoted = stderr.strip()[-STDERR_CHARACTERS:]
    if exit_code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-exit_code).name
            return f"ended by {name}{': ' + quoted if quoted else ''}"
    return quoted or "it wrote nothing to stderr"
