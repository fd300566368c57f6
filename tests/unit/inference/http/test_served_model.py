"""One model of the gateway that is stopped; the tests of the gateway have a running one."""

import pytest

from rhapsody.errors import ReplicaError
from rhapsody.inference.config import InferenceConfig
from rhapsody.inference.http.bodies import GenerateBody
from rhapsody.inference.http.served_model import ServedModel


@pytest.fixture
def model() -> ServedModel:
    return ServedModel(InferenceConfig(model_name="tiny", engine="embedded"), lambda: None)


def test_stopped_model_has_no_replicas(model: ServedModel) -> None:
    assert model.health() == {
        "status": "unavailable",
        "model": "tiny",
        "engine": "embedded",
        "replicas": [],
    }


async def test_stopped_model_takes_no_prompts(model: ServedModel) -> None:
    with pytest.raises(ReplicaError, match="the model 'tiny' is stopped"):
        model.check_open()
    body = await GenerateBody.parse(b'{"prompts": ["Hello"]}')
    with pytest.raises(ReplicaError, match="the model 'tiny' is stopped"):
        await model.generate(body, lambda _: pytest.fail("it was counted"))


async def test_stopped_model_is_listed_and_has_no_metrics(model: ServedModel) -> None:
    assert [entry["id"] for entry in await model.describe()] == ["tiny"]
    assert await model.metrics() == b""
    assert await model.openapi() is None
