"""The OpenAPI document of the gateway, and the page of its routes."""

from typing import Any

from rhapsody.inference.http.openapi import openapi_document, routes_page
from rhapsody.inference.http.proxy import is_forwarded
from rhapsody.sampling import SAMPLING_FIELDS

SERVER = {
    "openapi": "3.1.0",
    "paths": {
        "/v1/models": {"get": {"summary": "Show <models>"}},
        "/tokenize": {"post": {"summary": "Tokenize"}},
        "/health": {"get": {"summary": "The server's own"}},
        "/sleep": {"post": {"summary": "For administrators"}},
    },
    "components": {"schemas": {"Model": {"type": "object"}}},
}


def document(server: dict[str, Any] | None, *, has_key: bool = False) -> dict[str, Any]:
    return openapi_document(server, is_forwarded, has_key=has_key)


def test_forwarded_routes_of_the_server_are_included() -> None:
    paths = document(SERVER)["paths"]
    assert paths["/v1/models"] == SERVER["paths"]["/v1/models"]  # type: ignore[index]
    assert "/tokenize" in paths
    assert "/sleep" not in paths
    assert "503" in paths["/health"]["get"]["summary"]


def test_schemas_of_the_server_are_kept() -> None:
    assert document(SERVER)["components"]["schemas"].keys() == {"Model", "GenerateBody"}


def test_body_of_generate_has_the_sampling_parameters() -> None:
    schema = document(None)["components"]["schemas"]["GenerateBody"]
    assert {"prompts", "timeout", *SAMPLING_FIELDS} <= schema["properties"].keys()
    assert schema["required"] == ["prompts"]


def test_server_without_document_has_the_routes_of_openai() -> None:
    assert "post" in document(None)["paths"]["/v1/chat/completions"]


def test_key_is_required_by_all_routes_but_health() -> None:
    described = document(None, has_key=True)
    assert described["security"] == [{"key": []}]
    assert described["paths"]["/health"]["get"]["security"] == []
    assert "security" not in document(None)


def test_page_lists_the_routes_with_escaped_text() -> None:
    page = routes_page(document(SERVER))
    assert "<td>GET<td><code>/v1/models</code><td>Show &lt;models&gt;" in page
    assert "<td>POST<td><code>/generate</code>" in page
