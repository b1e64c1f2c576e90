"""The application: everything real enters here, once."""

import ipaddress
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from anyio import CapacityLimiter
from fastapi import APIRouter, FastAPI, Request
from fastapi_offline import FastAPIOffline
from starlette.datastructures import MutableHeaders
from starlette.middleware.sessions import SessionMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from api import pages
from api.auth import Credentials
from api.backends import open_backends
from api.dependencies import Parts
from api.dicomweb import frames as dicomweb_frames
from api.dicomweb import metadata as dicomweb_metadata
from api.dicomweb import rendered, retrieve, search, store
from api.errors import UnexpectedErrors, handle_errors, problem
from api.events import Events
from api.feedback import agreement
from api.feedback import routes as feedback
from api.fhir import routes as fhir
from api.legacy import LegacyPaths
from api.models import backfill, revised
from api.models import routes as models
from api.operations import (
    audit,
    checks,
    destinations,
    exports,
    health,
    keys,
    metrics,
    peers,
    quarantine,
    refused_kinds,
    result_choices,
    turnaround,
)
from api.operations import routes as operations
from api.origins import AllowedOrigins
from api.pages.render import STATIC
from api.request_metrics import RequestMetrics
from api.requests import UnreadBodies
from api.spool import Limiters
from api.studies import deletions, frames, priors
from api.studies import routes as studies
from api.uploads import arrived, held
from api.uploads import routes as uploads
from api.worklist import filters, locks, notices, stream, table
from api.worklist import routes as worklist
from shared import __version__
from shared.domain.findings import RESEARCH_USE
from shared.errors import OsteonError
from shared.logs import configure_logs
from shared.settings import Settings, one_sentence

DEFAULT_CACHE_CONTROL = (None, "no-cache")  # of our routes, and of FastAPI's event streams, if they set none
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
}
# the viewer of the API's documentation starts itself by an inline script; no other page may
DOCS_POLICY = (
    "default-src 'none'; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
PATHS_FOR_ANY_HOST = {"/healthz", "/readyz", "/metrics"}  # by load balancers and Prometheus, which show no cookie
HSTS = "max-age=31536000"  # a year, of this name only
SENDING = (uploads, arrived)
DICOMWEB = (store, search, retrieve, dicomweb_metadata, dicomweb_frames, rendered)
READING = (
    studies, frames, priors, locks, feedback, agreement, worklist, table, stream, filters, notices, revised, fhir,
)  # fmt: skip
OPERATING = (
    turnaround, refused_kinds, result_choices, backfill, models, deletions, exports, held, operations, quarantine, keys,
    peers, audit, destinations, checks, health, metrics,
)  # fmt: skip
ROUTES = APIRouter()  # put together once: what FastAPI works out of each route serves all applications of a process
for _router in (*(module.router for module in (*SENDING, *DICOMWEB, *READING, *OPERATING)), pages.papers, pages.router):
    ROUTES.include_router(_router)


def create_app(settings: Settings | None = None) -> FastAPI:
    """Build the API.

    Args:
        settings: of this installation; None in a process of its own, which then ends with a sentence if one is wrong.

    Returns:
        The application.

    Raises:
        OsteonError: a secret is missing or a URL is wrong.
    """
    if settings is None:
        with one_sentence():
            return create_app(Settings())
    configure_logs(settings.log_level)
    if len(settings.session_secret.get_secret_value()) < 16:
        raise OsteonError("Set OSTEON_SESSION_SECRET to at least 16 random characters: it signs the login cookie")
    backends = open_backends(settings)
    credentials = Credentials(settings, backends.database)
    parts = Parts(
        **vars(backends),
        events=Events(settings.database_url.get_secret_value(), credentials.still_valid),
        uploads=Limiters(settings.upload_threads),
        credentials=credentials,
        # some connections are left for everything else
        transactions=CapacityLimiter(max(1, settings.database_pool_size * 3 // 4)),
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
    )
    app.state.parts = parts
    app.add_middleware(
        SessionMiddleware,
        secret_key=settings.session_secret.get_secret_value(),
        session_cookie="__Host-osteon" if settings.secure_cookies else "osteon",
        max_age=settings.session_hours * 3600,
        same_site="strict",
        https_only=settings.secure_cookies,
    )
    app.add_middleware(UnexpectedErrors)
    app.add_middleware(AllowedHosts, allowed=settings.allowed_hosts)
    app.add_middleware(LegacyPaths)
    app.add_middleware(AllowedOrigins, allowed=settings.dicomweb_origins)
    app.add_middleware(ResponseHeaders, tls=settings.secure_cookies)
    app.add_middleware(RequestMetrics)
    app.add_middleware(UnreadBodies)
    if settings.trusted_proxies != "none":
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=settings.trusted_proxies)
    app.router.routes.extend(ROUTES.routes)
    app.mount(STATIC, pages.FILES)
    handle_errors(app)
    return app


class AllowedHosts:
    """Refuses requests to unknown host names with 421, so that a page led here by DNS under another name reads nothing.

    An address is no name, so that trick does not work with it: any is accepted. Nor does it work with a key in the
    header, which no such page has: programs may use whatever name leads here.
    """

    def __init__(self, app: ASGIApp, allowed: str) -> None:
        """allowed: names with commas; *.example.org for all below it, * for any."""
        self.app = app
        self._names = {one.strip().lower() for one in allowed.split(",") if one.strip()} | {"localhost"}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        headers = dict(scope.get("headers", ()))
        host, keyed = headers.get(b"host", b"").decode("latin-1"), b"authorization" in headers
        if (
            scope["type"] == "http"
            and host
            and not (keyed or scope["path"] in PATHS_FOR_ANY_HOST or self._is_allowed(host))
        ):
            # the name is not repeated: it may be anything
            detail = "This host name is not allowed here: add it to OSTEON_ALLOWED_HOSTS"
            await problem(Request(scope), 421, detail)(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    def _is_allowed(self, host: str) -> bool:
        name = host.lower().rsplit(":", 1)[0] if not host.endswith("]") else host
        with suppress(ValueError):
            ipaddress.ip_address(name.strip("[]"))
            return True
        parents = {f"*.{parent}" for parent in itertools.accumulate(reversed(name.split(".")), lambda a, b: f"{b}.{a}")}
        return not self._names.isdisjoint({name, "*"} | parents - {f"*.{name}"})


class ResponseHeaders:
    """Adds the headers that every response has. Plain ASGI: Starlette's base starts tasks for each piece of a body."""

    def __init__(self, app: ASGIApp, *, tls: bool = False) -> None:
        """tls: browsers are to come by HTTPS only, from now on."""
        self.app = app
        self._headers = HEADERS | ({"Strict-Transport-Security": HSTS} if tls else {})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""

        async def send_more(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers, path = MutableHeaders(scope=message), scope["path"]
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
                if path == "/docs":
                    headers["Content-Security-Policy"] = DOCS_POLICY
                if path.startswith(f"{STATIC}/") and message["status"] in (200, 304):
                    headers["Cache-Control"] = "public, max-age=31536000, immutable"  # another content, another address
                elif headers.get("Cache-Control") in DEFAULT_CACHE_CONTROL and not path.startswith(
                    "/static-offline-docs/"
                ):
                    # findings and identities do not belong in shared caches
                    headers["Cache-Control"] = "no-store"
            await send(message)

        await self.app(scope, receive, send_more if scope["type"] == "http" else send)
