"""Revised findings: shown to radiologists until one has seen them, and never again."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, select, tuple_, update
from sqlalchemy.orm import Session

from shared.db.notify import findings_revised
from shared.db.tables import FindingRow, InstanceRow, KeyRow, RevisedFindingRow, StudyRow
from shared.domain.feedback import Verdict
from shared.errors import NotFound
from shared.queries.access import Key
from shared.queries.feedback import FeedbackDraft, append_entry


@dataclass(frozen=True)
class RevisedFinding:
    """A revised finding, and what has become of its study."""

    finding: RevisedFindingRow
    read_at: datetime | None  # when its study was marked as read; None: it is unread
    earlier_at: datetime | None  # when the old bundle had assessed the study
    seen_by: str | None  # the name of the key


def unseen_findings(
    session: Session, site_id: UUID, after: tuple[float, UUID] | None, limit: int, *, read: bool | None = None
) -> list[RevisedFinding]:
    """Read a page of a site's revised findings that no reader has seen.

    Args:
        session: the caller's transaction.
        site_id: the site.
        after: (new_probability, id) of the last one of the page before; None: the first page.
        limit: how many.
        read: only those whose study was read (True) or not (False); None: all.

    Returns:
        The findings, the likeliest fracture first.
    """
    query = _revised().where(RevisedFindingRow.site_id == site_id, RevisedFindingRow.seen_at.is_(None))
    if read is not None:
        query = query.where(StudyRow.read_at.is_not(None) if read else StudyRow.read_at.is_(None))
    if after is not None:
        query = query.where(tuple_(RevisedFindingRow.new_probability, RevisedFindingRow.id) < after)
    query = query.order_by(RevisedFindingRow.new_probability.desc(), RevisedFindingRow.id.desc()).limit(limit)
    return [RevisedFinding(*row) for row in session.execute(query)]


def of_study(session: Session, site_id: UUID, study_id: UUID) -> list[RevisedFinding]:
    """Read the revised findings of a study.

    Args:
        session: the caller's transaction.
        site_id: the site.
        study_id: the study.

    Returns:
        The findings, seen or not, the newest first.
    """
    query = _revised().where(RevisedFindingRow.site_id == site_id, RevisedFindingRow.study_id == study_id)
    return [
        RevisedFinding(*row)
        for row in session.execute(query.order_by(RevisedFindingRow.created_at.desc(), RevisedFindingRow.id))
    ]


def _revised() -> Select[*tuple[Any, ...]]:
    """The columns of Revised."""
    earlier = (
        select(func.max(FindingRow.created_at))
        .join(InstanceRow, InstanceRow.id == FindingRow.instance_id)
        .where(InstanceRow.study_id == RevisedFindingRow.study_id, FindingRow.bundle == RevisedFindingRow.old_bundle)
        .scalar_subquery()
    )
    return (
        select(RevisedFindingRow, StudyRow.read_at, earlier, KeyRow.name)
        .join(StudyRow, StudyRow.id == RevisedFindingRow.study_id)
        .outerjoin(KeyRow, KeyRow.id == RevisedFindingRow.seen_by)
    )


def unseen_count(session: Session, site_id: UUID, limit: int) -> int:
    """Count a site's revised findings that no reader has seen.

    Args:
        session: the caller's transaction.
        site_id: the site.
        limit: where to stop counting.

    Returns:
        The number, at most `limit`.
    """
    found = (
        select(RevisedFindingRow.id)
        .where(RevisedFindingRow.site_id == site_id, RevisedFindingRow.seen_at.is_(None))
        .limit(limit)
    )
    return session.scalar(select(func.count()).select_from(found.subquery())) or 0


def mark_seen(session: Session, reader: Key, revised_id: UUID, now: datetime) -> bool:
    """Record who has seen a revised finding, and when, here and in the feedback log.

    Args:
        session: the caller's transaction.
        reader: who has seen it.
        revised_id: the finding.
        now: Postgres' time.

    Returns:
        False if a reader had seen it before.

    Raises:
        NotFound: there is no such finding.
    """
    is_this = (RevisedFindingRow.id == revised_id, RevisedFindingRow.site_id == reader.site_id)
    done = session.execute(
        update(RevisedFindingRow)
        .where(*is_this, RevisedFindingRow.seen_at.is_(None))
        .values(seen_at=now, seen_by=reader.id)
        .returning(RevisedFindingRow.study_id, RevisedFindingRow.new_bundle)
    ).one_or_none()
    if done is None:
        if session.scalar(select(RevisedFindingRow.id).where(*is_this)) is None:
            raise NotFound(f"there is no revised finding {revised_id} here; GET /api/v1/revised-findings lists them")
        return False
    append_entry(
        session, reader, f"seen {revised_id}", FeedbackDraft(done.study_id, Verdict.SEEN, bundle=done.new_bundle)
    )
    findings_revised(session, [reader.site_id])
    return True


def of_run(session: Session, site_id: UUID, run_id: UUID, limit: int) -> Sequence[RevisedFindingRow]:
    """Read a site's revised findings of one run.

    Args:
        session: the caller's transaction.
        site_id: the site.
        run_id: the run.
        limit: how many.

    Returns:
        The rows, seen or not, the likeliest fracture first.
    """
    query = select(RevisedFindingRow).where(RevisedFindingRow.run_id == run_id, RevisedFindingRow.site_id == site_id)
    return session.scalars(
        query.order_by(RevisedFindingRow.new_probability.desc(), RevisedFindingRow.id).limit(limit)
    ).all()
