"""The models of a gateway, and the choice of one by a request's field `model`."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Sequence
from typing import Any

from aiohttp import web

from rhapsody.errors import ConfigurationError, PromptError, ReplicaError
from rhapsody.inference.http.bodies import BodyError
from rhapsody.inference.http.served_model import ServedModel
from rhapsody.inference.metrics import merge_metrics

__all__ = ["Models", "requested_model"]

LARGE_BODY_BYTES = 1024 * 1024
"""A larger body is parsed in a thread."""
FORM_FIELD = re.compile(rb'name="model"\r\n(?:[^\r\n]{1,500}\r\n){0,8}\r\n([^\r\n]{0,500})\r\n')
"""The field `model` of a form, as audio is sent (RFC 7578). All repetitions are bounded, so that
the time of a search does not grow with the square of the size."""


class Models:
    """The models of a gateway by their names.

    Args:
        models: The models; at least one.

    Raises:
        ConfigurationError: Two models have the same name.
    """

    def __init__(self, models: Sequence[ServedModel]) -> None:
        self._models = {model.name: model for model in models}
        if len(self._models) < len(models):
            names = ", ".join(sorted(model.name for model in models))
            raise ConfigurationError(f"each model needs a name of its own, got {names}")

    @property
    def one(self) -> ServedModel | None:
        """The model if there is only one: its server checks the names itself."""
        return next(iter(self._models.values())) if len(self._models) == 1 else None

    @property
    def max_pending(self) -> int:
        """How many prompts may be pending at the model that allows the fewest."""
        return min(model.max_pending for model in self._models.values())

    def choose(self, name: str | None) -> ServedModel:
        """Return the model of a request.

        Args:
            name: The field `model` of the request, which may be an adapter's; None: it has none.

        Raises:
            BodyError: The field is missing, and there are several models.
            PromptError: There is no such model.
        """
        if name is None and self.one is not None:
            return self.one
        known = ", ".join(sorted({name for one in self._models.values() for name in one.names}))
        if name is None:
            raise BodyError(f"'model' is missing; this server has the models {known}", "model")
        found = next((one for one in self._models.values() if name in one.names), None)
        if found is None:
            raise PromptError(
                f"The model `{name:.200}` does not exist; this server has {known}",
                404,
                "NotFoundError",
                param="model",
            )
        return found

    def check_open(self) -> None:
        """Raise ReplicaError unless at least one model accepts prompts."""
        closed: ReplicaError | None = None
        for model in self._models.values():
            try:
                model.check_open()
            except ReplicaError as error:
                closed = error
            else:
                return
        if closed is not None:
            raise closed

    def health(self, endpoint: str | None) -> dict[str, Any]:
        """Return the state of the models.

        Args:
            endpoint: The URL of the gateway.
        """
        where = {"mode": "service", "endpoint": endpoint}
        if self.one is not None:
            return {**self.one.health(), **where}
        each = [model.health() for model in self._models.values()]
        states = {one["status"] for one in each}
        status = states.pop() if len(states) == 1 else "degraded"
        return {"status": status, **where, "models": each}

    async def metrics(self) -> bytes:
        """Return the metrics of all models; with a label `model` if there are several."""
        texts = await asyncio.gather(*(model.metrics() for model in self._models.values()))
        if self.one is not None:
            return texts[0]
        named = {
            name: text.decode() for name, text in zip(self._models, texts, strict=True) if text
        }
        return await asyncio.to_thread(merge_metrics, named, "model")

    async def describe(self) -> list[dict[str, Any]]:
        """Return the entries of `/v1/models`."""
        lists = await asyncio.gather(*(model.describe() for model in self._models.values()))
        return [entry for entries in lists for entry in entries]

    async def openapi(self) -> dict[str, Any] | None:
        """Return the OpenAPI documents of the models' servers as one; None if there is none."""
        documents = await asyncio.gather(*(model.openapi() for model in self._models.values()))
        merged: dict[str, Any] = {}
        for document in documents:
            if document is None:
                continue
            paths = {**document.get("paths", {}), **merged.get("paths", {})}
            schemas = {
                **document.get("components", {}).get("schemas", {}),
                **merged.get("components", {}).get("schemas", {}),
            }
            merged = {**document, **merged, "paths": paths, "components": {"schemas": schemas}}
        return merged or None


async def requested_model(request: web.Request, data: bytes) -> str | None:
    """Return the model that a request names: in its body, or in its query if it has no body.

    Args:
        request: The request.
        data: Its body.

    Raises:
        BodyError: The body is not a JSON object, or `model` is not a string.
    """
    if not data:
        return request.query.get("model")
    if request.content_type == "multipart/form-data":
        found = FORM_FIELD.search(data)
        return found[1].decode("utf-8", "replace") if found else None
    try:
        large = len(data) > LARGE_BODY_BYTES
        body = await asyncio.to_thread(json.loads, data) if large else json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BodyError(f"the body is not a JSON object: {error}") from error
    if not isinstance(body, dict):
        raise BodyError(f"the body must be a JSON object, got {body!r:.80}")
    name = body.get("model")
    if name is not None and not isinstance(name, str):
        raise BodyError(f"'model' must be a string, got {name!r:.80}", "model")
    return name
