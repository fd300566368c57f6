"""Tasks: a piece of computing or a prompt, described once, filled with its results later.

A task is a dict that also reads by attribute, so a backend writes results where the user reads
them. Fields that were not given are not stored; known ones read as None.
"""

from __future__ import annotations

import asyncio
import difflib
import inspect
import os
import reprlib
from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import count
from typing import Any, NoReturn, TypeVar

from rhapsody.api.errors import SessionError, TaskValidationError
from rhapsody.backends.protocol import TaskStates
from rhapsody.sampling import SAMPLING_FIELDS, is_model_class
from rhapsody.streaming import OnText

__all__ = ["AITask", "BaseTask", "ComputeTask", "Prompt"]

T = TypeVar("T", bound="BaseTask")

Message = Mapping[str, Any]
Prompt = str | Sequence[str] | Sequence[Message] | Sequence[Sequence[Message]]
"""One text, several texts, one chat (a list of messages), or several chats."""

RESULT_FIELDS = frozenset(
    {
        "exception",
        "exit_code",
        "finish_reason",
        "parsed",
        "response",
        "response_logprobs",
        "return_value",
        "state",
        "stderr",
        "stdout",
        "usage",
    }
)
COMMON_FIELDS = frozenset({"backend", "task_backend_specific_kwargs", "timeout", "uid"})

_uids = count(1)
_repr = reprlib.Repr()
_repr.maxstring = _repr.maxother = 60


class BaseTask(dict[str, Any]):
    """What compute and AI tasks share. Make one of those.

    Two tasks are equal, and hash alike, where their uids are equal.
    """

    __slots__ = ("__weakref__", "_future")

    known_fields = RESULT_FIELDS | COMMON_FIELDS
    foreign_fields: frozenset[str] = frozenset()
    """What is easily put into this kind of task and would be ignored there."""

    _future: asyncio.Future[Any] | None

    def __init__(self, fields: dict[str, Any], extra: dict[str, Any]) -> None:
        super().__init__(fields)
        _set_future(self, None)
        uid = fields.get("uid")
        if uid is None:
            self["uid"] = f"task.{next(_uids):06d}"
        elif not isinstance(uid, str) or not uid or "/" in uid or "\0" in uid:
            self._refuse("uid", "a non-empty string without '/'")
        if extra:
            self._add(extra)
            for field in self.foreign_fields & self.keys():
                self._refuse_foreign(field)
        if "backend" in self and not isinstance(self["backend"], str):
            self._refuse("backend", "the name of a backend, such as backend.name")
        if "timeout" in self:
            self._check_number("timeout", 0, None, above=True, unit=" of seconds")
        if "task_backend_specific_kwargs" in self:
            self._check_type("task_backend_specific_kwargs", Mapping, "a dict")

    def _add(self, extra: dict[str, Any]) -> None:
        """Keep fields of the user's own; what looks like a slip of the pen is refused."""
        for field, value in extra.items():
            if field not in self.known_fields:
                near = difflib.get_close_matches(field, self.known_fields, n=1, cutoff=0.8)
                if near:
                    raise TaskValidationError(
                        self["uid"],
                        f"unknown field '{field}' (value {_repr.repr(value)}); "
                        f"did you mean '{near[0]}'?",
                        field,
                        value,
                    )
            if value is not None:
                self[field] = value

    def _refuse(self, field: str, expected: str) -> NoReturn:
        uid, value = self.get("uid"), self.get(field)
        raise TaskValidationError(
            uid if isinstance(uid, str) else None,
            f"'{field}' must be {expected}, not {_repr.repr(value)}",
            field,
            value,
        )

    def _refuse_foreign(self, field: str) -> NoReturn:
        raise NotImplementedError

    def _check_type(self, field: str, kind: Any, expected: str) -> None:
        if not isinstance(self[field], kind) or (
            isinstance(self[field], bool) and kind is not bool
        ):
            self._refuse(field, expected)

    def _check_number(
        self, field: str, low: float, high: float | None, above: bool = False, unit: str = ""
    ) -> None:
        value = self[field]
        expected = f"a number{unit} {'above' if above else 'of at least'} {low:g}"
        if high is not None:
            expected += f" and at most {high:g}"
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            self._refuse(field, expected)
        in_range = (value > low if above else value >= low) and (high is None or value <= high)
        if not in_range:  # NaN is not either
            self._refuse(field, expected)

    def validate(self) -> None:
        """Check the fields once more, after they were changed.

        Raises:
            TaskValidationError: Names the field, its value and what was expected.
        """
        type(self)(**{k: v for k, v in self.items() if k not in RESULT_FIELDS})

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> BaseTask:
        """Make the task that a dict describes: an AITask where it has a prompt.

        Args:
            fields: Field names to values.

        Raises:
            TaskValidationError: It describes neither kind, or has a wrong field.
        """
        kind: type[BaseTask]
        if fields.get("prompt") is not None:
            kind = AITask
        elif fields.get("function") is not None or fields.get("executable") is not None:
            kind = ComputeTask
        else:
            raise TaskValidationError(
                fields.get("uid"),
                "set 'function' or 'executable' for a compute task, 'prompt' for an AI task; "
                f"it has only {sorted(fields)}",
            )
        made = kind(**{k: v for k, v in fields.items() if k not in RESULT_FIELDS})
        made.update({k: v for k, v in fields.items() if k in RESULT_FIELDS})
        return made

    @property
    def done(self) -> bool:
        """Whether the task has ended, however."""
        return self.get("state") in TaskStates.terminal_states

    def bind_future(self, future: asyncio.Future[Any]) -> None:
        """Set what `await task` waits for; sessions call this."""
        _set_future(self, future)

    def __await__(self) -> Generator[Any, None, Any]:
        future = self._future
        if future is None:
            raise SessionError(
                f"task {self['uid']} was not submitted; await session.submit_tasks([task]) first"
            )
        # Shielded: who stops waiting, as by `asyncio.wait_for`, must not spoil it for the others.
        return asyncio.shield(future).__await__()

    def __missing__(self, field: str) -> Any:
        if field in self.known_fields:
            return None
        raise KeyError(field)

    def __getattr__(self, name: str) -> Any:
        if name == "_future":
            return None
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"{type(self).__name__} has no field '{name}'") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BaseTask) and self["uid"] == other["uid"]

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(self["uid"])

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the fields; what awaits the task stays in the process that submitted it."""
        return _rebuild, (type(self), dict(self))

    def __repr__(self) -> str:
        parts = [self["uid"], self._subject()]
        for field in ("model", "backend", "state", "exception", "response", "return_value"):
            value = self.get(field)
            if value is not None:
                plain = field in ("model", "backend", "state")
                parts.append(f"{field}={value if plain else _repr.repr(value)}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def _subject(self) -> str:
        raise NotImplementedError


_set_future = BaseTask._future.__set__  # type: ignore[union-attr]  # the slot, not the field


def _rebuild(kind: type[T], fields: dict[str, Any]) -> T:
    task = kind.__new__(kind)
    task.update(fields)
    return task


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
        value = _repr.repr(self[field])
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
        return f"executable={_repr.repr(' '.join(command))}"


class AITask(BaseTask):
    """A prompt for a model.

    Results: `response` (a str for one prompt, a list for several), with `usage` (tokens) and
    `finish_reason`; with `response_format` also `parsed`, the object that the response describes,
    and with `logprobs` also `response_logprobs`.

    Args:
        prompt: One text, a list of texts, a chat (a list of messages, each with "role" and
            "content"), or a list of chats.
        model: Only needed where several backends serve different models: picks the one.
        system_prompt: Goes before the prompt as a message of its own.
        temperature: At least 0; 0 takes the likeliest token every time.
        max_tokens: Most tokens in the response.
        top_p: Above 0, at most 1: sample among the likeliest tokens of this total probability.
        top_k: Sample among this many likeliest tokens; 0 or -1 for all.
        stop: Strings that end the response and are not part of it.
        seed: For the same response every time.
        n: Responses per prompt; with more than one, each response is a list.
        uid: Unique name; made where None.
        backend: Name of the inference backend; the session's first where None.
        timeout: Longest time it may take, in seconds, waiting included.
        on_text: Called with each piece of the response while it is written, on the loop that
            submitted the task. For one response to one prompt.
        stop_sequences: Another name for `stop`.
        **extra: More sampling parameters of the engine, among them `logprobs` (how many of the
            likeliest tokens to tell of) and `response_format` (a pydantic model class, or a dict
            as OpenAI's API has it), or fields of your own.

    Raises:
        TaskValidationError: Names the field, its value and what was expected.
    """

    __slots__ = ()

    foreign_fields = frozenset({"arguments", "args", "executable", "function", "kwargs"})

    known_fields = (
        BaseTask.known_fields
        | SAMPLING_FIELDS
        | {"inference_endpoint", "model", "on_text", "prompt"}
        | {"stop_sequences", "system_prompt"}
    )

    def __init__(
        self,
        prompt: Prompt,
        model: str | None = None,
        *,
        system_prompt: str | None = None,
        temperature: float | None = None,
        max_tokens: int | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        stop: str | Sequence[str] | None = None,
        seed: int | None = None,
        n: int | None = None,
        uid: str | None = None,
        backend: str | None = None,
        timeout: float | None = None,
        on_text: OnText | None = None,
        stop_sequences: Sequence[str] | None = None,
        **extra: Any,
    ) -> None:
        fields: dict[str, Any] = {
            "uid": uid,
            "prompt": prompt,
            "model": model,
            "system_prompt": system_prompt,
            "temperature": temperature,
            "max_tokens": max_tokens,
            "top_p": top_p,
            "top_k": top_k,
            "stop": stop if stop is not None else stop_sequences,
            "seed": seed,
            "n": n,
            "backend": backend,
            "timeout": timeout,
            "on_text": on_text,
        }
        super().__init__({k: v for k, v in fields.items() if v is not None}, extra)
        self._check_prompt()
        for field in self.keys() & _AI_CHECKS.keys():
            _AI_CHECKS[field](self)

    def __missing__(self, field: str) -> Any:
        return self["stop"] if field == "stop_sequences" else super().__missing__(field)

    def _refuse_foreign(self, field: str) -> NoReturn:
        self._refuse(field, "left out: it is for a ComputeTask")

    def _check_prompt(self) -> None:
        prompt = self.get("prompt")
        if isinstance(prompt, str) and prompt:
            return
        if isinstance(prompt, (list, tuple)) and prompt:
            if all(isinstance(item, str) and item for item in prompt):
                return
            if _is_chat(prompt) or all(_is_chat(item) for item in prompt):
                return
        self._refuse(
            "prompt",
            "a non-empty string, a list of them, or chat messages such as "
            '[{"role": "user", "content": "..."}]',
        )

    def _check_count(self, field: str, low: int) -> None:
        value = self[field]
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            self._refuse(field, f"a whole number of at least {low}")

    def _check_top_k(self) -> None:
        value = self["top_k"]
        if isinstance(value, bool) or not isinstance(value, int) or value < -1:
            self._refuse("top_k", "a whole number of at least 1, or 0 or -1 for all tokens")

    def _check_on_text(self) -> None:
        if not callable(self["on_text"]) or inspect.iscoroutinefunction(self["on_text"]):
            self._refuse("on_text", "a plain function that takes a string, such as print")
        if not (isinstance(self["prompt"], str) or _is_chat(self["prompt"])) or self["n"] not in (
            None,
            1,
        ):
            self._refuse("on_text", "left out: a stream is one response to one prompt")

    def _check_response_format(self) -> None:
        value = self["response_format"]
        if is_model_class(value):
            return
        if not isinstance(value, Mapping) or not isinstance(value.get("type"), str):
            self._refuse(
                "response_format",
                'a pydantic model class, or a dict such as {"type": "json_schema", "json_schema": '
                '{"name": ..., "schema": ...}}',
            )

    def _check_stop(self) -> None:
        stop = self["stop"]
        if isinstance(stop, str) and stop:
            return
        if not isinstance(stop, (list, tuple)) or not all(isinstance(s, str) and s for s in stop):
            self._refuse("stop", "a string or a list of strings")

    def _subject(self) -> str:
        return f"prompt={_repr.repr(self['prompt'])}"


def _is_chat(value: Any) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) > 0
        and all(isinstance(message, Mapping) and "role" in message for message in value)
    )


_AI_CHECKS: dict[str, Callable[[AITask], None]] = {
    "max_tokens": lambda task: task._check_count("max_tokens", 1),
    "model": lambda task: task._check_type("model", str, "the name of a model"),
    "n": lambda task: task._check_count("n", 1),
    "on_text": AITask._check_on_text,
    "response_format": AITask._check_response_format,
    "seed": lambda task: task._check_type("seed", int, "a whole number"),
    "stop": AITask._check_stop,
    "system_prompt": lambda task: task._check_type("system_prompt", str, "a string"),
    "temperature": lambda task: task._check_number("temperature", 0, None),
    "top_k": AITask._check_top_k,
    "top_p": lambda task: task._check_number("top_p", 0, 1, above=True),
}
