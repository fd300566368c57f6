"""Embeddings, scores and classes by an engine whose outputs are scripted."""

import asyncio
import base64
import sys
from collections.abc import AsyncGenerator, Collection, Mapping
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rhapsody.inference.kinds import floats_of
from rhapsody.inference.protocol.errors import RequestError
from rhapsody.inference.vllm.pooling import Pooler

np = pytest.importorskip("numpy")

ROWS = {"one": [3.0, 4.0], "two": [4.0, 3.0], "class": [0.25, 0.75]}


class Tensor:
    def __init__(self, numbers: list[float]) -> None:
        self._numbers = numbers

    def float(self) -> "Tensor":
        return self

    def flatten(self) -> "Tensor":
        return self

    def numpy(self) -> Any:
        return np.array(self._numbers, np.float32)


class Tokenizer:
    """One token per character."""

    def encode(self, text: str) -> list[int]:
        return [ord(character) for character in text]


class Engine:
    """Returns the row of each text, and records the requests."""

    def __init__(self) -> None:
        hf_config = SimpleNamespace(id2label={0: "bad"})
        self.model_config = SimpleNamespace(hf_config=hf_config)
        self.requests: list[tuple[str, str, int]] = []

    async def encode(
        self, prompt: Any, params: Any, request_id: str, priority: int
    ) -> AsyncGenerator[Any, None]:
        text = "".join(map(chr, prompt["prompt_token_ids"]))
        self.requests.append((params.task, request_id, priority))
        yield SimpleNamespace(outputs=SimpleNamespace(data=Tensor(ROWS[text])))


@pytest.fixture(autouse=True)
def vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("vllm")
    module.__dict__["PoolingParams"] = SimpleNamespace
    monkeypatch.setitem(sys.modules, "vllm", module)


def pooler(engine: Engine, kinds: Collection[str], embeds: bool = True, ask: Any = None) -> Pooler:
    return Pooler(engine, kinds, embeds, ask)


async def event_of(on: Pooler, item: Mapping[str, Any]) -> dict[str, Any]:
    event = await on.event("p1", on.prepare(item, Tokenizer(), 5))
    event["data"] = floats_of(base64.b64decode(event["data"])).tolist()
    return event


async def test_embedding_is_the_row_of_the_text() -> None:
    engine = Engine()
    event = await event_of(pooler(engine, ["embed"]), {"kind": "embed", "prompt": "one"})
    assert event == {
        "id": "p1",
        "type": "done",
        "data": ROWS["one"],
        "labels": [],
        "usage": {"prompt_tokens": 3, "completion_tokens": 0, "total_tokens": 3},
    }
    assert engine.requests == [("embed", "rhapsody-p1", 5)]


async def test_score_of_an_embedding_model_is_a_cosine() -> None:
    item = {"kind": "score", "prompt": "one", "document": "two"}
    event = await event_of(pooler(Engine(), ["embed", "score"]), item)
    assert event["data"] == pytest.approx([0.96])
    assert event["usage"]["prompt_tokens"] == 6


async def test_query_is_embedded_once_for_documents_that_come_together() -> None:
    engine = Engine()
    on = pooler(engine, ["embed", "score"])
    items = [{"kind": "score", "prompt": "one", "document": "two"}] * 3
    events = await asyncio.gather(
        *(on.event(f"p{n}", on.prepare(item, Tokenizer(), 5)) for n, item in enumerate(items))
    )
    assert [event["usage"]["prompt_tokens"] for event in events] == [6, 6, 6]
    assert [request_id for _, request_id, _ in engine.requests] == [
        "rhapsody-p0-0",
        "rhapsody-p0-1",
    ]


async def test_score_of_a_model_that_reads_pairs_comes_from_the_server_s_route() -> None:
    async def ask(path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        assert body == {"text_1": ["one"], "text_2": ["two"]}
        return {"data": [{"score": 0.5}], "usage": {"prompt_tokens": 9}}

    on = pooler(Engine(), ["score"], embeds=False, ask=ask)
    event = await event_of(on, {"kind": "score", "prompt": "one", "document": "two"})
    assert event["data"] == [0.5]
    assert event["usage"]["prompt_tokens"] == 9


async def test_classes_have_the_labels_of_the_model() -> None:
    event = await event_of(pooler(Engine(), ["classify"]), {"kind": "classify", "prompt": "class"})
    assert event["labels"] == ["bad", "LABEL_1"]
    assert event["data"] == ROWS["class"]


def test_kind_that_the_model_does_not_take_is_refused() -> None:
    on = pooler(Engine(), ["embed", "score"])
    with pytest.raises(RequestError, match="does not take the kind 'generate'; it takes: embed, s"):
        on.check_kind("generate")


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ({"kind": "embed", "prompt": ""}, "prompt"),
        ({"kind": "embed", "prompt": None}, "prompt"),
        ({"kind": "score", "prompt": "a"}, "document"),
    ],
)
def test_invalid_input_is_refused(item: Any, param: str) -> None:
    with pytest.raises(RequestError) as refused:
        pooler(Engine(), ["embed", "score"]).prepare(item, Tokenizer(), 0)
    assert refused.value.param == param
