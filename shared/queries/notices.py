"""Messages: what a notice tells, to which destinations, by their rules."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

from sqlalchemy import Select, func, select, update
from sqlalchemy.exc import InterfaceError, OperationalError
from sqlalchemy.orm import Session, selectinload

from shared.db.clock import db_now
from shared.db.tables import BundleRow, DeliveryRow, DestinationRow, NoticeRow, StudyRow
from shared.domain.destinations import (
    BY_HL7,
    BY_MESSAGES,
    DECIDABLE,
    TRIED_FOR,
    DeliveryReason,
    DeliveryState,
    NewerModels,
    Rule,
    StudyFacts,
    When,
    applies,
    send_time,
)
from shared.domain.notices import ALARMS, BEGUN_BY, HL7_EVENTS, Event, NoticeContent, NoticeState, content_of
from shared.errors import OsteonError
from shared.logs import get_logger
from shared.queries import results, studies
from shared.queries.deliveries import is_still_true

log = get_logger(__name__)


def write_next_deliveries(session: Session, zone: str) -> NoticeState | None:
    """Take the notice that waits longest, and write its deliveries.

    What it tells is the study's state now, which stays the same at each try to send it. A study that another
    transaction is changing is left for the next look, and a notice that breaks holds up no other one.

    Args:
        session: the caller's transaction, for this notice alone.
        zone: IANA name of the clock that rules' hours are on.

    Returns:
        Its state; None: none waits.
    """
    row = _lock_next_of_site(session) or _lock_next(session)
    if row is None:
        return None
    try:
        with session.begin_nested():
            row.state = _tell_of_study(session, row, zone) if row.study_id else _tell_of_site(session, row, zone)
    except (OsteonError, OperationalError, InterfaceError):  # of Postgres, not of this notice
        raise
    except Exception:
        log.exception("notice failed", notice=str(row.id))
        row.state, row.told = NoticeState.FAILED, None
        session.flush()
    return NoticeState(row.state)


def _lock_next_of_site(session: Session) -> NoticeRow | None:
    """The notice that is about a site and waits longest.

    Who comes second waits, so that no end overtakes its beginning.
    """
    return session.scalar(
        select(NoticeRow)
        .where(NoticeRow.study_id.is_(None), NoticeRow.state == NoticeState.WAITING)
        .order_by(NoticeRow.happened_at, NoticeRow.id)
        .limit(1)
        .with_for_update()
    )


def _lock_next(session: Session) -> NoticeRow | None:
    """The notice that waits longest, locked after its study as whoever deletes studies locks them."""
    while True:
        study_id = session.scalar(
            select(StudyRow.id)
            .join(NoticeRow, NoticeRow.study_id == StudyRow.id)
            .where(NoticeRow.state == NoticeState.WAITING)
            .order_by(NoticeRow.happened_at, NoticeRow.id)
            .limit(1)
            .with_for_update(of=StudyRow, key_share=True, skip_locked=True)
        )
        if study_id is None:
            return None
        row = session.scalar(
            select(NoticeRow)
            .where(NoticeRow.study_id == study_id, NoticeRow.state == NoticeState.WAITING)
            .order_by(NoticeRow.happened_at, NoticeRow.id)
            .limit(1)
            .with_for_update()
        )
        if row is not None:  # else another process was faster
            return row


def _tell_of_study(session: Session, row: NoticeRow, zone: str) -> NoticeState:
    study = session.get_one(StudyRow, row.study_id, populate_existing=True)
    if not is_still_true(session, study.id, Event(row.event)):
        return NoticeState.WITHDRAWN
    views = studies.instances(session, study.id)
    content = _current_content(session, row, study, views)
    recipients = _find_recipients(session, row, study, content, views, zone)
    if not recipients:
        return NoticeState.NOT_WANTED
    row.told = content.as_json()
    for destination, at, rule in recipients:
        if destination.kind in BY_HL7:  # a message says all there is: an older one must not come after it
            _supersede(session, study.id, destination.id)
        _deliver(session, row, destination.id, at, rule)
    session.flush()
    return NoticeState.TOLD


def _deliver(session: Session, row: NoticeRow, destination_id: UUID, at: datetime, rule: Rule | None) -> None:
    """Write a delivery. rule: whose hours it keeps to at each try; None: it goes at any hour, as a person wants it."""
    session.add(
        DeliveryRow(
            id=uuid4(), site_id=row.site_id, study_id=row.study_id, notice_id=row.id, destination_id=destination_id,
            next_at=at, tried_until=at + TRIED_FOR, hour_from=rule.hour_from if rule else 0,
            hour_to=rule.hour_to if rule else 0,
        )
    )  # fmt: skip


def _tell_of_site(session: Session, row: NoticeRow, zone: str) -> NoticeState:
    """Write the deliveries of what is about a site: a beginning by the rules, its end where the beginning went."""
    event = Event(row.event)
    local = db_now(session).astimezone(ZoneInfo(zone))
    if event in BEGUN_BY:
        recipients = _find_told_of_beginning(session, row)
    else:
        recipients = []
        query = _may_be_told(row).where(DestinationRow.id.is_distinct_from(row.about_id))  # it cannot tell of itself
        for destination in session.scalars(query):
            rules = [rule for rule in map(results.rule_of, destination.rules) if event in rule.events]
            if rules:
                recipients.append((destination.id, min(rules, key=lambda rule: send_time(rule, local))))
    if not recipients:
        return NoticeState.NOT_WANTED
    for destination_id, rule in recipients:
        _deliver(session, row, destination_id, send_time(rule, local), rule)
    session.flush()
    return NoticeState.TOLD


def _find_told_of_beginning(session: Session, row: NoticeRow) -> list[tuple[UUID, Rule]]:
    """Where the beginning of what ends now has gone, or may be on its way.

    Where it waits, as in quiet hours, nobody needs to be told any more of either.
    """
    begun = session.scalar(
        select(NoticeRow)
        .where(
            NoticeRow.site_id == row.site_id, NoticeRow.about_id.is_not_distinct_from(row.about_id),
            NoticeRow.event == BEGUN_BY[Event(row.event)], NoticeRow.noted_at <= row.noted_at,
        )
        .order_by(NoticeRow.noted_at.desc(), NoticeRow.id)
        .limit(1)
    )  # fmt: skip
    if begun is None:
        return []
    now, found = db_now(session), []
    its = select(DeliveryRow).where(DeliveryRow.notice_id == begun.id).order_by(DeliveryRow.id).with_for_update()
    for one in session.scalars(its):
        if one.state == DeliveryState.WAITING and one.next_at > now:
            one.state, one.reason = DeliveryState.WITHDRAWN, DeliveryReason.NOT_TRUE_NOW
        elif one.state in (DeliveryState.WAITING, DeliveryState.SENT):
            found.append((one.destination_id, Rule(hour_from=one.hour_from, hour_to=one.hour_to)))
    return found


def _may_be_told(row: NoticeRow) -> Select[DestinationRow]:
    """The destinations of messages that were there when it happened: nothing of before goes to one."""
    return (
        select(DestinationRow)
        .where(
            DestinationRow.site_id == row.site_id,
            DestinationRow.disabled_at.is_(None),
            DestinationRow.kind.in_(BY_MESSAGES),
            DestinationRow.added_at <= row.happened_at,
        )
        .options(selectinload(DestinationRow.rules))
        .order_by(DestinationRow.id)
    )


def _find_recipients(
    session: Session,
    row: NoticeRow,
    study: StudyRow,
    content: NoticeContent,
    views: Sequence[studies.InstanceView],
    zone: str,
) -> list[tuple[DestinationRow, datetime, Rule | None]]:
    """The destinations that are told, from when on, and the rule whose hours that keeps to.

    What corrects something goes wherever that went, whatever assessments and regions a rule chooses. A destination is
    not told twice of the same analysis, as two rules or two readers would have it.
    """
    event = content.event
    local = db_now(session).astimezone(ZoneInfo(zone))
    facts = StudyFacts(study.sender, study.region, study.assessment or "", study.age_years)
    agreed = results.is_agreed(session, study.id, views)
    found: list[tuple[DestinationRow, datetime, Rule | None]] = []
    for destination in session.scalars(_may_be_told(row)):
        last = _find_last(session, study.id, destination.id, (*HL7_EVENTS, Event.READ))
        last_content = last[1] if last is not None else None
        corrects = event in HL7_EVENTS and last_content is not None and (
            (last_content.assessment, last_content.region) != (content.assessment, content.region)
        )  # fmt: skip
        rules = [
            rule
            for rule in map(results.rule_of, destination.rules)
            if event in rule.events
            and applies(replace(rule, assessments=(), regions=()) if corrects else rule, facts)
            and _fits_rule(rule, row, destination, agreed=agreed)
        ]
        if event is Event.REVISED:  # where nothing was told, nothing is to be corrected
            changed = last_content is not None and last_content.assessment != content.assessment
            rules = [
                rule for rule in rules if last_content is not None and (changed or rule.newer_models is NewerModels.ALL)
            ]
        if not rules:
            continue
        asked = event is Event.ANALYSED and not row.when
        rule = min(rules, key=lambda rule: send_time(rule, local))
        at = local if asked else send_time(rule, local)
        if event is not Event.ANALYSED or not _is_sent_already(session, study.id, destination.id, content, at):
            found.append((destination, at, None if asked else rule))
    return found


def _is_sent_already(
    session: Session, study_id: UUID, destination_id: UUID, content: NoticeContent, at: datetime
) -> bool:
    """Whether a destination was told this very result last, or will be; then at `at` at the latest."""
    last = _find_last(session, study_id, destination_id, HL7_EVENTS)
    if last is None or replace(last[1], event=content.event, happened_at=content.happened_at) != content:
        return False
    if last[0].state == DeliveryState.WAITING:
        last[0].next_at = func.least(DeliveryRow.next_at, at)
    return last[0].state in (DeliveryState.WAITING, DeliveryState.SENT)


def _fits_rule(rule: Rule, row: NoticeRow, destination: DestinationRow, *, agreed: bool) -> bool:
    """Whether what happened is what a rule waits for.

    `when` is about study.analysed; but a receiver of results that waits for a reader's word gets a newer one only once
    a reader is done with that as well.
    """
    event = Event(row.event)
    if event is Event.REVISED and destination.kind in BY_HL7:
        return rule.when != When.AGREED
    asked = not row.when  # by a person, who decides that it goes
    return event is not Event.ANALYSED or asked or (rule.when == row.when and (rule.when != When.AGREED or agreed))


def _find_last(
    session: Session, study_id: UUID, destination_id: UUID, events: Collection[Event]
) -> tuple[DeliveryRow, NoticeContent] | None:
    """Of some events, what a destination was told last of a study, or will be, with its delivery; None: nothing."""
    states = DeliveryState.SENT, DeliveryState.WAITING, *DECIDABLE
    found = session.execute(
        select(DeliveryRow, NoticeRow.told)
        .join(NoticeRow, NoticeRow.id == DeliveryRow.notice_id)
        .where(
            DeliveryRow.study_id == study_id, DeliveryRow.destination_id == destination_id,
            DeliveryRow.state.in_(states), NoticeRow.event.in_(events), NoticeRow.told.is_not(None),
        )
        .order_by(NoticeRow.happened_at.desc(), DeliveryRow.created_at.desc(), DeliveryRow.id)
        .limit(1)
    ).first()  # fmt: skip
    return (found[0], content_of(found[1])) if found is not None else None


def _supersede(session: Session, study_id: UUID, destination_id: UUID) -> None:
    session.execute(
        update(DeliveryRow)
        .where(
            DeliveryRow.study_id == study_id, DeliveryRow.destination_id == destination_id,
            DeliveryRow.state.in_((DeliveryState.WAITING, *DECIDABLE)),
        ).values(state=DeliveryState.SUPERSEDED)
    )  # fmt: skip


def _current_content(
    session: Session, row: NoticeRow, study: StudyRow, views: Sequence[studies.InstanceView]
) -> NoticeContent:
    """What a study says now."""
    analysed = Event(row.event) is not Event.QUARANTINED
    times = [study.analysed_at, study.revised_at] if analysed else [study.quarantined_at]
    images = [
        assessment for view in views for assessment in ([finding.assessment for finding in view.findings] or [""])
    ]
    model = session.scalar(select(BundleRow.sha256).where(BundleRow.name == study.bundle)) if study.bundle else None
    content = NoticeContent(
        Event(row.event), row.happened_at, max((one for one in times if one), default=row.happened_at), study.status,
        images=tuple(images), failed_images=study.failed_images,
    )  # fmt: skip
    if not analysed:
        return NoticeContent(**vars(content) | {"reason": study.reason})
    return NoticeContent(
        **vars(content) | {
            "assessment": study.assessment or "", "region": study.region, "model": study.bundle,
            "model_sha256": model or "", "abstention": study.abstention or "",
            "abstention_detail": study.abstention_detail, "score": study.score,
            "probability": study.fracture_probability,
        }
    )  # fmt: skip


@dataclass(frozen=True)
class Alarm:
    """What people of a site are told of, for their browsers. about: the name of the destination that it is about."""

    row: NoticeRow
    about: str
    content: NoticeContent | None


def list_alarms(
    session: Session, site_id: UUID, events: Collection[Event], since: datetime | None, limit: int
) -> list[Alarm]:
    """Read what people of a site were told of, or would have been.

    Args:
        session: the caller's transaction.
        site_id: the site.
        events: of these.
        since: what was written after this time; None: the latest.
        limit: so many at most.

    Returns:
        The latest first.
    """
    query = (
        select(NoticeRow, DestinationRow.name)
        .outerjoin(DestinationRow, DestinationRow.id == NoticeRow.about_id)
        .where(
            NoticeRow.site_id == site_id, NoticeRow.event.in_(list(events)), NoticeRow.noted_at.is_not(None),
            NoticeRow.event.in_([*ALARMS, *BEGUN_BY]),
        )
        .order_by(NoticeRow.noted_at.desc(), NoticeRow.id)
        .limit(limit)
    )  # fmt: skip
    if since is not None:
        query = query.where(NoticeRow.noted_at > since)
    rows = session.execute(query).all()
    return [Alarm(row, name or "", content_of(row.told) if row.told else None) for row, name in rows]
