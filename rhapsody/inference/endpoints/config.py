"""The configuration of an endpoint backend, checked before any request."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Annotated, ClassVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StrictBool, StrictStr

from rhapsody.errors import ConfigurationError
from rhapsody.validation import Count, Fault, NonEmptyStr, Seconds, StrictModel, ZeroOrMore, brief

__all__ = ["EndpointConfig"]

logger = logging.getLogger(__name__)

LOOPBACK = ("127.0.0.1", "localhost", "::1")
ROUTES = ("/chat/completions", "/completions", "/models", "/embeddings", "/responses")


def _check_key(key: str) -> str:
    if not (key.isprintable() and key.split() == [key]):
        raise ValueError
    return key


_Key = Annotated[StrictStr, AfterValidator(_check_key)]


class EndpointConfig(StrictModel):
    """The parameters of `EndpointInferenceBackend`, documented there."""

    noun: ClassVar[str] = "parameter"

    base_url: Annotated[
        StrictStr | Sequence[StrictStr], Field(description="a URL, or a list of URLs")
    ]
    model: Annotated[NonEmptyStr | None, Field(description="the name of a model, or None")] = None
    api_key: Annotated[
        _Key | Sequence[_Key | None] | None,
        Field(
            repr=False,
            description="non-empty text without spaces and line breaks, or a list with one key (or "
            "None) for each URL",
        ),
    ] = None
    max_concurrency: Count = 64
    request_timeout: Seconds = 600.0
    max_retries: ZeroOrMore = 4
    outage_timeout: Seconds = 120.0
    max_pending: Count = 65536
    chat: Annotated[StrictBool, Field(description="a boolean")] = True
    proxy: Annotated[StrictStr | None, Field(description="the URL of a proxy, or None")] = None

    @classmethod
    def refuse(cls, fault: Fault) -> Exception:
        """Return a ConfigurationError."""
        return ConfigurationError(fault.message)

    @property
    def urls(self) -> list[str]:
        """The URLs, without a slash at the end.

        Raises:
            ConfigurationError: There is none, one is invalid, or one is there twice.
        """
        given = [self.base_url] if isinstance(self.base_url, str) else list(self.base_url)
        if not given:
            raise ConfigurationError("'base_url' must have at least one URL, got an empty list")
        urls = [_checked_url(url) for url in given]
        if len(set(urls)) < len(urls):
            raise ConfigurationError(f"'base_url' has a URL twice: {brief(given)}")
        return urls

    @property
    def keys(self) -> list[str | None]:
        """The key of each URL.

        Raises:
            ConfigurationError: There are not as many keys as URLs.
        """
        urls = self.urls
        if self.api_key is None or isinstance(self.api_key, str):
            keys: list[str | None] = [self.api_key] * len(urls)
        else:
            keys = list(self.api_key)
        if len(keys) != len(urls):
            raise ConfigurationError(
                f"'api_key' has {len(keys)} keys for {len(urls)} URLs; give one key for all, or a "
                "list with a key (or None) for each"
            )
        for url, key in zip(urls, keys, strict=True):
            if key and url.startswith("http:") and urlsplit(url).hostname not in LOOPBACK:
                logger.warning(
                    "the key for %s is sent without encryption; use https if you can", url
                )
        return keys


def _checked_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        fine = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        fine = False
        parts = urlsplit("")
    if not fine:
        raise ConfigurationError(f"'base_url' must be like 'http://host:8000/v1', got {brief(url)}")
    if "@" in parts.netloc:
        raise ConfigurationError("'base_url' must not contain a user or a password; pass api_key")
    if parts.query or parts.fragment:
        raise ConfigurationError(f"'base_url' must have no query and no fragment, got {brief(url)}")
    path = parts.path.rstrip("/")
    route = next((route for route in ROUTES if path.endswith(route)), None)
    if route is not None:
        raise ConfigurationError(
            f"'base_url' must end before the route {route!r}: "
            f"'{parts.scheme}://{parts.netloc}{path.removesuffix(route)}'"
        )
    return f"{parts.scheme}://{parts.netloc}{path}"
