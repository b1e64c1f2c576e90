"""Who reads which study, what was read, and the filters that readers saved."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy import Update, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased

from shared.repository.access import Key
from shared.repository.notices import worklist_changed
from shared.tables import KeyRow, SavedFilterRow, StudyClaimRow, StudyRow

MOST_FILTERS = 30  # a key


@dataclass(frozen=True)
class Claimed:
    """The study is the reader's until then, unless it is claimed again before."""

    token: UUID  # gives it back
    since: datetime
    until: datetime


@dataclass(frozen=True)
class HeldBy:
    """Somebody else reads the study."""

    name: str
    since: datetime
    until: datetime
    same_key: bool  # the reader's own key, at another desk


@dataclass(frozen=True)
class PastClaim:
    """One line of a study's history of readers."""

    name: str
    claimed_at: datetime
    taken_from: str | None
    ended_at: datetime | None
    ended: str


def claim(
    session: Session,
    study_id: UUID,
    key: Key,
    desk: str,
    now: datetime,
    lease: timedelta,
    *,
    take_over: bool = False,
) -> Claimed | HeldBy:
    """Claim a study of the key's site for reading, or prolong the claim; somebody else's is only taken over on purpose.

    desk: which login of the key asks, for two people may share one. Every change of hands stays on record.
    """
    token, until = uuid4(), now + lease
    while True:
        held = session.scalar(_OPEN.where(StudyClaimRow.study_id == study_id).with_for_update())
        if held is not None and held.key_id == key.id and held.desk == desk:
            if held.until < now:  # a new row, so that the record does not show it read through the gap
                _end(held, held.until, "expired")
                session.flush()
                held = None
            else:
                held.token, held.until = token, until
                return Claimed(token, held.claimed_at, until)
        if held is not None and held.until >= now and not take_over:
            name = session.get_one(KeyRow, held.key_id).name
            return HeldBy(name, held.claimed_at, held.until, held.key_id == key.id)
        taken_from = None
        if held is not None:
            late = held.until < now
            taken_from = None if late else held.key_id
            _end(held, held.until if late else now, "expired" if late else "taken over")
            session.flush()
        made = session.scalar(
            insert(StudyClaimRow)
            .values(
                id=uuid4(), study_id=study_id, key_id=key.id, desk=desk, token=token, claimed_at=now, until=until,
                taken_from=taken_from,
            )
            .on_conflict_do_nothing()
            .returning(StudyClaimRow.id)
        )  # fmt: skip
        if made is not None:
            worklist_changed(session, [key.site_id])
            return Claimed(token, now, until)
        # somebody was faster: the next look sees who


def release(session: Session, study_id: UUID, key: Key, token: UUID, now: datetime) -> bool:
    """Give a claim back; False if the token is not the newest: another page of the reader's has it open."""
    held = session.scalar(
        _OPEN.where(
            StudyClaimRow.study_id == study_id, StudyClaimRow.key_id == key.id, StudyClaimRow.token == token
        ).with_for_update()
    )
    if held is None:
        return False
    _end(held, min(now, held.until), "released")
    worklist_changed(session, [key.site_id])
    return True


def mark_read(session: Session, study_id: UUID, key: Key, now: datetime) -> None:
    """The reader is done with a study of their site: it leaves the list, and their claim on it ends."""
    session.execute(_of_site(study_id, key).values(read_at=now))
    held = session.scalar(
        _OPEN.where(StudyClaimRow.study_id == study_id, StudyClaimRow.key_id == key.id).with_for_update()
    )
    if held is not None:
        _end(held, now, "read")
    else:
        session.add(
            StudyClaimRow(
                study_id=study_id, key_id=key.id, token=uuid4(), claimed_at=now, until=now, ended_at=now, ended="read"
            )
        )
    worklist_changed(session, [key.site_id])


def unread(session: Session, study_id: UUID, key: Key) -> None:
    """Put a study of the key's site back on the list."""
    session.execute(_of_site(study_id, key).values(read_at=None))
    worklist_changed(session, [key.site_id])


def holder(session: Session, study_id: UUID, now: datetime) -> HeldBy | None:
    """Who reads a study now; `same_key` is not told."""
    row = session.execute(
        select(KeyRow.name, StudyClaimRow.claimed_at, StudyClaimRow.until)
        .join(KeyRow, KeyRow.id == StudyClaimRow.key_id)
        .where(StudyClaimRow.study_id == study_id, StudyClaimRow.ended_at.is_(None), StudyClaimRow.until >= now)
    ).one_or_none()
    return HeldBy(row[0], row[1], row[2], same_key=False) if row else None


def claims_of(session: Session, study_id: UUID) -> list[PastClaim]:
    """Everybody who claimed a study, the first one first."""
    other = aliased(KeyRow)
    rows = session.execute(
        select(KeyRow.name, StudyClaimRow.claimed_at, other.name, StudyClaimRow.ended_at, StudyClaimRow.ended)
        .join(KeyRow, KeyRow.id == StudyClaimRow.key_id)
        .outerjoin(other, other.id == StudyClaimRow.taken_from)
        .where(StudyClaimRow.study_id == study_id)
        .order_by(StudyClaimRow.claimed_at, StudyClaimRow.id)
    )
    return [PastClaim(*row) for row in rows]


def saved_filters(session: Session, key: Key) -> Sequence[SavedFilterRow]:
    """The key's filters, by name."""
    return session.scalars(
        select(SavedFilterRow).where(SavedFilterRow.key_id == key.id).order_by(SavedFilterRow.name)
    ).all()


def save_filter(session: Session, key: Key, name: str, query: str) -> bool:
    """Keep a query under a name, in place of what had that name; False when the key has MOST_FILTERS others."""
    others = select(func.count()).where(SavedFilterRow.key_id == key.id, SavedFilterRow.name != name)
    if (session.scalar(others) or 0) >= MOST_FILTERS:
        return False
    session.execute(
        insert(SavedFilterRow)
        .values(id=uuid4(), key_id=key.id, name=name, query=query)
        .on_conflict_do_update(index_elements=["key_id", "name"], set_={"query": query})
    )
    return True


def forget_filter(session: Session, key: Key, filter_id: UUID) -> bool:
    """Delete one of the key's filters; False if it has no such filter."""
    gone = session.execute(
        delete(SavedFilterRow).where(SavedFilterRow.key_id == key.id, SavedFilterRow.id == filter_id)
    )
    return bool(gone.rowcount)  # type: ignore[attr-defined]


_OPEN = select(StudyClaimRow).where(StudyClaimRow.ended_at.is_(None))


def _of_site(study_id: UUID, key: Key) -> Update:
    return (
        update(StudyRow)
        .where(StudyRow.id == study_id, StudyRow.site_id == key.site_id)
        .execution_options(synchronize_session=False)
    )


def _end(held: StudyClaimRow, at: datetime, how: str) -> None:
    held.ended_at, held.ended = at, how
