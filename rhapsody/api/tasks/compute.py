"""Compute tasks: a function or an executable."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from rhapsody.api.errors import TaskValidationError
from rhapsody.api.tasks.base import BaseTask, brief

__all__ = ["ComputeTask"]


class ComputeTask(BaseTask):
    """A function or an executable to run.

    Results: `return_value` (an executable's is its `stdout`), and for executables `stdout`,
    `stderr`, `exit_code`.

    Args:
        executable: The program: a path, or a name looked up in PATH.
        function: The function, sync or async. One of the two is given.
        arguments: The executable's command-line arguments.
        args: The function's positional arguments.
        kwargs: The function's keyword arguments.
        uid: Unique name; made where None. No '/' in it, since files are named after it.
        backend: Name of the backend; the session's first that takes compute tasks where None.
        timeout: Longest time it may take, in seconds. On this machine's own backend it counts from
            the start, elsewhere waiting is included.
        capture_stdio: An executable's output goes to `<uid>.stdout` and `<uid>.stderr` in the
            session's directory, and `stdout` and `stderr` are the paths.
        task_backend_specific_kwargs: Options for the backend. Executables take `cwd`, `env` (set
            on top of the present environment), `shell` and `timeout` (seconds).
        **extra: Fields of your own, kept as they are.

    Raises:
        TaskValidationError: Names the field, its value and what was expected.
    """

    __slots__ = ()

    foreign_fields = frozenset({"cwd", "env", "prompt", "shell"})
    known_fields = BaseTask.known_fields | {
        "args",
        "arguments",
        "capture_stdio",
        "executable",
        "function",
        "input_files",
        "kwargs",
        "output_files",
    }

    def __init__(
        self,
        executable: str | os.PathLike[str] | None = None,
        function: Callable[..., Any] | None = None,
        arguments: Sequence[Any] | None = None,
        args: Sequence[Any] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        uid: str | None = None,
        *,
        backend: str | None = None,
        timeout: float | None = None,
        capture_stdio: bool = False,
        task_backend_specific_kwargs: Mapping[str, Any] | None = None,
        **extra: Any,
    ) -> None:
        fields: dict[str, Any] = {}
        if uid is not None:
            fields["uid"] = uid
        if function is not None:
            fields["function"] = function
            fields["args"] = () if args is None else args
            fields["kwargs"] = {} if kwargs is None else kwargs
        if executable is not None:
            fields["executable"] = executable
            fields["arguments"] = [] if arguments is None else arguments
        if backend is not None:
            fields["backend"] = backend
        if timeout is not None:
            fields["timeout"] = timeout
        if capture_stdio is not False:
            fields["capture_stdio"] = capture_stdio
        if task_backend_specific_kwargs is not None:
            fields["task_backend_specific_kwargs"] = task_backend_specific_kwargs
        super().__init__(fields, extra)
        if (executable is None) == (function is None):
            given = "neither was" if executable is None else "both were"
            raise TaskValidationError(
                self["uid"], f"give either 'executable' or 'function'; {given} given"
            )
        if function is not None:
            self._check_function(arguments)
        else:
            self._check_executable(args, kwargs)

    def _refuse_foreign(self, field: str) -> NoReturn:
        if field == "prompt":
            self._refuse(field, "left out: a prompt is for an AITask")
        value = brief(self[field])
        self._refuse(
            field, f'left out: give it as task_backend_specific_kwargs={{"{field}": {value}}}'
        )

    def _check_function(self, arguments: Any) -> None:
        if not callable(self["function"]):
            self._refuse("function", "callable")
        if not isinstance(self["args"], (tuple, list)):
            self._refuse("args", "a tuple or a list")
        if not isinstance(self["kwargs"], Mapping):
            self._refuse("kwargs", "a dict")
        if arguments:
            self["arguments"] = arguments
            self._refuse("arguments", "left out: a function takes 'args' and 'kwargs'")

    def _check_executable(self, args: Any, kwargs: Any) -> None:
        self._check_type("executable", (str, os.PathLike), "a path or the name of a program")
        if not os.fspath(self["executable"]):
            self._refuse("executable", "a path or the name of a program")
        if not isinstance(self["arguments"], (list, tuple)):
            self._refuse("arguments", "a list of strings")
        for item in self["arguments"]:
            if not isinstance(item, (str, os.PathLike, int, float)):
                self._refuse("arguments", "a list of strings")
        for field, value in (("args", args), ("kwargs", kwargs)):
            if value:
                self[field] = value
                self._refuse(field, "left out: an executable takes 'arguments'")
        if "capture_stdio" in self:
            self._check_type("capture_stdio", bool, "True or False")

    def _subject(self) -> str:
        if "function" in self:
            return f"function={getattr(self['function'], '__name__', self['function'])}"
        command = [os.fspath(self["executable"]), *map(str, self["arguments"])]
        return f"executable={brief(' '.join(command))}"
