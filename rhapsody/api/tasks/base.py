"""What compute and AI tasks share: fields that are checked, and an end that is awaited."""

from __future__ import annotations

import asyncio
import difflib
import reprlib
from collections.abc import Generator, Mapping
from itertools import count
from typing import Any, NoReturn, TypeVar

from rhapsody.api.errors import SessionError, TaskValidationError
from rhapsody.backends.protocol import TaskStates

__all__ = ["BaseTask"]

T = TypeVar("T", bound="BaseTask")

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
brief = _repr.repr
"""Writes a value on one short line."""


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
                        f"unknown field '{field}' (value {brief(value)}); "
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
            f"'{field}' must be {expected}, not {brief(value)}",
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
        from rhapsody.api.tasks import AITask, ComputeTask  # here: both are subclasses

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
                parts.append(f"{field}={value if plain else brief(value)}")
        return f"{type(self).__name__}({', '.join(parts)})"

    def _subject(self) -> str:
        raise NotImplementedError


_set_future = BaseTask._future.__set__  # type: ignore[union-attr]  # the slot, not the field


def _rebuild(kind: type[T], fields: dict[str, Any]) -> T:
    task = kind.__new__(kind)
    task.update(fields)
    return task
