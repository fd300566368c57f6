"""Cross-origin requests (CORS): which web pages may use the gateway from a browser."""

from __future__ import annotations

from collections.abc import Collection

from aiohttp import web

__all__ = ["CrossOrigin"]

ANY_ORIGIN = "*"
MAX_AGE_SECONDS = 600
"""How long a browser may remember the response to a preflight request."""


class CrossOrigin:
    """Answers preflight requests and marks responses that a web page may read.

    Args:
        origins: The origins of the web pages, such as "https://app.example"; "*": all.
    """

    def __init__(self, origins: Collection[str]) -> None:
        self._origins = frozenset(origins)

    def preflight(self, request: web.Request) -> web.Response | None:
        """Return the response to a preflight request, which carries no key; None for others.

        Raises:
            HTTPForbidden: The origin is not allowed.
        """
        headers = request.headers
        method = headers.get("Access-Control-Request-Method")
        if request.method != "OPTIONS" or method is None or "Origin" not in headers:
            return None
        if not self._allows(headers["Origin"]):
            raise web.HTTPForbidden(
                text=f"web pages of the origin {headers['Origin']!r:.200} may not use this server; "
                "start it with cors_origins=[...] to allow them"
            )
        allowed = {
            "Access-Control-Allow-Methods": method,
            "Access-Control-Max-Age": str(MAX_AGE_SECONDS),
        }
        if asked := headers.get("Access-Control-Request-Headers"):
            allowed["Access-Control-Allow-Headers"] = asked
        return web.Response(status=204, headers=allowed)

    async def mark(self, request: web.Request, response: web.StreamResponse) -> None:
        """Let an allowed web page read a response; a signal of aiohttp before its headers leave."""
        origin = request.headers.get("Origin")
        if origin is not None and self._allows(origin):
            response.headers["Access-Control-Allow-Origin"] = origin
            response.headers["Access-Control-Expose-Headers"] = "Retry-After"
            response.headers.add("Vary", "Origin")

    def _allows(self, origin: str) -> bool:
        return ANY_ORIGIN in self._origins or origin in self._origins
