"""What this process counts for Prometheus: requests by route, files by outcome; never a value of a request."""

import time

from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

REQUESTS = Histogram(
    "osteon_api_request_seconds",
    "Duration of requests, from the first byte to the last byte of the response; of event streams to its first byte",
    ["method", "route", "status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60),
)
FILES = Counter("osteon_api_files", "Uploaded files, by outcome and reason", ["outcome", "reason"])

UPLOADS_REFUSED = Counter("osteon_api_uploads_refused", "Uploads refused as a whole, by cause: quota or spool", ["why"])


class RequestMetrics:
    """Counts requests by the route that took them, never by their path: paths hold ids. Plain ASGI."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = "500"  # of a request that ends without a response
        start, ended = time.perf_counter(), 0.0

        async def noting(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = str(message["status"])
                if (b"content-type", EVENTS) in (
                    (name.lower(), value[: len(EVENTS)]) for name, value in message["headers"]
                ):
                    ended = time.perf_counter()  # the stream stays open for minutes: its end says nothing of speed
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            REQUESTS.labels(method, route_of(scope), status).observe((ended or time.perf_counter()) - start)


EVENTS = b"text/event-stream"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def route_of(scope: Scope) -> str:
    """The template of a request's route, as "/api/v1/studies/{study_id}"; "none" if there was none."""
    route = scope.get("route")
    if route is not None:
        return str(getattr(route, "path", "none"))
    return "/static" if scope["path"].startswith("/static/") else "none"


def count_files(outcome: str, reason: str | None = None) -> None:
    """Count an uploaded file.

    Args:
        outcome: what became of it.
        reason: why it was rejected, a code; None if it was not.
    """
    FILES.labels(outcome, reason or "").inc()
