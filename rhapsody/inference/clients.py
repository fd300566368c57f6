"""The HTTP clients of a server: their keys, shares of the model, rates, and usage."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from rhapsody.errors import ConfigurationError
from rhapsody.inference.prompts import order_of
from rhapsody.validation import Fault, StrictModel

__all__ = ["ApiKey", "Client", "Clients", "check_key", "parse_keys", "replacing_keys"]

DEFAULT_NAME = "default"
"""The name of the client with `api_key`, or of all clients if no key is required."""
SHARE_SECONDS = 0.01
"""How much later than the one before a prompt of a client counts as arrived, at weight 1."""
MINUTE = 60.0


def check_key(key: str) -> str:
    """Return a key. Raises ValueError unless it is printable text without spaces."""
    if not (key.isprintable() and key.split() == [key]):
        raise ValueError
    return key


class ApiKey(StrictModel):
    """A client's key and limits.

    Attributes:
        key: The key that the client sends.
        weight: The client's share of the model, relative to the other clients with waiting prompts.
        rate: Maximum number of prompts per minute; None: no limit.
        max_priority: Highest priority of the client's prompts; a higher one is lowered to it.
    """

    key: Annotated[
        str,
        AfterValidator(check_key),
        Field(repr=False, description="non-empty text without spaces and line breaks"),
    ]
    weight: Annotated[float, Field(gt=0, allow_inf_nan=False, description="above 0")] = 1.0
    rate: Annotated[
        float | None, Field(gt=0, allow_inf_nan=False, description="prompts per minute, above 0")
    ] = None
    max_priority: Annotated[
        int, Field(ge=-100, le=100, description="a whole number from -100 to 100")
    ] = 100

    @classmethod
    def refuse(cls, fault: Fault) -> Exception:
        """Return a ConfigurationError."""
        # The value may be a key.
        return ConfigurationError(f"api_keys: {fault.message.partition(', got')[0]}")


def parse_keys(
    keys: Mapping[str, str | Mapping[str, Any] | ApiKey], api_key: str | None = None
) -> dict[str, ApiKey]:
    """Return the keys of all clients by name.

    Args:
        keys: A key, or a key with limits, by the name of its client.
        api_key: The key of the client "default".

    Raises:
        ConfigurationError: A key is invalid, or two clients have the same one or the same name.
    """
    if not isinstance(keys, Mapping):
        raise ConfigurationError(
            f"'api_keys' must be a dict of keys by name, got a {type(keys).__name__}"
        )
    parsed = {} if api_key is None else {DEFAULT_NAME: ApiKey(key=api_key)}
    if DEFAULT_NAME in keys and parsed:
        raise ConfigurationError(
            f"api_keys: '{DEFAULT_NAME}' is the name of the client with api_key; choose another one"
        )
    for name, given in keys.items():
        fields = {"key": given} if isinstance(given, str) else given
        limits = fields if isinstance(fields, ApiKey) else ApiKey(**fields)
        if any(limits.key == other.key for other in parsed.values()):
            raise ConfigurationError(f"api_keys: the client '{name}' has the key of another one")
        parsed[name] = limits
    return parsed


def replacing_keys(
    keys: Mapping[str, str | Mapping[str, Any] | ApiKey], api_key: str | None
) -> dict[str, ApiKey]:
    """Return keys that replace those of a server, see `parse_keys`.

    Raises:
        ConfigurationError: A key is invalid, or there is none, which would open the server to all.
    """
    parsed = parse_keys(keys, api_key)
    if not parsed:
        raise ConfigurationError(
            "'api_keys' must have at least one key; without any, everybody could use the server"
        )
    return parsed


class Client:
    """What the gateway knows of one client.

    Args:
        name: Its name.
        limits: Its key and limits; None: it has none.
        clock: Returns the time in seconds.
    """

    def __init__(
        self, name: str, limits: ApiKey | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.name = name
        self.limits = limits
        self.prompts = 0
        self.refused = 0
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._clock = clock
        self._allowance = limits.rate or 0.0 if limits is not None else 0.0
        self._filled_at = clock()
        self._arrival = 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return its name and usage."""
        return {
            "name": self.name,
            "prompts": self.prompts,
            "refused": self.refused,
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }

    def try_enter(self, prompts: int = 1) -> float:
        """Count prompts against the rate: all of them or none.

        A request for more prompts than the rate allows at once is accepted while the client has
        some of its rate left; then the client waits for longer.

        Returns:
            0 if they are accepted, else the seconds until the client may try again.
        """
        rate = self.limits.rate if self.limits is not None else None
        if rate is not None:
            now = self._clock()
            gained = (now - self._filled_at) * rate / MINUTE
            self._allowance = min(self._allowance + gained, max(rate, 1.0))
            self._filled_at = now
            if self._allowance < 1:
                self.refused += prompts
                return (1 - self._allowance) * MINUTE / rate
            self._allowance -= prompts
        self.prompts += prompts
        return 0.0

    def take_back(self) -> None:
        """Undo the count of a prompt that no model got."""
        self.prompts -= 1
        self._allowance += 1

    async def enter(self) -> None:
        """Count one prompt against the rate; wait while the rate is used up."""
        while seconds := self.try_enter():
            self.refused -= 1
            await asyncio.sleep(seconds)

    def allowed(self, priority: int) -> int:
        """Return the priority of a prompt for which the client asks for one."""
        return priority if self.limits is None else min(priority, self.limits.max_priority)

    def order(self, priority: int) -> int:
        """Return the place of a prompt that arrives now, see `order_of`.

        The prompts of a client count as arriving one after the other, at a distance that depends
        on its weight. So many prompts of one client do not hold up those of others.

        Args:
            priority: The priority that the client asks for.
        """
        if self.limits is None:
            return order_of(priority)
        distance = SHARE_SECONDS / self.limits.weight
        self._arrival = max(self._clock(), self._arrival + distance)
        return order_of(self.allowed(priority), self._arrival)

    def add_usage(self, usage: Mapping[str, int]) -> None:
        """Add the tokens of one response."""
        self.prompt_tokens += usage.get("prompt_tokens", 0)
        self.completion_tokens += usage.get("completion_tokens", 0)


class Clients:
    """The clients of a gateway.

    Args:
        keys: The keys by the names of the clients; empty: no key is required.
    """

    def __init__(self, keys: Mapping[str, ApiKey]) -> None:
        self._everybody = Client(DEFAULT_NAME, None)
        self._clients: dict[str, Client] = {}
        self.replace(keys)

    def __iter__(self) -> Iterator[Client]:
        return iter(self._clients.values() if self._clients else [self._everybody])

    @property
    def required(self) -> bool:
        """Whether a key is required."""
        return bool(self._clients)

    def replace(self, keys: Mapping[str, ApiKey]) -> None:
        """Use other keys. Clients that keep their name keep their usage."""
        clients: dict[str, Client] = {}
        for name, limits in keys.items():
            client = self._clients.get(name) or Client(name, limits)
            client.limits = limits
            clients[name] = client
        self._clients = clients

    def named(self, name: str) -> Client:
        """Return the client of a name; one without limits if its key was removed."""
        if not self._clients:
            return self._everybody
        return self._clients.get(name) or Client(name, None)

    def find(self, key: str) -> Client | None:
        """Return the client with a key, None if there is none. Without keys any one is right."""
        if not self._clients:
            return self._everybody
        given = key.encode("utf-8", "surrogateescape")
        found = None
        for client in self._clients.values():  # all of them, so that the time tells nothing
            if client.limits is not None and hmac.compare_digest(given, client.limits.key.encode()):
                found = client
        return found
