"""The configuration of the HTTP server: its address, keys and origins."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, InstanceOf

from rhapsody.errors import ConfigurationError
from rhapsody.inference.clients import ApiKey, check_key, parse_keys
from rhapsody.validation import Fault, StrictModel

__all__ = ["ListenConfig"]

ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/\s]+")
"""An origin as browsers send it: a scheme, a host and maybe a port, without a path."""


def _check_api_key(key: str | None) -> str | None:
    return None if key is None else check_key(key)


def _check_origins(origins: Sequence[str]) -> tuple[str, ...]:
    if not all(origin == "*" or ORIGIN.fullmatch(origin) for origin in origins):
        raise ValueError
    return tuple(origins)


class ListenConfig(StrictModel):
    """Where the HTTP server listens, and who may use it; documented at the backend."""

    host: Annotated[str | None, Field(description="a host name or an address")] = None
    port: Annotated[int, Field(ge=0, le=65535, description="a whole number from 0 to 65535")] = 8000
    api_key: Annotated[
        str | None,
        AfterValidator(_check_api_key),
        Field(
            repr=False,
            description="non-empty text without spaces and line breaks, also if it is set as "
            "RHAPSODY_API_KEY; remove both to require no key",
        ),
    ] = None
    api_keys: Annotated[
        Mapping[str, str | dict[str, Any] | InstanceOf[ApiKey]],
        Field(description="a dict of keys by name"),
    ] = Field(default_factory=dict, repr=False)
    cors_origins: Annotated[
        list[str] | tuple[str, ...],
        AfterValidator(_check_origins),
        Field(description="a list of origins such as 'https://app.example', or ['*'] for all"),
    ] = ()

    batch_dir: Annotated[
        InstanceOf[str] | InstanceOf[os.PathLike[str]] | None,
        Field(description="the path of a folder"),
    ] = None

    @classmethod
    def refuse(cls, fault: Fault) -> Exception:
        """Return a ConfigurationError."""
        return ConfigurationError(fault.message)

    def keys(self) -> dict[str, ApiKey]:
        """Return the keys by the names of their clients; `api_key` is the one of "default".

        Raises:
            ConfigurationError: A key is invalid, or two clients have the same one.
        """
        return parse_keys(self.api_keys, self.api_key)

    def bind_address(self) -> str | None:
        """Return the address that the gateway listens on.

        This may block for seconds while the host name is resolved.

        Returns:
            `host` if it is set, else this machine's name; None (all addresses) if that name cannot
            be resolved.
        """
        if self.host is not None:
            return self.host
        try:
            socket.getaddrinfo(socket.gethostname(), None)
        except OSError:
            return None
        return socket.gethostname()
