"""Compute tasks: a function or an executable."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from rhapsody.api.tasks.base import BaseTask, validation_error
from rhapsody.api.tasks.fields import COMPUTE_FIELDS
from rhapsody.errors import TaskValidationError
from rhapsody.resources import Resources
from rhapsody.sampling import SAMPLING_FIELDS
from rhapsody.validation import brief

__all__ = ["ComputeTask"]


class ComputeTask(BaseTask, described_by=("function", "executable")):
    """A function or an executable to run.

    Results: `return_value` (an executable's is its `stdout`), and for executables `stdout`,
    `stderr`, `exit_code`.

    Args:
        executable: The program: a path, or a name looked up in PATH.
        function: The function, sync or async. Either this or `executable` must be given.
        arguments: The executable's command-line arguments.
        args: The function's positional arguments.
        kwargs: The function's keyword arguments.
        uid: Unique name, without '/' since files are named after it. None: a generated name.
        backend: Name of the backend. None: the session's first one that runs compute tasks.
        resources: What the task asks for, such as `{"cpus": 2, "gpus": 0.5, "memory": "8 GB"}`; see
            `rhapsody.resources.Resources`.
        priority: Tasks of higher priority start first. A waiting task gains one step of priority
            a minute. None: 0.
        timeout: Longest run time in seconds, without the time in the queue of the backend.
        retries: How often a failed task is repeated. None: 0.
        backoff: Seconds before the first repetition; each later pause is twice as long. None: 0.1.
        queue_timeout: Longest time in seconds until the task starts. Backends that do not report
            the start of a task refuse it.
        capture_stdio: Write an executable's output to `<uid>.stdout` and `<uid>.stderr` in the
            session's directory, and set `stdout` and `stderr` to these paths.
        task_backend_specific_kwargs: Options for the backend. Executables take `cwd`, `env` (added
            to the inherited environment), `shell`, `stdin` (a str, bytes or a Path) and `timeout`
            (seconds).
        **extra: For a session's journal `journal` (False: run in every run), `cache` (equal tasks
            share one result), `version` (replaces the function's code), `inputs` and `outputs`
            (lists of files); and fields of your own; they are kept.

    Raises:
        TaskValidationError: A field is invalid; the message names it and the expected value.
    """

    __slots__ = ()

    foreign_fields: Mapping[str, str] = {
        **dict.fromkeys(
            SAMPLING_FIELDS | {"model", "on_text", "stop_sequences", "system_prompt"},
            "it is a field of AITask; arguments of a function belong into 'args' and 'kwargs'",
        ),
        "max_length": "did you mean 'max_tokens' of AITask?",
        **dict.fromkeys(
            (
                *("allow_other_workers", "cwd", "env", "gpus_per_rank", "keep_on_cluster", "pmi"),
                *("process_template", "process_templates", "pure", "shell", "stdin", "workers"),
            ),
            "set it in task_backend_specific_kwargs",
        ),
        **dict.fromkeys(
            ("cores", "cpus", "gpus", "memory", "nodes", "ranks"),
            "set it in resources, such as resources={'cpus': 2}",
        ),
        "prompt": "it is a field of AITask",
        "working_dir": "set 'cwd' in task_backend_specific_kwargs",
    }
    _validator = COMPUTE_FIELDS
    known_fields = BaseTask.known_fields | {
        "args",
        "arguments",
        "capture_stdio",
        "executable",
        "function",
        "input_files",
        "kwargs",
        "output_files",
        "resources",
        "queue_timeout",
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
        resources: Mapping[str, Any] | Resources | None = None,
        priority: int | None = None,
        retries: int | None = None,
        backoff: float | None = None,
        queue_timeout: float | None = None,
        capture_stdio: bool = False,
        task_backend_specific_kwargs: Mapping[str, Any] | None = None,
        **extra: Any,
    ) -> None:
        if callable(executable):
            name = getattr(executable, "__name__", "function")
            message = f"a function is a keyword argument: ComputeTask(function={name}, args=[...])"
            raise validation_error(uid, message, "executable", executable)
        fields: dict[str, Any] = {}
        if uid is not None:
            fields["uid"] = uid
        if function is not None:
            fields["function"] = function
            fields["args"] = () if args is None else args
            if kwargs is not None:
                fields["kwargs"] = kwargs
        if executable is not None:
            fields["executable"] = executable
            fields["arguments"] = [] if arguments is None else arguments
        optional = {
            "backend": backend,
            "timeout": timeout,
            "resources": resources,
            "priority": priority,
            "retries": retries,
            "backoff": backoff,
            "queue_timeout": queue_timeout,
            "task_backend_specific_kwargs": task_backend_specific_kwargs,
        }
        fields |= {field: value for field, value in optional.items() if value is not None}
        if capture_stdio is not False:
            fields["capture_stdio"] = capture_stdio
        super().__init__(fields, extra)
        self._check_kind(executable, function, arguments, args, kwargs)
        if resources is not None:
            try:
                Resources.of(resources)
            except ValueError as error:
                self._refuse("resources", resources, str(error))

    def __missing__(self, field: str) -> Any:
        if field == "kwargs" and "function" in self:
            # Made when it is asked for: most tasks have none, and many tasks may wait.
            return self.setdefault(field, {})
        return super().__missing__(field)

    def _check_kind(
        self, executable: Any, function: Any, arguments: Any, args: Any, kwargs: Any
    ) -> None:
        if (executable is None) == (function is None):
            given = "neither was" if executable is None else "both were"
            raise TaskValidationError(
                self["uid"], f"give either 'executable' or 'function'; {given} given"
            )
        if executable is None:
            if arguments:
                self._refuse_unused("arguments", arguments, "a function", "'args' and 'kwargs'")
        elif args:
            self._refuse_unused("args", args, "an executable", "'arguments'")
        elif kwargs:
            self._refuse_unused("kwargs", kwargs, "an executable", "'arguments'")

    def _refuse_unused(self, field: str, value: Any, kind: str, used: str) -> NoReturn:
        self._refuse(field, value, f"'{field}' does not apply to {kind}; use {used}")

    def _subject(self) -> str:
        if "function" in self:
            return f"function={getattr(self['function'], '__name__', self['function'])}"
        command = [os.fspath(self["executable"]), *map(str, self["arguments"])]
        return f"executable={brief(' '.join(command))}"
