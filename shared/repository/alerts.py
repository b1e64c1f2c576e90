"""Retrospective alerts: put before a radiologist until one has seen them, and never again."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy import func, select, tuple_, update
from sqlalchemy.orm import Session

from shared.errors import NotFound
from shared.repository.access import Key
from shared.tables import AlertRow


def unseen(session: Session, site_id: UUID, after: tuple[float, UUID] | None, limit: int) -> Sequence[AlertRow]:
    """A page of a site's alerts that nobody has seen, the likeliest fracture first.

    after: (new_probability, id) of the last one of the page before.
    """
    query = select(AlertRow).where(AlertRow.site_id == site_id, AlertRow.seen_at.is_(None))
    if after is not None:
        query = query.where(tuple_(AlertRow.new_probability, AlertRow.id) < after)
    return session.scalars(query.order_by(AlertRow.new_probability.desc(), AlertRow.id.desc()).limit(limit)).all()


def unseen_count(session: Session, site_id: UUID, most: int) -> int:
    """How many of a site's alerts nobody has seen, not counted further than that."""
    found = select(AlertRow.id).where(AlertRow.site_id == site_id, AlertRow.seen_at.is_(None)).limit(most)
    return session.scalar(select(func.count()).select_from(found.subquery())) or 0


def mark_seen(session: Session, reader: Key, alert_id: UUID, now: datetime) -> bool:
    """Note who has seen an alert, and when; False if somebody had before. Raises NotFound."""
    mine = (AlertRow.id == alert_id, AlertRow.site_id == reader.site_id)
    done = session.scalar(
        update(AlertRow)
        .where(*mine, AlertRow.seen_at.is_(None))
        .values(seen_at=now, seen_by=reader.id)
        .returning(AlertRow.id)
    )
    if done is None and session.scalar(select(AlertRow.id).where(*mine)) is None:
        raise NotFound(f"there is no alert {alert_id} here")
    return done is not None


def of_run(session: Session, site_id: UUID, run_id: UUID, limit: int) -> Sequence[AlertRow]:
    """A site's alerts of one run, seen or not, the likeliest fracture first."""
    query = select(AlertRow).where(AlertRow.run_id == run_id, AlertRow.site_id == site_id)
    return session.scalars(query.order_by(AlertRow.new_probability.desc(), AlertRow.id).limit(limit)).all()
