"""Embeddings and scores by a real vLLM server with a pooling model."""

from pathlib import Path

import aiohttp
import pytest

from benchmarks.tiny_vllm import make_reranker
from rhapsody import AITask, Session
from rhapsody.api import TaskValidationError
from rhapsody.errors import PartialFailureError
from tests.support.vllm_servers import set_environment, tiny_llama, vllm_backend


async def test_pooling_model_embeds_and_scores(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_environment(monkeypatch)
    config = tmp_path / "pooling.yaml"
    config.write_text("enforce-eager: true\nrunner: pooling\nconvert: embed\n")
    backend = vllm_backend(config_file=config, use_service=True)
    async with Session([backend]) as session:
        await backend.initialize()
        assert backend.ai_kinds == frozenset({"embed", "score"})
        texts = AITask(["heat", "", "word " * 1500, "tea"], kind="embed")
        one, score = AITask("heat", kind="embed"), AITask(("heat", ["heat", "tea"]), kind="score")
        await session.submit_tasks([texts, one, score])
        await session.wait_tasks([texts, one, score])

        failed = texts.exception
        assert isinstance(failed, PartialFailureError)
        assert [error is None for error in failed.errors] == [True, False, False, True]
        assert failed.results[0].tolist() == pytest.approx(one.response.tolist(), abs=1e-3)
        assert one.response @ one.response == pytest.approx(1, abs=1e-3)
        assert score.response[0] == pytest.approx(1, abs=1e-3)

        body = {"model": tiny_llama(), "input": "heat"}
        async with (
            aiohttp.ClientSession(backend.get_endpoint()) as http,
            http.post("/v1/embeddings", json=body) as response,
        ):
            [served] = (await response.json())["data"]
        assert served["embedding"] == pytest.approx(one.response.tolist(), abs=1e-3)

        with pytest.raises(TaskValidationError, match="cannot run an AI task of kind 'generate'"):
            await session.submit_tasks(AITask("hi"))


async def test_reranker_scores_pairs_and_a_long_pair_fails_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_environment(monkeypatch)
    config = tmp_path / "pooling.yaml"
    config.write_text("enforce-eager: true\nrunner: pooling\n")
    model = str(make_reranker(tmp_path / "reranker"))
    backend = vllm_backend(config_file=config, model_name=model, use_service=True)
    async with Session([backend]) as session:
        await backend.initialize()
        assert backend.ai_kinds == frozenset({"score"})
        pairs = [("heat", "tea " * (number + 1)) for number in range(5)]
        scores = AITask(pairs, kind="score")
        some = AITask([pairs[0], ("heat", "tea " * 900), pairs[1]], kind="score")
        await session.submit_tasks([scores, some])
        await session.wait_tasks([scores, some])

        failed = some.exception
        assert isinstance(failed, PartialFailureError)
        assert [error is None for error in failed.errors] == [True, False, True]

        texts_1, texts_2 = (list(texts) for texts in zip(*pairs, strict=True))
        body = {"model": model, "text_1": texts_1, "text_2": texts_2}
        async with (
            aiohttp.ClientSession(backend.get_endpoint()) as http,
            http.post("/score", json=body) as response,
        ):
            served = await response.json()
        expected = [one["score"] for one in served["data"]]
        assert scores.response.tolist() == pytest.approx(expected, abs=1e-3)
        assert scores.usage["prompt_tokens"] == served["usage"]["prompt_tokens"]
