"""The application: everything real enters here, once."""

import http
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from celery import Celery
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api import (
    agreement,
    alerts,
    allowances,
    answers,
    backlog,
    bundles,
    claims,
    events,
    films,
    filters,
    health,
    held,
    keys,
    metrics,
    operations,
    pages,
    quarantine,
    studies,
    uploads,
    worklist,
)
from api.dependencies import Parts
from api.hub import Events
from api.ingest import RequestTooLarge, WrongContentType
from api.pages.render import ASSETS
from api.responses import Problem
from shared import __version__
from shared.errors import BadRequest, NotFound, NotNow, ObjectMissing, OsteonError, Unavailable
from shared.findings import RESEARCH_USE
from shared.jobs import Doorbell, celery_app
from shared.logs import configure_logs
from shared.repository import Database
from shared.repository.access import LastAdmin, Vault
from shared.settings import Settings, one_sentence
from shared.storage import open_store

STATUS_OF: list[tuple[type[OsteonError], int]] = [
    (RequestTooLarge, 413),
    (WrongContentType, 415),
    (BadRequest, 400),
    (NotFound, 404),
    (NotNow, 409),
    (ObjectMissing, 404),
    (LastAdmin, 409),
    (Unavailable, 503),
    (OsteonError, 500),
]
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; form-action 'self'",
}
# the viewer of the API's documentation starts itself by an inline script; no other page may
DOCS_POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:"
)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the API; settings: None in a process of its own, which then ends with a sentence if one is wrong.

    Raises OsteonError when a secret is missing or a URL is wrong.
    """
    if settings is None:
        with one_sentence():
            return create_app(Settings())
    configure_logs(settings.log_level)
    if len(settings.session_secret.get_secret_value()) < 16:
        raise OsteonError("Set OSTEON_SESSION_SECRET to at least 16 random characters: it signs the login cookie")
    parts = Parts(
        settings,
        Database(settings.database_url.get_secret_value(), settings.database_pool_size),
        open_store(settings.store_url.get_secret_value()),
        Vault(settings.identity_key.get_secret_value()),
        Doorbell(_impatient(celery_app(settings))),
        Events(settings.database_url.get_secret_value()),
    )

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        with parts.events.open():
            yield
        parts.database.close()

    app = FastAPIOffline(
        title="Osteon",
        summary="Asynchronous batch reading of bone radiographs",
        description=RESEARCH_USE,
        version=__version__,
        redoc_url=None,
        lifespan=lifespan,
        responses={401: {"model": Problem}, 403: {"model": Problem}},
    )
    app.state.parts = parts
    app.add_middleware(
        SessionMiddleware,
        secret_key=settings.session_secret.get_secret_value(),
        session_cookie="osteon",
        max_age=settings.session_hours * 3600,
        same_site="strict",
        https_only=settings.secure_cookies,
    )
    app.add_middleware(Headers)
    app.add_middleware(metrics.Measured)
    reading = (studies, films, claims, answers, agreement, worklist, events, filters, alerts)
    operating = (allowances, backlog, bundles, held, operations, quarantine, keys, health, metrics)
    for router in (*(room.router for room in (uploads, *reading, *operating)), pages.papers, pages.router):
        app.include_router(router)
    app.mount("/static", pages.STATIC)
    app.add_exception_handler(OsteonError, _known)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _hung_up)
    return app


def _impatient(app: Celery) -> Celery:
    """A broker that hangs must not hold an upload: the reconciler sends what is left unsent."""
    app.conf.broker_transport_options |= {"socket_connect_timeout": 1, "socket_timeout": 1, "interval_start": 0}
    return app


class Headers:
    """Adds the headers that every answer has. Plain ASGI: Starlette's base starts tasks for each piece of a body."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""

        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers, path = MutableHeaders(scope=message), scope["path"]
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                if path == "/docs":
                    headers["Content-Security-Policy"] = DOCS_POLICY
                current = scope["query_string"] == f"v={ASSETS}".encode() and message["status"] in (200, 304)
                if path.startswith("/static/") and current:
                    headers["Cache-Control"] = "public, max-age=31536000, immutable"  # another content, another address
                elif "Cache-Control" not in headers and not path.startswith("/static"):
                    headers["Cache-Control"] = "no-store"  # findings and identities do not belong in shared caches
            await send(message)

        await self.app(scope, receive, send_more if scope["type"] == "http" else send)


def _answer(
    request: Request, status: int, detail: str, headers: dict[str, str] | None = None, **more: object
) -> Response:
    """An error, as a page for people and as problem+json for programs; more: members that this kind of error adds."""
    title = http.HTTPStatus(status).phrase
    if pages.wants_page(request):
        return pages.problem_page(status, title, detail)
    body = Problem(title=title, status=status, detail=detail).model_dump(exclude_none=True) | more
    return JSONResponse(body, status, headers, media_type="application/problem+json")


async def _known(request: Request, wrong: Exception) -> Response:
    status = next(status for kind, status in STATUS_OF if isinstance(wrong, kind))
    more = {"code": wrong.code, **wrong.more} if isinstance(wrong, NotNow) and wrong.code else {}
    return _answer(request, status, str(wrong), {"Retry-After": "5"} if status == 503 else None, **more)


async def _http(request: Request, wrong: Exception) -> Response:
    assert isinstance(wrong, HTTPException)
    if wrong.status_code == 401 and pages.wants_page(request):
        return pages.to_login(request)
    return _answer(request, wrong.status_code, str(wrong.detail), dict(wrong.headers or {}))


async def _hung_up(_request: Request, _wrong: Exception) -> Response:
    # nobody reads this answer; 499 is what proxies log for it
    return Response(status_code=499)
