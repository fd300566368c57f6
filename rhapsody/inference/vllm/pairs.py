"""Scores of pairs of texts by a vLLM server's own route, many pairs in one request."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

from rhapsody.inference.protocol.errors import RequestError

__all__ = ["AskRoute", "Pair", "PairScorer"]

AskRoute = Callable[[str, Mapping[str, Any]], Awaitable[dict[str, Any]]]
"""Sends a body to one of the server's own routes."""
PAIRS_PER_REQUEST = 64
"""The prompts that are tokenized together, which come together."""


class Pair(NamedTuple):
    """Two texts to be scored.

    Attributes:
        query: The first text.
        document: The second text.
        tokens: The number of tokens of both.
    """

    query: str
    document: str
    tokens: int


Score = tuple[float, int]
"""The score of a pair, and the number of tokens of the prompt that it became."""
Waiting = tuple[Pair, asyncio.Future[Score]]


class PairScorer:
    """Sends pairs to the route `/score`, which knows how a pair becomes one prompt of the model.

    The route needs more time for a request than the engine for a pair, so pairs that come in the
    same pass of the loop are one request. If the route refuses it, each pair is sent alone, and
    only those that are wrong fail.

    Args:
        ask: Sends a body to one of the server's own routes.
    """

    def __init__(self, ask: AskRoute) -> None:
        self._ask = ask
        self._waiting: defaultdict[str | None, list[Waiting]] = defaultdict(list)
        """Pairs of this pass of the loop, by the LoRA adapter that scores them."""
        self._requests: set[asyncio.Task[None]] = set()

    async def score(self, pair: Pair, adapter: str | None) -> Score:
        """Return the score of a pair, and the number of its tokens.

        Args:
            pair: The pair.
            adapter: Name of a LoRA adapter; None: the model itself.

        Raises:
            RequestError: The route refused the pair.
        """
        loop = asyncio.get_running_loop()
        if not self._waiting:
            loop.call_soon(self._send)
        found: asyncio.Future[Score] = loop.create_future()
        self._waiting[adapter].append((pair, found))
        return await found

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, defaultdict(list)
        for adapter, pairs in waiting.items():
            for begin in range(0, len(pairs), PAIRS_PER_REQUEST):
                part = pairs[begin : begin + PAIRS_PER_REQUEST]
                request = asyncio.create_task(self._score_all(part, adapter))
                self._requests.add(request)
                request.add_done_callback(self._requests.discard)
                for _, found in part:
                    found.add_done_callback(partial(_cancel_unneeded, part, request))

    async def _score_all(self, part: list[Waiting], adapter: str | None) -> None:
        """Score pairs in one request, or each alone if that is refused. Never raises."""
        try:
            scores = await self._request([pair for pair, _ in part], adapter)
        except Exception as error:
            if len(part) == 1:
                if not part[0][1].done():
                    part[0][1].set_exception(error)
                return
            left = [one for one in part if not one[1].done()]
            await asyncio.gather(*(self._score_all([one], adapter) for one in left))
            return
        for (_, found), score in zip(part, scores, strict=True):
            if not found.done():
                found.set_result(score)

    async def _request(self, pairs: list[Pair], adapter: str | None) -> list[Score]:
        body: dict[str, Any] = {
            "text_1": [pair.query for pair in pairs],
            "text_2": [pair.document for pair in pairs],
        }
        if adapter is not None:
            body["model"] = adapter
        answer = await self._ask("/score", body)
        scores = [float(one["score"]) for one in answer["data"]]
        if len(scores) != len(pairs):
            raise RequestError(
                f"The server sent {len(scores)} scores for {len(pairs)} pairs.", code=500
            )
        total = (answer.get("usage") or {}).get("prompt_tokens") or 0
        # The route has only the sum. What the model's format adds is the same for each pair.
        added, rest = divmod(total - sum(pair.tokens for pair in pairs), len(pairs))
        counts = [pair.tokens + added + (n < rest) for n, pair in enumerate(pairs)]
        return list(zip(scores, counts, strict=True))


def _cancel_unneeded(part: list[Waiting], request: asyncio.Task[None], _: object) -> None:
    """Cancel a request if all its pairs were cancelled."""
    if all(found.cancelled() for _, found in part):
        request.cancel()
