"""Programs under the Dragon runtime, and tasks for a Dragon backend."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rhapsody.processes import GROUP
from rhapsody.testing.samples import describe
from tests.support.runner import TaskRunner


@contextlib.contextmanager
def under_dragon(
    *command: str, tmpdir: str | None = None, **options: Any
) -> Iterator["subprocess.Popen[str]"]:
    """Run a program in its own Dragon runtime, and clean up after it.

    The launcher gets a process group instead of a session, in which Dragon hangs. Only the shared
    memory of this runtime is removed, since others may be running on the machine.
    """
    programs = Path(sys.executable).parent
    environment = {k: v for k, v in os.environ.items() if not k.startswith("DRAGON_")}
    environment["PATH"] = os.pathsep.join((str(programs), environment["PATH"]))
    if tmpdir is not None:
        environment["TMPDIR"] = tmpdir
    launcher = subprocess.Popen(
        [str(programs / "dragon"), *command],
        stdin=subprocess.DEVNULL,
        env=environment,
        **GROUP,
        text=True,
        **options,
    )
    try:
        yield launcher
    finally:
        # A killed launcher leaves its children running, so kill the whole group.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(launcher.pid, signal.SIGKILL)
        launcher.wait()
        if launcher.stdout is not None:
            launcher.stdout.close()
        for segment in Path("/dev/shm").glob(f"DD{str(os.getuid())[-3:]}{str(launcher.pid)[-3:]}*"):
            segment.unlink(missing_ok=True)


class DragonRunner(TaskRunner):
    """Describes tasks, submits them and waits for their ends."""

    def function(
        self, function: Callable[..., Any], *args: Any, options: Any = None, **fields: Any
    ) -> dict[str, Any]:
        return self._describe("function", options, function=function, args=args, **fields)

    def executable(
        self, program: str, *arguments: str, options: Any = None, **fields: Any
    ) -> dict[str, Any]:
        return self._describe(
            "executable", options, executable=program, arguments=list(arguments), **fields
        )

    def _describe(self, kind: str, options: Any, **fields: Any) -> dict[str, Any]:
        return describe(self.next_uid(), kind, task_backend_specific_kwargs=options or {}, **fields)
