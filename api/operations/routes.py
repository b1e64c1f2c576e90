"""GET /api/v1/operations: the state of the system, for administrators; and the release of quarantined studies."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any
from uuid import UUID

from fastapi import Query
from sqlalchemy.orm import Session

from api.dependencies import Admin, AdminOrOperator, Parts, PartsDep, SessionDep
from api.feedback.agreement import DriftView, alarms_of
from api.models.backfill import run_views
from api.operations.checks import check_troubles, last_view
from api.operations.destinations import delays, destination_views, undelivered_views
from api.operations.health import health
from api.operations.keys import key_views
from api.operations.peers import caller_views, peer_views, silences
from api.operations.schemas import (
    SPANS,
    BundleLine,
    HistoryRange,
    Operations,
    QuarantinedStudy,
    QueueView,
    ReasonView,
    RejectionView,
    ReleaseReason,
    ReleaseResult,
    RetryingStudy,
    RunningStudy,
    StatisticsPointView,
    StorageView,
    UsageView,
    WorkerState,
    WorkerView,
)
from api.reasons import reason_fields, reason_words
from api.requests import API, Router
from api.schemas import Health
from shared.db.clock import db_now
from shared.db.tables import AnalysisRow, StudyRow, UploadUsageRow, WorkerRow
from shared.domain.manifest import title_of
from shared.domain.study import Priority
from shared.queries import analyses, held, models, operations, quotas, statistics
from shared.queries.access import Key, key_names
from shared.queue.celery_app import ANALYSE
from shared.settings import Settings
from shared.storage import disk_of

router = Router(prefix=API, tags=["administer"])
LISTED = 20  # studies of the quarantine
LISTED_IN_HAND = 20
LISTED_RETRYING = 20
IDLE_LIMIT = timedelta(minutes=5)  # studies wait, workers live, and nothing is finished
FIGURES = {  # of a card, and what they are called
    "fracture_auroc": "fracture AUROC",
    "region_accuracy": "region accuracy",
    "expected_calibration_error": "calibration error",
    "pointing_game": "pointing game",
}
REJECTIONS_OF = timedelta(days=30)
NO_ACTIVE_BUNDLE = (
    "No bundle is active, so nothing is analysed: activate one under Models and runs, or by osteon activate FILE."
)


@router.get("/operations")
def overview(
    parts: PartsDep,
    key: AdminOrOperator,
    session: SessionDep,
    range: Annotated[  # noqa: A002 - as it is called
        HistoryRange, Query(description="how far back the history goes")
    ] = HistoryRange.HOUR,
) -> Operations:
    """Queues, workers, history, quarantine, rejections, backfill runs, bundles, storage and keys of your site.

    The history stands in Postgres: a restart of anything else loses none of it.
    """
    return overview_of(parts, session, key, range)


def overview_of(parts: Parts, session: Session, key: Key, chosen: HistoryRange) -> Operations:
    """Build the response of GET /api/v1/operations, which the page uses too.

    Args:
        parts: of this application.
        session: the caller's transaction.
        key: of the administrator.
        chosen: how far the history goes back.

    Returns:
        The overview.
    """
    length, step = SPANS[chosen]
    settings, site = parts.settings, key.site_id
    found = health(parts)
    now = db_now(session)
    # whole steps, so that nothing on the screen changes between two of them
    end = datetime.fromtimestamp(-(-now.timestamp() // step.total_seconds()) * step.total_seconds(), now.tzinfo)
    waiting = [_queue(one, now, settings) for one in operations.queues(session, site)]
    workers = [_worker(row, now) for row in operations.workers(session)]
    senders, destinations = peer_views(session, key), destination_views(session, key)
    check = last_view(parts, session)
    return Operations(
        health=found,
        troubles=_troubles(session, found, waiting, workers, now)
        + check_troubles(parts, session, check)
        + _drifts(alarms_of(session, site))
        + silences(senders)
        + delays(destinations, now),
        counts=parts.counts.of(session, site),
        queues=waiting,
        workers=workers,
        in_hand=[_in_hand(row, settings) for row in operations.in_hand(session, site, LISTED_IN_HAND)],
        retrying=[_retrying(row, settings) for row in operations.retrying(session, site, LISTED_RETRYING)],
        range=chosen,
        start=end - length,
        end=end,
        step_s=int(step.total_seconds()),
        history=[
            StatisticsPointView.of_row(point) for point in statistics.history(session, site, end - length, end, step)
        ],
        quarantine=[
            ReasonView.of_row(one, **reason_fields(one.reason, one.detail), studies=one.count)
            for one in operations.quarantine_reasons(session, site)
        ],
        quarantined=[
            _quarantined(row, attempts, settings) for row, attempts in operations.quarantined(session, site, LISTED)
        ],
        rejections=[_rejection(one) for one in operations.rejections(session, site, now - REJECTIONS_OF)],
        held=held.open_counts(session, site),
        backfill_runs=run_views(session),
        bundles=[
            BundleLine(
                name=row.name,
                title=title_of(row.name, row.manifest),
                state=models.state_of(row),
                added_at=row.added_at,
                sha256=row.sha256,
                figures=figures(row.manifest),
            )
            for row in models.list_bundles(session)
        ],
        storage=_storage(session, parts, key),
        sent=_usage_views(session, settings, site, now),
        urgent_share=settings.urgent_share,
        urgent_free=settings.urgent_free,
        dicom_peers=senders,
        dicom_callers=caller_views(session, key),
        destinations=destinations,
        undelivered=undelivered_views(session, key),
        keys=key_views(session, key),
        check=check,
        flower_url=settings.flower_url,
    )


def _usage_views(session: Session, settings: Settings, site: UUID, now: datetime) -> list[UsageView]:
    rows = quotas.usage(session, site, now)
    if not rows:
        return []
    by_key: dict[str, list[UploadUsageRow]] = {}
    names = key_names(session, site)
    for row in rows:
        by_key.setdefault(names.get(row.key_id, ""), []).append(row)
    whole = UsageView.of_row(
        quotas.Usage.of(rows),
        name="",
        most_bytes=settings.site_bytes_per_hour,
        most_studies=settings.site_studies_per_hour,
    )
    return [whole] + [
        UsageView.of_row(
            quotas.Usage.of(mine),
            name=name,
            most_bytes=settings.key_bytes_per_hour,
            most_studies=settings.key_studies_per_hour,
        )
        for name, mine in sorted(by_key.items())
    ]


@router.post("/quarantine/release")
def release_reason(body: ReleaseReason, parts: PartsDep, key: Admin) -> ReleaseResult:
    """Analyse your site's studies again that were quarantined for this reason, at most 500 at a time."""
    with parts.database.transaction() as session:
        to_send = operations.release_reason(session, key, body.reason)
    if failed := parts.publisher.send(to_send):
        with parts.database.transaction() as session:
            analyses.mark_not_sent(session, failed)
    with parts.database.transaction() as session:
        left = {one.reason: one.count for one in operations.quarantine_reasons(session, key.site_id)}
    return ReleaseResult(released=len(to_send), left=left.get(body.reason, 0))


def flower_link(settings: Settings, study_id: UUID) -> str:
    """Link to Flower's list of all tasks of one study. Flower searches every column for what follows the name.

    Args:
        settings: with Flower's address.
        study_id: the study.

    Returns:
        The address.
    """
    return f"{settings.flower_url.rstrip('/')}/tasks?name={ANALYSE}%20{study_id}"


def figures(manifest: dict[str, Any]) -> dict[str, str]:
    """The figures of a bundle's card by name, with their 95 % intervals where they have them."""
    found = {"architecture": str(manifest.get("architecture", "")), "input": f"{manifest.get('input_size', '?')} px"}
    measured = manifest.get("metrics") or {}
    if "radiographs" in measured:
        found["radiographs"] = f"{measured['radiographs']}, {measured.get('fractured', '?')} fractured"
    found |= {words: _figure(measured[name]) for name, words in FIGURES.items() if name in measured}
    return found


def _figure(value: float | list[float]) -> str:
    if isinstance(value, list):
        middle, low, high = value
        return f"{middle:.3f} ({low:.3f} to {high:.3f})"
    return f"{value:.3f}"


def _queue(one: operations.QueueCount, now: datetime, settings: Settings) -> QueueView:
    limit = operations.queue_limits(settings.routine_limit_s, settings.backlog_limit_s)[one.queue]
    oldest = one.oldest_everywhere_at
    return QueueView.of_row(one, late=oldest is not None and now - oldest > limit)


def _worker(row: WorkerRow, now: datetime) -> WorkerView:
    state = WorkerState.ALIVE if now - row.seen_at < operations.SILENT_AFTER else WorkerState.SILENT
    if row.stopped_at is not None:
        state = WorkerState.STOPPED
    return WorkerView.of_row(row, state=state)


def _in_hand(row: AnalysisRow, settings: Settings) -> RunningStudy:
    return RunningStudy(
        id=row.study_id,
        queue=Priority(row.priority),
        started_at=row.started_at,
        attempts=row.attempts,
        flower_url=flower_link(settings, row.study_id),
    )


def _retrying(row: AnalysisRow, settings: Settings) -> RetryingStudy:
    return RetryingStudy(
        id=row.study_id,
        **reason_fields(row.reason, row.reason_detail),
        attempts=row.attempts,
        next_at=row.not_before,
        flower_url=flower_link(settings, row.study_id),
    )


def _quarantined(row: StudyRow, attempts: int, settings: Settings) -> QuarantinedStudy:
    return QuarantinedStudy(
        id=row.id,
        **reason_fields(row.reason, row.reason_detail),
        attempts=attempts,
        images=row.images,
        since=row.quarantined_at,
        flower_url=flower_link(settings, row.id),
    )


def _rejection(one: operations.RejectionCount) -> RejectionView:
    return RejectionView.of_row(one, text=reason_words(one.reason, one.detail))


def _troubles(
    session: Session, found: Health, queues: Sequence[QueueView], workers: Sequence[WorkerView], now: datetime
) -> list[str]:
    """What an administrator should act on, gravest first."""
    troubles = [f"The {part} is in trouble: {state}" for part, state in found.parts.items() if state != "ok"]
    waiting = sum(one.waiting_everywhere for one in queues)
    living = any(one.state is WorkerState.ALIVE for one in workers)
    if models.active_bundle(session) is None:
        troubles.append(NO_ACTIVE_BUNDLE)
    if not living:
        troubles.append(
            "No worker is alive, so nothing is analysed: start one (osteon up, or docker compose up -d), or look into "
            "the worker's log."
        )
    elif waiting and (idle := _idle(session, queues, now)) > IDLE_LIMIT:
        minutes = int(idle.total_seconds() // 60)
        troubles.append(
            f"Studies wait and workers live, yet none was finished for {minutes} min: look into the worker's log."
        )
    troubles += [late_words(one) for one in queues if one.late and (living or one.queue is Priority.URGENT)]
    return troubles


def late_words(late: QueueView) -> str:
    """What an administrator should know of a queue whose oldest study waits too long."""
    return f"The oldest {late.queue} study waits longer than that queue should let it."


def _drifts(alarms: Sequence[DriftView]) -> list[str]:
    return [
        f"Readers agree with {one.bundle} on radiographs of {one.where} ({one.by}) less than before: see the page "
        "Agreement, and whether scanners or patients have changed."
        for one in alarms
    ]


def _idle(session: Session, queues: Sequence[QueueView], now: datetime) -> timedelta:
    """For how long studies wait and none is finished."""
    oldest = min((one.oldest_at for one in queues if one.oldest_at), default=now)
    return now - max(operations.last_analysed_at(session) or oldest, oldest)


def _storage(session: Session, parts: Parts, key: Key) -> StorageView:
    now, before = statistics.stored(session, key.site_id)
    disk = disk_of(parts.store)
    days = None
    if now and before and disk and now.size_bytes > before.size_bytes:
        grown = (now.size_bytes - before.size_bytes) / ((now.at - before.at).total_seconds() / 86400)
        days = int(disk.free / grown)
    return StorageView(
        counted_at=now.at if now else None,
        images=now.images if now else 0,
        size_bytes=now.size_bytes if now else 0,
        a_week_ago_bytes=before.size_bytes if before else None,
        kind="directory" if parts.store.takes_files else "S3",
        disk_bytes=disk.total if disk else None,
        free_bytes=disk.free if disk else None,
        days_left=days,
    )
