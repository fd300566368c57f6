"""The endpoint backend: completes prompts by model servers that somebody else runs."""

from __future__ import annotations

import os
from collections.abc import Sequence

from rhapsody.backends.prompts import PromptBackend
from rhapsody.inference.endpoints.config import EndpointConfig
from rhapsody.inference.endpoints.service import EndpointService
from rhapsody.inference.kinds import KINDS
from rhapsody.suggest import suggest_parameters

__all__ = ["EndpointInferenceBackend"]

KEY_VARIABLE = "RHAPSODY_ENDPOINT_KEY"


class EndpointInferenceBackend(PromptBackend):
    """Sends prompts to OpenAI-compatible servers, such as vLLM, Ollama or a site's gateway.

    Args:
        base_url: URL of the server, such as "http://host:8000/v1", or a list of URLs that serve the
            same model. A prompt goes to the one with the most room, and to another one if that
            fails.
        model: Name of the model; None: the only one that the servers list.
        api_key: The servers' key, or a list with one for each; None: the value of
            RHAPSODY_ENDPOINT_KEY, if set. It is never logged.
        name: Name of the backend.
        max_concurrency: Maximum number of requests at a time to each server.
        request_timeout: Longest time for a response, in seconds; for a stream, between two pieces.
        max_retries: How often a prompt is sent again after a server failed. A server that asks to
            come later (HTTP 429 or 503) gets it again after the time that it names.
        outage_timeout: Longest time that a prompt is tried while all servers are busy or do not
            answer, in seconds.
        max_pending: Maximum number of prompts waiting and in flight. Beyond it, prompts wait.
        chat: Whether a prompt that is a text is sent as a chat with one message. False sends it to
            `/completions`, for models without a chat template.
        proxy: URL of an HTTP proxy.

    Raises:
        ConfigurationError: A parameter has the wrong type or range. `initialize` asks the servers
            for their models, and refuses one that they do not list.
    """

    server_noun = "endpoint"
    _service: EndpointService | None

    @suggest_parameters
    def __init__(
        self,
        base_url: str | Sequence[str],
        model: str | None = None,
        api_key: str | Sequence[str | None] | None = None,
        name: str = "endpoint",
        *,
        max_concurrency: int = 64,
        request_timeout: float = 600.0,
        max_retries: int = 4,
        outage_timeout: float = 120.0,
        max_pending: int = 65536,
        chat: bool = True,
        proxy: str | None = None,
    ) -> None:
        super().__init__(name)
        self.config = EndpointConfig(
            base_url=base_url,
            model=model,
            api_key=os.environ.get(KEY_VARIABLE) if api_key is None else api_key,
            max_concurrency=max_concurrency,
            request_timeout=request_timeout,
            max_retries=max_retries,
            outage_timeout=outage_timeout,
            max_pending=max_pending,
            chat=chat,
            proxy=proxy,
        )
        self._urls, _ = self.config.urls, self.config.keys  # checked before the first request
        self._service = None

    @property
    def model_name(self) -> str:
        """Name of the model; empty until the servers were asked, if it was not given."""
        if self._service is not None:
            return self._service.model
        return self.config.model or ""

    @property
    def ai_kinds(self) -> frozenset[str]:
        """All kinds of AI task. A server whose model does not take a kind refuses the task."""
        return frozenset(KINDS)

    def get_endpoint(self) -> str:
        """Return the URL of the first server."""
        return self._urls[0]

    async def start(self) -> None:
        """Ask the servers for their models."""
        service = EndpointService(self.config, lambda size: self.history.record_batch(size))
        try:
            await service.start()
        except BaseException:
            await service.stop()
            raise
        self._service = service

    async def stop(self) -> None:
        """Close all connections."""
        if self._service is not None:
            service, self._service = self._service, None
            await service.stop()

    def kill_children(self) -> None:
        """Do nothing: the servers belong to somebody else."""
