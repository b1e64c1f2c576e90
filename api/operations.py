"""GET /operations: how the system does, for administrators; and the release of what was set aside."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from fastapi import APIRouter
from sqlalchemy.orm import Session

from api.agreement import DriftView, alarms_of
from api.backlog import run_views
from api.bundles import state_of
from api.dependencies import Admin, Parts, PartsDep
from api.health import health
from api.keys import key_views
from api.overview import (
    SPANS,
    BundleLine,
    Operations,
    Point,
    QuarantinedStudy,
    QueueView,
    Range,
    ReasonView,
    RefusalView,
    Released,
    ReleaseReason,
    RetryingStudy,
    StorageView,
    StudyInHand,
    WorkerState,
    WorkerView,
)
from api.responses import Health
from shared.repository import bundles, held, operations, samples, work
from shared.repository.access import Key
from shared.settings import Settings
from shared.storage import disk_of
from shared.study import Priority
from shared.tables import StudyRow, WorkerRow

router = APIRouter(tags=["administer"])
LISTED = 20  # studies of the quarantine
LISTED_IN_HAND = 20
LISTED_RETRYING = 20
URGENT_LIMIT = timedelta(minutes=2)
IDLE_LIMIT = timedelta(minutes=5)  # studies wait, workers live, and nothing is finished
FIGURES = {  # of a card, and what they are called
    "fracture_auroc": "fracture AUROC",
    "region_accuracy": "region accuracy",
    "expected_calibration_error": "calibration error",
    "pointing_game": "pointing game",
}
REFUSALS_OF = timedelta(days=30)


@router.get("/operations")
def overview(parts: PartsDep, key: Admin, range: Range = Range.HOUR) -> Operations:  # noqa: A002 - as it is called
    """Queues, workers, history, quarantine, refusals, nights, bundles, storage and keys of your site.

    The history stands in Postgres: a restart of anything else loses none of it.
    """
    return overview_of(parts, key, range)


def overview_of(parts: Parts, key: Key, chosen: Range) -> Operations:
    """What GET /operations answers; the page shows the same."""
    length, step = SPANS[chosen]
    settings, site = parts.settings, key.site_id
    found = health(parts)
    with parts.database.transaction() as session:
        now = work.clock(session)
        # whole steps, so that nothing on the screen changes between two of them
        end = datetime.fromtimestamp(-(-now.timestamp() // step.total_seconds()) * step.total_seconds(), now.tzinfo)
        waiting = [_queue(one, now, settings) for one in operations.queues(session, site)]
        workers = [_worker(row, now) for row in operations.workers(session)]
        return Operations(
            health=found,
            troubles=_troubles(session, found, waiting, workers, now) + _drifts(alarms_of(session, site)),
            counts=parts.counts.of(session, site),
            queues=waiting,
            workers=workers,
            in_hand=[_in_hand(row, settings) for row in operations.in_hand(session, site, LISTED_IN_HAND)],
            retrying=[_retrying(row, settings) for row in operations.retrying(session, site, LISTED_RETRYING)],
            range=chosen,
            start=end - length,
            end=end,
            step_s=int(step.total_seconds()),
            history=[Point(**vars(point)) for point in samples.history(session, site, end - length, end, step)],
            quarantine=[
                ReasonView(reason=one.reason, studies=one.count, first_at=one.first_at, last_at=one.last_at)
                for one in operations.quarantine_reasons(session, site)
            ],
            quarantined=[_quarantined(row, settings) for row in operations.quarantined(session, site, LISTED)],
            refusals=[RefusalView(**vars(one)) for one in operations.refusals(session, site, now - REFUSALS_OF)],
            held=held.open_counts(session, site),
            nights=run_views(session),
            bundles=[
                BundleLine(
                    name=row.name,
                    state=state_of(row),
                    added_at=row.added_at,
                    sha256=row.sha256,
                    figures=figures(row.manifest),
                )
                for row in bundles.bundles(session)
            ],
            storage=_storage(session, parts, key),
            keys=key_views(session, key),
            flower_url=settings.flower_url,
        )


@router.post("/quarantine/release")
def release_reason(wanted: ReleaseReason, parts: PartsDep, key: Admin) -> Released:
    """Try your site's studies that were set aside for this reason again, at most 500 at a time."""
    with parts.database.transaction() as session:
        to_send = operations.release_reason(session, key.site_id, wanted.reason)
    if failed := parts.doorbell.ring(to_send):
        with parts.database.transaction() as session:
            work.sending_failed(session, failed)
    with parts.database.transaction() as session:
        left = {one.reason: one.count for one in operations.quarantine_reasons(session, key.site_id)}
    return Released(released=len(to_send), left=left.get(wanted.reason, 0))


def flower_link(settings: Settings, study_id: UUID) -> str:
    """Flower's list of all tasks of one study. Flower searches every column for what follows the name."""
    return f"{settings.flower_url.rstrip('/')}/tasks?name=analyse_study%20{study_id}"


def figures(manifest: dict[str, Any]) -> dict[str, str]:
    """The figures of a bundle's card by name, with their 95 % intervals where they have them."""
    found = {"architecture": str(manifest.get("architecture", "")), "input": f"{manifest.get('input_size', '?')} px"}
    measured = manifest.get("metrics") or {}
    if "films" in measured:
        found["films"] = f"{measured['films']}, {measured.get('fractured', '?')} fractured"
    found |= {words: _figure(measured[name]) for name, words in FIGURES.items() if name in measured}
    return found


def _figure(value: float | list[float]) -> str:
    if isinstance(value, list):
        middle, low, high = value
        return f"{middle:.3f} ({low:.3f} to {high:.3f})"
    return f"{value:.3f}"


def _queue(one: operations.Queue, now: datetime, settings: Settings) -> QueueView:
    limit = {
        Priority.URGENT: URGENT_LIMIT,
        Priority.ROUTINE: timedelta(seconds=settings.routine_limit_s),
        Priority.BACKLOG: timedelta(seconds=settings.backlog_limit_s),
    }[one.queue]
    oldest = one.oldest_everywhere_at
    return QueueView(
        queue=one.queue,
        waiting=one.waiting,
        oldest_at=one.oldest_at,
        waiting_everywhere=one.waiting_everywhere,
        late=oldest is not None and now - oldest > limit,
    )


def _worker(row: WorkerRow, now: datetime) -> WorkerView:
    state = WorkerState.ALIVE if now - row.seen_at < operations.SILENT_AFTER else WorkerState.SILENT
    if row.stopped_at is not None:
        state = WorkerState.STOPPED
    return WorkerView(
        id=row.id,
        host=row.host,
        pid=row.pid,
        device=row.device,
        bundle=row.bundle,
        threads=row.threads,
        taken=row.taken,
        in_hand=row.in_hand,
        started_at=row.started_at,
        seen_at=row.seen_at,
        state=state,
    )


def _in_hand(row: StudyRow, settings: Settings) -> StudyInHand:
    return StudyInHand(
        id=row.id,
        queue=Priority(row.queue),
        started_at=row.started_at,
        attempts=row.attempts,
        flower_url=flower_link(settings, row.id),
    )


def _retrying(row: StudyRow, settings: Settings) -> RetryingStudy:
    return RetryingStudy(
        id=row.id,
        reason=row.reason,
        attempts=row.attempts,
        next_at=row.not_before,
        flower_url=flower_link(settings, row.id),
    )


def _quarantined(row: StudyRow, settings: Settings) -> QuarantinedStudy:
    return QuarantinedStudy(
        id=row.id,
        reason=row.reason,
        attempts=row.attempts,
        images=row.images,
        since=row.quarantined_at,
        flower_url=flower_link(settings, row.id),
    )


def _troubles(
    session: Session, found: Health, queues: Sequence[QueueView], workers: Sequence[WorkerView], now: datetime
) -> list[str]:
    """What an administrator should do something about, gravest first."""
    troubles = [f"The {part} is in trouble: {answer}" for part, answer in found.parts.items() if answer != "ok"]
    waiting = sum(one.waiting_everywhere for one in queues)
    living = any(one.state is WorkerState.ALIVE for one in workers)
    if bundles.active_bundle(session) is None:
        troubles.append("No bundle is active, so nothing is analysed: activate one below, or by osteon activate FILE.")
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
    troubles += [
        f"The oldest {one.queue} study waits longer than that queue should let it."
        for one in queues
        if one.late and (living or one.queue is Priority.URGENT)
    ]
    return troubles


def _drifts(alarms: Sequence[DriftView]) -> list[str]:
    return [
        f"Readers agree with {one.bundle} on films of {one.where} ({one.by}) less than they used to: look at the page "
        "Agreement, and whether scanners or patients have changed."
        for one in alarms
    ]


def _idle(session: Session, queues: Sequence[QueueView], now: datetime) -> timedelta:
    """For how long studies wait and none is finished."""
    oldest = min((one.oldest_at for one in queues if one.oldest_at), default=now)
    return now - max(operations.last_analysed_at(session) or oldest, oldest)


def _storage(session: Session, parts: Parts, key: Key) -> StorageView:
    now, before = samples.stored(session, key.site_id)
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
