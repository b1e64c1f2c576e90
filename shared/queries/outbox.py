"""The outbox: that results of a study are due, or messages, written in the transaction that makes it so."""

from collections.abc import Collection
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import ColumnElement, Select, String, and_, any_, exists, func, literal, or_, select, update
from sqlalchemy.dialects.postgresql import distinct_on, insert
from sqlalchemy.orm import Session

from shared.db.clock import db_now
from shared.db.tables import (
    DeliveryObjectRow,
    DeliveryRow,
    DestinationRow,
    DestinationRuleRow,
    NoticeRow,
    ResultObjectRow,
    ResultSetRow,
    SiteRow,
    StudyRow,
)
from shared.domain.completeness import Completeness
from shared.domain.destinations import BY_HL7, DECIDABLE, TRIED_FOR, DeliveryState, Occasion, SetState, When
from shared.domain.notices import Event, NoticeState
from shared.domain.study import StoredStatus

BY_RULES = {Occasion.ANALYSED: When.ANALYSED, Occasion.COMPLETE: When.COMPLETE, Occasion.AGREED: When.AGREED}
# of a study's site: whether anything goes anywhere
SITE_DELIVERS = exists().where(
    DestinationRow.site_id == StudyRow.site_id, DestinationRow.disabled_at.is_(None)
).correlate(StudyRow)  # fmt: skip


def record_due(session: Session, study_ids: Collection[UUID], *occasions: Occasion) -> None:
    """Write down that results of studies are due, as far as a rule of their site waits for it.

    Args:
        session: the transaction that makes it true, which has locked the studies.
        study_ids: studies; those that are not analysed are left out, and so are for COMPLETE those that are being
            received.
        *occasions: of those that rules name.
    """
    if not study_ids:
        return
    is_due = and_(
        DestinationRuleRow.when.in_([BY_RULES[one] for one in occasions]),
        or_(DestinationRuleRow.when != When.COMPLETE, StudyRow.completeness != Completeness.RECEIVING),
    )
    of_objects = is_due & (func.cardinality(DestinationRuleRow.kinds) > 0)
    found = _due_studies(study_ids, of_objects, StudyRow.status == StoredStatus.ANALYSED).subquery()
    session.execute(
        insert(ResultSetRow).from_select(
            ["id", "site_id", "study_id", "occasion"], select(func.gen_random_uuid(), *found.c), include_defaults=False
        )
    )
    of_messages = is_due & _waits_for(Event.ANALYSED)
    studies = _due_studies(study_ids, of_messages, StudyRow.status == StoredStatus.ANALYSED).subquery()
    _note(session, select(func.gen_random_uuid(), studies.c[0], studies.c[1], _code(Event.ANALYSED), studies.c[2]))


def record_event(session: Session, study_ids: Collection[UUID], event: Event) -> None:
    """Write down that something happened to studies, as far as a rule of their site waits for it.

    Args:
        session: the transaction that makes it true.
        study_ids: the studies.
        event: not ANALYSED, which `record_due` writes.
    """
    if not study_ids:
        return
    waits = _due_studies(study_ids, _waits_for(event)).subquery()
    studies = select(waits.c[0], waits.c[1]).distinct().subquery()
    _note(session, select(func.gen_random_uuid(), *studies.c, _code(event), literal("", String)))


def record_alarms(session: Session, study_ids: Collection[UUID], event: Event) -> None:
    """Write down what people are told of studies, whether or not a rule waits for it: browsers show it, too.

    Args:
        session: the transaction that makes it true.
        study_ids: the studies.
        event: one of ALARMS that is about a study.
    """
    if not study_ids:
        return
    its = StudyRow.id.in_(list(study_ids)), StudyRow.site_id == SiteRow.id, ~SiteRow.checks
    found = select(func.gen_random_uuid(), StudyRow.site_id, StudyRow.id, _code(event), literal("", String)).where(*its)
    _note(session, found)


def record_request(session: Session, study_id: UUID) -> None:
    """Write down that somebody wants a study's result to be told now, whatever rules wait for.

    Args:
        session: the caller's transaction.
        study_id: of the study; one that is not analysed is left out.
    """
    waits = _due_studies([study_id], _waits_for(Event.ANALYSED), StudyRow.status == StoredStatus.ANALYSED).subquery()
    studies = select(waits.c[0], waits.c[1]).distinct().subquery()
    _note(session, select(func.gen_random_uuid(), *studies.c, _code(Event.ANALYSED), literal("", String)))


def _due_studies(study_ids: Collection[UUID], *conditions: ColumnElement[bool]) -> Select[UUID, UUID, str]:
    """Site, study and moment, once each, of the rules of enabled destinations."""
    return (
        select(StudyRow.site_id, StudyRow.id, DestinationRuleRow.when)
        .join(DestinationRow, DestinationRow.site_id == StudyRow.site_id)
        .join(DestinationRuleRow, DestinationRuleRow.destination_id == DestinationRow.id)
        .where(StudyRow.id.in_(list(study_ids)), DestinationRow.disabled_at.is_(None), *conditions)
        .distinct()
    )


def _note(session: Session, found: Select[Any]) -> None:
    """Insert notices: id, site, study, event, when."""
    columns = ["id", "site_id", "study_id", "event", "when"]
    session.execute(insert(NoticeRow).from_select(columns, found, include_defaults=False))


def _waits_for(event: Event) -> ColumnElement[bool]:
    """Whether a rule names an event."""
    return _code(event) == any_(DestinationRuleRow.events)


def _code(event: Event) -> ColumnElement[str]:
    return literal(event.value, String)


def record_newer_model(session: Session, study_ids: Collection[UUID]) -> None:
    """Write down that a newer model speaks for studies of which a set of results was made, or something was told.

    Where nothing was, nothing is to be corrected: a run over history fills no archive.

    Args:
        session: the transaction that writes the newer findings, which has locked the studies.
        study_ids: the studies.
    """
    if not study_ids:
        return
    made = exists().where(ResultSetRow.study_id == StudyRow.id, ResultSetRow.state == SetState.MADE)
    found = select(
        func.gen_random_uuid(), StudyRow.site_id, StudyRow.id, literal(Occasion.NEWER_MODEL.value, String)
    ).where(StudyRow.id.in_(list(study_ids)), SITE_DELIVERS, made)
    session.execute(
        insert(ResultSetRow).from_select(["id", "site_id", "study_id", "occasion"], found, include_defaults=False)
    )
    has_notice = exists().where(NoticeRow.study_id == StudyRow.id, NoticeRow.state == NoticeState.TOLD)
    waits = _due_studies(study_ids, _waits_for(Event.REVISED), has_notice).subquery()
    anew = select(waits.c[0], waits.c[1]).distinct().subquery()
    _note(session, select(func.gen_random_uuid(), *anew.c, _code(Event.REVISED), literal("", String)))


def record_correction(session: Session, study_id: UUID) -> None:
    """Write down that what was sent of a study, or waits, names its patient by a header that is not in force any more.

    A destination gets anew what it has or was to get, of no other kinds; what waits is not sent. Receivers of HL7 that
    were told something are told it again: a message reads the header when it is made, as one that waits does.

    Args:
        session: the transaction that makes it true, which has locked the study.
        study_id: the study.
    """
    its = DeliveryRow.study_id == study_id
    open_ = DeliveryRow.state.in_((DeliveryState.WAITING, *DECIDABLE))
    reached = session.execute(
        select(DestinationRow.site_id, DestinationRow.id, func.array_agg(ResultObjectRow.kind.distinct()))
        .join(DeliveryRow, DeliveryRow.destination_id == DestinationRow.id)
        .join(DeliveryObjectRow, DeliveryObjectRow.delivery_id == DeliveryRow.id)
        .join(ResultObjectRow, ResultObjectRow.id == DeliveryObjectRow.object_id)
        .where(
            its, DestinationRow.disabled_at.is_(None), or_(open_, DeliveryObjectRow.accepted_at.is_not(None)),
            ~DeliveryObjectRow.refused,
        )
        .group_by(DestinationRow.site_id, DestinationRow.id)
    ).all()  # fmt: skip
    for site_id, destination_id, kinds in reached:
        session.add(
            ResultSetRow(
                site_id=site_id, study_id=study_id, occasion=Occasion.ASKED, destination_id=destination_id,
                kinds=sorted(kinds),
            )
        )  # fmt: skip
    old = update(DeliveryRow).where(its, open_, DeliveryRow.set_id.is_not(None))
    session.execute(old.values(state=DeliveryState.SUPERSEDED).execution_options(synchronize_session=False))
    _repeat_notices(session, study_id)


def _repeat_notices(session: Session, study_id: UUID) -> None:
    """Tell receivers of HL7 once more what each was told last, unless that still waits."""
    last = (
        select(DeliveryRow.state, DeliveryRow.destination_id, NoticeRow)
        .join(NoticeRow, NoticeRow.id == DeliveryRow.notice_id)
        .join(DestinationRow, DestinationRow.id == DeliveryRow.destination_id)
        .where(
            DeliveryRow.study_id == study_id,
            DeliveryRow.state.in_((DeliveryState.SENT, DeliveryState.WAITING, *DECIDABLE)),
            DestinationRow.kind.in_(BY_HL7), DestinationRow.disabled_at.is_(None),
        )
        .ext(distinct_on(DeliveryRow.destination_id))
        .order_by(DeliveryRow.destination_id, DeliveryRow.created_at.desc())
    )  # fmt: skip
    now = db_now(session)
    for state, destination_id, notice in session.execute(last).all():
        if state != DeliveryState.SENT:
            continue
        anew = NoticeRow(
            id=uuid4(), site_id=notice.site_id, study_id=study_id, event=notice.event, when=notice.when,
            state=NoticeState.TOLD, told=notice.told,
        )  # fmt: skip
        session.add(anew)
        session.flush()
        session.add(
            DeliveryRow(
                id=uuid4(), site_id=notice.site_id, study_id=study_id, notice_id=anew.id,
                destination_id=destination_id, next_at=now, tried_until=now + TRIED_FOR,
            )
        )  # fmt: skip
