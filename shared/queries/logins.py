"""Logins of the pages: begun with a key, kept by activity, ended by logging out, by time, or with their key."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import ColumnElement, case, delete, func, select, update
from sqlalchemy.orm import Session

from shared.db.tables import KeyRow, SessionRow
from shared.domain.security import LoginEnd
from shared.queries.access import IS_VALID, Key, key_of_row

ENDED_KEPT_FOR = timedelta(days=30)  # so long a login that is over can say why
ACTIVITY_INTERVAL = timedelta(minutes=1)  # use of a page is written down no more often


@dataclass(frozen=True)
class Limits:
    """How long a login lasts."""

    idle: timedelta  # without activity
    longest: timedelta


@dataclass(frozen=True)
class Login:
    """A login that a cookie names. Of one that has ended, `ended` says why."""

    id: UUID
    key: Key
    ended: LoginEnd | None
    left: timedelta  # until it ends without activity


@dataclass(frozen=True)
class Holder:
    """Whose stream is open: a key, and the login of it; None for a program."""

    key_id: UUID
    login: UUID | None


def begin_login(session: Session, key: Key) -> UUID:
    """Begin a login; logins that ended long ago are deleted.

    Args:
        session: the caller's transaction.
        key: of the user.

    Returns:
        The login's id, which its cookie holds.
    """
    session.execute(delete(SessionRow).where(SessionRow.created_at < func.now() - ENDED_KEPT_FOR))
    row = SessionRow(key_id=key.id, address=key.address)
    session.add(row)
    session.flush()
    return row.id


def find_login(session: Session, login: UUID, limits: Limits, *, active: bool = False) -> Login | None:
    """Find the login of a cookie. Why it ended is stored when it is first asked for, so that it can be said later.

    Args:
        session: the caller's transaction.
        login: its id.
        limits: how long logins last.
        active: whether the user does something just now, which keeps the login alive.

    Returns:
        The login, also one that has ended; None if it is not known.
    """
    found = session.execute(
        select(SessionRow, KeyRow, _ended(limits), func.now()).join(KeyRow).where(SessionRow.id == login)
    ).one_or_none()
    if found is None:
        return None
    row, key, why, now = found
    ended = LoginEnd(why) if why else None
    if ended is not None and row.ended_at is None:
        _write_end(session, login, ended)
    elif ended is None and active and now - row.active_at >= min(ACTIVITY_INTERVAL, limits.idle / 4):
        # a login that another transaction has locked is noted as active the next time: no request waits for this
        free = select(SessionRow.id).where(SessionRow.id == login).with_for_update(skip_locked=True)
        session.execute(update(SessionRow).where(SessionRow.id.in_(free)).values(active_at=func.now()))
        row.active_at = now
    left = min(row.active_at + limits.idle, row.created_at + limits.longest) - now
    return Login(login, key_of_row(key), ended, left)


def end_login(session: Session, login: UUID) -> None:
    """End a login because its user logs out.

    Args:
        session: the caller's transaction.
        login: its id.
    """
    _write_end(session, login, LoginEnd.LOGGED_OUT)


def valid_holders(session: Session, holders: Collection[Holder], limits: Limits) -> set[Holder]:
    """Find whose open streams may go on.

    Args:
        session: the caller's transaction.
        holders: keys and logins.
        limits: how long logins last.

    Returns:
        Those whose key, and login if there is one, are still valid.
    """
    keys = set(session.scalars(select(KeyRow.id).where(KeyRow.id.in_({each.key_id for each in holders}), IS_VALID)))
    asked = {each.login for each in holders if each.login}
    query = select(SessionRow.id).join(KeyRow).where(SessionRow.id.in_(asked), _ended(limits).is_(None))
    logins = set(session.scalars(query)) if asked else set()
    return {each for each in holders if each.key_id in keys and (each.login is None or each.login in logins)}


def _write_end(session: Session, login: UUID, why: LoginEnd) -> None:
    ended = update(SessionRow).where(SessionRow.id == login, SessionRow.ended_at.is_(None))
    session.execute(ended.values(ended_at=func.now(), ended_for=why))


def _ended(limits: Limits) -> ColumnElement[str | None]:
    """Why a login has ended; null while it has not."""
    now: ColumnElement[datetime] = func.now()
    return case(
        (SessionRow.ended_at.is_not(None), SessionRow.ended_for),
        (KeyRow.revoked_at.is_not(None), LoginEnd.REVOKED.value),
        (KeyRow.expires_at <= now, LoginEnd.EXPIRED.value),
        (SessionRow.created_at <= now - limits.longest, LoginEnd.OLD.value),
        (SessionRow.active_at <= now - limits.idle, LoginEnd.IDLE.value),
        else_=None,
    )
