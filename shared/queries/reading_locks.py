"""Who reads which study, what was read, and the filters that readers saved."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from sqlalchemy import Update, delete, func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session, aliased

from shared.db.notify import worklist_changed
from shared.db.tables import KeyRow, ReadingLockRow, SavedFilterRow, StudyRow
from shared.domain.worklist import ReadingEnd
from shared.errors import InvalidState
from shared.queries.access import Key

MAX_FILTERS = 30  # a key
RELOAD_GRACE = timedelta(seconds=10)  # a page that is loaded again gives its study back in between
LOCK_SEED = 0x05_7E_0A_02
MAX_ENDED = 100  # expired locks, by one new lock


@dataclass(frozen=True)
class AcquiredLock:
    """A lock on a study: it lasts until then, unless it is renewed before."""

    token: UUID  # gives it back
    since: datetime
    until: datetime
    own_since: datetime | None = None  # taken over from another login of the reader's own key, which had it since then


@dataclass(frozen=True)
class LockHolder:
    """Another reader's lock on a study."""

    name: str
    since: datetime
    until: datetime
    same_key: bool  # the reader's own key, at another login


@dataclass(frozen=True)
class PastLock:
    """One line of a study's history of readers."""

    name: str
    locked_at: datetime
    taken_from: str | None
    ended_at: datetime | None
    ended: ReadingEnd | None


def acquire(
    session: Session,
    study_id: UUID,
    key: Key,
    login: str,
    now: datetime,
    lease: timedelta,
    *,
    token: UUID | None = None,
    take_over: bool = False,
) -> AcquiredLock | LockHolder:
    """Lock a study of the key's site for reading, or prolong the lock; another's is taken over only if asked for.

    Two people may share a key, so another login of it counts as another reader. The lock has the token of the page
    that asked last, and only that page can release the study. Every change of the reader is recorded.

    Args:
        session: the caller's transaction.
        study_id: the study.
        key: of the reader.
        login: the login of the key; "" for a program.
        now: Postgres' time.
        lease: how long the lock lasts.
        token: the page's own; None: a new one.
        take_over: whether to end another's lock.

    Returns:
        The reader's lock, or the other's.
    """
    until, token = now + lease, token or uuid4()
    held = _held(session, study_id)
    if held is not None and held.until < now:  # ended by itself; the record must not show it read through the gap
        _end(held, held.until, ReadingEnd.EXPIRED)
        session.flush()
        held = None
    if held is not None and (held.key_id, held.login) == (key.id, login):
        held.token, held.until = token, until
        return AcquiredLock(token, held.locked_at, until)
    if held is not None and not take_over:
        name = session.get_one(KeyRow, held.key_id).name
        return LockHolder(name, held.locked_at, held.until, held.key_id == key.id)
    worklist_changed(session, [key.site_id])
    _end_expired(session, now)
    last = _last(session, study_id)
    if held is not None:
        _end(held, now, ReadingEnd.TAKEN_OVER)
        session.flush()
    elif last is not None and _is_reload(last, key, login, now):
        last.ended_at, last.ended, last.token, last.until = None, "", token, until
        return AcquiredLock(token, last.locked_at, until)
    made = ReadingLockRow(
        study_id=study_id, key_id=key.id, login=login, token=token, locked_at=now, until=until,
        taken_from=held.key_id if held is not None else None,
    )  # fmt: skip
    session.add(made)
    own_since = held.locked_at if held is not None and held.key_id == key.id else None
    return AcquiredLock(token, now, until, own_since)


def release(session: Session, study_id: UUID, key: Key, token: UUID, now: datetime) -> bool:
    """Release a study.

    Args:
        session: the caller's transaction.
        study_id: the study.
        key: of the reader.
        token: of the lock.
        now: Postgres' time.

    Returns:
        False if the token is not the newest: another page of the reader has the study open.
    """
    held = _held(session, study_id)
    if held is None or held.key_id != key.id or held.token != token:
        return False
    _end(held, min(now, held.until), ReadingEnd.RELEASED)
    worklist_changed(session, [key.site_id])
    return True


def mark_read(session: Session, study_id: UUID, key: Key, now: datetime, login: str = "") -> None:
    """Mark a study of the key's site as read: it leaves the list, and the reader's lock on it ends.

    Args:
        session: the caller's transaction.
        study_id: the study.
        key: of the reader.
        now: Postgres' time.
        login: the login of the key; "" for a program.

    Raises:
        InvalidState: somebody else holds it, or another login of the same key: they would read a study that is done.
    """
    held = _held(session, study_id)
    own = held is not None and (held.key_id, held.login) == (key.id, login)
    if held is not None and not own:
        if held.until >= now:
            name = session.get_one(KeyRow, held.key_id).name
            who = f"Another login of your own key, {name}," if held.key_id == key.id else name
            raise InvalidState(f"{who} reads this study now. Load its page again and take it over first.", "held")
        _end(held, held.until, ReadingEnd.EXPIRED)
        session.flush()
    session.execute(_of_site(study_id, key).values(read_at=now))
    if held is not None and own:
        _end(held, now, ReadingEnd.READ)
    else:
        made = ReadingLockRow(
            study_id=study_id, key_id=key.id, login=login, token=uuid4(), locked_at=now, until=now, ended_at=now,
            ended=ReadingEnd.READ,
        )  # fmt: skip
        session.add(made)
    worklist_changed(session, [key.site_id])


def put_back_on_list(session: Session, study_id: UUID, key: Key) -> None:
    """Put a study of the key's site back on the list.

    Args:
        session: the caller's transaction.
        study_id: the study.
        key: of the reader.
    """
    session.execute(_of_site(study_id, key).values(read_at=None))
    worklist_changed(session, [key.site_id])


def resume_lock(
    session: Session, study_id: UUID, key: Key, login: str, read_at: datetime, now: datetime, lease: timedelta
) -> AcquiredLock | LockHolder | None:
    """Continue the lock that a reader's "done" ended, unless somebody else holds the study by now.

    Args:
        session: the caller's transaction.
        study_id: the study.
        key: of the reader.
        login: the login of the key; "" for a program.
        read_at: when the "done" was written.
        now: Postgres' time.
        lease: how long the lock lasts.

    Returns:
        The reader's lock, or another's. None if that "done" ended no lock of this login: then nobody holds the study.
    """
    held = _held(session, study_id)
    if held is not None and held.until < now:
        _end(held, held.until, ReadingEnd.EXPIRED)
        session.flush()
        held = None
    if held is not None and (held.key_id, held.login) == (key.id, login):
        return AcquiredLock(held.token, held.locked_at, held.until)
    if held is not None:
        name = session.get_one(KeyRow, held.key_id).name
        return LockHolder(name, held.locked_at, held.until, held.key_id == key.id)
    last = _last(session, study_id)
    query = select(ReadingLockRow).where(
        ReadingLockRow.study_id == study_id, ReadingLockRow.key_id == key.id, ReadingLockRow.login == login,
        ReadingLockRow.ended == ReadingEnd.READ, ReadingLockRow.ended_at == read_at, ReadingLockRow.locked_at < read_at,
    )  # fmt: skip
    ended = session.scalar(query)
    if ended is None:
        return None
    until = now + lease
    if last is ended:  # nobody has had it since
        ended.ended_at, ended.ended, ended.until = None, "", until
        return AcquiredLock(ended.token, ended.locked_at, until)
    made = ReadingLockRow(study_id=study_id, key_id=key.id, login=login, token=uuid4(), locked_at=now, until=until)
    session.add(made)
    return AcquiredLock(made.token, now, until)


def lock_holder(session: Session, study_id: UUID, now: datetime) -> LockHolder | None:
    """Find who reads a study now.

    Args:
        session: the caller's transaction.
        study_id: the study.
        now: Postgres' time.

    Returns:
        The lock, its `same_key` always False; None if nobody reads the study.
    """
    row = session.execute(
        select(KeyRow.name, ReadingLockRow.locked_at, ReadingLockRow.until)
        .join(KeyRow, KeyRow.id == ReadingLockRow.key_id)
        .where(ReadingLockRow.study_id == study_id, ReadingLockRow.ended_at.is_(None), ReadingLockRow.until >= now)
    ).one_or_none()
    return LockHolder(row[0], row[1], row[2], same_key=False) if row else None


def locks_of(session: Session, study_id: UUID) -> list[PastLock]:
    """Read who locked a study.

    Args:
        session: the caller's transaction.
        study_id: the study.

    Returns:
        The locks, the first one first.
    """
    other = aliased(KeyRow)
    rows = session.execute(
        select(KeyRow.name, ReadingLockRow.locked_at, other.name, ReadingLockRow.ended_at, ReadingLockRow.ended)
        .join(KeyRow, KeyRow.id == ReadingLockRow.key_id)
        .outerjoin(other, other.id == ReadingLockRow.taken_from)
        .where(ReadingLockRow.study_id == study_id)
        .order_by(ReadingLockRow.locked_at, ReadingLockRow.id)
    )
    return [PastLock(*row[:-1], ReadingEnd(row[-1]) if row[-1] else None) for row in rows]


def saved_filters(session: Session, key: Key) -> Sequence[SavedFilterRow]:
    """Read a key's filters.

    Args:
        session: the caller's transaction.
        key: whose filters.

    Returns:
        The rows, by name.
    """
    return session.scalars(
        select(SavedFilterRow).where(SavedFilterRow.key_id == key.id).order_by(SavedFilterRow.name)
    ).all()


def save_filter(session: Session, key: Key, name: str, query: str) -> bool:
    """Save a query under a name; it replaces one of the same name.

    Args:
        session: the caller's transaction.
        key: whose filter.
        name: of the filter.
        query: of the worklist's address.

    Returns:
        False if the key has MAX_FILTERS others.
    """
    others = select(func.count()).where(SavedFilterRow.key_id == key.id, SavedFilterRow.name != name)
    if (session.scalar(others) or 0) >= MAX_FILTERS:
        return False
    session.execute(
        insert(SavedFilterRow)
        .values(id=uuid4(), key_id=key.id, name=name, query=query)
        .on_conflict_do_update(index_elements=["key_id", "name"], set_={"query": query})
    )
    return True


def filter_of(session: Session, key: Key, filter_id: UUID) -> SavedFilterRow | None:
    """Read one of a key's filters.

    Args:
        session: the caller's transaction.
        key: whose filter.
        filter_id: the filter.

    Returns:
        Its row; None if the key has no such filter.
    """
    return session.scalar(select(SavedFilterRow).where(SavedFilterRow.key_id == key.id, SavedFilterRow.id == filter_id))


def rename_filter(session: Session, key: Key, filter_id: UUID, name: str) -> bool | None:
    """Give a key's filter another name.

    Args:
        session: the caller's transaction.
        key: whose filter.
        filter_id: the filter.
        name: the new name.

    Returns:
        Whether it has the name now; False if another filter of the key has it, None if the key has no such filter.
    """
    if filter_of(session, key, filter_id) is None:
        return None
    try:
        with session.begin_nested():
            session.execute(
                update(SavedFilterRow)
                .where(SavedFilterRow.id == filter_id)
                .values(name=name)
                .execution_options(synchronize_session=False)
            )
    except IntegrityError:
        return False
    return True


def delete_filter(session: Session, key: Key, filter_id: UUID) -> bool:
    """Delete a key's filter.

    Args:
        session: the caller's transaction.
        key: whose filter.
        filter_id: the filter.

    Returns:
        False if the key has no such filter.
    """
    gone = session.execute(
        delete(SavedFilterRow).where(SavedFilterRow.key_id == key.id, SavedFilterRow.id == filter_id)
    )
    return bool(gone.rowcount)  # type: ignore[attr-defined]


def serialize_locks(session: Session, study_id: UUID) -> None:
    """Keep others from locking this study, or marking it as read, until the transaction ends.

    Call it before the study's or its site's row is locked: a lock holds this lock when its insert waits for the
    study's row.

    Args:
        session: the caller's transaction.
        study_id: the study.
    """
    session.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(str(study_id), LOCK_SEED))))


def _held(session: Session, study_id: UUID) -> ReadingLockRow | None:
    """The open lock of a study, expired or not; until the transaction ends, no other transaction writes one."""
    serialize_locks(session, study_id)
    open_lock = select(ReadingLockRow).where(ReadingLockRow.study_id == study_id, ReadingLockRow.ended_at.is_(None))
    return session.scalar(open_lock.with_for_update())  # a new lock of another study may be ending expired ones


def _end_expired(session: Session, now: datetime) -> None:
    """End locks whose pages died, of any study: else they stay open until somebody locks that very study."""
    expired = select(ReadingLockRow.id).where(ReadingLockRow.ended_at.is_(None), ReadingLockRow.until < now)
    session.execute(
        update(ReadingLockRow)
        .where(ReadingLockRow.id.in_(expired.limit(MAX_ENDED).with_for_update(skip_locked=True)))
        .values(ended_at=ReadingLockRow.until, ended=ReadingEnd.EXPIRED)
        .execution_options(synchronize_session=False)
    )


def _last(session: Session, study_id: UUID) -> ReadingLockRow | None:
    ended = select(ReadingLockRow).where(ReadingLockRow.study_id == study_id, ReadingLockRow.ended_at.is_not(None))
    return session.scalar(ended.order_by(ReadingLockRow.ended_at.desc()).limit(1))


def _is_reload(last: ReadingLockRow, key: Key, login: str, now: datetime) -> bool:
    same = (last.key_id, last.login, last.ended) == (key.id, login, ReadingEnd.RELEASED)
    return same and last.ended_at is not None and now - last.ended_at <= RELOAD_GRACE


def _of_site(study_id: UUID, key: Key) -> Update:
    return (
        update(StudyRow)
        .where(StudyRow.id == study_id, StudyRow.site_id == key.site_id)
        .execution_options(synchronize_session=False)
    )


def _end(held: ReadingLockRow, at: datetime, how: ReadingEnd) -> None:
    held.ended_at, held.ended = at, how
