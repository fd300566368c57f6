"""The models of a gateway, and the choice of one."""

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from rhapsody.errors import ConfigurationError, PromptError
from rhapsody.inference.config import InferenceConfig
from rhapsody.inference.http.bodies import BodyError
from rhapsody.inference.http.models import Models, requested_model
from rhapsody.inference.http.served_model import ServedModel


def models(*names: str) -> Models:
    configs = [InferenceConfig(model_name=name) for name in names]
    return Models([ServedModel(config, lambda: None) for config in configs])


def request(path: str = "/v1/chat/completions", **headers: str) -> web.Request:
    return make_mocked_request("POST", path, headers={"Content-Type": "a/b", **headers})


def test_only_model_needs_no_name() -> None:
    assert models("a").choose(None).name == "a"
    assert models("a", "b").one is None


def test_model_is_chosen_by_name() -> None:
    assert models("a", "b").choose("b").name == "b"
    with pytest.raises(BodyError, match="'model' is missing; this server has the models a, b"):
        models("a", "b").choose(None)
    with pytest.raises(PromptError, match="`c` does not exist; this server has a, b"):
        models("a", "b").choose("c")


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="a name of its own"):
        models("a", "a")


def test_stopped_models_are_unavailable() -> None:
    assert models("a", "b").health("http://here")["status"] == "unavailable"


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b'{"messages": [], "model": "a"}', "a"),
        (b'{"messages": [{"model": "b"}]}', None),
        (b'{"model": "a", "prompt": "' + b"x" * 2_000_000 + b'"}', "a"),
        (b"", None),
    ],
)
async def test_model_is_read_from_the_body(data: bytes, name: str | None) -> None:
    assert await requested_model(request(), data) == name


async def test_model_is_read_from_the_query_of_a_request_without_body() -> None:
    assert await requested_model(request("/v1/responses/1?model=a"), b"") == "a"


async def test_form_of_many_fields_does_not_hold_up_the_others() -> None:
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    data = b'name="model"\r\n' * 100_000  # the time must not grow with the square of the size
    assert await requested_model(request(**headers), data) is None


async def test_model_is_read_from_a_form() -> None:
    data = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n'
        b'--x\r\nContent-Disposition: form-data; name="model"\r\nContent-Type: text/plain\r\n'
        b"\r\nwhisper\r\n--x--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert await requested_model(request(**headers), data) == "whisper"


@pytest.mark.parametrize("data", [b"{", b"[1]", b'{"model": 3}', b"\xff", b"[" * 100_000])
async def test_invalid_body_is_refused(data: bytes) -> None:
    with pytest.raises(BodyError):
        await requested_model(request(), data)
