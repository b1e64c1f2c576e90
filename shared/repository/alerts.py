"""Revised findings: put before a radiologist until one has seen them, and never again."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, func, select, tuple_, update
from sqlalchemy.orm import Session

from shared.answers import Verdict
from shared.errors import NotFound
from shared.repository.access import Key
from shared.repository.answers import Said, append
from shared.repository.notices import findings_revised
from shared.tables import AlertRow, FindingRow, InstanceRow, KeyRow, StudyRow


@dataclass(frozen=True)
class Revised:
    """A revised finding, and what has become of its study."""

    alert: AlertRow
    read_at: datetime | None  # when its study was marked as read; None: it is unread
    earlier_at: datetime | None  # when the old bundle had assessed the study
    seen_by: str | None  # the name of the key


def unseen(
    session: Session, site_id: UUID, after: tuple[float, UUID] | None, limit: int, *, read: bool | None = None
) -> list[Revised]:
    """A page of a site's revised findings that nobody has seen, the likeliest fracture first.

    after: (new_probability, id) of the last one of the page before; read: only those of studies that were read, or not.
    """
    query = _revised().where(AlertRow.site_id == site_id, AlertRow.seen_at.is_(None))
    if read is not None:
        query = query.where(StudyRow.read_at.is_not(None) if read else StudyRow.read_at.is_(None))
    if after is not None:
        query = query.where(tuple_(AlertRow.new_probability, AlertRow.id) < after)
    query = query.order_by(AlertRow.new_probability.desc(), AlertRow.id.desc()).limit(limit)
    return [Revised(*row) for row in session.execute(query)]


def of_study(session: Session, site_id: UUID, study_id: UUID) -> list[Revised]:
    """The revised findings of a study, seen or not, the newest first."""
    query = _revised().where(AlertRow.site_id == site_id, AlertRow.study_id == study_id)
    return [Revised(*row) for row in session.execute(query.order_by(AlertRow.created_at.desc(), AlertRow.id))]


def _revised() -> Select[*tuple[Any, ...]]:
    """The columns of Revised."""
    earlier = (
        select(func.max(FindingRow.created_at))
        .join(InstanceRow, InstanceRow.id == FindingRow.instance_id)
        .where(InstanceRow.study_id == AlertRow.study_id, FindingRow.bundle == AlertRow.old_bundle)
        .scalar_subquery()
    )
    return (
        select(AlertRow, StudyRow.read_at, earlier, KeyRow.name)
        .join(StudyRow, StudyRow.id == AlertRow.study_id)
        .outerjoin(KeyRow, KeyRow.id == AlertRow.seen_by)
    )


def unseen_count(session: Session, site_id: UUID, most: int) -> int:
    """How many of a site's revised findings nobody has seen, not counted further than that."""
    found = select(AlertRow.id).where(AlertRow.site_id == site_id, AlertRow.seen_at.is_(None)).limit(most)
    return session.scalar(select(func.count()).select_from(found.subquery())) or 0


def mark_seen(session: Session, reader: Key, alert_id: UUID, now: datetime) -> bool:
    """Note who has seen a revised finding, and when, here and in the ledger; False if somebody had before.

    Raises NotFound.
    """
    mine = (AlertRow.id == alert_id, AlertRow.site_id == reader.site_id)
    done = session.execute(
        update(AlertRow)
        .where(*mine, AlertRow.seen_at.is_(None))
        .values(seen_at=now, seen_by=reader.id)
        .returning(AlertRow.study_id, AlertRow.new_bundle)
    ).one_or_none()
    if done is None:
        if session.scalar(select(AlertRow.id).where(*mine)) is None:
            raise NotFound(f"there is no alert {alert_id} here")
        return False
    append(session, reader, f"seen {alert_id}", Said(done.study_id, Verdict.SEEN, bundle=done.new_bundle))
    findings_revised(session, [reader.site_id])
    return True


def of_run(session: Session, site_id: UUID, run_id: UUID, limit: int) -> Sequence[AlertRow]:
    """A site's alerts of one run, seen or not, the likeliest fracture first."""
    query = select(AlertRow).where(AlertRow.run_id == run_id, AlertRow.site_id == site_id)
    return session.scalars(query.order_by(AlertRow.new_probability.desc(), AlertRow.id).limit(limit)).all()
