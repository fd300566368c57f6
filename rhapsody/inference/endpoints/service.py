"""The endpoint service: spreads prompts over endpoints, within their limits, with retries."""

from __future__ import annotations

import asyncio
import heapq
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rhapsody.errors import ConfigurationError, PromptError, ReplicaError
from rhapsody.inference.admission import Admission
from rhapsody.inference.endpoints.config import EndpointConfig
from rhapsody.inference.endpoints.endpoint import Endpoint, EndpointBusy
from rhapsody.inference.endpoints.request import EndpointFailed
from rhapsody.inference.metrics import Metrics
from rhapsody.inference.prompts import Completion, Prompt, PromptRequest
from rhapsody.suggest import unknown_name

__all__ = ["EndpointService"]

logger = logging.getLogger(__name__)

MAX_REFUSALS = 1000
"""How often endpoints may ask to send one prompt later, while they answer others."""


class EndpointService:
    """Completes prompts by endpoints that serve the same model.

    Args:
        config: The checked configuration.
        on_sent: Called with the number of prompts in each request.
    """

    def __init__(self, config: EndpointConfig, on_sent: Callable[[int], None]) -> None:
        self.model = config.model or ""
        self.metrics = Metrics()
        self.admission = Admission(config.max_pending)
        self._config = config
        self._on_sent = on_sent
        self._waiting: list[tuple[int, int, asyncio.Future[Endpoint]]] = []
        """A heap by order and arrival."""
        self._turns = 0
        self._timer: asyncio.TimerHandle | None = None
        self._failure: ReplicaError | None = None
        self._outage_since: float | None = None
        """When endpoints began to refuse or fail everything; None after a prompt was answered."""
        self.endpoints = [
            Endpoint(
                index,
                url,
                key,
                max_concurrency=config.max_concurrency,
                request_timeout=config.request_timeout,
                chat=config.chat,
                proxy=config.proxy,
            )
            for index, (url, key) in enumerate(zip(config.urls, config.keys, strict=True))
        ]

    async def start(self) -> None:
        """Ask every endpoint for its models.

        An endpoint that cannot be reached is no error while another one can.

        Raises:
            ConfigurationError: The model is not served, or has no name and there are several.
            ReplicaError: No endpoint can be reached.
        """
        answers = await asyncio.gather(
            *(endpoint.models() for endpoint in self.endpoints), return_exceptions=True
        )
        problems = []
        served: set[str] = set()
        for endpoint, answer in zip(self.endpoints, answers, strict=True):
            if isinstance(answer, EndpointFailed):
                endpoint.take_out(str(answer))
                problems.append(f"{endpoint.url}: {answer}")
            elif isinstance(answer, BaseException):
                raise answer
            elif answer is not None:
                self._check_model(endpoint, answer)
                served.update(answer)
        if len(problems) == len(self.endpoints):
            raise ReplicaError(f"no endpoint can be used: {'; '.join(problems)}")
        for problem in problems:
            logger.warning("endpoint %s", problem)
        if not self.model:
            if len(served) != 1:
                what = (
                    f"serve {', '.join(sorted(served))}" if served else "do not list their models"
                )
                raise ConfigurationError(f"'model' is missing, and the endpoints {what}; name one")
            self.model = served.pop()

    def _check_model(self, endpoint: Endpoint, served: Sequence[str]) -> None:
        if self.model and served and self.model not in served:
            raise ConfigurationError(
                f"{endpoint.url} does not serve it: {unknown_name('model', self.model, served)}"
            )

    async def stop(self) -> None:
        """Fail all prompts that wait, and close all connections."""
        self._fail_waiting(ReplicaError("the endpoint backend was shut down"))
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.gather(*(endpoint.close() for endpoint in self.endpoints))

    async def complete(
        self,
        prompt: Prompt,
        system_prompt: str | None = None,
        sampling: Mapping[str, Any] | None = None,
        on_sent: Callable[[Any], None] | None = None,
        on_text: Callable[[str], Any] | None = None,
        priority: int = 0,
        adapter: str | None = None,
    ) -> Completion:
        """Complete one prompt. It waits while `max_pending` prompts are pending.

        Args:
            prompt: A text, chat messages, or an input of another kind.
            system_prompt: The system message before it.
            sampling: The sampling parameters.
            on_sent: Called with the endpoint each time the prompt is sent to one.
            on_text: Called with each piece of the response as it arrives.
            priority: Prompts of higher priority are sent first. The endpoint is not told, because
                not every server takes priorities.
            adapter: The name of a LoRA adapter, which is sent as the model.

        Raises:
            PromptError: The endpoint refused the prompt.
            ReplicaError: No endpoint could complete it.
        """
        await self.admission.enter()
        if self.admission.pending == 1:
            self._outage_since = None  # nothing was tried since an earlier outage
        since = time.monotonic()
        usage, outcome = None, "error"
        request = PromptRequest(prompt, None, None, on_text, on_sent, priority, adapter=adapter)
        try:
            completion = await self._try(prompt, system_prompt, dict(sampling or {}), request)
            usage, outcome = completion.usage, "done"
            return completion
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            request.close()
            self.admission.leave()
            if request.first_text_at is not None:
                self.metrics.record_first_piece(request.first_text_at - since)
            self.metrics.record_outcome(outcome, time.monotonic() - since, usage, priority)

    async def _try(
        self,
        prompt: Prompt,
        system_prompt: str | None,
        sampling: Mapping[str, Any],
        request: PromptRequest,
    ) -> Completion:
        """Send a prompt, until it is completed or refused, or its attempts are used up."""
        failures = refusals = 0
        since = time.monotonic()
        while True:
            endpoint = await self._free_endpoint(request.order)
            problem: EndpointBusy | EndpointFailed
            try:
                self.metrics.record_batch([request.priority], [time.monotonic() - since])
                self._on_sent(1)
                request.sent_to(endpoint)
                completion = await endpoint.complete(
                    request.body.get("adapter", self.model),
                    prompt,
                    system_prompt,
                    sampling,
                    request,
                )
                self._outage_since = None
                return completion
            except PromptError:
                self._outage_since = None
                raise
            except EndpointBusy as error:
                refusals += 1
                problem = error
            except EndpointFailed as error:
                failures += 1
                problem = error
            finally:
                endpoint.in_flight -= 1
                self._wake()
            if failures > self._config.max_retries or not request.can_retry:
                raise ReplicaError(
                    f"endpoint {endpoint.url} did not complete the prompt in {failures} "
                    f"attempt{'s' * (failures != 1)}: {problem}"
                )
            if refusals > MAX_REFUSALS:
                raise ReplicaError(
                    f"endpoint {endpoint.url} refused the prompt {refusals} times: {problem}"
                )
            if self._is_outage_too_long():
                raise ReplicaError(self._outage())

    async def _free_endpoint(self, order: int) -> Endpoint:
        """Wait for an endpoint that takes a request, and reserve a place there."""
        if self._failure is not None:
            raise self._failure
        endpoint = self._best() if not self._waiting else None
        if endpoint is not None:
            endpoint.in_flight += 1
            return endpoint
        turn: asyncio.Future[Endpoint] = asyncio.get_running_loop().create_future()
        self._turns += 1
        heapq.heappush(self._waiting, (order, self._turns, turn))
        self._wake()
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                turn.result().in_flight -= 1
                self._wake()
            raise

    @property
    def window(self) -> int:
        """How many prompts of one request should be in progress at a time."""
        return 4 * self._config.max_concurrency * len(self.endpoints)

    def _best(self) -> Endpoint | None:
        """Return the endpoint with the most room."""
        best = max(self.endpoints, key=lambda endpoint: endpoint.room)
        return best if best.room else None

    def _wake(self) -> None:
        """Give free places to the prompts that come first by their order."""
        while self._waiting:
            endpoint = self._best()
            if endpoint is None:
                self._wait_for_pauses()
                return
            turn = heapq.heappop(self._waiting)[2]
            if not turn.done():
                endpoint.in_flight += 1
                turn.set_result(endpoint)

    def _wait_for_pauses(self) -> None:
        """Wake up when the first pause ends; give up if no endpoint has worked for too long."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        now = time.monotonic()
        pauses = [one.not_before - now for one in self.endpoints if one.not_before > now]
        if any(endpoint.in_flight for endpoint in self.endpoints):
            if not pauses:
                return  # the end of a request wakes the next prompt
        elif self._is_outage_too_long():
            self._fail_waiting(ReplicaError(self._outage()), for_good=False)
            return
        else:
            pauses.append(self._outage_left())
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(min(pauses) + 0.001, self._wake)

    def _outage_left(self) -> float:
        """Return for how many seconds prompts are tried yet; begin to count."""
        now = time.monotonic()
        if self._outage_since is None:
            self._outage_since = now
        return self._outage_since + self._config.outage_timeout - now

    def _is_outage_too_long(self) -> bool:
        """Return whether endpoints have answered no prompt for too long; begin to count."""
        return self._outage_left() < 0

    def _outage(self) -> str:
        problems = "; ".join(f"{one.url}: {one.problem}" for one in self.endpoints)
        return (
            f"no endpoint has answered a prompt for outage_timeout="
            f"{self._config.outage_timeout:g} s; {problems}"
        )

    def _fail_waiting(self, error: ReplicaError, for_good: bool = True) -> None:
        if for_good:
            self._failure = error
        waiting, self._waiting = self._waiting, []
        for _, _, turn in waiting:
            if not turn.done():
                turn.set_exception(error)

    def get_statistics(self) -> dict[str, Any]:
        """Return counts of requests and prompts, and the state of the endpoints."""
        return {
            "requests": self.metrics.batches,
            "pending_prompts": self.admission.pending,
            "replicas": [endpoint.as_dict() for endpoint in self.endpoints],
        }
