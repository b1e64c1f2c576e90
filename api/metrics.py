"""GET /metrics: what this process and the rows in Postgres tell Prometheus. Counts only, of our own words."""

import hmac
import time
from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Response
from fastapi.security import HTTPAuthorizationCredentials
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.agreement import alarms_of
from api.dependencies import Parts, PartsDep, bearer
from shared.errors import Unavailable
from shared.repository import answers, operations, reports
from shared.repository.access import Role, find_key
from shared.repository.reading import all_status_counts
from shared.repository.work import clock
from shared.storage import disk_of

router = APIRouter(tags=["operate"])
REQUESTS = Histogram(
    "osteon_api_request_seconds",
    "Requests, from their first byte to their answer's last; of event streams to their answer's first",
    ["method", "route", "status"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60),
)
FILES = Counter("osteon_api_files", "Uploaded files, by what became of them", ["outcome", "reason"])


class Measured:
    """Counts requests by the route that took them, never by their path: paths hold ids. Plain ASGI, as Headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI has it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        status = "500"  # of a request that ends without an answer
        start, ended = time.perf_counter(), 0.0

        async def noting(message: Message) -> None:
            nonlocal status, ended
            if message["type"] == "http.response.start":
                status = str(message["status"])
                if (b"content-type", EVENTS) in (
                    (name.lower(), value[: len(EVENTS)]) for name, value in message["headers"]
                ):
                    ended = time.perf_counter()  # the stream stays open for minutes, and nobody waits for its end
            await send(message)

        try:
            await self.app(scope, receive, noting)
        finally:
            method = scope["method"] if scope["method"] in METHODS else "other"
            REQUESTS.labels(method, route_of(scope), status).observe((ended or time.perf_counter()) - start)


EVENTS = b"text/event-stream"
METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def route_of(scope: Scope) -> str:
    """The template of the route that took a request, as "/studies/{study_id}"; "none" where there was none."""
    route = scope.get("route")
    if route is not None:
        return str(getattr(route, "path", "none"))
    return "/static" if scope["path"].startswith("/static/") else "none"


def count_files(outcome: str, reason: str | None = None) -> None:
    """One uploaded file is answered for."""
    FILES.labels(outcome, reason or "").inc()


class Rows(Collector):
    """What the rows say, asked once a scrape."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        """As prometheus_client has it. Raises Unavailable."""
        with self._parts.database.transaction() as session:
            queues = operations.queues(session)
            now = clock(session)
            counts = all_status_counts(session)
            living = operations.living_workers(session)
            begun = reports.last_night(session)
            drifting = sum(len(alarms_of(session, site_id)) for site_id in answers.sites(session))
        waiting = GaugeMetricFamily("osteon_queue_studies", "Studies that wait, by queue", labels=["queue"])
        oldest = GaugeMetricFamily(
            "osteon_queue_oldest_seconds", "For how long the oldest of a queue waits", labels=["queue"]
        )
        for one in queues:
            waiting.add_metric([one.queue.value], one.waiting_everywhere)
            since = one.oldest_everywhere_at
            oldest.add_metric([one.queue.value], (now - since).total_seconds() if since else 0)
        studies = GaugeMetricFamily("osteon_studies", "Studies, by where they stand", labels=["status"])
        for status, count in counts.items():
            studies.add_metric([status.value], count)
        yield from (waiting, oldest, studies)
        yield GaugeMetricFamily("osteon_workers", "Worker processes that were heard of just now", value=living)
        yield GaugeMetricFamily(
            "osteon_drift_alarms",
            "Regions and scanners on whose films readers agree with the active bundle less than before",
            value=drifting,
        )
        if begun:
            yield GaugeMetricFamily(
                "osteon_night_started_timestamp_seconds", "When the last night began", value=begun.timestamp()
            )
        if disk := disk_of(self._parts.store):
            yield GaugeMetricFamily("osteon_store_free_bytes", "Free room on the disk of the store", value=disk.free)
            yield GaugeMetricFamily("osteon_store_size_bytes", "Size of that disk", value=disk.total)


def may_scrape(parts: PartsDep, shown: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> None:
    """401 unless the token of the settings is shown, or an admin's key. A login cookie does not do."""
    secret, token = shown.credentials if shown else "", parts.settings.metrics_token.get_secret_value()
    if token and hmac.compare_digest(secret.encode(), token.encode()):
        return
    if secret:
        with parts.database.transaction() as session:
            key = find_key(session, secret)
        if key is not None and key.may(Role.ADMIN):
            return
    raise HTTPException(
        401, "Show OSTEON_METRICS_TOKEN or an admin's key: Authorization: Bearer …", {"WWW-Authenticate": "Bearer"}
    )


@router.get("/metrics", response_class=Response, dependencies=[Depends(may_scrape)])
def metrics(parts: PartsDep) -> Response:
    """Prometheus' text: requests by route, files by outcome, queues, studies, workers, drift, the store's disk.

    While Postgres is away what this process knows itself is still told.
    """
    rows = CollectorRegistry(auto_describe=False)
    content = generate_latest(REGISTRY)
    try:
        rows.register(Rows(parts))
        content += generate_latest(rows)
    except Unavailable:
        content += b"# Postgres does not answer\n"
    return Response(content, headers={"Content-Type": CONTENT_TYPE_LATEST})
