"""One executable as a child process: in its own process group, with its output safely decoded."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhapsody.api.errors import TaskExecutionError, UnsupportedTaskError
from rhapsody.backends.child import Child
from rhapsody.backends.guard import GuardedGroups
from rhapsody.processes import GROUP, child_environment, end_group, has_secrets
from rhapsody.waiting import done_within

__all__ = ["GRACE_SECONDS", "OPTIONS", "Executable"]

OPTIONS = frozenset({"cwd", "env", "shell", "timeout"})
"""Keys of `task_backend_specific_kwargs` that say how an executable is run."""

GRACE_SECONDS = 1.0
"""Time between SIGTERM and SIGKILL when an executable is ended."""


@dataclass(frozen=True)
class Executable:
    """What to run, and how.

    Attributes:
        uid: The task's uid; names the files of captured output.
        command: The program and its arguments.
        shell: Hand the command to `/bin/sh`, words joined by blanks and not quoted.
        cwd: Working directory; this process's where None.
        env: Variables set on top of this process's environment; one set to None is removed.
        capture_dir: Directory for `<uid>.stdout` and `<uid>.stderr`; in memory where None.
    """

    uid: str
    command: Sequence[str]
    shell: bool = False
    cwd: str | None = None
    env: Mapping[str, str | None] | None = None
    capture_dir: str | None = None

    @classmethod
    def from_task(cls, task: Mapping[str, Any], work_dir: str) -> Executable:
        """Read an executable from a task's description.

        Args:
            task: A task with `executable`, and perhaps `arguments`, `capture_stdio` and
                `task_backend_specific_kwargs`.
            work_dir: Where captured output goes.

        Raises:
            UnsupportedTaskError: An option has the wrong type.
        """
        uid, options = task["uid"], task.get("task_backend_specific_kwargs") or {}
        cwd, env = options.get("cwd"), options.get("env")
        if cwd is not None and not isinstance(cwd, (str, os.PathLike)):
            raise UnsupportedTaskError(uid, f"'cwd' must be a path, not {cwd!r}")
        if env is not None and not isinstance(env, Mapping):
            raise UnsupportedTaskError(uid, f"'env' must be a dict of str to str, not {env!r}")
        if env is not None:  # text, which any process understands
            env = {str(k): None if v is None else str(v) for k, v in env.items()}
        return cls(
            uid=uid,
            command=[os.fspath(task["executable"]), *map(str, task.get("arguments") or ())],
            shell=bool(options.get("shell", False)),
            cwd=None if cwd is None else os.fspath(cwd),
            env=env,
            capture_dir=work_dir if task.get("capture_stdio") else None,
        )

    async def run(self, children: GuardedGroups) -> dict[str, Any]:
        """Run it to its end.

        Cancelling ends the whole process group: SIGTERM, then SIGKILL after a second.

        Args:
            children: Has the process id while the child lives, so that an owner who exits in a
                hurry can end it.

        Returns:
            `stdout`, `stderr`, `exit_code` and `return_value` (the same as `stdout`): text, or the
            paths of the files where output is captured. Bytes that are not UTF-8 become U+FFFD.
            With an exit code other than 0 also `exception`.

        Raises:
            TaskExecutionError: It could not be started.
        """
        with self.outputs() as (stdout, stderr):
            child = Child(self.start(children, stdout, stderr))
            try:
                output = await child.communicate()
            except asyncio.CancelledError:
                await _end(child)
                raise
            finally:
                children.discard(child.pid)
        return self.fields(child.exit_code, *output)

    def run_blocking(self, children: GuardedGroups, started: Callable[[], None]) -> dict[str, Any]:
        """Run it to its end in this thread: the same as `run`, at half its price.

        An exception that a signal handler raises once it has started ends the process group.

        Args:
            children: See `run`.
            started: Called when it has started; what this raises ends it as well.
        """
        with self.outputs() as (stdout, stderr):
            process = self.start(children, stdout, stderr)
            try:
                started()
                out, err = process.communicate()
            except BaseException:
                _end_blocking(process)
                raise
            finally:
                children.discard(process.pid)
        return self.fields(process.returncode, out, err)

    def start(self, children: GuardedGroups, stdout: Any, stderr: Any) -> subprocess.Popen[bytes]:
        """Start it in a process group of its own, which is guarded from the first moment on.

        Raises:
            TaskExecutionError: It could not be started.
        """
        try:
            with children.starting():
                process = subprocess.Popen(
                    " ".join(self.command) if self.shell else self.command,
                    shell=self.shell,
                    stdin=subprocess.DEVNULL,
                    stdout=stdout,
                    stderr=stderr,
                    cwd=self.cwd,
                    # None hands on what there is; a copy of it takes a tenth of the whole time.
                    env=child_environment(self.env) if self.env or has_secrets() else None,
                    **GROUP,
                )
                children.add(process.pid)
        except OSError as error:
            raise TaskExecutionError(self.uid, self._why_not_started(error)) from error
        return process

    @contextlib.contextmanager
    def outputs(self) -> Iterator[tuple[Any, Any]]:
        """Open where stdout and stderr go: files, or pipes."""
        if self.capture_dir is None:
            yield subprocess.PIPE, subprocess.PIPE
            return
        os.makedirs(self.capture_dir, exist_ok=True)
        with self._file("stdout").open("wb") as out, self._file("stderr").open("wb") as err:
            yield out, err

    def _file(self, stream: str) -> Path:
        return Path(self.capture_dir or "", f"{self.uid}.{stream}")

    def _why_not_started(self, error: OSError) -> str:
        """Say in words why the child could not be started."""
        if self.cwd is not None and not os.path.isdir(self.cwd):
            return f"its working directory does not exist: {self.cwd!r}"
        program = self.command[0]
        if isinstance(error, FileNotFoundError):
            hint, words = "", program.split()
            if len(words) > 1:
                hint = (
                    f"; a program and its arguments are separate: executable={words[0]!r}, "
                    f"arguments={words[1:]!r}, or set shell=True"
                )
            return f"no such program: {program!r}{hint}"
        return f"{program!r} could not be started: {error.strerror or error}"

    def fields(
        self, exit_code: int, out: bytes | None = None, err: bytes | None = None
    ) -> dict[str, Any]:
        """Return the result fields of a child that has ended, as `run` does."""
        if self.capture_dir is None:
            stdout, stderr = _decode(out), _decode(err)
            said = stderr
        else:
            stdout, stderr = str(self._file("stdout")), str(self._file("stderr"))
            said = _tail(self._file("stderr")) if exit_code else ""
        fields: dict[str, Any] = {
            "stdout": stdout,
            "stderr": stderr,
            "exit_code": exit_code,
            "return_value": stdout,
        }
        if exit_code:
            reason = _reason(exit_code, said)
            fields["exception"] = TaskExecutionError(self.uid, reason, exit_code)
        return fields


async def _end(child: Child) -> None:
    end_group(child.pid, signal.SIGTERM)
    await done_within(child.exited.wait(), GRACE_SECONDS)
    # Also when the leader has gone: a child of its own may have ignored SIGTERM.
    end_group(child.pid, signal.SIGKILL)
    child.close_pipes()  # a process that left the group may hold them open
    await child.exited.wait()


def _end_blocking(process: subprocess.Popen[bytes]) -> None:
    end_group(process.pid, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_SECONDS)
    end_group(process.pid, signal.SIGKILL)  # see `_end`
    for pipe in (process.stdout, process.stderr):
        if pipe is not None:
            pipe.close()
    process.wait()


def _decode(data: bytes | None) -> str:
    return (data or b"").decode("utf-8", errors="replace")


def _tail(path: Path, limit: int = 2000) -> str:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - limit))
        return _decode(file.read())


def _reason(exit_code: int, stderr: str) -> str:
    said = stderr.strip()[-2000:]
    if exit_code < 0:
        with contextlib.suppress(ValueError):
            name = signal.Signals(-exit_code).name
            return f"ended by {name}{': ' + said if said else ''}"
    return said or "it wrote nothing to stderr"
