"""Cross-origin requests: preflights and the headers of responses, for each kind of origin."""

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request

from rhapsody.inference.http.cors import CrossOrigin

PAGE = "https://app.example"


def request(method: str = "OPTIONS", **headers: str) -> web.Request:
    return make_mocked_request(
        method,
        "/generate",
        headers={name.replace("_", "-"): text for name, text in headers.items()},
    )


def preflight(origin: str) -> web.Request:
    return request(
        Origin=origin,
        Access_Control_Request_Method="POST",
        Access_Control_Request_Headers="authorization",
    )


@pytest.mark.parametrize("origins", [[PAGE], ["*"]])
def test_preflight_of_allowed_page_names_method_and_headers(origins: list[str]) -> None:
    response = CrossOrigin(origins).preflight(preflight(PAGE))
    assert response is not None
    assert response.status == 204
    assert response.headers["Access-Control-Allow-Methods"] == "POST"
    assert response.headers["Access-Control-Allow-Headers"] == "authorization"


@pytest.mark.parametrize("origins", [[], ["https://other.example"]])
def test_preflight_of_another_page_is_forbidden(origins: list[str]) -> None:
    with pytest.raises(web.HTTPForbidden) as raised:
        CrossOrigin(origins).preflight(preflight(PAGE))
    assert PAGE in (raised.value.text or "")


@pytest.mark.parametrize(
    "other",
    [
        request(Origin=PAGE),
        request(Access_Control_Request_Method="POST"),
        request("POST", Origin=PAGE, Access_Control_Request_Method="POST"),
    ],
    ids=["no method", "no origin", "not OPTIONS"],
)
def test_other_requests_are_no_preflight(other: web.Request) -> None:
    assert CrossOrigin([PAGE]).preflight(other) is None


async def test_response_can_be_read_by_allowed_page_only() -> None:
    allowed, denied = web.Response(), web.Response()
    await CrossOrigin([PAGE]).mark(request("POST", Origin=PAGE), allowed)
    await CrossOrigin([PAGE]).mark(request("POST", Origin="https://other.example"), denied)
    assert allowed.headers["Access-Control-Allow-Origin"] == PAGE
    assert allowed.headers["Vary"] == "Origin"
    assert "Access-Control-Allow-Origin" not in denied.headers
