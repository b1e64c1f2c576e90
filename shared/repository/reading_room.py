"""Who reads which study, what was read, and the filters that readers saved."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy import Update, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session, aliased

from shared.errors import NotNow
from shared.repository.access import Key
from shared.repository.notices import worklist_changed
from shared.tables import KeyRow, SavedFilterRow, StudyClaimRow, StudyRow

MOST_FILTERS = 30  # a key
RELOAD = timedelta(seconds=10)  # a page that is loaded again gives its study back in between
CLAIM_LOCK = 0x05_7E_0A_02
MOST_ENDED = 100  # expired claims, by one new claim


@dataclass(frozen=True)
class Claimed:
    """The study is the reader's until then, unless it is claimed again before."""

    token: UUID  # gives it back
    since: datetime
    until: datetime
    own_since: datetime | None = None  # taken over from another login of the reader's own key, which had it since then


@dataclass(frozen=True)
class HeldBy:
    """Somebody else reads the study."""

    name: str
    since: datetime
    until: datetime
    same_key: bool  # the reader's own key, at another login


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
    token: UUID | None = None,
    take_over: bool = False,
) -> Claimed | HeldBy:
    """Claim a study of the key's site for reading, or prolong the claim; somebody else's is only taken over on purpose.

    desk: which login of the key asks. Two people may share a key, so another login of it is somebody else. token: the
    page's own, or a new one; the claim has that of the page that asked last, and only that page can give the study
    back. Every change of hands is on record.
    """
    until, token = now + lease, token or uuid4()
    held = _held(session, study_id)
    if held is not None and held.until < now:  # ended by itself; the record must not show it read through the gap
        _end(held, held.until, "expired")
        session.flush()
        held = None
    if held is not None and (held.key_id, held.desk) == (key.id, desk):
        held.token, held.until = token, until
        return Claimed(token, held.claimed_at, until)
    if held is not None and not take_over:
        name = session.get_one(KeyRow, held.key_id).name
        return HeldBy(name, held.claimed_at, held.until, held.key_id == key.id)
    worklist_changed(session, [key.site_id])
    _end_expired(session, now)
    last = _last(session, study_id)
    if held is not None:
        _end(held, now, "taken over")
        session.flush()
    elif last is not None and _just_left(last, key, desk, now):
        last.ended_at, last.ended, last.token, last.until = None, "", token, until
        return Claimed(token, last.claimed_at, until)
    made = StudyClaimRow(
        study_id=study_id, key_id=key.id, desk=desk, token=token, claimed_at=now, until=until,
        taken_from=held.key_id if held is not None else None,
    )  # fmt: skip
    session.add(made)
    own_since = held.claimed_at if held is not None and held.key_id == key.id else None
    return Claimed(token, now, until, own_since)


def release(session: Session, study_id: UUID, key: Key, token: UUID, now: datetime) -> bool:
    """Give a claim back; False if the token is not the newest: another page of the reader's has it open."""
    held = _held(session, study_id)
    if held is None or held.key_id != key.id or held.token != token:
        return False
    _end(held, min(now, held.until), "released")
    worklist_changed(session, [key.site_id])
    return True


def mark_read(session: Session, study_id: UUID, key: Key, now: datetime, desk: str = "") -> None:
    """The reader is done with a study of their site: it leaves the list, and their claim on it ends.

    Raises NotNow while somebody else holds it, another login of the same key too: they would read a study that is done.
    """
    held = _held(session, study_id)
    own = held is not None and (held.key_id, held.desk) == (key.id, desk)
    if held is not None and not own:
        if held.until >= now:
            name = session.get_one(KeyRow, held.key_id).name
            who = f"Another login of your own key, {name}," if held.key_id == key.id else name
            raise NotNow(f"{who} reads this study now. Load its page again and take it over first.", "held")
        _end(held, held.until, "expired")
        session.flush()
    session.execute(_of_site(study_id, key).values(read_at=now))
    if held is not None and own:
        _end(held, now, "read")
    else:
        made = StudyClaimRow(
            study_id=study_id, key_id=key.id, desk=desk, token=uuid4(), claimed_at=now, until=now, ended_at=now,
            ended="read",
        )  # fmt: skip
        session.add(made)
    worklist_changed(session, [key.site_id])


def unread(session: Session, study_id: UUID, key: Key) -> None:
    """Put a study of the key's site back on the list."""
    session.execute(_of_site(study_id, key).values(read_at=None))
    worklist_changed(session, [key.site_id])


def resume(
    session: Session, study_id: UUID, key: Key, desk: str, read_at: datetime, now: datetime, lease: timedelta
) -> Claimed | HeldBy | None:
    """Let the claim go on that a reader's "done" ended at read_at, unless somebody else holds the study by now.

    None if they held none then, as a program does, or at another desk: nobody holds the study afterwards.
    """
    held = _held(session, study_id)
    if held is not None and held.until < now:
        _end(held, held.until, "expired")
        session.flush()
        held = None
    if held is not None and (held.key_id, held.desk) == (key.id, desk):
        return Claimed(held.token, held.claimed_at, held.until)
    if held is not None:
        name = session.get_one(KeyRow, held.key_id).name
        return HeldBy(name, held.claimed_at, held.until, held.key_id == key.id)
    last = _last(session, study_id)
    mine = select(StudyClaimRow).where(
        StudyClaimRow.study_id == study_id, StudyClaimRow.key_id == key.id, StudyClaimRow.desk == desk,
        StudyClaimRow.ended == "read", StudyClaimRow.ended_at == read_at, StudyClaimRow.claimed_at < read_at,
    )  # fmt: skip
    ended = session.scalar(mine)
    if ended is None:
        return None
    until = now + lease
    if last is ended:  # nobody has had it since
        ended.ended_at, ended.ended, ended.until = None, "", until
        return Claimed(ended.token, ended.claimed_at, until)
    made = StudyClaimRow(study_id=study_id, key_id=key.id, desk=desk, token=uuid4(), claimed_at=now, until=until)
    session.add(made)
    return Claimed(made.token, now, until)


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


def lock_claims(session: Session, study_id: UUID) -> None:
    """Until the transaction ends nobody else claims this study, or is done with it.

    Before its row or its site's is locked: a claim holds this lock when its insert waits for the study's row.
    """
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(str(study_id), CLAIM_LOCK))))


def _held(session: Session, study_id: UUID) -> StudyClaimRow | None:
    """The open claim of a study, expired or not. Until the transaction ends nobody else writes one of this study."""
    lock_claims(session, study_id)
    open_claim = select(StudyClaimRow).where(StudyClaimRow.study_id == study_id, StudyClaimRow.ended_at.is_(None))
    return session.scalar(open_claim.with_for_update())  # a new claim of another study may be ending expired ones


def _end_expired(session: Session, now: datetime) -> None:
    """End claims whose pages died, of any study: else they stay open until somebody claims that very study."""
    expired = select(StudyClaimRow.id).where(StudyClaimRow.ended_at.is_(None), StudyClaimRow.until < now)
    session.execute(
        update(StudyClaimRow)
        .where(StudyClaimRow.id.in_(expired.limit(MOST_ENDED).with_for_update(skip_locked=True)))
        .values(ended_at=StudyClaimRow.until, ended="expired")
        .execution_options(synchronize_session=False)
    )


def _last(session: Session, study_id: UUID) -> StudyClaimRow | None:
    ended = select(StudyClaimRow).where(StudyClaimRow.study_id == study_id, StudyClaimRow.ended_at.is_not(None))
    return session.scalar(ended.order_by(StudyClaimRow.ended_at.desc()).limit(1))


def _just_left(last: StudyClaimRow, key: Key, desk: str, now: datetime) -> bool:
    same = (last.key_id, last.desk, last.ended) == (key.id, desk, "released")
    return same and last.ended_at is not None and now - last.ended_at <= RELOAD


def _of_site(study_id: UUID, key: Key) -> Update:
    return (
        update(StudyRow)
        .where(StudyRow.id == study_id, StudyRow.site_id == key.site_id)
        .execution_options(synchronize_session=False)
    )


def _end(held: StudyClaimRow, at: datetime, how: str) -> None:
    held.ended_at, held.ended = at, how
