"""The error that a model server gives to a request, and its JSON body."""

from __future__ import annotations

from typing import Any

__all__ = ["RequestError", "error_body"]

# The names that vLLM and OpenAI use for a status, which clients look for.
KINDS = {
    400: "BadRequestError",
    401: "AuthenticationError",
    404: "NotFoundError",
    405: "MethodNotAllowedError",
    413: "PayloadTooLargeError",
    499: "Cancelled",
    500: "InternalServerError",
    503: "ServiceUnavailable",
}


class RequestError(ValueError):
    """A request, or one prompt of it, that the server cannot process.

    Args:
        message: What was wrong, and what was expected.
        param: The field or parameter at fault, if there is exactly one.
        code: The HTTP status that fits.
        kind: The error's name as OpenAI-compatible servers write it; None: the status's own.
    """

    def __init__(
        self, message: str, param: str | None = None, code: int = 400, kind: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code
        self.kind = kind or KINDS.get(code, "APIError")

    def __reduce__(self) -> tuple[type[RequestError], tuple[str, str | None, int, str]]:
        return (type(self), (self.message, self.param, self.code, self.kind))

    @classmethod
    def cancelled(cls) -> RequestError:
        """Return the error of a cancelled prompt."""
        return cls("The request was cancelled.", code=499)


def error_body(error: RequestError) -> dict[str, Any]:
    """Return the JSON body of an error response, as OpenAI's clients read it.

    Args:
        error: The error.
    """
    return {
        "error": {
            "message": error.message,
            "type": error.kind,
            "param": error.param,
            "code": error.code,
        }
    }
