"""Embeddings, scores and classes by vLLM's engine, for the batch route."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from rhapsody.inference.protocol.batch import Event, numbers_event, token_usage
from rhapsody.inference.protocol.errors import RequestError
from rhapsody.inference.vllm.pairs import AskRoute, Pair, PairScorer
from rhapsody.inference.vllm.shared_calls import SharedCalls
from rhapsody.inference.vllm.versions import engine_prompt

__all__ = ["Pooler", "PreparedInput"]


@dataclass(frozen=True)
class PreparedInput:
    """An input that becomes numbers.

    Attributes:
        kind: "embed", "score" or "classify".
        token_ids: The tokens of its texts.
        texts: Its texts.
        order: Inputs with lower numbers are handled first.
        adapter: The engine's request of a LoRA adapter; None: the model itself.
    """

    kind: str
    token_ids: list[list[int]]
    texts: list[str]
    order: int
    adapter: Any = None


class Pooler:
    """Turns inputs into numbers.

    Args:
        engine: The server's engine client, an AsyncLLM.
        kinds: The kinds of AI task that the model takes.
        embeds: Whether the model embeds, so that a score is the cosine of two embeddings.
        ask: Sends a body to one of the server's own routes.
    """

    def __init__(
        self, engine: Any, kinds: Collection[str], embeds: bool, ask: AskRoute | None
    ) -> None:
        self._engine = engine
        self._embeds = embeds
        self._pairs = PairScorer(ask) if ask is not None else None
        self._embeddings = SharedCalls()
        self.ask = ask
        """Sends a body to one of the server's own routes."""
        self.kinds = frozenset(kinds)

    def check_kind(self, kind: Any) -> None:
        """Raise RequestError if the model does not take a kind."""
        if kind not in self.kinds:
            raise RequestError(
                f"The model does not take the kind {kind!r:.40}; it takes: "
                f"{', '.join(sorted(self.kinds))}.",
                "kind",
            )

    def prepare(
        self, item: Mapping[str, Any], tokenizer: Any, order: int, adapter: Any = None
    ) -> PreparedInput:
        """Check and tokenize one input of a batch.

        Args:
            item: The input.
            tokenizer: The tokenizer of this thread.
            order: Its place among others.
            adapter: The engine's request of its LoRA adapter.

        Raises:
            RequestError: The input is invalid, or not of a kind that the model takes.
        """
        kind = item["kind"]
        texts = [item.get("prompt")]
        if kind == "score":
            texts.append(item.get("document"))
        for name, text in zip(("prompt", "document"), texts, strict=False):
            if not isinstance(text, str) or not text:
                raise RequestError(f"{name} must be a non-empty str, got {text!r:.80}.", name)
        checked = [str(text) for text in texts]
        tokens = [[int(token) for token in tokenizer.encode(text)] for text in checked]
        return PreparedInput(kind, tokens, checked, order, adapter)

    async def event(self, prompt_id: str, prepared: PreparedInput) -> Event:
        """Return the last event of an input.

        Args:
            prompt_id: Its id.
            prepared: The input.

        Raises:
            Exception: The engine's error.
        """
        if prepared.kind == "score" and not self._embeds:
            return await self._score_pair(prompt_id, prepared)
        if prepared.kind == "score":
            row = _cosine(*await self._embed_pair(prompt_id, prepared))
        else:
            [token_ids] = prepared.token_ids
            row = await self._encode(f"rhapsody-{prompt_id}", prepared.kind, token_ids, prepared)
        labels: list[str] = []
        if prepared.kind == "classify":
            names = getattr(self._engine.model_config.hf_config, "id2label", None) or {}
            labels = [str(names.get(n, f"LABEL_{n}")) for n in range(len(row))]
        usage = token_usage(sum(map(len, prepared.token_ids)), 0)
        return numbers_event(prompt_id, row.astype("<f4").tobytes(), usage, labels)

    async def _embed_pair(self, prompt_id: str, prepared: PreparedInput) -> list[Any]:
        """Embed both texts; a query is embedded once for documents that come together."""

        def embed(n: int, token_ids: list[int]) -> Any:
            request_id = f"rhapsody-{prompt_id}-{n}"
            key = (prepared.order, prepared.adapter and prepared.adapter.lora_name, *token_ids)
            return self._embeddings.get(
                key, lambda: self._encode(request_id, "embed", token_ids, prepared)
            )

        return await asyncio.gather(*map(embed, (0, 1), prepared.token_ids))

    async def _encode(
        self, request_id: str, task: str, token_ids: list[int], prepared: PreparedInput
    ) -> Any:
        from vllm import PoolingParams

        params = PoolingParams(task=task)
        prompt = engine_prompt(token_ids)
        adapter = {} if prepared.adapter is None else {"lora_request": prepared.adapter}
        outputs = self._engine.encode(
            prompt, params, request_id, priority=prepared.order, **adapter
        )
        data: Any = None
        async with aclosing(outputs):
            async for output in outputs:
                data = output.outputs.data
        return data.float().flatten().numpy()

    async def _score_pair(self, prompt_id: str, prepared: PreparedInput) -> Event:
        import numpy as np

        assert self._pairs is not None
        query, document = prepared.texts
        pair = Pair(query, document, sum(map(len, prepared.token_ids)))
        adapter = None if prepared.adapter is None else prepared.adapter.lora_name
        score, tokens = await self._pairs.score(pair, adapter)
        return numbers_event(prompt_id, np.array([score], "<f4").tobytes(), token_usage(tokens, 0))


def _cosine(first: Any, second: Any) -> Any:
    import numpy as np

    lengths = np.linalg.norm(first) * np.linalg.norm(second)
    return np.array([float(first @ second) / max(float(lengths), 1e-12)], np.float32)
