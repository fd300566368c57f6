"""Images in prompts, on the embedded model: tasks of a session, of a workflow, and over HTTP."""

from pathlib import Path
from typing import Any

import openai
import pytest

from asyncflow_ext import WorkflowEngine
from rhapsody import AITask, Session, image_part
from rhapsody.backends import ConcurrentExecutionBackend, EndpointInferenceBackend
from rhapsody.errors import PartialFailureError, PromptError
from tests.support.images import chat_about, png, url_of
from tests.support.inference import MODEL

SAID = "The image is PNG of 40 x 30 pixels."
CHAT = chat_about(url_of(png(40, 30)))


async def test_session_sends_an_image(start: Any, tmp_path: Path) -> None:
    path = tmp_path / "plot.png"
    path.write_bytes(png(40, 30))
    content = [{"type": "text", "text": "Describe it"}, image_part(path)]
    pieces: list[str] = []
    async with Session([await start()]) as session:
        task = AITask([{"role": "user", "content": content}], on_text=pieces.append)
        await session.submit_tasks([task])
        await task
    assert task.response.startswith(SAID)
    assert "".join(pieces) == task.response


async def test_bad_image_fails_alone(start: Any) -> None:
    bad = chat_about(url_of(b"no image"))
    with pytest.raises(PartialFailureError) as caught:
        await (await start()).generate([CHAT, bad, CHAT])
    assert [type(error) for error in caught.value.errors] == [type(None), PromptError, type(None)]
    assert "messages[0].content[1].image_url is not an image" in str(caught.value.errors[1])


async def test_remote_image_is_refused(start: Any) -> None:
    with pytest.raises(PartialFailureError) as caught:
        await (await start()).generate([chat_about("https://example.org/a.png")])
    assert "must be a data: URL" in str(caught.value.errors[0])


@pytest.mark.asyncflow
async def test_workflow_sends_an_image(start: Any) -> None:
    flow = await WorkflowEngine.create(backend=[ConcurrentExecutionBackend(), await start()])

    @flow.function_task
    async def plot(width: int) -> bytes:
        return png(width, 30)

    @flow.ai_task(max_tokens=40)
    async def describe(image: bytes) -> Any:
        return chat_about(image_part(image)["image_url"]["url"])

    assert (await describe(plot(40))).startswith(SAID)
    await flow.shutdown()


async def test_openai_client_sends_an_image(url: str) -> None:
    chat: Any = CHAT
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        answer = await client.chat.completions.create(model=MODEL, messages=chat)
        assert str(answer.choices[0].message.content).startswith(SAID)
        chat = chat_about("https://example.org/a.png")
        with pytest.raises(openai.BadRequestError, match="must be a data: URL"):
            await client.chat.completions.create(model=MODEL, messages=chat)


async def test_endpoint_gets_an_image(url: str) -> None:
    backend = await EndpointInferenceBackend(f"{url}/v1", MODEL)
    [text] = await backend.generate([CHAT])
    assert text.startswith(SAID)
    await backend.shutdown()


@pytest.mark.slow
async def test_image_of_50_mb(start: Any) -> None:
    """A body larger than a server accepts fails its own prompt only."""
    backend = await start()
    large = chat_about(url_of(png(40, 30) + bytes(45_000_000)))
    too_large = chat_about(url_of(png(40, 30) + bytes(55_000_000)))
    with pytest.raises(PartialFailureError) as caught:
        await backend.generate([large, too_large, "hi"], max_tokens=20)
    first, second, third = caught.value.errors
    assert (first, third) == (None, None)
    assert isinstance(second, PromptError)
    assert second.code == 413
    assert caught.value.results[0].startswith(SAID)
