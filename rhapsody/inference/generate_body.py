"""What `POST /generate` takes: prompts, a timeout, sampling parameters."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from rhapsody.sampling import SAMPLING_FIELDS

__all__ = ["BadBody", "GenerateBody"]

NonEmpty = Field(min_length=1)


class BadBody(ValueError):
    """A body that cannot be used.

    Args:
        message: What is wrong with it.
        param: The field at fault.
    """

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class GenerateBody(BaseModel):
    """The JSON body of `POST /generate`.

    Attributes:
        prompts: Texts, or chats as lists of messages; at least one. None of them is empty.
        timeout: Longest time for all of them, in seconds.
        system_prompt: Goes before every prompt.
        model_extra: The sampling parameters, under the engine's own names.
    """

    model_config = ConfigDict(extra="allow")

    prompts: list[str | list[dict[str, Any]]] = NonEmpty
    timeout: float = Field(default=300, gt=0, allow_inf_nan=False)
    system_prompt: str | None = None

    @classmethod
    def parse(cls, data: bytes) -> GenerateBody:
        """Read a body.

        Raises:
            BadBody: It is no JSON, or a field is missing, unknown or wrong.
        """
        try:
            body = cls.model_validate_json(data)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            text = f"{where}: {first['msg']}" if where else first["msg"]
            raise BadBody(text, str(first["loc"][0]) if first["loc"] else None) from error
        for name in body.sampling():
            if name not in SAMPLING_FIELDS:
                known = ", ".join(sorted(SAMPLING_FIELDS))
                raise BadBody(f"unknown field '{name}'; sampling parameters are {known}", name)
        return body

    def sampling(self) -> dict[str, Any]:
        """Return the sampling parameters that were given."""
        return {k: v for k, v in (self.model_extra or {}).items() if v is not None}
