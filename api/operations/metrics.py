"""GET /metrics: counts of this process and of the rows in Postgres, for Prometheus; never a value of a request."""

import hmac
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated

from fastapi import Depends, HTTPException, Request, Response
from fastapi.security import HTTPAuthorizationCredentials
from prometheus_client import CONTENT_TYPE_LATEST, REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from api.auth import KeyRejected, address
from api.dependencies import Parts, PartsDep, bearer
from api.feedback.agreement import alarms_of
from api.requests import Router
from shared.db.clock import db_now
from shared.db.tables import CheckRow
from shared.domain.checks import ENDED
from shared.domain.security import Role
from shared.errors import Unavailable
from shared.queries import backfill_reports, checks, destinations, feedback, operations, peers
from shared.queries.worklist import all_status_counts
from shared.storage import disk_of

router = Router(tags=["operate"])
# of `RowCollector`: help and labels of each gauge
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "osteon_queue_studies": ("Studies that wait, by queue", ("queue",)),
    "osteon_queue_oldest_seconds": ("How long the oldest study of a queue has waited", ("queue",)),
    "osteon_studies": ("Studies, by state", ("status",)),
    "osteon_workers": ("Worker processes with a recent heartbeat", ()),
    "osteon_drift_alarms": (
        "Regions and scanners for which readers agree with the active bundle less than before",
        (),
    ),
    "osteon_dicom_peer_silent": ("1 if a DICOM peer sends nothing though it should, else 0", ("site", "peer")),
    "osteon_dicom_peer_last_contact_timestamp_seconds": (
        "When a DICOM peer connected or sent last, as a Unix time",
        ("site", "peer"),
    ),
    "osteon_dicom_peer_last_images_timestamp_seconds": (
        "When a DICOM peer sent images last, as a Unix time",
        ("site", "peer"),
    ),
    "osteon_deliveries_waiting": ("Deliveries of results that wait, by destination", ("site", "destination")),
    "osteon_deliveries_oldest_seconds": (
        "How long the oldest delivery that is due has waited, by destination",
        ("site", "destination"),
    ),
    "osteon_deliveries_undelivered": (
        "Deliveries that have failed, are held, or were sent and not confirmed, by destination",
        ("site", "destination"),
    ),
    "osteon_deliveries_unconfirmed": (
        "Deliveries that were sent, of which the destination has not said yet whether it keeps them, by destination",
        ("site", "destination"),
    ),
    "osteon_check_on": ("1 if the system checks itself once a day, else 0", ()),
    "osteon_check_ended_timestamp_seconds": ("When the last daily check ended, as a Unix time", ()),
    "osteon_check_state": ("1 for the state in which the last daily check ended, else 0", ("state",)),
    "osteon_check_step_seconds": ("Duration of the steps of the last daily check", ("step",)),
    "osteon_check_probability_deviation": (
        "Greatest difference of a probability from the expected one in the last daily check",
        (),
    ),
    "osteon_check_heatmap_deviation": (
        "Greatest difference of a heatmap's cell from the expected one in the last daily check, of 255 levels",
        (),
    ),
    "osteon_dicom_callers": ("DICOM callers that were refused within 30 days and are not admitted", ()),
    "osteon_backfill_started_timestamp_seconds": ("When the last backfill run began, as a Unix time", ()),
    "osteon_night_started_timestamp_seconds": ("Deprecated, use osteon_backfill_started_timestamp_seconds", ()),
    "osteon_api_spool_bytes": ("Disk space that uploads in progress use", ()),
    "osteon_api_spool_most_bytes": ("Disk space that uploads in progress may use at most", ()),
    "osteon_store_free_bytes": ("Free space on the disk of the object store", ()),
    "osteon_store_size_bytes": ("Size of the disk of the object store", ()),
}
COUNTERS = {  # of `Rows`, by what is counted; labels site and peer
    "osteon_dicom_peer_associations": ("Associations of a DICOM peer", "associations"),
    "osteon_dicom_peer_images": ("Objects that were accepted from a DICOM peer", "images"),
    "osteon_dicom_peer_bytes": ("Bytes that were accepted from a DICOM peer", "size_bytes"),
    "osteon_dicom_peer_rejected": ("Objects that were refused to a DICOM peer", "rejected"),
}


class RowCollector(Collector):
    """Counts from rows, read once a scrape."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges, as prometheus_client expects. Raises Unavailable."""
        with self._parts.database.transaction() as session:
            queues = operations.queues(session)
            now = db_now(session)
            counts = all_status_counts(session)
            living = operations.living_workers(session)
            begun = backfill_reports.last_backfill(session)
            drifting = sum(len(alarms_of(session, site_id)) for site_id in feedback.site_ids(session))
            leaving = destinations.list_destinations(session, None)
            checked = checks.last_ended(session) if self._parts.settings.daily_check else None
            senders, refused = peers.figures(session, None), len(peers.callers(session, None))
        waiting, oldest, studies = map(
            _gauge, ("osteon_queue_studies", "osteon_queue_oldest_seconds", "osteon_studies")
        )
        for one in queues:
            waiting.add_metric([one.queue.value], one.waiting_everywhere)
            since = one.oldest_everywhere_at
            oldest.add_metric([one.queue.value], (now - since).total_seconds() if since else 0)
        for status, count in counts.items():
            studies.add_metric([status.value], count)
        yield from (waiting, oldest, studies)
        yield _gauge("osteon_workers", living)
        yield _gauge("osteon_drift_alarms", drifting)
        if begun:
            yield _gauge("osteon_backfill_started_timestamp_seconds", begun.timestamp())
            yield _gauge("osteon_night_started_timestamp_seconds", begun.timestamp())
        yield from _of_peers(senders)
        yield _gauge("osteon_dicom_callers", refused)
        yield from _of_destinations(leaving, now)
        yield _gauge("osteon_check_on", self._parts.settings.daily_check)
        if checked is not None:
            yield from _of_check(checked)
        budget = self._parts.spool_budget
        yield _gauge("osteon_api_spool_bytes", budget.used)
        yield _gauge("osteon_api_spool_most_bytes", budget.max_bytes)
        if disk := disk_of(self._parts.store):
            yield _gauge("osteon_store_free_bytes", disk.free)
            yield _gauge("osteon_store_size_bytes", disk.total)


def _of_destinations(found: list[destinations.DestinationFigures], now: datetime) -> Iterator[Metric]:
    waiting, oldest, undelivered, unconfirmed = (
        _gauge(f"osteon_deliveries_{name}") for name in ("waiting", "oldest_seconds", "undelivered", "unconfirmed")
    )
    for one in found:
        labels, outbox = [one.row.site.name, one.row.name], one.outbox
        since = outbox.oldest_at if one.row.disabled_at is None else None
        waiting.add_metric(labels, outbox.waiting)
        oldest.add_metric(labels, (now - since).total_seconds() if since else 0)
        undelivered.add_metric(labels, outbox.failed + outbox.held + outbox.not_confirmed)
        unconfirmed.add_metric(labels, outbox.unconfirmed)
    yield from (waiting, oldest, undelivered, unconfirmed)


def _of_check(row: CheckRow) -> Iterator[Metric]:
    if row.ended_at is not None:
        yield _gauge("osteon_check_ended_timestamp_seconds", row.ended_at.timestamp())
    state, steps = _gauge("osteon_check_state"), _gauge("osteon_check_step_seconds")
    for one in ENDED:
        state.add_metric([one.value], row.state == one)
    for step in row.steps:
        steps.add_metric([step["step"]], step["seconds"])
    yield from (state, steps)
    if row.probability_deviation is not None and row.heatmap_deviation is not None:
        yield _gauge("osteon_check_probability_deviation", row.probability_deviation)
        yield _gauge("osteon_check_heatmap_deviation", row.heatmap_deviation)


def _of_peers(found: list[peers.PeerFigures]) -> Iterator[Metric]:
    silent, contact, images = map(
        _gauge,
        (
            "osteon_dicom_peer_silent", "osteon_dicom_peer_last_contact_timestamp_seconds",
            "osteon_dicom_peer_last_images_timestamp_seconds",
        ),
    )  # fmt: skip
    counters = {
        value: CounterMetricFamily(name, text, labels=("site", "peer")) for name, (text, value) in COUNTERS.items()
    }
    for one in found:
        labels = [one.row.site.name, one.row.key.name]
        if one.row.disabled_at is None:
            silent.add_metric(labels, one.silent_since is not None)
        for gauge, at in ((contact, one.last_contact_at), (images, one.last_images_at)):
            if at is not None:
                gauge.add_metric(labels, at.timestamp())
        for value, counter in counters.items():
            counter.add_metric(labels, getattr(one.whole, value))
    yield from (silent, contact, images, *counters.values())


def _gauge(name: str, value: float | None = None) -> GaugeMetricFamily:
    text, labels = GAUGES[name]
    return GaugeMetricFamily(name, text, value=value, labels=labels or None)


def may_scrape(
    request: Request, parts: PartsDep, shown: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
) -> None:
    """Check the token of a scrape. A login cookie is not accepted.

    Args:
        request: as it came.
        parts: of this application.
        shown: the header Authorization.

    Raises:
        KeyRejected: 401; neither OSTEON_METRICS_TOKEN nor a valid key is shown.
        HTTPException: 403; it is another key than an operator's.
    """
    if shown is None:
        raise KeyRejected(401, "Show OSTEON_METRICS_TOKEN or an operator's key: Authorization: Bearer …")
    token = parts.settings.metrics_token.get_secret_value()
    if token and hmac.compare_digest(shown.credentials.encode(), token.encode()):
        return
    key = parts.credentials.verify_key(shown.credentials, address(request))
    if not key.may(Role.OPERATOR):
        raise HTTPException(403, f"This needs OSTEON_METRICS_TOKEN or an operator's key; yours is {key.role}")


@router.get("/metrics", response_class=Response, dependencies=[Depends(may_scrape)])
def metrics(parts: PartsDep) -> Response:
    """Get Prometheus' text: requests by route, files, queues, studies, workers, drift, peers, destinations, disk.

    While Postgres does not answer, it has what this process counts itself.
    """
    rows = CollectorRegistry(auto_describe=False)
    content = generate_latest(REGISTRY)
    try:
        rows.register(RowCollector(parts))
        content += generate_latest(rows)
    except Unavailable:
        content += b"# Postgres does not answer\n"
    return Response(content, headers={"Content-Type": CONTENT_TYPE_LATEST})
