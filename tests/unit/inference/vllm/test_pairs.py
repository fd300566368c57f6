"""Scores of pairs by the server's own route, many pairs in one request."""

import asyncio
from collections.abc import Mapping
from typing import Any

import pytest

from rhapsody.inference.protocol.errors import RequestError
from rhapsody.inference.vllm.pairs import PAIRS_PER_REQUEST, Pair, PairScorer
from tests.support.waiting import until


class Route:
    """Scores a pair by the length of its document, and adds 3 tokens; refuses the query "bad"."""

    def __init__(self) -> None:
        self.bodies: list[Mapping[str, Any]] = []
        self.cancelled = 0
        self.hold = False

    async def __call__(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        assert path == "/score"
        self.bodies.append(body)
        try:
            if self.hold:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if "bad" in body["text_1"]:
            raise RequestError("The query is bad.")
        texts = list(zip(body["text_1"], body["text_2"], strict=True))
        return {
            "data": [{"score": len(document)} for _, document in texts],
            "usage": {"prompt_tokens": sum(len(a) + len(b) + 3 for a, b in texts)},
        }


def pair(query: str, document: str) -> Pair:
    return Pair(query, document, len(query) + len(document))


async def test_pairs_that_come_together_are_one_request() -> None:
    route = Route()
    scorer = PairScorer(route)
    found = await asyncio.gather(*(scorer.score(pair("q", "d" * n), None) for n in (1, 5, 2)))
    assert found == [(1, 5), (5, 9), (2, 6)]
    assert route.bodies == [{"text_1": ["q"] * 3, "text_2": ["d", "ddddd", "dd"]}]


async def test_request_has_a_bound_and_names_one_adapter() -> None:
    route = Route()
    scorer = PairScorer(route)
    adapters = [None] * (PAIRS_PER_REQUEST + 1) + ["one"]
    await asyncio.gather(*(scorer.score(pair("q", "d"), adapter) for adapter in adapters))
    assert [(len(body["text_1"]), body.get("model")) for body in route.bodies] == [
        (PAIRS_PER_REQUEST, None),
        (1, None),
        (1, "one"),
    ]


async def test_pair_that_the_route_refuses_fails_alone() -> None:
    scorer = PairScorer(Route())
    found = await asyncio.gather(
        *(scorer.score(pair(query, "d"), None) for query in ("a", "bad", "b")),
        return_exceptions=True,
    )
    assert [found[0], found[2]] == [(1, 5), (1, 5)]
    assert isinstance(found[1], RequestError)


async def test_request_is_cancelled_with_the_last_of_its_pairs() -> None:
    route = Route()
    route.hold = True
    scorer = PairScorer(route)
    scoring = [asyncio.create_task(scorer.score(pair("q", "d"), None)) for _ in range(2)]
    await until(lambda: route.bodies)
    for number, one in enumerate(scoring):
        one.cancel()
        with pytest.raises(asyncio.CancelledError):
            await one
        assert route.cancelled == 0 or number == 1
    await until(lambda: route.cancelled == 1)


async def test_answer_with_missing_scores_is_an_error() -> None:
    async def ask(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        return {"data": []}

    with pytest.raises(RequestError, match="0 scores for 1 pairs"):
        await PairScorer(ask).score(pair("q", "d"), None)
