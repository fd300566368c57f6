"""The body of `POST /generate`: prompts, a timeout and sampling parameters."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rhapsody.inference.pacing import Pace
from rhapsody.sampling import SAMPLING_FIELDS

__all__ = ["BodyError", "GenerateBody"]


BYTES_PER_UNIT = 65536
"""Characters of JSON whose parsing takes as long as a unit of a `Pace`."""


class BodyError(ValueError):
    """A request body is invalid.

    Args:
        message: What is wrong with it.
        param: The invalid field.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class GenerateBody(BaseModel):
    """The JSON body of `POST /generate`.

    Attributes:
        prompts: Texts, or chats as lists of messages; at least one.
        model: The model; None: the only one.
        timeout: Longest time for all prompts, in seconds.
        system_prompt: The system message before every prompt.
        priority: Prompts of higher priority are handled first; None: the request's header has it.
        model_extra: The sampling parameters, under the engine's own names.
    """

    model_config = ConfigDict(extra="allow")

    prompts: list[str | list[dict[str, Any]]] = Field(min_length=1)
    model: str | None = None
    timeout: float = Field(default=300, gt=0, allow_inf_nan=False)
    system_prompt: str | None = None
    priority: int | None = Field(default=None, ge=-100, le=100, strict=True)

    @classmethod
    async def parse(cls, data: bytes) -> GenerateBody:
        """Parse a body. The loop runs in between: a body may have many thousand prompts.

        Raises:
            BodyError: It is not JSON, or a field is missing, unknown or invalid.
        """
        pace = Pace()
        try:
            fields = await _JsonObject(data.decode()).parse("prompts", pace)
        except (ValueError, RecursionError) as error:
            raise BodyError(f"the body is not a JSON object: {error}") from error
        prompts = fields.get("prompts")
        if isinstance(prompts, list):
            for position, prompt in enumerate(prompts):
                _check_prompt(position, prompt)
                await pace.take()
            fields["prompts"] = prompts[:1]  # the others are checked
        try:
            body = cls.model_validate(fields)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise BodyError(f"{where}: {first['msg']}", str(first["loc"][0])) from error
        for name in body.sampling():
            if name not in SAMPLING_FIELDS:
                known = ", ".join(sorted(SAMPLING_FIELDS))
                raise BodyError(f"unknown field '{name}'; sampling parameters are {known}", name)
        if isinstance(prompts, list):
            body.prompts = prompts
        return body

    def sampling(self) -> dict[str, Any]:
        """Return the sampling parameters that are not null."""
        return {k: v for k, v in (self.model_extra or {}).items() if v is not None}


def _check_prompt(position: int, prompt: Any) -> None:
    if isinstance(prompt, str):
        return
    if isinstance(prompt, list) and all(isinstance(message, Mapping) for message in prompt):
        return
    raise BodyError(
        f"prompts.{position}: must be a text or a list of messages, got {prompt!r:.80}", "prompts"
    )


class _JsonObject:
    """A parser of a JSON object, one of whose fields may be a long list.

    `json.loads` holds the interpreter lock from the beginning to the end of a text, so that a
    thread would not help.

    Args:
        text: The JSON text.
    """

    BLANKS = re.compile(r"[ \t\n\r]*")

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._decode = json.JSONDecoder().raw_decode

    async def parse(self, field: str, pace: Pace) -> dict[str, Any]:
        """Return the object.

        Args:
            field: The field whose items are parsed one by one, if it is a list.
            pace: Bounds the work in one pass of the loop.

        Raises:
            ValueError: The text is not JSON, or not an object.
        """
        fields: dict[str, Any] = {}
        self._expect("{")
        while not self._take("}"):
            if fields:
                self._expect(",")
            if self._next() != '"':
                raise self._error("Expecting a name in double quotes")
            name = self._value()
            self._expect(":")
            fields[name] = await self._list(pace) if name == field else self._value()
        if self._next():
            raise self._error("Extra data")
        return fields

    async def _list(self, pace: Pace) -> Any:
        if not self._take("["):
            return self._value()
        items: list[Any] = []
        while not self._take("]"):
            if items:
                self._expect(",")
            begin = self._at
            items.append(self._value())
            await pace.take(1 + (self._at - begin) // BYTES_PER_UNIT)
        return items

    def _next(self) -> str:
        """Return the next character that is not blank, "" at the end."""
        blanks = self.BLANKS.match(self._text, self._at)
        self._at = blanks.end() if blanks else self._at
        return self._text[self._at : self._at + 1]

    def _take(self, character: str) -> bool:
        if self._next() != character:
            return False
        self._at += 1
        return True

    def _expect(self, character: str) -> None:
        if not self._take(character):
            raise self._error(f"Expecting {character!r}")

    def _value(self) -> Any:
        self._next()
        value, self._at = self._decode(self._text, self._at)
        return value

    def _error(self, message: str) -> json.JSONDecodeError:
        return json.JSONDecodeError(message, self._text, self._at)
