"""Studies that have a result, in the order in which their results changed; and the models that made them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

from sqlalchemy import ColumnElement, and_, false, func, not_, or_, select, tuple_
from sqlalchemy.orm import InstrumentedAttribute, Session

from shared.db.tables import BundleRow, FindingRow, InstanceRow, StudyRow
from shared.domain.study import StoredStatus

# when what is told of a study last changed: by its own analysis, by a newer model, or by a corrected header
CHANGED_AT = func.greatest(StudyRow.analysed_at, StudyRow.quarantined_at, StudyRow.revised_at)
REPORTED = or_(StudyRow.assessment.is_not(None), StudyRow.status == StoredStatus.QUARANTINED)


class Outcome(StrEnum):
    """What an analysis came to."""

    ASSESSED = "assessed"
    QUARANTINED = "quarantined"


@dataclass(frozen=True)
class Span:
    """Times or days from `first` on and before `end`; None: without that end. outside: those that are not in it."""

    first: datetime | date | None = None
    end: datetime | date | None = None
    outside: bool = False


@dataclass(frozen=True)
class ReportCursor:
    """Where a page of results begins: behind a study, or within it after so many of its resources."""

    changed_at: datetime
    study_id: UUID
    seen: int = 0


@dataclass(frozen=True)
class ReportQuestion:
    """Which results are wanted. None: any; a span is one of alternatives, and each group of alternatives must hold."""

    study_ids: Sequence[UUID] | None = None
    study_uids: Sequence[str] | None = None
    outcomes: Sequence[Outcome] | None = None
    changed: Sequence[Sequence[Span]] = ()
    studied: Sequence[Sequence[Span]] = ()
    newest_first: bool = True


@dataclass(frozen=True)
class ReportedStudy:
    """A study with a result."""

    row: StudyRow
    changed_at: datetime


def list_reported(
    session: Session, site_id: UUID, question: ReportQuestion, after: ReportCursor | None, limit: int
) -> list[ReportedStudy]:
    """Read a page of a site's studies that have a result.

    Args:
        session: the caller's transaction.
        site_id: the site.
        question: which of them.
        after: the last study of the page before; one of which not all was seen comes again. None: the first page.
        limit: how many.

    Returns:
        The studies in the order in which their results changed.
    """
    query = select(StudyRow, CHANGED_AT).where(StudyRow.site_id == site_id, REPORTED, CHANGED_AT.is_not(None))
    if question.study_ids is not None:
        query = query.where(StudyRow.id.in_(list(question.study_ids)))
    if question.study_uids is not None:
        query = query.where(StudyRow.study_instance_uid.in_(list(question.study_uids)))
    if question.outcomes is not None:
        query = query.where(or_(false(), *map(_has_outcome, question.outcomes)))
    for alternatives in question.changed:
        query = query.where(or_(*(_within(CHANGED_AT, span) for span in alternatives)))
    for alternatives in question.studied:
        query = query.where(or_(*(_within(StudyRow.study_date, span) for span in alternatives)))
    place = tuple_(CHANGED_AT, StudyRow.id)
    if after is not None:
        begin = tuple_(after.changed_at, after.study_id)
        if question.newest_first:
            query = query.where(place <= begin if after.seen else place < begin)
        else:
            query = query.where(place >= begin if after.seen else place > begin)
    order = (CHANGED_AT.desc(), StudyRow.id.desc()) if question.newest_first else (CHANGED_AT.asc(), StudyRow.id.asc())
    return [ReportedStudy(row, at) for row, at in session.execute(query.order_by(*order).limit(limit))]


def outcome_of(row: StudyRow) -> Outcome:
    """What the analysis of a study came to that has a result."""
    return Outcome.QUARANTINED if row.status == StoredStatus.QUARANTINED else Outcome.ASSESSED


def study_of(session: Session, site_id: UUID, id_: UUID) -> UUID | None:
    """Find the study that a finding or an image belongs to.

    Args:
        session: the caller's transaction.
        site_id: the site.
        id_: of a finding or of an image.

    Returns:
        The study's id; None if the site has neither.
    """
    of_site = InstanceRow.site_id == site_id
    of_image = select(InstanceRow.study_id).where(InstanceRow.id == id_, of_site)
    of_finding = select(InstanceRow.study_id).join(FindingRow).where(FindingRow.id == id_, of_site)
    return session.scalar(of_image.union_all(of_finding))


def models_shown(session: Session) -> Sequence[BundleRow]:
    """The bundles whose findings are shown: all that were ever active, the one activated last first."""
    shown = select(BundleRow).where(BundleRow.activated_at.is_not(None))
    return session.scalars(shown.order_by(BundleRow.activated_at.desc(), BundleRow.name)).all()


def _has_outcome(outcome: Outcome) -> ColumnElement[bool]:
    quarantined = StudyRow.status == StoredStatus.QUARANTINED
    return quarantined if outcome is Outcome.QUARANTINED else not_(quarantined)


def _within(column: ColumnElement[Any] | InstrumentedAttribute[Any], span: Span) -> ColumnElement[bool]:
    ends = [
        *([column >= span.first] if span.first is not None else []),
        *([column < span.end] if span.end is not None else []),
    ]
    return and_(column.is_not(None), not_(and_(*ends)) if span.outside else and_(*ends))
