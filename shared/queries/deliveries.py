"""Deliveries: what waits for which destination, who sends it, and what became of it."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

from sqlalchemy import ColumnElement, ScalarSelect, Select, and_, exists, func, or_, select, update
from sqlalchemy.orm import Session

from shared.db.clock import db_now
from shared.db.tables import (
    DeliveryObjectRow,
    DeliveryRow,
    DestinationRow,
    NoticeRow,
    ResultObjectRow,
    ResultSetRow,
    RevisedFindingRow,
    SiteRow,
    StudyRow,
)
from shared.db.tables.access import is_counted
from shared.domain.destinations import (
    ASKED_AFTER,
    DECIDABLE,
    HEALS,
    OPEN,
    SUSPICIOUS,
    TRIED_FOR,
    Answer,
    Capabilities,
    Confirmation,
    DeliveryReason,
    DeliveryState,
    Destination,
    DestinationKind,
    Occasion,
    Rule,
    next_wait,
    send_time,
)
from shared.domain.findings import Assessment
from shared.domain.notices import Event, NoticeContent, content_of
from shared.domain.results import IN_PLACE_OF, ResultKind
from shared.domain.security import EventKind, Subject
from shared.domain.study import StoredStatus
from shared.errors import InvalidState, NotFound
from shared.queries import studies
from shared.queries.access import Key
from shared.queries.audit import Target, record

MAX_TAKEN = 50  # destinations of one look
MAX_TOGETHER = 50  # notices of one mail


@dataclass(frozen=True)
class Work:
    """A destination that this process alone sends to, as long as its lease lasts."""

    destination_id: UUID
    site: str
    name: str
    token: UUID
    destination: Destination
    capabilities: Capabilities
    test: bool  # a person waits for a test
    secrets: tuple[int, ...] = ()  # numbers of those that sign now, the newest first; of a webhook
    zone: str = "UTC"  # IANA name of the clock that the hours of rules are on


@dataclass(frozen=True)
class DueObject:
    """An object that a delivery still has to send."""

    object_id: UUID
    kind: ResultKind
    sop_class_uid: str
    sop_instance_uid: str
    transfer_syntax_uid: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class DueDelivery:
    """A delivery whose time has come. study_id: None, of a notice alone: it is about the site."""

    delivery_id: UUID
    study_id: UUID | None
    study_instance_uid: str
    objects: tuple[DueObject, ...]  # those that the destination has not accepted, in order
    ask_patient: bool  # it is old enough that the study may be another patient's by now
    told: NoticeContent | None = None  # of a notice, which has no objects
    header_sha256: str = ""  # of the object whose header names the patient now; of a notice
    beside: tuple["DueDelivery", ...] = ()  # of mail: those that go with it

    @property
    def together(self) -> tuple["DueDelivery", ...]:
        """It, and those that go with it."""
        return (self, *self.beside)


# -- the process that sends


def take(
    session: Session, lease: timedelta, limit: int, *, kinds: Collection[DestinationKind], zone: str = "UTC"
) -> list[Work]:
    """Take destinations that something is due for, or that a person wants tested, and that no process sends to.

    Args:
        session: the caller's transaction.
        lease: how long they are this process' alone.
        limit: so many at most.
        kinds: that the caller can send to.
        zone: IANA name of the clock that the hours of rules are on.

    Returns:
        The destinations; give each back by `release`.
    """
    now = db_now(session)
    waits = exists().where(
        DeliveryRow.destination_id == DestinationRow.id,
        DeliveryRow.state == DeliveryState.WAITING,
        DeliveryRow.next_at <= now,
        _may_go(now, zone),
    )
    to_confirm = exists().where(
        DestinationRow.confirm,
        DeliveryRow.destination_id == DestinationRow.id,
        DeliveryRow.confirmation == Confirmation.DUE,
        DeliveryRow.next_at <= now,
    )
    may_send = and_(
        DestinationRow.disabled_at.is_(None),
        or_(DestinationRow.not_before.is_(None), DestinationRow.not_before <= now),
        or_(waits, to_confirm),
    )
    rows = session.scalars(
        select(DestinationRow)
        .where(
            DestinationRow.kind.in_(kinds),
            or_(DestinationRow.lease_until.is_(None), DestinationRow.lease_until < now),
            or_(DestinationRow.test_asked_at.is_not(None), may_send),
        )
        .order_by(DestinationRow.test_asked_at.is_(None), func.random())  # else the first ones have all threads
        .limit(min(limit, MAX_TAKEN))
        .with_for_update(skip_locked=True)
    ).all()
    taken = []
    for row in rows:
        row.lease_token, row.lease_until = uuid4(), now + lease
        taken.append(
            Work(
                row.id, row.site.name, row.name, row.lease_token, destination_of(row), row.capabilities,
                row.test_asked_at is not None,
                signing_secrets(row, now) if row.kind == DestinationKind.WEBHOOK else (), zone,
            )
        )  # fmt: skip
    return taken


def _may_go(now: datetime, zone: str) -> ColumnElement[bool]:
    """Whether the hours of its rule let a delivery go now, as shared.domain.destinations.is_within_hours has it."""
    hour = now.astimezone(ZoneInfo(zone)).hour
    begins, ends = DeliveryRow.hour_from, DeliveryRow.hour_to
    within_day = and_(begins < ends, begins <= hour, ends > hour)
    over_midnight = and_(begins > ends, or_(begins <= hour, ends > hour))
    return or_(begins == ends, within_day, over_midnight)


def signing_secrets(row: DestinationRow, now: datetime) -> tuple[int, ...]:
    """The numbers of a webhook's secrets that sign now, the newest first.

    Args:
        row: of the destination.
        now: Postgres' time.

    Returns:
        One or, while one has replaced another, two.
    """
    overlaps = row.former_secret_until is not None and now < row.former_secret_until
    return (row.secret_number, row.secret_number - 1) if overlaps else (row.secret_number,)


def is_still_true(session: Session, study_id: UUID, event: Event) -> bool:
    """Whether what a notice says of a study may still be told.

    Args:
        session: the caller's transaction.
        study_id: of the study.
        event: of the notice, one of OF_STUDIES.

    Returns:
        False where the study was rejected, or has a result in place of none, or none in place of a result. That a
        reader is done with it stays so while a late image is analysed. Nobody is told that a study is overdue which
        was read meanwhile, or of a revised finding that a reader has seen.
    """
    status, assessment, read_at = session.execute(
        select(StudyRow.status, StudyRow.assessment, StudyRow.read_at).where(StudyRow.id == study_id)
    ).one()
    if event is Event.READ:
        return status in (StoredStatus.ANALYSED, StoredStatus.QUEUED)
    if status != (StoredStatus.QUARANTINED if event is Event.QUARANTINED else StoredStatus.ANALYSED):
        return False
    if event is Event.OVERDUE:
        return assessment == Assessment.POSITIVE and read_at is None
    if event is Event.REVISED_FINDING:
        its = RevisedFindingRow.study_id == study_id, RevisedFindingRow.seen_at.is_(None)
        return bool(session.scalar(select(exists().where(*its))))
    return True


def destination_of(row: DestinationRow) -> Destination:
    """The destination that a row holds."""
    values = {field.name: getattr(row, field.name) for field in fields(Destination)}
    return Destination(**values | {"kind": DestinationKind(row.kind)})


def renew(session: Session, tokens: Collection[UUID], lease: timedelta) -> set[UUID]:
    """Go on having destinations.

    Args:
        session: the caller's transaction.
        tokens: of `Work`.
        lease: from now on.

    Returns:
        Those of them that are the caller's still.
    """
    if not tokens:
        return set()
    until = func.clock_timestamp() + lease
    held = update(DestinationRow).where(DestinationRow.lease_token.in_(tokens)).values(lease_until=until)
    return {token for token in session.scalars(held.returning(DestinationRow.lease_token)) if token}


def release(session: Session, work: Work) -> None:
    """Let others send to a destination.

    Args:
        session: the caller's transaction.
        work: as `take` gave it.
    """
    its = DestinationRow.id == work.destination_id, DestinationRow.lease_token == work.token
    session.execute(update(DestinationRow).where(*its).values(lease_token=None, lease_until=None))


def next_due(session: Session, work: Work) -> DueDelivery | None:
    """Find the next delivery to a destination. One whose study says nothing any more is withdrawn on the way.

    Args:
        session: the caller's transaction.
        work: as `take` gave it.

    Returns:
        The delivery, of mail with those that go together with it; None if nothing is due, or the destination is another
        process' by now.
    """
    if not is_held(session, work):
        return None
    first = _next_due(session, work, ())
    if first is None or work.destination.kind is not DestinationKind.MAIL:
        return first
    beside: list[DueDelivery] = []
    while len(beside) < MAX_TOGETHER - 1:
        one = _next_due(session, work, [first.delivery_id, *(each.delivery_id for each in beside)])
        if one is None:
            break
        beside.append(one)
    return replace(first, beside=tuple(beside))


def _next_due(session: Session, work: Work, without: Collection[UUID]) -> DueDelivery | None:
    waits = DeliveryRow.state == DeliveryState.WAITING, _may_go(db_now(session), work.zone)
    while True:
        row = lock_next(session, work, and_(*waits, DeliveryRow.id.not_in(without)))
        if row is None:
            return None
        if row.notice_id is not None:
            told = _due_notice(session, row)
            if told is not None:
                return told
            reason = DeliveryReason.STUDY_GONE
            if row.study_id is not None and _is_analysed(session, row.study_id):
                reason = DeliveryReason.NOT_TRUE_NOW
            row.state, row.reason = DeliveryState.WITHDRAWN, reason
            session.flush()
            continue
        status, uid = session.execute(
            select(StudyRow.status, StudyRow.study_instance_uid).where(StudyRow.id == row.study_id)
        ).one()
        if status in (StoredStatus.KEPT, StoredStatus.QUARANTINED):
            row.state, row.reason = DeliveryState.WITHDRAWN, DeliveryReason.STUDY_GONE
            session.flush()
            continue
        its = session.execute(
            select(ResultObjectRow)
            .join(DeliveryObjectRow, DeliveryObjectRow.object_id == ResultObjectRow.id)
            .where(
                DeliveryObjectRow.delivery_id == row.id,
                DeliveryObjectRow.accepted_at.is_(None),
                ~DeliveryObjectRow.refused,
            )
            .order_by(DeliveryObjectRow.place, ResultObjectRow.id)
        ).scalars()
        objects = tuple(
            DueObject(
                one.id, ResultKind(one.kind), one.sop_class_uid, one.sop_instance_uid, one.transfer_syntax_uid,
                one.sha256, one.size_bytes,
            )
            for one in its
        )  # fmt: skip
        assert row.study_id is not None  # as the table checks: only what tells something is about no study
        made_at = session.scalar(select(ResultSetRow.due_at).where(ResultSetRow.id == row.set_id))
        old = made_at is not None and db_now(session) - made_at > ASKED_AFTER
        return DueDelivery(row.id, row.study_id, uid, objects, ask_patient=old and not row.unchecked)


def _due_notice(session: Session, row: DeliveryRow) -> DueDelivery | None:
    """What is told by a delivery; None: it is not true any more."""
    notice = content_of(session.scalars(select(NoticeRow.told).where(NoticeRow.id == row.notice_id)).one() or {})
    if row.study_id is None:
        return DueDelivery(row.id, None, "", (), ask_patient=False, told=notice)
    if not is_still_true(session, row.study_id, notice.event):
        return None
    uid = session.scalars(select(StudyRow.study_instance_uid).where(StudyRow.id == row.study_id)).one()
    header = studies.decided_header(session, row.study_id) or studies.first_header(session, row.study_id)
    return DueDelivery(row.id, row.study_id, uid, (), ask_patient=False, told=notice, header_sha256=header)


def _is_analysed(session: Session, study_id: UUID) -> bool:
    its = StudyRow.id == study_id, StudyRow.status == StoredStatus.ANALYSED
    return bool(session.scalar(select(exists().where(*its))))


def record_accepted(session: Session, work: Work, delivery: DueDelivery, object_id: UUID, status: str) -> None:
    """Note that the destination has an object, in a transaction of its own right after its answer.

    What is noted here is never sent to this destination again, whichever delivery holds it.

    Args:
        session: the caller's transaction.
        work: as `take` gave it.
        delivery: as `next_due` gave it.
        object_id: of the object.
        status: the destination's, as "0000".
    """
    of_it = DeliveryRow.destination_id == work.destination_id
    others = select(DeliveryRow.id).where(of_it, DeliveryRow.study_id == delivery.study_id).scalar_subquery()
    session.execute(
        update(DeliveryObjectRow)
        .where(
            DeliveryObjectRow.object_id == object_id,
            DeliveryObjectRow.delivery_id.in_(others),
            DeliveryObjectRow.accepted_at.is_(None),
        )
        .values(accepted_at=func.clock_timestamp(), status=status)
        .execution_options(synchronize_session=False)
    )


def finish(session: Session, work: Work, delivery: DueDelivery, refused: Sequence[DueObject] = ()) -> DeliveryState:
    """End a delivery of which every object was accepted, or is of a class that the destination does not take.

    For a refused document in three dimensions the one that is not is asked for.

    Args:
        session: the caller's transaction.
        work: as `take` gave it.
        delivery: as `next_due` gave it.
        refused: objects of classes that the destination does not take.

    Returns:
        Its state: FAILED if the destination took nothing at all of it.
    """
    row = session.scalar(select(DeliveryRow).where(DeliveryRow.id == delivery.delivery_id).with_for_update())
    # a message that a newer one replaced while the receiver took it has arrived all the same
    ends = (DeliveryState.WAITING, *((DeliveryState.SUPERSEDED,) if delivery.told is not None else ()))
    if row is None or row.state not in ends:  # deleted, or decided otherwise
        return DeliveryState.WITHDRAWN
    if refused:
        ids = [one.object_id for one in refused]
        its = DeliveryObjectRow.delivery_id == row.id, DeliveryObjectRow.object_id.in_(ids)
        session.execute(update(DeliveryObjectRow).where(*its).values(refused=True))
        if instead := sorted({IN_PLACE_OF[one.kind] for one in refused if one.kind in IN_PLACE_OF}):
            session.add(
                ResultSetRow(
                    site_id=row.site_id, study_id=row.study_id, occasion=Occasion.CLASS_REFUSED,
                    destination_id=work.destination_id, kinds=list(instead),
                )
            )  # fmt: skip
    taken = session.scalar(
        select(func.count(DeliveryObjectRow.accepted_at)).where(DeliveryObjectRow.delivery_id == row.id)
    )
    row.attempts += 1
    row.state = DeliveryState.SENT if taken or not refused else DeliveryState.FAILED
    row.reason = "" if row.state == DeliveryState.SENT else DeliveryReason.NOTHING_TAKEN
    row.status = row.words = ""
    row.sent_at = func.clock_timestamp() if row.state == DeliveryState.SENT else None
    if row.state == DeliveryState.SENT and taken and work.destination.confirm:
        now = db_now(session)
        row.confirmation, row.next_at, row.tried_until = Confirmation.DUE, now, now + TRIED_FOR
    session.flush()
    return DeliveryState(row.state)


def record_failure(session: Session, work: Work, delivery: DueDelivery, answer: Answer) -> DeliveryState:
    """Note that a delivery did not succeed: what can heal is tried again, until it was tried for TRIED_FOR.

    Args:
        session: the caller's transaction.
        work: as `take` gave it.
        delivery: as `next_due` gave it.
        answer: why.

    Returns:
        Its state.
    """
    row = session.scalar(select(DeliveryRow).where(DeliveryRow.id == delivery.delivery_id).with_for_update())
    if row is None or row.state != DeliveryState.WAITING or answer.reason is None:
        return DeliveryState.WITHDRAWN
    now = db_now(session)
    row.attempts += 1
    row.reason, row.status, row.words = answer.reason, answer.status, answer.words
    if answer.reason is DeliveryReason.PATIENT_DIFFERS:
        row.state = DeliveryState.HELD
    elif answer.reason is DeliveryReason.NO_ACCESSION_NUMBER:  # nobody can mend that here
        row.state = DeliveryState.WITHDRAWN
    elif answer.reason not in HEALS:
        row.state = DeliveryState.FAILED
    elif now >= row.tried_until:
        row.state, row.reason = DeliveryState.FAILED, DeliveryReason.GAVE_UP
    else:
        again = (now + next_wait(row.attempts)).astimezone(ZoneInfo(work.zone))
        row.next_at = send_time(Rule(hour_from=row.hour_from, hour_to=row.hour_to), again)
    session.flush()
    return DeliveryState(row.state)


def record_away(session: Session, work: Work, answer: Answer, delivery: DueDelivery | None = None) -> int:
    """Note that a destination takes nothing just now. Its deliveries wait; those that waited for TRIED_FOR end.

    Args:
        session: the caller's transaction.
        work: as `take` gave it.
        answer: why.
        delivery: which was on its way; None: something was asked. A message that may be the cause waits for itself, so
            that others are tried before it.

    Returns:
        How many deliveries have failed for good.
    """
    row = session.scalar(select(DestinationRow).where(DestinationRow.id == work.destination_id).with_for_update())
    if row is None or answer.reason is None or row.lease_token != work.token:
        return 0
    if delivery is not None and delivery.told is not None and answer.reason in SUSPICIOUS:
        record_failure(session, work, delivery, answer)
    now = db_now(session)
    row.failures += 1
    row.reason, row.not_before = answer.reason, now + next_wait(row.failures)
    waiting = DeliveryRow.destination_id == row.id, DeliveryRow.state == DeliveryState.WAITING
    due = (*waiting, DeliveryRow.next_at <= now)
    values: dict[str, Any] = {
        "reason": answer.reason, "status": answer.status, "words": answer.words, "attempts": DeliveryRow.attempts + 1
    }  # fmt: skip
    session.execute(update(DeliveryRow).where(*due).values(values).execution_options(synchronize_session=False))
    given_up = session.scalars(
        update(DeliveryRow)
        .where(*waiting, DeliveryRow.tried_until <= now)
        .values(state=DeliveryState.FAILED, reason=DeliveryReason.GAVE_UP)
        .returning(DeliveryRow.id)
        .execution_options(synchronize_session=False)
    ).all()
    return len(given_up)


def record_answer(session: Session, work: Work, capabilities: Capabilities | None = None) -> None:
    """Note that a destination answered.

    Args:
        session: the caller's transaction.
        work: as `take` gave it.
        capabilities: what it takes of what was proposed; None: nothing was.
    """
    row = session.scalar(select(DestinationRow).where(DestinationRow.id == work.destination_id).with_for_update())
    if row is None:
        return
    row.failures, row.reason, row.not_before = 0, "", None
    if capabilities:
        row.capabilities = {**row.capabilities, **{uid: list(taken) for uid, taken in capabilities.items()}}


def record_test(session: Session, work: Work, answer: Answer) -> None:
    """Note what came of a test. One that passed ends the wait of a destination that was away.

    Args:
        session: the caller's transaction.
        work: as `take` gave it.
        answer: reason None: it passed.
    """
    passed: dict[str, Any] = {"failures": 0, "reason": "", "not_before": None} if answer.reason is None else {}
    session.execute(
        update(DestinationRow)
        .where(DestinationRow.id == work.destination_id)
        .values(
            test_asked_at=None, tested_at=func.clock_timestamp(), test_reason=answer.reason or "",
            test_status=answer.status, test_words=answer.words, **passed,
        )
    )  # fmt: skip


def is_held(session: Session, work: Work, *more: ColumnElement[bool]) -> bool:
    """Whether a destination is this process' still, and enabled.

    Args:
        session: the caller's transaction.
        work: as `take` gave it.
        *more: what else must be so of the destination.

    Returns:
        Whether it is.
    """
    its = (
        DestinationRow.id == work.destination_id, DestinationRow.lease_token == work.token,
        DestinationRow.disabled_at.is_(None), *more,
    )  # fmt: skip
    return bool(session.scalar(select(exists().where(*its))))


def lock_next(session: Session, work: Work, which: ColumnElement[bool]) -> DeliveryRow | None:
    """Lock the delivery to a destination whose time has come for longest; those that others hold are passed by.

    Args:
        session: the caller's transaction.
        work: as `take` gave it.
        which: of its deliveries.

    Returns:
        Its row; None: there is none.
    """
    return session.scalar(
        select(DeliveryRow)
        .where(DeliveryRow.destination_id == work.destination_id, which, DeliveryRow.next_at <= db_now(session))
        .order_by(DeliveryRow.next_at, DeliveryRow.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )


# -- people


@dataclass(frozen=True)
class Undelivered:
    """A delivery with the names of its destination and its site. event: what it tells; None: it has objects."""

    row: DeliveryRow
    destination: str
    site: str
    event: str | None


@dataclass(frozen=True)
class StudyDelivery:
    """A delivery of a study, for its page. objects, accepted: how many it has, and how many have arrived.

    confirmed, not_kept: how many of these the destination says it keeps, and does not.
    away: why the destination takes nothing just now, a DeliveryReason; empty: it does. not_before: until when.
    event: what it tells, an Event; None: it has objects instead.
    """

    row: DeliveryRow
    destination: str
    away: str
    not_before: datetime | None
    site: str
    event: str | None
    objects: int
    accepted: int
    refused: int
    confirmed: int
    not_kept: int


def of_study(session: Session, study_id: UUID) -> list[StudyDelivery]:
    """Read the deliveries of a study, the latest first.

    Args:
        session: the caller's transaction.
        study_id: of the study, which the caller may see.

    Returns:
        All of them.
    """
    counts = (
        select(
            DeliveryObjectRow.delivery_id, func.count().label("objects"),
            func.count(DeliveryObjectRow.accepted_at).label("accepted"),
            func.count().filter(DeliveryObjectRow.refused).label("refused"),
            func.count(DeliveryObjectRow.confirmed_at).label("confirmed"),
            func.count().filter(DeliveryObjectRow.failure != "").label("not_kept"),
        )
        .join(DeliveryRow, DeliveryRow.id == DeliveryObjectRow.delivery_id)
        .where(DeliveryRow.study_id == study_id)
        .group_by(DeliveryObjectRow.delivery_id).subquery()
    )  # fmt: skip
    rows = session.execute(
        select(
            DeliveryRow, DestinationRow.name, DestinationRow.reason, DestinationRow.not_before, SiteRow.name,
            NoticeRow.event,
            *(func.coalesce(counts.c[name], 0) for name in ("objects", "accepted", "refused", "confirmed", "not_kept")),
        )
        .join(DestinationRow, DestinationRow.id == DeliveryRow.destination_id)
        .join(SiteRow, SiteRow.id == DeliveryRow.site_id)
        .outerjoin(NoticeRow, NoticeRow.id == DeliveryRow.notice_id)
        .outerjoin(counts, counts.c.delivery_id == DeliveryRow.id)
        .where(DeliveryRow.study_id == study_id)
        .order_by(DeliveryRow.created_at.desc(), DeliveryRow.id)
    )  # fmt: skip
    return [StudyDelivery(*row) for row in rows]


def list_undelivered(session: Session, site_id: UUID | None, limit: int) -> list[Undelivered]:
    """Read deliveries that a person has to decide about, the latest first.

    Args:
        session: the caller's transaction.
        site_id: of these; None: of all sites.
        limit: so many at most.

    Returns:
        The deliveries.
    """
    query = (
        _with_names()
        .where(or_(DeliveryRow.state.in_(DECIDABLE), DeliveryRow.confirmation == Confirmation.FAILED))
        .order_by(DeliveryRow.created_at.desc(), DeliveryRow.id)
        .limit(limit)
    )
    query = query.where(is_counted(DeliveryRow.site_id) if site_id is None else DeliveryRow.site_id == site_id)
    return [Undelivered(row, name, site, event) for row, name, site, event in session.execute(query)]


def get_undelivered(session: Session, delivery_id: UUID) -> Undelivered:
    """Read a delivery that is there.

    Args:
        session: the caller's transaction.
        delivery_id: of the delivery.

    Returns:
        It, with what it is named by.
    """
    query = _with_names().where(DeliveryRow.id == delivery_id).execution_options(populate_existing=True)
    row, name, site, event = session.execute(query).one()
    return Undelivered(row, name, site, event)


def _with_names() -> Select[DeliveryRow, str, str, str]:
    return (
        select(DeliveryRow, DestinationRow.name, SiteRow.name, NoticeRow.event)
        .join(DestinationRow, DestinationRow.id == DeliveryRow.destination_id)
        .join(SiteRow, SiteRow.id == DeliveryRow.site_id)
        .outerjoin(NoticeRow, NoticeRow.id == DeliveryRow.notice_id)
    )


def send_again(session: Session, key: Key, site_id: UUID | None, delivery_id: UUID) -> DeliveryRow:
    """Have a failed or held delivery sent all the same, as a person decides. What was accepted is not sent twice.

    Of one that was sent and is not confirmed, what the destination says it does not keep is sent again. If there is no
    such object, it is asked again, unless the destination is asked no more.

    Args:
        session: the caller's transaction.
        key: of whoever decides.
        site_id: the site that it must belong to; None: any.
        delivery_id: of the delivery.

    Returns:
        Its row.

    Raises:
        NotFound: there is no such delivery.
        InvalidState: it waits already, was sent, or is superseded.
    """
    row = session.scalar(select(DeliveryRow).where(DeliveryRow.id == delivery_id).with_for_update())
    if row is None or site_id not in (None, row.site_id):
        raise NotFound(f"there is no delivery {delivery_id} here")
    unconfirmed = row.confirmation in (Confirmation.ASKED, Confirmation.FAILED)
    if row.state not in DECIDABLE and not unconfirmed:
        raise InvalidState(
            f"This delivery is {row.state}: only one that has failed, is held or is not confirmed is sent again"
        )
    before, now = {"state": row.state, "reason": row.reason}, db_now(session)
    asks = session.scalars(select(DestinationRow.confirm).where(DestinationRow.id == row.destination_id)).one()
    if unconfirmed and not _take_back_lost(session, row.id):
        row.confirmation = Confirmation.DUE if asks else ""
    else:
        row.unchecked = row.unchecked or row.state == DeliveryState.HELD
        anew = DeliveryObjectRow.delivery_id == row.id, DeliveryObjectRow.refused
        session.execute(update(DeliveryObjectRow).where(*anew).values(refused=False))
        row.state, row.confirmation = DeliveryState.WAITING, ""
    row.reason = row.status = row.words = ""
    row.attempts, row.next_at, row.tried_until = 0, now, now + TRIED_FOR
    about = Target(Subject.DESTINATION, row.destination_id)
    if row.study_id is not None:
        about = Target(Subject.STUDY, row.study_id)
    record(
        session, EventKind.DELIVERY_RETRIED, key, about=about, study_id=row.study_id,
        site_id=row.site_id, before=before, after={"state": row.state},
    )  # fmt: skip
    session.flush()
    return row


def _take_back_lost(session: Session, delivery_id: UUID) -> int:
    """Have objects that the destination says it does not keep wait again; returns how many."""
    lost = (
        update(DeliveryObjectRow)
        .where(DeliveryObjectRow.delivery_id == delivery_id, DeliveryObjectRow.failure != "")
        .values(accepted_at=None, status="", failure="")
    )
    return len(session.scalars(lost.returning(DeliveryObjectRow.object_id)).all())


def send_all_again(session: Session, key: Key, destination_id: UUID, limit: int = 1000) -> int:
    """Have failed deliveries to a destination sent again; those that are held are decided one by one.

    Of those that it does not confirm, see `send_again`; those that it has not reported on yet are left alone. What
    waits for a destination that was away, or was not set up as it must be, is tried at once.

    Args:
        session: the caller's transaction.
        key: of whoever decides.
        destination_id: of a destination that the key may change.
        limit: so many at most, the oldest first.

    Returns:
        How many.
    """
    ids = session.scalars(
        select(DeliveryRow.id)
        .where(
            DeliveryRow.destination_id == destination_id,
            or_(DeliveryRow.state == DeliveryState.FAILED, DeliveryRow.confirmation == Confirmation.FAILED),
        )
        .order_by(DeliveryRow.created_at, DeliveryRow.id)
        .limit(limit)
        .with_for_update(skip_locked=True)  # what just changes is decided by whoever changes it
    ).all()
    for delivery_id in ids:
        send_again(session, key, None, delivery_id)
    session.execute(
        update(DestinationRow)
        .where(DestinationRow.id == destination_id)
        .values(failures=0, reason="", not_before=None)
        .execution_options(synchronize_session="fetch")
    )
    return len(ids)


def stop_asking(session: Session, destination_id: UUID) -> None:
    """Leave unasked whether a destination keeps what was sent to it, where it was not asked yet.

    Args:
        session: the caller's transaction.
        destination_id: of the destination.
    """
    its = DeliveryRow.destination_id == destination_id, DeliveryRow.confirmation == Confirmation.DUE
    none = {"confirmation": "", "reason": "", "status": "", "words": ""}
    session.execute(update(DeliveryRow).where(*its).values(none).execution_options(synchronize_session=False))


@dataclass(frozen=True)
class OutboxFigures:
    """What stands at one destination."""

    destination_id: UUID
    waiting: int
    oldest_at: datetime | None  # since when the oldest of these could be sent
    failed: int
    held: int
    sent: int  # within a day
    last_sent_at: datetime | None
    unconfirmed: int  # were sent, and the destination has not said yet whether it keeps them
    not_confirmed: int  # and it does not, or cannot be asked


def figures(session: Session, destination_ids: Collection[UUID]) -> dict[UUID, OutboxFigures]:
    """Count what waits, has failed and was sent, by destination.

    Each figure comes from an index of its own: a scrape of the metrics must not read every delivery there ever was.

    Args:
        session: the caller's transaction.
        destination_ids: of these.

    Returns:
        By destination.
    """
    now = db_now(session)
    its = DeliveryRow.destination_id == DestinationRow.id

    def find(what: ColumnElement[Any], *where: ColumnElement[bool]) -> ScalarSelect[Any]:
        return select(what).where(its, *where).correlate(DestinationRow).scalar_subquery()

    def number(*where: ColumnElement[bool]) -> ScalarSelect[Any]:
        return find(func.count(), *where)

    waits = DeliveryRow.state == DeliveryState.WAITING
    query = select(
        DestinationRow.id,
        number(waits),
        find(func.min(DeliveryRow.created_at), waits, DeliveryRow.next_at <= now),
        number(DeliveryRow.site_id == DestinationRow.site_id, DeliveryRow.state == DeliveryState.FAILED),
        number(DeliveryRow.site_id == DestinationRow.site_id, DeliveryRow.state == DeliveryState.HELD),
        number(DeliveryRow.sent_at > now - timedelta(days=1)),
        find(func.max(DeliveryRow.sent_at)),
        number(DeliveryRow.confirmation.in_(OPEN)),
        number(DeliveryRow.confirmation == Confirmation.FAILED),
    ).where(DestinationRow.id.in_(destination_ids))
    return {its[0]: OutboxFigures(*its) for its in session.execute(query)}
