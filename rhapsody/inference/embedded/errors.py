"""The one error that a request to the embedded model can end with."""

from __future__ import annotations

# The words vLLM and OpenAI use for a status, so that clients find what they expect.
KINDS = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    413: "PayloadTooLargeError",
    499: "Cancelled",
    500: "InternalServerError",
}


class RequestError(ValueError):
    """A request that cannot be answered, with the reason in words.

    Args:
        message: What was wrong, and what was expected.
        param: The field or parameter at fault, None where there is no single one.
        code: The HTTP status that goes with it.
    """

    def __init__(self, message: str, param: str | None = None, code: int = 400) -> None:
        """Keep the parts; `str()` of the error is the message."""
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code

    def __reduce__(self) -> tuple[type[RequestError], tuple[str, str | None, int]]:
        """Pickle with all fields."""
        return (type(self), (self.message, self.param, self.code))

    @property
    def kind(self) -> str:
        """The error's name as OpenAI-compatible servers write it, such as `BadRequestError`."""
        return KINDS.get(self.code, "APIError")
