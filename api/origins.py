"""Requests of pages from elsewhere (CORS): viewers of the listed origins may call DICOMweb with a key.

A browser asks first whether it may, and shows no key with that: such a preflight is answered before any key is asked
for, and tells nothing but what is allowed. Source: https://fetch.spec.whatwg.org, 3.3 (HTTP CORS protocol).
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import problem

UNDER = "/dicom-web/"
ALLOWED = {
    "Access-Control-Allow-Methods": "GET, HEAD, POST",
    "Access-Control-Allow-Headers": "Accept, Authorization, Cache-Control, Content-Type, Idempotency-Key",
    "Access-Control-Max-Age": "600",  # seconds that a browser remembers it
}
READABLE = {"Access-Control-Expose-Headers": "Content-Encoding, Idempotent-Replayed, Retry-After, Warning"}


class AllowedOrigins:
    """Answers preflights, and lets scripts of the listed origins read responses, refusals included. Plain ASGI.

    No cookie is allowed: such a page shows a key of its own.
    """

    def __init__(self, app: ASGIApp, allowed: str) -> None:
        """allowed: origins with commas; * for any."""
        self.app = app
        self._allowed = {one.strip().lower().rstrip("/") for one in allowed.split(",") if one.strip()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http" or not scope["path"].startswith(UNDER):
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        origin = headers.get("origin", "")
        known = origin.lower() in self._allowed or "*" in self._allowed

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.add_vary_header("Origin")
                if origin and known:
                    headers.update({"Access-Control-Allow-Origin": origin} | READABLE)
            await send(message)

        if scope["method"] == "OPTIONS" and origin and "access-control-request-method" in headers:
            response = Response(status_code=204, headers=ALLOWED)
            if not known:
                # the origin is not repeated: it may be anything
                detail = "Pages of this origin may not call this address: add it to OSTEON_DICOMWEB_ORIGINS"
                response = problem(Request(scope), 403, detail)
            await response(scope, receive, named)
        else:
            await self.app(scope, receive, named)
