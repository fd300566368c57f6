"""The gateway's routes as an OpenAPI document, and as a page."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rhapsody.inference.http.bodies import GenerateBody
from rhapsody.sampling import SAMPLING_FIELDS

__all__ = ["openapi_document", "routes_page"]

API_VERSION = "1"
SCHEMA = "#/components/schemas/"
OPENAI_ROUTES = {
    ("get", "/v1/models"): "The served models",
    ("post", "/v1/chat/completions"): "A response to a chat, as in OpenAI's API",
    ("post", "/v1/completions"): "A completion of a text, as in OpenAI's API",
    ("post", "/v1/embeddings"): "Vectors of texts, as in OpenAI's API",
    ("post", "/score"): "Scores of pairs of texts, as in vLLM",
    ("post", "/classify"): "Labels of texts, as in vLLM",
}
"""Routes of a model server that does not describe its routes itself."""


def openapi_document(
    server: Mapping[str, Any] | None, is_forwarded: Callable[[str], bool], *, has_key: bool
) -> dict[str, Any]:
    """Return the OpenAPI document of the gateway.

    Args:
        server: The document of a model server; None if it has none.
        is_forwarded: Whether the gateway forwards a path to the model server.
        has_key: Whether requests need a key.
    """
    server = server or {}
    forwarded = {
        path: operations
        for path, operations in server.get("paths", {}).items()
        if is_forwarded(path)
    }
    if not forwarded:
        for (method, path), summary in OPENAI_ROUTES.items():
            forwarded[path] = {method: _operation(summary)}
    components = dict(server.get("components", {}))
    components["schemas"] = {**components.get("schemas", {}), "GenerateBody": _generate_schema()}
    document: dict[str, Any] = {
        "openapi": server.get("openapi", "3.1.0"),
        "info": {"title": "Rhapsody", "version": API_VERSION},
        "paths": {**_own_paths(), **forwarded},
        "components": components,
    }
    if has_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        document["security"] = [{"key": []}]
    return document


def _own_paths() -> dict[str, Any]:
    body = {"application/json": {"schema": {"$ref": f"{SCHEMA}GenerateBody"}}}
    generate = {
        **_operation("Completes many prompts; each has a result or an error"),
        "requestBody": {"required": True, "content": body},
    }
    health = _operation("The state of the replicas; 503 if none takes prompts")
    return {
        "/health": {"get": {**health, "security": []}},  # requires no key
        "/generate": {"post": generate},
        "/metrics": {"get": _operation("Metrics in Prometheus' text format")},
        "/v1/files": {
            "get": _operation("The files of the client"),
            "post": _operation("Stores a file of requests"),
        },
        "/v1/files/{id}": {
            "get": _operation("One file"),
            "delete": _operation("Removes a file"),
        },
        "/v1/files/{id}/content": {"get": _operation("The content of a file")},
        "/v1/batches": {
            "get": _operation("The batches of the client"),
            "post": _operation("Runs the requests of a file"),
        },
        "/v1/batches/{id}": {"get": _operation("One batch")},
        "/v1/batches/{id}/cancel": {"post": _operation("Cancels a batch")},
        "/openapi.json": {"get": _operation("This document")},
        "/docs": {"get": _operation("A page of the routes")},
    }


def _operation(summary: str) -> dict[str, Any]:
    return {"summary": summary, "responses": {"200": {"description": "Success"}}}


def _generate_schema() -> dict[str, Any]:
    schema = GenerateBody.model_json_schema(ref_template=f"{SCHEMA}{{model}}")
    del schema["description"]  # it is written for Python
    schema["additionalProperties"] = False
    for name in sorted(SAMPLING_FIELDS):
        schema["properties"].setdefault(name, {"description": "sampling parameter"})
    return schema


def routes_page(document: Mapping[str, Any]) -> str:
    """Return an HTML page with the routes of an OpenAPI document. It needs no other file.

    Args:
        document: The document.
    """
    rows = "".join(
        f"<tr><td>{html.escape(method.upper())}<td><code>{html.escape(path)}</code>"
        f"<td>{html.escape(summary)}\n"
        for method, path, summary in _routes(document)
    )
    title = html.escape(document["info"]["title"])
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}: routes</title>\n'
        "<style>body{font-family:sans-serif;margin:2em}td,th{text-align:left;padding:.2em 1em "
        f".2em 0}}</style>\n<h1>{title}: routes</h1>\n"
        '<p>For programs: <a href="openapi.json">openapi.json</a></p>\n'
        f"<table><tr><th>Method<th>Path<th>Use\n{rows}</table></html>\n"
    )


def _routes(document: Mapping[str, Any]) -> Iterable[tuple[str, str, str]]:
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            if isinstance(operation, Mapping):
                yield method, path, str(operation.get("summary", ""))
